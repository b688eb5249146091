# SPDX-License-Identifier: Apache-2.0
"""The endpoint passport as a file: read with suspicion, written as a whole.

It lies on a host, so whoever holds the host can write into it. What is read from it is either of
the shape that everything here relies on, or counts as no passport; the next switch writes it anew.
"""

from __future__ import annotations

import json
import os
import re
import time
from typing import Any, Dict, Optional

from . import paths

SCHEMA = 1
URL = re.compile(r"http://127\.0\.0\.1:[0-9]{1,5}")

Passport = Dict[str, Any]


def path(root: str, name: str) -> str:
    """Where the passport of an endpoint lies."""
    return os.path.join(root, "endpoints", name, "passport.json")


def read(root: str, name: str) -> Optional[Passport]:
    """The endpoint's passport, or ``None`` when there is none that can be relied on."""
    try:
        found = json.loads(paths.read(path(root, name)) or b"null")
    except (OSError, ValueError, RecursionError):
        return None
    return found if is_whole(found, name) else None


def older(root: str, name: str) -> int:
    """How many older passports an endpoint has to go back to."""
    folder = os.path.join(root, "endpoints", name, "passports")
    try:
        return sum(one.endswith(".json") for one in os.listdir(folder))
    except OSError:
        return 0


def is_whole(found: Any, name: str) -> bool:
    """Whether every field that something reads is there and of its kind."""
    try:
        plan = found["plan"]
        return (
            found["schema"] == SCHEMA
            and found["endpoint"] == name
            and isinstance(plan["hash"], str)
            and bool(URL.fullmatch(plan["url"]))
            and int(plan["url"].rpartition(":")[2]) <= 65535
            and type(plan["start_timeout_s"]) is int
            and plan["start_timeout_s"] >= 0
            and isinstance(plan["model"]["served_name"], str)
            and int(plan["url"].rpartition(":")[2]) == plan["engine_port"]
            and isinstance(plan["engine"], str)
            and isinstance(plan["model"]["chat_template"], bool)
            and isinstance(plan["gpus"], list)
            and all(isinstance(one, str) for one in plan["gpus"])
            and isinstance(found["service"]["manager"], str)
            and isinstance(found["service"]["text"], str)
            and isinstance(found["smoke"]["figures"], dict)
            and isinstance(found["phases"], dict)
        )
    except (TypeError, KeyError):
        return False


def write_json(file: str, content: Any) -> None:
    """Write a passport or a verdict, for people to read as well.

    :raises OSError: no space, no permission; the old file is then untouched.
    """
    paths.write(file, json.dumps(content, indent=2, sort_keys=True).encode() + b"\n")


def write_check(file: str, verdict: Dict[str, Any]) -> None:
    """Keep the last verdict on an endpoint, ``last_check.json``. Raises like :func:`write_json`."""
    write_json(file, dict(verdict, at=now()))


def now() -> str:
    """The time, in UTC, as passports write it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
