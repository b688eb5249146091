# SPDX-License-Identifier: Apache-2.0
"""What an engine recorded of itself: taken from where it may write, read, judged, summed up."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import os
import shutil
import stat
import time
from typing import Any, Dict, Iterator, List, Tuple

from . import passport, trace
from .endpoint import Endpoint, NotServing, Plan
from .findings import Finding, finding, text
from .runner import run

READ_S = 300
"""How long traces are read."""
TOP = 30
"""How many names are told; the others are one."""
KEPT = "profile"
"""Where what was recorded lies for whoever fetches it, under the folder of the endpoint."""
MOST_TRACES = 64
PIECE = 2**20
NSYS_REPORTS = ("cuda_gpu_kern_sum", "gpukernsum")
"""The table of kernels, as newer and older releases call it."""


class Unprofiled(NotServing):
    """Nothing was recorded that can be used; the findings say why."""

    def __init__(self, findings: List[Finding]) -> None:
        super().__init__("Nothing was recorded.\n%s" % text(findings))
        self.findings = findings


def told(endpoint: Endpoint, plan: Plan, recorded: Dict[str, Any]) -> Dict[str, Any]:
    """Copy what was recorded to where only we write, read it, and judge it.

    :raises Unprofiled: there is nothing, or nothing of the engine's work, in it.
    """
    profile = plan["profile"]
    into = os.path.join(endpoint.folder, KEPT)
    remove_folder(into)
    os.makedirs(into, mode=0o755)
    deadline = time.monotonic() + READ_S
    if profile["profiler"] == "nsys":
        traces, summary, found = _of_nsys(plan, into)
    else:
        traces, summary, found = _of_torch(endpoint, plan, into, deadline)
    return {
        "at": passport.now(), "endpoint": endpoint.name, "plan": profile["of"],
        "variant": plan["hash"], "engine": plan["engine"],
        "engine_version": plan["engine_version"], "profiler": profile["profiler"],
        "graphs": profile["graphs"], "requests": profile["requests"],
        "prompt_tokens": profile["prompt_tokens"], "output_tokens": profile["output_tokens"],
        "iterations": profile["iterations"] if profile["bounded"] else None,
        "traces": traces, **summary,
        **{key: recorded[key] for key in ("start_s", "requests_s", "stop_s", "memory_bytes",
                                          "disk_bytes")},
        "findings": recorded["findings"] + found,
    }


def _of_torch(endpoint: Endpoint, plan: Plan, into: str, deadline: float) -> Tuple[
        List[Dict[str, Any]], Dict[str, Any], List[Finding]]:
    where = "endpoint %s" % endpoint.name
    traces: List[Dict[str, Any]] = []
    read: List[trace.Trace] = []
    found: List[Finding] = []
    for name, source in _regular(plan["profile"]["folder"], (".json", ".json.gz")):
        file = os.path.join(into, "trace-%d.json.gz" % len(traces))
        with source:
            _pack(source, file, plan["profile"]["limits"]["disk_bytes"])
        one = {"name": trace_title(name), "file": os.path.basename(file),
               "bytes": os.path.getsize(file), "events": 0}
        traces.append(one)
        # What the API server's process does is no work of the model.
        if "async_llm" in name.lower():
            continue
        try:
            with open(file, "rb") as again:
                read.append(trace.read(again, deadline))
        except trace.Broken as problem:
            found.append(finding(
                "trace-broken", where, "%s is no trace: %s" % (one["name"], problem),
                "what PyTorch's profiler writes", "look at the log of the engine, and at the disk "
                "of the host", severity="warning"))
            continue
        one["events"] = read[-1].events
        if not read[-1].whole:
            found.append(finding(
                "trace-cut", where, "of %s %d events were counted, and not all" % (
                    trace_title(name), read[-1].events), "a trace that is read in whole",
                "record less: endpoint_profile_iterations, endpoint_profile_requests",
                severity="warning"))
    _judge(where, plan, traces, read, found)
    device = trace.merged(one.device for one in read)
    host = trace.merged(one.host for one in read)
    return traces, {
        "device": trace.top(device, TOP), "host": trace.top(host, TOP),
        "span_s": round(max(one.span_us for one in read) / 1e6, 6),
        "busy_s": round(max(one.busy_us for one in read) / 1e6, 6) if device else None,
        "graph_launches": sum(one.graph_launches for one in read),
    }, found


def trace_title(name: str) -> str:
    """The name that an engine gave a trace, without what could move a cursor or a path."""
    return "".join(one if one.isalnum() and one.isascii() or one in "._-" else "_"
                   for one in name)[:120]


def _judge(where: str, plan: Plan, traces: List[Dict[str, Any]], read: List[trace.Trace],
           found: List[Finding]) -> None:
    """Whether the engine's work is in what was recorded.

    :raises Unprofiled: it is not.
    """
    if not traces:
        raise Unprofiled([*found, finding(
            "trace-missing", where, "no trace in %s" % plan["profile"]["folder"],
            "one of each process that computes, written by %s" % plan["profile"]["stop"],
            "see that the disk is not full and that whoever runs the engine may write there; then "
            "look at the log of the engine")])
    if sum(one.kernels for one in read):
        return
    works = sum(one.operators for one in read)
    if not works:
        raise Unprofiled([*found, finding(
            "trace-empty", where, "no operator and no kernel in %d traces" % len(traces),
            "work of the model between %s and %s" % (
                plan["profile"]["start"], plan["profile"]["stop"]),
            "see that requests were answered in between: only the engine's own profiler sees its "
            "work. Where its log has `External init callback must run in same thread as "
            "registerClient`, Kineto was set up in another thread: try another release of PyTorch",
            source="https://docs.vllm.ai/en/v0.32.0/contributing/profiling/")])
    if plan["gpus"]:
        raise Unprofiled([*found, finding(
            "trace-without-kernels", where,
            "%d operators of the host and no kernel of a device" % works,
            "kernels: the engine runs on %d GPUs" % len(plan["gpus"]),
            "end what else records on them (dcgm-exporter with profiling metrics, nsys): CUPTI "
            "serves one at a time; in a container allow it to whoever is not root "
            "(NVreg_RestrictProfilingToAdminUsers=0)",
            source="https://developer.nvidia.com/ERR_NVGPUCTRPERM")])


def _of_nsys(plan: Plan, into: str) -> Tuple[
        List[Dict[str, Any]], Dict[str, Any], List[Finding]]:
    traces: List[Dict[str, Any]] = []
    tables: List[Dict[str, trace.Times]] = []
    for name, source in _regular(plan["profile"]["folder"], (".nsys-rep",)):
        file = os.path.join(into, "trace-%d.nsys-rep" % len(traces))
        with source, open(file, "wb") as copy:
            shutil.copyfileobj(source, copy, PIECE)
        tables.append(_kernels(plan["command"]["argv"][0], file))
        traces.append({"name": trace_title(name), "file": os.path.basename(file),
                       "bytes": os.path.getsize(file),
                       "events": sum(one.calls for one in tables[-1].values())})
    device = trace.merged(tables)
    if not device:
        raise Unprofiled([finding(
            "trace-empty" if traces else "trace-missing", "endpoint %s" % plan["name"],
            "no kernel in %d reports of nsys" % len(traces),
            "kernels between %s and %s" % (plan["profile"]["start"], plan["profile"]["stop"]),
            "look at the log of the engine: nsys says there why it did not record")])
    return traces, {"device": trace.top(device, TOP), "host": [], "span_s": None, "busy_s": None,
                    "graph_launches": None}, []


def _kernels(nsys: str, file: str) -> Dict[str, trace.Times]:
    """The kernels of a report, by nsys's own table of them."""
    for name in NSYS_REPORTS:
        ran = run([nsys, "stats", "--report", name, "--format", "csv", "--force-export=true",
                   "--output", "-", file], timeout_s=READ_S)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file[:-len(".nsys-rep")] + ".sqlite")
        times = kernel_table(ran.stdout) if ran.ok else {}
        if times:
            return times
    return {}


