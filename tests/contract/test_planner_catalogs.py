# SPDX-License-Identifier: Apache-2.0
"""The catalogs of the planner: whole and typed rows that agree with each other and with the rig."""

from __future__ import annotations

import ast
import itertools
import re
from collections import Counter
from pathlib import Path

import planner
import pytest
import yaml
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from ansible.module_utils.firstlight.planning import memory, placement
from ansible.module_utils.firstlight.planning.memory import Layout
from ansible.module_utils.firstlight.planning.start_budget import start_budget

FOLDER = Path(__file__).parents[2] / "catalog"
PROFILES = Path(__file__).parents[1] / "rig" / "mock_nvml" / "profiles"
CODE = FOLDER.parent / "module_utils" / "firstlight" / "planning"
MEASURED = Path(__file__).parents[1] / "rig" / "measured" / "vllm-memory.yml"
NAMES = ("engine_costs", "engine_releases", "gguf_counterparts", "gpus", "known_issues",
         "quantisation_kernels")
ROWS = {name: yaml.safe_load((FOLDER / (name + ".yml")).read_text()) for name in NAMES}
RELEASES, GPUS, ISSUES = ROWS["engine_releases"], ROWS["gpus"], ROWS["known_issues"]
CHIPS = yaml.safe_load((FOLDER / "jetson_chips.yml").read_text())

CAPABILITY = re.compile(r"\d{1,2}\.\d")
DRIVER = re.compile(r"\d{3}(\.\d+)*")
VARIABLE = re.compile(r"[A-Z][A-Z0-9_]+")
FLAG = re.compile(r"--[a-z][a-z-]+")
DIALECTS = {"vllm": {"vllm_api_server", "vllm_serve"}, "llama_cpp": {"llama_server"}}
CONDITIONS = {"version": str, "runtime": str, "classes": list, "capabilities": list,
              "l4t_majors": list, "torch": str, "quantisations": list, "formats": list,
              "docker": str, "tensor_parallel": str, "always": bool, "devices": list}
ACTIONS = {"forbid": bool, "avoid": bool, "set_env": dict, "unset_env": list,
           "add_flags": list, "note": str}
# Plain weights are no quantisation, yet cards differ in them.
PLAIN = {"bfloat16", "float16"}


def each(name, *keys):
    return pytest.mark.parametrize(
        "row", ROWS[name], ids=["-".join(str(row[key]) for key in keys) for row in ROWS[name]])


each_release = each("engine_releases", "engine", "version", "variant")
each_issue = each("known_issues", "id")
each_gpu = each("gpus", "short")
each_cost = each("engine_costs", "engine", "name")
each_kernel = each("quantisation_kernels", "engine", "method")


def twice(values):
    return sorted(str(value) for value, count in Counter(values).items() if count > 1)


def matching(issue):
    """The releases that an issue can be about, by engine, version, torch and runtime."""
    when = issue["when"]
    return [row for row in RELEASES
            if issue["engine"] in ("", row["engine"])
            and Version(row["version"]) in SpecifierSet(when.get("version", ""))
            and ("torch" not in when or row["torch"]
                 and Version(row["torch"]) in SpecifierSet(when["torch"]))
            and when.get("runtime", row["runtime"]) == row["runtime"]
            and set(row["devices"]) & set(when.get("devices", row["devices"]))]


@pytest.mark.parametrize(("name", "keys"), [
    ("engine_costs", ("engine", "name")),
    ("engine_releases", ("engine", "version", "runtime", "variant")),
    ("gguf_counterparts", ("repository",)),
    ("gpus", ("name",)),
    ("gpus", ("short",)),
    ("known_issues", ("id",)),
    ("quantisation_kernels", ("engine", "method")),
])
def test_no_two_rows_are_the_same_thing(name, keys):
    assert twice(tuple(row[key] for key in keys) for row in ROWS[name]) == []


@pytest.mark.parametrize("name", sorted({*NAMES} - {"engine_costs"}))
def test_a_key_holds_one_kind_of_value(name):
    # A number that is not known is an empty text, so that nobody computes with it.
    for key in ROWS[name][0]:
        kinds = {type(row[key]) for row in ROWS[name]} - (
            {str} if any(row[key] == "" for row in ROWS[name]) else set())
        assert len(kinds) <= 1, key


