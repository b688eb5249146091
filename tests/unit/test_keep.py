# SPDX-License-Identifier: Apache-2.0
"""What an endpoint has it keeps, and what was seen of it replaces what was reckoned."""

from __future__ import annotations

import copy

import facts as made
import planner
import pytest
from facts import GIB, uuid

from ansible.module_utils.firstlight.planning import keep, requests

MODEL = "/srv/models/Llama-3.1-70B"
SMALL = "/srv/models/Llama-3.1-8B"
GGUF = "/srv/models/Qwen2.5-7B.gguf"
# A host, and what is asked of it: the context is cut on the first, the share on the second.
CASES = {
    "vLLM, its context cut": (planner.host("a100-40", 4), {"model": MODEL}),
    "vLLM, its share cut": (planner.host("a10", 1), {"model": SMALL}),
    "vLLM, with room": (planner.host("h100", 2), {"model": SMALL}),
    "llama.cpp on a GPU": (planner.host("t4", 1), {"model": GGUF}),
    "llama.cpp on the CPU": (planner.cpu(8), {"model": GGUF}),
}


def first(facts, asked):
    return planner.only(planner.plan(facts, asked))


def again(facts, asked, plan, condition="running", changes=None, catalog=None, verdict=None,
          pids=(4711,), **memory):
    """The answer to the request where the plan runs; ``changes`` are of the passport's plan."""
    kept = {**plan, **(changes or {})}
    there = planner.serving(kept, pids, condition, **memory)
    there["plan"] = plan["hash"]
    return planner.plan(facts, asked, state=planner.state({"chat": there}), catalog=catalog,
                        verdict=verdict)


def seen(plan, **changes):
    """Memory as it would be observed: what the plan says, with changes."""
    parts = ("weights_bytes", "kv_bytes", "activation_bytes", "graph_bytes", "context_bytes")
    return {**{part: plan["memory"][part] for part in parts}, **changes}


def held(facts, plan, *strangers):
    """The host while the plan runs, with strangers' processes on its devices."""
    facts = copy.deepcopy(facts)
    for one in facts["devices"]:
        if one["uuid"] in plan["gpus"]:
            one["holders"] = [made.holder(4711, plan["memory"]["total_bytes"]), *strangers]
            left = one["memory_free_bytes"] - sum(each["bytes"] for each in one["holders"])
            one["memory_free_bytes"] = max(0, left)
    return facts


# Kept.


@pytest.mark.parametrize("condition", ["running", "starting", "stopped", "failed", "absent"])
@pytest.mark.parametrize("case", CASES)
def test_what_nobody_changed_stays_whatever_the_endpoint_does(case, condition):
    facts, asked = CASES[case]
    plan = first(facts, asked)
    assert planner.only(again(facts, asked, plan, condition))["hash"] == plan["hash"]


@pytest.mark.parametrize("condition", ["running", "starting"])
@pytest.mark.parametrize("case", CASES)
def test_ten_runs_under_changing_load_are_one_plan(case, condition):
    facts, asked = CASES[case]
    plan = first(facts, asked)
    for number in range(10):
        busy = held(facts, plan, *[made.holder(9000 + one, number * GIB)
                                   for one in range(number)])
        busy["memory"].update(available_bytes=number * GIB, swap_free_bytes=number)
        kept = planner.only(again(busy, asked, plan, condition))
        assert {**kept, "reasons": None} == {**plan, "reasons": None}


def test_an_endpoint_that_does_not_run_makes_room_for_who_holds_its_device():
    facts, asked = planner.host("h100", 2), {"model": SMALL}
    plan = first(facts, asked)
    busy = held(facts, plan, made.holder(9000, GIB))
    moved = planner.only(again(busy, asked, plan, "stopped", pids=()))
    assert moved["gpus"] == [uuid(1)]
    assert planner.only(again(busy, asked, plan))["gpus"] == [uuid(0)]


@pytest.mark.parametrize("figure", ["memory_free_bytes", "holders"])
def test_a_figure_that_cannot_be_read_for_once_stops_nothing_that_runs(figure):
    facts, asked = planner.host("h100", 1), {"model": SMALL}
    plan = first(facts, asked)
    blind = made.unread(held(facts, plan), "devices[0]." + figure)
    assert planner.only(again(blind, asked, plan))["hash"] == plan["hash"]


def test_a_device_gone_bad_is_left():
    facts, asked = planner.host("h100", 2), {"model": SMALL}
    plan = first(facts, asked)
    bad = {"verdict": "degraded", "findings": [], "remedies": [],
           "devices": {uuid(0): "bad", uuid(1): "ok"}}
    moved = planner.only(again(held(facts, plan), asked, plan, verdict=bad))
    assert moved["gpus"] == [uuid(1)]
    assert moved["hash"] != plan["hash"]
    worn = {**bad, "devices": {uuid(0): "degraded", uuid(1): "ok"}}
    assert planner.only(again(held(facts, plan), asked, plan, verdict=worn))["gpus"] == [uuid(0)]


