# SPDX-License-Identifier: Apache-2.0
"""The role network_access on this machine: what it asks of a host, and what it says aloud."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys

import network_servers as rig
import pytest

SECRET = "hunter2"


@pytest.fixture
def net():
    with rig.network() as servers:
        yield servers


def _without_root(folder):
    """The path of a Python in which nobody is root, so that no module does root's part.

    The tests' own Python may lie where another user could not start it.
    """
    (folder / "site").mkdir()
    (folder / "site/sitecustomize.py").write_text("import os\nos.geteuid = lambda: 65534\n")
    path = folder / "python"
    path.write_text(
        "#!/bin/sh\nexport PYTHONPATH='%s'\n"
        "'%s' -c 'import os, sys; sys.exit(os.geteuid() != 65534)' || exit 99\n"
        "exec '%s' \"$@\"\n" % (folder / "site", sys.executable, sys.executable))
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def play(repository, tmp_path, remote_calls, monkeypatch):
    """Run the role here, without root's part; gives its status, its output and its fact."""
    interpreter = _without_root(tmp_path)
    for name in [*os.environ]:
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)

    def run(*options, entry="main", **variables):
        (tmp_path / "vars.json").write_text(json.dumps(
            {"firstlight_root": str(tmp_path / "root"), "ansible_python_interpreter": interpreter,
             **variables}))
        fact = tmp_path / "fact.json"
        tasks = [{"name": "Set the way out", "ansible.builtin.import_role": {
            "name": "network_access", "tasks_from": entry}}]
        if entry == "main":
            tasks.append({"name": "Keep the fact", "ansible.builtin.copy": {
                "content": "{{ __network_access | to_json }}", "dest": str(fact), "mode": "0600"},
                "delegate_to": "localhost", "check_mode": False, "changed_when": False})
        (tmp_path / "play.yml").write_text(json.dumps([
            {"hosts": "all", "gather_facts": False, "tasks": tasks}]))
        config = repository / "ansible.cfg"
        env = dict(os.environ, ANSIBLE_CONFIG=str(config), ANSIBLE_HOME=str(tmp_path / "home"),
                   ANSIBLE_ROLES_PATH=str(repository / "roles"),
                   **remote_calls.environment(config))
        done = subprocess.run(
            ["ansible-playbook", str(tmp_path / "play.yml"), *options, "--inventory",
             str(repository / "inventories/local"), "--extra-vars", "@%s/vars.json" % tmp_path],
            cwd=tmp_path, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=120, check=False)
        return done.returncode, done.stdout, json.loads(fact.read_text() or "{}") \
            if fact.exists() else {}

    return run


def test_where_nothing_is_asked_for_no_host_is_asked_and_the_usual_hub_is_it(
        play, remote_calls, tmp_path):
    status, output, fact = play()
    assert status == 0, output
    assert fact == {
        "hub": {"kind": "huggingface", "url": "https://huggingface.co", "trusted": True},
        "offline": False, "registry_mirrors": [], "environment": {}, "reasons": [],
        "findings": []}
    remote_calls.expect(role={})
    assert not (tmp_path / "root").exists()


def test_a_question_and_the_same_again_are_one_call_each_and_then_it_is_taken_back(
        play, net, remote_calls, tmp_path):
    hub, wall = net.serve(rig.hub()), net.serve(rig.portal)
    asked = {"network_access_hub_endpoints": [{"url": wall.url}, {"url": hub.url}],
             "network_access_root": str(tmp_path / "root")}
    status, output, fact = play(**asked)
    assert status == 0, output
    assert fact["hub"] == {"kind": "huggingface", "url": hub.url, "trusted": False}
    assert fact["environment"] == {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    assert "X-Repo-Commit" in " ".join(fact["reasons"])
    assert "Models come from %s" % hub.url in output
    remote_calls.expect(role={"network_access": 1})
    status, output, again = play(**asked)
    assert (status, again) == (0, fact)
    assert "changed=0" in output
    remote_calls.expect(role={"network_access": 2})
    assert play(network_access_decided=True)[2]["hub"]["url"] == "https://huggingface.co"
    assert not (tmp_path / "root" / "network").exists()
    play(**asked)
    status, output, _ = play(entry="revert")
    assert status == 0, output
    assert not (tmp_path / "root" / "network").exists()


def test_a_password_is_not_said_however_much_is_said(play, net, tmp_path):
    hub = net.serve(rig.hub())
    way = net.serve(rig.proxy({"hub.example.org": hub.url}, "jo:" + SECRET))
    asked = {"network_access_hub_endpoints": [{"url": "http://hub.example.org"}],
             "network_access_proxy": {"http": "http://jo:%s@127.0.0.1:%d" % (SECRET, way.port)},
             "network_access_probe_s": 10}
    status, output, fact = play("-vvvv", "--diff", **asked)
    assert status == 0, output
    assert SECRET not in output
    assert SECRET not in json.dumps(fact)
    assert fact["environment"]["http_proxy"] is None
    kept = [path for path in (tmp_path / "root").rglob("*")
            if path.is_file() and SECRET in path.read_text()]
    assert tmp_path / "root/network/environment" in kept
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept} == {0o600}
    assert way.requests, "the hub was not asked by the proxy"
    failed, output, _ = play("-vvvv", **{**asked, "network_access_proxy": {
        "http": "http://jo:%s @127.0.0.1" % SECRET}})
    assert failed != 0
    assert "network_access_proxy.http" in output
    assert SECRET not in output


def test_what_is_wrong_is_said_before_any_host_is_asked(play, remote_calls):
    status, output, _ = play(network_access_hub_endpoints=[
        {"url": "http://hub.example.org", "trusted": True}], network_access_hook="turbo.sh")
    assert status != 0
    assert "network_access_hub_endpoints[0].trusted" in output
    assert "network_access_hook" in output
    remote_calls.expect(role={})
