# SPDX-License-Identifier: Apache-2.0
"""Wheels of a whole fleet: what its environments need, who lists and fetches, and who gets what.

And what endpoints are told of the wheels in the environments that their engines run in.
"""

from __future__ import annotations

import json
import posixpath
from typing import Any, Dict, Iterable, List, Mapping, Sequence, Tuple

from packaging.version import InvalidVersion, Version

from ..findings import Finding, blocking, finding
from . import wheel_builds, wheels

Told = Dict[str, Any]
Fleet = Mapping[str, Mapping[str, Any]]
"""The hosts of a run, in their order, with what each has: ``can`` (whether it may go out),
``requests`` of :func:`.wheels.wheel_requests`, ``environments`` and ``candidates`` as the module
``prebuilt_wheel_info`` found them there without going out, ``facts`` (``gpu_host``) and
``build_limit_s`` (seconds that a build from source may take there; 0: none is allowed)."""
Identity = Tuple[str, str]
"""The name of a file and its SHA-256."""

TO_BRING = ("install", "build")
"""The actions that need a file."""
CONTROLLER = "localhost"
"""The seed that need be no host of the fleet."""


# What is asked of hosts.


def wheel_environments(requests: Sequence[Mapping[str, Any]]) -> List[Told]:
    """``environments`` of the module ``prebuilt_wheel_info``: each once, with all its rows.

    :param requests: as :func:`.wheels.wheel_requests` gives them.
    """
    rows: Dict[str, List[Any]] = {}
    for request in requests:
        mine = rows.setdefault(request["python"], [])
        if request["row"] not in mine:
            mine.append(request["row"])
    return [{"python": python, "rows": mine} for python, mine in rows.items()]


def wheels_sought(requests: Sequence[Mapping[str, Any]]) -> List[Told]:
    """``candidates`` of the module ``prebuilt_wheel_info``: each question once.

    :param requests: as :func:`.wheels.wheel_requests` gives them.
    """
    return _once(map(wheels.question, requests))


def wheel_build_decisions(
        decisions: Sequence[Mapping[str, Any]], environments: Mapping[str, Mapping[str, Any]],
        facts: Mapping[str, Any], limit_s: int) -> List[Told]:
    """The same decisions; those to build with ``build``, how, or refused where it cannot be.

    They are without ``rejected``, which may be a thousand files; what stops is summed up in
    ``findings``.

    :param decisions: as :func:`.wheels.wheel_decisions` gives them.
    :param environments: as ``prebuilt_wheel_info`` returns them.
    :param facts: ``gpu_host`` of ``gpu_facts``; may be empty.
    :param limit_s: seconds that a build may take.
    """
    made = []
    for decision in decisions:
        one = {key: value for key, value in decision.items() if key != "rejected"}
        if one["action"] != "build":
            made.append(one)
            continue
        request = one["request"]
        plan = wheel_builds.build_plan(
            request["row"], dict(environments[request["python"]]), [], dict(facts), limit_s)
        refused = {"action": "refused", "version": ""} if blocking(plan["findings"]) else {}
        made.append({**one, **refused, "build": plan, "findings": [*one["findings"], *(
            dict(told, subject="%s, %s" % (request["where"], told["subject"]))
            for told in plan["findings"])]})
    return made


# What endpoints are told.


def wheels_there(requests: Sequence[Mapping[str, Any]],
                 environments: Mapping[str, Mapping[str, Any]]) -> Told:
    """What is in the environments now, working or not, of the packages that are asked for.

    It is what :func:`.wheels.wheels_wanted` gives of decisions where all is there as wanted. Where
    something is not, it is what the endpoints that serve were most likely started with.

    :param requests: as :func:`.wheels.wheel_requests` gives them.
    :param environments: as ``prebuilt_wheel_info`` returns them.
    :returns: ``{version, sha256}`` by interpreter and package.
    """
    found: Dict[str, Dict[str, Any]] = {}
    for request in requests:
        about = environments.get(request["python"]) or {}
        there = (about.get("installed") or {}).get(request["package"]) or {}
        try:
            version = Version(there.get("version") or "").public
        except InvalidVersion:
            continue
        found.setdefault(request["python"], {})[request["package"]] = {
            "version": version, "sha256": request["sha256"]}
    return found


def endpoint_wheels(requests: Sequence[Mapping[str, Any]],
                    wanted: Mapping[str, Mapping[str, Any]]) -> List[Told]:
    """Endpoints, each with the wheels that its engine's environment has, or will have.

    :param requests: as :func:`.requests.normalise` gives them.
    :param wanted: as :func:`.wheels.wheels_wanted` gives them. Where it says nothing of an
        environment, the endpoint is as it was.
    """
    by_path = {posixpath.normpath(python): found for python, found in wanted.items() if found}
    return [{**request, "wheels": by_path[posixpath.normpath(request["engine_python"])]}
            if isinstance(request["engine_python"], str)
            and posixpath.normpath(request["engine_python"]) in by_path else dict(request)
            for request in requests]


