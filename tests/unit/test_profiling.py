# SPDX-License-Identifier: Apache-2.0
"""How an endpoint is profiled: in the dialect of its release, within limits, with consent alone."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import planner
import profile_strategies
import pytest
import strategies
import supervised
import yaml
from endpoint_host import contained
from hypothesis import given
from hypothesis import strategies as st

from ansible.module_utils.firstlight import findings, profiler
from ansible.module_utils.firstlight.planning import (
    container,
    profile_picture,
    profile_service,
    profiling,
)
from ansible.module_utils.firstlight.planning import plan as planning

DIALECTS = yaml.safe_load(
    (Path(__file__).parents[2] / "catalog" / "profiler_dialects.yml").read_text())
MODEL = "/srv/models/Qwen2.5-7B"
FIELDS = {
    "profiler": "torch", "torch_profiler_dir": None, "torch_profiler_with_stack": False,
    "torch_profiler_use_gzip": False, "torch_profiler_dump_cuda_time_total": False,
    "ignore_frontend": True, "max_iterations": 10}


def plan_of(facts=None, version="0.33.0", **asked):
    """A plan of vLLM, natively on a GPU; its release may be one that nobody has a row of."""
    made = planner.only(planner.plan(facts or planner.host("h100", 1), {
        "model": MODEL, "engine": "vllm", "engine_python": "/opt/vllm/bin/python",
        "engine_version": "0.33.0", **asked}))
    return {**made, "engine_version": version}


def profiled(made, **settings):
    found = profiling.profile_plan(made, planner.ROOT, DIALECTS, {"consent": True, **settings})
    assert findings.blocking(found["findings"]) == [], found["findings"]
    return found["plan"]


def refused(made, **settings):
    found = profiling.profile_plan(made, planner.ROOT, DIALECTS, {"consent": True, **settings})
    assert found["plan"] is None
    [one] = findings.blocking(found["findings"])
    return one


def told(made):
    """What a variant gives the profiler: the JSON of its flag, and variables."""
    given = profiling.given_flags(made["command"]["argv"])
    return given.fields, {key: value for key, value in made["command"]["env"].items()
                          if "PROFILE" in key or "RPC" in key}


# In the dialect of the release.


@pytest.mark.parametrize(("version", "fields", "variables"), [
    ("0.10.2", {}, {"_DIR", "_WITH_STACK"}), ("0.11.0", {}, {"_DIR", "_WITH_STACK"}),
    ("0.12.0", {}, {"_DIR", "_WITH_STACK", "_DISABLE_ASYNC_LLM", "_USE_GZIP",
                    "_DUMP_CUDA_TIME_TOTAL"}),
    ("0.13.0", FIELDS, set()), ("0.15.1", FIELDS, set()), ("0.16.0", FIELDS, set()),
    ("0.20.0", FIELDS, set()), ("0.24.0", FIELDS, set()), ("0.33.0", FIELDS, set()),
])
def test_each_release_is_told_in_its_own_dialect(version, fields, variables):
    made = profiled(plan_of(version=version))
    folder = made["profile"]["folder"]
    given, env = told(made)
    assert given == {**fields, **({"torch_profiler_dir": folder} if fields else {})}
    assert {key[len("VLLM_TORCH_PROFILER"):] for key in env
            if key.startswith("VLLM_TORCH_PROFILER")} == variables
    if variables:
        assert env["VLLM_TORCH_PROFILER_DIR"] == folder
        assert env["VLLM_TORCH_PROFILER_WITH_STACK"] == "0"
    # It waits for the flush as long as we do; where it is gone it is not given.
    assert env.get("VLLM_RPC_TIMEOUT") == ("1800000" if version < "0.16.0" else None)
    assert env.get("VLLM_PROFILER_MAX_ITERS") == ("10" if version == "0.12.0" else None)
    assert made["profile"]["bounded"] is (version >= "0.12.0")
    assert made["profile"]["frontend"] is (version < "0.12.0")


def test_stacks_and_steps_are_as_asked_for():
    given, _ = told(profiled(plan_of(), stacks=True, iterations=25))
    assert (given["torch_profiler_with_stack"], given["max_iterations"]) == (True, 25)
    _, env = told(profiled(plan_of(version="0.12.0"), stacks=True, iterations=25))
    assert (env["VLLM_TORCH_PROFILER_WITH_STACK"], env["VLLM_PROFILER_MAX_ITERS"]) == ("1", "25")


def test_nsys_is_wrapped_around_the_command_of_a_native_engine():
    made = plan_of()
    argv = profiled(made, profiler="nsys", nsys="/opt/nsys")["command"]["argv"]
    assert argv[:2] == ["/opt/nsys", "profile"]
    inner = argv.index("/opt/vllm/bin/python")
    assert {"--capture-range=cudaProfilerApi", "--capture-range-end=repeat",
            "--trace-fork-before-exec=true", "--cuda-graph-trace=node"} <= set(argv[:inner])
    assert argv[inner - 1] == "--output=%s/profile/trace" % made["cache"]
    assert profiling.given_flags(argv).fields == {"profiler": "cuda", "max_iterations": 10}


@pytest.mark.parametrize(("made", "id_", "says"), [
    (plan_of(), None, ""),
    (plan_of(version="0.11.0"), "profiler-unknown", "0.13.0 to now"),
    (plan_of(planner.cpu(), engine_version="0.32.0", version="0.32.0"), "nsys-without-gpu", "CPU"),
    ({**plan_of(), "runtime": "docker"}, "nsys-in-container", "container"),
])
def test_nsys_is_for_native_engines_on_gpus_of_releases_that_have_it(made, id_, says):
    if id_ is None:
        assert profiled(made, profiler="nsys")["profile"]["profiler"] == "nsys"
        return
    one = refused(made, profiler="nsys")
    assert one["id"] == id_
    assert says in one["found"] + one["wanted"]
    assert "endpoint_profile_profiler: torch" in one["remedy"]


# All else stays.


def test_all_but_the_port_and_the_profiler_stays():
    made = plan_of(bind="0.0.0.0", api_key="k" * 32, extra_args=["--seed", "1"])
    variant = profiled(made)
    changed = {key for key in made if made[key] != variant[key]}
    assert changed == {"flags", "bind", "port", "engine_port", "url", "public_url", "way_in",
                       "tls", "command", "hash"}
    before, after = made["command"]["argv"], variant["command"]["argv"]
    assert after[:-2] == [str(variant["port"]) if one == str(made["engine_port"]) else one
                          for one in before]
    assert variant["command"]["env"] == made["command"]["env"]
    # Nobody who asks the endpoint, or its way in, is answered by it.
    assert variant["port"] not in (made["port"], made["engine_port"])
    assert variant["url"] == "http://127.0.0.1:%d" % variant["port"]
    assert variant["profile"]["of"] == made["hash"] != variant["hash"]
    assert variant["profile"]["folder"] == made["cache"] + "/profile"


def test_flags_of_the_profiler_that_it_has_are_replaced_and_judged():
    own = ["--profiler-config.torch_profiler_dir", "/tmp/traces",
           "--profiler_config.torch_profiler_with_stack=true", "--seed", "1"]
    made = plan_of(extra_args=own)
    found = profiling.profile_plan(made, planner.ROOT, DIALECTS, {"consent": True})
    argv = found["plan"]["command"]["argv"]
    assert "/tmp/traces" not in argv
    assert [one for one in argv if one.startswith("--profiler")] == ["--profiler-config"]
    assert argv[argv.index("--seed") + 1] == "1"
    assert found["plan"]["extra_args"] == ["--seed", "1"]
    severity = {one["id"]: one["severity"] for one in found["findings"]}
    assert severity == {"profiler-flags-replaced": "info", "profiler-flags-wrong": "warning"}
    [wrong] = [one for one in found["findings"] if one["id"] == "profiler-flags-wrong"]
    assert "torch_profiler_dir is only applicable when profiler is set" in wrong["wanted"]
    assert "--profiler-config.profiler=torch" in wrong["remedy"]
    # A right set is replaced and not complained of.
    right = plan_of(extra_args=["--profiler-config", json.dumps(
        {"profiler": "torch", "torch_profiler_dir": "/tmp/traces"})])
    found = profiling.profile_plan(right, planner.ROOT, DIALECTS, {"consent": True})
    assert [one["id"] for one in found["findings"]] == ["profiler-flags-replaced"]


def test_whether_it_runs_with_graphs_is_said():
    assert profiled(plan_of())["profile"]["graphs"] is True
    assert profiled(plan_of(extra_args=["--enforce-eager"]))["profile"]["graphs"] is False
    on_cpu = plan_of(planner.cpu(), engine_version="0.32.0", version="0.32.0")
    assert profiled(on_cpu)["profile"]["graphs"] is False


# What is against it.


def test_without_consent_it_says_what_would_be_started_again():
    made = plan_of()
    one = refused(made, consent=False)
    assert one["id"] == "profile-consent"
    assert "started again twice" in one["found"]
    assert "%d s" % made["start_timeout_s"] in one["found"]
    assert "endpoint_profile_consent: true" in one["remedy"]
    assert made["public_url"] in one["remedy"]


def test_llama_cpp_is_refused_with_what_there_is_instead():
    made = planner.only(planner.plan(planner.cpu(), {"model": MODEL + ".gguf"}))
    for how in ("torch", "nsys"):
        one = refused(made, profiler=how)
        assert one["id"] == "profiler-none"
        assert "playbooks/benchmark.yml" in one["remedy"]
        assert "nsys profile" in one["remedy"]


def test_a_release_that_nobody_knows_is_refused_with_those_that_are():
    one = refused(plan_of(version="0.9.1"))
    assert one["id"] == "profiler-unknown"
    assert "0.10.2 to before 0.12.0" in one["wanted"]


@pytest.mark.parametrize(("settings", "says"), [
    ({"iterations": 0}, "endpoint_profile_iterations"),
    ({"iterations": 1000}, "endpoint_profile_iterations"), ({"requests": 1.5}, "_requests"),
    ({"seconds": True}, "_seconds"), ({"disk_bytes": "much"}, "_disk_bytes"),
    ({"profiler": "cuda"}, "_profiler")])
def test_settings_out_of_their_range_are_refused(settings, says):
    found = profiling.profile_plan(plan_of(), planner.ROOT, DIALECTS, {"consent": True, **settings})
    assert found["plan"] is None
    assert says in findings.blocking(found["findings"])[0]["subject"]


def test_variables_of_another_release_are_in_the_way():
    made = plan_of(version="0.15.1")
    made = {**made, "command": {**made["command"], "env": {
        **made["command"]["env"], "VLLM_TORCH_PROFILER_DIR": "/tmp"}}}
    assert refused(made)["id"] == "profiler-variables"


# Few tokens.


@pytest.mark.parametrize(("context", "asked", "sizes"), [
    (8192, {}, (128, 16)), (64, {}, (47, 16)), (4, {}, (1, 2)),
    (512, {"prompt_tokens": 4000, "output_tokens": 500}, (255, 256))])
def test_prompt_and_answer_fit_the_context(context, asked, sizes):
    found = profiling.profile_plan({**plan_of(), "context": context}, planner.ROOT, DIALECTS,
                                   {"consent": True, **asked})
    profile = found["plan"]["profile"]
    assert (profile["prompt_tokens"], profile["output_tokens"]) == sizes
    assert sum(sizes) < context
    ids = [one["id"] for one in found["findings"]]
    assert ids == ([] if sizes == (128, 16) else ["profile-cut-to-context"])


def test_prompts_are_of_that_length_in_the_vocabulary_and_no_two_begin_alike():
    for vocabulary in (None, 20, 576, 150000):
        made = plan_of()
        made["model"] = copy.deepcopy(made["model"])
        made["model"]["geometry"]["vocabulary"] = vocabulary
        profile = profiled(made, requests=8)["profile"]
        prompts = [profiler.prompt_of(profile, number) for number in range(-1, 8)]
        assert {len(one) for one in prompts} == {128}
        assert all(0 <= token < (vocabulary or 300) for one in prompts for token in one)
        assert len({tuple(one[:16]) for one in prompts}) == len(prompts)


@given(st.data())
def test_whatever_is_asked_for_is_bounded_or_refused_for_a_reason(data):
    plans = planning.deployment_plan(
        *data.draw(strategies.roomy() | strategies.on_gpus()))["endpoints"]
    for made in plans:
        found = profiling.profile_plan(made, planner.ROOT, DIALECTS,
                                       data.draw(profile_strategies.SETTINGS))
        stops = findings.blocking(found["findings"])
        assert (found["plan"] is None) == bool(stops)
        if found["plan"]:
            profile = found["plan"]["profile"]
            assert 0 < profile["prompt_tokens"] + profile["output_tokens"] < made["context"]
            assert 0 < profile["requests"] <= 64
            assert 0 < profile["iterations"] <= 200
            assert made["engine"] == "vllm"
            assert profiling.profile_plan(made, planner.ROOT, DIALECTS)["plan"] is None


# The service of the variant.


@pytest.mark.parametrize("manager", ["systemd", "supervisor"])
@pytest.mark.parametrize("version", ["0.12.0", "0.33.0"])
def test_the_definition_is_the_one_that_serves_with_another_command(manager, version):
    made = plan_of(version=version)
    variant = profiled(made)

    def rendered(one):
        return supervised._rendered(
            "unit.service.j2" if manager == "systemd" else "program.conf.j2",
            __inference_endpoint_plan=one, __inference_endpoint_root=planner.ROOT)

    text = profile_service.native_definition(rendered(made), manager, made, variant)
    # As the role would write it, but for the order of variables and the words in the title.
    wanted = {**variant, "url": made["url"]}

    def parts(one):
        return sorted(part for line in one.splitlines() for part in line.split(","))

    assert parts(text) == parts(rendered(wanted))
    with pytest.raises(profile_service.Unknown, match="its definition has not"):
        profile_service.native_definition(rendered(wanted), manager, made, variant)
    broken = {**variant, "command": {**variant["command"], "env": {"X": 'a"\nb'}}}
    with pytest.raises(profile_service.Unknown, match="cannot be written"):
        profile_service.native_definition(rendered(made), manager, made, broken)


def test_the_container_is_the_one_that_serves_with_another_command():
    made = {**contained(cache="/root/cache/x"), "url": "http://127.0.0.1:18000",
            "engine_port": 18000}
    spec = container.container_spec(made, planner.ROOT, {"memlock_unlimited": True})["made"]
    host = {"NetworkMode": "firstlight", "ReadonlyRootfs": True, "ShmSize": 2**30,
            "RestartPolicy": {"Name": "unless-stopped"}, "CapDrop": ["ALL"],
            "Mounts": [{"Type": "bind", "Source": "/m", "Target": "/m", "ReadOnly": True}],
            "PortBindings": {"18000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "18000"}]}}
    seen = {"Image": "sha256:aa", "HostConfig": host, "Config": {
        "Image": "example.org/engine:1", "Env": ["PATH=/opt/bin", "HOME=/tmp", "LANG="],
        "User": "2000:0", "StopTimeout": 30, "Labels": {**spec["labels"], "maintainer": "x"},
        "Entrypoint": [spec["entrypoint"]], "Cmd": spec["command"],
        "Healthcheck": {"Test": spec["healthcheck"]["test"], "Retries": 4}}}
    variant = {**made, "engine_port": 18001, "url": "http://127.0.0.1:18001", "hash": "b" * 64,
               "command": {"argv": ["python", "-m", "x", "--port", "18001"], "env": {"A": "1"}}}
    body = profile_service.container_body(copy.deepcopy(seen), variant)
    assert body["Image"] == "sha256:aa"
    assert (body["Entrypoint"], body["Cmd"]) == (["python"], ["-m", "x", "--port", "18001"])
    assert body["Env"] == ["A=1", "HOME=/tmp", "LANG=", "PATH=/opt/bin"]
    assert body["Labels"] == {**seen["Config"]["Labels"], "firstlight.plan": "b" * 64}
    assert (body["User"], body["StopTimeout"]) == ("2000:0", 30)
    assert body["Healthcheck"] == {"Test": [*spec["healthcheck"]["test"][:-1],
                                            "http://127.0.0.1:18001/health"], "Retries": 4}
    assert body["HostConfig"] == {
        **host, "RestartPolicy": {"Name": "no"}, "AutoRemove": False,
        "PortBindings": {"18001/tcp": [{"HostIp": "127.0.0.1", "HostPort": "18001"}]}}
    text = profile_service.container_definition(variant)
    assert yaml.safe_load(text)["services"]["chat"]["container_name"] == \
        profile_service.container_name(variant)


# What is told of it.


def profile(**changes):
    rows = [{"name": "void gemm<%d, float>" % at, "calls": at, "self_s": 0.5, "total_s": 0.7,
             "share": 0.05} for at in range(20)]
    return {"endpoint": "chat", "engine": "vllm", "engine_version": "0.33.0", "profiler": "torch",
            "graphs": True, "graph_launches": 7, "requests": 2, "prompt_tokens": 128,
            "output_tokens": 16, "iterations": 10, "device": rows, "host": rows[:3],
            "span_s": 2.0, "busy_s": 1.5, "traces": [{}, {}], "findings": [], **changes}


def test_the_table_tells_what_took_the_time_and_how_it_ran():
    text = profile_picture.profile_table(profile())
    assert ("chat: vllm 0.33.0, with CUDA graphs (7 graphs started); 2 requests of 128 and 16 "
            "tokens, 10 steps, device busy 75% of 2.000 s") in text
    assert max(map(len, text.splitlines()[1:])) <= 100
    assert "void gemm<19, float>" not in text, "the largest alone"
    eager = profile_picture.profile_table(profile(
        graphs=False, device=[], busy_s=None, iterations=None, graph_launches=0))
    assert "chat: vllm 0.33.0, eager; 2 requests of 128 and 16 tokens\n" in eager


def test_the_picture_is_whole_xml_in_which_names_are_text_alone():
    from xml.etree import ElementTree

    hostile = '<script>alert("1")</script>&\x00\x1b[2J\u202e' + "x" * 500
    picture = profile_picture.profile_picture(profile(host=[
        {"name": hostile, "calls": 1, "self_s": 1.0, "total_s": 1.0, "share": 7.0}]))
    top = ElementTree.fromstring(picture)
    assert {one.tag.partition("}")[2] for one in top.iter()} == {"svg", "rect", "text"}
    assert any('<script>alert("1")' in (one.text or "") for one in top.iter())
    width = float(top.get("width"))
    for one in top.iter():
        assert float(one.get("x", 0)) + float(one.get("width", 0)) <= width
        assert float(one.get("y", 0)) <= float(top.get("height"))
    assert "8 others" in picture


def test_files_are_counted_and_named_by_the_inventory_alone():
    one = profile(traces=[{"file": "../../etc/passwd"}] * 2)
    assert profile_picture.profile_files({"chat": one}) == [
        "chat/profile/trace-0.json.gz", "chat/profile/trace-1.json.gz"]
    assert profile_picture.profile_files({"chat": {**one, "profiler": "nsys"}})[0] == \
        "chat/profile/trace-0.nsys-rep"
    texts = profile_picture.profile_texts({"chat": one})
    assert [text["file"] for text in texts] == [
        "chat/operators.txt", "chat/shares.svg", "chat/profile.json"]
    assert json.loads(texts[2]["content"]) == one
