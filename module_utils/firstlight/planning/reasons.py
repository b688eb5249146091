# SPDX-License-Identifier: Apache-2.0
"""The sentences of a plan: why it is so, and for a refusal what would work."""

from __future__ import annotations

import posixpath
import shlex
from typing import Any, Dict, List, Optional, Tuple

from ..findings import Finding, finding
from . import memory, parallelism, placement, releases
from .health import size
from .placement import Device, Engine, Placement
from .requests import Request

Model = Dict[str, Any]
Row = Dict[str, Any]

# As many devices as a server has at most; more are several hosts.
ONE_HOST = 8


def refusal(request: Request, id: str, key: str, found: str, wanted: str,  # noqa: A002
            remedy: str = "", needs_root: bool = False) -> Finding:
    """A finding that says why there is no plan; ``key`` is that of the request."""
    subject = "%s.%s" % (request["where"], key) if key else request["where"]
    return finding("plan-" + id, subject, found, wanted, remedy or "change " + subject,
                   needs_root=needs_root)


# Why a plan is so.


def of_layout(placed: Placement, device: Device, model: Model, kernel: Optional[Row]) -> str:
    """How the model lies on the devices."""
    layout, weights = placed.layout, size(placed.fixed.weights)
    if layout.devices == 1:
        return "%s holds %s of weights and the cache." % (
            "One device" if device.capability else "RAM", weights)
    if layout.stages == 1:
        return "Tensor parallel %d: every layer is split over %d devices, %s of weights each." % (
            layout.tensor_parallel, layout.devices, weights)
    if layout.tensor_parallel == 1:
        return "The layers lie on %d devices, one part after the other, %s of weights each." % (
            layout.stages, weights)
    return "Tensor parallel %d times pipeline parallel %d on %d devices: %s." % (
        layout.tensor_parallel, layout.stages, layout.devices,
        parallelism.objection(model, kernel, layout.devices) or "as asked")


def of_context(asked: Any, context: int, trained: Optional[int], placed: Placement,
               device: Device, learned: Optional[int] = None) -> str:
    """Why the context is as long as it is."""
    if asked != "auto":
        why = "as asked"
    elif context == learned:
        why = "more did not start"
    elif context == trained:
        why = "all that the model was trained for"
    elif context == (placement.AUTO_CONTEXT_GPU if device.capability
                     else placement.AUTO_CONTEXT_CPU):
        why = "what auto gives on a %s%s" % (
            "GPU" if device.capability else "CPU",
            "; ask for more to get it" if placed.fits > context else "")
    else:
        why = "the most that fits in memory with a margin of %s for error" % size(
            placed.error_bytes)
    return "%d tokens of context: %s." % (context, why)


def of_more_devices(model: Model, device: Device, engine: Engine, placed: Placement,
                    context: int, wanted: int) -> List[str]:
    """What more devices of the kind would give, where the context had to be cut."""
    if context >= wanted or device.alone:
        return []
    for layout in parallelism.larger(engine.row["engine"], model, engine.kernel,
                                     placed.layout.devices):
        better = max((placement.place(model, device, engine, layout, settings, wanted)
                      for settings in placement.batches(model, device, engine)),
                     key=lambda one: one.fits)
        if better.fits >= wanted:
            return ["Short of the %d tokens that auto wants: %d such devices (%s) would give them, "
                    "and are recommended." % (wanted, layout.devices, _words(layout))]
    return []


def _words(layout: memory.Layout) -> str:
    return "tensor parallel %d" % layout.tensor_parallel if layout.stages == 1 else (
        "%d parts of layers" % layout.stages)


def of_memory(placed: Placement, engine: Engine, unreckoned: List[str]) -> str:
    """How the memory was reckoned."""
    words = "Memory %s" % (
        "as observed in its last passport" if placed.observed else
        "reckoned, within %s of each device" % size(placed.error_bytes))
    if engine.vllm:
        words += ", for batches of %d tokens and %d sequences" % (
            placed.settings.batched_tokens, placed.settings.sequences)
    if placed.step > 1:
        words += ", with a cache of whole GiB"
    if unreckoned:
        words += ", and without what %s may change of it" % " ".join(unreckoned)
    return words + "."


