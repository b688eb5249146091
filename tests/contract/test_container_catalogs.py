# SPDX-License-Identifier: Apache-2.0
"""The catalogs of containers: what they say can be acted on, and is said as it should be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from ansible.module_utils.firstlight.planning import container_runtime

REPOSITORY = Path(__file__).parents[2]
PACKAGES, ERRORS = (yaml.safe_load((REPOSITORY / "catalog" / name).read_text())
                    for name in ("container_packages.yml", "registry_errors.yml"))
OPTIONS = (REPOSITORY / "roles/container_runtime/defaults/main.yml").read_text()
WORD = re.compile(r"%\((\w+)\)s")

each_package = pytest.mark.parametrize("row", PACKAGES, ids=[row["like"] for row in PACKAGES])
each_error = pytest.mark.parametrize("row", ERRORS, ids=[row["id"] for row in ERRORS])


@each_package
def test_a_row_of_packages_names_a_distribution_as_os_release_does(row):
    assert set(row) == {"like", "engine", "service", "source"}
    assert re.fullmatch(r"[a-z0-9._-]+", row["like"])
    assert row["service"].endswith(".service")
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", name) for name in row["engine"])


def test_no_distribution_is_there_twice():
    assert len({row["like"] for row in PACKAGES}) == len(PACKAGES)


@each_error
def test_an_error_is_told_in_words_that_are_filled_in(row):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", row["id"])
    assert re.compile(row["pattern"])
    for key in ("found", "wanted", "remedy"):
        assert row[key].strip()
        assert set(WORD.findall(row[key])) <= {"image", "registry"}
        assert "%" not in WORD.sub("", row[key])
    # An option that is advised is one that there is.
    for option in re.findall(r"container_runtime_\w+", row["remedy"]):
        assert "\n%s:" % option in OPTIONS


def test_each_error_is_found_by_a_row_of_its_own():
    assert len({row["id"] for row in ERRORS}) == len(ERRORS)
    image = {"image": "example.org/engine:1", "name": "", "source": "pull", "path": ""}
    said = {"image-no-room": "no space left on device", "image-limit": "toomanyrequests",
            "image-not-permitted": "unauthorized: authentication required",
            "image-unknown": "manifest unknown", "registry-certificate": "x509: unknown authority",
            "image-other-platform": "no matching manifest for linux/arm64",
            "registry-unreachable": "dial tcp 192.0.2.1:443: i/o timeout"}
    assert set(said) == {row["id"] for row in ERRORS}
    for id_, text in said.items():
        assert container_runtime.image_findings(text, image, ERRORS)[0]["id"] == id_


def test_what_is_installed_is_what_the_role_needs():
    assert {row["like"] for row in PACKAGES} >= {"debian", "ubuntu", "fedora", "rhel"}
