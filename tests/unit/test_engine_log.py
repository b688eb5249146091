# SPDX-License-Identifier: Apache-2.0
"""What an engine's log is taken to say, on logs of real engines and on what clients can write."""

from __future__ import annotations

import json
import os
import pathlib

import engine_log_diagnosis
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible.module_utils.firstlight import engine_log, findings

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
ROWS = yaml.safe_load((ROOT / "catalog" / "log_signatures.yml").read_text())
LOGS = {
    (engine, one["start"]): one["log"]
    for engine, file in (("vllm", "vllm-cpu"), ("llama_cpp", "llama-server"))
    for one in yaml.safe_load((FIXTURES / "debian12" / (file + "-logs.yml")).read_text())["logs"]}
[H200] = [one["log"] for one in yaml.safe_load(
    (FIXTURES / "h200" / "vllm-log.yml").read_text())["logs"]]
GIB = 2**30


def ids(found):
    return [one["id"] for one in found]


def log(engine, start):
    return LOGS[engine, start]


# Why it died.


@pytest.mark.parametrize("engine, start, wanted, says", [
    ("vllm", "a flag it does not have", ["flag-refused"], "unrecognized arguments: --swap-space"),
    ("vllm", "a model that is not there", ["model-not-found"], "no whole model"),
    ("vllm", "an empty folder as model", ["model-not-found"], "no whole model"),
    ("vllm", "a port that is held", ["port-in-use"], "somebody else"),
    ("vllm", "tensor parallel 3", ["attention-heads-not-divisible"], "16 attention heads"),
    ("vllm", "half a file of weights", ["model-broken"], "cut short"),
    ("vllm", "an invented architecture", ["architecture-unknown-to-vllm"], "LlamxForCausalLM"),
    ("vllm", "a cache of 2 MiB", ["cache-too-small-for-context"], "2048 tokens"),
    ("vllm", "a cache of 64 KiB", ["cache-no-room"], "no memory for the cache"),
    ("vllm", "99 % of the memory", ["memory-held-on-cpu"], "20.89 of 23.54 GiB"),
    ("vllm", "a start that went well", [], ""),
    ("llama_cpp", "a flag it does not have", ["flag-refused"], "--no-mmap"),
    ("llama_cpp", "a model that is not there", ["model-file-missing"], "No such file"),
    ("llama_cpp", "a file of words as model", ["model-broken"], "not what its name says"),
    ("llama_cpp", "half a file", ["model-broken"], "cut short"),
    ("llama_cpp", "a port that is held", ["port-in-use"], "somebody else"),
    ("llama_cpp", "an invented architecture", ["architecture-unknown-to-llama-cpp"], "llamx"),
    ("llama_cpp", "a start that went well", [], ""),
])
def test_a_real_log_tells_its_cause_and_nothing_else(engine, start, wanted, says):
    found = engine_log.fatal(log(engine, start), ROWS, engine, "chat on example")
    assert ids(found) == wanted
    for one in found:
        assert says in one["found"]
        assert one["evidence"] in log(engine, start)
        assert one["subject"] == "chat on example"
        assert one["severity"] == "fatal"
        assert one["source"]
    assert engine_log.diagnose(log(engine, start), ROWS, engine, "chat on example") == found


FAILED = "RuntimeError: Engine core initialization failed. See root cause above."
MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
FULL = "OSError: [Errno 28] No space left on device"


def test_that_it_failed_is_told_where_the_cause_is_not_known():
    assert ids(engine_log.fatal(FAILED, ROWS)) == ["engine-core-failed"]
    assert ids(engine_log.fatal(MEMORY + "\n" + FAILED, ROWS)) == ["cuda-out-of-memory"]
    assert ids(engine_log.diagnose(FULL + "\n" + FAILED, ROWS)) == [
        "disk-full-for-engine", "engine-core-failed"]


