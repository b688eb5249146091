# SPDX-License-Identifier: Apache-2.0
"""Whether the files of a snapshot are what its manifest says, without a network.

What was hashed once is remembered with its size, time of change and inode, so that a snapshot
that nobody touched is known to be good by looking at these alone.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import shutil
import stat
import threading
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from ansible.module_utils.firstlight import paths
from ansible.module_utils.firstlight.snapshots import entries as checks
from ansible.module_utils.firstlight.snapshots import layout
from ansible.module_utils.firstlight.snapshots.entries import Entry, Manifest

FORMAT = "firstlight verified snapshot 1"
MAX_RECORD = 64 * 2**20
CHUNK = 2**20
MOST_THREADS = 16
UNSURE = ("not readable", "changing")
"""How that begins which says nothing of a content: it was not read to its end."""

Seen = Tuple[int, int, int]
"""Size in bytes, time of change in ns, inode."""
Line = Tuple[int, int, int, str]
"""What was seen when a file was hashed, and the hash."""
Report = Callable[[int], None]


class Bad(NamedTuple):
    """A file that is not what the manifest says, and what is wrong with it.

    ``found`` starts with ``missing``, ``truncated``, ``too long``, ``flipped``, ``a link``,
    ``behind a link``, ``a folder``, ``a device``, ``not readable`` or ``changing``.
    """

    entry: Entry
    found: str


def verify(cache: str, record: str, manifest: Manifest, entries: Sequence[Entry], full: bool,
           report: Optional[Report] = None, keep: bool = True) -> List[Bad]:
    """The files that are not what they should be, in the order of ``entries``.

    :param record: the file that remembers what was hashed; ``<root>/models/verified/<name of the
        repository's folder>/<commit>.json``. One that is damaged or of something else counts as
        none.
    :param full: read every byte, whatever is remembered.
    :param report: called with the number of bytes that were read, one call at a time.
    :param keep: whether what was hashed now is remembered; False where nothing may change.
    :raises OSError: the record cannot be written.
    """
    view = layout.View(cache, manifest.repo_id, manifest.commit)
    known = _read(record, manifest)
    faults: Dict[str, str] = {}
    lines = dict(known)
    # Two paths may have one content: it is read once.
    work: Dict[Tuple[str, str], List[Entry]] = {}
    for entry in entries:
        found = view.find(entry)
        fault = found.wrong_size(entry)
        if fault:
            faults[entry.path] = fault
            lines.pop(entry.path, None)
        elif full or not _is_known(known, entry, found):
            work.setdefault((found.path, entry.blob), []).append(entry)
    for (_, digest), fault, seen, shared in _hash_all(work, report or (lambda count: None)):
        for entry in shared:
            lines.pop(entry.path, None)
            if fault:
                faults[entry.path] = fault
            else:
                lines[entry.path] = (*seen, digest)
    if keep and lines != known:
        _write(record, manifest, lines)
    return [Bad(entry, faults[entry.path]) for entry in entries if entry.path in faults]


def unknown(cache: str, record: str, manifest: Manifest,
            entries: Sequence[Entry]) -> List[Entry]:
    """Those of the files that :func:`verify` would call bad or would have to read.

    Nothing is read but the record. Their sizes are the work that a verification has left.
    """
    view = layout.View(cache, manifest.repo_id, manifest.commit)
    known = _read(record, manifest)
    return [entry for entry in entries if not _is_known(known, entry, view.find(entry))]


def _is_known(known: Mapping[str, Line], entry: Entry, found: layout.Found) -> bool:
    return (found.status is not None and not found.wrong_size(entry)
            and known.get(entry.path) == (*_seen(found.status), entry.blob))


def _seen(status: os.stat_result) -> Seen:
    return status.st_size, status.st_mtime_ns, status.st_ino


Hashed = Tuple[Tuple[str, str], str, Seen, List[Entry]]


def _hash_all(work: Mapping[Tuple[str, str], List[Entry]], report: Report) -> Iterable[Hashed]:
    lock = threading.Lock()

    def counted(count: int) -> None:
        with lock:
            report(count)

    # The largest first, so that none is left to one thread at the end.
    order = sorted(work, key=lambda key: -work[key][0].size)
    if not order:
        return
    threads = min(os.cpu_count() or 1, MOST_THREADS, len(order))
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    try:
        futures = {pool.submit(_hash, key[0], work[key][0], counted): key for key in order}
        for future in concurrent.futures.as_completed(futures):
            fault, seen = future.result()
            yield futures[future], fault, seen, work[futures[future]]
    finally:
        # Whoever stops this does not wait for the rest of 140 GB.
        for future in futures:
            future.cancel()
        pool.shutdown()


def _hash(path: str, entry: Entry, report: Report) -> Tuple[str, Seen]:
    """What is wrong with the content of a file, and what was seen of it."""
    none = (0, 0, 0)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as problem:
        return "not readable: %s" % problem.strerror, none
    with os.fdopen(handle, "rb", buffering=0) as file:
        before = os.fstat(handle)
        if not stat.S_ISREG(before.st_mode):
            return "a device, pipe or socket, not a file", none
        digest, buffer, left = entry.digest(), memoryview(bytearray(min(CHUNK, entry.size + 1))), (
            entry.size)
        try:
            # One byte more than wanted tells a file that grows.
            while left >= 0:
                count = file.readinto(buffer)
                if not count:
                    break
                digest.update(buffer[:count])
                left -= count
                report(count)
        except OSError as problem:
            return "not readable: %s" % problem.strerror, none
        if left or _seen(os.fstat(handle)) != _seen(before):
            return "changing while it is read", none
        found = digest.hexdigest()
        if found != entry.blob:
            return "flipped: its %s is %s, not %s" % (digest.kind, found, entry.blob), none
        return "", _seen(before)


# The record


def remember(record: str, cache: str, manifest: Manifest,
             hashed: Iterable[Tuple[str, str]]) -> List[str]:
    """Remember files that were hashed while they were fetched.

    :param hashed: path and the hash that was found, of the kind of the entry's ``blob``.
    :returns: the paths that are remembered now; the others are unknown to the manifest, have
        another hash, or are not there with the right size.
    :raises OSError: the record cannot be written.
    """
    view = layout.View(cache, manifest.repo_id, manifest.commit)
    by_path = {entry.path: entry for entry in manifest.entries}
    known = _read(record, manifest)
    lines, kept = dict(known), []
    for path, digest in hashed:
        entry = by_path.get(path)
        if entry is None or entry.blob != digest:
            continue
        found = view.find(entry)
        if found.status is not None and not found.wrong_size(entry):
            lines[path] = (*_seen(found.status), digest)
            kept.append(path)
    if lines != known:
        _write(record, manifest, lines)
    return kept


def _read(record: str, manifest: Manifest) -> Dict[str, Line]:
    """The lines of a record; none for one that is damaged, of something else, or not there."""
    value = layout.read_json(record, MAX_RECORD)
    if not isinstance(value, Mapping) or (value.get("format"), value.get("repo_id"), value.get(
            "commit")) != (FORMAT, manifest.repo_id, manifest.commit):
        return {}
    files = value.get("files")
    if not isinstance(files, Mapping):
        return {}
    return {path: (line[0], line[1], line[2], line[3]) for path, line in files.items()
            if _is_line(line)}


def _is_line(line: Any) -> bool:
    return (isinstance(line, list) and len(line) == 4 and isinstance(line[3], str)
            and all(type(one) is int for one in line[:3]))


def _write(record: str, manifest: Manifest, lines: Mapping[str, Line]) -> None:
    paths.write(record, json.dumps({
        "format": FORMAT, "repo_id": manifest.repo_id, "commit": manifest.commit,
        "files": {path: list(lines[path]) for path in sorted(lines)}}, indent=1).encode())


# What is bad


def quarantine(cache: str, repo_id: str, entry: Entry, record: str) -> str:
    """Move a bad file away, so that it can be fetched again, alone.

    It goes to ``<cache>/quarantine/<name of the repository's folder>/<blob>``, the last one of
    each. Its path in the snapshot and its line in the record go; the commit is that of the
    record's name. Where the path leads elsewhere, or is a folder, that alone is moved, and where it
    is not there, the blob. Other links to the blob stay and are good again once it was fetched.

    :returns: the new path; empty where there was nothing to move.
    :raises ValueError: for a record that is not named after a commit.
    :raises OSError: no permission.
    """
    reason = checks.bad(entry.path)
    if reason:
        raise ValueError("path %.200r %s" % (entry.path, reason))
    commit = os.path.splitext(os.path.basename(record))[0]
    view = layout.View(cache, repo_id, commit)
    base = layout.snapshot(cache, repo_id, commit)
    path, blob = os.path.join(base, entry.path), layout.blob(cache, repo_id, entry)
    target = os.path.join(cache, "quarantine", layout.name(repo_id), entry.blob)
    moved, blocker = "", _in_the_way(base, entry.path)
    if blocker:
        # What lies behind a link in place of a folder is not ours: the link alone goes.
        moved = _move(blocker, target)
    elif os.path.islink(path) and os.path.normpath(
            os.path.join(os.path.dirname(path), os.readlink(path))) == os.path.normpath(blob):
        moved = _move_blob(view, blob, target)
        os.unlink(path)
    elif os.path.lexists(path):
        # The blob that it should lead to is not what was found bad.
        moved = _move(path, target)
    else:
        moved = _move_blob(view, blob, target)
    _forget(record, entry.path)
    return moved


def _move_blob(view: layout.View, blob: str, target: str) -> str:
    """Move a blob, and the shared file behind it where it is a link into the same cache."""
    if not os.path.lexists(blob):
        return ""
    real = os.path.realpath(blob)
    if os.path.islink(blob) and view.inside(real) and os.path.isfile(real):
        # Left where it is, it would be linked again: its size is all that is looked at.
        moved = _move(real, target)
        os.unlink(blob)
        return moved
    return _move(blob, target)


def _move(path: str, target: str) -> str:
    os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
    if os.path.isdir(target) and not os.path.islink(target):
        shutil.rmtree(target)
    elif os.path.isdir(path) and not os.path.islink(path):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)
    # A shared cache may reach over several disks.
    try:
        os.replace(path, target)
    except OSError:
        shutil.move(path, target)
    return target


def _in_the_way(base: str, path: str) -> str:
    """The first of the folders to a file that is something else; empty where all are folders."""
    at = base
    for part in ("", *path.split("/")[:-1]):
        at = os.path.normpath(os.path.join(at, part))
        if os.path.islink(at) or (os.path.exists(at) and not os.path.isdir(at)):
            return at
    return ""


def _forget(record: str, path: str) -> None:
    value = layout.read_json(record, MAX_RECORD)
    files = value.get("files") if isinstance(value, dict) else None
    if isinstance(files, dict) and files.pop(path, None) is not None:
        paths.write(record, json.dumps(value, indent=1).encode())
