# SPDX-License-Identifier: Apache-2.0
"""Plans for containers: on a CPU, with images of the user's own, behind a way in, in succession."""

from __future__ import annotations

import itertools

import planner
import pytest
from facts import GIB, changed, holder, jetson_host, uuid

from ansible.module_utils.firstlight import canary
from ansible.module_utils.firstlight.planning import requests

FOLDER = "/srv/models/"
VLLM = FOLDER + "Qwen2.5-0.5B"
GGUF = VLLM + ".gguf"
KEY = "k" * 32
PUBLIC = {"bind": "0.0.0.0", "api_key": KEY}  # noqa: S104
OURS = "registry.example.org:5000/ours/llama-server:1"


def plan_of(facts=None, state=None, catalog=None, **asked):
    return planner.only(planner.plan(facts or planner.cpu(), asked, state=state, catalog=catalog))


def flags(plan):
    argv = plan["command"]["argv"]
    return dict(zip(argv, [*argv[1:], ""]))


def kept_in(plan, **condition):
    return planner.state({plan["name"]: planner.serving(plan, **condition)})


# Which release, and what of its image.


@pytest.mark.parametrize(("asked", "engine"), [
    ({"model": GGUF}, "llama_cpp"), ({"model": VLLM}, "vllm"), ({"model": "canary"}, "llama_cpp"),
    ({"model": "canary", "engine": "vllm"}, "vllm")])
def test_a_cpu_serves_in_a_container_where_that_is_asked_for(asked, engine):
    plan = plan_of(runtime="docker", **asked)
    row = planner.row(engine=engine, runtime="docker", variant="cpu")
    assert (plan["engine"], plan["engine_version"]) == (engine, row["version"])
    assert plan["image"] == "%s:%s" % (row["image"], row["tag"])
    assert (plan["entrypoint"], plan["user"]) == (row["entrypoint"], row["user"])
    assert plan["gpus"] == []
    assert plan["listen"] == "0.0.0.0"  # noqa: S104


def test_gpus_0_serves_a_container_on_a_gpu_host():
    plan = plan_of(planner.host("h100", 1), model=VLLM, gpus=0, runtime="docker")
    assert (plan["engine_version"], plan["gpus"]) == ("0.32.0", [])


def test_nobody_gets_a_container_on_a_cpu_by_surprise():
    assert plan_of(model=GGUF)["runtime"] == "native"
    assert plan_of(model="canary", engine="llama_cpp")["runtime"] == "native"


def test_an_engine_beside_containers_has_none_of_their_keys():
    plan = plan_of(model=GGUF)
    assert [plan[key] for key in ("image", "user", "entrypoint", "shm_bytes", "listen")] == [
        "", "", [], 0, "127.0.0.1"]


def test_an_image_of_ones_own_is_started_as_its_version_is():
    plan = plan_of(model=GGUF, image=OURS, engine="llama_cpp", engine_version="11669")
    assert (plan["image"], plan["runtime"]) == (OURS, "docker")
    # Nothing is known of whom it has and where its program lies.
    assert (plan["user"], plan["entrypoint"]) == ("", [])
    assert plan["command"]["argv"][0] == "llama-server"
    assert any("image of your own" in one for one in plan["reasons"])


@pytest.mark.parametrize("tag", [":server-other", "@sha256:" + "a" * 64,
                                 ":server-other@sha256:" + "a" * 64])
def test_another_tag_of_the_releases_image_has_its_user_and_its_program(tag):
    row = planner.row(engine="llama_cpp", version="11669")
    plan = plan_of(model=GGUF, image=row["image"] + tag, engine="llama_cpp",
                   engine_version="11669")
    assert plan["image"] == row["image"] + tag
    assert (plan["user"], plan["entrypoint"]) == (row["user"], row["entrypoint"])
    assert plan["command"]["argv"][0] == row["entrypoint"][0]


