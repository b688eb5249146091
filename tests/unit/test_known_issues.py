# SPDX-License-Identifier: Apache-2.0
"""Which rows of known issues hold, and what the plan does about them."""

from __future__ import annotations

import facts as made
import planner
import pytest

from ansible.module_utils.firstlight.planning import known_issues

CASE = {"engine": "vllm", "version": "0.24.0", "torch": "2.11.0", "runtime": "docker",
        "class": "nvidia", "l4t_major": None, "capability": "9.0", "quantisation": "bfloat16",
        "format": "safetensors", "docker": "28.2.2", "tensor_parallel": 2}
HOLDS = {
    "always": ({"always": True}, {}),
    "a version": ({"version": ">=0.24,<0.25"}, {}),
    "a version before its release": ({"version": ">=0.25.0rc1"}, {"version": "0.25.0rc2"}),
    "torch": ({"torch": "<2.14"}, {}),
    "docker": ({"docker": ">=29"}, {"docker": "29.0.1"}),
    "tensor parallel": ({"tensor_parallel": ">1"}, {}),
    "a runtime": ({"runtime": "docker"}, {}),
    "a class": ({"classes": ["jetson", "nvidia"]}, {}),
    "Jetson Linux": ({"l4t_majors": [35, 36]}, {"l4t_major": 36}),
    "a capability": ({"capabilities": ["8.0", "9.0"]}, {}),
    "a quantisation": ({"quantisations": ["awq", "bfloat16"]}, {}),
    "a format": ({"formats": ["safetensors"]}, {}),
    "all of several": ({"version": ">0.1", "capabilities": ["9.0"]}, {}),
}
DOES_NOT_HOLD = {
    "never": ({"always": False}, {}),
    "another version": ({"version": "<0.24"}, {}),
    "a version that is none": ({"version": ">=0"}, {"version": "nightly"}),
    "no torch": ({"torch": "<2.14"}, {"torch": ""}),
    "docker that is not known": ({"docker": ">=29"}, {"docker": None}),
    "a split that is not known yet": ({"tensor_parallel": ">1"}, {"tensor_parallel": None}),
    "one device": ({"tensor_parallel": ">1"}, {"tensor_parallel": 1}),
    "another runtime": ({"runtime": "native"}, {}),
    "another class": ({"classes": ["jetson"]}, {}),
    "no Jetson": ({"l4t_majors": [36]}, {}),
    "a capability that is not known": ({"capabilities": ["9.0"]}, {"capability": None}),
    "another quantisation": ({"quantisations": ["awq"]}, {}),
    "another format": ({"formats": ["gguf"]}, {}),
    "one of several": ({"version": ">0.1", "capabilities": ["7.0"]}, {}),
}


def holds(when, engine="vllm", **case):
    row = {"id": "x", "engine": engine, "when": when, "action": {}}
    return bool(known_issues.that_hold({**CASE, **case}, [row]))


@pytest.mark.parametrize("case", HOLDS)
def test_a_row_holds_where_all_that_it_asks_for_is_so(case):
    when, changes = HOLDS[case]
    assert holds(when, **changes)


@pytest.mark.parametrize("case", DOES_NOT_HOLD)
def test_a_row_does_not_hold_where_something_is_not_so_or_not_known(case):
    when, changes = DOES_NOT_HOLD[case]
    assert not holds(when, **changes)


def test_a_row_is_of_its_engine_and_those_of_docker_of_what_runs_in_it():
    assert holds({"always": True}, "")
    assert not holds({"always": True}, "llama_cpp")
    assert holds({"always": True}, "docker")
    assert not holds({"always": True}, "docker", runtime="native")


def test_every_condition_and_action_of_the_catalog_is_known():
    for row in planner.catalog()["known_issues"]:
        assert set(row["when"]) <= set(known_issues.CONDITIONS), row["id"]
        assert row["when"], row["id"]
        assert set(row["action"]) <= {"forbid", "avoid", "set_env", "unset_env", "add_flags",
                                      "note"}, row["id"]


def issue(action, when=None, engine="vllm", id="made-up"):  # noqa: A002
    return {"id": id, "engine": engine, "when": when or {"always": True}, "evidence": "",
            "action": {"note": "it does something", **action}, "remedy": "", "report": "report 9",
            "source": "made up"}


def planned(*issues, facts=None, **asked):
    catalog = planner.catalog(known_issues=list(issues))
    return planner.plan(facts or planner.host("h100", 1),
                        {"model": "/srv/models/Llama-3.1-8B", **asked}, catalog=catalog)


def test_what_a_row_sets_is_in_the_plan_with_its_reason_and_its_report():
    plan = planner.only(planned(issue({"set_env": {"VLLM_NO_USAGE_STATS": "1"}})))
    assert plan["env"] == {"VLLM_NO_USAGE_STATS": "1", "VLLM_CACHE_ROOT": plan["cache"]}
    assert plan["command"]["env"]["VLLM_NO_USAGE_STATS"] == "1"
    assert plan["reasons"][-1] == "made-up: it does something (report 9)."
    assert plan["known_issues"] == ["made-up"]


