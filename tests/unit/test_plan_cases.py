# SPDX-License-Identifier: Apache-2.0
"""The cases that must come out right, each with the sentence that explains it.

A row is a host, what is asked for, what must come out, and words of the reason or the refusal.
"""

from __future__ import annotations

import json
from pathlib import Path

import facts as made
import planner
import pytest
import yaml

from ansible.module_utils.firstlight.planning import health, plan, profiles, requests

PROFILES = Path(__file__).parents[2] / "inventories" / "example" / "profiles"
L70, FP8, AWQ = "x/Llama-3.1-70B", "x/Llama-3.1-70B-FP8", "x/Llama-3.1-70B-AWQ"
AWQ_7B = "Qwen/Qwen2.5-7B-Instruct-AWQ"
LONG = 131072


def asks(model, **more):
    return {"model": model, **more}


def orin():
    return made.jetson_host(cpu={"architecture": "aarch64"})


def busy(*indices, count=4):
    """A host on some of whose GPUs a stranger's process computes."""
    return made.host([planner.gpu("h100", index, holders=[made.holder(
        4000 + index, 60 * made.GIB)] if index in indices else []) for index in range(count)])


def split_by_mig(slices=2):
    mig = {"enabled": True, "slices": [
        made.piece(number, total=20 * made.GIB, free=20 * made.GIB) for number in range(slices)]}
    return made.host([planner.gpu("a100-40", 0, mig=mig)])


