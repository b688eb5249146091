# SPDX-License-Identifier: Apache-2.0
"""HTTP to an engine, on the standard library.

Proxies of the environment are never used: an endpoint is on this host. Answers are untrusted:
sizes and times are bounded, and whatever goes wrong is an answer with ``status`` 0.
"""

from __future__ import annotations

import http.client
import json
import re
import select
import socket
import ssl
import time
import urllib.parse
from typing import Any, Callable, Dict, Iterable, Iterator, NamedTuple, Optional, Tuple

MAX_BODY = 16 * 2**20
PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
PARTIAL_CHAIN = 0x80000
"""``ssl.VERIFY_X509_PARTIAL_CHAIN``, which Python names from 3.10 on."""

More = Callable[[], float]
"""Asked when the time of a request is over: the seconds that it gets in addition, or 0."""


class Answer(NamedTuple):
    """``status`` is 0 when there was no HTTP answer; ``error`` then says why."""

    status: int
    body: bytes
    error: str
    seconds: float

    def json(self, errors: str = "strict") -> Any:
        """The body as JSON, or ``None`` when it is not.

        :param errors: what becomes of bytes that are no UTF-8, as :meth:`bytes.decode` has it.
        """
        try:
            return json.loads(self.body.decode("utf-8", errors))
        except (ValueError, RecursionError):
            return None

    def not_utf8(self) -> str:
        """Where the body is no UTF-8, in a few words; empty where all of it is."""
        try:
            self.body.decode("utf-8")
        except UnicodeDecodeError as problem:
            begin = max(0, problem.start - 10)
            return "byte %d of %d is no UTF-8: %r" % (
                problem.start, len(self.body), self.body[begin:problem.end + 10])
        return ""

    def brief(self) -> str:
        """One line for an error message."""
        if not self.status:
            return self.error
        return "HTTP %d: %s" % (self.status, self.body[:300].decode("utf-8", "replace").strip())


class Late(ConnectionError):
    """A stream did not come to its end in its time."""


def get(url: str, timeout_s: float = 10.0, tls: Optional[ssl.SSLContext] = None,
        headers: Optional[Dict[str, str]] = None) -> Answer:
    """GET, for the whole body.

    :param tls: for a URL of https, by what its server is known.
    :param headers: in addition to our own.
    """
    return _whole(_Asked("GET", url, None, headers, tls), _Clock(timeout_s))


def post(url: str, payload: Dict[str, Any], timeout_s: float = 60.0,
         tls: Optional[ssl.SSLContext] = None, headers: Optional[Dict[str, str]] = None,
         more: Optional[More] = None) -> Answer:
    """POST a JSON object, for the whole body.

    :param more: without ``tls``, who is asked for more time before the request is given up.
    """
    return _whole(_Asked("POST", url, payload, headers, tls), _Clock(timeout_s, more))


def post_stream(
    url: str, payload: Dict[str, Any], timeout_s: float = 60.0, more: Optional[More] = None
) -> Iterator[Tuple[float, Any]]:
    """POST and yield ``(seconds since the request, event)`` for each server-sent JSON event.

    :param more: who is asked for more time before the request is given up.
    :raises Late: it takes longer than its time.
    :raises ConnectionError: for no answer, another status than 200, a broken or endless stream.
    """
    clock = _Clock(timeout_s, more)
    try:
        connection, response = _open(_Asked("POST", url, payload, None, None), clock)
    except (OSError, ValueError, http.client.HTTPException) as problem:
        raise _broken(problem) from problem
    try:
        if response.status != 200:
            body = b"".join(_pieces(response, clock))
            raise ConnectionError(Answer(response.status, body, "", 0.0).brief())
        for line in _lines(_pieces(response, clock)):
            if not line.startswith(b"data:"):
                continue
            # The space after the colon may be missing.
            event = line[5:].lstrip()
            if event == b"[DONE]":
                return
            yield clock.passed(), json.loads(event.decode("utf-8"))
        raise ConnectionError("the stream broke off before its end")
    except (OSError, http.client.HTTPException, ValueError, RecursionError) as problem:
        raise _broken(problem) from problem
    finally:
        connection.close()


def unreachable(url: str, timeout_s: float = 10.0) -> str:
    """Why nothing takes connections at a URL; empty where something does."""
    try:
        parts = urllib.parse.urlsplit(url)
        at = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection(at, timeout_s):
            return ""
    except (OSError, ValueError) as problem:
        return _reason(problem)


