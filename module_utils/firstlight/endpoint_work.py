# SPDX-License-Identifier: Apache-2.0
"""What is done to an endpoint: to bring it, try it, take it back a generation, or remove it.

Each is one transaction of :class:`.endpoint.Endpoint`; a way in front of it and its passport are
part of it.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import shutil
from typing import Any, Dict, List, Optional, Set

from . import collective, passport, paths, processes, smoke
from .docker_service import NAMED, Docker
from .endpoint import (
    FAILED_LOG,
    HANG_SECONDS,
    Endpoint,
    Found,
    NotReady,
    NotServing,
    Plan,
    Report,
    is_split,
)
from .engine_log import observed
from .findings import blocking, text
from .services import ServiceError
from .snapshots import layout
from .transaction import Busy, Lock
from .way_in import WayInError

Params = Dict[str, Any]

SNAPSHOT = re.compile(r"/models/hub/(models--[^/]+)/snapshots/([0-9a-f]{40})(?=/|$)")
"""Where snapshots of ours lie under our root; another cache is another's."""
SLACK_S = 300
"""What the work may take beside its starts and its proofs."""


def limit_s(params: Params) -> float:
    """When the guard gives the work up, in seconds."""
    plans = params["plan"], (params["trial"] or {}).get("plan")
    starts = [one["start_timeout_s"] for one in plans if one]
    # As long again for the way back; a passport's own is not known here. What is there may be
    # waited for first.
    proofs = 2 * smoke.REQUESTS * params["request_timeout_s"]
    split = sum(collective.LIMIT_S for one in plans if one and is_split(one))
    wait = (params["plan"] or {}).get("start_timeout_s", 0)
    return float(wait + 2 * sum(starts or [3600]) + proofs + split + SLACK_S)


# Why.


def reasons(params: Params, found: Found, endpoint: Endpoint) -> List[str]:
    """Why the endpoint has to be touched; empty when it is as wanted."""
    told = ["an earlier switch of it was ended in the middle"] if found["half_done"] else []
    if params["state"] == "absent":
        if (any(map(os.path.lexists, endpoint.definitions())) or found["pids"] or found["files"]
                or found["containers"] or found["way_in"]):
            told.append("it is there and should not be")
        return told
    if params["state"] == "previous":
        _older(endpoint)
        return told + ["what served before is asked for"]
    if params["state"] == "trial":
        return told + _untried(params, found, endpoint)
    told += engine_reasons(params, found, endpoint)
    way_in = params["way_in"]
    return told + endpoint.way_in.reasons(dict(way_in, plan=params["plan"]) if way_in else None)


def _untried(params: Params, found: Found, endpoint: Endpoint) -> List[str]:
    if found["running_plan"] or _is_tried(endpoint, params["trial"]):
        return []
    return ["its engine was not tried on these devices yet"]


def engine_reasons(params: Params, found: Found, endpoint: Endpoint) -> List[str]:
    """Why the engine has to be started anew."""
    told, wanted = [], params["plan"]["hash"]
    if found["passport"] is None:
        told.append("it has no passport yet")
    elif found["passport"]["plan"]["hash"] != wanted:
        told.append("its plan changed from %s to %s" % (
            found["passport"]["plan"]["hash"][:12], wanted[:12]))
    if found["definition"] != params["definition"] or endpoint.holder() is not endpoint.service:
        told.append("its service definition is not the plan's")
    elif found["running_plan"] != wanted:
        told.append("its engine is %s%s" % (
            found["status"]["state"], _in_brackets(found["status"]["detail"], params)))
    elif not told and endpoint.hangs(found):
        told.append("its engine hangs: no answer and no work for %d s%s" % (
            HANG_SECONDS, _in_brackets(found["status"]["detail"], params)))
    elif not told:
        told += _astray(endpoint, params)
    return told


def _in_brackets(detail: str, params: Params) -> str:
    return " (%s)" % detail if detail and params["manager"] == Docker.KIND else ""


