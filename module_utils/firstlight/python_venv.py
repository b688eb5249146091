# SPDX-License-Identifier: Apache-2.0
"""How a virtual environment of ours is known."""

from __future__ import annotations

import os

MARKER = "firstlight.json"
"""Written last into an environment: it says what the environment holds."""


def lock_path(path: str) -> str:
    """The lock beside an environment; it is there from before the environment is."""
    return path + ".lock"


def is_ours(path: str) -> bool:
    """Whether this is an environment that we made, or began to make."""
    return os.path.isdir(path) and (
        os.path.exists(os.path.join(path, MARKER)) or os.path.exists(lock_path(path)))
