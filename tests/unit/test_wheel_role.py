# SPDX-License-Identifier: Apache-2.0
"""The role prebuilt_wheel on real environments: found, proven, taken back, or refused; and a fleet.
"""

from __future__ import annotations

import json
import os
import subprocess

import pytest
import wheel_play as rig
from supervised import short_root
from wheels import builder, index


@pytest.fixture(scope="module")
def extensions():
    """A kernel that computes what it should, and one that does not."""
    return {"good": builder.KERNEL, "wrong": builder.WRONG_KERNEL}


@pytest.fixture
def offers(tmp_path, extensions):
    """A folder with one wheel that fits and works, and some that do not fit."""
    folder = tmp_path / "offers"
    builder.wheel(folder, "tiny-kernel", "1.0", extension=extensions["good"])
    for tags in ("cp27-cp27mu-manylinux1_x86_64", "cp399-cp399-linux_x86_64",
                 "cp311-cp311-win_amd64"):
        builder.wheel(folder, "tiny-kernel", "1.1", tags=tags)
    return folder


@pytest.fixture
def served(offers):
    with index.Index(offers) as running:
        yield running


@pytest.fixture
def hosts(tmp_path, remote_calls):
    """Make hosts of these names."""
    return lambda *names: rig.Hosts(tmp_path / "hosts", names or ["one"], remote_calls)


@pytest.fixture
def environment(tmp_path):
    """Make a virtual environment; its python."""
    def make(name="env", **how):
        return builder.environment(tmp_path / name, **how)

    return make


def wanted(python, offers, **changes):
    """Variables for one package from that folder."""
    return {"prebuilt_wheel_packages": [rig.asked(python)], "prebuilt_wheel_rows": [rig.row()],
            "prebuilt_wheel_sources": [{"folder": str(offers)}], **changes}


def fetched(served):
    return sorted(one.path.rpartition("/")[2] for one in served.done() if ".whl" in one.path)


SITE = ["judge", "look", "choose", "main"]


def test_where_nothing_is_asked_for_no_host_is_asked(hosts, remote_calls):
    made = hosts("one")
    status, printed = made.play(SITE + ["fleet"])
    assert status == 0, printed
    assert "changed=0" in printed
    remote_calls.expect(role={})
    assert made.told("one") == {"decisions": [], "findings": [], "wanted": {}}
    assert not made.root("one").exists()


def test_what_is_wrong_is_said_all_at_once_before_any_host_is_asked(hosts, remote_calls):
    status, printed = hosts("one").play(["judge"], prebuilt_wheel_packages=[
        {"package": "flash-attn", "python": "bin/python"}, {"package": "flahs-attn"}],
        prebuilt_wheel_sources=["https://wheels.example.org"])
    assert status != 0
    for told in ("Nothing was touched.", "prebuilt_wheel_packages[0].python",
                 "prebuilt_wheel_packages[1].package", "prebuilt_wheel_sources[0]"):
        assert told in printed
    remote_calls.expect(role={})


def test_it_is_told_then_installed_and_then_costs_one_call(
        hosts, environment, offers, remote_calls):
    made, python = hosts("one"), environment()
    before = rig.contents(python.parent.parent)
    status, printed = made.play(SITE, "--check", **wanted(python, offers))
    assert status == 0, printed
    assert "changed=1" in printed
    assert "tiny_kernel-1.0-" in printed
    assert rig.contents(python.parent.parent) == before
    first = made.told("one")
    assert first["decisions"][0]["action"] == "install"

    status, printed = made.play(SITE, **wanted(python, offers))
    assert status == 0, printed
    assert "changed=1" in printed
    assert rig.version_of(python) == "1.0"
    # Of the one in check mode and of this one: the environment, the candidates, the wheel.
    remote_calls.expect(role={"prebuilt_wheel": 6})

    status, printed = made.play(SITE, **wanted(python, offers, prebuilt_wheel_offline=True))
    assert status == 0, printed
    assert "changed=0" in printed
    remote_calls.expect(role={"prebuilt_wheel": 7})
    again = made.told("one")
    assert again["decisions"][0]["action"] == "nothing"
    # What a plan is made with is the same before and after, or endpoints would start for nothing.
    assert again["wanted"] == first["wanted"] == {
        str(python): {"tiny-kernel": {"version": "1.0", "sha256": ""}}}


