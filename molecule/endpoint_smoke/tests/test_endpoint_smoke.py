# SPDX-License-Identifier: Apache-2.0
"""Real engines are proven; each server that only looks like one is found out by its check alone."""

import json
import pathlib

import pytest
import yaml

SERVERS = yaml.safe_load(
    (pathlib.Path(__file__).parents[1] / "files" / "servers.yml").read_text(encoding="utf-8"))
# Of every proof of a canary with a chat template.
CHECKS = ["health", "model-listed", "first-token", "completion", "repeats", "streaming", "chat",
          "chat-streaming", "usage", "structured-output", "too-long", "parallel"]


@pytest.fixture
def name(host):
    return host.backend.get_hostname()


def verdict(host, root, endpoint):
    return json.loads(
        host.file("%s/endpoints/%s/last_check.json" % (root, endpoint)).content_string)


def test_a_real_engine_is_proven(host):
    found = verdict(host, "/var/lib/firstlight", "demo")
    assert found["passed"] and found["findings"] == []
    assert [one["id"] for one in found["checks"]] == CHECKS


def test_the_switch_proved_it_by_the_same_checks(host):
    passport = json.loads(
        host.file("/var/lib/firstlight/endpoints/demo/passport.json").content_string)
    assert all(one["passed"] for one in passport["smoke"]["checks"])
    assert [one["id"] for one in passport["smoke"]["checks"]] == CHECKS


def test_what_its_log_said_was_changed_once(host, name):
    """The first attempt failed for want of cache; what the engine says fits is served since."""
    passport = json.loads(
        host.file("/var/lib/firstlight/endpoints/demo/passport.json").content_string)
    plan, attempts = passport["plan"], passport["attempts"]
    if name != "vllm12":
        assert (plan["adjustments"], len(attempts)) == ([], 1)
        return
    [change] = plan["adjustments"]
    assert (change["signature"], change["kind"]) == ("cache-too-small-for-context", "context")
    assert change["value"] == plan["context"] < plan["model"]["geometry"]["context"]
    assert [one["outcome"] for one in attempts] == ["failed", "proven"]
    assert [one["id"] for one in attempts[0]["findings"]][:1] == ["cache-too-small-for-context"]


def test_its_speed_is_told(host):
    figures = verdict(host, "/var/lib/firstlight", "demo")["figures"]
    assert figures["streams"] == 4
    assert 0 < figures["port_s"] <= figures["health_s"] <= figures["listed_s"] <= figures["token_s"]
    for key in ("first_token_s", "first_token_all_s", "tokens_per_second", "tokens_per_second_all"):
        assert figures[key] > 0, key


@pytest.mark.parametrize("server", SERVERS, ids=lambda server: server["name"])
def test_a_server_is_found_out_by_the_check_that_is_for_it(host, name, server):
    if name != "vllm12":
        pytest.skip("it has no such servers")
    found = verdict(host, "/srv/rig", server["name"])
    wanted = ["smoke-" + server["check"]] if server["check"] else []
    assert [one["id"] for one in found["findings"]] == wanted, found["findings"]
    assert found["passed"] == (not wanted)
