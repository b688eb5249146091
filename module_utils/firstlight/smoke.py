# SPDX-License-Identifier: Apache-2.0
"""Proof of an endpoint: real tokens through the real API, judged.

One function, :func:`prove`, used by ``smoke_inference`` (which reports) and by
``endpoint_switch`` (which keeps or puts back). A check that fails is a finding; the checks go on,
so one run says everything that is wrong.
"""

from __future__ import annotations

import time
from typing import Any, Callable, Dict, List, Optional

from .findings import Finding, blocking, finding
from .http_client import get, post, post_stream

Verdict = Dict[str, Any]
"""``{url, passed, checks: [{id, passed, seconds}], figures, findings}``"""

PROMPT = "Once upon a time there was a small lighthouse that"
MESSAGES = [{"role": "user", "content": "Say hello."}]
SPEED_TOKENS = 64


class Target:
    """An endpoint to prove.

    :param url: base URL, e.g. ``http://127.0.0.1:8000``.
    :param model: the model name that requests carry.
    :param oracle: what the canary must answer; ``None`` for any other model.
    :param chat: whether the model has a chat template, so that chat must work.
    :param timeout_s: seconds allowed for one request.
    """

    def __init__(
        self,
        url: str,
        model: str,
        oracle: Optional[Dict[str, Any]] = None,
        chat: bool = True,
        timeout_s: float = 120.0,
    ) -> None:
        self.url, self.model, self.oracle = url.rstrip("/"), model, oracle
        self.chat, self.timeout_s = chat, timeout_s
        self.figures: Dict[str, Any] = {}

    def complete(self, prompt: str, max_tokens: int, **more: Any) -> Dict[str, Any]:
        """A greedy completion, as the API answers it.

        :raises Wrong: for anything but a 200 with one choice and its usage.
        """
        return self._ask("/v1/completions", dict(more, prompt=prompt, max_tokens=max_tokens))

    def talk(self, messages: List[Dict[str, str]], max_tokens: int) -> Dict[str, Any]:
        """A greedy chat answer, as the API answers it. Raises like :meth:`complete`."""
        return self._ask("/v1/chat/completions", {"messages": messages, "max_tokens": max_tokens})

    def _ask(self, path: str, payload: Dict[str, Any]) -> Dict[str, Any]:
        payload = dict(payload, model=self.model, temperature=0)
        answer = post(self.url + path, payload, self.timeout_s)
        if not answer.status:
            raise Unreachable(answer.error, "an answer", "POST " + path)
        said = answer.json() if answer.status == 200 else None
        if not isinstance(said, dict) or not said.get("choices"):
            raise Wrong(answer.brief(), "HTTP 200 with one choice", "POST " + path)
        return said


class Wrong(Exception):
    """A check found something other than it wanted."""

    def __init__(self, found: str, wanted: str, evidence: str = "") -> None:
        super().__init__(found)
        self.found, self.wanted, self.evidence = found, wanted, evidence


class Unreachable(Wrong):
    """No HTTP answer at all: further checks would only wait again."""


def check_model_listed(target: Target) -> None:
    """``/v1/models`` lists the name that requests will carry."""
    answer = get(target.url + "/v1/models", target.timeout_s)
    if not answer.status:
        raise Unreachable(answer.error, "an answer", "GET /v1/models")
    listed = answer.json() if answer.status == 200 else None
    names = [one.get("id") for one in (listed or {}).get("data", []) if isinstance(one, dict)]
    if target.model not in names:
        raise Wrong("%s" % (names or answer.brief()), target.model, "GET /v1/models")


def check_completion(target: Target) -> None:
    """The canary answers its known continuation to the letter; any other model answers."""
    if target.oracle:
        want = target.oracle["completion"]
        said = target.complete(target.oracle["prompt"], target.oracle["max_tokens"])
        if _text(said) != want:
            raise Wrong(repr(_text(said)), repr(want), "greedy completion of the known prompt")
        return
    if not _text(target.complete(PROMPT, 16)).strip():
        raise Wrong("an empty completion", "text", "greedy completion of 16 tokens")


def check_chat(target: Target) -> None:
    """Chat goes through the model's template; the canary's answer is known."""
    if not target.chat:
        return
    if target.oracle:
        want = target.oracle["chat_completion"]
        said = target.talk(target.oracle["chat_messages"], target.oracle["max_tokens"])
        if _message(said) != want:
            raise Wrong(repr(_message(said)), repr(want), "greedy chat answer to the known prompt")
        return
    # A model may spend its first tokens on thoughts that are not part of the content.
    said = target.talk(MESSAGES, 16)
    if not _message(said).strip() and not said.get("usage", {}).get("completion_tokens"):
        raise Wrong("an empty answer", "text", "chat with 16 tokens")


