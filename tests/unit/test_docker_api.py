# SPDX-License-Identifier: Apache-2.0
"""The daemon is asked over its socket, and whatever it does instead of an answer is one error."""

from __future__ import annotations

import time

import pytest
from fake_docker import DROP, HANG

from ansible.module_utils.firstlight import docker_api
from ansible.module_utils.firstlight.docker_api import Api, Away, Refused


@pytest.fixture
def api(docker):
    return Api(docker.socket, timeout_s=10)


def frame(text, stream=1):
    return bytes([stream, 0, 0, 0]) + len(text).to_bytes(4, "big") + text


def test_what_it_says_is_read(docker, api):
    docker.run("one")
    assert api.get("/version")["Version"] == docker.version
    assert api.post("/containers/one/exec", {"Cmd": ["true"]}) == {"Id": "one"}
    assert api.post("/containers/one/stop", t=1) is None
    assert api.post("/containers/one/stop", t=1) is None, "304: it has stopped already"
    api.delete("/containers/one")
    assert docker.containers == {}


def test_a_refusal_is_told_in_its_own_words(docker, api):
    with pytest.raises(Refused, match="No such container: none") as refused:
        api.get("/containers/none/json")
    assert refused.value.status == 404


@pytest.mark.parametrize(("body", "says"), [
    (b"busy", "busy"), (b"", "nothing"), (b"[]", r"\[\]"), (b'{"message": 5}', "5"),
    (b"[" * 100000, r"^\[{300}$"), (b"\xff", "\ufffd")])
def test_a_refusal_of_any_shape_is_told(docker, api, body, says):
    docker.say("GET", "/info", (500, body))
    with pytest.raises(Refused, match=says) as refused:
        api.get("/info")
    assert refused.value.status == 500


def test_where_there_is_no_daemon_that_is_told(docker, api, monkeypatch):
    docker.stop()
    with pytest.raises(Away, match=r"docker\.sock: .*No such file"):
        api.get("/info")
    monkeypatch.setattr(docker_api, "SOCKETS", ("/nonexistent/docker.sock", "/nonexistent/2"))
    with pytest.raises(Away, match="no Docker socket in /nonexistent/docker.sock or"):
        Api().get("/info")


def test_the_socket_that_is_there_is_taken(docker, monkeypatch):
    monkeypatch.setattr(docker_api, "SOCKETS", ("/nonexistent/docker.sock", docker.socket))
    assert Api().get("/_ping".replace("_ping", "version"))["ApiVersion"] == "1.45"


@pytest.mark.parametrize(("answer", "says"), [
    (DROP, "closed connection without response"), (HANG, "timed out"),
    (b"nonsense\r\n\r\n", "nonsense"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", "no JSON"),
    ((200, b"<html>"), "no JSON"), ((200, b"[" * 100000), "no JSON")])
def test_what_is_no_answer_is_one_kind_of_error(docker, answer, says):
    docker.say("GET", "/info", answer)
    with pytest.raises(Away, match=says):
        Api(docker.socket, timeout_s=0.2).get("/info")
    assert Api(docker.socket).get("/info")["LoggingDriver"] == "json-file", "the next one is fine"


def test_containers_are_found_by_their_labels_running_or_not(docker, api):
    for name, running, labels in (("a", True, {"k": "1"}), ("b", False, {"k": "1", "x": "y"}),
                                  ("c", True, {"k": "2"}), ("d", True, {})):
        docker.run(name, running, config={"Labels": labels})

    def names(*labels, **how):
        return [one["Names"][0] for one in api.containers(labels, **how)]

    assert names("k=1") == ["/a", "/b"]
    assert names("k=1", everything=False) == ["/a"]
    assert names("k") == ["/a", "/b", "/c"]
    assert names("k=1", "x=y") == ["/b"]
    assert len(names()) == 4


def test_a_name_is_one_part_of_a_path(docker, api):
    docker.images["registry.example.org:5000/a/b@sha256:00"] = "sha256:1"
    name = docker_api.quoted("registry.example.org:5000/a/b@sha256:00")
    assert "/" not in name
    assert api.get("/images/%s/json" % name)["Id"] == "sha256:1"


# Logs.


def test_the_end_of_a_log_is_read_without_its_frames(docker, api):
    docker.say("GET", "/containers/one/logs", (200, frame(b"a\n") + frame(b"b\n", 2)))
    assert api.log("one", 5) == "a\nb\n"


def test_the_lines_since_a_moment_are_read(docker, api):
    made = docker.make({
        "name": "one", "image": "i", "labels": {}, "published_ports": [], "entrypoint": ["sh"],
        "command": ["-c", "echo old; read x; echo new; read y"]})
    assert made["State"]["Status"] == "created"
    # Nothing comes in by its input, so it ends, is started again, and says the same.
    api.post("/containers/one/start")
    deadline = time.monotonic() + 30
    while api.log("one", 100).count("new") < 1:
        assert time.monotonic() < deadline
    moment = time.time()
    while api.log("one", 100, since=moment).count("new") < 1:
        assert time.monotonic() < deadline
    assert api.log("one", 100, since=moment).startswith("old\nnew")
    assert api.log("one", 1).count("\n") == 1


@pytest.mark.parametrize(("content", "text"), [
    (b"", b""), (frame(b"a") + frame(b"bc"), b"abc"),
    (frame(b""), b""), (frame(b"a") + frame(b"bcdef")[:-2], b"abcd"),
    (frame(b"a") + frame(b"b")[:5], b"a"),
    # A container with a terminal has none.
    (b"loading weights\n", b"loading weights\n"), (b"short", b""),
    (b"\x03\0\0\0\0\0\0\1x", b"\x03\0\0\0\0\0\0\1x")])
def test_frames_are_taken_off(content, text):
    assert docker_api.unframed(content) == text


def test_what_is_no_text_in_a_log_is_read_all_the_same(docker, api):
    docker.say("GET", "/containers/one/logs", (200, frame(b"a\xffb")))
    assert api.log("one", 5) == "a\ufffdb"
