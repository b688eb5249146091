# SPDX-License-Identifier: Apache-2.0
"""How much cache a token of context needs, and how many tokens some memory holds."""

from __future__ import annotations

from typing import Any, Dict, NamedTuple, Tuple

Geometry = Dict[str, Any]

# Bits of an element of the cache by the name that the engine's flag has for its type.
# llama.cpp's block types carry a scale for every 32 elements (ggml/src/ggml-common.h).
ELEMENT_BITS: Dict[str, float] = {
    "auto": 16, "f16": 16, "bf16": 16, "float16": 16, "bfloat16": 16, "f32": 32,
    "fp8": 8, "fp8_e4m3": 8, "fp8_e5m2": 8,
    "q8_0": 8.5, "q5_1": 6, "q5_0": 5.5, "q4_1": 5, "q4_0": 4.5, "iq4_nl": 4.5,
}


class Cache(NamedTuple):
    """The cache of one device."""

    full_layers: int
    """Layers that keep every token."""
    window_layers: int
    """Layers that keep the tokens of a window."""
    window_tokens: int
    """What a window layer keeps at most, those of the batch in flight included."""
    layer_bytes: int
    """Bytes of one token in one layer."""
    state_bytes: int
    """What a sequence keeps whatever its length (Mamba, linear attention)."""
    block: int
    """Tokens that are given out together."""
    grouped: bool
    """vLLM gives window and full layers blocks of one size, so its groups are filled up."""
    token_bytes: int = 0
    """What the engine's buffers need beside for each token of the context (llama.cpp's mask)."""


def cache(geometry: Geometry, tensor_parallel: int, stages: int, key_bits: float,
          value_bits: float, block: int, in_flight: int, grouped: bool) -> Cache:
    """The cache of the device that has most of it.

    :param geometry: as ``model_info`` describes it, complete.
    :param stages: how many parts the layers are split into, one after the other.
    :param in_flight: tokens of a batch, which a window layer keeps beside its window.
    """
    if geometry["kv_lora_rank"]:
        # One latent for keys and values, and it is not split over devices.
        elements = geometry["kv_lora_rank"] + geometry["rope_head_dim"]
        layer_bytes = int(elements * key_bits / 8)
    else:
        heads = max(1, geometry["kv_heads"] // tensor_parallel)
        layer_bytes = int(heads * (geometry["head_dim"] * key_bits
                                   + geometry["value_head_dim"] * value_bits) / 8)
    # What is not known to be over a window keeps everything.
    window_layers = (geometry["sliding_layers"] or 0) if geometry["sliding_window"] else 0
    full_layers = geometry["attention_layers"] - window_layers
    window = (geometry["sliding_window"] or 1) - 1 + in_flight
    return Cache(-(-full_layers // stages), -(-window_layers // stages), window, layer_bytes,
                 geometry["state_bytes_per_sequence"] // tensor_parallel // stages, block, grouped)


def sequence_bytes(shape: Cache, tokens: int) -> int:
    """What one sequence of that many tokens needs."""
    full, window = _blocks(shape, tokens)
    return (shape.state_bytes + (full + window) * shape.block * shape.layer_bytes
            + tokens * shape.token_bytes)


def _blocks(shape: Cache, tokens: int) -> Tuple[int, int]:
    """Blocks of one layer that all full and all window layers need."""
    full = -(-tokens // shape.block)
    if not shape.window_layers:
        return full * shape.full_layers, 0
    kept = -(-min(shape.window_tokens, tokens) // shape.block)
    if not shape.grouped:
        return full * shape.full_layers, kept * shape.window_layers
    # vLLM's groups have as many layers as the smaller kind (kv_cache_utils.py), the last of each
    # kind filled up; a window that does not begin with a block touches one more.
    kinds = [count for count in (shape.full_layers, shape.window_layers) if count]
    group = max(kinds) if max(kinds) < 1.25 * min(kinds) else min(kinds)
    return (full * -(-shape.full_layers // group) * group,
            (kept + 1) * -(-shape.window_layers // group) * group)


def pool_tokens(shape: Cache, room: int, context: int) -> int:
    """Tokens that a pool of ``room`` bytes holds, as the engine counts them: in sequences of
    ``context`` tokens."""
    if room <= 0 or context <= 0:
        return 0
    if not shape.window_layers and not shape.state_bytes:
        block = shape.block * shape.full_layers * shape.layer_bytes
        return room // block * shape.block
    return int(room / sequence_bytes(shape, context) * context)


def largest_context(shape: Cache, room: int, most: int) -> int:
    """The longest sequence that ``room`` bytes hold, at most ``most`` tokens; 0 when none."""
    low, high = 0, max(0, most)
    while low < high:
        middle = (low + high + 1) // 2
        if sequence_bytes(shape, middle) <= room:
            low = middle
        else:
            high = middle - 1
    return low
