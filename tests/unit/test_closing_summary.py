# SPDX-License-Identifier: Apache-2.0
"""The closing summary in real runs, beside this and that stdout callback."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PLAY = """
- name: The play
  hosts: all
  gather_facts: false
  serial: "{{ serial | default('100%') }}"
  max_fail_percentage: "{{ most | default(100) }}"
  tasks:
    - name: Serve
      ansible.builtin.import_role:
        name: serving
    - name: Fail in an item
      ansible.builtin.fail:
        msg: |
          1 item is bad:
            the item {{ item }}
          more of it
      loop: [1, 2]
      when: inventory_hostname == 'bad' and item == 2
    - name: Lose the host in an item
      ansible.builtin.raw: "true"
      loop: [1, 2]
      vars:
        ansible_host: 127.0.0.1
        ansible_port: 1  # where nobody listens
      when: inventory_hostname == 'lost'
    - name: Fail and be rescued
      when: inventory_hostname == 'host1'
      block:
        - name: Fail
          ansible.builtin.fail:
            msg: rescued
      rescue:
        - name: Go on
          ansible.builtin.set_fact:
            gone_on: true
    - name: Keep a secret {{ secret }}
      ansible.builtin.fail:
        msg: "{{ secret }}"
      no_log: true
      when: inventory_hostname == 'silent'
"""
SERVING = """
- name: Hand the result to the closing summary
  ansible.builtin.set_stats:
    data:
      firstlight_root: /srv/firstlight
      firstlight_passports: "{{ passports[inventory_hostname] | default([]) }}"
      firstlight_verdicts: "{{ verdicts | default([]) }}"
    per_host: true
    aggregate: false
  when: passports[inventory_hostname] is defined
