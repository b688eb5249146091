# SPDX-License-Identifier: Apache-2.0
"""How long a start may take: from the model, the disk, the devices and the compiler's cache."""

from __future__ import annotations

import planner
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible.module_utils.firstlight.planning import memory
from ansible.module_utils.firstlight.planning.start_budget import (
    ASSUMED_BYTES_PER_SECOND,
    FLOOR_SECONDS,
    start_budget,
)

GIB = 2**30
COSTS = {engine: memory.costs_of(engine, planner.catalog()["engine_costs"])
         for engine in ("vllm", "llama_cpp")}
ENGINES = st.sampled_from(sorted(COSTS))
SIZES = st.integers(0, 2**42)
RATES = st.none() | st.integers(2**20, 2**34)


def budget(size=15 * GIB, layers=32, devices=1, engine="vllm", rate=None, compiled=False,
           eager=False):
    return start_budget(size, layers, devices, COSTS[engine], rate, compiled, eager)


def test_reading_takes_the_measured_rate_and_else_that_of_a_slow_disk():
    slow, fast = budget(), budget(rate=GIB)
    assert slow["read_s"] == 15 * GIB // ASSUMED_BYTES_PER_SECOND + 1
    assert fast["read_s"] == 15
    assert (slow["measured_disk"], fast["measured_disk"]) == (False, True)


def test_more_devices_take_longer():
    assert budget(devices=8)["expected_s"] > budget(devices=2)["expected_s"] > budget()[
        "expected_s"]


def test_a_cache_shortens_what_is_expected_and_not_what_is_allowed():
    """A cache may be lost."""
    cold, warm = budget(size=200 * GIB), budget(size=200 * GIB, compiled=True)
    assert warm["expected_s"] < cold["expected_s"]
    assert warm["limit_s"] == cold["limit_s"]
    assert (warm["cached"], cold["cached"]) == (True, False)


def test_an_eager_engine_compiles_nothing():
    assert budget(eager=True)["compile_s"] == 0
    assert budget(eager=True)["expected_s"] < budget()["expected_s"]


def test_vllm_is_given_no_less_than_it_gives_itself():
    assert budget(size=1, rate=GIB)["limit_s"] == COSTS["vllm"]["engine_limit_seconds"] == 600
    assert budget(size=300 * GIB)["limit_s"] > 3000


def test_a_small_model_on_llama_cpp_is_given_up_soon():
    small = budget(size=2**25, layers=4, engine="llama_cpp", eager=True)
    assert FLOOR_SECONDS <= small["limit_s"] < 120


@given(size=SIZES, more=SIZES, layers=st.integers(1, 200), devices=st.integers(1, 64),
       engine=ENGINES, rate=RATES, compiled=st.booleans(), eager=st.booleans())
def test_a_limit_leaves_room_and_grows_with_the_model(size, more, layers, devices, engine, rate,
                                                      compiled, eager):
    # llama.cpp compiles nothing, ever.
    eager, compiled = eager or engine == "llama_cpp", compiled and engine == "vllm"
    found = budget(size, layers, devices, engine, rate, compiled, eager)
    assert all(type(found[key]) is int and found[key] >= 0 for key in (
        "limit_s", "expected_s", "read_s", "compile_s", "other_s"))
    assert found["limit_s"] >= FLOOR_SECONDS
    assert found["limit_s"] > found["expected_s"]
    assert abs(found["expected_s"] - found["read_s"] - found["compile_s"] - found["other_s"]) <= 2
    assert found["limit_s"] <= budget(size + more, layers, devices, engine, rate, compiled,
                                      eager)["limit_s"]
    assert found["limit_s"] <= budget(size, layers + 1, devices + 1, engine, rate, compiled,
                                      eager)["limit_s"]


# In plans.


@pytest.mark.parametrize("rate", [None, 0, -1, True, "fast", 1.5])
def test_a_rate_that_is_none_is_assumed(rate):
    facts = planner.host("h100", 1, disk={"read_bytes_per_second": rate})
    plan = planner.only(planner.plan(facts, {"model": "/srv/models/Llama-3.1-8B"}))
    assert not plan["start"]["measured_disk"]
    assert any("an assumed 100 MiB/s" in reason for reason in plan["reasons"])


def test_a_plan_has_the_budget_of_its_model_and_says_it():
    facts = planner.host("h200", 2, disk={"read_bytes_per_second": GIB})
    plan = planner.only(planner.plan(facts, {"model": "/srv/models/Llama-3.1-70B", "gpus": 2}))
    wanted = budget(plan["model"]["bytes"], 80, 2, rate=GIB)
    assert wanted.items() <= plan["start"].items()
    assert plan["start_timeout_s"] == wanted["limit_s"]
    assert any("about %d s" % wanted["expected_s"] in reason for reason in plan["reasons"])


def test_a_cache_of_this_model_is_known_by_its_name():
    facts = planner.host("h100", 1)
    asked = {"model": "/srv/models/Llama-3.1-8B"}
    cold = planner.only(planner.plan(facts, asked))
    name = cold["cache"].rpartition("/")[2]
    warm = planner.only(planner.plan(facts, asked, state=planner.state(caches=[name])))
    other = planner.only(planner.plan(facts, asked, state=planner.state(caches=["other"])))
    assert (cold["start"]["cached"], warm["start"]["cached"], other["start"]["cached"]) == (
        False, True, False)
    assert warm["hash"] == cold["hash"]
    assert cold["engine_version"] in name
