# SPDX-License-Identifier: Apache-2.0
"""What of a model's weights lies on one device."""

from __future__ import annotations

from typing import Any, Dict, List

Model = Dict[str, Any]

# PyTorch takes what is larger than the first from the driver in multiples of the second
# (c10/cuda/CUDACachingAllocator.h: kMinLargeAlloc, kRoundLarge).
LARGE_BYTES = 10 * 2**20
ROUND_BYTES = 2 * 2**20
PLAIN = ("BF16", "F16", "F32", "bf16", "f16", "f32")


def vllm_bytes(model: Model, tensor_parallel: int, stages: int) -> int:
    """Bytes on the device that has most, as vLLM splits them.

    Every matrix is split by ``tensor_parallel``, the layers by ``stages``; each device has the
    table of rotary embeddings, and where there are more devices than key heads they have copies.
    """
    shape = model["geometry"]
    whole = model["bytes"] // 2 if model["quantisation"] in ("F32", "f32") else model["bytes"]
    ends = [end * whole // model["bytes"] for end in _ends(model)]
    layers = whole - sum(ends)
    part = layers * -(-shape["layers"] // stages) // shape["layers"] + (
        sum(ends) if stages == 1 else max(ends))
    rounding = _rounding(shape, tensor_parallel) if model["quantisation"] in PLAIN else 0
    return int(part // tensor_parallel + _rotary_bytes(shape)
               + (_copies(shape, tensor_parallel) + rounding) // stages)


def llama_cpp_bytes(model: Model, stages: int) -> int:
    """Bytes on a GPU: the input embedding stays in RAM, unless it is the output's too."""
    embedding, head = _ends(model)
    on_gpus = model["bytes"] - (embedding if head else 0)
    layers = model["geometry"]["layers"]
    last = head or embedding
    return int((on_gpus - last) * -(-layers // stages) // layers + last)


def _ends(model: Model) -> List[int]:
    """Bytes of the input embedding and of the output's own, 0 where it has none of its own."""
    tensors = model.get("tensors")
    if tensors:
        return [tensors["embedding_bytes"], tensors["head_bytes"]]
    shape = model["geometry"]
    tables = 1 if shape["tied_embeddings"] else 2
    one = min(shape["vocabulary"] * shape["hidden"] * 2, model["bytes"] // (tables + 1))
    return [one, one if tables == 2 else 0]


def _rotary_bytes(shape: Dict[str, Any]) -> int:
    """Cosines and sines of every position, in 16 bits."""
    return int((shape["context"] or 0) * (shape["rope_head_dim"] or shape["head_dim"]) * 2)


def _copies(shape: Dict[str, Any], tensor_parallel: int) -> int:
    """Keys' and values' matrices beyond a fair share, where a key head is on several devices."""
    if shape["kv_lora_rank"] or tensor_parallel <= shape["kv_heads"]:
        return 0
    fair = shape["kv_heads"] / tensor_parallel
    size = (shape["head_dim"] + shape["value_head_dim"]) * shape["hidden"] * 2
    return int((1 - fair) * size * shape["layers"])


def _rounding(shape: Dict[str, Any], tensor_parallel: int) -> int:
    """What the allocator adds to the layers' matrices."""
    hidden, heads = shape["hidden"], shape["heads"] / tensor_parallel
    query = heads * shape["head_dim"]
    keys = max(1, shape["kv_heads"] / tensor_parallel)
    sizes = [(query + keys * (shape["head_dim"] + shape["value_head_dim"])) * hidden,
             heads * shape["value_head_dim"] * hidden]
    width, experts = shape["intermediate"], 1
    if shape["experts"]:
        width, experts = shape["moe_intermediate"], shape["experts"]
    width = (width or 0) / tensor_parallel * experts
    sizes += [2 * width * hidden, width * hidden]
    return sum(-int(size * 2) % ROUND_BYTES for size in sizes
               if size * 2 > LARGE_BYTES) * int(shape["layers"])
