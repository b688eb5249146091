# SPDX-License-Identifier: Apache-2.0
"""Facts, models and catalog in, plan out: every choice and every refusal says why."""

from __future__ import annotations

import configparser
import json
import re
import shlex

import planner
import pytest
import strategies
from facts import GIB, changed, cpu_host, holder, host, jetson_host, piece, uuid
from hypothesis import given

from ansible.module_utils.firstlight import canary
from ansible.module_utils.firstlight.planning import placement, service_text
from ansible.module_utils.firstlight.planning.start_budget import FLOOR_SECONDS

PATH = "/srv/models/qwen.gguf"
SAFETENSORS = "/srv/models/qwen/"
NAME = "Qwen2.5-0.5B"
# Keys and values of 24 layers with 2 heads of 64 numbers of 16 bits.
PER_TOKEN = 2 * 24 * 2 * 64 * 2
WHERE = "inference_endpoints[0] (chat)."


def model(**changes):
    return planner.gguf(NAME, size=500 * 2**20, quantisation="Q8_0", **changes)


def planned(*entries, facts=None, state=None, catalog=None, **changes):
    """The answer for a small GGUF on a CPU host; ``changes`` are of the model."""
    models = {PATH: model(**changes), SAFETENSORS: planner.model(NAME, **changes)}
    return planner.plan(facts or planner.cpu(),
                        *({"model": PATH, **one} for one in entries or ({},)),
                        models=models, state=state, catalog=catalog)


def only_plan(*args, **kwargs):
    return planner.only(planned(*args, **kwargs))


def only_refusal(*args, **kwargs):
    found = planner.refusal(planned(*args, **kwargs))
    assert found["subject"].startswith(WHERE)
    assert found["found"]
    assert found["wanted"]
    return found


def native_row():
    return planner.row(engine="llama_cpp", runtime="native")


def test_the_canary_on_a_cpu_host_is_one_plan():
    endpoint = only_plan({"model": "canary", "name": "demo", "port": 8123})
    row = native_row()
    assert endpoint["engine"] == "llama_cpp"
    assert endpoint["engine_version"] == row["version"]
    assert endpoint["environment"] == "%s-%s-a1b2c3d4" % (row["package"], row["version"])
    assert endpoint["model"]["path"] == planner.ROOT + "/models/canary/" + canary.GGUF
    assert endpoint["model"]["served_name"] == "canary"
    assert endpoint["url"] == "http://127.0.0.1:8123"
    assert endpoint["context"] == canary.describe()["context"]
    assert endpoint["oracle"] == canary.oracle()
    assert endpoint["packages"] == []
    assert endpoint["start_timeout_s"] >= FLOOR_SECONDS
    assert len(endpoint["reasons"]) >= 4
    assert all(reason.endswith(".") for reason in endpoint["reasons"])


def test_the_same_input_gives_the_same_bytes_and_changes_none_of_it():
    facts, state, catalog = planner.host("h100", 2), planner.state(), planner.catalog()
    models = {PATH: model(), SAFETENSORS: planner.model(NAME)}
    given_ = [facts, state, catalog, models]
    before = json.dumps(given_)
    first, second = (json.dumps(planner.plan(
        facts, {"model": PATH}, {"model": SAFETENSORS, "tensor_parallel": 1}, models=models,
        state=state, catalog=catalog)) for _ in range(2))
    assert first == second
    assert json.dumps(given_) == before


DECISIONS = {
    "nothing": {},
    "port": {"asked": {"port": 9000}},
    "context": {"asked": {"context": 2048}},
    "extra arguments": {"asked": {"extra_args": ["--metrics"]}},
    "name": {"asked": {"name": "other"}},
    "the model's content": {"fingerprint": "beef"},
    "the environment": {"catalog": {"environments": {"xllamacpp.txt": "ffffffffff"}}},
    "the root": {"state": {"root": "/home/ann/firstlight"}},
}


def hash_with(asked=None, state=None, catalog=None, facts=None, **changes):
    return only_plan(asked or {}, facts=changed(planner.cpu(), facts or {}),
                     state=planner.state(**state or {}),
                     catalog=planner.catalog(**catalog or {}), **changes)["hash"]


