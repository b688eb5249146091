#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""nvidia-ctk cdi generate, for devices that exist in a profile only.

Each device brings a profile of its own, with that device alone: so NVML sees what was given.
"""

import json
import pathlib
import sys

PROFILE = "/etc/firstlight-mock/profile.json"
OWN = pathlib.Path("/opt/devices")
LIBRARY = "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"
MOUNT = """\
{indent}- containerPath: {inside}
{indent}  hostPath: {path}
{indent}  options:
{indent}  - ro
{indent}  - bind
"""
DEVICE = """\
- containerEdits:
    mounts:
{mount}  name: "{name}"
"""


def main(words):
    """Write the specification."""
    given = dict(word.partition("=")[::2] for word in words[2:])
    assert words[:2] == ["cdi", "generate"], words
    profile = json.loads(pathlib.Path(PROFILE).read_text())
    OWN.mkdir(exist_ok=True)
    devices = ""
    for index, device in enumerate(profile["devices"]):
        alone = OWN / (device["uuid"] + ".json")
        alone.write_text(json.dumps(dict(profile, devices=[device])))
        for name in (index, device["uuid"]):
            devices += DEVICE.format(name=name, mount=MOUNT.format(
                indent="    ", inside=PROFILE, path=alone))
    common = "".join(MOUNT.format(indent="  ", inside=path, path=path)
                     for path in (LIBRARY, "/usr/bin/nvidia-smi"))
    pathlib.Path(given["--output"]).write_text(
        "---\ncdiVersion: 0.5.0\ncontainerEdits:\n  mounts:\n%sdevices:\n%skind: nvidia.com/gpu\n"
        % (common, devices))


main(sys.argv[1:])
