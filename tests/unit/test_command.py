# SPDX-License-Identifier: Apache-2.0
"""A plan as argv and environment, in every dialect, in containers and beside them."""

from __future__ import annotations

import planner
import pytest
from facts import device, host, jetson_host, uuid

from ansible.module_utils.firstlight.planning.command import CACHES, VLLM_ENV, engine_command

FOLDER = "/srv/models/"
VLLM = FOLDER + "Llama-3.1-8B"
GGUF = FOLDER + "Qwen2.5-7B.gguf"
ROWS = planner.catalog()["engine_releases"]
IDS = ["%(engine)s-%(version)s-%(variant)s" % row for row in ROWS]


def plan_of(facts, **asked):
    return planner.only(planner.plan(facts, asked))


def flags(argv):
    """Each flag with the word after it."""
    return dict(zip(argv, argv[1:]))


def hosts_for(row):
    """A host on which a release runs."""
    if row["devices"] == ["cpu"]:
        return planner.cpu()
    if row["variant"].startswith("l4t"):
        return jetson_host(cpu={"architecture": "aarch64"})
    return planner.host("l40s", 4)


def plans_of(row):
    """Plans of a release: plain, split, with flags of memory."""
    catalog = planner.catalog(engine_releases=[row], known_issues=[
        one for one in planner.catalog()["known_issues"]
        if not one["action"].get("forbid") and not one["action"].get("avoid")])
    model = VLLM if "safetensors" in row["formats"] else GGUF
    made = []
    on_cpu = row["devices"] == ["cpu"]
    for more in ({}, {"context": 2048}) if on_cpu else (
            {}, {"gpus": "all"}, {"gpus": 3, "context": 4096}):
        more = {"runtime": row["runtime"], **more}
        result = planner.plan(hosts_for(row), {"model": model, **more}, catalog=catalog)
        made += result["endpoints"]
    assert made, result["refusals"]
    return made


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_every_flag_of_a_command_is_one_of_its_release(row):
    for plan in plans_of(row):
        given = {word for word in plan["command"]["argv"] if word.startswith("--")}
        assert given <= set(row["flags"])
        assert not given & set(row["removed_flags"])


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_a_command_is_words_without_quotes_and_its_names_are_known(row):
    for plan in plans_of(row):
        for word in [*plan["command"]["argv"], *plan["command"]["env"].values()]:
            assert isinstance(word, str)
            assert word
            assert not set(word) & set("'\"`$;&|<>(){}*?!#\\ \n")
        known = {"PYTHONUNBUFFERED", "CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES"}
        known |= ({*VLLM_ENV} if row["engine"] == "vllm" else set()) | (
            {*CACHES} if plan["cache"] else set())
        assert set(plan["command"]["env"]) <= known | set(row["environment"])
        assert list(plan["command"]["env"]) == sorted(plan["command"]["env"])
        assert plan["command"] == engine_command(plan)


def test_a_dialect_that_nobody_speaks_is_an_error():
    with pytest.raises(KeyError):
        engine_command({**plan_of(planner.cpu(), model=GGUF), "dialect": "esperanto"})


# llama.cpp.


def test_llama_cpp_on_the_cpu_is_our_launcher_in_its_environment():
    plan = plan_of(planner.cpu(), model=GGUF, port=9000, context=4096, extra_args=["-t", "4"])
    argv = plan["command"]["argv"]
    assert argv[:2] == [plan["venv"] + "/bin/python", plan["venv"] + "/bin/llama_server.py"]
    given = flags(argv)
    assert given["--model"] == GGUF
    assert given["--alias"] == "Qwen2.5-7B"
    assert given["--host"] == "127.0.0.1"
    assert given["--port"] == "9000"
    assert given["--ctx-size"] == "4096"
    assert given["--cache-ram"] == "0"
    assert argv[-2:] == ["-t", "4"]
    assert plan["command"]["env"] == {"PYTHONUNBUFFERED": "1"}