def test_a_device_that_is_gone_is_left():
    facts, asked = planner.host("h100", 2), {"model": SMALL}
    plan = first(facts, asked)
    del facts["devices"][0]
    assert planner.only(again(facts, asked, plan))["gpus"] == [uuid(1)]


def test_an_endpoint_that_must_move_keeps_those_of_its_devices_that_are_well():
    facts, asked = planner.host("a100-80", 4), {"model": MODEL, "gpus": 2}
    plan = first(facts, asked)
    assert plan["gpus"] == [uuid(0), uuid(1)]
    bad = {"verdict": "degraded", "findings": [], "remedies": [],
           "devices": {**{uuid(index): "ok" for index in range(4)}, uuid(0): "bad"}}
    moved = planner.only(again(held(facts, plan), asked, plan, verdict=bad))
    assert uuid(1) in moved["gpus"]
    assert uuid(0) not in moved["gpus"]


CHANGES = {
    "context": {"context": 4096}, "gpus": {"gpus": 4}, "tensor_parallel": {"tensor_parallel": 2},
    "engine_version": {"engine_version": "0.33.0"}, "extra_args": {"extra_args": ["--seed", "1"]},
    "port": {"port": 8010}, "gpus: all": {"gpus": "all"}, "engine": {"engine": "vllm"},
    "gpus by UUID": {"gpus": [uuid(1)]},
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_is_asked_for_anew_is_planned_anew(case):
    facts, asked = planner.host("h100", 4), {"model": SMALL, **CHANGES[case]}
    plan = first(facts, {"model": SMALL})
    fresh = first(facts, asked)
    result = planner.only(again(held(facts, plan), asked, plan))
    for key in ("context", "tensor_parallel", "engine_version", "extra_args", "port"):
        assert result[key] == fresh[key]
    assert len(result["gpus"]) == len(fresh["gpus"])
    assert result["asked"] == {key: asked.get(key, requests.DEFAULTS[key]) for key in keep.ASKED}


@pytest.mark.parametrize("times", [0.9, 1.1])
@pytest.mark.parametrize("case", CASES)
def test_a_newer_estimate_does_not_move_what_runs(case, times):
    """Costs are no decision: what runs has shown that it fits."""
    facts, asked = CASES[case]
    plan = first(facts, asked)
    costs = [{**one, "value": one["value"] * times} if one["name"] in (
        "context_bytes", "context_parallel_bytes", "other_bytes", "error_share",
        "error_share_unmeasured", "process_bytes") else one
        for one in planner.catalog()["engine_costs"]]
    kept = again(held(facts, plan), asked, plan, catalog=planner.catalog(engine_costs=costs))
    assert planner.only(kept)["hash"] == plan["hash"]


def test_a_newer_release_in_the_catalog_is_a_new_plan():
    facts, asked = planner.host("h100", 1), {"model": SMALL}
    plan = first(facts, asked)
    row = planner.row(engine="vllm", version=plan["engine_version"])
    rows = planner.catalog()["engine_releases"]
    newer = {**row, "version": "0.24.1", "tag": "v0.24.1"}
    result = planner.only(again(facts, asked, plan,
                                catalog=planner.catalog(engine_releases=[*rows, newer])))
    assert result["engine_version"] == "0.24.1"
    assert result["gpus"] == plan["gpus"]
    assert result["hash"] != plan["hash"]


@pytest.mark.parametrize("change", [{"digest": "sha256:" + "1" * 64}, {"dialect":
                                                                       "vllm_api_server"}])
def test_a_row_that_says_something_else_is_a_new_plan(change):
    facts, asked = planner.host("h100", 1), {"model": SMALL}
    plan = first(facts, asked)
    rows = [{**row, **change} if row["version"] == plan["engine_version"] else row
            for row in planner.catalog()["engine_releases"]]
    result = planner.only(again(facts, asked, plan,
                                catalog=planner.catalog(engine_releases=rows)))
    assert result["hash"] != plan["hash"]


def test_a_model_of_another_content_is_a_new_plan():
    facts, asked = planner.host("h100", 1), {"model": SMALL}
    plan = first(facts, asked)
    other = {SMALL: planner.model("Llama-3.1-8B", path=SMALL, fingerprint="e" * 64)}
    result = planner.only(planner.plan(facts, asked, models=other, state=planner.state(
        {"chat": planner.serving(plan)})))
    assert result["hash"] != plan["hash"]


def test_a_start_limit_stays_when_the_disk_is_measured():
    facts, asked = planner.host("h200", 2), {"model": MODEL}
    plan = first(facts, asked)
    faster = made.changed(facts, {"disk": {"read_bytes_per_second": 3 * GIB}})
    kept = planner.only(again(faster, asked, plan))
    assert (kept["start_timeout_s"], kept["hash"]) == (plan["start_timeout_s"], plan["hash"])
    assert first(faster, asked)["start_timeout_s"] < plan["start_timeout_s"]


@pytest.mark.parametrize("seconds", [1, 10**9])
@pytest.mark.parametrize("case", CASES)
def test_no_passport_makes_up_the_limit_of_a_start(case, seconds):
    """Whoever writes a passport must not make every start fail, or none."""
    facts, asked = CASES[case]
    plan = first(facts, asked)
    result = planner.only(again(facts, asked, plan, changes={"start_timeout_s": seconds}))
    assert result["start_timeout_s"] == plan["start_timeout_s"]


def test_a_device_of_an_endpoint_that_is_down_is_not_given_to_a_newcomer():
    facts = planner.host("h100", 1)
    plan = first(facts, {"model": SMALL})
    state = planner.state({"chat": planner.serving(plan, (), "stopped")})
    result = planner.plan(facts, {"name": "new", "model": SMALL}, {"name": "chat", "model": SMALL},
                          state=state)
    assert [one["name"] for one in result["endpoints"]] == ["chat"]
    assert "it is for the endpoint chat" in result["refusals"][0]["found"]


# The loop is closed.


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("off", [-0.02, -0.002, 0.0, 0.002])
def test_what_was_seen_of_it_does_not_start_an_endpoint_again(case, off):
    facts, asked = CASES[case]
    plan = first(facts, asked)
    figures = {part: int(value * (1 + off)) for part, value in seen(plan).items()}
    kept = planner.only(again(facts, asked, plan, **figures))
    assert kept["hash"] == plan["hash"]
    assert kept["memory"]["source"] == "observed"


def test_what_was_seen_replaces_what_was_reckoned():
    facts, asked = CASES["vLLM, its context cut"]
    plan = first(facts, asked)
    assert plan["memory"]["source"] == "computed"
    assert any("reckoned" in one for one in plan["reasons"])
    figures = seen(plan, weights_bytes=plan["memory"]["weights_bytes"] - GIB)
    # A longer context is asked for, so it is planned anew, with what is known by now.
    wanted = {**asked, "context": plan["context"] + 8192}
    assert planner.plan(facts, wanted)["refusals"][0]["id"] == "plan-does-not-fit"
    result = planner.only(again(facts, wanted, plan, **figures))
    assert result["memory"]["source"] == "observed"
    assert result["memory"]["weights_bytes"] == figures["weights_bytes"]
    assert any("as observed in its last passport" in one for one in result["reasons"])
    assert result["memory"]["error_bytes"] < plan["memory"]["error_bytes"]


def test_more_than_was_reckoned_is_believed_too():
    facts, asked = CASES["vLLM, its context cut"]
    plan = first(facts, asked)
    figures = seen(plan, weights_bytes=plan["memory"]["weights_bytes"] + GIB)
    result = planner.only(again(facts, {**asked, "port": 8001}, plan, **figures))
    assert result["context"] < plan["context"]
    assert result["memory"]["total_bytes"] <= result["memory"]["limit_bytes"]


DIFFERENCES = {
    "model": {"model": {"fingerprint": "e" * 64}}, "no model": {"model": None},
    "release": {"engine_version": "0.20.0"}, "engine": {"engine": "llama_cpp"},
    "tensor parallel": {"tensor_parallel": 2}, "stages": {"pipeline_parallel": 2},
    "flags": {"extra_args": ["--enforce-eager"]}, "batch": {"batched_tokens": 8192},
    "sequences": {"sequences": 1024},
}


@pytest.mark.parametrize("case", DIFFERENCES)
def test_what_was_seen_of_something_else_is_not_taken(case):
    facts, asked = planner.host("a100-40", 4), {"model": MODEL, "tensor_parallel": 4}
    plan = first(facts, asked)
    result = planner.only(again(facts, asked, plan, changes=DIFFERENCES[case],
                                **seen(plan, weights_bytes=GIB)))
    assert result["memory"]["source"] == "computed"
    assert result["memory"]["weights_bytes"] == plan["memory"]["weights_bytes"]


@pytest.mark.parametrize("value", [None, -1, True, 1.5, "7", [], {}])
def test_a_figure_that_is_none_is_left_out(value):
    facts, asked = CASES["vLLM, its context cut"]
    plan = first(facts, asked)
    result = planner.only(again(facts, asked, plan, **seen(plan, weights_bytes=value)))
    assert result["memory"]["weights_bytes"] == plan["memory"]["weights_bytes"]


def test_the_time_of_the_last_start_is_said():
    facts, asked = planner.host("h100", 1), {"model": SMALL}
    plan = first(facts, asked)
    there = planner.serving(plan)
    there["passport"]["phases"] = {"ready_s": 47.2}
    kept = planner.only(planner.plan(facts, asked, state=planner.state({"chat": there})))
    assert kept["start"]["expected_s"] == 48
    assert any("as the last one took" in one for one in kept["reasons"])
    assert kept["hash"] == plan["hash"]
