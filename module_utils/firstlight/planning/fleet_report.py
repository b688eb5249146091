# SPDX-License-Identifier: Apache-2.0
"""What is known of a fleet, as one report: which endpoints are proven, and what became of a run.

Pure. The content of the folder of reports comes in, the report goes out; :mod:`..fleet_pages` reads
the one and writes the other. All of it was said by hosts, so nothing is relied on: what has not the
shape that is expected is left out, and no text can move a cursor or grow without end.
"""

from __future__ import annotations

import calendar
import math
import re
import time
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

from .network import without_login

Data = Dict[str, Any]

SCHEMA = 1
STATES = ("failed", "unreachable", "not_proven", "absent", "idle", "proven")
"""What can be said of a host, what has to be looked at first. ``absent`` was not in the last run,
``idle`` has no endpoint."""
ENDPOINT_STATES = ("not_proven", "earlier", "proven")
"""Of an endpoint; ``earlier`` was proven, and was not asked in the last run."""
SEVERITIES = ("fatal", "error", "warning", "info")

FASTER = 0.2
"""From which share on a speed is said to have changed: figures of a short proof differ by less."""
LARGER = 0.05
"""From which share on memory is."""
BRIEF, WORDS, LINES, ITEMS = 160, 300, 2000, 200
"""The longest text in a table, on one line and of several lines, and how many things a list has."""
SHORT_STAGE = 0.02
"""Stages with less than this share of a run are told together."""
LARGEST = 1e18
TIME = "%Y-%m-%dT%H:%M:%SZ"
SLOT = re.compile(r"[^A-Za-z0-9.-]+")
FLAG = re.compile(r"--?[A-Za-z0-9][A-Za-z0-9_.-]*")

# What a plan reckons with, in the order of the bars; the last is what is left of the total.
PARTS = (("weights", "Weights"), ("kv", "KV cache"), ("graph", "Graphs"), ("rest", "Overhead"))
# How the times of a passport follow each other.
PHASES = (("start_s", "Start"), ("port_s", "Until it listens"), ("load_s", "Until it is ready"),
          ("proof_s", "Proof"))
FIGURES = ("tokens_per_second", "first_token_s", "tokens", "tokens_per_second_all",
           "first_token_all_s", "busy_s")


# What a host's result is kept as.


def host_record(host: str, given: Data, before: Any, now: str) -> Data:
    """What is kept of a host beside its passports, C(host.json).

    :param given: ``root``, ``endpoints`` (``name`` and ``passport`` each), ``verdicts``, ``facts``
        and ``health``, both empty where they were not looked at, and ``complete``: whether these
        are all endpoints of the host.
    :param before: what was kept of it before, or ``None``.
    :param now: the time, in UTC, as passports write it.
    """
    old = _dict(before)
    kept = _dict(old.get("verdicts"))
    verdicts = {_text(_dict(one).get("url")): _dict(one) for one in _list(given.get("verdicts"))}
    endpoints, judged, asked = [], {}, []
    for one in map(_dict, _list(given.get("endpoints"))):
        name, passport = _text(one.get("name")), _dict(one.get("passport"))
        plan = _dict(passport.get("plan"))
        said = verdicts.get(_text(plan.get("url")))
        earlier = _dict(kept.get(name))
        endpoints.append(name)
        if said:
            judged[name] = _verdict(said, plan, now)
            asked.append(name)
        elif earlier and earlier.get("plan") == plan.get("hash"):
            judged[name] = earlier
        else:
            # A passport is written of what was proven.
            judged[name] = _verdict(
                dict(_dict(passport.get("smoke")), passed=True), plan, passport.get("written"))
    if not given.get("complete"):
        more = endpoint_names(old)
        judged = {**{name: kept[name] for name in more if name in kept}, **judged}
        endpoints += [one for one in more if one not in endpoints]
    health = _dict(given.get("health"))
    return {
        "schema": SCHEMA, "host": host, "at": now,
        "root": _text(given.get("root")),
        "endpoints": sorted(endpoints),
        # Not all that are told of were asked: a benchmark asks none.
        "asked": sorted(asked),
        "facts": _facts(_dict(given.get("facts"))) or _dict(old.get("facts")),
        "health": {
            "verdict": _text(health.get("verdict")),
            "findings": _findings(health.get("findings")),
        } if health else _dict(old.get("health")),
        "verdicts": judged,
    }


