# SPDX-License-Identifier: Apache-2.0
"""A Docker daemon as far as its socket goes: it follows a settings file, and has containers.

It answers what our modules ask. ``start`` reads the settings as dockerd does: a file that is no
JSON, or a log driver that there is none of, keeps it from starting. ``SIGHUP`` is :meth:`reload`.

A container of :meth:`Docker.run` is only told of; one of :meth:`Docker.make` is a process of this
machine, which ends, is started again, and takes its port.
"""

from __future__ import annotations

import contextlib
import http.server
import itertools
import json
import os
import pathlib
import re
import signal
import socket
import socketserver
import subprocess
import tempfile
import threading
import time
import urllib.parse

import pytest

from ansible.module_utils.firstlight import processes

DRIVERS = ("json-file", "journald", "local", "none", "syslog")
# Scripted faults: an answer that never comes, and a connection that is closed instead of one.
HANG, DROP = object(), object()
# Seconds between a crash and the first start after it; each further one waits twice as long.
BACKOFF_S = 0.1
# A container gets this long to end by itself, whatever the stop allows.
GRACE_S = 2.0
ALIVE = ("running", "restarting", "paused")
NOT_THERE = ('OCI runtime exec failed: exec failed: unable to start container process: exec: '
             '"nvidia-smi": executable file not found in $PATH: unknown')


