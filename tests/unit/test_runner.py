# SPDX-License-Identifier: Apache-2.0
"""A tool is run without a shell, in the C locale, for a limited time, and never raises."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import tracemalloc

import pytest

from ansible.module_utils.firstlight import runner
from ansible.module_utils.firstlight.runner import Ran, run


def python(code, **kwargs):
    return run([sys.executable, "-c", code], **kwargs)


def test_what_a_tool_says_and_its_status_come_back():
    ran = python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
    assert (ran.rc, ran.stdout, ran.stderr, ran.error) == (3, "out\n", "err\n", "")
    assert not ran.ok
    assert ran.complaint().endswith("(exit 3): err")


def test_a_tool_that_exits_with_0_is_ok():
    assert python("pass").ok


def test_no_shell_reads_the_words():
    words = ["$HOME", "a b", ";", "*", "`id`", ""]
    ran = run([sys.executable, "-c", "import sys; print(sys.argv[1:])", *words])
    assert ran.stdout.strip() == repr(words)


def test_a_tool_that_waits_for_input_gets_none_of_the_callers():
    mine, (ours, theirs) = os.dup(0), os.pipe()
    os.write(theirs, b"y\n")
    os.close(theirs)
    os.dup2(ours, 0)
    try:
        ran = python("import sys; print(repr(sys.stdin.read()))")
    finally:
        os.dup2(mine, 0)
        os.close(mine)
        os.close(ours)
    assert ran.stdout == "''\n"


def test_the_locale_is_c_whatever_the_caller_has(monkeypatch):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert python("import os; print(os.environ['LC_ALL'])").stdout == "C\n"


def test_variables_come_on_top_of_the_callers(monkeypatch):
    monkeypatch.setenv("FIRSTLIGHT_A", "a")
    code = "import os; print(os.environ['FIRSTLIGHT_A'], os.environ['FIRSTLIGHT_B'])"
    assert python(code, env={"FIRSTLIGHT_B": "b"}).stdout == "a b\n"


def test_a_tool_that_does_not_end_is_ended():
    ran = python("import time; time.sleep(600)", timeout_s=0.5)
    assert ran.rc is None
    assert not ran.ok
    assert ran.complaint().endswith(": no answer within 0.5 s")


def test_a_child_that_keeps_the_output_open_ends_with_its_parent(tmp_path):
    # Both live longer than the test may run.
    code = """
import pathlib, subprocess, time
child = subprocess.Popen(["sleep", "900"])
pathlib.Path(%r).write_text(str(child.pid))
time.sleep(900)
""" % str(tmp_path / "pid")
    ran = python(code, timeout_s=5)
    assert ran.error == "no answer within 5 s"
    wait_for_end((tmp_path / "pid").read_text())


@pytest.fixture
def interruptible():
    """Ctrl-C raises, also where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_tool_ends_when_the_run_is_interrupted(tmp_path, interruptible):
    code = "import os, pathlib, time; pathlib.Path(%r).write_text(str(os.getpid()))\n" \
           "time.sleep(900)" % str(tmp_path / "pid")
    timer = threading.Timer(2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        python(code, timeout_s=60)
    timer.join()
    wait_for_end((tmp_path / "pid").read_text())


def wait_for_end(pid):
    stat = pathlib.Path("/proc", pid, "stat")
    deadline = time.monotonic() + 10
    # Nobody may wait for an orphan: as a zombie it has ended too.
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, "it lives on"
        time.sleep(0.05)


@pytest.mark.parametrize("kind", ["missing", "a directory", "not executable"])
def test_a_tool_that_cannot_be_started_is_no_exception(tmp_path, kind):
    (tmp_path / "file").write_text("")
    (tmp_path / "file").chmod(0o644)
    tool = {"missing": "/nonexistent/tool", "a directory": str(tmp_path),
            "not executable": str(tmp_path / "file")}[kind]
    ran = run([tool, "--version"])
    assert ran.rc is None
    assert ran.complaint().startswith("%s --version: cannot be started: " % tool)


def test_output_that_is_no_text_is_still_an_answer():
    assert "\ufffd" in python("import sys; sys.stdout.buffer.write(b'\\xff\\xfe')").stdout


SAYS = "import os; [os.write(%d, b'x' * 2**20) for _ in range(64)]; os.write(%d, b'end')"


@pytest.mark.parametrize("file", [1, 2])
def test_of_a_tool_that_says_more_than_is_kept_the_end_is_kept(file):
    ran = python(SAYS % (file, file), timeout_s=60, most=1000)
    assert ran.ok
    said = (ran.stdout, ran.stderr)
    assert (said[file - 1], said[2 - file]) == ("x" * 997 + "end", "")


def test_what_is_said_without_an_end_takes_no_memory_without_an_end():
    assert runner.MOST_BYTES <= 2**28
    tracemalloc.start()
    try:
        python(SAYS % (1, 1), timeout_s=60, most=2**20)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_both_outputs_are_read_whatever_is_said_on_them_first():
    ran = python("import os; [os.write(2 - n % 2, b'x' * 2**16) for n in range(64)]",
                 timeout_s=60)
    assert (len(ran.stdout), len(ran.stderr)) == (2**21, 2**21)


def test_a_tool_that_closes_its_outputs_and_works_on_is_ended_at_the_limit():
    ran = python("import os, time; os.close(1); os.close(2); time.sleep(600)", timeout_s=2)
    assert (ran.rc, ran.error) == (None, "no answer within 2 s")


def test_a_complaint_takes_what_there_is():
    assert Ran(["t"], 1, "on stdout\n", " \n", "").complaint() == "t (exit 1): on stdout"
    assert Ran(["t"], 1, "", "", "").complaint() == "t (exit 1): nothing"


def test_a_tool_that_does_not_end_leaves_no_pipe_open(monkeypatch):
    def popen(*args, **kwargs):
        tools.append(start(*args, **kwargs))
        return tools[-1]

    tools, start = [], subprocess.Popen
    monkeypatch.setattr(runner.subprocess, "Popen", popen)
    assert python("import time; time.sleep(600)", timeout_s=0.3).rc is None
    tool, = tools
    assert tool.stdout.closed
    assert tool.stderr.closed


def test_a_tool_that_cannot_be_ended_is_not_waited_for(monkeypatch):
    """As one in the kernel that waits for a driver: SIGKILL reaches it when the driver lets it."""
    monkeypatch.setattr(runner, "SECONDS_TO_DIE", 0.1)
    killed = []
    monkeypatch.setattr(runner.os, "killpg", lambda *how: killed.append(how))
    ran = python("import time; print('x', flush=True); time.sleep(600)", timeout_s=0.5)
    (pid, number), = killed
    assert number == signal.SIGKILL
    assert (ran.rc, ran.error) == (None, "no answer within 0.5 s")
    assert pathlib.Path("/proc/%d" % pid).exists(), "it lives on, and the run has gone on"
    os.kill(pid, signal.SIGKILL)
    wait_for_end(str(pid))


def test_a_tool_that_has_ended_by_itself_at_the_limit_is_no_failure(monkeypatch):
    def gone(*_):
        kill(*_)
        raise ProcessLookupError

    kill = os.killpg
    monkeypatch.setattr(runner.os, "killpg", gone)
    assert python("import time; time.sleep(600)", timeout_s=0.3).error == "no answer within 0.3 s"
