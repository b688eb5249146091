# SPDX-License-Identifier: Apache-2.0
"""A line per host and stage instead of a line per host and task."""

from __future__ import annotations

import atexit
import collections
import dataclasses
import os
import sys
import termios
import threading
import time
import unicodedata
from typing import Any, Callable

import ansible.module_utils
from ansible import constants as C
from ansible.playbook.handler import Handler
from ansible.playbook.task_include import TaskInclude
from ansible.plugins.callback.default import CallbackModule as Default

# Core looks into our module_utils for modules only.
ansible.module_utils.__path__.append(
    os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "module_utils"))

from ansible.module_utils.firstlight.task_results import (
    is_hidden,
    name_in,
    name_of,
    plain,
    stage_of,
)

DOCUMENTATION = """
name: progress
type: stdout
short_description: One line per host and stage, with state and time
description:
  - Prints one line for every host and stage, with its state, its seconds and the names of the
    tasks that changed something. A stage is the role that a task belongs to; a task outside roles
    belongs to a stage named like its play. A stage in which all was skipped has no line, one that
    a host comes back to (a handler, a second import) has another.
  - Failures, warnings, diffs, debug messages and the recap look as those of
    P(ansible.builtin.default#callback). With C(-v) its whole output is there, and the lines too.
  - On a terminal the last line says what is waited for and since when. Elsewhere the output is
    plain lines, and such a line is printed when there was none for a while (O(heartbeat)).
  - A task that is retried (C(until), C(retries)) may say how far it is. If the result of an
    attempt has a dict C(progress), its keys are shown. All are optional, and one of a wrong type
    is left out. C(done), C(total), C(rate) (per second) and C(eta_s) (seconds) are numbers,
    C(unit) and C(text) are strings. Without C(unit), it is V(steps). Where it is V(bytes), amounts
    are shown in kB, MB, GB or TB.
  - So V(12.4e9) C(done) of V(140e9) C(total), with a C(rate) of V(350e6) and a C(eta_s) of V(364),
    are shown as V(12.4 of 140 GB, 350 MB/s, 6 min left).
extends_documentation_fragment:
  - default_callback
  - result_format_callback
options:
  heartbeat:
    description:
      - Seconds without a line after which one says what is waited for.
      - The same time lies between two lines about the progress of one host. V(0) is never.
    type: float
    default: 15
    env:
      - name: FIRSTLIGHT_PROGRESS_HEARTBEAT
    ini:
      - section: callback_progress
        key: heartbeat
requirements:
  - Set as C(stdout_callback) in configuration.
"""

COLOURS = {
    "ok": "COLOR_OK", "changed": "COLOR_CHANGED", "would change": "COLOR_CHANGED",
    "failed": "COLOR_ERROR", "unreachable": "COLOR_UNREACHABLE", "skipped": "COLOR_SKIP",
    "running": "COLOR_VERBOSE", "interrupted": "COLOR_ERROR",
}
NAMED_CHANGES = 3
NAMED_HOSTS = 2
HOST_COLUMN = 32  # at most
STAGE_COLUMN = 20
CLEAR = b"\x1b[K"  # from the cursor to the end of its line


@dataclasses.dataclass
class Visit:
    """One host in one stage, until it goes on to the next."""

    host: str
    stage: str
    started: float
    ended: float
    over: bool = False
    after_failure: bool = False  # the visit before it failed in this stage
    ran: bool = False  # anything but skipped
    changed: list[str] = dataclasses.field(default_factory=list)
    pretended: bool = True  # every change was one of check mode
    failed: str = ""
    rescued: str = ""
    unreachable: str = ""
    task: Any = None  # the one in flight, its start, when and what was said of it
    since: float = 0.0
    said: float = 0.0
    detail: str = ""
    items: int = 0