def identity(record: Any) -> Data:
    """What of a record is the host's own; the rest is how it was found when it was looked at."""
    return {key: _dict(record).get(key) for key in ("root", "endpoints", "facts")}


def endpoint_names(record: Any) -> List[str]:
    """The endpoints that a record names."""
    return [_text(one) for one in _list(_dict(record).get("endpoints"))]


def _verdict(said: Data, plan: Data, at: Any) -> Data:
    return {
        "at": at if isinstance(at, str) else "",
        "plan": plan.get("hash"),
        "passed": said.get("passed") is True,
        "figures": _figures(said.get("figures")),
        "checks": _checks(said.get("checks")),
        "findings": _findings(said.get("findings")),
    }


def _facts(facts: Data) -> Data:
    """What a host is, without what it does at the moment."""
    if not facts:
        return {}
    driver, cpu, system = (_dict(facts.get(one)) for one in ("driver", "cpu", "system"))
    jetson, containers = _dict(facts.get("jetson")), _dict(facts.get("containers"))
    return {
        "class": _text(facts.get("class")),
        "driver": _text(driver.get("version")),
        "cuda": _text(driver.get("cuda")) or _text(jetson.get("cuda")),
        "gpus": [{"name": _text(one.get("name")), "uuid": _text(one.get("uuid")),
                  "memory_bytes": _number(one.get("memory_total_bytes"))}
                 for one in map(_dict, _list(facts.get("devices")))],
        "memory_bytes": _number(_dict(facts.get("memory")).get("total_bytes")),
        "cpu": _text(cpu.get("model")),
        "cores": _number(cpu.get("cores")),
        "architecture": _text(cpu.get("architecture")),
        "system": _joined(_text(system.get("distribution")), _text(system.get("version"))),
        "kernel": _text(system.get("kernel")),
        "jetson": _joined(_text(jetson.get("board")), "L4T" if jetson else "",
                          _text(jetson.get("l4t"))),
        "containers": _joined(_text(containers.get("engine")), _text(containers.get("version"))),
    }


def run_record(host: str, entry: Data, run: Data, before: Any, record: Any,
               passports: Any) -> Data:
    """What became of a host in a run, and how it was then and before, C(run.json).

    :param entry: ``state`` (C(ok), C(changed), C(failed), C(unreachable), C(ended) in the middle
        of it, C(waiting) for its turn when the run ended),
        ``recorded``: whether :func:`host_record` was written, ``stage``, ``task`` and ``reason``
        of a failure, and ``stages`` (``name``, ``seconds``).
    :param run: ``id``, ``playbook``, ``started`` and ``ended``.
    :param before: the C(run.json) of the run before, or ``None``.
    :param record: the host's C(host.json).
    :param passports: its passports by name of the endpoint.
    """
    old = _dict(before)
    earlier = _dict(old.get("now"))
    told = _entry(entry)
    asked = _asked(record, told["recorded"])
    endpoints = _endpoints(_dict(record), _dict(passports), asked)
    standing = _standing(old) if told["recorded"] and not all(
        asked(one["name"]) for one in endpoints) else {}
    if told["recorded"]:
        now = _snapshot(_dict(record), _dict(passports))
    else:
        now = {key: value for key, value in earlier.items() if key != "state"}
    now["state"] = _state(told, endpoints, standing)
    at = _text(_dict(old.get("run")).get("ended"))
    return {"schema": SCHEMA, "host": host, "run": run, **told, "now": now,
            "standing": standing or None,
            "before": dict(earlier, at=at) if earlier else None}


