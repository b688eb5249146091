# SPDX-License-Identifier: Apache-2.0
"""A switch of containers ends with the new one proven or the old one back, whatever goes wrong."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import signal
import socket
import ssl
import tempfile
import threading

import endpoint_switch
import laid_snapshots
import pytest
from endpoint_host import Host, contained, fake, guard_of, healthy, other_run
from fake_docker import Docker
from fake_engine import serving
from supervised import free_port, short_root, until, way_in_plan, way_in_wanted

from ansible.module_utils.firstlight import (
    docker_api,
    docker_service,
    endpoint,
    processes,
    services,
)
from ansible.module_utils.firstlight.planning import way_in
from ansible.module_utils.firstlight.snapshots import layout


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
    check = json.loads((host.folder / "last_check.json").read_text())
    assert (check["passed"], check["url"]) == (True, first["url"])

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
def test_a_switch_that_fails_leaves_the_old_container_and_not_its_own(host, flags, how, says):
    old = contained()
    host.switched(old)
    kept = host.passport()
    failed = host.switch(contained(*flags, **how))
    assert failed["failed"] is True
    assert says in failed["msg"]
    assert "What served before is back on %s." % old["url"] in failed["msg"]
    assert host.passport() == kept
    assert host.running() == set(host.docker.containers) == {container_of(host, old)}
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


def test_an_engine_whose_log_says_that_all_is_lost_is_not_waited_for(host):
    argv = [*DIES[:2], DIES[2].replace("sys.exit(3)", "sys.stdout.flush(); "
                                       "import time; time.sleep(600)")]
    failed = host.switch(contained(argv=argv), signatures=[NO_KERNEL])
    assert "The engine of chat cannot start." in failed["msg"]
    assert "choose a newer engine_version" in failed["msg"]
    assert host.running() == set()


def test_how_far_it_is_is_read_from_its_log(host):
    line = "Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:01<00:01,  1.0s/it]"
    plan = contained(argv=["python3", "-c", "import time; print(%r, flush=True); time.sleep(600)"
                           % line], start_timeout_s=3)
    told = until(lambda: (said := host.switch(plan, run="1", wait_s=0))["progress"].get("total")
                 and said)
    assert (told["finished"], told["changed"]) == (False, False)
    assert told["progress"] == {"text": "loading weights", "done": 1, "total": 2, "unit": "shards"}
    failed = host.switch(plan, run="1", wait_s=60)
    assert "was not ready within 3 s" in failed["msg"]
    assert line in failed["msg"]
    # A connection may be cut while the answer is on its way.
    assert host.switch(plan, run="1", wait_s=0)["msg"] == failed["msg"]


def test_an_engine_that_hangs_is_started_again(host, docker, monkeypatch):
    monkeypatch.setattr(endpoint, "HANG_SECONDS", 1)
    plan = contained(start_timeout_s=1)  # after that long it had its time to start
    host.switched(plan)
    pid = host.chat()["pid"]
    until(lambda: processes.age_seconds(pid) > 1)
    assert host.switch(plan)["changed"] is False
    os.kill(pid, signal.SIGSTOP)
    assert "its engine hangs" in host.switched(plan)["reasons"][0]
    assert host.chat()["pid"] not in (None, pid)


def test_a_crash_loop_of_what_served_is_told(host, docker, tmp_path, monkeypatch):
    monkeypatch.setattr(endpoint, "HANG_SECONDS", 0.5)
    flag = tmp_path / "broken"
    port = free_port()
    script = ("import os, runpy, sys\nif os.path.exists(%r): sys.exit('the disk is gone')\n"
              "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')")
    engine = contained(port=port)["argv"]
    plan = contained(port=port, argv=[engine[0], "-c", script % str(flag), *engine[1:]])
    host.switched(plan)
    flag.touch()
    os.kill(docker.containers[container_of(host, plan)]["State"]["Pid"], signal.SIGKILL)
    until(lambda: docker.containers[container_of(host, plan)]["RestartCount"] >= endpoint.CRASHES)
    chat = until(lambda: (found := host.chat())["state"] == "failed" and found)
    assert (chat["plan"], chat["healthy"]) == (None, False)
    assert chat["restarts"] > 1
    assert "started again" in chat["detail"]
    assert "the disk is gone" in chat["log"]
    [reason] = host.switch(plan, check=True)["reasons"]
    # Whichever moment of it was met.
    assert "its engine is failed (exit code 1, started again" in reason or (
        "its engine hangs: no answer" in reason and "restarts)" in reason)
    failed = host.switch(plan)
    assert "the disk is gone" in failed["msg"]
    flag.unlink()
    until(lambda: host.chat()["healthy"])
    assert host.switch(plan)["changed"] is False


def test_a_port_that_another_has_is_told_and_the_other_stays(host):
    old = contained()
    host.switched(old)
    others = host.make(contained())
    with serving() as url:
        failed = host.switch(contained(port=int(url.rpartition(":")[2])))
        assert "port is already allocated" in failed["msg"]
        assert healthy(url)
    assert "What served before is back on %s." % old["url"] in failed["msg"]
    # It was never started, and neither was the one that another run is about to start.
    assert set(host.docker.containers) == {container_of(host, old), others}
    assert host.switch(old)["changed"] is False


def test_a_container_that_is_not_there_is_told(host, docker):
    plan = contained()
    name = host.make(plan)
    del docker.containers[name]
    failed = host.run_module(endpoint_switch.main, **host.params(plan))
    assert "The container %s of chat is not there: run site.yml" % name in failed["msg"]
    assert not (host.folder / "compose.yaml").exists()


def test_one_that_is_missing_is_told_before_what_serves_is_ended(host, docker):
    old, new = contained(), contained()
    host.switched(old)
    pid = docker.containers[container_of(host, old)]["State"]["Pid"]
    del docker.containers[host.make(new)]
    failed = host.run_module(endpoint_switch.main, **host.params(new))
    assert "is not there: run site.yml" in failed["msg"]
    assert docker.containers[container_of(host, old)]["State"]["Pid"] == pid


def test_a_native_endpoint_needs_no_daemon_behind_a_socket_that_is_left_over(
        host, docker, monkeypatch):
    path = docker.socket + ".old"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    monkeypatch.setattr(docker_api, "SOCKETS", (path,))
    host.switched(fake())
    assert host.info()["containers"] == []
    assert host.remove()["changed"] is True


def test_check_mode_tells_of_a_container_before_there_is_a_daemon(host, monkeypatch, tmp_path):
    monkeypatch.setattr(docker_api, "SOCKETS", (str(tmp_path / "none.sock"),))
    result = host.switch(contained(), check=True)
    assert result.get("changed") is True, result


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
    told = host.switch(docked, check=True, diff=True)["diff"]
    assert (told["before"], told["after"]) == (host.definition(native), host.definition(docked))
    assert told["before_header"] == host.service.files("chat")[0]
    assert told["after_header"] == str(host.folder / "compose.yaml")
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


def test_what_a_killed_run_had_made_and_not_started_goes_with_the_way_back(host):
    old = contained()
    host.switched(old)
    host.make(contained())
    (pathlib.Path(host.root) / "journal" / "endpoint-chat.json").write_text('{"entries": []}')
    result = host.switched(old)
    assert (result["recovered"], result["reasons"]) == (True, [])
    assert host.running() == set(host.docker.containers) == {container_of(host, old)}
    assert host.switch(old)["changed"] is False


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
    assert set(host.docker.containers) == {container_of(host, old)}
    assert healthy(old["url"])
    assert host.switch(old)["changed"] is False


# Beside --------------------------------------------------------------------------------------

needs_haproxy = pytest.mark.skipif(
    not os.access(way_in.PROGRAM, os.X_OK),
    reason="needs the distribution's package haproxy (%s)" % way_in.PROGRAM)
KEY = "firstlight-first-key-0123"


def behind(plan, port, beside=True):
    """That plan behind a way in on a port, and what the switch is given for that."""
    return {**plan, **way_in_plan(port, plan["engine_port"]), "beside": beside}


def switched_behind(host, plan, **how):
    return host.switch(plan, way_in=way_in_wanted(host.root, plan, [KEY]), **how)


@needs_haproxy
def test_the_old_one_serves_until_the_new_one_is_proven_beside_it(host, docker):
    port = free_port()
    old, new = behind(contained(), port), behind(contained("--ready-after", "1"), port)
    switched_behind(host, old)
    host.make(new)
    names = container_of(host, old), container_of(host, new)
    seen = []

    def look():
        until(lambda: names[1] in host.running())
        seen.append((host.running(), healthy(old["url"]), healthy(new["url"])))

    watcher = threading.Thread(target=look)
    watcher.start()
    result = switched_behind(host, new)
    watcher.join()
    assert result["changed"] is True, result
    assert seen == [(set(names), True, False)]
    assert host.running() == {names[1]}
    assert result["passport"]["service"]["way_in"]["plan"]["port"] == port
    assert KEY not in json.dumps(result), "who may come in is not for passports"
    assert host.chat()["way_in"]["state"] == "up"
    again = switched_behind(host, new)
    assert (again["changed"], again["reasons"]) == (False, [])


@needs_haproxy
def test_the_old_one_answers_whom_it_was_sent_before_it_ends(host):
    port = free_port()
    old, new = behind(contained(), port), behind(contained(), port)
    switched_behind(host, old)
    host.make(new)
    state = pathlib.Path(host.root) / "journal" / "endpoint-chat.run.json"
    with socket.create_connection(("127.0.0.1", old["engine_port"])), \
            other_run(host, new, way_in=way_in_wanted(host.root, new, [KEY])):
        until(lambda: state.exists() and "the old engine still answers 1" in state.read_text())
        assert host.running() == {container_of(host, old), container_of(host, new)}
    until(lambda: host.running() == {container_of(host, new)})


@needs_haproxy
def test_what_fails_beside_leaves_the_old_one_untouched(host, docker):
    port = free_port()
    old = behind(contained(), port)
    switched_behind(host, old)
    pid = docker.containers[container_of(host, old)]["State"]["Pid"]
    failed = switched_behind(host, behind(contained("--fault", "garbage"), port))
    assert "What served before is back on %s." % old["url"] in failed["msg"]
    assert docker.containers[container_of(host, old)]["State"]["Pid"] == pid
    assert host.running() == {container_of(host, old)}
    assert switched_behind(host, old)["changed"] is False


@needs_haproxy
@pytest.mark.parametrize("beside", [True, False])
def test_a_canary_comes_before_what_comes_beside(host, beside):
    """It takes the inner port of the plan for a moment, which the plan needs free again."""
    port = free_port()
    old = behind(contained(), port)
    switched_behind(host, old)
    new = behind(contained(), port, beside)
    canary = contained("--ready-after", "0.1", port=new["engine_port"])
    host.make(canary)
    result = switched_behind(host, new, trial=host.trial(canary))
    assert result.get("changed") is True, result
    assert host.running() == {container_of(host, new)}


@needs_haproxy
def test_a_way_in_that_cannot_run_is_found_before_anything_is_touched(host, docker):
    port = free_port()
    old = behind(contained(), port)
    switched_behind(host, old)
    pid = docker.containers[container_of(host, old)]["State"]["Pid"]
    new = behind(contained(), port, beside=False)
    wanted = way_in_wanted(host.root, new, [KEY])
    failed = host.switch(new, way_in={**wanted, "config": "no haproxy.cfg"})
    assert failed["failed"] is True
    assert docker.containers[container_of(host, old)]["State"]["Pid"] == pid
    assert switched_behind(host, old)["changed"] is False


@needs_haproxy
def test_the_passport_tells_a_certificate_that_was_made_anew(host):
    plan = behind(contained(), free_port())
    switched_behind(host, plan)
    (host.folder / "way_in" / "certificate.pem").unlink()
    result = switched_behind(host, plan)
    assert result["changed"] is True, result
    der = ssl.PEM_cert_to_DER_cert(
        (host.folder / "way_in" / "certificate.pem").read_text().partition("-----BEGIN EC")[0]
        .partition("-----BEGIN PRIVATE")[0])
    assert result["passport"]["service"]["way_in"]["certificate"].replace(":", "").lower() \
        == hashlib.sha256(der).hexdigest()
    assert switched_behind(host, plan)["changed"] is False


# Back a generation ---------------------------------------------------------------------------


def test_one_generation_back_and_another(host, docker):
    first, second, third = contained(), contained(), contained()
    for plan in (first, second, third):
        host.switched(plan)
    told = host.back(check=True, diff=True)
    assert (told["changed"], told["reasons"]) == (True, ["what served before is asked for"])
    assert told["diff"]["before"] == host.definition(third)
    assert told["diff"]["after"] == host.definition(second)

    result = host.back()
    assert (result["changed"], result["verdict"]["passed"]) == (True, True)
    assert result["passport"]["plan"]["hash"] == second["hash"]
    assert host.running() == {container_of(host, second)}
    assert json.loads((host.folder / "last_check.json").read_text())["url"] == second["url"]
    assert [one.name for one in (host.folder / "passports").glob("*.json")] \
        == [first["hash"][:12] + ".json"]
    undone = host.folder / "passports" / "undone" / (third["hash"][:12] + ".json")
    assert json.loads(undone.read_text())["plan"]["hash"] == third["hash"]
    # What it went back to is as wanted by its own plan.
    assert host.switch(second)["changed"] is False

    assert host.back()["passport"]["plan"]["hash"] == first["hash"]
    assert host.running() == {container_of(host, first)}
    for how in ({}, {"check": True}):
        none = host.back(**how)
        assert none["failed"] is True
        assert "chat has no older generation to go back to" in none["msg"]
    assert host.running() == {container_of(host, first)}

    # Ahead again: what was undone is of no use any more.
    host.switched(third)
    assert not undone.parent.exists()
    assert set(docker.containers) == {container_of(host, first), container_of(host, third)}


def test_a_way_back_that_fails_stays(host, docker):
    first, second = contained(), contained()
    host.switched(first)
    host.switched(second)
    kept = host.passport()
    del docker.containers[container_of(host, first)]
    failed = host.back()
    assert "The container %s of chat is not there" % container_of(host, first) in failed["msg"]
    assert "What served before is back on %s." % second["url"] in failed["msg"]
    assert host.passport() == kept
    assert [one.name for one in (host.folder / "passports").glob("*.json")] \
        == [first["hash"][:12] + ".json"], "it can be tried again"
    assert not list((host.folder / "passports").glob("undone/*.json"))
    assert host.switch(second)["changed"] is False


# What is kept --------------------------------------------------------------------------------


def test_what_no_generation_needs_any_more_goes_and_nothing_else(host, docker, tmp_path):
    root = pathlib.Path(host.root)
    caches = [root / "cache" / name for name in ("one", "two", "three", "four")]
    images = ["example.org/engine:%d" % number for number in range(4)]
    plans = [contained(cache=str(cache), image=image) for cache, image in zip(caches, images)]
    for plan, cache in zip(plans, caches):
        cache.mkdir(parents=True)
        (cache / "kernel").touch()
        host.switched(plan, keep=1)
    assert [cache.exists() for cache in caches] == [False, False, True, True]
    assert sorted(docker.images) == images[2:]
    assert set(docker.containers) == {container_of(host, plan) for plan in plans[2:]}
    assert [one.name for one in (host.folder / "passports").glob("*.json")] \
        == [plans[2]["hash"][:12] + ".json"]
    assert host.switch(plans[3])["changed"] is False


def test_a_cache_and_an_image_that_somebody_else_needs_stay(host, docker):
    """Of another endpoint's passport, of another plan of this run, of the user."""
    root = pathlib.Path(host.root)
    cache = [root / "cache" / name for name in ("named", "spared", "alone")]
    for one in cache:
        one.mkdir(parents=True)
    first = contained(cache=str(cache[0]), image="example.org/named:1")
    second = contained(cache=str(cache[1]), image="example.org/spared:1")
    third = {**contained(cache=str(cache[2]), image="example.org/theirs:1"),
             "asked": {"image": "example.org/theirs:1"}}
    other = root / "endpoints" / "code" / "passports" / "undone" / "a1.json"
    other.parent.mkdir(parents=True)
    other.write_text(json.dumps({"plan": first}))
    for plan in (first, second, third, contained()):
        host.switched(plan, keep=0, spared=[str(cache[1]), "example.org/spared:1"])
    assert [one.exists() for one in cache] == [True, True, False]
    assert {"example.org/named:1", "example.org/spared:1", "example.org/theirs:1"} \
        <= set(docker.images)


