# SPDX-License-Identifier: Apache-2.0
"""The catalog of profilers: ranges that do not overlap, in words that the code has values for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

from ansible.module_utils.firstlight.planning import profiling

REPOSITORY = Path(__file__).parents[2]
ROWS, RELEASES = (yaml.safe_load((REPOSITORY / "catalog" / (name + ".yml")).read_text())
                  for name in ("profiler_dialects", "engine_releases"))
KEYS = ["engine", "profiler", "first", "before", "flag", "fields", "environment", "start", "stop",
        "bounded", "frontend", "leftover", "source"]
VALUES = {"<folder>", "<iterations>", "<stacks>", "<milliseconds>"}

each = pytest.mark.parametrize("row", ROWS, ids=[
    "%(engine)s %(profiler)s %(first)s" % row for row in ROWS])


@each
def test_a_row_has_every_key_and_values_of_its_kind(row):
    assert list(row) == KEYS
    assert row["profiler"] in ("torch", "nsys")
    assert bool(row["flag"]) == bool(row["fields"])
    assert row["fields"] or row["environment"]
    assert not row["before"] or Version(row["first"]) < Version(row["before"])
    assert row["start"].startswith("/")
    assert row["stop"].startswith("/")
    assert type(row["bounded"]) is type(row["frontend"]) is bool
    assert len(row["source"].split()) > 3
    assert all(isinstance(value, str) for value in row["environment"].values())


@each
def test_its_words_are_those_that_the_code_has_values_for(row):
    used = {value for value in [*row["fields"].values(), *row["environment"].values()]
            if isinstance(value, str) and re.search("[<>]", value)}
    assert used <= VALUES
    assert row["profiler"] == "nsys" or {"<folder>", "<stacks>"} <= used
    # What it says that it does by itself it is told.
    assert ("<iterations>" in used) is row["bounded"]


@each
def test_what_is_written_for_a_release_is_given_to_no_other(row):
    assert not set(row["leftover"]) & set(row["environment"])
    # A folder without a profiler ends the start of newer ones.
    assert "torch_profiler_dir" not in row["fields"] or row["fields"]["profiler"] == "torch"


def test_ranges_of_one_engine_follow_each_other():
    for before, after in zip(ROWS, ROWS[1:]):
        if (before["engine"], before["profiler"]) == (after["engine"], after["profiler"]):
            assert before["before"] == after["first"]


@pytest.mark.parametrize("version", sorted(
    {row["version"] for row in RELEASES if row["engine"] == "vllm"}))
def test_every_release_of_vllm_that_we_bring_can_be_recorded(version):
    assert profiling.dialect(ROWS, "vllm", "torch", version)
