# SPDX-License-Identifier: Apache-2.0
"""How fast models come, beside `hf download`, turn by turn from one hub on this machine.

Each round brings the same repository into a new cache by ``hf download`` (without Xet), by
`snapshots/fetch.py` alone, and by the work of the module `model_snapshot`, which also lays out the
cache, checks every hash and keeps what it has seen. Ours ends when all is on the disk; `hf` does
not wait for that, so it is also given with `sync` after it.

``python tests/bench/prefetch.py [--rounds 3] [--scale 1.0] [--folder DIR] [few many one]``
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/rig")]

import conftest  # noqa: E402, F401 - puts our module_utils on Ansible's path
import hub  # noqa: E402

from ansible.module_utils.firstlight import canary  # noqa: E402

GB, KB = 10**9, 10**3
SETS = {
    "few": ("3 files of 1 GB", [GB] * 3),
    "many": ("500 files of 20 kB", {
        **{"text-%03d.json" % n: 20 * KB for n in range(499)}, "model.safetensors": 20 * KB}),
    "one": ("1 file of 2 GB", [2 * GB]),
}
FETCH = """
import json, sys
sys.path.insert(0, sys.argv[1])
from firstlight.snapshots.fetch import Wanted, fetch
with open(sys.argv[2]) as rows:
    fetch([Wanted(**row) for row in json.load(rows)])
"""
MODULE = """
import json, sys
sys.path[:0] = [sys.argv[1] + "/tests", sys.argv[1] + "/tests/rig", sys.argv[1] + "/library"]
import conftest
import model_snapshot
from ansible.module_utils.testing import patch_module_args
with patch_module_args(json.loads(sys.argv[2])):
    model_snapshot.main()
"""


def run(argv, stdin=None, **environment):
    """Seconds that a process takes."""
    given = {**os.environ, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
             "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    started = time.monotonic()
    done = subprocess.run(argv, env=given, input=stdin, check=False, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    took = time.monotonic() - started
    assert done.returncode == 0, done.stdout[-3000:]
    return took


def by_hf(url, repo_id, cache):
    """The command of huggingface_hub."""
    return run([os.path.join(os.path.dirname(sys.executable), "hf"), "download", "-q", repo_id],
               HF_ENDPOINT=url, HF_HOME=str(cache))


def by_fetch(url, repo_id, cache, files, commit):
    """The engine alone, for the same files."""
    rows = [{"url": "%s/%s/resolve/%s/%s" % (url, repo_id, commit, file.path), "headers": {},
             "target": str(cache / "blobs" / file.etag), "size": file.size, "sha256": file.sha256,
             "git_sha1": None if file.sha256 else file.oid} for file in files]
    cache.mkdir()
    (cache / "rows").write_text(json.dumps(rows))
    return run([sys.executable, "-c", FETCH, str(ROOT / "module_utils"), str(cache / "rows")])


def by_module(url, repo_id, cache):
    """The module as Ansible runs it, which watches its work until that ends."""
    wanted = {"name": "bench", "repo_id": repo_id, "formats": ["safetensors"], "allow": ["*"]}
    return run([sys.executable, "-c", MODULE, str(ROOT), json.dumps(
        {"root": str(cache), "snapshots": [wanted], "hub": {"url": url}, "wait_s": 900,
         "_ansible_remote_tmp": str(cache / "tmp")})])


def check(cache, files):
    """Every file is there, with its size."""
    sizes = {path.name: path.stat().st_size for path in cache.rglob("blobs/*")
             if path.is_file() and len(path.name) in (40, 64)}
    assert sizes == {file.etag: file.size for file in files}, sizes


def measure(title, sizes, folder, rounds):
    """Print a set's lines."""
    repos, repo_id = folder / "repos", "firstlight/big"
    hub.big_repo(repos, sizes)
    for name in canary.FILES:  # the module wants a model
        if name.endswith(".json"):
            (repos / repo_id / os.path.basename(name)).write_bytes(canary.content(name))
    known = hub.Hub(repos).repos.listing(repo_id, "main")
    files = list(known.files.values())
    total = sum(file.size for file in files)
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/rig/hub"), "--repos", str(repos)],
        stdout=subprocess.PIPE, text=True)
    took = {}
    try:
        url = server.stdout.readline().strip()
        ways = {"hf download": lambda cache: by_hf(url, repo_id, cache),
                "fetch.py": lambda cache: by_fetch(url, repo_id, cache, files, known.commit),
                "model_snapshot": lambda cache: by_module(url, repo_id, cache)}
        for number in range(rounds):
            # The first of a round is another one each time.
            names = list(ways)[number % len(ways):] + list(ways)[:number % len(ways)]
            for name in names:
                cache = folder / "cache"
                os.sync()
                try:
                    seconds = ways[name](cache)
                    check(cache, files)
                    took.setdefault(name, []).append(seconds)
                    started = time.monotonic()
                    os.sync()
                    took.setdefault(name + ", sync", []).append(
                        seconds + time.monotonic() - started)
                finally:
                    shutil.rmtree(cache, ignore_errors=True)
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()
        shutil.rmtree(repos)
    print("%s, median of %d" % (title, rounds))
    for name, seconds in took.items():
        plain = "hf download, sync" if name.endswith(", sync") else "hf download"
        ratio = statistics.median(took[plain]) / statistics.median(seconds)
        print("  %-24s %8.2f s  %8.1f MB/s  x %.2f   (%s)" % (
            name, statistics.median(seconds), total / statistics.median(seconds) / 1e6, ratio,
            ", ".join("%.2f" % one for one in seconds)), flush=True)


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", default=list(SETS), metavar="SET")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the sizes")
    parser.add_argument("--folder", help="on the disk that is meant")
    options = parser.parse_args()
    for name in options.sets:
        title, sizes = SETS[name]
        sizes = ({path: int(size * options.scale) for path, size in sizes.items()}
                 if isinstance(sizes, dict) else [int(size * options.scale) for size in sizes])
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            measure(title, sizes, pathlib.Path(folder), options.rounds)


if __name__ == "__main__":
    main()
