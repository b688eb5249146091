# SPDX-License-Identifier: Apache-2.0
"""What is decided of a way in, and what of a host stops it, without one."""

from __future__ import annotations

import hashlib

import pytest
from supervised import WAY_IN_PATHS, way_in_plan

from ansible.module_utils.firstlight.planning import judge, requests, way_in

ROOT = "/var/lib/firstlight"
KEY, OTHER = "firstlight-first-key", "firstlight-other-key"
SERVED = {"name": "chat", "model": "canary", "bind": "192.0.2.10", "api_key": KEY}
HASHES = {one: hashlib.sha256(one.encode()).hexdigest() for one in (KEY, OTHER)}


# Keys.


def test_keys_are_known_by_their_digests_only():
    assert way_in.endpoint_keys([
        SERVED, {"name": "code", "api_key": [OTHER, KEY, OTHER]}, {"name": "local"}]) == {
            "chat": [HASHES[KEY]], "code": sorted(HASHES.values()), "local": []}


@pytest.mark.parametrize("asked", [
    None, "chat", {"name": "chat"}, [None, 7, "x"], [{"name": ["chat"], "api_key": KEY}],
    [{"api_key": KEY}]])
def test_what_is_no_endpoint_has_no_keys(asked):
    assert way_in.endpoint_keys(asked) == {}


@pytest.mark.parametrize("key", ["short", KEY + " ", KEY + "\n", "\xe9" * 16, 7, {}, [KEY, 7]])
def test_what_is_no_key_lets_nobody_in(key):
    assert way_in.endpoint_keys([dict(SERVED, api_key=key)]) == {"chat": []}


# Ports.


@pytest.mark.parametrize(("port", "asked", "inner"), [
    (8000, None, (18000, 18001)), (1, None, (10001, 10002)), (54534, None, (64534, 64535)),
    (55534, None, (65534, 65535)), (55535, None, (45535, 45536)),
    (65535, None, (55535, 55536)), (8000, 9000, (9000,))])
def test_an_engine_behind_a_way_in_has_two_ports_or_the_one_that_is_asked_for(port, asked, inner):
    assert way_in.inner_ports(port, asked) == inner


def test_every_port_of_the_requests_is_looked_at():
    taken, wrong = requests.normalise([
        SERVED, {"name": "code", "model": "canary", "port": 7000},
        dict(SERVED, name="embed", port=6000, engine_port=6001)])
    assert wrong == []
    assert way_in.endpoint_ports(taken) == [6000, 6001, 7000, 8000, 18000, 18001]


# The service.


def test_on_loopback_there_is_no_way_in():
    plan = dict(way_in_plan(8000, 8000), way_in=False)
    assert way_in.way_in_service(plan, WAY_IN_PATHS, ROOT, "systemd", 0) == {}


@pytest.mark.parametrize(("bind", "listens", "url"), [
    ("192.0.2.10", "192.0.2.10:8000", "https://192.0.2.10:8000"),
    ("0.0.0.0", "0.0.0.0:8000", "https://0.0.0.0:8000"),
    ("2001:db8::1", "[2001:db8::1]:8000", "https://[2001:db8::1]:8000"),
    ("::", "[::]:8000 v4v6", "https://[::]:8000")])
def test_a_way_in_listens_where_it_is_asked_to(bind, listens, url):
    decided = way_in.way_in_service(way_in_plan(8000, 18000, bind), WAY_IN_PATHS, ROOT,
                                    "supervisor", 0)
    assert (decided["bind"], decided["url"]) == (listens, url)
    assert decided["engine"] == "127.0.0.1:18000"


@pytest.mark.parametrize(("uid", "user"), [(0, "haproxy"), (1000, "")])
def test_root_is_given_up_where_it_is_had(uid, user):
    plan = way_in_plan(8000, 18000)
    for manager in ("systemd", "supervisor"):
        decided = way_in.way_in_service(plan, WAY_IN_PATHS, ROOT, manager, uid)
        assert decided["user"] == user
        assert decided["name"] == "way-in-chat"
        assert ("-Ws" in decided["argv"]) is (manager == "systemd")


# The host.


def state(**changes):
    return {"root": ROOT, "manager": "systemd", "uid": 0, "ports": {}, "endpoints": {},
            "strangers": [], "python": {"version": "3.11.2", "venv": True}, "haproxy": "2.6.12",
            "openssl": True, **changes}


