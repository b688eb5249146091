# SPDX-License-Identifier: Apache-2.0
"""A start that failed is changed once, by what its log says; what the user named stays."""

from __future__ import annotations

import facts as made
import planner
import pytest

from ansible.module_utils.firstlight.findings import finding
from ansible.module_utils.firstlight.planning import healing, keep

MODEL = "/srv/models/Llama-3.1-8B"
ROWS = [
    {"id": "too-long", "change": {"kind": "context", "to": "fits"}},
    {"id": "too-much", "change": {"kind": "context", "to": ""}},
    {"id": "held", "change": {"kind": "other_gpu"}},
    {"id": "late", "change": {"kind": "start_budget"}},
    {"id": "no-shm", "change": {"kind": "shared_memory"}},
    {"id": "compiler", "change": {"kind": "eager"}},
    {"id": "peers", "change": {"kind": "environment", "set": {"NCCL_P2P_DISABLE": "1"}}},
    {"id": "hopeless", "change": {}},
]


def plan(count=2, state=None, adjustments=None, **request):
    taken = planner.asked(dict({"model": MODEL}, **request))
    known, host = planner.catalog(log_signatures=ROWS), planner.host("h100", count)
    found = planner.planning.deployment_plan(
        taken, host, planner.models_of(taken), state or planner.state(), known,
        planner.health.host_health(host, known), None, adjustments)
    return planner.only(found)


def failed(of, *ids, **words):
    """The result of a switch whose engine did not get ready."""
    return {"name": of["name"], "msg": "The engine of %s died." % of["name"], "attempt": {
        "at": "2026-11-29T06:00:00Z", "plan": of["hash"], "outcome": "failed",
        "findings": [finding(one, "engine", "f", "w", "r", "fatal") for one in ids],
        "words": dict.fromkeys(ids, words)}}


def learn(of, *ids, **words):
    return healing.healing([failed(of, *ids, **words)], [of], ROWS)


def changes(of, *ids, **words):
    return learn(of, *ids, **words)["adjustments"].get(of["name"], [])


def again(of, *ids, **words):
    """The plan of the second attempt."""
    request = {key: value for key, value in of["asked"].items()
               if key in ("context", "gpus")}
    return plan(adjustments=learn(of, *ids, **words)["adjustments"], **request)


def test_a_context_that_the_engine_names_is_taken_with_a_little_left():
    first = plan()
    second = again(first, "too-long", fits="33,712")
    assert second["context"] == int(33712 * healing.SHARE_OF_CONTEXT) // 16 * 16
    assert second["hash"] != first["hash"]
    assert second["adjustments"] == [
        {"signature": "too-long", "kind": "context", "value": second["context"]}]
    assert any("more did not start" in one for one in second["reasons"])
    assert any("too-long" in one for one in second["reasons"])


@pytest.mark.parametrize("named", ["", "?", "999999999999999", None])
def test_a_context_that_nobody_names_is_halved(named):
    first = plan()
    assert changes(first, "too-long", fits=named)[0]["value"] <= first["context"] // 2
    assert changes(first, "too-much")[0]["value"] <= first["context"] // 2


def test_a_context_is_never_made_longer():
    first = plan()
    assert changes(first, "too-long", fits="99999999")[0]["value"] < first["context"]


@pytest.mark.parametrize(("request_", "signature", "why"), [
    ({"context": 4096}, "too-long", "its context is asked for"),
    ({"gpus": [made.uuid(0)]}, "held", "its devices are named"),
    ({"extra_args": ["--enforce-eager"]}, "compiler", "it compiles nothing already"),
])
def test_what_the_user_named_stays(request_, signature, why):
    found = learn(plan(**request_), signature)
    assert (found["names"], found["adjustments"]) == ([], {})
    [told] = found["told"].values()
    assert why in told


def test_a_context_that_would_serve_nobody_is_not_tried():
    found = learn(plan(), "too-long", fits="100")
    assert found["names"] == []
    assert "96 tokens" in str(found["told"])


def test_another_device_is_taken():
    first = plan()
    second = again(first, "held", device="0")
    assert len(first["gpus"]) == len(second["gpus"]) == 1
    assert first["gpus"] != second["gpus"]


