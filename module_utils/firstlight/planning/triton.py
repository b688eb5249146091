# SPDX-License-Identifier: Apache-2.0
"""How an engine on the host itself comes to CUDA and to Triton's kernels, or lives without them."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional

from ..findings import Finding
from . import flags, reasons, releases

Row = Dict[str, Any]
Request = Dict[str, Any]
Model = Dict[str, Any]
LibraryPath = Dict[str, Any]
"""What ``host_checks`` or ``linker_cache`` returned; ``environment`` and ``blocks`` of it count."""

NOTHING: LibraryPath = {"environment": {}, "blocks": []}


class Way(NamedTuple):
    """What the engine is given for it, whether it may have one device only, and why."""

    env: Dict[str, str]
    flags: List[str]
    one_device: bool
    reasons: List[str]


class NoWay(Exception):
    """The engine cannot work here; carries the findings."""

    def __init__(self, findings: List[Finding]) -> None:
        super().__init__("no way to the kernels")
        self.findings = findings


def way(request: Request, row: Row, model: Model, capability: str, library_path: LibraryPath,
        rows: List[Row], running: Optional[List[str]]) -> Way:
    """The way for an engine release.

    :param row: of the catalog of releases.
    :param capability: of the devices, empty for the CPU.
    :param library_path: of the host. A container has libraries of its own.
    :param rows: of the catalog ``without_triton``.
    :param running: flags of the endpoint that runs by a plan of the same release, which is no
        reason to take it down; ``None`` where none does.
    :raises NoWay: with the findings of the host, of which each names its remedy.
    """
    if not capability or not releases.is_own(request):
        return Way({}, [], False, [])
    # What has no Triton needs the loader alone.
    env = {key: value for key, value in library_path["environment"].items()
           if row["triton"] or key == "LD_LIBRARY_PATH"}
    told = ["The host's linker cache does not lead to libcuda and could not be mended: the engine "
            "is given %s." % ", ".join("=".join(pair) for pair in sorted(env.items()))]
    blocks = [one for one in library_path["blocks"]
              if one["python"] in ("", request["engine_python"])
              and (row["triton"] or one["stops"] != "triton")]
    if not blocks:
        return Way(env, [], False, told if env else [])
    found = "; ".join(one["finding"]["found"] for one in blocks)
    remedy = "; ".join(one["finding"]["remedy"].rstrip(".") for one in blocks)
    without: Optional[Row] = None
    if all(one["stops"] == "triton" for one in blocks):
        without = _without(request, row, model, capability, rows)
    if running is not None:
        last = without is not None and set(without["flags"]) <= set(running)
        return Way({**env, **(without["environment"] if without and last else {})},
                   list(without["flags"]) if without and last else [], last, [
            "It runs and is left alone. It could not be started now: %s. What helps: %s." % (
                found, remedy)])
    if without is None:
        raise NoWay([_refused(request, row, blocks, found, remedy)])
    return Way({**env, **without["environment"]}, list(without["flags"]), True, [
        "The last resort: Triton does not work on this host (%s), and this release lives without "
        "it. What it costs: %s. To have it back: %s." % (found, without["cost"], remedy)])


def _refused(request: Request, row: Row, blocks: List[Dict[str, Any]], found: str,
             remedy: str) -> Finding:
    release = "%s %s" % (row["engine"], row["version"])
    root = any(one["finding"]["needs_root"] for one in blocks)
    key = "engine_python" if request["engine_python"] else "engine_binary"
    if any(one["stops"] != "triton" for one in blocks):
        return reasons.refusal(
            request, "cuda-cannot-start", key, "CUDA does not start on this host: %s" % found,
            "a host on which it does", remedy, needs_root=root)
    return reasons.refusal(
        request, "triton-cannot-work", key, "Triton does not work on this host: %s" % found,
        "a host on which it does: nothing says that %s lives without it with this model and these "
        "flags" % release, remedy, needs_root=root)


def _without(request: Request, row: Row, model: Model, capability: str,
             rows: List[Row]) -> Optional[Row]:
    given = {flags.spelled(one) for one in request["extra_args"] if one.startswith("-")}
    for one in rows:
        if one["engine"] == row["engine"] and row["version"] in one["versions"] \
                and model["geometry"]["architecture"] in one["architectures"] \
                and releases.method_of(model) in one["quantisations"] \
                and capability in one["capabilities"] and given <= set(one["only_with"]):
            return one
    return None
