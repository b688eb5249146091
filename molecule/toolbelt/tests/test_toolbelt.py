# SPDX-License-Identifier: Apache-2.0
"""Modules find the toolbelt under the Python of each host, and nothing stayed damaged."""

import json
import os
import pathlib

import pytest

PROJECT = pathlib.Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
ROOT = "/var/lib/firstlight"
VENV = ROOT + "/venvs/toolbelt"
LOCK = PROJECT / "roles" / "toolbelt" / "files" / "toolbelt.txt"
# As our modules do: the Python is the host's, and what is asked is where each package came from.
FOUND = (PROJECT / "module_utils" / "firstlight" / "toolbelt.py").read_text(encoding="utf-8") + """
import importlib, json
assert reach(%r)
print(json.dumps({name: importlib.import_module(name).__file__
                  for name in ("huggingface_hub", "requests", "pynvml")}))
""" % ROOT


@pytest.fixture
def python(host):
    """The version of the host's Python, which has none of the packages itself."""
    assert host.run("/usr/bin/python3 -c 'import huggingface_hub, pynvml'").rc != 0
    return host.check_output(
        "/usr/bin/python3 -c %s", "import sys; print('%d.%d' % sys.version_info[:2])")


def test_modules_import_from_it_what_they_need(host, python):
    found = json.loads(host.check_output("/usr/bin/python3 -c %s", FOUND))
    site = "%s/lib/python%s/site-packages/" % (VENV, python)
    assert [path.startswith(site) for path in found.values()] == [True] * 3, found


def test_its_packages_are_those_of_the_lock(host, python):
    listed = json.loads(host.check_output(
        VENV + "/bin/python -m pip --disable-pip-version-check list --format=json"))
    locked = LOCK.read_text(encoding="utf-8").lower()
    strangers = {one["name"] for one in listed if "%s==%s " % (
        one["name"].lower().replace("_", "-"), one["version"]) not in locked}
    assert strangers <= {"pip", "setuptools", "wheel"}
    host.check_output(VENV + "/bin/python -m pip check")


def test_it_says_what_it_holds_and_nothing_is_left_of_the_damage(host, python):
    marker = json.loads(host.file(VENV + "/firstlight.json").content_string)
    assert marker["python"] == python
    assert marker["lock"] == LOCK.read_text(encoding="utf-8").rstrip("\n")
    host.check_output(VENV + "/bin/python -c 'import requests'")
