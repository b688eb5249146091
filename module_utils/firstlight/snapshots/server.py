# SPDX-License-Identifier: Apache-2.0
"""A hub for the other hosts of a fleet: some snapshots of a cache, read-only, for a secret.

It speaks as much of a hub's protocol as huggingface_hub asks for: what a revision is, what files it
has, and the files, whole or in ranges. Nothing of it imports that library.

    server.start(root, shelf, "192.0.2.7", 8473, secret, limit_s=86400, idle_s=900)
    server.standing(root)               # {address, port, ...}
    server.stop(root, secret)           # {served_bytes, requests}

It is a process of its own, ends by itself after a time, and earlier where nobody asks any more: a
controller that dies leaves no open port. A run with another secret does not end it. There is no
encryption: what is asked for and what is served can be read by whoever can listen on that network,
and so can the secret.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.server
import ipaddress
import json
import os
import re
import signal
import socket
import socketserver
import stat
import threading
import time
import urllib.parse
import uuid
from typing import Any, BinaryIO, Callable, Dict, Iterable, List, NamedTuple, Optional, Tuple

from .. import detached, paths, processes
from ..transaction import Busy
from . import layout
from .entries import Entry, Manifest

Told = Dict[str, Any]

CONNECTIONS = 64
"""At most so many at once, each with a thread; who comes then waits."""

SILENCE_S = 60.0
"""Seconds after which a connection on which nothing moves is closed."""

HEAD_S = 5.0
"""Seconds from the start of a connection in which the secret has to be shown."""

STRANGERS = 8
"""At most so many connections of one address that have not shown the secret."""

POLL_S = 0.2
TOLD_EVERY_S = 5.0
START_S = 20.0
GRACE_S = 5.0
RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
KNOWN = re.compile(r"(?:/api/models)?/(.+?)/(?:resolve|revision|tree)/([^/]+)")
# Addresses that are set aside for documents: a socket that is connected to one sends nothing, and
# then has the address of the host's own that the route there begins with.
FAR = ("192.0.2.1", "2001:db8::1")


class File(NamedTuple):
    """One file as it is served."""

    path: str
    entry: Entry
    commit: str
    view: layout.View


class Shelf:
    """What is served, by the path that is asked for: there is no way to anything else.

    :param cache: the cache; a file that leads out of it is not served.
    :param manifests: the snapshots; of what their manifests have, the files that are there.
    """

    def __init__(self, cache: str, manifests: Iterable[Manifest]) -> None:
        self.cache = cache
        self.files: Dict[str, File] = {}
        self.told: Dict[str, bytes] = {}
        self.commits: Dict[str, List[str]] = {}
        for one in manifests:
            folder = layout.snapshot(self.cache, one.repo_id, one.commit)
            self.commits.setdefault(one.repo_id, []).append(one.commit)
            api = "/api/models/%s" % one.repo_id
            self.told["%s/revision/%s" % (api, one.commit)] = _json(
                {"id": one.repo_id, "sha": one.commit})
            # The whole commit, as the hub has it: clients keep it for good.
            self.told["%s/tree/%s" % (api, one.commit)] = _json(
                [_listed(entry) for entry in one.entries])
            view = layout.View(cache, one.repo_id, one.commit)
            for entry in one.entries:
                self.files["/%s/resolve/%s/%s" % (one.repo_id, one.commit, entry.path)] = File(
                    os.path.join(folder, entry.path), entry, one.commit, view)

    def digest(self) -> str:
        """The same for the same files of the same cache."""
        return hashlib.sha256(repr((self.cache, sorted(
            (path, file.entry) for path, file in self.files.items()))).encode()).hexdigest()

    def open(self, file: File) -> Optional[BinaryIO]:
        """The file, or ``None`` where it is not there, not whole, or not in the cache."""
        with contextlib.suppress(OSError), contextlib.ExitStack() as kept:
            # What is no file might have nobody at its other end.
            handle = os.open(file.path, os.O_RDONLY | os.O_NONBLOCK)
            opened = kept.enter_context(os.fdopen(handle, "rb"))
            status = os.fstat(handle)
            # Asked of what was opened: a link may be another one by now.
            really = os.readlink("/proc/self/fd/%d" % handle)
            if (stat.S_ISREG(status.st_mode) and status.st_size == file.entry.size
                    and file.view.inside(really)):
                kept.pop_all()
                return opened
        return None


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _listed(entry: Entry) -> Told:
    """An entry as a hub lists it."""
    told: Told = {"type": "file", "path": entry.path, "size": entry.size,
                  "oid": entry.git_sha1 or entry.blob}
    if entry.sha256:
        told["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": 0}
    return told


class Count:
    """What was served so far, and since when nothing is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.served_bytes = 0
        self.requests = 0
        self._active = 0
        self._last = time.monotonic()

    def __enter__(self) -> Count:
        with self._lock:
            self._active += 1
            self.requests += 1
        return self

    def __exit__(self, *why: Any) -> None:
        with self._lock:
            self._active -= 1
            self._last = time.monotonic()

    def add(self, count: int) -> None:
        """Bytes of a file that went out."""
        with self._lock:
            self.served_bytes += count

    @property
    def idle_s(self) -> float:
        """Seconds without anything asked for."""
        with self._lock:
            return 0.0 if self._active else time.monotonic() - self._last

    def told(self) -> Told:
        """The two numbers."""
        return {"served_bytes": self.served_bytes, "requests": self.requests}


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """The server, bound and listening.

    :param secret: what a client sends as its bearer token.
    :param connections: how many there may be at once.
    :param head_s: seconds in which a connection has to show the secret.
    :raises OSError: the address is not this host's, or the port is taken.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    timeout = POLL_S

    def __init__(self, shelf: Shelf, address: str, port: int, secret: str,
                 connections: int = CONNECTIONS, head_s: float = HEAD_S) -> None:
        if not secret:
            raise ValueError("without a secret nothing is served")
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.shelf, self.count = shelf, Count()
        self._wanted = hashlib.sha256(b"Bearer " + secret.encode()).digest()
        self._slots = threading.BoundedSemaphore(connections)
        self._head_s, self._lock = head_s, threading.Lock()
        # Connections that have not shown the secret: whose, and until when they may not.
        self._strangers: Dict[socket.socket, Tuple[str, float]] = {}
        super().__init__((address, port), Handler)

    @property
    def url(self) -> str:
        """Where it is reached."""
        return url(str(self.server_address[0]), int(self.server_address[1]))

    def server_bind(self) -> None:
        """Bind; the name of an address, which HTTPServer looks up here, nobody needs."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def lets_in(self, authorization: str) -> bool:
        """Whether this is the header of who knows the secret; takes the same time for any."""
        told = hashlib.sha256(authorization.encode("utf-8", "surrogateescape")).digest()
        return hmac.compare_digest(told, self._wanted)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread, or close it where there is none for a while."""
        peer = _peer(str(client_address[0]))
        with self._lock:
            there = sum(one == peer for one, until in self._strangers.values())
        # Who has the secret comes again after a moment; they do not wait for who has not.
        if there >= STRANGERS or not self._slots.acquire(timeout=POLL_S):
            self.shutdown_request(request)
            return
        with self._lock:
            self._strangers[request] = (peer, time.monotonic() + self._head_s)
        try:
            super().process_request(request, client_address)
        except BaseException:
            self.is_known(request)
            self._slots.release()
            raise

    def is_known(self, request: socket.socket) -> None:
        """This connection has shown the secret, or is at its end."""
        with self._lock:
            self._strangers.pop(request, None)

    def service_actions(self) -> None:
        """Cut those that have not shown the secret in time, however slowly they go on sending."""
        with self._lock:
            for one, (_, until) in self._strangers.items():
                if time.monotonic() >= until:
                    with contextlib.suppress(OSError):
                        one.shutdown(socket.SHUT_RDWR)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.is_known(request)
            self._slots.release()

    def shutdown_request(self, request: Any) -> None:
        """Close a connection, which is nobody's then."""
        self.is_known(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no event."""

    def serve(self, limit_s: float, idle_s: float, stopped: Callable[[], bool],
              tell: Callable[[Told], None] = lambda told: None) -> str:
        """Serve until it is time to end; returns why: ``stopped``, ``limit`` or ``idle``.

        :param tell: called with what was served, every few seconds in which something was.
        """
        deadline = time.monotonic() + limit_s
        told, at = self.count.told(), time.monotonic()
        while True:
            if stopped():
                return "stopped"
            if time.monotonic() >= deadline:
                return "limit"
            if self.count.idle_s >= idle_s:
                return "idle"
            self.handle_request()
            self.service_actions()
            now = self.count.told()
            if now != told and time.monotonic() - at >= TOLD_EVERY_S:
                tell(now)
                told, at = now, time.monotonic()


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "firstlight", ""
    timeout = SILENCE_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name it has there
        """Nobody reads it, and paths are the business of who asks."""

    def do_HEAD(self) -> None:
        """Say what there is."""
        self._answer(body=False)

    def do_GET(self) -> None:
        """Send it."""
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        if not self.server.lets_in(self.headers.get("Authorization", "")):
            self._refuse(401, "Unauthorized", "This server wants the key of the run that began it.")
            return
        self.server.is_known(self.connection)
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self._refuse(400, "BadRequest", "A request with a body is none of reading.")
            return
        asked = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        with self.server.count:
            told = self.server.shelf.told.get(asked)
            file = self.server.shelf.files.get(asked)
            opened = self.server.shelf.open(file) if file else None
            if told is not None:
                self._send(200, [("Content-Type", "application/json")], len(told))
                if body:
                    self.wfile.write(told)
            elif file and opened:
                with opened:
                    self._file(file, opened, body)
            else:
                self._refuse(404, *self._lacks(asked))

    def _lacks(self, asked: str) -> Tuple[str, str]:
        """The code and the words for what is not there, as a hub has them."""
        found = KNOWN.match(asked)
        commits = self.server.shelf.commits.get(found.group(1)) if found else None
        if found is None or commits is None:
            return "RepoNotFound", "This server was not told to serve that."
        if found.group(2) not in commits:
            return "RevisionNotFound", "This server has %s of it." % ", ".join(commits)
        return "EntryNotFound", "This host has no such file of it."

    def _file(self, file: File, opened: BinaryIO, body: bool) -> None:
        size, etag = file.entry.size, '"%s"' % file.entry.blob
        first, last = 0, size - 1
        headers = [("Content-Type", "application/octet-stream"), ("ETag", etag),
                   ("X-Repo-Commit", file.commit), ("Accept-Ranges", "bytes")]
        asked = self.headers.get("Range", "")
        part = RANGE.fullmatch(asked.replace(" ", ""))
        # What it cannot read, several ranges for one, it may leave; then the whole is sent.
        if body and part and part.group(0) != "bytes=-" and self.headers.get(
                "If-Range", etag) == etag:
            low, high = part.groups()
            if low:
                first, last = int(low), min(int(high), last) if high else last
            else:
                first = max(0, size - int(high))
            if first > last:
                self._send(416, [("Content-Range", "bytes */%d" % size)], 0)
                return
            self._send(206, [*headers, ("Content-Range", "bytes %d-%d/%d" % (first, last, size))],
                       last - first + 1)
        else:
            self._send(200, headers, size)
        if body and last >= first:
            self.wfile.flush()
            try:
                self.connection.sendfile(opened, first, last - first + 1)
            finally:
                sent = opened.tell() - first
                self.server.count.add(max(sent, 0))
                # A file that was cut meanwhile leaves a client waiting for the rest.
                self.close_connection = self.close_connection or sent != last - first + 1

    def _send(self, status: int, headers: Iterable[Tuple[str, str]], length: int) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _refuse(self, status: int, code: str, words: str) -> None:
        told = words.encode()
        self.close_connection = True
        self._send(status, [("Content-Type", "text/plain"), ("X-Error-Code", code),
                            ("X-Error-Message", words), ("Connection", "close")]
                   + [("WWW-Authenticate", "Bearer")] * (status == 401), len(told))
        if self.command != "HEAD":
            self.wfile.write(told)


def url(address: str, port: int) -> str:
    """The address of a server in the form that clients take."""
    return "http://%s:%d" % ("[%s]" % address if ":" in address else address, port)


def addresses(towards: Iterable[str] = ()) -> List[str]:
    """This host's own addresses by which others reach it, the best one first.

    :param towards: names or addresses of hosts that are to reach it; the route to one begins with
       an address of this host's. After these comes what its default routes have.
    """
    found = [_route(one) for one in [*resolved(towards), *FAR]]
    return [one for one in dict.fromkeys(found) if one]


def resolved(names: Iterable[str]) -> List[str]:
    """The addresses of names by which a host is known to others; none of a loopback."""
    found = []
    for name in names:
        with contextlib.suppress(OSError, ValueError):
            found += [str(one[4][0]) for one in socket.getaddrinfo(
                name, 9, type=socket.SOCK_DGRAM)]
    return [one for one in dict.fromkeys(found) if _is_for_others(one)]


def _is_for_others(address: str) -> bool:
    """Whether another host could use it: one of a link needs the interface's name too."""
    with contextlib.suppress(ValueError):
        found = ipaddress.ip_address(address)
        return not (found.is_loopback or found.is_link_local or found.is_unspecified)
    return False


def _route(towards: str) -> str:
    """The address that the route to another one begins with, or an empty text."""
    with contextlib.suppress(OSError), socket.socket(
            socket.AF_INET6 if ":" in towards else socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.connect((towards, 9))
        own = str(asked.getsockname()[0])
        return own if _is_for_others(own) else ""
    return ""


def is_own(address: str) -> bool:
    """Whether something can listen on this address here."""
    with contextlib.suppress(OSError), socket.socket(
            socket.AF_INET6 if ":" in address else socket.AF_INET) as tried:
        tried.bind((address, 0))
        return True
    return False


def file_of(root: str) -> str:
    """Where the server of a root is written down; the secret is not in it.

    A teardown clears away what has such a name, if a server that ended by itself left it.
    """
    return os.path.join(root, "journal", "snapshots-server.run.json")


def question(shelf: Shelf, address: str, port: int, secret: str) -> str:
    """The same for a server that serves the same at the same place for the same key."""
    asked = repr((shelf.digest(), address, port, secret))
    return hashlib.sha256(asked.encode()).hexdigest()


def taken(root: str, secret: str) -> Optional[str]:
    """Since when one runs, or is about to, that another secret began; ``None``: there is none."""
    state = _state(root)
    if state is None or state["run"].startswith(_key(secret)):
        return None
    guarded = (state.get("result") is None and type(state.get("pid")) is int
               and _lives(state))
    return str(state.get("since")) if guarded or _lives(state["progress"]) else None


def _key(secret: str) -> str:
    """How the runs are named that a secret began."""
    return hashlib.sha256(b"run " + secret.encode()).hexdigest() + "-"


def _peer(address: str) -> str:
    """Whose an address is: of the sixth version a whole network is one host's."""
    own = ipaddress.ip_address(address.partition("%")[0])
    return str(ipaddress.ip_network((own, 64), strict=False)) if own.version == 6 else address


def standing(root: str) -> Optional[Told]:
    """The server that runs now: ``{question, address, port, served_bytes, requests}``."""
    state = _state(root)
    return state["progress"] if state and _lives(state["progress"]) else None


def start(root: str, shelf: Shelf, address: str, port: int, secret: str, limit_s: float,
          idle_s: float) -> Told:
    """Serve from a process of its own; one of this secret that serves otherwise is ended first.

    :param port: 0 is any that is free.
    :param limit_s: seconds after which it ends, whatever is being copied.
    :param idle_s: seconds without a request after which it ends.
    :returns: as :func:`standing`, and ``began``: whether it was not there before.
    :raises OSError: it cannot listen there; the message says why.
    :raises Busy: one serves that another secret began.
    """
    since = taken(root, secret)
    if since is not None:
        raise Busy("another run serves from here, since %s" % since)
    asked = question(shelf, address, port, secret)
    there = standing(root)
    if there is not None and there["question"] == asked:
        return dict(there, began=False)
    stop(root, secret)

    def work(report: detached.Report) -> Told:
        ended: List[int] = []
        signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
        try:
            with Server(shelf, address, port, secret) as server:
                base = {"question": asked, "pid": os.getpid(),
                        "ticks": processes.start_ticks(os.getpid()), "address": address,
                        "port": int(server.server_address[1])}
                report({**base, **server.count.told()})
                why = server.serve(limit_s, idle_s, lambda: bool(ended),
                                   lambda told: report({**base, **told}))
                return {"why": why, **server.count.told()}
        except OSError as problem:
            return {"failed": str(problem)}

    # Another one each time: the guard of one that just ended must not take it for its own.
    run, deadline = _key(secret) + uuid.uuid4().hex, time.monotonic() + START_S
    while True:
        told = detached.watch(file_of(root), run, 0, work, dict, limit_s + START_S)
        if told["finished"]:
            stop(root, secret)
            raise OSError(told["result"].get("failed") or "it ended before it served anything")
        if told["progress"]:
            return dict(told["progress"], began=True)
        if time.monotonic() >= deadline:
            stop(root, secret)
            raise OSError("it did not begin to listen within %d s" % START_S)
        time.sleep(POLL_S / 4)


def stop(root: str, secret: str = "") -> Told:
    """End the server, or clear away what is left of one that ended by itself.

    :param secret: leave one that another secret began. Empty ends any.
    :returns: ``{was, why, served_bytes, requests}``; ``was``: whether there was anything.
    """
    state = _state(root)
    if state is None or (secret and taken(root, secret) is not None):
        return {"was": False, "why": "", "served_bytes": 0, "requests": 0}
    progress = state["progress"]
    for how, patience in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
        deadline = time.monotonic() + patience
        if _lives(progress):
            os.kill(progress["pid"], how)
        while _lives(progress) and time.monotonic() < deadline:
            time.sleep(POLL_S / 10)
    # Whoever waits for the end of a work has it forgotten.
    told = detached.watch(file_of(root), state["run"], None, lambda report: {}, dict, GRACE_S)
    return {"was": True, "why": "killed", "served_bytes": progress.get("served_bytes", 0),
            "requests": progress.get("requests", 0), **told["result"]}


def is_left(root: str) -> bool:
    """Whether there is anything to stop or to clear away."""
    return _state(root) is not None


def _state(root: str) -> Optional[Told]:
    """What is written down, where it can be relied on."""
    try:
        found = json.loads(paths.read(file_of(root)) or b"null")
        whole = isinstance(found["run"], str) and isinstance(found["progress"], dict)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return dict(found) if whole else None


def _lives(progress: Told) -> bool:
    """Whether the process that serves is there: a pid alone may be another's by now."""
    pid = progress.get("pid")
    return (type(pid) is int and processes.is_alive(pid)
            and processes.start_ticks(pid) == progress.get("ticks"))