# A fleet.


def wheel_fleet_asked(fleet: Fleet, seed: str = "") -> Told:
    """Who lists candidates for all, and what is sought.

    :param fleet: the hosts that are left.
    :param seed: the host that goes out for all, or ``localhost``; empty: the first that may, of
        those that need something before others.
    :returns: ``seed``, empty where nobody may go out, and ``sought`` for the module
        ``prebuilt_wheel_info``: each question once, however many hosts have it. It is empty where
        no environment needs anything.
    """
    due = {host: _due(about) for host, about in fleet.items()}
    able = [host for host, about in fleet.items() if about["can"]]
    seed = seed or next((host for host in able if due[host]), able[0] if able else "")
    return {"seed": seed, "sought": _once(
        one for requests in due.values() for one in wheels_sought(requests))}


def wheel_fleet_plan(fleet: Fleet, asked: Mapping[str, Any], answer: Mapping[str, Any]) -> Told:
    """What is fetched, and who gets what.

    :param fleet: the hosts that are left.
    :param asked: what :func:`wheel_fleet_asked` gave.
    :param answer: what the module ``prebuilt_wheel_info`` found on the seed: ``candidates`` and
        ``house``; empty where it was asked nothing, or fell out.
    :returns: ``fetch``: the candidates that the seed fetches into its wheelhouse. ``needs``: by
        host the candidates that it lacks, its own fetching included. ``stuck``: by host the
        findings that stop it. ``told``: by host those that do not.
    """
    seed, house = asked["seed"], answer.get("house") or {}
    # Who fell out before it was asked is told by that.
    offline = not seed or not fleet.get(seed, {"can": True})["can"]
    # What passes through the seed's wheelhouse: of each name there is room for one file.
    passing: Dict[str, str] = {}
    fetch: Dict[Identity, Told] = {}
    needs: Dict[str, List[Told]] = {}
    stuck: Dict[str, List[Finding]] = {}
    told: Dict[str, List[Finding]] = {}
    # The seed comes first: what it has for itself is not replaced for another.
    for host, about in sorted(fleet.items(), key=lambda one: one[0] != seed):
        due = _due(about)
        if not due:
            continue
        own = about["candidates"]
        decisions = wheel_build_decisions(wheels.wheel_decisions(
            due, about["environments"], _joined(own, answer.get("candidates") or {}),
            about["facts"], about["build_limit_s"] > 0, offline),
            about["environments"], about["facts"], about["build_limit_s"])
        found = wheels.wheel_findings(decisions)
        against = blocking(found)
        if against and asked["sought"] and seed and "candidates" not in answer:
            against = [_no_answer(seed, seed in fleet or seed == CONTROLLER), *against]
        if against:
            stuck[host] = against
        if found != blocking(found):
            told[host] = [one for one in found if one not in against]
        there = {_identity(one) for listed in own.values() for one in listed if one["path"]}
        here = passing if host == seed else {}
        to_bring = [one for one in decisions if one["action"] in TO_BRING]
        # What is there is not replaced for another environment either.
        for decision in sorted(to_bring, key=lambda one: _identity(one["wheel"]) not in there):
            wheel = decision["wheel"]
            is_there = _identity(wheel) in there
            other = _other_of_name(wheel, [here] if is_there else [here, passing])
            if other:
                stuck[host] = [*stuck.get(host, []), _same_name(
                    decision["request"]["where"], wheel, other)]
            if other or is_there:
                continue
            in_house = (house.get(wheel["file"]) or {}).get("sha256") == wheel["sha256"]
            if host != seed or not in_house:
                mine = needs.setdefault(host, [])
                mine += [wheel] * (wheel not in mine)
            if not in_house:
                fetch.setdefault(_identity(wheel), wheel)
    return {"fetch": list(fetch.values()), "needs": needs, "stuck": stuck, "told": told}


