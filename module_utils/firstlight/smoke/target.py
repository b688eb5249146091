# SPDX-License-Identifier: Apache-2.0
"""An endpoint to prove, and how it is asked."""

from __future__ import annotations

import time
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Set, Tuple

from ..http_client import Answer, Late, get, post, post_stream
from .progress import Patience

Said = Dict[str, Any]
"""An answer of the API: an object with at least one choice."""

PROMPT = "Once upon a time there was a small lighthouse that"
MESSAGES = [{"role": "user", "content": "Tell me in English what a lighthouse is for."}]
TOKENS = 48
"""Asked for of a model whose answer is not known; enough to be judged."""
SPEED_TOKENS = 64
"""Of the stream by which speed is measured."""
SHARE = 4
"""An answer takes this part of the context at most."""
PATIENCE = 3
"""Times of a request that a busy server gets in addition, over a whole proof."""
STREAMS = 4
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
BROKEN = "\ufffd"
"""What stands for bytes that are no character; the limit of tokens may cut one at the end."""


class Wrong(Exception):
    """A check found something other than it wanted.

    :param remedy: what to change, where there is more to say than that it must not be used.
    """

    def __init__(self, found: str, wanted: str, evidence: str = "", severity: str = "fatal",
                 remedy: str = "") -> None:
        super().__init__(found)
        self.found, self.wanted, self.evidence = found, wanted, evidence
        self.severity, self.remedy = severity, remedy


class Silent(Wrong):
    """No HTTP answer at all, or none in its time: further checks would only wait again."""


class Streamed(NamedTuple):
    """A streamed answer.

    :param text: what its events say together.
    :param times: seconds since the request, for each event with a token.
    :param usage: as the last event that has it tells it.
    :param finish: ``finish_reason``.
    :param started: on the clock of ``time.monotonic``.
    """

    text: str
    times: List[float]
    usage: Any
    finish: Any
    started: float

    def counted(self) -> int:
        """Completed tokens; events, where the server does not count or counts nonsense."""
        count = self.usage.get("completion_tokens") if isinstance(self.usage, dict) else None
        return count if type(count) is int and 1 <= count <= SPEED_TOKENS else len(self.times)


