# SPDX-License-Identifier: Apache-2.0
"""A switch ends with the new endpoint proven or the old one back, whatever goes wrong."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import threading

import endpoint_info
import endpoint_switch
import pytest
from endpoint_host import fake, guard_of, healthy, loading, other_run, plan, starts
from fake_engine import serving
from supervised import FAKE_ENGINE, ROOT, fake_engine, free_port, kill, until

from ansible.module_utils.firstlight import canary, endpoint, host_endpoints, processes
from ansible.module_utils.firstlight.http_client import get
from ansible.module_utils.firstlight.transaction import Transaction

LAUNCHER = str(ROOT / "roles" / "inference_endpoint" / "files" / "llama_server.py")


# With the real engine ----------------------------------------------------------------------


@pytest.fixture
def real(host, engine_python, tmp_path):
    """Plans for the real engine, which serves the canary or what is in the place of its file."""
    host.oracle = canary.oracle()
    model = tmp_path / canary.GGUF
    model.write_bytes(canary.content(canary.GGUF))

    def make(path=model):
        port = free_port()
        argv = [engine_python, LAUNCHER, "--model", str(path), "--alias", "canary", "--port",
                str(port), "--ctx-size", "512", "--kv-unified", "--threads", "1"]
        return plan(port, argv, served_name="canary")

    return make


def test_a_real_engine_is_switched_proven_and_kept(host, real, tmp_path):
    first, second = real(), real()
    result = host.switched(first)
    assert result["reasons"] == ["it has no passport yet",
                                 "its service definition is not the plan's"]
    assert result["verdict"]["passed"] is True
    assert result["recovered"] is False
    passport = json.loads(host.passport())
    assert result["passport"] == passport
    assert passport["plan"]["hash"] == first["hash"]
    assert passport["endpoint"] == "chat"
    assert passport["memory"]["predicted_bytes"] == 123456789
    assert passport["memory"]["observed_bytes"] > canary.FILES[canary.GGUF].size
    assert set(passport["phases"]) == {"start_s", "port_s", "ready_s", "listed_s", "proof_s"}
    assert all(seconds > 0 for seconds in passport["phases"].values())
    assert passport["smoke"]["figures"]["tokens"] == 64
    check = json.loads((host.folder / "last_check.json").read_text())
    assert check["passed"] is True
    assert check["url"] == first["url"]

    was, pids = host.disk(), host.pids()
    again = host.switch(first)
    assert again["changed"] is False
    assert again["reasons"] == []
    assert again["passport"] == passport
    assert (host.disk(), host.pids()) == (was, pids)

    moved = host.switched(second)
    assert any("its plan changed" in reason for reason in moved["reasons"])
    assert json.loads((host.folder / "passports" / (first["hash"][:12] + ".json")).read_text()) \
        == passport
    assert healthy(second["url"])
    assert not healthy(first["url"])

    broken = tmp_path / "broken.gguf"
    broken.write_bytes(os.urandom(100000))
    kept = host.passport()
    failed = host.switch(real(broken))
    assert failed["failed"] is True
    assert "llama_server: cannot serve %s" % broken in failed["msg"], "the end of the log"
    assert "What served before is back on %s." % second["url"] in failed["msg"]
    assert host.passport() == kept
    assert host.switch(second)["changed"] is False


# With an engine that needs no model --------------------------------------------------------


def test_the_way_around_the_library_path_reaches_the_engine_and_the_passport(host):
    port = free_port()
    around = {"TRITON_LIBCUDA_PATH": os.path.join(host.root, "libraries")}
    host.switched({**plan(port, fake_engine(port)), "env": around})
    [pid] = host.pids()
    given = pathlib.Path("/proc/%d/environ" % pid).read_bytes().split(b"\0")
    assert ("TRITON_LIBCUDA_PATH=%s/libraries" % host.root).encode() in given
    assert json.loads(host.passport())["plan"]["env"] == around


def test_check_and_diff_tell_and_touch_nothing(host):
    first, second = fake(), fake()
    told = host.switch(first, check=True, diff=True)
    assert told["changed"] is True
    assert told["diff"]["before"] == ""
    assert told["diff"]["after"] == host.params(first)["definition"]
    assert not os.path.exists(host.root)

    host.switched(first)
    was, pids = host.disk(), host.pids()
    told = host.switch(second, check=True, diff=True)
    assert told["changed"] is True
    assert told["diff"]["before"] == host.params(first)["definition"]
    assert told["diff"]["after"] == host.params(second)["definition"]
    assert host.remove(check=True)["changed"] is True
    assert host.switch(first, check=True)["changed"] is False
    assert "diff" not in host.switch(first, diff=True)
    assert (host.disk(), host.pids()) == (was, pids)


@pytest.mark.parametrize("flags, how, says", [
    (["--fault", "garbage"], {}, "smoke-completion"),
    (["--fault", "loading"], {"start_timeout_s": 1}, "not ready within 1 s: HTTP 503"),
    (["--no-such-flag"], {}, "unrecognized arguments: --no-such-flag"),
])
def test_a_switch_that_fails_leaves_the_old_endpoint(host, flags, how, says):
    old = fake("--child")
    host.switched(old)
    kept = host.passport()
    failed = host.switch(fake(*flags, **how))
    assert failed["failed"] is True
    assert says in failed["msg"]
    assert "What served before is back on %s." % old["url"] in failed["msg"]
    assert host.passport() == kept
    chat = host.chat()
    assert (chat["state"] in ("starting", "running"), chat["plan"], chat["healthy"]) \
        == (True, old["hash"], True)
    assert host.switch(old)["changed"] is False


def test_a_first_switch_that_fails_leaves_no_service_and_no_passport(host):
    new = fake("--fault", "garbage")
    failed = host.switch(new)
    assert "smoke-completion" in failed["msg"]
    assert "Nothing proven served under this name before, so nothing was put back." in failed["msg"]
    assert host.pids() == set()
    assert not (host.folder / "passport.json").exists()
    chat = host.chat()
    assert (chat["state"], chat["passport"], chat["healthy"]) == ("absent", None, False)
    assert host.switched(fake())["recovered"] is False


def test_a_process_beside_ours_on_the_port_is_not_taken_for_the_engine(host):
    with serving() as url:
        port = int(url.rpartition(":")[2])
        failed = host.switch(fake(port=port))
        assert failed["failed"] is True
        assert "Address already in use" in failed["msg"]
        assert healthy(url), "what is not ours stays"
        assert host.info(port)["ports"][str(port)]["pid"] == os.getpid()


def test_when_the_old_endpoint_does_not_come_back_that_is_said(host, tmp_path):
    script = tmp_path / "engine.py"
    shutil.copy(FAKE_ENGINE, script)
    port = free_port()
    old = plan(port, [fake_engine(port)[0], str(script), "--port", str(port)])
    host.switched(old)
    script.write_text("raise SystemExit('the disk is gone')")
    failed = host.switch(fake("--fault", "garbage"))
    assert "What served before is NOT back on %s" % old["url"] in failed["msg"]
    assert host.chat()["healthy"] is False
    # Its files are back, and that is all that can be done: the next run is free to try again.
    assert host.switched(fake())["recovered"] is False


@pytest.mark.parametrize("content", ["[]", '{"plan": null}', '{"plan": {}}'])
def test_what_is_no_passport_counts_as_none(host, content):
    host.folder.mkdir(parents=True)
    (host.folder / "passport.json").write_text(content)
    assert "it has no passport yet" in host.switch(fake(), check=True)["reasons"]
    assert host.chat()["healthy"] is False
    failed = host.switch(fake("--no-such-flag"))
    assert "Nothing proven served under this name before" in failed["msg"]


def test_a_broken_passport_is_replaced(host):
    serves = fake()
    host.switched(serves)
    (host.folder / "passport.json").write_text("{")
    assert host.switched(serves)["reasons"] == ["it has no passport yet"]
    assert json.loads(host.passport())["plan"]["hash"] == serves["hash"]


def test_a_dead_engine_is_a_reason(host):
    serves = fake()
    host.switched(serves)
    host.service._api().stopProcessGroup("chat")
    chat = host.chat()
    assert (chat["state"], chat["pid"], chat["plan"], chat["healthy"]) \
        == ("stopped", None, None, False)
    assert host.switched(serves)["reasons"] == ["its engine is stopped"]
    assert host.chat()["healthy"] is True


# Runs that are killed, and runs beside each other -------------------------------------------


def killed_while_it_waits(host, wanted):
    """A run that gets SIGKILL, with all that it began, while its new engine is not ready."""
    with other_run(host, wanted) as run:
        until(lambda: starts(host, wanted))
        guard = guard_of(host)
        everyone = [run.pid, guard, *processes.children(guard)]
        assert len(everyone) == 3
        for pid in everyone:
            os.kill(pid, signal.SIGSTOP)  # none of them sees another's end
        for pid in everyone:
            os.kill(pid, signal.SIGKILL)
        run.join(30)
        assert run.exitcode == -signal.SIGKILL
        # The others are nobody's children here: their end comes when it comes.
        until(lambda: not any(map(processes.is_alive, everyone)))


def test_a_run_whose_watcher_is_killed_goes_on_by_itself(host, tmp_path):
    old, new = fake(), fake("--ready-after", "2")
    host.switched(old)
    with other_run(host, new) as run:
        until(lambda: starts(host, new))
        run.kill()
        run.join(30)
    until(lambda: json.loads(host.passport())["plan"]["hash"] == new["hash"])
    until(lambda: not host.journals())
    assert healthy(new["url"])
    assert host.switch(new)["changed"] is False


def test_a_work_that_is_killed_is_put_back_by_its_guard(host):
    old, new = fake(), loading()
    host.switched(old)
    kept = host.passport()
    with other_run(host, new) as run:
        until(lambda: starts(host, new))
        [worker] = processes.children(guard_of(host))
        run.kill()
        os.kill(worker, signal.SIGKILL)
        run.join(30)
    until(lambda: not host.journals())
    assert healthy(old["url"])
    assert host.passport() == kept
    assert host.switch(old)["changed"] is False


def test_a_work_that_takes_too_long_is_ended_and_put_back(host, monkeypatch):
    old = fake()
    host.switched(old)
    monkeypatch.setattr(endpoint_switch.endpoint_work, "limit_s", lambda params: 1.5)
    failed = host.switch(loading())
    assert "The work on chat was ended in the middle." in failed["msg"]
    assert "What served before is back on %s." % old["url"] in failed["msg"]
    assert host.switch(old)["changed"] is False


def test_a_later_call_of_the_same_run_watches_on(host):
    new = fake("--ready-after", "2")
    first = host.switch(new, run="1", wait_s=0.2)
    assert (first["finished"], first["changed"]) == (False, False)
    assert isinstance(first["progress"], dict)
    other = host.switch(new, run="2", wait_s=0.2)
    assert "another run is at it" in other["msg"]
    last = host.switch(new, run="1", wait_s=60)
    assert (last["finished"], last["changed"]) == (True, True)
    assert last["verdict"]["passed"] is True
    assert "it has no passport yet" in last["reasons"]
    # A connection may be cut while the answer is on its way: who asks again is told again.
    told = host.switch(new, run="1")
    assert (told["changed"], told["verdict"]) == (True, last["verdict"])
    assert host.switch(new, run="3")["changed"] is False


def test_after_a_killed_switch_the_next_run_goes_back_and_then_ahead(host):
    old, new = fake(), fake()
    host.switched(old)
    killed_while_it_waits(host, loading())
    told = host.switch(new, check=True)
    assert "an earlier switch of it was ended in the middle" in told["reasons"]
    result = host.switched(new)
    assert result["recovered"] is True
    assert json.loads(host.passport())["plan"]["hash"] == new["hash"]
    assert sorted(path.name for path in (host.folder / "passports").iterdir()) \
        == [old["hash"][:12] + ".json"]
    assert len(host.pids()) == 1
    assert host.switch(new)["changed"] is False


def test_after_a_killed_switch_the_old_plan_is_served_again_and_not_restarted_twice(host):
    old = fake()
    host.switched(old)
    kept = host.passport()
    killed_while_it_waits(host, loading())
    result = host.switched(old)
    assert result["recovered"] is True
    assert "verdict" not in result, "going back is all that was to do"
    assert host.passport() == kept
    assert host.chat()["healthy"] is True
    assert host.switch(old)["changed"] is False


def test_a_switch_killed_after_its_last_step_is_put_back_and_done_again(host, tmp_path):
    """Everything is as wanted then, except that the journal would undo it some other day."""
    old, new = fake(), fake()
    host.switched(old)
    forget, flag = Transaction._forget, tmp_path / "killed"

    def dies_once(self):
        if not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        forget(self)

    def dies_when_it_forgets():
        Transaction._forget = dies_once
        endpoint_switch.main()

    with other_run(host, new, dies_when_it_forgets) as run:
        run.join(60)
    assert flag.exists()
    assert host.chat()["plan"] == old["hash"]
    assert host.switched(new)["recovered"] is False
    assert host.switch(new)["changed"] is False


def test_a_killed_first_switch_can_be_removed(host):
    killed_while_it_waits(host, loading())
    result = host.remove()
    assert result["changed"] is True
    assert result["recovered"] is True
    assert host.pids() == set()
    assert host.remove()["changed"] is False


def test_two_switches_at_a_time_are_one_too_many(host):
    first = loading()
    with other_run(host, first):
        until(lambda: host.pids())
        second = host.switch(fake())
        assert second["failed"] is True
        assert "another run is at it (pid %d" % guard_of(host) in second["msg"]
        assert "nothing was changed" in second["msg"]
        assert host.chat()["plan"] == first["hash"]


def test_a_journal_that_cannot_be_read_is_said(host):
    journal = pathlib.Path(host.root) / "journal" / "endpoint-chat.json"
    journal.parent.mkdir(parents=True)
    journal.write_text("{")
    failed = host.switch(fake())
    assert failed["failed"] is True
    assert str(journal) in failed["msg"]
    assert host.pids() == set()


def test_a_killed_supervisord_leaves_an_orphan_that_the_next_run_ends(host):
    serves = fake("--child")
    host.switched(serves)
    # The engine and its child carry our markers.
    orphans = host.pids()
    assert len(orphans) == 2
    kill(host.service.daemon_pid())
    until(lambda: host.service.daemon_pid() is None)
    port = int(serves["url"].rpartition(":")[2])
    info = host.info(port)
    chat = info["endpoints"]["chat"]
    assert (chat["state"], chat["pid"], chat["plan"], chat["healthy"]) \
        == ("absent", None, None, False)
    assert set(chat["strays"]) == orphans
    assert chat["passport"]["plan"]["hash"] == serves["hash"]
    held = info["ports"][str(port)]
    assert (held["endpoint"], held["root"], held["pid"] in orphans) == ("chat", host.root, True)

    assert host.switched(serves)["reasons"] == ["its engine is absent"]
    assert host.pids() & orphans == set()
    info = host.info(port)
    chat = info["endpoints"]["chat"]
    assert (chat["plan"], chat["healthy"], chat["strays"]) == (serves["hash"], True, [])
    assert info["ports"][str(port)]["pid"] == chat["pid"]


# Removal -----------------------------------------------------------------------------------


def test_removal_ends_and_removes_and_says_what(host):
    host.switched(fake())
    pid, daemon = host.pids().pop(), host.service.daemon_pid()
    told = host.remove(check=True, diff=True)
    assert told["changed"] is True
    assert told["diff"]["after"] == ""
    assert host.pids() == {pid}

    result = host.remove()
    assert result["changed"] is True
    assert set(result["removed"]) == {
        "process %d of endpoint chat" % pid,
        "file %s" % host.service.files("chat")[0],
        "what we wrote in %s" % host.folder,
    }
    assert host.pids() == set()
    assert not host.folder.exists()
    assert host.info()["endpoints"] == {}
    assert host.service.daemon_pid() == daemon, "it is not the endpoint's alone"
    assert host.remove() == {"changed": False, "name": "chat", "reasons": [], "finished": True,
                             "invocation": result["invocation"]}


def test_removal_leaves_what_is_not_ours(host):
    host.switched(fake())
    letters = host.folder / "letters"
    letters.write_text("dear")
    host.remove()
    assert [path.name for path in host.folder.iterdir()] == ["letters"]
    assert host.remove()["changed"] is False


def test_removal_in_check_mode_says_what_it_would_remove(host):
    host.switched(fake())
    told = host.remove(check=True)["removed"]
    assert "file %s" % host.service.files("chat")[0] in told
    assert host.remove()["removed"][: len(told)] == told


def test_an_engine_that_hangs_is_started_again(host, monkeypatch):
    monkeypatch.setattr(endpoint, "HANG_SECONDS", 1)
    text = host.definition  # what is held up does not end by itself
    monkeypatch.setattr(host, "definition",
                        lambda plan: text(plan).replace("stopwaitsecs=30", "stopwaitsecs=1"))
    serves = fake()
    serves["start_timeout_s"] = 1  # after that long it had its time to start
    host.switched(serves)
    (pid,) = host.pids()
    until(lambda: processes.age_seconds(pid) > 1)
    assert host.switch(serves)["changed"] is False
    os.kill(pid, signal.SIGSTOP)
    again = host.switched(serves)
    assert "hangs" in again["reasons"][0]
    assert host.pids() and pid not in host.pids()


def killed(host, pid):
    """Kill an engine, and wait until its manager has started it again."""
    os.kill(pid, signal.SIGKILL)
    until(lambda: host.service.status("chat")["pid"] not in (None, pid))


def test_an_engine_that_its_manager_started_again_is_waited_for(host):
    serves = fake("--ready-after", "2")
    host.switched(serves)
    (pid,) = host.pids()
    killed(host, pid)
    assert not healthy(serves["url"])
    again = host.switch(serves)
    assert (again["changed"], again["reasons"]) == (False, [])
    assert healthy(serves["url"])
    assert len(host.pids() - {pid}) == 1


def test_one_that_dies_while_it_is_waited_for_is_started_anew(host):
    serves = fake("--ready-after", "4")
    host.switched(serves)
    (pid,) = host.pids()
    killed(host, pid)
    # Its manager takes it for one that runs, and has started it again before anybody looks.
    second = host.service.status("chat")["pid"]
    dies = threading.Timer(3, os.kill, (second, signal.SIGKILL))
    dies.start()
    again = host.switched(serves)
    dies.join()
    assert again["reasons"][0].startswith("The engine of chat died (")
    assert "log" not in again["reasons"][0]
    assert healthy(serves["url"])


def test_check_mode_does_not_wait(host):
    serves = fake("--ready-after", "2")
    host.switched(serves)
    (pid,) = host.pids()
    killed(host, pid)
    assert host.switch(serves, check=True)["changed"] is False
    assert not healthy(serves["url"])


def test_what_a_killed_engine_left_is_ended(host):
    serves = fake("--ready-after", "2", "--child")
    host.switched(serves)
    pid, before = host.service.status("chat")["pid"], host.pids()
    killed(host, pid)
    (left,) = before - {pid}
    assert left in host.pids()
    again = host.switched(serves)
    assert again["reasons"] == [
        "it does not get ready, and of an engine before it there is left: pid %d" % left]
    assert left not in host.pids()
    assert healthy(serves["url"])


def test_one_that_does_not_get_ready_again_is_started_anew(host, monkeypatch):
    monkeypatch.setattr(endpoint, "HANG_SECONDS", 1)
    text = host.definition
    monkeypatch.setattr(host, "definition",
                        lambda plan: text(plan).replace("stopwaitsecs=30", "stopwaitsecs=1"))
    serves = fake(start_timeout_s=10)
    host.switched(serves)
    (pid,) = host.pids()
    killed(host, pid)
    until(lambda: healthy(serves["url"]))
    (second,) = host.pids()
    os.kill(second, signal.SIGSTOP)
    again = host.switched(serves)
    assert "was not ready within 10 s" in again["reasons"][0]
    assert healthy(serves["url"])
    assert second not in host.pids()


@pytest.mark.parametrize("damage", [
    {"plan": [1]}, {"url": 5}, {"url": "http://192.0.2.1:80"}, {"url": "file:///etc/passwd"},
    {"url": "http://127.0.0.1:\u0668\u0660"},
    {"hash": ["x"]}, {"start_timeout_s": "soon"}, {"model": None}, {"phases": None},
    {"smoke": []}, {"endpoint": "../../evil"}, {"schema": 99},
])
def test_a_passport_of_another_shape_counts_as_none(host, damage):
    host.switched(fake())
    file = host.folder / "passport.json"
    passport = json.loads(file.read_text())
    for key, value in damage.items():
        (passport["plan"] if key in passport["plan"] and key != "plan" else passport)[key] = value
    file.write_text(json.dumps(passport))
    assert host.chat()["passport"] is None
    assert host.chat()["state"] in ("starting", "running")


def test_removal_of_an_orphan(host):
    host.switched(fake())
    pid = host.pids().pop()
    kill(host.service.daemon_pid())
    until(lambda: host.service.daemon_pid() is None)
    result = host.remove()
    assert "process %d of endpoint chat" % pid in result["removed"]
    assert host.pids() == set()
    assert host.service.daemon_pid() is None


# What the information says of a host --------------------------------------------------------


def test_of_an_empty_host(host):
    port = free_port()
    info = host.info(port)
    assert (info["endpoints"], info["ports"], info["manager"]) == ({}, {}, "supervisor")
    assert info["root"] == host.root
    assert info["uid"] == os.geteuid()
    assert not os.path.exists(host.root)


def test_of_libraries(host):
    missing = host.run_module(endpoint_info.main, root=host.root,
                              libraries=["libc.so.6", "libnonsense.so.9"])["missing_libraries"]
    assert missing == ["libnonsense.so.9"]


def test_an_unhealthy_engine_is_not_healthy(host, monkeypatch):
    """The process runs and its passport is there; only its health says otherwise."""
    serves = fake()
    host.switched(serves)
    monkeypatch.setattr(host_endpoints, "get", lambda url, timeout_s: get(url, timeout_s=0.3))
    pid = host.pids().pop()
    os.kill(pid, signal.SIGSTOP)
    try:
        chat = host.chat()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (chat["plan"], chat["healthy"]) == (serves["hash"], False)
    until(lambda: host.chat()["healthy"])
