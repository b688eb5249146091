# SPDX-License-Identifier: Apache-2.0
"""What an engine's log says: why it died, how far its start is, how much memory it took.

:func:`diagnose` looks at the end of the text of one start: what an earlier one said is not true of
this one. :func:`scan` reads a whole log of any size, and tells its starts apart. A log holds
whatever clients and models put into it, so no line is looked at as a whole, and what is tried on
lines that look alike has an end.
"""

from __future__ import annotations

import collections
import re
from typing import Any, Deque, Dict, Iterable, List, NamedTuple, Set, Tuple

from .findings import Finding, finding, shown
from .stems import Stems

Signature = Dict[str, Any]
"""A row of ``catalog/log_signatures.yml``."""
Match = Dict[str, Any]
"""``{finding, words}``: what is known of a line, and what the groups of the row's pattern found."""

LIMIT = 256 * 1024
"""Characters that are looked at, the last ones; of a whole log what is looked at in any case."""
LINE = 1000
"""Characters of a line that are looked at when a phase is looked for."""
EVIDENCE = 300
"""Characters of a line that are told."""
GIB = 2**30

LINE_ENDS = (b"\n", b"\r")
# Colours of terminals; bars of progress go back to the start of their line.
ESCAPES = re.compile(r"\x1b\[[0-9;]{0,20}[A-Za-z]")


class BadSignature(ValueError):
    """A row that cannot be used; the text says which, and why."""


# What is known of lines.


def matches(text: str, signatures: Iterable[Signature], engine: str = "",
            subject: str = "engine log") -> List[Match]:
    """What is known of the lines of a log: one match for each row, in the log's order.

    :param text: what the engine wrote since it was started.
    :param signatures: rows of the catalog.
    :param engine: ``vllm`` or ``llama_cpp``; empty takes the rows of both.
    :param subject: what the findings are about, e.g. the name of the endpoint.
    :raises BadSignature: for a row that is no signature.
    """
    said = _end(text)
    found = []
    for row in signatures:
        try:
            if engine and engine not in row.get("engines", [engine]):
                continue
            pattern, stems = re.compile(row["pattern"], re.MULTILINE), row.get("stems")
            if stems and not any(stem in said for stem in stems):
                continue
            match = pattern.search(said)
            if match:
                found.append((match.start(), row, _said(match, row, subject)))
        except (KeyError, TypeError, re.error) as problem:
            raise _bad(row, problem) from problem
    known = _without_followers({row["id"]: row for _, row, _ in found})
    return [told for _, row, told in sorted(found, key=lambda one: one[0]) if row["id"] in known]


def diagnose(text: str, signatures: Iterable[Signature], engine: str = "",
             subject: str = "engine log") -> List[Finding]:
    """The findings of :func:`matches`, with its parameters and errors."""
    return [one["finding"] for one in matches(text, signatures, engine, subject)]


def fatal(text: str, signatures: Iterable[Signature], engine: str = "",
          subject: str = "engine log") -> List[Finding]:
    """The findings after which an engine does not become ready any more: waiting is in vain.

    Parameters and errors as for :func:`diagnose`, which finds more once an engine is dead.
    """
    return [one for one in diagnose(text, signatures, engine, subject)
            if one["severity"] == "fatal"]


def _without_followers(rows: Dict[str, Signature]) -> Set[str]:
    """The ids of rows, without those that only say that something went wrong: they are for logs
    of which nothing better is known."""
    known = any(row["severity"] == "fatal" and not row.get("only_alone") for row in rows.values())
    return {id_ for id_, row in rows.items() if not (known and row.get("only_alone"))}


def _said(match: Any, row: Signature, subject: str) -> Match:
    words = {key: value or "" for key, value in match.groupdict().items()}
    safe = {key: shown(value or "?", "\t") for key, value in words.items()}
    try:
        return {"words": words, "finding": finding(
            row["id"], subject, row["found"] % safe, row["wanted"] % safe, row["remedy"] % safe,
            row["severity"], evidence=_line(match), source=row["source"])}
    except (KeyError, TypeError, ValueError) as problem:
        raise _bad(row, problem) from problem


