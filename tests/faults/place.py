# SPDX-License-Identifier: Apache-2.0
"""A host with an endpoint on it: how site.yml is played there, what is seen of it.

This machine is one, with a root of its own; a container with systemd and a Docker engine is the
other, reached over ssh.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request

import yaml
from ssh_hosts import RIG, output

from ansible.module_utils.firstlight import canary

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
ENGINE = "firstlight-engine:llama-server"
NAME = "faulty"
KEY = "a-key-of-the-tests-of-faults"
ALWAYS = "answered all the time"
AT_ONCE = 20
"""Questions that one client has open at most."""
PATIENCE_S = 120
"""How long something is waited for that comes within seconds; its lack is a failure."""


def faulty(fault):
    """The image of an engine with a fault."""
    return "firstlight-faults:" + fault


def until(task, what, patience_s=PATIENCE_S):
    """Ask until the answer is true; returns it."""
    deadline = time.monotonic() + patience_s
    while True:
        found = task()
        if found:
            return found
        assert time.monotonic() < deadline, "not within %d s: %s" % (patience_s, what)
        time.sleep(0.05)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Run:
    """One site.yml under way, in a session of its own."""

    def __init__(self, place, playbook, inventory, arguments):
        self.host = place.host
        self.log = place.folder / ("run-%d.log" % place.runs)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [str(pathlib.Path(sys.executable).with_name("ansible-playbook")), playbook,
                 "--inventory", str(inventory), *arguments],
                cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, env=dict(
                    os.environ, ANSIBLE_CONFIG=str(REPOSITORY / "ansible.cfg"),
                    LC_ALL="C.UTF-8", ANSIBLE_HOME=str(place.folder / "ansible")))

    @property
    def output(self):
        return self.log.read_text(encoding="utf-8", errors="replace")

    def ended(self):
        """Wait for its end; gives itself."""
        self.process.wait(400)
        return self

    @property
    def ok(self):
        return self.ended().process.returncode == 0

    @property
    def changed(self):
        """What the recap counted."""
        return self.recap()[self.host]["changed"]

    def recap(self):
        """What it counted of every host."""
        return {host: {key: int(count) for key, count in re.findall(r"(\w+)=(\d+)", counts)}
                for host, counts in re.findall(r"^(\S+) +: (ok=.*)$", self.ended().output,
                                               re.MULTILINE)}

    @property
    def reason(self):
        """Why the host is not done, as the run's last words have it."""
        said = self.reason_of(self.host)
        cause = re.search(r"\[(?:fatal|error)\] [a-z-]+: .*\n +found: +(.*)", self.output)
        return "%s (%s)" % (said, cause.group(1)) if cause and cause.group(1) not in said else said

    def reason_of(self, host):
        """Why this host is not done."""
        found = re.search(r"^  %s (?:failed|unreachable) in \S+ task \".*?\": (.*)$" % host,
                          self.ended().output, re.MULTILINE)
        assert found, self.output
        return found.group(1).partition(" Its log ends:")[0]

    def kill(self):
        """Kill it and everything that it started, at one blow: none may tell another."""
        for pid in self.tree():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        for pid in self.tree():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(30)

    def tree(self):
        """Its processes; what let go of it is none."""
        parents = {}
        for folder in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, ValueError):
                parents[int(folder.name)] = parent_of(int(folder.name))
        found = [self.process.pid]
        for pid in found:
            found += [one for one, parent in parents.items() if parent == pid]
        return found


def begin(place, hosts, playbook, arguments, variables):
    """Begin a playbook on hosts: name and how it is reached; the variables are those of all."""
    place.runs += 1
    inventory = place.folder / ("inventory-%d.yml" % place.runs)
    inventory.write_text(yaml.safe_dump({"all": {"hosts": hosts, "vars": {
        "host_report_directory": str(place.folder / "reports"), **variables}}}))
    return Run(place, playbook, inventory, arguments)


def parent_of(pid):
    """The parent, by /proc."""
    said = pathlib.Path("/proc/%d/stat" % pid).read_text(encoding="utf-8", errors="replace")
    return int(said.rpartition(")")[2].split()[1])