class Docker:
    """One daemon.

    :param folder: gets its socket, and is where the file system of its host is.
    """

    def __init__(self, folder, version="26.1.5+dfsg1"):
        self.root = pathlib.Path(folder)
        self.socket = str(self.root / "docker.sock")
        self.file = self.root / "etc/docker/daemon.json"
        self.version, self.driver = version, "systemd"
        self.containers, self.images = {}, {}
        self._numbers = itertools.count(1)
        self.settings, self.said, self.starts, self.calls = {}, [], 0, []
        # What nvidia-smi -L says in each container by name: status and text.
        self.inside = {}
        # A container that is started again has then what is here.
        self.after_restart = {}
        # The processes of containers by name, networks, and what is answered out of turn.
        self.lives, self.networks, self._scripts = {}, set(), []
        self._server = None

    def run(self, name, running=True, **inspect):
        """Have a container."""
        identity = "%064x" % next(self._numbers)
        self.containers[name] = {
            "Id": identity, "Name": "/" + name, "RestartCount": 0,
            "State": {"Running": running, "Status": "running" if running else "exited"},
            "Config": {"Image": "example", "Env": [], "Labels": {}, **inspect.pop("config", {})},
            "HostConfig": {"DeviceRequests": None, "Devices": [], "Runtime": "runc",
                           "Privileged": False, **inspect.pop("host", {})}}
        return identity

    def make(self, made, env=None):
        """Make a container of a process, which waits to be started.

        :param made: arguments of ``community.docker.docker_container``.
        :param env: what its process has of the image.
        """
        name = made["name"]
        assert name not in self.containers, "a name is taken once"
        self.run(name, False, config={"Image": made["image"], "Labels": made["labels"]})
        one = self.containers[name]
        one["State"].update(Status="created", ExitCode=0, Error="", OOMKilled=False, Pid=0)
        ports = [int(text.split(":")[1]) for text in made["published_ports"]]
        self.lives[name] = _Life(one, [*made["entrypoint"], *made["command"]], ports, env)
        return one

    def say(self, method, path, *answers):
        """Have the next requests of that kind answered so.

        An answer is ``(status, object)``, HANG, DROP, or bytes that are sent as they are.

        :param path: a regular expression for all of it.
        """
        self._scripts.append((method, re.compile(path), list(answers)))

    def end(self):
        """End it, and every process of its containers."""
        self._close()
        for life in self.lives.values():
            life.stop()

    def start(self):
        """Start it, as its unit does; whether it came up."""
        try:
            found = json.loads(self.file.read_text() or "{}") if self.file.exists() else {}
            driver = found.get("log-driver", "json-file")
            if driver not in DRIVERS:
                raise ValueError("logger: no log driver named '%s' is registered" % driver)
        except ValueError as problem:
            self.said.append("failed to start daemon: %s" % problem)
            return False
        self.settings = found
        self.starts += 1
        for life in self.lives.values():
            life.come_back()
        self._server = _Server(self)
        return True

    def stop(self):
        """End it; containers end with it, but for those that it leaves (live-restore)."""
        if self._server:
            self._close()
            for name, one in self.containers.items():
                stays = bool(self.settings.get("live-restore"))
                if name in self.lives:
                    if not stays:
                        self.lives[name].stop(for_good=False)
                elif not stays and not one["HostConfig"].get("RestartPolicy"):
                    one["State"].update(Running=False, Status="exited")

    def _close(self):
        if self._server:
            self._server.end()
            self._server = None

    def restart(self):
        """As systemd does; whether it came up."""
        self.stop()
        return self.start()

    def reload(self):
        """Read the settings again, as far as a running daemon does."""
        with contextlib.suppress(ValueError, FileNotFoundError):
            self.settings["runtimes"] = json.loads(self.file.read_text()).get("runtimes", {})

    def info(self):
        """What it says of itself."""
        major = int(self.version.partition(".")[0])
        on = self.settings.get("features", {}).get("cdi", major >= 29)
        return {"CgroupDriver": self.driver, "CgroupVersion": "2",
                "Runtimes": {"runc": {}, **self.settings.get("runtimes", {})},
                "CDISpecDirs": ["/etc/cdi", "/var/run/cdi"] if on and major >= 25 else [],
                "LiveRestoreEnabled": self.settings.get("live-restore", False),
                "LoggingDriver": self.settings.get("log-driver", "json-file")}

    def answer(self, method, path, query, body):
        """``(status, object)`` of one request."""
        self.calls.append((method, path))
        for of, pattern, answers in self._scripts:
            if of == method and answers and pattern.fullmatch(path):
                return answers.pop(0)
        words = dict(urllib.parse.parse_qsl(query))
        if (method, path) == ("POST", "/containers/create"):
            return self._create(words["name"], body)
        for pattern, respond in ((r"/(_ping|version|info)", self._of_itself),
                                 (r"/containers/json", self._listed),
                                 (r"/images/(.+?)(/json)?", self._image),
                                 (r"/networks/([^/]+)", self._network),
                                 (r"/exec/([^/]+)/(start|json)", self._exec),
                                 (r"/containers/([^/]+)(?:/(\w+))?", self._container)):
            match = re.fullmatch(pattern, path)
            if match:
                return respond(method, words, *match.groups())
        return 404, {"message": "page not found"}

    def _of_itself(self, method, words, what):
        return 200, {"_ping": b"OK", "info": self.info(),
                     "version": {"Version": self.version, "ApiVersion": "1.45"}}[what]

    def _listed(self, method, words):
        labels = [label.partition("=") for label in json.loads(
            words.get("filters", "{}")).get("label", [])]
        found = []
        for one in list(self.containers.values()):
            has, state = one["Config"]["Labels"], one["State"]["Status"]
            if (words.get("all") == "1" or one["State"]["Running"]) and all(
                    key in has and (not sign or has[key] == value) for key, sign, value in labels):
                life = self.lives.get(one["Name"].lstrip("/"))
                found.append({
                    "Id": one["Id"], "Names": [one["Name"]], "Labels": has, "State": state,
                    "Image": one["Config"]["Image"],
                    # Those of one that does not run are not told.
                    "Ports": [{"IP": "127.0.0.1", "PrivatePort": port, "PublicPort": port,
                               "Type": "tcp"} for port in life.ports]
                    if life and one["State"]["Running"] else []})
        return 200, found

    def _create(self, name, body):
        if name in self.containers:
            return 409, {"message": "Conflict. The container name \"/%s\" is already in use by "
                                    "container \"%s\"." % (name, self.containers[name]["Id"])}
        made = self.make({
            "name": name, "image": body["Image"], "labels": body["Labels"],
            "entrypoint": body["Entrypoint"], "command": body["Cmd"], "published_ports": []},
            dict(one.split("=", 1) for one in body["Env"]))
        made["Config"].update({key: body[key] for key in ("Env", "User", "WorkingDir")})
        made["HostConfig"] = body["HostConfig"]
        return 201, {"Id": made["Id"], "Warnings": []}

    def _image(self, method, words, name, inspect):
        if name not in self.images:
            return 404, {"message": "No such image: " + name}
        if method != "DELETE":
            return 200, {"Id": self.images[name]}
        if any(one["Config"]["Image"] == name for one in self.containers.values()):
            return 409, {"message": "conflict: unable to remove repository reference %s (must "
                                    "force) - a container is using it" % name}
        del self.images[name]
        return 200, [{"Untagged": name}]

    def _network(self, method, words, name):
        if name not in self.networks:
            return 404, {"message": "network %s not found" % name}
        self.networks.discard(name)
        return 204, b""

    def _exec(self, method, words, name, what):
        status, text = self.inside.get(name, (127, NOT_THERE))
        if what == "json":
            return 200, {"ExitCode": status}
        return 200, _frame(text.encode())

    def _container(self, method, words, called, what):
        one = next((one for one in self.containers.values() if called in (
            one["Id"], one["Name"].lstrip("/"))), None)
        if not one:
            return 404, {"message": "No such container: " + called}
        name = one["Name"].lstrip("/")
        runs, life = one["State"]["Running"], self.lives.get(name)
        if method == "DELETE":
            if runs and words.get("force") != "1":
                return 409, {"message": "cannot remove container %s: container is running" % name}
            if life:
                life.stop()
            del self.containers[name]
            self.lives.pop(name, None)
            return 204, b""
        if what == "json":
            return 200, one
        if what in ("exec", "top") and one["State"]["Status"] != "running":
            return 409, {"message": "container %s is not running" % one["Id"]}
        if what == "exec":
            return 201, {"Id": name}
        if what == "top":
            pids = life.pids() if life else [os.getpid()]
            return 200, {"Titles": ["UID", "PID", "CMD"],
                         "Processes": [["root", str(pid), "engine"] for pid in pids]}
        if what == "logs":
            return 200, b"".join(map(_frame, life.lines(words) if life else []))
        if what == "stop":
            if one["State"]["Status"] not in ALIVE:
                return 304, b""
            if life:
                life.stop()
            one["State"].update(Running=False, Status="exited")
            return 204, b""
        if what == "start" and runs:
            return 304, b""
        one["State"].update(Running=True, Status="running")
        self.inside.update({name: self.after_restart[name]} if name in self.after_restart else {})
        if not life:
            return 204, b""
        if what == "restart":
            life.stop()
        return life.start()


