#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Stands in for swapon and swapoff, by the name that it is called by.

A container has no swap of its own: what it swapped on would be the whole machine's. So this holds
the file against what the real one wants of it, and changes what /proc tells in this container.
"""

import os
import pathlib
import re
import stat
import sys

MEMINFO, SWAPS = pathlib.Path("/proc/meminfo"), pathlib.Path("/proc/swaps")
HEADER = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
REFUSE = pathlib.Path("/etc/firstlight-mock/no-swap")

path = sys.argv[1]
kib = 0
lines = [line for line in SWAPS.read_text().splitlines(True)[1:] if line.split()[0] != path]
if os.path.basename(sys.argv[0]) == "swapon":
    if REFUSE.exists():
        sys.exit("swapon: %s: swapon failed: Invalid argument" % path)
    found = os.stat(path)
    with open(path, "rb") as file:
        header = file.read(4096)
    if stat.S_IMODE(found.st_mode) != 0o600 or found.st_blocks * 512 < found.st_size:
        sys.exit("swapon: %s: insecure permissions, or holes" % path)
    if header[-10:] != b"SWAPSPACE2":
        sys.exit("swapon: %s: read swap header failed" % path)
    kib = found.st_size // 1024
    lines.append("%s file %d 0 -2\n" % (path, kib))
SWAPS.write_text(HEADER + "".join(lines))
MEMINFO.write_text(re.sub(r"(Swap(?:Total|Free):\s+)\d+", r"\g<1>%d" % kib, MEMINFO.read_text()))
