# SPDX-License-Identifier: Apache-2.0
"""Whether a server that does not answer yet works, by what it counts itself."""

from __future__ import annotations

import re
import threading
import time
from typing import Any, List, Optional

from ..http_client import get

# What grows with work alone. Some move at each step, others with a request that ends; none with a
# request that only comes in.
WORK = re.compile(
    r"^((?:vllm:(?:generation_tokens|prompt_tokens)_total|vllm:iteration_tokens_total_sum"
    r"|llamacpp:(?:tokens_predicted|prompt_tokens|n_decode)_total)(?:\{[^}]*\})?)\s+(\S+)",
    re.MULTILINE)
PARTS = 4
"""How often, in the time of one request, a busy server has to show work."""
LOOK_S = 10.0
"""How long the counters themselves may take at least."""


def counters(url: str, timeout_s: float) -> Optional[Any]:
    """What a server counts of its work: equal as long as it does none.

    vLLM has ``/metrics``, llama.cpp too where it was asked for that, else ``/slots``.

    :returns: ``None`` where it counts nothing, or does not say.
    """
    answer = get(url + "/metrics", timeout_s)
    if answer.status == 200:
        found = dict(WORK.findall(answer.body.decode("utf-8", "replace")))
        if found:
            return found
    answer = get(url + "/slots", timeout_s)
    slots = answer.json(errors="replace") if answer.status == 200 else None
    if not isinstance(slots, list) or not slots:
        return None
    return [_slot(one) for one in slots]


def _slot(slot: Any) -> List[Any]:
    """The request that a slot of llama.cpp works at, and how far it is."""
    if not isinstance(slot, dict):
        return []
    after = slot.get("next_token")
    after = after[0] if isinstance(after, list) and after else after
    decoded = after.get("n_decoded") if isinstance(after, dict) else None
    return [slot.get("id_task"), slot.get("n_prompt_tokens_processed"), decoded]


class Patience:
    """Time beyond that of single requests, of which a whole proof has so much and no more.

    It is called when the time of a request is over, and gives more while the server shows work:
    requests that wait at once are given it together.

    :param url: base URL of the server.
    :param timeout_s: seconds of one request.
    :param times: how many such times there are in addition.
    """

    def __init__(self, url: str, timeout_s: float, times: int) -> None:
        self.url, self.period_s = url, timeout_s / PARTS
        self.periods = times * PARTS
        """How many are left."""
        self.taken_s = 0.0
        self.busy = False
        """Whether the server was ever seen at work while a request waited."""
        self.works = False
        """Whether it was when it was looked at last."""
        self.said = ""
        """Why no more was given, in words that follow those of a request."""
        self._seen: Any = None
        self._until = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        """Seconds to wait on, or 0."""
        with self._lock:
            now = time.monotonic()
            if now < self._until:
                return self._until - now
            # What was seen in an earlier wait says nothing of this one.
            before = self._seen if now - self._until < self.period_s else None
            self._seen = counters(self.url, max(self.period_s, LOOK_S))
            self.said = self._against(before)
            if self.said:
                return 0.0
            self.periods -= 1
            self.taken_s += self.period_s
            self._until = time.monotonic() + self.period_s
            return self.period_s

    def _against(self, before: Any) -> str:
        """Why what is seen now, after what was seen before, is no reason to wait on."""
        if self._seen is None:
            self.works = False
            return "it counts nothing by which work could be seen"
        if before is not None:
            self.works = self._seen != before
            self.busy = self.busy or self.works
            if not self.works:
                return "what it counts stood still for %.3g s" % self.period_s
        if self.periods > 0:
            return ""
        return ("it still works, and " if self.works else "") + "it was waited for long enough"
