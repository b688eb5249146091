# SPDX-License-Identifier: Apache-2.0
"""A config gives the shape of its model, what it weighs, and what in it cannot be."""

from __future__ import annotations

import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st
from model_configs import CONFIGS

from ansible.module_utils.firstlight import model_config
from ansible.module_utils.firstlight.model_config import contradictions, geometry, quantisation

LLAMA = CONFIGS["Llama-3.1-8B"]


def shape(name, **changes):
    return geometry({**CONFIGS[name], **changes})


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_config_has_all_figures_that_a_plan_needs(name):
    found = shape(name)
    assert tuple(found) and set(found) == set(model_config.GEOMETRY_KEYS)
    needed = ("architecture", "layers", "hidden", "heads", "kv_heads", "head_dim",
              "value_head_dim", "context", "vocabulary", "intermediate", "tied_embeddings",
              "sliding_layers", "attention_layers", "state_bytes_per_sequence", "dense_layers")
    assert [key for key in needed if found[key] is None] == []
    assert contradictions(CONFIGS[name]) == []


SHAPES = {
    "Llama-3.1-8B": {
        "architecture": "llama", "layers": 32, "hidden": 4096, "heads": 32, "kv_heads": 8,
        "head_dim": 128, "value_head_dim": 128, "context": 131072, "vocabulary": 128256,
        "intermediate": 14336, "tied_embeddings": False, "vision": False, "kv_lora_rank": None,
        "rope_head_dim": None, "query_lora_rank": None, "sliding_window": None,
        "sliding_layers": 0, "attention_layers": 32, "state_bytes_per_sequence": 0,
        "experts": None, "experts_per_token": None, "moe_intermediate": None,
        "shared_intermediate": None, "dense_layers": 32},
    "CodeLlama-13b": {"heads": 40, "kv_heads": 40, "context": 16384},
    "Qwen2.5-0.5B": {"tied_embeddings": True, "head_dim": 64, "sliding_window": None},
    "Gemma-2-9b": {"tied_embeddings": True, "head_dim": 256, "sliding_window": 4096,
                   "sliding_layers": 21, "attention_layers": 42},
    "Gemma-3-27b": {"architecture": "gemma3", "vision": True, "layers": 62, "vocabulary": 262208,
                    "context": 131072, "sliding_window": 1024, "sliding_layers": 52,
                    "attention_layers": 62, "tied_embeddings": True},
    "DeepSeek-V2-Lite": {"kv_lora_rank": 512, "rope_head_dim": 64, "query_lora_rank": None,
                         "head_dim": 192, "value_head_dim": 128, "experts": 64,
                         "experts_per_token": 6, "moe_intermediate": 1408,
                         "shared_intermediate": 2816, "dense_layers": 1},
    "DeepSeek-V3": {"kv_lora_rank": 512, "query_lora_rank": 1536, "head_dim": 192,
                    "value_head_dim": 128, "experts": 256, "shared_intermediate": 2048,
                    "dense_layers": 3},
    "Qwen3-30B-A3B": {"head_dim": 128, "experts": 128, "experts_per_token": 8,
                      "moe_intermediate": 768, "shared_intermediate": None, "dense_layers": 0},
    "Mixtral-8x7B": {"experts": 8, "moe_intermediate": 14336, "dense_layers": 0,
                     "sliding_window": None, "sliding_layers": 0},
    "Mistral-7B-v0.1": {"sliding_window": 4096, "sliding_layers": 32},
    "gpt-oss-20b": {"sliding_window": 128, "sliding_layers": 12, "experts": 32,
                    "experts_per_token": 4, "moe_intermediate": 2880, "dense_layers": 0},
    # 36 layers: a convolution of 3 x 8192 and a state of 32 x 128 x 128, of 2 bytes each.
    "Qwen3-Next-80B-A3B": {"attention_layers": 12, "sliding_layers": 0, "head_dim": 256,
                           "shared_intermediate": 512,
                           "state_bytes_per_sequence": 36 * 2 * (3 * 8192 + 32 * 128 * 128)},
    # 28 layers: a convolution of 3 x 8192 and a state of 8192 x 16.
    "Jamba-v0.1": {"attention_layers": 4, "experts": 16, "moe_intermediate": 14336,
                   "dense_layers": 16,
                   "state_bytes_per_sequence": 28 * 2 * (3 * 8192 + 8192 * 16)},
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_shape_of_a_published_model(name):
    found = shape(name)
    assert {key: found[key] for key in SHAPES[name]} == SHAPES[name]


NEMOTRON = {
    "model_type": "nemotron_h", "torch_dtype": "bfloat16", "num_hidden_layers": 6,
    "hidden_size": 4096, "num_attention_heads": 32, "hybrid_override_pattern": "M-M*-M",
    "mamba_num_heads": 128, "mamba_head_dim": 64, "n_groups": 8, "ssm_state_size": 128,
    "conv_kernel": 4,
}
MAMBA_2 = 3 * (8192 + 2 * 8 * 128) * 2 + 8192 * 128 * 2
KINDS = {
    "Mamba 2 beside attention and MLPs": (NEMOTRON, (1, 0, 3 * MAMBA_2)),
    "a state of its own type": (
        {**NEMOTRON, "mamba_ssm_cache_dtype": "float32"}, (1, 0, 3 * (MAMBA_2 + 8192 * 128 * 2))),
    "of no known type": ({**NEMOTRON, "torch_dtype": None}, (1, 0, None)),
    "without the size of its state": ({**NEMOTRON, "ssm_state_size": None}, (1, 0, None)),
    "a letter of a pattern that is not known": (
        {**NEMOTRON, "hybrid_override_pattern": "M-M*-X"}, (None, None, None)),
    "Mamba and attention in each layer": (
        {**NEMOTRON, "model_type": "falcon_h1", "hybrid_override_pattern": None},
        (6, 0, 6 * MAMBA_2)),
    "attention by its indices": (
        {**NEMOTRON, "hybrid_override_pattern": None, "attn_layer_indices": [2, 5]},
        (2, 0, 4 * MAMBA_2)),
    "kinds by layer": (
        {**NEMOTRON, "hybrid_override_pattern": None,
         "layers_block_type": ["mamba", "hybrid", "mamba", "mamba", "hybrid", "mamba"]},
        (2, 0, 6 * MAMBA_2)),
    "short convolutions": (
        {**LLAMA, "num_hidden_layers": 3, "conv_L_cache": 3, "full_attn_idxs": [2]},
        (1, 0, 2 * 2 * 4096 * 2)),
    "linear attention without its sizes": (
        {**LLAMA, "num_hidden_layers": 3, "attn_type_list": [0, 0, 1]}, (1, 0, None)),
    "a hybrid that is not known": ({**LLAMA, "linear_attn_config": {}}, (None, None, None)),
    "no heads": ({**LLAMA, "num_attention_heads": None}, (None, None, None)),
    "a kind that is not known": (
        {**LLAMA, "num_hidden_layers": 2, "layer_types": ["full_attention", "new"]},
        (None, None, None)),
    "windows by layer": (
        {**LLAMA, "num_hidden_layers": 3, "sliding_window": 64,
         "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}, (3, 2, 0)),
}


@pytest.mark.parametrize("case", KINDS)
def test_the_kinds_of_layers(case):
    config, wanted = KINDS[case]
    found = geometry(config)
    assert (found["attention_layers"], found["sliding_layers"],
            found["state_bytes_per_sequence"]) == wanted


QWEN = CONFIGS["Qwen2.5-7B"]
LLAMA_4 = {"model_type": "llama4", "vision_config": {}, "text_config": {
    **LLAMA, "model_type": "llama4_text", "num_hidden_layers": 48, "num_local_experts": 16,
    "num_experts_per_tok": 1, "intermediate_size": 8192, "intermediate_size_mlp": 16384,
    "attention_chunk_size": 8192, "no_rope_layers": []}}
WINDOWS = {
    "a flag that is off": (QWEN, (None, 0)),
    "a flag that is missing": ({**QWEN, "use_sliding_window": None}, (None, 0)),
    "a flag that is on": ({**QWEN, "use_sliding_window": True, "max_window_layers": 21},
                          (131072, 7)),
    "on, from beyond the last layer": (
        {**QWEN, "use_sliding_window": True, "max_window_layers": 70}, (None, 0)),
    "a pattern of 4": ({**LLAMA, "sliding_window": 512, "sliding_window_pattern": 4}, (512, 24)),
    "a pattern of 1": ({**LLAMA, "sliding_window": 512, "sliding_window_pattern": 1}, (None, 0)),
    "no pattern in a model that is not known": (
        {**LLAMA, "model_type": "new", "sliding_window": 512}, (512, None)),
    "chunks by interval": (LLAMA_4, (8192, 36)),
    "chunks by list": (
        {**LLAMA_4["text_config"], "no_rope_layers": [1, 0] * 24}, (8192, 24)),
    "none in any layer": (
        {**CONFIGS["Mistral-7B-v0.1"], "layer_types": ["full_attention"] * 32}, (None, 0)),
    "by the defaults of its class": (
        {**LLAMA, "model_type": "gpt_oss", "num_hidden_layers": 24}, (128, 12)),
}


@pytest.mark.parametrize("case", WINDOWS)
def test_the_window_and_the_layers_that_use_it(case):
    config, wanted = WINDOWS[case]
    found = geometry(config)
    assert (found["sliding_window"], found["sliding_layers"]) == wanted


DENSE = {
    "a step": ("Qwen3-30B-A3B", {"decoder_sparse_step": 2}, 24),
    "layers by name": ("Qwen3-30B-A3B", {"mlp_only_layers": [0, 3, 3, 99]}, 2),
    "a first and a frequency": ("DeepSeek-V3", {"moe_layer_freq": 2}, 61 - 29),
    "a list": ("DeepSeek-V3", {"moe_layer_freq": [0] + [1] * 60}, 1),
    "nothing": ("DeepSeek-V3", {"first_k_dense_replace": None}, None),
}


@pytest.mark.parametrize("case", DENSE)
def test_the_layers_without_experts(case):
    name, changes, wanted = DENSE[case]
    assert shape(name, **changes)["dense_layers"] == wanted


def test_llama_4_has_an_expert_that_all_tokens_share_and_a_width_for_dense_layers():
    found = geometry(LLAMA_4)
    assert (found["vision"], found["moe_intermediate"], found["shared_intermediate"],
            found["intermediate"], found["dense_layers"]) == (True, 8192, 8192, 16384, 0)


@pytest.mark.parametrize(("kind", "wanted"), [
    ("gemma2", True), ("llama", False), ("new", None), (["llama"], None)])
def test_tied_embeddings_that_are_not_said_are_those_of_the_class(kind, wanted):
    config = {**LLAMA, "model_type": kind, "tie_word_embeddings": None}
    assert geometry(config)["tied_embeddings"] is wanted


@pytest.mark.parametrize(("changes", "wanted"), [
    ({"num_key_value_heads": None}, 32), ({"num_key_value_heads": None, "multi_query": True}, 1),
    ({"num_key_value_heads": [8, 4, 0]}, 8)])
def test_heads_of_keys(changes, wanted):
    assert shape("Llama-3.1-8B", **changes)["kv_heads"] == wanted


QUANTISATIONS = {
    "bf16": ({"torch_dtype": "bfloat16"}, ("bf16", None, None)),
    "f16 by its new name": ({"dtype": "float16"}, ("f16", None, None)),
    "of the language model": ({"text_config": {"dtype": "float32"}}, ("f32", None, None)),
    "no type": ({}, ("unknown", None, None)),
    "a type that is none": ({"dtype": "int3"}, ("unknown", None, None)),
    "AWQ": (CONFIGS["Qwen2.5-7B-AWQ"], ("awq", 4, 128)),
    "AWQ's own names": ({"quantization_config": {
        "quant_method": "awq", "w_bit": 4, "q_group_size": 64}}, ("awq", 4, 64)),
    "GPTQ by column": ({"quantization_config": {
        "quant_method": "gptq", "bits": 8, "group_size": -1}}, ("gptq", 8, None)),
    "FP8 in blocks": (CONFIGS["DeepSeek-V3"], ("fp8", 8, 128)),
    "FP8 by tensor": (CONFIGS["Llama-3.1-70B-FP8"], ("compressed-tensors", 8, None)),
    "several schemes": ({"quantization_config": {
        "quant_method": "compressed-tensors", "config_groups": {
            "a": {"weights": {"num_bits": 8}}, "b": {"weights": {"num_bits": 4}}}}},
        ("compressed-tensors", None, None)),
    "bitsandbytes": ({"quantization_config": {"load_in_4bit": True}}, ("bitsandbytes", 4, None)),
    "8 bits": ({"quantization_config": {"load_in_8bit": True}}, ("bitsandbytes", 8, None)),
    "MXFP4": (CONFIGS["gpt-oss-20b"], ("mxfp4", 4, 32)),
    "ModelOpt": ({"quantization_config": {"quant_algo": "NVFP4", "group_size": 16}},
                 ("modelopt", 4, 16)),
    "one that is not known": ({"quantization_config": {"quant_method": "new"}},
                              ("new", None, None)),
    "none after all": ({"torch_dtype": "bfloat16", "quantization_config": {"bits": 4}},
                       ("bf16", None, None)),
}


@pytest.mark.parametrize("case", QUANTISATIONS)
def test_how_weights_are_quantised(case):
    config, wanted = QUANTISATIONS[case]
    found = quantisation(config)
    assert (found["method"], found["bits"], found["group"]) == wanted


# As published, in 10^9.
PARAMETERS = {
    "Llama-3.1-8B": 8.03, "Llama-3.1-70B": 70.55, "Qwen2.5-7B": 7.62, "Qwen2.5-0.5B": 0.494,
    "Qwen2.5-14B": 14.77, "Gemma-2-9b": 9.24, "DeepSeek-V2-Lite": 15.7, "DeepSeek-V3": 671,
    "Qwen3-30B-A3B": 30.5, "Mixtral-8x7B": 46.7, "gpt-oss-20b": 20.9, "Mistral-7B-v0.1": 7.24,
    "Llama-2-13b": 13.02,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_weights_are_counted_from_the_shape(name):
    found = model_config.parameters(shape(name))
    assert found["total"] == pytest.approx(PARAMETERS[name] * 1e9, rel=0.01)
    assert found["total"] == found["embedding"] + found["head"] + found["layer"]
    table = CONFIGS[name]["vocab_size"] * CONFIGS[name]["hidden_size"]
    assert found["embedding"] == table
    assert found["head"] == (0 if shape(name)["tied_embeddings"] else table)


@pytest.mark.parametrize(("name", "key"), [
    ("Llama-3.1-8B", key) for key in (
        "layers", "hidden", "heads", "kv_heads", "head_dim", "value_head_dim", "vocabulary",
        "intermediate", "tied_embeddings", "attention_layers", "dense_layers")
] + [("Qwen3-30B-A3B", "moe_intermediate"), ("Qwen3-30B-A3B", "experts"),
     ("DeepSeek-V3", "rope_head_dim")])
def test_weights_are_not_counted_without_a_figure_that_it_takes(name, key):
    found = shape(name)
    assert model_config.parameters(found) is not None
    assert model_config.parameters({**found, key: None}) is None


@pytest.mark.parametrize("name", ["Qwen3-Next-80B-A3B", "Jamba-v0.1"])
def test_weights_of_a_hybrid_are_not_counted(name):
    assert model_config.parameters(shape(name)) is None
    assert model_config.weight_bytes(shape(name), quantisation(CONFIGS[name])) is None


# Bytes of the published files, in 10^9.
FILES = {
    "Llama-3.1-8B": 16.06, "Llama-3.1-70B": 141.1, "Llama-3.1-70B-FP8": 72.7,
    "Llama-3.1-70B-AWQ": 39.8, "Qwen2.5-7B": 15.23, "Qwen2.5-7B-AWQ": 5.57, "gpt-oss-20b": 13.76,
    "Gemma-2-9b": 18.48,
}


@pytest.mark.parametrize("name", FILES)
def test_bytes_are_estimated_from_the_shape(name):
    found = model_config.weight_bytes(shape(name), quantisation(CONFIGS[name]))
    assert found == pytest.approx(FILES[name] * 1e9, rel=0.03)


def test_fewer_bits_and_larger_groups_are_fewer_bytes():
    def size(method, bits, group):
        return model_config.weight_bytes(
            shape("Llama-3.1-8B"), {"method": method, "bits": bits, "group": group})

    sizes = [size("f32", None, None), size("bf16", None, None), size("gptq", 8, 32),
             size("gptq", 8, None), size("gptq", 4, 32), size("gptq", 4, 128),
             size("gptq", 4, None)]
    assert sizes == sorted(set(sizes), reverse=True)
    assert size("fp8", 8, 128) > size("fp8", 8, None)
    assert size("modelopt", 4, 16) > size("modelopt", 4, None)
    assert size("bitsandbytes", 4, None) > size("gptq", 4, None)


@pytest.mark.parametrize("quantised", [
    {"method": "unknown", "bits": None, "group": None}, {"method": "awq", "bits": None},
    {"method": "gguf", "bits": 4, "group": None}, {}, None])
def test_bytes_of_a_kind_that_is_not_known_are_not_estimated(quantised):
    assert model_config.weight_bytes(shape("Llama-3.1-8B"), quantised) is None


WHOLE = "; wanted a whole number from 1"
CONTRADICTIONS = {
    "no layers": ({"num_hidden_layers": 0}, ["num_hidden_layers is 0" + WHOLE]),
    "fewer than none": ({"vocab_size": -1}, ["vocab_size is -1" + WHOLE]),
    "a part": ({"max_position_embeddings": 24.5}, ["max_position_embeddings is 24.5" + WHOLE]),
    "a text": ({"vocab_size": "24"}, ["vocab_size is '24'" + WHOLE]),
    "a long text": ({"vocab_size": "\x1b" * 50},
                    ["vocab_size is '%s...'" % ("\\x1b" * 40) + WHOLE]),
    "yes": ({"num_hidden_layers": True}, ["num_hidden_layers is true" + WHOLE]),
    "a list": ({"num_hidden_layers": [24]}, ["num_hidden_layers is a list" + WHOLE]),
    "an object": ({"hidden_size": {}}, ["hidden_size is an object" + WHOLE]),
    "more than there can be": (
        {"vocab_size": 2**41},
        ["vocab_size is 2199023255552; wanted a whole number from 1 to 1099511627776"]),
    "a number without end": (
        {"vocab_size": 10**999}, ["vocab_size is a number of more than 30 digits; "
                                  "wanted a whole number from 1 to 1099511627776"]),
    "a layer of a list": ({"intermediate_size": [0, 5, -5]}, ["intermediate_size is -5" + WHOLE]),
    "experts": ({"num_experts": -1}, ["num_experts is -1; wanted a whole number from 0"]),
    "heads": ({"num_key_value_heads": 5}, [
        "num_attention_heads is 32, which is not a multiple of num_key_value_heads, 5"]),
    "hidden": ({"hidden_size": 4097}, [
        "hidden_size is 4097, which num_attention_heads, 32, does not divide, and there is no "
        "head_dim"]),
    "kinds": ({"layer_types": ["full_attention"]},
              ["layer_types has 1 layers, and num_hidden_layers is 32"]),
    "kinds that are none": ({"layer_types": 3},
                            ["layer_types is 3; wanted the kind of each layer"]),
    "a pattern": ({"hybrid_override_pattern": "M*"},
                  ["hybrid_override_pattern has 2 layers, and num_hidden_layers is 32"]),
    "more experts than there are": ({"num_experts": 4, "num_experts_per_tok": 8},
                                    ["num_experts_per_tok is 8, and there are 4 experts"]),
    "several": ({"num_hidden_layers": 0, "hidden_size": "x", "num_key_value_heads": 5}, [
        "num_hidden_layers is 0" + WHOLE, "hidden_size is 'x'" + WHOLE,
        "num_attention_heads is 32, which is not a multiple of num_key_value_heads, 5"]),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_what_cannot_be_names_the_field(case):
    changes, wanted = CONTRADICTIONS[case]
    assert contradictions({**LLAMA, **changes}) == wanted


def test_what_cannot_be_is_found_in_a_nested_config():
    assert contradictions({"text_config": {"num_hidden_layers": 0}}) == [
        "num_hidden_layers is 0" + WHOLE]


@pytest.mark.parametrize("changes", [
    dict.fromkeys(LLAMA), {"head_dim": 128, "hidden_size": 4097}, {"num_experts": 0},
    {"intermediate_size": [14336, 0]}, {"q_lora_rank": None}, {"unknown": -1}])
def test_what_is_missing_or_none_contradicts_nothing(changes):
    assert contradictions({**LLAMA, **changes}) == []


FIELDS = sorted({key for config in CONFIGS.values() for key in config}
                | {key for config, _ in KINDS.values() for key in config}
                | {"attn_type_list", "moe_layers", "text_config", "compression_config"})
SMALL = st.integers(-1, 9) | st.lists(
    st.integers(-1, 3) | st.sampled_from(["full_attention", "sliding_attention", "mamba"]),
    max_size=4)
TYPES = st.sampled_from(sorted({config["model_type"] for config in CONFIGS.values()}))
QUANTISED = st.dictionaries(
    st.sampled_from(["quant_method", "bits", "group_size", "config_groups", "load_in_4bit",
                     "quant_algo", "weight_block_size"]),
    SMALL | strategies.JSON | st.sampled_from(["awq", "fp8", "mxfp4", "modelopt"]))
JUNK = strategies.JSON | st.builds(
    lambda some, kind, quantised: {**some, **kind, **quantised},
    st.dictionaries(st.sampled_from(FIELDS), SMALL | strategies.JSON | st.integers()),
    st.fixed_dictionaries({}, optional={"model_type": TYPES}),
    st.fixed_dictionaries({}, optional={"quantization_config": QUANTISED}),
) | st.builds(
    lambda name, some: {**CONFIGS[name], **some}, st.sampled_from(sorted(CONFIGS)),
    st.dictionaries(st.sampled_from(FIELDS), SMALL | strategies.JSON, max_size=3))
OTHER = {"architecture", "tied_embeddings", "vision"}
MAY_BE_NONE_OF_THEM = {"sliding_layers", "attention_layers", "dense_layers",
                       "state_bytes_per_sequence"}


@given(config=JUNK)
def test_any_config_gives_counts_or_nothing(config):
    found = geometry(config)
    assert set(found) == set(model_config.GEOMETRY_KEYS)
    for key in set(found) - OTHER:
        least = 0 if key in MAY_BE_NONE_OF_THEM else 1
        assert found[key] is None or (type(found[key]) is int and found[key] >= least), key
    for key in ("sliding_layers", "attention_layers", "dense_layers"):
        assert not found[key] or found[key] <= found["layers"], key
    assert found["architecture"] is None or isinstance(found["architecture"], str)
    assert found["tied_embeddings"] in (None, True, False)
    quantised = quantisation(config)
    assert isinstance(quantised["method"], str)
    assert all(isinstance(one, str) for one in contradictions(config))
    counted = model_config.parameters(found)
    assert counted is None or counted["total"] > 0
    size = model_config.weight_bytes(found, quantised)
    assert size is None or size > 0


@given(shape=strategies.JSON | st.dictionaries(
    st.sampled_from(model_config.GEOMETRY_KEYS), SMALL | strategies.JSON),
    quantised=strategies.JSON | QUANTISED)
def test_any_shape_is_counted_or_not(shape, quantised):
    counted = model_config.parameters(shape)
    assert counted is None or counted["total"] > 0
    model_config.weight_bytes(shape, quantised)