def _line(match: Any) -> str:
    """The line that matched; of a long one what begins with the match."""
    said = match.string
    begin, end = said.rfind("\n", 0, match.start()) + 1, said.find("\n", match.end())
    end = len(said) if end < 0 else end
    if end - begin > EVIDENCE:
        begin = match.start()
    return shown(said[begin:end].strip(), "\t")[:EVIDENCE]


def _bad(row: Any, problem: Exception) -> BadSignature:
    name = row.get("id") or row if isinstance(row, dict) else row
    said = "lacks %s" % problem if isinstance(problem, KeyError) else str(problem)
    return BadSignature("signature %s: %s" % (name, said))


# How far a start is.


class Phase(NamedTuple):
    """A part of a start, known by a line."""

    pattern: Any
    text: str
    stems: Tuple[str, ...]
    """One of them is in every such line."""
    unit: str = ""
    """What the groups ``done`` and ``total`` count."""


def _phase(pattern: str, text: str, *stems: str, unit: str = "") -> Phase:
    return Phase(re.compile(pattern), text, stems, unit)


PHASES = [
    # vLLM 0.10 to 0.33
    _phase(r"Resolved architecture: |Initializing a V\d LLM engine ", "starting the engine",
           "Resolved architecture: ", "Initializing a V"),
    _phase(r"[Ll]oading [\w -]{0,40}shards: {0,4}\d{1,3}%[^\[]{0,200}\| *(?P<done>\d{1,6})/"
           r"(?P<total>\d{1,6}) \[", "loading weights", " shards: ", unit="shards"),
    _phase(r"Capturing CUDA graph[^:]{0,80}: {0,4}\d{1,3}%\|[^|]{0,300}\| *(?P<done>\d{1,6})/"
           r"(?P<total>\d{1,6}) \[", "capturing graphs", "Capturing CUDA graph", unit="graphs"),
    _phase(r"Starting to load model|Loading model from scratch", "loading weights",
           "Starting to load model", "Loading model from scratch"),
    _phase(r"Loading weights took|Model loading took", "weights loaded",
           "Loading weights took", "Model loading took"),
    _phase(r"Starting torch\.compile|Dynamo bytecode transform time|Compiling a graph for|"
           r"Start compiling function|Cache the graph of|Warming up model for the compilation",
           "compiling", "Starting torch.compile", "Dynamo bytecode", "Compiling a graph for",
           "Start compiling function", "Cache the graph of", "Warming up model for"),
    _phase(r"torch\.compile (?:took|takes) |Warming up done", "compiled",
           "torch.compile t", "Warming up done"),
    _phase(r"Available KV cache memory: |(?:GPU|CPU) KV cache size: ", "cache allocated",
           "Available KV cache memory: ", "KV cache size: "),
    _phase(r"Graph capturing finished in ", "graphs captured", "Graph capturing finished in "),
    _phase(r"init engine \(profile, create kv cache, warmup model\) took ", "engine ready",
           "init engine (profile, create kv cache"),
    _phase(r"Starting vLLM (?:API )?server ", "starting the server", "Starting vLLM "),
    _phase(r"Application startup complete", "listening", "Application startup complete"),
    # llama-server and our launcher of it
    _phase(r"load_model: loading model |load_tensors: loading model tensors", "loading weights",
           "load_model: loading model ", "load_tensors: loading model tensors"),
    _phase(r"warming up the model with an empty run", "warming up",
           "warming up the model with an empty run"),
    _phase(r"(?:init|main): model loaded", "weights loaded", ": model loaded"),
    _phase(r"listening on http|llama_server: .{0,300} is served on http", "listening",
           "listening on http", " is served on http"),
]


def progress(text: str) -> Dict[str, Any]:
    """The phase that a start has reached: ``{text, done, total, unit}``, or nothing.

    The last three are there only where the engine counts.
    """
    for line in reversed(_end(text).split("\n")):
        for phase in PHASES:
            match = phase.pattern.search(line, 0, LINE)
            if match:
                counted = {key: int(value) for key, value in match.groupdict().items()}
                if counted and counted["done"] <= counted["total"]:
                    return {"text": phase.text, "unit": phase.unit, **counted}
                return {"text": phase.text}
    return {}


# What it took.


