# SPDX-License-Identifier: Apache-2.0
"""The catalogs of the library path: what they say is what the code reads and gives words to."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml
from library_seen import CASES, CHECKS, PLACES, TRITONS
from packaging.version import Version

from ansible.module_utils.firstlight import findings
from ansible.module_utils.firstlight.planning import flags, library_path, library_repair

REPOSITORY = Path(__file__).parents[2]
CODE = REPOSITORY / "module_utils" / "firstlight" / "planning" / "library_path.py"
RELEASES, KERNELS, WITHOUT = (
    yaml.safe_load((REPOSITORY / "catalog" / (name + ".yml")).read_text())
    for name in ("engine_releases", "quantisation_kernels", "without_triton"))
ROLE = "roles/linker_cache does it"
TEXTS = ("found", "wanted", "remedy")
WORD = re.compile(r"%\((\w+)\)[sg]")

each_check = pytest.mark.parametrize("row", CHECKS, ids=[row["id"] for row in CHECKS])
each_place = pytest.mark.parametrize("row", PLACES, ids=[row["id"] for row in PLACES])
each_without = pytest.mark.parametrize("row", WITHOUT, ids=[row["engine"] for row in WITHOUT])
each_triton = pytest.mark.parametrize("row", TRITONS, ids=[row["first"] for row in TRITONS])


# What can be found.


@each_check
def test_a_check_is_of_known_kinds(row):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", row["id"])
    assert row["severity"] in ("warning", *findings.BLOCKING)
    assert row["helps"] in ("", library_repair.REMEDY)
    assert row["stops"] in ("", "cuda", "triton", "both")
    assert type(row["bypass"]) is type(row["needs_root"]) is bool


@each_check
def test_what_stops_something_is_an_error_and_only_that_is_led_around(row):
    assert not row["stops"] or row["severity"] in findings.BLOCKING
    # Links change what is found of libcuda; what the driver or a compiler lacks they do not.
    assert not row["bypass"] or row["stops"] in ("triton", "both")
    assert not row["helps"] or row["needs_root"]


@each_check
def test_a_remedy_names_the_role_where_it_helps_and_nowhere_else(row):
    assert (ROLE in row["remedy"] or "playbooks/repair.yml" in row["remedy"]
            or "roles/linker_cache makes it" in row["remedy"]) is bool(row["helps"])


@each_check
def test_the_texts_of_a_check_have_words_and_nothing_else_to_fill_in(row):
    for key in TEXTS:
        assert row[key].strip()
        assert "%" not in WORD.sub("", row[key]), key
    assert len(row["source"].split()) > 3 or row["source"].startswith("https://")


@each_check
def test_the_code_has_every_word_of_the_texts(row):
    cases = [(seen, half_done) for seen, ids, half_done in CASES.values() if row["id"] in ids]
    assert cases
    # As they are, and each text with all the words of its row.
    words = sorted({word for key in TEXTS for word in WORD.findall(row[key])})
    marked = {**row, "found": " ".join("<%%(%s)s>" % word for word in words) or "-"}
    for seen, half_done in cases:
        for rows in (CHECKS, [marked if one is row else one for one in CHECKS]):
            told = library_path.problems(seen, rows, TRITONS, half_done)
            texts = [one.finding[key] for one in told for key in TEXTS
                     if one.finding["id"] == row["id"]]
            assert texts
            assert [text for text in texts if WORD.search(text) or "None" in text] == []


def test_the_code_finds_what_the_catalog_has_and_nothing_else():
    texts = {node.value for node in ast.walk(ast.parse(CODE.read_text()))
             if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    made = {*library_path.CACHE.values(), *library_path.TOOL.values()}
    named = {node.args[0].value for node in ast.walk(ast.parse(CODE.read_text()))
             if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_Found"
             and isinstance(node.args[0], ast.Constant)}
    ids = {row["id"] for row in CHECKS}
    assert named | made <= ids
    assert ids <= texts | made


def test_what_is_put_in_order_by_naming_a_folder_is_a_check_that_the_role_mends():
    by_id = {row["id"]: row for row in CHECKS}
    assert {by_id[id_]["helps"] for id_ in library_repair.ORDER_MATTERS} == {library_repair.REMEDY}


# Where libraries are.


@each_place
def test_a_place_is_a_folder_of_a_known_kind(row):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", row["id"])
    assert row["kind"] in ("driver", "compat", "stub")
    assert row["path"].startswith("/")
    assert not row["path"].endswith("/")
    assert ".." not in row["path"].split("/")
    # One star leads down one folder; two would read all of a disk.
    assert "**" not in row["path"]
    assert ("stubs" in row["path"]) is (row["kind"] == "stub")
    assert ("compat" in row["path"]) is (row["kind"] == "compat")


def test_no_place_is_there_twice():
    for key in ("id", "path"):
        assert len({row[key] for row in PLACES}) == len(PLACES)


# Releases of Triton.


@each_triton
def test_a_row_of_triton_says_what_it_looks_for(row):
    assert set(row) == {"first", "below", "plain", "variable", "source"}
    assert type(row["plain"]) is bool
    assert row["variable"] in ("", library_repair.VARIABLE)
    for key in ("first", "below"):
        assert re.fullmatch(r"\d+\.\d+\.\d+", row[key]) or (key, row[key]) == ("below", "")


def test_each_release_of_triton_is_in_one_row():
    assert [row["below"] for row in TRITONS] == [row["first"] for row in TRITONS[1:]] + [""]
    for row in TRITONS:
        assert not row["below"] or Version(row["first"]) < Version(row["below"])
        assert library_path.triton_row(row["first"], TRITONS) == row


@pytest.mark.parametrize("row", [row for row in RELEASES if row["engine"] == "vllm"
                                 and "gpu" in row["devices"]], ids=lambda row: "-".join(
    (row["version"], row["runtime"], row["variant"])))
def test_a_release_of_vllm_has_a_triton_that_we_know_and_can_lead_around(row):
    assert row["triton"]
    known = library_path.triton_row(row["triton"], TRITONS)
    assert known["variable"] == library_repair.VARIABLE


def test_only_vllm_has_a_triton():
    assert {row["engine"] for row in RELEASES if row["triton"]} == {"vllm"}


# Engines that live without Triton.


@each_without
def test_an_engine_that_lives_without_triton_is_one_that_we_know_by_version(row):
    known = {release["version"]: release["triton"] for release in RELEASES
             if release["engine"] == row["engine"]}
    assert set(row["versions"]) <= set(known)
    assert all(known[version] for version in row["versions"])
    assert row["versions"] == sorted(set(row["versions"]), key=Version)
    # These two were seen to die without it.
    assert not {"0.24.0", "0.33.0"} & set(row["versions"])


@each_without
def test_the_last_resort_says_for_what_it_holds_and_what_it_costs(row):
    assert set(row) == {"engine", "versions", "flags", "environment", "architectures",
                        "quantisations", "capabilities", "only_with", "cost", "source"}
    methods = {kernel["method"] for kernel in KERNELS if kernel["engine"] == row["engine"]}
    assert set(row["quantisations"]) <= methods
    assert all(re.fullmatch(r"\d{1,2}\.\d", one) for one in row["capabilities"])
    for key in ("architectures", "quantisations", "capabilities", "only_with"):
        assert row[key], key
        assert row[key] == sorted(set(row[key])), key
    assert all(re.fullmatch("[A-Z][A-Z0-9_]+", name) and isinstance(value, str)
               for name, value in row["environment"].items())
    # As the flags of the user are spelled, who may have given those of the row as well.
    assert all(flags.spelled(one) == one and one.startswith("--")
               for one in row["flags"] + row["only_with"])
    assert set(row["flags"]) <= set(row["only_with"])
    assert len(row["cost"].split()) > 5
    assert len(row["source"].split()) > 5


def test_a_release_is_in_one_row_of_those_that_live_without_triton():
    rows = [(row["engine"], version) for row in WITHOUT for version in row["versions"]]
    assert len(rows) == len(set(rows))
