# SPDX-License-Identifier: Apache-2.0
"""A profile of an endpoint, made on its host: its engine is started again with a profiler, asked
for few tokens, and what served comes back whatever happens.

What records is the engine's own processes, told by ``/start_profile`` and ``/stop_profile``; a
profiler in a client sees nothing of them. It is one transaction of :class:`.endpoint.Endpoint`.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import threading
import time
from typing import Any, Callable, Dict, List, Optional

from . import collective, engine_log, load, passport, processes, profile_traces, smoke
from .docker_api import Api, Away, Refused
from .docker_service import Docker
from .endpoint import Endpoint, NotServing, Passport, Plan, Report, is_split
from .findings import Finding, finding
from .http_client import Answer, post
from .planning import profile_service
from .profile_traces import Unprofiled, remove_folder

Params = Dict[str, Any]

SLACK_S = 300
"""What the work may take beside its starts, its proof and its limits."""
LOOK_S = 0.25
"""How often the limits are looked at."""
STOP_S = 60.0
"""How long a profiler may take to stop where a limit was met."""
LOG_LINES = 4000

RESULT = "profile.json"
NSYS_PLACES = ("/usr/bin", "/usr/local/bin", "/usr/local/cuda/bin",
               "/opt/nvidia/nsight-systems/*/bin", "/opt/nvidia/nsight-systems-cli/*/bin")


class _Recorded(Exception):
    """The way out of a transaction that is to leave nothing."""


def limit_s(params: Params) -> float:
    """When the guard gives the work up, in seconds."""
    plan = params["plan"]
    limits = plan["profile"]["limits"]
    # The start of the variant, and of what comes back, with as much patience.
    return float(2 * plan["start_timeout_s"] + limits["seconds"] + profile_traces.READ_S + SLACK_S
                 + (collective.LIMIT_S if is_split(plan) else 0)
                 + smoke.REQUESTS * params["request_timeout_s"])


def reasons(endpoint: Endpoint, params: Params) -> List[str]:
    """What will be started again; that a profile is asked for is reason enough.

    :raises NotServing: the endpoint does not serve by the plan that was looked at.
    """
    found = endpoint.observe()
    told = ["%s is started again with a profiler, and then as it is (%s %s)" % (
        endpoint.name, params["plan"]["engine"], params["plan"]["engine_version"])]
    if found["half_done"]:
        # What serves is known when that is put back.
        return ["an earlier change of it was ended in the middle", *told]
    _serving(endpoint, found, params["plan"])
    return told


def do(endpoint: Endpoint, params: Params, report: Report) -> Dict[str, Any]:
    """Record, put back, and tell what was recorded.

    :returns: what the module returns of it.
    :raises NotServing: nothing was recorded, or what served does not serve again.
    """
    _must_be_ours(endpoint, params["plan"])
    # Its reports are read by the program that wrote them.
    plan = _with_nsys(params["plan"])
    try:
        recorded = _recorded(endpoint, plan, report)
        report({"text": "starting again what served"})
        verdict = _proven(endpoint, plan, params)
        report({"text": "reading what was recorded"})
        told = profile_traces.told(endpoint, plan, recorded)
    finally:
        clear(endpoint, plan)
    passport.write_json(os.path.join(endpoint.folder, RESULT), told)
    return {"changed": True, "recovered": recorded["recovered"], "verdict": verdict,
            "profile": told}


def _recorded(endpoint: Endpoint, plan: Plan, report: Report) -> Dict[str, Any]:
    """The transaction, which always goes back."""
    recorded: Dict[str, Any] = {}
    with contextlib.suppress(_Recorded), endpoint.journal() as change:
        endpoint.begun = True
        kept = _serving(endpoint, endpoint.observe(), plan)
        # What cannot be is found before anything that serves is touched.
        _room(endpoint, plan)
        definition = _definition(endpoint, kept, plan)
        for path in (*endpoint.definitions(), endpoint.passport_path):
            change.snapshot(path)
        _empty_folder(plan)
        recorded = _record(endpoint, plan, definition, report)
        recorded["recovered"] = change.recovered
        raise _Recorded
    return recorded


def clear(endpoint: Endpoint, plan: Plan) -> None:
    """Remove what the engine wrote: it lies where the engine may write, and is copied by now."""
    _must_be_ours(endpoint, plan)
    remove_folder(plan["profile"]["folder"])


# What serves, and the variant of it.


def _serving(endpoint: Endpoint, found: Dict[str, Any], plan: Plan) -> Passport:
    kept, of = found["passport"], plan["profile"]["of"]
    if kept is None or kept["plan"]["hash"] != of:
        raise NotServing("%s does not serve by the plan that this profile is of (%s) any more: run "
                         "playbooks/profile.yml again." % (endpoint.name, of[:12]))
    if found["running_plan"] != of:
        raise NotServing(
            "%s is not as its passport says (its engine is %s): bring it back with "
            "playbooks/site.yml first, so that there is something to put back." % (
                endpoint.name, found["status"]["state"]))
    return dict(kept)


def _definition(endpoint: Endpoint, kept: Passport, plan: Plan) -> str:
    """The text by which the variant is started; its container is made."""
    holders = processes.holders([plan["engine_port"]])
    if holders:
        raise NotServing("Port %d, on which %s would be recorded, is held by %s." % (
            plan["engine_port"], endpoint.name,
            holders[plan["engine_port"]]["command"] or "a process of another user"))
    service = kept["service"]
    if service["manager"] != Docker.KIND:
        try:
            return profile_service.native_definition(
                service["text"], service["manager"], kept["plan"], plan)
        except profile_service.Unknown as problem:
            raise NotServing("%s cannot be started with a profiler: %s. Run playbooks/site.yml, "
                             "which writes it anew." % (endpoint.name, problem)) from problem
    name = profile_service.container_name(plan)
    seen = endpoint.docker.made(endpoint.name, service["container"])
    if endpoint.docker.inspect(name) is None:
        try:
            Api().post("/containers/create", profile_service.container_body(seen, plan), name=name)
        except (Refused, Away) as problem:
            raise NotServing("The container %s cannot be made: %s" % (name, problem)) from problem
    return profile_service.container_definition(plan)


def _with_nsys(plan: Plan) -> Plan:
    """The plan with the path of nsys where it is to be started by it."""
    if plan["profile"]["profiler"] != "nsys":
        return plan
    argv = plan["command"]["argv"]
    places = [place for pattern in NSYS_PLACES for place in sorted(glob.glob(pattern))]
    there = shutil.which(argv[0], path=os.pathsep.join(places))
    if there is None:
        raise Unprofiled([finding(
            "nsys-missing", "nsys", "there is no %s in %s" % (argv[0], ", ".join(NSYS_PLACES)),
            "NVIDIA Nsight Systems on the host",
            "install NVIDIA's package nsight-systems-cli, say where it is with "
            "endpoint_profile_nsys, or set endpoint_profile_profiler: torch", needs_root=True)])
    return {**plan, "command": {**plan["command"], "argv": [there, *argv[1:]]}}


def _must_be_ours(endpoint: Endpoint, plan: Plan) -> None:
    """A passport lies on the host: no folder outside of our cache is emptied for it."""
    folder = plan["profile"]["folder"]
    caches = os.path.join(endpoint.root, "cache")
    if os.path.normpath(folder) != folder or os.path.islink(os.path.dirname(folder)) or (
            os.path.dirname(os.path.dirname(folder)) != caches):
        raise NotServing("%s is to be recorded into %s, which is not in a folder of %s." % (
            endpoint.name, folder, caches))


def _room(endpoint: Endpoint, plan: Plan) -> None:
    """Whether the disks have room for traces, where they are written and where they are kept."""
    needed = plan["profile"]["limits"]["disk_bytes"]
    for place in (os.path.dirname(plan["profile"]["folder"]), endpoint.folder):
        try:
            free = shutil.disk_usage(place).free
        except OSError as problem:
            raise NotServing("%s cannot be written into: %s" % (place, problem)) from problem
        if free < 2 * needed:
            raise Unprofiled([finding(
                "profile-disk", place, "%d MiB free" % (free // 2**20),
                "twice what traces may take: %d MiB" % (2 * needed // 2**20),
                "make room, or lower endpoint_profile_disk_bytes")])


def _empty_folder(plan: Plan) -> None:
    """A folder that whoever writes the cache may write: what lies in it afterwards is of now."""
    folder = plan["profile"]["folder"]
    remove_folder(folder)
    os.mkdir(folder, 0o755)
    above = os.stat(os.path.dirname(folder))
    if os.geteuid() == 0:
        os.chown(folder, above.st_uid, above.st_gid, follow_symlinks=False)


# To record.


class _Watchdog:
    """The limits of a profile: time, the disk, and the memory of the engine's processes."""

    def __init__(self, endpoint: Endpoint, plan: Plan) -> None:
        self._endpoint, self._folder = endpoint, plan["profile"]["folder"]
        self._limits: Dict[str, float] = plan["profile"]["limits"]
        self._began = time.monotonic()
        self._before = self._resident()
        self.grown, self.written = 0, 0

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return max(0.0, self._limits["seconds"] - (time.monotonic() - self._began))

    def look(self) -> Optional[Finding]:
        """The limit that is met, or ``None``."""
        self.written = max(self.written, _size(self._folder))
        self.grown = max(self.grown, self._resident() - self._before)
        name, where = self._endpoint.name, "endpoint %s" % self._endpoint.name
        if self.written > self._limits["disk_bytes"]:
            return finding(
                "profile-limit-disk", where, "its traces took %d MiB" % (self.written // 2**20),
                "at most %d MiB" % (self._limits["disk_bytes"] // 2**20),
                "record less: endpoint_profile_iterations, endpoint_profile_requests; or raise "
                "endpoint_profile_disk_bytes")
        if self.grown > self._limits["memory_bytes"]:
            return finding(
                "profile-limit-memory", where,
                "the processes of %s grew by %d MiB" % (name, self.grown // 2**20),
                "at most %d MiB: what is recorded is held in memory until it is written"
                % (self._limits["memory_bytes"] // 2**20),
                "record less: endpoint_profile_iterations, endpoint_profile_requests; or raise "
                "endpoint_profile_memory_bytes")
        if not self.left_s:
            return finding(
                "profile-limit-time", where, "it took more than %d s" % self._limits["seconds"],
                "an end in that time: writing traces takes minutes for large models",
                "record less: endpoint_profile_iterations, endpoint_profile_requests, and no "
                "endpoint_profile_stacks; or raise endpoint_profile_seconds")
        return None

    def _resident(self) -> int:
        return processes.resident_bytes(self._endpoint.observe()["pids"]) or 0


def _size(folder: str) -> int:
    found = 0
    with contextlib.suppress(OSError):
        for one in os.scandir(folder):
            found += one.stat(follow_symlinks=False).st_size
    return found


def _record(endpoint: Endpoint, plan: Plan, definition: str, report: Report) -> Dict[str, Any]:
    """Start the variant, have it record, and have it write what it recorded.

    :returns: figures, and the findings that its log and the limits gave.
    """
    profile, log = plan["profile"], endpoint.service.log_mark(endpoint.name)
    started = endpoint.start(plan, definition,
                             lambda told: report(dict(told, text="with a profiler: %s"
                                                      % told.get("text", ""))))
    timeout = profile["limits"]["request_timeout_s"]
    # What is compiled for a first request is none of the others'.
    _ask(plan, -1, timeout)
    watchdog = _Watchdog(endpoint, plan)
    report({"text": "recording"})
    _told_to(plan, profile["start"], min(timeout, watchdog.left_s))
    begun = time.monotonic()
    asked = _Calls([lambda number=number: _ask(plan, number, timeout)  # type: ignore[misc]
                    for number in range(profile["requests"])])
    met = asked.wait(watchdog)
    took = time.monotonic() - begun
    if not met:
        asked.raise_first()
    report({"text": "writing what was recorded"})
    begun = time.monotonic()
    _stop(plan, watchdog, met)
    if profile["profiler"] == "nsys":
        _wait_for_reports(plan, watchdog)
    said = endpoint.service.log_tail(endpoint.name, LOG_LINES, log)
    return {
        "start_s": started["phases"]["ready_s"], "requests_s": round(took, 3),
        "stop_s": round(time.monotonic() - begun, 3), "memory_bytes": max(0, watchdog.grown),
        "disk_bytes": watchdog.written, "findings": ([dict(met, severity="warning")] if met else [])
        + _in_the_log(endpoint, plan, said),
    }


def prompt_of(profile: Dict[str, Any], number: int) -> List[int]:
    """The prompt of a request, as ids of tokens: of the exact length whatever the tokenizer, and
    another for each, so that none is answered from a cache of prefixes.

    :param profile: of the variant's plan.
    :param number: of the request, from 0; the one that warms the engine up is -1.
    """
    first, last = profile["tokens"]
    return load.token_ids(first, last - first + 1, profile["prompt_tokens"], number)


def _ask(plan: Plan, number: int, timeout_s: float) -> None:
    answer = post(plan["url"] + "/v1/completions", {
        "model": plan["model"]["served_name"], "prompt": prompt_of(plan["profile"], number),
        "max_tokens": plan["profile"]["output_tokens"], "temperature": 0, "ignore_eos": True,
    }, timeout_s)
    if answer.status != 200:
        raise Unprofiled([finding(
            "profile-request", "%s/v1/completions" % plan["url"], answer.brief(),
            "an answer to a prompt of %d tokens while it is recorded"
            % plan["profile"]["prompt_tokens"],
            "look at the log of the engine; with a larger model, raise "
            "endpoint_profile_request_timeout_s")])


def _told_to(plan: Plan, path: str, timeout_s: float) -> Answer:
    """Have the engine start or stop recording.

    :raises Unprofiled: it does not; with the reason.
    """
    answer = post(plan["url"] + path, {}, timeout_s)
    if answer.status == 200:
        return answer
    where = plan["url"] + path
    if answer.status == 404:
        raise Unprofiled([finding(
            "profiler-not-set", where, "HTTP 404: there is no such path",
            "an engine that was started with a profiler: without one, %s %s has not these paths"
            % (plan["engine"], plan["engine_version"]),
            "see that engine_version is what runs (%s --version); the row of "
            "catalog/profiler_dialects.yml for it gives the flags" % plan["command"]["argv"][0],
            source="catalog/profiler_dialects.yml")])
    raise Unprofiled([finding(
        "profiler-refused", where, answer.brief(), "HTTP 200",
        "look at the log of the engine; where it takes long, raise endpoint_profile_seconds")])


class _Calls:
    """Requests at once, each in a thread that nobody has to wait for."""

    def __init__(self, tasks: List[Callable[[], Any]]) -> None:
        self._wrong: List[Exception] = []
        self._threads = [threading.Thread(target=self._call, args=(task,), daemon=True)
                         for task in tasks]
        for one in self._threads:
            one.start()

    def _call(self, task: Callable[[], Any]) -> None:
        try:
            task()
        except Exception as problem:
            self._wrong.append(problem)

    def wait(self, watchdog: _Watchdog) -> Optional[Finding]:
        """Wait for all of them; the limit that was met before that, or ``None``."""
        while self.is_under_way():
            met = watchdog.look()
            if met:
                return met
            for one in self._threads:
                one.join(LOOK_S / len(self._threads))
        return watchdog.look()

    def is_under_way(self) -> bool:
        """Whether one of them has not ended."""
        return any(one.is_alive() for one in self._threads)

    def raise_first(self) -> None:
        """Raise what one of them ended by."""
        if self._wrong:
            raise self._wrong[0]


def _stop(plan: Plan, watchdog: _Watchdog, met: Optional[Finding]) -> None:
    """Have it stop recording and write: that takes long, and looks like a hang.

    :raises Unprofiled: a limit is met, or it does not stop.
    """
    patience = STOP_S if met else max(1.0, watchdog.left_s)
    deadline = time.monotonic() + patience
    stopped = _Calls([lambda: _told_to(plan, plan["profile"]["stop"], patience)])
    if met is None:
        met = stopped.wait(watchdog)
        if met:
            raise Unprofiled([met])
    else:
        while stopped.is_under_way() and time.monotonic() < deadline:
            time.sleep(LOOK_S)
        if stopped.is_under_way():
            raise Unprofiled([met])
    stopped.raise_first()


def _wait_for_reports(plan: Plan, watchdog: _Watchdog) -> None:
    """Wait until nsys has written: it does so beside the engine, after it was told to stop."""
    seen, since = -1, time.monotonic()
    pattern = os.path.join(glob.escape(plan["profile"]["folder"]), "*.nsys-rep")
    while True:
        met = watchdog.look()
        if met:
            raise Unprofiled([met])
        now = _size(plan["profile"]["folder"]) if glob.glob(pattern) else -1
        if now != seen:
            seen, since = now, time.monotonic()
        if seen > 0 and time.monotonic() - since > 5:
            return
        if seen < 0 and time.monotonic() - since > STOP_S:
            return  # then there is none, which is said
        time.sleep(LOOK_S)


def _in_the_log(endpoint: Endpoint, plan: Plan, said: str) -> List[Finding]:
    """What the log of the variant says that is known; lines of it may hold anything and stay."""
    matches = engine_log.matches(said, endpoint.signatures, plan["engine"],
                                 "the profile of endpoint %s" % endpoint.name)
    return [dict(one["finding"], evidence="") for one in matches]


# What served, again.


def _proven(endpoint: Endpoint, plan: Plan, params: Params) -> Dict[str, Any]:
    """What served serves again, by the same plan, and is proven.

    :raises NotServing: it does not.
    """
    kept = endpoint.passport()
    if kept is None or kept["plan"]["hash"] != plan["profile"]["of"] or not endpoint.serves(
            kept["plan"]):
        raise NotServing("It was recorded, and then %s did not come back." % endpoint.name)
    verdict = endpoint.prove(kept["plan"], params["request_timeout_s"])
    passport.write_check(os.path.join(endpoint.folder, "last_check.json"), verdict)
    return verdict
