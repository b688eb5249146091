# SPDX-License-Identifier: Apache-2.0
"""What two real H200 did: the plan for them, and the run of it, as its passport recorded both."""

from __future__ import annotations

import json
from pathlib import Path

import planner
import pytest

PASSPORT = json.loads(
    (Path(__file__).parents[1] / "fixtures/h200/passport_tp2.json").read_text())


def planned():
    """What is planned for the recorded host and request now."""
    asked = {key: value for key, value in PASSPORT["plan"]["asked"].items() if value is not None}
    return planner.only(planner.plan(PASSPORT["facts"], {
        "model": "canary", "engine": "vllm", "engine_version": "0.24.0", "gpus": 2,
        "tensor_parallel": 2, "engine_python": asked["engine_python"]}))


def test_the_host_is_planned_for_as_it_was():
    plan, recorded = planned(), PASSPORT["plan"]
    for key in ("tensor_parallel", "pipeline_parallel", "gpus", "utilisation", "context",
                "sequences", "batched_tokens"):
        assert plan[key] == recorded[key], key


def test_what_was_predicted_is_what_vllm_then_had():
    predicted, observed = planned()["memory"], PASSPORT["memory"]["observed"]
    assert predicted["kv_tokens"] == pytest.approx(observed["kv_tokens"], rel=0.01)
    assert predicted["kv_bytes"] == pytest.approx(observed["kv_bytes"], rel=0.01)