def _astray(endpoint: Endpoint, params: Params) -> List[str]:
    """A container may have lost its GPUs since it was started."""
    if params["manager"] != Docker.KIND:
        return []
    try:
        endpoint.placed(params["plan"])
    except NotServing as problem:
        return [" ".join(str(problem).split())]
    return []


def diff(endpoint: Endpoint, params: Params, found: Found) -> Dict[str, str]:
    """The definition before and after."""
    before, wanted = found["definition"] or "", endpoint.service
    after = {"present": params["definition"] or "", "absent": "", "trial": before}.get(
        params["state"])
    if after is None:
        old = _older(endpoint)["service"]
        wanted, after = endpoint.by_kind(old["manager"]), old["text"]
    headers = [one.files(endpoint.name)[0] for one in (endpoint.holder() or wanted, wanted)]
    return {"before_header": headers[0], "after_header": headers[1], "before": before,
            "after": after}


# To do it.


def do(endpoint: Endpoint, params: Params, report: Report) -> Dict[str, Any]:
    """Do what the state asks for; returns what the module returns of it.

    :raises NotServing: it is not right, and what was is back.
    """
    return {"present": _bring, "absent": _remove, "trial": _try, "previous": _go_back}[
        params["state"]](endpoint, params, report)


def _bring(endpoint: Endpoint, params: Params, report: Report) -> Dict[str, Any]:
    plan = params["plan"]
    with endpoint.journal() as change:
        # Only now is it sure that nothing is half done, by an earlier run or by one beside us.
        endpoint.begun = True
        found = endpoint.observe()
        told = reasons(params, found, endpoint)
        engine = engine_reasons(params, found, endpoint) if told else []
        in_vain = [] if engine else _wait(endpoint, params, found, report)
        told += in_vain
        if not told:
            if change.recovered:
                # What the earlier run had made and not come to start.
                with contextlib.suppress(OSError, ServiceError):
                    endpoint.discard(endpoint.coming)
            return {"changed": change.recovered, "recovered": change.recovered, "reasons": []}
        _snapshot(endpoint, change)
        if not engine and not in_vain:
            _bring_way_in(endpoint, plan, params["way_in"])
            _note_way_in(endpoint, found["passport"], plan, params["way_in"])
            return {"changed": True, "recovered": change.recovered, "reasons": told}
        _write_supervisor_config(endpoint, params["supervisor_config"])
        if params["way_in"]:
            # What of it cannot run is found before anything that serves is touched.
            endpoint.way_in.check(dict(params["way_in"], plan=plan))
        else:
            endpoint.way_in.remove()  # it may hold the very port that the engine is to take
        if params["trial"] and not _is_tried(endpoint, params["trial"]):
            _prove_trial(endpoint, params, report)
        verdict = _serve(endpoint, params, found, report, plan, params["definition"],
                         params["way_in"])
    _after(endpoint, params, verdict)
    return {"changed": True, "verdict": verdict, "recovered": change.recovered, "reasons": told}


def _wait(endpoint: Endpoint, params: Params, found: Found, report: Report) -> List[str]:
    """Wait for an engine that its manager has started again; why that was in vain."""
    if not endpoint.loads(found):
        return []
    left = endpoint.left(found)
    if left:
        return ["it does not get ready, and of an engine before it there is left: pid %s"
                % ", ".join(map(str, left))]
    try:
        endpoint.wait_until_ready(params["plan"], endpoint.service.log_mark(endpoint.name), report,
                                  found["status"].get("restarts", 0))
    except NotReady as problem:
        return [str(problem).splitlines()[0].partition(" Its log ends:")[0]]
    return []


