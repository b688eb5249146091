# SPDX-License-Identifier: Apache-2.0
"""The canary: a tiny Llama whose greedy answer to one prompt is known before any engine runs it.

It proves driver, engine, container and ports in seconds, ahead of a download of hundreds of GB. It
is built on the target from this code alone, byte for byte the same everywhere, as GGUF and as a
Hugging Face directory. ``oracle()`` says what to ask it and what it must answer.

How it works. The model is a digital circuit laid into a transformer, not trained:

* Vocabulary (``tokenizer``). 256 words, each with an 8-bit code. The next word's code is a fixed
  function of the codes of 24 earlier words, 9 to 39 back, so every answer is new and none is
  learnt by heart.
* Residual stream (``weights``). One coordinate holds a constant, 56 more hold bits as +1 or -1:
  first the 8 bits of the token. The constant is large beside them, so RMSNorm divides by much the
  same everywhere, and the norm's weight multiplies by that again.
* Attention. Queries and keys come from the constant alone, so RoPE is all that tells positions
  apart: the score of a distance is a sum of six cosines that peaks, by 13 nats, where the distance
  is the head's *lookback*. Head h thus copies one bit of the token (layer 0) or one result of layer
  0 (layer 1) from exactly that many tokens ago. Each head has another lookback, of which the key
  brings a share that differs by KV head: permuted K heads and another RoPE base read other tokens.
* MLP. Bit i is the product (as bits: the XNOR) of what heads 2i and 2i + 1 brought. SwiGLU
  multiplies exactly: silu(k a) b + silu(-k a) (-b) = k a b. Two columns a bit, 16 a layer.
* Output head. The logit of a word is the agreement of its code with the 8 results of layer 1,
  6 nats a bit either way, so the right word leads the next, one bit off, by about 10. A small
  default decides a bit that never came; both values of each bit occur in the answer, so a missing
  bit shows.
* Shards. The heads 2i and 2i + 1, KV head i and MLP columns 64 i to 64 i + 63 make bit i and are
  what rank i of eight holds. Bits mix from layer to layer, so a lost rank spoils more than its bit.
* Noise. Every other weight is dense noise of 0.002 to 0.004, so that every multiplication is real
  and yet all of it together moves the lead by less than half.

All weights are exact in bfloat16 and in float16. The answer was computed in plain float32 by a
reference of its own; every format gives it and every fault another.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

from . import gguf, safetensors, tokenizer, weights

GGUF = "canary.gguf"
SAFETENSORS = "safetensors"


class File(NamedTuple):
    """What a file of the model must be: the SHA-256 of its content, and its size in bytes."""

    sha256: str
    size: int


# By path in the model's directory. A change of these is a change of the model: of every host's.
FILES = {
    GGUF: File("80c6d7caa71e8571303cbc271bb8ab641d7d1e01ce9cf4b54dbca530a5260fa3", 10643232),
    f"{SAFETENSORS}/config.json": File(
        "f16c02b1dbd463cd96aa359684f469bcc5c826a548b9d1d3e8fed2ed28a7f2bc", 694
    ),
    f"{SAFETENSORS}/generation_config.json": File(
        "13f8c9d852f14a9a572345ee65efed335733744dda6512be9d3257a197f082d3", 69
    ),
    f"{SAFETENSORS}/model.safetensors": File(
        "12fe4665ebce2adee7787a524713dfbbcbe4f8018355d902e2bdc1a139073a97", 10624200
    ),
    f"{SAFETENSORS}/tokenizer.json": File(
        "f0eb0e38d822657b29968c78dfeab083b8da1c5c2fba144c6ce7da17ed76a51a", 28575
    ),
    f"{SAFETENSORS}/tokenizer_config.json": File(
        "c75343e742ee853259df88dd8d7afd140b8323764920bd1bf7bc043bc4c08b46", 392
    ),
}

_MAX_TOKENS = 24
_PROMPT_WORDS = weights.LONGEST_LOOKBACK + 1
_PROMPT_SEED = b"firstlight canary prompt 128"
# The codes of the words that the reference answers with, to the prompt and to it as a chat message.
_COMPLETION = bytes.fromhex("54ef7deeb16465810ede3d06e54ee827b8c002fba9d9cd1c")
_CHAT_COMPLETION = bytes.fromhex("7deeb16465810ede3c0fec46682338c402fbe9dae434444c")


def content(name: str) -> bytes:
    """Build one file of the model.

    :param name: a key of ``FILES``.
    :raises KeyError: it is none.
    """
    builders = {
        GGUF: gguf.model,
        f"{SAFETENSORS}/model.safetensors": safetensors.model,
        f"{SAFETENSORS}/config.json": safetensors.config,
        f"{SAFETENSORS}/generation_config.json": safetensors.generation_config,
        f"{SAFETENSORS}/tokenizer.json": tokenizer.tokenizer_json,
        f"{SAFETENSORS}/tokenizer_config.json": tokenizer.tokenizer_config,
    }
    built = builders[name]()
    if isinstance(built, bytes):
        return built
    return (json.dumps(built, indent=2, sort_keys=True) + "\n").encode()


def _text(codes: bytes) -> str:
    return "".join(tokenizer.word(code) for code in codes)


def _ids(codes: bytes) -> list[int]:
    return [tokenizer.word_id(code) for code in codes]


def oracle() -> dict[str, Any]:
    """What to ask the canary at temperature 0, and what it must answer.

    :returns: ``prompt`` with ``completion`` for ``/v1/completions``, ``chat_messages`` with
        ``chat_completion`` for ``/v1/chat/completions`` (all exact, with their leading space), the
        token ids of each as ``*_ids`` (those of the chat's prompt with its template), and
        ``max_tokens``, which both answers fill.
    """
    codes = hashlib.shake_256(_PROMPT_SEED).digest(_PROMPT_WORDS)
    special = tokenizer.special_ids()
    chat_ids = [
        special[tokenizer.USER],
        *_ids(codes),
        special[tokenizer.END],
        special[tokenizer.ASSISTANT],
    ]
    return {
        "max_tokens": _MAX_TOKENS,
        "prompt": _text(codes),
        "prompt_ids": _ids(codes),
        "completion": _text(_COMPLETION),
        "completion_ids": _ids(_COMPLETION),
        "chat_messages": [{"role": "user", "content": _text(codes)}],
        "chat_prompt_ids": chat_ids,
        "chat_completion": _text(_CHAT_COMPLETION),
        "chat_completion_ids": _ids(_CHAT_COMPLETION),
    }


def describe() -> dict[str, Any]:
    """The model's geometry, its parameters in number, and its sizes in bytes by format."""
    parameters = 0
    for tensor in weights.tensors():
        rows, columns = (*tensor.shape, 1)[:2]
        parameters += rows * columns
    return {
        "architecture": "LlamaForCausalLM",
        "parameters": parameters,
        "hidden_size": weights.HIDDEN,
        "intermediate_size": weights.INTERMEDIATE,
        "layers": weights.LAYERS,
        "attention_heads": weights.HEADS,
        "kv_heads": weights.KV_HEADS,
        "head_dim": weights.HEAD_DIM,
        "vocabulary": tokenizer.VOCABULARY,
        "context": weights.CONTEXT,
        "rope_base": weights.ROPE_BASE,
        "bytes": {
            "gguf": FILES[GGUF].size,
            "safetensors": sum(f.size for name, f in FILES.items() if name != GGUF),
        },
    }
