# SPDX-License-Identifier: Apache-2.0
"""The one shape in which anything worth saying is said.

Bad input, host checks, health, refusals of the planner, log signatures and smoke verdicts are
all lists of findings. Whatever prints one (doctor, plan, report, an error at 3 a.m.) prints it
with :func:`text`.
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, List

Finding = Dict[str, Any]

SEVERITIES = ("info", "warning", "error", "fatal")
BLOCKING = ("error", "fatal")


def finding(
    id: str,  # noqa: A002 - every finding is known by its id
    subject: str,
    found: str,
    wanted: str,
    remedy: str,
    severity: str = "error",
    evidence: str = "",
    needs_root: bool = False,
    source: str = "",
) -> Finding:
    """One finding.

    :param id: stable kebab-case name of the kind of finding, e.g. ``port-held``.
    :param subject: what it is about: a variable, an endpoint, a file, a device.
    :param found: what there is.
    :param wanted: what there should be.
    :param remedy: what to change, naming the variable or the command.
    :param severity: ``info``, ``warning``, ``error`` or ``fatal``; the last two stop a run.
    :param evidence: what was read, and where.
    :param needs_root: whether the remedy needs root on the host.
    :param source: where the knowledge behind it comes from.
    :raises ValueError: for a severity that does not exist.
    """
    if severity not in SEVERITIES:
        raise ValueError("severity %r is none of %s" % (severity, ", ".join(SEVERITIES)))
    return {
        "id": id,
        "severity": severity,
        "subject": subject,
        "found": found,
        "wanted": wanted,
        "evidence": evidence,
        "remedy": remedy,
        "needs_root": needs_root,
        "source": source,
    }


def blocking(findings: Iterable[Finding]) -> List[Finding]:
    """The findings that stop a run, in their order."""
    return [one for one in findings if one["severity"] in BLOCKING]


def text(findings: Iterable[Finding]) -> str:
    """All findings for a person to read, worst first, one paragraph each.

    Parts of them come from hosts, logs and processes, so control characters are shown, not sent.
    """
    ordered = sorted(findings, key=lambda one: -SEVERITIES.index(one["severity"]))
    return "\n".join(_paragraph(one) for one in ordered)


def _paragraph(one: Finding) -> str:
    lines = ["[%s] %s: %s" % (one["severity"], one["id"], shown(one["subject"], "\t"))]
    for label, key in (
        ("found", "found"),
        ("wanted", "wanted"),
        ("change", "remedy"),
        ("evidence", "evidence"),
    ):
        if one[key]:
            value = shown(one[key], "\t\n").rstrip("\n").replace("\n", "\n" + " " * 12)
            lines.append("  %-9s %s" % (label + ":", value))
    if one["needs_root"]:
        lines.append("  needs root")
    return "\n".join(lines)


def shown(value: Any, kept: str = "") -> str:
    """A text in which nothing but ``kept`` moves a cursor or ends a line."""
    return "".join(one if one.isprintable() or one in kept else repr(one)[1:-1]
                   for one in str(value))
