# SPDX-License-Identifier: Apache-2.0
"""The catalog's rows are whole, in order and true to the lock and the launcher they name."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from ansible.module_utils.firstlight.planning import requests
from ansible.module_utils.firstlight.planning.command import DIALECTS, engine_command

REPOSITORY = Path(__file__).parents[2]
FILES = REPOSITORY / "roles" / "inference_endpoint" / "files"
ROWS = yaml.safe_load((REPOSITORY / "catalog" / "engine_releases.yml").read_text())
KEYS = {"engine", "version", "runtime", "variant", "package", "lock", "launcher", "dialect",
        "image", "tag", "digest", "entrypoint", "user", "devices", "formats", "quantisations",
        "architectures", "minimum_python", "libraries", "extra_flags", "cuda", "minimum_driver",
        "full_driver", "compat_drivers", "capabilities", "ptx", "l4t", "torch", "triton",
        "memory_utilisation", "cudagraph_profiled", "second_runner", "batch_defaults",
        "environment", "flags", "removed_flags", "measured", "source"}
# What every release has, and what those have besides that we install or that come as an image.
ALWAYS = {"engine", "version", "runtime", "variant", "dialect", "devices", "formats",
          "architectures", "flags", "source"}
INSTALLED = {"package", "lock", "launcher", "minimum_python", "extra_flags"}
PULLED = {"image", "tag", "cuda", "minimum_driver", "capabilities"}
# On a Jetson the driver comes with the release of Jetson Linux.
OF_JETSONS = PULLED - {"minimum_driver"}
# A CPU has neither.
OF_CPUS = PULLED - {"cuda", "minimum_driver", "capabilities"}


def each(rows):
    return pytest.mark.parametrize(
        "row", rows, ids=["%(engine)s-%(version)s-%(runtime)s-%(variant)s" % row for row in rows])


each_row = each(ROWS)
each_installed_row = each([row for row in ROWS if row["lock"]])


def numbers(version):
    return tuple(int(part) for part in version.split("."))


def launcher_flags(row):
    """Every flag of the launcher, as a tuple of its spellings."""
    spec = importlib.util.spec_from_file_location("launcher", FILES / row["launcher"])
    launcher = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(launcher)
    return [tuple(action.option_strings) for action in launcher.parser()._actions
            if action.dest != "help"]


def decided_by_the_plan(row):
    """The flags in the command of a plan that asks for nothing more."""
    plan = {"engine": row["engine"], "cache": "",
            "dialect": row["dialect"], "venv": "/venv", "launcher": row["launcher"],
            "runtime": row["runtime"], "entrypoint": row["entrypoint"], "engine_binary": "",
            "engine_python": "", "model": {"path": "/m.gguf", "served_name": "m"},
            "listen": "127.0.0.1", "engine_port": 8000, "context": 4096, "parallel": 4, "gpus": [],
            "env": {}, "flags": [], "extra_args": []}
    return {word for word in engine_command(plan)["argv"] if word.startswith("-")}


def test_rows_are_sorted_and_each_is_there_once():
    order = [(row["engine"], numbers(row["version"]), row["runtime"], row["variant"])
             for row in ROWS]
    assert order == sorted(set(order))
    assert order


@each_row
def test_a_row_has_every_key_and_no_other(row):
    assert set(row) == KEYS
    pulled = OF_JETSONS if row["variant"].startswith("l4t") else (
        PULLED if "gpu" in row["devices"] else OF_CPUS)
    needed = INSTALLED if row["runtime"] == "native" else pulled
    assert [key for key in sorted(ALWAYS | needed) if not row[key]] == []


@each_row
def test_a_release_is_installed_or_pulled_and_not_both(row):
    assert bool(row["lock"]) == bool(row["launcher"]) == (row["runtime"] == "native")
    assert bool(row["image"]) == bool(row["tag"]) == (row["runtime"] == "docker")


@each_row
def test_who_runs_in_a_container_is_nobody_who_may_do_everything(row):
    """An empty user is the image's own. Numbers alone: an image may not have the name."""
    assert row["user"] == "" or re.fullmatch(r"[1-9]\d{0,4}:\d{1,5}", row["user"])
    assert row["user"] == "" or row["runtime"] == "docker"


@each_row
def test_a_row_has_a_source_that_can_be_checked(row):
    assert len(row["source"].split()) > 5
    assert row["version"] in row["source"]


@each_row
def test_numbers_that_yaml_would_round_are_text(row):
    assert isinstance(row["version"], str)
    for key in ("minimum_python", "cuda", "torch", "triton", "memory_utilisation"):
        assert isinstance(row[key], str), key
    for key in ("minimum_python", "cuda"):
        assert not row[key] or len(numbers(row[key])) == 2, key


@each_row
def test_an_engine_and_a_runtime_are_those_of_the_contract(row):
    assert row["engine"] in requests.ENGINES[1:]
    assert row["runtime"] in requests.RUNTIMES[1:]
    assert row["dialect"] in DIALECTS


@each_installed_row
def test_the_lock_locks_the_version_of_the_row_with_hashes(row):
    lock = (FILES / row["lock"]).read_text()
    assert re.findall(r"^(\S+)==(\S+)", lock, re.M) == [(row["package"], row["version"])]
    assert "--hash=sha256:" in lock


@each_row
def test_a_library_has_a_package_on_every_family_that_is_known(row):
    for library in row["libraries"]:
        assert set(library) == {"soname", "packages"}
        assert set(library["packages"]) == {"debian", "fedora", "rhel", "suse"}
        assert all(re.fullmatch(r"[a-z0-9.+-]+", name) for name in library["packages"].values())


@each_installed_row
def test_every_extra_flag_is_one_of_the_launcher(row):
    known = {spelling for flag in launcher_flags(row) for spelling in flag}
    assert set(row["extra_flags"]) <= known
    assert len(set(row["extra_flags"])) == len(row["extra_flags"])


@each_installed_row
def test_every_flag_of_the_launcher_is_the_users_or_the_plans(row):
    users, plans = set(row["extra_flags"]), decided_by_the_plan(row)
    for flag in launcher_flags(row):
        assert users.isdisjoint(flag) != plans.isdisjoint(flag), flag
        assert users.issuperset(flag) or users.isdisjoint(flag), flag


@each_installed_row
def test_every_flag_of_the_plan_is_one_of_the_launcher(row):
    assert decided_by_the_plan(row) <= {one for flag in launcher_flags(row) for one in flag}


@each_installed_row
def test_the_row_names_the_flags_of_the_plan(row):
    assert decided_by_the_plan(row) <= set(row["flags"])
    assert set(row["flags"]) <= {one for flag in launcher_flags(row) for one in flag}
