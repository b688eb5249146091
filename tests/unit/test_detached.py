# SPDX-License-Identifier: Apache-2.0
"""Work goes on without who asked for it, and ends with a result whoever is killed."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
from supervised import ROOT, until

from ansible.module_utils.firstlight import detached, paths, processes
from ansible.module_utils.firstlight.transaction import Busy, Lock

PUT_BACK = {"done": "put back"}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "journal" / "endpoint-chat.run.json"


@pytest.fixture
def gate(tmp_path):
    """A work that goes on until it is let go, and says what it is at."""
    class Gate:
        path = tmp_path / "gate"

        def work(self, report):
            with open(tmp_path / "begun", "a") as begun:
                begun.write("once\n")
            report({"text": "loading", "pid": os.getpid()})
            until(self.path.exists)
            return {"done": "worked"}

        def open(self):
            self.path.touch()

    made = Gate()
    yield made
    made.open()


def watch(file, work, run="1", wait_s=None, recover=lambda: PUT_BACK, limit_s=60):
    return detached.watch(str(file), run, wait_s, work, recover, limit_s)


def state(file):
    return json.loads(file.read_text())


def begun(file, gate, **how):
    """A work that goes on: its guard and its worker."""
    told = until(lambda: (seen := watch(file, gate.work, wait_s=0, **how))["progress"] and seen)
    assert told["finished"] is False
    return state(file)["pid"], told["progress"]["pid"]


def ended(file):
    """Wait until guard and worker have let go of everything."""
    until(lambda: not processes.is_alive(state(file)["pid"]))


def test_the_result_of_work_that_is_waited_for_is_returned_and_nothing_left(file):
    told = watch(file, lambda report: {"done": "worked"})
    assert told == {"finished": True, "progress": {}, "result": {"done": "worked"}}
    assert list(file.parent.iterdir()) == []


def test_it_is_done_by_another_process_in_a_session_of_its_own(file):
    told = watch(file, lambda report: {"pid": os.getpid(), "session": os.getsid(0)})["result"]
    assert told["pid"] not in (os.getpid(), told["session"])
    assert told["session"] != os.getsid(0)


def test_progress_is_told_and_a_later_call_watches_on(file, gate):
    guard, _ = begun(file, gate)
    told = watch(file, gate.work, wait_s=0)
    assert (told["finished"], told["progress"]["text"]) == (False, "loading")
    assert state(file)["pid"] == guard, "it was not begun again"
    assert detached.is_of(str(file), "1")
    assert not detached.is_of(str(file), "2")
    gate.open()
    told = watch(file, gate.work, wait_s=30)
    assert (told["finished"], told["result"]) == (True, {"done": "worked"})
    assert told["progress"]["text"] == "loading"


def test_who_asks_again_is_told_again(file, gate):
    """Of two that watch, one may be of a connection that is cut, and take the answer nowhere."""
    begun(file, gate)
    seen = []
    watchers = [threading.Thread(target=lambda: seen.append(watch(file, gate.work, wait_s=30)))
                for _ in range(2)]
    for one in watchers:
        one.start()
    gate.open()
    for one in watchers:
        one.join()
    seen.append(watch(file, gate.work, wait_s=0))
    assert [one["result"] for one in seen] == [{"done": "worked"}] * 3


def test_another_run_is_told_that_one_is_at_it_and_begins_when_it_has_ended(file, gate):
    guard, _ = begun(file, gate)
    with pytest.raises(Busy, match=r"another run is at it \(pid %d, since \d{4}-" % guard):
        watch(file, lambda report: {}, run="2")
    gate.open()
    ended(file)
    told = watch(file, lambda report: {"done": "another"}, run="2")
    assert told["result"] == {"done": "another"}


def test_one_that_is_killed_is_put_back_by_its_guard(file, gate, tmp_path):
    flag = tmp_path / "by"

    def recover():
        flag.write_text(str(os.getpid()))
        return PUT_BACK

    guard, worker = begun(file, gate, recover=recover)
    os.kill(worker, signal.SIGKILL)
    assert watch(file, gate.work, wait_s=30)["result"] == PUT_BACK
    assert flag.read_text() == str(guard), "nobody has to ask for that"


def test_when_the_guard_is_killed_too_who_watches_puts_back(file, gate):
    guard, worker = begun(file, gate)
    for pid in (guard, worker):
        os.kill(pid, signal.SIGSTOP)
    for pid in (guard, worker):
        os.kill(pid, signal.SIGKILL)
    told = watch(file, gate.work, wait_s=30)
    assert (told["finished"], told["result"]) == (True, PUT_BACK)
    assert watch(file, gate.work, wait_s=30, recover=dict)["result"] == PUT_BACK
    # And another run is free to begin.
    assert watch(file, lambda report: {"done": "another"}, run="2")["result"]["done"] == "another"


def test_a_work_goes_on_when_its_guard_alone_is_killed_and_ends_in_what_it_wrote(file, gate):
    guard, worker = begun(file, gate)
    os.kill(guard, signal.SIGKILL)
    until(lambda: not processes.is_alive(guard))
    gate.open()
    until(lambda: not processes.is_alive(worker))
    assert watch(file, gate.work, wait_s=30)["result"] == {"done": "worked"}


def test_one_that_takes_too_long_is_ended_and_put_back(file):
    def work(report):
        report({"pid": os.getpid()})
        time.sleep(5)
        return {"done": "worked"}

    told = watch(file, work, limit_s=0.3)
    assert told["result"] == PUT_BACK
    assert not processes.is_alive(told["progress"]["pid"])


@pytest.mark.parametrize("problem", [ValueError("no"), SystemExit(0), KeyboardInterrupt()])
def test_one_that_raises_is_put_back_and_does_not_go_on_in_its_callers_code(file, problem, capfd):
    def work(report):
        raise problem

    assert watch(file, work)["result"] == PUT_BACK
    assert capfd.readouterr() == ("", ""), "nobody reads there"


def test_a_recovery_that_fails_is_tried_again_by_who_watches(file):
    def work(report):
        raise ValueError

    caller = os.getpid()

    def recover():
        if os.getpid() != caller:
            raise OSError("not by the guard")
        return PUT_BACK

    assert watch(file, work, recover=recover)["result"] == PUT_BACK


def test_a_pid_that_is_another_ones_by_now_is_no_guard(file):
    """As after a reboot in the middle."""
    file.parent.mkdir()
    left = {"run": "1", "pid": os.getpid(), "ticks": 1, "since": "2026-01-01T00:00:00Z",
            "progress": {}, "result": None}
    file.write_text(json.dumps(left))
    assert watch(file, lambda report: {"done": "another"}, run="2")["result"]["done"] == "another"
    file.write_text(json.dumps(left))
    assert watch(file, lambda report: {})["result"] == PUT_BACK


WHOLE = {"run": "1", "pid": 1, "ticks": 1, "since": "", "progress": {}, "result": {"a": 1}}


@pytest.mark.parametrize("content", [
    "", "{", "[]", "null", "[" * 100000, *(json.dumps({**WHOLE, **change}) for change in (
        {"pid": "1"}, {"pid": True}, {"run": 1}, {"progress": None}, {"result": []},
        {"ticks": None}, {"since": 5}))])
def test_a_state_that_cannot_be_relied_on_counts_as_none(file, content):
    file.parent.mkdir()
    file.write_text(content)
    assert not detached.is_of(str(file), "1")
    assert watch(file, lambda report: {"done": "worked"})["result"] == {"done": "worked"}


def test_a_state_of_its_own_shape_is_relied_on(file):
    file.parent.mkdir()
    file.write_text(json.dumps(WHOLE))
    assert watch(file, lambda report: {})["result"] == {"a": 1}


def test_what_it_is_at_is_for_nobody_elses_eyes(file, gate):
    begun(file, gate)
    assert file.stat().st_mode & 0o777 == 0o600


def test_two_that_begin_at_once_begin_one(file, gate, tmp_path):
    file.parent.mkdir()
    with Lock(str(file) + ".lock", wait_s=0):
        seen = []
        both = [threading.Thread(target=lambda: seen.append(watch(file, gate.work, wait_s=0)))
                for _ in range(2)]
        for one in both:
            one.start()
    for one in both:
        one.join()
    assert [one["finished"] for one in seen] == [False, False]
    until(lambda: state(file)["progress"])
    assert (tmp_path / "begun").read_text() == "once\n"


def test_one_whose_work_another_run_has_followed_is_told(file, gate, monkeypatch):
    """It was held up for so long that it missed its own end."""
    begun(file, gate)
    alive, looked, seen = detached._alive, threading.Event(), []

    def looks(state):
        looked.set()
        return alive(state)

    def watches():
        with pytest.raises(Busy, match="this run's work has ended, and another run is at it"):
            watch(file, gate.work, wait_s=30)
        seen.append("told")

    monkeypatch.setattr(detached, "_alive", looks)
    watcher = threading.Thread(target=watches)
    watcher.start()
    assert looked.wait(30)
    paths.write(str(file), json.dumps({**state(file), "run": "2"}).encode())
    watcher.join()
    assert seen == ["told"]


def test_a_folder_that_cannot_be_written_is_told(file):
    file.mkdir(parents=True)
    with pytest.raises(OSError, match="was not started"):
        watch(file, lambda report: {})


CALLER = """
import os, sys, time
sys.path.insert(0, %r)
import ansible.module_utils
ansible.module_utils.__path__.append(%r)
from ansible.module_utils.firstlight import detached
kept = os.open(%r, os.O_RDWR | os.O_CREAT)
os.dup2(kept, 5000)
os.set_inheritable(5000, True)
sys.stdout.write("said once\\n")  # stays in the buffer for now

