# SPDX-License-Identifier: Apache-2.0
"""The catalog of log signatures: each row knows its own lines, no others, at a bounded cost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from ansible.module_utils.firstlight import engine_log, findings
from ansible.module_utils.firstlight.planning import healing, requests

try:
    from re import _constants, _parser
except ImportError:  # Python 3.10 and older
    import sre_constants as _constants
    import sre_parse as _parser

REPOSITORY = Path(__file__).parents[2]
ROWS = yaml.safe_load((REPOSITORY / "catalog" / "log_signatures.yml").read_text())
FILES = {file.stem: yaml.safe_load(file.read_text())
         for file in sorted((REPOSITORY / "tests" / "fixtures" / "logs").glob("*.yml"))}
LINES = [one for file in FILES.values() for one in file]
TEXTS = ("found", "wanted", "remedy")
WORD = re.compile(r"%\((\w+)\)s")
REPEATS = {_constants.MAX_REPEAT, _constants.MIN_REPEAT}
REMEDIES = {"linker_cache", *(
    file.stem for file in (REPOSITORY / "roles" / "host_tuning" / "tasks").glob("*.yml"))} - {
    "decide", "main", "prove", "put_back", "read", "start"}
# The shortest text that is worth a search in a long log.
SHORTEST = 7
# Severities of a log's lines: what harms, and what is told because it harms nobody.
SEVERITIES = (*findings.BLOCKING, "info")

each_row = pytest.mark.parametrize("row", ROWS, ids=[row["id"] for row in ROWS])
each_example = pytest.mark.parametrize("example", LINES, ids=[one["id"] for one in LINES])


def row_of(example):
    [row] = [row for row in ROWS if row["id"] == example["id"]]
    return row


@each_row
def test_a_row_has_every_key_in_its_kind(row):
    assert list(row) == ["id", "engines", "stems", "pattern", "severity", "only_alone", "found",
                         "wanted", "remedy", "change", "repair", "report", "source"]
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", row["id"])
    assert row["engines"]
    assert set(row["engines"]) <= set(requests.ENGINES[1:])
    assert row["severity"] in SEVERITIES
    assert type(row["only_alone"]) is bool
    assert re.fullmatch(r"(field report \d)?", row["report"])
    assert all(row[key].strip() and "\n" not in row[key] for key in TEXTS)
    assert row["repair"] in ("", *REMEDIES)


@each_row
def test_a_change_is_one_that_can_be_made(row):
    change = row["change"]
    if not change:
        return
    assert row["severity"] in findings.BLOCKING
    keys = {"context": {"kind", "to"}, "environment": {"kind", "set"}}
    assert set(change) == keys.get(change["kind"], {"kind"})
    assert change["kind"] in healing.MAKERS
    groups = re.compile(row["pattern"]).groupindex
    assert change.get("to", "") in ("", *groups)
    if "set" in change:
        assert all(isinstance(one, str) for both in change["set"].items() for one in both)
        assert healing.is_sound(
            {"signature": row["id"], "kind": "environment", "value": change["set"]},
            {row["id"]: change})


@each_row
def test_the_texts_of_a_row_take_what_its_pattern_finds(row):
    words = {word for key in TEXTS for word in WORD.findall(row[key])}
    # What a change goes by need not be told.
    for_change = {row["change"].get("to"), "device" if row["change"].get(
        "kind") == "other_gpu" else None}
    groups = set(re.compile(row["pattern"]).groupindex)
    assert words <= groups
    assert groups - words <= for_change
    assert all("%" not in WORD.sub("", row[key]) for key in TEXTS)


@each_row
def test_a_repair_that_helps_is_named_by_its_tag(row):
    named = re.findall(r"playbooks/repair\.yml -t (\w+)", row["remedy"])
    assert set(named) <= {row["repair"]}


def repeats(parsed, within=0):
    """Of every repeat in a pattern: how often it repeats at most, and in how many others it is."""
    for operation, argument in parsed:
        if operation in REPEATS:
            yield argument[1], within
            yield from repeats(argument[2], within + (argument[1] > 1))
        elif operation is _constants.SUBPATTERN:
            yield from repeats(argument[-1], within)
        elif operation is _constants.BRANCH:
            for branch in argument[1]:
                yield from repeats(branch, within)


@each_row
def test_what_a_pattern_costs_has_a_limit(row):
    for most, within in repeats(_parser.parse(row["pattern"])):
        assert most <= 300, "a repeat without a limit"
        assert not within or most == 1, "a repeat in a repeat"
    # All of it lies among the bytes that a scan looks at around a stem.
    shortest, longest = _parser.parse(row["pattern"]).getwidth()
    assert longest <= engine_log.BEFORE


@each_row
def test_stems_are_worth_a_search(row):
    assert row["stems"]
    assert len(set(row["stems"])) == len(row["stems"])
    for stem in row["stems"]:
        assert len(stem) >= SHORTEST
        assert "\n" not in stem
        assert not any(other in stem for other in row["stems"] if other is not stem)


def test_every_row_has_lines_of_its_own():
    assert sorted(one["id"] for one in LINES) == [row["id"] for row in ROWS]
    for file in FILES.values():
        assert [one["id"] for one in file] == sorted(one["id"] for one in file)
        assert all(list(one) == ["id", "from", "lines", "near"] and all(one.values())
                   for one in file)


@each_example
def test_the_lines_of_a_row_are_its_own_and_those_near_it_are_of_none(example):
    row = row_of(example)
    for line in example["lines"]:
        for engine in row["engines"]:
            told = engine_log.diagnose("before\n%s\nafter" % line, ROWS, engine)
            assert [one["id"] for one in told] == [row["id"]]
            for one in told:
                assert one["evidence"].replace("\\n", "\n") in line
                assert "?" not in "".join(one[key] for key in TEXTS)
    for line in example["near"]:
        assert engine_log.diagnose(line, ROWS) == []


@each_example
def test_a_whole_log_is_read_for_the_same_lines(example):
    row = row_of(example)
    for line in example["lines"]:
        told = engine_log.scan([("before\n%s\nafter\n" % line).encode()], ROWS, row["engines"][0])
        assert [one["id"] for one in told["findings"]] == [row["id"]]
    for line in example["near"]:
        assert engine_log.scan([line.encode()], ROWS)["findings"] == []


def alternatives(pattern):
    """The parts that ``|`` separates, outside of groups."""
    parts, depth, escaped = [""], 0, False
    for letter in pattern:
        depth += {"(": 1, ")": -1}.get(letter, 0) if not escaped else 0
        if letter == "|" and not depth and not escaped:
            parts.append("")
            continue
        escaped = letter == "\\" and not escaped
        parts[-1] += letter
    return parts


@each_example
def test_no_part_of_a_row_is_there_that_no_line_shows(example):
    row = row_of(example)
    for part in alternatives(row["pattern"]):
        assert any(re.search(part, line, re.MULTILINE) for line in example["lines"]), part
    for stem in row["stems"]:
        assert any(stem in line for line in example["lines"]), stem


# Where the brief of this catalog comes from: field reports of others, each of which has rows.


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_each_field_report_has_rows(number):
    assert [row["id"] for row in ROWS if row["report"] == "field report %d" % number]


def test_what_harms_nobody_is_told_as_such():
    harmless = {row["id"] for row in ROWS if row["severity"] == "info"}
    assert "profiler-init-in-another-thread" in harmless
    for row in ROWS:
        if row["id"] in harmless:
            assert not row["change"]
            assert not row["repair"]
            assert re.search(r"\b(nothing|playbooks/profile\.yml)\b", row["remedy"])