NUMBER = r"(\d{1,5}(?:\.\d{1,6})?)"
STARTS = re.compile(r"Initializing a V\d LLM engine ")
WEIGHTS = re.compile(r"Model loading took %s GiB" % NUMBER)
CACHE = re.compile(r"Available KV cache memory: %s GiB|"
                   r"GiB, reserved %s GiB memory for KV Cache as specified" % (NUMBER, NUMBER))
TOKENS = re.compile(r"GPU KV cache size: ([\d,]{1,20}) tokens")
GRAPHS = re.compile(r"Graph capturing finished in \d{1,6} secs, took %s GiB" % NUMBER)
GRAPHS_FORESEEN = re.compile(r"Estimated CUDA graph memory: %s GiB total" % NUMBER)
TOOK = ("Model loading took", "Available KV cache memory: ", "GiB memory for KV Cache as specified",
        "GPU KV cache size: ", "Graph capturing finished in ", "Estimated CUDA graph memory: ")
"""One of them is in every line that tells of memory."""


def observed(text: str) -> Dict[str, int]:
    """The memory that vLLM says it took on a device, by the names that a plan has for it.

    ``weights_bytes``, ``kv_bytes``, ``graph_bytes`` and ``kv_tokens``, as far as the log has them:
    of the device with the most weights and the least cache, to a hundredth of a GiB. Other
    engines, and vLLM on CPU, say nothing of the kind.
    """
    said = _end(text)
    begins = [one.start() for one in STARTS.finditer(said)]
    said = said[begins[-1]:] if begins else said
    tokens = [int(one.replace(",", "") or 0) for one in TOKENS.findall(said)]
    found = {
        "weights_bytes": max(_sizes(WEIGHTS, said), default=None),
        "kv_bytes": min(_sizes(CACHE, said), default=None),
        "graph_bytes": max(_sizes(GRAPHS, said) or _sizes(GRAPHS_FORESEEN, said), default=None),
        "kv_tokens": tokens[-1] if tokens else None,
    }
    return {key: value for key, value in found.items() if value is not None}


def _sizes(pattern: Any, said: str) -> List[int]:
    """All that a pattern finds, from GiB to bytes; of its groups the one that took part."""
    return [int(float(next(filter(None, match.groups()))) * GIB)
            for match in pattern.finditer(said)]


def _end(text: str) -> str:
    """The end of a log, as lines: without colours, each stand of a bar on a line of its own."""
    return ESCAPES.sub("", text[-LIMIT:].replace("\r", "\n"))


# A whole log.


STARTED = ("Started firstlight-", "Started Firstlight endpoint ")
"""What systemd writes of a unit of ours, before anything that it writes itself."""
START = ("non-default args: ", ": initializing ...")
"""What vLLM, and llama-server, write once, at the beginning of each start."""
INSIDE = ("Initializing a V",)
"""What vLLM writes later in a start, by each of its engines; it counts where there is no START."""
MARKS = (STARTED, START, INSIDE)

TRIES = 2000
"""Places at which the pattern of a row is tried in all of a log. One with more of them is full of
that row's lines; what is at the end of it is looked at all the same."""
STARTS_MOST, PHASES_MOST, SIZES_MOST = 50000, 1000000, 1000
"""How many starts are told apart, and lines of phases and of memory are looked at."""
SHORTEST = 4
"""Bytes of a stem that is worth looking for."""
BEFORE, AFTER = 1000, 1500
"""Bytes around a stem among which its pattern is looked for."""


def scan(chunks: Iterable[bytes], signatures: Iterable[Signature], engine: str = "",
         subject: str = "engine log") -> Dict[str, Any]:
    """What a whole log says, of any size, of each of its starts.

    :param chunks: the log, cut anywhere.
    :param signatures: rows of the catalog, as for :func:`matches`.
    :returns: ``findings`` of the last start, in its order, and of starts before it what the last
        one does not say too (``earlier``, of the last of them first); each once, with the first
        line in that start, and how often. ``words`` by the finding's id; ``progress`` and
        ``observed`` of the last start; how many ``starts``, ``lines`` and ``bytes`` there are.
    :raises BadSignature: for a row that is no signature.
    """
    reader = _Reader(signatures, engine, subject)
    for chunk in chunks:
        reader.feed(chunk)
    return reader.told()


