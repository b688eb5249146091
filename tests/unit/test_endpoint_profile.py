# SPDX-License-Identifier: Apache-2.0
"""A profile ends with what served back, by the same passport, whatever goes wrong."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import sys
import types

import endpoint_profile
import pytest
import yaml
from endpoint_host import guard_of, healthy, other_run, plan
from supervised import free_port, kill, until

from ansible.module_utils.firstlight import (
    processes,
    profile_traces,
    profiler,
)
from ansible.module_utils.firstlight.planning import profiling

ENGINE = pathlib.Path(__file__).parents[1] / "rig" / "profiled_engine.py"
CATALOG = pathlib.Path(__file__).parents[2] / "catalog"
DIALECTS = yaml.safe_load((CATALOG / "profiler_dialects.yml").read_text())
SIGNATURES = [row for row in yaml.safe_load((CATALOG / "log_signatures.yml").read_text())
              if row["id"].startswith("profiler-")]


def served(host, fault="none", **changes):
    """Have an endpoint serve by an engine that has this fault when it is profiled."""
    port = free_port()
    argv = [sys.executable, str(ENGINE), "--port", str(port), "--profile-fault", fault]
    made = plan(port, argv)
    cache = os.path.join(host.root, "cache", "vllm-x")
    os.makedirs(cache)
    made.update({
        "engine": "vllm", "engine_version": "0.33.0", "cache": cache, "port": port, "flags": [],
        "extra_args": [], "context": 512, "sequences": 8, "public_url": made["url"],
        "command": {"argv": argv, "env": {"PYTHONUNBUFFERED": "1"}}, **changes})
    result = host.switched(made)
    assert result["passport"]["plan"]["hash"] == made["hash"]
    return result["passport"]["plan"]


def variant(host, made, **settings):
    found = profiling.profile_plan(made, host.root, DIALECTS, {
        "consent": True, "disk_bytes": 2**24, "request_timeout_s": 20.0, **settings})
    assert found["plan"], found["findings"]
    return found["plan"]


def params(host, made, **settings):
    return {"name": "chat", "root": host.root, "plan": variant(host, made, **settings),
            "supervisord": host.supervisord, "signatures": SIGNATURES}


def profile(host, made, how=None, **settings):
    return host.run_module(endpoint_profile.main, **{
        **params(host, made, **settings), **(how or {})})


def is_back(host, made, kept):
    """What served serves: its passport, its definition, its engine and nothing else."""
    chat = host.chat()
    assert (chat["plan"], chat["healthy"], chat["strays"]) == (made["hash"], True, [])
    assert host.passport() == kept
    assert host.service.files("chat")[0] in host.disk()
    assert not os.path.exists(os.path.join(made["cache"], "profile"))
    assert host.journals() == []
    return True


def test_it_is_recorded_and_what_served_is_back(host):
    made = served(host)
    kept, definition = host.passport(), pathlib.Path(host.service.files("chat")[0]).read_bytes()
    result = profile(host, made)
    assert result["changed"] is True
    assert result["verdict"]["passed"] is True
    assert result["recovered"] is False
    assert is_back(host, made, kept)
    assert pathlib.Path(host.service.files("chat")[0]).read_bytes() == definition
    told = result["profile"]
    assert told == json.loads((host.folder / "profile.json").read_text())
    assert (told["plan"], told["profiler"], told["graphs"]) == (made["hash"], "torch", False)
    assert [one["name"] for one in told["host"]] == ["aten::mm", "aten::add", "aten::linear"]
    assert (told["device"], told["busy_s"], told["span_s"]) == ([], None, 0.00022)
    [one] = told["traces"]
    assert (one["file"], one["name"], one["events"]) == (
        "trace-0.json.gz", "rank0.1.pt.trace.json", 3)
    packed = (host.folder / "profile" / one["file"]).read_bytes()
    assert packed[:2] == b"\x1f\x8b"
    assert len(packed) == one["bytes"]
    # Kineto's line is told as what it is.
    assert [one["severity"] for one in told["findings"]] == ["info"]
    again = profile(host, made)
    assert again["profile"]["variant"] == told["variant"]
    assert is_back(host, made, kept)


def test_kernels_of_a_device_are_told_and_how_long_it_worked(host):
    told = profile(host, served(host, "kernels"))["profile"]
    assert [(one["name"], one["calls"]) for one in told["device"]] == [("gemm", 1), ("copy", 1)]
    # Both streams are one device: what they do at once counts once.
    assert told["busy_s"] == 0.00008
    assert told["traces"][0]["events"] == 5


def test_check_mode_says_what_would_be_started_again_and_touches_nothing(host):
    made = served(host)
    was, pids = host.disk(), host.pids()
    told = profile(host, made, {"check": True})
    assert told["changed"] is True
    assert told["reasons"] == [
        "chat is started again with a profiler, and then as it is (vllm 0.33.0)"]
    assert (host.disk(), host.pids()) == (was, pids)


@pytest.mark.parametrize(("fault", "id_", "says"), [
    ("no-paths", "profiler-not-set", "HTTP 404"),
    ("refuses", "profiler-refused", "HTTP 500"),
    ("no-trace", "trace-missing", "no trace in"),
    ("a-link", "trace-missing", "no trace in"),
    ("no-work", "trace-empty", "no operator and no kernel in 1 traces"),
    ("no-json", "trace-broken", "it has no events of a trace"),
    ("dies", "profile-request", "while it is recorded"),
])
def test_what_goes_wrong_is_explained_and_what_served_is_back(host, fault, id_, says):
    made = served(host, fault)
    kept = host.passport()
    failed = profile(host, made)
    assert failed["failed"] is True
    assert id_ in [one["id"] for one in failed["findings"]]
    assert says in failed["msg"]
    assert "What served before is back on %s." % made["url"] in failed["msg"]
    assert is_back(host, made, kept)
    assert not (host.folder / "profile.json").exists()


def test_an_engine_that_does_not_start_with_the_profiler_is_explained_by_its_log(host):
    made = served(host, "no-start")
    kept = host.passport()
    failed = profile(host, made)
    assert "torch_profiler_dir is only applicable when profiler is set to" in failed["msg"]
    assert "What served before is back" in failed["msg"]
    assert is_back(host, made, kept)


@pytest.mark.parametrize(("fault", "limits", "id_"), [
    ("too-much", {"disk_bytes": 2**21}, "profile-limit-disk"),
    ("hangs", {"seconds": 2}, "profile-limit-time"),
])
def test_a_limit_that_is_met_while_it_writes_ends_it(host, fault, limits, id_):
    made = served(host, fault)
    kept = host.passport()
    failed = profile(host, made, **limits)
    assert [one["id"] for one in failed["findings"]] == [id_]
    assert is_back(host, made, kept)


def test_a_limit_that_is_met_while_it_records_stops_it_and_what_was_recorded_counts(host):
    made = served(host, "grows")
    kept = host.passport()
    result = profile(host, made, memory_bytes=2**26)
    assert "profile-limit-memory" in [one["id"] for one in result["profile"]["findings"]]
    assert result["profile"]["memory_bytes"] > 2**26
    assert is_back(host, made, kept)


@contextlib.contextmanager
def recording(host, made):
    """The module in a process of its own, which has come to the writing of what it recorded."""
    asked = params(host, made)
    with other_run(types.SimpleNamespace(params=lambda _: asked), None,
                   endpoint_profile.main) as run:
        until((pathlib.Path(made["cache"]) / "hung").exists)
        yield run


def test_a_worker_that_is_killed_in_the_middle_leaves_what_served(host):
    made = served(host, "hangs")
    kept = host.passport()
    with recording(host, made) as run:
        [worker] = processes.children(guard_of(host))
        os.kill(worker, signal.SIGKILL)
        run.join(60)
        assert run.exitcode == 1
    assert is_back(host, made, kept)


def test_when_all_of_it_is_killed_the_next_run_puts_back_and_records(host):
    made = served(host, "hangs-once")
    kept = host.passport()
    with recording(host, made) as run:
        guard = guard_of(host)
        run.kill()
        for one in [guard, *processes.children(guard)]:
            kill(one)
    assert host.chat()["half_done"] is True
    again = profile(host, made)
    assert again["reasons"][0] == "an earlier change of it was ended in the middle"
    assert again["recovered"] is True
    assert is_back(host, made, kept)


def test_a_run_that_only_looks_now_and_then_is_told_how_far_it_is_and_the_result(host):
    made = served(host)
    how = {"run": "4711", "wait_s": 0.0}
    first = profile(host, made, how)
    assert (first["finished"], first["changed"]) == (False, False)
    assert isinstance(first["progress"], dict)

    def asked():
        result = profile(host, made, how)
        return result if result["finished"] else None

    assert until(asked, 60)["profile"]["endpoint"] == "chat"


@pytest.mark.parametrize("how", ["absent", "other", "stopped"])
def test_what_does_not_serve_by_its_passport_is_not_touched(host, how):
    made = served(host)
    asked = params(host, made)
    if how == "absent":
        host.remove()
    elif how == "other":
        asked["plan"]["profile"]["of"] = "f" * 64
    else:
        os.unlink(host.service.files("chat")[0])
        host.service.follow("chat")
    was = host.disk()
    failed = host.run_module(endpoint_profile.main, **asked)
    assert failed["failed"] is True
    assert {"absent": "it has no passport", "other": "does not serve by the plan",
            "stopped": "is not as its passport says"}[how] in failed["msg"]
    assert host.disk() == was


def test_a_folder_outside_of_our_caches_is_not_emptied(host, tmp_path):
    made = served(host)
    asked = params(host, made)
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "precious").write_text("x")
    asked["plan"]["profile"]["folder"] = str(tmp_path / "profile")
    kept = host.passport()
    failed = host.run_module(endpoint_profile.main, **asked)
    assert "which is not in a folder of" in failed["msg"]
    assert (tmp_path / "profile" / "precious").exists()
    assert is_back(host, made, kept)


def test_no_room_on_the_disk_and_no_nsys_are_said_before_anything_is_ended(host, monkeypatch):
    made = served(host)
    pids = host.pids()
    failed = profile(host, made, disk_bytes=2**60)
    assert [one["id"] for one in failed["findings"]] == ["profile-disk"]
    asked = params(host, made)
    asked["plan"]["profile"]["profiler"] = "nsys"
    asked["plan"]["command"]["argv"] = ["no-such-nsys", "profile"]
    failed = host.run_module(endpoint_profile.main, **asked)
    assert [one["id"] for one in failed["findings"]] == ["nsys-missing"]
    assert host.pids() == pids
    assert healthy(made["url"])


# What nsys recorded.

STATS = """Processing [/x/trace-0.sqlite] with [cuda_gpu_kern_sum.py]...