@each_release
def test_a_release_names_capabilities_and_drivers_as_they_are_written(row):
    for key in ("capabilities", "ptx"):
        assert set(row[key]) <= set(row["architectures"])
        for known in row[key].values():
            assert all(CAPABILITY.fullmatch(one) for one in known)
            assert known == sorted(set(known), key=Version)
    for architecture, compiled in row["capabilities"].items():
        assert not set(compiled) & set(row["ptx"].get(architecture, []))
    for driver in [row["minimum_driver"], row["full_driver"], *row["compat_drivers"]]:
        assert driver == "" or DRIVER.fullmatch(driver)
    if row["minimum_driver"] and row["full_driver"]:
        assert Version(row["full_driver"]) >= Version(row["minimum_driver"])
    assert all(Version(one) < Version(row["minimum_driver"]) for one in row["compat_drivers"])
    assert ("gpu" in row["devices"]) == bool(row["cuda"]) == bool(row["capabilities"])


@each_release
def test_a_release_runs_on_the_driver_that_its_cuda_needs(row):
    floors = {"": "", "12": "525.60.13", "13": "580"}
    wanted = floors[row["cuda"].partition(".")[0]]
    assert row["minimum_driver"] == ("" if row["variant"].startswith("l4t") else wanted)


@each_release
def test_a_release_is_started_as_its_kind_is(row):
    assert row["dialect"] in DIALECTS[row["engine"]]
    assert row["digest"] == "" or re.fullmatch(r"sha256:[0-9a-f]{64}", row["digest"])
    # No tag that moves: what is pulled tomorrow is what was looked at.
    assert "latest" not in row["tag"]
    if row["runtime"] == "native":
        assert row["entrypoint"] == []
    elif row["engine"] == "vllm":
        assert row["tag"] == "v" + row["version"]
        assert row["entrypoint"] in (["vllm", "serve"],
                                     ["python3", "-m", "vllm.entrypoints.openai.api_server"])
    else:
        assert "b" + row["version"] in row["tag"]
        assert row["entrypoint"] in ([], ["/app/llama-server"])


@each_release
def test_a_release_takes_no_flag_that_it_has_lost(row):
    assert all(FLAG.fullmatch(one) for one in row["flags"] + row["removed_flags"])
    assert not set(row["flags"]) & set(row["removed_flags"])
    assert len(set(row["flags"])) == len(row["flags"])
    assert all(VARIABLE.fullmatch(one) for one in row["environment"])
    assert row["environment"] == sorted(set(row["environment"]))


@each_release
def test_only_vllm_has_a_share_of_memory_and_defaults_of_batches(row):
    has = row["engine"] == "vllm"
    # On a CPU it is told how large its cache is.
    shares = has and "gpu" in row["devices"]
    assert bool(row["memory_utilisation"]) == shares
    assert ("--gpu-memory-utilization" in row["flags"]) == shares
    assert ("VLLM_CPU_KVCACHE_SPACE" in row["environment"]) == (has and not shares)
    assert bool(row["batch_defaults"]) == has
    assert bool(row["torch"]) == bool(row["quantisations"]) == bool(row["environment"]) == has
    if shares:
        assert 0.5 < float(row["memory_utilisation"]) < 1
    if has:
        # The first that holds is taken: the largest memory comes first, and the last always holds.
        floors = [one["minimum_memory_gib"] for one in row["batch_defaults"]]
        assert floors == sorted(set(floors), reverse=True)
        last = row["batch_defaults"][-1]
        assert floors[-1] == 0
        assert last["except_names"] == last["except_capabilities"] == []
        assert len({frozenset(one) for one in row["batch_defaults"]}) == 1


def test_a_release_of_a_jetson_has_kernels_for_one():
    of_jetsons = {chip["capability"] for chip in CHIPS}
    for row in RELEASES:
        if row["l4t"]:
            assert set(row["capabilities"]["aarch64"]) & of_jetsons, row["version"]
            assert all(isinstance(major, int) for major in row["l4t"])


def test_every_card_is_served_by_some_release():
    known = {one for row in RELEASES for key in ("capabilities", "ptx")
             for listed in row[key].values() for one in listed}
    assert {row["capability"] for row in GPUS} <= known


