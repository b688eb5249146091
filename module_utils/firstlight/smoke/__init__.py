# SPDX-License-Identifier: Apache-2.0
"""Proof of an endpoint: real tokens through the real API, judged.

One function, :func:`prove`, used by ``smoke_inference`` (which reports) and by
``endpoint_switch`` (which keeps or puts back). A check that fails is a finding; the checks go on,
so one run says everything that is wrong, each thing once.
"""

from __future__ import annotations

import time
from typing import Any, Dict, List, Optional

from ..findings import Finding, blocking, finding
from .checks import CHECKS, Check
from .target import PATIENCE, SPEED_TOKENS, Silent, Target, Wrong, of_request

__all__ = ["REQUESTS", "SPEED_TOKENS", "Target", "Verdict", "of_request", "prove"]

Verdict = Dict[str, Any]
"""``{url, passed, checks: [{id, passed, seconds}], figures, findings}``"""

REQUESTS = 20 + PATIENCE
"""How many whole timeouts a proof may take: one for each request that follows another, those that
go out together for one, and the patience with a busy server."""


def prove(target: Target) -> Verdict:
    """Run every check that the endpoint has a need of.

    A server that does not answer a request ends the list early: it would only be waited for again.
    """
    checks: List[Dict[str, Any]] = []
    findings: List[Finding] = []
    target.began = time.monotonic()
    for check in CHECKS:
        if not check.needed(target):
            continue
        started = time.monotonic()
        wrong = _run(check, target)
        seconds = round(time.monotonic() - started, 4)
        checks.append({"id": check.name, "passed": wrong is None, "seconds": seconds})
        if wrong:
            target.failed.add(check.name)
            findings.append(_finding(target, check, wrong))
        if isinstance(wrong, Silent):
            break
    if target.patience.busy:
        target.figure("busy_s", target.patience.taken_s)
    return {
        "url": target.url,
        "passed": not blocking(findings),
        "checks": checks,
        "figures": target.figures,
        "findings": findings,
    }


def _run(check: Check, target: Target) -> Optional[Wrong]:
    try:
        check.run(target)
    except Wrong as wrong:
        return wrong
    except (AttributeError, KeyError, IndexError, TypeError) as problem:
        # The answer was JSON, but not of the API's shape.
        return Wrong(repr(problem), "an answer of the OpenAI API's shape")
    return None


def _finding(target: Target, check: Check, wrong: Wrong) -> Finding:
    return finding(
        "smoke-" + check.name,
        "%s at %s" % (target.model, target.url),
        found=wrong.found,
        wanted=wrong.wanted,
        evidence=wrong.evidence,
        remedy=wrong.remedy or "read the engine's log; the endpoint must not be used as it is",
        severity=wrong.severity,
    )
