# SPDX-License-Identifier: Apache-2.0
"""What a Python environment is, and whether packages in it work: asked of its own interpreter.

One process of that interpreter (:mod:`.environment_probe`) tells what it finds, step by step. A
package that crashes it, ends it or hangs leaves what was told before; another process goes on with
the others. Nothing of what comes back is believed further than its type and its size.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import selectors
import signal
import subprocess
import tempfile
import time
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

from ..findings import shown
from ..planning import wheel_failures
from . import environment_probe
from .pages import normal

Row = Dict[str, Any]
"""Of ``catalog/prebuilt_wheels.yml``; ``package``, ``imports``, ``torch``, ``kernel``,
``kernel_device``, ``tolerance`` and ``not_needed`` count here."""
Environment = Dict[str, Any]
Told = Dict[str, Any]

# Of a module that comes in an archive the file is gone when its process has let go of it.
SOURCE = inspect.getsource(environment_probe)
POLL_S = 0.1
SECONDS_TO_DIE = 2.0
MOST_ANSWERS = 1 << 20
# Of what is printed, the end.
KEPT_OUTPUT = 8192
# Reads after a process has ended; what it started may still print, without an end.
LAST_READS = 64
LAST_LINES = 3
MOST_WHY = 600
MOST_TEXT = 300
MOST_PATH = 4096
MOST_DEVICES = 64
NOT_ASKED = "it was not asked"
CLOSED = environment_probe.CLOSED
OLDEST = environment_probe.OLDEST

FACTS: Dict[str, Any] = {
    "implementation": "", "version": "", "abi_flags": "", "free_threaded": False, "machine": "",
    "bits": 0, "libc": {"name": "", "version": ""}, "prefix": "", "base_prefix": "", "purelib": "",
    "platlib": "", "managed": ""}
"""What the interpreter tells of itself, and what stands where it does not."""
SHA256 = re.compile(r"[0-9a-f]{64}")
MANAGED = ("conda", "distribution")
PATHS = ("prefix", "base_prefix", "purelib", "platlib")


def read(python: str, rows: Sequence[Row], limit_s: float,
         env: Optional[Mapping[str, str]] = None) -> Environment:
    """An environment, and which of the packages are in it and work.

    It writes nothing into the environment. An import may fill caches of the user's, as always.

    :param python: path of the interpreter, absolute; it is not resolved through links.
    :param rows: of the packages that are looked for; those that are installed are imported, and
        run their kernel.
    :param limit_s: seconds for each step: the interpreter's start, the import of torch, its look
        for devices, the imports of a package, its kernel. One that takes longer is ended.
    :param env: variables on top of this process's own; ``LD_LIBRARY_PATH`` of it counts.
    :returns: every key, whatever is wrong: ``state`` is ``ok``, ``missing``, ``broken`` or
        ``slow``, and ``why`` says why. ``facts_unread`` has the reason for each fact that is not
        known, by its name.
    :raises OSError: this host has no room for a temporary file.
    """
    asked = _Asked(python, rows, limit_s, env)
    asked.ask()
    return asked.environment()


def prove(python: str, row: Row, limit_s: float,
          env: Optional[Mapping[str, str]] = None) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """Whether a package is imported and its kernel runs; also where no record says it is there.

    :param python: path of the interpreter, absolute.
    :param limit_s: seconds for each step.
    :returns: ``imports`` and ``kernel`` as :func:`read` has them under ``installed``.
    :raises OSError: this host has no room for a temporary file.
    """
    asked = _Asked(python, [row], limit_s, env, always=True)
    asked.ask()
    environment = asked.environment()
    if environment["state"] != "ok":
        why = "%s: %s" % (python, environment["why"])
        return ({"state": "failed", "why": why, "seconds": None},
                _no_kernel(row, "it could not be imported"))
    return asked.imports(row), asked.kernel(row)


# To ask.


class _Asked:
    """An interpreter, and its answers so far."""

    def __init__(self, python: str, rows: Sequence[Row], limit_s: float,
                 env: Optional[Mapping[str, str]], always: bool = False) -> None:
        self._python, self._limit_s, self._always = python, limit_s, always
        # Twice the same package is once too many.
        self._rows = list({row["package"]: row for row in rows}.values())
        self._beside = sorted({normal(one["beside"]) for row in rows
                               for one in row.get("not_needed", [])})
        self._env = {**os.environ, "LC_ALL": "C", **(env or {})}
        self._told: Dict[str, Told] = {}
        self._gone: Dict[str, Tuple[str, str]] = {}
        self._broken: Tuple[str, str] = ("", "")

    def ask(self) -> None:
        """Ask until all is answered, or there is nobody to answer."""
        why = _no_program(self._python)
        if why[0]:
            self._broken = why
            return
        while True:
            before = len(self._told) + len(self._gone)
            rows = self._left()
            ended = _round(self._python, self._request(rows), self._limit_s, self._env, self._told)
            if ended.how in ("done", "again"):
                if ended.how == "again" and len(self._told) + len(self._gone) > before:
                    continue
                return
            step = ended.step or "python"
            if step in ("python", "packages") and not {"python", "packages"} <= set(self._told):
                self._broken = ("slow" if ended.how == "slow" else "broken", ended.why)
                return
            if step in ("python", "packages"):
                # It answered before, and does not now.
                for row in rows:
                    self._gone.setdefault("imports " + row["package"], (ended.how, ended.why))
                return
            self._gone[step] = (ended.how, ended.why)
            if not self._left():
                return

    def _request(self, rows: List[Row]) -> Told:
        return {
            "names": ["pip", "torch", *self._beside, *(normal(row["package"])
                                                       for row in self._rows)],
            "rows": [{"package": normal(row["package"]), "imports": row["imports"],
                      "kernel": row["kernel"], "kernel_device": row["kernel_device"],
                      "needs_torch": row["torch"] != "none"} for row in rows],
            "always": self._always, "torch": "torch" not in self._gone,
            "devices": "devices" not in self._gone}

    def _left(self) -> List[Row]:
        """The rows of which not all is answered that can be."""
        return [row for row in self._rows if self._is_left(row)]

    def _is_left(self, row: Row) -> bool:
        if "packages" not in self._told:
            return True
        name = normal(row["package"])
        if not (self._always or name in self._found()) or self._without_torch(row):
            return False
        if "imports " + name in self._gone:
            return False
        imports = self._told.get("imports " + name)
        if imports is None:
            return True
        return ("raised" not in imports and bool(row["kernel"])
                and "kernel " + name not in self._told and "kernel " + name not in self._gone)

    def _without_torch(self, row: Row) -> str:
        """Why a package that needs torch is not tried; empty where nothing is in its way."""
        if row["torch"] == "none":
            return ""
        torch = self._torch()
        if torch["state"] == "absent":
            return "torch, which it needs, is not installed"
        if torch["state"] != "ok":
            return "torch, which it needs, does not work: %s" % torch["why"]
        return ""

    def _found(self) -> Told:
        found = self._told["packages"].get("found")
        return found if isinstance(found, dict) else {}

    # What the answers say.

    def environment(self) -> Environment:
        """All of it, in the shape that :func:`read` returns."""
        said = self._told.get("python", {})
        unread: Dict[str, str] = {}
        facts = {name: _fact(name, said, empty, unread) for name, empty in FACTS.items()}
        state, why = self._broken
        if not state:
            state, why = _too_old(facts["version"])
        if not state and "packages" not in self._told:
            state, why = "broken", "it leaves out what is installed"
        environment: Environment = {"python": self._python, "state": state or "ok", "why": why,
                                    **facts}
        if environment["state"] != "ok":
            # Half an environment leads nobody anywhere.
            return {**environment, "writable": False, "why_not_writable": NOT_ASKED, "pip": "",
                    "torch": _torch_absent(NOT_ASKED), "facts_unread": {},
                    "installed": dict.fromkeys(row["package"] for row in self._rows),
                    "beside": dict.fromkeys(self._beside)}
        not_writable = _text(said.get("why_not_writable"), MOST_WHY)
        if not isinstance(said.get("why_not_writable"), str):
            not_writable = "it could not be seen whether it can be written"
        found = self._found()
        reasons = {**_mapping(said.get("unread")), **_mapping(self._told["packages"].get("unread"))}
        for name, reason in list(reasons.items())[:MOST_DEVICES]:
            unread[_text(name, MOST_PATH)] = _text(reason, MOST_TEXT)
        return {
            **environment,
            "writable": not not_writable,
            "why_not_writable": not_writable,
            "pip": _version(found.get("pip")),
            "torch": self._torch(),
            "installed": {row["package"]: self._installed(row) for row in self._rows},
            "beside": {name: _version(found.get(name)) or None for name in self._beside},
            "facts_unread": unread,
        }

    def _torch(self) -> Told:
        record = self._found().get("torch") if "packages" in self._told else None
        told = self._told.get("torch")
        torch = _torch_absent("")
        torch["version"] = _version(record)
        if "torch" in self._gone:
            torch["state"], torch["why"] = self._gone["torch"]
            return torch
        if told is None or told.get("absent") is True:
            if torch["version"]:
                torch.update(state="broken", why="a record says that torch %s is installed, and "
                             "there is none to import" % torch["version"])
            return torch
        if "version" not in told:
            torch["state"], torch["why"] = "broken", _raised(told)
            return torch
        torch.update(
            state="ok", version=_text(told["version"], MOST_TEXT),
            cuda=_text(told.get("cuda"), MOST_TEXT), hip=_text(told.get("hip"), MOST_TEXT),
            cxx11abi=told["cxx11abi"] if isinstance(told.get("cxx11abi"), bool) else None,
            seconds=_number(told.get("seconds")))
        torch["devices"], torch["why_no_devices"] = self._devices(torch)
        return torch

    def _devices(self, torch: Told) -> Tuple[List[Dict[str, str]], str]:
        told = self._told.get("devices", {})
        said = told.get("devices")
        devices = [{"name": _text(one.get("name"), MOST_TEXT),
                    "capability": _text(one.get("capability"), 16)}
                   for one in (said if isinstance(said, list) else [])[:MOST_DEVICES]
                   if isinstance(one, dict)]
        if devices:
            return devices, ""
        if "devices" in self._gone:
            return [], "looking for them: %s" % self._gone["devices"][1]
        if not torch["cuda"] and not torch["hip"]:
            return [], "torch %s is built for the CPU alone" % torch["version"]
        return [], _raised(told) if "raised" in told else "torch sees no GPU"

    def _installed(self, row: Row) -> Optional[Told]:
        record = self._found().get(normal(row["package"]))
        if not isinstance(record, dict):
            return None
        return {
            "version": _version(record), "location": _text(record.get("location"), MOST_PATH),
            "installer": _text(record.get("installer"), 40),
            "conda": record.get("conda") is True, "sha256": _sha256(record.get("sha256")),
            "imports": self.imports(row), "kernel": self.kernel(row)}

    def imports(self, row: Row) -> Told:
        """What became of the imports of a package."""
        step = "imports " + normal(row["package"])
        told = self._told.get(step)
        if step in self._gone:
            state, why = self._gone[step]
            return {"state": state, "why": why, "seconds": None}
        if told is None:
            why = self._without_torch(row) or "it was not tried"
            return {"state": "failed", "why": why, "seconds": None}
        if "raised" in told:
            why = "import %s: %s" % (_text(told.get("name"), MOST_TEXT), _raised(told))
            return {"state": "failed", "why": why, "seconds": None}
        return {"state": "ok", "why": "", "seconds": _number(told.get("seconds"))}

    def kernel(self, row: Row) -> Told:
        """What became of the kernel of a package."""
        step = "kernel " + normal(row["package"])
        if not row["kernel"]:
            return _no_kernel(row, "")
        if step in self._gone:
            state, why = self._gone[step]
            return {"state": state, "why": why, "error": None, "device": ""}
        told = self._told.get(step)
        if told is None:
            return _no_kernel(row, "it was not imported")
        if told.get("skipped") is True:
            gone = self._gone.get("devices", ("", ""))[1]
            return _no_kernel(row, "there is no GPU for it: %s" % (
                gone or self._torch()["why_no_devices"] or "torch is not installed"))
        device = _text(told.get("device"), MOST_TEXT)
        if "raised" in told:
            busy = wheel_failures.unusable(_messages(told))
            return {"state": "skipped" if busy else "failed", "why": _raised(told), "error": None,
                    "device": device}
        state, why = "ran", ""
        error = _number(told.get("error"))
        if error is None:
            state, why = "failed", "its result is no number that can be compared"
        elif not abs(error) <= row["tolerance"]:
            state, why = "failed", (
                "its result is %.3g away from the reference, and %g is allowed: it computes "
                "nonsense on this device" % (error, row["tolerance"]))
        return {"state": state, "why": why, "error": error, "device": device}


def _no_program(python: str) -> Tuple[str, str]:
    """Why nothing can be started there, by the path alone; empty where it may be."""
    if not os.path.isabs(python) or "\0" in python:
        return "broken", "%s is no absolute path" % shown(python)
    if not os.path.lexists(python):
        return "missing", "%s does not exist" % shown(python)
    if not os.path.exists(python):
        # Of a virtual environment whose Python was removed or replaced.
        with contextlib.suppress(OSError):
            return "broken", "%s is a link to %s, and its end does not exist: the Python that " \
                "the environment was made from is gone" % (shown(python),
                                                           shown(os.readlink(python)))
        return "broken", "%s cannot be reached" % shown(python)
    return "", ""


def _too_old(version: str) -> Tuple[str, str]:
    try:
        parts = tuple(int(part) for part in version.split(".")[:2])
    except ValueError:
        return "broken", "it tells no version of Python that can be read (%s)" % version
    if parts < OLDEST:
        return "broken", "it is Python %s, and %d.%d is the oldest that can be looked into" % (
            (version, *OLDEST))
    return "", ""


# What came back, judged.


def _fact(name: str, said: Told, empty: Any, unread: Dict[str, str]) -> Any:
    value = said.get(name)
    if name == "libc":
        libc = _mapping(value)
        return {key: _text(libc.get(key), 40) for key in ("name", "version")}
    if name == "managed":
        return value if value in MANAGED else empty
    if name in PATHS and isinstance(value, str) and len(value) > MOST_PATH:
        unread[name] = "a path of %d characters" % len(value)
        return empty
    if isinstance(value, str) and isinstance(empty, str):
        return _text(value, MOST_PATH if name in PATHS else MOST_TEXT)
    if isinstance(empty, bool):
        return value is True
    return value if value in (32, 64) else empty


def _mapping(value: Any) -> Told:
    return value if isinstance(value, dict) else {}


def _version(record: Any) -> str:
    return _text(_mapping(record).get("version"), 100)


def _sha256(value: Any) -> str:
    return value if isinstance(value, str) and SHA256.fullmatch(value) else ""


def _number(value: Any) -> Optional[float]:
    # The largest are no result, and some are too large for a float.
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300:
        return float(value)
    return None


def _text(value: Any, most: int) -> str:
    """A text in one line and of a length; what is none is empty."""
    text = shown(value[:4 * most]) if isinstance(value, str) else ""
    return text if len(text) <= most else text[:most // 2] + "…" + text[1 - most // 2:]


def _messages(told: Told) -> List[str]:
    raised = told.get("raised")
    return [one for one in (raised if isinstance(raised, list) else [])[:5] if isinstance(one, str)]


def _raised(told: Told) -> str:
    """What was raised, with what it means where that is known."""
    messages = _messages(told)
    said = " ".join(messages[0].split()) if messages else ""
    said = _text(said, MOST_TEXT) or "it failed and does not say why"
    means = wheel_failures.explained(messages)
    return "%s. It said: %s" % (means, said) if means else said


def _no_kernel(row: Row, why: str) -> Told:
    return {"state": "skipped" if row["kernel"] else "none", "why": why if row["kernel"] else "",
            "error": None, "device": ""}


def _torch_absent(why: str) -> Told:
    return {"state": "absent", "why": why, "version": "", "cuda": "", "hip": "", "cxx11abi": None,
            "seconds": None, "devices": [], "why_no_devices": why}


# One process.


class _Ended(NamedTuple):
    """How a process ended: ``done``, ``again``, ``crashed`` or ``slow``, in which step, and why."""

    how: str
    step: str
    why: str


class _Answers:
    """Reads the lines that come, as far as they are answers."""

    def __init__(self, told: Dict[str, Told]) -> None:
        self._told, self._half, self._bytes = told, b"", 0
        self._seen: Set[str] = set()
        self.at, self.end = "python", ""
        self.too_much = False

    def take(self, content: bytes) -> bool:
        """Read on; whether a step began or was answered."""
        self._bytes += len(content)
        self.too_much = self._bytes > MOST_ANSWERS
        if self.too_much:
            return False
        *lines, self._half = (self._half + content).split(b"\n")
        return sum(map(self._line, lines)) > 0

    def _line(self, line: bytes) -> bool:
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            return False
        step = _mapping(said).get("step")
        if not isinstance(step, str) or self.end:
            return False
        if "told" not in said:
            self.at = step
            new = step not in self._seen
            self._seen.add(step)
            return new
        if step in ("done", "again"):
            self.end = step
        elif step != self.at or not isinstance(said["told"], dict):
            return False
        elif step not in self._told:
            self._told[step] = said["told"]
        return True


def _round(python: str, request: Told, limit_s: float, env: Mapping[str, str],
           told: Dict[str, Told]) -> _Ended:
    """One process of the interpreter: add what it tells, until it is done or ends."""
    answers, says = os.pipe()
    try:
        with tempfile.TemporaryFile() as asked:
            asked.write(json.dumps(request).encode("ascii"))
            asked.seek(0)
            # In a session of its own, to end it with all that it started; in no folder of
            # anyone's, as some write where they are. Nothing is compiled to stay.
            process = subprocess.Popen(
                [python, "-I", "-B", "-c", SOURCE, str(says)], stdin=asked,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/", env=env,
                pass_fds=(says,), start_new_session=True)
    except OSError as problem:
        os.close(answers)
        return _Ended("broken", "python", "%s cannot be started: %s" % (
            shown(python), problem.strerror or problem))
    finally:
        os.close(says)
    reader, output = _Answers(told), bytearray()
    try:
        slow = not _listen(process, answers, reader, output, limit_s)
    finally:
        _end(process)
        os.close(answers)
        if process.stdout is not None:
            process.stdout.close()
    if reader.end:
        return _Ended(reader.end, "", "")
    said = _last_lines(bytes(output))
    means = wheel_failures.explained([said])
    said = '; the last that it printed: "%s"%s' % (
        said, " (%s)" % means if means else "") if said else ""
    if slow:
        return _Ended("slow", reader.at, "not done within %g s, and ended%s%s" % (
            limit_s, "" if process.returncode is not None
            else " in vain, as it waits in the kernel for a driver or a disk", said))
    if reader.too_much:
        return _Ended("crashed", reader.at, "it answers without an end")
    return _Ended("crashed", reader.at, _death(process.returncode, reader.at, told) + said)


def _listen(process: subprocess.Popen[bytes], answers: int, reader: _Answers, output: bytearray,
            limit_s: float) -> bool:
    """Read what it answers and prints, until it ends or is done; ``False`` at the limit."""
    assert process.stdout is not None
    printed = process.stdout.fileno()
    deadline = time.monotonic() + limit_s
    left = LAST_READS
    with selectors.DefaultSelector() as selector:
        for file in (answers, printed):
            os.set_blocking(file, False)
            selector.register(file, selectors.EVENT_READ)
        while not reader.end and not reader.too_much and left:
            # Seen without taking its status, so that nobody else gets its number before it is
            # ended with all that it started.
            ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            wait_s = max(0.0, min(POLL_S, deadline - time.monotonic()))
            events = selector.select(0 if ended else wait_s)
            if ended and not events:
                return True
            left -= 1 if ended else 0
            for key, _ in events:
                content = os.read(key.fd, 65536)
                if not content:
                    selector.unregister(key.fd)
                elif key.fd == printed:
                    output += content
                    del output[:-KEPT_OUTPUT]
                elif reader.take(content):
                    deadline = time.monotonic() + limit_s
            if not ended and time.monotonic() >= deadline:
                return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill it and all that it started; one that waits in the kernel is not waited for."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=SECONDS_TO_DIE)


def _death(status: Optional[int], step: str, told: Dict[str, Told]) -> str:
    if status == CLOSED:
        return "it closed the files of the process that imports it"
    if status is not None and status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = "signal %d" % -status
        means = wheel_failures.SIGNALS.get(name)
        return "ended by %s%s" % (name, " (%s)" % means if means else "")
    if step == "python" and "python" not in told:
        return "it answers nothing, as no Python 3.7 or newer would, and ended with status %s" \
            % status
    return "it ended the process with status %s" % status


def _last_lines(output: bytes) -> str:
    lines = [line.strip() for line in output.decode("utf-8", "replace").splitlines()]
    # What C++ says of an exception is two lines.
    return _text(" | ".join([line for line in lines if line][-LAST_LINES:]), MOST_TEXT)