@each_issue
def test_an_issue_says_when_and_what_to_do(row):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", row["id"])
    assert row["engine"] in ("", "vllm", "llama_cpp", "docker")
    assert row["when"]
    assert row["action"]
    for mapping, kinds in ((row["when"], CONDITIONS), (row["action"], ACTIONS)):
        for key, value in mapping.items():
            assert type(value) is kinds[key], key
            assert value, key
    assert row["remedy"].endswith(".")
    assert row["report"] == "" or re.fullmatch(r"field report [1-5]", row["report"])


@each_issue
def test_the_conditions_of_an_issue_can_be_held_against_a_plan(row):
    when = row["when"]
    for key in ("version", "torch", "docker", "tensor_parallel"):
        SpecifierSet(when.get(key, ""))
    assert when.get("runtime", "docker") in ("docker", "native")
    assert set(when.get("classes", [])) <= {"nvidia", "unified", "jetson", "cpu"}
    assert all(CAPABILITY.fullmatch(one) for one in when.get("capabilities", []))
    assert all(isinstance(one, int) for one in when.get("l4t_majors", []))
    assert set(when.get("formats", [])) <= {"safetensors", "gguf"}
    assert set(when.get("devices", [])) <= {"cpu", "gpu"}
    assert "always" not in when or set(when) == {"always"}
    # The daemon has no rows of releases.
    assert row["engine"] == "docker" or matching(row), "no release in the catalog is meant"


@each_issue
def test_an_issue_sets_what_the_releases_know_and_unsets_what_they_do_not(row):
    for release in matching(row) if row["engine"] != "docker" else []:
        known = set(release["environment"])
        assert set(row["action"].get("set_env", {})) <= known, release["version"]
        assert not set(row["action"].get("unset_env", [])) & known, release["version"]
        added = {flag for flag in row["action"].get("add_flags", []) if flag.startswith("-")}
        assert added <= set(release["flags"]), release["version"]


def test_no_two_issues_do_the_same_in_the_same_case():
    assert twice((row["engine"], repr(sorted(row["when"].items())), tuple(sorted(row["action"])))
                 for row in ISSUES) == []


def test_no_variable_is_both_set_and_unset_for_one_release():
    for release in RELEASES:
        here = [row["action"] for row in ISSUES if release in matching(row)]
        given = {name for action in here for name in action.get("set_env", {})}
        assert not given & {name for action in here for name in action.get("unset_env", [])}


@pytest.mark.parametrize("quantisation", ["gguf", "bitsandbytes"])
def test_a_method_that_left_the_core_is_refused_where_it_is_missing(quantisation):
    refused = [row for row in ISSUES if row["action"].get("forbid") and row["engine"] == "vllm"
               and [quantisation] in (row["when"].get("formats"), row["when"].get("quantisations"))]
    # A build for the CPU has few methods; its row alone says which.
    without = [row for row in RELEASES if row["engine"] == "vllm" and "gpu" in row["devices"]
               and quantisation not in row["quantisations"]]
    assert without
    assert [release for row in refused for release in matching(row)
            if "gpu" in release["devices"]] == without


@each_release
def test_gguf_is_a_format_where_it_is_a_method(row):
    if row["engine"] == "vllm":
        assert ("gguf" in row["formats"]) == ("gguf" in row["quantisations"])


@each_kernel
def test_a_kernel_says_what_it_needs(row):
    assert row["engine"] in DIALECTS
    for key in ("minimum_capability", "native_capability"):
        assert (row[key] == "" and key.startswith("native")) or CAPABILITY.fullmatch(row[key])
    if row["native_capability"]:
        assert Version(row["native_capability"]) >= Version(row["minimum_capability"])
    # A power of two.
    multiple = row["input_multiple"]
    assert multiple > 0
    assert multiple & (multiple - 1) == 0


def test_every_method_of_a_release_has_its_kernels_in_the_catalog():
    known = {row["method"] for row in ROWS["quantisation_kernels"] if row["engine"] == "vllm"}
    newest = [row for row in RELEASES if row["engine"] == "vllm"][-1]
    assert set(newest["quantisations"]) <= known
    every = {one for row in RELEASES for one in row["quantisations"]}
    assert known - PLAIN <= every


