# SPDX-License-Identifier: Apache-2.0
"""In which ways a model can be split over devices, and why not in the others."""

from __future__ import annotations

import planner
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible.module_utils.firstlight.planning import parallelism
from ansible.module_utils.firstlight.planning.memory import Layout

KERNELS = {(row["engine"], row["method"]): row
           for row in planner.catalog()["quantisation_kernels"]}
BFLOAT16 = KERNELS["vllm", "bfloat16"]
AWQ, FP8 = KERNELS["vllm", "awq"], KERNELS["vllm", "fp8"]
TENSORS = KERNELS["vllm", "compressed-tensors"]


def model(name, **geometry):
    found = planner.model(name)
    return {**found, "geometry": {**found["geometry"], **geometry}}


def layouts(of, kernel, devices, split=None):
    return parallelism.layouts("vllm", of, kernel, devices, split)


LLAMA_70B, LLAMA_AWQ = model("Llama-3.1-70B"), model("Llama-3.1-70B-AWQ")


# Objections.


@pytest.mark.parametrize(("of", "kernel", "split", "why"), [
    (LLAMA_70B, BFLOAT16, 3, "3 does not divide its 64 attention heads"),
    (LLAMA_70B, BFLOAT16, 6, "6 does not divide its 64 attention heads"),
    (model("Qwen2.5-7B"), BFLOAT16, 8, "8 does not divide its 28 attention heads"),
    # 28 heads of queries and 4 of keys: neither divides the other.
    (model("Qwen2.5-7B"), BFLOAT16, 14, "14 and its 4 key heads do not divide each other"),
    (model("Llama-3.1-70B", kv_heads=10), BFLOAT16, 4,
     "4 and its 10 key heads do not divide each other"),
    (model("Llama-3.1-70B", intermediate=28674), BFLOAT16, 4,
     "4 does not divide its MLP width of 28674"),
    (model("Llama-3.1-70B-AWQ", intermediate=18944), AWQ, 8,
     "a split in 8 leaves 2368 of its MLP width of 18944, and awq needs multiples of 128"),
    # Known of Qwen2.5-72B, which was padded for it.
    (model("Llama-3.1-70B-AWQ", intermediate=29568), AWQ, 2,
     "a split in 2 leaves 14784 of its MLP width of 29568, and awq needs multiples of 128"),
    # Without groups the kernel's own tile decides.
    (model("Llama-3.1-70B-FP8", intermediate=18944), TENSORS, 8,
     "a split in 8 leaves 2368 of its MLP width of 18944, and compressed-tensors needs multiples "
     "of 128"),
    # Blocks of 128 in experts 2048 wide.
    (model("DeepSeek-V3", intermediate=16384), FP8, 32,
     "a split in 32 leaves 64 of its experts' width of 2048, and fp8 needs multiples of 128"),
    (model("Mixtral-8x7B", moe_intermediate=14344), BFLOAT16, 16,
     "16 does not divide its experts' width of 14344"),
    # The one layer without experts has a width of its own.
    (model("DeepSeek-V2-Lite", intermediate=10948), BFLOAT16, 8,
     "8 does not divide its MLP width of 10948"),
])
def test_what_cannot_be_split_says_why(of, kernel, split, why):
    assert parallelism.objection(of, kernel, split) == why


@pytest.mark.parametrize(("of", "kernel", "split"), [
    *((LLAMA_70B, BFLOAT16, split) for split in (1, 2, 4, 8, 16, 32, 64)),
    *((LLAMA_AWQ, AWQ, split) for split in (1, 2, 4, 8)),
    *((model("Qwen2.5-7B"), BFLOAT16, split) for split in (1, 2, 4)),
    *((model("Qwen2.5-7B-AWQ"), AWQ, split) for split in (1, 2, 4)),
    (model("Llama-2-13b"), BFLOAT16, 8),
    # Any width is as it is on one device, whatever its groups.
    (model("Llama-3.1-70B-AWQ", intermediate=18945), AWQ, 1),
    # Without a kernel, or with one that takes any, only whole shares count.
    (model("Llama-3.1-70B-AWQ", intermediate=18944), None, 8),
    (model("Llama-3.1-70B", intermediate=18944), BFLOAT16, 8),
    # A latent is on every device in whole, so key heads are not divided.
    (model("DeepSeek-V3", kv_heads=10), FP8, 16),
    # The width of an MLP that no layer has.
    (model("Qwen3-30B-A3B", intermediate=6146), BFLOAT16, 8),
])
def test_what_can_be_split_has_no_objection(of, kernel, split):
    assert parallelism.objection(of, kernel, split) == ""


@pytest.mark.parametrize("group", [32, 64, 256])
def test_the_models_own_group_decides_and_not_the_usual_one(group):
    of = {**model("Llama-3.1-70B-AWQ", intermediate=8 * 3 * group), "quantisation_group": group}
    assert parallelism.objection(of, AWQ, 8) == ""
    assert "multiples of %d" % group in parallelism.objection(
        {**of, "geometry": {**of["geometry"], "intermediate": 8 * (3 * group - 8)}}, AWQ, 8)


