# SPDX-License-Identifier: Apache-2.0
"""What a repository holds at one commit: its files, their sizes and hashes.

Lists of files come from hubs, mirrors, other hosts and caches, so that nothing in them is
believed before it was checked here.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Dict, Iterable, Mapping, NamedTuple, Optional, Tuple

MAX_ENTRIES = 100_000
"""Hubs advise against more files in a repository."""
MAX_SIZE = 2**44
"""16 TiB: no file of ext4 is larger."""
MAX_PATH = 1024
MAX_NAME = 255
"""The longest name in bytes that Linux takes."""
MAX_FOLDERS = 32

COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
GIT_SHA1 = COMMIT
# What huggingface_hub takes for a repository: `name` or `organisation/name`.
_REPO_ID = re.compile(r"(?:[A-Za-z0-9_][\w.-]*/)?[A-Za-z0-9_][\w.-]*", re.ASCII)


class Entry(NamedTuple):
    """One file of a repository.

    ``size`` is in bytes. ``sha256`` is of the content, ``git_sha1`` of the content as a blob of
    git. Hubs give the first for large files (LFS), the second for the others.
    """

    path: str
    size: int
    sha256: Optional[str]
    git_sha1: Optional[str]

    @property
    def blob(self) -> str:
        """The hash that the file is known by, and the name that a cache gives it."""
        return self.sha256 or self.git_sha1 or ""

    def digest(self) -> _Digest:
        """An empty digest that gives :attr:`blob` once it was fed the file."""
        return _Digest(self)


class Manifest(NamedTuple):
    """All files of a repository at one commit (40 hexadecimal digits)."""

    repo_id: str
    commit: str
    entries: Tuple[Entry, ...]


class _Digest:
    """The hash of a file, of the kind that its entry has."""

    def __init__(self, entry: Entry) -> None:
        self.kind = "sha256" if entry.sha256 else "git sha1"
        if entry.sha256:
            self._hash = hashlib.sha256()
        else:
            # It names a file as git does and keeps no secret.
            self._hash = hashlib.sha1(b"blob %d\0" % entry.size, usedforsecurity=False)
        self.update = self._hash.update
        self.hexdigest = self._hash.hexdigest


def bad(path: Any) -> str:
    """Why this cannot be the path of a file in a repository; empty where it can."""
    if not isinstance(path, str) or not path:
        return "no text" if not isinstance(path, str) else "empty"
    if not path.isprintable():
        return "has control characters"
    if path.startswith("/"):
        return "is absolute"
    if "\\" in path:
        return "has a backslash"
    names = path.split("/")
    if ".." in names:
        return "leads out of its folder"
    if "" in names or "." in names:
        return "has empty parts"
    if len(path.encode()) > MAX_PATH or any(len(name.encode()) > MAX_NAME for name in names):
        return "is too long"
    if len(names) > MAX_FOLDERS:
        return "has too many folders"
    return ""


def bad_repo_id(repo_id: Any) -> str:
    """Why this names no repository; empty where it can."""
    if not isinstance(repo_id, str) or not _REPO_ID.fullmatch(repo_id):
        return "is not `name` or `organisation/name`"
    if len(repo_id) > 96 * 2:
        return "is too long"
    if "--" in repo_id or ".." in repo_id or repo_id.endswith((".git", ".ipynb")):
        return "has `--`, `..`, or ends in .git or .ipynb"
    return ""


def checked(repo_id: Any, commit: Any, entries: Iterable[Entry], where: str = "") -> Manifest:
    """A manifest, sorted by path.

    :param where: what the error starts with, for example the file that was read.
    :raises ValueError: which entry, what was found and wanted.
    """
    where = where + ": " if where else ""
    reason = bad_repo_id(repo_id)
    if reason:
        raise ValueError("%srepository %.200r %s" % (where, repo_id, reason))
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise ValueError("%scommit %.200r is not 40 hexadecimal digits" % (where, commit))
    found: Dict[str, Entry] = {}
    for entry in entries:
        reason = _bad_entry(entry)
        if reason:
            raise ValueError("%s%s" % (where, reason))
        if entry.path in found:
            raise ValueError("%spath %.200r is there twice" % (where, entry.path))
        found[entry.path] = entry
        if len(found) > MAX_ENTRIES:
            raise ValueError("%smore than %d files" % (where, MAX_ENTRIES))
    for path in found:
        parts = path.split("/")
        for end in range(1, len(parts)):
            folder = "/".join(parts[:end])
            if folder in found:
                raise ValueError("%spath %.200r is a file and the folder of %.200r"
                                 % (where, folder, path))
    return Manifest(repo_id, commit, tuple(found[path] for path in sorted(found)))


def _bad_entry(entry: Entry) -> str:
    reason = bad(entry.path)
    if reason:
        return "path %.200r %s" % (entry.path, reason)
    size = entry.size
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_SIZE:
        return "%s: size %.40r is not between 0 and %d" % (entry.path, size, MAX_SIZE)
    for name, pattern in (("sha256", SHA256), ("git_sha1", GIT_SHA1)):
        value = getattr(entry, name)
        if value is not None and not (isinstance(value, str) and pattern.fullmatch(value)):
            return "%s: %s is %.100r" % (entry.path, name, value)
    if not entry.blob:
        return "%s: no hash" % entry.path
    return ""


def manifest_to_dict(manifest: Manifest) -> Dict[str, Any]:
    """The manifest as JSON has it."""
    return {"repo_id": manifest.repo_id, "commit": manifest.commit,
            "entries": [dict(entry._asdict()) for entry in manifest.entries]}


def manifest_from_dict(value: Any, where: str = "manifest") -> Manifest:
    """What :func:`manifest_to_dict` gave, from wherever it comes.

    :param where: what the error starts with.
    :raises ValueError: where it is wrong, what was found and wanted.
    """
    if not isinstance(value, Mapping):
        raise ValueError("%s: is not an object" % where)
    entries = value.get("entries")
    if not isinstance(entries, (list, tuple)):
        raise ValueError("%s: entries is not a list" % where)
    if len(entries) > MAX_ENTRIES:
        raise ValueError("%s: %d files, more than %d" % (where, len(entries), MAX_ENTRIES))
    made = []
    for index, one in enumerate(entries):
        if not isinstance(one, Mapping):
            raise ValueError("%s: entries[%d] is not an object" % (where, index))
        # A checked entry has no values of other types; checked() refuses what is not one.
        made.append(Entry(one.get("path"), one.get("size"),  # type: ignore[arg-type]
                          one.get("sha256"), one.get("git_sha1")))
    return checked(value.get("repo_id"), value.get("commit"), made, where)


def fingerprint(entries: Iterable[Entry]) -> str:
    """A sha256 over paths and hashes: the same wherever these files are the same."""
    digest = hashlib.sha256()
    for line in sorted("%s %s\n" % (entry.path, entry.blob) for entry in entries):
        digest.update(line.encode())
    return digest.hexdigest()