@each_gpu
def test_a_gpu_is_described_in_numbers_that_fit_together(row):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", row["short"])
    assert CAPABILITY.fullmatch(row["capability"])
    assert row["memory_mib"] >= 8192
    if row["reserved_mib"] and row["cuda_total_mib"]:
        assert abs(row["memory_mib"] - row["reserved_mib"] - row["cuda_total_mib"]) <= 1
    assert not (row["unified"] and row["nvlink"])
    for slice_ in row["mig_profiles"]:
        assert set(slice_) == {"name", "memory_mib", "slices"}
        compute, gigabytes = re.fullmatch(r"(\d)g\.(\d+)gb", slice_["name"]).groups()
        assert slice_["slices"] == int(compute)
        if slice_["memory_mib"] != "":
            assert 0.85 < slice_["memory_mib"] / (int(gigabytes) * 1024) <= 1.02
            assert slice_["memory_mib"] < row["memory_mib"]


def test_cards_of_one_architecture_are_of_its_capabilities():
    majors = {"volta": {"7.0"}, "turing": {"7.5"}, "ampere": {"8.0", "8.6", "8.7"}, "ada": {"8.9"},
              "hopper": {"9.0"}, "blackwell": {"10.0", "11.0", "12.0", "12.1"}}
    for row in GPUS:
        assert row["capability"] in majors[row["architecture"]], row["name"]


def described(path):
    """The devices of a profile of the rig, with what they have from the profile it is based on."""
    profile = yaml.safe_load(path.read_text())
    if "devices" not in profile or isinstance(profile["devices"], dict):
        return []
    return [{**profile.get("defaults", {}), **device,
             "memory": {**profile.get("defaults", {}).get("memory", {}),
                        **device.get("memory", {})}} for device in profile["devices"]]


@pytest.mark.parametrize("device", [
    pytest.param(device, id="%s-%d" % (path.stem, index))
    for path in sorted(PROFILES.glob("*.yml")) for index, device in enumerate(described(path))])
def test_a_card_of_the_rig_is_as_the_catalog_has_it(device):
    known = [row for row in GPUS if row["nvml_name"] == device["name"]]
    assert known, device["name"]
    for row in known:
        assert row["capability"] == "%d.%d" % tuple(device["capability"])
        assert row["unified"] == ("total" not in device["memory"])
        if not row["unified"]:
            assert row["memory_mib"] == device["memory"]["total"] // 2**20
            assert row["nvlink"] == ("nvlink" in device)
        slices = {one["name"]: one["memory_mib"] for one in row["mig_profiles"]}
        for slice_ in device.get("mig", {}).get("slices", []):
            name = slice_["name"].rpartition(" ")[2]
            assert slices[name] == slice_["memory"]["total"] // 2**20


@each("gguf_counterparts", "repository")
def test_a_counterpart_is_another_repository_with_gguf_files(row):
    for key in ("repository", "counterpart"):
        assert re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", row[key])
    assert row["counterpart"].endswith("-GGUF")
    assert not row["repository"].endswith("-GGUF")
    assert row["file"].endswith(".gguf")
    assert row["counterpart"] in row["source"]


# What an engine costs.

BYTES = {"bytes", "bytes per hidden size", "bytes per logit", "bytes per token of the vocabulary"}
SHARES = {"share of all memory", "share of the device's memory"}
COUNTS = {"sequences", "tensors", "tokens"}
CAPABILITIES = "compute capabilities"
# vLLM on a CPU is another engine, as far as memory and time are concerned.
COSTED = [*sorted(DIALECTS), "vllm_cpu"]


@each_cost
def test_a_cost_is_a_number_of_its_unit(row):
    assert row["engine"] in COSTED
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", row["name"])
    value, unit = row["value"], row["unit"]
    if unit == CAPABILITIES:
        assert value
        assert all(CAPABILITY.fullmatch(one) for one in value)
        assert {*value} <= {card["capability"] for card in GPUS}
        return
    assert unit in BYTES | SHARES | COUNTS | {"seconds"}
    # A truth value is a number to Python.
    assert type(value) in ((int,) if unit in COUNTS | {"bytes"} else (int, float))
    # llama.cpp gives itself no time limit, which 0 says.
    assert value > 0 or (row["engine"], row["name"], value) == (
        "llama_cpp", "engine_limit_seconds", 0)
    if unit in SHARES:
        assert value < 1
    assert ("bytes" in row["name"]) == (unit in BYTES)
    assert ("seconds" in row["name"]) == (unit == "seconds")
    assert ("share" in row["name"]) == (unit in SHARES)


@pytest.mark.parametrize("engine", COSTED)
def test_what_was_not_measured_is_believed_less(engine):
    costs = memory.costs_of(engine, ROWS["engine_costs"])
    assert costs["error_share"] < costs["error_share_unmeasured"]