def test_the_canary_takes_one_thread_of_a_cpu():
    plan = plan_of(planner.cpu(), model="canary", gpus=0)
    assert flags(plan["command"]["argv"])["--threads"] == "1"
    # Not where its user says how many, and no other model.
    for other in ({"model": "canary", "extra_args": ["-t", "4"]}, {"model": GGUF}):
        assert "--threads" not in plan_of(planner.cpu(), gpus=0, **other)["command"]["argv"]
    assert "--threads" not in plan_of(planner.host("h100", 1), model="canary",
                                      engine="llama_cpp")["command"]["argv"]


def test_llama_cpp_in_a_container_lies_on_its_gpus_whole():
    plan = plan_of(planner.host("h100", 2), model=GGUF, gpus=2)
    argv = plan["command"]["argv"]
    assert argv[0] == "/app/llama-server"
    given = flags(argv)
    assert given["--n-gpu-layers"] == "999"
    assert given["--split-mode"] == "layer"
    assert given["--fit"] == "off"
    assert "CUDA_VISIBLE_DEVICES" not in plan["command"]["env"]
    assert plan["gpus"] == [uuid(0), uuid(1)]
    assert plan["runtime"] == "docker"
    assert plan["image"].startswith("ghcr.io/ggml-org/llama.cpp:server-cuda")


def test_an_image_that_starts_nothing_is_given_its_program():
    plan = plan_of(jetson_host(cpu={"architecture": "aarch64"}), model=GGUF)
    assert plan["command"]["argv"][0] == "llama-server"
    assert "@sha256:" in plan["image"]
    assert "--split-mode" not in plan["command"]["argv"]


