# SPDX-License-Identifier: Apache-2.0
"""Looking at the library path: what both of its modules do first, and how they tell it."""

from __future__ import annotations

import os
from typing import Any, Dict, List, Mapping, NamedTuple, Sequence

from . import paths
from .host import library_path as host
from .host.reading import Reader
from .planning import library_path as judge
from .planning import library_repair
from .planning.library_path import Problem, Seen
from .transaction import Transaction

ROWS = {"type": "list", "elements": "dict", "default": []}
SPEC: Dict[str, Any] = {
    "root": {"type": "path", "default": ""},
    "checks": {"type": "list", "elements": "dict", "required": True},
    "places": ROWS,
    "tritons": ROWS,
    "pythons": {"type": "list", "elements": "path", "default": []},
}
"""Options of both modules."""
JOURNAL = "linker_cache"
"""Name of the transaction."""
TOLD = ("cache", "tool", "libraries", "dangling", "loaded", "kernel_module", "pythons", "unread")


TRITON = ("triton", "both")


class Looked(NamedTuple):
    """What was seen, and what is wrong with it."""

    seen: Seen
    problems: List[Problem]


def journal(root: str) -> Transaction:
    """The transaction of a repair.

    :param root: ``firstlight_root``, in one spelling.
    """
    return Transaction(os.path.join(root, "journal"), JOURNAL)


def look(reader: Reader, params: Mapping[str, Any], environment: Mapping[str, str]) -> Looked:
    """Observe and judge.

    :param params: of the module, as :data:`SPEC` has them.
    :param environment: of the process.
    """
    wanted = host.Wanted(params["places"], params["tritons"], params["pythons"])
    seen = host.observe(reader, wanted, environment)
    change = journal(paths.root(params["root"]))
    # One that is under way, ours included, is no finding.
    left = change.path if change.half_done and not change.under_way else ""
    return Looked(seen, judge.problems(seen, params["checks"], params["tritons"], left))


def folder(root: str) -> str:
    """Where our links to a driver's libraries are."""
    return os.path.join(root, paths.LIBRARIES)


def told(looked: Looked, environment: Mapping[str, str],
         pending: Sequence[Problem] = ()) -> Dict[str, Any]:
    """What both modules return.

    :param environment: what engines are led with around what is wrong.
    :param pending: what would be mended, in check mode.
    """
    here = library_repair.mendable(looked.seen, looked.problems)
    # Once engines are led around it, nothing more helps with what cannot be mended here.
    helped = {one.finding["id"]: one.helps for one in looked.problems
              if one.helps and (one in here or not (one.bypass and environment))}
    return {
        "findings": [one.finding for one in looked.problems],
        "remedies": sorted(set(helped.values())),
        "helps": helped,
        "environment": dict(environment),
        "stops_triton": [one.finding for one in looked.problems
                         if one.stops in TRITON and one not in pending
                         and not (one.bypass and environment)],
        "seen": {key: looked.seen[key] for key in TOLD},
    }


def environment_now(reader: Reader, looked: Looked, root: str) -> Dict[str, str]:
    """What engines need and have: nothing where the links to lead them with are not there yet."""
    here = folder(root)
    driver = judge.chosen(looked.seen)
    link = reader.path(os.path.join(here, judge.SONAME))
    if driver is None or not os.path.islink(link) or os.readlink(link) != driver["real"]:
        return {}
    return library_repair.environment(looked.seen, looked.problems, here)
