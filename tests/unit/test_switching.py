# SPDX-License-Identifier: Apache-2.0
"""An endpoint that is as its plan wants it costs nothing more; anything else makes it due."""

from __future__ import annotations

import hashlib

import planner
import pytest
from facts import changed, uuid

from ansible.module_utils.firstlight.planning import canary_plan, switching, way_in

TEXT = "the text of its service\n"
KEYS = way_in.endpoint_keys([{"name": "chat", "api_key": "k" * 32}])["chat"]
WAY_IN = {"config": "global\n", "definition": "[program:way-in-chat]\n", "keys": KEYS}
PLAN = {"name": "chat", "hash": "a" * 64, "gpus": [uuid(0), uuid(1)]}


def there(**changes):
    """What endpoint_info says of the endpoint where all is as it should be."""
    return changed({
        "name": "chat", "state": "running", "detail": "", "restarts": 0, "pid": 4711,
        "pids": [4711], "plan": PLAN["hash"], "healthy": True, "strays": [],
        "passport": {"plan": {"hash": PLAN["hash"]}}, "manager": "docker",
        "definition": hashlib.sha256(TEXT.encode()).hexdigest(), "half_done": False, "log": "",
        "way_in": {}, "gpus_seen": [uuid(1), uuid(0)]}, changes)


def due(one, ways_in=None, plan=PLAN):
    return switching.endpoints_to_switch(
        [plan], {"endpoints": {"chat": one} if one else {}}, {plan["hash"]: TEXT}, ways_in or {})


def test_what_is_as_wanted_is_not_due():
    assert due(there()) == []
    assert due(there(state="starting")) == [], "supervisor says so for its first two seconds"


@pytest.mark.parametrize("changes", [
    {"passport": None}, {"passport": {"plan": {"hash": "b" * 64}}}, {"plan": "b" * 64},
    {"plan": None}, {"healthy": False}, {"state": "failed"}, {"state": "stopped"},
    {"state": "absent"}, {"half_done": True}, {"strays": [4712]}, {"definition": "0" * 64},
    {"definition": None}, {"gpus_seen": []}, {"gpus_seen": [uuid(0)]},
    {"gpus_seen": [uuid(0), uuid(2)]},
    {"way_in": way_in.way_in_digests(WAY_IN["config"], WAY_IN["definition"], KEYS)},
], ids=str)
def test_each_thing_that_is_not_makes_it_due(changes):
    assert due(there(**changes)) == ["chat"]


def test_what_is_not_there_is_due():
    assert due(None) == ["chat"]


def test_what_nobody_can_see_is_no_reason():
    assert due(there(gpus_seen=None)) == []


def test_devices_without_a_name_cannot_be_missed():
    """As on a Jetson, whose nvidia-smi knows no UUID of the kind that others have."""
    plan = {**PLAN, "gpus": ["54d0709b-1ff4-5e3b-9b9e-000000000000"]}
    for seen in ([], [uuid(0)]):
        assert due(there(gpus_seen=seen), plan=plan) == []
    assert due(there(gpus_seen=[]), plan={**PLAN, "gpus": []}) == []


def seen(**changes):
    """The way in as a host has it, which is as it should be but for these."""
    return {**way_in.way_in_digests(WAY_IN["config"], WAY_IN["definition"], KEYS), **changes}


def test_a_way_in_as_wanted_is_no_reason():
    assert due(there(way_in=seen()), {"chat": WAY_IN}) == []
    assert due(there(way_in=seen()), {"chat": {**WAY_IN, "keys": KEYS[::-1]}}) == []


@pytest.mark.parametrize("changes", [
    {"config": "0" * 64}, {"definition": "0" * 64}, {"keys": "0" * 64}, {"state": "failed"},
    {"certificate": "its way in has no certificate"}], ids=str)
def test_each_thing_of_a_way_in_that_is_not_as_wanted_makes_it_due(changes):
    assert due(there(way_in=seen(**changes)), {"chat": WAY_IN}) == ["chat"]


def test_a_way_in_that_is_not_there_makes_it_due():
    assert due(there(), {"chat": WAY_IN}) == ["chat"]


def test_a_way_in_of_another_endpoint_is_not_its_own():
    assert due(there(way_in=seen()), {"code": WAY_IN}) == ["chat"]


def test_only_those_that_are_due_are_named_in_the_order_of_the_plans():
    plans = [{**PLAN, "name": name, "hash": name[0] * 64} for name in ("z", "chat", "a")]
    state = {"endpoints": {plan["name"]: there(
        plan=plan["hash"], passport={"plan": {"hash": plan["hash"]}},
        healthy=plan["name"] == "chat") for plan in plans}}
    texts = {plan["hash"]: TEXT for plan in plans}
    assert switching.endpoints_to_switch(plans, state, texts, {}) == ["z", "a"]
    # What endpoints it has beside those of the plans is no question here.
    assert switching.endpoints_to_switch(plans[1:2], state, texts, {}) == []


# What is tried first.


def test_each_plan_is_tried_by_its_own_canary():
    facts = planner.host("h100", 2)
    plans = planner.plan(facts, *(
        {"model": "/srv/models/Qwen2.5-0.5B", "name": name, "runtime": "docker",
         "gpus": [uuid(index)]} for index, name in enumerate(("chat", "code"))))["endpoints"]
    first, second = plans
    canary = canary_plan.canary_plan(second, planner.ROOT)
    trials = switching.canary_trials({"code": canary}, plans, facts, {canary["hash"]: TEXT})
    assert trials == {"code": {"key": canary_plan.canary_key(second, facts), "plan": canary,
                               "definition": TEXT}}
    assert trials["code"]["key"] != canary_plan.canary_key(first, facts)
    # The canary of an endpoint that is not due is not tried.
    assert switching.canary_trials({"code": canary}, [first], facts, {canary["hash"]: TEXT}) == {}
    assert switching.canary_trials({}, plans, facts, {}) == {}
