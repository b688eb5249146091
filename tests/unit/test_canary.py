# SPDX-License-Identifier: Apache-2.0
"""The canary is the same everywhere, right in every format, and wrong under every fault."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible.module_utils.firstlight import canary
from ansible.module_utils.firstlight.canary import tokenizer, weights

sys.path.insert(0, str(Path(__file__).parents[1] / "rig"))
import canary_reference as reference

ROOT = Path(__file__).parents[2]
ORACLE = canary.oracle()
PROMPTS = {
    "completion": (ORACLE["prompt_ids"], ORACLE["completion_ids"]),
    "chat": (ORACLE["chat_prompt_ids"], ORACLE["chat_completion_ids"]),
}
both_prompts = pytest.mark.parametrize("kind", PROMPTS)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("canary")
    (path / canary.SAFETENSORS).mkdir()
    for name in canary.FILES:
        (path / name).write_bytes(canary.content(name))
    return path


@pytest.fixture(scope="module")
def model(directory):
    return reference.load(directory / canary.SAFETENSORS)


# The bytes


@pytest.mark.parametrize("hash_seed", ["0", "4242"])
def test_another_process_builds_the_known_bytes(hash_seed):
    code = (
        "import hashlib, json; from firstlight import canary; print(json.dumps({name:"
        " hashlib.sha256(canary.content(name)).hexdigest() for name in canary.FILES}))"
    )
    environment = {"PYTHONPATH": str(ROOT / "module_utils"), "PYTHONHASHSEED": hash_seed}
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        timeout=120,
    ).stdout
    assert json.loads(out) == {name: file.sha256 for name, file in canary.FILES.items()}


def test_sizes_are_known(directory):
    for name, file in canary.FILES.items():
        assert (directory / name).stat().st_size == file.size


def test_no_structured_weight_lies_near_a_rounding_tie():
    """A libm that is off by a few units in the last place must not change a byte."""
    for amount in range(-64, 65):
        for frequency in weights.FREQUENCIES:
            angle = amount * weights.ROPE_BASE ** (-2 * frequency / weights.HEAD_DIM)
            for exact in (math.cos(angle), math.sin(angle)):
                steps = exact * weights._PHASE_SIZE / weights._PHASE_STEP
                assert abs(abs(steps - math.floor(steps)) - 0.5) > 1e-9


def test_every_weight_is_exact_in_bfloat16_and_float16():
    values = {
        value
        for tensor in weights.tensors()
        for value in (*tensor.entries.values(), tensor.uniform or 0.0)
    }
    values |= {steps * weights.NOISE_STEP for steps in range(128, 256)}
    for value in values:
        assert struct.unpack("<e", weights.float16(value))[0] == value
        assert struct.unpack("<f", b"\0\0" + weights.bfloat16(value))[0] == value
        assert value == 0 or abs(value) >= 2.0**-14  # no float16 subnormal


def test_attention_and_mlp_weights_are_dense(model):
    _, tensors = model
    for name, tensor in tensors.items():
        assert np.count_nonzero(tensor) > 0.999 * tensor.size, name


def test_both_formats_hold_the_same_numbers(directory, model):
    config, tensors = model
    ours = {theirs.name: theirs for theirs in gguf.GGUFReader(directory / canary.GGUF).tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    assert len(ours) == len(tensors)
    for name, tensor in tensors.items():
        data = ours[names.get_name(name, (".weight",))].data.astype(np.float32)
        if "q_proj" in name or "k_proj" in name:
            heads = data.reshape(-1, config["head_dim"] // 2, 2, config["hidden_size"])
            data = heads.swapaxes(1, 2).reshape(tensor.shape)
        np.testing.assert_array_equal(data, tensor, err_msg=name)


def test_tensor_parallelism_of_eight_divides_it(model):
    config, _ = model
    assert config["head_dim"] == 64
    for key in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size"):
        assert config[key] % 8 == 0


def test_description_counts_what_was_built(directory, model):
    description = canary.describe()
    assert description["parameters"] == sum(tensor.size for tensor in model[1].values())
    assert description["bytes"]["gguf"] == (directory / canary.GGUF).stat().st_size


# The answer


@both_prompts
def test_reference_gives_the_answer(model, kind):
    prompt, answer = PROMPTS[kind]
    assert reference.greedy(*model, prompt, ORACLE["max_tokens"])[0] == answer


@both_prompts
@pytest.mark.parametrize("rounding", reference.ROUNDING)
def test_every_format_gives_the_answer_with_a_wide_margin(model, kind, rounding):
    choices, margins = reference.choices(*model, *PROMPTS[kind], rounding=rounding)
    assert choices == PROMPTS[kind][1]
    # In nats; the winning logit is about 52 and bfloat16's step there is 0.25.
    assert min(margins) > 6.0


@both_prompts
def test_the_answer_exercises_every_bit_and_every_eighth_of_the_vocabulary(kind):
    answer = PROMPTS[kind][1]
    codes = [tokenizer.code_of(token) for token in answer]
    assert all(tokenizer.is_word(token) for token in answer)
    assert len(set(answer)) == len(answer) == ORACLE["max_tokens"]
    for bit in range(8):
        assert {code >> bit & 1 for code in codes} == {0, 1}
    assert {token * 8 // tokenizer.VOCABULARY for token in answer} == set(range(8))


@both_prompts
def test_no_lookback_leaves_the_prompt(kind):
    assert len(PROMPTS[kind][0]) > weights.LONGEST_LOOKBACK


# The faults


def assert_another_answer(config, tensors, **options):
    for prompt, answer in PROMPTS.values():
        assert reference.choices(config, tensors, prompt, answer, **options)[0] != answer


@pytest.mark.parametrize("matrix", ["o_proj", "down_proj"])
@pytest.mark.parametrize("layer", ["", "layers.0.", "layers.1."])
def test_zeroed_output_changes_the_answer(model, matrix, layer):
    config, tensors = model
    block = {"o_proj": "self_attn.", "down_proj": "mlp."}[matrix] if layer else ""
    assert_another_answer(config, reference.with_zeros(tensors, layer + block + matrix))


@pytest.mark.parametrize(
    "matrix", ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "embed_tokens", "lm_head"]
)
def test_any_zeroed_matrix_changes_the_answer(model, matrix):
    config, tensors = model
    assert_another_answer(config, reference.with_zeros(tensors, matrix))


@pytest.mark.parametrize(
    "order",
    [
        *([(head + by) % 8 for head in range(8)] for by in range(1, 8)),
        list(reversed(range(8))),
    ],
    ids=str,
)
def test_permuted_k_heads_change_the_answer(model, order):
    config, tensors = model
    assert_another_answer(config, reference.with_k_heads(config, tensors, order))


@pytest.mark.parametrize("pair", list(itertools.combinations(range(8), 2)), ids=str)
def test_any_two_k_heads_exchanged_change_the_answer(model, pair):
    config, tensors = model
    order = list(range(8))
    order[pair[0]], order[pair[1]] = order[pair[1]], order[pair[0]]
    assert_another_answer(config, reference.with_k_heads(config, tensors, order))


@pytest.mark.parametrize("base", [1e2, 1e3, 2.5e3, 5e3, 2e4, 4e4, 1e5, 5e5, 1e6])
def test_another_rope_base_changes_the_answer(model, base):
    assert_another_answer(*model, rope_base=base)


@pytest.mark.parametrize(
    ("rank", "ranks"),
    [(rank, ranks) for ranks in (8, 4, 2) for rank in range(ranks)],
)
def test_a_zeroed_tensor_parallel_shard_changes_the_answer(model, rank, ranks):
    config, tensors = model
    assert_another_answer(config, reference.without_shard(tensors, rank, ranks))


@pytest.mark.parametrize("rank", range(8))
@pytest.mark.parametrize("matrix", ["embed_tokens", "lm_head"])
def test_a_zeroed_vocabulary_shard_changes_the_answer(model, rank, matrix):
    config, tensors = model
    assert_another_answer(config, reference.without_vocabulary(tensors, rank, 8, matrix))


# The tokenizer


def encode(text: str) -> list[int]:
    """Byte-level BPE as GPT-2 defines it, for ASCII: split, then merge the most urgent pair."""
    vocabulary = {token: number for number, token in enumerate(tokenizer.tokens())}
    ranks = {pair: rank for rank, pair in enumerate(tokenizer.merges())}
    characters = tokenizer.byte_characters()
    splitter = r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+"
    ids = []
    for part in re.split(f"({'|'.join(map(re.escape, tokenizer.SPECIALS))})", text):
        if part in tokenizer.SPECIALS:
            ids.append(vocabulary[part])
            continue
        for piece in re.findall(splitter, part):
            symbols = [characters[byte] for byte in piece.encode()]
            while True:
                pairs = list(zip(symbols, symbols[1:]))
                known = [pair for pair in pairs if pair in ranks]
                if not known:
                    break
                at = pairs.index(min(known, key=ranks.__getitem__))
                symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
            ids += [vocabulary[symbol] for symbol in symbols]
    return ids


def templated() -> str:
    (message,) = ORACLE["chat_messages"]
    return f"<|user|>{message['content']}<|end|><|assistant|>"


def test_vocabulary_is_whole():
    tokens = tokenizer.tokens()
    assert len(tokens) == len(set(tokens)) == tokenizer.VOCABULARY
    assert set(tokenizer.byte_characters()) < set(tokens)
    assert {first + second for first, second in tokenizer.merges()} < set(tokens)
    for code in range(256):
        token = tokenizer.word_id(code)
        assert tokenizer.code_of(token) == code
        assert tokens[token] == "Ġ" + tokenizer.word(code)[1:]


def test_prompts_and_answers_encode_to_the_ids_of_the_oracle():
    assert encode(ORACLE["prompt"]) == ORACLE["prompt_ids"]
    assert encode(ORACLE["completion"]) == ORACLE["completion_ids"]
    assert encode(templated()) == ORACLE["chat_prompt_ids"]
    assert encode(ORACLE["chat_completion"]) == ORACLE["chat_completion_ids"]


@given(st.binary(max_size=60))
def test_any_words_encode_to_a_token_each(codes):
    text = "".join(tokenizer.word(code) for code in codes)
    assert encode(text) == [tokenizer.word_id(code) for code in codes]


@given(st.text(st.characters(max_codepoint=0x7E), max_size=30))
def test_any_text_is_whole_in_its_tokens(text):
    """Of ASCII, as the splitter of these tests is."""
    tokens, bytes_ = tokenizer.tokens(), tokenizer.byte_characters()
    said = "".join(tokens[token] for token in encode(text))
    assert bytes(bytes_.index(one) for one in said).decode() == text


def test_chat_template_renders_the_chat_prompt():
    jinja2 = pytest.importorskip("jinja2")
    template = jinja2.Environment(autoescape=False).from_string(tokenizer.CHAT_TEMPLATE)
    text = template.render(messages=ORACLE["chat_messages"], add_generation_prompt=True)
    assert text == templated()


def test_hugging_face_tokenizer_agrees(directory):
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.Tokenizer.from_file(str(directory / canary.SAFETENSORS / "tokenizer.json"))
    for text in (ORACLE["prompt"], templated(), "Hello, tamo!  1234 it's\n\n limo", " tamotamo"):
        assert theirs.encode(text).ids == encode(text)
    assert theirs.decode(ORACLE["completion_ids"]) == ORACLE["completion"]
    for text in ("Grüße, 世界 ☃", "\t\x00\x7f"):
        assert theirs.decode(theirs.encode(text).ids) == text


def test_gguf_tokenizer_is_the_same(directory):
    fields = gguf.GGUFReader(directory / canary.GGUF).fields
    theirs = json.loads((directory / canary.SAFETENSORS / "tokenizer.json").read_text())["model"]
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert {token: number for number, token in enumerate(tokens)} == theirs["vocab"]
    merges = fields["tokenizer.ggml.merges"].contents()
    assert [merge.split(" ") for merge in merges] == theirs["merges"]
    types = fields["tokenizer.ggml.token_type"].contents()
    control = {tokens[n] for n, kind in enumerate(types) if kind == gguf.TokenType.CONTROL}
    assert control == set(tokenizer.SPECIALS)
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False


def test_oracle_is_fresh_data_each_time():
    canary.oracle()["prompt_ids"].clear()
    assert canary.oracle() == ORACLE