def test_the_first_cause_comes_first_and_each_is_told_once():
    text = "\n".join([FULL, MEMORY, "[Errno 98] Address already in use", MEMORY])
    assert ids(engine_log.diagnose(text, ROWS)) == [
        "disk-full-for-engine", "cuda-out-of-memory", "port-in-use"]
    assert ids(engine_log.fatal(text, ROWS)) == ["cuda-out-of-memory", "port-in-use"]


def test_rows_of_another_engine_do_not_count():
    assert engine_log.diagnose(MEMORY, ROWS, "llama_cpp") == []
    assert ids(engine_log.diagnose(MEMORY, ROWS, "vllm")) == ["cuda-out-of-memory"]


def test_only_the_end_of_a_log_is_looked_at():
    filler = "x" * 99 + "\n"
    many = filler * (engine_log.LIMIT // 100 + 1)
    assert engine_log.diagnose(MEMORY + "\n" + many, ROWS) == []
    assert ids(engine_log.diagnose(many + MEMORY, ROWS)) == ["cuda-out-of-memory"]


def test_of_a_long_line_the_part_that_matched_is_told():
    text = "a" * 5000 + MEMORY + "b" * 5000 + "\nnext line"
    [one] = engine_log.diagnose(text, ROWS)
    assert one["evidence"].startswith("OutOfMemoryError: CUDA out of memory.")
    assert len(one["evidence"]) == engine_log.EVIDENCE


def test_what_a_log_sends_to_terminals_is_shown_and_not_sent():
    text = "\x1b[31mValueError: Model architectures ['\x1b]0;x\x07\u202e'] are not supported\x1b[0m"
    [one] = engine_log.diagnose(text, ROWS)
    assert "\x1b" not in findings.text([one])
    assert one["found"].endswith("architecture \\x1b]0;x\\x07\\u202e")
    assert one["evidence"].isprintable()


@pytest.mark.parametrize("change, says", [
    ({"pattern": "("}, "signature port-in-use: missing )"),
    ({"pattern": 7}, "signature port-in-use"),
    ({"found": "%(nobody)s"}, "signature port-in-use: lacks 'nobody'"),
    ({"found": "100 %"}, "signature port-in-use"),
    ({"severity": "bad"}, "severity 'bad' is none of"),
    ({"engines": 7}, "signature port-in-use"),
])
def test_a_row_that_is_none_is_named(change, says):
    [row] = [one for one in ROWS if one["id"] == "port-in-use"]
    with pytest.raises(engine_log.BadSignature, match="(?s)signature port-in-use") as wrong:
        engine_log.diagnose("[Errno 98] Address already in use", [{**row, **change}], "vllm")
    assert says in str(wrong.value)


def test_a_row_needs_what_it_tells():
    [row] = [one for one in ROWS if one["id"] == "port-in-use"]
    for key in ("id", "pattern", "severity", "found", "wanted", "remedy", "source"):
        short = {name: value for name, value in row.items() if name != key}
        with pytest.raises(engine_log.BadSignature, match="lacks '%s'" % key):
            engine_log.diagnose("[Errno 98] Address already in use", [short])
    few = {key: row[key] for key in (
        "id", "pattern", "severity", "found", "wanted", "remedy", "source")}
    assert len(engine_log.diagnose("[Errno 98] Address already in use", [few], "vllm")) == 1


# How far it is.


def stands(text):
    """The phases in the order in which the log reaches them, each once in a row."""
    lines = text.replace("\r", "\n").split("\n")
    told = [engine_log.progress("\n".join(lines[:number + 1])) for number in range(len(lines))]
    return [one for one, before in zip(told, [{}, *told]) if one and one != before]


def test_the_phases_of_a_real_start_of_vllm():
    assert stands(log("vllm", "a start that went well")) == [
        {"text": "starting the engine"},
        {"text": "loading weights"},
        {"text": "loading weights", "done": 0, "total": 1, "unit": "shards"},
        {"text": "loading weights", "done": 1, "total": 1, "unit": "shards"},
        {"text": "weights loaded"},
        {"text": "compiling"},
        {"text": "compiled"},
        {"text": "cache allocated"},
        {"text": "engine ready"},
        {"text": "starting the server"},
        {"text": "listening"},
    ]


def test_the_phases_of_a_real_start_of_vllm_on_a_gpu():
    told = stands(H200)
    assert list(dict.fromkeys(one["text"] for one in told)) == [
        "starting the engine", "loading weights", "weights loaded", "compiling", "compiled",
        "cache allocated", "capturing graphs", "graphs captured", "engine ready",
        "starting the server", "listening"]
    assert [(one["done"], one["total"]) for one in told if "done" in one] == [
        (0, 51), (27, 51), (51, 51), (0, 51), (31, 51), (51, 51)]


def test_a_real_start_on_a_gpu_is_no_failure():
    assert engine_log.diagnose(H200, ROWS, "vllm") == []


def test_the_phases_of_a_real_start_of_llama_server():
    assert [one["text"] for one in stands(log("llama_cpp", "a start that went well"))] == [
        "loading weights", "weights loaded", "listening"]


BAR = "Capturing CUDA graphs (%s): %3d%%|%s| %d/%d [00:01<00:02, 20.1it/s]"


@pytest.mark.parametrize("line, wanted", [
    ("Loading fastsafetensors checkpoint shards:  40% Completed | 2/5 [00:01<00:01,  1.63it/s]",
     {"text": "loading weights", "done": 2, "total": 5, "unit": "shards"}),
    ("Multi-thread loading shards:  33% Completed | 1/3 [00:24<00:49, 24.61s/it]",
     {"text": "loading weights", "done": 1, "total": 3, "unit": "shards"}),
    (BAR % ("mixed prefill-decode, PIECEWISE", 43, "\u2588\u2588\u258d   ", 15, 35),
     {"text": "capturing graphs", "done": 15, "total": 35, "unit": "graphs"}),
    ("(Worker_TP0 pid=4) INFO 05-06 21:00:16 [backends.py:1128] Dynamo bytecode transform time: "
     "3.54 s", {"text": "compiling"}),
    ("INFO 04-13 22:09:34 [monitor.py:48] torch.compile took 1.61 s in total",
     {"text": "compiled"}),
    ("INFO [gpu_model_runner.py:1] Graph capturing finished in 3 secs, took 0.99 GiB",
     {"text": "graphs captured"}),
    ("INFO [gpu_worker.py:760] Available KV cache memory: 108.81 GiB", {"text": "cache allocated"}),
    ("main: server is listening on http://127.0.0.1:8080 - starting the main loop",
     {"text": "listening"}),
    ("load_tensors: loading model tensors, this can take a while... (mmap = true)",
     {"text": "loading weights"}),
    ("common_init_from_params: warming up the model with an empty run - please wait ...",
     {"text": "warming up"}),
    ("llama_server: /models/it's a model.gguf is served on http://127.0.0.1:8080",
     {"text": "listening"}),
    # More than all of it is no count.
    (BAR % ("decode, FULL", 100, "", 36, 35), {"text": "capturing graphs"}),
    ("GET /v1/models 200", {}),
    ("", {}),
])
def test_a_line_is_a_phase_or_none(line, wanted):
    assert engine_log.progress(line) == wanted


def test_a_bar_that_is_written_over_stands_where_it_was_written_last():
    bars = "\r".join(BAR % ("decode, FULL", 100 * one // 35, "#", one, 35) for one in range(9))
    assert engine_log.progress("Model loading took 1 GiB\n" + bars)["done"] == 8


def test_requests_after_a_start_do_not_hide_that_it_listens():
    text = log("vllm", "a start that went well") + "POST /v1/completions 200 OK\n" * 500
    assert engine_log.progress(text) == {"text": "listening"}


# What it took.


def test_the_memory_of_a_real_start_on_a_gpu():
    assert engine_log.observed(H200) == {
        "weights_bytes": 15 * GIB, "kv_bytes": int(112.28 * GIB), "graph_bytes": int(0.98 * GIB),
        "kv_tokens": 919824}


def test_the_memory_as_the_first_model_runner_words_it():
    # Llama-3.1-8B's shape in vLLM 0.24.0 on an H200.
    said = [
        "[core.py:106] Initializing a V1 LLM engine (v0.24.0) with config: model='/models/m'",
        "[gpu_model_runner.py:5150] Model loading took 15.0 GiB memory and 3.105213 seconds",
        "[gpu_model_runner.py:6475] Estimated CUDA graph memory: 1.20 GiB total",
        "[gpu_worker.py:760] Available KV cache memory: 108.81 GiB",
        "[kv_cache_utils.py:2327] GPU KV cache size: 891,392 tokens",
        "[gpu_model_runner.py:6582] Graph capturing finished in 3 secs, took 0.99 GiB",
    ]
    text = "".join("(EngineCore pid=7) INFO 11-20 10:00:00 %s\n" % one for one in said)
    assert engine_log.observed(text) == {
        "weights_bytes": 15 * GIB, "kv_bytes": int(108.81 * GIB), "graph_bytes": int(0.99 * GIB),
        "kv_tokens": 891392}


def test_of_several_devices_the_fullest_counts():
    text = "".join("(Worker_TP%d) Model loading took %s GiB and 9 seconds\n"
                   "(Worker_TP%d) Available KV cache memory: %s GiB\n" % (rank, own, rank, left)
                   for rank, own, left in ((0, "32.8900", "2.57"), (1, "32.5", "2.99")))
    assert engine_log.observed(text) == {
        "weights_bytes": int(32.89 * GIB), "kv_bytes": int(2.57 * GIB)}


def test_of_several_starts_the_last_counts():
    text = ("Initializing a V1 LLM engine (v0.24.0)\nModel loading took 99 GiB\n"
            "Available KV cache memory: 1 GiB\n"
            "Initializing a V1 LLM engine (v0.24.0)\nModel loading took 15 GiB\n")
    assert engine_log.observed(text) == {"weights_bytes": 15 * GIB}


@pytest.mark.parametrize("line, wanted", [
    ("Initial free memory 139.2 GiB, reserved 100.0 GiB memory for KV Cache as specified by "
     "kv_cache_memory_bytes config", {"kv_bytes": 100 * GIB}),
    ("Estimated CUDA graph memory: 0.36 GiB total", {"graph_bytes": int(.36 * GIB)}),
    ("Graph capturing finished in 3 secs, took -0.01 GiB", {}),
    ("CPU KV cache size: 262,144 tokens", {}),
    ("Model loading took 15.4137 GB and 9.0 seconds", {}),
    ("Available KV cache memory: nan GiB", {}),
    ("Available KV cache memory: %s GiB" % ("9" * 400), {}),
])
def test_a_line_of_memory_is_read_or_left(line, wanted):
    assert engine_log.observed(line) == wanted


def test_vllm_on_cpu_and_llama_server_say_nothing_of_devices():
    for engine in ("vllm", "llama_cpp"):
        assert engine_log.observed(log(engine, "a start that went well")) == {}


# Whatever a log holds.

LINES = [line for text in LOGS.values() for line in text.split("\n")] + [
    line for file in sorted((FIXTURES / "logs").glob("*.yml"))
    for one in yaml.safe_load(file.read_text()) for line in one["lines"] + one["near"]]


@given(st.lists(st.sampled_from(LINES) | st.text(max_size=80), max_size=30).map("\n".join))
def test_any_text_is_read_and_what_is_told_of_it_is_whole(text):
    told = engine_log.diagnose(text, ROWS)
    assert engine_log.diagnose(text, ROWS) == told
    assert len(set(ids(told))) == len(told)
    for one in told:
        assert set(one) == set(findings.finding("id", "", "", "", ""))
        for key in ("subject", "found", "wanted", "remedy", "evidence"):
            assert one[key].strip()
            assert "\n" not in one[key]
    stand = engine_log.progress(text)
    assert set(stand) in (set(), {"text"}, {"text", "unit", "done", "total"})
    assert all(type(value) is int and value >= 0 for value in engine_log.observed(text).values())


# The module, on a file.


def diagnose(run_module, path, **more):
    return run_module(engine_log_diagnosis.main, path=str(path), signatures=ROWS, **more)


def test_the_module_tells_of_a_log(run_module, tmp_path):
    file = tmp_path / "engine.log"
    file.write_text(log("vllm", "a cache of 2 MiB"))
    result = diagnose(run_module, file, engine="vllm")
    assert result["changed"] is False
    assert ids(result["findings"]) == ["cache-too-small-for-context"]
    assert result["findings"][0]["subject"] == result["place"] == str(file)
    assert set(result["words"]["cache-too-small-for-context"]) == {
        "length", "needed", "there", "fits"}
    assert (result["name"], result["unread"], result["attempt"]) == ("", "", None)
    assert (result["starts"], result["earlier"]) == (1, [])
    assert result["bytes"] == file.stat().st_size
    assert result["lines"] == file.read_text().count("\n")
    assert diagnose(run_module, file, engine="vllm", check=True) == result
    assert diagnose(run_module, file, engine="llama_cpp")["findings"] == []
    assert diagnose(run_module, file, subject="chat")["findings"][0]["subject"] == "chat"


def test_the_module_tells_how_far_a_start_is_and_what_it_took(run_module, tmp_path):
    file = tmp_path / "engine.log"
    file.write_text("Model loading took 15.0 GiB\n" + BAR % ("decode, FULL", 43, "#", 15, 35))
    result = diagnose(run_module, file)
    assert result["progress"] == {
        "text": "capturing graphs", "unit": "graphs", "done": 15, "total": 35}
    assert result["observed"] == {"weights_bytes": 15 * GIB}
    json.dumps(result)


def test_the_module_reads_the_whole_of_a_log_that_is_no_text(run_module, tmp_path):
    file = tmp_path / "engine.log"
    with file.open("wb") as out:
        out.write(MEMORY.encode() + b"\n")
        for _ in range(20):
            out.write(b"\xff\xfe\x00" * engine_log.LIMIT)
        out.write(b"\n[Errno 98] Address already in use\n")
    result = diagnose(run_module, file)
    assert ids(result["findings"]) == ["cuda-out-of-memory", "port-in-use"]
    assert result["findings"][0]["evidence"] == "line 1: " + MEMORY


def test_an_empty_log_says_nothing(run_module, tmp_path):
    file = tmp_path / "engine.log"
    file.touch()
    result = diagnose(run_module, file)
    assert (result["findings"], result["progress"], result["observed"]) == ([], {}, {})


@pytest.mark.parametrize("make, says", [
    (lambda path: None, "No such file or directory"),
    (os.mkdir, "Is a directory"),
    # Nobody writes into it: opening it as a file would wait for ever.
    (os.mkfifo, "not a file"),
])
def test_a_log_that_cannot_be_read_is_an_error_with_its_reason(run_module, tmp_path, make, says):
    path = tmp_path / "engine.log"
    make(path)
    result = diagnose(run_module, path)
    assert result["failed"] is True
    assert result["msg"] == "The log %s cannot be read: %s" % (path, says)


def test_a_row_that_is_none_is_an_error_that_names_it(run_module, tmp_path):
    file = tmp_path / "engine.log"
    file.write_text("x")
    result = run_module(engine_log_diagnosis.main, path=str(file),
                        signatures=[{"id": "mine", "pattern": "("}])
    assert result["failed"] is True
    assert "signatures: signature mine: " in result["msg"]
