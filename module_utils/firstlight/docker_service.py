# SPDX-License-Identifier: Apache-2.0
"""Docker as the third service manager, with the face of those in :mod:`.services`.

The definition of a service is its ``compose.yaml``, which names the container that should run.
Containers are made before a switch and wait; so going ahead, and going back, is to stop one and to
start another, which needs nothing but this host's daemon.
"""

from __future__ import annotations

import os
import re
import socket
import time
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional

from . import docker_api, paths
from .docker_api import Api, Away, Refused, quoted
from .planning.container import NETWORK
from .planning.container_runtime import without_tag
from .services import LOG_LINES, ServiceError

ENDPOINT, ROOT, PLAN = "firstlight.endpoint", "firstlight.root", "firstlight.plan"
"""Labels of a container of ours."""

DEFINITION = "compose.yaml"
NAMED = re.compile(r"^    container_name: \"?([a-z0-9][a-z0-9-]*)\"?$", re.MULTILINE)
STOP_SECONDS = 30
# A daemon that is started again in the middle of a switch comes back within this time.
PATIENCE_S = 90.0
CONNECT_S = 5.0
STATES = {"running": "running", "restarting": "failed", "exited": "failed", "dead": "failed",
          "created": "stopped", "paused": "stopped", "removing": "stopped"}
# What holds memory and a port, or may take them again at any moment.
ALIVE = ("running", "restarting", "paused")

Container = Dict[str, Any]


def has_socket() -> bool:
    """Whether there is a daemon's socket, whoever listens."""
    return docker_api.socket_path() is not None


def has_docker() -> bool:
    """Whether a daemon listens that this user may ask; a socket alone may be left over."""
    path = docker_api.socket_path()
    if path is None:
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as tried:
            tried.settimeout(CONNECT_S)
            tried.connect(path)
    except OSError:
        return False
    return True