class _Row:
    """A signature, ready to be looked for."""

    def __init__(self, row: Signature) -> None:
        try:
            self.row, self.pattern = row, re.compile(row["pattern"], re.MULTILINE)
            self.id, self.stems = row["id"], [stem.encode() for stem in row["stems"]]
            if not self.stems or min(map(len, self.stems)) < SHORTEST:
                raise ValueError("it has no stem of %d letters to look for" % SHORTEST)
            # Most patterns end with their line; in a class that excludes it, its end is none.
            self.many_lines = "\\n" in re.sub(r"\[\^[^\]]*\]", "", row["pattern"])
            self.tries = 0
        except (KeyError, TypeError, AttributeError, ValueError, re.error) as problem:
            raise _bad(row, problem) from problem


class _Seen:
    """What a row found in one start; of several, in the last of them."""

    def __init__(self, row: _Row, match: Any, start: int, line: int) -> None:
        self.row, self._match, self.start = row, match, start
        self.line = self.last_line = line
        self.count = self.starts = 1

    def told(self, subject: str, starts: int) -> Match:
        """With where it was, and how often."""
        subject = "%s, start %d of %d" % (subject, self.start, starts) if starts > 1 else subject
        match = _said(self._match, self.row.row, subject)
        often = ""
        if self.count > 1:
            often = ", %d times%s%s" % (
                self.count, " or more" if self.row.tries > TRIES else "",
                " in %d starts" % self.starts if self.starts > 1 else "")
        match["finding"]["evidence"] = "%s%s: %s" % (
            "line %d" % self.line if self.line else "near the end", often,
            match["finding"]["evidence"])
        return match


