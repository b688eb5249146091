# SPDX-License-Identifier: Apache-2.0
"""The two service managers that keep native engines running, behind one face.

A service is its definition file: :meth:`follow` makes the manager do what the file says, and a
missing file means a service that is gone. So a transaction that puts the file back and calls
:meth:`follow` has put the service back.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import http.client
import os
import subprocess
import tempfile
import time
import xmlrpc.client
from typing import Any, Dict, Iterator, List, Optional

from . import paths, processes, reload
from .docker_api import UnixConnection
from .planning import way_in
from .runner import Ran, run
from .transaction import Lock

LOG_BYTES = 262144
"""Most that is read of a log, for its last lines."""
LOG_LINES = 2000000
"""Most of a log that is read as a whole."""
CHUNK = 256 * 1024

Status = Dict[str, Any]
"""``{state, pid, detail}``; state is absent, stopped, starting, running or failed."""


class ServiceError(Exception):
    """The service manager refused or did not answer; the message says what it said."""


class Systemd:
    """System units, for root where PID 1 is systemd."""

    KIND = "systemd"
    FOLDER = "/etc/systemd/system"

    def __init__(self, root: str, consent: bool = False) -> None:
        self.root, self._consent = root, consent

    def files(self, name: str) -> List[str]:
        """The definition and the link that enables it at boot."""
        unit = self._unit(name)
        return [
            os.path.join(self.FOLDER, unit),
            os.path.join(self.FOLDER, "multi-user.target.wants", unit),
        ]

    def write_link(self, name: str) -> None:
        """Enable at boot: what ``systemctl enable`` writes, as one link we can also put back."""
        unit, link = self.files(name)
        os.makedirs(os.path.dirname(link), exist_ok=True)
        if not os.path.islink(link):
            os.symlink(unit, link)

    def status(self, name: str) -> Status:
        """What systemd says of the unit."""
        fields = "LoadState,ActiveState,SubState,MainPID,Result"
        ran = run(["systemctl", "show", "--property=" + fields, self._unit(name)])
        if not ran.ok:
            raise ServiceError(ran.complaint())
        said = dict(line.partition("=")[::2] for line in ran.stdout.splitlines())
        state = {
            "active": "running",
            "activating": "starting",
            "deactivating": "stopped",
            "failed": "failed",
        }.get(said.get("ActiveState", ""), "stopped")
        if said.get("SubState") == "auto-restart":
            state = "failed"
        if said.get("LoadState") == "not-found" and state == "stopped":
            state = "absent"
        pid = int(said.get("MainPID") or 0) or None
        return {"state": state, "pid": pid, "detail": said.get("Result", "")}

    def restarts(self, name: str) -> int:
        """How often systemd started it again by itself since it was told to."""
        ran = run(["systemctl", "show", "--property=NRestarts", self._unit(name)])
        said = ran.stdout.strip().partition("=")[2]
        return int(said) if said.isdigit() else 0

    def follow(self, name: str, anew: bool = False) -> None:
        """Start, restart or end the service as its definition file is or is not there.

        :param anew: start it again where it runs already, which is what happens here anyway.
        """
        unit = self._unit(name)
        there = os.path.exists(self.files(name)[0])
        if not there:
            self._must(run(["systemctl", "stop", unit], timeout_s=120), missing_ok=True)
        problem = self._read_anew(unit)
        if there:
            self._must(run(["systemctl", "stop", unit], timeout_s=120))
            processes.end(self.root, name)
            run(["systemctl", "reset-failed", unit])
            self._must(run(["systemctl", "start", "--no-block", unit], timeout_s=60))
        else:
            run(["systemctl", "reset-failed", unit])
            processes.end(self.root, name)
        if problem:
            # What is there is started all the same, as systemd knows it.
            raise problem

    def must_be_free(self, name: str) -> None:
        """See that systemd may read its units anew, before anything is ended.

        :raises ServiceError: others' containers would lose their GPUs by that.
        """
        try:
            reload.must_be_harmless(self._consent)
        except reload.Threatened as problem:
            raise ServiceError(str(problem)) from problem

    def _read_anew(self, unit: str) -> Optional[ServiceError]:
        """Have systemd read a unit that changed; containers that have GPUs keep them.

        :returns: why it was not done, where others' containers would lose theirs.
        :raises ServiceError: it refuses.
        """
        try:
            ran = reload.daemon_reload([unit], self._consent).ran
        except reload.Threatened as problem:
            return ServiceError(str(problem))
        if ran is not None:
            self._must(ran)
        return None

    def reload(self, name: str) -> None:
        """Have a service that runs take its files anew; what it is at goes on."""
        self._must(run(["systemctl", "reload", self._unit(name)], timeout_s=60))

    def log_mark(self, name: str) -> Any:
        """Where the log is now, for :meth:`log_tail`."""
        return time.time()

    def log_tail(self, name: str, lines: int = 20, mark: Any = None) -> str:
        """The last lines that the engine wrote; those since a mark."""
        argv = ["journalctl", "--unit", self._unit(name), "--lines", str(lines), "--output", "cat"]
        ran = run(argv + (["--since", "@%.6f" % mark] if mark else []))
        return ran.stdout.strip() if ran.ok else ran.complaint()

    def log_place(self, name: str) -> str:
        """How a person reads its log."""
        return "journalctl --unit " + self._unit(name)

    def log_chunks(self, name: str) -> Iterator[bytes]:
        """All that the engine wrote, in parts: what the journal still has.

        :raises ServiceError: it cannot be read, or not by this user.
        """
        argv = ["journalctl", "--unit", self._unit(name), "--lines", str(LOG_LINES),
                "--output", "cat"]
        yield from _said_by(argv)

    def left_over(self) -> List[str]:
        """Nothing: systemd is the host's own."""
        return []

    def close_if_unused(self) -> List[str]:
        """Nothing to close: systemd is the host's own."""
        return []

    def _unit(self, name: str) -> str:
        # Units are the host's, endpoints are a root's: two roots may have one of the same name.
        if self.root == paths.DEFAULT_ROOT:
            return "firstlight-%s.service" % name
        return "firstlight-%s-%s.service" % (
            name, hashlib.sha256(self.root.encode()).hexdigest()[:8])

    def _must(self, ran: Ran, missing_ok: bool = False) -> None:
        if not ran.ok and not (missing_ok and "not loaded" in ran.stderr):
            raise ServiceError(ran.complaint())


