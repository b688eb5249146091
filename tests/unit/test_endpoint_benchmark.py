# SPDX-License-Identifier: Apache-2.0
"""An endpoint is measured while it serves, and its passport tells how fast it was."""

from __future__ import annotations

import json
import os
import pathlib
import stat
import sys

import endpoint_benchmark
import pytest
from endpoint_host import fake, plan
from fake_engine import CONTEXT
from supervised import free_port

from ansible.module_utils.firstlight import canary
from ansible.module_utils.firstlight.transaction import Lock

LAUNCHER = str(pathlib.Path(__file__).parents[2] / "roles" / "inference_endpoint" / "files"
               / "llama_server.py")
# As llama-bench of build 11669 (Debian) writes it, without what nothing reads.
LLAMA_BENCH = """#!%s
import json, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
print("load_backend: loaded CPU backend", file=sys.stderr)
print(json.dumps([
    {"n_prompt": int(given["-p"]), "n_gen": 0, "samples_ns": [100000000, 110000000, 120000000]},
    {"n_prompt": 0, "n_gen": int(given["-n"]), "samples_ns": [1000000000] * 3}]))
""" % sys.executable
SMALL = {"concurrencies": [1, 2], "requests_per_stream": 2, "prompt_tokens": 32,
         "output_tokens": 8, "tool": "firstlight"}
EXTRA = {
    "context": CONTEXT, "parallel": 4, "sequences": 8, "engine_binary": "", "engine_python": "",
    "memory": {"total_bytes": 2**20, "kv_tokens": CONTEXT},
}


def whole(made, **more):
    """A plan with all that a load is made by."""
    made = {**made, **EXTRA, **more}
    made["model"] = {"path": "/models/m", "fingerprint": "f", **made["model"]}
    return {**made, "command": {"argv": made["argv"], "env": {}}}


def served(host, *flags, **more):
    """A fake engine that serves, and its plan."""
    made = whole(fake(*flags), **more)
    host.switched(made)
    return made


def measure(host, **how):
    return host.run_module(endpoint_benchmark.main,
                           **{"name": "chat", "root": host.root, **SMALL, **how})


def passport_of(host):
    return json.loads(host.passport())


def test_a_result_is_kept_in_the_passport_and_nothing_else_changes(host):
    served(host)
    was = passport_of(host)
    told = measure(host)
    assert told["changed"] is True
    assert told["findings"] == []
    assert told["work"] == ["at 1 stream 4 requests of 32 + 8 tokens",
                            "at 2 streams 4 requests of 32 + 8 tokens"]
    assert "before" not in told
    now = passport_of(host)
    assert now == told["passport"] == {**was, "benchmark": told["benchmark"]}
    kept = now["benchmark"]
    assert (kept["tool"], kept["engine"], kept["engine_version"]) == ("firstlight", "llama_cpp",
                                                                       "1")
    assert [(one["concurrency"], one["requests"], one["failed"]) for one in kept["points"]] == [
        (1, 4, 0), (2, 4, 0)]
    again = measure(host, tolerance=0.99)
    assert again["before"] == kept
    assert host.switch(whole_of(was))["changed"] is False, "a result is no reason for a switch"
    assert passport_of(host)["benchmark"] == again["benchmark"]


def whole_of(passport):
    """The plan of a passport, as the test's host takes it."""
    return {**passport["plan"], "argv": passport["plan"]["command"]["argv"]}


def test_check_mode_asks_nothing_and_keeps_nothing(host):
    served(host)
    was = host.disk()
    told = measure(host, check=True)
    assert told["changed"] is True
    assert told["work"][0] == "at 1 stream 4 requests of 32 + 8 tokens"
    assert "benchmark" not in told
    assert host.disk() == was


def test_a_real_engine_is_measured(host, engine_python, tmp_path):
    model = tmp_path / canary.GGUF
    model.write_bytes(canary.content(canary.GGUF))
    port = free_port()
    made = whole(plan(port, [
        engine_python, LAUNCHER, "--model", str(model), "--alias", "canary", "--port", str(port),
        "--ctx-size", "512", "--kv-unified", "--threads", "1"], served_name="canary"))
    host.oracle = canary.oracle()
    host.switched(made)
    told = measure(host, tool="auto")
    assert told["findings"] == []
    assert all(one["failed"] == 0 and one["output_tokens_per_second"] > 0
               for one in told["benchmark"]["points"])
    assert told["benchmark"]["notes"] == ["this engine brings no benchmark of its own"]


def test_a_slowdown_after_an_upgrade_is_seen(host):
    served(host, engine_version="1")
    old = measure(host)["benchmark"]
    new = served(host, engine_version="2")
    assert "benchmark" not in passport_of(host)
    # The older passport is the last that has one.
    older = host.folder / "passports"
    [file] = [one for one in older.iterdir() if one.is_file()]
    content = json.loads(file.read_text())
    for one in content["benchmark"]["points"]:
        one["output_tokens_per_second"] = 1e9
    file.write_text(json.dumps(content))
    told = measure(host)
    assert told["before"]["at"] == old["at"]
    slower = [one for one in told["findings"] if one["id"] == "benchmark-slower"]
    assert slower
    assert all(one["severity"] == "warning" for one in slower)
    assert "with llama_cpp 2" in slower[0]["found"]
    assert "the 1000000000.0 that llama_cpp 1 had on %s" % old["at"] in slower[0]["wanted"]
    assert passport_of(host)["benchmark"] == told["benchmark"], "what is slower is kept too"
    assert passport_of(host)["plan"]["hash"] == new["hash"]