# host, asked: engine, (tensor parallel, stages), context (least, most), words of a reason.
PLANS = {
    "70B bf16 on 4 x A100-40: a short context, and 8 are recommended": (
        planner.host("a100-40", 4), asks(L70), "vllm", (4, 1), (15000, 34000),
        "8 such devices (tensor parallel 8) would give them, and are recommended"),
    "70B bf16 on 8 x A100-40": (
        planner.host("a100-40", 8), asks(L70), "vllm", (8, 1), (LONG, LONG),
        "Tensor parallel 8: every layer is split over 8 devices"),
    "70B bf16 on 2 x A100-80": (
        planner.host("a100-80", 2), asks(L70), "vllm", (2, 1), (20000, 45000),
        "4 such devices (tensor parallel 4) would give them"),
    "70B bf16 on 4 x A100-80": (
        planner.host("a100-80", 4), asks(L70), "vllm", (4, 1), (LONG, LONG),
        "all that the model was trained for"),
    "70B bf16 on 2 x H200": (
        planner.host("h200", 2), asks(L70), "vllm", (2, 1), (LONG, LONG),
        "all that the model was trained for"),
    "70B FP8 on 1 x H200": (
        planner.host("h200", 1), asks(FP8), "vllm", (1, 1), (LONG, LONG), "One device"),
    "70B FP8 on 4 x A100-40: Marlin, weights alone are FP8": (
        planner.host("a100-40", 4), asks(FP8), "vllm", (4, 1), (LONG, LONG), "Tensor parallel 4"),
    "70B FP8 on 2 x A100-80": (
        planner.host("a100-80", 2), asks(FP8), "vllm", (2, 1), (LONG, LONG), "Tensor parallel 2"),
    "70B INT4 on 4 x A100-40, of which two would not hold the whole context": (
        planner.host("a100-40", 4), asks(AWQ), "vllm", (4, 1), (LONG, LONG), "awq in safetensors"),
    "70B INT4 on 2 x A100-80, of which one would not hold the whole context": (
        planner.host("a100-80", 2), asks(AWQ), "vllm", (2, 1), (LONG, LONG), "Tensor parallel 2"),
    "70B INT4 on 1 x H200": (
        planner.host("h200", 1), asks(AWQ), "vllm", (1, 1), (LONG, LONG), "One device"),
    "Qwen2.5-7B on L40S": (
        planner.host("l40s", 4), asks("x/Qwen2.5-7B"), "vllm", (1, 1), (32768, 32768),
        "One device"),
    "64 heads on 6 GPUs": (
        planner.host("a100-40", 6), asks(L70), "vllm", (2, 3), (LONG, LONG),
        "6 does not divide its 64 attention heads"),
    "64 heads on 6 GPUs of which 4 do": (
        planner.host("a100-80", 6), asks(L70), "vllm", (4, 1), (LONG, LONG), "over 4 devices"),
    "40 heads on 8 GPUs, all asked for": (
        planner.host("a100-40", 8), asks("x/Qwen2.5-14B", gpus="all"), "vllm", (8, 1),
        (32768, 32768), "Tensor parallel 8"),
    "40 heads on 8 GPUs, as few as will do": (
        planner.host("a100-40", 8), asks("x/Qwen2.5-14B"), "vllm", (2, 1), (32768, 32768),
        "Tensor parallel 2"),
    "GGUF on a V100": (
        planner.host("v100", 4), asks("/m/Qwen2.5-7B.gguf"), "llama_cpp", (1, 1), (32768, 32768),
        "the newest fitting release in the catalog that serves GGUF"),
    "V100, vLLM asked for by name": (
        planner.host("v100", 4), asks("x/Llama-3.1-8B", engine="vllm"), "vllm", (2, 1),
        (LONG, LONG), "on Volta bfloat16 becomes float16"),
    "GGUF on a CPU with 8 GB": (
        planner.cpu(8), asks("/m/Qwen2.5-7B.gguf"), "llama_cpp", (1, 1), (1, 8192),
        "Served on the CPU: the host has no GPU."),
    "MIG 3g.20gb": (
        split_by_mig(), asks("x/Qwen2.5-0.5B"), "vllm", (1, 1), (32768, 32768), "slice MIG-"),
    "a 7B on MIG 3g.20gb": (
        split_by_mig(), asks("x/Qwen2.5-7B-AWQ"), "vllm", (1, 1), (32768, 32768), "slice MIG-"),
    "GPUs 0 and 1 busy": (
        busy(0, 1), asks("x/Llama-3.1-8B"), "vllm", (1, 1), (LONG, LONG),
        "left out: pid 4000 of root"),
    "a model with latent attention": (
        planner.host("h100", 1), asks("x/DeepSeek-V2-Lite"), "vllm", (1, 1), (LONG, LONG),
        "what auto gives on a GPU"),
    "the large model with latent attention": (
        planner.host("h200", 8), asks("x/DeepSeek-V3"), "vllm", (8, 1), (LONG, LONG),
        "Tensor parallel 8"),
    "a model with a sliding window": (
        planner.host("h100", 1), asks("x/Gemma-3-27b"), "vllm", (1, 1), (LONG, LONG),
        "all that the model was trained for"),
    "GGUF on vLLM: the newest release that reads it": (
        planner.host("h100", 1), asks("/m/Qwen2.5-7B.gguf", engine="vllm"), "vllm", (1, 1),
        (32768, 32768), "vllm 0.20.0 (docker cuda13): the newest fitting release"),
    "an old driver on a data-centre card": (
        planner.host("a100-80", 1, driver={"version": "535.104.05"}), asks("x/Qwen2.5-7B"), "vllm",
        (1, 1), (32768, 32768), "compatibility libraries make up for it"),
    "an old driver on another card": (
        planner.host("rtx4090", 1, driver={"version": "550.54.14"}),
        asks("x/Qwen2.5-7B-AWQ"), "vllm", (1, 1), (32768, 32768), "vllm 0.15.1 (docker cuda12)"),
}


@pytest.mark.parametrize("case", PLANS)
def test_a_case_is_planned(case):
    facts, wanted, engine, layout, (least, most), words = PLANS[case]
    result = planner.plan(facts, wanted)
    assert result["refusals"] == []
    [one] = result["endpoints"]
    assert one["engine"] == engine
    assert (one["tensor_parallel"], one["pipeline_parallel"]) == layout
    assert least <= one["context"] <= most
    assert any(words in reason for reason in one["reasons"]), one["reasons"]
    assert len(one["gpus"]) == (0 if facts["class"] == "cpu" else layout[0] * layout[1])
    memory = one["memory"]
    assert memory["total_bytes"] + memory["error_bytes"] * (engine == "llama_cpp") \
        <= memory["limit_bytes"]


