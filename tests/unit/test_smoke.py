# SPDX-License-Identifier: Apache-2.0
"""Each fault of a server is caught, by the check that is meant for it and by no other."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import threading

import pytest
import smoke_inference
from fake_engine import (
    CONTEXT,
    FAULTS,
    MODEL,
    ORACLE,
    TABLE,
    body,
    busy,
    edited,
    endless,
    hangs,
    in_company,
    put,
    serving,
    status,
    trickles,
    words,
    works,
)
from supervised import FAKE_ENGINE, fake_engine, free_port, until

from ansible.module_utils.firstlight import http_client, smoke
from ansible.module_utils.firstlight.http_client import get
from ansible.module_utils.firstlight.planning import proof
from ansible.module_utils.firstlight.smoke import progress

KEY = "a-key-of-a-client"
CHECKS = ["health", "model-listed", "first-token", "completion", "repeats", "streaming", "chat",
          "chat-streaming", "usage", "structured-output", "tool-call", "too-long", "keys",
          "parallel", "speed"]
FLOORS = {"first_token_s": 60.0, "tokens_per_second": 0.1, "tokens_per_second_all": 0.1}
# How long a request may take in tests of servers that do not answer in their time.
SHORT_S = 0.8
LATE = {"hangs", "trickles", "stuck", "busy", "busy-for-ever", "streams-without-end",
        "hangs-parallel"}
# What batching does to right engines too, so that it is no more than a warning on a real model.
OF_BATCHING = {"differs", "streams-otherwise", "chat-streams-otherwise"}


def target(url, keyed=None, oracle=ORACLE, timeout_s=30, **more):
    return smoke.Target(url, MODEL, oracle, timeout_s=timeout_s, **{
        "name": "chat", "context": CONTEXT, "claims": proof.CLAIMS[::2],
        "keyed": {"url": keyed} if keyed else None, "floors": FLOORS, **more})


def prove(faults=None, **more):
    """A proof in which every check is needed."""
    faults = faults or {}
    inner = {route: fault for route, fault in faults.items() if route != "keys"}
    outer = {route: fault for route, fault in faults.items() if route == "keys"}
    with serving(inner) as url, serving(outer, keys=[KEY]) as keyed:
        return smoke.prove(target(url, keyed, **more))


def failed(verdict):
    return [check["id"] for check in verdict["checks"] if not check["passed"]]


def done(verdict):
    return [check["id"] for check in verdict["checks"]]


def found(verdict):
    """What the only finding says."""
    [one] = verdict["findings"]
    return "%s | %s | %s" % (one["found"], one["wanted"], one["evidence"])


# The table of faults.


# Of two texts that are not known nobody can tell whose they are.
CASES = [(name, oracle) for name in TABLE for oracle in (ORACLE, None)
         if oracle or name != "mixes-up-parallel"]


@pytest.mark.parametrize("name, oracle", CASES, ids=[
    "%s-%s" % (name, "canary" if oracle else "any model") for name, oracle in CASES])
def test_each_fault_is_caught_by_the_check_that_is_for_it(name, oracle):
    faults, check = TABLE[name]
    floors = {"tokens_per_second": 1000.0} if name == "slow" else FLOORS
    verdict = prove(faults, oracle=oracle, floors=floors,
                    timeout_s=SHORT_S if name in LATE else 30)
    assert failed(verdict) == ([check] if check else [])
    warned = not oracle and name in OF_BATCHING
    assert verdict["passed"] is (not check or warned)
    if check:
        [finding] = verdict["findings"]
        assert finding["id"] == "smoke-" + check
        assert finding["severity"] == ("warning" if warned else "error" if name in (
            "slow", "busy-for-ever") else "fatal")
        assert finding["subject"].startswith("fake at http://127.0.0.1:")


def test_every_check_has_a_fault_that_it_is_for():
    assert {check for _, check in TABLE.values() if check} == set(CHECKS)
    assert done(prove()) == CHECKS


def test_the_faults_can_be_had_from_the_command_line():
    said = subprocess.run([sys.executable, FAKE_ENGINE, "--list"], capture_output=True, text=True,
                          check=True)
    assert [line.split()[0] for line in said.stdout.splitlines()] == list(TABLE)
    port = free_port()
    url = "http://127.0.0.1:%d" % port
    engine = subprocess.Popen(fake_engine(port, "--fault", "ignores-keys", "--key", KEY))
    try:
        until(lambda: get(url + "/health").status == 200)
        assert failed(smoke.prove(target(url, keyed=url))) == ["keys"]
    finally:
        engine.kill()
        engine.wait(30)


# What is right.


@pytest.mark.parametrize("oracle", [ORACLE, None], ids=["canary", "any model"])
def test_a_right_server_passes(oracle):
    verdict = prove(oracle=oracle)
    assert verdict["passed"] is True
    assert verdict["findings"] == []
    assert [(check["id"], check["passed"]) for check in verdict["checks"]] \
        == [(name, True) for name in CHECKS]
    figures = verdict["figures"]
    assert set(figures) == {"port_s", "health_s", "listed_s", "token_s", "first_token_s",
                            "tokens_per_second", "tokens", "streams", "first_token_all_s",
                            "tokens_per_second_all"}
    assert all(figure > 0 for figure in figures.values())
    assert figures["port_s"] <= figures["health_s"] <= figures["listed_s"] <= figures["token_s"]
    assert (figures["tokens"], figures["streams"]) == (smoke.SPEED_TOKENS, 4)


def test_what_is_asked_is_greedy_and_names_the_model():
    with serving() as url:
        smoke.prove(target(url + "/"))
        asked = [(path, payload) for path, payload in url.engine.asked if payload]
    assert {path for path, _ in asked} == {"/v1/completions", "/v1/chat/completions"}
    assert all(payload["temperature"] == 0 for _, payload in asked)
    assert all(payload["model"] == MODEL for _, payload in asked)


def test_a_proof_takes_no_more_requests_than_it_says():
    with serving() as url, serving(keys=[KEY]) as keyed:
        smoke.prove(target(url, keyed, streams=1))
        one_by_one = len(url.engine.asked) + len(keyed.engine.asked)
    # Beside them: the connection to the port, those that go out together, and patience.
    assert one_by_one + 2 + smoke.PATIENCE == smoke.REQUESTS


def test_what_does_not_apply_is_not_asked():
    with serving(dict.fromkeys(["chat", "chat_stream", "too_long", "props"], status(500))) as url:
        verdict = smoke.prove(smoke.Target(url, MODEL, ORACLE, chat=False, streams=1,
                                           claims=proof.CLAIMS))
        asked = [path for path, _ in url.engine.asked]
    assert verdict["passed"] is True
    assert done(verdict) == ["health", "model-listed", "first-token", "completion", "repeats",
                             "streaming", "usage"]
    assert "/v1/chat/completions" not in asked
    assert "/props" not in asked


def test_a_tool_call_is_asked_for_where_flags_or_the_template_claim_it():
    without = {"props": lambda handler, right: {"chat_template_caps": {}}}
    assert "tool-call" not in done(prove(without))
    assert "tool-call" not in done(prove({"props": status(501)}))
    assert "tool-call" in done(prove(without, claims=["tool_calls"]))
    assert "tool-call" not in done(prove(claims=[]))


def test_no_more_requests_are_sent_at_once_than_the_context_has_room_for():
    assert prove(streams=9)["figures"]["streams"] == 9
    # Of the canary's answer with its prompt: 3 and 8 tokens.
    verdict = prove(streams=9, context=40)
    assert verdict["figures"]["streams"] == 3
    assert "parallel" not in done(prove(streams=9, context=20))


def test_a_small_context_gets_small_requests():
    with serving() as url:
        smoke.prove(target(url, oracle=None, context=40))
        asked = [payload["max_tokens"] for _, payload in url.engine.asked if payload]
    assert max(asked) == 10


# Text.

TEXT = ("choices", 0, "text")
CONTENT = ("choices", 0, "message", "content")


@pytest.mark.parametrize("route, fault, caught, says", [
    ("models", put("data", value=[]), "model-listed", MODEL),
    ("completions", put(*TEXT, value=words("word", 7) + " other"), "completion", "other"),
    ("chat", put(*CONTENT, value=words("chat", 7) + " other"), "chat", "other"),
    ("chat", put(*CONTENT, value=None), "chat", words("chat", 8)),
    ("completions", edited(lambda answer: answer.pop("usage")), "usage", "total tokens"),
    ("completions", put("usage", value=None), "usage", "total tokens"),
    ("completions", put("usage", "prompt_tokens", value="3"), "usage", "total tokens"),
    ("completions", put("usage", value={
        "prompt_tokens": 3, "completion_tokens": 80, "total_tokens": 83}), "usage", "at most 8"),
    ("completions", put("usage", value={
        "prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}), "usage", "at most 8"),
    ("completions", put("usage", value={
        "prompt_tokens": 0, "completion_tokens": 8, "total_tokens": 8}), "usage", "at most 8"),
    ("completions", put("usage", value={
        "prompt_tokens": 4, "completion_tokens": 8, "total_tokens": 12}), "usage", "4 tokens of"),
    ("completions", put("usage", value=[3, 4, 7]), "usage", "total tokens"),
    ("chat", put("usage", "total_tokens", value=99), "usage", "chat: usage"),
    ("chat_stream", put(-1, "usage", "total_tokens", value=99), "usage", "chat, streamed: usage"),
    ("structured", put(*CONTENT, value="green"), "structured-output", "'green'"),
    ("structured", put(*CONTENT, value='"blue"'), "structured-output", "blue"),
    ("tool", put("choices", 0, "message", "tool_calls", 0, "function", "name", value="dig"),
     "tool-call", "dig("),
    ("tool", put("choices", 0, "message", "tool_calls", 0, "function", "arguments",
                 value='{"colour": "blue"}'), "tool-call", "blue"),
    ("tool", put("choices", 0, "message", "tool_calls", 0, "function", "arguments", value="{"),
     "tool-call", "paint({)"),
    ("too_long", put("error", "message", value="no"), "too-long", "exceeds the available"),
])
def test_an_answer_that_is_not_right_is_caught(route, fault, caught, says):
    faults = {route: fault}
    if route == "too_long":
        faults[route] = lambda handler, right: handler.send(400, json.dumps(
            fault(handler, right)).encode())
    verdict = prove(faults)
    assert failed(verdict) == [caught]
    assert done(verdict) == CHECKS
    assert verdict["passed"] is False
    assert verdict["findings"][0]["severity"] == "fatal"
    assert says in found(verdict)


def test_the_canarys_tokens_are_counted_to_the_last():
    counted = dict(ORACLE, prompt_ids=[1, 2, 3], chat_prompt_ids=[1, 2, 3, 4])
    verdict = prove(oracle=counted)
    assert failed(verdict) == ["usage"]
    assert "chat: usage" in found(verdict)
    assert "4 tokens of the prompt" in found(verdict)


@pytest.mark.parametrize("value", ["", "  \n", None])
def test_an_empty_text_is_caught_without_an_oracle(value):
    assert failed(prove({"completions": put(*TEXT, value=value)}, oracle=None)) == ["completion"]


def thinking(handler, right):
    """An answer, or an event, of nothing but thoughts."""
    changed = json.loads(json.dumps(right))
    for one in changed if isinstance(changed, list) else [changed]:
        for choice in one["choices"]:
            said = choice.get("message", choice.get("delta"))
            said.update(content="", reasoning_content="Hm.")
            said.pop("tool_calls", None)
            choice["finish_reason"] = "length"
    return changed


def test_a_model_that_thinks_is_not_judged_by_what_it_has_not_said_yet():
    verdict = prove({"chat": thinking, "chat_stream": thinking}, oracle=None)
    assert verdict["findings"] == []
    verdict = prove({"structured": thinking, "tool": thinking}, oracle=None)
    assert failed(verdict) == ["structured-output", "tool-call"]
    assert [one["severity"] for one in verdict["findings"]] == ["warning", "warning"]
    assert "thoughts for all" in verdict["findings"][0]["found"]


def test_a_model_that_talks_on_before_its_call_is_no_fault_of_the_engine():
    def talks(handler, right):
        changed = thinking(handler, right)
        changed["choices"][0]["message"] = {"content": words("chat", 20)}
        return changed

    verdict = prove({"tool": talks}, oracle=None)
    assert failed(verdict) == ["tool-call"]
    assert verdict["findings"][0]["severity"] == "warning"


def test_an_empty_chat_answer_is_caught_where_no_token_was_counted():
    def edit(answer):
        answer["choices"][0]["message"]["content"] = ""
        answer["usage"].update(completion_tokens=0, total_tokens=3)

    assert failed(prove({"chat": edited(edit), "chat_stream": thinking}, oracle=None)) == [
        "chat", "usage"]


@pytest.mark.parametrize("text, passes", [
    (" Der Turm stand auf einem Felsen am Ende der Bucht, und jeden Abend stieg der alte Mann die"
     " enge Treppe hinauf, um seine Lampe zu entzünden, denn viele kleine Boote kamen heim.", True),
    (" qX9kT7vLm2RfZ0pQwE4uYhB6nJc1DsGa8KxVtO5iPlM3zNrWqFebCdHgIjSyU+/ACoXTkBdR7eZ", True),
    (" the the the the the the the the the the the the the the the the the", False),
    (" \x00\x01\x02 stood on a rock", False),
    (" stood \ufffd\ufffd\ufffd\ufffd on a \ufffd rock", False),
], ids=["language", "entropy", "repetition", "control", "encoding"])
def test_a_text_that_is_not_known_is_judged_and_language_and_entropy_never_fail_alone(
        text, passes):
    say = put(*TEXT, value=text)
    verdict = prove({"completions": say}, oracle=None)
    assert verdict["passed"] is passes
    assert failed(verdict)[0] == "completion"
    assert verdict["findings"][0]["severity"] == ("warning" if passes else "fatal")
    assert repr(text)[1:20] in verdict["findings"][0]["found"]


def test_without_an_oracle_any_text_is_right_that_can_be_one():
    def other(handler, right):
        return [{"choices": [{"text": " whatever"}]}, right[-1]]

    verdict = prove({"completions": put(*TEXT, value=" whatever"), "stream": other}, oracle=None,
                    floors={})
    assert verdict["findings"] == []


# What is no answer.


@pytest.mark.parametrize("route, caught, last", [
    ("models", "model-listed", "speed"), ("completions", "first-token", "first-token"),
    ("chat", "chat", "speed"), ("stream", "streaming", "speed"),
    ("chat_stream", "chat-streaming", "speed"), ("structured", "structured-output", "speed"),
    ("tool", "tool-call", "speed"), ("too_long", "too-long", "speed"),
])
@pytest.mark.parametrize("fault", [
    status(500), status(404), status(302), body(b""), body(b"<html>"), body(b"\xff\xfe\x00"),
    body(b"[]"), body(b"null"), body(b'"text"'), body(b"7"), body(b"[" * 100000), body(b"{}"),
    body(b'{"choices": [], "data": []}'), body(b'{"choices": null, "data": null}'),
    body(b'{"error": {"message": "out of memory"}}'),
])
def test_what_is_no_answer_fails_the_check_of_its_route(route, caught, last, fault):
    verdict = prove({route: fault})
    assert failed(verdict) == [caught]
    assert done(verdict)[-1] == last
    assert verdict["passed"] is False


@pytest.mark.parametrize("route, caught", [
    ("models", "model-listed"), ("chat", "chat"), ("structured", "structured-output"),
    ("tool", "tool-call"),
])
@pytest.mark.parametrize("fault", [
    body(b'{"choices": 5, "data": 5}'), body(b'{"choices": "text", "data": "text"}'),
    body(b'{"choices": [null], "data": [null]}'), body(b'{"choices": {"a": 1}, "data": {"a": 1}}'),
    body(b'{"choices": [{"message": 5}]}'), body(b'{"choices": [{}]}'),
])
def test_an_answer_of_another_shape_fails_the_check_of_its_route(route, caught, fault):
    verdict = prove({route: fault})
    assert failed(verdict) == [caught]
    assert done(verdict) == CHECKS


def test_the_servers_own_words_are_in_the_finding():
    assert "HTTP 500: scripted fault" in found(prove({"models": status(500)}))
    assert "HTTP 500: scripted fault" in found(prove({"stream": status(500)}))
    assert "HTTP 503" in found(prove(FAULTS["early"]))
    assert "Loading model" in found(prove(FAULTS["early"]))


def test_bytes_that_are_no_utf8_are_shown_with_their_place():
    said = found(prove(FAULTS["not-utf8"]))
    assert "is no UTF-8" in said
    assert r"caf\xe9 cr\xe9me" in said


def events(*lines):
    return body("".join("data: %s\n\n" % line for line in lines).encode())


FIRST = ORACLE["completion"]
EVENT = json.dumps({"choices": [{"text": FIRST}]})
COUNTED = json.dumps({"choices": [], "usage": {
    "prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11}})
DONE = "[DONE]"


def cut_chunk(handler, right):
    """An engine that dies in the middle of a chunk."""
    handler.head(200, ("Transfer-Encoding", "chunked"))
    handler.wfile.write(b"20\r\ndata: " + EVENT[:10].encode())


def cut_between_chunks(handler, right):
    handler.head(200, ("Transfer-Encoding", "chunked"))
    line = b"data: " + EVENT.encode() + b"\n\n"
    handler.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))


@pytest.mark.parametrize("fault, says", [
    (events(EVENT, EVENT), "broke off"),
    (body(b""), "broke off"),
    (body(b"data: " + EVENT[:10].encode()), "a stream that ends"),
    (cut_chunk, "a stream that ends"),
    (cut_between_chunks, "a stream that ends"),
    (events(EVENT, "{not json", DONE), "a stream that ends"),
    (body(b'data: {"choices": [{"text": "caf\xe9"}]}\n\ndata: [DONE]\n\n'), "a stream that ends"),
    (events("[" * 100000, DONE), "a stream that ends"),
    (events(DONE), "without text"),
    (events('{"choices": [{"text": ""}]}', '{"choices": []}', DONE), "without text"),
    (events('{"error": {"message": "out of memory"}}', DONE), "without text"),
    (events("[]", DONE), "JSON objects"),
    (events("null", DONE), "JSON objects"),
    (events('"text"', DONE), "JSON objects"),
    (events('{"choices": 5}', DONE), "shape"),
    (events('{"choices": [null]}', DONE), "shape"),
    (events('{"choices": [{"delta": 5}]}', DONE), "shape"),
    (endless, "over %d bytes" % http_client.MAX_BODY),
])
def test_a_bad_stream_is_caught(fault, says):
    verdict = prove({"stream": fault})
    assert failed(verdict) == ["streaming"]
    assert verdict["passed"] is False
    assert says in found(verdict)


@pytest.mark.parametrize("usage", [
    "null", "5", '{"prompt_tokens": 3}',
    '{"prompt_tokens": 3, "completion_tokens": 1%s, "total_tokens": 1%s3}' % ("0" * 40, "0" * 39),
    '{"prompt_tokens": 3, "completion_tokens": NaN, "total_tokens": NaN}',
    '{"prompt_tokens": 3, "completion_tokens": "9", "total_tokens": 12}',
])
def test_a_stream_that_does_not_count_is_caught_and_its_events_are_the_figure(usage):
    verdict = prove({"stream": events(EVENT, '{"choices": [], "usage": %s}' % usage, DONE)},
                    floors={})
    assert failed(verdict) == ["usage"]
    assert "completion, streamed" in found(verdict)
    assert verdict["figures"]["tokens"] == 1


def test_a_right_stream_may_be_chunked_and_end_without_a_newline():
    def chunked(handler, right):
        handler.head(200, ("Transfer-Encoding", "chunked"))
        lines = ": a comment\n\ndata: %s\r\n\r\ndata:%s\n\ndata:[DONE]" % (EVENT, COUNTED)
        for letter in lines.encode():
            handler.wfile.write(b"1\r\n%c\r\n" % letter)
        handler.wfile.write(b"0\r\n\r\n")

    verdict = prove({"stream": chunked}, streams=1, floors={})
    assert verdict["findings"] == []
    assert verdict["figures"]["tokens"] == 8


# Servers that do not answer in their time.


@pytest.mark.parametrize("route, last", [
    ("health", "health"), ("models", "model-listed"), ("completions", "first-token"),
    ("stream", "streaming"), ("chat", "chat"), ("chat_stream", "chat-streaming"),
    ("structured", "structured-output"), ("tool", "tool-call"), ("too_long", "too-long"),
])
@pytest.mark.parametrize("fault, says", [(hangs, "timed out"), (trickles, "goes on past 0.8 s")])
def test_a_server_that_does_not_come_to_an_end_ends_the_list(route, last, fault, says):
    verdict = prove({route: fault}, timeout_s=SHORT_S)
    assert done(verdict) == CHECKS[:CHECKS.index(last) + 1]
    assert failed(verdict) == [last]
    assert verdict["passed"] is False
    assert says in found(verdict)


def test_nobody_there_is_one_finding_and_not_fifteen():
    verdict = smoke.prove(target("http://127.0.0.1:%d" % free_port()))
    assert done(verdict) == failed(verdict) == ["health"]
    assert verdict["passed"] is False
    assert "refused" in found(verdict)


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999", "http://127.0.0.1:port", "nonsense",
                                 "http://no such host/", ""])
def test_a_url_that_is_none_is_a_finding(url):
    verdict = smoke.prove(target(url, timeout_s=5))
    assert failed(verdict) == ["health"]
    assert verdict["passed"] is False


def test_proxies_of_the_environment_are_not_used(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:%d" % free_port())
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert prove()["passed"] is True


# Servers that are busy.


def test_a_busy_server_is_waited_for_and_the_figures_tell():
    verdict = prove(FAULTS["busy"], timeout_s=SHORT_S)
    assert verdict["passed"] is True
    assert verdict["figures"]["busy_s"] > 0
    assert "busy_s" not in prove()["figures"]


@pytest.mark.parametrize("name, says", [
    ("hangs", "it counts nothing by which work could be seen"),
    ("stuck", "what it counts stood still"),
    ("busy-for-ever", "it still works, and it was waited for long enough"),
])
def test_a_server_that_is_given_up_is_told_why(name, says):
    verdict = prove(FAULTS[name], timeout_s=SHORT_S)
    assert says in found(verdict)
    told = "endpoint_smoke_timeout_s" in verdict["findings"][0]["remedy"]
    assert told is (name == "busy-for-ever")
    # Counters are looked at when the time is over, and no more than they have to be.
    assert ("busy_s" in verdict["figures"]) is (name == "busy-for-ever")


def test_a_busy_server_may_take_its_time_for_a_stream_too():
    def later(handler, right):
        handler.head(200)
        handler.wfile.write(b"data: %s\n\n" % json.dumps(right[0]).encode())
        busy(handler, right)
        handler.wfile.write(b"".join(b"data: %s\n\n" % json.dumps(event).encode()
                                     for event in right[1:]) + b"data: [DONE]\n\n")

    verdict = prove({"stream": later, "metrics": works}, timeout_s=SHORT_S)
    assert verdict["findings"] == []
    assert verdict["figures"]["busy_s"] > 0


def test_no_patience_is_spent_where_answers_come_in_their_time():
    with serving({"metrics": works}) as url:
        smoke.prove(target(url))
        assert url.engine.looked == 0


def slots(*numbers):
    """What llama.cpp tells of its slots, an older one and a newer one."""
    return [{"id": 0, "id_task": 7, "prompt": "secret", "next_token": {"n_decoded": numbers[0]}},
            {"id": 1, "id_task": 8, "n_prompt_tokens_processed": 3,
             "next_token": [{"n_decoded": numbers[1]}]}]


VLLM = ("# HELP vllm:generation_tokens_total Tokens.\n"
        'vllm:generation_tokens_total{engine="0",model_name="m"} %s\n'
        'vllm:num_requests_running{engine="0",model_name="m"} %s\n')


@pytest.mark.parametrize("route, before, after, moved", [
    ("metrics", VLLM % (609.0, 1), VLLM % (610.0, 1), True),
    ("metrics", VLLM % (609.0, 1), VLLM % (609.0, 2), False),
    ("metrics", "llamacpp:n_decode_total 4\n", "llamacpp:n_decode_total 5\n", True),
    ("slots", slots(1, 1), slots(1, 2), True),
    ("slots", slots(1, 1), slots(2, 1), True),
    ("slots", slots(1, 1), slots(1, 1), False),
])
def test_work_is_seen_by_what_an_engine_counts(route, before, after, moved):
    def answer(with_what):
        return lambda handler, right: handler.send(200, (
            with_what if isinstance(with_what, str) else json.dumps(with_what)).encode())

    with serving({route: answer(before)}) as url:
        first = progress.counters(url, 10)
        url.engine.faults = {route: answer(after)}
        second = progress.counters(url, 10)
    assert first
    assert (first != second) is moved
    assert "secret" not in str(first)


@pytest.mark.parametrize("faults", [
    {}, {"metrics": status(501), "slots": status(501)},
    {"metrics": body(b"vllm:num_requests_running 1\n"), "slots": body(b"[]")},
    {"metrics": body(b"\xff\xfe"), "slots": body(b"{}")}, {"slots": body(b"[" * 100000)},
])
def test_a_server_that_counts_nothing_has_no_counters(faults):
    with serving(faults) as url:
        assert progress.counters(url, 10) is None
    assert progress.counters("http://127.0.0.1:%d" % free_port(), 10) is None


def test_requests_that_wait_at_once_take_their_patience_together():
    with serving({"metrics": works}) as url:
        patience = progress.Patience(url, 400.0, 1)
        taken = []
        takers = [threading.Thread(target=lambda: taken.append(patience())) for _ in range(5)]
        for one in takers:
            one.start()
        for one in takers:
            one.join(30)
        assert url.engine.looked == 1
    assert len(taken) == 5
    assert all(90 < one <= 100 for one in taken)
    assert (patience.taken_s, patience.periods) == (100.0, 3)


def test_a_busy_server_is_not_given_up_for_one_request_of_many():
    """Each of those that wait is held against what was seen a whole period ago."""
    verdict = prove({"stream": in_company(busy), "chat_stream": in_company(busy),
                     "metrics": works}, timeout_s=SHORT_S)
    assert verdict["findings"] == []
    assert verdict["figures"]["busy_s"] > 0


# Keys.


def test_keys_are_asked_for_with_none_and_with_a_wrong_one():
    with serving() as url, serving(keys=[KEY]) as keyed:
        assert smoke.prove(target(url, keyed))["findings"] == []
        assert [path for path, _ in keyed.engine.asked] == ["/v1/models", "/v1/completions"] * 2


@pytest.mark.parametrize("lets_in", [
    lambda handler, right: handler.path == "/v1/completions",
    lambda handler, right: bool(handler.headers.get("Authorization")),
], ids=["to a path", "with a wrong key"])
def test_whoever_is_let_in_with_a_wrong_key_or_to_one_path_is_found(lets_in):
    verdict = prove({"keys": lets_in})
    assert failed(verdict) == ["keys"]
    assert "HTTP 401" in found(verdict)


def test_a_certificate_that_is_not_there_or_none_is_a_finding(tmp_path):
    with serving() as url:
        (tmp_path / "no.pem").write_text("nothing of the kind")
        for path, says in ((tmp_path / "none.pem", "No such file"), (tmp_path / "no.pem", "no ce")):
            verdict = smoke.prove(smoke.Target(url, MODEL, ORACLE, keyed={
                "url": "https://127.0.0.1:%d" % free_port(), "certificate": str(path)}))
            assert failed(verdict) == ["keys"]
            assert says in found(verdict)


# Floors.


@pytest.mark.parametrize("key, floor, says", [
    ("first_token_s", 1e-9, "at most 1e-09 s"),
    ("tokens_per_second", 1e12, "at least 1e+12 tokens per second of one"),
    ("tokens_per_second_all", 1e12, "at least 1e+12 tokens per second of all"),
])
def test_a_floor_that_is_missed_names_its_variable(key, floor, says):
    verdict = prove(floors={**FLOORS, key: floor})
    assert failed(verdict) == ["speed"]
    assert says in found(verdict)
    assert verdict["findings"][0]["severity"] == "error"
    assert "endpoint_smoke_floors.chat." + key in verdict["findings"][0]["remedy"]


def test_a_floor_of_what_is_not_measured_is_missed_too():
    verdict = prove(streams=1)
    assert failed(verdict) == ["speed"]
    assert "tokens_per_second_all: not measured" in found(verdict)


# The module.


def asked_of(url, **more):
    return {"url": url, "model": MODEL, "oracle": ORACLE, "claims": ["structured_output"],
            "context": CONTEXT, "keyed": {}, "floors": {}, "streams": 2, **more}


def ask(run_module, *endpoints, **more):
    return run_module(smoke_inference.main, endpoints=list(endpoints), **more)


def only(result):
    """The only one."""
    [one] = result["verdicts"]
    return one


def test_the_module_reports_and_records_without_a_change(run_module, tmp_path):
    record = tmp_path / "endpoints" / "chat" / "last_check.json"
    record.parent.mkdir(parents=True)
    with serving() as url:
        result = ask(run_module, asked_of(url, record=str(record)))
    assert (result["changed"], only(result)["passed"]) == (False, True)
    assert only(result)["figures"]["streams"] == 2
    kept = json.loads(record.read_text())
    assert kept.pop("at").endswith("Z")
    assert kept == only(result)
    assert set(kept) == {"url", "passed", "checks", "figures", "findings"}
    assert stat.S_IMODE(record.stat().st_mode) == 0o644


def test_each_option_of_the_module_reaches_the_proof(run_module):
    with serving() as url, serving(keys=[KEY]) as keyed:
        verdict = only(ask(run_module, asked_of(
            url, name="talk", keyed={"url": keyed}, floors={"tokens_per_second": 1e12},
            claims=["tool_calls"])))
    assert done(verdict) == [one for one in CHECKS if one != "structured-output"]
    assert "endpoint_smoke_floors.talk.tokens_per_second " in verdict["findings"][0]["remedy"] + " "


def test_each_endpoint_has_its_own_verdict_in_the_order_asked_for(run_module, tmp_path):
    records = [tmp_path / name for name in ("a.json", "b.json", "c.json")]
    with serving() as good, serving({"chat": status(500)}) as bad:
        asked = [asked_of(url, claims=[], record=str(record))
                 for url, record in zip((bad, good, bad), records)]
        asked[2]["chat"] = False
        result = ask(run_module, *asked)
        assert [one["url"] for one in result["verdicts"]] == [bad, good, bad]
    assert [one["passed"] for one in result["verdicts"]] == [False, True, True]
    assert [failed(one) for one in result["verdicts"]] == [["chat"], [], []]
    for one, record in zip(result["verdicts"], records):
        assert json.loads(record.read_text())["findings"] == one["findings"]
    assert "failed" not in result


def test_an_endpoint_that_is_gone_does_not_keep_the_next_from_being_asked(run_module):
    with serving() as url:
        result = ask(run_module, asked_of("http://127.0.0.1:%d" % free_port()), asked_of(url))
    assert [one["passed"] for one in result["verdicts"]] == [False, True]


def test_nothing_to_ask_is_no_verdict(run_module):
    assert ask(run_module)["verdicts"] == []


def test_an_endpoint_without_an_oracle_may_say_what_it_likes(run_module):
    with serving({"completions": put(*TEXT, value=" whatever")}) as url:
        result = ask(run_module, {"url": url, "model": MODEL, "oracle": None}, asked_of(url))
    assert [one["passed"] for one in result["verdicts"]] == [True, False]


def test_a_failed_proof_is_recorded_too_and_is_the_callers_to_judge(run_module, tmp_path):
    record = tmp_path / "last_check.json"
    record.write_text("the last one")
    with serving({"chat": status(500)}) as url:
        result = ask(run_module, asked_of(url, record=str(record)))
    assert (result["changed"], only(result)["passed"]) == (False, False)
    assert "failed" not in result
    assert json.loads(record.read_text())["findings"] == only(result)["findings"]


def test_check_mode_asks_and_does_not_record(run_module, tmp_path):
    record = tmp_path / "last_check.json"
    with serving({"chat": status(500)}) as url:
        result = ask(run_module, asked_of(url, record=str(record)), check=True)
        assert url.engine.asked
    assert only(result)["passed"] is False
    assert not record.exists()


def test_records_that_cannot_be_written_are_all_named_and_no_verdict_is_lost(run_module, tmp_path):
    bad = [tmp_path / "first.json", tmp_path / "last.json"]
    for one in bad:
        one.mkdir()
    good = tmp_path / "good.json"
    with serving() as url:
        result = ask(run_module, *(asked_of(url, record=str(one))
                                   for one in (bad[0], good, bad[1])))
    assert result["failed"] is True
    assert all("%s: Is a directory" % one in result["msg"] for one in bad)
    assert str(good) not in result["msg"]
    assert json.loads(good.read_text())["passed"] is True
    assert [one["passed"] for one in result["verdicts"]] == [True, True, True]


def test_the_time_limit_reaches_the_requests(run_module):
    with serving({"models": hangs}) as url:
        result = ask(run_module, asked_of(url), timeout_s=0.2)
    assert "timed out" in found(only(result))


def test_asking_makes_no_folder_where_no_endpoint_was_ever_brought(run_module, tmp_path):
    record = tmp_path / "endpoints" / "chat" / "last_check.json"
    with serving() as url:
        result = ask(run_module, asked_of(url, record=str(record)))
    assert only(result)["passed"] is True
    assert list(tmp_path.glob("endpoints")) == []


def test_the_spec_names_what_the_planner_asks():
    assert set(smoke_inference.FLOORS) == set(proof.FLOORS)
    assert tuple(smoke_inference.ENDPOINT["claims"]["choices"]) == proof.CLAIMS
    assert smoke_inference.ENDPOINT["streams"]["default"] == proof.STREAMS


# What a role asks for.


def planned(name="chat", **more):
    return {"name": name, "url": "http://127.0.0.1:8000", "oracle": None, "engine": "llama_cpp",
            "model": {"served_name": "m", "chat_template": True}, "context": 4096, "flags": [],
            "extra_args": [], "way_in": False, "trial": None, **more}


def test_plans_are_asked_for_in_their_order_as_they_are_served():
    plans = [planned(), planned(
        "probe", url="http://127.0.0.1:18001", oracle=ORACLE, context=512, engine="vllm",
        model={"served_name": "canary", "chat_template": False})]
    assert proof.smoke_requests(plans, "/var/lib/firstlight") == [
        {"name": "chat", "url": "http://127.0.0.1:8000", "model": "m", "oracle": None,
         "chat": True, "context": 4096, "claims": ["structured_output", "tool_calls_by_template"],
         "keyed": {}, "streams": 4, "floors": {},
         "record": "/var/lib/firstlight/endpoints/chat/last_check.json"},
        {"name": "probe", "url": "http://127.0.0.1:18001", "model": "canary", "oracle": ORACLE,
         "chat": False, "context": 512, "claims": [], "keyed": {}, "streams": 4, "floors": {},
         "record": "/var/lib/firstlight/endpoints/probe/last_check.json"},
    ]
    assert proof.smoke_requests([], "/var/lib/firstlight") == []


@pytest.mark.parametrize("given, claimed", [
    ([], []), (["--enable-auto-tool-choice"], []), (["--tool-call-parser", "hermes"], []),
    (["--enable-auto-tool-choice", "--tool-call-parser", "hermes"], ["tool_calls"]),
    (["--enable_auto_tool_choice", "--tool_call_parser=hermes"], ["tool_calls"]),
])
def test_tool_calls_are_claimed_by_vllms_flags(given, claimed):
    assert proof.claims(planned(engine="vllm", extra_args=given)) == [
        "structured_output", *claimed]


def test_the_canary_has_no_tools_whatever_the_flags():
    flags = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    for engine in ("vllm", "llama_cpp"):
        assert proof.claims(planned(engine=engine, extra_args=flags, model={
            "kind": "canary", "chat_template": True})) == ["structured_output"]


@pytest.mark.parametrize("bind, url", [
    ("192.0.2.10", "https://192.0.2.10:8443"), ("0.0.0.0", "https://127.0.0.1:8443"),
    ("::", "https://[::1]:8443"), ("2001:db8::1", "https://[2001:db8::1]:8443"),
])
def test_behind_a_way_in_keys_are_asked_for_where_the_host_reaches_it(bind, url):
    [one] = proof.smoke_requests([planned(way_in=True, bind=bind, port=8443)], "/srv/fl")
    assert one["url"] == "http://127.0.0.1:8000"
    assert one["keyed"] == {"url": url,
                            "certificate": "/srv/fl/endpoints/chat/way_in/certificate.pem"}


def test_floors_are_those_of_the_endpoint_and_not_of_its_trial():
    settings = {"streams": 8, "floors": {"chat": {"first_token_s": 1, "tokens_per_second": 20.5}}}
    one = proof.smoke_request(planned(), settings)
    assert (one["streams"], one["floors"]) == (8, {"first_token_s": 1.0,
                                                   "tokens_per_second": 20.5})
    assert proof.smoke_request(planned("other"), settings)["floors"] == {}
    assert proof.smoke_request(planned(trial={"of": "9f2c"}), settings)["floors"] == {}


@pytest.mark.parametrize("settings, says", [
    ({"streams": 0}, "endpoint_smoke_streams: found 0"),
    ({"streams": True}, "endpoint_smoke_streams"), ({"streams": "4"}, "endpoint_smoke_streams"),
    ({"floors": {"chat": {"first_token": 1}}}, "endpoint_smoke_floors.chat: found {'first_token'"),
    ({"floors": {"chat": {"first_token_s": 0}}}, "over 0"),
    ({"floors": {"chat": {"first_token_s": "1"}}}, "endpoint_smoke_floors.chat"),
    ({"floors": {"chat": 5}}, "endpoint_smoke_floors.chat: found 5"),
    ({"floors": [1]}, "endpoint_smoke_floors.chat"),
])
def test_settings_that_are_none_name_their_variable(settings, says):
    with pytest.raises(ValueError, match="endpoint_smoke_") as refused:
        proof.smoke_requests([planned()], "/srv/fl", settings)
    assert says in str(refused.value)


def test_an_older_plan_of_a_passport_is_asked_what_it_says():
    old = {"name": "chat", "url": "http://127.0.0.1:8000", "engine": "llama_cpp",
           "model": {"served_name": "m", "chat_template": True}}
    one = proof.smoke_request(old)
    assert (one["context"], one["oracle"], one["floors"]) == (None, None, {})
    with serving() as url:
        made = smoke.of_request(dict(one, url=str(url), model=MODEL), 30)
        assert smoke.prove(made)["findings"] == []
