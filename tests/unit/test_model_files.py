# SPDX-License-Identifier: Apache-2.0
"""What a model is, is read from its headers; what is damaged is said to be, and never crashes."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import pathlib
import socket
import struct

import gguf
import numpy as np
import pytest
import strategies
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_configs import CONFIGS

from ansible.module_utils.firstlight import canary, model_config, model_files
from ansible.module_utils.firstlight.canary import tokenizer, weights
from ansible.module_utils.firstlight.model_files import BadModel, describe
from ansible.module_utils.firstlight.planning import served

# What a dense model with plain attention has none of.
PLAIN = {
    "vision": False, "kv_lora_rank": None, "rope_head_dim": None, "query_lora_rank": None,
    "sliding_window": None, "sliding_layers": 0, "state_bytes_per_sequence": 0, "experts": None,
    "experts_per_token": None, "moe_intermediate": None, "shared_intermediate": None,
}
CANARY_GEOMETRY = {
    **PLAIN, "architecture": "llama", "layers": weights.LAYERS, "hidden": weights.HIDDEN,
    "heads": weights.HEADS, "kv_heads": weights.KV_HEADS, "head_dim": weights.HEAD_DIM,
    "value_head_dim": weights.HEAD_DIM, "context": weights.CONTEXT,
    "vocabulary": tokenizer.VOCABULARY, "intermediate": weights.INTERMEDIATE,
    "tied_embeddings": False, "attention_layers": weights.LAYERS, "dense_layers": weights.LAYERS,
}
QWEN_GEOMETRY = {
    **PLAIN, "architecture": "qwen2", "layers": 24, "hidden": 896, "heads": 14, "kv_heads": 2,
    "head_dim": 64, "value_head_dim": 64, "context": 32768, "attention_layers": 24,
    "dense_layers": 24, "intermediate": None,
}


@pytest.fixture(scope="session")
def canary_files(tmp_path_factory):
    """A folder with the canary in both formats."""
    folder = tmp_path_factory.mktemp("canary")
    for name in canary.FILES:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(canary.content(name))
    return folder


def write_gguf(path, architecture="qwen2", tensors=("token_embd", "output"), **fields):
    """A small GGUF file; ``fields`` are by name with dots as double underscores."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in fields.items():
        name = name.replace("__", ".")
        if isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        else:
            writer.add_uint32(name, value)
    for name in tensors:
        writer.add_tensor(name, np.ones((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


QWEN = {"qwen2__block_count": 24, "qwen2__embedding_length": 896, "qwen2__context_length": 32768,
        "qwen2__attention__head_count": 14, "qwen2__attention__head_count_kv": 2}


def described(path):
    return describe(str(path))


def complaint(path):
    """What is said of a model that is not one; it names the path."""
    with pytest.raises(BadModel) as raised:
        described(path)
    assert str(path) in str(raised.value)
    return str(raised.value)


def test_the_canary_as_gguf_is_what_the_planner_takes_it_for(canary_files):
    found = described(canary_files / canary.GGUF)
    known = served.of_the_canary()
    assert found["geometry"] == known["geometry"] == CANARY_GEOMETRY
    for key in ("format", "quantisation", "bytes", "chat_template"):
        assert found[key] == known[key]
    assert found["files"] == 1


def test_the_canary_as_safetensors(canary_files):
    found = described(canary_files / canary.SAFETENSORS)
    assert found["format"] == "safetensors"
    assert found["geometry"] == CANARY_GEOMETRY
    assert found["quantisation"] == "BF16"
    assert found["bytes"] == canary.FILES["safetensors/model.safetensors"].size
    assert found["chat_template"]


def test_a_gguf_file_of_the_gguf_package(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", general__name="Qwen", general__file_type=7,
                      tokenizer__chat_template="{{ x }}",
                      tokenizer__ggml__tokens=["a", "b", "c"], **QWEN)
    found = described(path)
    assert found["geometry"] == {**QWEN_GEOMETRY, "vocabulary": 3, "tied_embeddings": None}
    assert (found["quantisation_bits"], found["quantisation_group"]) == (None, None)
    assert (found["name"], found["quantisation"], found["chat_template"]) == ("Qwen", "Q8_0", True)
    assert found["bytes"] == path.stat().st_size


GEOMETRY = {
    "a head size of its own": ({"qwen2__attention__key_length": 128}, "head_dim", 128),
    "KV heads by layer": ({"qwen2__attention__head_count_kv": [2, 4, 0]}, "kv_heads", 4),
    "KV heads left out": ({"qwen2__attention__head_count_kv": []}, "kv_heads", 14),
    "a vocabulary that is said": ({"qwen2__vocab_size": 99}, "vocabulary", 99),
    "layers that are no number": ({"qwen2__block_count": "many"}, "layers", None),
    "layers that are not a whole number": ({"qwen2__block_count": float("nan")}, "layers", None),
    "no layers": ({"qwen2__block_count": 0}, "layers", None),
    "more heads than numbers": ({"qwen2__attention__head_count": 9999}, "head_dim", None),
    "no heads": ({"qwen2__attention__head_count": 0}, "head_dim", None),
}


@pytest.mark.parametrize("case", GEOMETRY)
def test_a_geometry_is_known_or_null(tmp_path, case):
    fields, key, value = GEOMETRY[case]
    path = write_gguf(tmp_path / "m.gguf", **{**QWEN, **fields})
    assert described(path)["geometry"][key] == value


def fields_of(architecture, **fields):
    """Fields of an architecture, with the layers, heads and width of QWEN where they are not."""
    plain = {"block_count": 4, "embedding_length": 896, "attention__head_count": 14}
    return {"%s__%s" % (architecture, name): value for name, value in {**plain, **fields}.items()}


WINDOW = {"attention__sliding_window": 64}
MAMBA = {"ssm__conv_kernel": 4, "ssm__inner_size": 1792, "ssm__state_size": 16}
MAMBA_1 = 4 * (3 * 1792 + 1792 * 16)
MAMBA_2 = 4 * (3 * (1792 + 2 * 2 * 16) + 1792 * 16)
LATENT = {"attention__kv_lora_rank": 512, "attention__q_lora_rank": 1536,
          "rope__dimension_count": 64}
EXPERTS = {"expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": 96,
           "feed_forward_length": 512}
LAYERS_OF_EXPERTS = ["blk.1.ffn_gate_exps.weight", "blk.1.ffn_up_exps.weight",
                     "blk.3.ffn_up_exps.weight", "blk.0.ffn_gate.weight"]
SHAPES = {
    "a window in every second layer": ("gemma2", WINDOW, {
        "sliding_window": 64, "sliding_layers": 2, "attention_layers": 4}),
    "the window of its loader": ("gemma2", {}, {"sliding_window": 4096, "sliding_layers": 2}),
    "a window that is off": ("gemma2", {"attention__sliding_window": 0}, {
        "sliding_window": None, "sliding_layers": 0}),
    "no window": ("gemma3", {}, {"sliding_window": None, "sliding_layers": 0}),
    "a pattern of its own": (
        "gemma3", {**WINDOW, "attention__sliding_window_pattern": 4}, {"sliding_layers": 3}),
    "windows by layer": (
        "new", {**WINDOW, "attention__sliding_window_pattern": [True, False, False, False]},
        {"sliding_layers": 1}),
    "windows in none": (
        "new", {**WINDOW, "attention__sliding_window_pattern": [False] * 4},
        {"sliding_window": None, "sliding_layers": 0}),
    "windows by layers that are not these": (
        "new", {**WINDOW, "attention__sliding_window_pattern": [True]},
        {"sliding_window": 64, "sliding_layers": None}),
    "a window of unknown layers": ("new", WINDOW, {
        "sliding_window": 64, "sliding_layers": None}),
    "values of another size": (
        "new", {"attention__key_length": 192, "attention__value_length": 128},
        {"head_dim": 192, "value_head_dim": 128}),
    "one latent": ("deepseek2", {
        **LATENT, "attention__key_length": 576, "attention__value_length": 512,
        "attention__key_length_mla": 192, "attention__value_length_mla": 128}, {
        "kv_lora_rank": 512, "rope_head_dim": 64, "query_lora_rank": 1536, "head_dim": 192,
        "value_head_dim": 128}),
    "one latent, by an older converter": ("deepseek2", {
        **LATENT, "attention__key_length": 192, "attention__value_length": 128}, {
        "kv_lora_rank": 512, "head_dim": 192, "value_head_dim": 128}),
    "one latent of unknown heads": ("deepseek2", LATENT, {
        "kv_lora_rank": 512, "head_dim": None, "value_head_dim": None}),
    "experts": ("qwen3moe", EXPERTS, {
        "experts": 8, "experts_per_token": 2, "moe_intermediate": 96, "intermediate": 512,
        "shared_intermediate": None, "dense_layers": 2}),
    "shared experts": ("deepseek2", {**EXPERTS, "expert_shared_count": 2}, {
        "shared_intermediate": 192}),
    "a shared width": ("qwen2moe", {**EXPERTS, "expert_shared_feed_forward_length": 77}, {
        "shared_intermediate": 77}),
    "experts of a Mixtral": (
        "llama", {"expert_count": 8, "feed_forward_length": 512}, {"moe_intermediate": 512}),
    "experts of no width": ("new", {"expert_count": 8, "feed_forward_length": 512}, {
        "moe_intermediate": None}),
    "attention in one layer": (
        "jamba", {**MAMBA, "attention__head_count_kv": [0, 0, 2, 0]},
        {"attention_layers": 1, "state_bytes_per_sequence": 3 * MAMBA_1, "kv_heads": 2}),
    "MLPs of their own": (
        "nemotron_h", {**MAMBA, "ssm__group_count": 2, "attention__head_count_kv": [0, 0, 2, 0],
                       "feed_forward_length": [0, 512, 0, 0]},
        {"attention_layers": 1, "state_bytes_per_sequence": 2 * MAMBA_2}),
    "MLPs that are not said": (
        "nemotron_h", {**MAMBA, "attention__head_count_kv": [0, 0, 2, 0]},
        {"attention_layers": 1, "state_bytes_per_sequence": None}),
    "attention by interval": (
        "qwen3next", {**MAMBA, "ssm__group_count": 2, "full_attention_interval": 4},
        {"attention_layers": 1, "state_bytes_per_sequence": 3 * MAMBA_2}),
    "attention and Mamba in each layer": ("falcon-h1", MAMBA, {
        "attention_layers": 4, "state_bytes_per_sequence": 4 * MAMBA_1}),
    "Mamba alone": ("mamba", MAMBA, {
        "attention_layers": 0, "state_bytes_per_sequence": 4 * MAMBA_1}),
    "short convolutions": (
        "lfm2", {"shortconv__l_cache": 3, "attention__head_count_kv": [0, 2, 0, 0]},
        {"attention_layers": 1, "state_bytes_per_sequence": 3 * 4 * 2 * 896}),
    "a hybrid that is not known": ("new", MAMBA, {
        "attention_layers": None, "state_bytes_per_sequence": None}),
    "layers without attention": ("deci", {"attention__head_count_kv": [2, 0, 2, 2]}, {
        "attention_layers": 3, "state_bytes_per_sequence": 0}),
    "no heads": ("rwkv7", {"attention__head_count": 0}, {"attention_layers": None}),
    "no layers": ("llama", {"block_count": 0}, {
        "attention_layers": None, "sliding_layers": None, "dense_layers": None,
        "state_bytes_per_sequence": None}),
}


@pytest.mark.parametrize("case", SHAPES)
def test_the_shape_of_a_gguf_file(tmp_path, case):
    architecture, fields, wanted = SHAPES[case]
    path = write_gguf(tmp_path / "m.gguf", architecture, LAYERS_OF_EXPERTS,
                      **fields_of(architecture, **fields))
    found = described(path)["geometry"]
    assert set(found) == set(model_config.GEOMETRY_KEYS)
    assert {key: found[key] for key in wanted} == wanted


@pytest.mark.parametrize(("tensors", "tied"), [
    (["token_embd.weight"], True), (["token_embd.weight", "output.weight"], False),
    (["other"], None)])
def test_a_gguf_file_without_a_head_has_that_of_its_embeddings(tmp_path, tensors, tied):
    path = write_gguf(tmp_path / "m.gguf", tensors=tensors, **QWEN)
    assert described(path)["geometry"]["tied_embeddings"] is tied


def test_the_tensors_of_a_split_gguf_file_are_those_of_all_parts(tmp_path):
    for number, names in enumerate((["token_embd.weight", "blk.0.a"], ["blk.1.a"],
                                    ["output.weight"])):
        write_gguf(tmp_path / ("m-%05d-of-00003.gguf" % (number + 1)), tensors=names,
                   split__count=3, **(QWEN if number == 0 else {}))
    found = described(tmp_path / "m-00001-of-00003.gguf")
    # Each is of 4 x 32 numbers of 4 bytes.
    assert found["tensors"] == {
        "embedding_bytes": 512, "head_bytes": 512, "other_bytes": 1024}
    assert found["geometry"]["tied_embeddings"] is False


@pytest.mark.parametrize("file_type", [9999, [1, 2], "Q8_0", 1.5])
def test_a_file_type_that_is_not_known_is_called_unknown(tmp_path, file_type):
    path = write_gguf(tmp_path / "m.gguf", general__file_type=file_type)
    assert described(path)["quantisation"] == "unknown"


def test_a_long_array_is_skipped_and_counted(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", tokenizer__ggml__tokens=["t"] * 5000,
                      tokenizer__ggml__scores=[0.5] * 5000, **QWEN)
    assert described(path)["geometry"]["vocabulary"] == 5000


def test_the_fingerprint_follows_content_and_replacement(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", **QWEN)
    first = described(path)["fingerprint"]
    assert described(path)["fingerprint"] == first
    os.utime(path, ns=(1, 1))
    second = described(path)["fingerprint"]
    write_gguf(path, general__name="other", **QWEN)
    os.utime(path, ns=(1, 1))
    assert len({first, second, described(path)["fingerprint"]}) == 3


BAD_GGUF = {
    "empty": b"",
    "a page of a web server": b"<!DOCTYPE html>" * 100,
    "a pointer of git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "only the magic": b"GGUF",
    "version 1": b"GGUF" + struct.pack("<IQQ", 1, 1, 0),
    "other byte order": b"GGUF" + struct.pack(">IQQ", 3, 1, 0),
    "no tensors": b"GGUF" + struct.pack("<IQQ", 3, 0, 0),
    "too many tensors": b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0),
    "too many fields": b"GGUF" + struct.pack("<IQQ", 3, 1, 2**63),
    "a key as long as memory": b"GGUF" + struct.pack("<IQQQ", 3, 1, 1, 2**63),
    "an array as long as memory":
        b"GGUF" + struct.pack("<IQQQcIIQ", 3, 1, 1, 1, b"k", 9, 4, 2**62),
    "an array of texts as long as memory":
        b"GGUF" + struct.pack("<IQQQcIIQ", 3, 1, 1, 1, b"k", 9, 8, 2**62),
    "an array of arrays": b"GGUF" + struct.pack("<IQQQcIIQ", 3, 1, 1, 1, b"k", 9, 9, 1),
    "a field of an unknown type": b"GGUF" + struct.pack("<IQQQcI", 3, 1, 1, 1, b"k", 99),
    "a tensor of many dimensions":
        b"GGUF" + struct.pack("<IQQQcI", 3, 1, 0, 1, b"t", 2**31) + bytes(100),
    "no architecture":
        b"GGUF" + struct.pack("<IQQQcIQIQ", 3, 1, 0, 1, b"t", 1, 1, 0, 0) + bytes(64),
}


@pytest.mark.parametrize("case", BAD_GGUF)
def test_what_is_no_gguf_file_is_said_to_be_none(tmp_path, case):
    (tmp_path / "m.gguf").write_bytes(BAD_GGUF[case])
    complaint(tmp_path / "m.gguf")


def test_a_gguf_file_whose_tensors_overlap_is_refused(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", tensors=["a", "b"], **QWEN)
    content = path.read_bytes()
    of_b = b"b" + struct.pack("<IQQIQ", 2, 32, 4, 0, 512)
    assert content.count(of_b) == 1
    content = content.replace(of_b, of_b[:-8] + bytes(8))
    path.write_bytes(content[:-512])
    assert "overlap" in complaint(path)


@pytest.mark.parametrize("alignment", [0, "32", [32], 1.5])
def test_an_alignment_that_is_no_size_is_refused(tmp_path, alignment):
    path = write_gguf(tmp_path / "m.gguf", general__alignmenu=alignment, **QWEN)
    path.write_bytes(path.read_bytes().replace(b"alignmenu", b"alignment"))
    assert "alignment" in complaint(path)


def test_a_gguf_file_cut_at_any_byte_is_truncated(tmp_path):
    whole = write_gguf(tmp_path / "m.gguf", tensors=["t"],
                       tokenizer__ggml__tokens=["a", "b"], **QWEN).read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        complaint(cut)
    cut.write_bytes(whole)
    assert described(cut)["bytes"] == len(whole)


@pytest.mark.parametrize("kind", sorted(model_files.TENSOR_TYPES))
def test_a_tensors_size_is_what_the_gguf_package_says(kind):
    sizes = {int(key): value for key, value in gguf.constants.GGML_QUANT_SIZES.items()}
    assert model_files.TENSOR_TYPES[kind] == sizes[kind]


def test_a_cut_gguf_file_says_how_much_there_should_be(canary_files, tmp_path):
    whole = (canary_files / canary.GGUF).read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    said = complaint(tmp_path / "cut.gguf")
    assert "%d bytes" % (len(whole) // 2) in said
    assert "promises %d" % len(whole) in said


def test_a_tensor_of_a_type_that_is_not_known_is_not_called_truncated(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", tensors=["t"], **QWEN)
    content = path.read_bytes()
    of_type = struct.pack("<QQI", 32, 4, 0)
    assert content.count(of_type) == 1
    path.write_bytes(content.replace(of_type, struct.pack("<QQI", 32, 4, 9999)))
    found = described(path)
    assert found["geometry"]["layers"] == 24
    assert found["tensors"] is None


@pytest.fixture(scope="session")
def small_gguf(tmp_path_factory):
    path = write_gguf(tmp_path_factory.mktemp("small") / "m.gguf", tensors=["t"],
                      general__file_type=7, tokenizer__ggml__tokens=["a", "b"],
                      general__name="Qwen", x__scores=[0.5, 1.5], **QWEN)
    return path.read_bytes()


MUTATIONS = st.lists(
    st.tuples(st.integers(0, 10**6),
              st.binary(min_size=1, max_size=8) | st.integers(0, 2**64 - 1).map(
                  lambda number: struct.pack("<Q", number))),
    min_size=1, max_size=4)


def mutated(whole, changes, header):
    content = bytearray(whole)
    for at, new in changes:
        at %= header
        content[at:at + len(new)] = new
    return bytes(content)


def describe_or_complain(path):
    """Any other exception is the failure that is looked for."""
    try:
        found = described(path)
    except BadModel:
        return
    assert all(value is None or isinstance(value, int) and value >= 0
               for key, value in found["geometry"].items() if key != "architecture")
    if found["tensors"]:
        assert min(found["tensors"].values()) >= 0
        assert sum(found["tensors"].values()) <= found["bytes"]
    json.dumps(found)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=MUTATIONS)
def test_a_gguf_file_with_any_bytes_changed_is_described_or_refused(small_gguf, tmp_path, changes):
    path = tmp_path / "m.gguf"
    path.write_bytes(mutated(small_gguf, changes, len(small_gguf)))
    describe_or_complain(path)


def write_split(folder, count=3, first=("a",), **fields):
    """A model in parts, as llama.cpp's gguf-split names and fills them."""
    return [
        write_gguf(folder / ("m-%05d-of-%05d.gguf" % (number + 1, count)),
                   tensors=first if number == 0 else ["t%d" % number],
                   split__count=count, split__no=number, **(QWEN if number == 0 else {}), **fields)
        for number in range(count)
    ]


@pytest.mark.parametrize("first", [["a"], []], ids=["with tensors", "with fields alone"])
def test_a_split_model_is_all_of_its_parts(tmp_path, first):
    parts = write_split(tmp_path, first=first)
    found = described(parts[0])
    assert found["files"] == 3
    assert found["bytes"] == sum(part.stat().st_size for part in parts)
    assert found["geometry"]["layers"] == 24
    os.utime(parts[2], ns=(1, 1))
    assert described(parts[0])["fingerprint"] != found["fingerprint"]


def test_a_split_model_without_a_part_names_it(tmp_path):
    parts = write_split(tmp_path)
    parts[1].unlink()
    assert parts[1].name in complaint(parts[0])


def test_a_split_model_with_a_cut_part_names_it(tmp_path):
    parts = write_split(tmp_path)
    parts[2].write_bytes(parts[2].read_bytes()[:-200])
    with pytest.raises(BadModel, match=parts[2].name + ": truncated"):
        described(parts[0])


def test_a_split_model_must_be_given_by_its_first_part(tmp_path):
    assert "00001-of-00003" in complaint(write_split(tmp_path)[1])


def test_a_part_of_another_model_is_told(tmp_path):
    parts = write_split(tmp_path)
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(BadModel, match=parts[1].name + ": split.no is 2 in it, wanted 1"):
        described(parts[0])


def test_parts_that_hold_less_than_the_first_promises_are_told(tmp_path):
    parts = write_split(tmp_path, split__tensors__count=4)
    assert "3 tensors in its 3 parts, and it promises 4" in complaint(parts[0])


def test_what_a_gguf_file_says_of_itself_is_told_in_short_values(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", general__type="model", general__size_label="0.5B",
                      general__x="y" * 300, general__y=float("nan"), general__z="a\x1bb",
                      tokenizer__ggml__model="gpt2", tokenizer__ggml__tokens=["a", "b"],
                      tokenizer__ggml__bos_token_id=1, **QWEN)
    found = described(path)["metadata"]
    assert found == {
        "general.architecture": "qwen2", "general.type": "model", "general.size_label": "0.5B",
        "general.y": None, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": 2,
        "tokenizer.ggml.bos_token_id": 1}


def test_texts_are_skipped_across_the_parts_in_which_a_file_is_read(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "m.gguf", tokenizer__ggml__tokens=["t" * (7 + n % 90)
                      for n in range(3000)], **QWEN)
    whole = described(path)
    for size in (16, 97, 4096):
        monkeypatch.setattr(model_files, "CHUNK", size)
        assert described(path) == whole


def test_safetensors_in_the_place_of_a_gguf_file_are_given_by_their_folder(directory):
    assert "give that" in complaint(directory / "model.safetensors")


@pytest.mark.parametrize("name", ["model.gguf", "m-00001-of-00004.gguf", "m-1-of-3.gguf"])
def test_a_part_that_was_renamed_says_the_name_it_needs(tmp_path, name):
    renamed = write_split(tmp_path)[0].rename(tmp_path / name)
    assert "00001-of-00003.gguf" in complaint(renamed)


INDEX = "model.safetensors.index.json"
CONFIG = {"model_type": "qwen2", "num_hidden_layers": 24, "hidden_size": 896,
          "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768,
          "vocab_size": 151936}


def safetensors_file(header, data=64):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


TENSORS = {"__metadata__": {"format": "pt"},
           "a": {"dtype": "BF16", "shape": [16], "data_offsets": [0, 32]},
           "b": {"dtype": "BF16", "shape": [16], "data_offsets": [32, 64]}}


@pytest.fixture
def directory(tmp_path):
    """A directory of safetensors that is whole."""
    folder = tmp_path / "qwen"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes(safetensors_file(TENSORS))
    return folder


def test_a_directory_of_safetensors(directory):
    found = described(directory)
    assert found["geometry"] == {
        **QWEN_GEOMETRY, "vocabulary": 151936, "tied_embeddings": False}
    assert (found["name"], found["quantisation"], found["files"]) == ("qwen", "BF16", 1)
    assert found["chat_template"] is False


@pytest.mark.parametrize(("config", "quantisation"), [
    ({"quantization_config": {"quant_method": "awq"}}, "awq"),
    ({"quantization_config": {}}, "BF16"), ({"quantization_config": "awq"}, "BF16"),
])
def test_the_quantisation_is_that_of_the_config_or_of_most_tensors(
        directory, config, quantisation):
    (directory / "config.json").write_text(json.dumps({**CONFIG, **config}))
    assert described(directory)["quantisation"] == quantisation


@pytest.mark.parametrize(("name", "method", "bits", "group"), [
    ("Qwen2.5-7B-AWQ", "awq", 4, 128), ("Llama-3.1-70B-FP8", "compressed-tensors", 8, None),
    ("Qwen2.5-7B", "BF16", None, None)])
def test_quantised_weights_have_bits_and_groups(directory, name, method, bits, group):
    (directory / "config.json").write_text(json.dumps(CONFIGS[name]))
    found = described(directory)
    assert (found["quantisation"], found["quantisation_bits"], found["quantisation_group"]) == (
        method, bits, group)


@pytest.mark.parametrize("value", ["24", 24.5, -1, 0, True, [24], {}])
def test_numbers_of_the_config_that_are_no_counts_are_refused_all_at_once(directory, value):
    fields = [key for key in CONFIG if key != "model_type"]
    (directory / "config.json").write_text(json.dumps(
        {**CONFIG, **dict.fromkeys(set(fields) - {"num_key_value_heads"}, value)}))
    said = complaint(directory)
    assert str(directory / "config.json") in said
    for field in set(fields) - {"num_key_value_heads"}:
        assert "%s is " % field in said


def test_numbers_that_the_config_leaves_out_are_null(directory):
    (directory / "config.json").write_text(json.dumps(dict.fromkeys(CONFIG)))
    geometry = described(directory)["geometry"]
    assert {geometry[key] for key in geometry if key not in ("vision", "tied_embeddings")} == {None}


def test_a_config_that_contradicts_itself_is_refused(directory):
    (directory / "config.json").write_text(json.dumps({
        **CONFIG, "num_key_value_heads": 5, "layer_types": ["full_attention"]}))
    said = complaint(directory)
    assert "not a multiple of num_key_value_heads" in said
    assert "layer_types has 1 layers" in said


def weights_of(*names, size=32):
    return {name: {"dtype": "BF16", "shape": [size // 2],
                   "data_offsets": [size * number, size * number + size]}
            for number, name in enumerate(names)}


TABLES = {
    "both": (["model.embed_tokens.weight", "lm_head.weight"], (32, 32, 0), False),
    "one": (["model.embed_tokens.weight", "model.norm.weight"], (32, 0, 32), True),
    "other names": (["transformer.wte.weight", "output.weight"], (32, 32, 0), False),
    "a quantised head": (["lm_head.qweight", "lm_head.scales"], (0, 64, 0), None),
    "names that only look so": (
        ["a.attention.output.weight", "embed_tokens_per_layer.weight"], (0, 0, 64), None),
}


@pytest.mark.parametrize("case", TABLES)
def test_the_tables_of_a_directory_are_told_from_the_rest(directory, case):
    names, sizes, tied = TABLES[case]
    # A class whose default is not known, so that the tensors say whether they are tied.
    (directory / "config.json").write_text(json.dumps({**CONFIG, "model_type": "new"}))
    (directory / "model.safetensors").write_bytes(safetensors_file(weights_of(*names)))
    found = described(directory)
    assert tuple(found["tensors"][key] for key in (
        "embedding_bytes", "head_bytes", "other_bytes")) == sizes
    assert found["geometry"]["tied_embeddings"] is tied


def test_the_tensors_of_all_files_are_added(directory):
    (directory / "model.safetensors").write_bytes(safetensors_file(
        weights_of("model.embed_tokens.weight", "a")))
    (directory / "more.safetensors").write_bytes(safetensors_file(
        weights_of("lm_head.weight", "b", size=16)))
    assert described(directory)["tensors"] == {
        "embedding_bytes": 32, "head_bytes": 16, "other_bytes": 48}


@pytest.mark.parametrize(("name", "content", "there"), [
    ("chat_template.jinja", "{{ x }}", True),
    ("tokenizer_config.json", '{"chat_template": "{{ x }}"}', True),
    ("chat_template.json", '{"chat_template": "{{ x }}"}', True),
    ("tokenizer_config.json", "{}", False), ("tokenizer_config.json", "[]", False),
    ("tokenizer_config.json", "not JSON", False),
])
def test_a_chat_template_is_looked_for_in_both_places(directory, name, content, there):
    (directory / name).write_text(content)
    assert described(directory)["chat_template"] is there


BAD_CONFIGS = {
    "empty object": (b"{}", "a dummy"), "empty file": (b"", "an empty file"),
    "not JSON": (b"<html>", "not JSON"), "a list": (b"[1]", "empty"),
    "not text": (b"\xff\xfe\x00", "not JSON"), "nested beyond reason": (b"[" * 10**5, "not JSON"),
    "a number without end": (b'{"a": %s}' % (b"9" * 10**6), "a number of 1000000 digits"),
    "a pointer of git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
                             "git lfs pull"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_config_that_is_none_is_said_to_be_none(directory, case):
    content, said = BAD_CONFIGS[case]
    (directory / "config.json").write_bytes(content)
    assert said in complaint(directory)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_file_of_json_that_is_too_long_is_not_read(directory, name):
    with open(directory / name, "wb") as file:
        file.truncate(model_files.MAX_HEADER + 1)
    assert "too many" in complaint(directory)


def test_a_directory_without_a_config_or_without_weights_says_which(directory):
    (directory / "model.safetensors").unlink()
    assert "no *.safetensors" in complaint(directory)
    (directory / "config.json").unlink()
    said = complaint(directory)
    assert "no *.safetensors" in said
    assert "no config.json" in said


def test_a_config_of_too_many_values_is_not_made_into_objects(directory, monkeypatch):
    monkeypatch.setattr(model_files, "MAX_VALUES", 100)
    (directory / "config.json").write_text(json.dumps({**CONFIG, "x": [[]] * 100}))
    assert "more than 100 values" in complaint(directory)


def test_to_read_json_leaves_the_collector_as_it_was(directory):
    for switch in (gc.disable, gc.enable):
        switch()
        was = gc.isenabled()
        described(directory)
        assert gc.isenabled() is was


@pytest.mark.parametrize(("config", "dtype"), [
    ({"torch_dtype": "bfloat16"}, "bf16"), ({"dtype": "torch.float16"}, "f16"), ({}, None),
    ({"torch_dtype": "complex"}, None)])
def test_the_type_is_what_the_config_says(directory, config, dtype):
    (directory / "config.json").write_text(json.dumps({**CONFIG, **config}))
    assert described(directory)["dtype"] == dtype


NOT_PLAIN = {
    "a FIFO": lambda place: os.mkfifo(place), "a directory": lambda place: place.mkdir(),
    "a link to a device": lambda place: place.symlink_to("/dev/zero"),
    "a socket": lambda place: socket.socket(socket.AF_UNIX).bind(str(place)),
}


@pytest.mark.parametrize("case", NOT_PLAIN)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", INDEX])
def test_what_is_no_plain_file_is_not_opened(tmp_path, monkeypatch, case, name):
    # The path of a socket is short.
    monkeypatch.chdir(tmp_path)
    folder = pathlib.Path("m")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes(safetensors_file(TENSORS))
    with contextlib.suppress(FileNotFoundError):
        (folder / name).unlink()
    NOT_PLAIN[case](folder / name)
    assert "not a plain file" in complaint(folder)


def test_a_gguf_file_that_is_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "m.gguf")
    assert "a FIFO, not a plain file" in complaint(tmp_path / "m.gguf")


def test_what_becomes_a_fifo_after_it_was_looked_at_is_not_waited_for(tmp_path, monkeypatch):
    plain, fifo = tmp_path / "plain", tmp_path / "m.gguf"
    plain.write_bytes(b"")
    os.mkfifo(fifo)
    looked = os.stat(plain)
    monkeypatch.setattr(os, "stat", lambda path: looked)
    assert "a FIFO, not a plain file" in complaint(fifo)


def test_everything_that_is_wrong_with_a_directory_is_told_at_once(directory):
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"")
    (directory / "more.safetensors").write_bytes(safetensors_file(TENSORS)[:-1])
    with pytest.raises(BadModel) as raised:
        described(directory)
    assert len(raised.value.args) == 3
    assert "config.json" in raised.value.args[0]
    assert "model.safetensors" in raised.value.args[1]
    assert "more.safetensors: truncated" in raised.value.args[2]


def test_a_pointer_of_git_lfs_is_no_shard(directory):
    (directory / "model.safetensors").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    assert "git lfs pull" in complaint(directory)


def pickles(directory, *names):
    (directory / "model.safetensors").unlink()
    for name in names:
        (directory / name).write_bytes(b"\x80\x04cos\nsystem\n.")
    return described(directory)


@pytest.mark.parametrize("names", [["pytorch_model.bin"], ["a.pt", "b.pth"], ["last.ckpt"]])
def test_pickles_are_told_by_their_sizes_and_the_config(directory, names):
    found = pickles(directory, *names, "training_args.bin", "optimizer.pt", "rng_state_0.pth")
    assert (found["format"], found["weights"]) == ("pickle", names)
    assert found["bytes"] == 14 * len(names)
    assert (found["tensors"], found["quantisation"]) == (None, "unknown")
    assert found["geometry"]["layers"] == 24


def test_what_training_left_is_no_weights(directory):
    with pytest.raises(BadModel, match="no \\*.safetensors"):
        pickles(directory, "training_args.bin", "scheduler.pt")


def test_pickles_have_an_index_too(directory):
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(
        {"weight_map": {"a": "pytorch_model-00001-of-00002.bin",
                        "b": "pytorch_model-00002-of-00002.bin"}}))
    with pytest.raises(BadModel, match="pytorch_model-00002-of-00002.bin"):
        pickles(directory, "pytorch_model-00001-of-00002.bin")


def test_beside_safetensors_pickles_are_nothing(directory):
    (directory / "pytorch_model.bin").write_bytes(b"x")
    found = described(directory)
    assert (found["format"], found["files"], found["extra"]) == ("safetensors", 1, {})


BAD_HEADERS = {
    "not JSON": b"{'a'}", "a list": b"[]", "no object": b"12", "not text": b"\xff\xff",
    "only metadata": {"__metadata__": {}}, "a tensor that is a list": {"a": []},
    "a tensor without a type": {"a": {"data_offsets": [0, 1]}},
    "a tensor without offsets": {"a": {"dtype": "F32"}},
    "one offset": {"a": {"dtype": "F32", "data_offsets": [0]}},
    "offsets in words": {"a": {"dtype": "F32", "data_offsets": [0, "end"]}},
    "offsets without end": b'{"a": {"dtype": "F32", "data_offsets": [0, Infinity]}}',
    "an end before the start": {"a": {"dtype": "F32", "data_offsets": [9, 4]}},
    "a start before the file": {"a": {"dtype": "F32", "data_offsets": [-4, 4]}},
    "tensors over each other": {name: {"dtype": "F32", "data_offsets": [0, 8]} for name in "ab"},
    "an end beyond the file": {"a": {"dtype": "F32", "data_offsets": [0, 65]}},
    "nested beyond reason": b'{"a":' * 10**5,
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_a_safetensors_header_that_is_none_is_refused(directory, case):
    (directory / "model.safetensors").write_bytes(safetensors_file(BAD_HEADERS[case]))
    assert "model.safetensors" in complaint(directory)


def test_a_header_longer_than_memory_is_not_read(directory):
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    assert "does not fit" in complaint(directory)


def test_a_safetensors_file_cut_at_any_byte_is_refused(directory):
    whole = safetensors_file(TENSORS)
    for length in range(len(whole)):
        (directory / "model.safetensors").write_bytes(whole[:length])
        assert "model.safetensors" in complaint(directory)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=MUTATIONS)
def test_a_safetensors_file_with_any_bytes_changed_is_described_or_refused(directory, changes):
    whole = safetensors_file(TENSORS)
    (directory / "model.safetensors").write_bytes(mutated(whole, changes, len(whole) - 64))
    describe_or_complain(directory)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=st.dictionaries(
    st.sampled_from([*CONFIG, "head_dim", "quantization_config", "text_config"]),
    strategies.JSON))
def test_a_config_of_any_values_is_described_or_refused(directory, config):
    (directory / "config.json").write_text(json.dumps(config))
    describe_or_complain(directory)



def test_a_part_that_the_index_names_and_that_is_not_there_is_named(directory):
    (directory / INDEX).write_text(json.dumps(
        {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}))
    assert "model-00002-of-00002.safetensors" in complaint(directory)


def shard(directory, name, *tensors):
    (directory / name).write_bytes(safetensors_file(weights_of(*tensors)))


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def parts(directory):
    """A model in two parts with an index that is true."""
    (directory / "model.safetensors").unlink()
    shard(directory, FIRST, "a", "b")
    shard(directory, SECOND, "c")
    (directory / INDEX).write_text(json.dumps(
        {"weight_map": {"a": FIRST, "b": FIRST, "c": SECOND}}))
    return directory


def test_a_model_in_parts_is_whole_with_its_index(parts):
    found = described(parts)
    assert (found["weights"], found["extra"]) == ([FIRST, SECOND], {})


def test_a_tensor_in_another_file_than_the_index_names_is_told(parts):
    shard(parts, FIRST, "a")
    shard(parts, SECOND, "b", "c")
    said = complaint(parts)
    assert "b is in %s, not in %s" % (SECOND, FIRST) in said


def test_a_file_that_has_none_of_its_tensors_is_another_one(parts):
    shard(parts, SECOND, "d")
    assert "c of " + SECOND in complaint(parts)


def test_tensors_that_no_file_has_are_told_and_the_model_is_read(parts):
    """As converters write it that leave tied tensors out."""
    (parts / INDEX).write_text(json.dumps({"weight_map": {
        "a": FIRST, "b": FIRST, "c": SECOND, "lm_head.weight": SECOND}}))
    assert described(parts)["absent"] == ["lm_head.weight"]


def fingerprint_as_it_was(directory):
    """Of the config and of all files of safetensors, whatever names them."""
    digest = hashlib.sha256(json.dumps(
        json.loads((directory / "config.json").read_text()), sort_keys=True).encode())
    for path in sorted(directory.glob("*.safetensors")):
        digest.update(b"%d %d\n" % (path.stat().st_size, path.stat().st_mtime_ns))
    return digest.hexdigest()


def test_a_fingerprint_is_that_of_earlier_releases(parts):
    assert described(parts)["fingerprint"] == fingerprint_as_it_was(parts)
    shard(parts, "consolidated.safetensors", "a", "b", "c")
    assert described(parts)["fingerprint"] == fingerprint_as_it_was(parts)


def test_hidden_files_are_not_the_models(directory):
    """Such as macOS leaves on a share."""
    before = described(directory)
    (directory / "._model.safetensors").write_bytes(b"Mac OS X")
    assert described(directory) == before


def test_a_tensor_that_two_files_have_is_told(parts):
    shard(parts, SECOND, "b", "c")
    assert "1 tensors are in two files: b in" in complaint(parts)


def test_weights_that_the_index_does_not_name_are_not_the_models(parts):
    whole = described(parts)
    shard(parts, "consolidated.safetensors", "a", "b", "c")
    found = described(parts)
    assert found["bytes"] == whole["bytes"]
    assert list(found["extra"]) == ["consolidated.safetensors"]
    assert found["extra"]["consolidated.safetensors"] == (
        parts / "consolidated.safetensors").stat().st_size


def test_without_an_index_a_second_copy_is_not_the_models_either(directory):
    shard(directory, "consolidated.00.safetensors", "a")
    assert list(described(directory)["extra"]) == ["consolidated.00.safetensors"]
    (directory / "model.safetensors").unlink()
    assert described(directory)["weights"] == ["consolidated.00.safetensors"]


def test_without_an_index_the_names_of_the_parts_say_which_are_missing(parts):
    (parts / INDEX).unlink()
    assert described(parts)["files"] == 2
    (parts / FIRST).unlink()
    assert "1 of 2 parts are missing: " + FIRST in complaint(parts)


def test_parts_without_end_are_not_counted_to_the_end(directory):
    shard(directory, "model-00001-of-99999.safetensors", "c")
    assert "of 99999 parts are missing" in complaint(directory)


@pytest.mark.parametrize("name", ["/etc/shadow", "../model.safetensors", "a/b.safetensors", ".."])
def test_an_index_leads_nowhere_else(directory, name):
    (directory / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    assert "not beside it: " + name in complaint(directory)


def test_a_link_to_a_part_that_is_not_there_says_where_it_leads(parts):
    (parts / SECOND).unlink()
    (parts / SECOND).symlink_to("../../blobs/0123")
    said = complaint(parts)
    assert SECOND + ": a link to ../../blobs/0123, which is not there" in said


def test_a_whole_index_is_no_matter(directory):
    (directory / INDEX).write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    assert described(directory)["files"] == 1


@pytest.mark.parametrize("content", ["{}", "[]", "not JSON", '{"weight_map": ["a"]}'])
def test_an_index_that_is_none_is_refused(directory, content):
    (directory / INDEX).write_text(content)
    assert INDEX in complaint(directory)


def test_a_path_with_marks_of_a_pattern_is_a_path(directory):
    odd = directory.rename(directory.parent / "[qwen] *?")
    assert described(odd)["files"] == 1


def test_what_is_not_there_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        described(tmp_path / "none.gguf")
