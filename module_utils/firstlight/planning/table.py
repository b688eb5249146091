# SPDX-License-Identifier: Apache-2.0
"""Plans for a person: tables of what runs where and what it takes, the reasons, the refusals."""

from __future__ import annotations

import textwrap
from typing import Any, Dict, Iterator, List, Optional, Sequence

from .. import findings
from ..findings import shown

Plan = Dict[str, Any]

WIDTH = 100
BAR = 20
GIB = 2**30
FREE = "."
# Letter, key of the plan's memory, and what it is.
PARTS = (
    ("w", "weights_bytes", "weights"),
    ("k", "kv_bytes", "KV"),
    ("a", "activation_bytes", "activations"),
    ("g", "graph_bytes", "graphs"),
    ("c", "context_bytes", "context and buffers"),
)
# Words that every card's name begins with and that tell nothing beside the rest.
MAKERS = ("NVIDIA ", "Tesla ", "GeForce ", "Jetson ")


def plan_table(result: Dict[str, Any], facts: Dict[str, Any]) -> str:
    """What :func:`.plan.deployment_plan` decided, as text of 100 columns where names are short.

    Parts of it come from hosts and models, so control characters are shown, not sent.

    :param result: ``{endpoints: plans, refusals: findings}``.
    :param facts: ``gpu_host`` of the host, which has the names of the devices.
    """
    plans, refusals = result["endpoints"], result["refusals"]
    names = _names(facts)
    parts = []
    if plans:
        parts.append(columns(
            ("endpoint", "engine", "devices", "TP", "context", "KV tokens"),
            [_row(plan, names) for plan in plans], right=(3, 4, 5)))
        parts.append("Memory per device, GiB: %s, %s free" % (", ".join(
            "%s %s" % (letter, name) for letter, _, name in PARTS), FREE))
        parts.append(columns(
            ("endpoint", "memory", "used / has", "±", "source", "start: expected / limit"),
            [_memory_row(plan) for plan in plans], right=(2, 3)))
        parts += [_details(plan, names) for plan in plans]
    if refusals:
        parts.append("Refused:\n" + findings.text(refusals))
    return "\n\n".join(parts) or "Nothing is asked for."


def columns(head: Sequence[str], rows: Sequence[Sequence[str]],
            right: Sequence[int] = ()) -> str:
    """A table whose columns are as wide as their widest cell.

    :param right: numbers of the columns that are flush right.
    """
    lines = [list(head)] + [[shown(cell) for cell in row] for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(
        cell.rjust(width) if column in right else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(line, widths))).rstrip() for line in lines)


def _row(plan: Plan, names: Dict[str, str]) -> Sequence[str]:
    stages = plan["pipeline_parallel"]
    return (
        plan["name"],
        "%s %s (%s)" % (plan["engine"], plan["engine_version"], plan["runtime"]),
        _devices(plan, names),
        "%s x %s PP" % (plan["tensor_parallel"], stages) if stages > 1
        else str(plan["tensor_parallel"]),
        _number(plan["context"]),
        _number(plan["memory"]["kv_tokens"]),
    )


def _memory_row(plan: Plan) -> Sequence[str]:
    memory, start = plan["memory"], plan["start"]
    return (
        plan["name"],
        "[%s]" % _bar(memory),
        "%s / %s" % (_gib(memory["total_bytes"]), _gib(memory["limit_bytes"])),
        _gib(memory["error_bytes"]),
        str(memory["source"]),
        "%s s / %s s%s" % (_number(start["expected_s"]), _number(start["limit_s"]),
                           " (compiled before)" if start["cached"] else ""),
    )


def _bar(memory: Dict[str, Any]) -> str:
    """A cell shows what lies at its middle, so that the parts add up to the whole."""
    limit = memory["limit_bytes"]
    if not limit:
        return "?" * BAR
    ends, end = [], 0
    for letter, key, _ in PARTS:
        end += memory[key] or 0
        ends.append((end, letter))
    return "".join(
        next((letter for end, letter in ends if end * 2 * BAR > limit * (2 * cell + 1)), FREE)
        for cell in range(BAR))


def _names(facts: Dict[str, Any]) -> Dict[str, str]:
    """A short name of every device and slice by what plans call it."""
    names = {}
    for device in facts["devices"]:
        names[device["uuid"] or "devices[%d]" % device["index"]] = _short(device["name"])
        for piece in (device["mig"] or {}).get("slices") or []:
            names[piece["uuid"]] = _short(piece["name"])
    return names


def _short(name: Optional[str]) -> str:
    if not name:
        return "unnamed"
    before, mig, profile = name.partition("MIG ")
    if mig and profile:
        return mig + profile
    for maker in MAKERS:
        if name.startswith(maker):
            name = name[len(maker):]
    return name


def _devices(plan: Plan, names: Dict[str, str]) -> str:
    counts: Dict[str, int] = {}
    for one in plan["gpus"]:
        name = names.get(one, "unknown")
        counts[name] = counts.get(name, 0) + 1
    return " + ".join("%d x %s" % (count, name) for name, count in counts.items()) or "CPU"


def _model(model: Plan) -> str:
    """What is served: a repository with its commit, or a path."""
    if not model.get("commit"):
        return str(model["path"])
    revision = "" if model["revision"] == model["commit"] else "%s, " % model["revision"]
    return "%s (%s%s)" % (model["repo_id"], revision, model["commit"])


def _details(plan: Plan, names: Dict[str, str]) -> str:
    """An endpoint's devices and the reasons for what was decided."""
    lines = ["%s: %s" % (shown(plan["name"]), shown(_model(plan["model"])))]
    lines += ["  %s  %s" % (shown(one), shown(names.get(one, "unknown"))) for one in plan["gpus"]]
    for text in _ways(plan):
        lines += _wrapped(text, "  ")
    for reason in plan["reasons"]:
        lines += _wrapped(reason, "  - ") or ["  -"]
    return "\n".join(lines)


def _wrapped(text: str, before: str) -> List[str]:
    return textwrap.wrap(shown(text), WIDTH, initial_indent=before, subsequent_indent="    ",
                         break_long_words=False, break_on_hyphens=False)


def _ways(plan: Plan) -> Iterator[str]:
    """What of a container and of a way in there is to know."""
    if plan["image"]:
        yield "image: %s%s" % (plan["image"], " as %s" % plan["user"] if plan["user"] else "")
    if plan["way_in"]:
        certificate = "a certificate signed by itself" if plan["tls"] == "self-signed" else (
            plan["tls_certificate"])
        yield "way in: %s with a key and %s; the engine is behind it, on port %d" % (
            plan["public_url"], certificate, plan["engine_port"])
        yield "a change: %s" % (
            "a new engine is proven while the old one serves" if plan["beside"] else
            "the old engine is stopped before a new one starts")


def _number(value: Optional[int]) -> str:
    return "-" if value is None else f"{value:,}"


def _gib(count: Optional[int]) -> str:
    return "-" if count is None else "%.2f" % (count / GIB)
