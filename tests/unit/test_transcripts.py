# SPDX-License-Identifier: Apache-2.0
"""What a machine's tools said is recorded as it was and replayed through our own runner."""

from __future__ import annotations

import sys

import pytest
import record_transcript
import yaml
from transcripts import FIXTURES, Replay, calls_of, said

from ansible.module_utils.firstlight import runner
from ansible.module_utils.firstlight.runner import run

FOLLOW = "debian12-systemd/systemctl-follow-there.yml"
STOP = ["systemctl", "stop", "firstlight-chat.service"]


@pytest.fixture
def tape(monkeypatch):
    """A replay that ends when the test says so."""

    def start(*sources, ordered=False):
        one = Replay(*sources, ordered=ordered)
        monkeypatch.setattr(runner, "subprocess", one)
        monkeypatch.setattr(runner, "_said", said)
        return one

    return start


def test_a_recorded_call_answers_as_often_as_it_is_asked(replay):
    asked = replay("h200/nvidia-smi.yml")
    assert run(["nvidia-smi", "-L"]) == run(["nvidia-smi", "-L"])
    ran = run(["nvidia-smi", "-L"])
    assert ran.ok
    assert ran.stdout.startswith("GPU 0: NVIDIA H200 (UUID: GPU-")
    assert asked.made == [["nvidia-smi", "-L"]] * 3
    assert run(["nvidia-smi", "--query-gpu=no.such.field", "--format=csv"]).rc == 2


def test_a_missing_program_and_one_that_never_answers_are_the_runners_errors(replay):
    replay("debian12/tools.yml")
    assert run(["nvidia-smi", "-L"]).error == "cannot be started: No such file or directory"
    assert run(["sleep", "900"], timeout_s=7).error == "no answer within 7 s"


def test_a_made_up_call_takes_the_place_of_a_recorded_one(replay):
    replay("h200/nvidia-smi.yml",
           {"argv": ["nvidia-smi", "-L"], "rc": 9, "stderr": "no devices"})
    assert run(["nvidia-smi", "-L"]).complaint() == "nvidia-smi -L (exit 9): no devices"
    assert run(["nvidia-smi", "--version"]).ok


def test_of_two_transcripts_the_later_one_counts(replay):
    replay(FOLLOW, "debian12-systemd/systemctl-refused.yml")
    assert run(STOP).rc == 4
    replay(FOLLOW, FOLLOW)
    assert run(STOP).rc == 0


def test_a_call_that_was_not_recorded_says_what_was_and_how_to_record_it(tape):
    asked = tape("debian12/tools.yml")
    wanted = (r"nvidia-smi -q\n.*not recorded.*debian12/tools\.yml:\n  nvidia-smi -L\n"
              r"(.|\n)*record_transcript\.py tests/fixtures/debian12/tools\.yml -- nvidia-smi -q")
    with pytest.raises(AssertionError, match=wanted):
        run(["nvidia-smi", "-q"])
    with pytest.raises(AssertionError, match=wanted):
        asked.finish()  # whoever swallowed the first one gets it again


def test_in_order_every_call_is_made_once_and_in_its_place(replay):
    asked = replay(FOLLOW, ordered=True)
    for call in calls_of(FOLLOW):
        assert run(call["argv"]).rc == call["rc"]
    assert asked.made == [call["argv"] for call in calls_of(FOLLOW)]


def test_in_order_a_call_out_of_its_place_fails(tape):
    tape(FOLLOW, ordered=True)
    with pytest.raises(AssertionError, match="Call 1 should be `systemctl daemon-reload`"):
        run(STOP)


def test_in_order_a_call_too_many_fails(tape):
    tape({"argv": STOP, "rc": 0}, ordered=True)
    run(STOP)
    with pytest.raises(AssertionError, match="Call 2 should be none"):
        run(STOP)


