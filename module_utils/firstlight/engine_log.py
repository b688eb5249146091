# SPDX-License-Identifier: Apache-2.0
"""What an engine's log says: why it died, how far its start is, how much memory it took.

Give the text of one start: what an earlier one said is not true of this one. A log holds whatever
clients and models put into it, so no more than its end is looked at, and no line as a whole.
"""

from __future__ import annotations

import re
from typing import Any, Dict, Iterable, List, NamedTuple

from .findings import Finding, finding, shown

Signature = Dict[str, Any]
"""A row of ``catalog/log_signatures.yml``."""

LIMIT = 256 * 1024
"""Characters that are looked at, the last ones."""
LINE = 1000
"""Characters of a line that are looked at when a phase is looked for."""
EVIDENCE = 300
"""Characters of a line that are told."""
GIB = 2**30

# Colours of terminals; bars of progress go back to the start of their line.
ESCAPES = re.compile(r"\x1b\[[0-9;]{0,20}[A-Za-z]")


class BadSignature(ValueError):
    """A row that cannot be used; the text says which, and why."""


def diagnose(text: str, signatures: Iterable[Signature], engine: str = "",
             subject: str = "engine log") -> List[Finding]:
    """What is known of the lines of a log: one finding for each row, in the log's order.

    :param text: what the engine wrote since it was started.
    :param signatures: rows of the catalog.
    :param engine: ``vllm`` or ``llama_cpp``; empty takes the rows of both.
    :param subject: what the findings are about, e.g. the name of the endpoint.
    :raises BadSignature: for a row that is no signature.
    """
    said = _end(text)
    matches = []
    for row in signatures:
        try:
            if engine and engine not in row.get("engines", [engine]):
                continue
            match = re.search(row["pattern"], said, re.MULTILINE)
            if match:
                matches.append((match.start(), row, _told(match, row, subject)))
        except (KeyError, TypeError, ValueError, re.error) as problem:
            raise BadSignature("signature %s: %s" % (
                row.get("id") or row, _reason(problem))) from problem
    # A row that only says that something went wrong is for logs of which nothing better is known.
    known = any(row["severity"] == "fatal" and not row.get("only_alone") for _, row, _ in matches)
    matches = [one for one in matches if not (known and one[1].get("only_alone"))]
    return [told for _, _, told in sorted(matches, key=lambda one: one[0])]


def fatal(text: str, signatures: Iterable[Signature], engine: str = "",
          subject: str = "engine log") -> List[Finding]:
    """The findings after which an engine does not become ready any more: waiting is in vain.

    Parameters and errors as for :func:`diagnose`, which finds more once an engine is dead.
    """
    return [one for one in diagnose(text, signatures, engine, subject)
            if one["severity"] == "fatal"]


class Phase(NamedTuple):
    """A part of a start, known by a line."""

    pattern: Any
    text: str
    unit: str = ""
    """What the groups ``done`` and ``total`` count."""


def _phase(pattern: str, text: str, unit: str = "") -> Phase:
    return Phase(re.compile(pattern), text, unit)


PHASES = [
    # vLLM 0.10 to 0.33
    _phase(r"Resolved architecture: |Initializing a V\d LLM engine ", "starting the engine"),
    _phase(r"[Ll]oading [\w -]{0,40}shards: {0,4}\d{1,3}%[^\[]{0,200}\| *(?P<done>\d{1,6})/"
           r"(?P<total>\d{1,6}) \[", "loading weights", "shards"),
    _phase(r"Capturing CUDA graph[^:]{0,80}: {0,4}\d{1,3}%\|[^|]{0,300}\| *(?P<done>\d{1,6})/"
           r"(?P<total>\d{1,6}) \[", "capturing graphs", "graphs"),
    _phase(r"Starting to load model|Loading model from scratch", "loading weights"),
    _phase(r"Loading weights took|Model loading took", "weights loaded"),
    _phase(r"Starting torch\.compile|Dynamo bytecode transform time|Compiling a graph for|"
           r"Start compiling function|Cache the graph of|Warming up model for the compilation",
           "compiling"),
    _phase(r"torch\.compile (?:took|takes) |Warming up done", "compiled"),
    _phase(r"Available KV cache memory: |(?:GPU|CPU) KV cache size: ", "cache allocated"),
    _phase(r"Graph capturing finished in ", "graphs captured"),
    _phase(r"init engine \(profile, create kv cache, warmup model\) took ", "engine ready"),
    _phase(r"Starting vLLM (?:API )?server ", "starting the server"),
    _phase(r"Application startup complete", "listening"),
    # llama-server and our launcher of it
    _phase(r"load_model: loading model |load_tensors: loading model tensors", "loading weights"),
    _phase(r"warming up the model with an empty run", "warming up"),
    _phase(r"(?:init|main): model loaded", "weights loaded"),
    _phase(r"listening on http|llama_server: .{0,300} is served on http", "listening"),
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


NUMBER = r"(\d{1,5}(?:\.\d{1,6})?)"
STARTS = re.compile(r"Initializing a V\d LLM engine ")
WEIGHTS = re.compile(r"Model loading took %s GiB" % NUMBER)
CACHE = re.compile(r"Available KV cache memory: %s GiB|"
                   r"GiB, reserved %s GiB memory for KV Cache as specified" % (NUMBER, NUMBER))
TOKENS = re.compile(r"GPU KV cache size: ([\d,]{1,20}) tokens")
GRAPHS = re.compile(r"Graph capturing finished in \d{1,6} secs, took %s GiB" % NUMBER)
GRAPHS_FORESEEN = re.compile(r"Estimated CUDA graph memory: %s GiB total" % NUMBER)


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


def _told(match: Any, row: Signature, subject: str) -> Finding:
    words = {key: shown(value or "?", "\t") for key, value in match.groupdict().items()}
    return finding(
        row["id"], subject, row["found"] % words, row["wanted"] % words, row["remedy"] % words,
        row["severity"], evidence=_line(match), source=row["source"])


def _line(match: Any) -> str:
    """The line that matched; of a long one what begins with the match."""
    said = match.string
    begin, end = said.rfind("\n", 0, match.start()) + 1, said.find("\n", match.end())
    end = len(said) if end < 0 else end
    if end - begin > EVIDENCE:
        begin = match.start()
    return shown(said[begin:end].strip(), "\t")[:EVIDENCE]


def _reason(problem: Exception) -> str:
    return "lacks %s" % problem if isinstance(problem, KeyError) else str(problem)
