# SPDX-License-Identifier: Apache-2.0
"""Which release serves a model on a device, and in which words the others do not."""

from __future__ import annotations

import planner
import pytest
from facts import changed, device, host, jetson_host
from hypothesis import given
from hypothesis import strategies as st

from ansible.module_utils.firstlight.planning import releases

FOLDER = "/srv/models/"
BF16, AWQ, FP8 = FOLDER + "Qwen2.5-7B", FOLDER + "Qwen2.5-7B-AWQ", FOLDER + "Llama-3.1-70B-FP8"
GGUF = FOLDER + "Qwen2.5-7B.gguf"
ROWS = planner.catalog()["engine_releases"]
KERNELS = planner.catalog()["quantisation_kernels"]
WHERE = "inference_endpoints[0] (chat)."


def vllm_row(**changes):
    return {**planner.row(engine="vllm", version="0.24.0"), **changes}


def llama_row(**changes):
    return {**planner.row(engine="llama_cpp", version="11434", variant="cuda12"), **changes}


def planned(facts, rows=None, issues=(), models=None, **asked):
    """The answer with these releases alone and, unless they are given, no known issues."""
    catalog = planner.catalog(known_issues=list(issues))
    if rows is not None:
        catalog = planner.catalog(known_issues=list(issues), engine_releases=rows)
    return planner.plan(facts, {"model": BF16, **asked}, catalog=catalog, models=models)


def chosen(facts, rows=None, **asked):
    plan = planner.only(planned(facts, rows, **asked))
    return plan["engine"], plan["engine_version"]


def refused(facts, rows=None, **asked):
    found = planner.refusal(planned(facts, rows, **asked))
    assert found["id"] == "plan-no-engine"
    return found


# The order.


def test_the_engine_of_the_format_comes_first_then_what_was_measured_then_the_newest():
    rows = [llama_row(version="1", measured=True), vllm_row(version="0.9.0", measured=True),
            vllm_row(version="0.10.0", measured=True), vllm_row(version="0.30.0", measured=False),
            vllm_row(version="0.31.0", measured=False)]
    order = [row["version"] for row in releases.ranked(rows, "safetensors")]
    assert order == ["0.10.0", "0.9.0", "0.31.0", "0.30.0", "1"]
    assert releases.ranked(rows, "gguf")[0]["version"] == "1"


@given(st.permutations(ROWS), st.sampled_from(["gguf", "safetensors"]))
def test_the_order_of_the_rows_in_the_file_is_no_matter(rows, model_format):
    assert releases.ranked(rows, model_format) == releases.ranked(ROWS, model_format)


def test_a_version_is_a_number_of_numbers_and_what_is_none_is_the_oldest():
    assert releases.version_of("0.9") < releases.version_of("0.10.2") < releases.version_of("11434")
    assert releases.version_of("latest") < releases.version_of("0.0.1")
    rows = [vllm_row(version=one) for one in ("0.9.2", "0.10.0", "nightly", "0.9.10")]
    assert [row["version"] for row in releases.ranked(rows, "safetensors")] == [
        "0.10.0", "0.9.10", "0.9.2", "nightly"]


def test_the_newest_that_will_do_is_taken_and_it_is_said_whether_it_was_measured():
    rows = [vllm_row(version="0.20.0"), vllm_row(version="0.21.0"),
            vllm_row(version="0.22.0", architectures=["aarch64"])]
    plan = planner.only(planned(planner.host("h100", 1), rows))
    assert plan["engine_version"] == "0.21.0"
    assert "the newest measured release" in plan["reasons"][0]
    plan = planner.only(planned(planner.host("h100", 1), [vllm_row(measured=False)]))
    assert "the newest fitting release" in plan["reasons"][0]


def test_gguf_is_for_llama_cpp_and_safetensors_for_vllm():
    facts = planner.host("h100", 1)
    assert chosen(facts)[0] == "vllm"
    assert chosen(facts, model=GGUF)[0] == "llama_cpp"


