# SPDX-License-Identifier: Apache-2.0
"""The catalog of packages that are installed as wheels: rows that the code can follow."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from ansible.module_utils.firstlight.planning import wheel_requests

REPOSITORY = Path(__file__).parents[2]
ROWS, RELEASES = (yaml.safe_load((REPOSITORY / "catalog" / (name + ".yml")).read_text())
                  for name in ("prebuilt_wheels", "engine_releases"))
BUILD = {"sdist": str, "environment": dict, "architectures": dict, "jobs": str, "job_bytes": int}

each_row = pytest.mark.parametrize("row", ROWS, ids=[row["package"] for row in ROWS])


@each_row
def test_a_row_would_be_taken_from_a_user_too(row):
    assert set(row) == set(wheel_requests.ROW_DEFAULTS)
    asked = {"package": row["package"], "python": "/opt/x/bin/python"}
    found = wheel_requests.wheel_requests([asked], [row], [])
    assert found["findings"] == []
    assert found["requests"][0]["row"] == row


@each_row
def test_a_row_is_of_a_package_by_its_normal_name(row):
    assert row["package"] == canonicalize_name(row["package"])
    assert row["sources"]


@each_row
def test_a_kernel_says_how_far_it_is_from_torch(row):
    if not row["kernel"]:
        return
    tree = ast.parse(row["kernel"])
    assigned = {target.id for node in tree.body if isinstance(node, ast.Assign)
                for target in node.targets if isinstance(target, ast.Name)}
    assert "error" in assigned
    # It holds the package's result against one of torch, on the device that it is given, and the
    # same numbers each time.
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert {"torch", "device", "out", "reference"} <= names
    assert "torch.manual_seed(0)" in row["kernel"]
    assert 0 < row["tolerance"] <= 0.1
    imported = {alias.name.split(".")[0] for node in ast.walk(tree)
                if isinstance(node, ast.Import) for alias in node.names} | {
        node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported & {one.split(".")[0] for one in row["imports"]}


def test_the_kernels_that_are_not_run_are_those_that_would_be_compiled_first():
    assert [row["package"] for row in ROWS if not row["kernel"]] == ["flashinfer-python"]


@each_row
def test_each_version_has_one_cuda_at_most(row):
    plain = [SpecifierSet(one["versions"]) for one in row["plain_cuda"]]
    for number in range(60):
        for version in ("0.%d" % number, "0.0.%d" % number, "%d.0" % number):
            assert sum(version in one for one in plain) <= 1


@each_row
def test_each_version_needs_one_torch_at_most(row):
    needed = [SpecifierSet(one["versions"]) for one in row["requires_torch"]]
    # Where a range begins or ends, and beside it.
    edges = {Version(one.version) for each in needed for one in each}
    around = {*edges, *(Version(text % edge.base_version) for edge in edges
                        for text in ("%s.post1", "%s.post9", "%s.1"))}
    for version in around:
        assert sum(version in one for one in needed) <= 1, version
    for edge in edges:
        ends = any(one.operator == "<" and Version(one.version) == edge
                   for each in needed for one in each)
        assert ends or any(edge in one for one in needed), edge
    # Else what tells none would be tried with any.
    assert needed or row["torch"] != "stable"


def test_of_versions_between_the_first_and_the_last_that_are_known_none_is_left_out():
    [row] = [row for row in ROWS if row["package"] == "vllm"]
    needed = [SpecifierSet(one["versions"]) for one in row["requires_torch"]]
    for one in RELEASES:
        if one["engine"] == "vllm":
            assert sum(Version(one["version"]) in each for each in needed) == 1, one["version"]


@each_row
def test_kernels_are_in_order_and_none_is_there_twice(row):
    found = [tuple(int(part) for part in one["capability"].split("."))
             for one in row["capabilities"]]
    assert found == sorted(set(found))


@each_row
def test_a_build_is_bounded_and_never_looks_for_a_wheel_by_itself(row):
    if not row["build"]:
        return
    assert {key: type(value) for key, value in row["build"].items()} == BUILD
    assert row["build"]["job_bytes"] >= 2**30
    assert all(isinstance(value, str) for value in row["build"]["environment"].values())
    architectures = row["build"]["architectures"]
    assert not architectures or (set(architectures) == {"variable", "form"} and re.fullmatch(
        r"80;90|8\.0;9\.0", architectures["form"]))
    # setup.py of these fetches a wheel from a release, whose hash nobody has.
    if any("release" in source for source in row["sources"]):
        assert [name for name, value in row["build"]["environment"].items()
                if name.endswith("_FORCE_BUILD") and value == "TRUE"]


def test_what_the_catalog_of_engines_says_of_vllm_is_said_here_too():
    [row] = [row for row in ROWS if row["package"] == "vllm"]
    known = {one["version"]: one["cuda"] for one in RELEASES
             if one["engine"] == "vllm" and "gpu" in one["devices"]}
    assert known
    for version, cuda in known.items():
        assert [one["cuda"] for one in row["plain_cuda"]
                if Version(version) in SpecifierSet(one["versions"])] == [cuda], version
