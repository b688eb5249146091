# SPDX-License-Identifier: Apache-2.0
"""The catalog of log signatures: each row knows its own lines, no others, at a bounded cost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from ansible.module_utils.firstlight import engine_log, findings
from ansible.module_utils.firstlight.planning import requests

try:
    from re import _constants, _parser
except ImportError:  # Python 3.10 and older
    import sre_constants as _constants
    import sre_parse as _parser

REPOSITORY = Path(__file__).parents[2]
ROWS = yaml.safe_load((REPOSITORY / "catalog" / "log_signatures.yml").read_text())
QUOTED = yaml.safe_load(
    (REPOSITORY / "tests" / "fixtures" / "quoted" / "engine-log-lines.yml").read_text())
TEXTS = ("found", "wanted", "remedy")
WORD = re.compile(r"%\((\w+)\)s")
REPEATS = {_constants.MAX_REPEAT, _constants.MIN_REPEAT}

each_row = pytest.mark.parametrize("row", ROWS, ids=[row["id"] for row in ROWS])


@each_row
def test_a_row_has_every_key_in_its_kind(row):
    assert list(row) == ["id", "engines", "pattern", "severity", "only_alone", "found", "wanted",
                         "remedy", "report", "source"]
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", row["id"])
    assert row["engines"]
    assert set(row["engines"]) <= set(requests.ENGINES[1:])
    assert row["severity"] in findings.BLOCKING
    assert type(row["only_alone"]) is bool
    assert re.fullmatch(r"(field report \d)?", row["report"])
    assert all(row[key].strip() and "\n" not in row[key] for key in TEXTS)


@each_row
def test_the_texts_of_a_row_take_what_its_pattern_finds(row):
    words = {word for key in TEXTS for word in WORD.findall(row[key])}
    assert words == set(re.compile(row["pattern"]).groupindex)
    assert all("%" not in WORD.sub("", row[key]) for key in TEXTS)


def repeats(parsed, within=0):
    """Of every repeat in a pattern: how often it repeats at most, and in how many others it is."""
    for operation, argument in parsed:
        if operation in REPEATS:
            yield argument[1], within
            yield from repeats(argument[2], within + 1)
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


def test_every_row_has_lines_of_its_own():
    assert [one["id"] for one in QUOTED] == [row["id"] for row in ROWS]
    assert all(one["from"] and one["lines"] and one["near"] for one in QUOTED)


@pytest.mark.parametrize("quoted", QUOTED, ids=[one["id"] for one in QUOTED])
def test_the_lines_of_a_row_are_its_own_and_those_near_it_are_of_none(quoted):
    [row] = [row for row in ROWS if row["id"] == quoted["id"]]
    for line in quoted["lines"]:
        for engine in row["engines"]:
            told = engine_log.diagnose("before\n%s\nafter" % line, ROWS, engine)
            assert [one["id"] for one in told] == [row["id"]]
            assert all(one["evidence"] in line and "?" not in one["found"] for one in told)
    for line in quoted["near"]:
        assert engine_log.diagnose(line, ROWS) == []


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


@pytest.mark.parametrize("quoted", QUOTED, ids=[one["id"] for one in QUOTED])
def test_no_part_of_a_pattern_is_there_that_no_line_shows(quoted):
    [row] = [row for row in ROWS if row["id"] == quoted["id"]]
    for part in alternatives(row["pattern"]):
        assert any(re.search(part, line) for line in quoted["lines"]), part
