# SPDX-License-Identifier: Apache-2.0
"""What of plans has to be asked for a proof."""

from __future__ import annotations

import posixpath
from typing import Any, Dict, List, Optional

from . import flags, way_in

Plan = Dict[str, Any]
Settings = Dict[str, Any]
"""``{streams: how many requests are sent at once, floors: {endpoint's name: its floors}}``"""

STREAMS = 4
FLOORS = ("first_token_s", "tokens_per_second", "tokens_per_second_all")
CLAIMS = ("structured_output", "tool_calls", "tool_calls_by_template")
"""What an engine may claim to do. The last: it says itself whether the model's template has
tools."""


def smoke_requests(plans: List[Plan], root: str,
                   settings: Optional[Settings] = None) -> List[Dict[str, Any]]:
    """The ``endpoints`` of ``smoke_inference`` for plans, in their order.

    :param plans: endpoints as ``deployment_plan`` has them.
    :param root: ``firstlight_root`` on the host, where verdicts are kept.
    :param settings: as :func:`smoke_request` has them.
    :raises ValueError: for settings that are none.
    """
    return [dict(
        smoke_request(plan, settings), keyed=_keyed(plan, root),
        record=posixpath.join(root, "endpoints", plan["name"], "last_check.json"),
    ) for plan in plans]


def smoke_request(plan: Plan, settings: Optional[Settings] = None) -> Dict[str, Any]:
    """What the engine of a plan is asked, on this host.

    :param plan: as ``deployment_plan`` or a passport has it: what an older one lacks is not asked.
    :param settings: ``streams`` from 1, by default 4, and ``floors``: seconds and tokens per
        second over 0, by the names of :data:`FLOORS`, by the endpoint's name.
    :returns: a target of ``smoke_inference`` without keys.
    :raises ValueError: for settings that are none.
    """
    settings = settings or {}
    return {
        "name": plan["name"],
        "url": plan["url"],
        "model": plan["model"]["served_name"],
        "oracle": plan.get("oracle"),
        "chat": plan["model"]["chat_template"],
        "context": _count(plan.get("context")),
        "claims": claims(plan),
        "keyed": {},
        "streams": _streams(settings),
        # A trial is of another model, to which they do not apply.
        "floors": {} if plan.get("trial") else _floors(settings, plan["name"]),
    }


def claims(plan: Plan) -> List[str]:
    """What of :data:`CLAIMS` the engine of a plan claims, by its flags.

    Without a chat template it claims nothing: both are asked for in chat.
    """
    if not plan["model"]["chat_template"]:
        return []
    given = [flags.spelled(one) for one in [*(plan.get("flags") or []),
                                            *(plan.get("extra_args") or [])]]
    found = ["structured_output"]
    if plan["model"].get("kind") == "canary":
        # Its template has no tools.
        return found
    if plan["engine"] == "vllm":
        # Named by its user, and only then there: vLLM has a parser for each family of models.
        return found + ["tool_calls"] * (
            "--enable-auto-tool-choice" in given and "--tool-call-parser" in given)
    return found + ["tool_calls_by_template"]


def _keyed(plan: Plan, root: str) -> Dict[str, str]:
    """Where clients need a key, as this host reaches it, and by what it is known."""
    if not plan.get("way_in"):
        return {}
    return {"url": "https://" + way_in.address(*way_in.reached(plan)),
            "certificate": posixpath.join(way_in.folder(root, plan["name"]), way_in.CERTIFICATE)}


def _count(value: Any) -> Optional[int]:
    """A whole number from 1, or ``None``; Python takes a truth value for one too."""
    is_one = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return value if is_one else None


def _is_speed(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _streams(settings: Settings) -> int:
    streams = settings.get("streams", STREAMS)
    count = _count(streams)
    if count is None:
        raise ValueError("endpoint_smoke_streams: found %r, wanted a whole number from 1"
                         % (streams,))
    return count


def _floors(settings: Settings, name: str) -> Dict[str, float]:
    floors = settings.get("floors") or {}
    mine = floors.get(name) or {} if isinstance(floors, dict) else None
    if not isinstance(mine, dict) or not all(
            key in FLOORS and _is_speed(value)
            for key, value in mine.items()):
        raise ValueError(
            "endpoint_smoke_floors.%s: found %r, wanted numbers over 0 for any of %s"
            % (name, floors if mine is None else mine, ", ".join(FLOORS)))
    return {key: float(mine[key]) for key in FLOORS if key in mine}
