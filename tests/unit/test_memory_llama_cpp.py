# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's memory as it was measured on an H100 against what the plan reckons."""

from __future__ import annotations

from pathlib import Path

import planner
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from model_configs import CONFIGS

from ansible.module_utils.firstlight import model_config
from ansible.module_utils.firstlight.planning import kv, memory

MIB = 2**20
DEVICE = 81079 * MIB
FIXTURE = Path(__file__).parents[1] / "rig" / "measured" / "llama-cpp-memory.yml"
RUNS = yaml.safe_load(FIXTURE.read_text())["runs"]
COSTS = memory.costs_of("llama_cpp", planner.catalog()["engine_costs"])
ALONE = memory.Layout(1, 1)
# The shapes that were measured; of the gemma there is a config of the same family only.
SHAPES = {"deepseek-v2-lite-x8": "DeepSeek-V2-Lite", "llama-2-13b": "Llama-2-13b",
          "llama-3.1-8b": "Llama-3.1-8B", "qwen2.5-0.5b": "Qwen2.5-0.5B",
          "qwen2.5-7b": "Qwen2.5-7B", "qwen3-30b-a3b": "Qwen3-30B-A3B"}
GEMMA = {**CONFIGS["Gemma-3-27b"]["text_config"], "model_type": "gemma3_text",
         "hidden_size": 3840, "intermediate_size": 15360, "num_attention_heads": 16,
         "num_key_value_heads": 8, "head_dim": 256, "sliding_window": 1024,
         "num_hidden_layers": 6}


def geometry_of(run):
    if run["model"].startswith("gemma"):
        return model_config.geometry(GEMMA)
    config = {**CONFIGS[SHAPES[run["model"]]], "num_hidden_layers": run["layers"]}
    return model_config.geometry(config)


def settings_of(run):
    return memory.Settings(run["batch"], run["parallel"], run["cache_type"], run["cache_type"],
                           True, not run["flash_attention"])


def reckoned(run):
    """The parts of a run in MiB: compute, cache, all."""
    shape, settings = geometry_of(run), settings_of(run)
    model = {"geometry": shape, "bytes": int(run["model_mib"] * MIB), "quantisation": "F16",
             "tensors": {"embedding_bytes": 0, "head_bytes": 0, "other_bytes": 0}}
    fixed = memory.llama_cpp(model, ALONE, settings, COSTS, True)
    cache = memory.cache_of("llama_cpp", model, ALONE, settings, COSTS)
    whole = kv.sequence_bytes(cache, run["context"])
    bare = kv.sequence_bytes(cache._replace(token_bytes=0), run["context"])
    compute = memory.compute_bytes(shape, settings) + whole - bare
    return compute / MIB, bare / MIB, (fixed.total + whole) / MIB


def name_of(run):
    return "%(model)s-%(context)d-%(batch)d-%(cache_type)s-%(flash_attention)s" % run


KNOWN = [run for run in RUNS if run["model"] != "deepseek-v2"]


def test_all_that_was_measured_but_one_shape_is_compared():
    # Of DeepSeek-V2 with 236 thousand million weights the rig has no config.
    assert len(RUNS) - len(KNOWN) == 1
    assert len(KNOWN) == 16


@pytest.mark.parametrize("run", KNOWN, ids=name_of)
def test_the_cache_is_as_large_as_the_log_said(run):
    assert reckoned(run)[1] == pytest.approx(run["kv_mib"], abs=0.1)


@pytest.mark.parametrize("run", KNOWN, ids=name_of)
def test_the_compute_buffer_is_reckoned_a_little_large(run):
    compute = reckoned(run)[0]
    assert run["compute_mib"] <= compute <= 1.11 * run["compute_mib"]


@pytest.mark.parametrize("run", KNOWN, ids=name_of)
def test_the_sum_is_within_half_a_percent_of_the_device_and_not_too_small(run):
    assert -0.0005 * DEVICE <= reckoned(run)[2] * MIB - run["asked_mib"] * MIB <= 0.005 * DEVICE


def test_its_buffers_grow_with_the_batch_and_with_the_context():
    shape = geometry_of(RUNS[1])
    small, large = (memory.Settings(batch, 4, eager=True) for batch in (512, 2048))
    assert memory.compute_bytes(shape, large) > 3.9 * memory.compute_bytes(shape, small)
    model = {"geometry": shape}
    cache = memory.cache_of("llama_cpp", model, ALONE, small, COSTS)
    assert cache.token_bytes == 1024


@given(st.sampled_from(KNOWN), st.integers(1, 131072), st.integers(1, 4096))
def test_more_context_never_needs_less(run, context, more):
    model = {"geometry": geometry_of(run)}
    cache = memory.cache_of("llama_cpp", model, ALONE, settings_of(run), COSTS)
    assert kv.sequence_bytes(cache, context) <= kv.sequence_bytes(cache, context + more)
