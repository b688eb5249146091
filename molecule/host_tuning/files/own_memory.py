#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Give this container memory to tell of, swap to use and a page cache to drop.

A container has none of its own: what it changed would be the whole machine's. So files are laid
over what the kernel tells, and the stand-in for swapon writes into them.
"""

import pathlib
import subprocess

FOLDER = pathlib.Path("/root/memory")
# 16 GB as a Jetson has them, without swap. All that is available is free: no cache is in the way.
FILES = {
    "/proc/meminfo": "".join("%-16s%8d kB\n" % (name + ":", kib) for name, kib in (
        ("MemTotal", 15956648), ("MemFree", 14200000), ("MemAvailable", 14200000),
        ("SwapTotal", 0), ("SwapFree", 0))),
    "/proc/swaps": "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n",
    "/proc/sys/vm/drop_caches": "0\n",
}

FOLDER.mkdir()
for path, text in FILES.items():
    own = FOLDER / pathlib.Path(path).name
    own.write_text(text)
    subprocess.run(["mount", "--bind", own, path], check=True)