def of_start(start: Dict[str, Any]) -> str:
    """How long the start takes."""
    if start["seen"]:
        return "Start: about %d s, as the last one took; given up after %d s." % (
            start["expected_s"], start["limit_s"])
    return ("Start: about %d s (%d s to read the model at %s, %d s to compile%s), given up after "
            "%d s." % (start["expected_s"], start["read_s"],
                       "the measured rate" if start["measured_disk"] else "an assumed 100 MiB/s",
                       start["compile_s"], " from its cache" if start["cached"] else "",
                       start["limit_s"]))


# Why there is none.


def no_release(request: Request, facts: Dict[str, Any], state: Dict[str, Any], model: Model,
               target: releases.Target, catalog: Dict[str, Any],
               against: List[Tuple[Row, str, str]]) -> Finding:
    """No release of the catalog will do: what is against each, and what would work."""
    # Of releases that nobody asked for there is nothing to say, unless there are no others.
    told = [one for one in against if "is asked for" not in one[2]] or [
        one for one in against if one[1] == "engine_version"] or against
    grouped: Dict[Tuple[str, str], List[str]] = {}
    for row, _, why in told:
        grouped.setdefault((row["engine"], why), []).append(
            " ".join(part for part in (row["version"], row["variant"]) if part))
    keys = {key for _, key, _ in told}
    return refusal(
        request, "no-engine", keys.pop() if len(keys) == 1 else "engine",
        found="; ".join("%s %s %s" % (engine, ", ".join(versions), why)
                        for (engine, why), versions in grouped.items()) or "an empty catalog",
        wanted="a release of the catalog that serves %s (%s) on %s, %s" % (
            model["format"], model["quantisation"], target.name, facts["cpu"]["architecture"]),
        remedy=_what_would_work(request, facts, state, model, target, catalog))


def _what_would_work(request: Request, facts: Dict[str, Any], state: Dict[str, Any], model: Model,
                     target: releases.Target, catalog: Dict[str, Any]) -> str:
    """The nearest changes that would make a plan: of the request, of the model, of the driver."""
    where = request["where"]
    free = {**request, "engine": "auto", "runtime": "auto", "engine_version": "auto",
            "engine_python": None, "engine_binary": None, "image": None}
    words = ["%s.%s: auto" % (where, key) for key in ("engine", "engine_version", "runtime")
             if request[key] != "auto"]
    words += ["no %s.%s" % (where, key) for key in ("engine_python", "engine_binary", "image")
              if request[key]]

    def title(changed: Model, at: releases.Target = target, drivers: Any = facts,
              asked: Request = free) -> str:
        try:
            return releases.title(releases.choose(asked, drivers, state, changed, at, catalog).row)
        except releases.NoRelease:
            return ""

    ways = []
    other = title(model)
    if other:
        ways.append("%s takes %s" % (" and ".join(words), other))
    if model["format"] != "gguf":
        as_gguf = {**model, "format": "gguf"}
        row = _counterpart(request, catalog)
        named = ": %s in %s is one; the plan does not take it by itself" % (
            row["file"], row["counterpart"]) if row else ""
        gguf = title(as_gguf)
        if gguf:
            ways.append("%s.model: a GGUF of it, which %s serves here%s" % (where, gguf, named))
        elif target.kind == "gpu" and title(as_gguf, releases.ON_CPU):
            ways.append("%s.model: a GGUF of it%s, with %s.gpus: 0 on the CPU" % (
                where, named, where))
    elif target.kind == "gpu" and not other and title(model, releases.ON_CPU):
        ways.append("%s.gpus: 0 serves on the CPU" % where)
    if target.kind == "gpu" and not other and facts["driver"] and facts["driver"]["version"]:
        driver = {**facts, "driver": {"version": "99999"}}
        # What is asked for, where that is all it lacks.
        newer = title(model, drivers=driver, asked=request) or title(model, drivers=driver)
        if newer:
            ways.append("a newer driver: then %s serves it" % newer)
    return "; or ".join(ways)


