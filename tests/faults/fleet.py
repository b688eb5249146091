# SPDX-License-Identifier: Apache-2.0
"""A fleet with an endpoint on every host: containers with systemd, reached over ssh.

The engines are native, which is quick: all hosts are clones of one that was provisioned.
"""

from __future__ import annotations

import collections
import contextlib
import json
import re
import subprocess

import place
import ssh_hosts
from place import KEY, NAME, Client, Place, until

PREFIX = "fl-fault-"
IMAGE = PREFIX + "provisioned"
ROOT = "/var/lib/firstlight"
PORT = 8443
# Nobody waits for the other's turn on a core of a machine that plays all of them.
FLAGS = ["--threads", "1", "--threads-batch", "1"]
OLD, NEW = 512, 1024
"""Contexts. Every change goes from one to the other."""
EVERY_S = 1.0

# What is on a host, in one look: its processes with the plan that they serve, and the paths where
# a run writes. Python's caches and the models are no concern, and /tmp/systemd-* are systemd's.
LOOK = r"""
import json, os
processes, plans = [], []
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        words = open("/proc/%s/cmdline" % pid, "rb").read().split(b"\0")
        around = open("/proc/%s/environ" % pid, "rb").read().split(b"\0")
    except OSError:
        continue
    if int(pid) == os.getpid() or not words[0]:
        continue
    processes.append(b" ".join(words).decode().strip())
    if b"llama_server.py" in processes[-1].encode():
        plans += [one.partition(b"=")[2].decode() for one in around
                  if one.startswith(b"FIRSTLIGHT_PLAN=")]
paths = []
for top in ("ROOT", "/etc", "/root", "/tmp", "/var/tmp"):
    for folder, folders, files in os.walk(top):
        folders[:] = [one for one in folders if one not in ("__pycache__", "models", "lib")
                      and not one.startswith("systemd-private-")]
        paths += [os.path.join(folder, one) for one in folders + files]
print(json.dumps({"processes": processes, "plans": plans, "paths": paths}))
""".replace("ROOT", ROOT)


class Member(Place):
    """One of its hosts."""

    def __init__(self, fleet, name):
        super().__init__(fleet.folder / name, ROOT, PORT)
        self.host, self.machine = name, fleet.hosts.host(name)
        self.way()

    def way(self):
        """Find the way to it: its address changes with a boot."""
        self.address = "https://%s:%d" % (self.machine.address, PORT)

    def shell(self, *argv):
        return self.machine.shell(*argv)

    def look(self):
        """Everything that a run may have left there."""
        return json.loads(self.shell("python3", "-c", LOOK))

    def passport(self):
        return json.loads(self.read("%s/endpoints/%s/passport.json" % (ROOT, NAME)))

    def whole(self):
        """The context that is served, where all of it is one change's: nothing is half done."""
        plan, seen = self.passport()["plan"], self.look()
        assert seen["plans"] == [plan["hash"]], (self.host, plan["hash"], seen["plans"])
        [engine] = [one for one in seen["processes"] if "llama_server.py" in one]
        assert " --ctx-size %d " % plan["context"] in engine + " "
        assert self.journals() == []
        return plan["context"]

    def kinds(self):
        """What is there of processes and of paths, whatever their numbers and hashes."""
        seen = self.look()
        return {kind: sorted(re.sub(r"[0-9a-f]{8,}|\d+", "N", one) for one in seen[kind])
                for kind in ("processes", "paths")}


class Fleet:
    """All of them."""

    host = "-"

    def __init__(self, folder, names):
        self.folder, self.names, self.runs, self.begun = folder, names, 0, []
        self.folder.mkdir(parents=True, exist_ok=True)
        self.hosts = ssh_hosts.SshHosts(folder / "ssh", PREFIX)
        self.members = {}

    def make(self):
        """Provision one host, and clone it."""
        self.hosts.make(["seed"])
        # So often that all is there which changes make and keep, older passports too.
        for context in (NEW, OLD, NEW, OLD):
            run = self.play(context)
            assert run.ok, run.output
        self.hosts.commit("seed", IMAGE)
        self.hosts.remove("seed")
        self.hosts.make(self.names, IMAGE)
        self.members = {name: Member(self, name) for name in self.names}
        for member in self:
            until(lambda member=member: answers(member), "an answer of " + member.host)

    def remove(self):
        for run in self.begun:
            if run.process.poll() is None:  # of a test that failed
                run.kill()
        self.hosts.remove()
        subprocess.run(["docker", "image", "rm", "--force", IMAGE], capture_output=True)

    def __iter__(self):
        return iter(self.members.values())

    def __getitem__(self, name):
        return self.members[name]

    def begin(self, context, *arguments, **variables):
        """Begin site.yml on all of them, for an endpoint with this context."""
        self.begun.append(place.begin(self, self.hosts.inventory(), "site.yml", arguments, {
            "firstlight_root": ROOT, **variables, "inference_endpoints": [{
                "name": NAME, "model": "canary", "engine": "llama_cpp", "runtime": "native",
                "port": PORT, "bind": "0.0.0.0", "api_key": KEY, "gpus": 0, "context": context,
                "extra_args": FLAGS}]}))
        return self.begun[-1]

    def play(self, context, *arguments, **variables):
        return self.begin(context, *arguments, **variables).ended()

    @contextlib.contextmanager
    def asked(self):
        """A client of each, all the time."""
        with contextlib.ExitStack() as stack:
            yield {member.host: stack.enter_context(Client(member, EVERY_S)) for member in self}

    def kinds(self):
        """What is on each when nobody is logged in."""
        self.hosts.hang_up()
        for member in self:
            until(lambda member=member: not any("sshd: root@" in one for one in
                                                member.look()["processes"]), "an end of ssh")
        return {member.host: member.kinds() for member in self}

    def strange(self):
        """What is there now and was not at rest, and what was and is not, one line each."""
        now = self.kinds()
        return ["%s: %s%s" % (host, sign, one)
                for host, kinds in self.rest.items() for kind, was in kinds.items()
                for sign, these, those in (("+", now[host][kind], was), ("-", was, now[host][kind]))
                for one in (collections.Counter(these) - collections.Counter(those)).elements()]


def answers(member):
    """Whether it answers, which is nothing to wait for in vain."""
    try:
        return member.asked()
    except (OSError, ValueError, LookupError):
        return False
