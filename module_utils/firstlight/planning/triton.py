# SPDX-License-Identifier: Apache-2.0
"""How an engine on the host itself comes to Triton's kernels, or lives without, or cannot."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional

from ..findings import Finding
from . import flags, reasons, releases

Row = Dict[str, Any]
Request = Dict[str, Any]
Model = Dict[str, Any]
LibraryPath = Dict[str, Any]
"""What ``host_checks`` or ``linker_cache`` returned; ``environment`` and ``stops_triton`` count."""

NOTHING: LibraryPath = {"environment": {}, "stops_triton": []}


class Way(NamedTuple):
    """What the engine is given for it, at most how many devices it may have then, and why."""

    env: Dict[str, str]
    flags: List[str]
    one_device: bool
    reasons: List[str]


class NoWay(Exception):
    """The engine needs Triton, and Triton does not work here; carries the findings."""

    def __init__(self, findings: List[Finding]) -> None:
        super().__init__("no way to Triton")
        self.findings = findings


def way(request: Request, row: Row, model: Model, capability: str, library_path: LibraryPath,
        rows: List[Row]) -> Way:
    """The way for an engine release.

    :param row: of the catalog of releases.
    :param capability: of the devices, empty for the CPU.
    :param library_path: of the host. A container has libraries of its own.
    :param rows: of the catalog ``without_triton``.
    :raises NoWay: with the findings of the host, of which each names its remedy.
    """
    if not row["triton"] or not capability or not releases.is_own(request):
        return Way({}, [], False, [])
    env = dict(library_path["environment"])
    stops = library_path["stops_triton"]
    if not stops:
        told = ["The host's linker cache does not lead to libcuda and could not be mended: the "
                "engine is given %s." % ", ".join("=".join(pair) for pair in sorted(env.items()))]
        return Way(env, [], False, told if env else [])
    without = _without(request, row, model, capability, rows)
    found = "; ".join(one["found"] for one in stops)
    if without is None:
        raise NoWay([reasons.refusal(
            request, "triton-cannot-work", "engine_python",
            "Triton does not work on this host: %s" % found,
            "a host on which it does: nothing says that %s lives without it with this model and "
            "these flags" % "%s %s" % (row["engine"], row["version"]),
            "; ".join(one["remedy"] for one in stops),
            needs_root=any(one["needs_root"] for one in stops))])
    return Way({**env, **without["environment"]}, list(without["flags"]), True, [
        "The last resort: Triton does not work on this host (%s), and this release lives without "
        "it. What it costs: %s. To have it back: %s." % (
            found, without["cost"], "; ".join(one["remedy"] for one in stops).rstrip("."))])


def _without(request: Request, row: Row, model: Model, capability: str,
             rows: List[Row]) -> Optional[Row]:
    given = [flags.spelled(one) for one in request["extra_args"]]
    for one in rows:
        if (one["engine"], one["version"]) == (row["engine"], row["version"]) \
                and model["geometry"]["architecture"] in one["architectures"] \
                and releases.method_of(model) in one["quantisations"] \
                and capability in one["capabilities"] \
                and not any(flag.startswith(tuple(one["not_with"])) for flag in given):
            return one
    return None
