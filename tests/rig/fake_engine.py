# SPDX-License-Identifier: Apache-2.0
"""An OpenAI-compatible server without a model: right answers, except where a fault is scripted.

In a test: ``with serving(faults={"completions": status(500)}) as url``. As an engine under a
service manager: ``python fake_engine.py --port 8000 --fault garbage``; ``--list`` names the faults,
with the check of a proof that each is for.

A fault is ``fault(handler, right)`` for one of the ``ROUTES``; ``right`` is what would have been
answered: a dict, for streams the list of events, for ``metrics`` a text, for ``keys`` whether the
request is let in. It returns what to answer instead, or ``None`` when it has written the answer
itself.
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

ROUTES = {
    "health", "models", "metrics", "slots", "props", "keys", "completions", "chat", "stream",
    "chat_stream", "structured", "tool", "too_long",
}
MODEL = "fake"
CONTEXT = 512
PROMPT = "known prompt"
MESSAGES = [{"role": "user", "content": "known question"}]
# What it says: English that no judge takes for garbage.
TEXTS = {
    "word": (
        "stood on a rock at the end of the bay, and every evening its keeper climbed the narrow"
        " stairs to light the lamp. One winter night a storm came in from the sea, and the wind"
        " broke the largest window of the tower. He held his coat before the flame until the"
        " morning, so that the boats which were still out could find their way home between the"
        " black cliffs and the sand."),
    "chat": (
        "A lighthouse shows sailors where they are and warns them of rocks, shallow water and the"
        " coast. Its light can be seen from many miles away, and each one flashes in its own"
        " rhythm, so that a captain who counts the seconds knows which tower it is. In fog a horn"
        " does the same for the ears. Most of them are run by machines today, but somebody has to"
        " visit them and clean the glass."),
}


def words(kind, count):
    """What the fake model says: as many words as it may."""
    said = TEXTS[kind].split()
    return "".join(" " + said[number % len(said)] for number in range(count))


ORACLE = {
    "prompt": PROMPT, "max_tokens": 8, "completion": words("word", 8),
    "chat_messages": MESSAGES, "chat_completion": words("chat", 8),
}


# Faults.


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


def put(*path, value):
    """Put a value deep into the right answer."""
    def edit(answer):
        for step in path[:-1]:
            answer = answer[step]
        answer[path[-1]] = value

    return edited(edit)


def hangs(handler, right):
    """No answer until the server goes."""
    handler.server.closing.wait(600)


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


def loading(handler, right):
    """What llama.cpp answers while it loads."""
    handler.send(503, b'{"error": {"code": 503, "message": "Loading model", '
                      b'"type": "unavailable_error"}}')


def garbage(handler, right):
    """What a model without its weights says."""
    if isinstance(right, list):
        return [_said(event, "!") if event["choices"] else event for event in right]
    return _said(right, "!" * right["usage"]["completion_tokens"])


def _said(answer, text):
    """An answer, or an event, with another text."""
    changed = copy.deepcopy(answer)
    choice = changed["choices"][0]
    if "text" in choice:
        choice["text"] = text
    else:
        choice.get("message", choice.get("delta"))["content"] = text
    return changed


def not_utf8(handler, right):
    """Bytes of another encoding in the text."""
    text = json.dumps(_said(right, "caf@ cr@me")).encode()
    handler.send(200, text.replace(b"@", b"\xe9"))


def differs(handler, right):
    """Of the answers of more than a token, none but the first is right."""
    if right["usage"]["completion_tokens"] < 2:
        return right
    handler.server.answered += 1
    text = words("word", right["usage"]["completion_tokens"])
    return _said(right, text + " again" * (handler.server.answered > 1))


def skips(handler, right):
    """A stream without its third event."""
    return right[:2] + right[3:]


def pauses(handler, right):
    """A stream that comes slowly."""
    handler.head(200)
    for event in right:
        handler.wfile.write(_event(event))
        time.sleep(0.02)
    handler.wfile.write(b"data: [DONE]\n\n")


def miscounts(handler, right):
    """A total that is no sum."""
    changed = copy.deepcopy(right)
    usage = (changed[-1] if isinstance(changed, list) else changed)["usage"]
    usage["total_tokens"] += 1
    return changed


def in_company(fault):
    """A fault of requests that come while another of their kind is there."""
    def decide(handler, right):
        server = handler.server
        with server.company:
            server.together += 1
            server.company.notify_all()
            # Who is alone waits a moment for company: it may have been sent at the same time.
            met = server.company.wait_for(lambda: server.together > 1, timeout=0.3)
        try:
            return fault(handler, right) if met else right
        finally:
            with server.company:
                server.together -= 1

    return decide


def mixes_up(handler, right):
    """The text of another request."""
    kind = "word" if handler.path.startswith("/v1/chat") else "chat"
    others = words(kind, len(right)).split(" ")[1:]
    return [_said(event, " " + other) if event["choices"] else event
            for event, other in zip(right, others)]


def accepts(handler, right):
    """A prompt cut down to what there is room for, in silence."""
    return {"choices": [{"text": words("word", 1), "finish_reason": "length"}],
            "usage": {"prompt_tokens": CONTEXT - 1, "completion_tokens": 1,
                      "total_tokens": CONTEXT}}


def dies(handler, right):
    """The right answer, and no other after it."""
    handler.server.faults = dict(handler.server.faults, health=status(500))
    handler.send(400, json.dumps(right).encode())


def busy(handler, right):
    """An answer once it was looked three times whether there is work."""
    while handler.server.looked < 3 and not handler.server.closing.wait(0.01):
        pass
    return right


def works(handler, right):
    """A server that counts work at each look."""
    return right.replace(" 0", " %d" % handler.server.looked)


def plain(handler, right):
    """Words, where something else was asked for."""
    return {"choices": [{"message": {"role": "assistant", "content": words("chat", 4)},
                         "finish_reason": "stop"}], "usage": right["usage"]}


# By the name that --fault takes: what is broken, and which check of a proof finds that.
TABLE = {
    "none": ({}, ""),
    "loading": ({"health": loading}, "health"),
    "other-model": ({"models": put("data", 0, "id", value="another")}, "model-listed"),
    "early": (dict.fromkeys(("completions", "chat", "stream", "chat_stream"), loading),
              "first-token"),
    "hangs": ({"completions": hangs}, "first-token"),
    "trickles": ({"completions": trickles}, "first-token"),
    "endless": ({"completions": endless}, "first-token"),
    "stuck": ({"completions": hangs, "metrics": lambda handler, right: right}, "first-token"),
    "busy": ({"completions": busy, "metrics": works}, ""),
    "busy-for-ever": ({"completions": hangs, "metrics": works}, "first-token"),
    "garbage": ({"completions": garbage, "stream": garbage}, "completion"),
    "not-utf8": ({"completions": not_utf8}, "completion"),
    "empty": ({"completions": put("choices", 0, "text", value="")}, "completion"),
    "differs": ({"completions": differs}, "repeats"),
    "streams-garbage": ({"stream": garbage}, "streaming"),
    "streams-otherwise": ({"stream": skips}, "streaming"),
    "streams-nothing": ({"stream": body(b"\x00 not a stream")}, "streaming"),
    "streams-without-end": ({"stream": trickles}, "streaming"),
    "chats-garbage": ({"chat": garbage, "chat_stream": garbage}, "chat"),
    "chat-streams-otherwise": ({"chat_stream": skips}, "chat-streaming"),
    "miscounts": ({"completions": miscounts}, "usage"),
    "miscounts-streams": ({"stream": miscounts}, "usage"),
    "unstructured": ({"structured": plain}, "structured-output"),
    "no-tool-call": ({"tool": plain}, "tool-call"),
    "accepts-too-long": ({"too_long": accepts}, "too-long"),
    "fails-too-long": ({"too_long": status(500)}, "too-long"),
    "dies-too-long": ({"too_long": dies}, "too-long"),
    "ignores-keys": ({"keys": lambda handler, right: True}, "keys"),
    "hangs-parallel": ({"stream": in_company(hangs)}, "parallel"),
    "mixes-up-parallel": (dict.fromkeys(("stream", "chat_stream"), in_company(mixes_up)),
                          "parallel"),
    "slow": ({"stream": pauses}, "speed"),
}
FAULTS = {name: faults for name, (faults, _) in TABLE.items()}


# The server.


class Engine(http.server.ThreadingHTTPServer):
    """The server; ``asked`` keeps every request's path and payload."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port=0, faults=None, model=MODEL, keys=()):
        self.faults, self.model, self.keys, self.asked = faults or {}, model, keys, []
        assert set(self.faults) <= ROUTES, "a fault that nobody would meet"
        self.closing = threading.Event()
        # What faults keep in mind.
        self.company = threading.Condition()
        self.together = self.looked = self.answered = 0
        super().__init__(("127.0.0.1", port), Handler)

    def handle_error(self, request, client_address):
        """A client that goes away in the middle is part of the tests."""


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    def do_GET(self):  # noqa: N802
        route = {"/health": "health", "/v1/models": "models", "/metrics": "metrics",
                 "/slots": "slots", "/props": "props"}.get(self.path)
        right = {"health": {"status": "ok"},
                 "models": {"object": "list", "data": [{"id": self.server.model}]},
                 "metrics": "# TYPE llamacpp:n_decode_total counter\nllamacpp:n_decode_total 0\n",
                 "props": {"chat_template_caps": {"supports_tool_calls": True}}}
        if route in ("metrics", "slots"):
            self.server.looked += 1
            # As llama.cpp: only who asks for it has it.
            route = route if route in self.server.faults else None
        self._answer(route, right.get(route), None)

    def do_POST(self):  # noqa: N802
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        count, chat = asked["max_tokens"], self.path == "/v1/chat/completions"
        prompt = len(asked["prompt"]) if isinstance(asked.get("prompt"), list) else 3
        usage = {"prompt_tokens": prompt, "completion_tokens": count,
                 "total_tokens": prompt + count}
        if not chat and self.path != "/v1/completions":
            self._answer(None, None, asked)
        elif prompt + count > CONTEXT:
            self._answer("too_long", {"error": {
                "code": 400, "type": "exceed_context_size_error",
                "message": "request (%d tokens) exceeds the available context size (%d tokens), "
                           "try increasing it" % (prompt, CONTEXT)}}, asked, 400)
        elif asked.get("stream"):
            self._answer("chat_stream" if chat else "stream", _events(chat, count, usage), asked)
        elif chat:
            route, message = _message(asked, count)
            self._answer(route, {"choices": [{
                "message": dict({"role": "assistant"}, **message),
                "finish_reason": "length" if route == "chat" else "stop"}], "usage": usage}, asked)
        else:
            self._answer("completions", {"choices": [{
                "text": words("word", count), "finish_reason": "length"}], "usage": usage}, asked)

    def _answer(self, route, right, asked, code=200):
        self.server.asked.append((self.path, asked))
        faults = self.server.faults
        if route is None:
            self.send(404, b"{}")
            return
        if self.path.startswith("/v1/") and self.server.keys and not self._let_in():
            self.send(401, b'{"error": {"code": "invalid_api_key"}}')
            return
        answer = faults[route](self, right) if route in faults else right
        if isinstance(answer, list):
            self.send(200, b"".join(map(_event, answer)) + b"data: [DONE]\n\n")
        elif isinstance(answer, str):
            self.send(200, answer.encode())
        elif answer is not None:
            self.send(code if answer is right else 200, json.dumps(answer).encode())

    def _let_in(self):
        given = self.headers.get("Authorization", "")
        known = given in ["Bearer " + key for key in self.server.keys]
        fault = self.server.faults.get("keys")
        return fault(self, known) if fault else known

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


