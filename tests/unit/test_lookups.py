# SPDX-License-Identifier: Apache-2.0
"""What the controller reads of this project it reads once, as it stands there."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess

import pytest
import role_options
import yaml
from ansible.errors import AnsibleLookupError

import catalog

ROOT = pathlib.Path(__file__).parents[2]
CATALOGS = sorted(path.stem for path in (ROOT / "catalog").glob("*.yml"))


@pytest.fixture
def rows():
    lookup = catalog.LookupModule()
    return lambda *names: lookup.run(list(names), {})


def test_rows_are_those_of_the_files(rows):
    assert CATALOGS
    assert rows(*CATALOGS) == [
        yaml.safe_load((ROOT / "catalog" / (name + ".yml")).read_text()) for name in CATALOGS]


@pytest.mark.parametrize("name", ["", "no_such", "../ansible", "/etc/passwd", "gpus.yml", 5])
def test_what_is_no_catalog_is_told(rows, name):
    with pytest.raises(AnsibleLookupError, match="catalog"):
        rows(name)


def test_a_file_is_parsed_once_until_it_changes(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "FOLDER", str(tmp_path))
    monkeypatch.setattr(catalog, "_known", {})
    file = tmp_path / "some.yml"
    file.write_text("- {id: a}\n")
    [first], [again] = rows("some"), rows("some")
    assert first == [{"id": "a"}]
    assert again is first
    file.write_text("- {id: b, more: true}\n")
    assert rows("some") == [[{"id": "b", "more": True}]]
    file.write_text("- {id: [\n")
    with pytest.raises(AnsibleLookupError, match="some cannot be read"):
        rows("some")


def test_all_are_at_hand_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "_known", {})
    catalog.parse_all()
    assert sorted(catalog._known) == CATALOGS


def test_every_option_of_every_role_is_given():
    [found] = role_options.LookupModule().run([], {})
    wanted = {}
    for file in ROOT.glob("roles/*/meta/argument_specs.yml"):
        for spec in yaml.safe_load(file.read_text())["argument_specs"].values():
            wanted.update(spec.get("options") or {})
    assert found == wanted


def test_a_spec_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(role_options, "FOLDER", str(tmp_path))
    monkeypatch.setattr(role_options, "_known", {})
    (tmp_path / "role/meta").mkdir(parents=True)
    (tmp_path / "role/meta/argument_specs.yml").write_text("argument_specs: [\n")
    with pytest.raises(AnsibleLookupError, match="options cannot be read"):
        role_options.LookupModule().run([], {})


def play(tmp_path, *options, **given):
    """Run site.yml on this machine; gives its status and what it printed."""
    env = dict(os.environ, ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"),
               ANSIBLE_HOME=str(tmp_path / "home"))
    done = subprocess.run(
        ["ansible-playbook", str(ROOT / "playbooks/site.yml"), *options,
         "--extra-vars", json.dumps({"firstlight_root": str(tmp_path / "root"), **given})],
        cwd=tmp_path, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=120, check=False)
    return done.returncode, done.stdout


def test_values_of_another_type_are_all_told_before_the_host_is_looked_at(tmp_path):
    """Of any role, whether this run would come to it or not."""
    status, output = play(tmp_path, "--tags", "host_report", network_access_probe_s="soon",
                          host_tuning_swap_bytes=[1], endpoint_smoke_streams="many")
    assert status != 0
    for name in ("network_access_probe_s", "host_tuning_swap_bytes", "endpoint_smoke_streams"):
        assert "argument '%s' is of type" % name in output.replace("''", "'")
    assert not (tmp_path / "root").exists()
