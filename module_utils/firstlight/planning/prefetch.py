# SPDX-License-Identifier: Apache-2.0
"""How the snapshots of a fleet get to all of its hosts while the hub is read once.

A *fleet* is a mapping of hosts, in the order of the inventory::

    {"gpu1": {"can": True,               # may read from the hub, and has the library for it
              "cache": "/var/lib/…/hub", # where its snapshots lie
              "requests": [{"name": "chat", "repo_id": …, …}],
              "snapshots": {"chat": {…}},  # what the module model_snapshot says of each
              "findings": [{…}],           # and of all of them
              "held": [{…}]}}              # what it fetched for others

Two hosts want the same where they ask for the same repository, revision and files. They get the
same: one commit, told by who has it or, once, by the hub. Then in each round every host that has a
snapshot gives it to one that has not, so that each round doubles the hosts that have it.
"""

from __future__ import annotations

import json
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from ..findings import Finding, blocking, finding

Told = Dict[str, Any]
Fleet = Mapping[str, Mapping[str, Any]]
Identity = Tuple[str, str, str]

OF_ONE_HOST = ("snapshot-offline-missing", "snapshot-no-library")
"""What is wrong with a host that was to say what it has, and is mended by another one."""


def prefetch_seeds(fleet: Fleet, seed: str = "", refresh: bool = False) -> Told:
    """Who tells what each request means.

    :param fleet: the hosts; ``snapshots`` is what each has in its cache, without asking the hub.
    :param seed: the host that reads from the hub for all, in the fleet or beside it; empty: of
       those that want it, or else of all, the first that can.
    :param refresh: ask the hub for what a host has, too.
    :returns: ``ask``, a list of ``{host, request}``, each to be asked of the hub by that host, and
       ``findings`` by host: what nobody can ask for.
    """
    ask: List[Told] = []
    findings: Dict[str, List[Finding]] = {}
    for key, wanters in _wanted(fleet).items():
        there = _holder(fleet, key) is not None
        if there and not refresh:
            continue
        who = seed or _first([host for host, _ in wanters], fleet) or _first(fleet, fleet)
        if who:
            # The first who wants it has given it a name.
            ask.append({"host": who, "request": wanters[0][1]})
            continue
        for host, request in wanters:
            findings.setdefault(host, []).append(
                _not_refreshed(request) if there else _no_fetcher(request))
    return {"ask": ask, "findings": findings}


def prefetch_outline(fleet: Fleet, asked: Mapping[str, Any],
                     answers: Mapping[str, Sequence[Mapping[str, Any]]], host: str) -> Told:
    """What the hub or another host said, as it is for one host.

    :param fleet: the hosts, as for :func:`prefetch_seeds`, whose result is ``asked``, and the seed.
    :param answers: what the module said to each that was asked, in the order of ``asked["ask"]``,
       by the host that asked; one that fell out has none.
    :returns: ``{snapshots, findings, skipped}``; the last are the names of those that check mode
       could not look at.
    """
    left = {name: list(told) for name, told in answers.items()}
    told = {_key(one["request"]): (one, left[one["host"]].pop(0) if left.get(one["host"]) else None)
            for one in asked["ask"]}
    mine = fleet[host]
    made: Told = {"snapshots": {}, "findings": list(asked["findings"].get(host, [])),
                  "skipped": []}
    for request in mine["requests"]:
        name = request["name"]
        found, cache, said = _meant(fleet, told, request)
        made["findings"] += [one for one in said if one not in made["findings"]]
        if found is None or not found.get("fingerprint"):
            if not blocking(made["findings"]):
                made["skipped"].append(name)
            continue
        own = mine["snapshots"].get(name)
        known = own is not None and _identity(own) == _identity(found)
        if own is not None and known and own.get("present"):
            made["snapshots"][name] = dict(own)
            continue
        missing = (own or {}).get("missing_bytes") if known else None
        made["snapshots"][name] = dict(
            _moved(dict(found), cache, mine["cache"]), present=False, verified=None,
            missing_bytes=found.get("bytes") if missing is None else missing)
    return made


def _meant(fleet: Fleet, told: Mapping[str, Any],
           request: Mapping[str, Any]) -> Tuple[Optional[Told], str, List[Finding]]:
    """The snapshot that a request means, the cache it is told of, and what is wrong with it."""
    if _key(request) in told:
        one, answer = told[_key(request)]
        if answer is None:
            return None, "", [_no_answer(request, one["host"])]
        found = answer["snapshots"].get(one["request"]["name"])
        return found, fleet[one["host"]]["cache"], list(answer["findings"])
    there = _holder(fleet, _key(request))
    if there is None:
        return None, "", []
    about = fleet[there[0]]
    return there[1], about["cache"], [
        one for one in about.get("findings", [])
        if one["subject"] == request["repo_id"] and one["id"] not in OF_ONE_HOST]