class Supervisor:
    """A supervisord of our own under ``firstlight_root``, for everyone else.

    :param root: ``firstlight_root``.
    :param supervisord: its executable; needed to start it, not to talk to one that runs.
    """

    KIND = "supervisor"
    STATES = {
        "STARTING": "starting",
        "RUNNING": "running",
        "BACKOFF": "failed",
        "STOPPING": "stopped",
        "STOPPED": "stopped",
        "EXITED": "failed",
        "FATAL": "failed",
        "UNKNOWN": "failed",
    }
    BAD_NAME = 10

    def __init__(self, root: str, supervisord: str = "") -> None:
        self.root = root
        self.folder = os.path.join(root, "supervisor")
        self.config = os.path.join(self.folder, "supervisord.conf")
        self.socket = os.path.join(self.folder, "supervisor.sock")
        self._supervisord = supervisord

    def files(self, name: str) -> List[str]:
        """The definition; nothing else enables it."""
        return [os.path.join(self.folder, "conf.d", name + ".conf")]

    def write_link(self, name: str) -> None:
        """Nothing to enable: supervisord starts what it has a definition of."""

    def daemon_pid(self) -> Optional[int]:
        """The pid of our supervisord, or ``None`` when none answers."""
        try:
            return int(self._api().getPID())
        except (OSError, http.client.HTTPException):
            return None

    def status(self, name: str) -> Status:
        """What supervisord says of the program; without a supervisord every program is absent."""
        try:
            said = self._api().getProcessInfo(name)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == self.BAD_NAME:
                return {"state": "absent", "pid": None, "detail": ""}
            raise ServiceError("supervisord: %s" % fault.faultString) from fault
        except (OSError, http.client.HTTPException):
            return {"state": "absent", "pid": None, "detail": "supervisord is not running"}
        return {
            "state": self.STATES[said["statename"]],
            "pid": said["pid"] or None,
            "detail": said["spawnerr"] or said["description"],
        }

    def restarts(self, name: str) -> int:
        """Not known: supervisord does not count what it starts again."""
        return 0

    def follow(self, name: str, anew: bool = False) -> None:
        """Start, restart or end the program as its definition file is or is not there.

        :param anew: as for systemd.
        """
        there = os.path.exists(self.files(name)[0])
        # Two endpoints may need a supervisord at the same moment: the later one finds it running.
        with Lock(os.path.join(self.root, "journal", "supervisord.lock"), wait_s=60):
            if self.daemon_pid() is None:
                # Whatever still runs was left by a supervisord that was killed, and the one that
                # is started now starts every program anew: all of them need their ports.
                for orphan in [*processes.engines(self.root),
                               *map(way_in.service_name, processes.ways_in(self.root))]:
                    processes.end(self.root, orphan)
                if there:
                    self._start_daemon()
                return
        api = self._api()
        try:
            with contextlib.suppress(xmlrpc.client.Fault):
                api.stopProcessGroup(name)
            processes.end(self.root, name)
            added, changed, removed = api.reloadConfig()[0]
            if name in removed or name in changed:
                api.removeProcessGroup(name)
            if name in added or name in changed:
                api.addProcessGroup(name)
            elif there:
                api.startProcessGroup(name, False)
        except xmlrpc.client.Fault as fault:
            raise ServiceError("supervisord: %s" % fault.faultString) from fault

    def must_be_free(self, name: str) -> None:
        """Nothing that could be in the way: supervisord is our own."""

    def reload(self, name: str) -> None:
        """Have a program that runs take its files anew; what it is at goes on."""
        try:
            self._api().signalProcess(name, "USR2")
        except xmlrpc.client.Fault as fault:
            raise ServiceError("supervisord: %s" % fault.faultString) from fault

    def log_mark(self, name: str) -> Any:
        """Where the log is now, for :meth:`log_tail`."""
        with contextlib.suppress(OSError):
            return os.path.getsize(self._log(name))
        return 0

    def log_tail(self, name: str, lines: int = 20, mark: Any = None) -> str:
        """The last lines that the engine wrote; those since a mark."""
        path = self._log(name)
        try:
            with open(path, "rb") as file:
                size = os.path.getsize(path)
                # One that is shorter than it was is a new one.
                since = mark if mark and mark <= size else 0
                file.seek(max(since, size - LOG_BYTES))
                tail = file.read().decode("utf-8", "replace").splitlines()
        except OSError as problem:
            return "%s: %s" % (path, problem.strerror)
        return "\n".join(tail[-lines:])

    def log_place(self, name: str) -> str:
        """Where its log is."""
        return self._log(name)

    def log_chunks(self, name: str) -> Iterator[bytes]:
        """All that the engine wrote, in parts: the files that were laid aside, and the log.

        :raises ServiceError: one of them cannot be read, or there is none.
        """
        path = self._log(name)
        older = [file for file in glob.glob(glob.escape(path) + ".*")
                 if file[len(path) + 1:].isdigit()]
        for file in [*sorted(older, key=lambda file: -int(file[len(path) + 1:])), path]:
            try:
                yield from paths.chunks(file, CHUNK)
            except OSError as problem:
                raise ServiceError("%s: %s" % (file, problem.strerror)) from problem

    def _log(self, name: str) -> str:
        if name.startswith(way_in.PREFIX):
            return os.path.join(way_in.folder(self.root, name[len(way_in.PREFIX):]), "haproxy.log")
        return os.path.join(self.root, "endpoints", name, "engine.log")

    def left_over(self) -> List[str]:
        """What :meth:`close_if_unused` would end and remove."""
        if glob.glob(os.path.join(glob.escape(self.folder), "conf.d", "*.conf")):
            return []
        pid = self.daemon_pid()
        return ((["process %d, supervisord" % pid] if pid is not None else [])
                + (["what we wrote in %s" % self.folder] if self._written() else []))

    def close_if_unused(self) -> List[str]:
        """End supervisord and remove its files when it has no program left; says what went."""
        left = self.left_over()
        pid = self.daemon_pid() if left else None
        if pid is not None:
            self._api().shutdown()
            deadline = time.monotonic() + 60
            while processes.is_alive(pid):
                if time.monotonic() > deadline:
                    raise ServiceError("supervisord (pid %d) does not end within 60 s" % pid)
                time.sleep(0.05)
        if left:
            paths.remove(self._written(), self.folder, "conf.d")
        return left

    def _written(self) -> List[str]:
        """The files of supervisord's own."""
        names = ("supervisord.conf", "supervisord.log*", "supervisord.pid", "supervisor.sock")
        return [file for name in names
                for file in glob.glob(os.path.join(glob.escape(self.folder), name))]

    def _start_daemon(self) -> None:
        # The environment is emptied: a token in the caller's shell must not reach the engines.
        env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
        ran = run(["env", "-i"] + ["%s=%s" % pair for pair in sorted(env.items())]
                  + [self._supervisord, "--configuration", self.config], timeout_s=30)
        if not ran.ok:
            raise ServiceError(ran.complaint())
        deadline = time.monotonic() + 15
        while self.daemon_pid() is None:
            if time.monotonic() > deadline:
                raise ServiceError("supervisord does not answer on %s" % self.socket)
            time.sleep(0.05)

    def _api(self) -> Any:
        proxy = xmlrpc.client.ServerProxy("http://supervisor", _UnixTransport(self.socket))
        return proxy.supervisor


