# SPDX-License-Identifier: Apache-2.0
"""The cache on disk as huggingface_hub 2.4 reads and writes it.

``<cache>/models--<organisation>--<name>/`` holds ``blobs/<hash>``, ``refs/<revision>`` with a
commit, ``snapshots/<commit>/<path>``, which are relative links to blobs, and
``trees/<commit>.json``, which lists all files of that commit. A blob may be a link in turn, to
``<cache>/blobs/<2 digits>/<hash of Xet>``, which repositories share.

A cache may be shared with others, so that links in it are not followed out of it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import uuid
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Set

from ansible.module_utils.firstlight import paths
from ansible.module_utils.firstlight.snapshots import entries as checks
from ansible.module_utils.firstlight.snapshots.entries import Entry, Manifest

TREE_FORMAT = 1
MAX_TREE = 64 * 2**20
"""A list of as many files as a repository may have is smaller."""
TAG = "CACHEDIR.TAG"
# By it programs that back up a host leave the cache out (https://bford.info/cachedir/).
TAG_TEXT = (b"Signature: 8a477f597d28d172789f06886806bc55\n"
            b"# This file is a cache directory tag created by huggingface_hub.\n"
            b"# For information about cache directory tags, see:\n"
            b"#\thttps://bford.info/cachedir/\n")


def name(repo_id: str) -> str:
    """The name of a repository's folder in a cache.

    :raises ValueError: for what is no repository.
    """
    reason = checks.bad_repo_id(repo_id)
    if reason:
        raise ValueError("repository %.200r %s" % (repo_id, reason))
    return "--".join(("models", *repo_id.split("/")))


def folder(cache: str, repo_id: str) -> str:
    """The folder of a repository.

    :raises ValueError: for what is no repository.
    """
    return os.path.join(cache, name(repo_id))


def snapshot(cache: str, repo_id: str, commit: str) -> str:
    """The folder with the files of one commit.

    :raises ValueError: for what is no repository or no commit.
    """
    return os.path.join(folder(cache, repo_id), "snapshots", _commit(commit))


def blob(cache: str, repo_id: str, entry: Entry) -> str:
    """Where the content of a file lies."""
    return os.path.join(folder(cache, repo_id), "blobs", entry.blob)


def prepare(cache: str, repo_id: str) -> None:
    """Make the folders of a repository, readable for all whatever the umask is.

    :raises OSError: no space, no permission.
    """
    for inner in ("blobs", "refs", "snapshots", "trees"):
        _make(os.path.join(folder(cache, repo_id), inner))
    tag = os.path.join(cache, TAG)
    if not os.path.lexists(tag):
        paths.write(tag, TAG_TEXT)


def read_ref(cache: str, repo_id: str, revision: str) -> Optional[str]:
    """The commit that a branch or tag had when it was last asked for; a commit is its own.

    ``None`` where that is not known.

    :raises ValueError: for what is no revision.
    """
    if checks.COMMIT.fullmatch(revision):
        return revision
    try:
        with open(_ref(cache, repo_id, revision), "rb") as file:
            found = file.read(100).decode("ascii", "replace").strip()
    except OSError:
        return None
    return found if checks.COMMIT.fullmatch(found) else None


def write_ref(cache: str, repo_id: str, revision: str, commit: str) -> bool:
    """Keep the commit of a branch or tag; tells whether it changed.

    :raises ValueError: for what is no revision or no commit.
    :raises OSError: no space, no permission.
    """
    if revision == _commit(commit):
        return False
    path = _ref(cache, repo_id, revision)
    wanted = commit.encode()
    with contextlib.suppress(OSError):
        if paths.read(path) == wanted:
            return False
    _make(os.path.dirname(path))
    paths.write(path, wanted)
    return True


def _ref(cache: str, repo_id: str, revision: str) -> str:
    reason = checks.bad(revision)
    if reason:
        raise ValueError("revision %.200r %s" % (revision, reason))
    return os.path.join(folder(cache, repo_id), "refs", *revision.split("/"))


def _commit(commit: str) -> str:
    if not isinstance(commit, str) or not checks.COMMIT.fullmatch(commit):
        raise ValueError("commit %.200r is not 40 hexadecimal digits" % (commit,))
    return commit


def _tree(cache: str, repo_id: str, commit: str) -> str:
    return os.path.join(folder(cache, repo_id), "trees", _commit(commit) + ".json")


def read_tree(cache: str, repo_id: str, commit: str) -> Optional[Manifest]:
    """The list of a commit's files; ``None`` where there is none, or none of this format.

    :raises ValueError: for a list that names what cannot be: the file and the reason.
    """
    path = _tree(cache, repo_id, commit)
    tree = read_json(path, MAX_TREE)
    if not isinstance(tree, Mapping) or tree.get("format_version") != TREE_FORMAT:
        return None
    files = tree.get("files")
    if not isinstance(files, Mapping):
        return None
    if len(files) > checks.MAX_ENTRIES:
        raise ValueError("%s: %d files, more than %d" % (path, len(files), checks.MAX_ENTRIES))
    return checks.checked(repo_id, commit, _from_tree(path, files), path)


def _from_tree(where: str, files: Mapping[str, Any]) -> Iterator[Entry]:
    for path, one in files.items():
        if not isinstance(one, Mapping):
            raise ValueError("%s: %.200r is not an object" % (where, path))
        sha256, size = one.get("lfs_sha256"), one.get("size")
        if sha256 is not None:
            # Its blob in git is a pointer of three lines.
            size = one.get("lfs_size", size)
        yield Entry(path, size, sha256,  # type: ignore[arg-type]
                    None if sha256 is not None else one.get("blob_id"))


def write_tree(cache: str, manifest: Manifest) -> bool:
    """Write the list of a commit's files; tells whether it changed.

    :raises ValueError: for what is no repository or no commit.
    :raises OSError: no space, no permission.
    """
    path = _tree(cache, manifest.repo_id, manifest.commit)
    with contextlib.suppress(ValueError):
        # The library's own has hashes of Xet besides, which we do not know.
        if read_tree(cache, manifest.repo_id, manifest.commit) == manifest:
            return False
    tree = {"format_version": TREE_FORMAT,
            "files": {entry.path: _to_tree(entry) for entry in sorted(manifest.entries)}}
    _make(os.path.dirname(path))
    paths.write(path, json.dumps(tree, indent=1).encode())
    return True


def _to_tree(entry: Entry) -> Dict[str, Any]:
    if entry.sha256 is None:
        return {"size": entry.size, "blob_id": entry.git_sha1}
    # The library wants git's name of the pointer too; its text is laid down
    # (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md).
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (
        entry.sha256.encode(), entry.size)
    named = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer, usedforsecurity=False)
    return {"size": entry.size, "blob_id": named.hexdigest(), "lfs_sha256": entry.sha256,
            "lfs_size": entry.size}



def forget_tree(cache: str, repo_id: str, commit: str) -> None:
    """Remove the list of a commit's files, so that it is asked for anew."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_tree(cache, repo_id, commit))