def judged(state, **request):
    taken, wrong = requests.normalise([{**SERVED, **request}])
    assert wrong == []
    return judge.against_host(taken, state, {"findings": []})


def holder(port, **changes):
    return {str(port): {"pid": 812, "command": "nginx", "user": "www-data", "endpoint": None,
                        "root": None, **changes}}


def serving(**plan):
    return {"chat": {
        "state": "running", "restarts": 0, "log": "", "way_in": {"state": "up"},
        "passport": {"plan": {
            "way_in": True, "port": 8000, "engine_port": 18000, "runtime": "docker",
            "url": "http://127.0.0.1:18000", **plan}}}}


def test_a_host_with_haproxy_has_no_finding():
    assert judged(state()) == []


@pytest.mark.parametrize(("lacks", "says"), [
    ({"haproxy": None}, ["haproxy"]), ({"openssl": False}, ["openssl"]),
    ({"haproxy": None, "openssl": False}, ["haproxy", "openssl"]), ({}, [])])
def test_root_brings_what_a_way_in_lacks_and_anyone_else_is_told(lacks, says):
    assert way_in.packages_missing(state(**lacks)) == says
    assert judged(state(**lacks)) == []
    found = judged(state(uid=1000, **lacks))
    assert [one["id"] for one in found] == ["way-in-without-programs"] * bool(says)
    for one in found:
        assert one["needs_root"]
        assert all(package in one["remedy"] for package in says)
        assert one["subject"] == "inference_endpoints[0] (chat).bind"


def test_loopback_needs_no_haproxy():
    assert judged(state(uid=1000, haproxy=None, openssl=False), bind="127.0.0.1",
                  api_key=None) == []


@pytest.mark.parametrize(("version", "old"), [
    ("2.2.9", True), ("2.5.14", True), ("2.6.12", False), ("3.0.11", False), ("10.1.0", False)])
def test_an_haproxy_that_knows_no_bearer_is_refused(version, old):
    assert [one["id"] for one in judged(state(haproxy=version))] == ["way-in-haproxy-old"] * old


@pytest.mark.parametrize(("port", "key"), [(8000, "port"), (18000, "engine_port"),
                                           (18001, "engine_port")])
def test_a_port_of_a_stranger_is_said_with_the_key_that_changes_it(port, key):
    [found] = judged(state(ports=holder(port)))
    assert found["id"] == "port-held"
    assert found["subject"] == "inference_endpoints[0] (chat)." + key
    assert "port %d is held by pid 812 of www-data" % port in found["found"]


ITS_OWN = {
    "a way in that says so": (holder(8000, endpoint="chat", root=ROOT), {}),
    "a way in that gave up root": (holder(8000, pid=None, command=None, user="haproxy"),
                                   serving()),
    "a container's port": (holder(18000, command="docker-proxy", user="root"), serving()),
    "the port of a container on loopback": (
        holder(8000, command="docker-proxy", user="root"),
        serving(way_in=False, engine_port=8000)),
}


@pytest.mark.parametrize("case", ITS_OWN)
def test_an_endpoint_may_hold_its_own_ports(case):
    ports, endpoints = ITS_OWN[case]
    assert judged(state(ports=ports, endpoints=endpoints)) == []


NOT_ITS_OWN = {
    "another endpoint's way in": (holder(8000, endpoint="code", root=ROOT), serving()),
    "a way in under another root": (holder(8000, endpoint="chat", root="/srv/other"), serving()),
    "somebody's where the way in is down": (
        holder(8000), {"chat": dict(serving()["chat"], way_in={"state": "failed"})}),
    "somebody's beside the way in": (holder(8000), serving()),
    "somebody's where the container is gone": (
        holder(18000), {"chat": dict(serving()["chat"], state="absent")}),
    "somebody's where nothing was proven": (
        holder(18000), {"chat": dict(serving()["chat"], passport=None, way_in={})}),
    "the other inner port": (holder(18001), serving()),
}


@pytest.mark.parametrize("case", NOT_ITS_OWN)
def test_what_is_not_its_own_is_said(case):
    ports, endpoints = NOT_ITS_OWN[case]
    assert "port-held" in [one["id"] for one in judged(state(ports=ports, endpoints=endpoints))]