def _entry(entry: Any) -> Data:
    told = _dict(entry)
    state = told.get("state")
    return {
        "state": state if state in ("ok", "changed", "failed", "unreachable") else "ended",
        "recorded": told.get("recorded") is True,
        "stage": _text(told.get("stage")),
        "task": _text(told.get("task")),
        "reason": _reason(told.get("reason")),
        "stages": [{"name": _text(one.get("name")), "seconds": _number(one.get("seconds")) or 0}
                   for one in map(_dict, _list(told.get("stages")))],
    }


def _reason(told: Any) -> str:
    """Why something failed. Everybody may read the files: no address keeps its login."""
    return _text(without_login(told) if isinstance(told, str) else told, LINES)


def _asked(record: Any, recorded: bool) -> Callable[[str], bool]:
    """Whether the run that wrote a record asked an endpoint; records without it asked all."""
    asked = _dict(record).get("asked")
    names = set(map(_text, _list(asked)))
    return lambda name: recorded and (not isinstance(asked, list) or name in names)


def _standing(old: Data) -> Data:
    """What an earlier run found wrong with a host, and no verdict of an endpoint tells.

    It stands until a run asks all endpoints: a host fails before its verdicts are kept. One that
    did not answer then has answered since, so that it is no more than not proven.
    """
    if not old:
        return {}
    entry = _entry(old)
    if entry["recorded"] and entry["state"] not in ("failed", "unreachable"):
        return _kept_standing(old.get("standing"))
    return {"at": _text(_dict(old.get("run")).get("ended")),
            "state": "failed" if entry["state"] == "failed" else "not_proven",
            **{key: entry[key] for key in ("stage", "task", "reason")}}


def _kept_standing(kept: Any) -> Data:
    told = _dict(kept)
    return {"at": _text(told.get("at")),
            "state": "failed" if told.get("state") == "failed" else "not_proven",
            "stage": _text(told.get("stage")), "task": _text(told.get("task")),
            "reason": _reason(told.get("reason"))} if told else {}


def _state(entry: Data, endpoints: List[Data], standing: Data) -> str:
    if entry["state"] in ("failed", "unreachable"):
        return str(entry["state"])
    if not entry["recorded"]:
        return "not_proven"
    if not endpoints:
        return "idle"
    # What was proven earlier is proven, unless something was wrong since.
    found = ["not_proven" if one["state"] == "not_proven" else "proven" for one in endpoints]
    return min(found + ([str(standing["state"])] if standing else []), key=STATES.index)


def _snapshot(record: Data, passports: Data) -> Data:
    """What the next run compares itself with."""
    facts = _dict(record.get("facts"))
    gpus = [_dict(one) for one in _list(facts.get("gpus"))]
    return {
        "driver": _text(facts.get("driver")),
        "kernel": _text(facts.get("kernel")),
        "gpus": sorted(_text(one.get("uuid")) or _text(one.get("name")) for one in gpus),
        "cards": counted(_text(one.get("name")) for one in gpus),
        "memory_bytes": _number(facts.get("memory_bytes")),
        "endpoints": {one["name"]: {
            "engine": _joined(one["engine"], one["engine_version"]),
            "plan": one["plan"], "model": one["model"]["name"],
            "revision": one["model"]["revision"],
            "memory_bytes": _seen_bytes(one["memory"]),
            "tokens_per_second": one["figures"].get("tokens_per_second"),
        } for one in _endpoints(record, passports, _asked(record, True))},
        "findings": [[one["id"], one["subject"], one["severity"]]
                     for one in _all_findings(record, passports)],
    }


def _seen_bytes(memory: Data) -> Any:
    """What an engine took: on a device where it says so, else of the host."""
    told = [one["observed_bytes"] for one in memory["parts"] if one["observed_bytes"] is not None]
    return sum(told) if told else memory["observed_bytes"]


def _all_findings(record: Data, passports: Data) -> List[Data]:
    found = _findings(_dict(record.get("health")).get("findings"))
    for one in _endpoints(record, passports, _asked(record, True)):
        found += one["findings"]
    return found


# The report.


