# SPDX-License-Identifier: Apache-2.0
"""Looking at the library path: what both of its modules do first, and how they tell it."""

from __future__ import annotations

import os
from typing import Any, Callable, Dict, List, Mapping, NamedTuple

from . import paths
from .host import driver_libraries
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


class Looked(NamedTuple):
    """What was seen, what is wrong with it, and Pythons that cannot be led around anything."""

    seen: Seen
    problems: List[Problem]
    deaf: List[str]


def journal(root: str, undo: Callable[[], None] = lambda: None) -> Transaction:
    """The transaction of a repair.

    :param root: ``firstlight_root``, in one spelling.
    :param undo: called after files were put back.
    """
    return Transaction(os.path.join(root, "journal"), JOURNAL, undo)


def look(reader: Reader, params: Mapping[str, Any], environment: Mapping[str, str]) -> Looked:
    """Observe and judge.

    :param params: of the module, as :data:`SPEC` has them.
    :param environment: of the process.
    """
    wanted = host.Wanted(params["places"], params["tritons"], params["pythons"])
    seen = host.observe(reader, wanted, environment)
    root = paths.root(params["root"])
    seen["links_safe"] = driver_libraries.safe(reader.path(folder(root)))
    change = journal(root)
    # One that is under way, ours included, is no finding.
    left = change.path if change.half_done and not change.under_way else ""
    return Looked(seen, judge.problems(seen, params["checks"], params["tritons"], left),
                  judge.deaf(seen, params["tritons"]))


def folder(root: str) -> str:
    """Where our links to a driver's libraries are."""
    return os.path.join(root, paths.LIBRARIES)


def told(looked: Looked, environment: Mapping[str, str]) -> Dict[str, Any]:
    """What both modules return.

    :param environment: what engines are led with around what is wrong.
    """
    mendable = library_repair.mendable(looked.seen, looked.problems)
    around = library_repair.environment(looked.seen, looked.problems, "") and not environment
    # To lead engines around it is the same role's.
    helped = {one.finding["id"]: library_repair.REMEDY for one in looked.problems
              if one in mendable or (one.stops and one.bypass and around)}
    return {
        "findings": [one.finding for one in looked.problems],
        "remedies": sorted(set(helped.values())),
        "helps": helped,
        "environment": dict(environment),
        # What a repair would mend is out of the way before an engine starts.
        "blocks": [block for one in looked.problems if one.stops and one not in mendable
                   for block in _blocks(one, looked.deaf, environment)],
        "seen": {key: looked.seen[key] for key in TOLD},
    }


def _blocks(one: Problem, deaf: List[str], environment: Mapping[str, str]) -> List[Dict[str, Any]]:
    """Whom a problem stops, and from what."""
    whom = [one.python]
    if one.bypass and environment:
        whom = [path for path in deaf if one.python in ("", path)]
    return [{"stops": one.stops, "python": python, "finding": one.finding} for python in whom]


def printable(value: Any) -> Any:
    """The same with every text as JSON can carry it: names of files may be no text."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if isinstance(value, dict):
        return {key: printable(one) for key, one in value.items()}
    return [printable(one) for one in value] if isinstance(value, (list, tuple)) else value


def environment_now(reader: Reader, looked: Looked, root: str) -> Dict[str, str]:
    """What engines need and have: nothing where the links to lead them with are not there yet."""
    here = folder(root)
    driver = judge.chosen(looked.seen)
    link = reader.path(os.path.join(here, judge.SONAME))
    if driver is None or not os.path.islink(link):
        return {}
    led = os.path.realpath(reader.path(os.readlink(link)))
    if led != os.path.realpath(reader.path(driver["real"])):
        return {}
    return library_repair.environment(looked.seen, looked.problems, here)