def test_every_decision_has_a_hash_of_its_own():
    assert len({hash_with(**DECISIONS[case]) for case in DECISIONS}) == len(DECISIONS)


LOAD = {
    "available memory": {"facts": {"memory": {"available_bytes": 1}}},
    "free memory": {"facts": {"memory": {"free_bytes": 1}}},
    "swap": {"facts": {"memory": {"swap_bytes": 8 * GIB}}},
    "cores": {"facts": {"cpu": {"cores": 1}}},
    "kernel": {"facts": {"system": {"kernel": "6.8.0"}}},
    "who asks": {"state": {"uid": 0}},
    "a patch of Python": {"state": {"python": {"version": "3.11.9", "venv": True}}},
    "more memory than is needed": {"facts": {"memory": {"total_bytes": 64 * GIB}}},
}


@pytest.mark.parametrize("case", LOAD)
def test_a_fact_that_decides_nothing_leaves_the_hash(case):
    assert hash_with(**LOAD[case]) == hash_with()


# Which device: the CPU where it is asked for, GPUs where the host has some.


def test_a_gpu_host_gets_a_plan_for_its_gpu():
    endpoint = only_plan(facts=planner.host("h100", 1))
    assert endpoint["gpus"] == [uuid(0)]
    assert (endpoint["engine"], endpoint["runtime"]) == ("llama_cpp", "docker")
    assert "--n-gpu-layers" in endpoint["command"]["argv"]


def test_a_gpu_host_serves_on_the_cpu_when_asked():
    endpoint = only_plan({"gpus": 0}, facts=planner.host("h100", 1))
    assert endpoint["gpus"] == []
    assert endpoint["runtime"] == "native"
    assert any("gpus is 0" in reason for reason in endpoint["reasons"])


@pytest.mark.parametrize("kind", ["nvidia", "jetson", "unified"])
def test_a_gpu_host_whose_devices_are_unknown_is_a_gpu_host(kind):
    """It is not served on the CPU by surprise."""
    found = only_refusal(facts=host([], **{"class": kind}))
    assert found["subject"] == WHERE + "gpus"
    assert "no device" in found["found"]


def test_a_device_without_a_name_is_called_that():
    facts = planner.host("h100", 1)
    facts["devices"][0]["name"] = None
    assert "without a name" in only_plan(facts=facts)["reasons"][0]


@pytest.mark.parametrize("figure", [
    {"memory_total_bytes": None}, {"memory_total_bytes": 0},
    {"memory_total_bytes": GIB, "memory_reserved_bytes": GIB}])
def test_a_gpu_whose_memory_is_not_known_is_refused(figure):
    for path in (PATH, SAFETENSORS):
        facts = host([planner.gpu("h100", **figure)])
        assert only_refusal({"model": path}, facts=facts)["id"] in (
            "plan-memory-unknown", "plan-does-not-fit")


def test_a_thor_whose_memory_is_not_known_is_refused():
    facts = jetson_host(cpu={"architecture": "aarch64"}, memory={"total_bytes": None},
                        jetson={"l4t": "38.2"},
                        devices=[planner.gpu("thor", unified_memory=True)])
    assert only_refusal({"model": SAFETENSORS}, facts=facts)["id"] == "plan-memory-unknown"


def test_a_device_that_its_host_shares_is_not_planned_full():
    """What the system needs of a Jetson's memory is not the engine's."""
    facts = jetson_host(cpu={"architecture": "aarch64"})
    most = only_plan(facts=facts)["memory"]
    assert most["limit_bytes"] <= 0.9 * facts["memory"]["total_bytes"]


def test_what_a_jetsons_gpu_serves_is_not_the_cpus_too():
    facts = jetson_host(cpu={"architecture": "aarch64"})
    first, second = planned({}, {"gpus": 0}, facts=facts, bytes=5 * GIB)["endpoints"]
    assert second["memory"]["limit_bytes"] + first["memory"]["total_bytes"] <= facts["memory"][
        "total_bytes"]