def _frame(said):
    """Some text as it comes of a container without a terminal."""
    return b"\1\0\0\0" + len(said).to_bytes(4, "big") + said


class _Life:
    """The process of a container, under the policy ``unless-stopped`` where it has no other."""

    def __init__(self, told, argv, ports, env):
        self._told, self._argv, self.ports = told, argv, ports
        self._env = {"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1", **(env or {})}
        self._log, self._process, self._thread = [], None, None
        self._stop, self._comes_back = threading.Event(), False

    def start(self):
        """Start it; what the daemon answers."""
        self._stop.set()
        if self._thread:
            self._thread.join()
        self._told["RestartCount"] = 0
        self._stop.clear()
        wrong = self._launch()
        if wrong:
            self._told["State"].update(Status="created", Running=False, ExitCode=128, Error=wrong)
            return 500, {"message": wrong}
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()
        return 204, b""

    def stop(self, for_good=True):
        """Stop it; one that is not stopped for good is started with its daemon."""
        self._comes_back = not for_good and self._told["State"]["Status"] in ALIVE
        self._stop.set()
        self._signal(signal.SIGTERM)
        if self._thread:
            self._thread.join(GRACE_S)
            self._signal(signal.SIGKILL)
            self._thread.join()
        if self._told["State"]["Status"] in ALIVE:
            self._told["State"].update(Status="exited", Running=False, Pid=0)

    def come_back(self):
        """What its daemon does at its start."""
        if self._comes_back:
            self.start()

    def pids(self):
        """Its processes, as the host numbers them."""
        first = self._process.pid
        return [first, *processes.children(first)]

    def lines(self, words):
        """The log that is asked for."""
        since = float(words.get("since", 0))
        found = [line for at, line in list(self._log) if at >= since]
        return found[-int(words["tail"]):]

    def _signal(self, how):
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, how)

    def _launch(self):
        """Start the process, or say why not."""
        for port in self.ports:
            with socket.socket() as taken:
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    taken.bind(("127.0.0.1", port))
                except OSError:
                    return ("failed to set up container networking: driver failed programming "
                            "external connectivity on endpoint %s: Bind for 127.0.0.1:%d failed: "
                            "port is already allocated" % (self._told["Name"].lstrip("/"), port))
        try:
            self._process = subprocess.Popen(
                self._argv, env=self._env, cwd="/", stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        except OSError as problem:
            return "failed to create task for container: exec: %s" % problem
        self._told["State"].update(Status="running", Running=True, Pid=self._process.pid,
                                   ExitCode=0, Error="")
        return ""

    def _live(self):
        """Wait for its end, and start it again as long as nobody stopped it."""
        backoff = BACKOFF_S
        while True:
            with self._process.stdout as said:
                for line in said:
                    self._log.append((time.time(), line))
            code = self._process.wait()
            self._told["State"].update(Pid=0, ExitCode=128 - code if code < 0 else code)
            policy = self._told["HostConfig"].get("RestartPolicy") or {}
            if self._stop.is_set() or policy.get("Name") == "no":
                break
            self._told["RestartCount"] += 1
            # A container that is to be started again counts as one that runs.
            if backoff:
                self._told["State"].update(Status="restarting", Running=True)
            if self._stop.wait(backoff) or self._launch():
                break
            backoff *= 2
        self._told["State"].update(Status="exited", Running=False)


class _Server:
    """The socket of a daemon that runs."""

    def __init__(self, docker):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                parts = urllib.parse.urlsplit(self.path)
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length) or b"{}")
                answer = docker.answer(
                    self.command, urllib.parse.unquote(parts.path), parts.query, body)
                if answer is HANG:
                    self.server.closing.wait(60)
                if answer in (HANG, DROP):
                    self.close_connection = True
                    return
                if isinstance(answer, bytes):
                    self.wfile.write(answer)
                    self.close_connection = True
                    return
                status, said = answer
                content = said if isinstance(said, bytes) else json.dumps(said).encode()
                self.send_response(status)
                if status not in (204, 304):
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content if status not in (204, 304) else b"")

            do_POST = do_DELETE = do_GET  # noqa: N815 - named by the standard library

            def address_string(self):
                return "unix"

            def log_message(self, *_):
                pass

        pathlib.Path(docker.socket).unlink(missing_ok=True)
        self._server = socketserver.ThreadingUnixStreamServer(docker.socket, Handler)
        self._server.daemon_threads = True
        self._server.closing = threading.Event()
        # A client that goes away in the middle is part of the tests.
        self._server.handle_error = lambda request, address: None
        self._path = pathlib.Path(docker.socket)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def end(self):
        """Close the socket."""
        self._server.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._path.unlink(missing_ok=True)


@pytest.fixture
def docker():
    """A daemon that is not, which answers by its socket."""
    with tempfile.TemporaryDirectory(prefix="fl", dir="/tmp") as folder:  # a socket's path is short
        made = Docker(folder)
        made.start()
        yield made
        made.end()