class Target:
    """An endpoint to prove.

    :param url: base URL, e.g. ``http://127.0.0.1:8000``.
    :param model: the model name that requests carry.
    :param oracle: what the canary must answer; ``None`` for any other model.
    :param chat: whether the model has a chat template, so that chat must work.
    :param timeout_s: seconds allowed for one request.
    :param name: of the endpoint, for messages.
    :param context: tokens of a request and its answer; ``None`` where it is not known.
    :param claims: what the engine says it does, of :data:`.planning.proof.CLAIMS`.
    :param keyed: ``{url, certificate}``: where clients need a key, and the file by which the server
        is known there. Without a URL where none is needed.
    :param streams: how many requests are sent at once; below 2, none are.
    :param floors: ``{first_token_s, tokens_per_second, tokens_per_second_all}``, each optional.
    """

    def __init__(
        self,
        url: str,
        model: str,
        oracle: Optional[Dict[str, Any]] = None,
        chat: bool = True,
        timeout_s: float = 120.0,
        name: str = "",
        context: Optional[int] = None,
        claims: Iterable[str] = (),
        keyed: Optional[Dict[str, str]] = None,
        streams: int = STREAMS,
        floors: Optional[Dict[str, float]] = None,
    ) -> None:
        self.url, self.model, self.oracle = url.rstrip("/"), model, oracle
        self.chat, self.timeout_s, self.name = chat, timeout_s, name
        self.context, self.claims = context, set(claims)
        self.keyed = keyed if keyed and keyed.get("url") else {}
        self.streams, self.floors = streams, floors or {}
        self.figures: Dict[str, Any] = {}
        self.said: Dict[str, Any] = {}
        """Answers that further checks compare with, by the check that asked for them."""
        self.failed: Set[str] = set()
        """Checks that found something, so that no other says it again."""
        self.began = time.monotonic()
        self.patience = Patience(self.url, timeout_s, PATIENCE)

    def figure(self, key: str, value: float) -> None:
        """Note a figure; what was too short to be measured is not nothing."""
        self.figures[key] = max(round(value, 4), 0.0001)

    def since(self, key: str) -> None:
        """Note the seconds since the proof began."""
        self.figure(key, time.monotonic() - self.began)

    # What is asked.

    def limited(self, tokens: int) -> int:
        """So many tokens, or what a small context has room for."""
        return min(tokens, max(1, self.context // SHARE)) if self.context else tokens

    @property
    def prompt(self) -> str:
        """What the model is to go on with."""
        return str(self.oracle["prompt"]) if self.oracle else PROMPT

    @property
    def messages(self) -> List[Dict[str, str]]:
        """What the model is asked in chat."""
        return list(self.oracle["chat_messages"]) if self.oracle else MESSAGES

    @property
    def tokens(self) -> int:
        """How many tokens an answer has at most."""
        return int(self.oracle["max_tokens"]) if self.oracle else self.limited(TOKENS)

    @property
    def speed_tokens(self) -> int:
        """How many tokens the stream has at most that speed is measured by."""
        return max(self.tokens, self.limited(SPEED_TOKENS))

    # How.

    def get(self, path: str, timeout_s: Optional[float] = None) -> Answer:
        """GET."""
        return get(self.url + path, timeout_s or self.timeout_s)

    def complete(self, prompt: Any, max_tokens: int, errors: str = "strict") -> Said:
        """A greedy completion, as the API answers it.

        :param prompt: text, or token ids.
        :param errors: what becomes of bytes that are no UTF-8.
        :raises Wrong: for anything but a 200 with one choice.
        """
        return self.choice(COMPLETIONS, self.post(
            COMPLETIONS, {"prompt": prompt, "max_tokens": max_tokens}), errors)

    def talk(self, messages: List[Dict[str, str]], max_tokens: int, **more: Any) -> Said:
        """A greedy chat answer, as the API answers it. Raises like :meth:`complete`."""
        return self.choice(CHAT, self.post(
            CHAT, dict(more, messages=messages, max_tokens=max_tokens)))

    def post(self, path: str, payload: Dict[str, Any]) -> Answer:
        """Any greedy request.

        :raises Silent: there is no answer.
        """
        answer = post(self.url + path, self._asked(payload), self.timeout_s, more=self.patience)
        if not answer.status:
            raise self._silent(answer.error, path, answer.seconds >= self.timeout_s)
        return answer

    def choice(self, path: str, answer: Answer, errors: str = "strict") -> Said:
        """The answer as an object with a choice. Raises like :meth:`complete`."""
        broken = answer.not_utf8() if errors == "strict" else ""
        if answer.status == 200 and broken:
            raise Wrong(broken, "an answer in UTF-8", "POST " + path)
        said = answer.json(errors) if answer.status == 200 else None
        if not isinstance(said, dict) or not said.get("choices"):
            raise Wrong(answer.brief(), "HTTP 200 with one choice", "POST " + path)
        return said

    def stream(self, path: str, payload: Dict[str, Any]) -> Streamed:
        """A greedy answer, streamed to its end.

        :raises Silent: it does not come to its end in its time.
        :raises Wrong: it is none, or has no token.
        """
        evidence = "POST %s, streamed" % path
        asked = self._asked(dict(payload, stream=True, stream_options={"include_usage": True}))
        started = time.monotonic()
        times: List[float] = []
        parts: List[str] = []
        usage = finish = None
        try:
            for elapsed, event in post_stream(self.url + path, asked, self.timeout_s,
                                              self.patience):
                if not isinstance(event, dict):
                    raise Wrong(repr(event)[:200], "JSON objects", evidence)
                for choice in event.get("choices") or []:
                    part, thought = _piece(choice)
                    if part or thought:
                        times.append(elapsed)
                    parts.append(part)
                    finish = choice.get("finish_reason") or finish
                usage = event.get("usage") or usage
        except Late as problem:
            raise self._silent(str(problem), path, True) from problem
        except ConnectionError as problem:
            raise Wrong(str(problem), "a stream that ends", evidence) from problem
        if not times:
            raise Wrong("a stream without text", "text", evidence)
        return Streamed("".join(parts), times, usage, finish, started)

    def _asked(self, payload: Dict[str, Any]) -> Dict[str, Any]:
        return dict(payload, model=self.model, temperature=0)

    def _silent(self, error: str, path: str, late: bool) -> Silent:
        """What is found where a request was not answered, in its time or at all."""
        if not late:
            return Silent(error, "an answer", "POST " + path)
        found = "%s; %s" % (error, self.patience.said)
        if not self.patience.works:
            return Silent(found, "an answer within %g s" % self.timeout_s, "POST " + path)
        return Silent(
            found, "an answer within %g s, and %d times that in all for a server that works" % (
                self.timeout_s, PATIENCE), "POST " + path, "error",
            "ask again when it has less to do, or allow a request more time "
            "(inference_endpoint_request_timeout_s, endpoint_smoke_timeout_s)")


def of_request(request: Dict[str, Any], timeout_s: float) -> Target:
    """The target of a request of :func:`.planning.proof.smoke_request`.

    :param timeout_s: seconds allowed for one request to the endpoint.
    """
    return Target(
        request["url"], request["model"], request.get("oracle"), request.get("chat", True),
        timeout_s, request.get("name") or "", request.get("context"),
        request.get("claims") or (), request.get("keyed"), request.get("streams", STREAMS),
        request.get("floors"))


def text_of(said: Said) -> str:
    """The text of a completion."""
    return str(said["choices"][0].get("text") or "")


def message_of(said: Said) -> str:
    """The text of a chat answer."""
    return str(said["choices"][0]["message"].get("content") or "")


def thought_of(message: Dict[str, Any]) -> str:
    """What a model thought before it answered, as far as the engine tells it."""
    # llama.cpp and older vLLM have the first name, newer vLLM the second.
    return str(message.get("reasoning_content") or message.get("reasoning") or "")


def _piece(choice: Dict[str, Any]) -> Tuple[str, str]:
    """The text, and the thought, of one event."""
    delta = choice.get("delta")
    if delta is None:
        return str(choice.get("text") or ""), ""
    return str(delta.get("content") or ""), thought_of(delta)