def test_a_llama_server_of_the_users_own_is_the_program():
    plan = plan_of(planner.host("h100", 2), model=GGUF, gpus=2,
                   engine_binary="/opt/a b/llama-server", engine_version="11434")
    assert plan["command"]["argv"][0] == "/opt/a b/llama-server"
    assert plan["runtime"] == "native"
    assert [plan[key] for key in ("image", "entrypoint", "venv", "lock", "launcher", "package",
                                  "environment")] == ["", [], "", "", "", "", ""]
    assert plan["command"]["env"]["CUDA_VISIBLE_DEVICES"] == "%s,%s" % (uuid(0), uuid(1))
    assert plan["command"]["env"]["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_a_llama_server_of_the_users_own_serves_on_the_cpu_too():
    plan = plan_of(planner.cpu(), model=GGUF, engine_binary="/opt/llama-server",
                   engine_version="11434")
    assert plan["command"]["argv"][0] == "/opt/llama-server"
    assert "CUDA_VISIBLE_DEVICES" not in plan["command"]["env"]


def test_a_device_without_a_uuid_is_not_named_to_cuda():
    facts = jetson_host(cpu={"architecture": "aarch64"})
    facts["devices"][0]["uuid"] = None
    plan = plan_of(facts, model=GGUF, engine_binary="/opt/llama-server", engine_version="8708")
    assert "devices[0]" not in plan["command"]["env"].get("CUDA_VISIBLE_DEVICES", "")


# vLLM.


@pytest.mark.parametrize("version", ["0.11.0", "0.15.1", "0.20.0", "0.24.0", "0.33.0"])
def test_vllm_serves_the_model_by_its_place(version):
    plan = plan_of(planner.host("h100", 4), model=VLLM, gpus=4, context=8192,
                   engine_version=version, extra_args=["--seed", "1"])
    argv = plan["command"]["argv"]
    assert argv[:3] == ["vllm", "serve", VLLM]
    given = flags(argv)
    assert given["--served-model-name"] == "Llama-3.1-8B"
    # Its container publishes it on loopback alone.
    assert given["--host"] == "0.0.0.0"
    assert given["--max-model-len"] == "8192"
    assert given["--tensor-parallel-size"] == "4"
    assert given["--max-num-batched-tokens"] == str(plan["batched_tokens"])
    assert given["--max-num-seqs"] == str(plan["sequences"])
    assert float(given["--gpu-memory-utilization"]) == plan["utilisation"]
    assert "--pipeline-parallel-size" not in argv
    assert argv[-2:] == ["--seed", "1"]
    assert plan["image"] == "vllm/vllm-openai:v" + version
    assert not {"CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"} & set(plan["command"]["env"])


def test_the_older_vllm_is_the_module_of_its_server():
    plan = plan_of(planner.host("h100", 1), model=VLLM, engine_version="0.10.2")
    assert plan["command"]["argv"][:5] == [
        "python3", "-m", "vllm.entrypoints.openai.api_server", "--model", VLLM]


def test_layers_after_one_another_are_said_in_stages():
    plan = plan_of(planner.host("a100-80", 6), model=FOLDER + "Llama-3.1-70B", gpus=6)
    given = flags(plan["command"]["argv"])
    assert given["--tensor-parallel-size"] == "2"
    assert given["--pipeline-parallel-size"] == "3"


def test_a_python_of_the_users_own_runs_the_server_on_its_devices():
    plan = plan_of(planner.host("h100", 4), model=VLLM, gpus=[uuid(3), uuid(1)],
                   engine_python="/opt/vllm/bin/python", engine_version="0.24.0")
    assert plan["command"]["argv"][:5] == [
        "/opt/vllm/bin/python", "-m", "vllm.entrypoints.openai.api_server", "--model", VLLM]
    assert plan["command"]["env"]["CUDA_VISIBLE_DEVICES"] == "%s,%s" % (uuid(1), uuid(3))
    assert plan["runtime"] == "native"


def test_a_program_of_the_users_own_is_of_a_release_that_is_known():
    found = planner.refusal(planner.plan(planner.host("h100", 1), {
        "model": VLLM, "engine_python": "/opt/vllm/bin/python", "engine_version": "0.24.9"}))
    assert found["subject"] == "inference_endpoints[0] (chat).engine_version"
    assert "0.24.9" in found["found"]


def test_a_slice_is_named_by_its_own_uuid():
    facts = host([device(0, mig={"enabled": True, "pending": True, "slices": [
        {"uuid": "MIG-7", "name": "NVIDIA H200 MIG 2g.35gb", "gpu_instance": 1,
         "compute_instance": 0, "memory_total_bytes": 35 * 2**30,
         "memory_free_bytes": 35 * 2**30}]})])
    plan = plan_of(facts, model=VLLM, engine_python="/opt/vllm/bin/python",
                   engine_version="0.24.0")
    assert plan["command"]["env"]["CUDA_VISIBLE_DEVICES"] == "MIG-7"


# Paths that would mean something to a shell.

HOSTILE = ["/srv/a b", "/srv/a'b", '/srv/a"b', "/srv/$HOME", "/srv/$(reboot)", "/srv/`id`",
           "/srv/a;b", "/srv/a&b", "/srv/--port=1", "/srv/é", "/srv/a,b", "/srv/{{ x }}",
           "/srv/%h", "/srv/a=b", "/srv/#a"]


@pytest.mark.parametrize("path", HOSTILE)
def test_a_path_is_one_word_as_it_is(path):
    for facts, model, flag in ((planner.cpu(), planner.gguf("Qwen2.5-0.5B"), "--alias"),
                               (planner.host("h100", 1), planner.model("Qwen2.5-0.5B"),
                                "--served-model-name")):
        plan = planner.only(planner.plan(facts, {"model": path}, models={
            path: {**model, "path": path}}))
        assert plan["command"]["argv"].count(path) == 1
        assert flags(plan["command"]["argv"])[flag] == path.rpartition("/")[2]


def test_a_name_that_would_be_a_flag_is_the_value_of_one():
    path = "/srv/--help"
    plan = planner.only(planner.plan(planner.cpu(), {"model": path},
                                     models={path: planner.gguf("Qwen2.5-0.5B")}))
    argv = plan["command"]["argv"]
    assert argv[argv.index("--alias") + 1] == "--help"


def test_a_repository_is_served_under_its_whole_name():
    name = "x/Llama-3.1-8B"
    plan = plan_of(planner.host("h100", 1), model=name)
    assert plan["command"]["argv"][2] == name
    assert flags(plan["command"]["argv"])["--served-model-name"] == name


def test_what_is_compiled_is_kept_in_the_cache_and_vllm_asks_nobody():
    made = plan_of(planner.host("l40s", 4), model=VLLM)
    env = made["command"]["env"]
    assert {env[name].rpartition("/")[0] for name in CACHES} == {made["cache"]}
    assert (env["HF_HUB_OFFLINE"], env["VLLM_NO_USAGE_STATS"]) == ("1", "1")
    assert not any("TOKEN" in name for name in env)
