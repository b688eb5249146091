# SPDX-License-Identifier: Apache-2.0
"""On which GPUs an engine really is, asked after its start."""

from __future__ import annotations

import re
from typing import Any, Dict, List, Optional

from .docker_api import Api, Away, Refused
from .findings import Finding, finding
from .host import gpu_containers
from .runner import run

Plan = Dict[str, Any]

# Without persistence a driver wakes up first.
SMI_S = 30
UUID = re.compile(r"\b(?:GPU|MIG)-[0-9a-f-]{36}\b")
LISTED = re.compile(r"(\d+), *((?:GPU|MIG)-[0-9a-f-]{36})")


def look(plan: Plan, pids: List[int], container: Optional[str]) -> Dict[str, Any]:
    """``{gpus, source, reason}``: UUIDs, or ``None`` with the reason why nobody can tell.

    :param pids: of a native engine.
    :param container: of one in a container, which sees its own devices and no others.
    """
    if not plan["gpus"]:
        return {"gpus": [], "source": "the plan", "reason": ""}
    if container:
        return _inside(container)
    if any(one.startswith("MIG-") for one in plan["gpus"]):
        return {"gpus": None, "source": "the plan", "reason": "nvidia-smi tells whole GPUs only"}
    ran = run(["nvidia-smi", "--query-compute-apps=pid,gpu_uuid", "--format=csv,noheader"],
              timeout_s=SMI_S)
    if not ran.ok:
        return {"gpus": None, "source": "nvidia-smi", "reason": ran.complaint()[:300]}
    found = {uuid for pid, uuid in LISTED.findall(ran.stdout) if int(pid) in pids}
    if not found:
        # In a PID namespace, and on a Jetson, the driver knows the process by another number.
        return {"gpus": None, "source": "nvidia-smi", "reason": "it lists no process of ours"}
    return {"gpus": sorted(found), "source": "nvidia-smi", "reason": ""}


def _inside(container: str) -> Dict[str, Any]:
    try:
        seen = gpu_containers.inside(Api(timeout_s=SMI_S), container)
    except (Away, Refused) as problem:
        return {"gpus": None, "source": "the container", "reason": str(problem)[:300]}
    return {"gpus": seen["gpus"], "source": "nvidia-smi in the container", "reason": seen["reason"]}


def findings(plan: Plan, seen: Dict[str, Any]) -> List[Finding]:
    """What is wrong with where it is; a device without a UUID (a Jetson's) has no name to hold."""
    wanted = [one for one in plan["gpus"] if UUID.fullmatch(one)]
    if seen["gpus"] is None or not wanted or set(seen["gpus"]) == set(wanted):
        return []
    return [finding(
        "endpoint-on-other-gpus", "endpoint %s" % plan["name"],
        "its engine is on %s" % (", ".join(seen["gpus"]) or "no GPU"),
        "the plan's: %s" % ", ".join(wanted),
        "stop what else gives devices to it (CUDA_VISIBLE_DEVICES, the container's own settings)",
        severity="fatal", evidence=seen["source"])]
