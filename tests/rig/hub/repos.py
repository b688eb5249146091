# SPDX-License-Identifier: Apache-2.0
"""Folders as repositories: their commits, trees and hashes; and builders of such folders."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import random
import shutil
import threading
import urllib.parse
from typing import NamedTuple

LFS = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".h5", ".onnx", ".msgpack")
LFS_FROM = 10 * 2**20
BLOCK = 2**23


class File(NamedTuple):
    """A file of a repository. ``sha256`` is that of an LFS file."""

    path: str
    at: str
    size: int
    oid: str
    sha256: str | None
    pointer: int

    @property
    def etag(self):
        return self.sha256 or self.oid

    def row(self):
        """As a tree has it."""
        row = {"type": "file", "path": self.path, "size": self.size, "oid": self.oid}
        if self.sha256:
            row["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": self.pointer}
        return row


class Listing(NamedTuple):
    """A revision: its commit and its files by path."""

    commit: str
    files: dict


class Repos:
    """The repositories under a folder."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.kept = self.folder / ".hashes.json"
        self.lock = threading.Lock()
        try:
            self.hashes = json.loads(self.kept.read_text())
        except (OSError, ValueError):
            self.hashes = {}
        self.by_commit = {}

    def refs(self, repo_id):
        """The commits of a repository's branches and tags by name; empty where there is none."""
        return {name: self._list(folder).commit for name, folder in self._folders(repo_id)}

    def listing(self, repo_id, revision):
        """What a branch, tag or commit holds, or ``None``."""
        known = self.by_commit.get((repo_id, revision))
        if known and all(_stat(file.at) == self._kept(file.at)[:2]
                         for file in known.files.values()):
            return known
        for name, folder in self._folders(repo_id):
            listing = self._list(folder)
            self.by_commit[repo_id, listing.commit] = listing
            if revision in (name, listing.commit):
                return listing
        return None

    def file(self, repo_id, revision, path):
        """``(listing, file)`` of which either may be ``None``; reads little for a known commit."""
        known = self.by_commit.get((repo_id, revision))
        file = known and known.files.get(path)
        if file and _stat(file.at) == self._kept(file.at)[:2]:
            return known, file
        listing = self.listing(repo_id, revision)
        return listing, listing and listing.files.get(path)

    def _folders(self, repo_id):
        org, _, name = repo_id.partition("/")
        if not name or any(part in ("", ".", "..") or "/" in part for part in (org, name)):
            return
        if (self.folder / org / name).is_dir():
            yield "main", self.folder / org / name
        for folder in sorted((self.folder / org).glob(name.replace("[", "[[]") + "@*")):
            yield urllib.parse.unquote(folder.name.partition("@")[2]), folder

    def _list(self, folder):
        files = {}
        for at in sorted(folder.rglob("*")):
            if at.is_file():
                path = at.relative_to(folder).as_posix()
                files[path] = self._file(path, str(at))
        tree = "".join("%s %s\n" % (path, file.etag) for path, file in sorted(files.items()))
        return Listing(hashlib.sha1(b"commit " + tree.encode()).hexdigest(), files)

    def _file(self, path, at):
        size, mtime = _stat(at)
        lfs = path.endswith(LFS) or size >= LFS_FROM
        digest = self._hash(at, [size, mtime], lfs)
        if not lfs:
            return File(path, at, size, digest, None, 0)
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (
            digest.encode(), size)
        return File(path, at, size, _blob(pointer).hexdigest(), digest, len(pointer))

    def _kept(self, at):
        return self.hashes.get(os.path.relpath(at, self.folder)) or [None, None, None]

    def _hash(self, at, stat, lfs):
        with self.lock:
            kept = self._kept(at)
            if kept[:2] == stat:
                return kept[2]
            digest = hashlib.sha256() if lfs else _blob(b"", stat[0])
            with open(at, "rb") as file:
                for block in iter(lambda: file.read(BLOCK), b""):
                    digest.update(block)
            self.hashes[os.path.relpath(at, self.folder)] = [*stat, digest.hexdigest()]
            part = self.kept.with_suffix(".part")
            part.write_text(json.dumps(self.hashes))
            part.rename(self.kept)
            return digest.hexdigest()


