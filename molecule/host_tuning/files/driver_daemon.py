#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Stands in for nv-fabricmanager and nvidia-persistenced, by the name that it is called by.

What the real ones do to the GPUs it does to the profile that the NVML library of the rig answers
from: the fabric comes up a while after the start, persistence at once.
"""

import json
import os
import signal
import sys
import time

PROFILE = "/etc/firstlight-mock/profile.json"
IN_PROGRESS, COMPLETED = 2, 3


def read():
    with open(PROFILE, encoding="utf-8") as file:
        return json.load(file)


def change(profile):
    with open(PROFILE + ".new", "w", encoding="utf-8") as file:
        json.dump(profile, file)
    os.replace(PROFILE + ".new", PROFILE)


def fabric(state):
    profile = read()
    for device in profile["devices"]:
        device["fabric"]["state"] = state
        if state == COMPLETED:
            device["nvlink"]["active"] = device["nvlink"]["links"]
    if state == COMPLETED:
        profile.setdefault("cuda", {})["init"] = 0
    change(profile)


def persistence():
    profile = read()
    for device in profile["devices"]:
        device["persistence"] = 1
    change(profile)


if sys.argv[1:] == ["--version"]:
    print("Fabric Manager version is : %s" % read()["driver_version"])
    sys.exit()
if os.path.basename(sys.argv[0]) == "nv-fabricmanager":
    if os.path.exists("/etc/firstlight-mock/no-fabric"):
        sys.exit("detected a training error on an NVSwitch")
    fabric(IN_PROGRESS)
    time.sleep(3)
    fabric(COMPLETED)
else:
    persistence()
signal.pause()