def forget(cache: str, repo_id: str, commit: str) -> None:
    """Remove a snapshot, with the blobs that no other snapshot of its repository has.

    Its caller has the repository alone. What other fetches have begun stays, unless it was the
    last snapshot: then the repository goes as a whole.

    :raises OSError: no permission.
    """
    own, base = folder(cache, repo_id), snapshot(cache, repo_id, commit)
    blobs = os.path.join(os.path.realpath(own), "blobs")
    mine, kept = _blobs_of(base, blobs), set()
    others = os.path.dirname(base)
    for other in os.listdir(others):
        if other != commit:
            kept.update(_blobs_of(os.path.join(others, other), blobs))
    shutil.rmtree(base)
    for path in mine - kept:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    forget_tree(cache, repo_id, commit)
    if not os.listdir(others):
        shutil.rmtree(os.path.realpath(own))


def _blobs_of(base: str, blobs: str) -> Set[str]:
    """The blobs that a snapshot's links lead to."""
    found = set()
    for one in _files(base):
        path = os.path.join(base, one)
        if os.path.islink(path):
            to = os.path.join(os.path.realpath(os.path.dirname(path)), os.readlink(path))
            if os.path.dirname(os.path.normpath(to)) == blobs:
                found.add(os.path.normpath(to))
    return found


def of_snapshot(cache: str, repo_id: str, commit: str) -> Optional[Manifest]:
    """A manifest of what a snapshot has, for a cache of a huggingface_hub without ``trees/``.

    Names of blobs are hashes, sizes are what they are now: files that were never fetched and
    files that were cut are not noticed. What is no link to a blob of a known kind is left out.
    ``None`` where nothing is left.

    :raises ValueError: for a snapshot that has what a repository cannot have.
    """
    base, seen = snapshot(cache, repo_id, commit), View(cache, repo_id, commit)
    found: List[Entry] = []
    for path in _files(base):
        try:
            target = os.path.basename(os.readlink(os.path.join(base, path)))
        except OSError:
            continue
        entry = Entry(path, 0, target if checks.SHA256.fullmatch(target) else None,
                      target if checks.GIT_SHA1.fullmatch(target) else None)
        status = seen.find(entry).status if entry.blob else None
        if status is not None:
            found.append(entry._replace(size=status.st_size))
            if len(found) > checks.MAX_ENTRIES:
                break
    return checks.checked(repo_id, commit, found, base) if found else None