def _stat(at):
    try:
        found = os.stat(at)
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _blob(content, size=None):
    """The hash that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % (len(content) if size is None else size) + content)


# Builders.


def canary_repos(folder):
    """Repositories of the canary under ``folder``, which is returned.

    ``firstlight/canary`` is a model as Transformers has it, with copies in other formats that
    nobody should fetch beside it; ``firstlight/canary-sharded`` the same in two shards, with no
    copies; ``firstlight/canary-gguf`` has three quantisations, by name: each is the canary.
    """
    from ansible.module_utils.firstlight import canary

    files = {name.rpartition("/")[2]: canary.content(name) for name in canary.FILES}
    gguf = files.pop(canary.GGUF)
    weights = files.pop("model.safetensors")
    about = {
        "README.md": b"---\nlicense: apache-2.0\n---\n# The canary\n",
        "LICENSE": b"Apache-2.0\n",
        ".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n",
    }
    extra = {
        "pytorch_model.bin": 300_000, "pytorch_model-00001-of-00002.bin": 200_000,
        "pytorch_model-00002-of-00002.bin": 100_000, "original/consolidated.00.pth": 250_000,
        "consolidated.safetensors": 150_000, "onnx/model.onnx": 120_000, "tf_model.h5": 110_000,
        "flax_model.msgpack": 90_000,
    }
    index = {"metadata": {"total_size": 300_000}, "weight_map": {}}
    made = pathlib.Path(folder)
    _write(made / "firstlight/canary", {
        **about, **files, "model.safetensors": weights,
        **{name: random.Random(name).randbytes(size) for name, size in extra.items()},
        "pytorch_model.bin.index.json": json.dumps(index).encode()})
    _write(made / "firstlight/canary-sharded", {**about, **files, **sharded(weights)})
    # What follows the last tensor is nobody's: the files differ, and each is a whole model.
    _write(made / "firstlight/canary-gguf", {
        **about,
        **{"canary-%s.gguf" % name: gguf + bytes(32 * count) for count, name in enumerate(
            ("F16", "Q4_K_M", "Q8_0"))},
        "mmproj-canary-F16.gguf": random.Random("mmproj").randbytes(50_000)})
    return made


def sharded(weights):
    """A safetensors file as two shards with their index: the content of the files by name."""
    length = int.from_bytes(weights[:8], "little")
    header, data = json.loads(weights[8:8 + length]), weights[8 + length:]
    names = [name for name in header if name != "__metadata__"]
    made, weight_map = {}, {}
    for number, part in enumerate((names[:len(names) // 2], names[len(names) // 2:]), 1):
        path = "model-%05d-of-00002.safetensors" % number
        own, pieces, end = {"__metadata__": {"format": "pt"}}, [], 0
        for name in part:
            begin, stop = header[name]["data_offsets"]
            own[name] = dict(header[name], data_offsets=[end, end + stop - begin])
            pieces.append(data[begin:stop])
            end += stop - begin
            weight_map[name] = path
        text = json.dumps(own).encode()
        text += b" " * (-len(text) % 8)
        made[path] = b"".join([len(text).to_bytes(8, "little"), text, *pieces])
    made["model.safetensors.index.json"] = json.dumps(
        {"metadata": {"total_size": len(data)}, "weight_map": weight_map}).encode()
    return made


def big_repo(folder, sizes, repo_id="firstlight/big"):
    """A repository of large files of data that no one can compress, made as fast as a disk writes.

    :param sizes: bytes by path; or a list of them, for as many shards of safetensors. A file of
        safetensors is one tensor of bytes.
    :returns: ``folder``, as a path.
    """
    if not isinstance(sizes, dict):
        sizes = {"model-%05d-of-%05d.safetensors" % (number, len(sizes)): size
                 for number, size in enumerate(sizes, 1)}
    block = memoryview(random.Random(0).randbytes(BLOCK) * 2)
    made = pathlib.Path(folder)
    for number, (path, size) in enumerate(sizes.items(), 1):
        at = made / repo_id / path
        at.parent.mkdir(parents=True, exist_ok=True)
        with open(at, "wb") as file:
            left = size
            if path.endswith(".safetensors"):
                left -= file.write(_header(size, "tensor.%d" % number))
            while left > 0:
                turn = (number * 1_000_003 + left // BLOCK * 7919) % BLOCK
                left -= file.write(block[turn:turn + min(left, BLOCK)])
    return made


def tagged(folder, repo_id, name):
    """Keep what ``main`` holds now as another branch or tag."""
    at = pathlib.Path(folder) / repo_id
    shutil.copytree(at, at.with_name("%s@%s" % (at.name, urllib.parse.quote(name, safe=""))),
                    copy_function=os.link)


def _header(size, tensor):
    """The beginning of a safetensors file of so many bytes as a whole."""
    room = 160
    end = size - 8 - room
    assert end >= 0, "a file of safetensors has %d bytes at least" % (8 + room)
    text = json.dumps({tensor: {"dtype": "U8", "shape": [end], "data_offsets": [0, end]}}).encode()
    return room.to_bytes(8, "little") + text + b" " * (room - len(text))


def _write(folder, files):
    for path, content in files.items():
        at = folder / path
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_bytes(content)
