# SPDX-License-Identifier: Apache-2.0
"""A fleet that is this machine several times over: each host has a root and a port of its own."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

from ansible.module_utils.firstlight.snapshots import layout, server

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

PLAY = [{
    # The filter has the filters loaded here, once, and not by each process that a task forks.
    "name": "Fleet {{ [] | findings_text }}", "hosts": "all", "gather_facts": False,
    "tasks": [
        {"name": "Outline", "ansible.builtin.import_role": {
            "name": "model_snapshot", "tasks_from": "fleet_outline"}},
        {"name": "Fleet", "ansible.builtin.import_role": {
            "name": "model_snapshot", "tasks_from": "fleet"}},
        {"name": "Keep", "ansible.builtin.copy": {
            "content": "{{ __model_snapshot | to_json }}", "mode": "0600",
            "dest": "{{ model_snapshot_root }}/told.json"}, "check_mode": False,
         "changed_when": False, "diff": False, "no_log": True},
    ],
}]


class Fleet:
    """Hosts by name under a folder.

    :param ports: one for each host.
    :param old: hosts whose Python has no huggingface_hub, and where to import it is an error.
    """

    def __init__(self, folder, names, ports, url, old=()):
        self.folder, self.names = pathlib.Path(folder), list(names)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.hosts = {}
        for name, port in zip(self.names, ports):
            (self.folder / name).mkdir(exist_ok=True)
            self.hosts[name] = {
                "ansible_connection": "local", "ansible_python_interpreter":
                self._without_library() if name in old else sys.executable,
                "model_snapshot_root": str(self.folder / name),
                "model_snapshot_peer_address": "127.0.0.1", "model_snapshot_peer_port": port,
                "model_snapshot_can_fetch": name not in old,
                "model_snapshot_hub": {"kind": "huggingface", "url": url, "trusted": True}}

    def _without_library(self):
        path = self.folder / "old-python"
        blocked = self.folder / "blocked"
        blocked.mkdir(exist_ok=True)
        (blocked / "huggingface_hub.py").write_text("raise ImportError('this Python is too old')\n")
        path.write_text("#!/bin/sh\nPYTHONPATH=%s exec %s \"$@\"\n" % (blocked, sys.executable))
        path.chmod(0o755)
        return str(path)

    def play(self, requests, *options, **variables):
        """Run the play; ``requests`` is for all, or by host. Gives what it printed and its rc."""
        inventory = {"all": {"hosts": {name: dict(
            about, model_snapshot_requests=requests[name] if isinstance(requests, dict)
            else requests) for name, about in self.hosts.items()}, "vars": variables}}
        (self.folder / "inventory.json").write_text(json.dumps(inventory))
        (self.folder / "play.yml").write_text(json.dumps(PLAY))
        env = {name: value for name, value in os.environ.items()
               if not name.startswith("HF_") and not name.lower().endswith("_proxy")}
        env.update(ANSIBLE_CONFIG=str(REPOSITORY / "ansible.cfg"),
                   ANSIBLE_ROLES_PATH=str(REPOSITORY / "roles"),
                   ANSIBLE_LIBRARY=str(REPOSITORY / "library"),
                   ANSIBLE_FILTER_PLUGINS=str(REPOSITORY / "filter_plugins"),
                   ANSIBLE_MODULE_UTILS=str(REPOSITORY / "module_utils"),
                   ANSIBLE_HOME=str(self.folder / "home"))
        done = subprocess.run(
            ["ansible-playbook", "--inventory", str(self.folder / "inventory.json"),
             str(self.folder / "play.yml"), *options],
            cwd=self.folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=250, check=False)
        # Long lines are folded where they are printed.
        return done.returncode, " ".join(done.stdout.split())

    def told(self, name):
        """What a host's role said of its snapshots in the end."""
        return json.loads((self.folder / name / "told.json").read_text())

    def contents(self, name, repo_id, commit):
        """The bytes of a snapshot's files on a host, by path."""
        folder = pathlib.Path(layout.snapshot(self.cache(name), repo_id, commit))
        return {str(path.relative_to(folder)): path.read_bytes()
                for path in sorted(folder.rglob("*")) if path.is_file()}

    def cache(self, name):
        return str(self.folder / name / "models" / "hub")

    def serving(self):
        """The hosts on which a server still runs."""
        return [name for name in self.names if server.standing(str(self.folder / name))]
