# SPDX-License-Identifier: Apache-2.0
"""How much cache a token needs in every kind of layer, and how many tokens some memory holds."""

from __future__ import annotations

import planner
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible.module_utils.firstlight.planning import kv

KIB, GIB = 2**10, 2**30
BLOCK = 16


def cache(name, split=1, stages=1, key="auto", value=None, in_flight=2048, grouped=True):
    return kv.cache(planner.model(name)["geometry"], split, stages, kv.ELEMENT_BITS[key],
                    kv.ELEMENT_BITS[value or key], BLOCK, in_flight, grouped)


def token_bytes(shape):
    """What a token more costs a sequence, averaged over whole blocks; no window slides yet."""
    return (kv.sequence_bytes(shape, 64 * BLOCK) - shape.state_bytes) / (64 * BLOCK)


@pytest.mark.parametrize(("name", "type_", "kib"), [
    ("Llama-3.1-70B", "auto", 320),
    ("Llama-3.1-70B", "fp8", 160),
    ("Llama-3.1-70B", "f32", 640),
    ("Llama-3.1-70B", "q8_0", 170),
    ("Llama-3.1-70B", "q4_0", 90),
    ("Llama-3.1-8B", "auto", 128),
    ("Qwen2.5-7B", "auto", 56),
    ("Qwen2.5-0.5B", "auto", 12),
    # Every head has keys of its own.
    ("Llama-2-13b", "auto", 800),
    # One latent of 512 and 64 elements in each of 61 layers, for keys and values together.
    ("DeepSeek-V3", "auto", 68.625),
    ("DeepSeek-V3", "fp8", 34.3125),
])
def test_a_token_takes_what_the_shape_says(name, type_, kib):
    assert token_bytes(cache(name, key=type_)) == kib * KIB


def test_a_long_context_is_a_large_part_of_a_card():
    assert kv.sequence_bytes(cache("Llama-3.1-70B"), 131072) == 40 * GIB


def test_keys_and_values_have_types_of_their_own():
    both = token_bytes(cache("Llama-3.1-8B", key="q8_0", value="f16"))
    assert both == (34 + 64) * KIB
    assert both == token_bytes(cache("Llama-3.1-8B", key="f16", value="q8_0"))


def test_heads_of_two_sizes_are_counted_apart():
    shape = {**planner.model("Llama-3.1-8B")["geometry"], "head_dim": 192, "value_head_dim": 128}
    assert kv.cache(shape, 1, 1, 16, 16, BLOCK, 2048, True).layer_bytes == 8 * (192 + 128) * 2
    assert kv.cache(shape, 1, 1, 8, 16, BLOCK, 2048, True).layer_bytes == 8 * (192 + 2 * 128)


@pytest.mark.parametrize(("name", "split", "kib"), [
    ("Llama-3.1-70B", 2, 160), ("Llama-3.1-70B", 4, 80), ("Llama-3.1-70B", 8, 40),
    # More devices than key heads have copies of them.
    ("Llama-3.1-70B", 16, 40), ("Llama-3.1-70B", 64, 40),
    ("Qwen2.5-7B", 4, 14), ("Qwen2.5-7B", 28, 14),
    # A latent is on every device in whole.
    ("DeepSeek-V3", 8, 68.625), ("DeepSeek-V3", 16, 68.625),
])
def test_devices_share_heads_and_not_latents(name, split, kib):
    assert token_bytes(cache(name, split)) == kib * KIB


@pytest.mark.parametrize(("name", "stages", "kib"), [
    ("Llama-3.1-70B", 2, 160), ("DeepSeek-V3", 2, 1.125 * 31), ("Llama-3.1-8B", 3, 4 * 11),
])
def test_the_stage_with_most_layers_is_counted(name, stages, kib):
    assert token_bytes(cache(name, stages=stages)) == kib * KIB


# Windows.


def test_a_window_keeps_its_tokens_and_those_in_flight():
    found = cache("Gemma-3-27b", in_flight=8192)
    assert (found.full_layers, found.window_layers) == (10, 52)
    assert found.window_tokens == 1023 + 8192
    assert cache("Mistral-7B-v0.1", in_flight=512).window_tokens == 4095 + 512


def test_layers_of_which_it_is_not_known_keep_everything():
    shape = {**planner.model("Gemma-3-27b")["geometry"], "sliding_layers": None}
    found = kv.cache(shape, 1, 1, 16, 16, BLOCK, 2048, True)
    assert (found.full_layers, found.window_layers) == (62, 0)


@pytest.mark.parametrize(("full", "window", "padded_full", "padded_window"), [
    # gemma-3-12b: 48 layers, one of six full. Groups of 8: one of full layers, five of windows.
    (8, 40, 8, 40),
    # gemma-3-27b: the last of six groups of windows is filled up.
    (10, 52, 10, 60),
    (12, 12, 12, 12),
    (21, 21, 21, 21),
    # Less than a quarter more: one group of the larger size each, not two of the smaller.
    (10, 12, 12, 12),
    (12, 10, 12, 12),
    # A quarter more.
    (8, 10, 8, 16),
    # One kind is one group.
    (0, 32, 0, 32),
    (32, 0, 32, 0),
])
def test_groups_of_layers_are_filled_up(full, window, padded_full, padded_window):
    shape = kv.Cache(full, window, 10**6, 1000, 0, BLOCK, True)
    # A window that does not begin with a block touches one more.
    touched = 3 * padded_full + (3 + 1) * padded_window
    assert kv.sequence_bytes(shape, 3 * BLOCK) == touched * BLOCK * 1000
    # An engine without such groups allots what is there.
    assert kv.sequence_bytes(shape._replace(grouped=False), 3 * BLOCK) == (
        3 * (full + window) * BLOCK * 1000)