def _serve(endpoint: Endpoint, params: Params, found: Found, report: Report, plan: Plan,
           definition: str, way_in: Optional[Dict[str, Any]]) -> Dict[str, Any]:
    """Start, prove, and write the passport."""
    before = found["passport"]
    # After a canary, which took its place, there is nothing left to be beside.
    beside = (bool(plan.get("beside")) and endpoint.service is endpoint.docker
              and bool(before) and before["plan"]["engine_port"] != plan["engine_port"]
              and endpoint.docker.wanted(endpoint.name) is not None
              and endpoint.docker.wanted(endpoint.name) == before["service"].get("container"))
    started = endpoint.start(plan, definition, report, beside)
    report({"text": "proving"})
    verdict = endpoint.prove(plan, params["request_timeout_s"], params["proof"])
    seen = endpoint.placed(plan)
    _bring_way_in(endpoint, plan, way_in)
    if beside:
        endpoint.drain(before["plan"], report)
        endpoint.docker.stop_others(endpoint.name)
    if found["passport"] and found["passport"]["plan"]["hash"] != plan["hash"]:
        folder = "undone" if params["state"] == "previous" else ""
        passport.write_json(
            endpoint.generation_path(found["passport"], folder), found["passport"])
    proof = {one["id"]: one["seconds"] for one in verdict["checks"]}
    phases = dict(started["phases"], listed_s=proof.get("model-listed", 0.0),
                  proof_s=round(sum(proof.values()), 3))
    passport.write_json(endpoint.passport_path, _passport(
        endpoint, params, plan, definition, verdict, phases, started["log"], seen, way_in))
    return verdict


def _snapshot(endpoint: Endpoint, change: Any) -> None:
    for path in (*endpoint.definitions(), *endpoint.way_in.files(), endpoint.passport_path):
        change.snapshot(path)


def _bring_way_in(endpoint: Endpoint, plan: Plan, wanted: Optional[Dict[str, Any]]) -> None:
    """Have the proxy before the engine, or none, and see that it lets in whom it should."""
    if wanted is None:
        endpoint.way_in.remove()
        return
    try:
        endpoint.way_in.bring(dict(wanted, plan=plan))
    except WayInError as problem:
        raise NotServing(str(problem)) from problem
    wrong = blocking(endpoint.way_in.prove(plan))
    if wrong:
        raise NotServing("The way in to %s is not right:\n%s" % (endpoint.name, text(wrong)))


def _note_way_in(endpoint: Endpoint, kept: passport.Passport, plan: Plan,
                 wanted: Optional[Dict[str, Any]]) -> None:
    """The passport tells the certificate that clients see, a new one included."""
    noted = endpoint.way_in.of_a_passport(dict(wanted, plan=plan)) if wanted else None
    if kept["service"].get("way_in") != noted:
        passport.write_json(endpoint.passport_path, dict(
            kept, service=dict(kept["service"], way_in=noted)))


def _write_supervisor_config(endpoint: Endpoint, config: Optional[str]) -> None:
    """supervisord reads it at its start; a change reaches the one that runs at its next start."""
    native = endpoint.services[0]
    if config and paths.read(native.config) != config.encode():
        paths.write(native.config, config.encode(), mode=0o600)


def _passport(endpoint: Endpoint, params: Params, plan: Plan, definition: str,
              verdict: Dict[str, Any], phases: Dict[str, float], log: str, seen: Dict[str, Any],
              way_in: Optional[Dict[str, Any]]) -> passport.Passport:
    status = endpoint.service.status(endpoint.name)
    container = NAMED.search(definition) if endpoint.service is endpoint.docker else None
    return {
        "schema": passport.SCHEMA,
        "endpoint": endpoint.name,
        "written": passport.now(),
        "plan": plan,
        "facts": params["facts"],
        "service": {
            "manager": endpoint.service.KIND,
            "definition": endpoint.service.files(endpoint.name)[0],
            "text": definition,
            "container": container.group(1) if container else None,
            # The keys are not part of it: they are who may come in, whatever serves.
            "way_in": endpoint.way_in.of_a_passport(dict(way_in, plan=plan)) if way_in else None,
        },
        "placement": seen,
        "memory": {
            "predicted_bytes": plan["memory"]["total_bytes"],
            "observed_bytes": processes.resident_bytes(
                endpoint.observe()["pids"] or [status["pid"] or 0]),
            "observed": observed(log),
        },
        "smoke": {"figures": verdict["figures"], "checks": verdict["checks"],
                  "findings": verdict["findings"]},
        "phases": phases,
        **_benchmark(endpoint, plan),
        "attempts": [*(_without_words(one) for one in params["attempts"]),
                     _attempt(plan, "proven", [])],
    }


