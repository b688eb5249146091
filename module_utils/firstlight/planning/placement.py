# SPDX-License-Identifier: Apache-2.0
"""On how many devices a model lies, how, and with how long a context."""

from __future__ import annotations

import math
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from . import kv, memory, parallelism
from .memory import Fixed, Layout, Settings

Model = Dict[str, Any]
Row = Dict[str, Any]
Seen = Dict[Tuple[Layout, Settings], Dict[str, Any]]
"""What was observed of an engine, by how it lies on devices and by its batch."""

# Share of all RAM that one CPU engine may plan with; the rest is the system's and the page
# cache's. Of the total, not of what is free now: a plan must not change with the load.
SHARE_OF_RAM = 0.8
# A longer context costs time and memory that few want by default; ask for it to get it.
AUTO_CONTEXT_CPU = 8192
AUTO_CONTEXT_GPU = 131072
CONTEXT_STEP = 256
# vLLM on a CPU takes its cache in whole GiB (VLLM_CPU_KVCACHE_SPACE, vllm/platforms/cpu.py).
CPU_CACHE_STEP = 2**30
# A smaller batch leaves more for the context; taken where the release's own leaves too little.
SMALL_BATCH = (2048, 256)


class Device(NamedTuple):
    """The kind of device that a model is placed on."""

    title: str
    limit_bytes: int
    """All that there is of one for CUDA, or for an engine on the CPU."""
    usable_bytes: int
    """What of it one engine may have: less where the memory is the host's."""
    capability: str
    """Empty for a CPU."""
    shared: bool
    """Its memory is the host's."""
    available: int
    """How many there are to choose from."""
    alone: bool = False
    """It cannot work together with others: a slice of a split GPU, a CPU."""


class Placement(NamedTuple):
    """One way to place a model, and what comes of it on each device."""

    layout: Layout
    settings: Settings
    fixed: Fixed
    cache: kv.Cache
    utilisation: Optional[float]
    """vLLM's share of the device."""
    room: int
    """What is left for the cache."""
    error_bytes: int
    fits: int
    """The longest context that is sure to fit, in tokens."""
    observed: bool
    step: int = 1
    """The cache is as large as is needed, in multiples of so many bytes."""


class Engine(NamedTuple):
    """What of the release and the request decides a placement."""

    row: Row
    kernel: Optional[Row]
    costs: memory.Costs
    flags: Dict[str, str]
    """Values of the user's own flags that memory depends on."""
    eager: bool
    seen: Seen
    """Memory that was observed."""
    name: str
    """Of the device, as NVML gives it."""

    @property
    def vllm(self) -> bool:
        """Whether it is vLLM; else it is llama.cpp."""
        return bool(self.row["engine"] == "vllm")

    @property
    def in_share(self) -> bool:
        """Whether it takes a share of a device, and its cache is what that leaves."""
        return bool(self.row["memory_utilisation"])


def placements(model: Model, device: Device, engine: Engine, counts: List[int],
               split: Optional[int], most: int) -> Iterator[Placement]:
    """Every placement on these counts of devices, those first that split every layer."""
    found = [layout for count in counts
             for layout in parallelism.layouts(engine.row["engine"], model, engine.kernel, count,
                                               split)[:1]]
    if engine.vllm:
        found.sort(key=lambda layout: (layout.stages > 1, layout.devices, layout.stages))
    for layout in found:
        for settings in batches(model, device, engine):
            yield place(model, device, engine, layout, settings, most)