def test_a_snapshot_goes_with_the_last_generation_that_needs_it(host):
    cache = os.path.join(host.root, "models", "hub")
    plans = []
    for number in range(3):
        commit = str(number) * 40
        laid_snapshots.lay(cache, {"config.json": b"%d" % number}, commit=commit)
        made = contained()
        plans.append({**made, "hash": str(number) * 64, "model": {
            **made["model"], "path": layout.snapshot(cache, laid_snapshots.REPO, commit)}})
    for plan in plans:
        host.switched(plan, keep=1)
    assert [os.path.exists(one["model"]["path"]) for one in plans] == [False, True, True]
    # One that another plan of the run is to have stays, whatever became of its endpoint.
    host.switched(contained(), keep=0, spared=[plans[1]["model"]["path"] + "/config.json"])
    assert [os.path.exists(one["model"]["path"]) for one in plans] == [False, True, False]


@pytest.mark.parametrize("named", [
    "{top}/letters", "{root}/cache/..", "{root}/cache/", "{root}/cache/.", "{root}",
    "{root}/cache/../../letters", "{root}/cache/link", "{root}/models/mine", "/", "",
    "{root}/cache/in/two"])
def test_nothing_outside_is_removed_whatever_a_passport_names(host, named):
    top, root = pathlib.Path(host.root).parent, pathlib.Path(host.root)
    for folder in (top / "letters", root / "models" / "mine", root / "cache" / "in" / "two"):
        folder.mkdir(parents=True)
        (folder / "dear").touch()
    (root / "cache" / "link").symlink_to(top / "letters")
    plan = contained()
    host.switched(plan)
    file = host.folder / "passport.json"
    kept = json.loads(file.read_text())
    kept["plan"].update(cache=named.format(top=top, root=root), venv=named.format(
        top=top, root=root))
    file.write_text(json.dumps(kept))
    host.switched(contained(), keep=0)
    for folder in (top / "letters", root / "models" / "mine", root / "cache" / "in" / "two"):
        assert (folder / "dear").exists()
    assert (root / "cache" / "link").is_symlink()


