# SPDX-License-Identifier: Apache-2.0
"""What of a model lies on one device: a share, the ends, copies, and what the allocator adds."""

from __future__ import annotations

import planner
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_configs import CONFIGS

from ansible.module_utils.firstlight import model_config
from ansible.module_utils.firstlight.planning import weights

MIB = 2**20
LLAMA_8B, LLAMA_70B = planner.model("Llama-3.1-8B"), planner.model("Llama-3.1-70B")
# What a table of positions takes: 131072 of them, 128 elements of 16 bits each.
ROTARY = 32 * MIB


def quantised(model):
    """The same bytes in matrices whose sizes are not known, so that nothing is rounded."""
    return {**model, "quantisation": "awq"}


def ends(model):
    """The bytes of one table, of tokens or of the output."""
    return model["geometry"]["vocabulary"] * model["geometry"]["hidden"] * 2


def test_one_device_has_the_file_and_the_table_of_positions():
    # Every matrix of this shape is a multiple of what the allocator gives.
    assert weights.vllm_bytes(LLAMA_8B, 1, 1) == LLAMA_8B["bytes"] + ROTARY


@pytest.mark.parametrize("split", [2, 4, 8])
def test_tensor_parallel_splits_layers_and_tables(split):
    assert weights.vllm_bytes(LLAMA_70B, split, 1) == LLAMA_70B["bytes"] // split + ROTARY


@pytest.mark.parametrize(("stages", "share"), [(2, 16 / 32), (3, 11 / 32), (4, 8 / 32)])
def test_stages_split_layers_and_one_has_a_table(stages, share):
    tables = 2 * ends(LLAMA_8B)
    layers = (LLAMA_8B["bytes"] - tables) * share
    assert weights.vllm_bytes(LLAMA_8B, 1, stages) == pytest.approx(
        layers + tables / 2 + ROTARY, abs=1)


def test_the_larger_table_is_counted_where_they_are_apart():
    model = {**LLAMA_8B, "tensors": {"embedding_bytes": 3 * 2**30, "head_bytes": 2**30,
                                     "other_bytes": 0}}
    layers = (model["bytes"] - 4 * 2**30) // 2
    assert weights.vllm_bytes(model, 1, 2) == layers + 3 * 2**30 + ROTARY
    assert weights.vllm_bytes(model, 1, 1) == weights.vllm_bytes(LLAMA_8B, 1, 1)
    one = {**model, "tensors": {"embedding_bytes": 2**30, "head_bytes": 0, "other_bytes": 0}}
    assert weights.vllm_bytes(one, 1, 2) == (model["bytes"] - 2**30) // 2 + 2**30 + ROTARY


def test_a_tied_table_is_at_both_ends_of_the_stages():
    model = planner.model("Qwen2.5-0.5B")
    table = ends(model)
    model = quantised({**model, "tensors": {"embedding_bytes": table, "head_bytes": 0,
                                            "other_bytes": 0}})
    rotary = 32768 * 64 * 2
    assert weights.vllm_bytes(model, 1, 2) == (model["bytes"] - table) // 2 + table + rotary
    # A table with a head of its own is at one end.
    apart = {**model, "tensors": {"embedding_bytes": table, "head_bytes": table,
                                  "other_bytes": 0}}
    assert weights.vllm_bytes(apart, 1, 2) == (model["bytes"] - 2 * table) // 2 + table + rotary


def test_stages_and_tensor_parallel_together():
    tables = 2 * ends(LLAMA_70B)
    part = (LLAMA_70B["bytes"] - tables) * 27 // 80 + tables // 2
    assert weights.vllm_bytes(LLAMA_70B, 2, 3) == part // 2 + ROTARY


@pytest.mark.parametrize("name", ["F32", "f32"])
def test_weights_of_32_bits_are_served_in_16(name):
    double = {**LLAMA_8B, "bytes": 2 * LLAMA_8B["bytes"], "quantisation": name}
    for split, stages in ((1, 1), (4, 1), (2, 2)):
        assert weights.vllm_bytes(double, split, stages) == weights.vllm_bytes(
            LLAMA_8B, split, stages)


def test_tables_of_32_bits_are_served_in_16_too():
    table = ends(LLAMA_8B)
    model = {**LLAMA_8B, "tensors": {"embedding_bytes": table, "head_bytes": table,
                                     "other_bytes": 0}}
    double = {**model, "bytes": 2 * model["bytes"], "quantisation": "F32", "tensors": {
        key: 2 * value for key, value in model["tensors"].items()}}
    for stages in (1, 2, 4):
        assert weights.vllm_bytes(double, 1, stages) == weights.vllm_bytes(model, 1, stages)


# Copies of key heads.


def test_devices_beyond_the_key_heads_have_copies():
    model = quantised(LLAMA_70B)
    for split in (2, 4, 8):
        assert weights.vllm_bytes(model, split, 1) == model["bytes"] // split + ROTARY
    # A fair share is half a head of keys and of values in each of 80 layers, and each has a whole.
    half = 80 * 8192 * (128 + 128) * 2 // 2
    assert weights.vllm_bytes(model, 16, 1) == model["bytes"] // 16 + ROTARY + half
    assert weights.vllm_bytes(model, 16, 2) < weights.vllm_bytes(model, 16, 1)