def _message(asked, count):
    """What an answer in chat is by, and what it says."""
    if asked.get("response_format"):
        chosen = asked["response_format"]["json_schema"]["schema"]["enum"][0]
        return "structured", {"content": json.dumps(chosen)}
    if asked.get("tools"):
        tool = asked["tools"][0]["function"]
        values = {key: one["enum"][0] for key, one in tool["parameters"]["properties"].items()}
        return "tool", {"content": None, "tool_calls": [{"type": "function", "function": {
            "name": tool["name"], "arguments": json.dumps(values)}}]}
    return "chat", {"content": words("chat", count)}


def _events(chat, count, usage):
    said = [" " + one for one in words("chat" if chat else "word", count).split(" ")[1:]]
    choices = [{"delta": {"content": one}} if chat else {"text": one} for one in said]
    choices[-1]["finish_reason"] = "length"
    return [{"choices": [one]} for one in choices] + [{"choices": [], "usage": usage}]


def _event(event):
    return b"data: %s\n\n" % json.dumps(event).encode()


@contextlib.contextmanager
def serving(faults=None, model=MODEL, port=0, keys=()):
    """A server in a thread; gives its URL, and the server as ``url.engine``."""
    engine = Engine(port, faults, model, keys)
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


class List(argparse.Action):
    """Print the faults and the checks that are for them."""

    def __call__(self, parser, *_):
        for name, (_, check) in TABLE.items():
            print("%-24s %s" % (name, check))
        parser.exit()


def main():
    """Serve in the foreground until SIGTERM, as an engine does."""
    flags = argparse.ArgumentParser()
    flags.add_argument("--port", type=int, required=True)
    flags.add_argument("--model", default=MODEL)
    flags.add_argument("--fault", choices=sorted(FAULTS), default="none")
    flags.add_argument("--key", action="append", default=[], help="who is let in")
    flags.add_argument("--ready-after", type=float, default=0, help="seconds of loading")
    flags.add_argument("--child", action="store_true", help="have a child, as vLLM has")
    flags.add_argument("--list", action=List, nargs=0, help="print the faults")
    asked = flags.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if asked.child:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("fake engine: serves on port %d" % asked.port, flush=True)
    with serving(FAULTS[asked.fault], asked.model, asked.port, asked.key) as url:
        if asked.ready_after:
            url.engine.faults = FAULTS["loading"]
            time.sleep(asked.ready_after)
            url.engine.faults = FAULTS[asked.fault]
        while True:
            time.sleep(60)


if __name__ == "__main__":
    main()