def fleet_report(content: Any, now: str) -> Data:
    """The report on a fleet.

    :param content: ``run``, the last run as it is kept; ``hosts``: by the name of its folder
        ``host``, ``run`` and ``passports`` (by endpoint) of each; ``unread``: what could not be
        read, one sentence each. What is not there is ``None``.
    :param now: the time, in UTC, as passports write it.
    :returns: as ``docs/report.md`` describes it, with hosts in the order in which they are to be
        looked at.
    """
    told = _dict(content)
    run = _run(told.get("run"))
    hosts = sorted(
        (_host(str(folder), _dict(one), run, now)
         for folder, one in _dict(told.get("hosts")).items()),
        key=lambda one: (STATES.index(one["state"]), natural(one["name"])))
    taken: Dict[str, int] = {}
    for one in hosts:
        slot = SLOT.sub("-", one["name"]).strip("-.").lower()[:80] or "host"
        taken[slot] = taken.get(slot, 0) + 1
        one["anchor"] = "host-%s%s" % (slot, "" if taken[slot] == 1 else "--%d" % taken[slot])
    return {
        "schema": SCHEMA, "generated": now, "run": run, "totals": _totals(hosts),
        "hosts": hosts, "unread": [_text(one) for one in _list(told.get("unread"))],
    }


def _run(told: Any) -> Optional[Data]:
    run = _dict(_dict(told).get("run"))
    if not run:
        return None
    started, ended = _text(run.get("started")), _text(run.get("ended"))
    return {"id": _text(run.get("id")), "playbook": _text(run.get("playbook")),
            "started": started, "ended": ended, "seconds": seconds_between(started, ended),
            "hosts": len(_dict(_dict(told).get("hosts")))}


def _totals(hosts: List[Data]) -> Data:
    endpoints = [one for host in hosts for one in host["endpoints"]]
    findings = [one["severity"] for host in hosts for one in host["findings"]] + [
        one["severity"] for endpoint in endpoints for one in endpoint["findings"]]
    return {
        "hosts": len(hosts),
        "states": {state: sum(one["state"] == state for one in hosts) for state in STATES},
        "endpoints": len(endpoints),
        "endpoints_proven": sum(one["state"] == "proven" for one in endpoints),
        "gpus": sum(len(_list(one["facts"].get("gpus"))) for one in hosts),
        "findings": {severity: findings.count(severity) for severity in SEVERITIES},
        "drift": sum(bool(one["drift"]) for one in hosts),
    }


def _host(folder: str, told: Data, last: Optional[Data], now: str) -> Data:
    record, kept = _dict(told.get("host")), _dict(told.get("run"))
    passports = _dict(told.get("passports"))
    entry, of_run = _entry(kept), _dict(kept.get("run"))
    in_last = bool(last and kept and _text(of_run.get("id")) == last["id"])
    endpoints = _endpoints(record, passports, _asked(record, in_last and entry["recorded"]))
    standing = _kept_standing(kept.get("standing")) if entry["recorded"] else {}
    was = _state(entry, _endpoints(
        record, passports, _asked(record, entry["recorded"])), standing) if kept else ""
    seen = max(_text(of_run.get("ended")), _text(record.get("at")))
    seen = seen or max((one["written"] for one in endpoints), default="")
    steps, total = _steps(entry["stages"])
    reason = entry["reason"] or (
        "the run ended before it was through with this host"
        if in_last and entry["state"] == "ended" and not entry["recorded"] else "")
    where = entry
    if standing and entry["state"] not in ("failed", "unreachable"):
        where = standing
        reason = "%s\n(found by the run of %s; no run has asked every endpoint since)" % (
            standing["reason"] or "the host was not proven", standing["at"] or "an unknown time")
    return {
        "name": _text(record.get("host")) or _text(kept.get("host")) or _text(folder),
        "folder": _text(folder),
        "state": was if in_last else "absent",
        "was": was,
        "in_last_run": in_last,
        "seen": seen,
        "age_s": seconds_between(seen, now),
        "changed": entry["state"] == "changed",
        "stage": where["stage"], "task": where["task"],
        "reason": reason, "brief": _brief(reason),
        "seconds": round(total, 3),
        "stages": steps,
        "root": _text(record.get("root")),
        "facts": _dict(record.get("facts")) and _kept_facts(_dict(record.get("facts"))),
        "health": _text(_dict(record.get("health")).get("verdict")),
        "findings": _findings(_dict(record.get("health")).get("findings")),
        "drift": drift(kept.get("before"), kept.get("now")) if in_last else [],
        "since": _text(_dict(kept.get("before")).get("at")),
        "endpoints": endpoints,
    }


