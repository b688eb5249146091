# SPDX-License-Identifier: Apache-2.0
"""Tools of machines that tests do not have: ``replay`` answers with what was recorded on them.

A transcript is a file ``tests/fixtures/<machine>/<subject>.yml``, written by
``record_transcript.py``. Its header says what it was recorded on; each of its ``calls`` has the
``argv`` and either ``rc``, ``stdout`` and ``stderr``, or ``cannot_start`` (the name of the error,
as ``ENOENT``), or ``times_out: true``. The runner of our modules asks the transcript in the place
of the operating system, so its own code runs as always::

    def test_a_card_is_found(replay):
        replay("h200/nvidia-smi.yml")
        assert cards() == ["NVIDIA H200"]
"""

from __future__ import annotations

import errno
import os
import pathlib
import shlex
import subprocess

import pytest
import yaml

FIXTURES = pathlib.Path(__file__).resolve().parents[1] / "fixtures"
# No kernel gives it to a process or a group, so that ending it at its time limit ends nothing.
NO_PID = 2**31 - 1


def calls_of(name):
    """The calls of a transcript, named as ``machine/subject.yml``."""
    return yaml.safe_load((FIXTURES / name).read_text(encoding="utf-8"))["calls"]


class Replay:
    """Stands where the runner has the module ``subprocess``.

    :param sources: names of transcripts; or calls, as dicts, which a test makes up where nothing
        was recorded.
    :param ordered: whether every call must be made, once and in this order. Else each may be made
        at any time and as often as needed, or never, and of two calls with the same argv the one
        of the later source counts.
    """

    DEVNULL, PIPE = subprocess.DEVNULL, subprocess.PIPE
    TimeoutExpired = subprocess.TimeoutExpired

    def __init__(self, *sources, ordered=False):
        self.made = []
        self._names = [source for source in sources if isinstance(source, str)]
        self._ordered = ordered
        self._calls = []
        self._complaints = []
        for source in sources:
            self._add(calls_of(source) if isinstance(source, str) else [source], source)

    def Popen(self, argv, **_):  # noqa: N802 - it stands for subprocess.Popen
        """Start the tool, as far as its caller can tell."""
        self.made.append(list(argv))
        call = self._next(argv)
        if "cannot_start" in call:
            number = getattr(errno, call["cannot_start"])
            raise OSError(number, os.strerror(number), argv[0])
        return _Tool(call)

    def finish(self):
        """Fail for what was asked and not recorded, or recorded in order and not asked."""
        if self._ordered and not self._complaints and len(self.made) < len(self._calls):
            self._complaints.append("These calls were recorded and not made:\n%s" % _listed(
                self._calls[len(self.made):]))
        # Also when the code under test has swallowed it at the time.
        if self._complaints:
            raise AssertionError("\n".join(self._complaints))

    def _add(self, calls, source):
        for call in calls:
            if not self._ordered:
                assert sum(one["argv"] == call["argv"] for one in calls) == 1, (
                    "%s holds `%s` more than once: replay it with ordered=True"
                    % (source, shlex.join(call["argv"])))
                self._calls = [one for one in self._calls if one["argv"] != call["argv"]]
            self._calls.append(call)

    def _next(self, argv):
        if self._ordered:
            place = len(self.made) - 1
            expected = self._calls[place:place + 1]
            if expected and expected[0]["argv"] == list(argv):
                return expected[0]
            self._refuse(argv, "Call %d should be %s" % (
                place + 1, "`%s`" % shlex.join(expected[0]["argv"]) if expected
                else "none: all that was recorded has been made"))
        for call in self._calls:
            if call["argv"] == list(argv):
                return call
        return self._refuse(argv, "It was not recorded")

    def _refuse(self, argv, why):
        self._complaints.append(
            "A tool was called that the transcript does not answer:\n  %s\n%s. There is, from %s:\n"
            "%s\nTo record it, on such a machine:\n"
            "  python3 tests/rig/record_transcript.py %s -- %s" % (
                shlex.join(argv), why, ", ".join(self._names) or "the test", _listed(self._calls),
                "tests/fixtures/%s" % (self._names[-1] if self._names else "MACHINE/SUBJECT.yml"),
                shlex.join(argv)))
        raise AssertionError(self._complaints[-1])


class _Tool:
    """A process that has answered, or never will."""

    pid = NO_PID
    stdout = stderr = None

    def __init__(self, call):
        self._call = call
        self.returncode = call.get("rc")

    def wait(self, timeout):
        """It has been ended."""

    def communicate(self, timeout):
        if "times_out" in self._call:
            raise subprocess.TimeoutExpired(self._call["argv"], timeout)
        return self._call.get("stdout", "").encode(), self._call.get("stderr", "").encode()


def said(tool, timeout_s, _):
    """What a tool of a transcript says, in place of what is read from a real one."""
    return tool.communicate(timeout_s)


def _listed(calls):
    return "\n".join("  " + shlex.join(call["argv"]) for call in calls) or "  nothing"


@pytest.fixture
def replay(monkeypatch):
    """Let the tools of this test answer from transcripts: ``replay(*sources, ordered=False)``."""
    from ansible.module_utils.firstlight import runner

    started = []

    def start(*sources, ordered=False):
        started.append(Replay(*sources, ordered=ordered))
        monkeypatch.setattr(runner, "subprocess", started[-1])
        monkeypatch.setattr(runner, "_said", said)
        return started[-1]

    yield start
    for one in started:
        one.finish()
