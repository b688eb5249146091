# SPDX-License-Identifier: Apache-2.0
"""The canary before an endpoint: when it is needed, and how it is served then."""

from __future__ import annotations

import copy

import planner
import pytest
from facts import GIB

from ansible.module_utils.firstlight import canary
from ansible.module_utils.firstlight.canary import weights
from ansible.module_utils.firstlight.planning import canary_plan, plan

FOLDER = "/srv/models/"
BIG = FOLDER + "Llama-3.1-70B"
SMALL = FOLDER + "Qwen2.5-0.5B"
KEY = "k" * 32


def plan_of(facts, **asked):
    return planner.only(planner.plan(facts, {"model": SMALL, **asked}))


def flags(made):
    argv = made["command"]["argv"]
    return dict(zip(argv, [*argv[1:], ""]))


def needed(facts, *entries, state=None):
    plans = planner.plan(facts, *entries, state=state)
    assert plans["refusals"] == []
    return canary_plan.canaries_needed(plans["endpoints"], facts, state or planner.state())


def key_of(facts, **asked):
    return canary_plan.canary_key(plan_of(facts, **asked), facts)


# When.


def test_the_first_endpoint_with_an_engine_on_devices_needs_it_and_the_second_does_not():
    facts = planner.host("h100", 2)
    entries = [{"model": SMALL, "gpus": 1}, {"model": FOLDER + "Qwen2.5-7B", "gpus": 1}]
    # On a device each, both are to be proven.
    assert needed(facts, *entries) == ["chat", "chat1"]
    first = plan_of(facts, gpus=1)
    state = planner.state(canaries=[canary_plan.canary_key(first, facts)])
    assert needed(facts, *entries, state=state) == ["chat1"]


def test_two_models_on_the_same_devices_are_one_proof():
    facts = planner.host("h100", 1)
    one, two = plan_of(facts), plan_of(facts, model=FOLDER + "Qwen2.5-7B", name="other")
    assert canary_plan.canaries_needed([one, two], facts, planner.state()) == ["chat"]


@pytest.mark.parametrize(("facts", "asked"), [
    (planner.host("h100", 1), {"model": "canary"}),
    (planner.cpu(), {"model": SMALL + ".gguf"})], ids=["the canary itself", "ours on the CPU"])
def test_what_proves_itself_needs_none(facts, asked):
    assert needed(facts, asked) == []


def test_a_container_on_the_cpu_and_a_program_of_ones_own_on_a_gpu_need_it():
    assert needed(planner.cpu(), {"model": SMALL, "runtime": "docker"}) == ["chat"]
    assert needed(planner.host("h100", 1), {
        "model": SMALL, "engine_python": "/opt/python", "engine_version": "0.24.0"}) == ["chat"]


def test_what_runs_by_its_plan_has_proven_it():
    facts = planner.host("h100", 1)
    made = plan_of(facts)
    for condition, wanted in (("running", []), ("failed", ["chat"]), ("stopped", ["chat"])):
        state = planner.state({"chat": planner.serving(made, condition=condition)})
        assert canary_plan.canaries_needed([made], facts, state) == wanted
    old = planner.state({"chat": planner.serving({**made, "hash": "another"})})
    assert canary_plan.canaries_needed([made], facts, old) == ["chat"]


PROOFS = {
    "an engine": {"engine": "llama_cpp", "model": SMALL + ".gguf"},
    "a version": {"engine_version": "0.33.0"},
    "an image": {"engine": "vllm", "engine_version": "0.24.0", "image": "ours:1"},
    "a program": {"engine_python": "/opt/python", "engine_version": "0.24.0"},
    "another program": {"engine_python": "/opt/python3", "engine_version": "0.24.0"},
    "more devices": {"gpus": 2},
    "devices one after the other": {"gpus": 2, "tensor_parallel": 1},
    "nothing": {},
}


def test_every_thing_that_is_proven_has_a_key_of_its_own():
    keys = {case: key_of(planner.host("h100", 2), **asked) for case, asked in PROOFS.items()}
    newer = planner.host("h100", 2, driver={"version": "590.10"})
    keys["a driver"] = key_of(newer)
    assert len(set(keys.values())) == len(keys)


@pytest.mark.parametrize("asked", [
    {"model": FOLDER + "Qwen2.5-7B"}, {"context": 2048}, {"port": 9000}, {"name": "other"},
    {"extra_args": ["--seed", "1"]}, {"bind": "0.0.0.0", "api_key": KEY}])  # noqa: S104
def test_what_says_nothing_of_the_engine_asks_for_no_other_proof(asked):
    facts = planner.host("h100", 1)
    assert key_of(facts, **asked) == key_of(facts)


# How.