def test_the_cards_that_were_measured_are_those_of_the_fixture():
    # An H100, as the comment at the head of the fixture says.
    assert "H100" in MEASURED.read_text().partition("models:")[0]
    capability = planner.card("h100")["capability"]
    for engine in DIALECTS:
        known = memory.costs_of(engine, ROWS["engine_costs"])["measured_capabilities"]
        assert capability in known


def names_of(node):
    """The texts that an index can be: one, or one of two."""
    if isinstance(node, ast.IfExp):
        return names_of(node.body) | names_of(node.orelse)
    assert isinstance(node, ast.Constant), "an index that cannot be read: %s" % ast.unparse(node)
    return {node.value}


def names_in_the_code():
    """The names of costs that the planner reads, wherever in its sources."""
    indexes = [node for path in sorted(CODE.glob("*.py"))
               for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Subscript)]
    return {name for node in indexes if re.fullmatch(r"(\w+\.)*costs", ast.unparse(node.value))
            for name in names_of(node.slice)}


def test_every_cost_is_read_and_every_one_that_is_read_is_there():
    assert names_in_the_code() == {row["name"] for row in ROWS["engine_costs"]}


class Read(dict):
    """Costs that remember which of them were read."""

    def __init__(self, rows):
        super().__init__(rows)
        self.names = set()

    def __getitem__(self, name):
        self.names.add(name)
        return super().__getitem__(name)


@pytest.mark.parametrize("engine", COSTED)
def test_an_engine_has_the_costs_that_are_read_of_it_and_no_others(engine):
    costs = Read(memory.costs_of(engine, ROWS["engine_costs"]))
    on_cpu = engine == "vllm_cpu"
    release = planner.row(engine=engine, version="0.24.0") if engine == "vllm" else {
        **(planner.row(engine="vllm", variant="cpu") if on_cpu
           else planner.rows_without(engine="vllm")[0]), "measured": True}
    models = [planner.model(name) for name in (
        "Llama-3.1-8B", "DeepSeek-V2-Lite", "Qwen3-30B-A3B", "Gemma-3-27b")]
    vllm = engine == "vllm"
    for model, eager, on_gpu, shared, measured in itertools.product(models, *4 * [(True, False)]):
        on_gpu = on_gpu and not on_cpu
        device = placement.Device("a card", 80 * 2**30, 80 * 2**30,
                                  "9.0" if on_gpu else "", shared, 2)
        runs = placement.Engine({**release, "measured": measured}, None, costs, {}, eager, {}, "")
        for layout in (Layout(1, 1), Layout(2, 1) if vllm else Layout(1, 2)):
            for settings in placement.batches(model, device, runs):
                placement.place(model, device, runs, layout, settings, 8192)
        for compiled in (False, vllm):
            # As the plan calls it: llama.cpp compiles and captures nothing.
            start_budget(model["bytes"], model["geometry"]["layers"], 2, costs, None, compiled,
                         eager or not vllm)
    assert costs.names == set(costs)


# Which of vLLM's two model runners serves a model.


@each_release
def test_only_releases_of_vllm_have_a_second_runner(row):
    assert row["second_runner"] == sorted(set(row["second_runner"]))
    assert row["second_runner"] == ["*"] or all(
        re.fullmatch(r"[a-z][a-z0-9_]*", one) for one in row["second_runner"])
    if row["engine"] != "vllm":
        assert row["second_runner"] == []


def test_the_second_runner_serves_what_it_was_seen_to_serve():
    """By the version, the engine takes it, whatever it runs in."""
    measured = yaml.safe_load(MEASURED.read_text())
    seen = {value: {measured["models"][run["model"]]["model_type"] for run in measured["runs"]
                    if run["second_runner"] is value} for value in (True, False)}
    [version] = re.findall(r"vLLM (\d+\.\d+\.\d+)", MEASURED.read_text().partition("models:")[0])
    rows = [row for row in RELEASES if (row["engine"], row["version"]) == ("vllm", version)]
    assert rows
    for row in rows:
        assert row["measured"]
        assert seen[True] <= set(row["second_runner"])
        assert not seen[False] & set(row["second_runner"])
    for version in {row["version"] for row in RELEASES if row["engine"] == "vllm"}:
        assert len({tuple(row["second_runner"]) for row in RELEASES
                    if (row["engine"], row["version"]) == ("vllm", version)}) == 1
