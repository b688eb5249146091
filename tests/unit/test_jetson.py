# SPDX-License-Identifier: Apache-2.0
"""What the catalogs tell of a Jetson, and that nothing is guessed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible.module_utils.firstlight.jetson import describe

FOLDER = Path(__file__).parents[2] / "catalog"
CATALOG = {name: yaml.safe_load((FOLDER / (name + ".yml")).read_text())
           for name in ("jetson_releases", "jetson_chips")}
KNOWN = [row["l4t"] for row in CATALOG["jetson_releases"]]
KEYS = {"jetpack", "jetpack_major", "cuda", "chip", "capability"}


@pytest.mark.parametrize("l4t, jetpack, major, cuda", [
    ("35.4.1", "5.1.2", 5, "11.4"), ("36.4.3", "6.2", 6, "12.6"), ("36.3.0", "6.0", 6, None),
    ("38.2.0", "7.0", 7, "13.0"), ("38.4.0", "7.1", 7, None), ("39.2.0", "7.2", 7, "13.2"),
    # Not in the catalog: its neighbours tell the major version and no more.
    ("36.4.7", None, 6, None), ("39.9.9", None, 7, None), ("36.4", None, 6, None),
    ("40.1.0", None, None, None), ("3.6", None, None, None), ("", None, None, None),
    (None, None, None, None)])
def test_a_release(l4t, jetpack, major, cuda):
    told = describe(l4t, None, CATALOG)
    assert told == {"jetpack": jetpack, "jetpack_major": major, "cuda": cuda, "chip": None,
                    "capability": None}


@pytest.mark.parametrize("soc, chip, capability", [
    ("tegra194", "Xavier", "7.2"), ("tegra234", "Orin", "8.7"), ("tegra264", "Thor", "11.0"),
    ("tegra23", None, None), (None, None, None)])
def test_a_chip(soc, chip, capability):
    told = describe(None, soc, CATALOG)
    assert (told["chip"], told["capability"], told["jetpack"]) == (chip, capability, None)


def test_a_major_version_that_rows_disagree_on_is_not_known():
    rows = {"jetson_chips": [], "jetson_releases": [
        {"l4t": "40.1.0", "jetpack": "8.0", "cuda": ""},
        {"l4t": "40.2.0", "jetpack": "9.0", "cuda": ""}]}
    assert describe("40.3.0", None, rows)["jetpack_major"] is None
    assert describe("40.1.0", None, rows)["jetpack"] == "8.0"


@given(l4t=st.none() | st.text(max_size=8) | st.sampled_from(KNOWN), soc=st.none() | st.text())
def test_only_a_known_release_has_a_jetpack(l4t, soc):
    told = describe(l4t, soc, CATALOG)
    assert set(told) == KEYS
    assert (told["jetpack"] is not None) == (l4t in KNOWN)


@given(st.permutations(CATALOG["jetson_releases"]), st.sampled_from(KNOWN))
def test_the_order_of_the_rows_makes_no_difference(rows, l4t):
    shuffled = dict(CATALOG, jetson_releases=rows)
    assert describe(l4t, "tegra234", shuffled) == describe(l4t, "tegra234", CATALOG)
