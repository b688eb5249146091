# SPDX-License-Identifier: Apache-2.0
"""Our own load for an endpoint: fixed prompts, several streams at once, figures of what came.

It speaks the API that clients speak, so it goes for every engine. Prompts are ids of tokens: of
the exact length whatever the tokenizer, and another for each request, so that none is answered
from a cache of prefixes.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any, List, NamedTuple, Optional, Tuple

from .http_client import Late, post_stream
from .planning import benchmark

# Ids that every vocabulary has, and that stand for plain text in most.
FIRST_TOKEN, TOKENS = 3, 200
WARM_UP_TOKENS = 8


class Server(NamedTuple):
    """Whom to ask.

    :param url: base URL, on loopback: it needs no key there.
    :param model: the model name that requests carry.
    :param vocabulary: how many tokens the model knows, or ``None``.
    """

    url: str
    model: str
    vocabulary: Optional[int] = None


class Limits(NamedTuple):
    """How long it may take.

    :param request_s: seconds for one request; one that takes longer has failed.
    :param deadline: of all of it, by :func:`time.monotonic`; what it cuts off has not failed.
    """

    request_s: float
    deadline: float


class Answered(NamedTuple):
    """What came of one request."""

    first_s: float
    last_s: float
    tokens: int


class _Failed(Exception):
    """A request that was not answered as asked."""


def warm_up(server: Server, point: benchmark.Point, limits: Limits) -> None:
    """One request that is not measured: the first may compile, or read from the disk."""
    few = dict(point, output_tokens=min(point["output_tokens"], WARM_UP_TOKENS))
    # The ones that are measured will say what is wrong.
    with contextlib.suppress(_Failed, Late):
        _ask(server, few, -1, limits)


def put(server: Server, point: benchmark.Point, limits: Limits) -> Tuple[benchmark.Point, str]:
    """Put one load on an endpoint.

    :param point: ``{concurrency, requests, prompt_tokens, output_tokens}``.
    :returns: the point with its figures, and what the first request that failed ended with.
        ``requests`` are those that were answered or failed; the deadline may have cut off others.
    """
    work = _Work(point["requests"])
    threads = [threading.Thread(target=_stream, args=(server, point, limits, work), daemon=True)
               for _ in range(point["concurrency"])]
    started = time.monotonic()
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    seconds = time.monotonic() - started
    return figures(point, work.answered, len(work.failed), seconds), (work.failed or [""])[0]


def figures(point: benchmark.Point, answered: List[Answered], failed: int,
            seconds: float) -> benchmark.Point:
    """A point with what was measured."""
    firsts = [one.first_s for one in answered]
    steps = [(one.last_s - one.first_s) / (one.tokens - 1) for one in answered if one.tokens > 1]
    return dict(
        point, tool=benchmark.OURS, requests=len(answered) + failed, failed=failed,
        seconds=round(seconds, 3),
        output_tokens_per_second=round(sum(one.tokens for one in answered) / seconds, 2)
        if answered and seconds else None,
        first_token_p50_s=rounded(quantile(firsts, 0.5)),
        first_token_p99_s=rounded(quantile(firsts, 0.99)),
        per_token_p50_s=rounded(quantile(steps, 0.5)))


def quantile(values: List[float], share: float) -> Optional[float]:
    """The value under which that share lies, between neighbours in proportion; of none, none."""
    if not values:
        return None
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def rounded(value: Optional[float]) -> Optional[float]:
    """Seconds to the microsecond."""
    return None if value is None else round(value, 6)


class _Work:
    """The requests that are still to be made, and what came of the others."""

    def __init__(self, requests: int) -> None:
        self._left, self._lock = list(range(requests)), threading.Lock()
        self.answered: List[Answered] = []
        self.failed: List[str] = []

    def next(self) -> Optional[int]:
        with self._lock:
            return self._left.pop(0) if self._left else None


def _stream(server: Server, point: benchmark.Point, limits: Limits, work: _Work) -> None:
    """Make one request after the other until there are no more, or no more time."""
    while limits.deadline > time.monotonic():
        number = work.next()
        if number is None:
            return
        try:
            work.answered.append(_ask(server, point, number, limits))
        except Late:
            return  # at the deadline of it all
        except _Failed as problem:
            work.failed.append(str(problem))


def _ask(server: Server, point: benchmark.Point, number: int, limits: Limits) -> Answered:
    """One streamed request.

    :raises Late: the deadline cut it off.
    :raises _Failed: it was not answered as asked.
    """
    payload = {
        "model": server.model, "prompt": prompt(server, point["prompt_tokens"], number),
        "max_tokens": point["output_tokens"], "temperature": 0, "ignore_eos": True,
        "stream": True, "stream_options": {"include_usage": True},
    }
    timeout_s = min(limits.request_s, max(0.001, limits.deadline - time.monotonic()))
    times: List[float] = []
    counted: Any = None
    try:
        for elapsed, event in post_stream(server.url + "/v1/completions", payload, timeout_s):
            if not isinstance(event, dict):
                raise _Failed("an event that is no JSON object: %.200r" % (event,))
            if event.get("choices"):
                times.append(elapsed)
            usage = event.get("usage")
            if isinstance(usage, dict):
                counted = usage.get("completion_tokens", counted)
    except Late as problem:
        if timeout_s < limits.request_s:
            raise
        raise _Failed("no whole answer within %g s" % timeout_s) from problem
    except ConnectionError as problem:
        raise _Failed(str(problem)) from problem
    if not times:
        raise _Failed("a stream without a token")
    tokens = len(times) if counted is None else counted
    if type(tokens) is not int or not 1 <= tokens <= point["output_tokens"]:
        raise _Failed("%.100r completed tokens, of %d that were asked for" % (
            tokens, point["output_tokens"]))
    return Answered(times[0], times[-1], tokens)


def prompt(server: Server, tokens: int, number: int) -> List[int]:
    """The prompt of a request, as ids of tokens.

    :param number: of the request, from 0; the one that warms the engine up is -1.
    """
    known = server.vocabulary or TOKENS
    first = min(FIRST_TOKEN, known - 1)
    span = max(1, min(TOKENS, known - first))
    return token_ids(first, span, tokens, number)


def token_ids(first: int, span: int, tokens: int, number: int) -> List[int]:
    """So many ids from ``first`` on, of ``span`` different ones, in another order for each number.

    :param number: of a request, from -1.
    """
    return [first + (7 * number + 11 + at * (2 * number + 5)) % span for at in range(tokens)]
