# SPDX-License-Identifier: Apache-2.0
"""Scenarios share no host at once, what failed is said last, and being skipped is told."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
INVENTORY = {"all": {"children": {
    "one": {"hosts": {"a": {"ansible_host": "rig-a"}, "b": {"ansible_host": "rig-b"}}},
    "two": {"children": {"shared": {"hosts": {"a": None}}}},
    "apart": {"hosts": {"c": {"ansible_host": "rig-c"}}}}}}
# What stands in for the rig notes what it is asked, and for molecule whose hosts it has meanwhile.
RIG = """import os, sys
with open("asked", "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
if sys.argv[1] == "images":
    sys.exit(int(os.environ.get("RIG", 0)))
"""
PLAY = """#!%s
import json, os, sys, time
name = sys.argv[-1]
print("INFO     %%s \\u279c create: Executing" %% name, flush=True)
def note(what):
    with open("order", "a") as file:
        file.write(json.dumps([what, name]) + "\\n")
note("begins")
limit = time.monotonic() + float(os.environ.get("STAYS", 10))
# In two lanes there is another one, unless it has to wait.
while "STAYS" in os.environ or open("order").read().count("begins") < 2:
    if time.monotonic() > limit:
        break
    time.sleep(0.02)
note("ends")
print("what %%s says" %% name)
sys.exit(name == os.environ.get("FAILS"))
""" % sys.executable


@pytest.fixture
def project(tmp_path):
    for name in ("one", "two", "apart"):
        (tmp_path / "molecule" / name).mkdir(parents=True)
        (tmp_path / "molecule" / name / "molecule.yml").touch()
    rig = tmp_path / "tests" / "rig"
    (rig / "hosts").mkdir(parents=True)
    (rig / "hosts" / "__main__.py").write_text(RIG)
    shutil.copy(ROOT / "tests" / "rig" / "scenarios.py", rig)
    (tmp_path / "molecule" / "inventory").mkdir()
    (tmp_path / "molecule" / "inventory" / "hosts.json").write_text(json.dumps(INVENTORY))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "molecule").write_text(PLAY)
    (tmp_path / "bin" / "molecule").chmod(0o755)
    return tmp_path


def begin(project, *names, **environment):
    env = {key: value for key, value in os.environ.items() if key != "CI"}
    env.update(environment, PATH="%s:%s" % (project / "bin", os.environ["PATH"]),
               ANSIBLE_HOME=str(project / "home"), ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"))
    return subprocess.Popen([sys.executable, "tests/rig/scenarios.py", *names], cwd=project,
                            env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def run(project, *names, **environment):
    process = begin(project, *names, **environment)
    said, _ = process.communicate(timeout=120)
    return process.returncode, said


def order(project):
    return [tuple(json.loads(line)) for line in (project / "order").read_text().splitlines()]


def asked(project):
    return (project / "asked").read_text().splitlines()


def test_two_run_at_once_and_those_of_one_host_never(project):
    status, said = run(project)
    assert status == 0, said
    steps = order(project)
    assert sorted(name for what, name in steps if what == "ends") == ["apart", "one", "two"]
    assert [what for what, _ in steps[:2]] == ["begins", "begins"]
    playing = set()
    for what, name in steps:
        playing = playing | {name} if what == "begins" else playing - {name}
        assert not {"one", "two"} <= playing, steps
    assert asked(project) == ["images"]
    table = said[said.index("scenario "):].splitlines()
    assert sorted(line.split()[0] for line in table[1:]) == ["all", "apart", "one", "two"]


def test_what_failed_comes_last_and_its_hosts_go_by_name(project):
    status, said = run(project, FAILS="one")
    assert status == 1
    assert "what one says" in said[said.index("all of them"):]
    assert "what two says" not in said and "what apart says" not in said
    assert said.rstrip().endswith("molecule: failed: one")
    assert {name for what, name in order(project) if what == "ends"} == {"apart", "one", "two"}
    # No other host of the rig: somebody else may have some.
    assert asked(project) == ["images", "remove rig-a rig-b"]


def test_one_that_is_interrupted_leaves_no_hosts(project):
    process = begin(project, "apart", STAYS="100")
    deadline = time.monotonic() + 60
    while not (project / "order").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) != 0
    process.stdout.close()
    assert asked(project) == ["images", "remove rig-c"]
    assert order(project) == [("begins", "apart")]


def test_where_no_engine_can_be_had_it_says_what_did_not_run(project):
    status, said = run(project, RIG="3")
    assert status == 0
    assert "SKIPPED" in said and [name in said for name in ("one", "two", "apart")] == [True] * 3
    assert not (project / "order").exists()


def test_in_ci_that_is_an_error(project):
    status, said = run(project, RIG="3", CI="true")
    assert status != 0 and "SKIPPED" in said


def test_what_else_is_wrong_with_the_rig_is_an_error_anywhere(project):
    status, said = run(project, RIG="1")
    assert status == 1 and "SKIPPED" not in said
    assert not (project / "order").exists()


def test_a_name_that_there_is_not_is_refused(project):
    status, said = run(project, "nope")
    assert status != 0 and "there are apart, one, two" in said
