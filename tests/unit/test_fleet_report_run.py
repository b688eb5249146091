# SPDX-License-Identifier: Apache-2.0
"""The report in real runs: what the role keeps, what the callback makes of it, and when not."""

from __future__ import annotations

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys

import pytest
import report_fleet

from ansible.module_utils.firstlight import fleet_pages

ROOT = pathlib.Path(__file__).resolve().parents[2]
PLAY = """
- name: The play
  hosts: all
  gather_facts: false
  serial: "{{ serial | default('100%') }}"
  max_fail_percentage: "{{ most | default(100) }}"
  tasks:
    - name: Fail with {{ secret }}
      ansible.builtin.fail:
        msg: "{{ why }}"
      no_log: "{{ hidden | default(false) }}"
      when: inventory_hostname == 'bad'
    - name: Lose the host
      ansible.builtin.raw: "true"
      vars:
        ansible_host: 127.0.0.1
        ansible_port: 1  # where nobody listens
      when: inventory_hostname == 'lost'
    - name: Fail and be rescued
      block:
        - name: Fail
          ansible.builtin.fail:
            msg: rescued
      rescue:
        - name: Go on
          ansible.builtin.debug:
            msg: gone on
    - name: Report
      ansible.builtin.import_role:
        name: host_report
      vars:
        host_report_root: /srv/firstlight
        host_report_endpoints: "{{ endpoints }}"
        host_report_verdicts: "{{ verdicts }}"
        host_report_facts: "{{ facts }}"
        host_report_health: {verdict: ok, findings: []}
      tags: [host_report]
"""
OTHER = """
- name: Another play
  hosts: all
  gather_facts: false
  tasks:
    - name: Fail
      ansible.builtin.fail:
"""


class Fleet:
    """A folder with playbooks, and the folder of reports that they write."""

    def __init__(self, folder):
        self.folder = folder
        self.reports = folder / "reports"
        (folder / "site.yml").write_text(PLAY)
        (folder / "other.yml").write_text(OTHER)
        self.facts, plan = report_fleet.planned("a100-40", 8, "Llama-3.1-70B")
        self.passport = report_fleet.passport(plan, 40.0, 0.2)
        self.verdict = report_fleet.verdict(plan, 40.0, 0.2)

    def play(self, *arguments, hosts=("good", "bad", "lost"), playbook="site.yml", env=(),
             **told):
        """Run a playbook; returns its status and what it printed."""
        told = {"why": "it is bad", "secret": "a reason", "facts": self.facts,
                "verdicts": [self.verdict], "host_report_directory": str(self.reports),
                "endpoints": [{"name": "chat", "passport": self.passport}], **told}
        clean = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
        done = subprocess.run(
            ["ansible-playbook", "-i", ",".join(hosts) + ",", "-e", json.dumps(told), *arguments,
             str(playbook)], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=120, check=False,
            env={**clean, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                 "ANSIBLE_HOME": str(self.folder / "home"), **dict(env)})
        return done.returncode, done.stdout

    def read(self, *way):
        return json.loads(self.reports.joinpath(*way).read_text())

    def states(self):
        return {one["name"]: one["state"] for one in self.read("report.json")["hosts"]}


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path)


def recap(output, host):
    """How many tasks of a host changed something, as the play recap has it."""
    line = next(line for line in output.splitlines() if line.startswith(host + " ")
                and "changed=" in line)
    return int(line.split("changed=")[1].split()[0])


def test_each_host_of_a_run_is_in_the_report_with_its_reason(fleet):
    status, output = fleet.play()
    assert status != 0
    assert output.rstrip().endswith("report    reports/index.html"), output
    assert fleet.states() == {"good": "proven", "bad": "failed", "lost": "unreachable"}
    hosts = {one["name"]: one for one in fleet.read("report.json")["hosts"]}
    assert (hosts["bad"]["stage"], hosts["bad"]["task"], hosts["bad"]["reason"]) == (
        "The play", "Fail with a reason", "it is bad")
    assert "Connection refused" in hosts["lost"]["reason"]
    assert {one["name"] for one in hosts["good"]["stages"]} <= {
        "The play", "host_report", "2 others"}
    last = fleet.read("runs", "last.json")
    assert last["run"]["playbook"] == "site.yml"
    assert {host: one["state"] for host, one in last["hosts"].items()} == {
        "good": "changed", "bad": "failed", "lost": "unreachable"}
    assert fleet.read("good", "chat.json") == fleet.passport
    assert fleet.read("good", "host.json")["facts"]["driver"] == "580.159.04"
    assert "it is bad" in (fleet.reports / "index.html").read_text()
    assert "it is bad" in (fleet.reports / "report.md").read_text()