@pytest.mark.parametrize(("facts", "asked"), [
    (planner.host("h100", 1), {}),
    (planner.host("h100", 1), {"model": SMALL + ".gguf"}),
    (planner.host("h100", 1), {"engine_python": "/opt/python", "engine_version": "0.24.0"}),
    (planner.cpu(), {"runtime": "docker"}),
    (planner.cpu(), {"model": SMALL + ".gguf", "runtime": "docker"}),
], ids=["vllm", "llama.cpp", "own", "vllm on a CPU", "llama.cpp on a CPU"])
def test_it_is_served_as_the_model_would_be(facts, asked):
    of = plan_of(facts, extra_args=["--seed", "1"], **asked)
    before = copy.deepcopy(of)
    made = canary_plan.canary_plan(of, planner.ROOT)
    assert of == before
    for key in ("name", "engine", "engine_version", "runtime", "image", "user", "entrypoint",
                "engine_python", "gpus", "tensor_parallel", "flags", "shm_bytes", "dialect"):
        assert made[key] == of[key], key
    assert set(made) == set(of)
    # What is about the model may be wrong for another.
    assert [one for one in of["command"]["argv"] if one.startswith("-") and one != "--seed"] == [
        one for one in made["command"]["argv"] if one.startswith("-")]
    assert made["model"]["kind"] == made["model"]["served_name"] == "canary"
    assert made["model"]["format"] == of["model"]["format"]
    assert made["model"]["path"] in made["command"]["argv"]
    assert of["model"]["path"] not in made["command"]["argv"]
    assert made["context"] == weights.CONTEXT
    assert made["oracle"] == canary.oracle()
    assert made["trial"] == {"of": of["hash"]}
    assert made["hash"] == plan.plan_hash(made) != of["hash"]


def test_it_is_the_plan_that_the_canary_itself_would_have():
    """But for the port: so what it proves is what will run."""
    facts = planner.host("h100", 2)
    made = canary_plan.canary_plan(plan_of(facts, gpus=2), planner.ROOT)
    asked = planner.only(planner.plan(facts, {
        "model": "canary", "engine": "vllm", "gpus": 2, "port": made["port"]}))
    assert made["tensor_parallel"] == asked["tensor_parallel"]
    for key in ("model", "image", "env", "cache", "context", "url"):
        assert made[key] == asked[key], key


def test_nobody_who_asks_the_endpoint_is_answered_by_it():
    facts = planner.host("h100", 1)
    for way in ({}, {"bind": "0.0.0.0", "api_key": KEY}):  # noqa: S104
        of = plan_of(facts, port=8123, **way)
        made = canary_plan.canary_plan(of, planner.ROOT)
        assert made["url"] == made["public_url"] == "http://127.0.0.1:18123"
        assert (made["bind"], made["way_in"], made["tls"]) == ("127.0.0.1", False, "none")
        assert made["port"] == made["engine_port"] == 18123
        assert flags(made)["--port"] == "18123"


def test_it_takes_little_of_a_device():
    of = plan_of(planner.host("h200", 1))
    made = canary_plan.canary_plan(of, planner.ROOT)
    assert made["utilisation"] < 0.05 < of["utilisation"]
    assert float(flags(made)["--gpu-memory-utilization"]) == made["utilisation"]
    memory = made["memory"]
    assert memory["total_bytes"] < 8 * GIB
    assert memory["kv_tokens"] >= made["context"]
    assert memory["total_bytes"] == sum(memory[key] for key in (
        "weights_bytes", "kv_bytes", "activation_bytes", "graph_bytes", "context_bytes"))


def test_it_takes_no_more_of_a_small_device_than_the_plan_does():
    of = {**plan_of(planner.host("h100", 1)), "utilisation": 0.02}
    assert canary_plan.canary_plan(of, planner.ROOT)["utilisation"] == 0.02


def test_it_has_a_cache_of_one_gib_on_a_cpu():
    of = plan_of(planner.cpu(64), runtime="docker", model=FOLDER + "Llama-3.1-8B", context=65536)
    made = canary_plan.canary_plan(of, planner.ROOT)
    assert of["command"]["env"]["VLLM_CPU_KVCACHE_SPACE"] == "8"
    assert made["command"]["env"]["VLLM_CPU_KVCACHE_SPACE"] == "1"


def test_what_is_compiled_for_it_is_kept_apart():
    of = plan_of(planner.host("h100", 1))
    made = canary_plan.canary_plan(of, planner.ROOT)
    assert made["cache"] != of["cache"]
    assert made["command"]["env"]["VLLM_CACHE_ROOT"] == made["cache"]


def test_its_start_is_not_given_the_time_of_a_large_model():
    of = planner.only(planner.plan(planner.host("h200", 4), {"model": BIG}))
    made = canary_plan.canary_plan(of, planner.ROOT)
    assert canary_plan.LEAST_SECONDS <= made["start_timeout_s"] < of["start_timeout_s"]
    assert made["start"]["limit_s"] == made["start_timeout_s"]


@pytest.mark.parametrize(("tensor_parallel", "stages", "wanted"), [
    (8, 1, (8, 1)), (6, 1, (4, 1)), (3, 1, (2, 1)), (5, 2, (4, 2)), (2, 4, (2, 2))])
def test_it_is_split_as_the_plan_is_or_as_far_as_it_can_be(tensor_parallel, stages, wanted):
    of = plan_of(planner.host("h100", 1))
    uuids = ["GPU-%d" % number for number in range(tensor_parallel * stages)]
    made = canary_plan.canary_plan({
        **of, "tensor_parallel": tensor_parallel, "pipeline_parallel": stages, "gpus": uuids},
        planner.ROOT)
    assert (made["tensor_parallel"], made["pipeline_parallel"]) == wanted
    assert made["gpus"] == uuids[:wanted[0] * wanted[1]]
    assert flags(made)["--tensor-parallel-size"] == str(wanted[0])
    assert (len(made["reasons"]) > 1) == (wanted != (tensor_parallel, stages))
    if wanted != (tensor_parallel, stages):
        assert str(len(uuids)) in made["reasons"][1]


def test_llama_cpp_has_all_of_its_devices():
    of = plan_of(planner.host("h100", 4), model=SMALL + ".gguf", gpus=4)
    assert canary_plan.canary_plan(of, planner.ROOT)["gpus"] == of["gpus"]
