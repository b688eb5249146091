# SPDX-License-Identifier: Apache-2.0
"""What the doctor and the repair ask of a host where nothing is to be repaired: this machine."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import tempfile

import pytest

MOST = 4
"""Remote calls that a repair of a healthy host may take."""
LOOKS = {"look | Gather what the host has": 1,
         "judge | Find what keeps programs from its libraries": 1}


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


@pytest.fixture
def tmp_path():
    """Short, as a root has to be."""
    with tempfile.TemporaryDirectory(prefix="fl-") as folder:
        yield pathlib.Path(folder)


def report(file):
    """What the doctor kept of this machine on the controller."""
    return json.loads(file.read_text())["localhost"]


def recap(output):
    """What the play recap counted, e.g. ``{"changed": 0, "failed": 0, ...}``."""
    line = re.search(r"^localhost +: (.*)$", output, re.MULTILINE)
    assert line, output
    return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", line.group(1))}


@pytest.fixture(scope="module", autouse=True)
def healthy(repository, tmp_path_factory):
    """Nothing is to be repaired here, so no test changes this machine."""
    folder = tmp_path_factory.mktemp("doctor")
    status, output = play(repository, folder, "doctor.yml", host_health_stop_at_bad=False,
                          host_health_json=str(folder / "doctor.json"))
    assert status == 0, output
    found = report(folder / "doctor.json")
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
    assert recap(output)["changed"] == recap(output)["failed"] == 0
    assert linker() == before
    assert not (tmp_path / "root").exists()


@pytest.fixture
def half_done(tmp_path):
    """A root whose repair was ended in the middle, with a journal that cannot be read."""
    if os.geteuid():
        pytest.skip("only root can repair what is found here")
    journal = tmp_path / "root" / "journal"
    journal.mkdir(parents=True)
    (journal / "linker_cache.json").write_text("no journal\n")
    return tmp_path


def test_a_remedy_that_fails_fails_the_repair_after_all_was_said(repository, half_done):
    before = linker()
    file = half_done / "doctor.json"
    status, output = play(repository, half_done, "repair.yml", host_health_json=str(file))
    assert status != 0
    assert "should say what an earlier change left half done, and cannot be read" in output
    # The others had their turn, and what became of each finding is told.
    assert re.search(r"repair-half-done +found +left", output)
    assert report(file)["helps"] == {"repair-half-done": "linker_cache"}
    assert linker() == before


def test_a_strict_repair_is_judged_by_what_is_left(repository, half_done):
    file = half_done / "found.json"
    status, output = play(repository, half_done, "doctor.yml", "--check", host_health_strict=True,
                          host_health_json=str(file))
    assert status != 0
    assert "1 of 1 hosts are not well." in output
    # What is kept on the controller is kept in check mode too, and is no change of the host.
    assert [one["id"] for one in report(file)["findings"]] == ["repair-half-done"]
    assert recap(output)["changed"] == 0
    (half_done / "root/journal/linker_cache.json").write_text('{"entries": []}')
    status, output = play(repository, half_done, "repair.yml", host_health_strict=True,
                          host_health_json=str(file))
    assert status == 0, output
    assert re.search(r"repair-half-done +found +mended", output)
    assert report(file)["findings"] == []


def test_the_site_goes_on_beside_a_library_path_that_is_not_mended(repository, half_done):
    before = linker()
    status, output = play(repository, half_done, "site.yml", "--tags", "linker_cache")
    assert status == 0, output
    assert recap(output)["rescued"] == 1
    assert recap(output)["changed"] == 0
    said = output.partition("TASK [bring | Say why it was not mended]")[2].partition("TASK [")[0]
    assert "cannot be read" in said
    # The host was looked at all the same.
    assert "[warning] repair-half-done" in output
    assert linker() == before


def test_hosts_that_do_not_answer_stand_in_the_table(repository, tmp_path):
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(json.dumps({"all": {"hosts": {
        "gone.example.org": {"ansible_host": "127.0.0.1", "ansible_port": 1,
                             "ansible_connection": "ssh"},
        "localhost": {"ansible_connection": "local",
                      "ansible_python_interpreter": "{{ ansible_playbook_python }}"}}}}))
    file = tmp_path / "doctor.json"
    status, output = play(repository, tmp_path, "doctor.yml", "--inventory", str(inventory),
                          host_health_strict=True, host_health_json=str(file))
    assert status != 0
    kept = json.loads(file.read_text())
    assert (kept["gone.example.org"]["verdict"], kept["localhost"]["verdict"]) == ("unknown", "ok")
    assert "1 of 2 hosts are not well." in output
    assert re.search(r"gone\.example\.org +unknown +unknown +none +host-unknown", output)
    assert "gone.example.org  [error] host-unknown" in output


@pytest.fixture
def batch(repository, tmp_path):
    """Play site.yml on two hosts, both this machine, one after the other, and change nothing."""
    def run(*options, first=(), second=(), **variables):
        here = {"ansible_connection": "local",
                "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
        inventory = tmp_path / "hosts.yml"
        inventory.write_text(json.dumps({"all": {"hosts": {
            "first.example.org": dict(here, **dict(first)),
            "second.example.org": dict(here, **dict(second))}}}))
        return play(repository, tmp_path, "site.yml", "--check", "--inventory", str(inventory),
                    "--limit", "*.example.org", *options, **variables)

    return run


GONE = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}


def test_a_host_whose_batch_has_not_begun_is_no_reproach(batch, tmp_path):
    file = tmp_path / "doctor.json"
    status, output = batch(firstlight_serial=1, host_health_strict=True,
                           host_health_json=str(file))
    assert status == 0, output
    assert list(json.loads(file.read_text())) == ["first.example.org", "second.example.org"]


def test_a_host_that_is_lost_is_one_wherever_it_stands_in_its_batch(batch, tmp_path):
    file = tmp_path / "doctor.json"
    status, output = batch(second=GONE, host_health_strict=True, host_health_json=str(file))
    assert status != 0
    assert "1 of 2 hosts are not well." in output
    assert json.loads(file.read_text())["second.example.org"]["verdict"] == "unknown"


def test_what_the_site_sets_itself_may_stand_in_an_inventory(batch):
    """Playbooks beside it take these options: an inventory has them for those."""
    status, output = batch(first={
        "host_health_root": "/srv/firstlight", "network_access_root": "/srv/firstlight",
        "linker_cache_root": "/srv/firstlight", "host_report_root": "/srv/firstlight",
        "host_tuning_remedies": [], "deployment_plan_facts": {}})
    assert status == 0, output
    # What it does not set is judged as ever.
    status, output = batch(first={"host_health_pythons": 5.5, "host_health_root": "/srv/firstlight",
                                  "host_health_strict": "rather"})
    assert status != 0
    assert "host_health_strict" in output


@pytest.fixture
def with_facts(repository, tmp_path):
    """Has playbooks find what is given beside the facts of this machine; returns the options."""
    def change(**facts):
        library = tmp_path / "library"
        library.mkdir()
        for name, found in (("gpu_facts", "found"), ("host_state_info", "gathered")):
            module = (repository / "library" / (name + ".py")).read_text()
            end = "    module.exit_json(\n"
            assert module.count(end) == 1
            (library / (name + ".py")).write_text(module.replace(end, (
                "    for key, value in %(facts)r.items():\n"
                "        %(found)s[key] = dict(%(found)s[key], **value) if type(value) is dict "
                "else value\n"
            ) % {"facts": facts, "found": found} + end))
        return "--module-path", "%s:%s" % (library, repository / "library")

    return change


def test_a_bad_host_without_a_remedy_fails_the_repair_at_its_end(
        repository, tmp_path, with_facts):
    """What no remedy helps with is still bad afterwards."""
    gone = {"bus_id": "0000:01:00.0", "code": 79, "count": 1, "age_s": 1, "text": "fell off"}
    options = with_facts(**{"class": "nvidia"}, orphan_xids=[gone])
    file = tmp_path / "after.json"
    status, output = play(repository, tmp_path, "repair.yml", *options,
                          host_health_json=str(file))
    assert status != 0
    assert report(file)["verdict"] == "bad"
    assert report(file)["remedies"] == []
    assert re.search(r'localhost failed in host_health, task "stop \| Stop where it is bad": '
                     "localhost is bad", output), output
    # Check mode repairs nothing, and is no failure of the host.
    status, output = play(repository, tmp_path, "repair.yml", "--check", *options)
    assert status == 0, output


NO_ROOM = {"class": "jetson", "disk": {"free_bytes": 0}, "memory": {
    "total_bytes": 2**33, "available_bytes": 2**33, "free_bytes": 2**33, "swap_bytes": 0}}
"""A host that wants swap and has no room for it: the remedy is refused before it begins."""


@pytest.mark.parametrize("playbook", ["repair.yml", "site.yml"])
def test_another_remedy_that_is_refused_fails_the_repair_and_not_the_site(
        repository, tmp_path, with_facts, playbook):
    if os.geteuid():
        pytest.skip("only root has remedies")
    status, output = play(repository, tmp_path, playbook, "--tags", "host_tuning",
                          *with_facts(**NO_ROOM))
    assert "[error] swap-room: host_tuning_swap_bytes" in output
    assert re.search(r"swap-missing +found +left", output)
    assert (status == 0) is (playbook == "site.yml"), output
    assert recap(output)["rescued"] == (playbook == "site.yml")
    assert recap(output)["changed"] == 0


def test_the_site_leaves_the_page_cache_of_a_host_that_serves(repository, tmp_path, with_facts):
    full = {"class": "jetson", "memory": {
        "total_bytes": 2**36, "available_bytes": 2**35, "free_bytes": 2**30}}
    file = tmp_path / "found.json"
    options = with_facts(**full)
    status, output = play(repository, tmp_path, "doctor.yml", *options, host_health_json=str(file))
    assert report(file)["remedies"] == ["page_cache"], output
    # In check mode, which would say that it is dropped, and drops none.
    status, output = play(
        repository, tmp_path, "site.yml", "--check", "--tags", "host_tuning", *options)
    assert status == 0, output
    assert recap(output)["changed"] == 0
