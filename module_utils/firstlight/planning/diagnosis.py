# SPDX-License-Identifier: Apache-2.0
"""What a log has to say of an endpoint, as a person reads it: how it is, why, and what to do.

A log keeps what was: of an endpoint that serves now its lines tell what it got over, and must not
read as if it were dead.
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, Tuple

from .. import findings
from ..findings import Finding, shown

Row = Dict[str, Any]
Told = Dict[str, Any]
"""What ``engine_log_diagnosis`` returns."""

STATES = {
    "running": "runs, and does not answer /health with 200",
    "starting": "starts",
    "failed": "is dead",
    "stopped": "is stopped",
    "absent": "has no service",
}


def diagnosis_text(told: Told, endpoints: Dict[str, Any], rows: List[Row]) -> str:
    """All that is known of one log.

    :param told: what ``engine_log_diagnosis`` returned of it.
    :param endpoints: ``endpoints`` of ``endpoint_info``; of a file it need not have anything.
    :param rows: of ``catalog/log_signatures.yml``.
    """
    state = endpoints.get(told["name"]) or {}
    serves = bool(state.get("healthy"))
    known = {row["id"]: row for row in rows}
    last, earlier, attempt = told["findings"], told["earlier"], told["attempt"]
    parts = [*([_how(told, state)] if told["name"] else []), _read(told)]
    if last:
        parts += _part("What it got over in this start" if serves else "Of its last start",
                       _as_past(last, "warning") if serves else last)
    if earlier:
        parts += _part("Of starts before that", _as_past(earlier, "info"))
    if attempt:
        parts += _part("Of the last attempt to change it, which failed at %s%s" % (
            attempt["at"], ", and was put back" if serves else ""), attempt["findings"],
            "no line that is known; its log is failed.log in the endpoint's folder")
    open_ = [] if serves else [(one, told["words"]) for one in last]
    parts += _next([*open_, *((one, attempt["words"]) for one in (
        attempt["findings"] if attempt else []))], known)
    if not (serves or last or attempt or told["unread"]):
        parts.append("  No line of it is known. Read its end: %s" % shown(told["place"]))
    return "\n".join(parts)


def _how(told: Told, state: Dict[str, Any]) -> str:
    plan = ((state.get("passport") or {}).get("plan")) or {}
    how = ("serves on %s" % plan.get("url") if state.get("healthy")
           else STATES.get(str(state.get("state")), "is not known to this host"))
    # Its manager's words of one that serves are the time that it runs.
    more = [] if state.get("healthy") else [str(state.get("detail") or "")]
    if state.get("restarts"):
        more.append("started again %d times" % state["restarts"])
    if state.get("half_done"):
        more.append("a switch of it was ended in the middle, or is under way")
    more = [one for one in more if one]
    return shown("%s: %s%s" % (told["name"], how, " (%s)" % ", ".join(more) if more else ""))


def _read(told: Told) -> str:
    if told["unread"]:
        return "  Its log could not be read: %s" % shown(told["unread"])
    log = "  Its log (%s)" if told["name"] else "The log %s"
    stand = told["progress"]
    counted = " (%d of %d %s)" % (stand["done"], stand["total"], stand["unit"]) \
        if "total" in stand else ""
    return shown(log % told["place"] + " has %d lines of %s. %s" % (
        told["lines"],
        "one start" if told["starts"] == 1 else "%d starts" % told["starts"],
        "The last one came to: %s%s." % (stand["text"], counted) if stand
        else "How far the last one came it does not say."))


def _part(title: str, told: List[Finding], otherwise: str = "") -> List[str]:
    said = findings.text(told) if told else otherwise
    return ["  %s:" % shown(title), *("    " + line for line in said.split("\n"))]


def _as_past(told: Iterable[Finding], most: str) -> List[Finding]:
    """What was, no worse than that."""
    worst = findings.SEVERITIES.index(most)
    return [dict(one, severity=findings.SEVERITIES[min(
        worst, findings.SEVERITIES.index(one["severity"]))]) for one in told]


def _next(told: List[Tuple[Finding, Dict[str, Any]]], rows: Dict[str, Row]) -> List[str]:
    """What can be done beside what each finding says itself."""
    lines = []
    for one, words in told:
        row = rows.get(one["id"]) or {}
        if one["severity"] not in findings.BLOCKING:
            continue
        if row.get("change"):
            lines.append("site.yml changes this by itself, once, where inventory leaves it open: %s"
                         % _change(row["change"], words.get(one["id"]) or {}))
        if row.get("repair"):
            lines.append("ansible-playbook playbooks/repair.yml -t %s" % row["repair"])
    return ["  Next:", *("    " + shown(line) for line in dict.fromkeys(lines))] if lines else []


def _change(change: Row, words: Dict[str, str]) -> str:
    fits = words.get(change.get("to") or "")
    return {
        "context": "a context below %s tokens" % fits if fits else "half the context",
        "other_gpu": "other devices",
        "start_budget": "twice the time for its start",
        "shared_memory": "more shared memory for its container",
        "eager": "--enforce-eager",
        "environment": " ".join("%s=%s" % pair for pair in sorted(
            (change.get("set") or {}).items())),
    }[change["kind"]]
