# SPDX-License-Identifier: Apache-2.0
"""A change of several files (and what hangs on them) that happens as a whole or not at all.

    with Transaction(journal, "endpoint-chat", undo=restart_the_old_one) as change:
        change.snapshot(unit_path)      # remembered on disk before it is touched
        write(unit_path, new)
        restart()
        prove()                         # raises when it is not right
    # leaving without an exception commits; with one, everything is put back

The lock admits one change of that name at a time. The journal is on disk before the first byte
changes, so a process killed in the middle (SIGKILL, power) leaves what the next run needs:
entering a transaction first puts back what an earlier one left half done.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import time
from typing import IO, Any, Callable, Dict, List, Optional

from . import paths


class Busy(Exception):
    """Another run holds the lock."""


class RollbackFailed(Exception):
    """The change failed, and so did putting things back; the journal is kept for the next run."""


class Lock:
    """One at a time, as a context manager; the lock ends with the process, however it ends.

    :param path: the lock file, which stays and holds the pid of its last holder.
    :param wait_s: seconds to wait for whoever holds it.
    """

    def __init__(self, path: str, wait_s: float) -> None:
        self._path, self._wait_s = path, wait_s
        self._file: Optional[IO[str]] = None

    def __enter__(self) -> Lock:
        os.makedirs(os.path.dirname(self._path), mode=0o755, exist_ok=True)
        deadline = time.monotonic() + self._wait_s
        while True:
            file = open(self._path, "a+", encoding="utf-8")  # noqa: SIM115 - held past this call
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_still(file):
                    break
                # The last holder removed it: whoever comes now locks another file.
                file.close()
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    file.seek(0)
                    holder = file.read().strip() or "unknown"
                    file.close()
                    raise Busy("another run holds %s (pid %s)" % (self._path, holder)) from None
                file.close()
                time.sleep(0.1)
        file.truncate(0)
        file.write("%d\n" % os.getpid())
        file.flush()
        self._file = file
        return self

    def _is_still(self, file: IO[str]) -> bool:
        """Whether the open file is the one under the path."""
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(file.fileno()))

    @property
    def held(self) -> bool:
        """Whether anyone holds it now, as far as the file can be read."""
        try:
            with open(self._path, encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def forget(self) -> None:
        """Remove the lock file while it is held: what it guards is gone for good."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def __exit__(self, *why: Any) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class Transaction:
    """One change, as a context manager.

    :param journal: folder for locks and journals (``firstlight_root/journal``).
    :param name: what is changed; one change of a name runs at a time.
    :param undo: called after the files are back, to make the world follow them (reload, restart).
        It must not need anything but the files: it also runs for a change that another process
        left half done.
    :param wait_s: seconds to wait for the lock.
    """

    def __init__(
        self,
        journal: str,
        name: str,
        undo: Callable[[], None] = lambda: None,
        wait_s: float = 30.0,
    ) -> None:
        self._lock = Lock(os.path.join(journal, name + ".lock"), wait_s)
        self._journal_path = os.path.join(journal, name + ".json")
        self._undo = undo
        self._entries: List[Dict[str, Any]] = []
        self.recovered = False
        """Whether an earlier change was found half done and put back on entering."""

    @property
    def path(self) -> str:
        """The journal, which is there while a change is under way or was ended in the middle."""
        return self._journal_path

    @property
    def under_way(self) -> bool:
        """Whether somebody is at it now."""
        return self._lock.held

    @property
    def half_done(self) -> bool:
        """Whether a change of this name is under way, or was ended in the middle."""
        return os.path.exists(self._journal_path)

    def __enter__(self) -> Transaction:
        self._lock.__enter__()
        try:
            self._recover()
        except BaseException:
            self._lock.__exit__()
            raise
        return self

    def snapshot(self, path: str) -> None:
        """Remember a file as it is now, absent included, before changing it.

        :raises OSError: when the file or the journal cannot be read or written.
        """
        if any(entry["path"] == path for entry in self._entries):
            return
        self._entries.append(_remember(path))
        self._keep()

    def write(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Write a file that others write too: what they make of it later is never put back.

        :raises OSError: no space, no permission; the old file is then untouched.
        """
        self._expect(path, _short_file(content, mode))
        paths.write(path, content, mode)

    def take(self, path: str, aside: str) -> None:
        """Put a file that was made beside it, on the same file system, in its place.

        Else as :meth:`write`.
        """
        content = paths.read(aside)
        if content is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), aside)
        self._expect(path, _short_file(content, stat.S_IMODE(os.stat(aside).st_mode)))
        os.rename(aside, path)
        paths.fsync_folder(os.path.dirname(path))

    def link(self, path: str, target: str) -> None:
        """Make a link, in the place of a file or link that was there. Else as :meth:`write`."""
        self._expect(path, "link:" + target)
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        # Made beside it and renamed, so that there is no moment without it.
        aside = _aside(path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
        os.symlink(target, aside)
        os.rename(aside, path)

    def remove(self, path: str) -> None:
        """Remove a file, a link or an empty folder. Else as :meth:`write`."""
        self._expect(path, "absent")
        if os.path.isdir(path) and not os.path.islink(path):
            os.rmdir(path)
        elif os.path.lexists(path):
            os.unlink(path)

    def _expect(self, path: str, after: str) -> None:
        self.snapshot(path)
        for entry in self._entries:
            if entry["path"] == path:
                entry.setdefault("after", []).append(after)
        self._keep()

    def _keep(self) -> None:
        content = json.dumps({"entries": self._entries}, indent=1).encode()
        paths.write(self._journal_path, content, mode=0o600)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is not None:
                self._roll_back(self._entries, "The change had failed: %s" % (error or kind))
            self._forget()
        finally:
            self._lock.__exit__()

    def forget_lock(self) -> None:
        """Remove the lock file, from inside: what it guards is gone for good."""
        self._lock.forget()

    def _recover(self) -> None:
        left = paths.read(self._journal_path)
        if left is None:
            return
        try:
            entries = [dict(entry) for entry in json.loads(left)["entries"]]
        except (ValueError, KeyError, TypeError) as problem:
            # We write it as a whole or not at all, so someone else has been at it.
            raise RollbackFailed(
                "%s should say what an earlier change left half done, and cannot be read (%r). "
                "Look at what was being changed, then delete that file and run again."
                % (self._journal_path, problem)
            ) from problem
        self._roll_back(entries, "An earlier run was ended in the middle of its change")
        self._forget()
        self.recovered = True

    def _roll_back(self, entries: List[Dict[str, Any]], why: str) -> None:
        if not entries:
            return
        problems: List[Exception] = []
        # One that cannot be put back is no reason to leave the others.
        for entry in reversed(entries):
            try:
                _put_back(entry)
            except Exception as problem:
                problems.append(problem)
        try:
            if not problems:
                self._undo()
        except Exception as problem:
            problems.append(problem)
        if problems:
            raise RollbackFailed(
                "%s. Putting everything back failed too: %s. What was there is kept in %s; "
                "the next run tries again." % (
                    why, "; ".join(map(str, problems)), self._journal_path)
            ) from problems[0]

    def _forget(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._journal_path)
            paths.fsync_folder(os.path.dirname(self._journal_path))
        self._entries = []


def left(journal: str) -> List[str]:
    """Names of the changes that are under way, or were ended in the middle.

    :param journal: folder for locks and journals.
    """
    names = os.listdir(journal) if os.path.isdir(journal) else []
    # What runs detached keeps its progress beside them.
    return sorted(name[: -len(".json")] for name in names
                  if name.endswith(".json") and not name.endswith(".run.json"))


def _remember(path: str) -> Dict[str, Any]:
    """A file as plain data. Files, links and empty folders: nothing of ours is anything else."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return {"path": path, "kind": "absent"}
    if stat.S_ISLNK(found.st_mode):
        return {"path": path, "kind": "link", "target": os.readlink(path)}
    owner = {"mode": stat.S_IMODE(found.st_mode), "uid": found.st_uid, "gid": found.st_gid}
    if stat.S_ISDIR(found.st_mode) and not os.listdir(path):
        return {"path": path, "kind": "folder", **owner}
    if not stat.S_ISREG(found.st_mode):
        raise OSError("%s is neither a file nor a link" % path)
    content = paths.read(path)
    assert content is not None
    return {
        "path": path,
        "kind": "file",
        "content": base64.b64encode(content).decode(),
        **owner,
    }


def _as_it_is(path: str) -> str:
    """What a path holds, in short, to be compared."""
    try:
        found = _remember(path)
    except OSError:
        return "other"
    return _in_short(found)


def _in_short(entry: Dict[str, Any]) -> str:
    if entry["kind"] == "file":
        return _short_file(base64.b64decode(entry["content"]), entry["mode"])
    return "link:" + entry["target"] if entry["kind"] == "link" else str(entry["kind"])


def _short_file(content: bytes, mode: int) -> str:
    return "file:%04o:%s" % (mode, hashlib.sha256(content).hexdigest())


def _aside(path: str) -> str:
    """Where a link is made before it takes its place."""
    return os.path.join(os.path.dirname(path), ".%s.new" % os.path.basename(path))


def _put_back(entry: Dict[str, Any]) -> None:
    path, kind = entry["path"], entry["kind"]
    if kind not in ("file", "link", "folder", "absent"):
        raise ValueError("%s: unknown kind %r" % (path, kind))
    if "after" in entry and os.path.islink(_aside(path)):
        os.unlink(_aside(path))
    # What is as it was takes no space on a full disk; what others made since then is theirs.
    if _as_it_is(path) == _in_short(entry) or (
            "after" in entry and _as_it_is(path) not in entry["after"]):
        return
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    if kind == "file":
        _write_back(path, base64.b64decode(entry["content"]), entry["mode"])
        if os.geteuid() == 0:
            os.chown(path, entry["uid"], entry["gid"])
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    if kind == "link":
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.symlink(entry["target"], path)
    if kind == "folder":
        os.mkdir(path)
        os.chmod(path, entry["mode"])
        if os.geteuid() == 0:
            os.chown(path, entry["uid"], entry["gid"])


def _write_back(path: str, content: bytes, mode: int) -> None:
    """As a whole; on a disk that is full, over what has taken its place."""
    try:
        paths.write(path, content, mode)
    except OSError as problem:
        if problem.errno not in (errno.ENOSPC, errno.EDQUOT) or not os.path.isfile(path):
            raise
        with open(path, "r+b") as file:
            file.write(content)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        os.chmod(path, mode)