def test_only_the_device_that_is_held_is_left_out():
    first = plan(count=4, gpus=2)
    assert changes(first, "held", device="1")[0]["value"] == first["gpus"][1:]
    assert changes(first, "held", device="7")[0]["value"] == first["gpus"]
    assert changes(first, "held")[0]["value"] == first["gpus"]


def test_where_there_is_no_other_device_there_is_no_plan():
    first = plan(count=1)
    found = planner.planning.deployment_plan(
        planner.asked({"model": MODEL}), planner.host("h100", 1),
        planner.models_of(planner.asked({"model": MODEL})), planner.state(), planner.catalog(),
        planner.health.host_health(planner.host("h100", 1), planner.catalog()), None,
        learn(first, "held")["adjustments"])
    assert found["endpoints"] == []
    assert found["refusals"]


def test_a_start_gets_twice_its_time_in_the_engine_too():
    first = plan()
    second = again(first, "late")
    assert second["start_timeout_s"] == 2 * first["start_timeout_s"]
    assert second["env"]["VLLM_ENGINE_READY_TIMEOUT_S"] == str(second["start_timeout_s"])


def test_shared_memory_grows_in_a_container():
    first = plan()
    assert first["runtime"] == "docker"
    assert again(first, "no-shm")["shm_bytes"] == 4 * first["shm_bytes"]


def test_the_shared_memory_of_the_host_is_the_hosts():
    first = plan(engine_python="/opt/vllm/bin/python", engine="vllm", engine_version="0.24.0")
    assert learn(first, "no-shm")["names"] == []


def test_what_is_compiled_is_not():
    first = plan()
    assert "--enforce-eager" not in first["command"]["argv"]
    assert "--enforce-eager" in again(first, "compiler")["command"]["argv"]


def test_a_variable_is_set_once():
    first = plan()
    second = again(first, "peers")
    assert second["command"]["env"]["NCCL_P2P_DISABLE"] == "1"
    assert learn(second, "peers")["names"] == []


def test_each_signature_changes_one_thing_and_each_thing_is_changed_once():
    first = plan()
    found = changes(first, "too-long", "too-much", "late", "hopeless", "unheard-of", fits="9000")
    assert [(one["signature"], one["kind"]) for one in found] == [
        ("too-long", "context"), ("late", "start_budget")]


def test_a_signature_that_was_changed_for_is_not_changed_for_again():
    second = again(plan(), "too-long", fits="9000")
    found = learn(second, "too-long", fits="8000")
    assert found["names"] == []
    assert "Nothing that is safe" in found["told"][second["name"]]


def test_what_was_learned_adds_up():
    second = again(plan(), "too-long", fits="9000")
    found = learn(second, "late")
    assert [one["kind"] for one in found["adjustments"][second["name"]]] == [
        "context", "start_budget"]
    assert found["attempts"][second["name"]][0]["adjustments"] == second["adjustments"]


def test_what_the_canary_has_of_its_own_is_not_changed_for_it():
    first = plan()
    result = failed(first, "too-long", "late", "peers", fits="4096")
    result["attempt"]["trial"] = True
    found = healing.healing([result], [first], ROWS)
    assert [one["kind"] for one in found["adjustments"][first["name"]]] == ["environment"]


def test_what_failed_otherwise_is_none_of_it():
    first = plan()
    for result in ({"name": first["name"], "msg": "busy"}, {"attempt": None}, {},
                   {"name": "other", "attempt": {"findings": []}}):
        assert healing.healing([result], [first], ROWS) == {
            "names": [], "adjustments": {}, "attempts": {}, "told": {}}


def test_the_memory_is_what_it_was_as_less_context_takes_it():
    first = plan(count=4)
    second = again(first, "too-long", fits="9000")
    assert second["memory"]["total_bytes"] == first["memory"]["total_bytes"]
    assert len(second["gpus"]) == len(first["gpus"])


# Later runs.


def kept(of, **changed):
    """The host on which that plan serves."""
    serving = planner.serving({**of, **changed})
    return planner.state({of["name"]: serving})