def test_a_slice_is_a_device_of_its_own_size():
    split = {"mig": {"enabled": True, "pending": True,
                     "slices": [piece(1, 20 * GIB, 20 * GIB), piece(2, 40 * GIB, 40 * GIB)]}}
    endpoint = only_plan({"gpus": ["MIG-1"]}, facts=host([planner.gpu("h100", **split)]))
    assert endpoint["gpus"] == ["MIG-1"]
    assert endpoint["memory"]["limit_bytes"] == 20 * GIB


def test_an_order_of_devices_is_no_matter():
    facts = planner.host("h100", 4)
    entries = ({"model": SAFETENSORS, "gpus": 2}, {"model": PATH})
    before = [one["hash"] for one in planned(*entries, facts=facts)["endpoints"]]
    facts["devices"].reverse()
    assert [one["hash"] for one in planned(*entries, facts=facts)["endpoints"]] == before
    assert len(before) == 2


def test_two_endpoints_do_not_share_a_device():
    one, two = planned({}, {}, facts=planner.host("h100", 2))["endpoints"]
    assert (one["gpus"], two["gpus"]) == ([uuid(0)], [uuid(1)])
    answer = planned({}, {}, facts=planner.host("h100", 1))
    assert [each["name"] for each in answer["endpoints"]] == ["chat"]
    assert "it is for the endpoint chat" in answer["refusals"][0]["found"]


def test_a_device_that_another_holds_is_left_alone_and_it_is_said():
    facts = planner.host("h100", 2)
    facts["devices"][0]["holders"] = [holder(9, GIB, user="eve")]
    endpoint = only_plan(facts=facts)
    assert endpoint["gpus"] == [uuid(1)]
    assert any("pid 9 of eve" in reason for reason in endpoint["reasons"])


def test_devices_that_are_named_twice_are_one_device_or_refused_for_that():
    facts = planner.host("h100", 2)
    answer = planned({"gpus": [uuid(0), uuid(0)]}, facts=facts)
    assert [one["gpus"] for one in answer["endpoints"]] == [[uuid(0)]] or "several" not in answer[
        "refusals"][0]["id"]


def test_more_devices_than_the_host_has_are_refused_with_the_commands_for_several():
    found = only_refusal({"model": SAFETENSORS, "gpus": 4, "tensor_parallel": 2},
                         facts=planner.host("h100", 2))
    assert found["id"] == "plan-several-nodes"
    assert "--nnodes 2" in found["remedy"]
    assert "--distributed-executor-backend ray" in found["remedy"]


def test_devices_that_are_busy_or_apart_are_not_made_up_by_other_hosts():
    """The host has as many as are asked for: what keeps them is said."""
    busy = planner.host("h100", 4)
    busy["devices"][0]["holders"] = [holder(812, GIB, user="eve")]
    found = only_refusal({"model": SAFETENSORS, "gpus": 4}, facts=busy)
    assert "pid 812 of eve" in found["found"]
    assert "--nnodes" not in found["remedy"]
    apart = planner.host("h100", 4)
    for index, one in enumerate(apart["devices"]):
        one["nvlink"]["clique"] = index // 2
    found = only_refusal({"model": SAFETENSORS, "gpus": 4}, facts=apart)
    assert "NVLink clique" in found["found"] + found["wanted"]


def test_endpoints_that_change_places_get_their_plans():
    """What an endpoint has and leaves is not kept from the one that asks for it."""
    facts = planner.host("h100", 2)
    entries = [{"name": "a", "gpus": [uuid(0)]}, {"name": "b", "gpus": [uuid(1)]}]
    first = planned(*entries, facts=facts)["endpoints"]
    state = planner.state({one["name"]: planner.serving(one, (number,))
                           for number, one in enumerate(first, 1)})
    answer = planned({**entries[0], "gpus": [uuid(1)]}, {**entries[1], "gpus": [uuid(0)]},
                     facts=facts, state=state)
    assert [one["gpus"] for one in answer["endpoints"]] == [[uuid(1)], [uuid(0)]]


