# SPDX-License-Identifier: Apache-2.0
"""What an endpoint has already: its plan stays, and what was seen of it replaces estimates.

A passport lies on a host, so nothing of it is believed to be of the type that it should have.
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

Request = Dict[str, Any]

ASKED = ("context", "gpus", "tensor_parallel", "engine", "engine_version", "runtime",
         "engine_python", "engine_binary", "image")
"""What of a request a plan chooses within. Where these words changed, nothing is kept."""
SAME = ("engine", "engine_version", "tensor_parallel", "pipeline_parallel", "device",
        "extra_args", "batched_tokens", "sequences")
"""What has to be equal for memory seen to hold again; and the model's content."""

COUNTS = ("tensor_parallel", "pipeline_parallel", "context", "batched_tokens", "sequences",
          "start_timeout_s", "engine_port")


class Pins(NamedTuple):
    """The choices of the plan that an endpoint runs by."""

    hash: str
    gpus: List[str]
    tensor_parallel: int
    pipeline_parallel: int
    context: int
    batched_tokens: int
    sequences: int
    start_limit_s: int
    engine_port: int
    utilisation: Optional[float]
    running: bool
    flags: List[str]


def pins(request: Request, state: Dict[str, Any]) -> Optional[Pins]:
    """The choices to keep; ``None`` where there are none, or where another thing is asked for."""
    there = _endpoint(request, state)
    plan = _plan(there)
    asked = plan.get("asked")
    if not isinstance(asked, dict) or any(asked.get(key) != request[key] for key in ASKED):
        return None
    gpus = plan.get("gpus")
    if not isinstance(gpus, list) or not all(isinstance(one, str) for one in gpus):
        return None
    counts = [plan[key] for key in COUNTS if type(plan.get(key)) is int and plan[key] > 0]
    if len(counts) < len(COUNTS) or not isinstance(plan.get("hash"), str):
        return None
    share = plan.get("utilisation")
    if share is not None and not (type(share) is float and 0 < share < 1):
        return None
    running = there.get("state") in ("running", "starting") and there.get("plan") == plan["hash"]
    flags = plan.get("flags")
    if not isinstance(flags, list) or not all(isinstance(one, str) for one in flags):
        return None
    return Pins._make([plan["hash"], gpus, *counts, share, running, flags])


def last_plan(request: Request, state: Dict[str, Any]) -> Dict[str, Any]:
    """The plan of the endpoint's passport; empty where there is none."""
    return _plan(_endpoint(request, state))


def layout_of(request: Request, state: Dict[str, Any]) -> Optional[Tuple[int, int]]:
    """Tensor parallel and stages of the plan that it has; ``None`` where there is none."""
    plan = _plan(_endpoint(request, state))
    split: Any = plan.get("tensor_parallel")
    stages: Any = plan.get("pipeline_parallel")
    if all(type(one) is int and 0 < one < 2**16 for one in (split, stages)):
        return split, stages
    return None


def observed(request: Request, state: Dict[str, Any], wanted: Dict[str, Any]) -> Dict[str, Any]:
    """The memory that was seen of the same model, release, layout and flags; else nothing.

    :param wanted: the keys of :data:`SAME` and ``fingerprint``.
    """
    passport = _passport(_endpoint(request, state))
    memory = passport.get("memory")
    seen = memory.get("observed") if isinstance(memory, dict) else None
    plan = _plan(_endpoint(request, state))
    if not isinstance(seen, dict) or not _is_of(plan, wanted):
        return {}
    share = plan.get("utilisation")
    return {**seen, "utilisation": share if type(share) is float and 0 < share < 1 else 0.0}


def last_start(request: Request, state: Dict[str, Any], wanted: Dict[str, Any]) -> Optional[int]:
    """The seconds that the same engine took to be ready the last time; ``None`` if not known.

    :param wanted: as for :func:`observed`.
    """
    there = _endpoint(request, state)
    phases = _passport(there).get("phases")
    took: Any = phases.get("ready_s") if isinstance(phases, dict) else None
    if type(took) not in (int, float) or not 0 <= took < 10**6 or not _is_of(
            _plan(there), wanted):
        return None
    return int(math.ceil(took))


def _is_of(plan: Dict[str, Any], wanted: Dict[str, Any]) -> bool:
    """Whether a plan is of the same model, release, layout and flags."""
    model = plan.get("model")
    return (isinstance(model, dict) and model.get("fingerprint") == wanted["fingerprint"]
            and all(plan.get(key) == wanted[key] for key in SAME))


def held(request: Request, state: Dict[str, Any]) -> Dict[str, Any]:
    """The processes of the endpoint: what they hold is free for it."""
    there = _endpoint(request, state)
    pids = there.get("pids")
    pids = pids if isinstance(pids, list) else [there.get("pid")]
    return {"pids": [pid for pid in pids if type(pid) is int], "bytes": {}}


def devices_of(request: Request, state: Dict[str, Any]) -> List[str]:
    """The devices that an endpoint has, or had when it last ran."""
    return _uuids(_plan(_endpoint(request, state)).get("gpus"))


def reserved(requests: List[Request], state: Dict[str, Any]) -> Dict[str, str]:
    """Devices of the endpoints that may stay where they are or were: nobody else's, by UUID."""
    return {uuid: request["name"] for request in requests
            if request["gpus"] != 0 and not isinstance(request["gpus"], list)
            for uuid in devices_of(request, state)}


def _uuids(value: Any) -> List[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _endpoint(request: Request, state: Dict[str, Any]) -> Dict[str, Any]:
    there = (state.get("endpoints") or {}).get(request["name"])
    return there if isinstance(there, dict) else {}


def _passport(there: Dict[str, Any]) -> Dict[str, Any]:
    passport = there.get("passport")
    return passport if isinstance(passport, dict) else {}


def _plan(there: Dict[str, Any]) -> Dict[str, Any]:
    plan = _passport(there).get("plan")
    return plan if isinstance(plan, dict) else {}