class Place:
    """A host, and the endpoint that is asked for there."""

    host = "here"
    connection = {"ansible_connection": "local",
                  "ansible_python_interpreter": "{{ ansible_playbook_python }}"}

    def __init__(self, folder, root, port):
        self.folder, self.root, self.port, self.runs = folder, root, port, 0
        self.folder.mkdir(parents=True, exist_ok=True)
        self.old = {"name": NAME, "model": "canary", "engine": "llama_cpp",
                    "engine_version": "11669", "image": ENGINE, "port": port, "gpus": 0}
        self.address = "http://127.0.0.1:%d" % port

    def shell(self, *argv):
        """Run a command on the host; returns what it prints."""
        return output(list(argv))

    def read(self, path):
        """A file of the host, or nothing."""
        return self.shell("sh", "-c", "if [ -f %s ]; then cat %s; fi" % ((shlex.quote(path),) * 2))

    def begin(self, endpoint, *arguments, playbook="site.yml"):
        """Begin a playbook with this endpoint."""
        return begin(self, {self.host: self.connection}, playbook, arguments, {
            "firstlight_root": self.root,
            # A machine's own daemon is left as it is set.
            "container_runtime_defaults": {},
            "inference_endpoints": [endpoint]})

    def play(self, endpoint, *arguments, **which):
        """Play it to its end."""
        return self.begin(endpoint, *arguments, **which).ended()

    # What is there.

    def containers(self, *states):
        """The names of the endpoint's containers, in these states or in any."""
        return set(self.shell(
            "docker", "ps", "--all", "--filter", "label=firstlight.endpoint=" + NAME,
            "--filter", "label=firstlight.root=" + self.root,
            *("--filter=status=" + state for state in states), "--format", "{{.Names}}").split())

    def files(self):
        """What says how it should be: the definition and the passport."""
        return [self.read("%s/endpoints/%s/%s" % (self.root, NAME, name))
                for name in ("compose.yaml", "passport.json")]

    def state(self):
        """All that a change that failed has to leave as it was."""
        return {"files": self.files(), "containers": self.containers(),
                "running": self.containers("running")}

    def journals(self):
        """What of a change is under way, or was ended in the middle."""
        return [name for name in self.shell("ls", self.root + "/journal").split()
                if name.startswith("endpoint-") and name.endswith(".json")
                and not name.endswith(".run.json")]

    def made(self, before):
        """Wait for a container that was not there before."""
        (name,) = until(lambda: self.containers() - before["containers"], "a new container")
        return name

    def started(self, before):
        """Wait for a container that did not run before."""
        (name,) = until(lambda: self.containers("running") - before["running"],
                        "another container that runs")
        return name

    def workers(self):
        """The processes that do the switch: the guard, and what it started."""
        state = json.loads(self.read("%s/journal/endpoint-%s.run.json" % (self.root, NAME)))
        listed = [tuple(map(int, line.split())) for line in
                  self.shell("ps", "-e", "-o", "pid=,ppid=").splitlines()]
        return [state["pid"], *(pid for pid, parent in listed if parent == state["pid"])]

    def at_work(self):
        """Whether a switch has begun and not ended."""
        said = self.read("%s/journal/endpoint-%s.run.json" % (self.root, NAME))
        return bool(said) and json.loads(said)["result"] is None

    def asked(self):
        """Ask it for the canary's words."""
        oracle = canary.oracle()
        request = urllib.request.Request(
            self.address + "/v1/completions", json.dumps({
                "model": "canary", "prompt": oracle["prompt"], "temperature": 0,
                "max_tokens": oracle["max_tokens"]}).encode(),
            {"Content-Type": "application/json", "Authorization": "Bearer " + KEY})
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            return json.load(answer)["choices"][0]["text"] == oracle["completion"]