class _Reader:
    """Reads a log once, from its beginning to its end."""

    def __init__(self, signatures: Iterable[Signature], engine: str, subject: str) -> None:
        self._subject = subject
        self._rows = []
        for row in signatures:
            try:
                wanted = not engine or engine in row.get("engines", [engine])
            except (TypeError, AttributeError) as problem:
                raise _bad(row, problem) from problem
            if wanted:
                self._rows.append(_Row(row))
        self._by_stem: Dict[bytes, List[_Row]] = {}
        for one in self._rows:
            for stem in one.stems:
                self._by_stem.setdefault(stem, []).append(one)
        self._marks = {stem.encode(): place for place, stems in enumerate(MARKS)
                       for stem in stems}
        self._sizes = {stem.encode() for stem in TOOK}
        self._phases = self._sizes | {
            stem.encode() for phase in PHASES for stem in phase.stems}
        # What was read, from a little before what was not looked at yet.
        self._buffer, self._done = b"", 0
        self._tail: Deque[bytes] = collections.deque()
        self._tail_bytes = self._bytes = self._lines = 0
        # What is before the first mark is taken to be of that start.
        self._starts = 1
        self._marked: Set[int] = set()
        self._seen: Dict[str, _Seen] = {}
        self._before: Dict[str, _Seen] = {}
        self._phase_lines = 0
        self._stands: Deque[bytes] = collections.deque(maxlen=20)
        self._took: List[bytes] = []
        self._stems = self._wanted()

    def _wanted(self) -> Stems:
        """What is looked for from here on."""
        wanted = {stem for stem, rows in self._by_stem.items()
                  if any(one.tries <= TRIES for one in rows)}
        if self._starts < STARTS_MOST:
            wanted |= set(self._marks)
        if self._phase_lines < PHASES_MOST:
            wanted |= self._phases
        return Stems(wanted)

    def feed(self, chunk: bytes) -> None:
        """Read on."""
        self._bytes += len(chunk)
        self._tail.append(chunk)
        self._tail_bytes += len(chunk)
        while self._tail_bytes - len(self._tail[0]) >= LIMIT:
            self._tail_bytes -= len(self._tail.popleft())
        cut = max(0, self._done - BEFORE)
        self._buffer, self._done = self._buffer[cut:] + chunk, self._done - cut
        self._look(len(self._buffer) - AFTER)

    def _look(self, end: int) -> None:
        """Look for what is there before an end, and count the lines up to there."""
        while self._done < end:
            stems = self._stems
            for head, place, stem in stems.find(self._buffer, self._done, end):
                same = head == self._done
                self._go_to(head)
                if stems is not self._stems and not same:
                    break  # there is too much of something, which is not looked for any more
                self._met(place, stem)
            else:
                self._go_to(end)

    def _go_to(self, place: int) -> None:
        self._lines += self._buffer.count(b"\n", self._done, place)
        self._done = place

    def _met(self, place: int, stem: bytes) -> None:
        """One of the texts is there."""
        for row in self._by_stem.get(stem, ()):
            self._try(row, place, len(stem))
        if stem in self._marks:
            self._begin(self._marks[stem])
        if stem in self._phases:
            # Some of what follows is read with it; what is before it is of another line.
            before = max(0, place - LINE)
            begin = max(self._buffer.rfind(b"\n", before, place), before)
            said = self._buffer[begin:place + LINE]
            self._stands.append(said)
            if stem in self._sizes and len(self._took) < SIZES_MOST:
                self._took.append(said)
            self._phase_lines += 1
            if self._phase_lines == PHASES_MOST:
                self._stems = self._wanted()

    def _begin(self, mark: int) -> None:
        """A start begins, if it is not the one that is read already: marks come in their order."""
        if mark == MARKS.index(INSIDE) and self._marked - {mark}:
            return
        if self._marked and mark <= max(self._marked):
            self._leave()
            self._marked = set()
            self._starts += 1
            if self._starts == STARTS_MOST:
                self._stems = self._wanted()
        self._marked.add(mark)

    def _leave(self) -> None:
        """A start is over: keep what was seen in it."""
        kept = _without_followers({one.row.id: one.row.row for one in self._seen.values()})
        for id_ in kept:
            one, before = self._seen[id_], self._before.get(id_)
            if before:
                one.count, one.starts = one.count + before.count, one.starts + before.starts
            self._before[id_] = one
        self._seen = {}
        self._stands.clear()
        self._took = []

    def _try(self, row: _Row, place: int, length: int) -> None:
        """See whether it is a line of the row's."""
        line, seen = self._lines + 1, self._seen.get(row.id)
        if row.tries > TRIES or (seen and seen.last_line == line):
            return
        row.tries += 1
        if row.tries > TRIES:
            self._stems = self._wanted()
            return
        begin = max(self._buffer.rfind(end, max(0, place - BEFORE), place) for end in LINE_ENDS)
        begin = begin + 1 if begin >= 0 else max(0, place - BEFORE)
        end = place + length + AFTER
        if not row.many_lines:
            ends = [self._buffer.find(one, place, end) for one in LINE_ENDS]
            end = min([one for one in ends if one >= 0], default=end)
        match = row.pattern.search(_end(self._buffer[begin:end].decode("utf-8", "replace")))
        if match and seen:
            seen.count, seen.last_line = seen.count + 1, line
        elif match:
            self._seen[row.id] = _Seen(row, match, self._starts, line)

    def told(self) -> Dict[str, Any]:
        """What :func:`scan` returns, at the end of the log."""
        self._look(len(self._buffer))
        if self._bytes and not self._buffer.endswith(b"\n"):
            self._lines += 1
        stands = b"\n".join(self._stands).decode("utf-8", "replace")
        self._look_at_the_end()
        kept = _without_followers({one.row.id: one.row.row for one in self._seen.values()})
        last = [one for id_, one in self._seen.items() if id_ in kept]
        earlier = [one for id_, one in self._before.items() if id_ not in kept]
        earlier.sort(key=lambda one: (-one.start, one.line))
        told = {one.row.id: one.told(self._subject, self._starts) for one in [*last, *earlier]}
        return {
            "findings": [told[one.row.id]["finding"] for one in last],
            "earlier": [told[one.row.id]["finding"] for one in earlier],
            "words": {id_: one["words"] for id_, one in told.items()},
            "progress": progress(stands),
            "observed": observed(b"\n".join(self._took).decode("utf-8", "replace")),
            "starts": self._starts,
            "lines": self._lines,
            "bytes": self._bytes,
        }

    def _look_at_the_end(self) -> None:
        """What was not looked for any more, as the last start has it at its end."""
        full = [row for row in self._rows if row.tries > TRIES and row.id not in self._seen]
        end = b"".join(self._tail)[-LIMIT:]
        begin = max(end.rfind(stem.encode()) for stem in STARTED + START)
        said = _end(end[max(0, begin):].decode("utf-8", "replace"))
        for row in full:
            match = row.pattern.search(said)
            if match:
                self._seen[row.id] = _Seen(row, match, self._starts, 0)
