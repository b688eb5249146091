# SPDX-License-Identifier: Apache-2.0
"""The judge finds nothing in what sound models write, and each kind of garbage by its name."""

from __future__ import annotations

import sys

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from ansible.module_utils.firstlight import text_judge


def texts(repository_root, name):
    return yaml.safe_load((repository_root / "tests/fixtures/text" / name).read_text())


def pytest_generate_tests(metafunc):
    root = metafunc.config.rootpath
    rows = {name: texts(root, name + ".yml") for name in ("good", "broken")}
    rows["recorded"] = [one for one in rows["broken"] if one["how"].startswith("recorded")]
    for name, some in rows.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, some, ids=lambda one: one["id"])


def kinds(text, language="en", **more):
    return [one["kind"] for one in text_judge.faults(text, language, **more)]


def test_nothing_is_wrong_with_what_a_sound_model_writes(good):
    assert text_judge.faults(good["text"], good["language"]) == []


def test_garbage_is_caught_by_its_kind(broken):
    found = text_judge.faults(broken["text"], broken["language"])
    assert broken["kind"] in [one["kind"] for one in found], found


def test_a_fault_says_what_was_found_and_wanted(broken):
    for one in text_judge.faults(broken["text"], broken["language"]):
        assert one["found"] and one["wanted"]
        assert one["found"].isprintable() and one["wanted"].isprintable()
        assert len(one["found"]) < 300


def test_every_kind_has_garbage_that_was_recorded_or_made(repository):
    assert {one["kind"] for one in texts(repository, "broken.yml")} == set(text_judge.KINDS)


def test_language_and_entropy_never_fail_an_endpoint_alone(broken):
    for one in text_judge.faults(broken["text"], broken["language"]):
        assert not (one["alone"] and one["kind"] in ("language", "entropy"))


def test_what_wrong_weights_wrote_is_enough_to_fail_an_endpoint(recorded):
    """A canary that is out of its depth is sound: only its language is wrong."""
    enough = any(one["alone"] for one in text_judge.faults(recorded["text"], recorded["language"]))
    assert enough != recorded["id"].startswith("canary-out-of-its-depth")


@pytest.mark.parametrize(("text", "alone"), [
    ("!" * 32, True),
    (" the" * 32, True),
    ("The light goes round and round. " * 12, False),
    ("I am sorry. " * 12, False),
    ("天空是蓝色的，因为阳光。" * 12, False),
    ("\n" * 12, True),
])
def test_small_models_may_loop_on_phrases_and_none_on_a_token(text, alone):
    assert [one["alone"] for one in text_judge.faults(text, "")
            if one["kind"] == "repetition"] == [alone]


@pytest.mark.parametrize("cut", ["\ufffd", "\ufffd\ufffd", "\ufffd\ufffd\ufffd"])
def test_a_last_character_that_was_cut_is_nobodys_fault(cut):
    assert kinds("All is well. " + cut) == []
    assert kinds("All is well. " + cut + " So it is.") == ["encoding"]


def test_more_than_a_cut_at_the_end_is_a_fault():
    assert kinds("All is well. " + "\ufffd" * 4) == ["encoding"]


def test_invalid_bytes_that_are_expected_are_no_fault():
    text = "A \ufffd and a \ufffd, as the prompt had them."
    assert kinds(text, expected_bytes_invalid=2) == []
    assert kinds(text, expected_bytes_invalid=1) == ["encoding"]
    assert kinds(text, expected_bytes_invalid=-5) == ["encoding"]


def test_few_invalid_bytes_do_not_fail_an_endpoint_alone():
    assert [one["alone"] for one in text_judge.faults("a \ufffd b")] == [False]
    assert [one["alone"] for one in text_judge.faults("a \ufffd b \ufffd c \ufffd d")] == [True]


def test_lone_surrogates_are_no_utf_8():
    assert kinds("A lone \ud83d and no more of it.") == ["encoding"]


def test_the_language_of_a_prompt_that_is_unknown_is_not_judged():
    german = "Der Himmel ist blau, weil die Luft das blaue Licht stärker streut als das rote. " \
             "Am Abend ist der Weg länger, und das rote Licht bleibt übrig."
    assert kinds(german) == ["language"]
    assert kinds(german, "de") == kinds(german, "") == kinds(german, "tlh") == []


def test_nothing_said_is_not_judged():
    assert text_judge.faults("") == []


def test_the_end_of_a_text_too_long_to_judge_is_judged():
    start = " ".join("The keeper counts ship number %d." % one for one in range(5000))
    assert len(start) > text_judge.LIMIT
    assert "control" not in kinds(start)
    assert "control" in kinds(start + "\x00")
    assert "control" not in kinds(start[: text_judge.LIMIT] + "\x00" + start)


def steps(work):
    """How many lines of the judge ran: time, without a clock."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if frame.f_code.co_filename != text_judge.__file__:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("unit", ["a", "ab", "a" * 100 + "b", "\ufffd", "\u00e4\u00bd\u00a0", " ",
                                  "a ", "<0x0", "\u4f60", "\u05e9a\u4f60\u0436", "x'" * 50])
def test_the_work_grows_with_the_text_and_no_faster(unit):
    length = text_judge.LIMIT // 4
    short = steps(lambda: text_judge.faults((unit * length)[:length]))
    long = steps(lambda: text_judge.faults((unit * length * 4)[: length * 4]))
    endless = steps(lambda: text_judge.faults((unit * length * 40)[: length * 40]))
    assert long < 6 * short + 1000
    assert endless < 1.5 * long + 1000


ANY = st.one_of(
    st.text(st.characters()),
    st.text(st.characters(exclude_categories=())),
    st.builds(lambda unit, times: unit * times, st.text(max_size=20), st.integers(0, 2000)),
    st.lists(st.sampled_from(["the", "\u4f60", "\ufffd", "\x00", "a|b", "\ud800", "\n", "<0x0A>"]),
             max_size=200).map(" ".join),
)


@given(ANY, st.sampled_from(["en", "de", "", "\x00"]), st.integers(-3, 10**9))
@example("\ufffd", "en", 0)
@example("\ud800" * 100, "en", 0)
def test_whatever_comes_is_judged_and_judged_the_same_again(text, language, expected):
    found = text_judge.faults(text, language, expected)
    assert found == text_judge.faults(text, language, expected)
    assert len({one["kind"] for one in found}) == len(found)
    for one in found:
        assert set(one) == {"kind", "found", "wanted", "alone"}
        assert one["kind"] in text_judge.KINDS
        assert one["alone"] in (True, False)
        assert one["found"].isprintable()


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=8),
       st.integers(24, 400))
def test_one_word_over_and_over_always_fails_an_endpoint(unit, times):
    found = text_judge.faults((" " + unit) * times)
    assert [one["alone"] for one in found if one["kind"] == "repetition"] == [True]