def test_an_image_of_ones_own_is_taken_whatever_the_card_and_the_driver():
    """It may have been built for them; what nobody has looked at is not refused for that."""
    facts = planner.host("h100", 1, driver={"version": "470.0"})
    asked = {"model": VLLM, "engine": "vllm", "engine_version": "0.24.0"}
    assert planner.refusal(planner.plan(facts, asked))["id"] == "plan-no-engine"
    plan = plan_of(facts, image=OURS, **asked)
    assert plan["gpus"] == [uuid(0)]
    assert "VLLM_ENABLE_CUDA_COMPATIBILITY" not in plan["command"]["env"]


def test_an_image_of_a_version_that_nobody_knows_is_refused():
    found = planner.refusal(planner.plan(planner.cpu(), {
        "model": GGUF, "image": OURS, "engine": "llama_cpp", "engine_version": "1"}))
    assert found["subject"].endswith(".engine_version")
    assert "image" in found["remedy"]


def test_another_image_is_another_plan_and_keeps_nothing():
    asked = {"model": GGUF, "engine": "llama_cpp", "engine_version": "11669"}
    first = plan_of(image=OURS, **asked)
    assert plan_of(image=OURS, state=kept_in(first), **asked)["hash"] == first["hash"]
    assert plan_of(image=OURS + "1", state=kept_in(first), **asked)["hash"] != first["hash"]