def _counterpart(request: Request, catalog: Dict[str, Any]) -> Optional[Row]:
    """The catalog's GGUF of a repository; of a path by its last part."""
    name = posixpath.basename(request["model"].rstrip("/")).lower()
    for row in catalog["gguf_counterparts"]:
        repository = row["repository"].lower()
        if str(request["repo_id"]).lower() == repository or (
                request["model_kind"] == "path" and name == posixpath.basename(repository)):
            return dict(row)
    return None


def several_nodes(request: Request, model: Model, device: Device, engine: Engine,
                  count: int) -> Finding:
    """More devices than the host has."""
    key = "gpus" if request["gpus"] != "auto" else "tensor_parallel"
    found = "%d devices, and this host has %d of %s" % (count, device.available, device.title)
    if not engine.vllm:
        return refusal(request, "too-few-devices", key, found, "what this host has")
    return refusal(request, "several-nodes", key, found,
                   "devices of one host: several hosts are not built yet",
                   "take at most %d, or run it by hand on %s" % (
                       device.available, _by_hand(model, device, engine, count)))


def _by_hand(model: Model, device: Device, engine: Engine, count: int) -> str:
    """The commands that would run it on several hosts."""
    nodes = -(-count // device.available)
    split = max((one for one in range(1, device.available + 1)
                 if device.available % one == 0
                 and not parallelism.objection(model, engine.kernel, one)), default=1)
    command = "vllm serve %s --tensor-parallel-size %d --pipeline-parallel-size %d" % (
        shlex.quote(model["path"]), split, max(1, nodes * device.available // split))
    return ("%d hosts: `%s --nnodes %d --node-rank R --master-addr ADDRESS` on each (`--headless` "
            "on all but the first), or in a Ray cluster `%s --distributed-executor-backend ray`"
            % (nodes, command, nodes, command))


def no_layout(request: Request, model: Model, engine: Engine, counts: List[int],
              device: Device) -> Finding:
    """The devices cannot be shared out as asked."""
    split = request["tensor_parallel"]
    if not engine.vllm:
        return refusal(request, "no-layout", "tensor_parallel", "%s, and llama.cpp puts layers on "
                       "devices one after the other" % split, "auto or 1")
    tried = split if split != "auto" else max(counts)
    why = parallelism.objection(model, engine.kernel, tried) or (
        "%d is no part of %d devices" % (tried, max(counts)))
    free = request["gpus"] in ("auto", "all")
    good = [one for one in range(1, (device.available if free else max(counts)) + 1)
            if (free or max(counts) % one == 0)
            and not parallelism.objection(model, engine.kernel, one)]
    return refusal(request, "no-layout", "tensor_parallel" if split != "auto" else "gpus", why,
                   "one of %s" % ", ".join(map(str, good)))


def does_not_fit(request: Request, model: Model, device: Device, engine: Engine,
                 placed: Placement, context: int, trained: Optional[int]) -> Finding:
    """Memory does not hold it, or the model was not trained for it."""
    fixed, most, count = placed.fixed, placed.fits, placed.layout.devices
    too_long = bool(trained) and most == trained
    per_token = placed.cache.layer_bytes * (placed.cache.full_layers + placed.cache.window_layers)
    found = ("%s tokens; on each of %d x %s with %s for an engine: weights %s, the engine itself "
             "%s, each token up to %.4g KiB, margin %s" % (
                 context or "no", count, device.title, size(device.usable_bytes),
                 size(fixed.weights), size(fixed.total - fixed.weights), per_token / 1024,
                 size(placed.error_bytes)))
    remedy = ""
    if not most:
        remedy = "serve a smaller model: this one leaves no room for a context"
        for layout in parallelism.larger(engine.row["engine"], model, engine.kernel, count):
            if not device.alone and placement.place(
                    model, device, engine, layout, placed.settings,
                    trained or placement.AUTO_CONTEXT_GPU).fits:
                remedy += ", or give it %d such devices (%s)" % (layout.devices, _words(layout))
                if engine.vllm and layout.devices > max(device.available, ONE_HOST):
                    remedy += "; beyond one host that is by hand, on %s" % _by_hand(
                        model, device, engine, layout.devices)
                break
    return refusal(
        request, "context-beyond-model" if too_long else "does-not-fit", "context", found,
        "at most %d tokens%s" % (most, ", as the model was trained" if too_long else ""), remedy)