def work(report):
    report({"text": "at it", "cwd": os.getcwd(), "open": sorted(
        os.readlink("/proc/self/fd/" + one) for one in os.listdir("/proc/self/fd")
        if os.path.exists("/proc/self/fd/" + one))})
    while not os.path.exists(%r):
        time.sleep(0.02)
    return {}

while not detached.watch(%r, "1", 0, work, dict, 60)["progress"]:
    time.sleep(0.02)
"""


def test_nothing_of_its_callers_stays_open(file, gate, tmp_path):
    """A connection ends when its last holder lets go, and a file system can then be unmounted."""
    import resource

    script = CALLER % (os.path.dirname(__file__), str(ROOT / "module_utils"),
                       str(tmp_path / "held"), str(gate.path), str(file))
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    called = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, most), most)))
    said = called.stdout.read()  # it ends: nobody holds the other end any more
    called.wait(30)
    assert (said.decode(), called.returncode) == ("said once\n", 0)
    told = state(file)
    assert processes.is_alive(told["pid"]), "and the work goes on"
    assert set(told["progress"]["open"]) == {os.devnull}
    assert told["progress"]["cwd"] == "/"
    for pid in (told["pid"], *processes.children(told["pid"])):
        assert {os.readlink(one) for one in pathlib.Path("/proc/%d/fd" % pid).iterdir()} \
            == {os.devnull}
    gate.open()
    ended(file)
    assert state(file)["result"] == {}


def test_a_hangup_and_an_interrupt_end_neither_of_them(file, gate):
    guard, worker = begun(file, gate)
    for pid in (guard, worker):
        os.kill(pid, signal.SIGHUP)
        os.kill(pid, signal.SIGINT)
    time.sleep(0.1)
    gate.open()
    assert watch(file, gate.work, wait_s=30)["result"] == {"done": "worked"}
