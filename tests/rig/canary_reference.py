# SPDX-License-Identifier: Apache-2.0
"""A plain reference of the Llama forward pass, in float32 numpy, and ways to break or round it.

It reads the safetensors file that the canary's builder wrote and shares no code with it, so the two
agree only if both are right. No cache, no batching, no kernels: every position, every time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

import numpy as np

Array = Any  # a float32 numpy array
Weights = dict[str, Array]


def bfloat16(x: Array) -> Array:
    """Round float32 to the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def float16(x: Array) -> Array:
    """Round float32 to the nearest float16."""
    return x.astype(np.float16).astype(np.float32)


def q8_0(x: Array) -> Array:
    """Round to llama.cpp's Q8_0: blocks of 32 in a row, a float16 scale and signed bytes."""
    blocks = x.reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / 127
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    rounded = np.round(blocks * inverse) * float16(scale)
    return rounded.astype(np.float32).reshape(x.shape)


# By format: how its engines round a weight matrix, a matrix's input, and all else in between.
ROUNDING: dict[str, tuple[Callable[[Array], Array], ...]] = {
    "float32": (np.asarray, np.asarray, np.asarray),
    "bfloat16": (bfloat16, bfloat16, bfloat16),
    "float16": (float16, float16, float16),
    "q8_0": (q8_0, q8_0, float16),
}


def load(directory: Path) -> tuple[dict[str, Any], Weights]:
    """The configuration and the tensors of a Hugging Face model directory in bfloat16."""
    config = json.loads((directory / "config.json").read_text())
    data = (directory / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    weights = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        assert entry["dtype"] == "BF16", name
        first, last = entry["data_offsets"]
        halves = np.frombuffer(data[start + first : start + last], dtype="<u2")
        weights[name] = (halves.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])
    return config, weights


def logits(
    config: dict[str, Any],
    weights: Weights,
    ids: list[int],
    *,
    rounding: str = "float32",
    rope_base: float | None = None,
) -> Array:
    """The logits at every position of a sequence, as (positions, vocabulary).

    :param rounding: a key of ``ROUNDING``.
    :param rope_base: in place of the configuration's.
    """
    round_weight, round_input, round_rest = ROUNDING[rounding]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size, count = config["head_dim"], len(ids)
    base = rope_base or config["rope_theta"]

    def linear(x: Array, name: str) -> Array:
        return round_rest(round_input(x) @ round_weight(weights[name + ".weight"]).T)

    def norm(x: Array, name: str) -> Array:
        mean = np.mean(x * x, axis=-1, keepdims=True)
        scaled = round_rest(x / np.sqrt(mean + np.float32(config["rms_norm_eps"])))
        return round_rest(scaled * weights[name + ".weight"])

    frequencies = base ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    angles = np.arange(count)[:, None] * frequencies
    cosine, sine = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def rope(x: Array) -> Array:
        first, second = x[..., : size // 2], x[..., size // 2 :]
        turned = (first * cosine - second * sine, second * cosine + first * sine)
        return round_rest(np.concatenate(turned, axis=-1))

    def by_head(x: Array, number: int) -> Array:
        return x.reshape(count, number, size).swapaxes(0, 1)

    future = np.triu(np.full((count, count), -np.inf, dtype=np.float32), 1)
    x = round_weight(weights["model.embed_tokens.weight"])[ids]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        y = norm(x, f"{prefix}.input_layernorm")
        query = rope(by_head(linear(y, f"{prefix}.self_attn.q_proj"), heads))
        key = rope(by_head(linear(y, f"{prefix}.self_attn.k_proj"), kv_heads))
        value = by_head(linear(y, f"{prefix}.self_attn.v_proj"), kv_heads)
        key, value = (np.repeat(t, heads // kv_heads, axis=0) for t in (key, value))
        scores = query @ key.swapaxes(1, 2) / np.float32(np.sqrt(size)) + future
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        attention = round_rest(scores / scores.sum(axis=-1, keepdims=True))
        mixed = round_rest(attention @ value).swapaxes(0, 1).reshape(count, heads * size)
        x = round_rest(x + linear(mixed, f"{prefix}.self_attn.o_proj"))
        y = norm(x, f"{prefix}.post_attention_layernorm")
        gate = linear(y, f"{prefix}.mlp.gate_proj")
        gate = round_rest(gate / (1 + np.exp(-gate)))
        product = round_rest(gate * linear(y, f"{prefix}.mlp.up_proj"))
        x = round_rest(x + linear(product, f"{prefix}.mlp.down_proj"))
    return linear(norm(x, "model.norm"), "lm_head")


def greedy(
    config: dict[str, Any], weights: Weights, prompt: list[int], count: int, **options: Any
) -> tuple[list[int], list[float]]:
    """Continue a prompt by ``count`` tokens, each the most likely.

    :returns: the new ids, and for each the margin of its logit over the next best.
    """
    ids, margins = list(prompt), []
    for _ in range(count):
        last = logits(config, weights, ids, **options)[-1]
        second, first = np.argsort(last)[-2:]
        ids.append(int(first))
        margins.append(float(last[first] - last[second]))
    return ids[len(prompt) :], margins


def choices(
    config: dict[str, Any], weights: Weights, prompt: list[int], answer: list[int], **options: Any
) -> tuple[list[int], list[float]]:
    """What the model prefers at each step while it is led along ``answer``.

    The greedy continuation is ``answer`` exactly if every choice is; this asks for one pass only.

    :returns: the preferred ids, and the margins of ``answer``'s logits over the best other.
    """
    every = logits(config, weights, [*prompt, *answer[:-1]], **options)[len(prompt) - 1 :]
    steps = np.arange(len(answer))
    right = every[steps, answer]
    others = every.copy()
    others[steps, answer] = -np.inf
    return [int(i) for i in every.argmax(axis=-1)], [float(m) for m in right - others.max(axis=-1)]


def with_zeros(weights: Weights, *names: str) -> Weights:
    """The weights with every tensor zeroed whose name contains one of ``names``."""
    return {
        name: np.zeros_like(tensor) if any(part in name for part in names) else tensor
        for name, tensor in weights.items()
    }


def with_k_heads(config: dict[str, Any], weights: Weights, order: list[int]) -> Weights:
    """The weights with the K heads of every layer in another order."""
    changed = dict(weights)
    for name, tensor in weights.items():
        if "k_proj" in name:
            heads = tensor.reshape(config["num_key_value_heads"], config["head_dim"], -1)
            changed[name] = heads[order].reshape(tensor.shape)
    return changed


def without_shard(weights: Weights, rank: int, ranks: int) -> Weights:
    """The weights with what one tensor-parallel rank holds of the layers zeroed."""
    changed = dict(weights)
    for name, tensor in weights.items():
        if "_proj" not in name:
            continue
        axis = 1 if "o_proj" in name or "down_proj" in name else 0
        width = tensor.shape[axis] // ranks
        lost = slice(rank * width, (rank + 1) * width)
        changed[name] = tensor.copy()
        changed[name][(slice(None), lost) if axis else lost] = 0
    return changed


def without_vocabulary(weights: Weights, rank: int, ranks: int, name: str) -> Weights:
    """The weights with one rank's rows of ``embed_tokens`` or ``lm_head`` zeroed."""
    full = next(key for key in weights if name in key)
    rows = weights[full].shape[0] // ranks
    tensor = weights[full].copy()
    tensor[rank * rows : (rank + 1) * rows] = 0
    return {**weights, full: tensor}
