# SPDX-License-Identifier: Apache-2.0
"""Work that goes on on the host when the one who asked for it is gone.

    found = detached.watch(file, run="4711", wait_s=20, work=switch, recover=go_back, limit_s=900)

The work is done by a process in a session of its own; beside it stands a guard. Where the work is
killed, or goes on past its limit, the guard puts back what was (the dead man's timer). Whoever
asked only reads what the two write into a file: how far it is, and how it ended. So a connection
that is cut, or a controller that dies, ends nothing; a later call of the same run watches on.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from typing import Any, Callable, Dict, Optional

from . import paths, processes
from .transaction import Busy, Lock

Told = Dict[str, Any]
Report = Callable[[Told], None]

POLL_S = 0.05


def watch(file: str, run: str, wait_s: Optional[float], work: Callable[[Report], Told],
          recover: Callable[[], Told], limit_s: float) -> Told:
    """Begin the work, or find it begun, and watch it.

    :param file: where its state is kept, ``….run.json`` in the journal's folder.
    :param run: who asks. The same run finds the work that it began; another one finds it taken.
    :param wait_s: seconds to watch; ``None``: until it ends, and then nobody asks again. Else the
        result stays for whoever asks again, as the first answer may not have come through.
    :param work: does it, and returns the result; given what to call with its progress.
    :param recover: puts back what a work that was killed left, and returns the result to give.
    :param limit_s: seconds after which the work is killed and what was before is put back.
    :returns: ``{finished, progress}`` and, when finished, ``result``.
    :raises Busy: another run is at it.
    """
    with Lock(file + ".lock", wait_s=10):
        state = _read(file)
        if state is None or state["run"] != run:
            if state is not None and state["result"] is None and _alive(state):
                raise Busy("another run is at it (pid %d, since %s)" % (
                    state["pid"], state["since"]))
            state = _begin(file, run, work, recover, limit_s)
    deadline = None if wait_s is None else time.monotonic() + wait_s
    while True:
        lives = _alive(state)
        # Read after that look: what they wrote last counts.
        state = _read(file) or state
        if state["run"] != run:
            raise Busy("this run's work has ended, and another run is at it (pid %d, since %s)" % (
                state["pid"], state["since"]))
        if state["result"] is None and not lives:
            # Both were killed, and nobody else puts back what was.
            state["result"] = recover()
            _write(file, state)
        if state["result"] is not None:
            if wait_s is None:
                _forget(file, run)
            return {"finished": True, "progress": state["progress"], "result": state["result"]}
        if deadline is not None and time.monotonic() >= deadline:
            return {"finished": False, "progress": state["progress"]}
        time.sleep(POLL_S)


def is_of(file: str, run: str) -> bool:
    """Whether there is work of this run to be watched."""
    state = _read(file)
    return state is not None and state["run"] == run


def _begin(file: str, run: str, work: Callable[[Report], Told], recover: Callable[[], Told],
           limit_s: float) -> Told:
    """Start the guard, which starts the work; returns the state as it was written first."""
    state: Told = {"run": run, "pid": 0, "ticks": 0, "since": time.strftime(
        "%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "progress": {}, "result": None}
    reading, writing = os.pipe()
    first = os.fork()
    if first == 0:
        # Twice, so that nobody has to wait for the guard's end.
        _quietly(lambda: os._exit(0) if os.fork() else _guard(
            file, state, work, recover, limit_s, writing))
    os.close(writing)
    os.waitpid(first, 0)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()  # the guard closes it when its state is on disk
    if not told:
        raise OSError("the process that would do the work was not started")
    return _read(file) or dict(state, pid=int(told), ticks=processes.start_ticks(int(told)) or 0)


def _guard(file: str, state: Told, work: Callable[[Report], Told], recover: Callable[[], Told],
           limit_s: float, writing: int) -> None:
    """Start the work, wait for its end, and see to what it leaves."""
    os.setsid()
    state = dict(state, pid=os.getpid(), ticks=processes.start_ticks(os.getpid()))
    _write(file, state)
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(b"%d" % os.getpid())
    _silence()
    worker = os.fork()
    if worker == 0:
        _quietly(lambda: _work(file, state, work))
    deadline = time.monotonic() + limit_s
    while os.waitpid(worker, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)
            break
        time.sleep(POLL_S)
    left = _read(file)
    if left is not None and left["run"] == state["run"] and left["result"] is None:
        _write(file, dict(left, result=recover()))


def _work(file: str, state: Told, work: Callable[[Report], Told]) -> None:
    def report(progress: Told) -> None:
        state["progress"] = progress
        _write(file, state)

    # Its guard alone must be waited for; a child of the work's own is its own affair.
    result = work(report)
    _write(file, dict(state, result=result))


def _quietly(task: Callable[[], Any]) -> None:
    """Run the rest of a forked process, which must never go on in its parent's code."""
    status = 1
    try:
        task()
        status = 0
    finally:
        os._exit(status)


def _silence() -> None:
    """Let go of everything of the caller's: a connection ends when its last holder lets go."""
    # What the caller has in its buffers it writes itself.
    null = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1, 2):
        os.dup2(null, handle)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):  # of the listing itself
                os.close(int(name))
    os.chdir("/")
    for one in (signal.SIGHUP, signal.SIGINT):
        signal.signal(one, signal.SIG_IGN)


def _alive(state: Told) -> bool:
    """Whether the guard lives: it outlives the work, and a pid alone may be another's by now."""
    return (processes.is_alive(state["pid"])
            and processes.start_ticks(state["pid"]) == state["ticks"])


def _read(file: str) -> Optional[Told]:
    """The state, or ``None`` when there is none that can be relied on."""
    try:
        found = json.loads(paths.read(file) or b"null")
        whole = (isinstance(found["run"], str) and type(found["pid"]) is int
                 and type(found["ticks"]) is int
                 and isinstance(found["since"], str) and isinstance(found["progress"], dict)
                 and (found["result"] is None or isinstance(found["result"], dict)))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return dict(found) if whole else None


def _write(file: str, state: Told) -> None:
    paths.write(file, json.dumps(state).encode(), mode=0o600)


def _forget(file: str, run: str) -> None:
    """Remove the state of this run; another may have begun since."""
    with Lock(file + ".lock", wait_s=10) as lock:
        state = _read(file)
        if state is None or state["run"] == run:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file)
            lock.forget()