def _steps(stages: List[Data]) -> Tuple[List[Data], float]:
    """The stages of a run in their order, the short ones together at the end, and the whole."""
    total = sum(one["seconds"] for one in stages)
    long = [one for one in stages if one["seconds"] >= SHORT_STAGE * total]
    short = [one for one in stages if one["seconds"] < SHORT_STAGE * total]
    if len(short) > 1:
        name = "%d others" % len(short)
        long.append({"name": name, "seconds": round(sum(one["seconds"] for one in short), 3)})
    else:
        long = stages
    return [dict(one, percent=_percent(one["seconds"], total)) for one in long], total


def _brief(reason: str) -> str:
    """The first line of a reason; a heading says nothing without what is under it."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    # Of a finding what was found.
    found = [line[len("found:"):].strip() for line in lines if line.startswith("found:")]
    if found and lines[0].endswith(":"):
        lines = [lines[0], found[0]]
    return _text(" ".join(lines[:2] if lines and lines[0].endswith(":") else lines[:1]), BRIEF)


def _kept_facts(facts: Data) -> Data:
    """What a file has of facts, in the shape that :func:`_facts` gave it."""
    gpus = [{"name": _text(one.get("name")), "uuid": _text(one.get("uuid")),
             "memory_bytes": _number(one.get("memory_bytes"))}
            for one in map(_dict, _list(facts.get("gpus")))]
    return {
        **{key: _text(facts.get(key)) for key in (
            "class", "driver", "cuda", "cpu", "architecture", "system", "kernel", "jetson",
            "containers")},
        "gpus": gpus, "cards": counted(one["name"] for one in gpus),
        **{key: _number(facts.get(key)) for key in ("memory_bytes", "cores")},
    }


# An endpoint.


def _endpoints(record: Data, passports: Data, asked: Callable[[str], bool]) -> List[Data]:
    """The endpoints of a host; without a record, those that there are passports of."""
    names = [_text(one) for one in _list(record.get("endpoints"))] if record else [
        _text(one) for one in list(passports)[:ITEMS]]
    verdicts = _dict(record.get("verdicts"))
    return [_endpoint(name, _dict(passports.get(name)), _dict(verdicts.get(name)), asked(name))
            for name in sorted(set(names), key=natural)]


def _endpoint(name: str, passport: Data, verdict: Data, asked: bool) -> Data:
    plan, smoke = _dict(passport.get("plan")), _dict(passport.get("smoke"))
    model, way_in = _dict(plan.get("model")), _dict(passport.get("service")).get("way_in")
    said = verdict or (dict(smoke, passed=True, at=passport.get("written")) if passport else {})
    passed = said.get("passed") is True
    return {
        "name": name,
        "state": ("proven" if asked else "earlier") if passed else "not_proven",
        "at": _text(said.get("at")),
        "written": _text(passport.get("written")),
        "url": _text(plan.get("public_url")) or _text(plan.get("url")),
        "way_in": isinstance(way_in, dict),
        "engine": _text(plan.get("engine")),
        "engine_version": _text(plan.get("engine_version")),
        "runtime": _text(plan.get("runtime")),
        "manager": _text(_dict(passport.get("service")).get("manager")),
        "image": _text(plan.get("image")),
        "plan": _text(plan.get("hash")),
        "model": {
            "name": _text(model.get("served_name")), "format": _text(model.get("format")),
            "quantisation": _text(model.get("quantisation")),
            "revision": _text(model.get("commit")) or _text(model.get("fingerprint")),
            "path": _text(model.get("path")), "bytes": _number(model.get("bytes")),
        },
        "context": _number(plan.get("context")),
        "devices": [_text(one) for one in _list(plan.get("gpus"))],
        "device": _text(plan.get("device")),
        "parallel": {"tensor": _number(plan.get("tensor_parallel")),
                     "pipeline": _number(plan.get("pipeline_parallel"))},
        "flags": [_text(one) for one in _list(plan.get("flags"))],
        # Of what somebody gave the engine only the names: a value may be a key.
        "extra_flags": [found.group(0) for found in (
            FLAG.match(_text(one)) for one in _list(plan.get("extra_args"))) if found],
        "memory": _memory(plan, _dict(passport.get("memory"))),
        "phases": _phases(_dict(passport.get("phases"))),
        "figures": _figures(said.get("figures")) or _figures(smoke.get("figures")),
        "checks": _checks(said.get("checks")),
        "findings": _findings(said.get("findings")),
        "attempts": [{
            "at": _text(one.get("at")), "outcome": _text(one.get("outcome")),
            "findings": [_text(_dict(found).get("id")) for found in _list(one.get("findings"))],
        } for one in map(_dict, _list(passport.get("attempts")))],
        "benchmark": _benchmark(_dict(passport.get("benchmark"))),
        "reasons": [_text(one, LINES) for one in _list(plan.get("reasons"))],
    }


def _memory(plan: Data, seen: Data) -> Data:
    """The plan's memory beside what was observed, in bytes and in parts of a bar.

    On GPUs both are of one device, and what the engine says it took there. Elsewhere they are of
    the host's memory: what its processes hold.
    """
    planned, told = _dict(plan.get("memory")), _dict(seen.get("observed"))
    on_gpus = bool(_list(plan.get("gpus")))
    predicted: Dict[str, Any] = {
        key: _number(planned.get(key + "_bytes")) for key in ("weights", "kv", "graph")}
    total = _number(planned.get("total_bytes"))
    if total is not None:
        predicted["rest"] = max(0, total - sum(one or 0 for one in predicted.values()))
    resident = _number(seen.get("observed_bytes"))
    observed = {key: _number(told.get(key + "_bytes")) for key in ("weights", "kv", "graph")}
    parts = [{"id": key, "name": name, "predicted_bytes": predicted.get(key),
              "observed_bytes": observed.get(key),
              "off_percent": _off(predicted.get(key), observed.get(key))}
             for key, name in PARTS
             if predicted.get(key) or observed.get(key)]
    whole = None if on_gpus else resident
    seen_parts = sum(one or 0 for one in observed.values())
    limit = _number(planned.get("limit_bytes"))
    scale = max(limit or 0, total or 0, whole or 0, seen_parts) or 1
    for one in parts:
        one["predicted_percent"] = _percent(one["predicted_bytes"], scale)
        one["observed_percent"] = _percent(one["observed_bytes"], scale)
    return {
        "where": "each GPU" if on_gpus else "host memory",
        "devices": len(_list(plan.get("gpus"))),
        "limit_bytes": limit, "predicted_bytes": total, "observed_bytes": whole,
        "observed_percent": _percent(whole, scale),
        "limit_percent": _percent(limit, scale),
        "off_percent": _off(total, whole),
        "parts": parts,
        # What the processes of an engine on GPUs hold of the host beside it.
        "host_bytes": resident if on_gpus else None,
        "kv_tokens": {"predicted": _number(planned.get("kv_tokens")),
                      "observed": _number(told.get("kv_tokens"))},
        "source": _text(planned.get("source")),
    }


def _phases(told: Data) -> List[Data]:
    known = {key: _number(told.get(key)) for key in ("start_s", "port_s", "ready_s", "proof_s")}
    if known["ready_s"] is not None:
        known["load_s"] = round(max(0, known["ready_s"] - (known["port_s"] or 0)), 3)
    found = [(key, name, known.get(key)) for key, name in PHASES if known.get(key) is not None]
    total = sum(seconds or 0 for _key, _name, seconds in found)
    return [{"id": key[:-2], "name": name, "seconds": seconds, "percent": _percent(seconds, total)}
            for key, name, seconds in found]


def _benchmark(told: Data) -> Optional[Data]:
    points = [{key: _number(one.get(key)) for key in (
        "concurrency", "requests", "failed", "output_tokens_per_second", "first_token_p50_s",
        "first_token_p99_s", "per_token_p50_s")} for one in map(_dict, _list(told.get("points")))]
    return {"at": _text(told.get("at")), "tool": _text(told.get("tool")),
            "points": points} if points else None


def _figures(told: Any) -> Data:
    found = {key: _number(_dict(told).get(key)) for key in FIGURES}
    return {key: value for key, value in found.items() if value is not None}


def _checks(told: Any) -> List[Data]:
    return [{"id": _text(one.get("id")), "passed": one.get("passed") is True,
             "seconds": _number(one.get("seconds"))} for one in map(_dict, _list(told))]


def _findings(told: Any) -> List[Data]:
    """Findings in their one shape, worst first."""
    found = []
    for one in map(_dict, _list(told)):
        severity = one.get("severity")
        if severity in SEVERITIES:
            found.append({
                "id": _text(one.get("id")), "severity": severity,
                "needs_root": one.get("needs_root") is True,
                **{key: _text(one.get(key), LINES) for key in (
                    "subject", "found", "wanted", "evidence", "remedy", "source")}})
    return sorted(found, key=lambda one: SEVERITIES.index(str(one["severity"])))


# Drift.


def drift(before: Any, now: Any) -> List[Data]:
    """What is not as it was at the run before.

    :returns: ``what`` changed, of which ``subject``, from ``before`` to ``after``, and whether that
        is for the ``better``, the ``worse`` or ``neither``.
    """
    old, new = _dict(before), _dict(now)
    if not old:
        return []
    told = []
    if old.get("state") != new.get("state"):
        rank = [STATES.index(one) if one in STATES else 0
                for one in (str(old.get("state")), str(new.get("state")))]
        # A host without endpoints is one by decision: no loss.
        good = ("better" if rank[1] > rank[0] else
                "neither" if new.get("state") == "idle" else "worse")
        told.append(_drifted(
            "state", "host", _spoken(old.get("state")), _spoken(new.get("state")), good))
    if "driver" not in old or "driver" not in new:
        return told  # one of them failed before anything was seen
    for key in ("driver", "kernel"):
        if _text(old.get(key)) != _text(new.get(key)):
            told.append(_drifted(key, "host", _text(old.get(key)), _text(new.get(key))))
    gpus = [list(map(_text, _list(one.get("gpus")))) for one in (old, new)]
    if gpus[0] != gpus[1]:
        cards = [_text(one.get("cards")) for one in (old, new)]
        if cards[0] == cards[1]:
            cards[1] = "%d of them replaced" % len(set(gpus[1]) - set(gpus[0]))
        told.append(_drifted("gpus", "host", cards[0], cards[1],
                             "worse" if len(gpus[1]) < len(gpus[0]) else "neither"))
    told += _resized("memory", "host", old.get("memory_bytes"), new.get("memory_bytes"), False)
    ends = [_dict(one.get("endpoints")) for one in (old, new)]
    for name in sorted(set(ends[0]) | set(ends[1]), key=natural):
        told += _endpoint_drift(_text(name), _dict(ends[0].get(name)), _dict(ends[1].get(name)))
    found = [{(_text(one[0]), _text(one[1])): _text(one[2])
              for one in map(_list, _list(side.get("findings"))) if len(one) == 3}
             for side in (old, new)]
    for one in sorted(set(found[1]) - set(found[0])):
        told.append(_drifted("finding", one[1], "", "%s (%s)" % (one[0], found[1][one]), "worse"))
    for one in sorted(set(found[0]) - set(found[1])):
        told.append(_drifted("finding", one[1], "%s (%s)" % (one[0], found[0][one]), "", "better"))
    return told[:ITEMS]


def _endpoint_drift(name: str, old: Data, new: Data) -> Iterable[Data]:
    if not old or not new:
        said = [_joined(_text(one.get("model")), "on " + _text(one.get("engine"))) if one else ""
                for one in (old, new)]
        yield _drifted("endpoint", name, said[0], said[1])
        return
    changed = False
    for key in ("engine", "model", "revision"):
        if _text(old.get(key)) != _text(new.get(key)):
            changed = True
            yield _drifted(key, name, _text(old.get(key))[:40], _text(new.get(key))[:40])
    if _text(old.get("plan")) != _text(new.get("plan")) and not changed:
        yield _drifted("plan", name, _text(old.get("plan"))[:12], _text(new.get("plan"))[:12])
    yield from _resized("memory", name, old.get("memory_bytes"), new.get("memory_bytes"), None)
    yield from _resized("speed", name, old.get("tokens_per_second"),
                        new.get("tokens_per_second"), True)


def _resized(what: str, subject: str, before: Any, after: Any, more: Optional[bool]) -> List[Data]:
    """A change of a number that is worth telling; ``more``: whether more is better.

    ``None`` where neither is, ``False`` where only less is told of.
    """
    old, new = _number(before), _number(after)
    limit = FASTER if what == "speed" else LARGER
    if not old or not new or abs(new - old) < limit * old:
        return []
    good = "neither" if more is None else "better" if new > old else "worse"
    unit = "tokens/s" if what == "speed" else "bytes"
    return [dict(_drifted(what, subject, old, new, good), unit=unit,
                 percent=_off(old, new))]


def _drifted(what: str, subject: str, before: Any, after: Any, good: str = "neither") -> Data:
    return {"what": what, "subject": subject, "before": before, "after": after, "good": good,
            "unit": "", "percent": None}


def _spoken(state: Any) -> str:
    return _text(state).replace("_", " ")


# Words and numbers of others.


def _dict(value: Any) -> Data:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> List[Any]:
    return list(value[:ITEMS]) if isinstance(value, (list, tuple)) else []


def _text(value: Any, most: int = WORDS) -> str:
    """A text that can be shown, on one line unless it may be long; of anything else nothing."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value) if abs(value) < LARGEST else ""
    if not isinstance(value, str):
        return ""
    kept = "\n\t" if most > WORDS else ""
    cut = value[:most]
    made = "".join(one if one.isprintable() or one in kept else " " for one in cut).strip()
    return made + "…" if len(value) > most else made