# Each objection, with the key that it concerns.

H100 = planner.host("h100", 1)
TURING = planner.host("t4", 1)
ORIN = jetson_host(cpu={"architecture": "aarch64"})


def driver(version, card="h100"):
    return planner.host(card, 1, driver={"version": version})


OBJECTIONS = {
    "another engine": (H100, [llama_row()], {"engine": "vllm"}, "engine", "vllm is asked for"),
    "another version": (H100, [vllm_row()], {"engine_version": "0.1"}, "engine_version",
                        "0.1 is asked for"),
    "another runtime": (H100, [vllm_row()], {"runtime": "native"}, "runtime",
                        "native is asked for"),
    "a build for the CPU": (H100, [planner.row(runtime="native")], {"model": GGUF}, "gpus",
                            "is a build for the CPU, and gpus: 0 would say"),
    "a build for GPUs": (planner.cpu(), [vllm_row()], {}, "engine",
                         "runs on gpu, not on the CPU"),
    "a format": (H100, [vllm_row()], {"model": GGUF}, "model", "reads safetensors, not gguf"),
    "a quantisation": (H100, [vllm_row(quantisations=["fp8"])], {"model": AWQ}, "model",
                       "does not know the quantisation awq"),
    "an architecture": (changed(H100, {"cpu": {"architecture": "ppc64le"}}), [vllm_row()], {},
                        "engine", "is built for x86_64 and aarch64, not for ppc64le"),
    "a build for Jetsons": (H100, [llama_row(variant="l4t-r36")], {"model": GGUF}, "engine",
                            "is for Jetsons"),
    "another Jetson Linux": (ORIN, [vllm_row(l4t=[38])], {}, "engine",
                             "is not for Jetson Linux 36.4.3"),
    "a card of no capability": (host([planner.gpu("h100", capability=None)]), [vllm_row()], {},
                                "gpus", "is not known"),
    "no kernels for the card": (H100, [vllm_row(capabilities={"x86_64": ["8.0"]})], {}, "engine",
                                "has no kernels for compute capability 9.0"),
    "PTX alone and an older driver": (
        driver("550.54.14"), [llama_row()], {"model": GGUF}, "engine",
        "has only PTX for compute capability 9.0, which needs driver 570.124.06; this host has "
        "550.54.14"),
    "PTX alone and a driver that is not known": (
        H100, [llama_row(full_driver="")], {"model": GGUF}, "engine", "needs driver that is not"),
    "an older driver": (driver("550.54.14"), [vllm_row()], {}, "engine",
                        "CUDA 13.0 needs driver 580, and this host has 550.54.14"),
    "no driver": (changed(H100, {"driver": {"version": None}}), [vllm_row()], {}, "engine",
                  "this host has one whose version is not known"),
    "no kernel for the quantisation": (
        TURING, [vllm_row()], {"model": FOLDER + "gpt-oss-20b", "models": {
            FOLDER + "gpt-oss-20b": planner.model("Qwen2.5-7B", quantisation="modelopt")}},
        "model", "has modelopt kernels from compute capability"),
}


@pytest.mark.parametrize("case", OBJECTIONS)
def test_a_release_that_will_not_do_is_said_why_and_what_to_change(case):
    facts, rows, asked, key, words = OBJECTIONS[case]
    found = refused(facts, rows, **asked)
    assert found["subject"] == WHERE + key
    assert words in found["found"]
    assert found["found"].startswith(rows[0]["engine"])
    assert "None" not in found["found"]


def test_the_same_objection_to_several_releases_is_said_once():
    rows = [vllm_row(version="0.20.0"), vllm_row(version="0.21.0")]
    found = refused(driver("550.54.14"), rows)["found"]
    assert found.count("needs driver 580") == 1
    assert "0.21.0" in found
    assert "0.20.0" in found


def test_no_driver_at_all_is_said_too():
    found = refused(changed(H100, {"driver": None}), [vllm_row()])["found"]
    assert "this host has none" in found


