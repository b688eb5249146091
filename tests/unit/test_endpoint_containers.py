# SPDX-License-Identifier: Apache-2.0
"""A switch of containers ends with the new one proven or the old one back, whatever goes wrong."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import tempfile
import threading

import endpoint_info
import endpoint_switch
import pytest
from endpoint_host import Host, contained, fake, guard_of, healthy, other_run
from fake_docker import DROP, Docker
from fake_engine import serving
from supervised import free_port, short_root, until, way_in_plan, way_in_wanted

from ansible.module_utils.firstlight import docker_api, docker_service, processes, services


@pytest.fixture
def docker(monkeypatch):
    with tempfile.TemporaryDirectory(prefix="fl", dir="/tmp") as folder:  # a socket's path is short
        made = Docker(folder)
        monkeypatch.setattr(docker_api, "SOCKETS", (made.socket,))
        monkeypatch.setattr(docker_service.Docker.__init__, "__defaults__", (None, 10.0))
        made.start()
        yield made
        made.end()


@pytest.fixture
def host(supervisord, run_module, monkeypatch, docker):
    monkeypatch.setattr(services, "kind_for_this_host", lambda: "supervisor")
    with short_root() as root:
        yield Host(root, supervisord, run_module, docker)


def container_of(host, plan):
    return host.spec(plan)["name"]


def test_a_container_is_switched_proven_and_kept(host, docker):
    first, second = contained(), contained()
    result = host.switched(first)
    assert result["verdict"]["passed"] is True
    passport = json.loads(host.passport())
    assert result["passport"] == passport
    assert passport["service"]["manager"] == "docker"
    assert passport["service"]["container"] == container_of(host, first)
    assert passport["service"]["text"] == host.definition(first)
    assert passport["memory"]["observed_bytes"] > 2**20
    assert host.running() == {container_of(host, first)}

    was = host.disk()
    again = host.switch(first)
    assert (again["changed"], again["reasons"]) == (False, [])
    assert host.disk() == was

    moved = host.switched(second)
    assert any("its plan changed" in reason for reason in moved["reasons"])
    assert host.running() == {container_of(host, second)}
    # The older generation keeps its container, stopped.
    assert set(docker.containers) == {container_of(host, first), container_of(host, second)}
    assert healthy(second["url"])


def test_check_mode_touches_nothing(host, docker):
    plan = contained()
    told = host.switch(plan, check=True, diff=True)
    assert (told["changed"], told["diff"]["before"]) == (True, "")
    assert told["diff"]["after"] == host.definition(plan)
    assert not os.path.exists(host.root)
    assert docker.containers == {}


# What fails ---------------------------------------------------------------------------------


DIES = ["python3", "-c", "import sys; print('error: no kernel image is available'); sys.exit(3)"]
NO_KERNEL = {
    "id": "no-kernel-image", "engines": ["llama_cpp", "vllm"], "severity": "fatal",
    "pattern": "no kernel image is available", "found": "the card is too new for this engine",
    "wanted": "an engine with kernels for the card", "remedy": "choose a newer engine_version",
    "report": "2", "source": "a test"}


@pytest.mark.parametrize("flags, how, says", [
    (["--fault", "garbage"], {}, "smoke-completion"),
    (["--fault", "loading"], {"start_timeout_s": 1}, "not ready within 1 s: HTTP 503"),
    (["--no-such-flag"], {}, "unrecognized arguments: --no-such-flag"),
])
def test_a_switch_that_fails_leaves_the_old_container(host, flags, how, says):
    old = contained()
    host.switched(old)
    kept = host.passport()
    failed = host.switch(contained(*flags, **how))
    assert failed["failed"] is True
    assert says in failed["msg"]
    assert "What served before is back on %s." % old["url"] in failed["msg"]
    assert host.passport() == kept
    assert host.running() == {container_of(host, old)}
    assert host.chat()["healthy"] is True
    assert host.switch(old)["changed"] is False


def test_a_first_switch_that_fails_leaves_nothing_that_runs(host):
    failed = host.switch(contained("--fault", "garbage"))
    assert "Nothing proven served under this name before, so nothing was put back." in failed["msg"]
    assert host.running() == set()
    chat = host.info()["endpoints"].get("chat", {"passport": None, "state": "absent"})
    assert (chat["passport"], chat["state"]) == (None, "absent")
    assert host.switched(contained())["recovered"] is False


def test_an_engine_that_dies_is_told_with_its_log_and_what_is_known_of_it(host):
    old = contained()
    host.switched(old)
    failed = host.switch(contained(argv=DIES), signatures=[NO_KERNEL])
    assert "died (exit code 3" in failed["msg"]
    assert "choose a newer engine_version" in failed["msg"]
    assert "error: no kernel image is available" in failed["msg"]
    log = host.folder / "failed.log"
    assert "no kernel image is available" in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600, "prompts may be in it"
    host.switched(contained())
    assert not log.exists(), "it is about nothing that is there any more"


def test_an_engine_that_is_started_again_so_fast_that_it_seems_to_run_is_seen(host, monkeypatch):
    """The daemon starts what died at once, and a look at it may always find it running."""
    monkeypatch.setattr("fake_docker.BACKOFF_S", 0)
    argv = ["python3", "-c", "import time; print('loading'); time.sleep(0.3); exit(3)"]
    failed = host.switch(contained(argv=argv, start_timeout_s=20))
    assert "died" in failed["msg"]
    assert "loading" in failed["msg"]


def test_a_crash_loop_of_what_served_is_told(host, docker, tmp_path):
    flag = tmp_path / "broken"
    port = free_port()
    script = ("import os, runpy, sys\nif os.path.exists(%r): sys.exit('the disk is gone')\n"
              "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')")
    engine = contained(port=port)["argv"]
    plan = contained(port=port, argv=[engine[0], "-c", script % str(flag), *engine[1:]])
    host.switched(plan)
    flag.touch()
    os.kill(docker.containers[container_of(host, plan)]["State"]["Pid"], signal.SIGKILL)
    until(lambda: docker.containers[container_of(host, plan)]["RestartCount"] > 1)
    chat = until(lambda: (found := host.chat())["state"] == "failed" and found)
    assert (chat["plan"], chat["healthy"]) == (None, False)
    assert chat["restarts"] > 1
    assert "started again" in chat["detail"]
    assert "the disk is gone" in chat["log"]
    flag.unlink()
    assert "its engine is failed" in host.switched(plan)["reasons"][0]
    assert host.chat()["restarts"] == 0


def test_a_port_that_another_has_is_told_and_the_other_stays(host):
    old = contained()
    host.switched(old)
    with serving() as url:
        failed = host.switch(contained(port=int(url.rpartition(":")[2])))
        assert "port is already allocated" in failed["msg"]
        assert healthy(url)
    assert "What served before is back on %s." % old["url"] in failed["msg"]
    assert host.switch(old)["changed"] is False


def test_a_container_that_is_not_there_is_told(host, docker):
    plan = contained()
    name = host.make(plan)
    del docker.containers[name]
    failed = host.run_module(endpoint_switch.main, **host.params(plan))
    assert "The container %s of chat is not there: run site.yml" % name in failed["msg"]
    assert not (host.folder / "compose.yaml").exists()


def test_a_daemon_that_is_started_again_in_the_middle_is_waited_for(host, docker):
    """It ends its containers, and starts those that ran: whichever serves then is proven."""
    old, new = contained(), contained("--ready-after", "1")
    host.switched(old)
    seen = threading.Event()

    def restart():
        until(lambda: container_of(host, new) in host.running())
        docker._close()  # nobody is told that they end
        docker._server = None
        threading.Timer(1.2, seen.set).start()
        seen.wait(10)
        docker.start()

    host.make(new)
    beside = threading.Thread(target=restart)
    beside.start()
    result = host.switch(new)
    beside.join()
    assert result["changed"] is True, result
    assert host.chat()["healthy"] is True


def test_a_daemon_that_stays_away_is_told_and_the_next_run_goes_on(host, docker, monkeypatch):
    monkeypatch.setattr(docker_service.Docker.__init__, "__defaults__", (None, 0.5))
    old, new = contained(), contained()
    host.switched(old)
    host.make(new)
    docker._close()
    failed = host.run_module(endpoint_switch.main, **host.params(new))
    assert "Docker does not answer" in failed["msg"]
    docker.start()
    assert host.switched(new)["verdict"]["passed"] is True


def test_a_daemon_that_refuses_on_the_way_back_is_told_and_the_next_run_starts_it(host, docker):
    old = contained()
    host.switched(old)
    kept = host.passport()
    docker.say("POST", "/containers/%s/start" % container_of(host, old),
               (500, {"message": "cannot start: out of disk"}))
    failed = host.switch(contained("--fault", "garbage"))
    assert "smoke-completion" in failed["msg"]
    assert "What served before is NOT back on %s" % old["url"] in failed["msg"]
    assert host.passport() == kept
    assert host.journals() == [], "its files are back, and a next run is free to do what it is to"
    assert host.switched(old)["recovered"] is False
    assert host.chat()["healthy"] is True


def test_an_old_line_in_the_log_of_what_served_ends_no_wait_for_it(host, tmp_path):
    """It had a bad start once; its log still has that."""
    flag, port = tmp_path / "fine", free_port()
    script = ("import os, runpy, sys\nif not os.path.exists(%r):\n"
              "    print('no kernel image is available', flush=True)\n"
              "    open(%r, 'w').close()\n"
              "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')")
    engine = contained("--ready-after", "1.5", port=port)["argv"]
    old = contained(port=port, argv=[engine[0], "-c", script % (str(flag), str(flag)),
                                     *engine[1:]])
    host.switched(old)
    failed = host.switch(contained("--fault", "garbage"), signatures=[NO_KERNEL])
    assert "What served before is back on %s." % old["url"] in failed["msg"]


# From natively to a container and back -------------------------------------------------------


def test_from_natively_to_a_container_and_back(host):
    native, docked = fake(), contained()
    host.switched(native)
    moved = host.switched(docked)
    assert "its service definition is not the plan's" in moved["reasons"]
    assert host.pids() == set()
    assert host.running() == {container_of(host, docked)}
    assert host.chat()["manager"] == "docker"
    assert not healthy(native["url"])

    host.switched(native)
    assert host.running() == set()
    assert len(host.pids()) == 1
    assert host.chat()["manager"] == "supervisor"
    assert host.switch(native)["changed"] is False
    # And the same way as a way back.
    assert host.back()["passport"]["plan"]["hash"] == docked["hash"]
    assert (host.pids(), host.running()) == (set(), {container_of(host, docked)})


@pytest.mark.parametrize("old, new", [(fake, contained), (contained, fake)])
def test_what_fails_between_natively_and_a_container_is_put_back(host, old, new):
    served = old()
    host.switched(served)
    failed = host.switch(new("--fault", "garbage"))
    assert "What served before is back on %s." % served["url"] in failed["msg"]
    assert host.chat()["healthy"] is True
    assert (len(host.pids()), len(host.running())) == ((1, 0) if old is fake else (0, 1))
    assert host.switch(served)["changed"] is False


# Runs that are killed ------------------------------------------------------------------------


@pytest.mark.parametrize("again", [True, False])
def test_after_a_killed_switch_the_next_run_goes_back_and_then_ahead(host, again):
    """Ahead to what was being started then, whose container is there, or to something else."""
    old, new = contained(), contained("--ready-after", "1.5")
    host.switched(old)
    host.make(new)
    with other_run(host, new) as run:
        until(lambda: container_of(host, new) in host.running())
        guard = guard_of(host)
        everyone = [run.pid, guard, *processes.children(guard)]
        for pid in everyone:
            os.kill(pid, signal.SIGSTOP)  # none of them sees another's end
        for pid in everyone:
            os.kill(pid, signal.SIGKILL)
        run.join(30)
    assert host.chat()["half_done"] is True
    wanted = new if again else contained()
    # The role makes what is missing before it switches, by what it saw before that.
    host.make(wanted)
    result = host.run_module(endpoint_switch.main, **host.params(wanted))
    assert result.get("changed") is True, result
    assert result["recovered"] is True
    assert host.running() == {container_of(host, wanted)}
    assert host.switch(wanted)["changed"] is False


def test_a_work_that_is_killed_is_put_back_by_its_guard(host):
    old, new = contained(), contained("--fault", "loading")
    host.switched(old)
    kept = host.passport()
    host.make(new)
    with other_run(host, new) as run:
        until(lambda: container_of(host, new) in host.running())
        [worker] = processes.children(guard_of(host))
        run.kill()
        os.kill(worker, signal.SIGKILL)
        run.join(30)
    until(lambda: not host.journals())
    assert (host.running(), host.passport()) == ({container_of(host, old)}, kept)
    assert healthy(old["url"])
    assert host.switch(old)["changed"] is False
