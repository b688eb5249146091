#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Stands in for nvpmodel: keeps the mode in a file, and answers -q and -m as the real one does.

The mode 25W takes a reboot. Whoever says yes to that is found out by the file REBOOTED.
"""

import pathlib
import re
import sys

CONFIG = pathlib.Path("/etc/nvpmodel.conf")
MODE = pathlib.Path("/var/lib/nvpmodel/mode")
REBOOTED = pathlib.Path("/var/lib/nvpmodel/rebooted")
AT_FIRST = "15W"
BY_REBOOT = "25W"

modes = {int(number): name for number, name in
         re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", CONFIG.read_text())}
now = int(MODE.read_text()) if MODE.exists() else next(
    number for number, name in modes.items() if name == AT_FIRST)

if sys.argv[1:] == ["-q"]:
    print("NV Power Mode: %s\n%d" % (modes[now], now))
elif sys.argv[1:2] == ["-m"]:
    wanted = int(sys.argv[2])
    if modes[wanted] == BY_REBOOT:
        print("NVPM WARN: Golden image context is already created")
        print("NVPM WARN: Reboot required for changing to this power mode: %d" % wanted)
        print("NVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:", flush=True)
        if sys.stdin.readline().strip() in ("YES", "yes"):
            REBOOTED.parent.mkdir(exist_ok=True)
            REBOOTED.touch()
        sys.exit("NVPM ERROR: optMask is 1, no request for power mode")
    MODE.parent.mkdir(exist_ok=True)
    MODE.write_text("%d" % wanted)
