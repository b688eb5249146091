# SPDX-License-Identifier: Apache-2.0
"""What a run of site.yml costs that finds every host as it should be, by the number of hosts.

One container with systemd and sshd is provisioned, its image is cloned, and site.yml is played on
the clones over ssh as ansible.cfg has it. Counted are remote calls and CPU seconds, the
controller's with its ssh clients and those of the hosts without what their engines burn when
nobody asks; the wall time beside them is that of one machine that plays them all. Every run has to
end without a change or a failure. The same checks written the usual way, `fleet/usual.yml`, take
their turn on the same hosts.

``python tests/bench/fleet.py [--sizes 5 20 50] [--runs 3] [--checkout DIR] [--options SIZE]``
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY / "tests" / "rig")]

import conftest  # noqa: E402, F401 - puts our module_utils on Ansible's path
import remote_calls  # noqa: E402
import ssh_hosts  # noqa: E402

from ansible.module_utils.firstlight import canary  # noqa: E402

# Two benches at once have hosts of their own.
PREFIX = "fl-bench-%d-" % os.getpid()
IMAGE = "firstlight-host:debian12"
USUAL = REPOSITORY / "tests" / "bench" / "fleet" / "usual.yml"
RESULTS = REPOSITORY / ".cache" / "bench-fleet.json"
PORT = 8000
# One thread: more of them wait for each other by spinning, and dozens of hosts share these cores.
ENDPOINT = {"name": "demo", "model": "canary", "port": PORT, "gpus": 0,
            "extra_args": ["--threads", "1", "--threads-batch", "1"]}
ROOT = "/var/lib/firstlight"
CANARY = ROOT + "/models/canary/canary.gguf"
CALLS_BAR, CPU_BAR, GROWTH_BAR = 12, 3.0, 0.10
IDLE_S = 15
RECAP = re.compile(r"^(\S+) +: ok=\d+ +changed=(\d+) +unreachable=(\d+) +failed=(\d+)", re.M)
COLUMNS = "%-26s %5s %7s %11s %9s %9s %7s"
# As ansible.cfg has it: a host that is frozen is given up.
ALIVE = " -o ServerAliveInterval=15 -o ServerAliveCountMax=4"
# What is set beside ansible.cfg, for --options.
OPTIONS = {
    "forks 5": {"ANSIBLE_FORKS": "5"},
    "forks 20": {"ANSIBLE_FORKS": "20"},
    "forks 50": {"ANSIBLE_FORKS": "50"},
    "strategy free": {"ANSIBLE_STRATEGY": "free"},
    "strategy host_pinned": {"ANSIBLE_STRATEGY": "ansible.builtin.host_pinned"},
    "ControlPersist 30 min": {"ANSIBLE_SSH_ARGS":
                              "-C -o ControlMaster=auto -o ControlPersist=30m" + ALIVE},
    "without compression": {"ANSIBLE_SSH_ARGS":
                            "-o ControlMaster=auto -o ControlPersist=60s" + ALIVE},
}


class Bench:
    """The clones, and what a run on them costs."""

    def __init__(self, checkout, image, folder):
        self.checkout, self.image, self.folder = checkout, image, folder
        self.kept = bool(image)
        self.image = image or PREFIX + "provisioned"
        self.fleet = ssh_hosts.SshHosts(folder, PREFIX)
        self.runs = 0

    def provision(self):
        """Have the image of a host whose endpoint is proven."""
        if self.kept and subprocess.run(["docker", "image", "inspect", self.image],
                                        capture_output=True, check=False).returncode == 0:
            return
        say("provisioning the host that is cloned")
        self.fleet.make(["seed"], IMAGE)
        self.play(self.checkout / "site.yml", ["seed"], unchanged=False)
        # It has its own needs, which are met here and not by each clone.
        self.play(USUAL, ["seed"], variables=self.found("seed"), unchanged=False)
        self.fleet.commit("seed", self.image)
        self.fleet.remove("seed")

    def grow(self, size):
        """Have so many clones, each with an engine that answers."""
        names = ["host%02d" % number for number in range(1, size + 1)]
        new = [name for name in names if name not in self.fleet.hosts]
        say("starting %d clones" % len(new))
        self.fleet.make(new, self.image)
        for name in new:
            self.fleet.host(name).shell(
                "curl", "--silent", "--fail", "--retry", "60", "--retry-delay", "1",
                "--retry-connrefused", "--output", "/dev/null",
                "http://127.0.0.1:%d/health" % PORT)
        return names

    def found(self, name):
        """What `fleet/usual.yml` is to find on each host, as variables; taken from this one."""
        host, folder = self.fleet.host(name), self.folder / "usual"
        unit = host.shell("cat", "/etc/systemd/system/firstlight-demo.service")
        venv = re.search(r'^ExecStart="(.*?)/bin/python"', unit, re.M).group(1)
        folder.mkdir(exist_ok=True)
        for file, path in {"unit.j2": "/etc/systemd/system/firstlight-demo.service",
                           "toolbelt.txt": ROOT + "/venvs/toolbelt/requirements.txt",
                           "engine.txt": venv + "/requirements.txt",
                           "llama_server.py": venv + "/bin/llama_server.py"}.items():
            ssh_hosts.output(["docker", "cp", host.container + ":" + path, folder / file])
        return {"usual_files": str(folder), "usual_venv": venv, "usual_oracle": canary.oracle(),
                "usual_sha256": host.shell("sha256sum", CANARY).split()[0]}

    def idle(self, names):
        """CPU seconds that all of them burn in a second in which nobody asks."""
        begun, before = time.monotonic(), self.burnt(names)
        time.sleep(IDLE_S)
        return (self.burnt(names) - before) / (time.monotonic() - begun)

    def burnt(self, names):
        return sum(self.fleet.host(name).cpu_s() for name in names)

    def play(self, playbook, names, environment=None, variables=None, unchanged=True, idle=0.0):
        """Play it on these hosts; gives what it cost each of them.

        :param environment: and ``variables`` of the inventory, beside those of every run.
        :param idle: what :meth:`idle` gave.
        """
        self.runs += 1
        inventory = self.folder / "inventory.yml"
        known = self.fleet.inventory()
        inventory.write_text(json.dumps({"all": {
            "hosts": {name: known[name] for name in names},
            "vars": {**(variables or {}), "host_report_directory": str(self.folder / "reports"),
                     "inference_endpoints": [ENDPOINT]}}}))
        log = self.folder / ("run-%d.log" % self.runs)
        counter = remote_calls.RemoteCalls(self.folder / ("calls-%d.jsonl" % self.runs))
        config = self.checkout / "ansible.cfg"
        process = {key: value for key, value in os.environ.items()
                   if not key.startswith("ANSIBLE_") and key != "PYTHONDONTWRITEBYTECODE"}
        process.update(counter.environment(config), ANSIBLE_CONFIG=str(config),
                       ANSIBLE_HOME=str(self.folder / "ansible"), LC_ALL="C.UTF-8",
                       **(environment or {}))
        begun, remote, own = time.monotonic(), self.burnt(names), self.own()
        with log.open("w") as out:
            done = subprocess.run(
                [str(pathlib.Path(sys.executable).with_name("ansible-playbook")), str(playbook),
                 "--inventory", str(inventory)], cwd=self.checkout, stdin=subprocess.DEVNULL,
                stdout=out, stderr=subprocess.STDOUT, env=process, check=False)
        wall = time.monotonic() - begun
        controller, target = self.own() - own, self.burnt(names) - remote - idle * wall
        text = log.read_text(encoding="utf-8", errors="replace")
        recap = {host: [int(one) for one in counts] for host, *counts in RECAP.findall(text)}
        other = {host: counts for host, counts in recap.items()
                 if any(counts[1:]) or unchanged and counts[0]}
        if done.returncode or set(recap) != set(names) or other:
            # The folder goes; what went wrong stays.
            kept = pathlib.Path(shutil.copy(log, "/tmp/fl-bench-failed.log"))
            sys.exit("%s on %d hosts was to end without a %s; it did not on %s (changed, "
                     "unreachable, failed). The end of %s:\n%s" % (
                         playbook, len(names), "change or a failure" if unchanged else "failure",
                         other or sorted(set(names) - set(recap)) or "any", kept, text[-3000:]))
        count = len(names)
        return {"calls": len(counter.all()) / count, "controller": controller / count,
                "target": target / count, "cpu": (controller + target) / count, "wall": wall}

    def own(self):
        """CPU seconds of what ran here for the hosts: the runs, and the connections they keep."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = used.ru_utime + used.ru_stime
        for process in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                if str(self.fleet.control).encode() in (process / "cmdline").read_bytes():
                    fields = (process / "stat").read_text().rpartition(")")[2].split()
                    seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            except OSError:
                pass
        return seconds

    def measure(self, asked, runs):
        """The medians of some runs of each thing that is asked, by turns: machines drift.

        Each run comes after one that opens the connections, which close while others have their
        turn.

        :param asked: a label, a playbook, names of hosts, and what else :meth:`play` takes.
        """
        idle = {len(names): self.idle(names) for _, _, names, _ in asked}
        rows = [{"what": label, "hosts": len(names), "all": [],
                 "idle_per_host": idle[len(names)] / len(names)} for label, _, names, _ in asked]
        for turn in range(1, runs + 1):
            for row, (_, playbook, names, more) in zip(rows, asked):
                # One that ends in the middle would take its CPU time along.
                self.fleet.hang_up()
                self.play(playbook, names, unchanged=False, **more)
                row["all"].append(self.play(playbook, names, idle=idle[len(names)], **more))
                say(line({**row, **row["all"][-1], "what": "%s, turn %d" % (row["what"], turn)}))
                # Kept as it goes, should a later one fail.
                row.update((key, statistics.median(one[key] for one in row["all"]))
                           for key in row["all"][0])
                kept = {"commit": self.commit(), "cores": os.cpu_count(), "rows": rows}
                RESULTS.write_text(json.dumps(kept, indent=2) + "\n")
        return rows

    def commit(self):
        """What is measured."""
        return subprocess.run(["git", "describe", "--always", "--dirty"], cwd=self.checkout,
                              text=True, capture_output=True, check=False).stdout.strip()

    def remove(self):
        say("removing the clones")
        self.fleet.remove()
        if not self.kept:
            subprocess.run(["docker", "rmi", self.image], capture_output=True, check=False)


