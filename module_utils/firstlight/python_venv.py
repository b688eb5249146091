# SPDX-License-Identifier: Apache-2.0
"""How a virtual environment of ours is known, and what it lacks."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Dict, List, Mapping, Optional

from . import paths

MARKER = "firstlight.json"
"""Written last into an environment: it says what the environment holds."""


def lock_path(path: str) -> str:
    """The lock beside an environment; it is there from before the environment is."""
    return path + ".lock"


def is_ours(path: str) -> bool:
    """Whether this is an environment that we made, or began to make."""
    return os.path.isdir(path) and (
        os.path.exists(os.path.join(path, MARKER)) or os.path.exists(lock_path(path)))


def observe(path: str) -> Optional[Dict[str, Any]]:
    """What the marker says is in the environment, or None when it is not whole."""
    content = paths.read(os.path.join(path, MARKER))
    if content is None or not os.path.exists(os.path.join(path, "bin", "python")):
        return None
    try:
        found = json.loads(content)
    except ValueError:
        return None
    whole = isinstance(found, dict) and set(found) == {"python", "lock", "scripts"}
    return found if whole else None


def wanted(lock: str, scripts: Mapping[str, str]) -> Dict[str, Any]:
    """What an environment should hold, made by the Python that runs this."""
    # An environment of another Python (after an upgrade of the host) cannot be used.
    return {"python": "%d.%d" % sys.version_info[:2], "lock": lock, "scripts": dict(scripts)}


def plan(want: Optional[Dict[str, Any]], found: Optional[Dict[str, Any]],
         exists: bool) -> List[str]:
    """The steps that lead from what was found to what is wanted; ``None`` is nothing."""
    if want is None:
        return ["remove"] if exists else []
    if found is None or (found["python"], found["lock"]) != (want["python"], want["lock"]):
        return ["create", "install", "place", "mark"]
    return [] if want == found else ["place", "mark"]