# The canary first ----------------------------------------------------------------------------


def record(host, key):
    return pathlib.Path(host.root) / "canaries" / (key + ".json")


def tried(host, canary, key="a1b2", **how):
    params = host.params(state="trial")
    host.make(canary)
    return host.run_module(endpoint_switch.main, **{
        **params, "manager": "docker", "trial": host.trial(canary, key), **how})


def test_a_canary_is_served_proven_written_down_and_taken_away(host, docker):
    canary, plan = contained(), contained()
    name = host.make(plan)  # the role makes all containers first
    told = tried(host, canary, check=True, diff=True)
    assert (told["changed"], told["diff"]["before"]) == (True, told["diff"]["after"])
    assert not record(host, "a1b2").exists()

    result = tried(host, canary)
    assert (result["changed"], result["verdict"]["passed"]) == (True, True)
    assert result["reasons"] == ["its engine was not tried on these devices yet"]
    written = json.loads(record(host, "a1b2").read_text())
    assert written["plan"]["hash"] == canary["hash"]
    assert {"start_s", "ready_s"} <= set(written["phases"])
    assert host.info()["canaries"] == ["a1b2"]
    assert host.running() == set()
    assert not (host.folder / "passport.json").exists()
    assert host.journals() == []

    was = record(host, "a1b2").stat().st_mtime_ns
    assert tried(host, canary)["changed"] is False
    assert record(host, "a1b2").stat().st_mtime_ns == was
    # Another engine, driver or device is another thing to be proven.
    assert tried(host, contained(), "c3d4")["changed"] is True
    assert host.info()["canaries"] == ["a1b2", "c3d4"]

    assert name in docker.containers, "it waits for its switch"
    result = host.run_module(endpoint_switch.main, **host.params(plan))
    assert result["verdict"]["passed"] is True
    assert set(docker.containers) == {name}, "the canaries' are gone"