def test_a_second_run_changes_nothing_and_a_third_tells_what_did(fleet):
    assert recap(fleet.play(hosts=["good"])[1], "good") == 1
    before = (fleet.reports / "good" / "chat.json").stat().st_mtime_ns
    fleet.verdict["figures"]["tokens_per_second"] = 10.0
    status, output = fleet.play("--diff", hosts=["good"])
    assert (status, recap(output, "good")) == (0, 0)
    assert (fleet.reports / "good" / "chat.json").stat().st_mtime_ns == before
    [host] = fleet.read("report.json")["hosts"]
    assert [(one["what"], one["good"]) for one in host["drift"]] == [("speed", "worse")]

    fleet.facts = dict(fleet.facts, driver=dict(fleet.facts["driver"], version="600.1"))
    status, output = fleet.play("--check", "--diff", hosts=["good"])
    assert recap(output, "good") == 1
    assert '+    "driver": "600.1"' in output
    assert fleet.read("good", "host.json")["facts"]["driver"] == "580.159.04"
    assert recap(fleet.play(hosts=["good"])[1], "good") == 1
    assert fleet.read("good", "host.json")["facts"]["driver"] == "600.1"


def test_check_mode_writes_nothing(fleet):
    status, output = fleet.play("--check", hosts=["good"])
    assert (status, recap(output, "good")) == (0, 1)
    # The summary has it all the same.
    assert "chat on good: proven" in output
    assert "\nreport    " not in output
    assert not fleet.reports.exists()


def test_a_playbook_without_the_role_writes_nothing(fleet):
    status, output = fleet.play(playbook="other.yml")
    assert status != 0
    assert "\nreport    " not in output
    assert not fleet.reports.exists()


def test_a_run_whose_tags_leave_the_role_out_writes_nothing(fleet):
    for arguments in (["--skip-tags", "host_report"], ["--tags", "something"]):
        _status, output = fleet.play(*arguments)
        assert "\nreport    " not in output
        assert not fleet.reports.exists()


def test_a_run_in_which_every_host_failed_is_reported_where_it_would_have_been(fleet):
    status, output = fleet.play(hosts=["bad"])
    assert status != 0
    assert "report    reports/index.html" in output
    assert fleet.states() == {"bad": "failed"}


def test_what_is_hidden_stays_hidden(fleet):
    fleet.play(hosts=["bad"], hidden=True, why="hunter2", secret="hunter2")
    assert fleet.states() == {"bad": "failed"}
    for file in fleet.reports.rglob("*.*"):
        assert "hunter2" not in file.read_text()


def test_hosts_that_a_run_was_not_through_with_are_said_so(fleet):
    # Half of the first batch fails, and with it the run ends.
    fleet.play(hosts=["bad", "cut", "later"], serial=2, most=0)
    assert fleet.states() == {"bad": "failed", "cut": "not_proven", "later": "not_proven"}
    for one in fleet.read("report.json")["hosts"]:
        assert ("ended before" in one["reason"]) is (one["name"] != "bad")


def test_what_is_known_of_a_host_that_a_run_did_not_come_to_stands(fleet):
    fleet.play(hosts=["good"])
    fleet.play(hosts=["bad", "good"], serial=1, most=0)
    assert fleet.states() == {"bad": "failed", "good": "absent"}
    assert fleet.read("good", "run.json")["now"]["state"] == "proven"


def test_hosts_of_earlier_runs_stay_until_they_are_forgotten(fleet):
    fleet.play(hosts=["good", "gone"])
    fleet.play(hosts=["good"])
    assert fleet.states() == {"good": "proven", "gone": "absent"}
    render = ROOT / "playbooks" / "report.yml"

    status, output = fleet.play("--check", playbook=render, host_report_forget=["gone"])
    assert (status, recap(output, "localhost")) == (0, 1)
    assert (fleet.reports / "gone").is_dir()
    status, output = fleet.play(playbook=render, host_report_forget=["gone", "../home", "never"])
    assert (status, recap(output, "localhost")) == (0, 1)
    assert "\nreport    " not in output  # it is no run on the fleet
    assert fleet.states() == {"good": "proven"}
    assert not (fleet.reports / "gone").exists()
    assert (fleet.folder / "home").exists()

    (fleet.reports / "index.html").write_text("old")
    assert recap(fleet.play(playbook=render)[1], "localhost") == 0
    assert "good" in (fleet.reports / "index.html").read_text()

    status, output = fleet.play(playbook=render, host_report_forget=["good"])
    assert "Nothing is kept in " in output
    assert not fleet.reports.exists()


