# SPDX-License-Identifier: Apache-2.0
"""Facts, models and catalog in, plan out: every choice and every refusal says why."""

from __future__ import annotations

import configparser
import copy
import json
import re
import shlex
from pathlib import Path

import pytest
import strategies
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible.module_utils.firstlight import canary
from ansible.module_utils.firstlight.planning import memory, plan, requests, service_text
from ansible.module_utils.firstlight.planning.command import engine_command

GIB = 2**30
ROOT = "/var/lib/firstlight"
PATH = "/srv/models/qwen.gguf"
SAFETENSORS = "/srv/models/qwen/"
GPU = {"class": "nvidia", "devices": [{"name": "NVIDIA A100-PCIE-40GB"}]}

FACTS = {
    "class": "cpu",
    "driver": None,
    "devices": [],
    "cpu": {"architecture": "x86_64", "cores": 8, "model": "AMD EPYC"},
    "memory": {"total_bytes": 32 * GIB, "available_bytes": 30 * GIB, "swap_bytes": 0},
    "system": {"kernel": "6.1.0", "distribution": "ubuntu", "version": "24.04",
               "like": ["debian"], "libc": "glibc 2.39"},
}
STATE = {"root": ROOT, "uid": 1000, "manager": "supervisor", "missing_libraries": [],
         "python": {"version": "3.11.2", "venv": True}}
GEOMETRY = {"architecture": "qwen2", "layers": 24, "hidden": 896, "heads": 14, "kv_heads": 2,
            "head_dim": 64, "context": 32768, "vocabulary": 151936}
MODEL = {"path": PATH, "format": "gguf", "files": 1, "bytes": 500 * 2**20, "fingerprint": "f00d",
         "name": "Qwen", "quantisation": "Q8_0", "chat_template": True, "geometry": GEOMETRY}
PER_TOKEN = 2 * 24 * 2 * 64 * 2


@pytest.fixture(scope="module")
def catalog():
    catalog = Path(__file__).parents[2] / "catalog" / "engine_releases.yml"
    rows = yaml.safe_load(catalog.read_text())
    return {"engine_releases": rows, "environments": {row["lock"]: "a1b2c3d4e5" for row in rows}}


def merged(base, changes):
    """A deep copy of ``base`` with the values at dotted paths changed."""
    result = copy.deepcopy(base)
    for path, value in changes.items():
        *parents, last = path.split("__")
        inner = result
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    return result


def planned(catalog, *asked, facts=FACTS, state=STATE, model=MODEL):
    entries = [{"name": "chat", "model": PATH, **one} for one in asked or ({},)]
    taken, wrong = requests.normalise(entries)
    assert wrong == []
    models = {PATH: model, SAFETENSORS: {**model, "format": "safetensors"}}
    return plan.deployment_plan(taken, facts, models, state, catalog)


def only_plan(*args, **kwargs):
    result = planned(*args, **kwargs)
    assert result["refusals"] == []
    [endpoint] = result["endpoints"]
    return endpoint


def only_refusal(*args, **kwargs):
    result = planned(*args, **kwargs)
    assert result["endpoints"] == []
    [refusal] = result["refusals"]
    assert refusal["subject"].startswith("inference_endpoints[0] (chat).")
    assert refusal["found"]
    assert refusal["wanted"]
    return refusal


def newest(catalog):
    """The newest release of llama.cpp: rows are sorted."""
    return [row for row in catalog["engine_releases"] if row["engine"] == "llama_cpp"][-1]


def test_the_canary_on_a_cpu_host_is_one_plan(catalog):
    endpoint = only_plan(catalog, {"model": "canary", "name": "demo", "port": 8123})
    row = newest(catalog)
    assert endpoint["engine"] == "llama_cpp"
    assert endpoint["engine_version"] == row["version"]
    assert endpoint["environment"] == "%s-%s-a1b2c3d4" % (row["package"], row["version"])
    assert endpoint["model"]["path"] == ROOT + "/models/canary/" + canary.GGUF
    assert endpoint["model"]["served_name"] == "canary"
    assert endpoint["url"] == "http://127.0.0.1:8123"
    assert endpoint["context"] == canary.describe()["context"]
    assert endpoint["oracle"] == canary.oracle()
    assert endpoint["packages"] == []
    assert endpoint["start_timeout_s"] >= plan.START_SECONDS_FLOOR
    assert len(endpoint["reasons"]) >= 4
    assert all(reason.endswith(".") for reason in endpoint["reasons"])