def test_requests_that_fail_are_against_the_endpoint_and_not_kept(host):
    served(host)
    kept = measure(host)["passport"]
    # What fails under load: requests longer than the engine really takes.
    kept["plan"]["context"] = kept["plan"]["memory"]["kv_tokens"] = 10 * CONTEXT
    (host.folder / "passport.json").write_text(json.dumps(kept))
    told = measure(host, prompt_tokens=2 * CONTEXT)
    [finding] = told["findings"][:1]
    assert (finding["id"], finding["severity"]) == ("benchmark-requests-failed", "error")
    assert "4 of 4 requests failed at 1 stream" in finding["found"]
    assert "HTTP 400" in finding["evidence"]
    assert told["changed"] is False
    assert "passport" not in told
    assert passport_of(host) == kept


def test_what_has_no_passport_is_not_measured(host):
    told = measure(host)
    assert [one["id"] for one in told["findings"]] == ["benchmark-not-made"]
    assert "no passport" in told["findings"][0]["found"]
    assert told["changed"] is False


def test_what_does_not_serve_is_not_measured(host):
    made = served(host)
    host.service.follow("chat")
    text = pathlib.Path(host.service.files("chat")[0])
    text.unlink()
    host.service.follow("chat")
    told = measure(host)
    assert "does not answer on %s" % made["url"] in told["findings"][0]["found"]


def test_a_passport_that_lacks_something_is_not_measured(host):
    served(host)
    kept = passport_of(host)
    for path in (["context"], ["runtime"], ["command"], ["memory"], ["engine_version"]):
        broken = json.loads(json.dumps(kept))
        del broken["plan"][path[0]]
        (host.folder / "passport.json").write_text(json.dumps(broken))
        told = measure(host)
        assert [one["id"] for one in told["findings"]] == ["benchmark-not-made"]
        assert path[0] in told["findings"][0]["found"]


def test_a_time_limit_that_is_over_leaves_what_was_measured(host):
    served(host, "--fault", "slow")
    told = measure(host, limit_s=1.3, requests_per_stream=40, concurrencies=[1, 2],
                   output_tokens=8)
    assert told["findings"] == []
    assert any("within the time for all of it" in one or "not begun" in one
               for one in told["benchmark"]["notes"])
    assert told["benchmark"]["points"][0]["failed"] == 0


def test_an_endpoint_that_is_being_switched_keeps_its_passport(host, monkeypatch):
    served(host)
    monkeypatch.setattr(endpoint_benchmark, "LOCK_S", 0.0)
    was = host.passport()
    with Lock(os.path.join(host.root, "journal", "endpoint-chat.lock"), 0):
        told = measure(host)
    assert told["failed"] is True
    assert "the result was not kept" in told["msg"]
    assert host.passport() == was


def test_a_switch_that_was_ended_in_the_middle_is_not_written_over(host):
    served(host)
    was = host.passport()
    journal = pathlib.Path(host.root) / "journal" / "endpoint-chat.json"
    journal.write_text('{"entries": []}')
    told = measure(host)
    assert "ended in the middle" in told["msg"]
    assert host.passport() == was
    assert journal.exists()


def test_an_endpoint_that_was_switched_meanwhile_is_not_given_the_result(host, monkeypatch):
    served(host)
    apply = endpoint_benchmark.apply

    def switched_meanwhile(*given):
        result = apply(*given)
        served(host)
        return result

    monkeypatch.setattr(endpoint_benchmark, "apply", switched_meanwhile)
    told = measure(host)
    assert "it was switched while it was measured" in told["msg"]
    assert "benchmark" not in passport_of(host)


@pytest.mark.parametrize("wrong, said", [
    ({"concurrencies": []}, "concurrencies"), ({"concurrencies": [0]}, "concurrencies"),
    ({"concurrencies": [100000]}, "from 1 to 512"), ({"requests_per_stream": 0}, "more than 0"),
    ({"limit_s": 0}, "limit_s is 0"), ({"prompt_tokens": -1}, "prompt_tokens is -1"),
    ({"tolerance": 1.0}, "tolerance is 1.0"),
])
def test_wrong_settings_are_refused_before_anything(host, wrong, said):
    told = measure(host, **wrong)
    assert told["failed"] is True
    assert said in told["msg"]


# The engine's own tools.


@pytest.fixture
def beside(tmp_path):
    """An engine's own file, with a llama-bench beside it that says what it is told to."""
    def make(text=LLAMA_BENCH):
        file = tmp_path / "llama-bench"
        file.write_text(text)
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
        return str(tmp_path / "llama-server")

    return make