def prefetch_round(fleet: Fleet, seed: str = "", verify: str = "fast") -> Told:
    """What is to be done next, until nothing is.

    Made anew for every round from what the hosts have then: who failed is not counted on.

    :param fleet: the hosts that are left, with what each has by now; ``seed``, where it is none of
       them, too once it has anything.
    :param seed: as for :func:`prefetch_seeds`.
    :param verify: ``fast`` or ``full``: how what is there has to be verified.
    :returns: ``fetch``: the requests that a host fetches from the hub, or has and verifies, by
       host. ``copies``: by host a list of ``{request, source, manifest}``. ``serve``: by host the
       manifests that others copy from it. ``rounds``: how many rounds of copying are left, with
       this one. ``stuck``: findings by host, of what nobody can fetch. All are empty, and
       ``rounds`` 0, when every host has everything.
    """
    fetch: Dict[str, List[Told]] = {}
    copies: Dict[str, List[Told]] = {}
    serve: Dict[str, List[Told]] = {}
    stuck: Dict[str, List[Finding]] = {}
    rounds = 0
    for identity, lacking in _lacking(fleet, verify).items():
        holders = _holders(fleet, identity, verify)
        if holders:
            rounds = max(rounds, _doublings(len(holders), len(lacking)))
            for (source, found), (host, requests) in zip(holders, lacking.items()):
                copies.setdefault(host, []).extend(
                    {"request": one, "source": source, "manifest": found["manifest"]}
                    for one in requests)
                serve.setdefault(source, []).append(found["manifest"])
            continue
        who = _fetcher(fleet, identity, lacking, seed)
        if not who:
            for host, requests in lacking.items():
                stuck.setdefault(host, []).append(_no_fetcher(requests[0]))
            continue
        mine = fetch.setdefault(who, [])
        # One who fetches for others alone is told the commit: who copies keeps the branch's name.
        mine += lacking.get(who) or [_renamed(
            dict(next(iter(lacking.values()))[0], revision=identity[1]),
            [*(fleet[who]["requests"] if who in fleet else []), *mine])]
        rounds = max(rounds, _doublings(1, len(lacking) - (who in lacking)))
    return {"fetch": fetch, "copies": copies, "serve": serve, "rounds": rounds, "stuck": stuck}


def prefetch_peers(copies: Sequence[Mapping[str, Any]], servers: Mapping[str, str],
                   secret: str) -> List[Told]:
    """Where a host copies from.

    :param copies: what :func:`prefetch_round` has for it.
    :param servers: the address of each host that serves, which is empty for one that does not.
    :returns: ``peers`` of the module model_snapshot; without what nobody serves.
    """
    return [{"name": one["request"]["name"], "url": servers[one["source"]], "secret": secret,
             "manifest": one["manifest"]} for one in copies if servers.get(one["source"])]


def prefetch_text(fleet: Fleet, seed: str = "", verify: str = "fast") -> str:
    """What :func:`prefetch_round` begins, for a person; empty where there is nothing to do."""
    lines = []
    for identity, lacking in _lacking(fleet, verify).items():
        host, requests = next(iter(lacking.items()))
        snapshot = fleet[host]["snapshots"][requests[0]["name"]]
        holders = _holders(fleet, identity, verify)
        who = "" if holders else _fetcher(fleet, identity, lacking, seed)
        copies = len(lacking) - (who in lacking)
        how = ["%s at %.12s, %s" % (*identity[:2], _size(snapshot["bytes"]))]
        how += ["%s it" % _counted(len(holders), "host has", "hosts have")] * bool(holders)
        how += ["%s brings it" % who] * bool(who)
        how += ["%s in %s" % (
            _counted(copies, "host copies", "hosts copy"), _counted(
                _doublings(len(holders) or 1, copies), "round", "rounds"))] * bool(copies)
        lines.append("; ".join(how))
    return "\n".join(lines)


def snapshots_text(snapshots: Sequence[Mapping[str, Any]]) -> str:
    """What is brought, or verified where it is there, one line for each."""
    return "\n".join(dict.fromkeys(_said(one) for one in snapshots))


def _said(snapshot: Mapping[str, Any]) -> str:
    if not snapshot.get("fingerprint"):
        return "%s: nothing is known of it" % snapshot["repo_id"]
    missing = snapshot["missing_bytes"]
    return "%s at %.12s: %s" % (
        snapshot["repo_id"], snapshot["commit"],
        "%s of %s in %s" % (_size(missing), _size(snapshot["bytes"]),
                            _counted(snapshot["files"], "file", "files"))
        if missing else "there, to be verified")


def _counted(count: int, one: str, more: str) -> str:
    return "%d %s" % (count, one if count == 1 else more)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return "%.3g %s" % (count, unit)
        count /= 1000
    return "%.3g TB" % count


def _doublings(having: int, lacking: int) -> int:
    """How many rounds it takes until all have it."""
    rounds = 0
    while lacking > 0:
        having, lacking, rounds = having + min(having, lacking), lacking - having, rounds + 1
    return rounds


def _key(request: Mapping[str, Any]) -> str:
    """The same for requests of the same, whatever the endpoints that want it are called."""
    return json.dumps({name: request[name] for name in sorted(request) if name != "name"},
                      sort_keys=True)