def test_what_was_learned_holds_in_later_runs():
    second = again(plan(), "too-long", "late", fits="9000")
    third = plan(state=kept(second))
    assert third["hash"] == second["hash"]
    assert third["adjustments"] == second["adjustments"]
    assert third["memory"] == second["memory"]
    stopped = planner.state({second["name"]: planner.serving(second, pids=(), condition="stopped")})
    assert plan(state=stopped)["context"] == second["context"]


@pytest.mark.parametrize("changed", [
    {"asked": {}}, {"engine_version": "0.1.0"}, {"model": {}}, {"adjustments": "mine"},
    {"adjustments": [{"kind": "context", "value": 5}, {"signature": "s", "kind": "context"}]},
], ids=str)
def test_it_does_not_hold_for_what_is_another_or_of_no_sense(changed):
    second = again(plan(), "too-long", fits="9000")
    # Of another hash: what runs is kept as it runs, by whatever it came to be so.
    was = kept(second, hash="0" * 64, **changed)
    assert plan(state=was)["context"] == plan()["context"]


def test_what_failed_just_now_is_not_kept_as_it_runs():
    first = plan()
    learned = learn(first, "too-long", fits="9000")["adjustments"]
    found = plan(state=kept(first), adjustments=learned)
    assert found["context"] < first["context"]
    assert keep.pins(planner.asked({"model": MODEL})[0], kept(first)) is not None


CHANGES = {row["id"]: row["change"] for row in ROWS}


@pytest.mark.parametrize("value", [
    {"signature": "too-long", "kind": "context", "value": True},
    {"signature": "too-long", "kind": "context", "value": -1},
    {"signature": "too-long", "kind": "context", "value": 2**60},
    {"signature": "late", "kind": "start_budget", "value": 2**40},
    {"signature": "no-shm", "kind": "shared_memory", "value": 2**60},
    {"signature": "too-long", "kind": "start_budget", "value": 9},
    {"signature": "peers", "kind": "environment", "value": {"LD_PRELOAD": "$(reboot)"}},
    {"signature": "peers", "kind": "environment", "value": {"a b": "1"}},
    {"signature": "peers", "kind": "environment", "value": {"LD_PRELOAD": "/tmp/mine.so"}},
    {"signature": "peers", "kind": "environment", "value": {"NCCL_NET_PLUGIN": "/tmp/mine.so"}},
    {"signature": "peers", "kind": "environment", "value": {"NCCL_NET_PLUGIN": "1"}},
    {"signature": "peers", "kind": "environment", "value": {"NCCL_P2P_DISABLE": "x"}},
    {"signature": "held", "kind": "other_gpu", "value": [1]},
    {"signature": "held", "kind": "other_gpu", "value": ["GPU-1"]},
    {"signature": "compiler", "kind": "eager", "value": 1},
    {"signature": "unheard-of", "kind": "eager", "value": True},
    {"signature": "hopeless", "kind": "eager", "value": True},
    {"signature": ["compiler"], "kind": "eager", "value": True},
    {"signature": 1, "kind": "eager", "value": True},
    {"signature": "compiler", "kind": "shell", "value": "x"},
    None, [], "text",
], ids=str)
def test_a_passport_is_not_believed(value):
    assert not healing.is_sound(value, CHANGES)


@pytest.mark.parametrize("value", [
    {"signature": "too-long", "kind": "context", "value": 9000},
    {"signature": "late", "kind": "start_budget", "value": 1200},
    {"signature": "no-shm", "kind": "shared_memory", "value": 2**33},
    {"signature": "peers", "kind": "environment", "value": {"NCCL_P2P_DISABLE": "1"}},
    {"signature": "compiler", "kind": "eager", "value": True},
], ids=str)
def test_a_change_that_its_row_makes_holds(value):
    assert healing.is_sound(value, CHANGES)



def test_a_passport_of_more_devices_than_there_are_costs_nothing():
    was = kept(plan(), tensor_parallel=2**15, pipeline_parallel=2**40)
    assert plan(state=was)["tensor_parallel"] == 1