def _benchmark(endpoint: Endpoint, plan: Plan) -> Dict[str, Any]:
    """What was measured of this very plan before: it is none of another one's."""
    for one in [endpoint.passport(), *endpoint.generations()]:
        if one and one["plan"]["hash"] == plan["hash"] and isinstance(one.get("benchmark"), dict):
            return {"benchmark": one["benchmark"]}
    return {}


def failed_attempt(params: Params, problem: NotServing) -> Optional[Dict[str, Any]]:
    """The attempt that ended by this: what is known of it, and what was found in its log.

    ``None`` where its engine was ready, or where no plan was to be brought.
    """
    plan = params["plan"] or (params["trial"] or {}).get("plan")
    if not isinstance(problem, NotReady) or plan is None:
        return None
    return dict(_attempt(plan, "failed", [one["finding"] for one in problem.matches]),
                trial=problem.of_trial, words={
                    one["finding"]["id"]: one["words"] for one in problem.matches})


def _without_words(attempt: Dict[str, Any]) -> Dict[str, Any]:
    # What a log says goes no further than the message: lines of it may hold anything.
    told = [dict(one, evidence="", found="") for one in attempt.get("findings") or []]
    return dict({key: value for key, value in attempt.items() if key != "words"}, findings=told)


def _attempt(plan: Plan, outcome: str, findings: List[Dict[str, Any]]) -> Dict[str, Any]:
    return {"at": passport.now(), "plan": plan["hash"], "outcome": outcome,
            "adjustments": plan.get("adjustments", []),
            "findings": [dict(one, evidence="") for one in findings]}


# The canary first.


def _record(endpoint: Endpoint, trial: Dict[str, Any]) -> str:
    return os.path.join(endpoint.root, "canaries", os.path.basename(trial["key"]) + ".json")


def _is_tried(endpoint: Endpoint, trial: Dict[str, Any]) -> bool:
    return os.path.exists(_record(endpoint, trial))


def _prove_trial(endpoint: Endpoint, params: Params, report: Report) -> Dict[str, Any]:
    """Serve and prove the canary by the plan's engine on the plan's devices, and write it down."""
    trial = params["trial"]
    try:
        started = endpoint.start(
            trial["plan"], trial["definition"],
            lambda told: report(dict(told, text="canary: %s" % told.get("text", ""))))
        verdict = endpoint.prove(trial["plan"], params["request_timeout_s"])
        endpoint.placed(trial["plan"])
    except NotServing as problem:
        said = "The canary is not served by %s %s on these devices, so %s was not tried. %s" % (
            trial["plan"]["engine"], trial["plan"]["engine_version"], endpoint.name, problem)
        if isinstance(problem, NotReady):
            raise NotReady(said, problem.matches, of_trial=True) from problem
        raise NotServing(said) from problem
    passport.write_json(_record(endpoint, trial), {
        "at": passport.now(), "plan": trial["plan"], "phases": started["phases"],
        "checks": verdict["checks"], "figures": verdict["figures"]})
    return verdict


class _Tried(Exception):
    """The way out of a transaction that is to leave nothing."""


def _try(endpoint: Endpoint, params: Params, report: Report) -> Dict[str, Any]:
    verdict: Dict[str, Any] = {}
    recovered = False
    with contextlib.suppress(_Tried), endpoint.journal() as change:
        recovered = change.recovered
        endpoint.begun = True
        found = endpoint.observe()
        told = _untried(params, found, endpoint)
        if not told:
            return {"changed": recovered, "recovered": recovered, "reasons": []}
        _snapshot(endpoint, change)
        _write_supervisor_config(endpoint, params["supervisor_config"])
        verdict = _prove_trial(endpoint, params, report)
        raise _Tried
    return {"verdict": verdict, "recovered": recovered, "reasons": told}