def wheel_fleet_came(plan: Mapping[str, Any], seed: str,
                     results: Sequence[Mapping[str, Any]]) -> Told:
    """Who gets what, by what the seed has now.

    :param plan: what :func:`wheel_fleet_plan` gave.
    :param seed: who fetched.
    :param results: what its module returned for each of ``fetch``, in their order; empty where it
        fell out.
    :returns: ``carry``: the candidates that others than the seed need, each once. ``copies``: by
        host the candidates that it is given. ``stuck``: by host the findings on what did not come.
    """
    why = {_identity(wheel): str(one.get("msg") or "") for wheel, one in zip(plan["fetch"], results)
           if one.get("failed") or blocking(one.get("findings") or [])}
    done = {_identity(wheel) for wheel, _ in zip(plan["fetch"], results)} - set(why)
    asked = {_identity(one) for one in plan["fetch"]}
    carry: Dict[Identity, Told] = {}
    copies: Dict[str, List[Told]] = {}
    stuck: Dict[str, List[Finding]] = {}
    for host, wanted in plan["needs"].items():
        for wheel in wanted:
            if _identity(wheel) in asked - done:
                stuck.setdefault(host, []).append(
                    _not_fetched(wheel, seed, why.get(_identity(wheel), "")))
            elif host != seed:
                carry.setdefault(_identity(wheel), wheel)
                copies.setdefault(host, []).append(wheel)
    return {"carry": list(carry.values()), "copies": copies, "stuck": stuck}


def wheel_fleet_text(plan: Mapping[str, Any], seed: str) -> str:
    """What is fetched and copied, one line a file; empty where there is nothing to do."""
    fetched = {_identity(one) for one in plan["fetch"]}
    files: Dict[Identity, List[str]] = {}
    about: Dict[Identity, Told] = {}
    for host, wanted in plan["needs"].items():
        for wheel in wanted:
            about[_identity(wheel)] = wheel
            files.setdefault(_identity(wheel), []).append(host)
    lines = []
    for identity, hosts in files.items():
        wheel, others = about[identity], [one for one in hosts if one != seed]
        lines.append("; ".join(
            [wheel["file"] + (", %.1f MB" % (wheel["size"] / 1e6) if wheel["size"] else "")]
            + ["%s %s it (%s)" % (seed, "fetches" if wheel["url"] else "takes", wheel["source"])
               if identity in fetched else "%s has it" % seed]
            + ["copied to " + ", ".join(others)] * bool(others)))
    return "\n".join(lines)


def _due(about: Mapping[str, Any]) -> List[Told]:
    return list(wheels.wheels_due(about["requests"], about["environments"]))


def _joined(own: Mapping[str, Sequence[Told]],
            others: Mapping[str, Sequence[Told]]) -> Dict[str, List[Told]]:
    """A host's own candidates, then those of another that it has not: of equals its own is taken.

    Where they lie on the other means nothing here.
    """
    joined = {package: list(listed) for package, listed in own.items()}
    for package, listed in others.items():
        mine = joined.setdefault(package, [])
        there = {_identity(one) for one in mine if one["path"]}
        mine += [one for one in listed if _identity(one) not in there]
    return joined


def _other_of_name(wheel: Mapping[str, Any], rooms: Sequence[Dict[str, str]]) -> str:
    """The SHA-256 of another file of its name in one of these wheelhouses; else it has its place.

    :param rooms: the SHA-256 by name, of each wheelhouse that it is to lie in.
    """
    others = {room.get(wheel["file"], wheel["sha256"]) for room in rooms} - {wheel["sha256"]}
    if not others:
        for room in rooms:
            room[wheel["file"]] = wheel["sha256"]
    return min(others, default="")


def _identity(wheel: Mapping[str, Any]) -> Identity:
    return wheel["file"], wheel["sha256"]


def _once(listed: Iterable[Mapping[str, Any]]) -> List[Told]:
    """Each once, in the order in which they came."""
    return list({json.dumps(one, sort_keys=True): dict(one) for one in listed}.values())


def _same_name(where: str, wheel: Mapping[str, Any], other: str) -> Finding:
    return finding(
        "wheel-same-name", where,
        "%s is needed with the SHA-256 %s (%s), and in the same run another file of that name with"
        " %s" % (wheel["file"], wheel["sha256"], wheel["source"], other),
        "one file of a name in each wheelhouse; the other one is brought, and this one is not",
        "let this host install it from its source (site.yml), or run playbooks/prefetch.yml for the"
        " hosts that need it alone (--limit), with a seed among them or localhost")


def _no_answer(seed: str, left: bool) -> Finding:
    return finding(
        "wheel-no-answer", "prebuilt_wheel_seed",
        "%s was to list wheels for all, and %s" % (
            seed, "fell out of the run" if left else "is unreachable or failed earlier"),
        "a host, or the controller, that can reach the sources",
        "see why %s fell out, or name another one (prebuilt_wheel_seed)" % seed)


def _not_fetched(wheel: Mapping[str, Any], seed: str, why: str) -> Finding:
    return finding(
        "wheel-not-fetched", wheel["file"],
        "%s has not got it: %s" % (seed, why or "it fell out of the run"),
        "the file from %s" % wheel["source"],
        "see what %s says above, or have another one fetch (prebuilt_wheel_seed)" % seed)
