# SPDX-License-Identifier: Apache-2.0
"""A whole log is read, of any size and any content, and its starts are told apart."""

from __future__ import annotations

import pathlib
import tracemalloc

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible.module_utils.firstlight import engine_log, findings

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
ROWS = yaml.safe_load((ROOT / "catalog" / "log_signatures.yml").read_text())
LOGS = [one["log"] for name in ("debian12/vllm-cpu-logs", "debian12/llama-server-logs",
                                "h200/vllm-log")
        for one in yaml.safe_load((FIXTURES / (name + ".yml")).read_text())["logs"]]
LINES = [line for log in LOGS for line in log.split("\n")] + [
    line for file in sorted((FIXTURES / "logs").glob("*.yml"))
    for one in yaml.safe_load(file.read_text()) for line in one["lines"] + one["near"]]

BEGINS = "(APIServer pid=1) INFO 11-29 01:11:41 [api_utils.py:286] non-default args: {'port': 1}"
INSIDE = "(EngineCore pid=2) INFO 11-29 01:11:57 [core.py:133] Initializing a V1 LLM engine (v0.32)"
LLAMA = "0.00.000.237 I srv          init: initializing ..."
UNIT = "Started firstlight-chat.service - Firstlight endpoint chat on http://127.0.0.1:8000."
READY = "(APIServer pid=1) INFO:     Application startup complete."
MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
PORT = "OSError: [Errno 98] Address already in use"
FULL = "OSError: [Errno 28] No space left on device: '/x'"
LONG = "This model's maximum context length is 2048 tokens. However, your prompt contains 3000"
FAILED = "RuntimeError: Engine core initialization failed. See root cause above."
SERVES = '(APIServer pid=1) INFO:     127.0.0.1:3 - "POST /v1/chat/completions HTTP/1.1" 200 OK'


def scan(*lines, size=4096, engine="", subject="chat", rows=ROWS):
    text = "".join(line + "\n" for line in lines).encode()
    return engine_log.scan((text[at:at + size] for at in range(0, len(text), size)),
                           rows, engine, subject)


def ids(found):
    return [one["id"] for one in found]


# Where in a log, and how often.


@pytest.mark.parametrize("before, after", [(0, 0), (1, 40000), (40000, 1), (30000, 30000)])
def test_a_line_is_found_wherever_it_is(before, after):
    told = scan(*[SERVES] * before, MEMORY, *[SERVES] * after)
    [one] = told["findings"]
    assert one["id"] == "cuda-out-of-memory"
    assert one["evidence"] == "line %d: %s" % (before + 1, MEMORY)
    assert (told["lines"], told["starts"]) == (before + after + 1, 1)
    assert told["bytes"] == len(MEMORY) + 1 + (before + after) * (len(SERVES) + 1)


def test_each_is_told_once_in_its_order_with_how_often_it_is_there():
    told = scan(FULL, MEMORY, SERVES, PORT, MEMORY, MEMORY)
    assert ids(told["findings"]) == ["disk-full-for-engine", "cuda-out-of-memory", "port-in-use"]
    assert told["findings"][1]["evidence"] == "line 2, 3 times: " + MEMORY
    assert told["findings"][2]["evidence"] == "line 4: " + PORT
    assert told["words"]["cuda-out-of-memory"] == {"size": "2.00 GiB"}


@pytest.mark.parametrize("size", [1, 7, 100, 5000])
def test_however_a_log_is_cut_it_says_the_same(size):
    lines = [BEGINS, MEMORY, *[SERVES] * 9, BEGINS, FULL, "\u00fc" * 50, PORT, READY]
    assert scan(*lines, size=size) == scan(*lines, size=10**6)


def test_a_log_without_an_end_of_line_has_that_line_too():
    told = engine_log.scan([b"a\nb"], ROWS)
    assert (told["lines"], told["bytes"]) == (2, 3)
    assert ids(engine_log.scan([b"a\n" + MEMORY.encode()], ROWS)["findings"]) == [
        "cuda-out-of-memory"]
    assert engine_log.scan([], ROWS)["lines"] == 0


def test_rows_of_another_engine_do_not_count():
    assert scan(MEMORY, engine="llama_cpp")["findings"] == []
    assert ids(scan(MEMORY, engine="vllm")["findings"]) == ["cuda-out-of-memory"]


def test_what_only_says_that_it_failed_is_told_where_the_cause_is_not_known():
    assert ids(scan(FAILED)["findings"]) == ["engine-core-failed"]
    assert ids(scan(MEMORY, FAILED)["findings"]) == ["cuda-out-of-memory"]
    # The cause of one start is none of the next one's.
    told = scan(BEGINS, MEMORY, FAILED, BEGINS, FAILED)
    assert (ids(told["findings"]), ids(told["earlier"])) == (
        ["engine-core-failed"], ["cuda-out-of-memory"])


