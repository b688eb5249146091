# SPDX-License-Identifier: Apache-2.0
"""Whether the devices of a plan reach each other, tried where its engine will run.

An engine that is split over devices whose ways are broken hangs at its start, or answers with
garbage: what the driver says of those ways is what the cards can do, not what arrives. So a small
program (:mod:`.collective_probe`) writes from each device to each other, and runs collectives, with
the engine's own torch, NCCL and variables, before the engine is started.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import posixpath
import time
from typing import Any, Dict, List, Mapping, Optional

from . import collective_probe
from .docker_api import Api, Away, Refused, quoted
from .runner import run
from .services import ServiceError

Plan = Dict[str, Any]
Container = Dict[str, Any]

LIMIT_S = collective_probe.TOTAL_S + 30.0
"""Seconds that :func:`check` takes at most, but for what the daemon needs."""

SAYS = "firstlight collective: "
# Of a module that comes in an archive the file is gone when its process has let go of it.
SOURCE = inspect.getsource(collective_probe)
PERIOD_S = 0.2
MOST_TEXT = 64 * 1024
LINES = 1000
# What a service of ours has of whoever starts it.
KEPT = ("PATH", "LC_ALL")
SUFFIX = "-collective"
OURS = ("firstlight.endpoint", "firstlight.root")


def check(plan: Plan, env: Mapping[str, str], container: Optional[Container], api: Api) -> str:
    """What is wrong with the ways between the devices of a plan; empty where nothing is.

    A plan for one device has no ways, and none is tried.

    :param plan: ``tensor_parallel``, ``pipeline_parallel``, ``gpus``; and ``engine_python`` or
        ``venv`` where its engine runs natively.
    :param env: the engine's own variables.
    :param container: the engine's, as the daemon describes it; ``None`` where it has none.
    :param api: the daemon, for a container.
    :returns: what the probe printed, with NCCL's own lines, the last 64 KiB.
    :raises ServiceError: the daemon does not answer.
    """
    world = plan["tensor_parallel"] * plan["pipeline_parallel"]
    if world < 2:
        return ""
    words = ["-c", SOURCE, "cuda" if plan["gpus"] else "cpu", str(world)]
    # NCCL says why it fails when it is asked to.
    variables = {"NCCL_DEBUG": "WARN", **env}
    if container is None:
        said = _natively(plan, words, variables)
    else:
        said = _in_container(container, words, variables, api)
    return said[-MOST_TEXT:]


def _natively(plan: Plan, words: List[str], env: Mapping[str, str]) -> str:
    python = plan["engine_python"] or posixpath.join(plan["venv"], "bin", "python")
    # By their names alone: a value on a command line is for everyone to read.
    foreign = [word for name in os.environ if name not in KEPT and name not in env
               for word in ("-u", name)]
    ran = run(["/usr/bin/env", *foreign, python, *words], timeout_s=LIMIT_S, env=env)
    if ran.ok:
        return ""
    return (ran.stdout + ran.stderr).strip() or SAYS + (
        "%s: %s" % (python, ran.error or "ended with %s and said nothing" % ran.rc))


def _in_container(container: Container, words: List[str], env: Mapping[str, str],
                  api: Api) -> str:
    name = container["Name"].lstrip("/") + SUFFIX
    try:
        # What a run that was killed has left.
        _remove(api, name, container["Config"]["Labels"])
        made = api.post("/containers/create", _like(container, words, env), name=name)["Id"]
        try:
            api.post("/containers/%s/start" % quoted(made))
            status = _status(api, made)
            if status == 0:
                return ""
            return api.log(made, LINES).strip() or SAYS + "its container " + (
                "was not done within %d s" % LIMIT_S if status is None
                else "ended with %s and said nothing" % status)
        finally:
            with contextlib.suppress(Refused):
                api.delete("/containers/%s" % quoted(made), force="1", v="1")
    except Refused as problem:
        return SAYS + "Docker: %s" % problem
    except Away as problem:
        raise ServiceError("Docker does not answer: %s" % problem) from problem


def _like(container: Container, words: List[str], env: Mapping[str, str]) -> Dict[str, Any]:
    """A container with the devices, limits, memory and network of another, for another program."""
    config = container["Config"]
    variables = dict(one.partition("=")[::2] for one in config.get("Env") or [])
    variables.update(env)
    return {
        "Image": config["Image"],
        "Entrypoint": ["python3"],
        "Cmd": words,
        "Env": ["%s=%s" % pair for pair in sorted(variables.items())],
        "User": config.get("User") or "",
        "WorkingDir": config.get("WorkingDir") or "",
        # Ours, so that it goes with the endpoint's others where nobody removes it here.
        "Labels": {key: config["Labels"][key] for key in OURS},
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {**container["HostConfig"], "PortBindings": {}, "AutoRemove": False,
                       "RestartPolicy": {"Name": "no"}},
    }


def _status(api: Api, container: str) -> Optional[int]:
    """Its exit status once it has ended, or ``None`` where that takes too long."""
    deadline = time.monotonic() + LIMIT_S
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
