# SPDX-License-Identifier: Apache-2.0
"""Writes the repositories that the hub of this scenario has: ``python3 repositories.py FOLDER``.

The canary in two formats, each beside files that nobody should fetch; the same with two shards
more, so that it is large; and one repository for each fault, so that faults stand side by side.
"""

from __future__ import annotations

import json
import pathlib
import sys

import ansible.module_utils

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests" / "rig"))
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))

import hub  # noqa: E402

from ansible.module_utils.firstlight import canary  # noqa: E402

# Files of this size are fetched as large ones are.
LARGE = 24 * 2**20
OF_FAULTS = ("gated", "denied", "not-a-hub", "busy", "fails", "cut", "no-range", "redirect",
             "wrong-size", "wrong-hash", "mended", "fine")


def main(folder: pathlib.Path) -> None:
    """Write all of them under ``folder``."""
    hub.canary_repos(folder)
    hub.tagged(folder, "firstlight/canary", "v1")
    gguf = canary.content(canary.GGUF)
    for number, name in enumerate(OF_FAULTS, 1):
        # What follows the last tensor is nobody's: the files differ, and each is a whole model.
        write(folder / "firstlight" / name / "canary-Q8_0.gguf", gguf.ljust(LARGE + number, b"\0"))
    large = folder / "firstlight" / "large"
    for file in (folder / "firstlight" / "canary-sharded").iterdir():
        write(large / file.name.replace("-of-00002", "-of-00004"), file.read_bytes())
    add_shards(large)


def write(file: pathlib.Path, content: bytes) -> None:
    """Write a file, and the folder that it is in."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def add_shards(folder: pathlib.Path) -> None:
    """Give a model of two shards two more, whose tensors no layer has."""
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text().replace("-of-00002", "-of-00004"))
    for number in (3, 4):
        name, tensor = "model-%05d-of-00004.safetensors" % number, "padding.%d.weight" % number
        text = json.dumps({tensor: {
            "dtype": "BF16", "shape": [LARGE // 2], "data_offsets": [0, LARGE]}}).encode()
        text += b" " * (-len(text) % 8)
        write(folder / name, len(text).to_bytes(8, "little") + text + bytes([number]) * LARGE)
        index["weight_map"][tensor] = name
        index["metadata"]["total_size"] += LARGE
    file.write_text(json.dumps(index))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
