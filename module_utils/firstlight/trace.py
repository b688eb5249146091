# SPDX-License-Identifier: Apache-2.0
"""Traces of PyTorch's profiler (Chrome's trace events), read in bounded memory and time.

    with open(file, "rb") as trace:
        found = read(trace, deadline=time.monotonic() + 300)
    top(found.host, 20)

A trace comes from an engine, so nothing in it is relied on: what is no event is skipped, names are
cut, and what is too much is left out and said.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import time
import zlib
from array import array
from typing import IO, Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

CHUNK = 2**20
MAX_EVENT = 2**20
"""Characters of one event."""
MAX_BYTES = 4 * 2**30
"""Of a trace, unpacked."""
MAX_EVENTS = 1_500_000
"""Events that are kept for times: 20 bytes each, and as much again while they are sorted."""
MAX_NAMES = 20_000
MAX_NAME = 160
OTHERS = "(others)"

HOST, DEVICE = ("cpu_op",), ("kernel", "gpu_memcpy", "gpu_memset")
"""Categories of what is work: operators on the host, and what runs on a device."""
BEGIN = re.compile(r'"traceEvents"\s*:\s*\[')
BETWEEN = re.compile(r"[\s,]*")
LONGEST_US = 1e12
END = object()


class Broken(Exception):
    """Not a trace, or one that is cut off before its events."""


class Times(NamedTuple):
    """What has one name: how often, microseconds with and without what is inside it."""

    calls: int
    total_us: float
    self_us: float

    def plus(self, more: Times) -> Times:
        """Both together."""
        return Times(self.calls + more.calls, self.total_us + more.total_us,
                     self.self_us + more.self_us)


class Trace(NamedTuple):
    """What a trace tells."""

    events: int
    whole: bool
    """Whether it was read to its end, and all of it counted."""
    host: Dict[str, Times]
    device: Dict[str, Times]
    span_us: float
    """From the first to the last piece of work."""
    busy_us: float
    """How long any piece of work was on a device, of the device that had most."""
    graph_launches: int
    operators: int
    """Operators of PyTorch (``aten::``), which only whoever computes has."""
    kernels: int


def read(file: IO[bytes], deadline: float) -> Trace:
    """Read a trace, plain or packed with gzip.

    :param file: where it is read from.
    :param deadline: when to stop, by :func:`time.monotonic`.
    :raises Broken: it has no events, or is none.
    """
    kept = _Kept()
    ended = False
    try:
        for event in _events(_text(file)):
            if event is END:
                ended = True
                break
            kept.take(event)
            if kept.seen % 4096 == 0 and time.monotonic() > deadline:
                break
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as problem:
        if not kept.seen:
            raise Broken(str(problem) or type(problem).__name__) from problem
    return kept.told(ended)


def merged(found: Iterable[Dict[str, Times]]) -> Dict[str, Times]:
    """The times of several traces, by name."""
    sums: Dict[str, Times] = {}
    for one in found:
        for name, times in one.items():
            before = sums.get(name, Times(0, 0.0, 0.0))
            sums[name] = before.plus(times)
    return sums


def top(times: Dict[str, Times], count: int) -> List[Dict[str, Any]]:
    """The names that took most of the time, as ``{name, calls, self_s, total_s, share}``.

    :param count: of them; the last one is then all the others together.
    """
    ordered = sorted(times.items(), key=lambda one: (-one[1].self_us, one[0]))
    whole = sum(one.self_us for one in times.values()) or 1.0
    rest = ordered[count:]
    if rest:
        ordered = [*ordered[:count], (OTHERS, merged({OTHERS: one} for _, one in rest)[OTHERS])]
    return [{"name": name, "calls": one.calls, "self_s": round(one.self_us / 1e6, 6),
             "total_s": round(one.total_us / 1e6, 6), "share": round(one.self_us / whole, 4)}
            for name, one in ordered]


class _Lane:
    """Pieces of work one after another, or inside each other: of a thread, or of a device."""

    def __init__(self) -> None:
        self.begins, self.lasts, self.names = array("d"), array("d"), array("l")

    def order(self) -> List[int]:
        """Their places in time; who is around others comes before them."""
        return sorted(range(len(self.begins)),
                      key=lambda at: (self.begins[at], -self.lasts[at]))


class _Kept:
    """What of a trace is kept while it is read."""

    def __init__(self) -> None:
        self.seen, self.used, self.left_out = 0, 0, 0
        self.launches, self.operators, self.kernels = 0, 0, 0
        self._names: Dict[str, int] = {}
        self._lanes: Dict[Tuple[str, str, str], _Lane] = {}

    def take(self, event: Any) -> None:
        """Keep an event where it is a piece of work."""
        self.seen += 1
        if not isinstance(event, dict) or event.get("ph") != "X":
            return
        category, name = str(event.get("cat")), event.get("name")
        if not isinstance(name, str):
            return
        if category == "cuda_runtime" or category == "cuda_driver":
            self.launches += "GraphLaunch" in name
            return
        kind = "host" if category in HOST else "device" if category in DEVICE else ""
        begin, last = _time(event.get("ts")), _time(event.get("dur"))
        if not kind or begin is None or last is None or last > LONGEST_US:
            return
        self.operators += kind == "host" and name.startswith("aten::")
        self.kernels += category == "kernel"
        if self.used >= MAX_EVENTS:
            self.left_out += 1
            return
        self.used += 1
        # On a device streams run beside each other; in a thread an operator is inside another.
        where = (kind, str(event.get("pid"))[:64],
                 str(event.get("tid"))[:64] if kind == "host" else "")
        lane = self._lanes.setdefault(where, _Lane())
        lane.begins.append(begin)
        lane.lasts.append(last)
        lane.names.append(self._number(name[:MAX_NAME]))

    def _number(self, name: str) -> int:
        if name not in self._names and len(self._names) >= MAX_NAMES:
            name = OTHERS
        return self._names.setdefault(name, len(self._names))

    def told(self, ended: bool) -> Trace:
        """The whole, once everything was taken."""
        names = list(self._names)
        host: Dict[str, Times] = {}
        device: Dict[str, Times] = {}
        first, end, busy = float("inf"), 0.0, 0.0
        for (kind, _, _), lane in self._lanes.items():
            order = lane.order()
            selfs = _selfs(lane, order) if kind == "host" else lane.lasts
            sums = _sums(lane, selfs)
            into = host if kind == "host" else device
            for number, times in sums.items():
                before = into.get(names[number], Times(0, 0.0, 0.0))
                into[names[number]] = before.plus(times)
            first = min(first, lane.begins[order[0]])
            end = max(end, max(begin + last for begin, last in zip(lane.begins, lane.lasts)))
            if kind == "device":
                busy = max(busy, _covered(lane, order))
        return Trace(self.seen, ended and not self.left_out, host, device,
                     max(0.0, end - first) if self._lanes else 0.0, busy, self.launches,
                     self.operators, self.kernels)


def _time(value: Any) -> Optional[float]:
    """Microseconds, or ``None`` for what is no time."""
    right = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e18
    return float(value) if right else None


def _selfs(lane: _Lane, order: List[int]) -> array[float]:
    """How long each took without those inside it."""
    selfs = array("d", lane.lasts)
    around: List[Tuple[float, int]] = []
    for at in order:
        begin = lane.begins[at]
        while around and around[-1][0] <= begin:
            around.pop()
        if around:
            outer = around[-1][1]
            selfs[outer] = max(0.0, selfs[outer] - lane.lasts[at])
        around.append((begin + lane.lasts[at], at))
    return selfs


def _sums(lane: _Lane, selfs: Any) -> Dict[int, Times]:
    sums: Dict[int, List[float]] = {}
    for number, last, own in zip(lane.names, lane.lasts, selfs):
        one = sums.setdefault(number, [0, 0.0, 0.0])
        one[0] += 1
        one[1] += last
        one[2] += own
    return {number: Times(int(one[0]), one[1], one[2]) for number, one in sums.items()}


def _covered(lane: _Lane, order: List[int]) -> float:
    """How long at least one of them ran."""
    covered, until = 0.0, float("-inf")
    for at in order:
        begin, end = lane.begins[at], lane.begins[at] + lane.lasts[at]
        if end > until:
            covered += end - max(begin, until)
            until = end
    return covered


# The events of a file, one after another.


def _text(file: IO[bytes]) -> Iterator[str]:
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    # As it comes: of a file that is cut off all is taken that is there.
    raw: Any = gzip.GzipFile(fileobj=file) if packed else file
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    taken = 0
    while taken < MAX_BYTES:
        piece = raw.read1(CHUNK) if packed else raw.read(CHUNK)
        if not piece:
            return
        taken += len(piece)
        yield decoder.decode(piece)


def _events(pieces: Iterator[str]) -> Iterator[Any]:
    """Each event, and :data:`END` after them; nothing more where the file is cut off.

    :raises ValueError: there are none, or one is longer than any should be.
    """
    text = ""
    for piece in pieces:
        text += piece
        begun = BEGIN.search(text)
        if begun:
            break
        text = text[-64:] if len(text) > 4 * CHUNK else text
    else:
        raise ValueError("it has no events of a trace")
    decode, at = json.JSONDecoder().raw_decode, begun.end()
    while True:
        at = _after(text, at)
        if text.startswith("]", at):
            yield END
            return
        try:
            event, at = decode(text, at)
        except ValueError:
            if len(text) - at > MAX_EVENT:
                raise ValueError("an event that is not one") from None
            more = next(pieces, "")
            if not more:
                return
            text, at = text[at:] + more, 0
            continue
        yield event


def _after(text: str, at: int) -> int:
    found = BETWEEN.match(text, at)
    return found.end() if found else at
