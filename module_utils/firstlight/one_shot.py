# SPDX-License-Identifier: Apache-2.0
"""A container that lives for one program, like the one that an engine is to run in.

What is tried in it is tried with that one's image, user and mounts, before anything that serves is
ended.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, Dict, List, Mapping, NamedTuple, Optional

from .docker_api import Api, Away, Refused, quoted
from .services import ServiceError

Container = Dict[str, Any]

PERIOD_S = 0.2
LINES = 1000
OURS = ("firstlight.endpoint", "firstlight.root")


class Ended(NamedTuple):
    """How it ended: its exit status, ``None`` where it was not done in time, and what it said."""

    status: Optional[int]
    said: str


def run(container: Container, suffix: str, program: str, words: List[str],
        env: Mapping[str, str], host: Mapping[str, Any], limit_s: float, api: Api) -> Ended:
    """Run a program beside a container, and remove what it ran in.

    :param container: the engine's, as the daemon describes it.
    :param suffix: what the name has beside that of the engine's.
    :param env: variables that it has beside the engine's.
    :param host: its ``HostConfig``. It has no ports, and is not started again.
    :param limit_s: seconds that it may take, but for what the daemon needs.
    :raises Refused: the daemon does not make or start it.
    :raises ServiceError: the daemon does not answer.
    """
    name = container["Name"].lstrip("/") + suffix
    try:
        # What a run that was killed has left.
        _remove(api, name, container["Config"]["Labels"])
        made = api.post("/containers/create", _like(container, program, words, env, host),
                        name=name)["Id"]
        try:
            api.post("/containers/%s/start" % quoted(made))
            status = _status(api, made, limit_s)
            return Ended(status, "" if status == 0 else api.log(made, LINES).strip())
        finally:
            with contextlib.suppress(Refused):
                api.delete("/containers/%s" % quoted(made), force="1", v="1")
    except Away as problem:
        raise ServiceError("Docker does not answer: %s" % problem) from problem


def _like(container: Container, program: str, words: List[str], env: Mapping[str, str],
          host: Mapping[str, Any]) -> Dict[str, Any]:
    config = container["Config"]
    variables = dict(one.partition("=")[::2] for one in config.get("Env") or [])
    variables.update(env)
    return {
        "Image": config["Image"],
        "Entrypoint": [program],
        "Cmd": words,
        "Env": ["%s=%s" % pair for pair in sorted(variables.items())],
        "User": config.get("User") or "",
        "WorkingDir": config.get("WorkingDir") or "",
        # Ours, so that it goes with the endpoint's others where nobody removes it here.
        "Labels": {key: config["Labels"][key] for key in OURS},
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {**host, "PortBindings": {}, "AutoRemove": False,
                       "RestartPolicy": {"Name": "no"}},
    }


def _status(api: Api, container: str, limit_s: float) -> Optional[int]:
    """Its exit status once it has ended, or ``None`` where that takes too long."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        state = api.get("/containers/%s/json" % quoted(container))["State"]
        if state["Status"] in ("exited", "dead"):
            return int(state["ExitCode"])
        time.sleep(PERIOD_S)
    return None


def _remove(api: Api, name: str, labels: Mapping[str, str]) -> None:
    """Remove a container of that name that has these labels of ours; another's stays."""
    try:
        found = api.get("/containers/%s/json" % quoted(name))["Config"].get("Labels") or {}
    except Refused as problem:
        if problem.status == 404:
            return
        raise
    if all(found.get(key) == labels[key] for key in OURS):
        api.delete("/containers/%s" % quoted(name), force="1", v="1")
