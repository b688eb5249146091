# SPDX-License-Identifier: Apache-2.0
"""One shape for everything worth saying, and one way to print it."""

from __future__ import annotations

import pytest

from ansible.module_utils.firstlight import findings

KEYS = {"id", "severity", "subject", "found", "wanted", "evidence", "remedy", "needs_root",
        "source"}


def one(severity="error", **changes):
    return {**findings.finding("port-held", "chat.port", "pid 7 holds it", "a free port",
                               "change chat.port", severity=severity), **changes}


def test_a_finding_has_the_contracts_keys_and_stops_a_run_by_default():
    assert set(one()) == KEYS
    assert one()["severity"] == "error"
    assert one()["needs_root"] is False


def test_a_severity_that_does_not_exist_is_an_error():
    with pytest.raises(ValueError, match="critical"):
        one("critical")


def test_errors_and_worse_stop_a_run_in_their_order():
    every = [one(severity, subject=severity) for severity in findings.SEVERITIES]
    assert [each["subject"] for each in findings.blocking(reversed(every))] == ["fatal", "error"]
    assert findings.blocking([]) == []


def test_the_text_says_everything_that_is_there_and_no_empty_line():
    assert findings.text([one(evidence="/proc/net/tcp", needs_root=True)]).splitlines() == [
        "[error] port-held: chat.port",
        "  found:    pid 7 holds it",
        "  wanted:   a free port",
        "  change:   change chat.port",
        "  evidence: /proc/net/tcp",
        "  needs root",
    ]
    assert "evidence" not in findings.text([one()])
    assert findings.text([]) == ""


def test_the_worst_comes_first_and_equals_keep_their_order():
    lines = findings.text([
        one("info", subject="a"), one("fatal", subject="b"), one("warning", subject="c"),
        one("fatal", subject="d"),
    ]).splitlines()
    assert [line[-1] for line in lines if line.startswith("[")] == ["b", "d", "c", "a"]


def test_what_a_terminal_would_obey_is_shown_instead():
    hostile = "nginx\x1b[2J\r\n[info] all is well\u2028\t."
    text = findings.text([one(subject="a\nb", found=hostile)])
    assert text.splitlines()[:3] == [
        "[error] port-held: a\\nb",
        "  found:    nginx\\x1b[2J\\r",
        "            [info] all is well\\u2028\t.",
    ]


def test_further_lines_stand_under_the_first():
    text = findings.text([one(evidence="first\nsecond\n")])
    assert "\n  evidence: first\n            second" in text
    assert not text.endswith("\n")
