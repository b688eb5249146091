# SPDX-License-Identifier: Apache-2.0
"""What the doctor says of all hosts, and what the repair made of them, for a person to read."""

from __future__ import annotations

import textwrap
from typing import Any, Dict, List

from ..findings import SEVERITIES, Finding, finding, shown
from .health import VERDICTS
from .table import columns

Report = Dict[str, Any]
"""Of one host: ``{class, verdict, devices, findings, remedies}``."""

SCREEN = 24
"""Lines of a terminal."""
WIDTH = 100
UNKNOWN = "unknown"
"""Class and verdict of a host that was not judged."""


def with_checks(health: Report, checks: Dict[str, Any]) -> Report:
    """A host's health with what its library path adds to it.

    :param health: what :func:`.health.host_health` returned.
    :param checks: what ``host_checks`` or ``linker_cache`` returned. Its findings make a host
        degraded, never a GPU bad: a container has libraries of its own.
    :returns: the health, and of the checks ``helps``, ``environment`` and ``blocks``.
    """
    known = [one["id"] for one in health["findings"]]
    more = [one for one in checks["findings"] if one["id"] not in known]
    worse = any(one["severity"] != "info" for one in more)
    return {
        "verdict": max(health["verdict"], "degraded" if worse else "ok", key=VERDICTS.index),
        "devices": health["devices"],
        "findings": health["findings"] + more,
        "remedies": sorted({*health["remedies"], *checks["remedies"]}),
        **{key: checks[key] for key in ("helps", "environment", "blocks")},
    }


def doctor_reports(reports: Dict[str, Report], hosts: List[str]) -> Dict[str, Report]:
    """The reports, with an entry for each host that was not judged, in the order of the hosts.

    :param reports: by host.
    :param hosts: all of them.
    """
    return {host: reports.get(host) or {
        "class": UNKNOWN, "verdict": UNKNOWN, "devices": {}, "remedies": [], "helps": {},
        "environment": {}, "blocks": [],
        "findings": [finding(
            "host-unknown", "this host", "it was not reached, or failed before it was judged",
            "a host that is judged", "look at what failed for it above, then run this again")],
    } for host in hosts}


def doctor_table(reports: Dict[str, Report]) -> str:
    """A line for each host.

    :param reports: by host.
    """
    rows = []
    for host, report in reports.items():
        verdicts = list(report["devices"].values())
        counts = ["%d %s" % (verdicts.count(verdict), verdict) for verdict in VERDICTS
                  if verdicts.count(verdict)]
        rows.append([host, report["class"], report["verdict"], ", ".join(counts) or "none",
                     ", ".join(_ids(report["findings"])) or "-"])
    return columns(["host", "class", "verdict", "GPUs", "findings"], rows)


def doctor_summary(reports: Dict[str, Report]) -> str:
    """What is not well, worst first, on one screen; empty where all is.

    :param reports: by host.
    """
    ill = {host: report for host, report in reports.items() if report["verdict"] != "ok"}
    if not ill:
        return ""
    lines = [(SEVERITIES.index(one["severity"]), "%s  [%s] %s: %s" % (
        host, one["severity"], one["id"], one["found"]))
        for host, report in ill.items() for one in report["findings"]
        if one["severity"] != "info"]
    ordered = [line for _, line in sorted(lines, key=lambda line: -line[0])]
    room = SCREEN - 4
    shorter = [_cut(shown(line)) for line in ordered[:room]]
    if len(ordered) > room:
        shorter.append("and %d findings more, told above" % (len(ordered) - room))
    remedies = sorted({name for report in ill.values() for name in report["remedies"]})
    told = "%d of %d hosts are not well." % (len(ill), len(reports))
    way = ("playbooks/repair.yml helps with some of it: %s." % ", ".join(remedies)
           if remedies else "What to change stands with each finding above.")
    return "\n".join([told, *shorter, *textwrap.wrap(way, WIDTH, max_lines=2, placeholder=" …")])


def repair_table(before: Report, after: Report) -> str:
    """Each finding with what became of it: mended, left or new.

    :param before: the host's health before the repair.
    :param after: the same after it.
    """
    rows: List[List[str]] = []
    was, now = _ids(before["findings"]), _ids(after["findings"])
    rows += [[one, "found", "left" if one in now else "mended"] for one in was]
    rows += [[one, "-", "new"] for one in now if one not in was]
    rows.append(["verdict", before["verdict"], after["verdict"]])
    return columns(["finding", "before", "after"], rows)


def _ids(findings: List[Finding]) -> List[str]:
    """Ids, each once, worst first."""
    ordered = sorted(findings, key=lambda one: -SEVERITIES.index(one["severity"]))
    return list(dict.fromkeys(one["id"] for one in ordered))


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else text[:WIDTH - 1] + "…"
