# SPDX-License-Identifier: Apache-2.0
"""Hosts that do not exist: what a profile makes of them, and what is said of a bad one."""

from __future__ import annotations

import copy
import json
import pathlib
import re

import facts as made
import firstlight
import pytest
import strategies
import yaml
from hypothesis import given
from hypothesis import strategies as st
from model_configs import CONFIGS

from ansible.module_utils.firstlight import findings, model_config
from ansible.module_utils.firstlight.planning import profiles

ROOT = pathlib.Path(__file__).parents[2]
CATALOG = {name: yaml.safe_load((ROOT / "catalog" / (name + ".yml")).read_text())
           for name in ("gpus", "jetson_releases", "jetson_chips", "health_limits", "nvml_errors",
                        "xid_events")}
FILTERS = firstlight.FilterModule().filters()
EXAMPLES = sorted((ROOT / "inventories/example/profiles").glob("*.yml"))
MODEL = "meta-llama/Llama-3.1-8B"
GIB = 2**30


def profile(**changes):
    """A profile of two A100, with changes; a key that is ``None`` is left out."""
    return {key: value for key, value in {
        "name": "rack", "gpus": {"card": "a100-40", "count": 2, "nvlink": True},
        "driver": "580.95.05", "memory_gib": 256,
        "models": {MODEL: {"config": CONFIGS["Llama-3.1-8B"]}},
        "endpoints": [{"name": "chat", "model": MODEL}], **changes}.items() if value is not None}


def read(**changes):
    return profiles.plan_profile(profile(**changes), CATALOG)


def good(**changes):
    found = read(**changes)
    assert found["findings"] == []
    return found


def subjects(found):
    return [one["subject"] for one in found["findings"]]


