# SPDX-License-Identifier: Apache-2.0
"""Hosts that are this machine several times over, on which the role prebuilt_wheel is played."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

from wheels import builder

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


class Hosts:
    """Hosts by name under a folder, each with a root of its own.

    :param counter: the fixture ``remote_calls``.
    """

    def __init__(self, folder, names, counter):
        self.folder, self.names, self.counter = pathlib.Path(folder), list(names), counter
        self.folder.mkdir(parents=True, exist_ok=True)

    def root(self, name):
        return self.folder / name

    def house(self, name):
        """The manifest's files of a host's wheelhouse."""
        path = self.root(name) / "wheels/manifest.json"
        return json.loads(path.read_text())["files"] if path.exists() else {}

    def told(self, name):
        """The role's fact of a host, after the last entry point that sets it."""
        return json.loads((self.folder / (name + ".json")).read_text())

    def play(self, entries, *options, by_host=None, **variables):
        """Play entry points of the role; its status, and what was printed.

        :param entries: such as ``["look", "choose", "main"]``.
        :param by_host: variables of a host beside those of all.
        """
        tasks = []
        for entry in entries:
            tasks.append({"name": "Play " + entry, "ansible.builtin.import_role": {
                "name": "prebuilt_wheel", "tasks_from": entry}})
            if entry in ("look", "choose"):
                tasks.append({"name": "Keep", "ansible.builtin.copy": {
                    "content": "{{ __prebuilt_wheel | to_json }}", "mode": "0600",
                    "dest": "%s/{{ inventory_hostname }}.json" % self.folder},
                    "delegate_to": "localhost", "check_mode": False, "changed_when": False,
                    # A host's own may be one that nothing runs with.
                    "vars": {"ansible_python_interpreter": sys.executable}})
        inventory = {"all": {"vars": variables, "hosts": {name: {
            "ansible_connection": "local", "ansible_python_interpreter": sys.executable,
            "prebuilt_wheel_root": str(self.root(name)), **(by_host or {}).get(name, {})}
            for name in self.names}}}
        (self.folder / "inventory.json").write_text(json.dumps(inventory))
        (self.folder / "play.yml").write_text(json.dumps(
            [{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
        config = REPOSITORY / "ansible.cfg"
        env = {name: value for name, value in os.environ.items()
               if not name.startswith(("PIP_", "VIRTUAL_ENV"))
               and not name.lower().endswith("_proxy")}
        env.update(self.counter.environment(config), ANSIBLE_CONFIG=str(config),
                   ANSIBLE_HOME=str(self.folder / "home"))
        done = subprocess.run(
            ["ansible-playbook", "--inventory", str(self.folder / "inventory.json"),
             str(self.folder / "play.yml"), *options], cwd=self.folder, env=env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=250, check=False)
        # Long lines are folded where they are printed.
        return done.returncode, " ".join(done.stdout.split())


def asked(python, package="tiny-kernel", **changes):
    """One of ``prebuilt_wheel_packages``."""
    return {"package": package, "python": str(python), **changes}


def row(package="tiny-kernel", **changes):
    """One of ``prebuilt_wheel_rows``, with a kernel that a good wheel runs."""
    return builder.row(package, **{"kernel": builder.proof(package), **changes})


def version_of(python, package="tiny_kernel"):
    """The version that an environment imports; empty where it cannot."""
    done = subprocess.run(
        [str(python), "-c", "import %s; print(%s.__version__)" % (package, package)], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return done.stdout.strip()


def site_of(python):
    """Where packages of an environment lie."""
    return next(pathlib.Path(python).parent.parent.glob("lib/python*/site-packages"))


def contents(folder):
    """Every file, link and folder of a tree: content or goal, and mode; but what Python compiled.
    """
    found = {}
    for path in sorted(pathlib.Path(folder).rglob("*")):
        if "__pycache__" in path.parts:
            continue
        name, mode = str(path.relative_to(folder)), path.lstat().st_mode
        found[name] = (mode, os.readlink(path) if path.is_symlink() else
                       path.read_bytes() if path.is_file() else "")
    return found
