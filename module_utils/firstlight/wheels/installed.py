# SPDX-License-Identifier: Apache-2.0
"""What a package has in an environment, kept aside while another takes its place.

Files of a gigabyte are in no journal. They are linked (where that cannot be, copied) into a folder
aside, before pip is called; a small file beside them says what was there and what may come.
That file is what the :class:`~..transaction.Transaction` remembers, and :meth:`Stash.put_back` is
its ``undo``: so a change that fails, or is killed at any point, is put back byte for byte, by its
own run or by the next one about that environment.

A link is enough because pip never writes into a file that is there: it removes it and makes
another (``ZipBackedFile.save``, distlib's ``FileOperator``; pip 20 to 26). One that was changed in
place all the same is found by its size and time, and is told.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import signal
import stat
import sys
import time
import uuid
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Set, Tuple

from .. import paths
from ..transaction import Transaction
from .pages import normal

FOLDER = "wheels-aside"
"""Under ``firstlight_root``; there only while a change is under way or was ended in the middle."""
KEPT, PLACE, MARK, DONE, PIP, FILES = "kept.json", "place", "mark", "done", "pip", "files"
BESIDE = ".firstlight-"
"""What lies in the environment itself for as long as a change goes on, and tells it from one that
was made anew: the folder of kept files where it has to lie there, else an empty file."""
RESERVE = 64 * 2**20
"""Bytes that stay free on a disk that packages are put on."""
PIP_TO_END_S = 15.0

Entry = Dict[str, Any]

# pip outlives a module that is killed, and would write on while everything is put back. So it holds
# a lock with its number in it, which it only gets while what was kept may still be put back.
HOLDER = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
if os.path.exists(os.path.join(os.path.dirname(sys.argv[1]), "done")):
    sys.exit("this change was put back")
os.write(file, b"%d\\n" % os.getpid())
os.set_inheritable(file, True)
os.execv(sys.argv[2], sys.argv[2:])
"""


class Left(NamedTuple):
    """What an environment may be left with: what is removed, and what comes.

    ``old`` and ``new`` are files, absolute; ``own`` are folders in which whatever comes is the
    package's; ``site`` is the folder of packages; ``prefix`` is the environment's own folder;
    ``roots`` are the folders in which all of it lies. No path leads through a link. ``size`` is in
    bytes, of what comes.
    """

    old: List[str]
    new: List[str]
    own: List[str]
    site: str
    prefix: str
    roots: List[str]
    size: int


class NoSpace(Exception):
    """There is no room: ``path`` has ``free`` bytes, and ``needed`` are needed."""

    def __init__(self, path: str, free: int, needed: int) -> None:
        super().__init__("%s has %d bytes free, and %d are needed" % (path, free, needed))
        self.path, self.free, self.needed = path, free, needed


def name(python: str) -> str:
    """The name under which one change at a time is made to an environment.

    :param python: its interpreter; all interpreters of one folder are one environment's.
    """
    folder = os.path.realpath(os.path.dirname(python))
    return "wheel-" + hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]