class Docker:
    """Containers of one ``firstlight_root``.

    :param root: ``firstlight_root``.
    :param api: the daemon; by default this host's.
    :param patience_s: seconds that a daemon may stay away before that is an error.
    """

    KIND = "docker"

    def __init__(self, root: str, api: Optional[Api] = None,
                 patience_s: float = PATIENCE_S) -> None:
        self.root, self._api, self._patience_s = root, api or Api(), patience_s

    def files(self, name: str) -> List[str]:
        """The definition."""
        return [os.path.join(self.root, "endpoints", name, DEFINITION)]

    def must_be_free(self, name: str) -> None:
        """Nothing that could be in the way: no unit of systemd changes."""

    def write_link(self, name: str) -> None:
        """Nothing to enable: the daemon starts again what was not stopped."""

    def wanted(self, name: str) -> Optional[str]:
        """The container that the definition names."""
        found = NAMED.search((paths.read(self.files(name)[0]) or b"").decode("utf-8", "replace"))
        return found.group(1) if found else None

    def ours(self, name: str) -> List[Container]:
        """Every container of an endpoint, as ``/containers/json`` lists it.

        :raises ServiceError: the daemon refused or stayed away.
        """
        labels = ["%s=%s" % (ENDPOINT, name), "%s=%s" % (ROOT, self.root)]
        return list(self._patiently(lambda: self._api.containers(labels)) or [])

    def inspect(self, container: str) -> Optional[Container]:
        """A container as the daemon describes it; ``None`` where there is none.

        :raises ServiceError: as :meth:`ours`.
        """
        try:
            return dict(self._patiently(
                lambda: self._api.get("/containers/%s/json" % quoted(container))))
        except ServiceError as problem:
            if isinstance(problem.__cause__, Refused) and problem.__cause__.status == 404:
                return None
            raise

    def status(self, name: str) -> Dict[str, Any]:
        """What the daemon says of the container: as of a service, and the hash of its plan.

        :raises ServiceError: as :meth:`ours`.
        """
        container = self.wanted(name)
        if container is None:
            return {"state": "absent", "pid": None, "detail": "", "plan": None, "restarts": 0}
        found = self.inspect(container)
        if found is None:
            return {"state": "absent", "pid": None, "plan": None, "restarts": 0,
                    "detail": "the container %s is not there" % container}
        said, labels = found["State"], found["Config"].get("Labels") or {}
        return {
            "state": STATES.get(said["Status"], "failed"),
            "pid": said.get("Pid") or None,
            "detail": _detail(said, found.get("RestartCount", 0)),
            "plan": labels.get(PLAN) if said["Status"] == "running" else None,
            "restarts": found.get("RestartCount", 0),
        }

    def restarts(self, name: str) -> int:
        """How often the daemon started it again by itself. Raises as :meth:`ours`."""
        return int(self.status(name)["restarts"])

    def pids(self, name: str) -> List[int]:
        """The processes in the container, by the numbers that the host knows.

        :raises ServiceError: as :meth:`ours`.
        """
        container = self.wanted(name)
        if container is None:
            return []
        try:
            told = self._patiently(
                lambda: self._api.get("/containers/%s/top" % quoted(container)))
            column = told["Titles"].index("PID")
            return sorted(int(row[column]) for row in told["Processes"] or [])
        except ServiceError as problem:
            if isinstance(problem.__cause__, Refused):  # it does not run
                return []
            raise

    def start(self, name: str, anew: bool = False) -> None:
        """Start the container that the definition names, whatever else runs.

        :param anew: end it first where it runs.
        :raises ServiceError: as :meth:`ours`, and where it is not there.
        """
        found = self.made(name, self.wanted(name))
        container, state = found["Name"].lstrip("/"), found["State"]["Status"]
        if state in ("restarting", "paused") or (anew and state == "running"):
            self._stop(container)
        # It answers 304 where the container runs.
        self._patiently(lambda: self._api.post("/containers/%s/start" % quoted(container)))

    def made(self, name: str, container: Optional[str]) -> Container:
        """The container, which was made before.

        :raises ServiceError: as :meth:`ours`, and where it is not there.
        """
        found = self.inspect(container) if container else None
        if found is None:
            raise ServiceError("The container %s of %s is not there: run site.yml, which makes it."
                              % (container, name))
        return found

    def stop_others(self, name: str) -> None:
        """Stop every container of the endpoint but the one that the definition names.

        :raises ServiceError: as :meth:`ours`.
        """
        wanted = self.wanted(name)
        for one in self.ours(name):
            if one["State"] in ALIVE and "/%s" % wanted not in one["Names"]:
                self._stop(one["Id"])

    def follow(self, name: str, anew: bool = False) -> None:
        """Run the container that the definition names and no other; none where there is none.

        :param anew: start it again where it runs already.
        :raises ServiceError: as :meth:`ours`.
        """
        self.stop_others(name)
        if self.wanted(name):
            self.start(name, anew)

    def log_mark(self, name: str) -> Any:
        """Where the log is now, for :meth:`log_tail`."""
        return time.time()

    def log_tail(self, name: str, lines: int = 20, mark: Any = None) -> str:
        """The last lines that the engine wrote, those since a mark; what keeps them from being
        read, where they are not."""
        container = self.wanted(name)
        if container is None:
            return ""
        try:
            return str(self._patiently(
                lambda: self._api.log(container, lines, mark or 0))).strip()
        except ServiceError as problem:
            return "The log of %s cannot be read: %s" % (container, problem)

    def log_place(self, name: str) -> str:
        """How a person reads its log. Raises as :meth:`log_chunks`."""
        return "docker logs %s" % self._logged(name)

    def log_chunks(self, name: str) -> Iterator[bytes]:
        """All that the engine wrote, in parts.

        :raises ServiceError: as :meth:`ours`, and where there is no container, or no log of it.
        """
        container = self._logged(name)
        try:
            yield from self._api.log_chunks(container, LOG_LINES)
        except (Away, Refused) as problem:
            raise ServiceError("The log of the container %s cannot be read: %s" % (
                container, problem)) from problem

    def _logged(self, name: str) -> str:
        """The container that the definition names; without one the youngest that there is."""
        container = self.wanted(name)
        if container is None:
            there = self.ours(name)
            if not there:
                raise ServiceError("There is no container of %s." % name)
            youngest = max(there, key=lambda one: one.get("Created", 0))
            container = str(youngest["Names"][0]).lstrip("/")
        return container

    def discard(self, name: str, keep: Iterable[str],
                waiting: Optional[Iterable[str]] = None) -> List[str]:
        """Remove containers of an endpoint that do not run and are not among these names.

        :param waiting: of those that were never started these alone go: a switch may be about to
            start the others. By default all of them go.
        :returns: their names.
        :raises ServiceError: as :meth:`ours`.
        """
        kept, gone = set(keep), []
        unstarted = None if waiting is None else set(waiting)
        for one in self.ours(name):
            title = one["Names"][0].lstrip("/")
            if title not in kept and one["State"] not in ALIVE and (
                    one["State"] != "created" or unstarted is None or title in unstarted):
                self._gone(lambda one=one: self._api.delete(  # type: ignore[misc]
                    "/containers/%s" % one["Id"], v="1"))
                gone.append(title)
        return gone

    def discard_image(self, image: str) -> bool:
        """Remove an image, unless a container has it; whether it went.

        :raises ServiceError: as :meth:`ours`.
        """
        try:
            self._patiently(lambda: self._api.delete("/images/%s" % quoted(without_tag(image))))
        except ServiceError as problem:
            if isinstance(problem.__cause__, Refused) and problem.__cause__.status in (404, 409):
                return False
            raise
        return True

    def drop_network(self) -> List[str]:
        """Remove our network where no container of ours is left; says what went.

        :raises ServiceError: as :meth:`ours`.
        """
        if self._patiently(lambda: self._api.containers([ROOT])):
            return []
        try:
            self._patiently(lambda: self._api.delete("/networks/" + NETWORK))
        except ServiceError as problem:
            # None is there, or others use it.
            if isinstance(problem.__cause__, Refused):
                return []
            raise
        return ["network " + NETWORK]

    def left_over(self) -> List[str]:
        """Nothing: the daemon is the host's own."""
        return []

    def close_if_unused(self) -> List[str]:
        """Nothing to close: the daemon is the host's own."""
        return []

    def _stop(self, container: str) -> None:
        self._gone(lambda: self._api.post(
            "/containers/%s/stop" % quoted(container), t=STOP_SECONDS))

    def _gone(self, ask: Callable[[], Any]) -> None:
        """Ask for an end; what is not there has ended."""
        try:
            self._patiently(ask)
        except ServiceError as problem:
            if not isinstance(problem.__cause__, Refused) or problem.__cause__.status != 404:
                raise

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        """Ask the daemon, and wait for one that is away."""
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                return ask()
            except Refused as problem:
                raise ServiceError("Docker: %s" % problem) from problem
            except Away as problem:
                if time.monotonic() >= deadline:
                    raise ServiceError("Docker does not answer: %s" % problem) from problem
                time.sleep(0.5)


def _detail(state: Container, restarts: int) -> str:
    """How it ended, in a few words."""
    if state["Status"] == "running":
        return "running" if not restarts else "running after %d restarts" % restarts
    words = ["exit code %s" % state.get("ExitCode")]
    if state.get("OOMKilled"):
        words.append("killed for want of memory")
    elif state.get("ExitCode") == 137:
        words.append("killed")
    if restarts:
        words.append("started again %d times" % restarts)
    if state.get("Error"):
        words.append(str(state["Error"]))
    if state["Status"] == "created" and not state.get("Error"):
        return "created"
    return ", ".join(words)
