# SPDX-License-Identifier: Apache-2.0
"""Containers with systemd and sshd that play the hosts of a fleet, and the way to log in to them.

They are made as ``molecule/default/create.yml`` makes its own, for tests that need many of them,
clones of them, or to stop, cut and kill them. ``tests/rig/hosts`` has their images.
"""

from __future__ import annotations

import concurrent.futures
import json
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid

RIG = [sys.executable, str(pathlib.Path(__file__).resolve().parent / "hosts")]
CAPABILITIES = ("SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "SYS_CHROOT", "MKNOD")
BOOT_S = 300
"""How long one may take to boot when dozens of others boot too."""
AT_ONCE = 4
"""So many are made and booted at a time: more only wait for the same cores."""
# What the containers share of the kernel of this machine. Each systemd takes a few instances, each
# of its units some watches; each ssh session takes keys.
LIMITS = {"fs/inotify/max_user_instances": 8192, "fs/inotify/max_user_watches": 524288,
          "kernel/keys/maxkeys": 20000, "kernel/keys/maxbytes": 2000000}
CGROUPS = pathlib.Path("/sys/fs/cgroup")
LABELLED = "fleet"
"""What `tests/rig/hosts remove`, which a molecule that failed ends with, leaves alone."""
HOST_KEY = "/etc/ssh/ssh_host_ed25519_key"


def output(argv, timeout_s=300, **options):
    """What a command prints; that it fails is an error of the test."""
    done = subprocess.run([str(one) for one in argv], text=True, capture_output=True,
                          timeout=timeout_s, **options)
    assert done.returncode == 0, "%s: %s%s" % (
        shlex.join(str(one) for one in argv), done.stdout, done.stderr)
    return done.stdout.strip()


def raise_limits():
    """Have what dozens of systemds take of this machine's kernel, where we may."""
    for name, wanted in LIMITS.items():
        file = pathlib.Path("/proc/sys") / name
        if file.exists() and int(file.read_text()) < wanted:
            try:
                file.write_text("%d\n" % wanted)
            except PermissionError:
                # `tests/rig/hosts images` has raised what a few hosts need.
                print("ssh_hosts: %s stays %s" % (file, file.read_text().strip()), file=sys.stderr)


class SshHost:
    """One host."""

    def __init__(self, fleet, name):
        self.name, self.container = name, fleet.prefix + name
        self.address = ""
        self._fleet, self._cgroup = fleet, None

    def shell(self, *argv):
        """Run a command on it, past ssh; returns what it prints."""
        return output(["docker", "exec", self.container, *argv])

    def boot(self, how="start"):
        """Start it, or with "restart" start it again, and wait; its address may be another one."""
        output(["docker", how, self.container])
        self._cgroup = None
        deadline = time.monotonic() + BOOT_S
        while True:
            # Its manager takes a moment to answer. Which units failed is for the tests to say.
            state = subprocess.run(
                ["docker", "exec", self.container, "systemctl", "is-system-running", "--wait"],
                text=True, capture_output=True, timeout=BOOT_S)
            if state.stdout.strip() in ("running", "degraded"):
                break
            gone = "No such container" in state.stderr or "is not running" in state.stderr
            assert not gone and time.monotonic() < deadline, "%s does not boot: %s%s" % (
                self.container, state.stdout, state.stderr)
            time.sleep(0.2)
        self.address = output(["docker", "inspect", "--format", "{{.NetworkSettings.IPAddress}}",
                               self.container])
        self._fleet.write_down()

    def pause(self):
        """Let it hang: whoever talks to it waits."""
        output(["docker", "pause", self.container])

    def unpause(self):
        """Let it go on."""
        output(["docker", "unpause", self.container])

    def kill(self):
        """Let it die, as if its power went; :meth:`boot` brings it back."""
        output(["docker", "kill", self.container])

    def cut(self):
        """End every session of ssh, in the middle of whatever it does."""
        for line in self.shell("ps", "-e", "-o", "pid=,args=").splitlines():
            pid, args = line.split(None, 1)
            if args.startswith("sshd: root@"):
                # One that ended by itself meanwhile is as good.
                subprocess.run(["docker", "exec", self.container, "kill", "-9", pid],
                               capture_output=True, timeout=60)

    def cpu_s(self):
        """CPU seconds, user and system, of everything in it since it was started."""
        if self._cgroup is None:
            self._cgroup = self._accounts()
        if self._cgroup.name == "cpuacct.usage":
            return int(self._cgroup.read_text()) / 1e9
        told = dict(line.split() for line in self._cgroup.read_text().splitlines())
        return int(told["usage_usec"]) / 1e6

    def _accounts(self):
        """The file in which its control group counts, of version 1 or 2."""
        identity, pid = output(["docker", "inspect", "--format", "{{.Id}} {{.State.Pid}}",
                                self.container]).split()
        for line in pathlib.Path("/proc/%s/cgroup" % pid).read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            names = controllers.split(",")
            if "cpuacct" in names or number == "0" and (CGROUPS / "cgroup.controllers").exists():
                # Its systemd has moved itself into a group below that of the container.
                steps = pathlib.PurePath(path).parts
                (last,) = [at for at, step in enumerate(steps) if identity in step]
                group = pathlib.Path(*steps[1:last + 1])
                return (CGROUPS / "cpuacct" / group / "cpuacct.usage" if "cpuacct" in names
                        else CGROUPS / group / "cpu.stat")
        raise AssertionError("no control group counts the CPU time of %s" % self.container)


class SshHosts:
    """Hosts whose containers have one prefix, and the way to log in.

    The key, ``known_hosts`` and ``ssh_config`` lie in the folder.
    """

    def __init__(self, folder, prefix):
        self.folder, self.prefix = pathlib.Path(folder), prefix
        self.hosts = {}
        self._lock = threading.Lock()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config = self.folder / "ssh_config"
        # The path of a socket has 107 characters at most. A directory of our own, because a host
        # of a former run had the same name.
        self.control = pathlib.Path(tempfile.mkdtemp(prefix="fl-ssh-", dir="/tmp"))

    def make(self, names, image="firstlight-host:debian12", nested_docker=False, files=None):
        """Make hosts and boot them, several at once; one of their names is replaced.

        :param names: what they are called; their host names too.
        :param image: one of ``tests/rig/hosts``, or what :meth:`commit` made.
        :param nested_docker: whether each has a volume for a Docker engine of its own.
        :param files: path and text of files that are there before the first boot.
        """
        raise_limits()
        key = self.folder / "id"
        if not key.exists():
            output(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key])
        options = json.loads(output([*RIG, "options"]))
        made = [SshHost(self, name) for name in names]
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda host: self._make(host, image, nested_docker, files or {}, options),
                          made))

    def _make(self, host, image, nested_docker, files, options):
        subprocess.run(["docker", "rm", "--force", "--volumes", host.container],
                       capture_output=True, timeout=120)
        output([
            "docker", "create", "--name", host.container, "--hostname", host.name,
            "--label", "firstlight.rig=" + LABELLED, "--stop-signal", "SIGRTMIN+3",
            # By name alone: a proxy may be named with its password.
            *("--env=" + name for name in options["env"]),
            *("--cap-add=" + one for one in CAPABILITIES),
            "--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined",
            "--cgroupns", "host", "--tmpfs", "/run", "--tmpfs", "/run/lock",
            "--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw",
            *(["--volume", "/var/lib/docker"] if nested_docker else []),
            *("--volume=" + one for one in options["mounts"]),
            image, "/lib/systemd/systemd"])
        with self._lock:
            self.hosts[host.name] = host
        # No two hosts are the same one, though their image is.
        own = self.folder / "hosts" / host.name
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir(parents=True)
        output(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", host.name, "-f", own / "key"])
        output([*RIG, "fill", host.container, "--files", json.dumps({
            "/etc/machine-id": uuid.uuid4().hex + "\n",
            HOST_KEY + ".pub": (own / "key.pub").read_text(),
            "/root/.ssh/authorized_keys": (self.folder / "id.pub").read_text(), **files})])
        # The mode of a file stays as it is.
        output(["docker", "cp", own / "key", host.container + ":" + HOST_KEY])
        host.boot()

    def host(self, name):
        return self.hosts[name]

    def write_down(self):
        """Write down the way to each that has an address."""
        with self._lock:
            there = [host for host in self.hosts.values() if host.address]
            known = self.folder / "known_hosts"
            for file, text in (
                    (known, "".join("%s %s" % (
                        host.container, (self.folder / "hosts" / host.name / "key.pub").read_text())
                        for host in there)),
                    (self.config, "".join(
                        "Host %s\n  HostName %s\n  HostKeyAlias %s\n"
                        % (host.container, host.address, host.container) for host in there)
                        + "Host *\n  User root\n  IdentityFile %s\n  IdentitiesOnly yes\n"
                        "  UserKnownHostsFile %s\n  StrictHostKeyChecking yes\n"
                        % (self.folder / "id", known))):
                partial = file.with_name(file.name + ".partial")
                partial.write_text(text)
                # Whoever reads it now reads the old or the new one.
                partial.replace(file)

    def inventory(self):
        """Of each host, the variables with which Ansible gets to it."""
        return {name: {"ansible_connection": "ssh", "ansible_host": host.container,
                       "ansible_python_interpreter": "/usr/bin/python3",
                       "ansible_ssh_common_args": "-F %s" % self.config,
                       "ansible_control_path_dir": str(self.control)}
                for name, host in self.hosts.items()}

    def hang_up(self):
        """End the connections that Ansible keeps for its next run."""
        for socket in self.control.glob("*"):
            subprocess.run(["ssh", "-F", str(self.config), "-S", str(socket), "-O", "exit", "any"],
                           capture_output=True, timeout=60)

    def commit(self, name, image):
        """Make an image of a host as it is now, to clone it. It lacks what a nested engine has."""
        host = self.hosts[name]
        # What it has written, and not yet to its disk.
        host.shell("sync")
        output(["docker", "commit", host.container, image])

    def remove(self, *names):
        """Remove these hosts, or all, with their volumes."""
        if not names:
            self.hang_up()
            shutil.rmtree(self.control, ignore_errors=True)
        for name in names or list(self.hosts):
            host = self.hosts.pop(name)
            done = subprocess.run(["docker", "rm", "--force", "--volumes", host.container],
                                  text=True, capture_output=True, timeout=120)
            if done.returncode:
                # The others go all the same.
                print("ssh_hosts: %s is left: %s" % (host.container, done.stderr.strip()),
                      file=sys.stderr)