def _wanted(fleet: Fleet) -> Dict[str, List[Tuple[str, Told]]]:
    """Who wants what: key to hosts, each once, with its request."""
    wanted: Dict[str, List[Tuple[str, Told]]] = {}
    for host, about in fleet.items():
        for request in about["requests"]:
            wanters = wanted.setdefault(_key(request), [])
            if host not in dict(wanters):
                wanters.append((host, dict(request)))
    return wanted


def _holder(fleet: Fleet, key: str) -> Optional[Tuple[str, Told]]:
    """The first host that has all of what a request means, and what it has."""
    for host, about in fleet.items():
        for request in about["requests"]:
            found = about["snapshots"].get(request["name"])
            if _key(request) == key and found is not None and found.get("present"):
                return host, dict(found)
    return None


def _identity(snapshot: Mapping[str, Any]) -> Identity:
    """What is the same on every host that has the same files of it."""
    return (str(snapshot.get("repo_id")), str(snapshot.get("commit")),
            str(snapshot.get("fingerprint")))


def _lacking(fleet: Fleet, verify: str) -> Dict[Identity, Dict[str, List[Told]]]:
    """What is not everywhere where it is wanted: who lacks it, with the requests that mean it."""
    found: Dict[Identity, Dict[str, List[Told]]] = {}
    for host, about in fleet.items():
        for request in about["requests"]:
            told = about["snapshots"].get(request["name"])
            if told is not None and _held(about, _identity(told), verify) is None:
                found.setdefault(_identity(told), {}).setdefault(host, []).append(dict(request))
    return found


def _holders(fleet: Fleet, identity: Identity, verify: str) -> List[Tuple[str, Told]]:
    """The hosts that have all of it, verified, and what they have."""
    return [(host, found) for host in fleet
            for found in [_held(fleet[host], identity, verify)] if found is not None]


def _fetcher(fleet: Fleet, identity: Identity, lacking: Iterable[str], seed: str) -> str:
    """Who brings what nobody has: verifies what is there, if it is well, or asks the hub."""
    there = next((host for host in lacking if _is_there(fleet[host], identity)), "")
    return there or seed or _first(lacking, fleet) or _first(fleet, fleet)


def _held(about: Mapping[str, Any], identity: Identity, verify: str) -> Optional[Told]:
    """What a host has of this, if it has all of it and it is verified."""
    enough = ("full",) if verify == "full" else ("fast", "full")
    return next((dict(one) for one in _all_of(about) if _identity(one) == identity
                 and one.get("present") and one.get("verified") in enough), None)


def _is_there(about: Mapping[str, Any], identity: Identity) -> bool:
    """Whether a host has all the files, by their sizes."""
    return any(one.get("present") and _identity(one) == identity for one in _all_of(about))


def _all_of(about: Mapping[str, Any]) -> List[Told]:
    return [*about["snapshots"].values(), *about.get("held", [])]


def _first(hosts: Iterable[str], fleet: Fleet) -> str:
    """The first of some hosts that can read from the hub, or an empty text."""
    return next((host for host in hosts if fleet[host]["can"]), "")


def _renamed(request: Mapping[str, Any], beside: Sequence[Mapping[str, Any]]) -> Told:
    """Another host's request, under a name that none beside it has."""
    taken = {one["name"] for one in beside}
    names = [request["name"], *("%s-%d" % (request["name"], count)
                                for count in range(2, len(taken) + 3))]
    return dict(request, name=next(name for name in names if name not in taken))


def _no_fetcher(request: Mapping[str, Any]) -> Finding:
    return finding(
        "snapshot-no-fetcher", request["repo_id"],
        "no host of this run has it, and none may read from the hub",
        "one host that fetches it for the others",
        "let a host with Python 3.10 or newer that is not offline be part of the run, or have the "
        "controller fetch (model_snapshot_seed: localhost)")


def _not_refreshed(request: Mapping[str, Any]) -> Finding:
    return finding(
        "snapshot-not-refreshed", request["repo_id"],
        "no host of this run may ask the hub; what one has stays",
        "what its revision is now, as model_snapshot_refresh says",
        "let a host that may ask the hub be part of the run, or have the controller ask "
        "(model_snapshot_seed: localhost)", severity="warning")


def _no_answer(request: Mapping[str, Any], host: str) -> Finding:
    return finding(
        "snapshot-no-answer", request["repo_id"],
        "%s was to ask the hub for all, and fell out of the run" % host,
        "what its revision is and what files it has",
        "see why %s fell out, or name another one (model_snapshot_seed)" % host)


def _moved(value: Any, was: str, now: str) -> Any:
    """Something told of a cache, with every path in it as in another one."""
    if isinstance(value, dict):
        return {key: _moved(one, was, now) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_moved(one, was, now) for one in value]
    if was and isinstance(value, str) and (value == was or value.startswith(was + "/")):
        return now + value[len(was):]
    return value
