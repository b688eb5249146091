# SPDX-License-Identifier: Apache-2.0
"""Each fault of a server is caught, by the check that is meant for it and by no other."""

from __future__ import annotations

import json
import stat

import pytest
import smoke_inference
from fake_engine import (
    MODEL,
    ORACLE,
    body,
    edited,
    endless,
    hangs,
    serving,
    status,
    trickles,
    words,
)
from supervised import free_port

from ansible.module_utils.firstlight import http_client, smoke
from ansible.module_utils.firstlight.planning import proof

CHECKS = ["model-listed", "completion", "chat", "usage", "repeats", "speed"]
# The checks that ask for a completion which is not streamed.
COMPLETIONS = ["completion", "usage", "repeats"]


def prove(faults=None, oracle=ORACLE, timeout_s=30, **more):
    with serving(faults) as url:
        return smoke.prove(smoke.Target(url, MODEL, oracle, timeout_s=timeout_s, **more))


def failed(verdict):
    return [check["id"] for check in verdict["checks"] if not check["passed"]]


def done(verdict):
    return [check["id"] for check in verdict["checks"]]


def found(verdict):
    """What the only finding says."""
    [one] = verdict["findings"]
    return "%s | %s | %s" % (one["found"], one["wanted"], one["evidence"])


@pytest.mark.parametrize("oracle", [ORACLE, None], ids=["canary", "any model"])
def test_a_right_server_passes(oracle):
    verdict = prove(oracle=oracle)
    assert verdict["passed"] is True
    assert verdict["findings"] == []
    assert [(check["id"], check["passed"]) for check in verdict["checks"]] \
        == [(name, True) for name in CHECKS]
    assert verdict["figures"]["tokens"] == smoke.SPEED_TOKENS
    assert verdict["figures"]["first_token_s"] > 0


def test_what_is_asked_is_greedy_and_names_the_model():
    with serving() as url:
        smoke.prove(smoke.Target(url + "/", MODEL, ORACLE))
        asked = [(path, payload) for path, payload in url.engine.asked if payload]
    assert {path for path, _ in asked} == {"/v1/completions", "/v1/chat/completions"}
    assert all(payload["temperature"] == 0 for _, payload in asked)
    assert all(payload["model"] == MODEL for _, payload in asked)


def test_a_model_without_a_template_is_not_talked_to():
    verdict = prove({"chat": status(500)}, chat=False)
    assert verdict["passed"] is True


def put(*path, value):
    """An edit that puts a value deep into an answer."""
    def edit(answer):
        for step in path[:-1]:
            answer = answer[step]
        answer[path[-1]] = value

    return edited(edit)


def differs():
    """Of the completions that check_repeats asks for, no two are alike."""
    count = iter(range(1000))

    def edit(answer):
        if answer["usage"]["completion_tokens"] == 16:
            answer["choices"][0]["text"] += " run%d" % next(count)

    return edited(edit)


TEXT = ("choices", 0, "text")
CONTENT = ("choices", 0, "message", "content")