"""


def passport(name, port, **other):
    return {
        "plan": {
            "name": name, "url": "http://127.0.0.1:%d" % port, "engine": "llama_cpp",
            "public_url": "http://127.0.0.1:%d" % port, "way_in": False, "tls": "none",
            "engine_version": "1.2", "runtime": "native", "context": 2048,
            "model": {"served_name": "canary", "format": "gguf", "quantisation": "F16"}},
        "smoke": {"figures": {"tokens_per_second": 99, "first_token_s": 0.1}},
        "service": {"way_in": None}, "phases": {"ready_s": 1.5}, **other}


def verdict(port, passed=True):
    findings = [] if passed else [{"severity": "error", "id": "wrong-answer", "found": "cats\n",
                                   "wanted": "dogs"}]
    return {"url": "http://127.0.0.1:%d" % port, "passed": passed, "findings": findings,
            "figures": {"tokens_per_second": 77, "first_token_s": 0.2}}


@pytest.fixture
def play(tmp_path):
    """Run the playbook for some hosts with some passports; returns status and output."""
    (tmp_path / "play.yml").write_text(PLAY)
    (tmp_path / "roles/serving/tasks").mkdir(parents=True)
    (tmp_path / "roles/serving/tasks/main.yml").write_text(SERVING)

    def run(passports=(), hosts=(), given_too=None, **env):
        given = dict(passports or {})
        names = [*hosts, *(one for one in given if one not in hosts)]
        told = {"passports": given, "secret": "correct-horse", "verdicts": [
            verdict(8000), verdict(8001), verdict(8003), verdict(8004), verdict(8002, False)],
            **(given_too or {})}
        clean = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
        done = subprocess.run(
            ["ansible-playbook", "-i", ",".join(names) + ",", "-e", json.dumps(told), "play.yml"],
            cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, timeout=60, check=False,
            env={**clean, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                 "ANSIBLE_ROLES_PATH": str(tmp_path / "roles"),
                 "ANSIBLE_HOME": str(tmp_path / "home"), **env})
        return done.returncode, done.stdout

    return run


def test_an_endpoint_is_told_in_full_and_each_role_has_its_time(play):
    status, output = play({"host1": [passport("chat", 8000)]},
                          FIRSTLIGHT_CONTROLLER_SECONDS="6.5")
    assert status == 0, output
    assert "FIRST LIGHT" in output
    assert "\nchat on host1: proven\nendpoint  http://127.0.0.1:8000\n" in output
    assert "\nspeed     77 tokens/s in one stream, first token after 0.2 s\n" in output
    assert "\npassport  /srv/firstlight/endpoints/chat/passport.json\n" in output
    assert re.search(r"^try       curl -s http://127\.0\.0\.1:8000/v1/completions ", output, re.M)
    assert re.search(r"^time      controller 6\.5 s · ansible start [\d.]+ s · "
                     r"serving [\d.]+ s · The play [\d.]+ s$", output, re.M)
    assert "not done" not in output  # what failed was rescued


@pytest.mark.parametrize("bind, shown", [
    ("192.0.2.7", "192.0.2.7"), ("0.0.0.0", "host1"), ("[::]", "host1")])
def test_a_way_in_is_told_with_its_address_and_certificate_and_no_key(play, bind, shown):
    one = passport("chat", 18000)
    one["plan"].update(public_url="https://%s:8000" % bind, way_in=True, tls="self-signed")
    one["service"]["way_in"] = {"certificate": "AB:CD"}
    _, output = play({"host1": [one]}, hosts=["host1"])
    assert "\nendpoint  https://%s:8000\n" % shown in output
    assert "a self-signed certificate, SHA-256 AB:CD" in output
    told = re.search(r"^try       (curl .*)$", output, re.M).group(1)
    assert "-k https://%s:8000/v1/completions" % shown in told
    assert told.endswith('-H "Authorization: Bearer $KEY"')


def test_a_fleet_has_a_line_for_each_endpoint_and_what_is_not_proven_comes_last(play):
    status, output = play({
        "host1": [passport("chat", 8000), passport("code", 8002)],
        "host2": [passport("chat", 8001), passport("code", 8009)],
        "host3": [passport("chat", 8003)],
        "odd": [passport("chat", 8004, plan="not a plan")],
    }, hosts=["bad", "lost", "silent"])
    assert status != 0
    told = output[output.index("FIRST LIGHT"):].splitlines()
    assert told[2:7] == [
        "chat on host1  proven      http://127.0.0.1:8000  canary on llama_cpp 1.2  77 tokens/s",
        "chat on host2  proven      http://127.0.0.1:8001  canary on llama_cpp 1.2  77 tokens/s",
        "chat on host3  proven      http://127.0.0.1:8003  canary on llama_cpp 1.2  77 tokens/s",
        "code on host1  NOT proven  http://127.0.0.1:8002  "
        "error wrong-answer: found cats , wanted dogs",
        "code on host2  not asked   http://127.0.0.1:8009  canary on llama_cpp 1.2  99 tokens/s",
    ]
    assert told[8].startswith("odd: its passports cannot be read")
    assert told[12].startswith(
        '  lost unreachable in The play, task "Lose the host in an item": ')
    assert "127.0.0.1" in told[12]
    assert [*told[10:12], *told[13:15]] == [
        "not done:",
        '  bad failed in The play, task "Fail in an item": 1 item is bad: the item 2',
        '  silent failed in The play, task "Keep a secret {{ secret }}": '
        "its result is hidden (no_log)",
        "  What was under way on hosts that are unreachable ends or goes back by itself. "
        "When ssh gets in, run again with --limit lost",
    ]


@pytest.mark.parametrize("stdout", ["ansible.builtin.default", "ansible.builtin.minimal"])
def test_other_callbacks_print_their_own_and_the_summary_follows(play, stdout):
    status, output = play({"host1": [passport("chat", 8000)]}, ANSIBLE_STDOUT_CALLBACK=stdout)
    assert status == 0, output
    assert "chat on host1: proven" in output
    assert re.search(r"^time +ansible start", output, re.M)


@pytest.mark.parametrize("stdout", ["ansible.posix.json", "ansible.posix.jsonl"])
def test_json_output_stays_json(play, stdout):
    output = play({"host1": [passport("chat", 8000)]}, hosts=["bad"],
                  ANSIBLE_STDOUT_CALLBACK=stdout)[1]
    documents = [output] if stdout.endswith("json") else output.splitlines()
    stats = json.loads(documents[-1])["stats"]
    assert stats["bad"]["failures"] == 1
    assert all(json.loads(one) for one in documents)


def test_it_works_beside_other_notifying_callbacks(play, tmp_path):
    status, output = play(
        {"host1": [passport("chat", 8000)]}, JUNIT_OUTPUT_DIR=str(tmp_path / "junit"),
        ANSIBLE_CALLBACKS_ENABLED="closing_summary,ansible.posix.profile_tasks,"
                                  "ansible.builtin.junit")
    assert status == 0, output
    assert re.search(r"^host1 +serving +ok +[\d.]+ s$", output, re.M)
    assert re.search(r"serving : Hand the result to the closing summary -+ ", output)
    assert "chat on host1: proven" in output
    (report,) = (tmp_path / "junit").iterdir()
    assert "serving : Hand the result" in report.read_text()


def test_hosts_that_a_run_was_not_through_with_are_named(play):
    hosts = ["bad", "cut", "later", "last"]
    _, output = play(hosts=hosts, given_too={"serial": 2, "most": 0})
    again = "When it is mended, run again with --limit"
    assert "in the middle of others. %s cut\n" % again in output
    assert "nothing was done there. %s last,later\n" % again in output
    _, output = play(hosts=hosts)
    assert "bad failed in" in output
    assert "run again" not in output