def test_an_endpoint_that_is_no_more_goes_where_all_are_told(fleet):
    fleet.play(hosts=["good"])
    fleet.play(hosts=["good"], endpoints=[], verdicts=[], host_report_complete=False)
    assert (fleet.reports / "good" / "chat.json").exists()
    _status, output = fleet.play(hosts=["good"], endpoints=[], verdicts=[])
    assert recap(output, "good") == 1
    assert not (fleet.reports / "good" / "chat.json").exists()
    assert fleet.states() == {"good": "idle"}


def test_what_somebody_else_put_there_stays(fleet):
    fleet.play(hosts=["good"])
    folder = fleet.reports / "good"
    strange = {"notes.json": '{"schema": 1, "by": "ann"}', "broken.json": "{", "list.json": "[]"}
    for name, text in strange.items():
        (folder / name).write_text(text)
    (folder / "chat.json").write_text("{")  # its record names it
    (folder / "left.json").write_text(json.dumps(dict(fleet.passport, endpoint="left")))
    fleet.play(hosts=["good"], endpoints=[], verdicts=[])
    assert {one.name for one in folder.iterdir()} == {"host.json", "run.json", *strange}


def test_a_run_that_asks_nothing_leaves_a_failed_host_failed(fleet):
    fleet.play(hosts=["good", "other"])
    failing = fleet.folder / "failing.yml"
    failing.write_text(PLAY.replace("== 'bad'", "== 'good'"))
    fleet.play(hosts=["good", "other"], playbook=failing)
    assert fleet.states() == {"good": "failed", "other": "proven"}
    for _again in range(2):
        fleet.play(hosts=["good", "other"], verdicts=[], host_report_complete=False)
        assert fleet.states() == {"good": "failed", "other": "proven"}
    hosts = {one["name"]: one for one in fleet.read("report.json")["hosts"]}
    assert (hosts["good"]["stage"], hosts["good"]["brief"]) == ("The play", "it is bad")
    assert {one["state"] for host in hosts.values() for one in host["endpoints"]} == {"earlier"}


def test_the_last_run_no_longer_counts_who_is_forgotten(tmp_path):
    fleet_pages.keep_run(
        str(tmp_path), report_fleet.run(1, report_fleet.BEFORE, report_fleet.NOW),
        {host: report_fleet.entry("failed", "toolbelt", "", "no") for host in ("a/b", "stays")})
    fleet_pages.forget(str(tmp_path), ["a/b"], True)
    assert fleet_pages.make_pages(str(tmp_path))["run"]["hosts"] == 2
    fleet_pages.forget(str(tmp_path), ["a/b"], False)
    assert fleet_pages.make_pages(str(tmp_path))["run"]["hosts"] == 1


def test_a_folder_of_one_host_that_cannot_be_read_stops_no_other(tmp_path, monkeypatch):
    for host in ("good", "closed"):
        fleet_pages.write(str(tmp_path / host / "host.json"), b"{}")
    listed, made = os.listdir, fleet_pages.tempfile.mkstemp

    # As root, who may run the tests, nothing is closed.
    def refuse(path):
        if pathlib.Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))

    def make(**where):
        refuse(where["dir"])
        return made(**where)

    monkeypatch.setattr(os, "listdir", lambda path: refuse(path) or listed(path))
    monkeypatch.setattr(fleet_pages.tempfile, "mkstemp", make)
    report = fleet_pages.make_pages(str(tmp_path))
    assert [one["name"] for one in report["hosts"]] == ["good"]
    [unread] = report["unread"]
    assert "closed cannot be read (Permission denied)" in unread
    report = fleet_pages.keep_run(
        str(tmp_path), report_fleet.run(1, report_fleet.BEFORE, report_fleet.NOW),
        {host: report_fleet.entry("ok") for host in ("good", "closed")})
    assert {one["name"]: one["state"] for one in report["hosts"]} == {
        "closed": "not_proven", "good": "idle"}
    assert any("closed cannot be written" in one for one in report["unread"])
    # Hosts are left, so the pages are.
    assert fleet_pages.forget(str(tmp_path), ["good"], False) == [str(tmp_path / "good")]
    assert (tmp_path / "index.html").exists()
    assert fleet_pages.make_pages(str(tmp_path))["run"]["hosts"] == 1