def test_colours_and_bars_are_no_part_of_a_line():
    told = scan("\x1b[31mERROR\x1b[0m:    \x1b[1m[Errno 98] error while attempting to bind on "
                "address\x1b[0m", "bar 1\rbar 2\r" + MEMORY)
    assert ids(told["findings"]) == ["port-in-use", "cuda-out-of-memory"]
    assert told["findings"][1]["evidence"] == "line 2: " + MEMORY
    assert "\x1b" not in findings.text(told["findings"])


# Starts.


@pytest.mark.parametrize("marks", [
    [BEGINS, INSIDE], [UNIT, BEGINS, INSIDE], [UNIT, LLAMA], [LLAMA], [INSIDE], [BEGINS],
    # Each of several engines of one server says it.
    [BEGINS, INSIDE, INSIDE, INSIDE]])
def test_starts_are_told_apart_by_what_each_writes_once(marks):
    told = scan(*marks, MEMORY, *marks, PORT, SERVES)
    assert told["starts"] == 2
    assert [(one["id"], one["subject"]) for one in told["findings"]] == [
        ("port-in-use", "chat, start 2 of 2")]
    assert [(one["id"], one["subject"]) for one in told["earlier"]] == [
        ("cuda-out-of-memory", "chat, start 1 of 2")]
    assert told["earlier"][0]["evidence"].startswith("line %d: " % (len(marks) + 1))


def test_what_is_before_the_first_mark_is_of_the_first_start():
    told = scan(FULL, BEGINS, PORT)
    assert (told["starts"], ids(told["findings"])) == (
        1, ["disk-full-for-engine", "port-in-use"])
    assert told["findings"][0]["subject"] == "chat"


def test_of_earlier_starts_the_last_one_is_told_first_and_all_are_counted():
    told = scan(BEGINS, MEMORY, FULL, BEGINS, MEMORY, MEMORY, BEGINS, PORT, BEGINS, SERVES)
    assert told["findings"] == []
    assert [(one["id"], one["subject"]) for one in told["earlier"]] == [
        ("port-in-use", "chat, start 3 of 4"), ("cuda-out-of-memory", "chat, start 2 of 4"),
        ("disk-full-for-engine", "chat, start 1 of 4")]
    assert told["earlier"][1]["evidence"] == "line 5, 3 times in 2 starts: " + MEMORY


def test_what_the_last_start_says_is_not_told_of_earlier_ones_again():
    told = scan(BEGINS, MEMORY, BEGINS, MEMORY)
    assert ids(told["findings"]) == ["cuda-out-of-memory"]
    assert told["earlier"] == []


def test_how_far_it_is_and_what_it_took_is_of_the_last_start():
    first = [BEGINS, "Model loading took 99 GiB", READY]
    loads = "Loading safetensors checkpoint shards:  40% Completed | 2/5 [00:01<00:01, 1.6it/s]"
    told = scan(*first, BEGINS, "Model loading took 15 GiB", "\r".join([loads, loads]))
    assert told["progress"] == {"text": "loading weights", "unit": "shards", "done": 2, "total": 5}
    assert told["observed"] == {"weights_bytes": 15 * 2**30}
    assert scan(*first, BEGINS)["progress"] == {}
    assert scan(*first, *[SERVES] * 5000)["progress"] == {"text": "listening"}


@pytest.mark.parametrize("log", LOGS, ids=[log[:30] for log in LOGS])
def test_a_whole_log_of_one_start_says_what_its_end_says(log):
    told = engine_log.scan([log.encode()], ROWS, "", "chat")
    assert told["starts"] == 1
    assert ids(told["findings"]) == ids(engine_log.diagnose(log, ROWS))
    assert told["progress"] == engine_log.progress(log)
    assert told["observed"] == engine_log.observed(log)


# What a log can do to who reads it.


class Counting:
    """A pattern that counts how often it is tried."""

    def __init__(self, pattern):
        self.pattern, self.tries, self.letters = pattern, 0, 0

    def search(self, text):
        self.tries += 1
        self.letters = max(self.letters, len(text))
        return self.pattern.search(text)


@pytest.fixture
def patterns(monkeypatch):
    """The patterns of rows by id, which count."""
    counting = {}

    class Row(engine_log._Row):
        def __init__(self, row):
            super().__init__(row)
            self.pattern = counting[self.id] = Counting(self.pattern)

    monkeypatch.setattr(engine_log, "_Row", Row)
    return counting


def test_of_a_log_full_of_one_row_few_lines_are_tried_and_others_are_found(patterns):
    many = engine_log.TRIES * 3
    told = scan(BEGINS, *[LONG] * many, FULL, *[LONG] * many, BEGINS, SERVES, MEMORY)
    assert patterns["prompt-too-long"].tries <= engine_log.TRIES + 2
    assert ids(told["findings"]) == ["cuda-out-of-memory"]
    assert ids(told["earlier"]) == ["prompt-too-long", "disk-full-for-engine"]
    assert told["earlier"][0]["evidence"].startswith(
        "line 2, %d times or more: " % engine_log.TRIES)
    assert told["earlier"][1]["evidence"].startswith("line %d: " % (many + 2))


