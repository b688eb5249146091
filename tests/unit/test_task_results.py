# SPDX-License-Identifier: Apache-2.0
"""What a task ended with, in the words that a person gets."""

from __future__ import annotations

import types

import pytest

from ansible.module_utils.firstlight import task_results

REFUSED = """No endpoint was touched. 1 refused:
[error] plan-no-engine: inference_endpoints[0] (chat).engine
  found:    vllm 0.33.0 needs driver 580, and this host has 470.82.01
  wanted:   an engine that runs on this host
  found:    another thing"""


def result(**said):
    return types.SimpleNamespace(
        result=said, task_fields={}, task=types.SimpleNamespace(no_log=False))


@pytest.mark.parametrize(("said", "told"), [
    (REFUSED, "No endpoint was touched. 1 refused: [error] plan-no-engine: "
              "inference_endpoints[0] (chat).engine "
              "found:    vllm 0.33.0 needs driver 580, and this host has 470.82.01"),
    ("It is not there.\nAnd that is all.", "It is not there."),
    ("", "no reason given")])
def test_a_reason_is_its_first_line_and_what_was_found(said, told):
    assert task_results.reason_of(result(msg=said)) == told


def test_the_whole_of_it_is_there_for_who_asks():
    assert task_results.reason_of(result(msg=REFUSED), whole=True) == REFUSED


@pytest.mark.parametrize(("name", "one"), [
    ("json", True), ("ansible.posix.jsonl", True), ("progress", False), ("default", False)])
def test_what_prints_one_document_gets_no_line_more(name, one):
    assert task_results.is_one_document(name) is one
