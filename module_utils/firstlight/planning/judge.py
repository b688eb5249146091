# SPDX-License-Identifier: Apache-2.0
"""Requests held against the host, before anything on it is touched."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any, Dict, Iterable, List

from .. import engine_log
from ..findings import Finding, blocking, finding
from . import way_in
from .requests import NAME, Request

# A unix socket's address has room for 107 bytes (unix(7)).
SOCKET_PATH_LIMIT = 107
# It stands in units and in supervisord's configuration, which have rules of their own for quotes.
ROOT = re.compile(r"/[\w/. @+-]*")


def against_host(
    requests: List[Request], state: Dict[str, Any], models: Dict[str, Any],
    signatures: Iterable[Dict[str, Any]] = (),
) -> List[Finding]:
    """Everything about the host that stops these requests.

    :param requests: as :func:`.requests.normalise` gives them.
    :param state: what ``endpoint_info`` returned.
    :param models: what ``model_info`` returned.
    :param signatures: rows of ``catalog/log_signatures.yml``, for what crashes.
    """
    findings = []
    for request in requests:
        findings.extend(_ports(request, state))
        findings.extend(_model(request, models))
    findings.extend(way_in.against_host(requests, state))
    findings.extend(_unasked(requests, state))
    findings.extend(_crashed(state, list(signatures)))
    findings.extend(_root(state))
    findings.extend(_python(state))
    return findings


def _ports(request: Request, state: Dict[str, Any]) -> List[Finding]:
    """The port that clients know, and those behind a way in."""
    port, asked = request["port"], request["engine_port"]
    findings = _port(request, state, port, "port")
    if way_in.wanted(request["bind"]) and type(port) is int and (
            asked is None or type(asked) is int):
        for inner in way_in.inner_ports(port, asked):
            findings += _port(request, state, inner, "engine_port")
    return findings


def _port(request: Request, state: Dict[str, Any], port: Any, key: str) -> List[Finding]:
    holder = state["ports"].get(str(port))
    if holder is None or _is_its_own(request, state, port, holder):
        return []
    if holder["pid"] is None:
        who = "a process of %s (its pid is not visible to uid %d; root sees it)" % (
            holder["user"], state["uid"])
    else:
        who = "pid %d of %s: %s" % (holder["pid"], holder["user"], holder["command"])
    subject = "%s.%s" % (request["where"], key)
    way_out = "change %s, or stop that process" % subject
    if holder["endpoint"]:
        who += " (Firstlight endpoint %s under %s)" % (holder["endpoint"], holder["root"])
        # A process may say anything of itself; only what could be ours is put into a command.
        if NAME.fullmatch(holder["endpoint"]) and ROOT.fullmatch(holder["root"] or ""):
            # Its service manager would start it again.
            way_out = "change %s, or take that endpoint down: %s" % (
                subject, _teardown(holder["endpoint"], holder["root"]))
    return [finding("port-held", subject, "port %d is held by %s" % (port, who),
                    "a free port", way_out)]


def _is_its_own(request: Request, state: Dict[str, Any], port: int,
                holder: Dict[str, Any]) -> bool:
    """Whether it is this endpoint that holds the port now."""
    name = request["name"]
    if holder["endpoint"] is not None:
        return bool(holder["endpoint"] == name and holder["root"] == state["root"])
    there = state["endpoints"].get(name) if isinstance(name, str) else None
    plan = ((there or {}).get("passport") or {}).get("plan") or {}
    if there is None or not plan:
        return False
    # A way in that gave up root says nothing of itself where the host's root may not look.
    if plan.get("way_in") and plan.get("port") == port:
        return (there.get("way_in") or {}).get("state") == "up" and (
            holder["pid"] is None or holder["user"] == way_in.USER)
    # And Docker publishes what is in a container.
    return (plan.get("runtime") == "docker" and plan.get("engine_port") == port
            and there["state"] in ("running", "starting", "failed"))


def _unasked(requests: List[Request], state: Dict[str, Any]) -> List[Finding]:
    """Endpoints of ours that nobody asks for any more go on serving; that is said."""
    # A list: a name that is wrong may be anything.
    asked = [request["name"] for request in requests]
    return [
        finding("endpoint-unasked", name, "it serves on %s and is not in inference_endpoints"
                % (one["passport"]["plan"]["url"] if one["passport"] else "an unknown port"),
                "endpoints that are asked for", "ask for it, or take it down: %s"
                % _teardown(name, state["root"]), severity="warning")
        for name, one in sorted(state["endpoints"].items())
        if name not in asked and one["state"] != "absent"
    ]


def _crashed(state: Dict[str, Any], signatures: List[Dict[str, Any]]) -> List[Finding]:
    """What a service manager starts again and again is no endpoint, even while it runs."""
    found = []
    for name, one in sorted(state["endpoints"].items()):
        if one["state"] != "failed" and not one["restarts"]:
            continue
        # What harms nobody is no cause.
        known = blocking(engine_log.diagnose(one["log"], signatures))
        said = "; ".join(each["found"] for each in known)
        found.append(finding(
            "endpoint-crashed", name, "its engine is %s (%s), and was started again %d times%s" % (
                one["state"], one["detail"], one["restarts"],
                "; its log says: %s" % said if said else ""),
            "an engine that runs since its start",
            " ".join(each["remedy"] for each in known)
            or "read its log: where it does not run, this run starts it again",
            severity="warning", evidence=one["log"]))
    return found


def _teardown(name: str, root: str) -> str:
    wanted = {"firstlight_root": root, "inference_endpoint_teardown_names": [name]}
    return "ansible-playbook playbooks/teardown.yml -i INVENTORY --limit HOST -e %s" % shlex.quote(
        json.dumps(wanted))


def _model(request: Request, models: Dict[str, Any]) -> List[Finding]:
    """The findings of ``model_info``, with the variable to change in them."""
    if request["model_kind"] != "path":
        return []
    return [
        dict(one, subject="%s.model" % request["where"], found=one["found"]
             if one["subject"] in one["found"] else "%s: %s" % (one["subject"], one["found"]))
        for one in models["findings"] if one["subject"] == request["model"]
    ]


def _root(state: Dict[str, Any]) -> List[Finding]:
    root = state["root"]
    findings = []
    if not ROOT.fullmatch(root):
        findings.append(finding(
            "root-unusable", "firstlight_root", repr(root),
            "an absolute path of letters, digits, spaces and /._@+-",
            "set firstlight_root to such a path"))
    if state["strangers"]:
        findings.append(finding(
            "root-not-ours", "firstlight_root", "%s holds %s" % (
                root, ", ".join(state["strangers"][:5])),
            "a directory of its own, that is new, empty or Firstlight's",
            "move that away" if state["endpoints"] else "set firstlight_root to such a directory",
            severity="warning" if state["endpoints"] else "error"))
    # supervisord binds a temporary name beside it: the same with `.` and its pid.
    length = len(root.encode()) + len("/supervisor/supervisor.sock.4194304")
    if state["manager"] == "supervisor" and length > SOCKET_PATH_LIMIT:
        findings.append(finding(
            "root-too-long", "firstlight_root", "%d bytes with the socket's name: %s"
            % (length, root), "at most %d bytes" % SOCKET_PATH_LIMIT,
            "set firstlight_root to a shorter path"))
    return findings


def _python(state: Dict[str, Any]) -> List[Finding]:
    """As root the toolbelt installs what is missing; anyone else must ask for it."""
    if state["python"]["venv"] or state["uid"] == 0:
        return []
    return [finding(
        "python-without-venv", "the host's Python",
        "Python %s cannot make virtual environments (no ensurepip)" % state["python"]["version"],
        "the module ensurepip", "install python3-venv (Debian, Ubuntu) as root",
        needs_root=True)]