def test_a_variable_that_the_release_does_not_have_is_never_set():
    plan = planner.only(planned(issue({"set_env": {"VLLM_MADE_UP": "1"}})))
    assert plan["env"] == {"VLLM_CACHE_ROOT": plan["cache"]}
    assert "VLLM_MADE_UP" not in plan["command"]["env"]
    assert not any("made-up" in reason for reason in plan["reasons"])


def test_a_variable_that_another_row_takes_away_is_not_set():
    plan = planner.only(planned(issue({"set_env": {"VLLM_NO_USAGE_STATS": "1"}}),
                                issue({"unset_env": ["VLLM_NO_USAGE_STATS"]}, id="other")))
    assert plan["env"] == {"VLLM_CACHE_ROOT": plan["cache"]}


def test_the_start_budget_stands_where_a_row_has_its_place():
    plan = planner.only(planned(issue(
        {"set_env": {"VLLM_ENGINE_READY_TIMEOUT_S": "%(start_budget_s)s"}})))
    assert plan["env"]["VLLM_ENGINE_READY_TIMEOUT_S"] == str(plan["start_timeout_s"])


def test_flags_of_a_row_are_in_the_command_and_count_for_memory():
    plan = planner.only(planned(issue({"add_flags": ["--enforce-eager"]})))
    assert "--enforce-eager" in plan["command"]["argv"]
    assert plan["memory"]["graph_bytes"] == 0
    assert any("made-up" in reason for reason in plan["reasons"])


def test_what_is_forbidden_is_refused_even_when_it_is_asked_for():
    for asked in ({}, {"engine": "vllm"}):
        found = planner.refusal(planned(issue({"forbid": True}), **asked))
        assert found["id"] == "plan-no-engine"
        assert "it does something (known issue made-up; " in found["found"]


def test_what_is_avoided_is_taken_by_name_only():
    found = planner.refusal(planned(issue({"avoid": True})))
    assert "engine: vllm takes it all the same" in found["found"]
    assert planner.only(planned(issue({"avoid": True}), engine="vllm"))["engine"] == "vllm"


def test_rows_of_containers_do_not_hold_for_a_program_of_the_host():
    own = {"engine_python": "/opt/vllm/bin/python", "engine_version": "0.24.0"}
    row = issue({"set_env": {"VLLM_NO_USAGE_STATS": "1"}}, {"runtime": "docker"})
    assert planner.only(planned(row))["env"]
    native = planner.only(planned(row, **own))
    assert native["runtime"] == "native"
    assert native["env"] == {"VLLM_CACHE_ROOT": native["cache"]}
    assert native["known_issues"] == []


# Rows of the catalog, as plans.


def test_the_engines_own_limit_is_told_our_budget_where_it_has_one():
    slow = planner.host("h200", 2, disk={"read_bytes_per_second": 50 * 2**20})
    plan = planner.only(planner.plan(slow, {"model": "/srv/models/Llama-3.1-70B"}))
    assert plan["start_timeout_s"] > 600
    assert plan["env"]["VLLM_ENGINE_READY_TIMEOUT_S"] == str(plan["start_timeout_s"])
    old = planner.only(planner.plan(slow, {"model": "/srv/models/Llama-3.1-70B",
                                           "engine_version": "0.11.0"}))
    assert "VLLM_ENGINE_READY_TIMEOUT_S" not in old["command"]["env"]


@pytest.mark.parametrize("version", ["0.10.2", "0.11.0"])
def test_the_compile_cache_that_fails_is_gone_around(version):
    plan = planner.only(planner.plan(planner.host("h100", 1), {
        "model": "/srv/models/Llama-3.1-8B", "engine_version": version}))
    assert "--enforce-eager" in plan["command"]["argv"]
    assert any("compile-cache-frozen-os" in reason for reason in plan["reasons"])


@pytest.mark.parametrize("version", ["0.10.2", "0.11.0", "0.15.1", "0.20.0", "0.24.0", "0.33.0"])
def test_variables_that_are_none_are_never_given(version):
    plan = planner.only(planner.plan(planner.host("h100", 1), {
        "model": "/srv/models/Llama-3.1-8B", "engine_version": version}))
    never = {name for row in planner.catalog()["known_issues"]
             for name in row["action"].get("unset_env", [])}
    assert "VLLM_USE_V1" in never
    assert not never & set(plan["command"]["env"])


def test_an_orin_is_refused_vllm_and_told_what_serves_there():
    facts = made.jetson_host(cpu={"architecture": "aarch64"})
    found = planner.refusal(planner.plan(
        facts, {"model": "Qwen/Qwen2.5-7B-Instruct-AWQ"},
        models={"Qwen/Qwen2.5-7B-Instruct-AWQ": planner.model("Qwen2.5-7B-AWQ")}))
    assert found["id"] == "plan-no-engine"
    assert "inference_endpoints[0] (chat).model" in found["remedy"]
    assert "llama_cpp" in found["remedy"]
    assert "Qwen/Qwen2.5-7B-Instruct-GGUF" in found["remedy"]
