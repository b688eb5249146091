# SPDX-License-Identifier: Apache-2.0
"""A Docker daemon as far as its socket goes: it follows a settings file, and has containers.

It answers what our modules ask. ``start`` reads the settings as dockerd does: a file that is no
JSON, or a log driver that there is none of, keeps it from starting. ``SIGHUP`` is :meth:`reload`.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import pathlib
import re
import socketserver
import threading
import urllib.parse

DRIVERS = ("json-file", "journald", "local", "none", "syslog")


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
        self.settings, self.said, self.starts, self.calls = {}, [], 0, []
        # What nvidia-smi -L says in each container by name: status and text.
        self.inside = {}
        # A container that is started again has then what is here.
        self.after_restart = {}
        self._server = None

    def run(self, name, running=True, **inspect):
        """Have a container."""
        identity = "%064x" % (len(self.containers) + 1)
        self.containers[name] = {
            "Id": identity, "Name": "/" + name, "State": {"Running": running},
            "Config": {"Image": "example", "Env": [], "Labels": {}, **inspect.pop("config", {})},
            "HostConfig": {"DeviceRequests": None, "Devices": [], "Runtime": "runc",
                           "Privileged": False, **inspect.pop("host", {})}}
        return identity

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
        self._server = _Server(self)
        return True

    def stop(self):
        """End it; containers end with it, but for those that it leaves (live-restore)."""
        if self._server:
            self._server.end()
            self._server = None
            for one in self.containers.values():
                one["State"]["Running"] &= bool(self.settings.get("live-restore")) or bool(
                    one["HostConfig"].get("RestartPolicy"))

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
        if path == "/_ping":
            return 200, b"OK"
        if path == "/version":
            return 200, {"Version": self.version, "ApiVersion": "1.45"}
        if path == "/info":
            return 200, self.info()
        if path == "/containers/json":
            return 200, [{"Id": one["Id"], "Names": [one["Name"]]}
                         for one in self.containers.values() if one["State"]["Running"]]
        image = re.fullmatch(r"/images/(.+)/json", path)
        if image:
            found = self.images.get(image.group(1))
            return (200, {"Id": found}) if found else (404, {"message": "No such image"})
        exec_ = re.fullmatch(r"/exec/(\w+)/(start|json)", path)
        if exec_:
            status, text = self.inside[exec_.group(1)]
            if exec_.group(2) == "json":
                return 200, {"ExitCode": status}
            said = text.encode()
            return 200, b"\1\0\0\0" + len(said).to_bytes(4, "big") + said
        match = re.fullmatch(r"/containers/([^/]+)/(json|exec|start|restart)", path)
        one = match and next((one for one in self.containers.values() if match.group(1) in (
            one["Id"], one["Name"].lstrip("/"))), None)
        if not one:
            return 404, {"message": "No such container"}
        name = one["Name"].lstrip("/")
        if match.group(2) == "json":
            return 200, one
        if match.group(2) == "exec":
            return 201, {"Id": name}
        one["State"]["Running"] = True
        self.inside.update({name: self.after_restart[name]} if name in self.after_restart else {})
        return 204, b""


class _Server:
    """The socket of a daemon that runs."""

    def __init__(self, docker):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                parts = urllib.parse.urlsplit(self.path)
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length) or b"{}")
                status, said = docker.answer(
                    self.command, urllib.parse.unquote(parts.path), parts.query, body)
                content = said if isinstance(said, bytes) else json.dumps(said).encode()
                self.send_response(status)
                if status != 204:
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content if status != 204 else b"")

            do_POST = do_GET  # noqa: N815 - named by the standard library

            def address_string(self):
                return "unix"

            def log_message(self, *_):
                pass

        pathlib.Path(docker.socket).unlink(missing_ok=True)
        self._server = socketserver.ThreadingUnixStreamServer(docker.socket, Handler)
        self._server.daemon_threads = True
        self._path = pathlib.Path(docker.socket)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def end(self):
        """Close the socket."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._path.unlink(missing_ok=True)
