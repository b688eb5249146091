# SPDX-License-Identifier: Apache-2.0
"""How a module on a host reaches the packages of the toolbelt."""

from __future__ import annotations

import glob
import os
import sys


def reach(root: str) -> bool:
    """Append the toolbelt's site-packages to ``sys.path``; whether there is a toolbelt.

    Appended, not prepended: what the host's own Python has wins, and a missing toolbelt is no
    error (each module states its fallback).
    """
    pattern = os.path.join(glob.escape(root), "venvs/toolbelt/lib/python3*/site-packages")
    folders = sorted(glob.glob(pattern))
    sys.path.extend(folder for folder in folders if folder not in sys.path)
    return bool(folders)