def test_a_device_that_an_endpoint_leaves_for_the_cpu_is_free():
    facts = planner.host("h100", 1)
    first = only_plan({"name": "a"}, facts=facts)
    answer = planned({"name": "a", "gpus": 0}, {"name": "b"}, facts=facts,
                     state=planner.state({"a": planner.serving(first)}))
    assert [one["gpus"] for one in answer["endpoints"]] == [[], [uuid(0)]]


# Refusals.

REFUSALS = {
    "engine that is for GPUs": ({"engine": "vllm"}, {}, "engine", "gguf"),
    "runtime that has no release": ({"runtime": "native", "model": SAFETENSORS}, {}, "model",
                                    "the CPU"),
    "container that nobody asked for": ({"model": SAFETENSORS, "engine": "vllm",
                                         "engine_version": "0.32.0"}, {}, "runtime", "the CPU"),
    "version that is none": ({"engine_version": "0.0.1"}, {}, "engine_version", "a release of"),
    "format that it does not read": ({"model": SAFETENSORS, "engine": "llama_cpp"}, {}, "engine",
                                     "safetensors"),
    "unknown architecture": ({}, {"facts": {"cpu": {"architecture": "riscv64"}}}, "engine",
                             "riscv64"),
    "a GPU": ({"gpus": 1}, {}, "gpus", "auto or 0"),
    "GPUs by UUID": ({"gpus": ["GPU-1"]}, {}, "gpus", "auto or 0"),
    "a split over devices": ({"tensor_parallel": 2}, {}, "tensor_parallel", "auto or 1"),
    "unknown flag": ({"extra_args": ["--n-gpu-layers", "9"]}, {}, "extra_args", "--threads"),
    "flag that the plan decides": ({"extra_args": ["--port=1"]}, {}, "extra_args", "--threads"),
    "help": ({"extra_args": ["-h"]}, {}, "extra_args", "--threads"),
    "type of the cache": ({"extra_args": ["-ctk", "f17"]}, {}, "extra_args", "q8_0"),
    "batch that is none": ({"extra_args": ["-ub", "many"]}, {}, "extra_args", "whole number"),
    "flag without its value": ({"extra_args": ["-ub"]}, {}, "extra_args", "whole number"),
    "memory unknown": ({}, {"facts": {"memory": {"total_bytes": None}}}, "context", "MemTotal"),
    "no weights": ({}, {"bytes": 0}, "model", "in bytes"),
    "a model below nothing": ({}, {"bytes": -1}, "model", "in bytes"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_names_the_key_and_what_would_work(case):
    asked, changes, key, works = REFUSALS[case]
    rest = {name: value for name, value in changes.items() if name != "facts"}
    found = only_refusal(asked, facts=changed(planner.cpu(), changes.get("facts", {})), **rest)
    assert found["subject"] == WHERE + key
    assert works in found["wanted"]
    assert "None" not in found["found"]


SHAPE = ["layers", "hidden", "heads", "kv_heads", "head_dim", "value_head_dim", "vocabulary"]


@pytest.mark.parametrize("value", [None, 0, -1])
@pytest.mark.parametrize("key", SHAPE)
@pytest.mark.parametrize("path", [PATH, SAFETENSORS])
def test_a_model_without_a_part_of_its_shape_is_refused_by_its_name(path, key, value):
    facts = planner.cpu() if path == PATH else planner.host("h100", 1)
    found = only_refusal({"model": path}, facts=facts, geometry={key: value})
    assert found["id"] == "plan-geometry-unknown"
    assert found["subject"] == WHERE + "model"
    assert key in found["found"]


def test_everything_that_a_model_does_not_say_is_told_at_once():
    found = only_refusal(geometry={"layers": None, "vocabulary": None})["found"]
    assert "layers" in found
    assert "vocabulary" in found


@pytest.mark.parametrize("path", [PATH, SAFETENSORS])
def test_a_model_with_no_attention_is_planned_or_refused(path):
    answer = planned({"model": path}, facts=planner.host("h100", 1),
                     geometry={"attention_layers": 0, "sliding_layers": 0})
    assert len(answer["endpoints"]) + len(answer["refusals"]) == 1


def test_experts_need_their_width_and_their_number():
    mixtral = planner.model("Mixtral-8x7B", geometry={"moe_intermediate": None})
    found = planner.refusal(planner.plan(planner.host("h200", 2), {"model": "/m"},
                                         models={"/m": mixtral}))
    assert "moe_intermediate" in found["found"]


def test_a_model_that_nobody_read_is_refused():
    found = planner.refusal(planner.plan(planner.cpu(), {"model": "/m"}, models={}))
    assert found["id"] == "plan-model-unknown"
    assert "/m" in found["found"]


def test_a_python_too_old_is_told_of_the_setting_that_names_another():
    state = planner.state(python={"version": "3.9.18", "venv": True})
    found = only_refusal(state=state)
    assert found["subject"] == WHERE + "engine"
    assert "3.9.18" in found["found"]
    assert "3.10" in found["found"]
    assert "ansible_python_interpreter" in found["found"]


def test_an_empty_catalog_refuses_everything():
    catalog = planner.catalog(engine_releases=[])
    assert "empty" in only_refusal(catalog=catalog)["found"]


def test_a_refused_flag_does_not_show_its_value():
    found = only_refusal({"extra_args": ["--api-key=hunter2"]})
    assert found["found"] == "--api-key"
    assert "hunter2" not in repr(found)


def test_known_flags_and_negative_numbers_pass():
    args = ["--threads=4", "-tb", "-1", "--metrics", "-fa", "on"]
    assert only_plan({"extra_args": args})["command"]["argv"][-6:] == args


@pytest.mark.parametrize("path", [PATH, SAFETENSORS])
def test_no_flag_of_the_plan_can_be_given_again(path):
    """What memory is reckoned with from the user's flags, the plan says the same of."""
    facts = planner.host("a100-40", 2)
    argv = only_plan({"model": path, "gpus": 2}, facts=facts)["command"]["argv"]
    flags = [word for word in argv if word.startswith("--")]
    assert len(flags) > 6
    free = {flag for flag in flags if not planned(
        {"model": path, "extra_args": [flag, "1"]}, facts=facts)["refusals"]}
    assert free <= {"--max-num-batched-tokens", "--max-num-seqs"}


def test_a_flag_with_low_lines_is_the_same_flag_to_vllm():
    found = only_refusal({"model": SAFETENSORS, "extra_args": ["--max_model_len=1"]},
                         facts=planner.host("h100", 1))
    assert found["id"] == "plan-decided-flag"


def test_a_flag_that_the_release_has_no_more_is_refused_before_the_start():
    found = only_refusal({"model": SAFETENSORS, "extra_args": ["--swap-space", "4"]},
                         facts=planner.host("h100", 1))
    assert found["id"] == "plan-removed-flag"
    assert found["found"] == "--swap-space"


def test_memory_follows_the_flags_that_it_depends_on():
    facts = planner.host("h100", 1)
    plain = only_plan({"model": SAFETENSORS}, facts=facts)
    half = only_plan({"model": SAFETENSORS, "extra_args": ["--kv-cache-dtype", "fp8"]},
                     facts=facts)
    assert half["memory"]["kv_bytes_per_token"] * 2 == plain["memory"]["kv_bytes_per_token"]
    wide = only_plan({"model": SAFETENSORS, "extra_args": ["--max-num-batched-tokens=32768"]},
                     facts=facts)
    assert wide["memory"]["activation_bytes"] > plain["memory"]["activation_bytes"]
    assert wide["batched_tokens"] == 32768
    eager = only_plan({"model": SAFETENSORS, "extra_args": ["--enforce-eager"]}, facts=facts)
    assert eager["memory"]["graph_bytes"] == 0


@pytest.mark.parametrize(("distribution", "like", "package"), [
    ("debian", [], "libgomp1"), ("ubuntu", ["debian"], "libgomp1"),
    ("rocky", ["rhel", "centos", "fedora"], "libgomp"), ("opensuse-leap", ["suse"], "libgomp1"),
])
def test_a_missing_library_is_installed_by_root_and_asked_of_root(distribution, like, package):
    facts = planner.cpu(system={"distribution": distribution, "like": like})
    missing = {"missing_libraries": ["libgomp.so.1"]}
    found = only_refusal(facts=facts, state=planner.state(uid=1000, **missing))
    assert found["id"] == "plan-library-missing"
    assert found["needs_root"]
    assert "package %s as root" % package in found["remedy"]
    endpoint = only_plan(facts=facts, state=planner.state(**missing))
    assert endpoint["packages"] == [package]
    assert any(package in reason for reason in endpoint["reasons"])


def test_a_missing_library_on_an_unknown_distribution_is_refused_to_root_too():
    found = only_refusal(facts=planner.cpu(system={"distribution": None, "like": []}),
                         state=planner.state(missing_libraries=["libgomp.so.1"]))
    assert "libgomp.so.1" in found["found"]


def test_a_missing_library_that_nobody_needs_is_no_matter():
    assert only_plan(state=planner.state(missing_libraries=["libcuda.so.1"]))["packages"] == []


# The context.


def with_room_for(tokens):
    """The facts of a host that has memory for the model, the margin and this many tokens."""
    # The engine gives its cache out in blocks: those that so many tokens touch, and no more.
    memory = only_plan({"context": tokens})["memory"]
    share = memory["error_bytes"] / memory["limit_bytes"]
    limit = memory["total_bytes"] / (1 - share)
    return changed(cpu_host(), {"memory": {"total_bytes": int(limit / placement.SHARE_OF_RAM)
                                           + 16}})


def test_auto_gives_its_limit_where_more_would_fit():
    endpoint = only_plan()
    assert endpoint["context"] == placement.AUTO_CONTEXT_CPU
    assert any("ask for more" in reason for reason in endpoint["reasons"])


def test_auto_gives_what_fits_where_its_limit_does_not():
    endpoint = only_plan(facts=with_room_for(768))
    assert endpoint["context"] == 768
    assert any("most that fits" in reason for reason in endpoint["reasons"])


def test_auto_gives_all_that_a_short_model_was_trained_for():
    endpoint = only_plan(geometry={"context": 2000})
    assert endpoint["context"] == 2000
    assert any("trained" in reason for reason in endpoint["reasons"])


def test_a_model_that_does_not_say_its_context_gets_autos_limit():
    assert only_plan(geometry={"context": None})["context"] == placement.AUTO_CONTEXT_CPU


def test_what_is_asked_for_is_given_up_to_the_trained_context():
    endpoint = only_plan({"context": 32768})
    assert endpoint["context"] == 32768
    # The mask of the engine takes a little beside.
    assert 32768 * PER_TOKEN <= endpoint["memory"]["kv_bytes"] < 32768 * PER_TOKEN * 1.1


@pytest.mark.parametrize(("path", "facts"), [
    (PATH, planner.cpu()), (PATH, planner.host("h100", 1)), (SAFETENSORS, planner.host("h100", 1)),
], ids=["CPU", "GGUF", "safetensors"])
def test_a_context_beyond_the_trained_one_is_refused(path, facts):
    found = only_refusal({"model": path, "context": 32769}, facts=facts)
    assert found["id"] == "plan-context-beyond-model"
    assert "at most 32768 tokens, as the model was trained" in found["wanted"]


@pytest.mark.parametrize("asked", [2000, 40000])
def test_a_context_beyond_memory_is_refused_with_what_fits(asked):
    found = only_refusal({"context": asked}, facts=with_room_for(1024))
    assert found["id"] == "plan-does-not-fit"
    assert found["wanted"] == "at most 1024 tokens"
    assert only_plan({"context": 1024}, facts=with_room_for(1024))["context"] == 1024


@pytest.mark.parametrize("asked", ["auto", 4096, 40000])
def test_a_model_too_big_for_the_host_is_refused_with_sizes(asked):
    found = only_refusal({"context": asked}, bytes=40 * GIB)
    assert found["id"] == "plan-does-not-fit"
    assert "40.0 GiB" in found["found"]
    assert "smaller model" in found["remedy"]


def test_a_host_with_room_for_the_weights_alone_is_told_of_all_that_takes_room():
    found = only_refusal({"context": 100}, facts=with_room_for(200))
    assert "weights 0.5 GiB" in found["found"]
    assert "each token up to 12 KiB" in found["found"]
    assert "margin" in found["found"]
    assert "leaves no room for a context" in found["remedy"]


def test_more_devices_are_recommended_where_the_context_had_to_be_cut():
    cut = planner.only(planner.plan(planner.host("a100-40", 4),
                                    {"model": "/m/Llama-3.1-70B"}))
    assert cut["context"] < placement.AUTO_CONTEXT_GPU
    [advice] = [one for one in cut["reasons"] if "recommended" in one]
    assert "8 such devices" in advice
    whole = planner.only(planner.plan(planner.host("a100-40", 8), {"model": "/m/Llama-3.1-70B"}))
    assert whole["context"] == placement.AUTO_CONTEXT_GPU
    assert len(whole["gpus"]) == 8
    assert not [one for one in whole["reasons"] if "recommended" in one]


def test_all_takes_every_device_and_auto_as_few_as_will_do():
    facts = planner.host("h100", 4)
    auto = planner.only(planner.plan(facts, {"model": "/m/Llama-3.1-8B"}))
    every = planner.only(planner.plan(facts, {"model": "/m/Llama-3.1-8B", "gpus": "all"}))
    assert (len(auto["gpus"]), len(every["gpus"])) == (1, 4)
    assert every["tensor_parallel"] == 4


def test_two_endpoints_share_one_budget():
    asked = [{"name": name} for name in "abc"]
    one, two = planned(*asked[:2], bytes=11 * GIB)["endpoints"]
    budget = int(32 * GIB * placement.SHARE_OF_RAM)
    assert one["memory"]["limit_bytes"] == budget
    assert two["memory"]["limit_bytes"] == budget - one["memory"]["total_bytes"]
    result = planned(*asked, bytes=11 * GIB)
    assert [each["name"] for each in result["endpoints"]] == ["a", "b"]
    [refusal] = result["refusals"]
    assert refusal["subject"] == "inference_endpoints[2] (c).context"


def read_by_supervisord(line):
    """What supervisord 4 makes of ``command=``: its INI parser, two expansions, then shlex."""
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";", "#"), strict=False)
    parser.read_string("[program:chat]\ncommand=%s\n" % line)
    value = parser.get("program:chat", "command").replace("%(here)s", "/here")
    return shlex.split(value % {"here": "/here", "ENV_HOME": "/root"})