def say(text):
    print(text, flush=True)


def line(row):
    return COLUMNS % (row["what"], row["hosts"], "%.1f" % row["calls"], "%.2f" % row["controller"],
                      "%.2f" % row["target"], "%.2f" % row["cpu"], "%.0f" % row["wall"])


def table(rows):
    """The rows, their growth, and which bar holds."""
    lines = ["", COLUMNS % ("", "", "calls", "controller", "target", "CPU", "wall"),
             COLUMNS % ("per host (wall: of all)", "hosts", "", "s", "s", "s", "s")]
    lines += [line(row) for row in rows]
    for what in dict.fromkeys(row["what"] for row in rows):
        own = sorted((row for row in rows if row["what"] == what), key=lambda row: row["hosts"])
        if len(own) > 1:
            lines.append("%s: a host costs %+.0f %% at %d hosts, against %d" % (
                what, 100 * (own[-1]["cpu"] / own[0]["cpu"] - 1), own[-1]["hosts"],
                own[0]["hosts"]))
    own = sorted((row for row in rows if row["what"] == "site.yml"), key=lambda row: row["hosts"])
    if own:
        calls, cpu = max(row["calls"] for row in own), max(row["cpu"] for row in own)
        lines += ["", bar("remote calls of a host", calls, CALLS_BAR),
                  bar("CPU seconds of a host", cpu, CPU_BAR)]
    if len(own) > 1:
        lines.append(bar("growth of them", own[-1]["cpu"] / own[0]["cpu"] - 1, GROWTH_BAR))
    return "\n".join(lines)