def test_who_only_looks_goes_nowhere_and_knows_the_same_of_what_works(
        hosts, environment, offers, served, remote_calls):
    made, python = hosts("one"), environment()
    asked = wanted(python, offers, prebuilt_wheel_sources=[{"index": served.simple}])
    # Nothing fits, and who does not choose is not stopped by that.
    never = dict(asked, prebuilt_wheel_packages=[rig.asked(python, version="7.7")])
    status, printed = made.play(["judge", "look"], **never)
    assert status == 0, printed
    assert made.told("one") == {"decisions": [], "findings": [], "wanted": {}}
    assert served.done() == []
    remote_calls.expect(role={"prebuilt_wheel": 1})
    status, printed = made.play(SITE, **asked)
    assert status == 0, printed
    chosen = made.told("one")["wanted"]
    assert chosen[str(python)]["tiny-kernel"]["version"] == "1.0"
    status, printed = made.play(["judge", "look"], **asked)
    assert status == 0, printed
    assert made.told("one")["wanted"] == chosen
    # What is not as wanted any more: what serves was started with what is there.
    status, printed = made.play(["judge", "look"], **never)
    assert status == 0, printed
    assert made.told("one")["wanted"] == chosen


def tasks_of(repository, playbook, tag):
    """What a playbook does with this tag."""
    done = subprocess.run(
        ["ansible-playbook", str(repository / "playbooks" / playbook), "--list-tasks", "--tags",
         tag, "--inventory", str(repository / "inventories/local")], cwd=repository, text=True,
        env=dict(os.environ, ANSIBLE_CONFIG=str(repository / "ansible.cfg")),
        stdout=subprocess.PIPE, check=True)
    return done.stdout


@pytest.mark.parametrize(("tag", "chooses"), [
    ("verify", False), ("host_report", False), ("preflight", False), ("deployment_plan", False),
    ("prebuilt_wheel", True), ("inference_endpoint", True)])
def test_only_a_run_that_would_install_chooses_and_it_has_the_toolbelt(
        repository, tmp_path, tag, chooses):
    # What acts is in a file that site.yml includes, and an include is not listed.
    (tmp_path / "bring.yml").write_text(json.dumps([{"hosts": "all", "tasks": [
        {"import_tasks": str(repository / "playbooks/tasks/bring.yml")}]}]))
    done = tasks_of(repository, tmp_path / "bring.yml", tag)
    assert "prebuilt_wheel : look | " in done
    for task in ("prebuilt_wheel : choose | Look for wheels", "toolbelt : Bring the environment",
                 "prebuilt_wheel : Bring each wheel", "bring | Find the host's way out"):
        assert (task in done) is chooses, task


def test_who_plans_is_told_what_would_be_brought_and_nothing_is_touched(
        repository, environment, offers, tmp_path):
    python = environment()
    before = rig.contents(python.parent.parent)
    with short_root() as root:
        (tmp_path / "vars.json").write_text(json.dumps(wanted(
            python, offers, firstlight_root=root, inference_endpoints=[])))
        done = subprocess.run(
            ["ansible-playbook", str(repository / "playbooks/plan.yml"), "--inventory",
             str(repository / "inventories/local"), "--extra-vars",
             "@%s" % (tmp_path / "vars.json")],
            cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=200,
            env=dict(os.environ, ANSIBLE_CONFIG=str(repository / "ansible.cfg"),
                     ANSIBLE_HOME=str(tmp_path / "home")), check=False)
        assert done.returncode == 0, done.stdout
        assert "changed=0" in done.stdout and "tiny_kernel-1.0-" in done.stdout
        assert rig.contents(python.parent.parent) == before
        assert not os.path.exists(root)


def test_an_index_of_the_environments_pip_is_asked_whatever_ansible_runs_with(
        hosts, environment, served):
    bare, python = environment("bare", with_pip=False), environment()
    (python.parent.parent / "pip.conf").write_text(
        "[global]\nindex-url = %s\n" % served.simple)
    status, printed = hosts("one").play(SITE, **wanted(
        python, None, prebuilt_wheel_sources=[{"index": "pip"}],
        by_host={"one": {"ansible_python_interpreter": str(bare)}}))
    assert status == 0, printed
    assert rig.version_of(python) == "1.0"


