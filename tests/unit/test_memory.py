# SPDX-License-Identifier: Apache-2.0
"""What an engine needs on a device, held against what vLLM measured of itself on real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import planner
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible.module_utils.firstlight import model_config
from ansible.module_utils.firstlight.planning import kv, memory
from ansible.module_utils.firstlight.planning.memory import Layout, Settings

GIB, MIB = 2**30, 2**20
FIXTURE = Path(__file__).parents[1] / "rig" / "measured" / "vllm-memory.yml"
MEASURED = yaml.safe_load(FIXTURE.read_text())
MODELS = MEASURED["models"]
RUNS = [run for run in MEASURED["runs"] if not run["quantisation"]]
QUANTISED = [run for run in MEASURED["runs"] if run["quantisation"]]
WHOLE = [run for run in RUNS if run["kv_tokens"]]
COSTS = memory.costs_of("vllm", planner.catalog()["engine_costs"])


def title(run):
    return "%(model)s-%(layers)d-tp%(tensor_parallel)d-%(batched_tokens)d-%(sequences)d" % run + (
        "-eager" if run["eager"] else "") + (run["quantisation"] and "-" + run["quantisation"])


def each(runs):
    return pytest.mark.parametrize("run", runs, ids=map(title, runs))


def model(run):
    """The model of a run, as ``model_info`` would describe it."""
    shape = model_config.geometry({**MODELS[run["model"]], "num_hidden_layers": run["layers"]})
    return {"geometry": shape, "bytes": model_config.weight_bytes(shape, {"method": "bf16"}),
            "quantisation": "bf16", "tensors": None}


def settings(run):
    return Settings(run["batched_tokens"], run["sequences"], eager=run["eager"],
                    second_runner=run["second_runner"])


def predicted(run, costs=COSTS):
    return memory.vllm(model(run), Layout(run["tensor_parallel"], 1), settings(run), costs)


def peak(run):
    return max(run["layers_peak_bytes"], run["sampler_peak_bytes"])


def kv_error(run, fixed):
    """How far the predicted cache is off, as a share of the device."""
    return abs(run["share_bytes"] - fixed.in_share - run["kv_bytes"]) / run["device_bytes"]


# Against the runs of the fixture.


def test_the_fixture_has_what_the_model_of_memory_is_held_against():
    assert len({run["model"] for run in RUNS}) >= 5
    for key in ("tensor_parallel", "batched_tokens", "sequences", "eager", "second_runner"):
        assert len({run[key] for run in RUNS}) > 1, key
    assert len({run["second_runner"] for run in WHOLE}) == 2


@each(MEASURED["runs"])
def test_a_run_of_the_fixture_adds_up(run):
    assert run["kv_bytes"] == (run["share_bytes"] - run["weights_bytes"] - peak(run)
                               - run["other_bytes"] - run["graphs_bytes"])


@each(RUNS)
def test_the_cache_is_predicted_within_half_a_percent_of_the_device(run):
    error = kv_error(run, predicted(run))
    assert error <= 0.005
    # What was found; a worse model is a step back.
    assert error <= 0.0015


@each(RUNS)
def test_each_part_is_predicted(run):
    """No part is wrong by what another is wrong by in the other direction."""
    fixed = predicted(run)
    weights = abs(fixed.weights - run["weights_bytes"])
    assert weights <= max(32 * MIB, 0.005 * run["weights_bytes"])
    assert abs(fixed.activation - peak(run) - run["other_bytes"]) <= 40 * MIB
    assert fixed.graphs_in_share is not run["second_runner"]
    if fixed.graphs_in_share:
        assert abs(fixed.graphs - run["graphs_bytes"]) <= 128 * MIB
    # The second runner's buffers are not in what the worker measured of its context.
    buffers = run["second_runner"] * (
        COSTS["second_buffer_bytes"] + 4 * run["sequences"] * model(run)["geometry"]["vocabulary"])
    assert abs(fixed.context - buffers - run["context_bytes"]) <= MIB


@each([run for run in WHOLE if run["second_runner"]])
def test_graphs_outside_the_share_are_predicted(run):
    # Two models were measured, and the form has two numbers: neither can be left out here. The
    # run on an H200 below is a third.
    assert predicted(run).graphs == pytest.approx(run["captured_gib"] * GIB, rel=0.03)


@each([run for run in WHOLE if not run["second_runner"]])
def test_what_graphs_take_beyond_the_engines_own_estimate_is_left_free(run):
    assert run["captured_gib"] * GIB - predicted(run).graphs <= COSTS["slack_bytes"]


@each(WHOLE)
def test_the_tokens_of_a_cache_are_counted_as_the_engine_counts_them(run):
    cache = memory.cache_of("vllm", model(run), Layout(run["tensor_parallel"], 1), settings(run),
                            COSTS)
    counted = kv.pool_tokens(cache, run["kv_bytes"], run["max_model_len"])
    # A window makes the engine divide floats.
    assert abs(counted - run["kv_tokens"]) <= (1 if cache.window_layers else 0)


@each(WHOLE)
def test_the_tokens_of_a_predicted_cache_are_right(run):
    cache = memory.cache_of("vllm", model(run), Layout(run["tensor_parallel"], 1), settings(run),
                            COSTS)
    room = run["share_bytes"] - predicted(run).in_share
    tokens = kv.pool_tokens(cache, room, run["max_model_len"])
    # Of the tokens that the whole device would hold: where weights fill it, few are left, and a
    # fault of a thousandth of the device is much of them.
    of_device = run["kv_tokens"] * run["device_bytes"] / run["kv_bytes"]
    assert abs(tokens - run["kv_tokens"]) <= 0.005 * of_device
    assert tokens == pytest.approx(run["kv_tokens"], rel=0.01)


@each(QUANTISED)
def test_with_the_weights_that_were_seen_a_quantised_run_is_predicted_too(run):
    fixed = predicted(run)._replace(weights=run["weights_bytes"])
    assert kv_error(run, fixed) <= 0.001
    assert kv_error(run, predicted(run)) > 0.001


# Each shape from the others.


def least_squares(rows):
    """The numbers that give the right sides best, of rows of factors and a right side each."""
    factors = np.array([left for left, _ in rows], dtype=float)
    scale = np.abs(factors).max(axis=0)
    assert scale.all(), "a number that no run tells"
    found, _, rank, _ = np.linalg.lstsq(factors / scale, np.array([right for _, right in rows]),
                                        rcond=None)
    assert rank == len(scale), "numbers that no run tells from each other"
    return found / scale


def logits(run):
    return run["sequences"] * model(run)["geometry"]["vocabulary"]


# The form of the peak without what is fitted below; and of the sampler's alone.
UNFITTED = {**COSTS, **dict.fromkeys(("compiled_bytes", "sampler_bytes", "sampler_bytes_small",
                                      "sampler_bytes_second", "sampler_fixed_bytes"), 0)}
SAMPLER = {**UNFITTED, **dict.fromkeys(("hidden_copies", "mlp_copies", "query_copies"), 0)}


def form(run, costs):
    """The peak of a run with these numbers, without what a compiler adds."""
    return memory.activation_bytes(model(run)["geometry"], Layout(run["tensor_parallel"], 1),
                                   settings(run)._replace(eager=True), costs)


def layers_decide(run):
    """Whether no copy of the embedding and no experts decide the peak of the layers."""
    shape = model(run)["geometry"]
    embedding = 2 * shape["hidden"] * (shape["vocabulary"] + 2 * run["batched_tokens"])
    return not run["eager"] and not shape["experts"] and (
        run["tensor_parallel"] > 1 or run["layers_peak_bytes"] > embedding + 8 * MIB)


def fitted(runs):
    """The numbers of the catalog that are averages, from these runs alone.

    How many tensors are alive (``hidden_copies`` and its like) was counted, not fitted.
    """
    first = [run for run in runs if not run["second_runner"]]
    small, large, fixed = least_squares([
        ((logits(run) * (run["sequences"] <= 256), logits(run) * (run["sequences"] > 256), 1),
         run["sampler_peak_bytes"] - form(run, SAMPLER)) for run in first])
    [second] = least_squares([
        ((logits(run),), run["sampler_peak_bytes"] - form(run, SAMPLER))
        for run in runs if run["second_runner"]])
    base, hidden, hidden_small, layer = least_squares([
        ((1, model(run)["geometry"]["hidden"] * (run["sequences"] > 256),
          model(run)["geometry"]["hidden"] * (run["sequences"] <= 256), run["layers"]),
         run["graphs_bytes"]) for run in first if not run["eager"]])
    compiled = [run["layers_peak_bytes"] - form(run, UNFITTED)
                for run in runs if layers_decide(run)]
    alone = [run["other_bytes"] for run in runs if run["tensor_parallel"] == 1]
    return {"sampler_bytes_small": small, "sampler_bytes": large, "sampler_fixed_bytes": fixed,
            "sampler_bytes_second": second, "graph_base_bytes": base,
            "graph_hidden_bytes": hidden, "graph_hidden_bytes_small": hidden_small,
            "graph_layer_bytes": layer, "compiled_bytes": np.mean(compiled),
            "other_bytes": np.mean(alone)}


def left_out():
    """The shapes that can be predicted from the others.

    DeepSeek-V2-Lite cannot: it is the only one with latent attention, and latent_load_bytes and
    latent_compile_bytes are fitted to it. What the other numbers do to it is below.
    """
    return [name for name in MODELS if not MODELS[name].get("kv_lora_rank")]


@pytest.mark.parametrize("name", left_out())
def test_a_shape_is_predicted_from_the_others(name):
    costs = {**COSTS, **fitted([run for run in RUNS if run["model"] != name])}
    # Of two devices there is one run, so other_parallel_bytes has nothing to be fitted to without
    # it: four H200s with another model, below, are its test.
    runs = [run for run in RUNS if run["model"] == name and run["tensor_parallel"] == 1]
    assert runs
    for run in runs:
        error = kv_error(run, predicted(run, costs))
        assert error <= 0.005, title(run)
        # What error_share's row in the catalog says of it.
        assert error <= 0.003, title(run)


def test_the_one_shape_with_latent_attention_needs_numbers_of_its_own():
    [name] = set(MODELS) - set(left_out())
    runs = [run for run in RUNS if run["model"] == name]
    others = fitted([run for run in RUNS if run["model"] != name])
    without = {"latent_load_bytes": 0, "latent_compile_bytes": 0}
    for run in runs:
        assert kv_error(run, predicted(run, {**COSTS, **others})) <= 0.003, title(run)
    errors = [kv_error(run, predicted(run, {**COSTS, **others, **without})) for run in runs]
    # From the others alone it would be off by this much, and no other shape is.
    assert 0.003 < max(errors) <= 0.01


def test_the_numbers_of_the_catalog_are_those_of_all_runs():
    found = fitted(RUNS)
    for run in RUNS:
        both = [predicted(run, costs).in_share for costs in (COSTS, {**COSTS, **found})]
        assert abs(both[0] - both[1]) <= 0.001 * run["device_bytes"], title(run)


# Two runs on other cards that nothing was fitted to.

H200_BYTES = 150754820096 - 644939776
LLAMA_8B, LLAMA_70B = "Llama-3.1-8B", "Llama-3.1-70B"


def on_h200(name, split, tokens, sequences, eager=False):
    return memory.vllm(planner.model(name), Layout(split, 1),
                       Settings(tokens, sequences, eager=eager, second_runner=True), COSTS)


@pytest.mark.parametrize(("fixed", "share", "weights_gib", "kv_gib"), [
    pytest.param(on_h200(LLAMA_8B, 1, 16384, 1024), 0.9 * H200_BYTES, 15.0, 108.81, id="8B"),
    pytest.param(on_h200(LLAMA_8B, 1, 16384, 1024, eager=True), 0.9 * H200_BYTES, 15.0, 108.87,
                 id="8B-eager"),
    pytest.param(on_h200(LLAMA_70B, 4, 2048, 256), 36.25 * GIB, 32.89, 2.57, id="70B-tp4"),
])
def test_a_card_that_was_kept_aside_is_predicted(fixed, share, weights_gib, kv_gib):
    error = abs(share - fixed.in_share - kv_gib * GIB) / H200_BYTES
    assert error <= 0.005
    assert error <= 0.0005
    assert fixed.weights == pytest.approx(weights_gib * GIB, rel=0.003)


@pytest.mark.parametrize(("fixed", "name", "split", "tokens", "share", "said", "context"), [
    pytest.param(on_h200(LLAMA_8B, 1, 16384, 1024), LLAMA_8B, 1, 16384, 0.9 * H200_BYTES, 891392,
                 8192, id="8B"),
    pytest.param(on_h200(LLAMA_70B, 4, 2048, 256), LLAMA_70B, 4, 2048, 36.25 * GIB, 33712, 33712,
                 id="70B-tp4"),
])
def test_the_tokens_of_a_card_that_was_kept_aside_are_right(fixed, name, split, tokens, share,
                                                            said, context):
    cache = memory.cache_of("vllm", planner.model(name), Layout(split, 1), Settings(tokens, 256),
                            COSTS)
    assert kv.pool_tokens(cache, int(share) - fixed.in_share, context) == pytest.approx(
        said, rel=0.002)


def test_the_graphs_of_a_card_that_was_kept_aside_are_right():
    assert on_h200(LLAMA_8B, 1, 16384, 1024).graphs == pytest.approx(0.99 * GIB, rel=0.03)


def test_the_rule_of_the_field_is_off_and_refuses_what_runs():
    """Weights and 2 %, 2.3 GiB, and 5 % of the weights for activations."""
    def left(share_gib, weights_gib):
        return share_gib - (1.02 * weights_gib + 2.3 + 0.05 * weights_gib)

    device = H200_BYTES / GIB
    assert abs(left(0.9 * device, 15.0) - 108.81) / device == pytest.approx(0.01, abs=0.001)
    assert left(36.25, 32.89) < 0
    assert 36.25 * GIB - on_h200(LLAMA_70B, 4, 2048, 256).in_share > 0


# What the peak of a batch grows with.

LLAMA = planner.model(LLAMA_8B)["geometry"]
SMALL = planner.model("Qwen2.5-0.5B")["geometry"]
EXPERTS = planner.model("Qwen3-30B-A3B")["geometry"]
ONE = Layout(1, 1)


def activation(shape, settings, layout=ONE):
    return memory.activation_bytes(shape, layout, settings, COSTS)


@pytest.mark.parametrize(("shape", "settings", "key"), [
    pytest.param(LLAMA, Settings(16384, 256), "hidden", id="hidden"),
    pytest.param(LLAMA, Settings(16384, 256), "intermediate", id="MLP"),
    pytest.param(LLAMA, Settings(2048, 256, second_runner=True), "vocabulary",
                 id="vocabulary-compiler"),
    pytest.param(SMALL, Settings(2048, 1024), "vocabulary", id="vocabulary-sampler"),
    pytest.param(SMALL, Settings(2048, 1024, second_runner=True), "vocabulary",
                 id="vocabulary-sampler-second"),
    pytest.param(EXPERTS, Settings(16384, 256), "experts_per_token", id="experts"),
    pytest.param(EXPERTS, Settings(16384, 256), "moe_intermediate", id="experts-width"),
])
def test_the_peak_grows_with_the_shape(shape, settings, key):
    peaks = [activation({**shape, key: int(shape[key] * factor)}, settings)
             for factor in (1, 1.5, 2, 4)]
    assert peaks == sorted(set(peaks))


@pytest.mark.parametrize(("shape", "many"), [
    pytest.param(LLAMA, [Settings(tokens, 256) for tokens in (8192, 16384, 32768)], id="tokens"),
    pytest.param(EXPERTS, [Settings(tokens, 256) for tokens in (8192, 16384, 32768)],
                 id="tokens-experts"),
    pytest.param(SMALL, [Settings(2048, sequences) for sequences in (128, 256, 512, 1024, 2048)],
                 id="sequences"),
    pytest.param(SMALL, [Settings(2048, sequences, second_runner=True)
                         for sequences in (512, 1024, 2048)], id="sequences-second"),
])
def test_the_peak_grows_with_the_batch(shape, many):
    peaks = [activation(shape, settings) for settings in many]
    assert peaks == sorted(set(peaks))


@pytest.mark.parametrize("shape", [LLAMA, planner.model("Mixtral-8x7B")["geometry"]],
                         ids=["dense", "experts"])
def test_the_peak_falls_with_tensor_parallel(shape):
    peaks = [activation(shape, Settings(16384, 256), Layout(split, 1)) for split in (8, 4, 2, 1)]
    assert peaks == sorted(set(peaks))


@pytest.mark.parametrize(("sequences", "of_a_logit"), [
    (128, COSTS["sampler_bytes_small"]), (256, COSTS["sampler_bytes_small"]),
    (640, (COSTS["sampler_bytes_small"] + COSTS["sampler_bytes"]) / 2),
    (1024, COSTS["sampler_bytes"]), (2048, COSTS["sampler_bytes"]),
])
def test_between_the_measured_sizes_of_a_batch_the_sampler_is_between(sequences, of_a_logit):
    wide = {**SMALL, "vocabulary": SMALL["vocabulary"] + 1000}
    more = activation(wide, Settings(1, sequences)) - activation(SMALL, Settings(1, sequences))
    assert more == pytest.approx(1000 * sequences * of_a_logit, abs=1)


def test_a_layer_without_experts_can_be_the_widest():
    shape = planner.model("DeepSeek-V2-Lite")["geometry"]
    batch = Settings(16384, 256)
    wide, wider = ({**shape, "intermediate": size} for size in (2**16, 2**17))
    assert activation(shape, batch) < activation(wide, batch) < activation(wider, batch)


def test_a_compiler_and_an_encoder_of_images_cost_memory():
    batch = Settings(16384, 256)
    plain = activation(LLAMA, batch)
    assert activation(LLAMA, batch._replace(eager=True)) < plain
    assert activation({**LLAMA, "vision": True}, batch) == plain + COSTS["vision_bytes"]


SHAPES = st.builds(
    lambda base, **sizes: {**base, **sizes},
    st.sampled_from([planner.model(name)["geometry"] for name in (
        LLAMA_8B, "Qwen3-30B-A3B", "Mixtral-8x7B", "DeepSeek-V2-Lite", "Gemma-3-27b")]),
    hidden=st.integers(64, 2**15), intermediate=st.integers(64, 2**17),
    vocabulary=st.integers(256, 2**19))
BATCHES = st.builds(
    lambda tokens, sequences, eager, second: Settings(
        tokens, sequences, eager=eager, second_runner=second),
    st.integers(1, 2**16), st.integers(1, 2**12), st.booleans(), st.booleans())
LAYOUTS = st.builds(Layout, st.sampled_from([1, 2, 4, 8, 16]), st.integers(1, 4))


@given(shape=SHAPES, batch=BATCHES, layout=LAYOUTS, more=st.integers(1, 2**14), data=st.data())
def test_no_larger_shape_or_batch_has_a_lower_peak(shape, batch, layout, more, data):
    peak = activation(shape, batch, layout)
    key = data.draw(st.sampled_from(["hidden", "intermediate", "vocabulary", "heads"]))
    assert activation({**shape, key: shape[key] + more}, batch, layout) >= peak
    field = data.draw(st.sampled_from(["batched_tokens", "sequences"]))
    larger = batch._replace(**{field: getattr(batch, field) + more})
    assert activation(shape, larger, layout) >= peak
    assert activation(shape, batch, layout._replace(
        tensor_parallel=2 * layout.tensor_parallel)) <= peak


# The sum.


@given(shape=SHAPES, batch=BATCHES, layout=LAYOUTS)
def test_what_is_in_the_share_and_what_is_outside_are_all(shape, batch, layout):
    fixed = memory.vllm({"geometry": shape, "bytes": 2**34, "quantisation": "bf16"}, layout, batch,
                        COSTS)
    assert fixed.in_share + fixed.outside == fixed.total == sum(fixed[:4])
    assert min(fixed[:4]) >= 0
    assert (fixed.graphs == 0) == batch.eager


def test_a_device_among_others_holds_more_beside_the_model():
    model_ = planner.model(LLAMA_8B)
    for second in (False, True):
        alone, split, staged = (memory.vllm(model_, layout, Settings(
            2048, 256, second_runner=second), COSTS) for layout in (ONE, Layout(2, 1),
                                                                    Layout(1, 2)))
        assert split.context == staged.context > alone.context


def test_what_was_seen_replaces_what_is_reckoned_part_by_part():
    fixed = on_h200(LLAMA_8B, 1, 16384, 1024)
    seen = {"weights_bytes": fixed.weights - 7, "graph_bytes": 0, "kv_bytes": 9}
    assert memory.observed(fixed, seen, 0, 140 * GIB) == fixed._replace(
        weights=fixed.weights - 7, graphs=0)
    # What the share lost beside weights and cache is the engine's own.
    share = fixed.in_share + 10 * GIB
    found = memory.observed(fixed, {"weights_bytes": fixed.weights, "kv_bytes": 9 * GIB}, share,
                            140 * GIB)
    assert found == fixed._replace(activation=fixed.activation + GIB)


@pytest.mark.parametrize("changes", [
    {"weights_bytes": 5}, {"weights_bytes": 10**13}, {"weights_bytes": 60 * GIB},
    {"weights_bytes": 1.5}, {"kv_bytes": None},
    {"kv_bytes": -1}, {"kv_bytes": True}, {"activation_bytes": 10**400},
    {"context_bytes": 2**45}, {"graph_bytes": "7"}])
def test_figures_that_cannot_be_what_they_say_are_not_believed(changes):
    fixed = on_h200(LLAMA_8B, 1, 16384, 1024)
    seen = {"weights_bytes": fixed.weights, "kv_bytes": 9 * GIB, **changes}
    assert memory.observed(fixed, seen, fixed.in_share + 9 * GIB, 140 * GIB) is None


def test_a_cache_that_leaves_nothing_for_the_engine_is_not_believed():
    fixed = on_h200(LLAMA_8B, 1, 16384, 1024)
    seen = {"weights_bytes": fixed.weights, "kv_bytes": 9 * GIB}
    assert memory.observed(fixed, seen, 9 * GIB, 140 * GIB) is None
    # Nor one with which it is more than the device.
    assert memory.observed(fixed, seen, 0, 20 * GIB) is None
    for missing in seen:
        assert memory.observed(fixed, {key: seen[key] for key in seen if key != missing},
                               fixed.in_share + 9 * GIB, 140 * GIB) is None
