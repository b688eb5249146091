# SPDX-License-Identifier: Apache-2.0
"""The one way in which our modules have systemd read its units anew: containers keep their GPUs."""

from __future__ import annotations

import time
from typing import Any, Dict, Iterable, List, NamedTuple, Optional

from .docker_api import Api, Away, Refused
from .findings import Finding, text
from .host import gpu_containers
from .planning import reload_guard
from .runner import Ran, run

# Until NVML answers in a container that was started again.
BACK_S = 30.0
POLL_S = 0.5


class Threatened(Exception):
    """Containers of others would lose their GPUs; nothing was done. Carries the findings."""

    def __init__(self, findings: List[Finding]) -> None:
        super().__init__(text(findings))
        self.findings = findings


class Reloaded(NamedTuple):
    """What was done.

    :param ran: ``systemctl daemon-reload``; ``None`` where none was needed.
    :param restarted: names of containers that were started again.
    :param findings: what is to be known: containers that had to be, or whose GPU stayed away.
    """

    ran: Optional[Ran]
    restarted: List[str]
    findings: List[Finding]


def needed(units: Iterable[str]) -> bool:
    """Whether systemd holds one of these units otherwise than its file is.

    A unit that it has not read yet it reads by itself, so a new one needs nothing.
    """
    ran = run(["systemctl", "show", "--property=NeedDaemonReload", *units])
    return not ran.ok or "NeedDaemonReload=yes" in ran.stdout


def must_be_harmless(consent: bool = False, api: Optional[Api] = None) -> None:
    """See that nobody would lose a GPU, before anything is ended that a reload would follow.

    Parameters and errors as for :func:`daemon_reload`.
    """
    seen = _seen(api or Api(timeout_s=gpu_containers.TIMEOUT_S))
    told = reload_guard.guard(seen["containers"], seen["cgroup_driver"], consent)
    if told["decision"] == reload_guard.POSTPONE:
        raise Threatened(told["findings"])


def daemon_reload(units: Iterable[str] = (), consent: bool = False,
                  api: Optional[Api] = None) -> Reloaded:
    """Have systemd read its units anew, where that is needed, and start again what lost its GPU.

    :param units: whose files changed; none named: it is needed.
    :param consent: whether containers of others may be started again.
    :param api: the daemon; by default this host's.
    :raises Threatened: containers of others would lose their GPUs, and there is no consent.
    """
    names = list(units)
    if names and not needed(names):
        return Reloaded(None, [], [])
    api = api or Api(timeout_s=gpu_containers.TIMEOUT_S)
    seen = _seen(api)
    told = reload_guard.guard(seen["containers"], seen["cgroup_driver"], consent)
    if told["decision"] == reload_guard.POSTPONE:
        raise Threatened(told["findings"])
    ran = run(["systemctl", "daemon-reload"], timeout_s=60)
    restarted: List[str] = []
    findings: List[Finding] = []
    for one in seen["containers"]:
        if one["name"] not in told["repair"]:
            continue
        # A start clears away whatever was lost, also where nobody can ask inside.
        problem = started_again(api, one)
        restarted.append(one["name"])
        findings += reload_guard.lost([dict(one, gpus=[], reason=problem)]) if problem else [
            found for found in told["findings"] if one["name"] in found["subject"]]
    return Reloaded(ran, restarted, findings)


def started_again(api: Api, container: Dict[str, Any], timeout_s: float = BACK_S) -> str:
    """Start a container again, and wait for NVML in it; why it has none, or nothing.

    :param container: as :func:`.host.gpu_containers.read` gives it.
    """
    try:
        gpu_containers.restart(api, container["id"])
        deadline = time.monotonic() + timeout_s
        while True:
            now = dict(container, **gpu_containers.inside(api, container["id"]))
            if not reload_guard.is_lost(now):
                return ""
            if time.monotonic() > deadline:
                return str(now["reason"] or "it does not see all that it was given")
            time.sleep(POLL_S)
    except (Away, Refused) as problem:
        return str(problem)


def _seen(api: Api) -> Dict[str, Any]:
    """What runs with GPUs; nothing where no daemon answers."""
    try:
        return gpu_containers.read(api)
    except (Away, Refused):
        return {"cgroup_driver": None, "containers": []}