def pinned(der: bytes) -> ssl.SSLContext:
    """TLS with a server that is known by its own certificate, whoever signed it.

    Its name is for its clients to know, and so is who signed it.

    :param der: the certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= PARTIAL_CHAIN
    context.load_verify_locations(cadata=der)
    return context


def certificate(pem: bytes) -> Optional[bytes]:
    """The first certificate of a PEM file, as DER: what a server shows; ``None`` without any."""
    found = PEM.search(pem.decode("utf-8", "replace"))
    try:
        return ssl.PEM_cert_to_DER_cert(found.group(0)) if found else None
    except ValueError:
        return None


class _Asked(NamedTuple):
    """A request."""

    method: str
    url: str
    payload: Optional[Dict[str, Any]]
    headers: Optional[Dict[str, str]]
    tls: Optional[ssl.SSLContext]


class _Clock:
    """The time that a request may take as a whole."""

    def __init__(self, timeout_s: float, more: Optional[More] = None) -> None:
        self.timeout_s, self.limit_s, self.more = timeout_s, timeout_s, more
        self.started = time.monotonic()

    def passed(self) -> float:
        """Seconds since the request began."""
        return time.monotonic() - self.started

    def left(self) -> float:
        """Seconds until it is over."""
        return max(0.0, self.limit_s - self.passed())

    def is_over(self) -> bool:
        """Whether the time is over and there is no more of it."""
        while not self.left():
            given = self.more() if self.more else 0.0
            if given <= 0:
                return True
            self.limit_s = self.passed() + given
        return False


class _Socket(socket.socket):
    """A socket that gives its request up by the clock.

    A time limit of the socket itself would end the connection, also where the clock gives more.
    """

    clock: _Clock

    def recv_into(self, *args: Any, **more: Any) -> int:
        """What has come; waits for it.

        :raises TimeoutError: the time of the request is over.
        """
        ready = select.poll()
        ready.register(self, select.POLLIN)
        while not ready.poll(self.clock.left() * 1000):
            if self.clock.is_over():
                raise TimeoutError("timed out")
        return super().recv_into(*args, **more)


class _Connection(http.client.HTTPConnection):
    """Plain HTTP by a clock."""

    def __init__(self, host: str, port: int, clock: _Clock) -> None:
        super().__init__(host, port, timeout=clock.timeout_s)
        self.clock = clock

    def connect(self) -> None:
        """Connect, within the time that the request has at first."""
        super().connect()
        plain = self.sock
        mine = _Socket(plain.family, plain.type, plain.proto, fileno=plain.detach())
        mine.settimeout(self.clock.timeout_s)
        mine.clock = self.clock
        self.sock = mine


def _whole(asked: _Asked, clock: _Clock) -> Answer:
    try:
        connection, response = _open(asked, clock)
    except (OSError, ValueError, http.client.HTTPException) as problem:
        return Answer(0, b"", _reason(problem), clock.passed())
    try:
        body = b"".join(_pieces(response, clock))
        return Answer(response.status, body, "", clock.passed())
    except (OSError, http.client.HTTPException) as problem:
        return Answer(0, b"", _reason(problem), clock.passed())
    finally:
        connection.close()


def _open(
    asked: _Asked, clock: _Clock
) -> Tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    parts = urllib.parse.urlsplit(asked.url)
    at = parts.hostname or "", parts.port or (443 if asked.tls else 80)
    connection = (http.client.HTTPSConnection(*at, timeout=clock.timeout_s, context=asked.tls)
                  if asked.tls else _Connection(*at, clock))
    body = None if asked.payload is None else json.dumps(asked.payload).encode()
    headers = {"Connection": "close", **(asked.headers or {})}
    if body is not None:
        headers["Content-Type"] = "application/json"
    try:
        connection.request(asked.method, parts.path or "/", body, headers)
        return connection, connection.getresponse()
    except BaseException:
        connection.close()
        raise


def _pieces(response: http.client.HTTPResponse, clock: _Clock) -> Iterator[bytes]:
    """The body as it comes.

    A server that sends a byte now and then is never silent for long, so the whole is bounded here.

    :raises ConnectionError: when it is too long, or takes too long.
    """
    taken = 0
    while True:
        try:
            piece = response.read1(65536)
        except (TimeoutError, socket.timeout) as problem:
            raise (_goes_on(clock) if taken else Late("timed out")) from problem
        if not piece:
            return
        taken += len(piece)
        if taken > MAX_BODY:
            raise ConnectionError("an answer of over %d bytes" % MAX_BODY)
        if clock.is_over():
            raise _goes_on(clock)
        yield piece


def _goes_on(clock: _Clock) -> Late:
    return Late("an answer that goes on past %g s" % clock.limit_s)


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their ends, each as soon as it is whole."""
    begun = b""
    for piece in pieces:
        *whole, begun = (begun + piece).split(b"\n")
        yield from (line.rstrip() for line in whole)
    yield begun.rstrip()


def _broken(problem: BaseException) -> ConnectionError:
    late = isinstance(problem, (Late, TimeoutError, socket.timeout))
    return (Late if late else ConnectionError)(_reason(problem))


def _reason(problem: BaseException) -> str:
    return str(problem) or type(problem).__name__