def test_the_command_serves_the_plan(catalog):
    endpoint = only_plan(catalog, {"port": 9000, "context": 4096, "extra_args": ["-t", "4"]})
    argv = endpoint["command"]["argv"]
    assert argv[0] == endpoint["venv"] + "/bin/python"
    flags = dict(zip(argv[2:], argv[3:]))
    assert flags["--model"] == PATH
    assert flags["--alias"] == "qwen"
    assert flags["--host"] == "127.0.0.1"
    assert flags["--port"] == "9000"
    assert flags["--ctx-size"] == "4096"
    assert argv[-2:] == ["-t", "4"]
    assert endpoint["command"] == engine_command(endpoint)


def test_a_dialect_that_nobody_speaks_is_an_error(catalog):
    with pytest.raises(KeyError):
        engine_command({**only_plan(catalog), "dialect": "esperanto"})


def test_the_same_input_gives_the_same_bytes_and_changes_none_of_it(catalog):
    before = json.dumps([catalog, FACTS, STATE, MODEL])
    first, second = (json.dumps(planned(catalog, {}, {"name": "b", "port": 1})) for _ in range(2))
    assert first == second
    assert json.dumps([catalog, FACTS, STATE, MODEL]) == before


DECISIONS = {
    "port": {"asked": {"port": 9000}},
    "context": {"asked": {"context": 2048}},
    "extra arguments": {"asked": {"extra_args": ["--metrics"]}},
    "name": {"asked": {"name": "other"}},
    "the model's content": {"model": {"fingerprint": "beef"}},
    "the environment": {"catalog": {"environments__xllamacpp.txt": "ffffffffff"}},
    "the root": {"state": {"root": "/home/ann/firstlight"}},
}


def hash_with(catalog, changes=None):
    changes = changes or {}
    return only_plan(
        merged(catalog, changes.get("catalog", {})), changes.get("asked", {}),
        facts=merged(FACTS, changes.get("facts", {})),
        state=merged(STATE, changes.get("state", {})),
        model=merged(MODEL, changes.get("model", {})),
    )["hash"]


def test_every_decision_has_a_hash_of_its_own(catalog):
    hashes = {hash_with(catalog, DECISIONS[case]) for case in DECISIONS}
    assert len(hashes | {hash_with(catalog)}) == len(DECISIONS) + 1


LOAD = {
    "free memory": {"facts": {"memory__available_bytes": 1}},
    "swap": {"facts": {"memory__swap_bytes": 8 * GIB}},
    "cores": {"facts": {"cpu__cores": 1}},
    "kernel": {"facts": {"system__kernel": "6.8.0"}},
    "who asks": {"state": {"uid": 0}},
    "a patch of Python": {"state": {"python__version": "3.11.9"}},
    "more memory than is needed": {"facts": {"memory__total_bytes": 64 * GIB}},
}


@pytest.mark.parametrize("case", LOAD)
def test_a_fact_that_decides_nothing_leaves_the_hash(catalog, case):
    assert hash_with(catalog, LOAD[case]) == hash_with(catalog)


def test_a_gpu_host_is_refused_a_cpu_build_that_nobody_asked_for(catalog):
    refusal = only_refusal(catalog, facts={**FACTS, **GPU})
    assert refusal["id"] == "plan-cpu-build-on-gpu-host"
    assert "A100" in refusal["found"]
    assert "gpus: 0" in refusal["remedy"]


@pytest.mark.parametrize("kind", ["nvidia", "jetson"])
def test_a_gpu_host_whose_devices_are_unknown_is_a_gpu_host(catalog, kind):
    assert kind in only_refusal(catalog, facts={**FACTS, "class": kind})["found"]


