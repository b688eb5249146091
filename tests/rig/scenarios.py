# SPDX-License-Identifier: Apache-2.0
"""Run molecule's scenarios, some beside each other, and say how long each of their parts took.

``python tests/rig/scenarios.py`` runs all of them, or those that are named. Two that play on a host
of the same name never run at once. What those that fail said comes last.
Where no Docker engine can be had, none is run, which is an error only where ``CI`` is set.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
MOLECULE = ROOT / "molecule"
RIG = [sys.executable, str(ROOT / "tests" / "rig" / "hosts")]
# What the rig ends with where its hosts cannot be had.
NOT_HERE = 3
# As molecule says it, once what colours it is gone: the scenario, and the part of it.
BEGINS = re.compile(r"INFO +\[?(\w+) \S+ (\w+)[\]:]+ Executing$")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
INTERRUPTS = (signal.SIGTERM, signal.SIGINT)
# A scenario that takes longer hangs. They take minutes.
LIMIT_S = 1800
# The longest first, so that none of them is left alone at the end.
LONGEST = ("linker_cache", "site", "inference_endpoint", "endpoint_smoke", "model_snapshot",
           "prebuilt_wheel", "endpoint_profile")


@dataclasses.dataclass
class Scenario:
    """One of them, the hosts that it plays on, and what became of it."""

    name: str
    hosts: frozenset
    containers: tuple
    status: int | None = None
    said: list = dataclasses.field(default_factory=list)
    parts: list = dataclasses.field(default_factory=list)  # (name, seconds)
    process: subprocess.Popen | None = None

    def run(self):
        """Run it to its end; its output and the times of its parts are kept."""
        self.process = subprocess.Popen(
            ["molecule", "test", "--scenario-name", self.name], cwd=ROOT, text=True,
            errors="replace", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True)
        late = threading.Timer(LIMIT_S, self.end)
        late.daemon = True
        late.start()
        began, part = time.monotonic(), "start"
        for line in self.process.stdout:
            self.said.append(line)
            found = BEGINS.search(COLOURS.sub("", line).rstrip())
            if found:
                now = time.monotonic()
                self.parts.append((part, now - began))
                print("molecule: %s: %s took %.0f s" % (self.name, *self.parts[-1]), flush=True)
                began, part = now, found.group(2)
        self.status = self.process.wait()
        self.parts.append((part, time.monotonic() - began))
        if not late.is_alive():
            self.said.append("It was ended: it took longer than %d s.\n" % LIMIT_S)
        late.cancel()
        if self.status and self.containers:
            # Molecule removes them itself, unless what has to go before them fails. These alone, by
            # name: others have hosts of the rig too.
            subprocess.run([*RIG, "remove", *self.containers], stdout=subprocess.DEVNULL)

    def end(self):
        """End it with all that it started."""
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)

    @property
    def took(self):
        return sum(seconds for _, seconds in self.parts)


def scenarios(names=()):
    """Those that are named, or all: the longest first."""
    listed = json.loads(subprocess.run(
        ["ansible-inventory", "--inventory", str(MOLECULE / "inventory"), "--list"], cwd=ROOT,
        stdout=subprocess.PIPE, check=True).stdout)
    there = {file.parent.name: frozenset(members(listed, file.parent.name))
             for file in MOLECULE.glob("*/molecule.yml")}
    unknown = sorted(set(names) - set(there))
    if unknown:
        sys.exit("There is no scenario %s; there are %s." % (
            ", ".join(unknown), ", ".join(sorted(there))))
    wanted = sorted(names or there, key=lambda name: (
        LONGEST.index(name) if name in LONGEST else len(LONGEST), name))
    known = listed["_meta"]["hostvars"]
    return [Scenario(name, there[name], tuple(sorted(
        known[host]["ansible_host"] for host in there[name] if "ansible_host" in known[host])))
        for name in wanted]


def members(listed, group):
    """The hosts of a group of an inventory, those of its children too."""
    held = listed.get(group, {})
    found = set(held.get("hosts", ()))
    for child in held.get("children", ()):
        found |= members(listed, child)
    return found


def run(waiting, lanes):
    """Run scenarios in so many lanes; yields each when it has ended."""
    ended = threading.Condition()
    running, done = [], []

    def one(scenario):
        try:
            scenario.run()
        finally:
            with ended:
                running.remove(scenario)
                done.append(scenario)
                ended.notify()

    waiting = list(waiting)
    try:
        while waiting or running or done:
            with ended:
                for scenario in list(waiting):
                    taken = frozenset().union(*(other.hosts for other in running))
                    if len(running) < lanes and not scenario.hosts & taken:
                        waiting.remove(scenario)
                        running.append(scenario)
                        threading.Thread(target=one, args=(scenario,), daemon=True).start()
                while not done:
                    ended.wait()
                finished, done = done, []
            yield from finished
    finally:
        for scenario in running:
            scenario.end()
        with ended:
            # Each removes its hosts then.
            ended.wait_for(lambda: not running, timeout=60)


def table(ran, wall):
    """How long each took and what of it its parts did, the longest first."""
    lines = ["%-20s %6s  %s" % ("scenario", "s", "of that")]
    for scenario in sorted(ran, key=lambda one: -one.took):
        lines.append("%-20s %6.0f  %s%s" % (
            scenario.name, scenario.took,
            ", ".join("%s %.0f" % part for part in scenario.parts if part[1] >= 1),
            "" if scenario.status == 0 else " - FAILED"))
    lines.append("%-20s %6.0f" % ("all of them", wall))
    return "\n".join(lines)


def interrupted(*_):
    """End, once: whoever sends one signal often sends another."""
    for one in INTERRUPTS:
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt


def main():
    """Run them, and end with what failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="SCENARIO", help="none: all of them")
    parser.add_argument("--lanes", type=int, default=2, help="so many at once (%(default)s)")
    asked = parser.parse_args()
    for one in INTERRUPTS:
        signal.signal(one, interrupted)
    brought = subprocess.run([*RIG, "images"])
    if brought.returncode == NOT_HERE:
        without(scenarios(asked.names))
        return
    if brought.returncode:
        sys.exit(brought.returncode)
    began, ran = time.monotonic(), []
    for scenario in run(scenarios(asked.names), asked.lanes):
        ran.append(scenario)
        print("molecule: %s: %s after %.0f s" % (
            scenario.name, "passed" if scenario.status == 0 else "FAILED", scenario.took),
            flush=True)
    failed = [scenario for scenario in ran if scenario.status != 0]
    print("\n" + table(ran, time.monotonic() - began), flush=True)
    for scenario in failed:
        print("\nmolecule: %s failed. What it said:" % scenario.name)
        sys.stdout.writelines(scenario.said)
    if failed:
        sys.exit("molecule: failed: %s" % ", ".join(scenario.name for scenario in failed))


def without(skipped):
    """Say that none was run; the rig has said why."""
    print("\n".join((
        "=" * 100,
        "molecule was SKIPPED: the reason is above. These scenarios, which play every role on real "
        "hosts, did not run:",
        *("  " + scenario.name for scenario in skipped),
        "Run `make molecule` where a Docker engine answers, or as root on a Debian.",
        "=" * 100)), flush=True)
    if os.environ.get("CI", "false") not in ("", "0", "false"):
        sys.exit("molecule: skipped, which in CI is an error")


if __name__ == "__main__":
    main()