def bar(what, found, wanted):
    return "%-24s %6.2f of at most %5.2f: %s" % (
        what, found, wanted, "holds" if found <= wanted else "DOES NOT HOLD")


def main():
    """Measure what the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[5, 20, 50], metavar="HOSTS")
    parser.add_argument("--runs", type=int, default=3, help="of which the median is taken")
    parser.add_argument("--usual-sizes", type=int, nargs="*", metavar="HOSTS",
                        help="sizes at which the usual way is measured too (default: the smallest)")
    parser.add_argument("--checkout", type=pathlib.Path, default=REPOSITORY,
                        help="whose site.yml it is (default: this one's)")
    parser.add_argument("--options", type=int, nargs="*", default=[], metavar="HOSTS",
                        help="sizes at which forks, strategies and ssh settings are tried")
    parser.add_argument("--mitogen", type=pathlib.Path, metavar="DIR",
                        help="where `pip install --target DIR mitogen` put it, for --options")
    parser.add_argument("--image", help="of a provisioned host; made where there is none, and kept")
    asked = parser.parse_args()
    usual = [min(asked.sizes)] if asked.usual_sizes is None else asked.usual_sizes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    folder = pathlib.Path(tempfile.mkdtemp(prefix=PREFIX, dir="/tmp"))
    checkout = asked.checkout.resolve()
    bench = Bench(checkout, asked.image, folder)
    options = dict(OPTIONS)
    if asked.mitogen:
        options["mitogen_linear"] = {
            "ANSIBLE_STRATEGY": "mitogen_linear", "ANSIBLE_STRATEGY_PLUGINS":
            str(asked.mitogen / "ansible_mitogen" / "plugins" / "strategy")}
    RESULTS.parent.mkdir(exist_ok=True)
    try:
        bench.provision()
        sizes = sorted({*asked.sizes, *usual, *asked.options})
        names, site = bench.grow(sizes[-1]), checkout / "site.yml"
        rows = bench.measure([
            *(("site.yml", site, names[:size], {}) for size in sizes if size in asked.sizes),
            *(("the usual way", USUAL, names[:size], {"variables": bench.found(names[0])})
              for size in sizes if size in usual),
            *((label, site, names[:size], {"environment": environment})
              for size in sizes if size in asked.options
              for label, environment in options.items()),
        ], asked.runs)
    finally:
        bench.remove()
        shutil.rmtree(folder, ignore_errors=True)
    say(table(rows))
    say("%s has every run." % RESULTS)


if __name__ == "__main__":
    main()