def test_a_canary_that_fails_is_named_and_nothing_is_written_down(host):
    failed = tried(host, contained("--fault", "garbage"))
    assert "The canary is not served by llama_cpp 1 on these devices, so chat was not tried." \
        in failed["msg"]
    assert "smoke-completion" in failed["msg"]
    assert not record(host, "a1b2").exists()
    assert host.running() == set()
    assert tried(host, contained())["changed"] is True


def test_a_switch_tries_its_canary_first_and_once(host):
    old, new = contained(), contained()
    host.switched(old)
    canary = contained()
    host.make(canary)
    assert tried(host, canary)["changed"] is False, "what serves is not stopped for a trial"
    assert host.running() == {container_of(host, old)}
    result = host.switched(new, trial=host.trial(canary))
    assert result["passport"]["plan"]["hash"] == new["hash"]
    assert record(host, "a1b2").exists()
    assert container_of(host, canary) not in host.docker.containers
    # It is not made again, so it could not be served again.
    host.switched(old, trial=host.trial(canary))


def test_a_switch_whose_canary_fails_leaves_the_old_container(host):
    old, new = contained(), contained()
    host.switched(old)
    canary = contained("--fault", "garbage")
    host.make(canary)
    failed = host.switch(new, trial=host.trial(canary))
    assert "The canary is not served" in failed["msg"]
    assert "so chat was not tried" in failed["msg"]
    assert "What served before is back on %s." % old["url"] in failed["msg"]
    assert host.running() == {container_of(host, old)}
    assert not record(host, "a1b2").exists()