# Layouts.


@pytest.mark.parametrize(("of", "devices", "first"), [
    (LLAMA_70B, 1, Layout(1, 1)),
    (LLAMA_70B, 8, Layout(8, 1)),
    # 64 heads on 6 devices: layers are split over two, in three stages.
    (LLAMA_70B, 6, Layout(2, 3)),
    (LLAMA_70B, 3, Layout(1, 3)),
    (LLAMA_70B, 7, Layout(1, 7)),
    (LLAMA_70B, 12, Layout(4, 3)),
    # 40 heads on 8 devices, and on more than divide them.
    (model("Llama-2-13b"), 8, Layout(8, 1)),
    (model("Qwen2.5-14B"), 8, Layout(8, 1)),
    (model("Llama-2-13b"), 16, Layout(8, 2)),
    (model("Qwen2.5-7B"), 8, Layout(4, 2)),
])
def test_as_many_devices_as_can_share_a_layer(of, devices, first):
    found = layouts(of, BFLOAT16, devices)
    assert found[0] == first
    splits = [layout.tensor_parallel for layout in found]
    assert splits == sorted(set(splits), reverse=True)


def test_a_split_that_the_quantisation_forbids_is_made_up_by_stages():
    of = model("Llama-3.1-70B-AWQ", intermediate=18944)
    assert layouts(of, AWQ, 8) == [Layout(4, 2), Layout(2, 4), Layout(1, 8)]
    assert layouts(of, BFLOAT16, 8)[0] == Layout(8, 1)


def test_a_wanted_tensor_parallel_is_kept_or_there_is_none():
    assert layouts(LLAMA_70B, BFLOAT16, 8, 4) == [Layout(4, 2)]
    assert layouts(LLAMA_70B, BFLOAT16, 8, 8) == [Layout(8, 1)]
    for wanted in (3, 5, 16):
        assert layouts(LLAMA_70B, BFLOAT16, 8, wanted) == []


def test_there_are_no_more_stages_than_layers():
    of = model("Llama-3.1-70B", layers=3)
    assert layouts(of, BFLOAT16, 8) == [Layout(8, 1), Layout(4, 2)]
    assert parallelism.layouts("llama_cpp", of, None, 3) == [Layout(1, 3)]
    assert parallelism.layouts("llama_cpp", of, None, 4) == []


@pytest.mark.parametrize("devices", [1, 2, 3, 6, 7, 8])
def test_llama_cpp_puts_layers_one_after_the_other(devices):
    assert parallelism.layouts("llama_cpp", LLAMA_70B, None, devices) == [Layout(1, devices)]
    assert parallelism.layouts("llama_cpp", LLAMA_70B, None, devices, 2) == []


@given(name=st.sampled_from(["Llama-3.1-70B", "Llama-2-13b", "Qwen2.5-7B", "DeepSeek-V3",
                             "Qwen3-30B-A3B", "Llama-3.1-70B-AWQ", "Gemma-3-27b"]),
       devices=st.integers(1, 72), kernel=st.sampled_from([None, BFLOAT16, AWQ, FP8]))
def test_a_layout_takes_exactly_its_devices_and_nothing_speaks_against_it(name, devices, kernel):
    of = planner.model(name)
    for layout in layouts(of, kernel, devices):
        assert layout.devices == devices
        assert layout.stages <= of["geometry"]["layers"]
        assert parallelism.objection(of, kernel, layout.tensor_parallel) == ""


# What more would do.


@pytest.mark.parametrize(("engine", "of", "kernel", "least", "splits"), [
    ("vllm", LLAMA_70B, BFLOAT16, 4, [8, 16, 32]),
    ("vllm", LLAMA_70B, BFLOAT16, 1, [2, 4, 8, 16, 32]),
    ("vllm", LLAMA_70B, BFLOAT16, 32, []),
    # 28 heads: 8 devices would need stages.
    ("vllm", model("Qwen2.5-7B"), BFLOAT16, 1, [2, 4]),
    ("vllm", model("Qwen2.5-7B"), BFLOAT16, 4, []),
    ("vllm", model("Llama-3.1-70B-AWQ", intermediate=18944), AWQ, 2, [4]),
])
def test_more_devices_are_named_that_share_every_layer(engine, of, kernel, least, splits):
    assert parallelism.larger(engine, of, kernel, least) == [Layout(split, 1) for split in splits]


def test_more_devices_for_llama_cpp_are_more_stages():
    assert parallelism.larger("llama_cpp", model("Llama-3.1-8B"), None, 2) == [
        Layout(1, stages) for stages in (4, 8, 16, 32)]
    assert parallelism.larger("llama_cpp", model("Qwen2.5-7B"), None, 8) == [Layout(1, 16)]
