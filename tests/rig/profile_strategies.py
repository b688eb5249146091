# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies of profiles: what may be asked for, and what a host tells of one."""

from __future__ import annotations

from pathlib import Path

import strategies
import yaml
from hypothesis import strategies as st

DIALECTS = yaml.safe_load(
    (Path(__file__).parents[2] / "catalog" / "profiler_dialects.yml").read_text())
COUNTS = (st.integers(1, 64) | st.integers(-9, 10**6) | st.floats()
          | st.none() | st.booleans() | strategies.HOSTILE)
SETTINGS = st.fixed_dictionaries({"consent": st.just(True) | st.booleans()}, optional={
    "profiler": st.sampled_from(["torch", "nsys", "", "cuda"]), "stacks": st.booleans(),
    "nsys": st.sampled_from(["nsys", "/opt/x/nsys"]), "request_timeout_s": COUNTS,
    **dict.fromkeys(("requests", "prompt_tokens", "output_tokens", "iterations", "disk_bytes",
                     "memory_bytes", "seconds"), COUNTS)})
ROWS = st.lists(st.fixed_dictionaries({
    "name": strategies.HOSTILE, "calls": st.integers(0, 10**9), "self_s": st.floats(0, 1e6),
    "total_s": st.floats(0, 1e6), "share": st.floats(0, 1)}), max_size=20)
SECONDS = st.none() | st.floats(0, 1e6)
PROFILE = st.fixed_dictionaries({
    "endpoint": strategies.NAMES, "engine": strategies.HOSTILE,
    "engine_version": strategies.HOSTILE, "profiler": st.sampled_from(["torch", "nsys"]),
    "graphs": st.booleans(), "graph_launches": st.none() | st.integers(0, 999),
    "requests": st.integers(1, 64), "prompt_tokens": st.integers(1, 9999),
    "output_tokens": st.integers(1, 512), "iterations": st.none() | st.integers(1, 200),
    "traces": st.lists(st.fixed_dictionaries({"file": strategies.HOSTILE}), max_size=3),
    "device": ROWS, "host": ROWS, "span_s": SECONDS, "busy_s": SECONDS,
    "findings": st.lists(strategies.FINDINGS, max_size=2)})
PROFILES = st.dictionaries(strategies.NAMES, PROFILE, min_size=1, max_size=2)
