# SPDX-License-Identifier: Apache-2.0
"""An OpenAI-compatible server without a model: right answers, except where a fault is scripted.

In a test: ``with serving(faults={"completions": status(500)}) as url``. As an engine under a
service manager: ``python fake_engine.py --port 8000 --fault garbage``.

A fault is ``fault(handler, right)`` for one of the routes ``health``, ``models``,
``completions``, ``chat`` and ``stream``; ``right`` is what would have been answered: a dict, for
``stream`` the list of events. It returns what to answer instead, or ``None`` when it has written
the answer itself.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import http.server
import json
import signal
import subprocess
import sys
import threading
import time

ROUTES = {"health", "models", "completions", "chat", "stream"}
MODEL = "fake"
PROMPT = "known prompt"
MESSAGES = [{"role": "user", "content": "known question"}]


def words(first, count):
    """What the fake model says: as many words as it may."""
    return "".join(" %s%d" % (first, number) for number in range(count))


ORACLE = {
    "prompt": PROMPT, "max_tokens": 8, "completion": words("word", 8),
    "chat_messages": MESSAGES, "chat_completion": words("chat", 8),
}


def status(code):
    """Answer with this status, and no body that means anything."""
    return lambda handler, right: handler.send(code, b"scripted fault")


def body(content):
    """Answer 200 with these bytes."""
    return lambda handler, right: handler.send(200, content)


def edited(edit):
    """Answer what ``edit`` made of a copy of the right answer."""
    def fault(handler, right):
        changed = copy.deepcopy(right)
        edit(changed)
        return changed

    return fault


def hangs(handler, right):
    """No answer until the server goes."""
    handler.server.closing.wait(60)


def endless(handler, right):
    """A body that never ends, as fast as it is read."""
    handler.head(200)
    while not handler.server.closing.is_set():
        handler.wfile.write(b"data: " + b"x" * 65536)


def trickles(handler, right):
    """A body that never ends and comes drop by drop, so that no single read is slow."""
    handler.head(200)
    while not handler.server.closing.wait(0.05):
        handler.wfile.write(b" ")


class Engine(http.server.ThreadingHTTPServer):
    """The server; ``asked`` keeps every request's path and payload."""

    daemon_threads = True

    def __init__(self, port=0, faults=None, model=MODEL):
        self.faults, self.model, self.asked = faults or {}, model, []
        assert set(self.faults) <= ROUTES, "a fault that nobody would meet"
        self.closing = threading.Event()
        super().__init__(("127.0.0.1", port), Handler)

    def handle_error(self, request, client_address):
        """A client that goes away in the middle is part of the tests."""


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    def do_GET(self):  # noqa: N802
        route = {"/health": "health", "/v1/models": "models"}.get(self.path)
        right = {"health": {"status": "ok"},
                 "models": {"object": "list", "data": [{"id": self.server.model}]}}
        self._answer(route, right.get(route), None)

    def do_POST(self):  # noqa: N802
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        count = asked["max_tokens"]
        usage = {"prompt_tokens": 3, "completion_tokens": count, "total_tokens": 3 + count}
        if self.path == "/v1/chat/completions":
            message = {"role": "assistant", "content": words("chat", count)}
            self._answer("chat", {"choices": [{"message": message}], "usage": usage}, asked)
        elif self.path != "/v1/completions":
            self._answer(None, None, asked)
        elif asked.get("stream"):
            events = [{"choices": [{"text": " word%d" % number}]} for number in range(count)]
            self._answer("stream", events + [{"choices": [], "usage": usage}], asked)
        else:
            right = {"choices": [{"text": words("word", count)}], "usage": usage}
            self._answer("completions", right, asked)

    def _answer(self, route, right, asked):
        self.server.asked.append((self.path, asked))
        if route is None:
            self.send(404, b"{}")
            return
        answer = self.server.faults.get(route, lambda handler, right: right)(self, right)
        if isinstance(answer, list):
            lines = ["data: %s\n\n" % json.dumps(event) for event in answer]
            self.send(200, "".join(lines + ["data: [DONE]\n\n"]).encode())
        elif answer is not None:
            self.send(200, json.dumps(answer).encode())

    def head(self, code, *headers):
        """Status and headers; the body ends where the connection does."""
        self.send_response(code)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()

    def send(self, code, content):
        """A whole answer."""
        self.head(code)
        self.wfile.write(content)

    def log_message(self, format, *args):  # noqa: A002 - the standard library's name
        """Quiet."""


@contextlib.contextmanager
def serving(faults=None, model=MODEL, port=0):
    """A server in a thread; gives its URL, and the server as ``url.engine``."""
    engine = Engine(port, faults, model)
    thread = threading.Thread(target=engine.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        url = Url("http://127.0.0.1:%d" % engine.server_address[1])
        url.engine = engine
        yield url
    finally:
        engine.closing.set()
        engine.shutdown()
        engine.server_close()
        thread.join(10)


class Url(str):
    """A URL that knows its server."""


# Faults of the executable, by the name that --fault takes.
FAULTS = {
    "none": {},
    "garbage": {"completions": body(b"\x00 not JSON"), "stream": body(b"\x00 not a stream")},
    "loading": {"health": status(503)},
}


def main():
    """Serve in the foreground until SIGTERM, as an engine does."""
    flags = argparse.ArgumentParser()
    flags.add_argument("--port", type=int, required=True)
    flags.add_argument("--model", default=MODEL)
    flags.add_argument("--fault", choices=sorted(FAULTS), default="none")
    flags.add_argument("--ready-after", type=float, default=0, help="seconds of loading")
    flags.add_argument("--child", action="store_true", help="have a child, as vLLM has")
    asked = flags.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if asked.child:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("fake engine: serves on port %d" % asked.port, flush=True)
    with serving(FAULTS[asked.fault], asked.model, asked.port) as url:
        if asked.ready_after:
            url.engine.faults = FAULTS["loading"]
            time.sleep(asked.ready_after)
            url.engine.faults = FAULTS[asked.fault]
        while True:
            time.sleep(60)


if __name__ == "__main__":
    main()