# Back a generation.


def _older(endpoint: Endpoint) -> passport.Passport:
    """The generation before this one.

    :raises NotServing: there is none.
    """
    for one in endpoint.generations():
        return one
    raise NotServing("%s has no older generation to go back to in %s." % (
        endpoint.name, os.path.join(endpoint.folder, "passports")))


def _go_back(endpoint: Endpoint, params: Params, report: Report) -> Dict[str, Any]:
    with endpoint.journal() as change:
        found = endpoint.observe()
        old = _older(endpoint)
        endpoint.service = endpoint.by_kind(old["service"]["manager"])
        _snapshot(endpoint, change)
        gone = endpoint.generation_path(old)
        for path in (gone, endpoint.generation_path(found["passport"], "undone")
                     if found["passport"] else gone):
            change.snapshot(path)
        way_in = endpoint.way_in.from_a_passport(old["service"].get("way_in"))
        if way_in is None:
            endpoint.way_in.remove()
        else:
            endpoint.way_in.check(way_in)
        # It ran on the devices that it has; whether there is room beside is not known here.
        verdict = _serve(endpoint, params, found, report, dict(old["plan"], beside=False),
                         old["service"]["text"], way_in)
        os.unlink(gone)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(endpoint.folder, FAILED_LOG))
    passport.write_check(os.path.join(endpoint.folder, "last_check.json"), verdict)
    return {"verdict": verdict, "recovered": change.recovered,
            "reasons": ["what served before is asked for"]}


# What is not needed any more.


def _after(endpoint: Endpoint, params: Params, verdict: Dict[str, Any]) -> None:
    """The last check, and an end to what only generations needed that are not kept any more."""
    passport.write_check(os.path.join(endpoint.folder, "last_check.json"), verdict)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(endpoint.folder, FAILED_LOG))
    undone = glob.glob(os.path.join(
        glob.escape(endpoint.folder), "passports", "undone", "*.json"))
    gone = endpoint.generations()[max(0, params["keep"]):]
    plans = [one["plan"] for one in gone] + [
        one["plan"] for one in map(_read, undone) if isinstance(one, dict) and "plan" in one]
    paths.remove([*map(endpoint.generation_path, gone), *undone],
                 os.path.join(endpoint.folder, "passports"), "undone")
    # It is proven and serves; what cannot be cleared away now is cleared away another time.
    with contextlib.suppress(OSError, ServiceError):
        endpoint.discard()
        _clear(endpoint, plans, set(params["spared"]))


def _read(file: str) -> Any:
    try:
        return json.loads(paths.read(file) or b"null")
    except (OSError, ValueError, RecursionError):
        return None


def _named(root: str) -> Set[str]:
    """Folders and images that a passport of any endpoint names."""
    named: Set[str] = set()
    folder = os.path.join(glob.escape(root), "endpoints", "*")
    for pattern in ("passport.json", "passports/*.json", "passports/undone/*.json"):
        for file in glob.glob(os.path.join(folder, pattern)):
            one = _read(file)
            plan = one.get("plan") if isinstance(one, dict) else None
            if isinstance(plan, dict):
                named.update(_needs(plan, root))
    return named


def _needs(plan: Plan, root: str) -> List[str]:
    """What a plan needs that can be made or fetched again.

    Its cache, environment and image, and a snapshot that lies under our root.
    """
    model = plan.get("model")
    path = model.get("path") if isinstance(model, dict) else None
    return [one for one in (plan.get("cache"), plan.get("venv"), plan.get("image"),
                            _snapshot_of(path, root))
            if isinstance(one, str) and one]