def test_a_latent_has_no_heads_to_copy():
    model = planner.model("DeepSeek-V3")
    rotary = 163840 * 64 * 2
    assert weights.vllm_bytes(model, 16, 1) == model["bytes"] // 16 + rotary


# What the allocator adds.


@pytest.mark.parametrize(("name", "split", "mib"), [
    # Queries, keys and values 31.5 MiB, output 24.5, gate and up 259, down 129.5: 28 layers.
    ("Qwen2.5-7B", 1, 28 * (0.5 + 1.5 + 1 + 0.5)),
    ("Qwen2.5-7B", 2, 28 * (0.25 + 1.75 + 0.5 + 1.25)),
    # Only gate and up, 16.625 MiB, are larger than 10: 24 layers.
    ("Qwen2.5-0.5B", 1, 24 * 1.375),
    ("Llama-3.1-8B", 1, 0),
    # Experts lie in one tensor: 8 of them are a multiple.
    ("Mixtral-8x7B", 1, 0),
])
def test_large_matrices_are_rounded_up(name, split, mib):
    model = planner.model(name)
    plain = weights.vllm_bytes(model, split, 1)
    assert plain - weights.vllm_bytes(quantised(model), split, 1) == mib * MIB
    # A stage has its part of them.
    assert plain - weights.vllm_bytes(quantised(model), split, 1) >= (
        weights.vllm_bytes(model, split, 2) - weights.vllm_bytes(quantised(model), split, 2))


# llama.cpp.


def test_llama_cpp_keeps_the_input_table_in_ram():
    model = planner.gguf("Llama-3.1-8B", tensors={
        "embedding_bytes": 400 * MIB, "head_bytes": 500 * MIB, "other_bytes": 0})
    assert weights.llama_cpp_bytes(model, 1) == model["bytes"] - 400 * MIB
    layers = model["bytes"] - 900 * MIB
    assert weights.llama_cpp_bytes(model, 2) == layers // 2 + 500 * MIB
    assert weights.llama_cpp_bytes(model, 3) == layers * 11 // 32 + 500 * MIB


def test_llama_cpp_has_a_table_that_is_the_output_too_on_the_gpu():
    model = planner.gguf("Qwen2.5-0.5B", tensors={
        "embedding_bytes": 140 * MIB, "head_bytes": 0, "other_bytes": 0})
    assert weights.llama_cpp_bytes(model, 1) == model["bytes"]
    assert weights.llama_cpp_bytes(model, 2) == (model["bytes"] - 140 * MIB) // 2 + 140 * MIB


# Nothing is lost.

NAMES = sorted(name for name in CONFIGS if model_config.weight_bytes(
    model_config.geometry(CONFIGS[name]), model_config.quantisation(CONFIGS[name])))
SPLITS, STAGES = st.sampled_from([1, 2, 4, 8, 16]), st.integers(1, 8)


@st.composite
def models(draw):
    """Published shapes with files of any size, whose tables are known or not."""
    size = draw(st.integers(2**20, 2**42))
    type_ = draw(st.sampled_from(["bf16", "F16", "F32", "awq", "Q8_0"]))
    tables = st.builds(lambda embedding, head: {"embedding_bytes": embedding, "head_bytes": head,
                                                "other_bytes": 0},
                       st.integers(0, size // 2), st.integers(0, size // 2))
    return planner.model(draw(st.sampled_from(NAMES)), bytes=size, quantisation=type_,
                         tensors=None if type_ == "F32" else draw(st.none() | tables))


@given(model=models(), split=SPLITS, stages=STAGES)
def test_all_devices_together_have_at_least_the_file(model, split, stages):
    stored = model["bytes"] // 2 if model["quantisation"] == "F32" else model["bytes"]
    assert weights.vllm_bytes(model, split, stages) * split * stages >= stored


@given(model=models(), split=SPLITS, stages=STAGES)
def test_more_stages_never_give_one_more(model, split, stages):
    assert weights.vllm_bytes(model, split, 2 * stages) <= weights.vllm_bytes(model, split, stages)


@pytest.mark.parametrize("name", NAMES)
def test_more_tensor_parallel_gives_each_less(name):
    found = [weights.vllm_bytes(quantised(planner.model(name)), split, 1)
             for split in (32, 16, 8, 4, 2, 1)]
    assert found == sorted(set(found))


@given(model=models(), stages=STAGES)
def test_all_gpus_together_have_all_but_the_input_table(model, stages):
    tables = model["tensors"] or {}
    kept = tables.get("embedding_bytes", 0) if tables.get("head_bytes") else 0
    if not tables and not model["geometry"]["tied_embeddings"]:
        kept = ends(model)
    device = weights.llama_cpp_bytes(model, stages)
    # A byte of a stage may be lost to division.
    assert device * stages + stages >= model["bytes"] - kept
    assert device <= model["bytes"]
    assert weights.llama_cpp_bytes(model, 2 * stages) <= device
