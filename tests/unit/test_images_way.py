# SPDX-License-Identifier: Apache-2.0
"""How images get to a host: by a mirror, by a proxy, or not at all; what plays give the role."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import yaml

from ansible.module_utils.firstlight import findings
from ansible.module_utils.firstlight.planning.images_way import images_way

ROOT = "/var/lib/firstlight"
PULL = {"image": "example.org/engine:1", "name": "example.org/engine:1", "source": "pull",
        "path": ""}
ARCHIVE = {**PULL, "source": "archive", "path": "/srv/engine.tar"}
PROXY = "http://proxy.example.org:3128"
NOTHING = {"needs": {}, "warnings": [], "refusals": []}
NEEDED = {"proxies": {"https-proxy": PROXY, "no-proxy": "localhost"}}


def seen(version="26.1.5", words=(), state="running", **proxies):
    return {"state": state, "unit": "docker.service", "file": "/etc/docker/daemon.json",
            "words": list(words), "engine": {"version": version, "proxies": {
                name.replace("_", "-"): value for name, value in proxies.items()}}
            if state == "running" else None}


def way(https_proxy=PROXY, **more):
    return {"offline": False, "environment": {
        "https_proxy": https_proxy, "HTTPS_PROXY": https_proxy, "no_proxy": "localhost"}, **more}


def decide(missing, found, network, packages=()):
    return images_way(missing, found, list(packages), network, ROOT)


def test_offline_names_every_image_that_would_be_pulled_and_every_package():
    told = decide([PULL, {**PULL, "image": "other:2"}, {**ARCHIVE, "image": "mine:3"}],
                  seen(state="absent"), {"offline": True}, ["docker.io", "iptables", ""])
    assert [(one["id"], one["subject"]) for one in told["refusals"]] == [
        ("image-offline", "image example.org/engine:1"), ("image-offline", "image other:2"),
        ("packages-offline", "docker.io iptables")]
    for words in ("container_runtime_archives", "container_runtime_builds",
                  "without network_access_offline"):
        assert words in told["refusals"][0]["remedy"]
    assert decide([ARCHIVE], seen(), {"offline": True}, [""]) == NOTHING
    # What a stopped daemon has is not known yet.
    assert decide([PULL], seen(state="stopped"), {"offline": True}) == NOTHING


def test_an_engine_that_takes_it_gets_the_proxy_where_it_is_to_pull():
    assert decide([PULL], seen("23.0.0"), way())["needs"] == NEEDED
    assert decide([PULL], seen(https_proxy="http://old.example.org"), way())["needs"] == NEEDED
    assert decide([PULL], seen(), way("proxy.example.org:3128"))["needs"] == NEEDED
    for missing, found, network in (
            ([], seen(), way()), ([ARCHIVE], seen(), way()), ([PULL], seen(), {}),
            ([PULL], seen(), {"environment": {"no_proxy": "localhost"}}),
            ([PULL], seen(state="absent"), way()), ([PULL], {"skipped": True}, way()),
            ([PULL], seen(https_proxy=PROXY, no_proxy="localhost"), way())):
        assert decide(missing, found, network) == NOTHING


@pytest.mark.parametrize(("found", "network", "words"), [
    (seen("20.10.24"), way(), "20.10.24"), (seen(), way(None), "password"),
    (seen(words=["dockerd", "--https-proxy=http://b.example.org"]), way(), "command line")])
def test_another_engine_and_a_password_are_a_warning_with_what_to_write(found, network, words):
    told = decide([PULL], found, network)
    assert (told["needs"], told["refusals"]) == ({}, [])
    (one,) = told["warnings"]
    assert (one["id"], one["severity"]) == ("docker-without-proxy", "warning")
    text = findings.text([one])
    for part in (words, PULL["image"], "EnvironmentFile=-%s/network/environment" % ROOT,
                 "/etc/systemd/system/docker.service.d/firstlight-proxy.conf", "daemon-reload"):
        assert part in text
    # Once it is written, the engine tells of it, with the password masked.
    there = dict(found, engine={**found["engine"], "proxies": {
        "https-proxy": PROXY if network == way() else "http://***@proxy.example.org:3128",
        "no-proxy": "localhost"}})
    assert decide([PULL], there, network) == NOTHING


@pytest.mark.parametrize("play", ["site", "prefetch"])
def test_what_is_found_of_the_network_reaches_the_engine(repository, tmp_path, play):
    given = yaml.safe_load((repository / "playbooks" / (play + ".yml")).read_text())[0]["vars"]
    assert "__deployment_plan_state.network" in given["network_access_decided"]
    out, role = tmp_path / "out.json", repository / "roles/container_runtime"

    def needs(**known):
        (tmp_path / "play.yml").write_text(json.dumps([{
            "hosts": "localhost", "gather_facts": False,
            "vars": {"ansible_python_interpreter": sys.executable,
                     "container_runtime_network": given["container_runtime_network"], **known},
            "tasks": [{"ansible.builtin.include_vars": str(role / "vars/main.yml")},
                      {"ansible.builtin.copy": {
                          "content": "{{ __container_runtime_needs | to_json }}",
                          "dest": str(out), "mode": "0600"}}]}]))
        done = subprocess.run(
            ["ansible-playbook", str(tmp_path / "play.yml"), "--inventory", "localhost,",
             "--connection", "local"], cwd=tmp_path, text=True, check=False, timeout=120,
            env=dict(os.environ, ANSIBLE_CONFIG=str(repository / "ansible.cfg"),
                     ANSIBLE_HOME=str(tmp_path / "home")),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert done.returncode == 0, done.stdout
        return json.loads(out.read_text())

    found = {"registry_mirrors": ["https://b.example.org", "https://a.example.org"]}
    assert needs(__network_access=found, container_runtime_registry_mirrors=[
        "https://a.example.org"]) == {
            "registry-mirrors": ["https://a.example.org", "https://b.example.org"]}
    assert needs(container_runtime_registry_mirrors=[]) == {}