# Placement -----------------------------------------------------------------------------------

HERE, THERE = ("GPU-2e3a1c00-0000-4000-8000-00000000000%d" % number for number in range(2))


def lists(*uuids):
    """What nvidia-smi -L says in a container."""
    return 0, "".join("GPU %d: NVIDIA L40S (UUID: %s)\n" % one for one in enumerate(uuids))


def test_a_container_is_asked_which_gpus_it_has(host, docker):
    plan = contained(gpus=[HERE])
    docker.inside[container_of(host, plan)] = lists(HERE)
    result = host.switched(plan)
    assert result["passport"]["placement"] == {
        "gpus": [HERE], "source": "nvidia-smi in the container", "reason": ""}
    assert host.chat()["gpus_seen"] == [HERE]
    assert host.switch(plan)["changed"] is False


def test_a_container_on_other_gpus_is_put_back(host, docker):
    old, new = contained(), contained(gpus=[HERE])
    host.switched(old)
    docker.inside[container_of(host, new)] = lists(THERE)
    failed = host.switch(new)
    assert "endpoint-on-other-gpus" in failed["msg"]
    assert THERE in failed["msg"]
    assert host.running() == {container_of(host, old)}


def test_a_canary_on_other_gpus_proves_nothing(host, docker):
    canary = contained(gpus=[HERE])
    docker.inside[container_of(host, canary)] = lists(THERE)
    failed = tried(host, canary)
    assert "The canary is not served" in failed["msg"]
    assert "endpoint-on-other-gpus" in failed["msg"]
    assert not record(host, "a1b2").exists()