def kinds(value):
    """The keys of facts and the kinds of their values."""
    if isinstance(value, dict):
        return {key: kinds(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [kinds(one) for one in value[:1]]
    return type(value)


# The examples.


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_is_a_good_profile_of_a_host_that_is_well(file):
    text = file.read_text()
    found = profiles.plan_profile(yaml.safe_load(text), CATALOG)
    assert findings.text(found["findings"]) == ""
    assert found["name"] == file.stem
    judged = FILTERS["host_health"](found["facts"], CATALOG)
    assert (judged["verdict"], judged["findings"]) == ("ok", [])
    assert FILTERS["endpoint_requests"](found["endpoints"])["findings"] == []
    assert len(text.splitlines()) < 40


def test_the_cases_of_the_planner_have_their_examples():
    assert {file.stem for file in EXAMPLES} >= {
        "a100-40-x4-llama-70b", "a100-40-x8-llama-70b", "a100-80-x2-llama-70b", "h200-llama-70b",
        "h200-x2-llama-70b", "l40s-qwen-7b", "six-gpus", "eight-gpus-40-heads", "orin-nx-16-awq",
        "thor", "v100", "cpu-8gb", "mig-3g-20gb", "two-endpoints", "busy-gpus",
        "deepseek-v2-lite", "gemma-3-27b"}


# Facts.


def test_the_facts_have_the_keys_and_kinds_of_facts_that_were_read():
    ours, real = good()["facts"], made.host()
    assert set(ours) == set(real)
    # What a profile does not tell is null and has its reason; everything else is of its kind.
    for key in ("driver", "memory", "cpu", "disk", "system", "containers"):
        assert set(ours[key]) == set(real[key])
    device, sample = ours["devices"][0], made.device()
    assert set(device) == set(sample)
    for key, value in device.items():
        if value is None:
            assert ours["unread"]["devices[0]." + key]["reason"]
        else:
            assert kinds(value) == kinds({**sample, "nvlink": {
                **sample["nvlink"], "peers": [""]}}[key]), key


def test_the_keys_are_those_of_facts_that_were_read_on_a_real_card():
    real = json.loads((ROOT / "tests/fixtures/h200/gpu_facts.json").read_text())
    real = real["result"]["ansible_facts"]["gpu_host"]
    ours = good(gpus={"card": "h200"})["facts"]
    assert set(ours) == set(real)
    assert set(ours["devices"][0]) == set(real["devices"][0])
    assert ours["devices"][0]["memory_total_bytes"] == real["devices"][0]["memory_total_bytes"]


def test_a_figure_is_null_only_with_a_reason():
    for file in EXAMPLES:
        facts = profiles.plan_profile(yaml.safe_load(file.read_text()), CATALOG)["facts"]
        for device in facts["devices"]:
            for key, value in device.items():
                label = "devices[%d].%s" % (device["index"], key)
                assert (value is None) == (label in facts["unread"]), (file.stem, label)


def test_the_same_profile_has_the_same_devices_and_another_name_others():
    first, again, other = good(), good(), good(name="other")
    assert first == again
    uuids = [one["uuid"] for one in first["facts"]["devices"] + other["facts"]["devices"]]
    assert len(set(uuids)) == 4
    assert all(re.fullmatch(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", one)
               for one in uuids)


@pytest.mark.parametrize("card", ["a100-40", "NVIDIA A100-SXM4-40GB", "nvidia a100-sxm4-40gb"])
def test_a_card_is_known_by_either_name(card):
    device = good(gpus={"card": card})["facts"]["devices"][0]
    assert (device["name"], device["memory_total_bytes"]) == (
        "NVIDIA A100-SXM4-40GB", 40 * GIB)
    assert device["memory_free_bytes"] == (
        device["memory_total_bytes"] - device["memory_reserved_bytes"])
    assert device["memory_reserved_bytes"] > 0


@pytest.mark.parametrize(("card", "more", "kind", "architecture"), [
    ("a100-40", {}, "nvidia", "x86_64"), ("gb10", {}, "unified", "aarch64"),
    ("thor", {"l4t": "38.2.0"}, "jetson", "aarch64"),
    ("gh200", {"architecture": "aarch64"}, "nvidia", "aarch64")])
def test_a_host_is_of_the_class_of_its_card(card, more, kind, architecture):
    facts = good(gpus={"card": card}, **more)["facts"]
    assert (facts["class"], facts["cpu"]["architecture"]) == (kind, architecture)


def test_a_host_without_gpus_has_no_driver():
    facts = good(gpus=None, driver=None, cores=4)["facts"]
    assert (facts["class"], facts["driver"], facts["devices"]) == ("cpu", None, [])
    assert (facts["cpu"]["cores"], facts["memory"]["total_bytes"]) == (4, 256 * GIB)


def test_a_jetson_is_told_by_the_catalogs_and_shares_its_memory():
    facts = good(gpus={"card": "orin-nx-16"}, l4t="36.4.3", driver=None, memory_gib=15.5)["facts"]
    assert (facts["jetson"]["jetpack"], facts["jetson"]["soc"], facts["jetson"]["cuda"]) == (
        "6.2", "tegra234", "12.6")
    device = facts["devices"][0]
    assert device["memory_total_bytes"] == facts["memory"]["total_bytes"] == int(15.5 * GIB)
    assert device["memory_free_bytes"] == facts["memory"]["available_bytes"]
    assert device["holders"] is None
    # A release that no row names is unknown, not the one next to it.
    later = good(gpus={"card": "orin-nx-16"}, l4t="36.9.9", driver=None)["facts"]
    assert later["jetson"]["jetpack"] is None
    assert "jetson.jetpack" in later["unread"]


def test_cards_with_nvlink_are_peers_and_others_are_not():
    linked = good()["facts"]["devices"]
    assert [one["nvlink"]["peers"] for one in linked] == [
        [linked[1]["uuid"]], [linked[0]["uuid"]]]
    apart = good(gpus={"card": "a100-40", "count": 2, "nvlink": False})["facts"]
    assert [one["nvlink"] for one in apart["devices"]] == [None, None]


def test_busy_devices_are_held_by_somebody_else():
    facts = good(busy=[0, {"index": 1, "bytes": GIB, "command": "python3 train.py"}])["facts"]
    first, second = (one["holders"][0] for one in facts["devices"])
    assert (second["bytes"], second["command"]) == (GIB, "python3 train.py")
    assert first["bytes"] > 10 * GIB
    for device in facts["devices"]:
        assert device["memory_free_bytes"] + device["memory_reserved_bytes"] + (
            device["holders"][0]["bytes"]) == device["memory_total_bytes"]
    # Whoever holds a card is nothing that a doctor complains of.
    assert FILTERS["host_health"](facts, CATALOG)["verdict"] == "ok"


def test_what_is_busy_of_shared_memory_is_gone_from_the_host_too():
    asked = {"gpus": {"card": "gb10"}, "memory_gib": 120}
    idle, busy = (good(**asked, **more)["facts"] for more in (
        {}, {"busy": [{"index": 0, "bytes": GIB}]}))
    assert idle["memory"]["available_bytes"] - busy["memory"]["available_bytes"] == GIB
    assert busy["devices"][0]["memory_free_bytes"] == busy["memory"]["available_bytes"]


@pytest.mark.parametrize(("name", "count", "cards"), [
    ("3g.20gb", 2, [2]), ("3g.20gb", 3, [2, 1]), ("1g.5gb", 7, [7]), ("1g.10gb", 5, [4, 1]),
    ("7g.40gb", 1, [1])])
def test_slices_are_cut_from_as_many_cards_as_they_need(name, count, cards):
    facts = good(gpus={"mig": {"card": "a100-40", "profile": name, "count": count}})["facts"]
    slices = [one["mig"]["slices"] for one in facts["devices"]]
    assert [len(one) for one in slices] == cards
    for device, pieces in zip(facts["devices"], slices):
        assert sum(one["memory_total_bytes"] for one in pieces) <= device["memory_total_bytes"]
        assert len({one["gpu_instance"] for one in pieces}) == len(pieces)
        assert {one["name"] for one in pieces} == {"NVIDIA A100-SXM4-40GB MIG " + name}
    assert len({one["uuid"] for pieces in slices for one in pieces}) == count


def test_a_busy_slice_leaves_the_others_free():
    facts = good(gpus={"mig": {"card": "a100-40", "profile": "3g.20gb", "count": 2}},
                 busy=[1])["facts"]
    device = facts["devices"][0]
    first, second = device["mig"]["slices"]
    assert first["memory_free_bytes"] == first["memory_total_bytes"]
    assert second["memory_free_bytes"] < second["memory_total_bytes"]
    assert [one["gpu_instance"] for one in device["holders"]] == [second["gpu_instance"]]


def test_a_measured_disk_is_in_the_facts_and_an_unmeasured_is_not():
    assert good(disk_mib_s=0.5)["facts"]["disk"]["read_bytes_per_second"] == 2**19
    assert "read_bytes_per_second" not in good()["facts"]["disk"]


# Whole facts.


@pytest.mark.parametrize("wrap", [
    lambda facts: facts, lambda facts: {"gpu_host": facts},
    lambda facts: {"ansible_facts": {"gpu_host": facts}, "changed": False}])
@pytest.mark.parametrize("facts", [made.host(), made.cpu_host(), made.jetson_host()])
def test_facts_as_they_were_printed_stand_for_the_short_keys(facts, wrap):
    found = good(gpus=None, driver=None, memory_gib=None, facts=wrap(facts))
    assert found["facts"] == facts


def test_facts_of_a_profile_are_facts_of_the_next():
    for file in EXAMPLES:
        text = yaml.safe_load(file.read_text())
        first = profiles.plan_profile(text, CATALOG)
        second = profiles.plan_profile({
            "name": "again", "facts": first["facts"], "models": text["models"],
            "endpoints": text["endpoints"]}, CATALOG)
        assert second["findings"] == []
        assert second["facts"] == first["facts"]


def test_whole_facts_and_short_keys_contradict_each_other():
    found = read(facts=made.host())
    assert subjects(found) == ["profile.gpus", "profile.driver", "profile.memory_gib"]


@pytest.mark.parametrize(("spoil", "subject"), [
    (lambda facts: facts.pop("memory"), "profile.facts.memory"),
    (lambda facts: facts["devices"][1].pop("uuid"), "profile.facts.devices[1].uuid"),
    (lambda facts: facts["devices"][0].update(memory_total_bytes="80 GB"),
     "profile.facts.devices[0].memory_total_bytes"),
    (lambda facts: facts["devices"][0].update(memory_free_bytes=-1),
     "profile.facts.devices[0].memory_free_bytes"),
    (lambda facts: facts.update(devices=[None]), "profile.facts.devices[0]"),
    (lambda facts: facts.update(unread={"a": 1}), "profile.facts.unread"),
    (lambda facts: facts.update(driver="580"), "profile.facts.driver"),
    (lambda facts: facts.update(jetson={}), "profile.facts.jetson.power_modes"),
    (lambda facts: facts["devices"][0].update(xids=[79]), "profile.facts.devices[0].xids[0]"),
    (lambda facts: facts["devices"][0].update(index=None), "profile.facts.devices[0].index"),
    (lambda facts: facts["devices"][0]["mig"].update(enabled=True, slices=[{"uuid": "MIG-1"}]),
     "profile.facts.devices[0].mig.slices[0].name"),
])
def test_facts_that_are_not_whole_are_told_by_their_place(spoil, subject):
    facts = made.host()
    spoil(facts)
    found = read(gpus=None, driver=None, memory_gib=None, facts=facts)
    assert subject in subjects(found)
    assert found["facts"] is None


# Models.


def test_a_model_is_described_as_its_files_would_be():
    found = good()["models"][MODEL]
    # Llama 3.1 8B has 8,030,261,248 weights.
    assert found["bytes"] == 2 * 8030261248
    assert (found["format"], found["quantisation"], found["name"]) == (
        "safetensors", "BF16", "Llama-3.1-8B")
    assert sum(found["tensors"].values()) == found["bytes"]
    assert found["geometry"] == model_config.geometry(CONFIGS["Llama-3.1-8B"])
    assert set(found) == {
        "path", "format", "files", "bytes", "fingerprint", "name", "quantisation",
        "quantisation_bits", "quantisation_group", "chat_template", "tensors", "geometry"}


def test_a_quantised_model_has_the_name_and_size_of_its_quantisation():
    found = good(models={MODEL: {"config": CONFIGS["Qwen2.5-7B-AWQ"]}})["models"][MODEL]
    assert (found["quantisation"], found["quantisation_bits"], found["quantisation_group"]) == (
        "awq", 4, 128)
    plain = good(models={MODEL: {"config": CONFIGS["Qwen2.5-7B"]}})["models"][MODEL]
    assert found["bytes"] < plain["bytes"] / 2
    assert found["fingerprint"] != plain["fingerprint"]


def test_a_gguf_is_known_by_its_name_and_needs_its_bytes():
    path = "/srv/models/qwen.gguf"
    asked = {"endpoints": [{"name": "chat", "model": path}]}
    described = {"config": CONFIGS["Qwen2.5-7B"], "quantisation": "Q4_K_M", "bytes": 4683073184}
    found = good(models={path: described}, **asked)["models"][path]
    assert (found["format"], found["quantisation"], found["bytes"]) == (
        "gguf", "Q4_K_M", 4683073184)
    del described["bytes"]
    assert subjects(read(models={path: described}, **asked))[0] == "profile.models[%s].bytes" % path


def test_the_caller_says_what_is_asked_for_where_the_profile_does_not():
    asked = [{"name": "other", "model": MODEL}]
    found = profiles.plan_profile(profile(endpoints=None), CATALOG, asked)
    assert (found["findings"], found["endpoints"]) == ([], asked)
    # Its own come first.
    assert profiles.plan_profile(profile(), CATALOG, asked)["endpoints"][0]["name"] == "chat"


# Bad profiles.


@pytest.mark.parametrize(("changes", "subject", "said"), [
    ({"gpus": {"card": "a100-41"}}, "profile.gpus.card", "did you mean"),
    ({"gpus": {}}, "profile.gpus.card", "nothing"),
    ({"gpus": {"card": "a100-40", "count": "four"}}, "profile.gpus.count", "'four'"),
    ({"gpus": {"card": "a100-40", "count": 0}}, "profile.gpus.count", "from 1 to"),
    ({"gpus": {"card": "a100-40", "count": 10**9}}, "profile.gpus.count", "from 1 to"),
    ({"gpus": {"card": "a100-40", "count": True}}, "profile.gpus.count", "True"),
    ({"gpus": {"card": "a100-40", "count": 2}}, "profile.gpus.nvlink", "true where"),
    ({"gpus": {"card": "l40s", "nvlink": True}}, "profile.gpus.nvlink", "has no NVLink"),
    ({"gpus": {"card": "a100-40", "nvlink": "yes"}}, "profile.gpus.nvlink", "true or false"),
    ({"gpus": {"card": "gb10", "count": 2}}, "profile.gpus.count", "1: its memory"),
    ({"gpus": {"card": "a100-40", "cout": 2}}, "profile.gpus.cout", "did you mean `count`?"),
    ({"gpus": {"mig": {"card": "a100-40", "profile": "3g.21gb"}}}, "profile.gpus.mig.profile",
     "did you mean 3g.20gb?"),
    ({"gpus": {"mig": {"card": "l40s", "profile": "3g.20gb"}}}, "profile.gpus.mig.profile",
     "a card with MIG profiles"),
    ({"gpus": {"mig": {"card": "h200", "profile": "3g.71gb"}}}, "profile.gpus.mig.profile",
     "whose memory"),
    ({"gpus": {"card": "a100-40", "mig": {"card": "a100-40", "profile": "3g.20gb"}}},
     "profile.gpus.card", "beside mig"),
    ({"gpus": "a100-40"}, "profile.gpus", "a mapping"),
    ({"busy": [2]}, "profile.busy[0]", "from 0 to 1"),
    ({"busy": [0, 0]}, "profile.busy[1]", "once more"),
    ({"busy": [{"index": 0, "bytes": 10**12}]}, "profile.busy[0].bytes", "a whole number"),
    ({"busy": 0}, "profile.busy", "a list"),
    ({"driver": 580.95}, "profile.driver", "quote it"),
    ({"driver": None}, "profile.driver", "nothing"),
    ({"gpus": None}, "profile.driver", "no gpus"),
    ({"memory_gib": -1}, "profile.memory_gib", "above 0"),
    ({"memory_gib": float("nan")}, "profile.memory_gib", "above 0"),
    ({"memory_gib": None}, "profile.memory_gib", "GiB"),
    ({"disk_mib_s": "fast"}, "profile.disk_mib_s", "'fast'"),
    ({"architecture": "riscv64"}, "profile.architecture", "x86_64, aarch64"),
    ({"gpus": {"card": "thor"}, "l4t": "38.2.0", "architecture": "x86_64"},
     "profile.architecture", "aarch64"),
    ({"gpus": {"card": "thor"}}, "profile.l4t", "Jetson Linux"),
    ({"l4t": "36.4.3"}, "profile.l4t", "A100"),
    ({"docker": 28.2}, "profile.docker", "quote it"),
    ({"memory_gb": 5}, "profile.memory_gb", "did you mean `memory_gib`?"),
    ({"models": None}, "profile.endpoints[0].model", "it has none"),
    ({"models": {"no path": {}}}, "profile.models", "an absolute path"),
    ({"models": {MODEL: {"config": {}}}}, "profile.models[%s].config" % MODEL, "config.json"),
    ({"models": {MODEL: {"config": CONFIGS["Llama-3.1-8B"], "bytes": 0}}},
     "profile.models[%s].bytes" % MODEL, "from 1"),
    ({"models": {MODEL: {"config": CONFIGS["Llama-3.1-8B"], "bytes": -5}}},
     "profile.models[%s].bytes" % MODEL, "from 1"),
    ({"models": {MODEL: {"config": {**CONFIGS["Llama-3.1-8B"], "num_key_value_heads": 7}}}},
     "profile.models[%s].config" % MODEL, "num_key_value_heads"),
    ({"models": {MODEL: {"config": CONFIGS["Llama-3.1-8B"], "quantisation": "fp8"}}},
     "profile.models[%s].quantisation" % MODEL, "the config says it"),
    ({"models": {MODEL: {"config": {"model_type": "new"}}}}, "profile.models[%s].bytes" % MODEL,
     "does not tell"),
    ({"models": {MODEL: {"config": CONFIGS["Llama-3.1-8B"], "format": "onnx"}}},
     "profile.models[%s].format" % MODEL, "safetensors, gguf"),
    ({"endpoints": [{"name": "chat", "model": "meta-llama/Llama-3.1-8"}]},
     "profile.endpoints[0].model", "did you mean " + MODEL),
    ({"endpoints": []}, "profile.endpoints", "a list of endpoints"),
    ({"endpoints": None}, "profile.endpoints", "inference_endpoints"),
    ({"name": ""}, "profile.name", "text"),
])
def test_what_is_wrong_names_its_key(changes, subject, said):
    found = read(**changes)
    about = [one for one in found["findings"] if one["subject"] == subject]
    assert about, findings.text(found["findings"])
    assert said in findings.text(about)
    assert found["facts"] is None


def test_everything_that_is_wrong_is_told_at_once():
    found = read(gpus={"card": "b100"}, driver=5, memory_gib="much", docker=28, busy=[9],
                 models={"x": 1}, endpoints=3)
    assert set(subjects(found)) == {
        "profile.gpus.card", "profile.driver", "profile.memory_gib",
        "profile.docker", "profile.models", "profile.endpoints"}


@pytest.mark.parametrize("junk", [None, 5, "text", [], [1], True])
def test_what_is_no_mapping_is_no_profile(junk):
    found = profiles.plan_profile(junk, CATALOG)
    assert subjects(found) == ["profile"]


JSON = strategies.JSON
PLACES = [("name",), ("gpus",), ("gpus", "card"), ("gpus", "count"), ("gpus", "nvlink"),
          ("gpus", "mig"), ("busy",), ("driver",), ("memory_gib",), ("disk_mib_s",), ("l4t",),
          ("architecture",), ("docker",), ("cores",), ("models",), ("models", MODEL),
          ("models", MODEL, "config"), ("models", MODEL, "bytes"),
          ("models", MODEL, "config", "hidden_size"), ("endpoints",), ("facts",),
          ("facts", "devices"), ("facts", "memory"), ("facts", "unread"), ("facts", "jetson"),
          ("facts", "driver"), ("facts", "sources"), ("facts", "orphan_xids"), ("facts", "cpu")]


@st.composite
def spoilt(draw):
    """A good profile with junk at some places, or junk alone."""
    if draw(st.integers(0, 9)) == 0:
        return draw(JSON)
    found = profile()
    if draw(st.booleans()):
        found = dict(profile(gpus=None, driver=None, memory_gib=None), facts=made.host())
    found = copy.deepcopy(found)
    for place in draw(st.lists(st.sampled_from(PLACES), max_size=3)):
        inner = found
        for key in place[:-1]:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner[place[-1]] = draw(JSON)
    return found


def test_an_empty_profile_is_told_what_it_needs():
    found = profiles.plan_profile({}, CATALOG, [None])["findings"]
    assert any("memory_gib" in one["subject"] for one in found), found


@given(spoilt(), JSON)
def test_any_profile_is_read_or_what_is_wrong_with_it_is_told(given_profile, asked):
    before = repr((given_profile, asked))
    found = profiles.plan_profile(given_profile, CATALOG, asked)
    assert repr((given_profile, asked)) == before
    json.dumps(found)
    assert set(found) == {"name", "facts", "models", "state", "endpoints", "findings"}
    assert (found["facts"] is None) == bool(found["findings"])
    for one in found["findings"]:
        assert one["subject"].startswith(("profile", "inference_endpoints"))
        assert one["severity"] in findings.BLOCKING
        assert all(one[key].strip() for key in ("found", "wanted", "remedy"))
    if found["facts"]:
        FILTERS["host_health"](found["facts"], CATALOG)
