# SPDX-License-Identifier: Apache-2.0
"""The ways in which a model can lie on a number of devices."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

from .memory import Layout

Model = Dict[str, Any]
Kernel = Dict[str, Any]


def layouts(engine: str, model: Model, kernel: Optional[Kernel], devices: int,
            tensor_parallel: Optional[int] = None) -> List[Layout]:
    """Every way onto exactly that many devices, best first; or those with this tensor parallel.

    vLLM splits every layer over all of them where that divides (tensor parallel); else it splits
    each layer over some and puts the layers one after the other (pipeline parallel). llama.cpp
    puts layers one after the other.
    """
    if engine == "llama_cpp":
        found = [Layout(1, devices)]
    else:
        found = [Layout(split, devices // split) for split in range(devices, 0, -1)
                 if devices % split == 0 and not objection(model, kernel, split)]
    return [layout for layout in found if layout.stages <= model["geometry"]["layers"]
            and tensor_parallel in (None, layout.tensor_parallel)]


def objection(model: Model, kernel: Optional[Kernel], split: int) -> str:
    """Why the layers cannot be split over that many devices; empty where they can.

    vLLM's own checks: heads by its model config, key heads by QKVParallelLinear, shapes by the
    kernels of the quantisation.
    """
    shape = model["geometry"]
    heads, kv_heads = shape["heads"], shape["kv_heads"]
    if heads % split:
        return "%d does not divide its %d attention heads" % (split, heads)
    if not shape["kv_lora_rank"] and kv_heads % split and split % kv_heads:
        return "%d and its %d key heads do not divide each other" % (split, kv_heads)
    for name, width in _widths(shape):
        if width % split:
            return "%d does not divide its %s of %d" % (split, name, width)
        multiple = _multiple(model, kernel)
        if split > 1 and width // split % multiple:
            return "a split in %d leaves %d of its %s of %d, and %s needs multiples of %d" % (
                split, width // split, name, width, model["quantisation"], multiple)
    return ""


def _widths(shape: Dict[str, Any]) -> List[Tuple[str, int]]:
    """What is split: the inputs of the second matrices of attention and MLP, along which groups
    run."""
    found = [("attention width", shape["heads"] * shape["value_head_dim"])]
    if shape["intermediate"] and (not shape["experts"] or shape["dense_layers"]):
        found.append(("MLP width", shape["intermediate"]))
    if shape["experts"] and shape["moe_intermediate"]:
        found.append(("experts' width", shape["moe_intermediate"]))
    return found


def _multiple(model: Model, kernel: Optional[Kernel]) -> int:
    """What a share must be a multiple of: the model's own group, else what the kernel needs."""
    if kernel is None or kernel["input_multiple"] == 1:
        return 1
    return int(model["quantisation_group"] or kernel["input_multiple"])


def larger(engine: str, model: Model, kernel: Optional[Kernel], least: int) -> List[Layout]:
    """Ways onto more devices than there are, for a sentence on what would do."""
    return [layout for count in (2, 4, 8, 16, 32) if count > least
            for layout in layouts(engine, model, kernel, count)[:1]
            if layout.stages == 1 or engine == "llama_cpp"]
