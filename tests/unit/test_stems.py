# SPDX-License-Identifier: Apache-2.0
"""Many texts are found in one pass, each wherever it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible.module_utils.firstlight.stems import Stems

# Few letters, so that texts lie within and over each other.
LETTERS = st.sampled_from([b"a", b"b", b"e", b" ", b"z", b"Z"])
WORDS = st.lists(LETTERS, min_size=2, max_size=5).map(b"".join)
TEXTS = st.lists(LETTERS | st.just(b"\n"), max_size=60).map(b"".join)


def places(stems, text):
    return sorted((place, stem) for stem in set(stems)
                  for place in range(len(text)) if text.startswith(stem, place))


def found(stems, text, begin=0, end=None):
    return list(Stems(stems).find(text, begin, len(text) if end is None else end))


@given(st.lists(WORDS, max_size=6), TEXTS)
def test_each_text_is_found_wherever_it_is(stems, text):
    hits = found(stems, text)
    assert sorted((place, stem) for _, place, stem in hits) == places(stems, text)
    assert [head for head, _, _ in hits] == sorted(head for head, _, _ in hits)
    assert all(place <= head < place + len(stem) for head, place, stem in hits)


@given(st.lists(WORDS, max_size=6), TEXTS, st.integers(0, 60))
def test_what_is_found_in_two_parts_is_found_once(stems, text, middle):
    middle = min(middle, len(text))
    assert found(stems, text, 0, middle) + found(stems, text, middle) == found(stems, text)


@pytest.mark.parametrize("stems", [[b"CUDA out of memory", b"memory"], [b"aa"], [b"a|b", b"(x"]])
def test_what_means_something_to_a_pattern_is_text(stems):
    text = b"CUDA out of memory aaa a|b (x"
    assert [(place, stem) for _, place, stem in found(stems, text)] == places(stems, text)


def test_none_are_nowhere():
    assert found([], b"text") == []