class CallbackModule(Default):
    """The default callback, told to say less, and the lines."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "progress"

    def __init__(self) -> None:
        super().__init__()
        # Core calls one callback at a time; the lock is for the thread that watches. It is never
        # held while something is printed, so that it cannot wait for Display's, nor that for it.
        self._lock = threading.Lock()
        self._visits: dict[str, Visit] = {}
        self._outs: collections.Counter[str] = collections.Counter()
        self._done: dict[str, set[str]] = {}  # a task's uuid: the hosts that are through
        self._hosts: list[str] = []
        self._width = 0
        self._said = time.monotonic()
        self._watcher: threading.Thread | None = None
        self._stop = threading.Event()
        self._footer: Footer | None = None
        self._interrupted = False

    def get_option(self, k: str, hostvars: Any = None) -> Any:
        """Skipped tasks are shown with -v only, whatever the default callback would do."""
        if k == "display_skipped_hosts" and not self._display.verbosity:
            return False
        return super().get_option(k, hostvars)

    # --- What core tells ---------------------------------------------------------------------

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Another play, or another batch of a serial one."""
        self._end_all()
        self._outs.clear()
        super().v2_playbook_on_play_start(play)
        inventory = play.get_variable_manager()._inventory
        with self._lock:
            self._hosts = [host.get_name() for host in inventory.get_hosts(play.hosts)]
            self._done = {}
        widest = max((cells(plain(host)) for host in self._hosts), default=0)
        self._width = min(max(self._width, widest), HOST_COLUMN)
        self._watch()

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        """A host begins a task, and with it perhaps another stage."""
        super().v2_runner_on_start(host, task)
        if isinstance(task, TaskInclude):
            return  # what it includes has a stage of its own
        visit = self._visit(host.get_name(), task)
        with self._lock:
            visit.task, visit.detail, visit.items = task, "", 0
            visit.since = visit.said = time.monotonic()

    def v2_runner_on_ok(self, result: Any) -> None:
        """Show a result that wants to be seen; note the others."""
        changed = result.is_changed()
        self._censor(result)
        if self._shows(result):
            super().v2_runner_on_ok(result)
        else:
            self._warn(result)
        if isinstance(result.task, TaskInclude):
            return
        visit = self._through(result)
        visit.ran = True
        if changed:
            visit.changed.append(name_in(result))
            visit.pretended = visit.pretended and bool(result.task.check_mode)

    def v2_runner_on_skipped(self, result: Any) -> None:
        """A skipped task makes no stage."""
        if self._display.verbosity:
            super().v2_runner_on_skipped(result)
        else:
            self._warn(result)
        if not isinstance(result.task, TaskInclude):
            self._through(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """A failure is shown at once, and ends the stage if nothing rescues it."""
        self._censor(result)
        super().v2_runner_on_failed(result, ignore_errors)
        visit = self._through(result)
        visit.ran = True
        if not ignore_errors:
            # Of an include core tells first, takes the host out then, and rescues nothing of it.
            if isinstance(result.task, TaskInclude) or self._falls_out(visit):
                visit.failed = name_in(result)
                self._end(visit)
            else:
                visit.rescued = name_in(result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """A host that cannot be reached is out of the play."""
        self._censor(result)
        super().v2_runner_on_unreachable(result)
        visit = self._through(result)
        visit.ran = True
        if self._falls_out(visit):
            visit.unreachable = name_in(result)
            self._end(visit)

    def v2_runner_item_on_ok(self, result: Any) -> None:
        """Count an item."""
        self._count(result)
        self._censor(result)
        if self._shows(result):
            super().v2_runner_item_on_ok(result)
        else:
            self._warn(result)

    def v2_runner_item_on_failed(self, result: Any) -> None:
        """Count an item."""
        self._count(result)
        self._censor(result)
        super().v2_runner_item_on_failed(result)

    def v2_runner_item_on_skipped(self, result: Any) -> None:
        """Count an item."""
        self._count(result)
        if self._display.verbosity:
            super().v2_runner_item_on_skipped(result)
        else:
            self._warn(result)

    def v2_runner_retry(self, result: Any) -> None:
        """Say how far a task is that is tried again and again."""
        if self._display.verbosity:
            super().v2_runner_retry(result)
        said = None if is_hidden(result) else progress_text(result.result.get("progress"))
        text = said or "attempt %s of %s" % (
            result.result.get("attempts", "?"), result.result.get("retries", "?"))
        visit = self._visit(result.host.get_name(), result.task)
        now = time.monotonic()
        with self._lock:
            visit.detail = text
            due = self._footer is None and 0 < self._heartbeat <= now - visit.said
            if due:
                visit.said = now
        if due:
            self._line(visit, "running", now - visit.started, text)

    def v2_runner_on_async_poll(self, result: Any) -> None:
        """Polls are silent; the watching line tells of them."""
        if self._display.verbosity:
            super().v2_runner_on_async_poll(result)

    def v2_runner_on_async_ok(self, result: Any) -> None:
        """That a job has ended is said by the result that follows."""
        if self._display.verbosity:
            super().v2_runner_on_async_ok(result)

    def v2_runner_on_async_failed(self, result: Any) -> None:
        """That a job has ended is said by the result that follows."""
        if self._display.verbosity:
            super().v2_runner_on_async_failed(result)

    def v2_playbook_on_include(self, included_file: Any) -> None:
        """Files and roles that are included are shown with -v only."""
        if self._display.verbosity:
            super().v2_playbook_on_include(included_file)

    def v2_playbook_on_no_hosts_remaining(self) -> None:
        """The play is over."""
        self._end_all()
        super().v2_playbook_on_no_hosts_remaining()

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """The run is over."""
        self._end_all()
        self._unwatch()
        super().v2_playbook_on_stats(stats)

    # --- What the default callback says of a result ------------------------------------------

    def _shows(self, result: Any) -> bool:
        """Whether an unfailed result is shown: debug messages, and what a diff belongs to."""
        found = result.result
        return bool(
            self._display.verbosity
            or found.get("_ansible_verbose_always")
            or (result.task.diff and found.get("changed") and found.get("diff")))

    def _warn(self, result: Any) -> None:
        """Warnings of a result that is not shown itself."""
        if any(result.result.get(key) for key in ("warnings", "deprecations", "exception")):
            if self._last_task_banner != result.task._uuid:
                self._print_task_banner(result.task)
            self._handle_warnings_and_exception(result)

    def _censor(self, result: Any) -> None:
        """Core hides a result with no_log, but leaves the exception, whose text has the message."""
        if is_hidden(result):
            result.result.pop("exception", None)

    # --- Stages ------------------------------------------------------------------------------

    def _visit(self, host: str, task: Any) -> Visit:
        """The host's visit to the task's stage; the one before ends.

        What a host still does after it failed there (C(always), or its errors were cleared) is
        another visit.
        """
        stage = stage_of(task, self._play)
        visit = self._visits.get(host)
        if visit is None or visit.stage != stage or visit.over:
            if visit is not None:
                self._end(visit)
            now = time.monotonic()
            visit = Visit(host, stage, started=now, ended=now, after_failure=(
                visit is not None and visit.stage == stage))
            self._falls_out(visit)  # what was before is not of this visit
            with self._lock:
                self._visits[host] = visit
        return visit

    def _through(self, result: Any) -> Visit:
        """The visit of a result, with its task no longer in flight."""
        host = result.host.get_name()
        visit = self._visit(host, result.task)
        with self._lock:
            visit.ended = time.monotonic()
            visit.task = None
            self._done.setdefault(result.task._uuid, set()).add(host)
        if self._footer:
            # What comes next may be a question, which is asked past the buffers that clear.
            self._footer.show("")
        return visit

    def _count(self, result: Any) -> None:
        """One more item of a loop is through."""
        visit = self._visit(result.host.get_name(), result.task)
        loop = result.result.get("ansible_loop")
        total = loop.get("length") if isinstance(loop, dict) else None
        if total is None and isinstance(result.task.loop, list):
            total = len(result.task.loop)
        with self._lock:
            visit.items += 1
            # Of a loop that is a template only the worker knows the length, and tells it with
            # loop_control.extended.
            visit.detail = "%d of %d items" % (visit.items, total) if isinstance(total, int) \
                else "%d items" % visit.items

    def _falls_out(self, visit: Visit) -> bool:
        """Whether core has taken the host out of the play now: not if rescued, nor if ignored.

        It does so more than once where C(always) fails too.
        """
        times = int(self._play._removed_hosts.count(visit.host))
        fell = times > self._outs[visit.host]
        self._outs[visit.host] = times
        return fell

    def _end_all(self) -> None:
        for visit in list(self._visits.values()):
            self._end(visit)
        with self._lock:
            self._visits = {}

    def _end(self, visit: Visit) -> None:
        """Print the line of a visit, once."""
        if visit.over:
            return
        visit.over = True
        notes = []
        if self._interrupted and not visit.failed:
            state = "interrupted"
            notes += [name_of(visit.task)] if visit.task is not None else []
            notes += ["changed: %s" % and_more(visit.changed, NAMED_CHANGES)] * bool(visit.changed)
        elif visit.unreachable:
            state, notes = "unreachable", [visit.unreachable]
        elif visit.failed:
            state, notes = "failed", [visit.failed]
        elif visit.changed:
            state = "would change" if visit.pretended else "changed"
            notes = [and_more(visit.changed, NAMED_CHANGES)]
        elif visit.after_failure:
            return  # what it still did there changed nothing
        else:
            state = "ok" if visit.ran else "skipped"
        if visit.rescued:
            notes.append("rescued: %s" % visit.rescued)
        if state != "skipped" or self.get_option("display_skipped_hosts"):
            self._line(visit, state, visit.ended - visit.started, "; ".join(notes))

    def _line(self, visit: Visit, state: str, seconds: float, note: str) -> None:
        self._say("%s  %s  %-12s %7.1f s  %s" % (
            padded(plain(visit.host), self._width), padded(plain(visit.stage), STAGE_COLUMN), state,
            seconds, plain(note)),
            getattr(C, COLOURS[state]))

    def _say(self, line: str, colour: str | None = None) -> None:
        self._said = time.monotonic()
        self._display.display(line.rstrip(), color=colour)
        # A pipe gets its lines when core starts the next worker; while all wait, it starts none.
        with self._display._lock:
            sys.stdout.flush()

    # --- The thread that watches -------------------------------------------------------------

    @property
    def _heartbeat(self) -> float:
        seconds: float = self.get_option("heartbeat")
        return seconds

    def _watch(self) -> None:
        if self._watcher is not None:
            return
        if sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
            self._footer = Footer(self._display._lock)
        self._stop.clear()
        self._watcher = threading.Thread(target=self._watching, name="progress", daemon=True)
        self._watcher.start()
        # A run that is broken off has no stats: it must say what it did, and leave no line behind.
        atexit.register(self._break_off)

    def _unwatch(self) -> None:
        if self._watcher is None:
            return
        self._stop.set()
        self._watcher.join(timeout=2)
        self._watcher = None
        atexit.unregister(self._break_off)
        if self._footer:
            self._footer.close()
            self._footer = None

    def _break_off(self) -> None:
        self._interrupted = True
        self._unwatch()
        self._end_all()

    def _watching(self) -> None:
        """Print only through Display or under its lock: core forks its workers while holding it."""
        footer, heartbeat = self._footer, self._heartbeat
        while not self._stop.wait(1.0 if footer or heartbeat <= 0 else min(1.0, heartbeat)):
            try:
                if footer:
                    footer.show(self._standing())
                elif 0 < heartbeat <= time.monotonic() - self._said:
                    standing = self._standing()
                    if standing:
                        self._say(standing, C.COLOR_VERBOSE)
            except (OSError, ValueError):
                return  # there is nobody left to read it

    def _standing(self) -> str:
        """What is waited for: the task that has run longest, and all hosts that are at work."""
        now = time.monotonic()
        with self._lock:
            waiting = sorted(
                (visit for visit in self._visits.values() if visit.task is not None),
                key=lambda visit: visit.since)
            if not waiting:
                return ""
            first = waiting[0]
            out = set(self._play._removed_hosts)
            here = [host for host in self._hosts if host not in out]
            done = self._done.get(first.task._uuid, set())
            through = sum(host in done for host in here)
            # Who will run a handler, or what was included, core does not say beforehand.
            counts = through and len(here) > 1 and not first.task.run_once \
                and not isinstance(first.task, Handler)
            names = [visit.host + (" (%s)" % visit.detail if visit.detail else "")
                     for visit in waiting]
            text = "… %s %.0f s: %swaiting for %s (%s)" % (
                cut(first.stage, STAGE_COLUMN), now - first.started,
                "%d of %d hosts done, " % (through, len(here)) if counts else "",
                and_more(names, NAMED_HOSTS), name_of(first.task))
        return plain(text)


class Footer:
    """The last line of a terminal, drawn anew in its place, and gone before anything is written.

    All that Python prints goes through the two buffers that core, too, puts a lock around.
    """

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._shown = False
        self._at_margin = True
        self._write: Callable[[bytes], int] = sys.stdout.buffer.write
        buffers: list[Any] = [one.buffer for one in (sys.stdout, sys.stderr) if one.isatty()]
        self._wrapped = [(buffer, buffer.write) for buffer in buffers]
        for buffer, write in self._wrapped:
            buffer.write = self._clearing(write)

    def _clearing(self, write: Callable[[bytes], int]) -> Callable[[bytes], int]:
        def clear_and_write(data: bytes) -> int:
            with self._lock:
                self._clear()
                if len(data):
                    # A prompt of core ends by clearing its line.
                    self._at_margin = bytes(data[-3:]).endswith((b"\n", CLEAR))
                return write(data)

        return clear_and_write

    def show(self, text: str) -> None:
        """Draw the line, or nothing where somebody is being asked something."""
        with self._lock:
            sys.stdout.flush()
            if not is_at_rest(sys.stdout.fileno()):
                self._shown = False  # a question stands in its place
                return
            if not text or not self._at_margin:
                self._clear()
                return
            columns = os.get_terminal_size(sys.stdout.fileno()).columns or 80
            # The last column stays free: a cursor beyond it would be on the next line.
            line = cut(text, columns - 1).encode(sys.stdout.encoding, "replace")
            self._write(b"\r" + line + CLEAR)
            sys.stdout.buffer.flush()
            self._shown = True

    def _clear(self) -> None:
        if self._shown:
            self._shown = False
            self._write(b"\r" + CLEAR)
            sys.stdout.buffer.flush()

    def close(self) -> None:
        """Remove the line and leave the buffers as they were."""
        with self._lock:
            self._clear()
            for buffer, write in self._wrapped:
                buffer.write = write


def is_at_rest(terminal: int) -> bool:
    """Whether a terminal is in its ordinary mode: prompts and debuggers change it."""
    try:
        flags = termios.tcgetattr(terminal)[3]
    except termios.error:
        return False
    return bool(flags & termios.ICANON and flags & termios.ECHO)


def and_more(names: list[str], named: int) -> str:
    """Join the first few names and count the others."""
    more = " and %d more" % (len(names) - named) if len(names) > named else ""
    return ", ".join(names[:named]) + more


def cut(text: str, columns: int) -> str:
    """As much of a text as fits."""
    for end, one in enumerate(text):
        columns -= cells(one)
        if columns < 0:
            return text[:end]
    return text


def cells(text: str) -> int:
    """How many columns a text takes; some characters take two."""
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text)


def padded(text: str, columns: int) -> str:
    """A text in a column of its own, which it fills and does not leave."""
    shown = cut(text, columns)
    return shown + " " * (columns - cells(shown))


def progress_text(progress: Any) -> str:
    """The C(progress) of a result in words; what is not of its type is left out."""
    if not isinstance(progress, dict):
        return ""
    done, total, rate, eta = (number(progress.get(key))
                              for key in ("done", "total", "rate", "eta_s"))
    unit = words(progress.get("unit")) or "steps"
    parts = []
    if done is not None:
        scale, name = scaled(done if total is None else total, unit)
        of = "" if total is None else " of " + amount(total / scale)
        parts.append("%s%s %s" % (amount(done / scale), of, name))
    if rate is not None:
        scale, name = scaled(rate, unit)
        parts.append("%s %s/s" % (amount(rate / scale), name))
    if eta is not None:
        parts.append(duration(eta) + " left")
    text = words(progress.get("text"))
    return ", ".join(parts + [text] if text else parts)


def number(value: Any) -> float | None:
    """A number that can be shown: it comes from a host."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e18:
        return float(value)
    return None


def words(value: Any) -> str:
    """A short text that can be shown."""
    return plain(value).strip()[:100] if isinstance(value, str) else ""


def scaled(value: float, unit: str) -> tuple[float, str]:
    """A divisor and the unit that goes with it."""
    if unit != "bytes":
        return 1.0, unit
    for scale, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= scale:
            return scale, name
    return 1.0, "B"


def amount(value: float) -> str:
    """A number with a decimal, where that says something."""
    return "%d" % value if value == int(value) or value >= 1000 else "%.1f" % value


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 100:
        return "%.0f s" % seconds
    minutes = round(seconds / 60)
    return "%d min" % minutes if minutes < 100 else "%d h %d min" % divmod(minutes, 60)
