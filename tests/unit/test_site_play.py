# SPDX-License-Identifier: Apache-2.0
"""How site.yml is made: what no run on one kind of host would show."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
PLAYS = ROOT / "playbooks"
INCLUDE = "ansible.builtin.include_tasks"


def tags_of(tasks):
    """The tags that tasks have by themselves, and those in their blocks."""
    return {tag for task in tasks for tag in task.get("tags", [])} | (
        tags_of([inner for task in tasks for inner in task.get("block", [])]) if tasks else set())


@pytest.fixture(scope="module")
def tasks():
    [play] = yaml.safe_load((PLAYS / "site.yml").read_text())
    return play["tasks"]


def test_no_tag_that_is_skipped_takes_with_it_what_acts(tasks):
    includes = [task for task in tasks if INCLUDE in task]
    assert len(includes) == 3
    assert [task["tags"] for task in includes] == [["always"]] * 3


def test_every_tag_of_what_acts_is_listed():
    ran = subprocess.run(
        ["ansible-playbook", "site.yml", "-i", "localhost,", "--list-tags"], cwd=ROOT, text=True,
        env=dict(os.environ, ANSIBLE_CONFIG=str(ROOT / "ansible.cfg")), timeout=60,
        stdout=subprocess.PIPE, check=True)
    listed = set(re.search(r"TASK TAGS: \[(.*)\]", ran.stdout)[1].split(", "))
    acting = tags_of(yaml.safe_load((PLAYS / "tasks/bring.yml").read_text()))
    remedies = tags_of(yaml.safe_load((ROOT / "roles/host_tuning/tasks/main.yml").read_text()))
    assert {"linker_cache", "inference_endpoint"} < acting
    assert "swap" in remedies
    assert acting | remedies <= listed


def test_health_is_judged_where_the_library_path_was_not_told(tmp_path):
    """As on a host whose library path cannot be read: the role looks for itself."""
    play = [{"hosts": "localhost", "gather_facts": False, "connection": "local",
             "vars": {"ansible_python_interpreter": sys.executable,
                      "host_health_root": str(tmp_path / "root"), "host_health_library_path": {}},
             "tasks": [
                 {"gpu_facts": {"root": str(tmp_path / "root")}},
                 {"import_role": {"name": "host_health", "tasks_from": "judge"}},
                 {"assert": {"that": ["__host_health.verdict is defined",
                                      "__host_health_library_path.findings is defined"]}}]}]
    (tmp_path / "play.yml").write_text(yaml.safe_dump(play))
    ran = subprocess.run(
        ["ansible-playbook", str(tmp_path / "play.yml"), "-i", "localhost,"], cwd=ROOT, text=True,
        env=dict(os.environ, ANSIBLE_CONFIG=str(ROOT / "ansible.cfg")), timeout=120, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert ran.returncode == 0, ran.stdout


def test_parts_of_the_options_are_never_taken_for_all(monkeypatch):
    import importlib.util
    spec = importlib.util.spec_from_file_location(
        "role_options", ROOT / "lookup_plugins/role_options.py")
    role_options = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(role_options)
    load = role_options.yaml.load

    def second_fails(*given, seen=[]):  # noqa: B006
        seen.append(given)
        if len(seen) == 2:
            raise OSError("gone")
        return load(*given)

    monkeypatch.setattr(role_options.yaml, "load", second_fails)
    with pytest.raises(OSError, match="gone"):
        role_options.options()
    # Whole, though it failed in the middle before.
    assert {"container_runtime_consent", "toolbelt_root"} <= set(role_options.options())