def check_usage(target: Target) -> None:
    """Token counts are there, add up, and respect the limit that was asked for."""
    usage = target.complete(_prompt(target), 4).get("usage") or {}
    prompt, completion, total = (
        usage.get(kind + "_tokens") for kind in ("prompt", "completion", "total"))
    if not (isinstance(prompt, int) and isinstance(completion, int) and isinstance(total, int)):
        raise Wrong("usage %s" % usage, "prompt, completion and total tokens")
    if prompt + completion != total or not 1 <= completion <= 4:
        raise Wrong("usage %s" % usage, "prompt + completion = total, at most 4 completed")


def check_repeats(target: Target) -> None:
    """The same greedy request twice gives the same text."""
    first, second = (_text(target.complete(_prompt(target), 16)) for _ in range(2))
    if first != second:
        raise Wrong("%r, then %r" % (first, second), "the same text twice")


def check_speed(target: Target) -> None:
    """A streamed answer comes token by token; how fast is a figure, not a verdict."""
    payload = {
        "model": target.model, "prompt": _prompt(target), "max_tokens": SPEED_TOKENS,
        "temperature": 0, "stream": True, "stream_options": {"include_usage": True},
    }
    times: List[float] = []
    counted = 0
    try:
        for elapsed, event in post_stream(
            target.url + "/v1/completions", payload, target.timeout_s
        ):
            if not isinstance(event, dict):
                raise Wrong(repr(event)[:200], "JSON objects", "streamed completion")
            if any(choice.get("text") for choice in event.get("choices") or []):
                times.append(elapsed)
            counted = (event.get("usage") or {}).get("completion_tokens") or counted
    except ConnectionError as problem:
        raise Wrong(str(problem), "a stream that ends", "streamed completion") from problem
    counted = counted or len(times)
    if not times or not counted:
        raise Wrong("a stream without text", "text", "streamed completion")
    if type(counted) is not int or not 1 <= counted <= SPEED_TOKENS:
        raise Wrong("%r completed tokens" % (counted,), "1 to %d tokens, as asked" % SPEED_TOKENS,
                    "streamed completion")
    target.figures["first_token_s"] = round(times[0], 4)
    if counted > 1 and times[-1] > times[0]:
        target.figures["tokens_per_second"] = round((counted - 1) / (times[-1] - times[0]), 1)
    target.figures["tokens"] = counted


CHECKS: List[Callable[[Target], None]] = [
    check_model_listed, check_completion, check_chat, check_usage, check_repeats, check_speed,
]
# On a real model, batching may make greedy answers differ in the last bits.
WARNING_UNLESS_CANARY = {"repeats"}


def prove(target: Target) -> Verdict:
    """Run every check; only a server that gives no answer at all ends the list early."""
    checks: List[Dict[str, Any]] = []
    findings: List[Finding] = []
    for check in CHECKS:
        name = check.__name__[len("check_"):].replace("_", "-")
        started = time.monotonic()
        wrong = _run(check, target)
        seconds = round(time.monotonic() - started, 4)
        checks.append({"id": name, "passed": wrong is None, "seconds": seconds})
        if wrong:
            findings.append(_finding(target, name, wrong))
        if isinstance(wrong, Unreachable):
            break
    return {
        "url": target.url,
        "passed": not blocking(findings),
        "checks": checks,
        "figures": target.figures,
        "findings": findings,
    }


def _run(check: Callable[[Target], None], target: Target) -> Optional[Wrong]:
    try:
        check(target)
    except Wrong as wrong:
        return wrong
    except (AttributeError, KeyError, IndexError, TypeError) as problem:
        # The answer was JSON, but not of the API's shape.
        return Wrong(repr(problem), "an answer of the OpenAI API's shape")
    return None


def _finding(target: Target, name: str, wrong: Wrong) -> Finding:
    soft = name in WARNING_UNLESS_CANARY and not target.oracle
    return finding(
        "smoke-" + name,
        "%s at %s" % (target.model, target.url),
        found=wrong.found,
        wanted=wrong.wanted,
        evidence=wrong.evidence,
        remedy="read the engine's log; the endpoint must not be used as it is",
        severity="warning" if soft else "fatal",
    )


def _prompt(target: Target) -> str:
    return str(target.oracle["prompt"]) if target.oracle else PROMPT


def _text(said: Dict[str, Any]) -> str:
    return str(said["choices"][0].get("text") or "")


def _message(said: Dict[str, Any]) -> str:
    return str(said["choices"][0]["message"].get("content") or "")
