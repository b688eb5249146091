# SPDX-License-Identifier: Apache-2.0
"""Makes what the index offers, and what hosts have from the first: ``offers.py FOLDER``."""

from __future__ import annotations

import json
import pathlib
import platform
import sys
import tarfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2] / "tests" / "rig"))
from wheels import builder  # noqa: E402 - found through the line above

# The Pythons of the hosts, Debian 12 and 13.
PYTHONS = ("cp311", "cp313")
MACHINE = platform.machine()
OTHER_MACHINE = "aarch64" if MACHINE == "x86_64" else "x86_64"
ABI3 = "cp311-abi3-linux_%s" % MACHINE
FITS = "cu12torch2.8cxx11abiTRUE"
# What is wrong with the newer of two versions.
BAD = {
    "bad-import": "import_error",
    "bad-crash": "segfault",
    "bad-end": "truncated",
    "bad-name": "renamed",
    "bad-path": "traversal",
    "bad-wait": "hangs",
}
# What a build needs of its bounds, and one that never ends, whose compiler is not of its session.
BUILDS = """
import os
files["tiny_built/bounds.py"] = "JOBS = %d\\n" % int(os.environ["TINY_JOBS"])
"""
HANGS = """
import subprocess, time
subprocess.Popen(["sleep", "98765"], start_new_session=True)
subprocess.Popen(["sleep", "98766"])
time.sleep(98767)
"""


def tiny_kernel(folder: pathlib.Path) -> None:
    """One version that fits each host, and files that do not: ``index.py`` tells of others."""

    def offered(version, local=FITS, python="", where="linux_" + MACHINE):
        for one in [python] if python else PYTHONS:
            tags = "%s-%s-%s" % (one, one, where)
            builder.wheel(folder, "tiny-kernel", version, local, tags, extension=builder.KERNEL)

    offered("1.4.0")
    offered("1.4.0", "cu13torch2.8cxx11abiTRUE")
    offered("1.4.0", "cu12torch2.7cxx11abiTRUE")
    offered("1.4.0", "cu12torch2.8cxx11abiFALSE")
    offered("1.4.0", python="cp39")
    offered("1.4.0", where="musllinux_1_2_" + MACHINE)
    offered("1.4.0", where="linux_" + OTHER_MACHINE)
    offered("1.4.0", where="win_amd64")
    # It is yanked.
    offered("1.5.0")
    offered("1.6.0rc1")


def main(folder: pathlib.Path) -> None:
    index, laid = folder / "index", folder / "laid"
    tiny_kernel(index)
    for package, broken in BAD.items():
        for version, what in {"1.0": "", "2.0": broken}.items():
            made = builder.wheel(index, package, version, tags=ABI3,
                                 extension=builder.KERNEL, broken=what)  # fmt: skip
            if not what:
                # Environments have it from the first.
                laid.mkdir(exist_ok=True)
                (laid / made.name).hardlink_to(made)
    builder.sdist(index, "tiny-built", "3.0", BUILDS, builder.KERNEL)
    builder.sdist(index, "slow-built", "3.0", HANGS)
    builder.torch(laid / "torch")
    builder.wheel(laid / "conda", "tiny-kernel", "1.3.0", tags=ABI3, extension=builder.KERNEL)
    build = {"sdist": "pip", "environment": {}, "architectures": {}, "jobs": "TINY_JOBS",
             "job_bytes": 2**28}  # fmt: skip
    rows = [builder.row("tiny-kernel", torch="minor", cuda="major",
                        kernel=builder.proof("tiny-kernel"))]  # fmt: skip
    rows += [builder.row(package, kernel=builder.proof(package)) for package in BAD]
    rows += [builder.row("tiny-built", build=build, kernel=builder.proof("tiny-built")),
             builder.row("slow-built", build=build)]  # fmt: skip
    with tarfile.open(folder / "rig.tar", "w") as packed:
        packed.add(laid, "laid")
        for path in (pathlib.Path(builder.__file__), HERE / "environments.py"):
            packed.add(path, path.name)
    # Hosts have no compilers; this machine has.
    builder.environment(folder / "compiles")
    (folder / "rows.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
