# SPDX-License-Identifier: Apache-2.0
"""The one way in which our modules run a tool: an argv list, the C locale, a time limit."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
from time import monotonic
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

SECONDS_TO_DIE = 2.0
MOST_BYTES = 64 * 2**20
"""Bytes that are kept of what a tool says on each of its two outputs."""


class Ran(NamedTuple):
    """What a tool answered.

    ``rc`` is its exit status, or ``None`` when it could not be started or ran past its limit;
    ``error`` then says which.
    """

    argv: List[str]
    rc: Optional[int]
    stdout: str
    stderr: str
    error: str

    @property
    def ok(self) -> bool:
        """Whether it ran and exited with 0."""
        return self.rc == 0

    def complaint(self) -> str:
        """One line for an error message: the command and what it said."""
        said = self.error or self.stderr.strip() or self.stdout.strip() or "nothing"
        status = "" if self.rc is None else " (exit %d)" % self.rc
        return "%s%s: %s" % (" ".join(self.argv), status, said)


def run(argv: List[str], timeout_s: float = 10.0, env: Optional[Mapping[str, str]] = None,
        most: int = MOST_BYTES) -> Ran:
    """Run a tool and never raise for what the tool does.

    :param argv: program and arguments; no shell sees them.
    :param timeout_s: seconds after which it and its children are killed.
    :param env: variables on top of the process's own.
    :param most: bytes of ``stdout`` and of ``stderr``; of one that says more, these are the last.
    """
    environment: Dict[str, str] = dict(os.environ, LC_ALL="C")
    environment.update(env or {})
    try:
        # A session of its own, so that its children end with it at the limit.
        tool = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except OSError as problem:
        return Ran(argv, None, "", "", "cannot be started: %s" % problem.strerror)
    try:
        stdout, stderr = _said(tool, timeout_s, most)
    except subprocess.TimeoutExpired:
        _end(tool)
        return Ran(argv, None, "", "", "no answer within %g s" % timeout_s)
    except BaseException:  # an interrupted run must not leave it at work
        _end(tool)
        raise
    return Ran(
        argv,
        tool.returncode,
        stdout.decode("utf-8", "replace"),
        stderr.decode("utf-8", "replace"),
        "",
    )


def _said(tool: subprocess.Popen[bytes], timeout_s: float, most: int) -> Tuple[bytes, bytes]:
    """What it says until it has ended; ``communicate`` keeps all of it, whatever there is.

    :raises subprocess.TimeoutExpired: it is at work after so many seconds.
    """
    deadline = monotonic() + timeout_s
    pipes: List[Any] = [tool.stdout, tool.stderr]
    kept = {pipe: bytearray() for pipe in pipes}
    with selectors.DefaultSelector() as selector:
        for pipe in pipes:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            left_s = deadline - monotonic()
            if left_s <= 0:
                raise subprocess.TimeoutExpired(tool.args, timeout_s)
            for key, _ in selector.select(left_s):
                content = os.read(key.fd, 65536)
                if content:
                    kept[key.fileobj] += content
                    del kept[key.fileobj][:-most]
                else:
                    selector.unregister(key.fileobj)
    tool.wait(timeout=max(0.0, deadline - monotonic()))
    for pipe in pipes:
        pipe.close()
    return bytes(kept[pipes[0]]), bytes(kept[pipes[1]])


def _end(tool: subprocess.Popen[bytes]) -> None:
    """Kill it and its children, and close what was read from it.

    One that waits in the kernel for a driver ends when the driver lets it, and is not waited for.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(tool.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        tool.wait(timeout=SECONDS_TO_DIE)
    for pipe in (tool.stdout, tool.stderr):
        if pipe is not None:
            pipe.close()