def _snapshot_of(path: Any, root: str) -> str:
    """The folder of the snapshot that a model lies in; empty for any other model."""
    found = SNAPSHOT.match(path[len(root):]) if isinstance(path, str) and path.startswith(
        root + "/") else None
    return root + found.group(0) if found else ""


def _forget_snapshot(folder: str, root: str) -> bool:
    """Remove a snapshot of ours; whether it is gone. Where somebody is at it, it stays."""
    found = SNAPSHOT.fullmatch(folder[len(root):])
    if not found or os.path.islink(folder) or not os.path.isdir(folder):
        return False
    cache, name, commit = os.path.join(root, "models", "hub"), found.group(1), found.group(2)
    repo_id = name[len("models--"):].replace("--", "/", 1)
    with contextlib.suppress(Busy), Lock(
            os.path.join(cache, ".locks", name, "firstlight.lock"), wait_s=0):
        layout.forget(cache, repo_id, commit)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(root, "models", "verified", name, commit + ".json"))
        return True
    return False


def _clear(endpoint: Endpoint, plans: List[Plan], spared: Set[str]) -> List[str]:
    """Remove what of these plans no passport names, as far as it is ours; says what went."""
    left = _named(endpoint.root) | spared | {
        _snapshot_of(one, endpoint.root) for one in spared}
    removed = []
    for plan in plans:
        for one in _needs(plan, endpoint.root):
            if one in left:
                continue
            left.add(one)
            if _snapshot_of(one, endpoint.root):
                if _forget_snapshot(one, endpoint.root):
                    removed.append("snapshot %s" % one)
            elif one.startswith("/"):
                # A passport lies on the host: nothing outside our two folders is removed for it.
                if os.path.normpath(one) == one and os.path.dirname(one) in (
                        os.path.join(endpoint.root, "cache"),
                        os.path.join(endpoint.root, "venvs")) \
                        and os.path.isdir(one) and not os.path.islink(one):
                    shutil.rmtree(one)
                    removed.append("folder %s" % one)
            # An image that the user named is the user's.
            elif (endpoint.docker in endpoint.services
                    and not (plan.get("asked") or {}).get("image")
                    and endpoint.docker.discard_image(one)):
                removed.append("image %s" % one)
    return removed


# Removal.


def to_remove(endpoint: Endpoint, found: Found) -> List[str]:
    """What removing the endpoint ends and deletes, one line each."""
    definitions = [path for path in endpoint.definitions() if os.path.lexists(path)]
    return (["process %d of endpoint %s" % (pid, endpoint.name) for pid in found["pids"]]
            + ["container %s" % name for name in found["containers"]]
            + (endpoint.way_in.to_remove() if found["way_in"] else [])
            + ["file %s" % path for path in definitions]
            + (["what we wrote in %s" % endpoint.folder] if found["files"] else []))


def _remove(endpoint: Endpoint, params: Params, report: Report) -> Dict[str, Any]:
    """Stop the endpoint and remove what was written for it alone; says what was removed."""
    with endpoint.journal() as change:
        found = endpoint.observe()
        removed = to_remove(endpoint, found)
        plans = [one["plan"] for one in [found["passport"], *endpoint.generations()] if one]
        _snapshot(endpoint, change)
        endpoint.way_in.remove()
        endpoint.end()
        for one in endpoint.services:
            one.follow(endpoint.name)
        if endpoint.docker in endpoint.services:
            endpoint.docker.discard(endpoint.name, [])
        processes.end(endpoint.root, endpoint.name)
        paths.remove(endpoint.files(), endpoint.folder, "passports/undone", "passports",
                     "profile")
        change.forget_lock()
    with contextlib.suppress(OSError, ServiceError):
        removed += _clear(endpoint, plans, set(params["spared"]))
        if endpoint.docker in endpoint.services:
            removed += endpoint.docker.drop_network()
    return {"removed": removed, "recovered": change.recovered,
            "reasons": ["it is there and should not be"]}