def test_a_container_that_lost_its_gpus_is_started_again(host, docker):
    plan = contained(gpus=[HERE])
    name = container_of(host, plan)
    docker.inside[name] = lists(HERE)
    host.switched(plan)
    docker.inside[name] = (255, "Failed to initialize NVML: Unknown Error\n")
    docker.after_restart[name] = lists(HERE)
    assert host.chat()["gpus_seen"] == []
    result = host.switched(plan)
    assert "endpoint-on-other-gpus" in result["reasons"][0]
    assert host.chat()["gpus_seen"] == [HERE]


# Removal -------------------------------------------------------------------------------------


def test_removal_takes_all_that_was_its_own_and_says_what(host, docker):
    cache = pathlib.Path(host.root) / "cache" / "one"
    cache.mkdir(parents=True)
    first, second = contained(), contained(cache=str(cache), image="example.org/engine:2")
    host.switched(first)
    host.switched(second)
    docker.run("theirs", config={"Image": "example.org/engine:2"})
    pids = docker.lives[container_of(host, second)].pids()
    told = host.remove(check=True)
    assert set(docker.containers) == {"theirs", container_of(host, first),
                                      container_of(host, second)}
    result = host.remove()
    assert result["removed"][:len(told["removed"])] == told["removed"]
    assert set(result["removed"]) == {
        *("process %d of endpoint chat" % pid for pid in pids),
        "container %s" % container_of(host, first), "container %s" % container_of(host, second),
        "file %s" % (host.folder / "compose.yaml"), "what we wrote in %s" % host.folder,
        "folder %s" % cache, "image example.org/engine:1", "network firstlight"}
    assert set(docker.containers) == {"theirs"}
    assert set(docker.images) == {"example.org/engine:2"}, "another container has it"
    assert not host.folder.exists()
    assert host.info()["endpoints"] == {}
    assert host.remove()["changed"] is False