def test_an_environment_without_pip_has_the_index_of_the_toolbelt(hosts, environment, served):
    bare = environment("bare", with_pip=False)
    made = hosts("one")
    builder.environment(made.root("one") / "venvs/toolbelt")
    (made.root("one") / "venvs/toolbelt/pip.conf").write_text(
        "[global]\nindex-url = %s\n" % served.simple)
    asked = wanted(bare, None, prebuilt_wheel_sources=[{"index": "pip"}],
                   by_host={"one": {"ansible_python_interpreter": str(bare)}},
                   prebuilt_wheel_seed_root=str(made.root("controller")))
    for entries in (["fleet"], SITE):
        status, printed = made.play(entries, **asked)
        assert status == 0, printed
        assert [*made.house("one")] == fetched(served)
    assert rig.version_of(bare) == "1.0"


def test_where_no_wheel_fits_each_is_told_and_nothing_is_touched(hosts, environment, offers):
    made, python = hosts("one"), environment()
    before = rig.contents(python.parent.parent)
    status, printed = made.play(SITE, **wanted(
        python, offers, prebuilt_wheel_packages=[rig.asked(python, version="1.1")]))
    assert status != 0
    assert "No environment and no endpoint was touched" in printed
    for told in ("cp27", "cp399", "win_amd64", "tiny_kernel-1.0"):
        assert told in printed
    assert rig.contents(python.parent.parent) == before
    assert not (made.root("one") / "wheels").exists()


@pytest.mark.parametrize(("how", "why"), [
    ({"broken": "import_error"}, "undefined symbol"),
    ({"extension": builder.WRONG_KERNEL}, "100")])
def test_what_does_not_work_is_taken_back_and_what_was_there_is_there(
        hosts, environment, tmp_path, how, why):
    old = builder.wheel(tmp_path / "old", "tiny-kernel", "0.9", extension=builder.KERNEL)
    builder.wheel(tmp_path / "bad", "tiny-kernel", "1.0", **how)
    made, python = hosts("one"), environment(wheels=[old])
    before = rig.contents(python.parent.parent)
    asked = wanted(python, tmp_path / "bad", prebuilt_wheel_packages=[
        rig.asked(python, version=">=1")])
    status, printed = made.play(SITE, **asked)
    assert status != 0
    assert why in printed
    # The reason is not buried under all that was known before.
    assert "capabilities" not in printed and "rejected" not in printed
    assert "rejected" not in made.told("one")["decisions"][0]
    assert rig.contents(python.parent.parent) == before
    assert rig.version_of(python) == "0.9"


def test_what_is_compiled_has_to_be_allowed_and_is_kept(hosts, environment, tmp_path):
    folder = tmp_path / "sources"
    builder.sdist(folder, "tiny-built", "1.0")
    made, python = hosts("one"), environment()
    asked = {
        "prebuilt_wheel_packages": [rig.asked(python, "tiny-built")],
        "prebuilt_wheel_rows": [builder.row("tiny-built", build={
            "sdist": "pip", "environment": {}, "architectures": {}, "jobs": "MAX_JOBS",
            "job_bytes": 2**20})],
        "prebuilt_wheel_sources": [{"folder": str(folder)}],
        "prebuilt_wheel_facts": {"cpu": {"cores": 2, "threads": 2}, "devices": [], "memory": {
            "total_bytes": 2**36, "available_bytes": 2**35}}}
    status, printed = made.play(SITE, **asked)
    assert status != 0
    assert "prebuilt_wheel_source_build" in printed
    status, printed = made.play(SITE, prebuilt_wheel_source_build=True, **asked)
    assert status == 0, printed
    assert "changed=1" in printed
    assert rig.version_of(python, "tiny_built") == "1.0"
    assert "tiny_built-1.0-py3-none-any.whl" in made.house("one")


# A fleet.


def fleet_of(environment, names, served, **versions):
    """Variables of hosts with an environment each; ``versions`` where one is asked for."""
    pythons = {name: environment(name) for name in names}
    return pythons, {
        "prebuilt_wheel_rows": [rig.row()],
        "prebuilt_wheel_sources": [{"index": served.simple}],
        "by_host": {name: {"prebuilt_wheel_packages": [
            rig.asked(python, version=versions.get(name, ""))]}
            for name, python in pythons.items()}}


