# SPDX-License-Identifier: Apache-2.0
"""What the doctor and the repair ask of a host where nothing is to be repaired: this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess

import pytest

MOST = 4
"""Remote calls that a repair of a healthy host may take."""
LOOKS = {"look | Gather what the host has": 1,
         "look | Find what keeps programs from its libraries": 1}


def play(repository, folder, name, *options, environment=(), **variables):
    """Run a playbook on this machine; returns its status and what it printed."""
    env = dict(os.environ, ANSIBLE_CONFIG=str(repository / "ansible.cfg"),
               ANSIBLE_HOME=str(folder / "home"))
    env.update(environment)
    given = {"firstlight_root": str(folder / "root"), **variables}
    done = subprocess.run(
        ["ansible-playbook", str(repository / "playbooks" / name), *options,
         "--inventory", str(repository / "inventories/local"), "--extra-vars", json.dumps(given)],
        cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=120, check=False)
    return done.returncode, done.stdout


@pytest.fixture(scope="module", autouse=True)
def healthy(repository, tmp_path_factory):
    """Nothing is to be repaired here, so no test changes this machine."""
    folder = tmp_path_factory.mktemp("doctor")
    status, output = play(repository, folder, "doctor.yml", host_health_stop_at_bad=False,
                          host_health_json=str(folder / "doctor.json"))
    assert status == 0, output
    found = json.loads((folder / "doctor.json").read_text())["localhost"]
    assert found["remedies"] == [], (
        "This machine is not healthy, and a repair would change it (%s). Repair it, or run this "
        "test elsewhere. Findings:\n%s" % (
            ", ".join(found["remedies"]), json.dumps(found["findings"], indent=2)))


def linker():
    """All that a repair of the library path may change, as it lies there."""
    folder = "/etc/ld.so.conf.d"
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    paths = ["/etc/ld.so.cache", *(os.path.join(folder, name) for name in names)]
    return [(path, os.stat(path).st_ino, os.stat(path).st_mtime_ns)
            for path in paths if os.path.exists(path)]


@pytest.mark.parametrize(("playbook", "options"), [
    ("doctor.yml", ()),
    ("doctor.yml", ("--check", "--diff")),
    ("repair.yml", ()),
    ("repair.yml", ("--check", "--diff")),
    ("repair.yml", ("--tags", "linker_cache")),
    ("repair.yml", ("--tags", "host_tuning")),
])
def test_a_healthy_host_is_asked_twice(repository, tmp_path, remote_calls, playbook, options):
    before = linker()
    status, output = play(
        repository, tmp_path, playbook, *options,
        environment=remote_calls.environment(repository / "ansible.cfg"))
    assert status == 0, output
    assert len(remote_calls.all()) <= MOST, str(remote_calls)
    remote_calls.expect(host={"localhost": 2}, role={"host_health": 2}, task=LOOKS)
    assert re.search(r"^localhost +: .*changed=0 .*failed=0 ", output, re.MULTILINE), output
    assert linker() == before
    assert not (tmp_path / "root").exists()