def test_what_there_was_too_much_of_is_still_seen_at_the_end():
    told = scan(BEGINS, *[LONG] * (engine_log.TRIES + 9), BEGINS, SERVES, LONG)
    assert ids(told["findings"]) == ["prompt-too-long"]
    assert told["findings"][0]["evidence"].startswith("near the end: ")
    assert told["findings"][0]["subject"] == "chat, start 2 of 2"
    assert scan(BEGINS, *[LONG] * (engine_log.TRIES + 9), BEGINS, SERVES)["findings"] == []


def test_lines_that_only_look_like_a_row_are_tried_as_rarely(patterns):
    near = "what the maximum context length is depends on the model"
    told = scan(*[near] * (engine_log.TRIES * 2), MEMORY)
    assert patterns["prompt-too-long"].tries <= engine_log.TRIES + 2
    assert ids(told["findings"]) == ["cuda-out-of-memory"]


def test_of_a_line_without_an_end_a_little_is_looked_at(patterns):
    filler = b"CUDA out of memory. " + b"x" * 100000
    said = [filler] * 80 + [b"\n", MEMORY.encode(), b"\n"]
    tracemalloc.start()
    told = engine_log.scan(said, ROWS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ids(told["findings"]) == ["cuda-out-of-memory"]
    assert told["findings"][0]["evidence"] == "line 2: " + MEMORY
    assert max(one.letters for one in patterns.values()) <= (
        engine_log.BEFORE + engine_log.AFTER + 100)
    # 8 MB were read.
    assert peak < 4 * 2**20


def test_starts_without_an_end_are_counted_so_far(monkeypatch):
    monkeypatch.setattr(engine_log, "STARTS_MOST", 50)
    told = scan(*[BEGINS, FULL] * 200, BEGINS, MEMORY)
    assert told["starts"] == 50
    assert "cuda-out-of-memory" in ids(told["findings"])


def test_phases_without_an_end_are_looked_at_so_far(monkeypatch):
    monkeypatch.setattr(engine_log, "PHASES_MOST", 50)
    told = scan(*[READY] * 200, MEMORY)
    assert told["progress"] == {"text": "listening"}
    assert ids(told["findings"]) == ["cuda-out-of-memory"]


@given(st.lists(st.sampled_from(LINES) | st.text(max_size=80) | st.sampled_from(
    [BEGINS, UNIT, INSIDE, LLAMA]), max_size=30).map("\n".join), st.integers(1, 300))
def test_any_log_is_read_and_what_is_told_of_it_is_whole(text, size):
    said = text.encode("utf-8", "surrogatepass")
    told = engine_log.scan([said[at:at + size] for at in range(0, len(said), size)], ROWS)
    assert told == engine_log.scan([said], ROWS)
    both = told["findings"] + told["earlier"]
    assert len(set(ids(both))) == len(both)
    assert set(told["words"]) == set(ids(both))
    for one in both:
        assert set(one) == set(findings.finding("id", "", "", "", ""))
        for key in ("subject", "found", "wanted", "remedy", "evidence"):
            assert one[key].strip()
            assert "\n" not in one[key]
    assert told["lines"] == said.count(b"\n") + (not said.endswith(b"\n") and bool(said))
    # The end of the last start, which is short, says the same.
    if told["starts"] == 1:
        assert set(ids(told["findings"])) == set(ids(engine_log.diagnose(
            said.decode("utf-8", "replace"), ROWS)))


# Rows.


@pytest.mark.parametrize("change, says", [
    ({"stems": []}, "no stem"), ({"stems": [""]}, "no stem"), ({"stems": [7]}, "signature"),
    ({"stems": None}, "signature"), ({"pattern": "("}, "missing )"), ({"engines": 7}, "signature"),
])
def test_a_row_that_is_none_is_named(change, says):
    [row] = [one for one in ROWS if one["id"] == "port-in-use"]
    with pytest.raises(engine_log.BadSignature, match="(?s)signature port-in-use") as wrong:
        scan(PORT, rows=[{**row, **change}], engine="vllm")
    assert says in str(wrong.value)


def test_a_row_without_stems_is_none_of_a_whole_log():
    [row] = [one for one in ROWS if one["id"] == "port-in-use"]
    short = {key: value for key, value in row.items() if key != "stems"}
    with pytest.raises(engine_log.BadSignature, match="lacks 'stems'"):
        scan(PORT, rows=[short])
    assert ids(engine_log.diagnose(PORT, [short])) == ["port-in-use"]