@pytest.mark.parametrize("route, fault, caught, says", [
    ("models", put("data", 0, "id", value="another"), "model-listed", "another"),
    ("models", put("data", value=[]), "model-listed", MODEL),
    ("completions", put(*TEXT, value=words("word", 7) + " other"), "completion", "other"),
    ("chat", put(*CONTENT, value=words("chat", 7) + " other"), "chat", "other"),
    ("chat", put(*CONTENT, value=None), "chat", words("chat", 8)),
    ("completions", put("usage", "total_tokens", value=99), "usage", "99"),
    ("completions", edited(lambda answer: answer.pop("usage")), "usage", "total tokens"),
    ("completions", put("usage", value=None), "usage", "total tokens"),
    ("completions", put("usage", "prompt_tokens", value="3"), "usage", "total tokens"),
    ("completions", put("usage", value={
        "prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11}), "usage", "at most 4"),
    ("completions", put("usage", value={
        "prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}), "usage", "at most 4"),
    ("completions", put("usage", value=[3, 4, 7]), "usage", "shape"),
    ("completions", None, "repeats", "the same text twice"),
])
def test_an_answer_that_is_not_the_canarys_is_caught(route, fault, caught, says):
    verdict = prove({route: fault or differs()})
    assert failed(verdict) == [caught]
    assert done(verdict) == CHECKS
    assert verdict["passed"] is False
    assert verdict["findings"][0]["id"] == "smoke-" + caught
    assert verdict["findings"][0]["severity"] == "fatal"
    assert says in found(verdict)


@pytest.mark.parametrize("value", ["", "  \n", None])
def test_an_empty_text_is_caught_without_an_oracle(value):
    assert failed(prove({"completions": put(*TEXT, value=value)}, None)) == ["completion"]


def test_an_empty_chat_answer_is_caught_unless_the_model_was_thinking():
    silent = put(*CONTENT, value="")
    assert prove({"chat": silent}, None)["passed"] is True

    def edit(answer):
        answer["choices"][0]["message"]["content"] = ""
        answer["usage"]["completion_tokens"] = 0

    assert failed(prove({"chat": edited(edit)}, None)) == ["chat"]


def test_without_an_oracle_other_text_is_right_and_other_repeats_are_a_warning():
    assert prove({"completions": put(*TEXT, value="whatever")}, None)["passed"] is True
    verdict = prove({"completions": differs()}, None)
    assert failed(verdict) == ["repeats"]
    assert verdict["findings"][0]["severity"] == "warning"
    assert verdict["passed"] is True


@pytest.mark.parametrize("route, caught", [
    ("models", ["model-listed"]), ("completions", COMPLETIONS), ("chat", ["chat"]),
    ("stream", ["speed"]),
])
@pytest.mark.parametrize("fault", [
    status(500), status(404), status(302), body(b""), body(b"<html>"), body(b"\xff\xfe\x00"),
    body(b"[]"), body(b"null"), body(b'"text"'), body(b"7"), body(b"[" * 100000), body(b"{}"),
    body(b'{"choices": [], "data": []}'), body(b'{"choices": null, "data": null}'),
    body(b'{"choices": 5, "data": 5}'), body(b'{"choices": "text", "data": "text"}'),
    body(b'{"choices": [null], "data": [null]}'), body(b'{"choices": {"a": 1}, "data": {"a": 1}}'),
    body(b'{"error": {"message": "out of memory"}}'),
])
def test_what_is_no_answer_fails_the_checks_of_its_route(route, caught, fault):
    verdict = prove({route: fault})
    assert failed(verdict) == caught
    assert done(verdict) == CHECKS
    assert verdict["passed"] is False


def test_the_servers_own_words_are_in_the_finding():
    assert "HTTP 500: scripted fault" in found(prove({"models": status(500)}))
    assert "HTTP 500: scripted fault" in found(prove({"stream": status(500)}))


def events(*lines):
    return body("".join("data: %s\n\n" % line for line in lines).encode())


EVENT = json.dumps({"choices": [{"text": " word"}]})
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
    (events("[" * 100000, DONE), "a stream that ends"),
    (events(DONE), "without text"),
    (events('{"choices": [{"text": ""}]}', '{"choices": []}', DONE), "without text"),
    (events('{"error": {"message": "out of memory"}}', DONE), "without text"),
    (events("[]", DONE), "JSON objects"),
    (events("null", DONE), "JSON objects"),
    (events('"text"', DONE), "JSON objects"),
    (events('{"choices": 5}', DONE), "shape"),
    (events('{"choices": [null]}', DONE), "shape"),
    (events(EVENT, '{"choices": [], "usage": 5}', DONE), "shape"),
    (events(EVENT, '{"usage": {"completion_tokens": 1%s}}' % ("0" * 400), DONE), "1 to 64 tokens"),
    (events(EVENT, '{"usage": {"completion_tokens": NaN}}', DONE), "1 to 64 tokens"),
    (events(EVENT, '{"usage": {"completion_tokens": "9"}}', DONE), "1 to 64 tokens"),
    (endless, "over %d bytes" % http_client.MAX_BODY),
])
def test_a_bad_stream_is_caught(fault, says):
    verdict = prove({"stream": fault})
    assert failed(verdict) == ["speed"]
    assert verdict["passed"] is False
    assert says in found(verdict)


def test_a_right_stream_may_be_chunked_and_end_without_a_newline():
    def chunked(handler, right):
        handler.head(200, ("Transfer-Encoding", "chunked"))
        lines = ": a comment\n\ndata: %s\r\n\r\ndata:%s\n\ndata:[DONE]" % (EVENT, EVENT)
        for letter in lines.encode():
            handler.wfile.write(b"1\r\n%c\r\n" % letter)
        handler.wfile.write(b"0\r\n\r\n")

    verdict = prove({"stream": chunked})
    assert verdict["findings"] == []
    assert verdict["figures"]["tokens"] == 2


@pytest.mark.parametrize("route, checks", [
    ("models", CHECKS[:1]), ("completions", CHECKS[:2]), ("chat", CHECKS[:3]),
])
@pytest.mark.parametrize("fault, timeout_s, says", [
    (hangs, 0.5, "timed out"),
    (trickles, 0.5, "goes on past 0.5 s"),
    (endless, 60, "over %d bytes" % http_client.MAX_BODY),
])
def test_a_server_that_does_not_come_to_an_end_ends_the_list(
        route, checks, fault, timeout_s, says):
    verdict = prove({route: fault}, timeout_s=timeout_s)
    assert done(verdict) == checks
    assert failed(verdict) == checks[-1:]
    assert verdict["passed"] is False
    assert says in found(verdict)


@pytest.mark.parametrize("fault, says", [(hangs, "timed out"), (trickles, "goes on past 0.5 s")])
def test_a_stream_that_does_not_come_to_an_end_is_caught(fault, says):
    verdict = prove({"stream": fault}, timeout_s=0.5)
    assert failed(verdict) == ["speed"]
    assert says in found(verdict)


def test_nobody_there_is_one_finding_and_not_six():
    verdict = smoke.prove(smoke.Target("http://127.0.0.1:%d" % free_port(), MODEL, ORACLE))
    assert done(verdict) == failed(verdict) == ["model-listed"]
    assert verdict["passed"] is False
    assert "refused" in found(verdict)


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999", "http://127.0.0.1:port", "nonsense",
                                 "http://no such host/", ""])
def test_a_url_that_is_none_is_a_finding(url):
    verdict = smoke.prove(smoke.Target(url, MODEL, timeout_s=5))
    assert failed(verdict) == ["model-listed"]
    assert verdict["passed"] is False


def test_proxies_of_the_environment_are_not_used(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:%d" % free_port())
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert prove()["passed"] is True


# The module ---------------------------------------------------------------------------------


def target(url, **more):
    return {"url": url, "model": MODEL, "oracle": ORACLE, **more}


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
        result = ask(run_module, target(url, record=str(record)))
    assert (result["changed"], only(result)["passed"]) == (False, True)
    kept = json.loads(record.read_text())
    assert kept.pop("at").endswith("Z")
    assert kept == only(result)
    assert set(kept) == {"url", "passed", "checks", "figures", "findings"}
    assert stat.S_IMODE(record.stat().st_mode) == 0o644


def test_each_endpoint_has_its_own_verdict_in_the_order_asked_for(run_module, tmp_path):
    records = [tmp_path / name for name in ("a.json", "b.json", "c.json")]
    with serving() as good, serving({"chat": status(500)}) as bad:
        asked = [target(url, record=str(record))
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
        result = ask(run_module, target("http://127.0.0.1:%d" % free_port()), target(url))
    assert [done(one) for one in result["verdicts"]] == [CHECKS[:1], CHECKS]


def test_nothing_to_ask_is_no_verdict(run_module):
    assert ask(run_module)["verdicts"] == []


def test_an_endpoint_without_an_oracle_may_say_what_it_likes(run_module):
    with serving({"completions": put(*TEXT, value="whatever")}) as url:
        result = ask(run_module, {"url": url, "model": MODEL, "oracle": None}, target(url))
    assert [one["passed"] for one in result["verdicts"]] == [True, False]


def test_a_failed_proof_is_recorded_too_and_is_the_callers_to_judge(run_module, tmp_path):
    record = tmp_path / "last_check.json"
    record.write_text("the last one")
    with serving({"chat": status(500)}) as url:
        result = ask(run_module, target(url, record=str(record)))
    assert (result["changed"], only(result)["passed"]) == (False, False)
    assert "failed" not in result
    assert json.loads(record.read_text())["findings"] == only(result)["findings"]


def test_check_mode_asks_and_does_not_record(run_module, tmp_path):
    record = tmp_path / "last_check.json"
    with serving({"chat": status(500)}) as url:
        result = ask(run_module, target(url, record=str(record)), check=True)
        assert url.engine.asked
    assert only(result)["passed"] is False
    assert not record.exists()


def test_records_that_cannot_be_written_are_all_named_and_no_verdict_is_lost(run_module, tmp_path):
    bad = [tmp_path / "first.json", tmp_path / "last.json"]
    for one in bad:
        one.mkdir()
    good = tmp_path / "good.json"
    with serving() as url:
        result = ask(run_module, *(target(url, record=str(one)) for one in (bad[0], good, bad[1])))
    assert result["failed"] is True
    assert all("%s: Is a directory" % one in result["msg"] for one in bad)
    assert str(good) not in result["msg"]
    assert json.loads(good.read_text())["passed"] is True
    assert [one["passed"] for one in result["verdicts"]] == [True, True, True]


def test_the_time_limit_reaches_the_requests(run_module):
    with serving({"models": hangs}) as url:
        result = ask(run_module, target(url), timeout_s=0.2)
    assert "timed out" in found(only(result))


def test_asking_makes_no_folder_where_no_endpoint_was_ever_brought(run_module, tmp_path):
    record = tmp_path / "endpoints" / "chat" / "last_check.json"
    with serving() as url:
        result = ask(run_module, target(url, record=str(record)))
    assert only(result)["passed"] is True
    assert list(tmp_path.glob("endpoints")) == []


# What a role asks for ------------------------------------------------------------------------


def test_plans_are_asked_for_in_their_order_as_they_are_served():
    plans = [
        {"name": "chat", "url": "http://127.0.0.1:8000", "oracle": None,
         "model": {"served_name": "m", "chat_template": False}},
        {"name": "probe", "url": "http://127.0.0.1:18001", "oracle": ORACLE,
         "model": {"served_name": "canary", "chat_template": True}},
    ]
    assert proof.smoke_requests(plans, "/var/lib/firstlight") == [
        {"url": "http://127.0.0.1:8000", "model": "m", "oracle": None, "chat": False,
         "record": "/var/lib/firstlight/endpoints/chat/last_check.json"},
        {"url": "http://127.0.0.1:18001", "model": "canary", "oracle": ORACLE, "chat": True,
         "record": "/var/lib/firstlight/endpoints/probe/last_check.json"},
    ]
    assert proof.smoke_requests([], "/var/lib/firstlight") == []
