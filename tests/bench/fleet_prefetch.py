# SPDX-License-Identifier: Apache-2.0
"""What goes over which line when a model is brought to 1, 2, 4 and 8 hosts.

Every host is a folder of this machine with a cache and a server of its own; the modules are the
real ones, each in a process, and the plan is made anew for each round, as the role does it.
Upstream bytes are those of the hub's log, what a host served is what its server counted. The wall
time is that of one machine that plays them all: its disk and its cores are shared, so it says
nothing of a real fleet.

``python tests/bench/fleet_prefetch.py [--megabytes 200] [--hosts 1 2 4 8] [--folder DIR]``
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/rig")]

import conftest  # noqa: E402, F401 - puts our module_utils on Ansible's path
import hub  # noqa: E402

from ansible.module_utils.firstlight import canary  # noqa: E402
from ansible.module_utils.firstlight.planning import prefetch  # noqa: E402

REPO = "firstlight/big"
SECRET = "for-this-machine-alone"
MODULE = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1] + "/library")
import ansible.module_utils
ansible.module_utils.__path__.append(sys.argv[1] + "/module_utils")
from ansible.module_utils.testing import patch_module_args
with patch_module_args(json.loads(sys.argv[3])):
    importlib.import_module(sys.argv[2]).main()
"""


def module(name, **params):
    """What a module returns, run in a process of its own."""
    env = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    done = subprocess.run(
        [sys.executable, "-c", MODULE, str(ROOT), name, json.dumps(params)], env=env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    found = json.loads(done.stdout or "{}")
    if not found or found.get("failed"):
        sys.exit("%s: %s%s" % (name, found.get("msg", ""), done.stderr))
    return found


class Host:
    """A host: its root, and what it knows of what it wants."""

    def __init__(self, folder, url):
        self.root = str(folder)
        self.request = {"name": "chat", "repo_id": REPO, "revision": "main",
                        "formats": ["safetensors"]}
        self.hub = {"url": url}
        self.snapshots = {}
        self.served = 0

    def told(self):
        """As the planner has it."""
        return {"can": True, "cache": self.root + "/models/hub", "requests": [self.request],
                "snapshots": self.snapshots, "findings": [], "held": []}

    def outline(self, offline):
        return module("model_snapshot", root=self.root, state="outlined", offline=offline,
                      snapshots=[self.request], hub=self.hub, _ansible_remote_tmp=self.root)

    def bring(self, peers=()):
        found = module("model_snapshot", root=self.root, snapshots=[self.request], hub=self.hub,
                       peers=list(peers), wait_s=3600, _ansible_remote_tmp=self.root)
        self.snapshots = found["snapshots"]

    def serve(self, manifests):
        return module("snapshot_server", root=self.root, state="started", snapshots=manifests,
                      secret=SECRET, address="127.0.0.1", port=0,
                      _ansible_remote_tmp=self.root)["url"]

    def stop(self):
        self.served += module("snapshot_server", root=self.root, state="stopped",
                              _ansible_remote_tmp=self.root)["served_bytes"]


def fleet(folder, repos, count):
    """Bring the model to so many hosts: seconds, rounds, upstream bytes, bytes served by host."""
    with hub.Hub(repos) as upstream, concurrent.futures.ThreadPoolExecutor(count) as pool:
        hosts = {"host%d" % number: Host(folder / ("host%d" % number), upstream.url)
                 for number in range(1, count + 1)}
        for one in hosts.values():
            os.makedirs(one.root)

        def told():
            return {name: one.told() for name, one in hosts.items()}

        def each(work, names):
            list(pool.map(lambda name: work(hosts[name], name), names))

        started, rounds = time.monotonic(), 0
        each(lambda one, name: one.outline(offline=True), hosts)
        asked = prefetch.prefetch_seeds(told())
        answers = {}
        for one in asked["ask"]:
            answers.setdefault(one["host"], []).append(hosts[one["host"]].outline(offline=False))
        before = told()
        for name, one in hosts.items():
            one.snapshots = prefetch.prefetch_outline(before, asked, answers, name)["snapshots"]
        while True:
            step = prefetch.prefetch_round(told())
            if not step["fetch"] and not step["copies"]:
                break
            rounds += bool(step["copies"])
            each(lambda one, name: one.bring(), step["fetch"])
            servers = {name: hosts[name].serve(given) for name, given in step["serve"].items()}
            each(lambda one, name, step=step, servers=servers: one.bring(prefetch.prefetch_peers(
                step["copies"][name], servers, SECRET)), step["copies"])
            each(lambda one, name: one.stop(), step["serve"])
        seconds = time.monotonic() - started
        kept = {one.snapshots["chat"]["fingerprint"] for one in hosts.values()
                if one.snapshots["chat"]["present"] and one.snapshots["chat"]["verified"]}
        assert len(kept) == 1 and len(hosts) == count
        return (seconds, rounds, sum(one.bytes for one in upstream.done()),
                {name: one.served for name, one in hosts.items()})


def main():
    """Print a line for each size of a fleet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--folder", help="where the caches lie for as long as it takes")
    given = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="fl-fleet-", dir=given.folder))
    try:
        repos = folder / "repos"
        hub.big_repo(repos, [given.megabytes * 10**6 // 4] * 4)
        for name in canary.FILES:  # the module wants a model
            if name.endswith(".json"):
                (repos / REPO / os.path.basename(name)).write_bytes(canary.content(name))
        size = sum(one.size for one in hub.Hub(repos).repos.listing(REPO, "main").files.values())
        print("A model of %.1f MB. Upstream and served in MB; the wall time is of one machine." % (
            size / 1e6))
        print("%5s %9s %13s %7s %8s  %s" % (
            "hosts", "upstream", "of the model", "rounds", "seconds", "served by each host"))
        for count in given.hosts:
            seconds, rounds, upstream, served = fleet(folder / "fleet", repos, count)
            shutil.rmtree(folder / "fleet")
            print("%5d %9.1f %12.2fx %7d %8.1f  %s" % (
                count, upstream / 1e6, upstream / size, rounds, seconds,
                " ".join("%.0f" % (one / 1e6) for one in served.values())), flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