def manager(kind: str, root: str, supervisord: str = "", consent: bool = False) -> Any:
    """The service manager by its name, ``systemd`` or ``supervisor``.

    :param consent: whether containers of others may be started again where a daemon-reload takes
        their GPUs from them.
    """
    if kind == "systemd":
        return Systemd(root, consent)
    return Supervisor(root, supervisord)


def kind_for_this_host() -> str:
    """``systemd`` for root where PID 1 is systemd, else ``supervisor``."""
    if os.geteuid() == 0 and os.path.isdir("/run/systemd/system"):
        return "systemd"
    return "supervisor"


def _said_by(argv: List[str]) -> Iterator[bytes]:
    """What a tool prints, in parts, however much.

    :raises ServiceError: it cannot be started, fails, or says nothing and complains.
    """
    with tempfile.TemporaryFile() as complaints:
        try:
            tool = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                    stderr=complaints, env=dict(os.environ, LC_ALL="C"))
        except OSError as problem:
            raise ServiceError("%s: %s" % (argv[0], problem.strerror)) from problem
        said, status = False, None
        with tool, contextlib.ExitStack() as stack:
            # Whoever reads no further leaves nothing at work.
            stack.callback(tool.kill)
            for chunk in iter(lambda: tool.stdout.read(CHUNK), b""):  # type: ignore[union-attr]
                said = True
                yield chunk
            status = tool.wait()
        complaints.seek(0)
        complaint = complaints.read(LOG_BYTES).decode("utf-8", "replace").strip()
        if status or (complaint and not said):
            raise ServiceError("%s: %s" % (" ".join(argv), complaint or "exit %d" % status))


class _UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        return UnixConnection(self._path)