@given(strategies.WORDS)
def test_supervisord_reads_the_words_that_were_written(argv):
    line = service_text.supervisor_command(argv)
    assert shlex.split(line.replace("%%", "%")) == argv
    assert read_by_supervisord(line) == argv


ESCAPES = {"\\": "\\", '"': '"', "'": "'", "s": " ", "n": "\n", "t": "\t"}


def read_by_systemd(line, environment):
    """What systemd makes of ``ExecStart=``: systemd.service(5), "Command lines"."""
    words, word, quote, at = [], None, "", 0
    while at < len(line):
        character = line[at]
        if character == "\\":
            at += 1
            word = (word or "") + ESCAPES[line[at]]
        elif quote:
            if character == quote:
                quote = ""
            else:
                word += character
        elif character in "\"'":
            quote, word = character, word or ""
        elif character == " ":
            words, word = words + ([] if word is None else [word]), None
        else:
            word = (word or "") + character
        at += 1
    assert not quote, "a quote is not closed"
    words += [] if word is None else [word]
    expanded = [re.sub("%(.)", lambda m: {"%": "%", "h": "/root"}[m.group(1)], one)
                for one in words]
    return [re.sub(r"\$(\$|\{(\w+)\}|(\w+))",
                   lambda m: "$" if m.group(1) == "$" else environment[m.group(2) or m.group(3)],
                   one) for one in expanded]


@given(strategies.WORDS)
def test_systemd_reads_the_words_that_were_written(argv):
    assert read_by_systemd(service_text.systemd_command(argv), {}) == argv


def test_the_unquoter_of_these_tests_unquotes():
    assert read_by_systemd(r'''a "b \"c" 'd e' %h/%% $$X ${V} ""''', {"V": "v"}) == [
        "a", 'b "c', "d e", "/root/%", "$X", "v", ""]