def _files(base: str) -> Iterator[str]:
    """The paths of all files and links below a folder, without following links."""
    for where, folders, files in os.walk(base):
        inner = os.path.relpath(where, base)
        linked = [one for one in folders if os.path.islink(os.path.join(where, one))]
        for one in (*files, *linked):
            yield one if inner == "." else os.path.join(inner, one)


def link(cache: str, repo_id: str, commit: str, entry: Entry) -> bool:
    """Give a blob its path in a snapshot, at once as a whole; tells whether it changed.

    :raises ValueError: for a path that cannot be.
    :raises OSError: no space, no permission, a folder in place of the file, or a link or a file
        in place of a folder.
    """
    reason = checks.bad(entry.path)
    if reason:
        raise ValueError("path %.200r %s" % (entry.path, reason))
    base = snapshot(cache, repo_id, commit)
    path, target = os.path.join(base, entry.path), _target(entry)
    with contextlib.suppress(OSError):
        if os.readlink(path) == target and not _not_folder(base, os.path.dirname(path)):
            return False
    prepare(cache, repo_id)
    _make(base)
    _make(os.path.dirname(path), within=base)
    # Beside the blobs, so that a snapshot has nothing in it that was left by a kill.
    temporary = os.path.join(folder(cache, repo_id), "blobs", ".%s.link" % uuid.uuid4().hex)
    os.symlink(target, temporary)
    try:
        os.rename(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise
    return True


def _target(entry: Entry) -> str:
    """What the link of a file says: relative, so that a cache can be moved."""
    return "../" * (entry.path.count("/") + 2) + "blobs/" + entry.blob


def missing(cache: str, manifest: Manifest, entries: Sequence[Entry]) -> List[Entry]:
    """Those of the files that are not in the snapshot as files of the right size."""
    view = View(cache, manifest.repo_id, manifest.commit)
    return [entry for entry in entries if view.find(entry).wrong_size(entry)]


class Found(NamedTuple):
    """What is at the path of a file: a file in the cache, or what is wrong."""

    path: str
    """The file itself, behind all links; empty where it is none."""
    status: Optional[os.stat_result]
    fault: str

    def wrong_size(self, entry: Entry) -> str:
        """What is wrong by its kind or size; empty for nothing."""
        if self.status is None:
            return self.fault
        size = self.status.st_size
        if size < entry.size:
            return "truncated: %d of %d bytes" % (size, entry.size)
        return "too long: %d bytes, not %d" % (size, entry.size) if size > entry.size else ""


class View:
    """The files of one snapshot, looked up by stat alone."""

    def __init__(self, cache: str, repo_id: str, commit: str) -> None:
        """Nothing is read yet.

        :raises ValueError: for what is no repository or no commit.
        """
        self._base = snapshot(cache, repo_id, commit)
        self._blobs = os.path.join(folder(cache, repo_id), "blobs")
        # Who runs the host may have put a repository or its blobs on another disk.
        self.roots = tuple(os.path.realpath(one) for one in (
            cache, folder(cache, repo_id), self._blobs))
        self._folders: Dict[str, str] = {}

    def find(self, entry: Entry) -> Found:
        """The file of an entry, wherever its links lead inside the cache."""
        path = os.path.join(self._base, entry.path)
        inner = os.path.dirname(path)
        if inner not in self._folders:
            self._folders[inner] = _not_folder(self._base, inner)
        if self._folders[inner]:
            return _fault(self._folders[inner])
        try:
            target = os.readlink(path)
        except FileNotFoundError:
            return _fault("missing")
        except OSError as problem:
            if problem.errno != errno.EINVAL:
                return _fault("not readable: %s" % problem.strerror)
            return self._file(path)  # A cache without links has the files themselves.
        real = os.path.join(self._blobs, entry.blob)
        with contextlib.suppress(OSError):
            if target == _target(entry) and stat.S_ISREG(os.lstat(real).st_mode):
                return self._file(real)
        real = os.path.realpath(path)
        if not self.inside(real):
            return _fault("a link out of the cache, to %s" % real)
        return self._file(real, link=target)

    def inside(self, real: str) -> bool:
        """Whether a path without links in it lies in the cache."""
        return any(real.startswith(root.rstrip("/") + "/") for root in self.roots)

    @staticmethod
    def _file(path: str, link: str = "") -> Found:
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return _fault("a link to what is not there, %s" % link if link else "missing")
        except OSError as problem:
            return _fault("not readable: %s" % problem.strerror)
        if stat.S_ISDIR(status.st_mode):
            return _fault("a folder, not a file")
        if stat.S_ISLNK(status.st_mode):
            return _fault("a link that leads to itself")
        if not stat.S_ISREG(status.st_mode):
            return _fault("a device, pipe or socket, not a file")
        return Found(path, status, "")


def _fault(text: str) -> Found:
    return Found("", None, text)


def _not_folder(base: str, inner: str) -> str:
    """Why the folders from a snapshot's own to one in it are not what they should be."""
    at = base
    for part in ("", *os.path.relpath(inner, base).split("/")):
        at = os.path.normpath(os.path.join(at, part))
        try:
            mode = os.lstat(at).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return "missing"
        except OSError as problem:
            return "not readable: %s" % problem.strerror
        if stat.S_ISLNK(mode):
            return "behind a link in place of the folder %s" % at
        if not stat.S_ISDIR(mode):
            return "missing: %s is not a folder" % at
    return ""


def readable(cache: str, repo_id: str, commit: str) -> List[str]:
    """Let every user read a snapshot, as an engine runs as another one; what was changed, sorted.

    Files get at least 0444, folders 0555 (0600 and 0700 turn into 0644 and 0755); other bits
    stay, as a cache may belong to a group. Folders above the cache are not ours to open.

    :raises OSError: for what is another user's and cannot be changed, by its name.
    """
    own, base = folder(cache, repo_id), snapshot(cache, repo_id, commit)
    view = View(cache, repo_id, commit)
    files = {os.path.join(own, "trees", commit + ".json")}
    files.update(os.path.join(own, "refs", one) for one in _files(os.path.join(own, "refs")))
    folders = {cache, own, *(os.path.join(own, one) for one in (
        "blobs", "refs", "snapshots", "trees"))}
    for start in (base, os.path.join(own, "refs")):
        folders.update(where for where, _, _ in os.walk(start))
    for one in _files(base):
        real = os.path.realpath(os.path.join(base, one))
        if view.inside(real):
            files.add(real)
            folders.update(_above(os.path.dirname(real), view.roots))
    changed: Set[str] = set()
    # A folder that its owner cannot enter hides what is below it: first the upper ones.
    for path in sorted(folders):
        # These may be links that who runs the host has made.
        real = os.path.realpath(path) if path in (cache, own, os.path.join(own, "blobs")) else path
        changed.update(_mend(real, os.O_DIRECTORY, 0o555))
    for path in files:
        changed.update(_mend(path, 0, 0o444))
    return sorted(changed)


def _above(path: str, roots: Sequence[str]) -> Iterator[str]:
    while any(path == root or path.startswith(root.rstrip("/") + "/") for root in roots):
        yield path
        if os.path.dirname(path) == path:
            return
        path = os.path.dirname(path)


def _mend(path: str, flags: int, wanted: int) -> List[str]:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | flags)
    except OSError as problem:
        # What is not there, and what was no file or folder or is a link by now, is not ours.
        if problem.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            return []
        raise
    try:
        mode = os.fstat(handle).st_mode
        kind = stat.S_ISDIR if flags else stat.S_ISREG
        if not kind(mode) or mode & wanted == wanted:
            return []
        try:
            os.fchmod(handle, stat.S_IMODE(mode) | wanted)
        except OSError as problem:
            raise OSError(problem.errno, problem.strerror, path) from problem
        return [path]
    finally:
        os.close(handle)


def _make(path: str, within: str = "") -> None:
    """Make a folder and those above it, 0755 whatever the umask is.

    :param within: below this one no link is followed.
    """
    path = os.path.normpath(path)
    if within and path != os.path.normpath(within):
        _make(os.path.dirname(path), within)
    elif os.path.dirname(path) != path and not os.path.isdir(os.path.dirname(path)):
        _make(os.path.dirname(path))
    try:
        os.mkdir(path)
    except FileExistsError:
        real = os.lstat(path) if within else os.stat(path)
        if not stat.S_ISDIR(real.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None
        return
    os.chmod(path, 0o755)


def read_json(path: str, most: int) -> Any:
    """What a file of JSON holds; ``None`` where it is not there, longer or not JSON."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode) or status.st_size > most:
                return None
            return json.loads(file.read(most))
    except (OSError, ValueError, RecursionError):
        return None
