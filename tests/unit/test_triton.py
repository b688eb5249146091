# SPDX-License-Identifier: Apache-2.0
"""How an engine on the host comes to Triton: by itself, led around, as a last resort, or not."""

from __future__ import annotations

import planner
import pytest

from ansible.module_utils.firstlight import findings
from ansible.module_utils.firstlight.planning import service_text

PYTHON = "/opt/vllm/bin/python"
MISSING = findings.finding(
    "linker-cache-missing", "the library path", "/etc/ld.so.cache does not exist",
    "the linker cache", "run /sbin/ldconfig as root", needs_root=True)
LED = {"environment": {"TRITON_LIBCUDA_PATH": "/state/libraries"}, "blocks": []}


def stuck(stops="triton", python="", **more):
    """A host on which something stops engines, all of them or those of one Python."""
    return {"environment": {}, "blocks": [{"stops": stops, "python": python, "finding": MISSING}],
            **more}


STUCK = stuck()


def own(version="0.24.0", model="Llama-3.1-8B", **more):
    return {"model": planner.FOLDER + model, "engine": "vllm", "engine_python": PYTHON,
            "engine_version": version, **more}


def h100(count=1):
    return planner.host("h100", count)


def test_an_engine_of_the_host_is_led_around_and_its_passport_will_say_so():
    plan = planner.only(planner.plan(h100(), own(), library_path=LED))
    assert plan["env"]["TRITON_LIBCUDA_PATH"] == "/state/libraries"
    assert plan["command"]["env"]["TRITON_LIBCUDA_PATH"] == "/state/libraries"
    assert any("TRITON_LIBCUDA_PATH=/state/libraries" in one for one in plan["reasons"])
    assert "--enforce-eager" not in plan["command"]["argv"]


def test_a_host_that_was_mended_has_another_plan_than_one_that_is_led_around():
    around = planner.only(planner.plan(h100(), own(), library_path=LED))
    well = planner.only(planner.plan(h100(), own()))
    assert "TRITON_LIBCUDA_PATH" not in well["env"]
    assert around["hash"] != well["hash"]


def test_what_runs_led_around_is_kept_while_it_is():
    first = planner.only(planner.plan(h100(), own(), library_path=LED))
    state = planner.state({"chat": planner.serving(first)})
    again = planner.only(planner.plan(h100(), own(), library_path=LED, state=state))
    assert again["hash"] == first["hash"]


def test_a_container_and_a_cpu_have_nothing_to_do_with_it():
    contained = planner.only(planner.plan(
        h100(), {"model": planner.FOLDER + "Llama-3.1-8B", "engine": "vllm"}, library_path=STUCK))
    assert contained["runtime"] == "docker"
    assert contained == planner.only(planner.plan(
        h100(), {"model": planner.FOLDER + "Llama-3.1-8B", "engine": "vllm"}))
    assert planner.only(planner.plan(planner.cpu(), {"model": "canary"}, library_path=STUCK)) \
        == planner.only(planner.plan(planner.cpu(), {"model": "canary"}))


@pytest.mark.parametrize("version", ["0.20.0", "0.24.0", "0.33.0"])
def test_a_release_of_which_nothing_says_that_it_lives_without_is_refused_with_the_remedy(version):
    refused = planner.refusal(planner.plan(h100(), own(version), library_path=STUCK))
    assert refused["id"] == "plan-triton-cannot-work"
    assert "/etc/ld.so.cache does not exist" in refused["found"]
    assert "nothing says that vllm %s" % version in refused["wanted"]
    assert refused["remedy"] == "run /sbin/ldconfig as root"
    assert refused["needs_root"]


