# SPDX-License-Identifier: Apache-2.0
"""What is changed of a plan, once, where its endpoint did not get ready: what the log says decides.

Only what a row of ``catalog/log_signatures.yml`` calls safe is changed, one change a signature, and
nothing that the user named. A change is an input of the planner from then on: it is kept in the
passport, and holds for that model and that release.
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, NamedTuple, Optional

from . import keep
from .requests import Request

Adjustment = Dict[str, Any]
"""``{signature, kind, value}``: the row, what is changed, and how."""
Plan = Dict[str, Any]
Facts = Dict[str, Any]
Row = Dict[str, Any]

LEAST_CONTEXT = 512
"""Tokens below which nobody is served any more."""
# Under what the engine says would fit: its next measurement differs by a few blocks.
SHARE_OF_CONTEXT = 0.97
BLOCK = 16
LONGER = 2
MORE_SHARED_MEMORY = 4
# What a passport may bring back at most.
MOST = {"context": 2**30, "start_budget": 7 * 86400, "shared_memory": 2**40}
OF_THE_MODEL = {"context": "context", "start_budget": "time"}
"""What of a plan the canary before it does not take over."""


class Kept(NamedTuple):
    """The user's own word stands against a change."""

    why: str


# From what an attempt left to adjustments.


def healing(results: List[Dict[str, Any]], plans: List[Plan],
            rows: List[Row]) -> Dict[str, Any]:
    """What to change, by what attempts that failed say.

    :param results: of ``endpoint_switch``; those with ``attempt`` failed before the engine was
        ready.
    :param plans: the plans that were tried.
    :param rows: of ``catalog/log_signatures.yml``.
    :returns: ``{names, adjustments, attempts, told}``: the endpoints that are worth another
        attempt; by the endpoint's name all that the next plan is to take up, and the attempts so
        far; and what to say, by the name of each endpoint that did not get ready.
    """
    found: Dict[str, Any] = {"names": [], "adjustments": {}, "attempts": {}, "told": {}}
    by_name = {plan["name"]: plan for plan in plans}
    known = {row["id"]: row for row in rows}
    for result in results:
        attempt, name = result.get("attempt"), result.get("name")
        plan = by_name.get(str(name))
        if not isinstance(attempt, dict) or plan is None:
            continue
        had = plan["adjustments"]
        new, told = _changes(attempt, plan, known, {one["signature"] for one in had})
        found["attempts"][name] = [{**attempt, "adjustments": had}]
        found["told"][name] = "%s\n%s" % (result.get("msg", ""), "\n".join(
            "  " + one for one in told or ["  Nothing that is safe to change would help."]))
        if new:
            found["names"].append(name)
            found["adjustments"][name] = had + new
    return found


def _changes(attempt: Dict[str, Any], plan: Plan, rows: Dict[str, Row],
             used: Iterable[str]) -> Any:
    new: List[Adjustment] = []
    told = []
    words = attempt.get("words") or {}
    for one in attempt.get("findings") or []:
        row = rows.get(one["id"], {})
        change = row.get("change") or {}
        if not change or row["id"] in used or change["kind"] in [made["kind"] for made in new]:
            continue
        if attempt.get("trial") and change["kind"] in OF_THE_MODEL:
            told.append("%s: it was said of the canary, which has its own %s." % (
                row["id"], OF_THE_MODEL[change["kind"]]))
            continue
        value = MAKERS[change["kind"]](plan, change, words.get(row["id"]) or {})
        if isinstance(value, Kept):
            told.append("%s: not changed, %s." % (row["id"], value.why))
            continue
        made = {"signature": row["id"], "kind": change["kind"], "value": value}
        new.append(made)
        told.append("%s It is tried once more." % said(made))
    return new, told


def _context(plan: Plan, change: Row, words: Dict[str, str]) -> Any:
    if plan["asked"]["context"] != "auto":
        return Kept("its context is asked for")
    named = str(words.get(change.get("to") or "") or "").replace(",", "")
    fits = int(named) if named.isdigit() and len(named) < 12 else plan["context"] // 2
    value = int(min(fits, plan["context"]) * SHARE_OF_CONTEXT) // BLOCK * BLOCK
    if value < LEAST_CONTEXT:
        return Kept("%d tokens of context would be left" % value)
    return value


def _other_gpu(plan: Plan, change: Row, words: Dict[str, str]) -> Any:
    if isinstance(plan["asked"]["gpus"], list):
        return Kept("its devices are named")
    if not plan["gpus"]:
        return Kept("it has no device")
    index = words.get("device") or ""
    # The engine counts its own devices, in the order of the plan.
    if index.isdigit() and int(index[:4]) < len(plan["gpus"]):
        return [plan["gpus"][int(index[:4])]]
    return list(plan["gpus"])


