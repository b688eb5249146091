# SPDX-License-Identifier: Apache-2.0
"""One endpoint of a host: what is there of it, and how it is started, proven and put back.

Whatever keeps its engine running (systemd, supervisor, Docker) is a service manager behind one
face. At most one of them has a definition of the endpoint at a time, so to go back is to put the
files back and to have every manager follow its own.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import time
from typing import Any, Callable, Dict, Iterable, List, Optional

from . import (
    collective,
    container_paths,
    docker_api,
    docker_service,
    engine_log,
    passport,
    paths,
    placement,
    processes,
    services,
    smoke,
)
from .docker_service import NAMED, Docker
from .findings import blocking, text
from .http_client import get
from .planning.proof import smoke_request
from .services import ServiceError
from .transaction import Transaction
from .way_in import WayIn, WayInError

Passport = passport.Passport
Plan = Dict[str, Any]
Found = Dict[str, Any]
Report = Callable[[Dict[str, Any]], None]

HANG_SECONDS = 5
"""How long a running engine may be silent and idle before it counts as hanging."""

CRASHES = 3
"""Restarts after which an engine that is silent is not taken for one that loads."""

LOG_LINES = 4000
FAILED_LOG = "failed.log"
# A log is read this often while an engine loads: it is long, and the port is asked in between.
LOG_PERIOD_S = 1.0
# What an engine that loads or compiles takes of one processor at least.
BUSY_SHARE = 0.2


# How long an engine that is replaced may take for its answers, and how long nobody asks it then.
DRAIN_S = 60.0
QUIET_S = 0.5

# What a step of the way back may meet without ending the others.
TROUBLE = (OSError, ServiceError, TimeoutError, WayInError)


class NotServing(Exception):
    """The endpoint did not come up or is not right; the message is for the operator."""


class NotReady(NotServing):
    """The engine did not get ready.

    :param matches: what its log says of the cause, as :func:`.engine_log.matches` has it.
    :param of_trial: whether it was the canary before the endpoint.
    """

    def __init__(self, said: str, matches: List[Dict[str, Any]], of_trial: bool = False) -> None:
        super().__init__(said)
        self.matches, self.of_trial = matches, of_trial


def is_split(plan: Plan) -> bool:
    """Whether the devices of a plan have to reach each other.

    llama.cpp copies through the host where its own do not.
    """
    return plan["engine"] == "vllm" and len(plan["gpus"]) > 1


class Endpoint:
    """One endpoint's files and services on this host.

    :param root: ``firstlight_root``.
    :param name: of the endpoint.
    :param manager: what keeps it running by the plan: ``systemd``, ``supervisor`` or ``docker``.
    :param supervisord: the executable to start where a supervisor is needed and none runs.
    :param signatures: rows of ``catalog/log_signatures.yml``.
    :param consent: whether containers of others may be started again for it.
    :param coming: definitions that are to be followed. What puts back an earlier change leaves
        their containers; what puts back their own change removes them.
    """

    def __init__(self, root: str, name: str, manager: str, supervisord: str = "",
                 signatures: Optional[List[Dict[str, Any]]] = None,
                 consent: bool = False, coming: Iterable[Optional[str]] = ()) -> None:
        self.name, self.root = name, root
        self.signatures = signatures or []
        self.coming = {match.group(1) for match in map(NAMED.search, filter(None, coming))
                       if match}
        self.begun = False
        """Whether the change of this run has begun, so that what is put back then is its own."""
        native = services.kind_for_this_host() if manager == Docker.KIND else manager
        self.services: List[Any] = [services.manager(native, root, supervisord, consent)]
        self.docker = Docker(root)
        # Without a daemon there is nothing that could run, and nothing to ask: what is natively
        # kept needs none. What has a container waits for its daemon.
        if (manager == Docker.KIND or os.path.exists(self.docker.files(name)[0])
                or docker_service.has_docker()):
            self.services.append(self.docker)
        self.service = self.by_kind(manager)
        self.way_in = WayIn(native, root, name, supervisord, consent)
        self.folder = os.path.join(root, "endpoints", name)
        self.passport_path = passport.path(root, name)

    def by_kind(self, kind: str) -> Any:
        """The manager of that kind.

        :raises NotServing: where this host has none of it.
        """
        for one in self.services:
            if kind == one.KIND:
                return one
        raise NotServing("%s is kept by %s, which this host does not have." % (self.name, kind))

    # What is there.

    def holder(self) -> Any:
        """The manager that has a definition of the endpoint, or ``None``."""
        for one in self.services:
            if os.path.exists(one.files(self.name)[0]):
                return one
        return None

    def observe(self) -> Found:
        """What is there now, as one dict."""
        service = self.holder() or self.service
        definition = paths.read(service.files(self.name)[0])
        status = service.status(self.name)
        running = processes.engines(self.root).get(self.name, [])
        managed = [one["plan"] for one in running if one["pid"] == status["pid"]]
        pids = [one["pid"] for one in running]
        if service is self.docker:
            pids += self.docker.pids(self.name)
        return {
            "definition": None if definition is None else definition.decode("utf-8", "replace"),
            "status": status,
            "pids": sorted(pids),
            "running_plan": status.get("plan") or (managed[0] if managed else None),
            "passport": self.passport(),
            "files": self.files(),
            "half_done": self.journal().half_done,
            "way_in": self.way_in.there(),
            "containers": self.containers(),
        }

    def containers(self) -> List[str]:
        """The names of its containers, running or not."""
        # A host that is to get a daemon has none yet.
        if self.docker not in self.services or not docker_service.has_socket():
            return []
        return sorted(one["Names"][0].lstrip("/") for one in self.docker.ours(self.name))

    def passport(self) -> Optional[Passport]:
        """The passport, or None when there is none that can be relied on."""
        return passport.read(self.root, self.name)

    def files(self) -> List[str]:
        """What was written for it, beside the definitions and the way in."""
        patterns = ("passport.json", "passports/*.json", "passports/undone/*.json",
                    "last_check.json", "engine.log*", FAILED_LOG, "profile.json", "profile/*")
        folder = glob.escape(self.folder)
        return sorted(
            file for pattern in patterns for file in glob.glob(os.path.join(folder, pattern)))

    def definitions(self) -> List[str]:
        """Every file that a manager may have of it."""
        return [file for one in self.services for file in one.files(self.name)]

    def hangs(self, found: Found) -> bool:
        """Whether an engine that had its time to start gives no answer and does no work.

        A busy engine may keep ``/health`` waiting too, but it uses its processor. One that its
        manager started again and again had its time.
        """
        wanted, pids = found["passport"]["plan"], found["pids"]
        worked = _worked(pids)
        deadline = time.monotonic() + HANG_SECONDS
        while time.monotonic() < deadline:
            if get(wanted["url"] + "/health", timeout_s=HANG_SECONDS).status:
                return False
            time.sleep(0.2)
        if found["status"].get("restarts", 0) >= CRASHES:
            return True
        return (self._age_s(found) > wanted["start_timeout_s"]
                and _worked(pids) == worked)

    def loads(self, found: Found) -> bool:
        """Whether an engine that its manager started again has not had its time to get ready."""
        wanted = found["passport"]["plan"]
        # To look whether it hangs takes a while too, and there its time was not over.
        return (self._age_s(found) <= wanted["start_timeout_s"] + 4 * HANG_SECONDS
                and get(wanted["url"] + "/health", timeout_s=HANG_SECONDS).status != 200)

    def _age_s(self, found: Found) -> float:
        return processes.age_seconds(found["status"]["pid"] or 0) or 0.0

    def left(self, found: Found) -> List[int]:
        """What an engine before the one that runs left behind: it holds what that one needs.

        With a container everything in it ends.
        """
        if self.service is self.docker:
            return []
        strange = self._strange(found)
        if not strange:
            return []
        # What is about to end is no longer there then.
        time.sleep(LOG_PERIOD_S)
        return [pid for pid in self._strange(found) if pid in strange]

    def _strange(self, found: Found) -> List[int]:
        running = [one["pid"] for one in processes.engines(self.root).get(self.name, [])]
        return sorted(pid for pid in running
                      if found["status"]["pid"] not in processes.ancestry(pid)
                      and processes.is_alive(pid))

    # To start, and to know that it serves.

    def start(self, plan: Plan, definition: str, report: Report, beside: bool = False) -> Found:
        """Write the definition, have it followed, and wait until the engine is ready.

        :param beside: let the one that serves go on.
        :returns: the seconds of each phase, and the log so far.
        :raises NotServing: when it does not get ready; with the reason.
        """
        named = NAMED.search(definition)
        if self.service is self.docker and named:
            # Said before what serves is ended.
            self.see_model(plan, self.docker.made(self.name, named.group(1)), report)
        for one in {self.service, self.holder() or self.service}:
            one.must_be_free(self.name)
        if not beside:
            self.end()
        self.try_devices(plan, named.group(1) if named else None, report)
        os.makedirs(self.folder, exist_ok=True)
        paths.write(self.service.files(self.name)[0], definition.encode())
        self.service.write_link(self.name)
        # Only now: what the old one says at its end is none of the new one's.
        mark = self.service.log_mark(self.name)
        started = time.monotonic()
        if beside:
            self.docker.start(self.name)
        else:
            self.service.follow(self.name, anew=True)
        phases = {"start_s": round(time.monotonic() - started, 3)}
        phases.update(self.wait_until_ready(plan, mark, report))
        return {"phases": phases, "log": self.service.log_tail(self.name, LOG_LINES, mark)}

    def see_model(self, plan: Plan, container: Dict[str, Any], report: Report) -> None:
        """Have the container of a plan look for the files of its model.

        :raises NotServing: when it does not see them all, or may not read them.
        """
        report({"text": "looking for the model in its container"})
        wrong = container_paths.findings(plan["model"], container, docker_api.Api())
        if wrong:
            raise NotServing("The container of %s cannot read its model:\n%s" % (
                self.name, text(wrong)))

    def try_devices(self, plan: Plan, container: Optional[str], report: Report) -> None:
        """Have the devices of a plan that is split over several write to each other.

        :param container: the one that is made for the plan, where it runs in one.
        :raises NotReady: when they do not reach each other, in the time they have.
        """
        if not is_split(plan):
            return
        report({"text": "trying the ways between %d devices" % len(plan["gpus"])})
        made = self.docker.made(self.name, container) if self.service is self.docker else None
        said = collective.check(plan, plan["command"]["env"], made, docker_api.Api())
        if said:
            raise self._not_ready(
                "The devices of %s do not reach each other." % self.name, plan, said)

    def end(self) -> None:
        """End its engine, whoever keeps it."""
        for one in self.services:
            if os.path.exists(one.files(self.name)[0]):
                for path in one.files(self.name):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path)
                one.follow(self.name)

    def wait_until_ready(self, plan: Plan, mark: Any = None,
                         report: Report = lambda progress: None,
                         restarts: int = 0) -> Dict[str, float]:
        """Seconds until the port answered, and until ``/health`` answered 200.

        vLLM refuses connections while it loads, llama-server answers 503.

        :param restarts: how often its manager had started it again before.
        :raises NotReady: when the engine died, its log has an end in it, or the plan's time is
            over; with the log's end.
        """
        started = time.monotonic()
        phases: Dict[str, float] = {}
        looked, first = 0.0, None
        while True:
            answer = get(plan["url"] + "/health", timeout_s=5)
            status = self.service.status(self.name)
            elapsed = time.monotonic() - started
            # The service must be the one that answers: another process may hold the port.
            if answer.status and "port_s" not in phases and self.listens(plan, status):
                phases["port_s"] = round(elapsed, 3)
            if answer.status == 200 and status["state"] in ("running", "starting") \
                    and self.listens(plan, status):
                return dict(phases, ready_s=round(elapsed, 3))
            # One that is started again at once may never be seen between its end and its start.
            first = first or status["pid"]
            # A daemon that is restarted brings a container back; who counts them knows that.
            again = (status["restarts"] > restarts if "restarts" in status
                     else status["pid"] not in (None, first))
            if status["state"] == "failed" or again:
                raise self._not_ready("The engine of %s died (%s)." % (
                    self.name, status["detail"]), plan, self._log(mark))
            if elapsed > plan["start_timeout_s"]:
                said = answer.brief() if answer.status != 200 else "another process answers"
                raise self._not_ready(
                    "The engine of %s was not ready within %d s%s: %s on %s/health."
                    % (self.name, plan["start_timeout_s"],
                       ", and still works" if self._still_works() else "", said, plan["url"]),
                    plan, self._log(mark))
            if elapsed - looked >= LOG_PERIOD_S:
                looked = elapsed
                self._read_log(plan, mark, elapsed, report)
            time.sleep(0.1)

    def _read_log(self, plan: Plan, mark: Any, elapsed: float, report: Report) -> None:
        """Say how far it is; a log that says that all is lost ends the wait."""
        log = self._log(mark)
        told = engine_log.progress(log)
        report(told or {"text": "starting since %d s" % elapsed})
        if engine_log.fatal(log, self.signatures, plan["engine"]):
            raise self._not_ready("The engine of %s cannot start." % self.name, plan,
                                  self._log(mark))

    def _log(self, mark: Any) -> str:
        return str(self.service.log_tail(self.name, LOG_LINES, mark))

    def _still_works(self) -> bool:
        """Whether its processes use the processor."""
        pids = self.observe()["pids"]
        worked = _worked(pids)
        time.sleep(LOG_PERIOD_S)
        return _worked(pids) - worked >= LOG_PERIOD_S * BUSY_SHARE

    def _not_ready(self, why: str, plan: Plan, log: str) -> NotReady:
        """With what the log says of the cause, and its last lines; the log itself is kept."""
        with contextlib.suppress(OSError):
            os.makedirs(self.folder, exist_ok=True)
            paths.write(os.path.join(self.folder, FAILED_LOG), log.encode(), mode=0o600)
        matches = engine_log.matches("%s\n%s" % (log, why), self.signatures, plan["engine"],
                                     "endpoint " + self.name)
        told = [one["finding"] for one in matches]
        return NotReady(why + ("\n" + text(told) + "\n" if told else " ") + "Its log ends:\n"
                        + "\n".join(log.splitlines()[-20:]), matches)

    def drain(self, plan: Plan, report: Report) -> None:
        """Wait until the engine of a plan, which nobody new is sent to, has answered everyone.

        A container that is stopped takes its network along: who waits for an answer from it would
        not even be told that there will be none.
        """
        begun = quiet_since = time.monotonic()
        last = 0
        while True:
            now, asked = time.monotonic(), processes.connections(plan["engine_port"])
            if asked:
                quiet_since = now
            if now - quiet_since >= QUIET_S or now - begun >= DRAIN_S:
                return
            if asked and asked != last:
                report({"text": "proven; the old engine still answers %d" % asked})
            last = asked
            time.sleep(0.05)

    def listens(self, plan: Plan, status: Optional[Found] = None) -> bool:
        """Whether it is this endpoint that has the plan's port."""
        holder = self.holder()
        if holder is self.docker:
            # The daemon does not start a container whose port another has.
            status = status or self.docker.status(self.name)
            return bool(status.get("plan") == plan["hash"])
        return processes.listens(self.root, self.name, plan["engine_port"])

    def prove(self, plan: Plan, timeout_s: float,
              settings: Optional[Dict[str, Any]] = None) -> smoke.Verdict:
        """Real tokens, judged.

        :param settings: as :func:`.planning.proof.smoke_request` has them.
        :raises NotServing: when they are not right.
        """
        verdict = smoke.prove(smoke.of_request(smoke_request(plan, settings), timeout_s))
        if not verdict["passed"]:
            raise NotServing("The new endpoint %s is not right:\n%s" % (
                self.name, text(verdict["findings"])))
        return verdict

    def placed(self, plan: Plan) -> Dict[str, Any]:
        """On which devices the engine is, as they see it who see it best.

        :raises NotServing: when it is on others than the plan has.
        """
        container = self.docker.wanted(self.name) if self.service is self.docker else None
        pids = [] if container else [
            one["pid"] for one in processes.engines(self.root).get(self.name, [])]
        seen = placement.look(plan, pids, container)
        wrong = blocking(placement.findings(plan, seen))
        if wrong:
            raise NotServing("The engine of %s is not where it should be:\n%s" % (
                self.name, text(wrong)))
        return seen

    # To put back, and to clear away.

    def journal(self) -> Transaction:
        """The transaction that every change of this endpoint is part of."""
        return Transaction(
            os.path.join(self.root, "journal"), "endpoint-" + self.name, self.put_back)

    def put_back(self) -> None:
        """Make the services follow the files that were put back, and wait until it serves.

        An old engine that does not come up is no reason to keep the journal: its files are back,
        and a next run must be free to try something else. What serves is said at the end.
        """
        kept, holder = self.passport(), self.holder()
        # Who has no definition any more lets go of port and memory first.
        for one in self.services:
            if one is not holder:
                with contextlib.suppress(*TROUBLE):
                    one.follow(self.name)
        if holder is self.docker:
            with contextlib.suppress(*TROUBLE):
                self.docker.stop_others(self.name)
        with contextlib.suppress(*TROUBLE):
            self.way_in.follow()
        with contextlib.suppress(NotServing, *TROUBLE):
            if holder is not None and not (kept and self.serves(kept["plan"])):
                # What its log has of earlier starts says nothing of this one.
                mark = holder.log_mark(self.name)
                holder.follow(self.name, anew=True)
                if kept:
                    self.service = holder
                    self.wait_until_ready(kept["plan"], mark)
        with contextlib.suppress(*TROUBLE):
            if self.begun:
                self.discard(waiting=self.coming)
            else:
                # What an earlier run had started this one may be about to start again.
                self.discard(self.coming, waiting=())

    def serves(self, plan: Plan) -> bool:
        """Whether the engine of this plan answers now."""
        holder = self.holder()
        if holder is None:
            return False
        status = holder.status(self.name)
        running = [one["plan"] for one in processes.engines(self.root).get(self.name, [])
                   if one["pid"] == status["pid"]]
        return (plan["hash"] in [status.get("plan"), *running]
                and get(plan["url"] + "/health", timeout_s=HANG_SECONDS).status == 200
                and self.listens(plan))

    def what_serves(self) -> str:
        """One sentence on what is left after a failed switch."""
        kept = self.passport()
        if kept is None:
            return "Nothing proven served under this name before, so nothing was put back."
        url = kept["plan"]["url"]
        answer = get(url + "/health", timeout_s=5)
        try:
            if answer.status == 200 and self.listens(kept["plan"]):
                return "What served before is back on %s." % url
        except ServiceError as problem:
            return "What served before is NOT known to be back on %s: %s." % (url, problem)
        return "What served before is NOT back on %s: %s." % (url, answer.brief())

    def generations(self) -> List[Passport]:
        """The older passports that are kept, the youngest first."""
        found = []
        for file in glob.glob(os.path.join(glob.escape(self.folder), "passports", "*.json")):
            with contextlib.suppress(OSError, ValueError, RecursionError):
                one = json.loads(paths.read(file) or b"null")
                if passport.is_whole(one, self.name):
                    found.append((str(one.get("written")), os.stat(file).st_mtime_ns, one))
        # Two of one second are told apart by when each was laid aside.
        return [one for *_, one in sorted(found, key=lambda one: one[:2], reverse=True)]

    def generation_path(self, one: Passport, folder: str = "") -> str:
        """Where an older passport lies."""
        name = os.path.basename(str(one["plan"]["hash"]))[:12]
        return os.path.join(self.folder, "passports", folder, name + ".json")

    def discard(self, spared: Iterable[str] = (),
                waiting: Optional[Iterable[str]] = None) -> List[str]:
        """Remove its containers that no passport of it and no definition names.

        :param spared: names of others that stay.
        :param waiting: as for :meth:`.docker_service.Docker.discard`.
        """
        if self.docker not in self.services:
            return []
        known = [self.passport(), *self.generations()]
        names = {one["service"].get("container") for one in known if one}
        return self.docker.discard(
            self.name, {self.docker.wanted(self.name), *names, *spared} - {None}, waiting)


def _worked(pids: List[int]) -> float:
    """Processor time of them all."""
    return sum(processes.cpu_seconds(pid) or 0.0 for pid in pids)
