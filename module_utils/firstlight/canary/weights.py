# SPDX-License-Identifier: Apache-2.0
"""The canary's weights: the circuit that the package's docstring explains, in dense noise.

Every value is a small integer times a power of two, so bfloat16 and float16 hold the same numbers
and no byte depends on how a machine's libm rounds its last digit.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator
from typing import NamedTuple

from . import tokenizer

HIDDEN, INTERMEDIATE, LAYERS = 512, 512, 2
HEADS, KV_HEADS, HEAD_DIM = 16, 8, 64
CONTEXT = 2048
ROPE_BASE = 10000.0
NORM_EPSILON = 1e-5

BITS = 8
SHARD = INTERMEDIATE // BITS  # MLP columns of one bit: what one of eight ranks holds
FIRST, LAST = 0, 63  # the two columns in use of each run of 64: its ends, so that half a run shows

# The residual stream. Its 57 coordinates in use lie nine apart, over all of the hidden size.
CONSTANT = 0
TOKEN = range(9, 81, 9)  # the bits of the token that stands here
READ = (range(81, 225, 9), range(297, 441, 9))  # what each head of the layer brought here
RESULT = (range(225, 297, 9), range(441, 513, 9))  # the layer's eight products

# Whence a head reads, in tokens before this one, by layer and head. Those of layer 0 are long: a
# RoPE base off by a factor of two then lands on another token.
LOOKBACK = (
    tuple(8 + (1 - head) % 16 for head in range(HEADS)),
    tuple(1 + 7 * head % 16 for head in range(HEADS)),
)
LONGEST_LOOKBACK = max(LOOKBACK[0]) + max(LOOKBACK[1])
# How much of the lookback the key brings, the query the rest: differs by KV head, so that heads
# that change places read elsewhere.
KEY_SHARE = tuple(3 * head for head in range(KV_HEADS))
# RoPE pairs in use: fast enough to tell neighbours apart, slow enough to feel a change of base.
FREQUENCIES = range(2, 8)

CONSTANT_SIZE = 16.0
NOISE_STEP = 2.0**-16
_PHASE_STEP = 2.0**-7
_PHASE_SIZE = 1.125  # of a query and a key, per pair; the constant multiplies both by sixteen
_GATE = 4.0
_BIT_LOGIT = 6.0  # what a bit of the answer is worth in a word's logit
_DEFAULT_LOGIT = 2.0**-4  # per unit of the constant: decides a bit that never came
_OTHER_LOGIT = -1.0  # per unit of the constant: keeps tokens that are no words from winning


class Tensor(NamedTuple):
    """One tensor by its Hugging Face name: noise with ``entries`` set in it, or all ``uniform``."""

    name: str
    shape: tuple[int, ...]
    entries: dict[tuple[int, int], float]
    uniform: float | None = None
    rope_heads: int = 0  # rows are this many heads whose halves RoPE pairs up


def bit(code: int, index: int) -> float:
    """Bit ``index`` of a code as +1.0 or -1.0."""
    return 1.0 if code >> index & 1 else -1.0


def default(index: int) -> float:
    """What output bit ``index`` falls to when nothing decides it: +1.0 or -1.0."""
    return bit(0b01011010, index)


def phase(amount: float, frequency: int) -> tuple[float, float]:
    """A query or key that RoPE pair ``frequency`` turns by ``amount`` tokens, on the coarse grid.

    Returns the entries of the pair's first and second dimension.
    """
    angle = amount * ROPE_BASE ** (-2 * frequency / HEAD_DIM)
    size = _PHASE_SIZE / _PHASE_STEP
    return (
        round(size * math.cos(angle)) * _PHASE_STEP,
        round(size * math.sin(angle)) * _PHASE_STEP,
    )


def _positions(heads: int, amounts: tuple[int, ...]) -> dict[tuple[int, int], float]:
    """Query or key rows that are constant but for RoPE, ``amounts`` tokens off by head."""
    entries = {}
    for head in range(heads):
        for frequency in FREQUENCIES:
            row = head * HEAD_DIM + frequency
            cosine, sine = phase(amounts[head], frequency)
            entries[row, CONSTANT] = cosine
            entries[row + HEAD_DIM // 2, CONSTANT] = sine
    return entries


def _attention(layer: int) -> Iterator[Tensor]:
    source = TOKEN if layer == 0 else RESULT[0]
    lookback, read = LOOKBACK[layer], READ[layer]
    value, output = {}, {}
    for head in range(HEADS):
        kv_head, odd = divmod(head, 2)
        column = LAST if odd else FIRST
        row = kv_head * HEAD_DIM + column
        # The second head of a pair takes another bit, so that a fault spreads to other bits.
        value[row, source[(kv_head + 5 * odd) % BITS]] = 1.0
        value[row, CONSTANT] = 0.0  # sixteen times a weight's noise would be a bias
        output[read[head], head * HEAD_DIM + column] = 1.0
    # A pair's score goes with cos(frequency * (distance + query's turn - key's turn)), so it peaks
    # where the distance is the lookback.
    query = _positions(HEADS, tuple(KEY_SHARE[h // 2] - lookback[h] for h in range(HEADS)))
    key = _positions(KV_HEADS, KEY_SHARE)
    name = f"model.layers.{layer}.self_attn"
    rows, kv_rows = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    yield Tensor(f"{name}.q_proj.weight", (rows, HIDDEN), query, rope_heads=HEADS)
    yield Tensor(f"{name}.k_proj.weight", (kv_rows, HIDDEN), key, rope_heads=KV_HEADS)
    yield Tensor(f"{name}.v_proj.weight", (kv_rows, HIDDEN), value)
    yield Tensor(f"{name}.o_proj.weight", (HIDDEN, rows), output)


def _mlp(layer: int) -> Iterator[Tensor]:
    read, result = READ[layer], RESULT[layer]
    gate, up, down = {}, {}, {}
    for index in range(BITS):
        for column, sign in ((SHARD * index + FIRST, 1.0), (SHARD * index + LAST, -1.0)):
            gate[column, read[2 * index]] = sign * _GATE
            gate[column, CONSTANT] = 0.0
            up[column, read[2 * index + 1]] = sign
            up[column, CONSTANT] = 0.0
            down[result[index], column] = 1 / _GATE
    name = f"model.layers.{layer}.mlp"
    yield Tensor(f"{name}.gate_proj.weight", (INTERMEDIATE, HIDDEN), gate)
    yield Tensor(f"{name}.up_proj.weight", (INTERMEDIATE, HIDDEN), up)
    yield Tensor(f"{name}.down_proj.weight", (HIDDEN, INTERMEDIATE), down)


def _norm(name: str, signals: int) -> Tensor:
    """The norm before which the constant and ``signals`` coordinates of +-1 are in the stream.

    Its weight undoes the division, so that what is +-1 in the stream is about +-1 behind the norm.
    """
    size = math.sqrt((CONSTANT_SIZE**2 + signals) / HIDDEN)
    return Tensor(name, (HIDDEN,), {}, uniform=round(size * 256) / 256)


def _embedding() -> Tensor:
    entries = {}
    for token in range(tokenizer.VOCABULARY):
        entries[token, CONSTANT] = CONSTANT_SIZE
        for index in range(BITS):
            entries[token, TOKEN[index]] = bit(tokenizer.code_of(token), index)
    return Tensor("model.embed_tokens.weight", (tokenizer.VOCABULARY, HIDDEN), entries)


def _head() -> Tensor:
    entries = {}
    for token in range(tokenizer.VOCABULARY):
        entries[token, CONSTANT] = _OTHER_LOGIT
        if tokenizer.is_word(token):
            bits = [bit(tokenizer.code_of(token), index) for index in range(BITS)]
            agreement = sum(bits[index] * default(index) for index in range(BITS))
            entries[token, CONSTANT] = _DEFAULT_LOGIT * agreement
            for index in range(BITS):
                entries[token, RESULT[1][index]] = _BIT_LOGIT * bits[index]
    return Tensor("lm_head.weight", (tokenizer.VOCABULARY, HIDDEN), entries)


def tensors() -> Iterator[Tensor]:
    """Every tensor of the model, in the order of the forward pass."""
    yield _embedding()
    for layer in range(LAYERS):
        before = BITS + layer * (HEADS + BITS)
        yield _norm(f"model.layers.{layer}.input_layernorm.weight", before)
        yield from _attention(layer)
        yield _norm(f"model.layers.{layer}.post_attention_layernorm.weight", before + HEADS)
        yield from _mlp(layer)
    yield _norm("model.norm.weight", BITS + LAYERS * (HEADS + BITS))
    yield _head()


def float16(value: float) -> bytes:
    """IEEE half precision, little-endian."""
    return struct.pack("<e", value)


def bfloat16(value: float) -> bytes:
    """The upper half of a float32, little-endian; exact for the values used here."""
    return struct.pack("<f", value)[2:]


def matrix_bytes(tensor: Tensor, dtype: str) -> bytearray:
    """A matrix as the bytes of ``dtype`` (``float16`` or ``bfloat16``), row by row.

    The noise is one byte of SHAKE-256 per weight: a sign and 128 to 255 steps. All of it is made by
    calls that run in C, for a target without numpy.
    """
    pack = {"float16": float16, "bfloat16": bfloat16}[dtype]
    rows, columns = tensor.shape
    seed = f"firstlight canary {tensor.name}".encode()
    noise = hashlib.shake_256(seed).digest(rows * columns)
    signed = [*range(-255, -127), *range(128, 256)]
    table = [pack(steps * NOISE_STEP) for steps in signed]
    data = bytearray(2 * rows * columns)
    data[0::2] = noise.translate(bytes(pair[0] for pair in table))
    data[1::2] = noise.translate(bytes(pair[1] for pair in table))
    for (row, column), value in tensor.entries.items():
        at = 2 * (row * columns + column)
        data[at : at + 2] = pack(value)
    return data