def _start_budget(plan: Plan, change: Row, words: Dict[str, str]) -> Any:
    return LONGER * plan["start_timeout_s"]


def _shared_memory(plan: Plan, change: Row, words: Dict[str, str]) -> Any:
    if not plan["shm_bytes"]:
        return Kept("it is the host's /dev/shm")
    return MORE_SHARED_MEMORY * plan["shm_bytes"]


def _eager(plan: Plan, change: Row, words: Dict[str, str]) -> Any:
    if plan["engine"] != "vllm" or "--enforce-eager" in plan["flags"] + plan["extra_args"]:
        return Kept("it compiles nothing already")
    return True


def _environment(plan: Plan, change: Row, words: Dict[str, str]) -> Any:
    wanted = {key: str(value) for key, value in change["set"].items()}
    if all(plan["env"].get(key) == value for key, value in wanted.items()):
        return Kept("it has %s already" % " ".join(sorted(wanted)))
    return wanted


MAKERS = {"context": _context, "other_gpu": _other_gpu, "start_budget": _start_budget,
          "shared_memory": _shared_memory, "eager": _eager, "environment": _environment}
WORDS = {
    "context": "a context of %s tokens at most", "other_gpu": "other devices than %s",
    "start_budget": "%s s for its start", "shared_memory": "%s MiB of shared memory",
    "eager": "--enforce-eager", "environment": "%s",
}


def said(one: Adjustment) -> str:
    """An adjustment as a sentence."""
    value: Any = one["value"]
    if one["kind"] == "other_gpu":
        value = ", ".join(value)
    elif one["kind"] == "shared_memory":
        value //= 2**20
    elif one["kind"] == "environment":
        value = " ".join("%s=%s" % both for both in sorted(value.items()))
    words = WORDS[one["kind"]]
    return "Learned from a start that failed (%s): %s." % (
        one["signature"], words % value if "%s" in words else words)


# What of it holds for a plan.


def learned(request: Request, state: Dict[str, Any], new: Optional[List[Adjustment]],
            fingerprint: str, rows: List[Row]) -> List[Adjustment]:
    """What was learned of an endpoint: just now, else as its passport has it.

    The passport's holds where the same is asked for, the model is the same and a row still makes
    such a change: a passport lies on a host, which decides none of them. Which device was in
    trouble then says nothing of now: that is looked at anew each time.
    """
    if new is not None:
        return new
    plan = keep.last_plan(request, state)
    asked, model = plan.get("asked"), plan.get("model")
    if not isinstance(asked, dict) or any(
            asked.get(key) != request[key] for key in keep.ASKED) or not isinstance(
            model, dict) or model.get("fingerprint") != fingerprint:
        return []
    kept = plan.get("adjustments")
    changes = {row["id"]: row["change"] for row in rows}
    return [one for one in kept if is_sound(one, changes)] if isinstance(kept, list) else []


def of_release(adjustments: List[Adjustment], new: bool, request: Request, state: Dict[str, Any],
               row: Row) -> List[Adjustment]:
    """Those that hold for a release: what another one needed is not known to be needed by it."""
    plan = keep.last_plan(request, state)
    same = (plan.get("engine"), plan.get("engine_version")) == (row["engine"], row["version"])
    return adjustments if new or same else []


def is_sound(one: Any, changes: Dict[str, Row]) -> bool:
    """Whether something that lay on a host is a change that its row makes."""
    if not isinstance(one, dict) or not isinstance(one.get("signature"), str):
        return False
    change, value = changes.get(one["signature"]) or {}, one.get("value")
    kind = change.get("kind")
    if kind is None or one.get("kind") != kind:
        return False
    if kind in MOST:
        return type(value) is int and 0 < value < MOST[kind]
    return bool(value == change["set"]) if kind == "environment" else (
        kind == "eager" and value is True)


def value_of(adjustments: List[Adjustment], kind: str, otherwise: Any = None) -> Any:
    """What was learned of that kind; of several the last one."""
    return next((one["value"] for one in reversed(adjustments) if one["kind"] == kind), otherwise)


def without(facts: Facts, adjustments: List[Adjustment]) -> Facts:
    """The host without the devices, and their slices, that are not to be tried again."""
    gone = {uuid for one in adjustments if one["kind"] == "other_gpu" for uuid in one["value"]}
    if not gone:
        return facts
    found = []
    for device in facts["devices"]:
        if device["uuid"] in gone:
            continue
        mig = device["mig"]
        if mig and mig.get("slices"):
            mig = {**mig, "slices": [one for one in mig["slices"] if one["uuid"] not in gone]}
        found.append({**device, "mig": mig})
    return {**facts, "devices": found}


def environment(adjustments: List[Adjustment]) -> Dict[str, str]:
    """Variables that were learned to be needed."""
    return {key: value for one in adjustments if one["kind"] == "environment"
            for key, value in one["value"].items()}

