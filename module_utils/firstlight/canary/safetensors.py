# SPDX-License-Identifier: Apache-2.0
"""The canary as a Hugging Face model directory."""

from __future__ import annotations

import json
import struct
from typing import Any

from . import tokenizer, weights


def model() -> bytes:
    """The content of ``model.safetensors``: every tensor in bfloat16."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts: list[bytes | bytearray] = []
    end = 0
    for tensor in weights.tensors():
        if tensor.uniform is not None:
            part: bytes | bytearray = weights.bfloat16(tensor.uniform) * tensor.shape[0]
        else:
            part = weights.matrix_bytes(tensor, "bfloat16")
        parts.append(part)
        start, end = end, end + len(part)
        header[tensor.name] = {
            "dtype": "BF16",
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data must begin on a multiple of eight
    return b"".join([struct.pack("<Q", len(text)), text, *parts])


def config() -> dict[str, Any]:
    """The content of ``config.json``, with the type and RoPE fields of transformers 4 and 5."""
    special = tokenizer.special_ids()
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": special[tokenizer.BEGIN],
        "dtype": "bfloat16",
        "eos_token_id": special[tokenizer.END],
        "head_dim": weights.HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": weights.HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": weights.INTERMEDIATE,
        "max_position_embeddings": weights.CONTEXT,
        "mlp_bias": False,
        "num_attention_heads": weights.HEADS,
        "num_hidden_layers": weights.LAYERS,
        "num_key_value_heads": weights.KV_HEADS,
        "rms_norm_eps": weights.NORM_EPSILON,
        "rope_parameters": {"rope_theta": weights.ROPE_BASE, "rope_type": "default"},
        "rope_theta": weights.ROPE_BASE,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": tokenizer.VOCABULARY,
    }


def generation_config() -> dict[str, Any]:
    """The content of ``generation_config.json``: greedy, ended by ``<|end|>``."""
    special = tokenizer.special_ids()
    return {
        "bos_token_id": special[tokenizer.BEGIN],
        "do_sample": False,
        "eos_token_id": special[tokenizer.END],
    }
