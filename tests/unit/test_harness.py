# SPDX-License-Identifier: Apache-2.0
"""``run_module`` holds a module to what it documents, and a whole session to every key of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from types import SimpleNamespace

import checkout
import pytest
from harness import Promise

RETURN = """
path: {returned: always, type: path, description: Where.}
bytes: {returned: when it was read, type: int, description: How much.}
parts:
  returned: when it was read
  type: list
  elements: dict
  description: What it consists of.
  contains:
    name: {type: str, description: Its name.}
"""
ATTRIBUTES = "attributes: {check_mode: {support: %s}, diff_mode: {support: %s}}"


def broken(result, check=False, diff=False, check_mode="full", diff_mode="full"):
    """What a result breaks of the documentation above."""
    module = SimpleNamespace(__name__="demo", RETURN=RETURN,
                             DOCUMENTATION=ATTRIBUTES % (check_mode, diff_mode))
    return Promise(module).broken_by(result, check, diff)


@pytest.mark.parametrize("result", [
    {"changed": False, "path": "/x"},
    {"changed": True, "path": "/x", "mode": "0644", "uid": 0},
    {"changed": False, "path": "/x", "bytes": 3, "parts": [{"name": "a"}, {"name": None}]},
    {"changed": False, "path": "/x", "bytes": None},
    {"failed": True, "msg": "It is gone."},
])
def test_what_is_documented_may_be_returned(result):
    assert broken(result) == []


@pytest.mark.parametrize(("result", "sentence"), [
    ({}, "found no path, wanted it always"),
    ({"path": "/x", "size_b": 1}, "found size_b, wanted only what RETURN documents"),
    ({"path": "/x", "bytes": "3"}, "found bytes: '3', wanted a value of type int"),
    ({"path": "/x", "bytes": True}, "found bytes: True, wanted a value of type int"),
    ({"path": "/x", "parts": ["a"]}, "found 'a' in parts, wanted elements of type dict"),
    ({"path": "/x", "parts": [{"nam": "a"}]}, "found parts.nam, wanted only what RETURN documents"),
    ({"failed": True}, "found a failure without msg, wanted the reason"),
    ({"failed": True, "msg": "It is gone.", "why": 1}, "found why, wanted only what RETURN"),
    ({"path": "/x", "warnings": ["Module did not set no_log for api_key"]}, "found the warning"),
    ({"path": "/x", "diff": {}}, "found a diff that was not asked for, wanted none"),
])
def test_what_is_not_documented_is_named(result, sentence):
    assert [said for said in broken(result) if said.startswith(sentence)]


def test_the_modes_are_those_that_the_attributes_say():
    changed = {"changed": True, "path": "/x"}
    assert broken(changed, diff=True) == [
        "found diff_mode support: full, wanted what the run did: none"]
    assert broken(dict(changed, diff={}), diff=True, diff_mode="none") == [
        "found diff_mode support: none, wanted what the run did: full"]
    assert broken({"path": "/x", "skipped": True}, check=True) == [
        "found check_mode support: full, wanted what the run did: none"]
    assert broken(dict(changed, diff={}), check=True, diff=True) == []


def test_a_whole_session_fails_where_a_documented_key_was_never_returned(tmp_path):
    clone = checkout.copy(tmp_path)
    for folder, kept in (("library", "state_root.py"), ("tests/unit", "test_state_root.py")):
        for file in (clone / folder).glob("*.py"):
            if file.name != kept:
                file.unlink()
    unit = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit"]

    def session(*more):
        ran = subprocess.run(unit + list(more), cwd=clone, text=True, timeout=120, check=False,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return ran.returncode, ran.stdout

    assert session()[0] == 0
    module = clone / "library" / "state_root.py"
    module.write_text(module.read_text().replace(
        'RETURN = r"""', 'RETURN = r"""\nages:\n  description: Never.\n  type: int\n'
        "  returned: at times", 1))
    shutil.rmtree(clone / "library" / "__pycache__", ignore_errors=True)
    status, said = session()
    assert status == 1, said
    assert "RETURN documents state_root: ages, which no run_module run returned" in said
    # A part of the tests proves nothing about what the rest would have returned.
    assert session("-k", "test_")[0] == 0
