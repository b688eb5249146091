#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The runtime nvidia as it was before CDI: runc, with a hook that lets a device in.

What the hook allows it writes into the device group of the container itself, so systemd, which made
the group, does not know of it. As runtime it is called by containerd, as hook by runc.
"""

import json
import os
import re
import subprocess
import sys

RUNC = "/usr/sbin/runc"
DEVICE, MAJOR, MINOR = "/dev/nvidia9", "195", "9"


def runtime(words):
    """Be runc, after the hook was written into what is to be made."""
    if "create" in words:
        bundle = words[words.index("--bundle") + 1]
        path = os.path.join(bundle, "config.json")
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        config.setdefault("hooks", {}).setdefault("prestart", []).append(
            {"path": os.path.abspath(__file__), "args": [__file__, "the-hook"]})
        with open(path, "w", encoding="utf-8") as file:
            json.dump(config, file)
    os.execv(RUNC, [RUNC, *words])


def hook(state):
    """Allow the device, and make its node."""
    pid = str(state["pid"])
    with open("/proc/%s/cgroup" % pid, encoding="utf-8") as file:
        group = "/sys/fs/cgroup/devices" + re.search(
            r"^\d+:devices:(.*)$", file.read(), re.MULTILINE).group(1)
    with open(group + "/devices.allow", "w", encoding="utf-8") as file:
        file.write("c %s:* rwm" % MAJOR)
    with open(os.path.join(state["bundle"], "config.json"), encoding="utf-8") as file:
        inside = json.load(file)["root"]["path"]
    node = os.path.join(state["bundle"], inside) + DEVICE
    subprocess.run(["nsenter", "--target", pid, "--mount", "mknod", "--mode=666", node, "c", MAJOR,
                    MINOR], check=True)


if sys.argv[1:] == ["the-hook"]:
    hook(json.load(sys.stdin))
else:
    runtime(sys.argv[1:])