def test_another_root_keeps_the_network_and_its_containers(host, docker):
    host.switched(contained())
    docker.run("firstlight-chat-0", False, config={"Labels": {
        "firstlight.endpoint": "chat", "firstlight.root": "/var/lib/firstlight"}})
    assert "network firstlight" not in host.remove()["removed"]
    assert set(docker.containers) == {"firstlight-chat-0"}
    assert docker.networks == {"firstlight"}


def test_a_definition_alone_is_removed(host):
    host.folder.mkdir(parents=True)
    (host.folder / "compose.yaml").write_text("services: {}\n")
    assert host.remove()["changed"] is True
    assert not host.folder.exists()
    assert host.remove()["changed"] is False


def test_containers_without_anything_else_are_removed(host, docker):
    """What a first switch that failed has left."""
    host.switch(contained("--fault", "garbage"))
    host.make(contained())
    assert host.remove()["changed"] is True
    assert docker.containers == {}
    assert host.info()["endpoints"] == {}


# What the information says -------------------------------------------------------------------


def test_the_containers_of_a_host_and_who_has_its_ports(host, docker):
    plan = contained()
    host.switched(plan)
    docker.run("theirs", False)
    docker.containers["theirs"]["State"]["Status"] = "exited"
    info = host.info(plan["engine_port"])
    assert info["containers"] == sorted([
        {"name": container_of(host, plan), "endpoint": "chat", "root": host.root,
         "ports": [plan["engine_port"]]},
        {"name": "theirs", "endpoint": None, "root": None, "ports": []}],
        key=lambda one: one["name"])
    held = info["ports"][str(plan["engine_port"])]
    assert (held["endpoint"], held["root"]) == ("chat", host.root)
    chat = info["endpoints"]["chat"]
    assert (chat["state"], chat["plan"], chat["healthy"], chat["restarts"]) \
        == ("running", plan["hash"], True, 0)
    assert chat["pids"] == [chat["pid"]]
    assert (chat["gpus_seen"], chat["way_in"], chat["log"]) == (None, {}, "")


def test_a_container_that_was_stopped_by_hand_is_told(host, docker):
    plan = contained()
    host.switched(plan)
    docker_api.Api().post("/containers/%s/stop" % container_of(host, plan))
    chat = host.chat()
    assert (chat["plan"], chat["healthy"], chat["pid"]) == (None, False, None)
    assert host.switched(plan)["reasons"][0].startswith("its engine is failed (exit code")
    docker.containers.pop(container_of(host, plan))
    docker.lives.pop(container_of(host, plan)).stop()
    chat = host.chat()
    assert (chat["state"], chat["detail"]) \
        == ("absent", "the container %s is not there" % container_of(host, plan))


def test_without_a_daemon_containers_are_not_known_and_nothing_fails(host, docker):
    plan = contained()
    host.switched(plan)
    docker.stop()
    info = host.info()
    assert info["containers"] == []
    assert info["endpoints"]["chat"]["healthy"] is False
    docker.start()
    until(lambda: host.chat()["healthy"])
    assert host.switch(plan)["changed"] is False
