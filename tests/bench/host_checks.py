# SPDX-License-Identifier: Apache-2.0
"""Time what `host_checks` costs on a host with ten thousand libraries: `make bench`.

The host is a root of its own with real libraries, whose cache the real ldconfig makes. The module
runs as over a pipelined connection: a fresh Python reads all of it from its input. Turn by turn
with it are timed a module that does nothing, which is what Ansible takes, and the two calls of
ldconfig that are made: with ldconfig's own memory of libraries (`aux-cache`) and without, as in
most containers.
"""

from __future__ import annotations

import json
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

TESTS = pathlib.Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
# Ansible reads it when it is imported.
os.environ.setdefault("ANSIBLE_CONFIG", str(ROOT / "ansible.cfg"))

sys.path.insert(0, str(ROOT / "tests" / "rig"))

import yaml  # noqa: E402
from ansible.plugins.loader import init_plugin_loader  # noqa: E402
from sent_modules import NOTHING, as_sent  # noqa: E402

LIBRARIES, FOLDERS, ROUNDS = 10000, 20, 7
WANTED_S = 0.5
DRIVER = "libcuda.so.550.54.14"
AUX_CACHE = "var/cache/ldconfig/aux-cache"
TOOL = '#!/bin/sh\nexec /sbin/ldconfig "$@"\n'
# The two questions of module_utils/firstlight/host/ldconfig.py.
LISTING, REHEARSAL = ["-p"], ["-N", "-X", "-v"]


def library(folder, soname):
    """The bytes of a small shared library."""
    built = folder / "built.so"
    subprocess.run(
        ["gcc", "-shared", "-nostdlib", "-s", "-x", "c", "-o", str(built), "/dev/null",
         "-Wl,-z,noseparate-code", "-Wl,-soname," + soname], check=True)
    return built.read_bytes()


def make_root(root, folder):
    """A host with a driver, whose cache lists every library of its configured folders."""
    for name in ("etc/ld.so.conf.d", "lib", "usr/lib", "sbin", "var/cache/ldconfig"):
        (root / name).mkdir(parents=True)
    (root / "etc/ld.so.conf").write_text("include /etc/ld.so.conf.d/*.conf\n")
    (root / "sbin/ldconfig").write_text(TOOL)
    (root / "sbin/ldconfig").chmod(0o755)
    # One is built, and the others are its bytes with another name in them, of the same length.
    name = "libbench%06d.so.1"
    content = library(folder, name % 0)
    for number in range(FOLDERS):
        here = root / ("opt/libraries/%02d" % number)
        here.mkdir(parents=True)
        (root / ("etc/ld.so.conf.d/%02d.conf" % number)).write_text(
            "/opt/libraries/%02d\n" % number)
        for index in range(number, LIBRARIES, FOLDERS):
            mine = name % index
            (here / (mine + ".0")).write_bytes(
                content.replace((name % 0).encode(), mine.encode()))
    (here / DRIVER).write_bytes(library(folder, "libcuda.so.1"))
    subprocess.run(["/sbin/ldconfig", "-r", str(root)], check=True)


def host_checks_of(root, folder):
    """The module as Ansible sends it to look at a root."""
    text = (ROOT / "library/host_checks.py").read_text()
    place = 'SYSTEM_ROOT = "/"\n'
    assert text.count(place) == 1
    catalog = {option: yaml.safe_load((ROOT / "catalog" / (rows + ".yml")).read_text())
               for option, rows in (("checks", "library_checks"), ("places", "library_places"),
                                    ("tritons", "triton_releases"))}
    return as_sent(text.replace(place, "SYSTEM_ROOT = %r\n" % str(root)), folder,
                   root=str(folder / "state"), **catalog)


def seconds(argv, given=b""):
    """Wall time of one process, processor time of it and its children, and what it printed."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(argv, input=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env=dict(os.environ, LC_ALL="C"), check=False)
    took, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        sys.exit("%s failed:\n%s%s" % (argv, done.stdout.decode(), done.stderr.decode()))
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return took, busy, done.stdout


def row(label, taken):
    """A line of the table, in milliseconds."""
    print("  %-50s %8.0f %8.0f %8.0f" % (
        label, *(1000 * one for one in (min(taken), statistics.median(taken), max(taken)))))


def measure(title, root, folder, before=lambda: None):
    """Print a host's part of the table; returns the last answer of the module.

    :param before: done before each process that looks at the libraries.
    """
    nothing, checks = as_sent(NOTHING, folder), host_checks_of(root, folder)
    tool = [str(root / "sbin/ldconfig"), *([] if str(root) == "/" else ["-r", str(root)])]
    seconds([sys.executable], checks)  # the first brings the files into memory
    rounds = []
    for _ in range(ROUNDS):
        bare, _, _ = seconds([sys.executable], nothing)
        before()
        whole, busy, printed = seconds([sys.executable], checks)
        answer = json.loads(printed)
        before()
        rounds.append((whole, bare, answer["elapsed_s"], busy,
                       *(seconds([*tool, *options])[0] for options in (LISTING, REHEARSAL))))
    whole, bare, inside, busy, listing, rehearsal = zip(*rounds)
    ours = [a - b for a, b in zip(whole, bare)]
    print("%s: %d libraries listed, findings: %s" % (
        title, answer["seen"]["cache"]["libraries"],
        ", ".join(one["id"] for one in answer["findings"]) or "none"))
    row("host_checks, its whole process", whole)
    row("  of it Ansible's own (a module that does nothing)", bare)
    row("  of it ours (difference, pair by pair)", ours)
    row("  of it looking and judging (its elapsed_s)", inside)
    row("  processor time of all of it", busy)
    row("ldconfig -p, alone", listing)
    row("ldconfig -N -X -v, alone", rehearsal)
    for what, taken in (("ours", ours), ("the whole process", whole)):
        median = statistics.median(taken)
        print("  wanted %.0f: %s, with a median of %.0f, is %s" % (
            1000 * WANTED_S, what, 1000 * median,
            "within" if median <= WANTED_S else "MORE"))
    return answer


def main():
    """Make the host, print the table and remove it."""
    init_plugin_loader()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="fl-bench-", dir="/tmp"))
    try:
        root = folder / "root"
        make_root(root, folder)
        print("host_checks, milliseconds of %d rounds %28s %8s %8s" % (
            ROUNDS, "min", "median", "max"))
        row("python3 -c pass", [seconds([sys.executable, "-c", "pass"])[0]
                                for _ in range(ROUNDS)])
        for title, before in (
                ("with ldconfig's aux-cache", lambda: None),
                ("without it", lambda: (root / AUX_CACHE).unlink(missing_ok=True))):
            answer = measure(title, root, folder, before)
            # This machine's loader knows nothing of that root, so it cannot load its libcuda.
            wrong = [one["found"] for one in answer["findings"]
                     if one["id"] != "libcuda-unloadable"]
            listed = answer["seen"]["cache"]["libraries"]
            assert listed == LIBRARIES + 1 and not wrong, (listed, wrong)
        measure("this machine as it is", pathlib.Path("/"), folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
