# SPDX-License-Identifier: Apache-2.0
"""Time what a newcomer waits for: the first `make demo` with an empty cache, and the second.

Prints whole-process wall times. The second run is set against an ansible-playbook that does
nothing, taken turn by turn in the same minutes, so that what is left is ours.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "e2e"), str(TESTS / "rig")]

import checkout  # noqa: E402
import conftest  # noqa: E402, F401 - puts our module_utils on Ansible's path
from test_demo import Demo  # noqa: E402

ROUNDS = 5
EMPTY_PLAY = "- hosts: all\n  gather_facts: false\n"


def seconds(function, *arguments, **options):
    """Wall time of one call, in seconds, after checking that it went well."""
    started = time.monotonic()
    status, output = function(*arguments, **options)
    took = time.monotonic() - started
    if status != 0:
        sys.exit("a run failed:\n" + output)
    return took, output


def main():
    """Run the demo in a clone and print the table."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="fl-bench-", dir="/tmp"))
    demo = Demo(folder)
    checkout.copy(demo.clone)
    os.environ["PIP_CACHE_DIR"] = str(folder / "pip")
    try:
        first, output = seconds(demo.make, "demo")
        phases = [line for line in output.splitlines() if line.startswith("time ")]
        (demo.clone / "empty.yml").write_text(EMPTY_PLAY)

        def bare():
            done = subprocess.run(
                [".venv/bin/ansible-playbook", "empty.yml"], cwd=demo.clone, check=False,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                env=dict(os.environ, ANSIBLE_CONFIG=str(demo.clone / "ansible.cfg")))
            return done.returncode, done.stdout

        second, empty = [], []
        for _ in range(ROUNDS):
            empty.append(seconds(bare)[0])
            took, output = seconds(demo.make, "demo")
            assert "changed=0" in output, output
            second.append(took)
        phases += [line for line in output.splitlines() if line.startswith("time ")]
        demo.make("down")
    finally:
        shutil.rmtree(folder)

    rows = [("first run, empty cache", [first]), ("second run, changed=0", second),
            ("  of it Ansible's own (an empty play)", empty),
            ("  of it ours (difference, pair by pair)",
             [ours - bare for ours, bare in zip(second, empty)])]
    print("%-42s %8s %8s %8s" % ("seconds", "min", "median", "max"))
    for label, taken in rows:
        print("%-42s %8.2f %8.2f %8.2f" % (
            label, min(taken), statistics.median(taken), max(taken)))
    print("phases of the first and of the last run:", *phases, sep="\n  ")


if __name__ == "__main__":
    main()