@pytest.mark.parametrize("grouped", [True, False])
def test_a_window_stops_growing(grouped):
    shape = kv.Cache(8, 40, 1023 + 2048, 8192, 0, BLOCK, grouped)
    short, long, longer = (kv.sequence_bytes(shape, tokens) for tokens in (1024, 4096, 8192))
    assert short < long < longer
    # From there only the full layers take more.
    assert longer - long == 4096 * 8 * 8192
    assert kv.sequence_bytes(shape, 1024 + BLOCK) - short == BLOCK * (8 + 40) * 8192
    blocks = -(-3071 // BLOCK) + grouped
    assert long == (4096 * 8 + blocks * BLOCK * 40) * 8192


# States.


@pytest.mark.parametrize(("name", "layers", "layer_bytes"), [
    ("Jamba-v0.1", 4, 8 * 2 * 128 * 2), ("Qwen3-Next-80B-A3B", 12, 2 * 2 * 256 * 2),
])
def test_a_state_costs_the_same_at_any_length(name, layers, layer_bytes):
    found = cache(name)
    state = planner.model(name)["geometry"]["state_bytes_per_sequence"]
    assert state > 0
    assert (found.full_layers, found.layer_bytes) == (layers, layer_bytes)
    assert kv.sequence_bytes(found, 0) == state
    assert kv.sequence_bytes(found, 64 * BLOCK) == state + 64 * BLOCK * layers * layer_bytes
    # Devices share it.
    assert cache(name, 2).state_bytes == cache(name, stages=2).state_bytes == state // 2
    # A sequence that has no room for its state has none for a token.
    assert kv.largest_context(found, state, 4096) == 0
    assert kv.largest_context(found, state + BLOCK * layers * layer_bytes, 4096) == BLOCK


# Room.


def test_tokens_are_given_out_in_blocks():
    shape = cache("Llama-3.1-8B")
    block = BLOCK * 128 * KIB
    assert [kv.largest_context(shape, room, 131072)
            for room in (block - 1, block, 2 * block - 1, 2 * block)] == [0, 16, 16, 32]
    assert [kv.pool_tokens(shape, room, 8192)
            for room in (block - 1, block, 2 * block - 1, 2 * block)] == [0, 16, 16, 32]


@pytest.mark.parametrize("room", [0, -1, -10**12])
def test_no_room_holds_nothing(room):
    for name in ("Llama-3.1-8B", "Gemma-3-27b", "Jamba-v0.1", "DeepSeek-V3"):
        assert kv.largest_context(cache(name), room, 8192) == 0
        assert kv.pool_tokens(cache(name), room, 8192) == 0


@pytest.mark.parametrize("most", [0, -5])
def test_a_bound_of_nothing_is_kept(most):
    assert kv.largest_context(cache("Llama-3.1-8B"), 10**12, most) == 0
    assert kv.pool_tokens(cache("Llama-3.1-8B"), 10**12, most) == 0


LAYERS = st.integers(0, 128)
CACHES = st.builds(
    kv.Cache, LAYERS, LAYERS, st.integers(1, 2**16), st.integers(1, 2**16), st.integers(0, 2**28),
    st.sampled_from([1, 16, 256]), st.booleans(), st.just(0)).filter(
        lambda one: one.full_layers or one.window_layers)
ROOMS = st.integers(0, 2**40)
CONTEXTS = st.integers(1, 2**20)


@given(shape=CACHES, room=ROOMS, most=CONTEXTS)
def test_the_largest_context_fits_and_one_token_more_does_not(shape, room, most):
    found = kv.largest_context(shape, room, most)
    assert 0 <= found <= most
    assert found == 0 or kv.sequence_bytes(shape, found) <= room
    assert found == most or kv.sequence_bytes(shape, found + 1) > room


@given(shape=CACHES, token_bytes=st.integers(0, 2**20), room=ROOMS, most=CONTEXTS)
def test_buffers_that_grow_with_the_context_are_part_of_what_must_fit(shape, token_bytes, room,
                                                                      most):
    larger = shape._replace(token_bytes=token_bytes)
    assert kv.sequence_bytes(larger, most) == kv.sequence_bytes(shape, most) + most * token_bytes
    found = kv.largest_context(larger, room, most)
    assert found <= kv.largest_context(shape, room, most)
    assert found == 0 or kv.sequence_bytes(larger, found) <= room
    assert found == most or kv.sequence_bytes(larger, found + 1) > room


@given(shape=CACHES, room=ROOMS, more=ROOMS, most=CONTEXTS)
def test_more_room_never_holds_less(shape, room, more, most):
    assert kv.largest_context(shape, room, most) <= kv.largest_context(shape, room + more, most)
    assert kv.pool_tokens(shape, room, most) <= kv.pool_tokens(shape, room + more, most)


@given(shape=CACHES, room=st.integers(1, 2**40), context=CONTEXTS)
def test_a_pool_holds_a_sequence_where_the_sequence_fits(shape, room, context):
    fits = kv.sequence_bytes(shape, context) <= room
    assert (kv.pool_tokens(shape, room, context) >= context) is fits
    assert (kv.largest_context(shape, room, context) == context) is fits


@given(shape=CACHES, tokens=CONTEXTS, more=st.integers(0, 2**16))
def test_a_longer_sequence_never_needs_less(shape, tokens, more):
    assert kv.sequence_bytes(shape, tokens) <= kv.sequence_bytes(shape, tokens + more)
    # Groups are for the engine's bookkeeping: they save nothing.
    assert kv.sequence_bytes(shape._replace(grouped=False), tokens) <= kv.sequence_bytes(
        shape._replace(grouped=True), tokens)
