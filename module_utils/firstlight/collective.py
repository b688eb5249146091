# SPDX-License-Identifier: Apache-2.0
"""Whether the devices of a plan reach each other, tried where its engine will run.

An engine that is split over devices whose ways are broken hangs at its start, or answers with
garbage: what the driver says of those ways is what the cards can do, not what arrives. So a small
program (:mod:`.collective_probe`) writes from each device to each other, and runs collectives, with
the engine's own torch, NCCL and variables, before the engine is started.
"""

from __future__ import annotations

import inspect
import os
import posixpath
from typing import Any, Dict, List, Mapping, Optional

from . import collective_probe, one_shot
from .docker_api import Api, Refused
from .runner import run

Plan = Dict[str, Any]
Container = Dict[str, Any]

LIMIT_S = collective_probe.TOTAL_S + 30.0
"""Seconds that :func:`check` takes at most, but for what the daemon needs."""

SAYS = "firstlight collective: "
# Of a module that comes in an archive the file is gone when its process has let go of it.
SOURCE = inspect.getsource(collective_probe)
MOST_TEXT = 64 * 1024
# What a service of ours has of whoever starts it.
KEPT = ("PATH", "LC_ALL")
SUFFIX = "-collective"


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
    try:
        ended = one_shot.run(container, SUFFIX, "python3", words, env, container["HostConfig"],
                             LIMIT_S, api)
    except Refused as problem:
        return SAYS + "Docker: %s" % problem
    if ended.status == 0:
        return ""
    return ended.said or SAYS + "its container " + (
        "was not done within %d s" % LIMIT_S if ended.status is None
        else "ended with %s and said nothing" % ended.status)