# Drivers.


@pytest.mark.parametrize(("card", "version", "engine_version", "compatible"), [
    ("h100", "580.65.06", "0.24.0", False), ("h100", "610.1", "0.24.0", False),
    ("a100-80", "570.124.06", "0.24.0", True), ("a100-80", "535.104.05", "0.24.0", True),
    ("a100-80", "550.54.14", "0.15.1", False), ("a100-80", "525.60.13", "0.15.1", False),
    ("l40s", "570.124.06", "0.24.0", True),
])
def test_a_driver_decides_the_release(card, version, engine_version, compatible):
    plan = planner.only(planned(driver(version, card), rows=None, model=FOLDER + "Qwen2.5-0.5B"))
    assert plan["engine_version"] == engine_version
    assert (plan["env"].get("VLLM_ENABLE_CUDA_COMPATIBILITY") == "1") is compatible
    assert any("compatibility libraries" in one for one in plan["reasons"]) is compatible


def test_compatibility_libraries_are_for_data_centres_and_releases_that_can_be_told():
    gaming = host([planner.gpu("rtx3090")], driver={"version": "570.124.06"})
    assert refused(gaming, [vllm_row()])["subject"] == WHERE + "engine"
    unknown = host([device(0, name="a card that nobody knows", capability="9.0")],
                   driver={"version": "570.124.06"})
    assert refused(unknown, [vllm_row()])
    untold = vllm_row(environment=[])
    assert refused(driver("570.124.06"), [untold])
    other = vllm_row(compat_drivers=["535"])
    assert refused(driver("570.124.06"), [other])


def test_ptx_will_do_with_the_driver_that_knows_it():
    plan = planner.only(planned(driver("570.124.06"), [llama_row()], model=GGUF))
    assert plan["engine"] == "llama_cpp"
    below = llama_row(capabilities={}, ptx={"x86_64": ["12.0"]})
    assert "no kernels" in refused(H100, [below], model=GGUF)["found"]


def test_a_jetson_has_the_driver_of_its_release_of_jetson_linux():
    plan = planner.only(planned(ORIN, model=GGUF))
    assert (plan["engine_version"], plan["runtime"]) == ("8708", "docker")
    later = changed(ORIN, {"jetson": {"l4t": "35.6.0"}})
    assert "is not for Jetson Linux 35.6.0" in refused(later, model=GGUF)["found"]
    nameless = changed(ORIN, {"jetson": {"l4t": None}})
    assert "of an unknown release" in refused(nameless, model=GGUF)["found"]


def test_the_python_of_the_host_matters_where_we_install_into_it():
    old = planner.state(python={"version": "3.9.18", "venv": True})
    found = planner.refusal(planner.plan(planner.cpu(), {"model": GGUF}, state=old))
    assert "needs Python 3.10, and 3.9.18 runs the modules" in found["found"]
    assert planner.only(planner.plan(H100, {"model": BF16}, state=old))["runtime"] == "docker"


# Quantisations.


@pytest.mark.parametrize("row", [one for one in KERNELS if one["engine"] == "vllm"],
                         ids=lambda row: row["method"])
def test_a_kernel_is_there_from_its_capability_on(row):
    model = planner.model("Qwen2.5-0.5B", quantisation=row["method"], bytes=10**9)
    rows = [vllm_row(quantisations=[], capabilities={"x86_64": ["6.0", row["minimum_capability"]]})]

    def answer(capability):
        facts = host([planner.gpu("h100", capability=capability)])
        return planned(facts, rows, models={BF16: model}, tensor_parallel=1)

    assert planner.only(answer(row["minimum_capability"]))["engine"] == "vllm"
    below = answer("6.0")
    if row["method"] != "bfloat16" and row["minimum_capability"] != "6.0":
        assert "kernels from compute capability %s on" % row["minimum_capability"] in (
            planner.refusal(below)["found"])


