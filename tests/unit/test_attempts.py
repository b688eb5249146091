# SPDX-License-Identifier: Apache-2.0
"""A start that failed tells what it failed by; the one that serves has both in its passport."""

from __future__ import annotations

import json
import sys

from endpoint_host import fake, plan
from supervised import free_port

from ansible.module_utils.firstlight import collective

ROW = {
    "id": "cache-too-small", "engines": ["llama_cpp"], "stems": ["GiB KV cache is needed"],
    "pattern": r"max seq len \((?P<length>\d+)\).{0,90}model length is (?P<fits>\d+)",
    "severity": "fatal", "only_alone": False, "found": "%(length)s tokens do not fit",
    "wanted": "fewer", "remedy": "a smaller context", "change": {"kind": "context", "to": "fits"},
    "repair": "", "report": "", "source": "Seen.",
}
LATE = {**ROW, "id": "late", "stems": ["and still works"],
        "pattern": "was not ready within .{0,40}, and still works", "found": "it loads"}
SAID = ("ValueError: To serve one request with the model's max seq len (8192), 4.0 GiB KV cache is "
        "needed; the estimated maximum model length is 4096. hf_secret-token")


def dying(line=SAID, adjustments=()):
    argv = [sys.executable, "-c", "import sys; print(sys.argv[1]); sys.exit(3)", line]
    return {**plan(free_port(), argv), "adjustments": list(adjustments)}


def test_what_failed_tells_what_could_be_changed(host):
    learned = [{"signature": "s", "kind": "eager", "value": True}]
    tried = dying(adjustments=learned)
    failed = host.switch(tried, signatures=[ROW])
    assert failed["failed"] is True
    assert failed["name"] == "chat"
    assert "cache-too-small" in failed["msg"]
    attempt = failed["attempt"]
    assert (attempt["plan"], attempt["outcome"]) == (tried["hash"], "failed")
    assert attempt["adjustments"] == learned
    assert [one["id"] for one in attempt["findings"]] == ["cache-too-small"]
    assert attempt["words"] == {"cache-too-small": {"length": "8192", "fits": "4096"}}


def test_both_attempts_are_in_the_passport_and_no_line_of_a_log_is(host):
    failed = host.switch(dying(), signatures=[ROW])
    second = host.switched({**fake(), "adjustments": [
        {"signature": "cache-too-small", "kind": "context", "value": 4000}]},
        signatures=[ROW], attempts=[failed["attempt"]])
    attempts = second["passport"]["attempts"]
    assert [one["outcome"] for one in attempts] == ["failed", "proven"]
    assert [one["id"] for one in attempts[0]["findings"]] == ["cache-too-small"]
    assert "words" not in attempts[0]
    assert "8192" not in json.dumps(attempts[0])
    assert attempts[1]["adjustments"][0]["value"] == 4000
    assert "secret-token" not in host.passport().decode()
    assert json.loads(host.passport())["attempts"] == attempts


def test_an_endpoint_that_serves_at_once_has_one_attempt(host):
    [only] = host.switched(fake())["passport"]["attempts"]
    assert (only["outcome"], only["findings"], only["adjustments"]) == ("proven", [], [])


def test_an_answer_that_is_wrong_is_no_start_that_failed(host):
    failed = host.switch(fake("--fault", "garbage"), signatures=[ROW])
    assert failed["failed"] is True
    assert "attempt" not in failed


def test_an_engine_that_is_late_and_works_is_told_from_one_that_waits(host):
    busy = "exec('while 1: pass')"
    late = plan(free_port(), [sys.executable, "-c", busy], start_timeout_s=2)
    assert [one["id"] for one in host.switch(late, signatures=[LATE])["attempt"]["findings"]] == [
        "late"]
    waits = host.switch(fake("--fault", "loading", start_timeout_s=2), signatures=[LATE])
    assert waits["attempt"]["findings"] == []


def test_a_canary_that_does_not_start_tells_it_too(host):
    host.switched(fake())
    failed = host.switch(fake(), trial=host.trial(dying()), signatures=[ROW])
    assert "The canary is not served" in failed["msg"]
    assert [one["id"] for one in failed["attempt"]["findings"]] == ["cache-too-small"]
    assert failed["attempt"]["trial"] is True


def test_what_was_measured_of_a_plan_stays_with_it(host):
    of = fake()
    host.switched(of)
    file = host.folder / "passport.json"
    file.write_text(json.dumps(dict(json.loads(file.read_text()), benchmark={"at": "then"})))
    host.service.follow("chat", anew=True)
    definition = host.service.files("chat")[0]
    with open(definition, "a") as text:
        text.write("\n")
    assert host.switched(of)["passport"]["benchmark"] == {"at": "then"}
    assert "benchmark" not in host.switched(fake())["passport"]
    assert host.back()["passport"]["benchmark"] == {"at": "then"}


def split(**how):
    """A plan of vLLM over two devices."""
    return {**fake(**how), "engine": "vllm", "gpus": ["GPU-1", "GPU-2"],
            "command": {"env": {"A": "1"}}}


def test_devices_that_do_not_reach_each_other_are_found_before_the_engine(host, monkeypatch):
    old = fake()
    host.switched(old)
    asked = []

    def check(of, env, container, api):
        asked.append((of["gpus"], env, container))
        return SAID

    monkeypatch.setattr(collective, "check", check)
    failed = host.switch(split(), signatures=[{**ROW, "engines": ["vllm"]}])
    assert "do not reach each other" in failed["msg"]
    assert "What served before is back" in failed["msg"]
    assert [one["id"] for one in failed["attempt"]["findings"]] == ["cache-too-small"]


def test_one_device_is_not_asked(host, monkeypatch):
    monkeypatch.setattr(collective, "check", lambda *_: "asked all the same")
    assert host.switched(fake())["verdict"]["passed"] is True


def test_what_a_proof_cannot_ask_is_said_before_anything_is_ended(host):
    old = fake()
    host.switched(old)
    failed = host.switch(fake(), proof={"floors": {"chat": {"speed": 1}}})
    assert "endpoint_smoke_floors.chat" in failed["msg"]
    assert host.chat()["plan"] == old["hash"]


def test_a_floor_that_is_missed_goes_back(host):
    old = fake()
    host.switched(old)
    failed = host.switch(fake(), proof={"floors": {"chat": {"tokens_per_second": 1e12}}})
    assert "tokens_per_second" in failed["msg"]
    assert "What served before is back" in failed["msg"]
