# SPDX-License-Identifier: Apache-2.0
"""The catalogs of health and of Jetsons: their values are of the kinds that the code reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from ansible.module_utils.firstlight.planning import health

FOLDER = Path(__file__).parents[2] / "catalog"
NAMES = ("health_limits", "jetson_chips", "jetson_releases", "nvml_errors", "xid_events")
ROWS = {name: yaml.safe_load((FOLDER / (name + ".yml")).read_text()) for name in NAMES}
CLASSES = {"nvidia", "unified", "jetson", "cpu"}
REMEDIES = {"", "fabric_manager", "persistence", "page_cache", "swap", "power_mode"}
KINDS = {*health.IS, "unread", "unsupported"}
WORDS = {"value": "VALUE", "limit": "LIMIT", "index": 0}
FINDINGS = {row["id"] for row in ROWS["health_limits"]} | {
    row["finding"] for row in ROWS["nvml_errors"]}


def each(name, key):
    return pytest.mark.parametrize("row", ROWS[name], ids=[str(row[key]) for row in ROWS[name]])


@each("health_limits", "id")
def test_a_limit_is_one_that_can_be_held_against_facts(row):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", row["id"])
    assert row["scope"] in ("host", "devices", "other_cards")
    assert row["classes"]
    assert set(row["classes"]) <= CLASSES
    assert row["verdict"] in health.VERDICTS
    assert row["unit"] in ("", "bytes", "°C")
    assert row["helps"] in REMEDIES
    assert isinstance(row["needed"], bool)
    assert isinstance(row["needs_root"], bool)
    assert set(row["hidden_by"]) <= FINDINGS - {row["id"]}


@each("health_limits", "id")
def test_the_conditions_of_a_limit_are_of_known_kinds(row):
    for condition in [*row["given"], row]:
        assert condition["is"] in KINDS
        limit = condition["limit"]
        assert {"above": int, "below": int, "within": list, "differs_from": str,
                "below_figure": str}.get(condition["is"], type(limit)) is type(limit)
        assert all(re.fullmatch(r"[a-z_0-9]+(\.[a-z_0-9]+)*", name) for name in (
            [condition["figure"], limit] if condition["is"] in health.OF_FIGURES
            else [condition["figure"]]))


@each("health_limits", "id")
def test_what_degrades_is_needed_or_says_by_another_row_that_it_is_not_known(row):
    figures = {one["figure"] for one in ROWS["health_limits"] if one["needed"]}
    assert (row["verdict"] == "ok" or row["is"] in ("unread", "unsupported")
            or row["figure"] in figures)
    assert row["verdict"] != "ok" or not row["needed"]


@pytest.mark.parametrize("name, keys", [
    ("health_limits", ("found", "wanted", "remedy")),
    ("nvml_errors", ("found", "wanted", "remedy")), ("xid_events", ("name", "remedy"))])
def test_every_text_is_one_that_the_words_fit(name, keys):
    for row in ROWS[name]:
        for key in keys:
            assert (row[key] % WORDS).strip()


@each("nvml_errors", "code")
def test_an_error_of_nvml_says_what_it_means(row):
    assert isinstance(row["code"], int)
    assert re.fullmatch(r"[A-Z_]+", row["name"])
    assert row["verdict"] == "bad"
    assert row["figure_verdict"] in ("", *health.VERDICTS)
    assert set(row["classes"]) <= CLASSES - {"cpu"}
    assert row["found"]


def test_the_errors_of_nvml_are_those_that_it_has():
    pynvml = pytest.importorskip("pynvml")
    for row in ROWS["nvml_errors"]:
        assert getattr(pynvml, "NVML_ERROR_" + row["name"]) == row["code"]


@each("xid_events", "code")
def test_an_xid_says_what_it_means(row):
    assert isinstance(row["code"], int)
    assert isinstance(row["recent_s"], int)
    assert row["recent_s"] > 0
    assert row["verdict"] in health.VERDICTS
    assert isinstance(row["needs_root"], bool)
    assert row["source"].startswith("https://docs.nvidia.com/deploy/xid-errors/")


def test_the_row_for_unknown_xids_is_no_reproach():
    assert [row["verdict"] for row in ROWS["xid_events"]
            if row["code"] == health.UNKNOWN_XID] == ["ok"]


@each("jetson_releases", "l4t")
def test_a_release_of_jetson_linux_is_text_of_numbers(row):
    assert re.fullmatch(r"\d+\.\d+\.\d+", row["l4t"])
    assert re.fullmatch(r"\d+(\.\d+)+( DP)?", row["jetpack"])
    assert re.fullmatch(r"(\d+\.\d+)?", row["cuda"])


@each("jetson_chips", "soc")
def test_a_chip_has_a_name_and_a_capability(row):
    assert re.fullmatch(r"tegra\d+", row["soc"])
    assert row["chip"]
    assert re.fullmatch(r"\d+\.\d", row["capability"])