@pytest.mark.parametrize("version", ["0.10.2", "0.11.0", "0.15.1"])
def test_the_last_resort_says_what_it_is_and_what_it_costs(version):
    plan = planner.only(planner.plan(h100(), own(version), library_path=STUCK))
    assert "--enforce-eager" in plan["command"]["argv"]
    assert plan["env"]["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    assert plan["memory"]["graph_bytes"] == 0
    [said] = [one for one in plan["reasons"] if one.startswith("The last resort")]
    assert "no CUDA graphs" in said
    assert "logprobs" in said
    assert "run /sbin/ldconfig as root" in said


def test_the_last_resort_has_one_device():
    plan = planner.only(planner.plan(h100(4), own("0.15.1"), library_path=STUCK))
    assert plan["tensor_parallel"] == 1
    refused = planner.refusal(planner.plan(
        h100(4), own("0.15.1", gpus=2), library_path=STUCK))
    assert refused["subject"].startswith("inference_endpoints[0]")


def test_flags_of_which_nothing_is_known_to_take_a_kernel_are_taken():
    plan = planner.only(planner.plan(
        h100(), own("0.15.1", extra_args=["--enforce-eager", "--seed=7"]), library_path=STUCK))
    assert plan["command"]["argv"].count("--enforce-eager") == 1


@pytest.mark.parametrize("stops", ["cuda", "both"])
@pytest.mark.parametrize("version", ["0.15.1", "0.24.0"])
def test_without_cuda_there_is_no_last_resort(stops, version):
    refused = planner.refusal(planner.plan(h100(), own(version), library_path=stuck(stops)))
    assert refused["id"] == "plan-cuda-cannot-start"
    assert refused["remedy"] == "run /sbin/ldconfig as root"


def test_what_stops_one_python_stops_no_other():
    other = stuck(python="/opt/other/bin/python")
    assert planner.only(planner.plan(h100(), own(), library_path=other)) \
        == planner.only(planner.plan(h100(), own()))
    refused = planner.refusal(planner.plan(h100(), own(), library_path=stuck(python=PYTHON)))
    assert refused["id"] == "plan-triton-cannot-work"


@pytest.mark.parametrize("version", ["0.15.1", "0.24.0"])
def test_what_runs_is_left_alone_and_the_reason_says_that_it_could_not_start(version):
    first = planner.only(planner.plan(h100(), own(version)))
    state = planner.state({"chat": planner.serving(first)})
    kept = planner.only(planner.plan(h100(), own(version), library_path=STUCK, state=state))
    assert kept["hash"] == first["hash"]
    assert any("could not be started now" in one for one in kept["reasons"])
    gone = planner.state({"chat": planner.serving(first, pids=(), condition="stopped")})
    assert planner.plan(h100(), own(version), library_path=STUCK, state=gone) \
        != planner.plan(h100(), own(version), library_path=STUCK, state=state)


def test_what_runs_as_the_last_resort_is_kept_and_left_when_triton_works_again():
    first = planner.only(planner.plan(h100(), own("0.15.1"), library_path=STUCK))
    state = planner.state({"chat": planner.serving(first)})
    kept = planner.only(planner.plan(h100(), own("0.15.1"), library_path=STUCK, state=state))
    assert kept["hash"] == first["hash"]
    well = planner.only(planner.plan(h100(), own("0.15.1"), state=state))
    assert "--enforce-eager" not in well["command"]["argv"]


def test_llama_cpp_of_the_host_needs_the_loader_alone():
    asked = {"model": planner.FOLDER + "Llama-3.1-8B.gguf", "engine": "llama_cpp",
             "engine_binary": "/opt/llama/llama-server", "engine_version": "11434"}
    led = {"environment": {"TRITON_LIBCUDA_PATH": "/s", "LD_LIBRARY_PATH": "/s"}, "blocks": []}
    plan = planner.only(planner.plan(h100(), asked, library_path=led))
    assert plan["env"].get("LD_LIBRARY_PATH") == "/s"
    assert "TRITON_LIBCUDA_PATH" not in plan["env"]
    assert planner.only(planner.plan(h100(), asked, library_path=STUCK)) \
        == planner.only(planner.plan(h100(), asked))
    refused = planner.refusal(planner.plan(h100(), asked, library_path=stuck("both")))
    assert refused["id"] == "plan-cuda-cannot-start"
    assert refused["subject"].endswith("engine_binary")


@pytest.mark.parametrize("asked", [
    own("0.15.1", model="Mixtral-8x7B"),
    own("0.15.1", extra_args=["--enable-lora"]),
    own("0.15.1", extra_args=["--kv_cache_dtype=fp8"]),
    own("0.15.1", extra_args=["--no-enforce-eager"]),
    own("0.15.1", extra_args=["--attention-backend=TRITON_ATTN"]),
])
def test_what_the_row_does_not_speak_of_is_refused(asked):
    refused = planner.plan(planner.host("h200", 1), asked, library_path=STUCK)["refusals"]
    assert "plan-triton-cannot-work" in [one["id"] for one in refused]


def test_both_service_managers_are_given_the_variable():
    plan = planner.only(planner.plan(h100(), own(), library_path=LED))
    words = ["%s=%s" % pair for pair in plan["command"]["env"].items()]
    assert "TRITON_LIBCUDA_PATH=/state/libraries" in words
    for text in (service_text.systemd_command(words), service_text.supervisor_command(words)):
        assert "TRITON_LIBCUDA_PATH=/state/libraries" in text