def _number(value: Any) -> Any:
    """A number that can be reckoned with, not negative; else ``None``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if 0 <= value < LARGEST and not math.isnan(value) else None


def _percent(part: Any, whole: Any) -> float:
    return round(min(100.0, 100.0 * part / whole), 2) if part and whole else 0.0


def _off(predicted: Any, observed: Any) -> Optional[float]:
    """How far what is observed is above (or below) what was predicted, in percent."""
    if not predicted or observed is None:
        return None
    return round(100.0 * float(observed - predicted) / float(predicted), 1)


def _joined(*words: str) -> str:
    return " ".join(one for one in words if one)


def counted(names: Iterable[str]) -> str:
    """Names with how often each is there: ``8 x NVIDIA A100``."""
    count: Dict[str, int] = {}
    for one in names:
        count[one or "unknown GPU"] = count.get(one or "unknown GPU", 0) + 1
    return ", ".join(name if number == 1 else "%d x %s" % (number, name)
                     for name, number in count.items())


def natural(name: Any) -> List[Tuple[int, str]]:
    """A key that sorts ``gpu-9`` before ``gpu-10``."""
    return [(int(one), "") if one.isdecimal() and one.isascii() and len(one) < 18 else (-1, one)
            for one in re.split(r"([0-9]+)", str(name))]


def epoch(at: Any) -> Optional[int]:
    """Seconds of a time as passports write it; ``None`` where it is none."""
    try:
        return calendar.timegm(time.strptime(at, TIME))
    except (TypeError, ValueError, OverflowError):
        return None


def seconds_between(earlier: Any, later: Any) -> Optional[int]:
    """Seconds from one time to another; ``None`` where one is not known."""
    first, second = epoch(earlier), epoch(later)
    return None if first is None or second is None else second - first
