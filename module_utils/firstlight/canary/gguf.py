# SPDX-License-Identifier: Apache-2.0
"""The canary as one GGUF file (version 3): matrices in float16, norms in float32."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

from . import tokenizer, weights

_ALIGNMENT = 32
_F32, _F16 = 0, 1  # ggml's tensor types
_NORMAL, _CONTROL, _UNUSED = 1, 3, 5  # llama.cpp's token types
_BLOCK_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    **{
        f"model.layers.{layer}.{theirs}.weight": f"blk.{layer}.{ours}.weight"
        for layer in range(weights.LAYERS)
        for theirs, ours in _BLOCK_NAMES.items()
    },
}


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> tuple[int, bytes]:
    """GGUF's type number and bytes of a metadata value: an int is a uint32, in a list an int32."""
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, int):
        return 4, struct.pack("<I", value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, str):
        return 8, _string(value)
    if isinstance(value[0], int):
        return 9, struct.pack(f"<IQ{len(value)}i", 5, len(value), *value)
    return 9, struct.pack("<IQ", 8, len(value)) + b"".join(_string(item) for item in value)


def _token_type(text: str) -> int:
    if text in tokenizer.SPECIALS:
        return _CONTROL
    return _UNUSED if text.startswith("<|reserved_") else _NORMAL


def metadata() -> dict[str, Any]:
    """The file's key-value pairs."""
    special, tokens = tokenizer.special_ids(), tokenizer.tokens()
    return {
        "general.architecture": "llama",
        "general.name": "canary",
        "general.license": "apache-2.0",
        "general.alignment": _ALIGNMENT,
        "general.file_type": 1,  # mostly F16
        "llama.vocab_size": tokenizer.VOCABULARY,
        "llama.context_length": weights.CONTEXT,
        "llama.embedding_length": weights.HIDDEN,
        "llama.block_count": weights.LAYERS,
        "llama.feed_forward_length": weights.INTERMEDIATE,
        "llama.attention.head_count": weights.HEADS,
        "llama.attention.head_count_kv": weights.KV_HEADS,
        "llama.attention.key_length": weights.HEAD_DIM,
        "llama.attention.value_length": weights.HEAD_DIM,
        "llama.attention.layer_norm_rms_epsilon": weights.NORM_EPSILON,
        "llama.rope.dimension_count": weights.HEAD_DIM,
        "llama.rope.freq_base": weights.ROPE_BASE,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [_token_type(text) for text in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in tokenizer.merges()],
        "tokenizer.ggml.bos_token_id": special[tokenizer.BEGIN],
        "tokenizer.ggml.eos_token_id": special[tokenizer.END],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": tokenizer.CHAT_TEMPLATE,
    }


def _interleaved(data: bytes | bytearray, rows: int, heads: int) -> bytes:
    """The rows of a query or key matrix with RoPE's pairs side by side.

    Hugging Face pairs a head's row n with row n + 32; llama.cpp's Llama pairs 2n with 2n + 1.
    """
    size, half = len(data) // rows, rows // heads // 2
    order = (
        head * 2 * half + part * half + pair
        for head in range(heads)
        for pair in range(half)
        for part in (0, 1)
    )
    return b"".join(data[row * size : (row + 1) * size] for row in order)


def _tensors() -> Iterator[tuple[str, Sequence[int], int, bytes | bytearray]]:
    for tensor in weights.tensors():
        name = _NAMES[tensor.name]
        if tensor.uniform is not None:
            yield name, tensor.shape, _F32, struct.pack("<f", tensor.uniform) * tensor.shape[0]
            continue
        data: bytes | bytearray = weights.matrix_bytes(tensor, "float16")
        if tensor.rope_heads:
            data = _interleaved(data, tensor.shape[0], tensor.rope_heads)
        yield name, tensor.shape, _F16, data


def model() -> bytes:
    """The content of the GGUF file."""
    pairs = metadata()
    infos, parts, offset = [], [], 0
    for name, shape, dtype, data in _tensors():
        dimensions = struct.pack(f"<{len(shape)}Q", *reversed(shape))  # ggml: fastest first
        infos.append(
            _string(name)
            + struct.pack("<I", len(shape))
            + dimensions
            + struct.pack("<IQ", dtype, offset)
        )
        padding = bytes(-len(data) % _ALIGNMENT)
        parts += [data, padding]
        offset += len(data) + len(padding)
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(infos), len(pairs))
    for key, value in pairs.items():
        number, encoded = _value(value)
        head += _string(key) + struct.pack("<I", number) + encoded
    head += b"".join(infos)
    return b"".join([head, bytes(-len(head) % _ALIGNMENT), *parts])