def test_a_device_without_a_name_is_called_that(catalog):
    facts = {**FACTS, "class": "nvidia", "devices": [{"name": None}]}
    assert "unnamed" in only_refusal(catalog, facts=facts)["found"]


def test_a_gpu_host_serves_on_the_cpu_when_asked(catalog):
    endpoint = only_plan(catalog, {"gpus": 0}, facts={**FACTS, **GPU})
    assert endpoint["gpus"] == []
    assert any("gpus is 0" in reason for reason in endpoint["reasons"])


REFUSALS = {
    "engine that is not in the catalog": ({"engine": "vllm"}, {}, "engine", "llama_cpp"),
    "runtime that is not in the catalog": ({"runtime": "docker"}, {}, "runtime", "(native)"),
    "format that it does not read": ({"model": SAFETENSORS}, {}, "model", "gguf"),
    "Python too old": ({}, {"state": {"python__version": "3.9.18"}}, "engine", "3.10"),
    "unknown architecture": ({}, {"facts": {"cpu__architecture": "riscv64"}}, "engine", "aarch64"),
    "a GPU": ({"gpus": 1}, {}, "gpus", "auto or 0"),
    "GPUs by UUID": ({"gpus": ["GPU-1"]}, {}, "gpus", "auto or 0"),
    "a split over devices": ({"tensor_parallel": 2}, {}, "tensor_parallel", "auto or 1"),
    "unknown flag": ({"extra_args": ["--n-gpu-layers", "9"]}, {}, "extra_args", "--threads"),
    "flag that the plan decides": ({"extra_args": ["--port=1"]}, {}, "extra_args", "--threads"),
    "help": ({"extra_args": ["-h"]}, {}, "extra_args", "--threads"),
    "memory unknown": ({}, {"facts": {"memory__total_bytes": None}}, "context", "MemTotal"),
    "layers unknown": ({}, {"model": {"geometry__layers": None}}, "model", "header"),
    "KV heads unknown": ({}, {"model": {"geometry__kv_heads": None}}, "model", "header"),
    "head size unknown": ({}, {"model": {"geometry__head_dim": None}}, "model", "header"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_names_the_key_and_what_would_work(catalog, case):
    asked, changes, key, works = REFUSALS[case]
    refusal = only_refusal(
        catalog, asked, facts=merged(FACTS, changes.get("facts", {})),
        state=merged(STATE, changes.get("state", {})),
        model=merged(MODEL, changes.get("model", {})))
    assert refusal["subject"] == "inference_endpoints[0] (chat)." + key
    assert works in refusal["wanted"]
    assert "None" not in refusal["found"]


def test_a_python_too_old_is_told_of_the_setting_that_names_another(catalog):
    refusal = only_refusal(catalog, state=merged(STATE, {"python__version": "3.9.18"}))
    assert "3.9.18" in refusal["found"]
    assert "ansible_python_interpreter" in refusal["found"]


def test_an_empty_catalog_refuses_everything():
    assert "empty" in only_refusal({"engine_releases": [], "environments": {}})["found"]


def test_the_newest_release_that_fits_is_taken(catalog):
    row = newest(catalog)
    rows = [{**row, "version": "1.0"}, row, {**row, "version": "9999.0", "minimum_python": "3.99"}]
    endpoint = only_plan({**catalog, "engine_releases": rows})
    assert endpoint["engine_version"] == row["version"]


def test_a_refused_flag_does_not_show_its_value(catalog):
    refusal = only_refusal(catalog, {"extra_args": ["--api-key=hunter2"]})
    assert refusal["found"] == "--api-key"
    assert "hunter2" not in repr(refusal)


def test_known_flags_and_negative_numbers_pass(catalog):
    args = ["--threads=4", "-tb", "-1", "--metrics", "-fa", "on"]
    assert only_plan(catalog, {"extra_args": args})["command"]["argv"][-6:] == args


@pytest.mark.parametrize(("distribution", "like", "package"), [
    ("debian", [], "libgomp1"), ("ubuntu", ["debian"], "libgomp1"),
    ("rocky", ["rhel", "centos", "fedora"], "libgomp"), ("opensuse-leap", ["suse"], "libgomp1"),
])
def test_a_missing_library_is_installed_by_root_and_asked_of_root(
        catalog, distribution, like, package):
    facts = merged(FACTS, {"system__distribution": distribution, "system__like": like})
    state = {**STATE, "missing_libraries": ["libgomp.so.1"]}
    refusal = only_refusal(catalog, facts=facts, state=state)
    assert refusal["id"] == "plan-library-missing"
    assert refusal["needs_root"]
    assert "package %s as root" % package in refusal["remedy"]
    endpoint = only_plan(catalog, facts=facts, state={**state, "uid": 0})
    assert endpoint["packages"] == [package]
    assert any(package in reason for reason in endpoint["reasons"])


def test_a_missing_library_on_an_unknown_distribution_is_refused_to_root_too(catalog):
    facts = merged(FACTS, {"system__distribution": None, "system__like": []})
    refusal = only_refusal(catalog, facts=facts,
                           state={**STATE, "uid": 0, "missing_libraries": ["libgomp.so.1"]})
    assert "libgomp.so.1" in refusal["found"]


def test_a_missing_library_that_nobody_needs_is_no_matter(catalog):
    state = {**STATE, "missing_libraries": ["libcuda.so.1"]}
    assert only_plan(catalog, state=state)["packages"] == []


def with_room_for(tokens):
    """The facts of a host that has memory for the model and this many tokens."""
    needed = MODEL["bytes"] + memory.OVERHEAD_BYTES + tokens * PER_TOKEN
    return merged(FACTS, {"memory__total_bytes": int(needed / memory.SHARE_OF_RAM) + 2})


def test_auto_gives_its_limit_where_more_would_fit(catalog):
    endpoint = only_plan(catalog)
    assert endpoint["context"] == memory.AUTO_CONTEXT_LIMIT
    assert any("ask for more" in reason for reason in endpoint["reasons"])


def test_auto_gives_what_fits_where_its_limit_does_not(catalog):
    endpoint = only_plan(catalog, facts=with_room_for(1000))
    assert endpoint["context"] == 768
    assert any("most that fits" in reason for reason in endpoint["reasons"])


def test_auto_gives_all_that_a_short_model_was_trained_for(catalog):
    endpoint = only_plan(catalog, model=merged(MODEL, {"geometry__context": 2000}))
    assert endpoint["context"] == 2000
    assert any("trained" in reason for reason in endpoint["reasons"])


def test_a_model_that_does_not_say_its_context_gets_autos_limit(catalog):
    model = merged(MODEL, {"geometry__context": None})
    assert only_plan(catalog, model=model)["context"] == memory.AUTO_CONTEXT_LIMIT


def test_what_is_asked_for_is_given_up_to_the_trained_context(catalog):
    endpoint = only_plan(catalog, {"context": 32768})
    assert endpoint["context"] == 32768
    assert endpoint["memory"]["kv_bytes"] == 32768 * PER_TOKEN


def test_a_context_beyond_the_trained_one_is_refused(catalog):
    refusal = only_refusal(catalog, {"context": 32769})
    assert refusal["id"] == "plan-context-beyond-model"
    assert "at most 32768 tokens, as the model was trained" in refusal["wanted"]


@pytest.mark.parametrize("asked", [2000, 40000])
def test_a_context_beyond_memory_is_refused_with_what_fits(catalog, asked):
    refusal = only_refusal(catalog, {"context": asked}, facts=with_room_for(1024))
    assert refusal["id"] == "plan-does-not-fit"
    assert refusal["wanted"] == "at most 1024 tokens"
    assert only_plan(catalog, {"context": 1024}, facts=with_room_for(1024))["context"] == 1024


@pytest.mark.parametrize("asked", ["auto", 4096, 40000])
def test_a_model_too_big_for_the_host_is_refused_with_sizes(catalog, asked):
    refusal = only_refusal(catalog, {"context": asked}, model={**MODEL, "bytes": 40 * GIB})
    assert refusal["id"] == "plan-does-not-fit"
    assert "40 GiB" in refusal["found"]
    assert "smaller model" in refusal["remedy"]


def test_a_host_with_room_for_the_weights_alone_is_told_of_all_that_takes_room(catalog):
    refusal = only_refusal(catalog, {"context": 100}, facts=with_room_for(200))
    assert "weights take 500 MiB, the engine 512 MiB, each token 12 KiB" in refusal["found"]
    assert "leaves no room for a context" in refusal["remedy"]


def test_two_endpoints_share_one_budget(catalog):
    model = {**MODEL, "bytes": 12 * GIB}
    asked = [{"name": "a", "port": 1}, {"name": "b", "port": 2}, {"name": "c", "port": 3}]
    one, two = planned(catalog, *asked[:2], model=model)["endpoints"]
    budget = memory.budget_bytes(32 * GIB)
    assert one["memory"]["limit_bytes"] == budget
    assert two["memory"]["limit_bytes"] == budget - one["memory"]["total_bytes"]
    result = planned(catalog, *asked, model=model)
    assert [one["name"] for one in result["endpoints"]] == ["a", "b"]
    [refusal] = result["refusals"]
    assert refusal["subject"] == "inference_endpoints[2] (c).context"


SIZES = st.integers(1, 80 * GIB)
GEOMETRIES = st.fixed_dictionaries({
    "layers": st.integers(1, 130), "kv_heads": st.integers(1, 128),
    "head_dim": st.integers(1, 512), "context": st.none() | st.integers(1, 10**6),
})


@given(total=st.integers(1, 2**43), size=SIZES, geometry=GEOMETRIES,
       asked=st.just("auto") | st.integers(1, 10**6), copies=st.integers(1, 3))
def test_no_host_is_promised_more_than_its_budget(catalog, total, size, geometry, asked, copies):
    result = planned(catalog,
                     *({"name": "n%d" % n, "port": n + 1, "context": asked}
                       for n in range(copies)),
                     facts=merged(FACTS, {"memory__total_bytes": total}),
                     model={**MODEL, "bytes": size, "geometry": geometry})
    assert len(result["endpoints"]) + len(result["refusals"]) == copies
    for one in result["endpoints"]:
        assert one["memory"]["total_bytes"] <= one["memory"]["limit_bytes"]
        assert 1 <= one["context"] <= (geometry["context"] or one["context"])
        assert asked in ("auto", one["context"])
    used = sum(one["memory"]["total_bytes"] for one in result["endpoints"])
    assert used <= memory.budget_bytes(total)


@given(total=st.integers(1, 2**40), more=st.integers(0, 2**40), size=SIZES, geometry=GEOMETRIES)
def test_more_memory_never_gives_a_smaller_context(catalog, total, more, size, geometry):
    def context(bytes_):
        endpoints = planned(catalog, facts=merged(FACTS, {"memory__total_bytes": bytes_}),
                            model={**MODEL, "bytes": size, "geometry": geometry})["endpoints"]
        return endpoints[0]["context"] if endpoints else 0

    assert context(total) <= context(total + more)


@pytest.mark.parametrize(("geometry", "bytes_"), [
    (GEOMETRY, PER_TOKEN), ({"layers": 1, "kv_heads": 1, "head_dim": 1}, 4),
    ({**GEOMETRY, "layers": None}, None), ({**GEOMETRY, "kv_heads": 0}, None), ({}, None),
])
def test_keys_and_values_of_a_token_take_what_their_shape_says(geometry, bytes_):
    assert memory.kv_bytes_per_token(geometry) == bytes_


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


def test_a_release_without_a_cpu_build_is_not_taken_for_the_cpu(catalog):
    row = newest(catalog)
    gpu_only = dict(catalog, engine_releases=[dict(row, devices=["nvidia"])])
    assert "runs on nvidia, not cpu" in only_refusal(gpu_only)["found"]
    newer = dict(row, version="2099.1", devices=["nvidia"])
    both = dict(catalog, engine_releases=[row, newer])
    assert only_plan(both)["engine_version"] == row["version"]