class Client(threading.Thread):
    """Somebody who asks the old endpoint all the time, and notes when it answered rightly.

    A question that hangs keeps nobody from asking the next one.
    """

    def __init__(self, place, every_s=0.2):
        super().__init__(daemon=True)
        self.place, self.every_s = place, every_s
        self.right, self.wrong = [], []
        self.leaving = threading.Event()

    def run(self):
        asking = []
        while not self.leaving.wait(self.every_s):
            asking = [one for one in asking if one.is_alive()]
            if len(asking) < AT_ONCE:
                asking.append(threading.Thread(target=self.ask, daemon=True))
                asking[-1].start()
        for one in asking:
            one.join()

    def ask(self):
        begun = time.monotonic()
        try:
            assert self.place.asked(), "another answer"
            self.right.append((begun, time.monotonic()))
        except (OSError, ValueError, LookupError, AssertionError) as problem:
            self.wrong.append(repr(problem))

    def __enter__(self):
        self.start()
        until(lambda: self.right, "a first answer")
        return self

    def __exit__(self, *why):
        self.leaving.set()
        self.join(60)

    def back(self):
        """Wait until it answers what it is asked from now on."""
        now = time.monotonic()
        until(lambda: any(begun > now for begun, _ in self.right), "an answer of the old one")

    @property
    def gap_s(self):
        """The longest time between two right answers."""
        at = sorted(ended for _, ended in self.right)
        return max((later - earlier for earlier, later in zip(at, at[1:])), default=0.0)

    @property
    def told(self):
        """What became of the old endpoint, in words."""
        return "answered again after %.1f s" % self.gap_s if self.wrong else ALWAYS


class Container(Place):
    """A Debian with systemd and a Docker engine of its own; the endpoint has a way in."""

    host = "faults12"
    container = "firstlight-faults12"

    def __init__(self, folder):
        super().__init__(folder, "/var/lib/firstlight", 8443)
        self.old.update(bind="0.0.0.0", api_key=KEY)

    def make(self, images):
        """Start it, with these images in its engine, and a way to log in."""
        self.remove()
        options = json.loads(output([*RIG, "options"]))
        output([
            "docker", "create", "--name", self.container, "--hostname", self.host,
            "--label", "firstlight.rig=host", "--stop-signal", "SIGRTMIN+3",
            *("--env=%s=%s" % pair for pair in options["env"].items()),
            *("--cap-add=" + one for one in (
                "SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "SYS_CHROOT", "MKNOD")),
            "--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined",
            "--cgroupns", "host", "--tmpfs", "/run", "--tmpfs", "/run/lock",
            "--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw", "--volume", "/var/lib/docker",
            *("--volume=" + one for one in options["mounts"]),
            "firstlight-host:debian12-docker", "/lib/systemd/systemd"])
        key = self.folder / "id"
        output(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)])
        output([*RIG, "fill", self.container, "--files", json.dumps(
            {"/root/.ssh/authorized_keys": key.with_suffix(".pub").read_text()})])
        self.boot("start")
        saved = subprocess.Popen(["docker", "save", *images], stdout=subprocess.PIPE)
        output(["docker", "exec", "--interactive", self.container, "docker", "load"],
               stdin=saved.stdout)
        assert saved.wait() == 0

    def boot(self, how):
        """Start it, or start it again, and find the way to it."""
        output(["docker", how, self.container])
        until(lambda: subprocess.run(
            ["docker", "exec", self.container, "systemctl", "is-system-running", "--wait"],
            text=True, capture_output=True).stdout.strip() in ("running", "degraded"), "a boot")
        address = output(["docker", "inspect", "--format", "{{.NetworkSettings.IPAddress}}",
                          self.container])
        self.address = "https://%s:%d" % (address, self.port)
        known = self.folder / "known_hosts"
        known.write_text("%s %s\n" % (self.host, self.shell(
            "cat", "/etc/ssh/ssh_host_ed25519_key.pub")))
        settings = self.folder / "ssh_config"
        settings.write_text(
            "Host *\n  HostName %s\n  HostKeyAlias %s\n  User root\n  IdentityFile %s\n"
            "  IdentitiesOnly yes\n  UserKnownHostsFile %s\n  StrictHostKeyChecking yes\n"
            % (address, self.host, self.folder / "id", known))
        self.connection = {
            "ansible_connection": "ssh", "ansible_host": self.container,
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_ssh_common_args": "-F %s" % settings,
            # One connection for each run, whose end is the run's.
            "ansible_control_path": str(self.folder / "control")}

    def shell(self, *argv):
        return output(["docker", "exec", self.container, *argv])

    def cut(self):
        """End every session of ssh on the host, in the middle of whatever it does."""
        for line in self.shell("ps", "-e", "-o", "pid=,args=").splitlines():
            pid, args = line.split(None, 1)
            if args.startswith("sshd: root@"):
                self.shell("kill", "-9", pid)

    def remove(self):
        subprocess.run(["docker", "rm", "--force", "--volumes", self.container],
                       capture_output=True)