# host, asked, id, words of what was found, words of what would work.
REFUSALS = {
    "70B bf16 on 1 x H200": (
        planner.host("h200", 1), asks(L70), "plan-does-not-fit", "weights 131.4 GiB",
        "2 such devices (tensor parallel 2)"),
    "a 7B AWQ on an Orin NX with 16 GB": (
        orin(), asks(AWQ_7B), "plan-no-engine", "known issue vllm-on-jetpack-6",
        "a GGUF of it, which llama_cpp 8708 (docker l4t-r36) serves here: "
        "qwen2.5-7b-instruct-q4_k_m*.gguf in Qwen/Qwen2.5-7B-Instruct-GGUF"),
    "safetensors on a V100": (
        planner.host("v100", 4), asks("x/Llama-3.1-8B"), "plan-no-engine",
        "no kernels for Volta (known issue volta-dropped", "a GGUF of it, which llama_cpp 11434"),
    "safetensors on a CPU": (
        planner.cpu(8), asks("x/Qwen2.5-7B"), "plan-no-engine", "runs on gpu, not on the CPU",
        "a GGUF of it, which llama_cpp 2026.10.11549 (native cpu) serves here"),
    "a 7B that is too large for a CPU with 4 GB": (
        planner.cpu(4), asks("/m/Qwen2.5-7B.gguf"), "plan-does-not-fit", "no tokens; on",
        "serve a smaller model"),
    "AWQ on llama.cpp": (
        planner.host("h100", 1), asks("x/Qwen2.5-7B-AWQ", engine="llama_cpp"), "plan-no-engine",
        "known issue awq-on-llama-cpp", "auto takes vllm 0.24.0"),
    "GGUF on a vLLM that does not read it": (
        planner.host("h100", 1), asks("/m/Qwen2.5-7B.gguf", engine="vllm",
                                      engine_version="0.24.0"), "plan-no-engine",
        "known issue gguf-left-the-core", "auto takes llama_cpp 11434"),
    "two nodes": (
        planner.host("h200", 8), asks("x/DeepSeek-V3", gpus=16), "plan-several-nodes",
        "16 devices, and this host has 8", "--nnodes 2 --node-rank R --master-addr ADDRESS"),
    "two nodes, by Ray": (
        planner.host("h200", 8), asks("x/DeepSeek-V3", tensor_parallel=16), "plan-several-nodes",
        "16 devices, and this host has 8", "--distributed-executor-backend ray"),
    "64 heads over 6": (
        planner.host("a100-80", 8), asks(L70, tensor_parallel=6), "plan-no-layout",
        "6 does not divide its 64 attention heads", "tensor_parallel"),
    "all GPUs busy": (
        busy(0, 1, 2, 3), asks("x/Llama-3.1-8B"), "devices-too-few", "pid 4002 of root",
        "free a device"),
    "a context longer than was trained": (
        planner.host("h100", 1), asks("x/Qwen2.5-7B", context=65536), "plan-context-beyond-model",
        "65536 tokens", "context"),
    "a driver too old for all": (
        planner.host("rtx4090", 1, driver={"version": "470.82.01"}), asks("x/Qwen2.5-7B-AWQ"),
        "plan-no-engine", "needs driver 580, and this host has 470.82.01",
        "a newer driver: then vllm 0.24.0 "),
    "a driver too old for the release that is asked for": (
        planner.host("rtx4090", 1, driver={"version": "470.82.01"}),
        asks("x/Qwen2.5-7B-AWQ", engine="vllm", engine_version="0.15.1"),
        "plan-no-engine", "this host has 470.82.01", "a newer driver: then vllm 0.15.1 "),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_case_is_refused_with_what_would_work(case):
    facts, wanted, id_, found, remedy = REFUSALS[case]
    known = {AWQ_7B: planner.model("Qwen2.5-7B-AWQ")} if wanted["model"] == AWQ_7B else None
    result = planner.plan(facts, wanted, models=known)
    assert result["endpoints"] == []
    [refusal] = result["refusals"]
    assert refusal["id"] == id_
    assert found in refusal["found"]
    assert remedy in refusal["remedy"]
    assert refusal["subject"].startswith("inference_endpoints[0] (chat).")


def test_two_endpoints_do_not_share_what_one_needs():
    facts = planner.host("a100-80", 4)
    result = planner.plan(facts, asks(AWQ), asks("x/Qwen2.5-7B"), asks("x/Llama-3.1-8B"))
    assert result["refusals"] == []
    devices = [uuid for one in result["endpoints"] for uuid in one["gpus"]]
    assert len(devices) == len(set(devices)) == 4
    assert any("it is for the endpoint chat" in reason
               for reason in result["endpoints"][1]["reasons"])
    fourth = planner.plan(facts, asks(AWQ), asks("x/Qwen2.5-7B"), asks("x/Llama-3.1-8B"),
                          asks("x/Qwen2.5-0.5B"))
    [refusal] = fourth["refusals"]
    assert "it is for the endpoint chat2" in refusal["found"]
    assert fourth["endpoints"] == result["endpoints"]


def mixed(**of_the_large):
    return made.host([planner.gpu("t4", 0), planner.gpu("t4", 1),
                      planner.gpu("h200", 2, **of_the_large)])


@pytest.mark.parametrize(("model", "card", "count"), [
    ("x/Llama-3.1-8B", "NVIDIA H200", 1), (FP8, "NVIDIA H200", 1),
    ("x/Qwen2.5-0.5B", "Tesla T4", 1)])
def test_of_unlike_cards_the_smallest_that_gives_the_context_is_taken(model, card, count):
    one = planner.only(planner.plan(mixed(), asks(model)))
    assert (one["device"], len(one["gpus"])) == (card, count)


def test_of_unlike_cards_a_refusal_tells_of_each():
    refusals = planner.plan(mixed(holders=[made.holder(9, 10 * made.GIB)]), asks(FP8))["refusals"]
    assert [one["id"] for one in refusals] == ["plan-does-not-fit", "devices-too-few"]
    assert "Tesla T4" in refusals[0]["found"]
    assert "pid 9 of root" in refusals[1]["found"]


def test_who_names_a_device_has_it_wherever_it_stands_in_the_list():
    facts = planner.host("h100", 2)
    result = planner.plan(facts, asks("x/Llama-3.1-8B"),
                          asks("x/Qwen2.5-7B", gpus=[made.uuid(0)]))
    assert [one["gpus"] for one in result["endpoints"]] == [[made.uuid(1)], [made.uuid(0)]]
    both = planner.plan(facts, asks("x/Llama-3.1-8B", gpus=[made.uuid(0)]),
                        asks("x/Qwen2.5-7B", gpus=[made.uuid(0)]))
    assert [one["name"] for one in both["endpoints"]] == ["chat"]
    assert "it is for the endpoint chat" in both["refusals"][0]["found"]


@pytest.mark.parametrize(("flags", "batch"), [
    (["--max-num-batched-tokens", "512"], (512, 512)), (["--max-num-seqs", "9000"], (9000, 9000)),
    (["--max_num_seqs=64"], (8192, 64))])
def test_a_batch_holds_a_token_of_every_sequence(flags, batch):
    one = planner.only(planner.plan(planner.host("h100", 1), asks(
        "x/Llama-3.1-8B", extra_args=flags)))
    assert (one["batched_tokens"], one["sequences"]) == batch


@pytest.mark.parametrize(("engine", "flags", "id_"), [
    ("x/Llama-3.1-8B", ["--max-num-seqs", "9", "--max-num-batched-tokens", "8"], "plan-bad-flag"),
    ("x/Llama-3.1-8B", ["--config", "/etc/x.yml"], "plan-decided-flag"),
    ("/m/Qwen2.5-7B.gguf", ["--cache-type-k=q8_0"], "plan-joined-flag"),
    ("/m/Qwen2.5-7B.gguf", ["-hf", "a/b"], "plan-decided-flag")])
def test_flags_with_which_the_engine_would_not_serve_the_plan_are_refused(engine, flags, id_):
    [refusal] = planner.plan(planner.host("h100", 1), asks(engine, extra_args=flags))["refusals"]
    assert refusal["id"] == id_


def test_a_refusal_tells_who_holds_the_other_cards():
    [refusal] = planner.plan(busy(1, 2, 3), asks(L70))["refusals"]
    assert refusal["id"] == "plan-does-not-fit"
    assert "pid 4003 of root" in refusal["evidence"]


def test_unlike_cards_never_work_together():
    [refusal] = planner.plan(mixed(), asks("x/Qwen2.5-7B-AWQ", gpus=3))["refusals"]
    assert refusal["id"] == "devices-unlike"


def test_a_limit_of_the_container_is_all_the_memory_there_is():
    facts = planner.cpu(256, memory={"total_bytes": 256 * made.GIB,
                                     "limit_bytes": 8 * made.GIB})
    one = planner.only(planner.plan(facts, asks("/m/Qwen2.5-7B.gguf")))
    assert one["memory"]["limit_bytes"] == int(0.8 * 8 * made.GIB)


def test_gguf_goes_to_vllm_only_where_it_is_asked_for():
    facts = planner.host("h100", 1, driver={"version": "550.54.14"})
    [refusal] = planner.plan(facts, asks("/m/Qwen2.5-7B.gguf"))["refusals"]
    assert "is taken for gguf only where engine: vllm asks for it" in refusal["found"]
    asked = planner.plan(facts, asks("/m/Qwen2.5-7B.gguf", engine="vllm"))
    assert planner.only(asked)["engine_version"] == "0.15.1"


def test_two_endpoints_on_a_cpu_share_its_memory():
    both = planner.plan(planner.cpu(16), asks("/m/Qwen2.5-7B.gguf"), asks("/m/Qwen2.5-7B.gguf"))
    limits = [one["memory"]["limit_bytes"] for one in both["endpoints"]]
    assert limits[1] == limits[0] - both["endpoints"][0]["memory"]["total_bytes"]


@pytest.mark.parametrize("file", sorted(PROFILES.glob("*.yml")), ids=lambda file: file.stem)
def test_every_example_profile_is_planned_or_refused_in_words(file):
    known = planner.catalog()
    read = profiles.plan_profile(yaml.safe_load(file.read_text()), known, [])
    assert read["findings"] == []
    taken, wrong = requests.normalise(read["endpoints"])
    assert wrong == []
    verdict = health.host_health(read["facts"], known)
    assert verdict["verdict"] != "bad"
    result = plan.deployment_plan(taken, read["facts"], read["models"], read["state"], known,
                                  verdict)
    assert len(result["endpoints"]) + len(result["refusals"]) == len(taken)
    assert json.loads(json.dumps(result)) == result


THOR = PROFILES / "thor.yml"


def test_thor_is_served_by_vllm_with_a_share_of_what_the_host_has():
    known = planner.catalog()
    read = profiles.plan_profile(yaml.safe_load(THOR.read_text()), known, [])
    taken, _ = requests.normalise(read["endpoints"])
    result = plan.deployment_plan(taken, read["facts"], read["models"], read["state"], known,
                                  health.host_health(read["facts"], known))
    [one] = result["endpoints"]
    assert (one["engine"], one["runtime"]) == ("vllm", "docker")
    assert one["utilisation"] <= 0.8
    assert one["memory"]["limit_bytes"] == int(0.8 * read["facts"]["memory"]["total_bytes"])