def test_plain_weights_need_no_row_of_their_own():
    for name in ("BF16", "bf16", "F16"):
        model = planner.model("Qwen2.5-0.5B", quantisation=name)
        assert planner.only(planned(H100, [vllm_row(quantisations=["awq"])],
                                    models={BF16: model}))


# What would work.


def test_a_refusal_names_the_engine_that_auto_would_take():
    found = refused(H100, [vllm_row(), llama_row()], model=GGUF, engine="vllm")
    assert found["remedy"].startswith(WHERE + "engine: auto takes llama_cpp 11434")


def test_a_refusal_of_awq_on_llama_cpp_names_vllm_and_a_gguf():
    found = planner.refusal(planner.plan(
        H100, {"model": "Qwen/Qwen2.5-7B-Instruct-AWQ", "engine": "llama_cpp"},
        models={"Qwen/Qwen2.5-7B-Instruct-AWQ": planner.model("Qwen2.5-7B-AWQ")}))
    assert "engine: auto takes vllm 0.24.0" in found["remedy"]
    assert "Qwen/Qwen2.5-7B-Instruct-GGUF" in found["remedy"]
    assert "the plan does not take it by itself" in found["remedy"]


@pytest.mark.parametrize(("model", "file"), [
    ("Qwen/Qwen2.5-7B-Instruct-AWQ", "qwen2.5-7b-instruct-q4_k_m*.gguf"),
    ("qwen/qwen2.5-7b-instruct-awq", "qwen2.5-7b-instruct-q4_k_m*.gguf"),
    ("/srv/models/Qwen2.5-7B-Instruct-AWQ/", "qwen2.5-7b-instruct-q4_k_m*.gguf"),
    ("someone/Qwen2.5-7B-Instruct-AWQ", ""), ("/srv/models/mine", ""),
])
def test_the_counterpart_of_a_repository_or_of_a_folder_of_its_name_is_named(model, file):
    found = planner.refusal(planner.plan(ORIN, {"model": model},
                                         models={model: planner.model("Qwen2.5-7B-AWQ")}))
    assert "a GGUF of it, which llama_cpp 8708" in found["remedy"]
    assert (file in found["remedy"]) if file else (".gguf" not in found["remedy"])


def test_the_cpu_is_offered_where_nothing_serves_a_gguf_on_the_gpu():
    found = refused(driver("450.1"), model=GGUF)
    assert "%sgpus: 0 serves on the CPU" % WHERE in found["remedy"]


def test_nothing_is_offered_that_would_be_refused_too():
    riscv = planner.cpu(cpu={"architecture": "riscv64"})
    found = refused(riscv, model=GGUF)
    assert found["remedy"] == "change " + found["subject"]
    catalog = planner.catalog(engine_releases=[])
    nothing = planner.refusal(planner.plan(H100, {"model": BF16}, catalog=catalog))
    assert nothing["remedy"] == "change " + nothing["subject"]


STANDS = {
    "a runtime": {"model": BF16, "runtime": "native"},
    "a version": {"model": GGUF, "engine_version": "0.24.0"},
    "an engine and its version": {"model": GGUF, "engine": "vllm", "engine_version": "0.24.0"},
    "an engine": {"model": AWQ, "engine": "llama_cpp"},
}


@pytest.mark.parametrize("case", STANDS)
def test_a_remedy_names_every_key_that_stands_against_it(case):
    """Who does what it says gets a plan."""
    asked = STANDS[case]
    found = refused(H100, model=asked["model"], **{
        key: value for key, value in asked.items() if key != "model"})
    keys = {key for key in asked if key != "model"}
    for key in keys:
        assert "%s%s: auto" % (WHERE, key) in found["remedy"]
    for key in {"engine", "engine_version", "runtime"} - keys:
        assert "%s%s: auto" % (WHERE, key) not in found["remedy"]


def test_the_cpu_that_a_remedy_names_makes_a_plan():
    assert planner.only(planned(driver("450.1"), model=GGUF, gpus=0))["gpus"] == []
