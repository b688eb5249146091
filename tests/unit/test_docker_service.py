# SPDX-License-Identifier: Apache-2.0
"""The container that the definition names runs and no other, whatever the daemon does meanwhile."""

from __future__ import annotations

import os
import pathlib
import threading

import pytest
from endpoint_host import contained
from fake_docker import DROP
from fake_engine import serving
from supervised import compose, until

from ansible.module_utils.firstlight import docker_service
from ansible.module_utils.firstlight.docker_api import Api, Away, Refused
from ansible.module_utils.firstlight.planning.container import container_spec
from ansible.module_utils.firstlight.services import ServiceError

SAYS = ["sh", "-c", "echo begun; exec sleep 600"]


class Rig(docker_service.Docker):
    """A service of containers with what its tests do to it."""

    def __init__(self, docker, root, patience_s=10.0):
        super().__init__(str(root), Api(docker.socket, timeout_s=5), patience_s)
        self.docker = docker

    def make(self, argv=SAYS, name="chat", **how):
        """Make a container of an endpoint, and give its description."""
        spec = container_spec({**contained(argv=argv, **how), "name": name}, self.root, {})
        self.docker.make(spec["made"])
        return spec

    def define(self, spec, name="chat"):
        path = pathlib.Path(self.files(name)[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(compose(spec))
        return spec["name"]

    def state(self, container):
        return self.docker.containers[container]["State"]["Status"]

    def asked(self, path):
        return [call for call in self.docker.calls if call[1].endswith(path)]


@pytest.fixture
def rig(docker, tmp_path):
    return Rig(docker, tmp_path / "root")


def test_without_a_definition_nothing_is_there(rig):
    assert rig.wanted("chat") is None
    assert rig.status("chat") == {"state": "absent", "pid": None, "detail": "", "plan": None,
                                  "restarts": 0}
    assert (rig.pids("chat"), rig.log_tail("chat")) == ([], "")
    rig.follow("chat")
    with pytest.raises(ServiceError, match="The container None of chat is not there"):
        rig.start("chat")


def test_the_life_of_a_container(rig, docker):
    spec = rig.make()
    name = rig.define(spec)
    assert rig.wanted("chat") == name
    status = rig.status("chat")
    assert (status["state"], status["detail"], status["plan"], status["pid"]) \
        == ("stopped", "created", None, None)
    rig.follow("chat")
    status = rig.status("chat")
    assert (status["state"], status["detail"]) == ("running", "running")
    assert status["plan"] == spec["made"]["labels"]["firstlight.plan"]
    assert status["pid"] in rig.pids("chat")
    assert until(lambda: rig.log_tail("chat")) == "begun"

    rig.follow("chat")
    assert rig.status("chat")["pid"] == status["pid"], "it runs already"
    rig.follow("chat", anew=True)
    assert rig.status("chat")["pid"] not in (status["pid"], None)

    os.unlink(rig.files("chat")[0])
    rig.follow("chat")
    assert rig.state(name) == "exited"
    rig.follow("chat")
    assert rig.left_over() == rig.close_if_unused() == []


def test_the_definition_says_which_of_them_runs(rig):
    first, second = rig.make(), rig.make()
    other = rig.define(rig.make(name="code"), "code")
    rig.follow("code")
    rig.define(first)
    rig.follow("chat")
    name = rig.define(second)
    rig.follow("chat")
    assert (rig.state(first["name"]), rig.state(name)) == ("exited", "running")
    assert rig.state(other) == "running", "another endpoint is left alone"


def test_one_beside_the_other_until_the_others_are_stopped(rig):
    first, second = rig.make(), rig.make()
    rig.define(first)
    rig.follow("chat")
    rig.define(second)
    rig.start("chat")
    assert [rig.state(one["name"]) for one in (first, second)] == ["running", "running"]
    rig.stop_others("chat")
    assert [rig.state(one["name"]) for one in (first, second)] == ["exited", "running"]


@pytest.mark.parametrize("state", ["restarting", "paused"])
def test_what_neither_runs_nor_has_ended_is_ended_before_it_is_started(rig, docker, state):
    name = rig.define(rig.make())
    rig.follow("chat")
    pid = rig.status("chat")["pid"]
    docker.containers[name]["State"]["Status"] = state
    assert rig.status("chat")["state"] == {"restarting": "failed", "paused": "stopped"}[state]
    assert rig.status("chat")["plan"] is None, "it answers nobody"
    assert rig.pids("chat") == []
    rig.follow("chat")
    assert rig.state(name) == "running"
    assert rig.status("chat")["pid"] != pid


@pytest.mark.parametrize("state", ["running", "restarting", "paused"])
def test_another_that_is_alive_in_any_way_is_stopped(rig, docker, state):
    first, second = rig.make(), rig.make()
    rig.define(first)
    rig.follow("chat")
    docker.containers[first["name"]]["State"]["Status"] = state
    rig.define(second)
    rig.follow("chat")
    assert rig.state(first["name"]) == "exited"


DEAD = {"Status": "exited", "ExitCode": 1, "OOMKilled": False, "Error": ""}


@pytest.mark.parametrize(("state", "restarts", "kind", "detail"), [
    ({}, 0, "failed", "exit code 1"),
    ({"ExitCode": 137, "OOMKilled": True}, 0, "failed",
     "exit code 137, killed for want of memory"),
    ({"ExitCode": 137}, 0, "failed", "exit code 137, killed"),
    ({"Status": "restarting"}, 7, "failed", "exit code 1, started again 7 times"),
    ({"Status": "running"}, 2, "running", "running after 2 restarts"),
    ({"Status": "created", "ExitCode": 128, "Error": "port is already allocated"}, 0, "stopped",
     "exit code 128, port is already allocated"),
    ({"Status": "created"}, 0, "stopped", "created"),
    ({"Status": "dead"}, 0, "failed", "exit code 1"),
    ({"Status": "removing"}, 0, "stopped", "exit code 1"),
    ({"Status": "of a later release"}, 0, "failed", "exit code 1"),
])
def test_how_it_ended_is_told_in_a_few_words(rig, docker, state, restarts, kind, detail):
    name = rig.define(rig.make())
    docker.containers[name]["State"].update({**DEAD, **state})
    docker.containers[name]["RestartCount"] = restarts
    status = rig.status("chat")
    assert (status["state"], status["detail"], status["restarts"]) == (kind, detail, restarts)


def test_a_crash_loop_is_counted_and_ends_when_it_is_followed_no_more(rig, docker):
    name = rig.define(rig.make(["sh", "-c", "echo no; exit 3"]))
    rig.follow("chat")
    until(lambda: rig.status("chat")["restarts"] > 1)
    until(lambda: rig.status("chat")["state"] == "failed")
    assert rig.status("chat")["detail"].startswith("exit code 3, started again")
    os.unlink(rig.files("chat")[0])
    rig.follow("chat")
    assert rig.state(name) == "exited"


def test_one_that_is_gone_is_absent_and_cannot_be_started(rig, docker):
    name = rig.define(rig.make())
    docker.containers.clear()
    assert rig.status("chat")["state"] == "absent"
    assert rig.status("chat")["detail"] == "the container %s is not there" % name
    assert rig.inspect(name) is None
    assert rig.pids("chat") == []
    assert rig.log_tail("chat") == "The log of %s cannot be read: Docker: No such container: %s" % (
        name, name)
    with pytest.raises(ServiceError, match="The container %s of chat is not there: run site.yml"
                       % name):
        rig.follow("chat")


@pytest.mark.parametrize("text", [
    "", "services:\n", "    container_name:\n", "    container_name: Bad_Name\n",
    "container_name: at-the-margin\n", "    container_name: two words\n",
    "    container_name: ../../etc\n", "\xff"])
def test_a_definition_that_names_no_container_names_none(rig, text):
    path = pathlib.Path(rig.files("chat")[0])
    path.parent.mkdir(parents=True)
    path.write_bytes(text.encode("latin-1"))
    assert rig.wanted("chat") is None


def test_a_name_in_quotes_is_one(rig):
    path = pathlib.Path(rig.files("chat")[0])
    path.parent.mkdir(parents=True)
    path.write_text('services:\n  chat:\n    container_name: "firstlight-chat-1"\n')
    assert rig.wanted("chat") == "firstlight-chat-1"


# Logs.


def test_a_log_is_that_of_the_last_start_where_a_mark_was_made(rig):
    rig.define(rig.make(["sh", "-c", "echo pid $$; exec sleep 600"]))
    rig.follow("chat")
    first = until(lambda: rig.log_tail("chat"))
    mark = rig.log_mark("chat")
    assert rig.log_tail("chat", mark=mark) == ""
    rig.follow("chat", anew=True)
    second = until(lambda: rig.log_tail("chat", mark=mark))
    assert second != first
    assert rig.log_tail("chat") == "%s\n%s" % (first, second)
    assert rig.log_tail("chat", lines=1) == second


# What is cleared away.


def test_what_does_not_run_and_is_not_kept_goes(rig, docker):
    specs = [rig.make() for _ in range(4)]
    runs, kept, ended, created = (one["name"] for one in specs)
    for spec in (specs[2], specs[0]):
        rig.define(spec)
        rig.follow("chat")
    code = rig.make(name="code")["name"]
    docker.run("theirs", False)
    assert rig.discard("chat", [kept], waiting=()) == [ended]
    assert rig.discard("chat", [kept]) == [created]
    assert rig.discard("chat", [kept]) == []
    assert set(docker.containers) == {runs, kept, code, "theirs"}


def test_containers_of_another_root_are_not_ours(rig, docker, tmp_path):
    other = Rig(docker, tmp_path / "other")
    theirs = other.make()
    other.define(theirs)
    other.follow("chat")
    mine = rig.make()
    rig.follow("chat")
    assert rig.discard("chat", []) == [mine["name"]]
    assert rig.state(theirs["name"]) == "running"


def test_one_that_goes_by_itself_meanwhile_has_gone(rig, docker):
    name = rig.make()["name"]
    docker.say("DELETE", "/containers/.*", (404, {"message": "No such container"}))
    assert rig.discard("chat", []) == [name]


def test_an_image_goes_unless_a_container_has_it(rig, docker):
    docker.images.update({"example.org/a:1": "sha256:1", "example.org/b@sha256:00": "sha256:2"})
    rig.make(image="example.org/a:1")
    assert rig.discard_image("example.org/a:1") is False
    # The daemon knows it by its digest alone.
    assert rig.discard_image("example.org/b:1@sha256:00") is True
    assert rig.discard_image("example.org/b@sha256:00") is False
    assert list(docker.images) == ["example.org/a:1"]
    docker.say("DELETE", "/images/.*", (500, {"message": "disk is full"}))
    with pytest.raises(ServiceError, match="disk is full"):
        rig.discard_image("example.org/a:1")


def test_the_network_goes_with_the_last_container(rig, docker, tmp_path):
    docker.networks.add("firstlight")
    other = Rig(docker, tmp_path / "other")
    other.make()
    assert rig.drop_network() == []
    other.discard("chat", [])
    docker.say("DELETE", "/networks/firstlight", (403, {"message": "has active endpoints"}))
    assert rig.drop_network() == [], "what others put on it is theirs"
    assert rig.drop_network() == ["network firstlight"]
    assert rig.drop_network() == []


# A daemon that is away, busy, or says no.


def test_a_daemon_that_comes_back_in_time_is_waited_for(rig, docker):
    name = rig.define(rig.make())
    docker.stop()
    back = threading.Timer(0.7, docker.start)
    back.start()
    rig.follow("chat")
    back.join()
    assert rig.state(name) == "running"


def test_a_daemon_that_comes_back_and_refuses_is_told(rig, docker):
    name = rig.define(rig.make())
    docker.say("POST", "/containers/.*/start", (500, {"message": "network firstlight not found"}))
    docker.stop()
    back = threading.Timer(0.2, docker.start)
    back.start()
    with pytest.raises(ServiceError, match="network firstlight not found"):
        rig.follow("chat")
    back.join()
    rig.follow("chat")
    assert rig.state(name) == "running"


def test_an_answer_that_is_cut_off_is_asked_for_again(rig, docker):
    name = rig.define(rig.make())
    docker.say("POST", "/containers/%s/start" % name, DROP)
    docker.say("GET", "/containers/json", (200, b"{not JSON"))
    rig.follow("chat")
    assert rig.state(name) == "running"
    assert len(rig.asked("/start")) == 2


def test_a_daemon_that_stays_away_is_told(rig, docker):
    rig.define(rig.make())
    docker.stop()
    impatient = Rig(docker, rig.root, patience_s=0)
    for ask in (impatient.status, impatient.pids, impatient.start, impatient.stop_others,
                impatient.follow, impatient.ours):
        with pytest.raises(ServiceError, match="Docker does not answer") as told:
            ask("chat")
        assert isinstance(told.value.__cause__, Away)
    assert "cannot be read: Docker does not answer" in impatient.log_tail("chat")
    docker.start()
    assert impatient.status("chat")["state"] == "stopped"


@pytest.mark.parametrize(("method", "path"), [
    ("GET", "/containers/json"), ("GET", "/containers/.+/json"),
    ("POST", "/containers/.+/start"), ("POST", "/containers/.+/stop")])
def test_a_daemon_that_refuses_is_not_asked_again(rig, docker, method, path):
    first, second = rig.make(), rig.make()
    rig.define(first)
    rig.follow("chat")
    rig.define(second)
    docker.say(method, path, (500, {"message": "no space left on device"}))
    with pytest.raises(ServiceError, match="Docker: no space left on device") as told:
        rig.follow("chat")
    assert isinstance(told.value.__cause__, Refused)
    # And the next one does what this one could not.
    rig.follow("chat")
    assert [rig.state(one["name"]) for one in (first, second)] == ["exited", "running"]


def test_a_port_that_another_has_is_told(rig):
    with serving() as url:
        name = rig.define(rig.make(port=int(url.rpartition(":")[2])))
        with pytest.raises(ServiceError, match="port is already allocated"):
            rig.follow("chat")
        assert rig.status("chat")["state"] == "stopped"
        assert "port is already allocated" in rig.status("chat")["detail"]
        assert rig.state(name) == "created"
    rig.follow("chat")
    assert rig.state(name) == "running"