@pytest.mark.parametrize(("said", "wanted"), [
    ("", "skipped"), ("false", "skipped"), ("true", "error")])
def test_the_page_is_looked_at_in_ci_or_ci_fails(tmp_path, said, wanted):
    clean = {key: value for key, value in os.environ.items()
             if key not in ("FIRSTLIGHT_TEST_CHROMIUM", "CI") and not key.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
         str(ROOT / "tests/browser/test_report_page.py"), "-k", "what_hosts_say"],
        cwd=ROOT, env={**clean, "PATH": str(tmp_path), "CI": said}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=120, check=False)
    assert "1 %s" % wanted in done.stdout, done.stdout
    assert (done.returncode == 0) is (wanted == "skipped")


def test_a_folder_that_cannot_be_written_is_a_warning_and_fails_nothing(fleet):
    fleet.reports.write_text("a file")
    status, output = fleet.play(hosts=["good"])
    assert status == 0, output
    told = " ".join(output.split())
    assert "set host_report_directory to a folder of the controller" in told
    assert "chat on good: proven" in output
    assert "\nreport    " not in output


def test_a_file_that_cannot_be_read_is_left_out_and_said(fleet):
    fleet.play(hosts=["good", "other"])
    (fleet.reports / "other" / "chat.json").write_text("{")
    (fleet.reports / "good" / "host.json").write_text("[")
    status, output = fleet.play(hosts=["good"])
    assert status == 0, output
    assert "it is left out of the report" in " ".join(output.split())
    assert fleet.states() == {"good": "proven", "other": "absent"}
    assert "other/chat.json" in fleet.read("report.json")["unread"][0]


def test_a_host_leads_no_path_elsewhere(fleet):
    said = dict(fleet.passport, endpoint="../../../evil", host="../evil")
    fleet.play(hosts=["good"], endpoints=[{"name": "../evil", "passport": said}])
    assert not (fleet.folder / "evil.json").exists()
    assert [one for one in fleet.folder.rglob("*evil*")
            if one.parent != fleet.reports / "good"] == []
    assert fleet.states() == {"good": "proven"}


@pytest.mark.parametrize(("name", "wanted"), [
    ("gpu-1.example.org", "gpu-1.example.org"), ("fe80::1", "fe80::1"), ("a b", "a b"),
    ("../x", "%2E.%2Fx"), ("..", "%2E."), (".hidden", "%2Ehidden"), ("", "%"),
    ("a/b", "a%2Fb"), ("a%2Fb", "a%252Fb"), ("a\nb\0", "a%0Ab%00"), ("runs", "%72uns"),
    ("index.html", "%69ndex.html"),
])
def test_the_folder_of_a_host(tmp_path, name, wanted):
    assert fleet_pages.host_folder(str(tmp_path), name) == str(tmp_path / wanted)


def test_names_that_are_too_long_stay_apart(tmp_path):
    one, other = (fleet_pages.file_name("ä" * 300 + end) for end in "ab")
    assert one != other
    (tmp_path / one).write_text("")
    (tmp_path / other).write_text("")
    assert len(list(tmp_path.iterdir())) == 2


def test_an_endpoint_may_have_the_name_of_a_file_of_ours(tmp_path):
    path = pathlib.Path(fleet_pages.passport_path(str(tmp_path), "gpu", "host"))
    fleet_pages.write(str(path), fleet_pages.as_json({"endpoint": "host"}))
    assert fleet_pages.read_all(str(tmp_path))["hosts"]["gpu"] == {
        "host": None, "run": None, "passports": {"host": {"endpoint": "host"}}}


def test_controllers_that_write_at_once_leave_a_whole_report(tmp_path):
    def controller(number):
        run = report_fleet.run(number, report_fleet.BEFORE, report_fleet.NOW)
        for host in range(3):
            fleet_pages.keep_run(str(tmp_path), run, {
                "host-%d-%d" % (number, host): report_fleet.entry("failed", "toolbelt", "", "no")})

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(controller, range(4)))
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["hosts"]) == 12
    assert (tmp_path / "index.html").read_text().endswith("</html>\n")
    assert list(tmp_path.rglob(".*")) == []