Time (%),Total Time (ns),Instances,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Name
75.0,3000000,30,100000.0,1.0,1,1,0.1,"void gemm<float, 4>(int)"
25.0,1000000,10,100000.0,1.0,1,1,0.1,norm
not,a,row
"""


def test_the_table_of_nsys_is_read():
    times = profile_traces.kernel_table(STATS)
    assert times == {"void gemm<float, 4>(int)": (30, 3000.0, 3000.0), "norm": (10, 1000.0, 1000.0)}
    assert profile_traces.kernel_table("SKIPPED: it does not contain CUDA kernel data.") == {}


def test_reports_of_nsys_are_kept_and_summed_up(tmp_path):
    nsys = tmp_path / "nsys"
    nsys.write_text("#!/bin/sh\ncat <<'END'\n%sEND\n" % STATS)
    nsys.chmod(0o755)
    folder, into = tmp_path / "profile", tmp_path / "into"
    folder.mkdir()
    into.mkdir()
    (folder / "trace.1.nsys-rep").write_bytes(b"report")
    made = {"name": "chat", "command": {"argv": [str(nsys)]}, "profile": {
        "folder": str(folder), "start": "/start_profile", "stop": "/stop_profile"}}
    traces, summary, found = profile_traces._of_nsys(made, str(into))
    assert traces == [{"name": "trace.1.nsys-rep", "file": "trace-0.nsys-rep", "bytes": 6,
                       "events": 40}]
    assert [one["name"] for one in summary["device"]] == ["void gemm<float, 4>(int)", "norm"]
    assert (found, (into / "trace-0.nsys-rep").read_bytes()) == ([], b"report")
    nsys.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(profile_traces.Unprofiled, match="trace-empty"):
        profile_traces._of_nsys(made, str(into))


def test_a_trace_of_a_gpu_without_kernels_is_no_profile_of_it():
    made = {"gpus": ["GPU-1"], "profile": {"folder": "/x", "start": "/a", "stop": "/b"}}
    from ansible.module_utils.firstlight import trace

    one = trace.Trace(5, True, {"aten::mm": trace.Times(1, 1.0, 1.0)}, {}, 1.0, 0.0, 0, 5, 0)
    with pytest.raises(profile_traces.Unprofiled, match="trace-without-kernels"):
        profile_traces._judge("endpoint chat", made, [{}], [one], [])
    profile_traces._judge("endpoint chat", made, [{}], [one._replace(kernels=1)], [])
    profile_traces._judge("endpoint chat", {**made, "gpus": []}, [{}], [one], [])


def test_the_guard_waits_longer_than_all_limits_together():
    limits = {"seconds": 1800}
    asked = {"plan": {"engine": "vllm", "gpus": [], "start_timeout_s": 600,
                      "profile": {"limits": limits}}, "request_timeout_s": 120.0}
    assert profiler.limit_s(asked) > 2 * 600 + 1800 + profile_traces.READ_S