def kernel_table(said: str) -> Dict[str, trace.Times]:
    """What ``nsys stats`` prints of kernels, as times by name; empty where it is no such table."""
    lines = said.splitlines()
    begin = next((at for at, line in enumerate(lines) if "Total Time (ns)" in line), None)
    times: Dict[str, trace.Times] = {}
    if begin is None:
        return times
    for row in csv.DictReader(io.StringIO("\n".join(lines[begin:]))):
        with contextlib.suppress(KeyError, TypeError, ValueError):
            took = float(row["Total Time (ns)"]) / 1000
            times[row["Name"][:trace.MAX_NAME]] = trace.Times(int(row["Instances"]), took, took)
    return times


def _regular(folder: str, ends: Tuple[str, ...]) -> Iterator[Tuple[str, Any]]:
    """The files of a folder that an engine may write into, opened: no links, and not too many."""
    found = 0
    with contextlib.suppress(OSError):
        # By its handle: a link that is put in its place leads nowhere else.
        above = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            for name in sorted(os.listdir(above)):
                if not name.endswith(ends) or found >= MOST_TRACES:
                    continue
                file = _opened(name, above)
                if file is not None:
                    found += 1
                    yield name, file
        finally:
            os.close(above)


def _opened(name: str, above: int) -> Any:
    """A file of a folder, opened; ``None`` for what is none."""
    try:
        # What waits for a writer is not waited for.
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=above)
    except OSError:
        return None
    file = os.fdopen(handle, "rb")
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return file
    file.close()
    return None


def _pack(source: Any, file: str, most: int) -> None:
    """Copy a trace, packed with gzip; not more of it than a limit that it may have outgrown."""
    packed = source.read(2) == b"\x1f\x8b"
    source.seek(0)
    with contextlib.ExitStack() as opened:
        copy: Any = opened.enter_context(open(file, "wb"))
        if not packed:
            copy = opened.enter_context(
                gzip.GzipFile(fileobj=copy, mode="wb", compresslevel=5, mtime=0))
        taken = 0
        while taken < most:
            piece = source.read(PIECE)
            if not piece:
                return
            taken += len(piece)
            copy.write(piece)


def remove_folder(folder: str) -> None:
    """Remove a folder that an engine may write into, or the link that it put in its place."""
    if os.path.islink(folder) or os.path.isfile(folder):
        os.unlink(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)
