# SPDX-License-Identifier: Apache-2.0
"""HTTP to an engine, on the standard library.

Proxies of the environment are never used: an endpoint is on this host. Answers are untrusted:
sizes and times are bounded, and whatever goes wrong is an answer with ``status`` 0.
"""

from __future__ import annotations

import http.client
import json
import ssl
import time
import urllib.parse
from typing import Any, Dict, Iterable, Iterator, NamedTuple, Optional, Tuple

MAX_BODY = 16 * 2**20


class Answer(NamedTuple):
    """``status`` is 0 when there was no HTTP answer; ``error`` then says why."""

    status: int
    body: bytes
    error: str
    seconds: float

    def json(self) -> Any:
        """The body as JSON, or ``None`` when it is not."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    def brief(self) -> str:
        """One line for an error message."""
        if not self.status:
            return self.error
        return "HTTP %d: %s" % (self.status, self.body[:300].decode("utf-8", "replace").strip())


def get(url: str, timeout_s: float = 10.0, tls: Optional[ssl.SSLContext] = None) -> Answer:
    """GET, for the whole body.

    :param tls: for a URL of https, by what its server is known.
    """
    return _whole("GET", url, None, timeout_s, tls)


def post(url: str, payload: Dict[str, Any], timeout_s: float = 60.0) -> Answer:
    """POST a JSON object, for the whole body."""
    return _whole("POST", url, payload, timeout_s)


def post_stream(
    url: str, payload: Dict[str, Any], timeout_s: float = 60.0
) -> Iterator[Tuple[float, Any]]:
    """POST and yield ``(seconds since the request, event)`` for each server-sent JSON event.

    :raises ConnectionError: for no answer, another status than 200, a broken or endless stream.
    """
    started = time.monotonic()
    try:
        connection, response = _open("POST", url, payload, timeout_s)
    except (OSError, ValueError, http.client.HTTPException) as problem:
        raise ConnectionError(_reason(problem)) from problem
    try:
        if response.status != 200:
            body = b"".join(_pieces(response, started, timeout_s))
            raise ConnectionError(Answer(response.status, body, "", 0.0).brief())
        for line in _lines(_pieces(response, started, timeout_s)):
            if not line.startswith(b"data:"):
                continue
            # The space after the colon may be missing.
            event = line[5:].lstrip()
            if event == b"[DONE]":
                return
            yield time.monotonic() - started, json.loads(event)
        raise ConnectionError("the stream broke off before its end")
    except (OSError, http.client.HTTPException, ValueError, RecursionError) as problem:
        raise ConnectionError(_reason(problem)) from problem
    finally:
        connection.close()


def _whole(method: str, url: str, payload: Optional[Dict[str, Any]], timeout_s: float,
           tls: Optional[ssl.SSLContext] = None) -> Answer:
    started = time.monotonic()
    try:
        connection, response = _open(method, url, payload, timeout_s, tls)
    except (OSError, ValueError, http.client.HTTPException) as problem:
        return Answer(0, b"", _reason(problem), time.monotonic() - started)
    try:
        body = b"".join(_pieces(response, started, timeout_s))
        return Answer(response.status, body, "", time.monotonic() - started)
    except (OSError, http.client.HTTPException) as problem:
        return Answer(0, b"", _reason(problem), time.monotonic() - started)
    finally:
        connection.close()


def _open(
    method: str, url: str, payload: Optional[Dict[str, Any]], timeout_s: float,
    tls: Optional[ssl.SSLContext] = None,
) -> Tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    parts = urllib.parse.urlsplit(url)
    at = parts.hostname or "", parts.port or (443 if tls else 80)
    connection = (http.client.HTTPSConnection(*at, timeout=timeout_s, context=tls) if tls
                  else http.client.HTTPConnection(*at, timeout=timeout_s))
    body = None if payload is None else json.dumps(payload).encode()
    headers = {"Connection": "close"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    try:
        connection.request(method, parts.path or "/", body, headers)
        return connection, connection.getresponse()
    except BaseException:
        connection.close()
        raise


def _pieces(
    response: http.client.HTTPResponse, started: float, timeout_s: float
) -> Iterator[bytes]:
    """The body as it comes.

    The connection's own limit is for one read; a server that sends a byte now and then never
    meets it, so the whole is bounded here.

    :raises ConnectionError: when it is too long, or takes too long.
    """
    taken = 0
    while True:
        piece = response.read1(65536)
        if not piece:
            return
        taken += len(piece)
        if taken > MAX_BODY:
            raise ConnectionError("an answer of over %d bytes" % MAX_BODY)
        if time.monotonic() - started > timeout_s:
            raise ConnectionError("an answer that goes on past %g s" % timeout_s)
        yield piece


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their ends, each as soon as it is whole."""
    begun = b""
    for piece in pieces:
        *whole, begun = (begun + piece).split(b"\n")
        yield from (line.rstrip() for line in whole)
    yield begun.rstrip()


def _reason(problem: BaseException) -> str:
    return str(problem) or type(problem).__name__