def test_each_file_is_fetched_once_and_every_host_installs_without_a_way_out(
        hosts, environment, offers, served, tmp_path):
    old = builder.wheel(offers, "tiny-kernel", "0.9", extension=builder.KERNEL).name
    new = next(offers.glob("tiny_kernel-1.0-*")).name
    names = ["near", "seed", "older"]
    made = hosts(*names)
    pythons, asked = fleet_of(environment, names, served, older="0.9")
    asked["by_host"]["near"]["prebuilt_wheel_offline"] = True
    asked["prebuilt_wheel_seed_root"] = str(made.root("controller"))

    status, printed = made.play(["fleet"], "--check", **asked)
    assert status == 0, printed
    assert "seed fetches it" in printed and "copied to near" in printed
    assert fetched(served) == [] and not any(made.house(name) for name in names)

    status, printed = made.play(["fleet"], **asked)
    assert status == 0, printed
    assert {name: sorted(made.house(name)) for name in names} == {
        "near": [new], "older": [old], "seed": sorted([old, new])}
    assert fetched(served) == sorted([old, new])
    assert sorted(made.house("controller")) == sorted([old, new])
    assert not any(rig.version_of(python) for python in pythons.values())

    status, printed = made.play(["fleet"], **asked)
    assert status == 0, printed
    assert printed.count("changed=0") == len(names)
    assert fetched(served) == sorted([old, new])

    served.requests.clear()
    status, printed = made.play(SITE, prebuilt_wheel_offline=True, **asked)
    assert status == 0, printed
    assert {name: rig.version_of(python) for name, python in pythons.items()} == {
        "near": "1.0", "seed": "1.0", "older": "0.9"}
    assert served.done() == []


def test_the_controller_fetches_for_hosts_without_a_way_out(hosts, environment, offers, served):
    made = hosts("one", "two")
    pythons, asked = fleet_of(environment, made.names, served, two="7.7")
    status, printed = made.play(
        ["fleet"], prebuilt_wheel_seed="localhost", prebuilt_wheel_offline=True,
        prebuilt_wheel_seed_root=str(made.root("controller")), **asked)
    # Who has none is told, and keeps nothing from the other.
    assert status != 0 and "one : ok=" in printed
    assert printed.count("failed=1") == 1 and "7.7" in printed
    [file] = made.house("one")
    assert [file] == fetched(served) == [*made.house("controller")]
    assert made.house("two") == {}


def test_who_cannot_get_a_file_is_told_why_and_the_others_go_on(
        hosts, environment, offers, served):
    old = builder.wheel(offers, "tiny-kernel", "0.9", extension=builder.KERNEL).name
    new = next(offers.glob("tiny_kernel-1.0-*")).name
    served.faults["/files/%s" % new] = {"status": 404}
    made = hosts("one", "older")
    _, asked = fleet_of(environment, made.names, served, older="0.9")
    status, printed = made.play(
        ["fleet"], prebuilt_wheel_seed_root=str(made.root("controller")), **asked)
    assert status != 0
    assert printed.count("failed=1") == 1
    assert "one has not got it" in printed and "404" in printed
    assert [*made.house("older")] == [old] and old in made.house("one")


def test_a_seed_that_is_no_host_of_the_run_is_refused(hosts, served):
    status, printed = hosts("one").play(["fleet"], prebuilt_wheel_seed="nobody")
    assert status != 0 and "prebuilt_wheel_seed is nobody" in printed, printed
    assert served.done() == []


def test_a_seed_that_fell_out_stops_only_those_that_need_it(hosts, environment, offers, served):
    made = hosts("gone", "needs", "idle", "has")
    pythons, asked = fleet_of(environment, ["needs", "has", "gone"], served)
    asked["by_host"]["gone"]["ansible_python_interpreter"] = "/nowhere/python"
    builder.unpack(next(offers.glob("tiny_kernel-1.0-*")), rig.site_of(pythons["has"]))
    status, printed = made.play(["look", "fleet"], prebuilt_wheel_seed="gone", **asked)
    assert status != 0
    assert "gone was to list wheels for all, and is unreachable or failed earlier" in printed
    assert printed.count("failed=1") == 2
    recap = printed.partition("PLAY RECAP")[2]
    for name in ("idle", "has"):
        assert "failed=0" in recap.partition(name + " : ")[2].split("ignored")[0], printed


def test_a_seed_that_may_not_go_out_does_not(hosts, environment, served):
    made = hosts("one", "two")
    _, asked = fleet_of(environment, made.names, served)
    asked["by_host"]["one"]["prebuilt_wheel_offline"] = True
    status, printed = made.play(["fleet"], prebuilt_wheel_seed="one", **asked)
    assert status != 0 and "there is no way out" in printed, printed
    assert served.done() == []