def test_llama_bench_measures_beside_our_own_load(host, beside):
    served(host, engine_binary=beside())
    told = measure(host, tool="auto")
    points = told["benchmark"]["points"]
    assert [(one["tool"], one["concurrency"]) for one in points] == [
        ("llama-bench", 1), ("firstlight", 1), ("firstlight", 2)]
    assert points[0]["output_tokens_per_second"] == 8.0
    assert told["benchmark"]["tool"] == "firstlight"
    alone = measure(host, tool="engine")
    assert [one["tool"] for one in alone["benchmark"]["points"]] == ["llama-bench"]
    assert alone["benchmark"]["tool"] == "llama-bench"


def test_a_tool_that_fails_is_a_note_and_alone_an_end(host, beside):
    served(host, engine_binary=beside(
        "#!/bin/sh\necho 'main: error: failed to load model' >&2\nexit 1\n"))
    told = measure(host, tool="auto")
    assert told["benchmark"]["notes"] == [
        "llama-bench ended with status 1: main: error: failed to load model"]
    assert [one["tool"] for one in told["benchmark"]["points"]] == ["firstlight"] * 2
    alone = measure(host, tool="engine")
    assert alone["failed"] is True
    assert "failed to load model" in alone["msg"]


def test_the_model_is_loaded_once_more_only_where_memory_holds_it(host, beside):
    served(host, engine_binary=beside(), memory={"total_bytes": 2**60, "kv_tokens": CONTEXT})
    [note] = measure(host, tool="auto")["benchmark"]["notes"]
    assert "llama-bench loads the model once more, and of the %d MiB that it takes" % 2**40 in note


def test_gpus_are_asked_for_their_free_memory(monkeypatch):
    said = "GPU-a, 1000\nGPU-b, 20\nGPU-c, [N/A]\n"
    monkeypatch.setattr(endpoint_benchmark, "run", lambda argv, timeout_s: type(
        "Ran", (), {"stdout": said}))
    short = endpoint_benchmark._short_of_memory

    def wanted(*gpus):
        return {"memory": {"total_bytes": 100 * 2**20}, "gpus": list(gpus)}

    assert short(wanted("GPU-a")) == ""
    assert short(wanted("GPU-a", "GPU-b")) == "of the 100 MiB that it takes 20 are free"
    assert short(wanted("GPU-c")) == short(wanted("GPU-x")) == "the free memory cannot be read"


@pytest.fixture
def vllm(tmp_path, host):
    """A vLLM endpoint: the fake engine, and a stand-in for its client that asks it nothing."""
    folder = tmp_path / "vllm" / "entrypoints" / "cli"
    folder.mkdir(parents=True)

    def serve(client):
        (folder / "main.py").write_text(
            "import json, os, sys, time\n"
            "given = dict(zip(sys.argv[3::1], sys.argv[4::1]))\n"
            "asked = int(given['--num-prompts'])\n"
            "at = os.path.join(given['--result-dir'], given['--result-filename'])\n"
            "result = {'completed': asked, 'num_prompts': asked, 'duration': 1.0,\n"
            "          'output_throughput': 50.0, 'p50_ttft_ms': 10, 'p99_ttft_ms': 20,\n"
            "          'p50_tpot_ms': 1.5}\n" + client)
        made = {**whole(fake(), engine="vllm", engine_python=sys.executable)}
        made["command"]["env"] = {"PYTHONPATH": str(tmp_path)}
        host.switched(made)

    return serve


def test_vllm_is_asked_by_its_own_client(host, vllm):
    vllm("json.dump(result, open(at, 'w'))\n")
    told = measure(host, tool="auto")
    assert told["benchmark"]["tool"] == "vllm bench serve"
    assert told["benchmark"]["notes"] == []
    assert [(one["concurrency"], one["output_tokens_per_second"])
            for one in told["benchmark"]["points"]] == [(1, 50.0), (2, 50.0)]


def test_a_client_that_cannot_be_used_gives_way_to_our_own_load(host, vllm):
    vllm("sys.exit('ModuleNotFoundError: no datasets')\n")
    told = measure(host, tool="auto")
    assert told["benchmark"]["tool"] == "firstlight"
    assert told["benchmark"]["notes"] == [
        "vllm bench serve ended with status 1: ModuleNotFoundError: no datasets"]


def test_what_a_client_measured_before_it_failed_stays(host, vllm):
    vllm("if given['--max-concurrency'] == '2': sys.exit('RuntimeError: away')\n"
         "json.dump(result, open(at, 'w'))\n")
    told = measure(host, tool="auto")
    assert [one["concurrency"] for one in told["benchmark"]["points"]] == [1]
    assert told["benchmark"]["notes"] == [
        "at 2 streams 4 requests of 32 + 8 tokens: vllm bench serve ended with status 1: "
        "RuntimeError: away"]


def test_requests_that_its_client_leaves_out_are_against_the_endpoint(host, vllm):
    vllm("json.dump(dict(result, completed=asked - 1), open(at, 'w'))\n")
    told = measure(host, tool="auto")
    assert [one["id"] for one in told["findings"]] == ["benchmark-requests-failed"]
    assert "1 of 4 requests failed at 1 stream (vllm bench serve)" in told["findings"][0]["found"]