def place(model: Model, device: Device, engine: Engine, layout: Layout, settings: Settings,
          most: int, share: Optional[float] = None) -> Placement:
    """What comes of one layout and one size of batch.

    :param most: bounds the context, in tokens.
    :param share: vLLM's share of the device, where it is not to be chosen.
    """
    costs = engine.costs
    step = 1
    if engine.in_share:
        fixed = memory.vllm(model, layout, settings, costs)
    elif engine.vllm:
        fixed, step = memory.vllm_on_cpu(model, settings, costs), CPU_CACHE_STEP
    else:
        fixed = memory.llama_cpp(model, layout, settings, costs, bool(device.capability))
    seen = engine.seen.get((layout, settings))
    known = memory.observed(fixed, seen, int(device.limit_bytes * seen["utilisation"]),
                            device.limit_bytes) if seen else None
    fixed = known or fixed
    if engine.in_share:
        share = share or _share(fixed, device, engine)
        room = int(device.limit_bytes * share) - fixed.in_share
    else:
        share = None
        room = device.usable_bytes - fixed.total
    error = int(device.limit_bytes * _error_share(device, engine, known is not None))
    cache = memory.cache_of(engine.row["engine"], model, layout, settings, costs)
    fits = kv.largest_context(cache, (room - error) // step * step, most)
    return Placement(layout, settings, fixed, cache, share, room, error,
                     fits if fits == most else fits // CONTEXT_STEP * CONTEXT_STEP,
                     known is not None, step)


def _share(fixed: Fixed, device: Device, engine: Engine) -> float:
    """vLLM's share of the device: the release's own, less where more is needed beside it."""
    beside = fixed.outside + engine.costs["slack_bytes"]
    # In steps that the command line shows whole.
    return float(max(0.0, min(
        float(engine.row["memory_utilisation"]),
        math.floor((device.usable_bytes - beside) / device.limit_bytes * 1000) / 1000)))


def _error_share(device: Device, engine: Engine, seen: bool) -> float:
    measured = engine.row["measured"] and (
        not device.capability or device.capability in engine.costs["measured_capabilities"])
    return float(engine.costs["error_share" if measured or seen else "error_share_unmeasured"])


def batches(model: Model, device: Device, engine: Engine) -> List[Settings]:
    """The release's own size of batch, and a smaller one; as the user's flags say where they do."""
    flags = engine.flags
    types = (flags.get("key_type", "auto"), flags.get("value_type", "auto"))
    second = engine.vllm and bool(
        {model["geometry"]["architecture"], "*"} & set(engine.row["second_runner"]))
    if engine.vllm:
        default = _batch_defaults(device, engine)
    else:
        default = (engine.costs["batched_tokens"], engine.costs["sequences"])
    sizes = [default]
    if engine.vllm and default > SMALL_BATCH:
        sizes.append(SMALL_BATCH)
    chosen = [_as_asked(flags, *size) for size in sizes]
    plain = flags.get("flash_attention") == "off"
    profiled = engine.row["cudagraph_profiled"]
    return [Settings(tokens, sequences, *types, engine.eager, plain, second, profiled)
            for tokens, sequences in dict.fromkeys(chosen)]


def _as_asked(flags: Dict[str, str], tokens: int, sequences: int) -> Tuple[int, int]:
    """The batch with what the user's flags say; it holds a token of every sequence at least."""
    if "batched_tokens" in flags:
        tokens = int(flags["batched_tokens"])
        sequences = min(sequences, tokens)
    if "sequences" in flags:
        sequences = int(flags["sequences"])
        tokens = max(tokens, sequences)
    return tokens, sequences


def _batch_defaults(device: Device, engine: Engine) -> Tuple[int, int]:
    """What the API server of the release takes on such a device (vllm/engine/arg_utils.py)."""
    for row in engine.row["batch_defaults"]:
        if (device.limit_bytes >= row["minimum_memory_gib"] * 2**30
                and not any(name in engine.name.lower() for name in row["except_names"])
                and device.capability not in row["except_capabilities"]):
            return row["batched_tokens"], row["sequences"]
    return SMALL_BATCH


def choose(found: List[Placement], wanted: int, everything: bool) -> Placement:
    """The first that gives the wanted context; else the one that gives most.

    :param everything: as many devices as can be had, rather than as few as will do.
    """
    if everything:
        most = max(one.layout.devices for one in found)
        found = [one for one in found if one.layout.devices == most]
    for one in found:
        if one.fits >= wanted:
            return one
    # Where none gives any, the largest tells best what is missing.
    return max(found, key=lambda one: (one.fits, one.layout.devices if one.fits < 1 else 0))


def memory_of(made: Placement, context: int, device: Device) -> Dict[str, Any]:
    """The breakdown of a plan, in bytes for each device."""
    fixed = made.fixed
    if made.utilisation is None:
        kv_bytes = -(-kv.sequence_bytes(made.cache, context) // made.step) * made.step
        tokens = context if made.step == 1 else kv.pool_tokens(made.cache, kv_bytes, context)
    else:
        kv_bytes = made.room
        tokens = kv.pool_tokens(made.cache, made.room, context)
    layers = made.cache.full_layers or made.cache.window_layers
    return {
        "weights_bytes": fixed.weights, "kv_bytes": kv_bytes,
        "activation_bytes": fixed.activation, "graph_bytes": fixed.graphs,
        "context_bytes": fixed.context, "total_bytes": fixed.total + kv_bytes,
        "limit_bytes": device.usable_bytes, "error_bytes": made.error_bytes, "kv_tokens": tokens,
        "kv_bytes_per_token": layers * made.cache.layer_bytes, "largest_context": made.fits,
        "source": "observed" if made.observed else "computed",
    }
