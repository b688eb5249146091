# SPDX-License-Identifier: Apache-2.0
"""Bring snapshots to a host: the work of a process of its own, which :func:`watch` begins.

All files are fetched by :mod:`fetch`, into the cache that huggingface_hub reads and under its
names. What was fetched stays, however the work ends.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import threading
import time
import uuid
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Sequence, Tuple

from ansible.module_utils.firstlight import detached, paths
from ansible.module_utils.firstlight.findings import Finding, finding
from ansible.module_utils.firstlight.snapshots import layout, sources, verify
from ansible.module_utils.firstlight.snapshots.entries import Entry, Manifest
from ansible.module_utils.firstlight.snapshots.fetch import Corrupt, fetch, incomplete, on_disk
from ansible.module_utils.firstlight.snapshots.outline import (
    Origins,
    Settings,
    Snapshot,
    record,
)
from ansible.module_utils.firstlight.transaction import Busy, Lock

Told = Dict[str, Any]
Report = Callable[[Told], None]

SPARE = 64 * 2**20
"""Bytes of a file system that are left to others."""
NAMED = 5
TELL_S = 0.5
RATE_S = 10.0


class Job(NamedTuple):
    """One commit of one repository, for all endpoints that need files of it.

    ``missing`` are not there, ``unverified`` were not hashed as they are now; ``full`` has all of
    them read; ``closed`` has some that not every user may read. ``reach`` gives the source of what
    is to be fetched.
    """

    manifest: Manifest
    entries: Tuple[Entry, ...]
    missing: Tuple[Entry, ...]
    unverified: Tuple[Entry, ...]
    full: bool
    closed: bool
    reach: Callable[[], sources.Source]


def jobs(snapshots: Sequence[Snapshot], origins: Origins, full: bool) -> List[Job]:
    """What there is to do for snapshots; those with nothing to do are not among them.

    :param origins: where they may be fetched; no source is made yet.
    :param full: whether all that is there is read.
    """
    made: Dict[Any, Job] = {}
    for one in snapshots:
        if one.manifest is None or one.chosen is None:
            continue
        key = (one.manifest.repo_id, one.manifest.commit)
        before = made.get(key) or Job(
            one.manifest, (), (), (), full, False,
            functools.partial(origins.of, one.asked, one.manifest))
        made[key] = before._replace(
            entries=_joined(before.entries, one.chosen.entries),
            missing=_joined(before.missing, one.missing),
            unverified=_joined(before.unverified, one.unverified),
            full=before.full or one.damaged, closed=before.closed or one.closed)
    return [one for one in made.values()
            if one.full or one.missing or one.unverified or one.closed]


def _joined(first: Sequence[Entry], second: Sequence[Entry]) -> Tuple[Entry, ...]:
    return tuple(sorted({*first, *second}))


def set_id(snapshots: Sequence[Snapshot], settings: Settings, full: bool) -> str:
    """The same text for all who want the same files in the same cache."""
    rows = sorted([one.manifest.repo_id, one.manifest.commit, entry.path]
                  for one in snapshots if one.manifest and one.chosen
                  for entry in one.chosen.entries)
    return hashlib.sha256(json.dumps([settings.cache, full, rows]).encode()).hexdigest()[:16]


def space(todo: Sequence[Job], cache: str) -> List[Finding]:
    """A finding where what is missing does not fit; what is there of a file counts."""
    # Each content once, whatever its paths.
    missing = {(one.manifest.repo_id, entry.blob): (one, entry)
               for one in todo for entry in one.missing}
    wanted = sum(entry.size - min(entry.size, _begun(cache, one, entry))
                 for one, entry in missing.values())
    where = cache
    while not os.path.isdir(where):
        where = os.path.dirname(where)
    status = os.statvfs(where)
    free = status.f_bavail * status.f_frsize
    if not wanted or free >= wanted + SPARE:
        return []
    return [finding(
        "snapshot-no-space", cache, "%s free on the file system of %s" % (_size(free), where),
        "%s for %s" % (_size(wanted + SPARE), ", ".join(
            one.manifest.repo_id for one in todo if one.missing)),
        "make room there (what others fetched before lies in %s), set `model_snapshot_cache` to a"
        " folder of a larger one, or choose a smaller quantisation" % cache,
        evidence="statvfs of %s; what earlier runs have left of these files is counted" % where)]


def _begun(cache: str, job: Job, entry: Entry) -> int:
    """Bytes of a file that an earlier run has left, as far as they are on the disk."""
    target = layout.blob(cache, job.manifest.repo_id, entry)
    return on_disk(target) or incomplete(target)


def file(root: str, set_: str) -> str:
    """Where the work on a set is written down."""
    return os.path.join(root, "journal", "snapshots-%s.run.json" % set_)


def watch(where: str, run: str, wait_s: float, do: Callable[[Report], Told],
          limit_s: float) -> Told:
    """Begin the work, or find it begun by whomever, and watch it.

    :param where: as :func:`file` gives it.
    :param run: who asks. What this one began is watched, and its result told, also when it has
        ended. Empty is someone new, to whom only work that goes on counts.
    :param wait_s: seconds to watch.
    :returns: ``{run, finished, progress}`` and, when finished, ``result``.
    """
    run = run or uuid.uuid4().hex
    deadline = time.monotonic() + wait_s
    while True:
        try:
            left = max(0.0, deadline - time.monotonic())
            return dict(detached.watch(where, run, left, do, _ended, limit_s), run=run)
        except Busy:
            # Another run is at the same: its work is as good.
            state = json.loads(paths.read(where) or b"{}")
            run = state.get("run") or run
            if time.monotonic() > deadline + 10:
                raise


def has_begun(where: str, run: str) -> bool:
    """Whether there is work of this very run to be watched."""
    return bool(run) and detached.is_of(where, run)


def _ended() -> Told:
    return {"failed": "The work was ended in the middle. What was fetched stays: run again, and it"
                      " goes on from there.", "findings": [], "changed": True, "done": []}


def bring(todo: Sequence[Job], settings: Settings, report: Report) -> Told:
    """Bring what is missing and verify what is there; what goes wrong with one stops no other.

    :returns: ``{changed, findings, done}``; ``done`` has repository, commit and source of
        what is there and good.
    """
    # The cache is for all users of the host, whatever the umask of whoever asked is.
    os.umask(0o022)
    told: Told = {"changed": False, "findings": [], "done": []}
    short = space(todo, settings.cache)
    if short:
        return dict(told, findings=short)
    with _Progress(todo, settings.cache, report) as progress:
        for job in todo:
            made = _Bringing(job, settings, progress)
            try:
                made.bring()
                told["done"].append([job.manifest.repo_id, job.manifest.commit, made.came_from])
            except sources.HubProblem as problem:
                made.findings += problem.findings
            except sources.NoLibrary as problem:
                made.findings.append(sources.no_library(job.manifest.repo_id, problem))
            except OSError as problem:
                full = problem.errno in (errno.ENOSPC, errno.EDQUOT)
                made.findings.append(finding(
                    "snapshot-no-space" if full else "snapshot-not-written",
                    job.manifest.repo_id, "%s: %s" % (
                        problem.filename or settings.cache, problem.strerror or problem),
                    "a cache that this user may write, with room in it",
                    "see to %s, or set `model_snapshot_cache`; what was fetched stays"
                    % settings.cache))
            except Exception as problem:  # its process ends with it: this is the only word of it
                made.findings.append(finding(
                    "snapshot-failed", job.manifest.repo_id, "%s: %s" % (
                        type(problem).__name__, sources.clean(problem)),
                    "a snapshot that is there, verified",
                    "run again; if it comes again, it is a fault of ours: tell us these words"))
            told["changed"] = told["changed"] or made.changed
            told["findings"] += made.findings
    return told


class _Bringing:
    """One job at work."""

    def __init__(self, job: Job, settings: Settings, progress: _Progress) -> None:
        self._job, self._settings, self._progress = job, settings, progress
        self._repo_id, self._commit = job.manifest.repo_id, job.manifest.commit
        self._cache = settings.cache
        self._record = record(settings.root, self._repo_id, self._commit)
        self.came_from = "cache"
        self.changed = False
        self.findings: List[Finding] = []

    def bring(self) -> None:
        """Do it, as the only one who is at this repository.

        :raises HubProblem: when something cannot be had, or comes wrong again.
        :raises OSError: no space, no permission.
        """
        # In the cache, which other hosts may have too.
        with self._alone(os.path.join(self._cache, ".locks", layout.name(self._repo_id),
                                      "firstlight.lock")):
            manifest = self._job.manifest
            layout.prepare(self._cache, self._repo_id)
            layout.write_tree(self._cache, manifest)
            # What cannot be read cannot be verified.
            self._open()
            missing = self._linked(layout.missing(self._cache, manifest, self._job.entries))
            if missing:
                self._fetch(missing)
            self._verify({entry.path for entry in missing})
            self._open()

    def _open(self) -> None:
        """Let every user read it: an engine runs as another one."""
        try:
            self.changed = bool(layout.readable(
                self._cache, self._repo_id, self._commit)) or self.changed
        except PermissionError as problem:
            # Of a cache that belongs to others; whoever serves may be among them.
            told = finding(
                "snapshot-unreadable", self._repo_id, "%s: %s" % (
                    problem.filename, problem.strerror),
                "files that every user may read, as the engine's may be another one",
                "let the owner of %s run chmod -R a+rX on it" % self._cache, severity="warning")
            if told not in self.findings:
                self.findings.append(told)

    @contextlib.contextmanager
    def _alone(self, path: str) -> Iterator[None]:
        lock = Lock(path, wait_s=1)
        while True:
            try:
                lock.__enter__()
                break
            except Busy:
                self._progress.say("waiting for another run that fetches %s" % self._repo_id)
        try:
            self._progress.say("")
            yield
        finally:
            lock.__exit__(None, None, None)

    def _linked(self, missing: Sequence[Entry]) -> List[Entry]:
        """Those that are still missing when all contents that are there have their paths."""
        for entry in missing:
            blob = layout.blob(self._cache, self._repo_id, entry)
            with contextlib.suppress(OSError):
                if os.path.getsize(blob) == entry.size:
                    self._link(entry)
                else:
                    verify.quarantine(self._cache, self._repo_id, entry, self._record)
        return layout.missing(self._cache, self._job.manifest, missing)

    def _link(self, entry: Entry) -> None:
        if layout.link(self._cache, self._repo_id, self._commit, entry):
            self.changed = True

    def _fetch(self, missing: Sequence[Entry]) -> None:
        origin = self._origin()
        self.came_from = origin.name
        # Whether files may be had at all is said in the hub's own words.
        origin.check(self._repo_id, self._commit, missing[0])
        self.changed = True
        self._by_range(origin, missing)

    def _origin(self) -> sources.Source:
        if self._settings.offline:
            raise sources.HubProblem(finding(
                "snapshot-offline-missing", self._repo_id,
                "files went away while they were looked at, and this host is offline",
                "all files of commit %s" % self._commit, "run again"))
        return self._job.reach()

    def _by_range(self, origin: sources.Source, entries: Sequence[Entry]) -> None:
        """Fetch files, and give each its path once all are there."""
        # Two paths may have one content.
        by_blob = {entry.blob: entry for entry in entries}
        try:
            fetch([origin.wanted(self._repo_id, self._commit, entry,
                                 layout.blob(self._cache, self._repo_id, entry))
                   for entry in by_blob.values()],
                  workers=self._settings.workers, report=self._progress.came,
                  direct=origin.inside)
        except OSError:
            raise
        except Corrupt as error:
            # Maybe it is the list that is wrong: the next run asks for it anew.
            layout.forget_tree(self._cache, self._repo_id, self._commit)
            path = next((one.path for one in entries
                         if one.blob in (error.wanted.sha256, error.wanted.git_sha1)), "a file")
            raise sources.HubProblem(sources.corrupt(
                self._repo_id, "%s comes from %s with another content, twice: %s" % (
                    path, origin.name, sources.clean(error.found)),
                origin.name, mended=False)) from error
        except Exception as error:
            raise sources.HubProblem(*origin.problem(
                error, self._repo_id, self._commit)) from error
        finally:
            # What came is kept, with its path, when another file fails.
            for entry in entries:
                with contextlib.suppress(OSError):
                    blob = layout.blob(self._cache, self._repo_id, entry)
                    if os.path.getsize(blob) == entry.size:
                        self._link(entry)
        # Its hash was made while it came.
        verify.remember(self._record, self._cache, self._job.manifest,
                        [(entry.path, entry.blob) for entry in entries])

    def _verify(self, fresh: Any) -> None:
        """Read what has to be read; fetch again, alone, what is bad."""
        manifest, entries = self._job.manifest, self._job.entries
        # What came now by range was hashed as it came.
        before = [entry for entry in entries if entry.path not in fresh]
        after = [entry for entry in entries if entry.path in fresh]
        bad = (verify.verify(self._cache, self._record, manifest, before, self._job.full,
                             self._progress.read)
               + verify.verify(self._cache, self._record, manifest, after, False,
                               self._progress.read))
        unsure = [one for one in bad if one.found.startswith(verify.UNSURE)]
        if unsure:
            raise sources.HubProblem(finding(
                "snapshot-unreadable", self._repo_id, _named(unsure),
                "files that can be read to their end, and that nobody writes",
                "see to the disk or the mount of %s; nothing was moved, so run again then"
                % self._cache))
        if not bad:
            return
        names = _named(bad)
        if self._settings.offline:
            raise sources.HubProblem(sources.corrupt(
                self._repo_id, names + "; left as it is, as this host is offline", "it",
                mended=False))
        self.changed = True
        kept = {one.entry.path: verify.quarantine(
            self._cache, self._repo_id, one.entry, self._record) for one in bad}
        again = self._job._replace(missing=tuple(one.entry for one in bad))
        if space([again], self._cache):
            # Good files come first.
            for path in filter(None, kept.values()):
                with contextlib.suppress(OSError):
                    os.unlink(path)
            kept = {}
        origin = self._origin()
        self.came_from = origin.name
        self._progress.more(sum(one.entry.size for one in bad))
        self._by_range(origin, [one.entry for one in bad])
        aside = next((one for one in kept.values() if one), "")
        mended = sources.corrupt(
            self._repo_id, "%d of %d files were bad: %s" % (len(bad), len(entries), names),
            origin.name, mended=True)
        self.findings.append(dict(mended, evidence="kept in %s" % os.path.dirname(aside)
                                  if aside else ""))


def _named(bad: Sequence[verify.Bad]) -> str:
    more = len(bad) - NAMED
    return "; ".join("%s: %s" % (one.entry.path, one.found) for one in bad[:NAMED]) + (
        " and %d more" % more if more > 0 else "")


class _Progress:
    """How far the work is, told at times to who watches."""

    def __init__(self, todo: Sequence[Job], cache: str, report: Report) -> None:
        self._report, self._lock = report, threading.Lock()
        # Each content once, as it is fetched and read once.
        wanted = {(one.manifest.repo_id, entry.blob): (one, entry)
                  for one in todo for entry in one.missing}
        self._total = sum(entry.size for _, entry in wanted.values())
        self._came = sum(min(entry.size, _begun(cache, one, entry))
                         for one, entry in wanted.values())
        self._to_read = sum(entry.size for one in todo for entry in (
            one.entries if one.full else one.unverified) if entry not in one.missing)
        self._was_read = 0
        self._text = ""
        self._points: List[Tuple[float, float]] = []
        self._stop = threading.Event()

    def __enter__(self) -> _Progress:
        self._thread = threading.Thread(target=self._tell, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *why: Any) -> None:
        self._stop.set()
        self._thread.join()

    def came(self, count: int) -> None:
        """So many bytes came."""
        with self._lock:
            self._came += count

    def read(self, count: int) -> None:
        """So many bytes were read to be verified."""
        with self._lock:
            self._was_read += count

    def more(self, count: int) -> None:
        """So many bytes have to be fetched in addition."""
        with self._lock:
            self._total += count

    def say(self, text: str) -> None:
        """What there is to say beside figures."""
        with self._lock:
            self._text = text

    def _tell(self) -> None:
        while True:
            self._report(self.now())
            if self._stop.wait(TELL_S):
                return

    def now(self) -> Told:
        """The progress as callback_plugins/progress.py shows it."""
        with self._lock:
            fetching = self._came < self._total
            done, total = ((self._came, self._total) if fetching or not self._to_read
                           else (self._was_read, max(self._to_read, self._was_read)))
            text = self._text or ("fetching" if fetching else "verifying")
        now = time.monotonic()
        if self._points and done < self._points[-1][1]:
            self._points = []
        self._points = [one for one in self._points if now - one[0] <= RATE_S] + [(now, done)]
        (first, begun), took = self._points[0], now - self._points[0][0]
        told: Told = {"done": done, "total": total, "unit": "bytes", "text": text}
        if took > 0 and first < now:
            rate = max(0.0, (done - begun) / took)
            told["rate"] = round(rate)
            if rate > 0:
                told["eta_s"] = round((total - done) / rate, 1)
        return told


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return "%.3g %s" % (count, unit)
        count /= 1000
    return "%.3g TB" % count