WRONG = {
    "no text": ({"image": 1}, "bad-image"),
    "no tag": ({"image": "ours/llama"}, "bad-image"),
    "a port is no tag": ({"image": "registry.example.org:5000/ours"}, "bad-image"),
    "a blank": ({"image": "ours:1 --privileged"}, "bad-image"),
    "a short digest": ({"image": "ours@sha256:abc"}, "bad-image"),
    "natively": ({"image": OURS, "runtime": "native"}, "image-without-container"),
    "which engine": ({"image": OURS, "engine": "auto"}, "image-engine"),
    "which version": ({"image": OURS, "engine_version": "auto"}, "image-engine-version"),
    "beside a program": ({"image": OURS, "engine_binary": "/opt/llama-server"},
                         "image-and-own-engine"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_image_that_cannot_be_meant_is_told(case):
    asked, id_ = WRONG[case]
    _, found = requests.normalise([{
        "name": "chat", "model": "canary", "engine": "llama_cpp", "engine_version": "11669",
        **asked}])
    assert [one["id"] for one in found] == ["endpoint-" + id_]


@pytest.mark.parametrize("image", [
    OURS, "ours:1", "Registry.example.org/ours:A_b.c-1",
    "localhost:5000/a/b_c/d@sha256:" + "0" * 64])
def test_an_image_may_be_named_as_docker_names_it(image):
    [request], found = requests.normalise([{
        "name": "chat", "model": "canary", "engine": "vllm", "engine_version": "0.32.0",
        "image": image}])
    assert found == []
    assert request["runtime"] == "docker"


# vLLM on a CPU.


def test_vllm_on_a_cpu_is_given_its_cache_in_whole_gib():
    plan = plan_of(model=VLLM, runtime="docker", context=32768)
    env, memory = plan["command"]["env"], plan["memory"]
    assert memory["kv_bytes"] == int(env["VLLM_CPU_KVCACHE_SPACE"]) * GIB
    assert memory["kv_tokens"] >= 32768
    assert env["VLLM_CPU_OMP_THREADS_BIND"] == "auto"
    assert "--gpu-memory-utilization" not in plan["command"]["argv"]
    assert plan["utilisation"] is None
    assert "--enforce-eager" in plan["command"]["argv"]
    assert plan["start"]["compile_s"] == 0


def test_a_longer_context_has_a_larger_cache_and_never_too_small_a_one():
    spaces = []
    for context in (2048, 16384, 65536, 131072):
        plan = plan_of(planner.cpu(64), model=FOLDER + "Llama-3.1-8B", runtime="docker",
                       context=context)
        space = int(plan["command"]["env"]["VLLM_CPU_KVCACHE_SPACE"])
        # 128 KiB a token.
        assert context / 8192 <= space < context / 8192 + 1
        assert plan["memory"]["total_bytes"] <= plan["memory"]["limit_bytes"]
        spaces.append(space)
    assert spaces == sorted(set(spaces))


def test_a_context_that_leaves_no_whole_gib_is_refused():
    """Most of a GiB that is left is no cache, though it would hold a context."""
    facts = planner.cpu(5.2)
    assert planner.refusal(planner.plan(facts, {"model": VLLM, "runtime": "docker"}))["id"] == (
        "plan-does-not-fit")
    assert plan_of(planner.cpu(8), model=VLLM, runtime="docker")["context"] == 8192


def test_vllm_on_a_cpu_is_not_split():
    found = planner.refusal(planner.plan(planner.cpu(), {
        "model": VLLM, "runtime": "docker", "tensor_parallel": 2}))
    assert found["id"] == "plan-no-tensor-parallel"


def test_a_flag_that_the_user_gives_is_given_once():
    argv = plan_of(model=VLLM, runtime="docker", extra_args=["--enforce-eager"])["command"]["argv"]
    assert argv.count("--enforce-eager") == 1


def test_a_vllm_of_ones_own_serves_on_the_cpu():
    plan = plan_of(model=VLLM, engine_python="/opt/vllm/bin/python", engine_version="0.32.0")
    assert plan["command"]["argv"][:2] == ["/opt/vllm/bin/python", "-m"]
    assert plan["command"]["env"]["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert (plan["runtime"], plan["image"], plan["shm_bytes"]) == ("native", "", 0)


def test_the_memory_of_vllm_on_a_cpu_is_what_was_measured():
    """MiB in use with a full batch and a cache of one GiB, on a machine of 23 GiB."""
    model = planner.model("Llama-3.1-8B")
    layer = (model["bytes"] - 2 * 128256 * 4096 * 2) // 32
    shape = {"layers": 4, "attention_layers": 4, "dense_layers": 4}
    cut = changed(model, {"bytes": 2 * 128256 * 4096 * 2 + 4 * layer, "geometry": shape})
    for path, models, seen in ((VLLM, None, 4182), ("/m", {"/m": cut}, 8739)):
        found = planner.only(planner.plan(planner.cpu(), {
            "model": path, "runtime": "docker", "context": 2048}, models=models))["memory"]
        assert abs(found["total_bytes"] / 2**20 - seen) <= found["error_bytes"] / 2**20


def test_other_endpoints_on_the_cpu_leave_less():
    both = planner.plan(planner.cpu(20), {"model": VLLM, "runtime": "docker"},
                        {"model": FOLDER + "Qwen2.5-7B", "runtime": "docker"})
    assert [one["name"] for one in both["endpoints"]] == ["chat"]
    assert both["refusals"][0]["id"] == "plan-does-not-fit"


# Shared memory, caches.


@pytest.mark.parametrize(("count", "gib"), [(1, 2), (2, 3), (4, 5)])
def test_ranks_have_shared_memory_to_talk_over(count, gib):
    plan = plan_of(planner.host("h100", 4), model=VLLM if count < 2 else FOLDER + "Llama-3.1-8B",
                   gpus=count)
    assert plan["shm_bytes"] == gib * GIB


def test_llama_cpp_needs_no_shared_memory_and_keeps_what_the_driver_compiles():
    plan = plan_of(planner.host("h100", 1), model=GGUF)
    assert plan["shm_bytes"] == 0
    # Named after who writes into it: what one compiled, no other runs.
    assert plan["cache"] == "%s/cache/llama_cpp-%s-docker-65534" % (
        planner.ROOT, plan["engine_version"])
    assert plan_of(model=GGUF, runtime="docker")["cache"] == ""
    assert plan["start"]["cached"] is False


# The canary.


@pytest.mark.parametrize("asked", [
    {"engine": "vllm"}, {"engine_python": "/opt/python", "engine_version": "0.24.0"},
    {"engine": "vllm", "engine_version": "0.24.0", "image": OURS}])
def test_vllm_serves_the_canary_from_its_folder(asked):
    plan = plan_of(planner.host("h100", 1), model="canary", **asked)
    assert plan["model"]["path"] == planner.ROOT + "/models/canary/" + canary.SAFETENSORS
    assert plan["model"]["format"] == "safetensors"
    assert plan["model"]["served_name"] == "canary"
    assert plan["oracle"] == canary.oracle()


def test_the_canary_is_a_gguf_where_nobody_asks_for_vllm():
    plan = plan_of(planner.host("h100", 1), model="canary")
    assert plan["model"]["path"].endswith(canary.GGUF)
    assert plan["engine"] == "llama_cpp"


# The way in.


def test_on_loopback_people_ask_the_engine_itself():
    plan = plan_of(model=GGUF, port=8123)
    assert plan["url"] == plan["public_url"] == "http://127.0.0.1:8123"
    assert (plan["engine_port"], plan["way_in"], plan["tls"]) == (8123, False, "none")
    assert flags(plan)["--port"] == "8123"


@pytest.mark.parametrize("runtime", ["native", "docker"])
def test_behind_a_way_in_the_engine_has_another_port_and_none_of_the_address(runtime):
    plan = plan_of(model=GGUF, runtime=runtime, port=8123, **PUBLIC)
    assert plan["url"] == "http://127.0.0.1:18123"
    assert plan["public_url"] == "https://0.0.0.0:8123"
    assert (plan["bind"], plan["port"]) == ("0.0.0.0", 8123)  # noqa: S104
    assert flags(plan)["--port"] == "18123"
    assert flags(plan)["--host"] == ("127.0.0.1" if runtime == "native" else "0.0.0.0")  # noqa: S104
    assert (plan["way_in"], plan["tls"]) == (True, "self-signed")


def test_an_ipv6_address_stands_in_brackets():
    plan = plan_of(model=GGUF, bind="2001:db8::1", api_key=KEY)
    assert plan["public_url"] == "https://[2001:db8::1]:8000"


def test_a_certificate_is_named_by_its_place():
    plan = plan_of(model=GGUF, tls_certificate="/etc/ssl/c.pem", tls_key="/etc/ssl/k.pem", **PUBLIC)
    assert [plan[key] for key in ("tls", "tls_certificate", "tls_key")] == [
        "given", "/etc/ssl/c.pem", "/etc/ssl/k.pem"]
    assert plan["hash"] != plan_of(model=GGUF, **PUBLIC)["hash"]


def test_no_plan_has_a_key():
    assert KEY not in repr(plan_of(model=GGUF, **PUBLIC))
    assert plan_of(model=GGUF, **PUBLIC)["hash"] == plan_of(
        model=GGUF, **{**PUBLIC, "api_key": "another key of this".replace(" ", "-")})["hash"]


def test_the_next_engine_comes_up_on_the_other_port_and_then_stays_there():
    asked = {"model": GGUF, "runtime": "docker", **PUBLIC}
    first = plan_of(**asked)
    assert first["engine_port"] == 18000
    # The same again, whatever the load.
    for facts in (None, planner.cpu(memory={"available_bytes": 1})):
        assert plan_of(facts, state=kept_in(first), **asked)["hash"] == first["hash"]
    second = plan_of(state=kept_in(first), context=4096, **asked)
    assert second["engine_port"] == 18001
    assert plan_of(state=kept_in(second), context=4096, **asked)["hash"] == second["hash"]
    assert plan_of(state=kept_in(second), **asked)["hash"] == first["hash"]


def test_words_that_decide_nothing_new_change_no_port():
    """`context: auto` and the number that it gave are the same plan."""
    asked = {"model": GGUF, "runtime": "docker", **PUBLIC}
    first = plan_of(**asked)
    again = plan_of(state=kept_in(first), context=first["context"], **asked)
    assert again["hash"] == first["hash"]


def test_a_port_that_is_asked_for_is_the_engines():
    asked = {"model": GGUF, "runtime": "docker", "engine_port": 9999, **PUBLIC}
    first = plan_of(**asked)
    assert first["url"] == "http://127.0.0.1:9999"
    second = plan_of(state=kept_in(first), context=4096, **asked)
    assert (second["engine_port"], second["beside"]) == (9999, False)


def test_a_port_at_the_end_has_its_engine_below():
    assert plan_of(model=GGUF, port=65000, **PUBLIC)["engine_port"] == 55000


def test_another_address_is_another_plan_on_the_same_devices():
    asked = {"model": VLLM, "gpus": 1, "runtime": "docker"}
    facts = planner.host("h100", 2)
    facts["devices"][0]["memory_free_bytes"] = GIB
    first = plan_of(facts, **asked)
    assert first["gpus"] == [uuid(1)]
    second = plan_of(planner.host("h100", 2), state=kept_in(first), **asked, **PUBLIC)
    assert second["hash"] != first["hash"]
    assert second["gpus"] == first["gpus"]


# Whether a new engine comes up beside the old one.


def test_a_cpu_with_memory_for_both_serves_both():
    asked = {"model": VLLM, "runtime": "docker", **PUBLIC}
    first = plan_of(**asked)
    for available, beside in ((GIB, False), (20 * GIB, True), (None, False)):
        facts = planner.cpu(memory={"available_bytes": available})
        second = plan_of(facts, state=kept_in(first), context=4096, **asked)
        assert second["beside"] is beside
        assert second["hash"] != first["hash"]


def test_beside_is_no_decision():
    asked = {"model": VLLM, "runtime": "docker", **PUBLIC}
    plans = [plan_of(planner.cpu(memory={"available_bytes": one}), **asked)
             for one in (GIB, 20 * GIB)]
    assert [one["beside"] for one in plans] == [False, True]
    assert len({one["hash"] for one in plans}) == 1


def test_what_the_old_engine_holds_of_a_gpu_is_not_free_for_the_new_one_beside_it():
    asked = {"model": VLLM, **PUBLIC}
    facts = planner.host("h100", 1)
    first = plan_of(facts, **asked)
    full = planner.host("h100", 1)
    full["devices"][0].update(memory_free_bytes=5 * GIB, holders=[holder(4711, 70 * GIB)])
    second = plan_of(full, state=kept_in(first), context=2048, **asked)
    assert second["gpus"] == first["gpus"]
    assert second["beside"] is False
    assert plan_of(facts, state=kept_in(first), context=2048, **asked)["beside"] is True


@pytest.mark.parametrize("asked", [
    {"runtime": "docker"}, {"runtime": "native", **PUBLIC}])
def test_one_port_or_one_service_is_for_one_engine(asked):
    assert plan_of(model=GGUF, **asked)["beside"] is False


def test_an_engine_that_has_the_public_port_goes_first():
    first = plan_of(model=GGUF, runtime="docker")
    second = plan_of(state=kept_in(first), model=GGUF, runtime="docker", **PUBLIC)
    assert second["beside"] is False


def test_a_device_that_is_its_hosts_is_not_for_two():
    facts = jetson_host(cpu={"architecture": "aarch64"})
    assert plan_of(facts, model=GGUF, **PUBLIC)["beside"] is False


def test_every_way_has_a_hash_of_its_own():
    ways = [{}, {"bind": "192.0.2.1", "api_key": KEY}, PUBLIC, {**PUBLIC, "engine_port": 9},
            {**PUBLIC, "tls_certificate": "/c", "tls_key": "/k"},
            {**PUBLIC, "tls_certificate": "/c", "tls_key": "/l"}]
    made = [plan_of(model=GGUF, runtime=runtime, **way)["hash"]
            for runtime, way in itertools.product(("native", "docker"), ways)]
    assert len(set(made)) == len(made)
