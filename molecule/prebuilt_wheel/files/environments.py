# SPDX-License-Identifier: Apache-2.0
"""Makes the environments of a host, beside the rig's builder: ``environments.py ROOT INTO``.

ROOT gets a toolbelt too, as far as it matters here: its pip, for environments that have none.
"""

from __future__ import annotations

import pathlib
import sys

import builder


def main(root: pathlib.Path, into: pathlib.Path) -> None:
    wheels = pathlib.Path(__file__).parent / "laid"
    builder.environment(root / "venvs" / "toolbelt")
    (torch,) = (wheels / "torch").glob("torch-*.whl")
    (of_conda,) = (wheels / "conda").glob("tiny_kernel-*.whl")
    bad = sorted(wheels.glob("bad_*.whl"))
    for name, options in {
        "nano": {},
        "inside": {},
        "bare": {"with_pip": False},
        "sealed": {},
        "conda": {"wheels": [of_conda], "conda": ["tiny-kernel"]},
        "faults": {"wheels": bad},
    }.items():
        given = {**options, "wheels": [torch, *options.get("wheels", [])]}
        builder.environment(into / name, **given)


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:]))
