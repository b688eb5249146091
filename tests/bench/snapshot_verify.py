# SPDX-License-Identifier: Apache-2.0
"""Time the verification of snapshots: one of 140 GB that nobody touched, and a full look at 2 GB.

The 140 GB are sparse files in 40 shards beside 1000 small ones; their hashes are recorded and
never read. The 2 GB are real data in 4 files. Give a folder on the disk to measure, and the number
of rounds, as arguments.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "rig")]

import conftest  # noqa: E402, F401 - puts our module_utils on Ansible's path

from ansible.module_utils.firstlight.snapshots import (  # noqa: E402
    entries,
    layout,
    selection,
    verify,
)

REPO, COMMIT = "example/large", "0" * 40
SHARDS, SHARD, SMALL = 40, 3_500_000_000, 1000
FULL, FULL_FILES = 2 * 10**9, 4
FRESH = """
import sys, time
sys.path[:0] = %r
import conftest
start = time.perf_counter()
from ansible.module_utils.firstlight.snapshots import layout, verify
manifest = layout.read_tree(%r, %r, %r)
bad = verify.verify(%r, %r, manifest, manifest.entries, False)
print(time.perf_counter() - start, len(bad))
"""


def lay(cache, made):
    """Sparse blobs of the right sizes, with their links and list."""
    layout.prepare(cache, made.repo_id)
    layout.write_tree(cache, made)
    for one in made.entries:
        path = layout.blob(cache, made.repo_id, one)
        with open(path, "ab") as file:
            file.truncate(one.size)
        layout.link(cache, made.repo_id, made.commit, one)


def seconds(function):
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def show(what, taken, unit="s", scale=1.0):
    values = sorted(one * scale for one in taken)
    print("%-58s %8.3f %8.3f %8.3f %s" % (
        what, values[0], statistics.median(values), values[-1], unit))


def sparse(folder, rounds):
    """A snapshot of 140 GB after its record exists."""
    cache, record = str(folder / "hub"), str(folder / "verified" / (COMMIT + ".json"))
    made = entries.checked(REPO, COMMIT, [
        entries.Entry("model-%05d-of-%05d.safetensors" % (one, SHARDS), SHARD,
                      hashlib.sha256(b"%d" % one).hexdigest(), None)
        for one in range(1, SHARDS + 1)] + [
        entries.Entry("templates/%04d.jinja" % one, 2000 + one, None,
                      hashlib.sha1(b"%d" % one).hexdigest()) for one in range(SMALL)])
    lay(cache, made)
    hashed = [(one.path, one.blob) for one in made.entries]
    took, kept = seconds(lambda: verify.remember(record, cache, made, hashed))
    assert len(kept) == len(made.entries)
    show("remember 1040 files that were hashed as they came", [took])
    fast, listed, chosen, fresh = [], [], [], []
    for _ in range(rounds):
        took, bad = seconds(lambda: verify.verify(cache, record, made, made.entries, False))
        assert bad == []
        fast.append(took)
        listed.append(seconds(lambda: layout.read_tree(cache, REPO, COMMIT))[0])
        chosen.append(seconds(lambda: selection.select(made, ("safetensors",), None, (), ()))[0])
        said = subprocess.run(
            [sys.executable, "-c", FRESH % ([str(TESTS), str(TESTS / "rig")], cache, REPO, COMMIT,
                                            cache, record)],
            check=True, stdout=subprocess.PIPE).stdout.split()
        assert said[1] == b"0"
        fresh.append(float(said[0]))
    show("fast verify of 140 GB, 1040 files", fast)
    show("  read its list of files", listed)
    show("  choose the files", chosen)
    show("  import, list and verify in a fresh process", fresh)


def full(folder, rounds):
    """The rate of a full look at real data, which is in the page cache where there is room."""
    cache, record = str(folder / "hub"), str(folder / "verified" / ("1" * 40 + ".json"))
    block = random.Random(1).randbytes(2**24)
    repo, size, found = "example/full", FULL // FULL_FILES, []
    layout.prepare(cache, repo)
    for one in range(FULL_FILES):
        digest, left = hashlib.sha256(b""), size
        path = os.path.join(layout.folder(cache, repo), "blobs", "part")
        with open(path, "wb") as file:
            head = b"%d" % one
            digest.update(head)
            file.write(head)
            left -= len(head)
            while left:
                piece = block[:left]
                digest.update(piece)
                left -= file.write(piece)
        entry = entries.Entry("model-%d.safetensors" % one, size, digest.hexdigest(), None)
        os.rename(path, layout.blob(cache, repo, entry))
        layout.link(cache, repo, "1" * 40, entry)
        found.append(entry)
    made = entries.checked(repo, "1" * 40, found)
    one_thread = seconds(lambda: [hashlib.sha256(block) for _ in range(20)])[0]
    print("sha256 of one thread, in memory: %.2f GB/s; %d CPUs" % (
        20 * len(block) / one_thread / 1e9, os.cpu_count() or 1))
    taken = []
    for _ in range(rounds):
        took, bad = seconds(lambda: verify.verify(cache, record, made, made.entries, True))
        assert bad == []
        taken.append(took)
    show("full verify of 2 GB in 4 files", taken)
    show("  its rate", [FULL / one for one in taken], "GB/s", 1e-9)


def main():
    """Lay both snapshots out, measure, print, remove."""
    where = sys.argv[1] if len(sys.argv) > 1 else None
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 7
    folder = pathlib.Path(tempfile.mkdtemp(prefix="fl-bench-", dir=where))
    try:
        print("%-58s %8s %8s %8s" % ("", "min", "median", "max"))
        sparse(folder, rounds)
        full(folder, min(rounds, 3))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