def test_in_order_a_call_that_is_never_made_fails_at_the_end(tape):
    asked = tape(FOLLOW, ordered=True)
    run(["systemctl", "daemon-reload"])
    with pytest.raises(AssertionError, match="not made:\n  systemctl stop(.|\n)*start --no-block"):
        asked.finish()


def test_in_order_the_same_call_may_answer_differently(replay):
    states = [{"argv": ["state"], "rc": 0, "stdout": said} for said in "ab"]
    replay(*states, ordered=True)
    assert [run(["state"]).stdout for _ in states] == ["a", "b"]


def test_without_an_order_a_transcript_with_two_answers_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("transcripts.FIXTURES", tmp_path)
    for _ in range(2):
        record_transcript.record(tmp_path / "two.yml", ["true"], "a test", again=True)
    with pytest.raises(AssertionError, match="two.yml holds `true` more than once"):
        Replay("two.yml")
    assert Replay("two.yml", ordered=True)


@pytest.mark.parametrize("text", [
    "one line", "two\nlines\n", "", "\n", "a\n\n\n", " first\n  second \n\tthird\t\n", "\t\n x\n",
    "\x1b[4mGPU0\x1b[0m\n", "ümlaut ✓\n", "a\r\nb\n", "- no: yaml\n...\n---\n", "  \n \n",
])
def test_what_is_recorded_is_what_is_replayed(monkeypatch, tmp_path, tape, text):
    monkeypatch.setattr("transcripts.FIXTURES", tmp_path)
    argv = [sys.executable, "-c", "import sys; sys.stdout.buffer.write(%r); sys.exit(3)"
            % text.encode()]
    record_transcript.record(tmp_path / "new.yml", argv, "a test")
    real = run(argv)
    tape("new.yml")
    assert run(argv) == real
    assert (real.rc, real.stdout) == (3, text)


def test_what_has_tabs_and_spaces_at_the_end_is_recorded_as_a_block():
    transcript = {"machine": "x", "calls": [
        {"argv": ["t"], "rc": 0, "stdout": "a\tb \n\tc\n", "stderr": ""}]}
    assert "    stdout: |\n      a\tb \n      \tc\n" in record_transcript.text_of(transcript)


def test_the_recorder_keeps_failures_and_refuses_what_would_mislead(tmp_path):
    file = tmp_path / "new.yml"
    with pytest.raises(SystemExit, match="--machine"):
        record_transcript.record(file, ["true"])
    record_transcript.record(file, ["/nonexistent/tool"], "a test")
    record_transcript.record(file, ["sleep", "900"], timeout_s=0.1)
    assert yaml.safe_load(file.read_text())["calls"] == [
        {"argv": ["/nonexistent/tool"], "cannot_start": "ENOENT"},
        {"argv": ["sleep", "900"], "times_out": True}]
    with pytest.raises(SystemExit, match="holds `/nonexistent/tool` already"):
        record_transcript.record(file, ["/nonexistent/tool"])
    file.write_text(file.read_text().replace("system: ", "system: another "))
    with pytest.raises(SystemExit, match="take another file"):
        record_transcript.record(file, ["true"])


# Logs of engines are nothing that was said to a call: test_engine_log.py reads them.
LOGS = ("-log", "-logs")


@pytest.mark.parametrize("file", sorted(
    file for file in FIXTURES.glob("*/*.yml")
    if not file.stem.endswith(LOGS) and file.parent.name not in ("logs", "text")
), ids=lambda file: "%s/%s" % (file.parent.name, file.stem))
def test_every_transcript_says_where_it_is_from_and_is_written_by_the_recorder(file):
    transcript = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert tuple(transcript) == record_transcript.HEADER
    assert all(transcript.values())
    for call in transcript["calls"]:
        assert set(call) in ({"argv", "rc", "stdout", "stderr"}, {"argv", "cannot_start"},
                             {"argv", "times_out"})
    assert record_transcript.text_of(transcript) == file.read_text(encoding="utf-8")