class Stash:
    """What is kept of one environment.

    :param root: ``firstlight_root``.
    :param python: the environment's interpreter.
    """

    def __init__(self, root: str, python: str) -> None:
        self.base, self.name = os.path.join(root, FOLDER), name(python)
        self.folder = ""
        """The folder of this run, once :meth:`keep` was called."""
        self.files = ""
        """The folder on the environment's file system, for what pip sets aside for a moment."""
        self.was_put_back = False
        """Whether :meth:`put_back` had something to do."""

    def change(self, journal: str, wait_s: float) -> Transaction:
        """The change to this environment.

        :param journal: ``firstlight_root/journal``.
        :param wait_s: seconds to wait for another run.
        """
        return Transaction(journal, self.name, undo=self.put_back, wait_s=wait_s)

    def keep(self, change: Transaction, left: Left) -> None:
        """Keep everything that may be removed or replaced, and have it put back if need be.

        :raises NoSpace: there is no room for it, or for what comes. Nothing was changed.
        :raises OSError: it cannot be kept. Nothing was changed.
        """
        self.clear()
        run = uuid.uuid4().hex[:8]
        self.folder = os.path.join(self.base, "%s.%s" % (self.name, run))
        os.makedirs(self.folder, mode=0o700)
        try:
            self.files = os.path.join(self.folder, FILES)
            mark = os.path.join(left.site, "%s%s.%s" % (BESIDE, self.name, run))
            if os.stat(self.folder).st_dev != os.stat(left.site).st_dev:
                self.files = mark
            folders = _folders(left)
            listing = {folder: os.listdir(folder) for folder in folders}
            # Where they are is known before they are there, so that they are found after a kill.
            paths.write(os.path.join(self.folder, PLACE), os.fsencode(self.files), mode=0o600)
            paths.write(os.path.join(self.folder, MARK), os.fsencode(mark), mode=0o600)
            with open(os.path.join(self.folder, PIP), "wb"):
                pass
            os.mkdir(self.files, mode=0o700)
            if self.files != mark:
                os.close(os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            _times(left.site, folders[left.site])
            paths.fsync_folder(left.site)
            kept = {"version": 1, "prefix": left.prefix, "inode": os.stat(left.prefix).st_ino,
                    "mark": mark, "own": left.own, "folders": folders, "listing": listing,
                    **_kept(left, self.files)}
            path = os.path.join(self.folder, KEPT)
            paths.write(path, json.dumps(kept).encode(), mode=0o600)
            change.snapshot(path)
        except BaseException:
            _remove(self.folder)
            self._leave()
            raise

    def holder(self, argv: List[str]) -> List[str]:
        """The command that runs pip so that a later run can end it."""
        return [sys.executable, "-I", "-B", "-c", HOLDER, os.path.join(self.folder, PIP), *argv]

    def done(self) -> None:
        """From here on, what was kept is not put back any more."""
        _settle(self.folder)

    def forget(self) -> None:
        """Remove what this run kept, once its change is made or put back."""
        if os.path.exists(os.path.join(self.folder, DONE)):
            _remove(self.folder)
            self._leave()

    def put_back(self) -> None:
        """Bring the environment to what it was; again and again to the same.

        What was kept is removed by :meth:`forget` or :meth:`clear`, when the journal is closed: a
        run that is ended before that must find that all is done.

        :raises OSError: something cannot be put back. What was kept stays for another try.
        """
        for folder in self._found():
            if os.path.exists(os.path.join(folder, KEPT)) \
                    and not os.path.exists(os.path.join(folder, DONE)):
                _put_back(folder)
                self.was_put_back = True

    def clear(self) -> None:
        """Remove what earlier runs left; from inside a change, before anything is kept."""
        for folder in self._found():
            _remove(folder)
        self._leave()

    def _found(self) -> List[str]:
        return sorted(glob.glob(os.path.join(glob.escape(self.base), self.name + ".*")))

    def _leave(self) -> None:
        with contextlib.suppress(OSError):
            os.rmdir(self.base)


# To keep.


def _kept(left: Left, aside: str) -> Entry:
    """Files by path, and what is not there: ``{files, absent, folders_to_come}``."""
    files: Dict[str, Entry] = {}
    absent: Set[str] = set()
    to_come: Set[str] = set()
    for path in sorted({*left.old, *left.new}):
        for one in _with_bytecode(path):
            found = _lstat(one)
            if found is None:
                missing = _first_missing(one)
                (absent if missing == one else to_come).add(missing)
            elif stat.S_ISDIR(found.st_mode):
                raise OSError(errno.EISDIR, "a folder is where a file should be", one)
            else:
                files[one] = _entry(one, found)
    to_link = [one for one in files if files[one]["kind"] == "file"]
    # The largest first: one that does not take a link shows it at the largest.
    to_link.sort(key=lambda one: -int(files[one]["size"]))
    linked = not to_link or _linked(to_link[0], os.path.join(aside, "0"))
    _room(left, aside, 0 if linked else sum(files[one]["size"] for one in to_link))
    for number, path in enumerate(to_link):
        kept = os.path.join(aside, str(number))
        files[path]["aside"] = str(number)
        if os.path.lexists(kept):
            continue
        if not (linked and _linked(path, kept)):
            shutil.copy2(path, kept)
            _fsync(kept)
            _times(kept, files[path])
    paths.fsync_folder(aside)
    return {"files": files, "absent": sorted(absent), "to_come": sorted(to_come)}


def _with_bytecode(path: str) -> Iterator[str]:
    """A file, and what Pythons compiled of it: what is there, or may come."""
    yield path
    if not path.endswith(".py"):
        return
    yield from (path + letter for letter in "co" if os.path.lexists(path + letter))
    folder, stem = os.path.join(os.path.dirname(path), "__pycache__"), os.path.basename(path)[:-3]
    if os.path.isdir(folder):
        yield from glob.glob(os.path.join(glob.escape(folder), glob.escape(stem) + ".*"))
    else:
        # The name is not known, as it is another Python's; but the folder is.
        yield os.path.join(folder, stem)


def _folders(left: Left) -> Dict[str, Entry]:
    """The folders that are there on the way to any of the files, and those in the package's own.

    :raises OSError: one is a link, so that a file would be put somewhere else.
    """
    found: Dict[str, Entry] = {}
    ways = {os.path.dirname(path) for path in (*left.old, *left.new)} | {left.site}
    ways |= {os.path.join(folder, "__pycache__") for folder in ways}
    for way in ways:
        while way not in found and _within(way, left.roots):
            status = _lstat(way)
            if status is not None:
                if not stat.S_ISDIR(status.st_mode):
                    raise OSError(errno.ENOTDIR, "it is a link or a file, and files of the package "
                                                 "would have to lie in it", way)
                found[way] = _entry(way, status)
            way = os.path.dirname(way)
    for own in left.own:
        for folder, inner, _ in os.walk(own):
            for one in (os.path.join(folder, name) for name in inner):
                status = os.lstat(one)
                if stat.S_ISDIR(status.st_mode):
                    found.setdefault(one, _entry(one, status))
    return found


def _within(path: str, roots: List[str]) -> bool:
    return any(path == root or path.startswith(root + os.sep) for root in roots)


def _entry(path: str, status: os.stat_result) -> Entry:
    entry: Entry = {"mode": stat.S_IMODE(status.st_mode), "uid": status.st_uid,
                    "gid": status.st_gid, "mtime_ns": status.st_mtime_ns}
    if stat.S_ISLNK(status.st_mode):
        return {**entry, "kind": "link", "target": os.readlink(path)}
    if stat.S_ISDIR(status.st_mode):
        return {**entry, "kind": "folder"}
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is neither a file nor a link", path)
    return {**entry, "kind": "file", "size": status.st_size}


def _first_missing(path: str) -> str:
    """The topmost part of a path that is not there."""
    while not os.path.lexists(os.path.dirname(path)):
        path = os.path.dirname(path)
    return path


def _linked(path: str, kept: str) -> bool:
    try:
        os.link(path, kept, follow_symlinks=False)
    except OSError:
        return False
    return True


def _room(left: Left, aside: str, copies: int) -> None:
    """Whether there is room for what comes and what is kept.

    :raises NoSpace: there is not.
    """
    needed = {left.site: left.size + RESERVE}
    if copies:
        together = os.stat(aside).st_dev == os.stat(left.site).st_dev
        where = left.site if together else aside
        needed[where] = needed.get(where, RESERVE) + copies
    for path, size in needed.items():
        status = os.statvfs(path)
        free = status.f_bavail * status.f_frsize
        if free < size:
            raise NoSpace(path, free, size)


# To put back.


def _put_back(folder: str) -> None:
    content = paths.read(os.path.join(folder, KEPT))
    assert content is not None
    kept = json.loads(content)
    with _pip_ended(folder):
        status = _lstat(kept["prefix"])
        # An environment that was made anew by hand has nothing to be put back. A number of an
        # inode is soon given again, and the same folder may be filled anew.
        if status is not None and status.st_ino == kept["inode"] and os.path.lexists(kept["mark"]):
            _restore(kept, os.fsdecode(paths.read(os.path.join(folder, PLACE)) or b""))
        _settle(folder)


def _settle(folder: str) -> None:
    paths.write(os.path.join(folder, DONE), b"", mode=0o600)
    # What cannot be removed now is removed with the folder aside.
    with contextlib.suppress(OSError):
        _unmark(folder, MARK)


@contextlib.contextmanager
def _pip_ended(folder: str) -> Iterator[None]:
    """pip of a run that was killed is at an end, and does not begin."""
    path = os.path.join(folder, PIP)
    if not os.path.exists(path):
        # The folder is gone, and the journal brought back its list alone: then there is no pip.
        yield
        return
    with open(path, "r+b") as file:
        deadline = time.monotonic() + PIP_TO_END_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                said = file.read().split(b"\n")[0]
                # Who holds the lock wrote the number, so it is nobody else's.
                if said.isdigit() and int(said) > 1:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(int(said), signal.SIGKILL)
                if time.monotonic() > deadline:
                    raise OSError(errno.EBUSY, "pip of an earlier run does not end (process %s)"
                                  % said.decode("ascii", "replace"), path) from None
                time.sleep(0.05)
        yield


def _restore(kept: Entry, aside: str) -> None:
    files, folders = kept["files"], kept["folders"]
    for path in _strangers(kept):
        _discard(path)
    problems: List[str] = []
    for path in sorted(folders):
        if not os.path.isdir(path) or os.path.islink(path):
            _discard(path)
            os.mkdir(path)
    for path, entry in files.items():
        try:
            _put_file(path, entry, aside)
        except OSError as problem:
            problems.append(str(problem))
    for path, entry in files.items():
        if entry["kind"] == "file" and not problems:
            _owner(path, entry)
            _times(path, entry)
    # The innermost first; a folder's time changes with what is put into it, and then no more.
    for path in sorted(folders, reverse=True):
        _owner(path, folders[path])
        _times(path, folders[path])
    if not problems:
        problems = list(_differences(kept))
    if problems:
        raise OSError(errno.EIO, "; ".join(problems[:5]))


def _strangers(kept: Entry) -> List[str]:
    """What came since, the work of pip and of what it called."""
    found = [path for path in (*kept["to_come"], *kept["absent"]) if os.path.lexists(path)]
    known: Dict[str, Set[str]] = {}
    for path in (*kept["files"], *kept["absent"], *kept["folders"], *kept["to_come"]):
        known.setdefault(os.path.dirname(path), set()).add(os.path.basename(path))
    for folder, listed in kept["listing"].items():
        if not os.path.isdir(folder) or os.path.islink(folder):
            continue
        names, own = known.get(folder, set()), _within(folder, kept["own"])
        compiled: Tuple[str, ...] = ()
        if os.path.basename(folder) == "__pycache__":
            sources = known.get(os.path.dirname(folder), set())
            compiled = tuple(one[:-2] for one in sources if one.endswith(".py"))
        # What was there before is nobody's rubbish, whatever it is called.
        for one in set(os.listdir(folder)) - names - set(listed):
            if own or _set_aside(one, names) or _half_written(one, names) \
                    or one.startswith(compiled):
                found.append(os.path.join(folder, one))
    return found


def _set_aside(one: str, names: Set[str]) -> bool:
    """Whether pip gives one of these folders such a name while it removes it."""
    told = re.match(r"~[-~.=%0-9]*", one)
    # The pattern may have taken letters of the name itself.
    return told is not None and any(name_.endswith(one[cut:]) for cut in range(1, told.end() + 1)
                              for name_ in names if one[cut:])


def _half_written(one: str, names: Set[str]) -> bool:
    """Whether it is a file that was to get one of these names."""
    told = re.fullmatch(r"(.+?)(?:\w{8}\.tmp|\.firstlight)", one)
    return told is not None and told.group(1) in names


def _put_file(path: str, entry: Entry, aside: str) -> None:
    if _is_as(path, entry):
        return
    if entry["kind"] == "link":
        _discard(path)
        os.symlink(entry["target"], path)
        _owner(path, entry)
        _times(path, entry)
        return
    kept = os.path.join(aside, entry["aside"])
    status = _lstat(kept)
    if status is None:
        raise OSError(errno.ENOENT, "what was kept of it is gone", path)
    if (status.st_size, status.st_mtime_ns) != (entry["size"], entry["mtime_ns"]):
        raise OSError(errno.EIO, "it was changed in place while it was kept", path)
    if os.path.isdir(path) and not os.path.islink(path):
        _discard(path)
    try:
        os.rename(kept, path)
    except OSError as problem:
        if problem.errno != errno.EXDEV:
            raise
        made = path + ".firstlight"
        shutil.copy2(kept, made)
        _fsync(made)
        os.rename(made, path)


def _is_as(path: str, entry: Entry) -> bool:
    status = _lstat(path)
    if status is None:
        return False
    try:
        found = _entry(path, status)
    except OSError:
        return False
    same = ("kind", "size", "mtime_ns", "target") if entry["kind"] == "file" else ("kind", "target")
    return all(found.get(key) == entry.get(key) for key in same)


def _differences(kept: Entry) -> Iterator[str]:
    for path, entry in kept["files"].items():
        if not _is_as(path, entry):
            yield "%s is not as it was" % path
    for path in (*kept["absent"], *kept["to_come"]):
        if os.path.lexists(path):
            yield "%s is there, and was not" % path


def _owner(path: str, entry: Entry) -> None:
    status = os.lstat(path)
    if os.geteuid() == 0 and (status.st_uid, status.st_gid) != (entry["uid"], entry["gid"]):
        os.chown(path, entry["uid"], entry["gid"], follow_symlinks=False)
    if entry["kind"] != "link" and stat.S_IMODE(status.st_mode) != entry["mode"]:
        os.chmod(path, entry["mode"])


def _times(path: str, entry: Entry) -> None:
    status = os.lstat(path)
    if status.st_mtime_ns != entry["mtime_ns"]:
        os.utime(path, ns=(status.st_atime_ns, entry["mtime_ns"]), follow_symlinks=False)


def _discard(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _remove(folder: str) -> None:
    """Remove a folder aside, and what it names in the environment."""
    for name_ in (PLACE, MARK):
        _unmark(folder, name_)
    shutil.rmtree(folder, ignore_errors=True)


def _unmark(folder: str, name_: str) -> None:
    """Remove what is ours in the environment; its folder keeps its time."""
    place = os.fsdecode(paths.read(os.path.join(folder, name_)) or b"")
    # What a file says is followed no further than to what is ours.
    own = (place == os.path.join(folder, FILES)
           or os.path.basename(place) == BESIDE + os.path.basename(folder))
    if own and os.path.isabs(place) and os.path.lexists(place):
        status = os.stat(os.path.dirname(place))
        _discard(place)
        with contextlib.suppress(OSError):
            os.utime(os.path.dirname(place), ns=(status.st_atime_ns, status.st_mtime_ns))


def _lstat(path: str) -> Optional[os.stat_result]:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _fsync(path: str) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def owners(files: Iterable[str], sites: Iterable[str], own: str) -> Dict[str, str]:
    """Which of the files other packages have, by their own lists: the package by file.

    :param sites: folders of packages.
    :param own: the normalised name of the package that is changed.
    """
    wanted, found = set(files), {}
    for site in sites:
        for info in glob.glob(os.path.join(glob.escape(site), "*.*-info")):
            package = os.path.basename(info).rpartition(".")[0].partition("-")[0]
            if normal(package) == own:
                continue
            with contextlib.suppress(OSError, csv.Error):
                found.update(dict.fromkeys(wanted & _listed(info, site, wanted), package))
    return found


def _listed(info: str, site: str, wanted: Set[str]) -> Set[str]:
    """The files that a package has: by RECORD, or as setuptools had it before there was that."""
    if info.endswith(".dist-info"):
        with open(os.path.join(info, "RECORD"), encoding="utf-8", errors="replace",
                  newline="") as text:
            return {os.path.normpath(os.path.join(site, row[0])) for row in csv.reader(text) if row}
    if not info.endswith(".egg-info"):
        return set()
    for name_, base in (("installed-files.txt", info), ("top_level.txt", site)):
        with contextlib.suppress(FileNotFoundError), \
                open(os.path.join(info, name_), encoding="utf-8", errors="replace") as text:
            listed = {os.path.normpath(os.path.join(base, line.strip()))
                      for line in text if line.strip()}
            return {path for path in wanted if _within(path, [*listed])
                    or path.rpartition(".py")[0] in listed}
    return set()
