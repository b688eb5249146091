# SPDX-License-Identifier: Apache-2.0
"""Which endpoints are not as their plans want them: the others cost nothing more."""

from __future__ import annotations

import hashlib
from typing import Any, Dict, List, Optional

from . import way_in
from .canary_plan import canary_key

Plan = Dict[str, Any]


def endpoints_to_switch(plans: List[Plan], state: Dict[str, Any], definitions: Dict[str, str],
                        ways_in: Dict[str, Dict[str, Any]]) -> List[str]:
    """The names of the endpoints that a switch has to look at.

    :param plans: the plans of the host.
    :param state: what ``endpoint_info`` returned.
    :param definitions: the text of each unit, program or Compose file, by the plan's hash.
    :param ways_in: ``{config, definition, keys}`` of each way in, by name; none on loopback.
    """
    return [plan["name"] for plan in plans if not _is_as_wanted(
        plan, state["endpoints"].get(plan["name"]), definitions[plan["hash"]],
        ways_in.get(plan["name"]))]


def _is_as_wanted(plan: Plan, there: Any, definition: str,
                  wanted: Optional[Dict[str, Any]]) -> bool:
    passport = (there or {}).get("passport")
    if not passport:
        return False
    seen = there["gpus_seen"]
    # A device without a UUID (a Jetson's) has no name by which it could be seen.
    named = {one for one in plan["gpus"] if one.startswith(("GPU-", "MIG-"))}
    return bool(
        passport["plan"]["hash"] == plan["hash"] == there["plan"]
        and there["healthy"]
        and there["state"] in ("running", "starting")
        and not there["half_done"]
        and not there["strays"]
        and there["definition"] == hashlib.sha256(definition.encode()).hexdigest()
        and there["way_in"] == (way_in.way_in_digests(
            wanted["config"], wanted["definition"], wanted["keys"]) if wanted else {})
        and (seen is None or not named or set(seen) == named)
    )


def canary_trials(canaries: Dict[str, Plan], plans: List[Plan], facts: Dict[str, Any],
                  definitions: Dict[str, str]) -> Dict[str, Dict[str, Any]]:
    """What is tried before these plans: ``{key, plan, definition}`` by the endpoint's name.

    :param canaries: plans that serve the canary, by the endpoint's name.
    """
    return {plan["name"]: {
        "key": canary_key(plan, facts), "plan": canaries[plan["name"]],
        "definition": definitions[canaries[plan["name"]]["hash"]],
    } for plan in plans if plan["name"] in canaries}
