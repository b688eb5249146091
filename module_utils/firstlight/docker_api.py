# SPDX-License-Identifier: Apache-2.0
"""The Docker daemon's API over its socket: the few calls that must work without a client.

Containers are made by community.docker; what has to happen on the host by itself (start, stop,
read) is asked of the daemon here, on the standard library, so that it needs no environment.
See https://docs.docker.com/reference/api/engine/.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import urllib.parse
from typing import Any, Dict, Iterable, Iterator, Optional

SOCKETS = ("/run/docker.sock", "/var/run/docker.sock")
MAX_BODY = 16 * 2**20
CHUNK = 256 * 1024
# Stopping a container takes its grace period, and a daemon that is busy answers late.
TIMEOUT_S = 120.0
# How a log's frame begins when the container has no terminal: stream, three zeros, length.
FRAME = 8


class Away(Exception):
    """The daemon does not answer: it is not there, restarts, or hangs."""


class Refused(Exception):
    """The daemon said no; ``status`` is its HTTP status, the text is its own."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a socket's file."""

    def __init__(self, path: str, timeout_s: float = 60.0) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket's file."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def socket_path() -> Optional[str]:
    """The daemon's socket, or ``None`` where there is none."""
    return next((path for path in SOCKETS if os.path.exists(path)), None)


class Api:
    """The daemon of this host.

    :param path: its socket; by default the usual one.
    :param timeout_s: seconds allowed for one answer.
    """

    def __init__(self, path: Optional[str] = None, timeout_s: float = TIMEOUT_S) -> None:
        self._path, self._timeout_s = path, timeout_s

    def get(self, target: str, **query: Any) -> Any:
        """What the daemon answers to GET, as JSON. Raises as :meth:`call`."""
        return self._json(self.call("GET", target, query))

    def post(self, target: str, body: Optional[Dict[str, Any]] = None, **query: Any) -> Any:
        """What the daemon answers to POST, as JSON, or ``None``. Raises as :meth:`call`."""
        return self._json(self.call("POST", target, query, body))

    def delete(self, target: str, **query: Any) -> None:
        """DELETE. Raises as :meth:`call`."""
        self.call("DELETE", target, query)

    def call(self, method: str, target: str, query: Dict[str, Any],
             body: Optional[Dict[str, Any]] = None) -> bytes:
        """The body of an answer.

        :raises Away: when none comes.
        :raises Refused: for a status from 400 on.
        """
        return next(self._answer(method, target, query, body, MAX_BODY))

    def _answer(self, method: str, target: str, query: Dict[str, Any],
                body: Optional[Dict[str, Any]], most: int) -> Iterator[bytes]:
        """The body of an answer in parts of at most that many bytes, the first in any case.

        Raises as :meth:`call`.
        """
        path = self._path or socket_path()
        if path is None:
            raise Away("no Docker socket in %s" % " or ".join(SOCKETS))
        words = urllib.parse.urlencode({key: json.dumps(value) if isinstance(value, dict)
                                        else value for key, value in query.items()})
        connection = UnixConnection(path, self._timeout_s)
        try:
            connection.request(
                method, target + ("?" + words if words else ""),
                None if body is None else json.dumps(body).encode(),
                {} if body is None else {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read(most)
            if response.status >= 400:
                raise Refused(response.status, _message(content))
            yield content
            while content:
                content = response.read(most)
                yield content
        except (OSError, http.client.HTTPException) as problem:
            raise Away("%s: %s" % (path, str(problem) or type(problem).__name__)) from problem
        finally:
            connection.close()

    def _json(self, content: bytes) -> Any:
        try:
            return json.loads(content) if content.strip() else None
        except (ValueError, RecursionError) as problem:
            raise Away("an answer that is no JSON") from problem

    def containers(self, labels: Iterable[str], everything: bool = True) -> Any:
        """Containers that have these labels (``key`` or ``key=value``), running or not."""
        return self.get("/containers/json", all="1" if everything else "0",
                        filters={"label": list(labels)})

    def log(self, container: str, lines: int, since: float = 0) -> str:
        """The last lines of a container's log, since then in Unix time. Raises as :meth:`call`."""
        content = self.call("GET", "/containers/%s/logs" % quoted(container),
                            {"stdout": 1, "stderr": 1, "tail": lines, "since": "%.6f" % since})
        return unframed(content).decode("utf-8", "replace")

    def log_chunks(self, container: str, lines: int) -> Iterator[bytes]:
        """The last lines of a container's log, in parts, each stream as it was written.

        Raises as :meth:`call`.
        """
        left: Optional[bytes] = b""
        for content in self._answer("GET", "/containers/%s/logs" % quoted(container), {
                "stdout": 1, "stderr": 1, "tail": lines}, None, CHUNK):
            if left is None:  # of a container with a terminal, without frames
                yield content
                continue
            left += content
            end = whole_frames(left)
            if end is None:
                yield left
                left = None
            else:
                yield unframed(left[:end])
                left = left[end:]
        # A frame that is longer than what came of it.
        yield unframed(left or b"")


def quoted(name: str) -> str:
    """A name as a part of a path."""
    return urllib.parse.quote(name, safe="")


def _message(content: bytes) -> str:
    try:
        return str(json.loads(content)["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return content[:300].decode("utf-8", "replace").strip() or "nothing"


def whole_frames(content: bytes) -> Optional[int]:
    """Where the last whole frame of a log ends; ``None`` where it has no frames."""
    at = 0
    while at + FRAME <= len(content):
        if content[at] > 2 or content[at + 1:at + 4] != b"\0\0\0":
            return None
        end = at + FRAME + int.from_bytes(content[at + 4:at + FRAME], "big")
        if end > len(content):
            break
        at = end
    return at


def unframed(content: bytes) -> bytes:
    """A log without its frames; the last one may be cut off."""
    lines, at = [], 0
    while at + FRAME <= len(content):
        if content[at] > 2 or content[at + 1:at + 4] != b"\0\0\0":
            return content  # of a container with a terminal
        length = int.from_bytes(content[at + 4:at + FRAME], "big")
        lines.append(content[at + FRAME:at + FRAME + length])
        at += FRAME + length
    return b"".join(lines)
