# SPDX-License-Identifier: Apache-2.0
"""A change of an endpoint as the host's own work, which a module begins and watches."""

from __future__ import annotations

import os
import uuid
from typing import Any, Callable, Dict

from . import detached
from .endpoint import Endpoint, NotServing, Report
from .transaction import Busy, RollbackFailed

Params = Dict[str, Any]
Told = Dict[str, Any]

BUSY = "%s; nothing was changed. Run again when it has ended."


def file(params: Params) -> str:
    """Where the work of an endpoint is written down: whatever it is, one is done at a time."""
    return os.path.join(params["root"], "journal", "endpoint-%s.run.json" % params["name"])


def has_begun(params: Params) -> bool:
    """Whether the work of this very run is there to be watched."""
    return bool(params["run"]) and detached.is_of(file(params), params["run"])


def watch(endpoint: Endpoint, params: Params, do: Callable[[Report], Told], limit_s: float,
          what: str, clear: Callable[[], None] = lambda: None,
          more: Callable[[NotServing], Told] = lambda problem: {}) -> Told:
    """Have the work done, or watch it further.

    :param params: ``root``, ``name``, and ``run`` and ``wait_s`` of the module.
    :param do: the work; it runs in a process of its own.
    :param limit_s: when a guard puts everything back.
    :param what: the work in words, for where it is ended in the middle.
    :param clear: what beside the transaction is to go then.
    :param more: what else to tell of a failure.
    :returns: ``{finished: False, progress}``, or what the work returned, or ``failed``, with what
        is to be said of it.
    """
    def go_back() -> Told:
        endpoint.begun = True
        try:
            with endpoint.journal():
                pass
        finally:
            clear()
        raise NotServing("The %s %s was ended in the middle." % (what, endpoint.name))

    told = detached.watch(
        file(params), params["run"] or uuid.uuid4().hex,
        params["wait_s"] if params["run"] else None,
        lambda report: _told(endpoint, lambda: do(report), more),
        lambda: _told(endpoint, go_back, more), limit_s)
    return dict(told["result"]) if told["finished"] else {
        "finished": False, "progress": told["progress"]}


def _told(endpoint: Endpoint, task: Callable[[], Told],
          more: Callable[[NotServing], Told]) -> Told:
    """What came of it, in a form that can be written down."""
    try:
        return task()
    except Busy as problem:
        return {"failed": BUSY % problem}
    except RollbackFailed as problem:
        return {"failed": str(problem)}
    except NotServing as problem:
        return {"failed": "%s\n%s" % (problem, endpoint.what_serves()), **more(problem)}
    except Exception as problem:  # its process ends with it, so this is the only word of it
        return {"failed": "Endpoint %s: %s\n%s" % (
            endpoint.name, str(problem) or type(problem).__name__, endpoint.what_serves())}
