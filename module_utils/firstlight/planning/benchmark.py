# SPDX-License-Identifier: Apache-2.0
"""A benchmark of an endpoint, decided: how large a load is, and whether a result is slower.

A benchmark is kept in the endpoint's passport. What stands there was written by a host, so it is
read with suspicion: what is not of the shape counts as no benchmark.
"""

from __future__ import annotations

import math
from typing import Any, Dict, Iterable, List, Optional, Tuple

from ..findings import Finding, finding, shown
from .table import columns

Plan = Dict[str, Any]
Passport = Dict[str, Any]
Point = Dict[str, Any]
"""One load and what came of it: ``{tool, concurrency, requests, failed, prompt_tokens,
output_tokens, seconds, output_tokens_per_second, first_token_p50_s, first_token_p99_s,
per_token_p50_s}``; a figure that nothing was measured of is ``None``."""
Benchmark = Dict[str, Any]
"""``{schema, at, engine, engine_version, tool, points, notes}``"""

SCHEMA = 1
MOST_POINTS = 64
OURS, VLLM_BENCH, LLAMA_BENCH = "firstlight", "vllm bench serve", "llama-bench"
"""The tools."""

MARGIN = 16
"""Tokens of the context that stay free. A tool that decodes random tokens and encodes them again
gets a few more than it asked for, and prompt and answer must fit (`max_model_len` of vLLM)."""

LEAST_TOKENS = 64
"""Fewer tokens a request are no load: then there are fewer streams."""

LEAST_REQUESTS = 4
"""Of fewer requests a median says little."""

LATENCY_FLOOR_S = 0.01
"""A first token that comes later by less than this is no slowdown: a busy CPU does as much."""

FIGURES = ("output_tokens_per_second", "first_token_p50_s", "first_token_p99_s", "per_token_p50_s")
COUNTS = ("concurrency", "requests", "failed", "prompt_tokens", "output_tokens")
# Points are compared where these are the same.
SAME = ("tool", "concurrency", "prompt_tokens", "output_tokens")


# How large the load is.


def points(plan: Plan, settings: Dict[str, Any]) -> List[Point]:
    """The loads for an endpoint, the smallest first.

    No request is longer than the context. llama.cpp's sequences share one pool, and a request that
    finds no room there fails, so all streams together fit into it too.

    :param plan: of a passport.
    :param settings: ``concurrencies``, ``requests_per_stream``, ``prompt_tokens`` and
        ``output_tokens``, all of them 1 or more.
    :returns: ``[{concurrency, requests, prompt_tokens, output_tokens}]``.
    :raises ValueError: for a context without room for a prompt and an answer.
    """
    streams = _streams(plan, settings["concurrencies"])
    room = plan["context"] - MARGIN
    if plan["engine"] == "llama_cpp":
        pool = _pool(plan)
        streams = [one for one in streams if pool // one - MARGIN >= LEAST_TOKENS] or [1]
        room = min(room, pool // streams[-1] - MARGIN)
    if room < 2:
        raise ValueError("a context of %d tokens has no room for a prompt and an answer"
                         % plan["context"])
    output = min(settings["output_tokens"], max(1, room // 3))
    return [{
        "concurrency": count,
        "requests": max(LEAST_REQUESTS, count * settings["requests_per_stream"]),
        "prompt_tokens": min(settings["prompt_tokens"], room - output),
        "output_tokens": output,
    } for count in streams]


def _streams(plan: Plan, asked: Iterable[int]) -> List[int]:
    """Those that the engine answers at a time; the rest would only wait in its queue."""
    most = plan.get("sequences") if plan["engine"] == "vllm" else plan.get("parallel")
    wanted = sorted(set(asked)) or [1]
    return [one for one in wanted if not most or one <= most] or [min(wanted[0], most or 1)]


def _pool(plan: Plan) -> int:
    tokens = plan["memory"].get("kv_tokens")
    return min(plan["context"], tokens) if type(tokens) is int and tokens > 0 else int(
        plan["context"])


# Whether a result is one.


def is_benchmark(found: Any) -> bool:
    """Whether it is of the shape that everything here relies on."""
    try:
        return (
            found["schema"] == SCHEMA
            and all(isinstance(found[key], str) for key in ("at", "engine", "engine_version",
                                                            "tool"))
            and isinstance(found["points"], list)
            and len(found["points"]) <= MOST_POINTS
            and isinstance(found.get("notes", []), list)
            and all(_is_point(one) for one in found["points"])
        )
    except (TypeError, KeyError):
        return False


def _is_point(one: Any) -> bool:
    return (isinstance(one["tool"], str)
            and all(type(one[key]) is int and one[key] >= 0 for key in COUNTS)
            and all(one[key] is None or is_figure(one[key]) for key in FIGURES))


def is_figure(value: Any) -> bool:
    """Whether a value is a number that something can have been measured to be."""
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def last_benchmark(passports: Iterable[Optional[Passport]]) -> Optional[Dict[str, Any]]:
    """The last result, by the first of the passports that has one.

    :param passports: the endpoint's own, then its older generations, the youngest first.
    :returns: ``{benchmark, model}``, the model as :func:`model_of` names it.
    """
    for one in passports:
        if one and is_benchmark(one.get("benchmark")):
            return {"benchmark": one["benchmark"], "model": model_of(one["plan"])}
    return None


def model_of(plan: Plan) -> str:
    """What a model is the same by."""
    return str(plan["model"].get("fingerprint") or plan["model"].get("path")
               or plan["model"]["served_name"])


# What there is to say of it.


def failures(subject: str, result: Benchmark, why: str) -> List[Finding]:
    """The requests that failed. These alone are against an endpoint.

    :param why: what the first of them ended with, where that is known.
    """
    failed = [one for one in result["points"] if one["failed"]]
    if not failed:
        return []
    return [finding(
        "benchmark-requests-failed", subject,
        found="; ".join("%d of %d requests failed at %s (%s)" % (
            one["failed"], one["requests"], _streamed(one), one["tool"]) for one in failed),
        wanted="an answer to each",
        evidence=why[:500],
        remedy="read the engine's log (playbooks/diagnose.yml); requests that take longer than "
               "endpoint_benchmark_request_timeout_s count as failed")]


def compare(subject: str, result: Benchmark, before: Optional[Dict[str, Any]], model: str,
            tolerance: float) -> List[Finding]:
    """Where a result is slower than the last one.

    :param before: what :func:`last_benchmark` returned before this result was kept.
    :param model: what was measured now, as :func:`model_of` names it.
    :param tolerance: the share by which a figure may be worse.
    :returns: a warning for each figure that is worse by more, or why nothing can be compared.
    """
    if before is None:
        return []
    old = before["benchmark"]
    if before["model"] != model:
        return [_incomparable(subject, old, "another model was measured then")]
    pairs = [(was, now) for now in result["points"] for was in old["points"]
             if all(was[key] == now[key] for key in SAME)]
    if not pairs:
        return [_incomparable(subject, old, "no load was the same then: %s" % "; ".join(
            "%s with %s, %d + %d tokens" % (_streamed(one), one["tool"], one["prompt_tokens"],
                                            one["output_tokens"]) for one in old["points"]))]
    found = [_slower(subject, result, old, was, now, tolerance) for was, now in pairs]
    return [one for some in found for one in some]


def _incomparable(subject: str, old: Benchmark, why: str) -> Finding:
    return finding(
        "benchmark-not-comparable", subject, found=why,
        wanted="the same load of the same model as on %s" % old["at"],
        remedy="nothing: the next benchmark is compared with this one", severity="info")


def _slower(subject: str, result: Benchmark, old: Benchmark, was: Point, now: Point,
            tolerance: float) -> List[Finding]:
    """Findings on a pair of points of the same load."""
    told = []
    share = "%d%%" % round(100 * tolerance)
    key = "output_tokens_per_second"
    if was[key] and now[key] is not None and now[key] < was[key] * (1 - tolerance):
        told.append(("%.1f tokens/s" % now[key],
                     "at least %.1f, %s less than the %.1f" % (
                         was[key] * (1 - tolerance), share, was[key])))
    key = "first_token_p50_s"
    if was[key] is not None and now[key] is not None:
        most = max(was[key] * (1 + tolerance), was[key] + LATENCY_FLOOR_S)
        later = share if most > was[key] + LATENCY_FLOOR_S else "%d ms" % (1000 * LATENCY_FLOOR_S)
        if now[key] > most:
            told.append(("a first token after %.3f s" % now[key],
                         "at most %.3f s, %s more than the %.3f s" % (most, later, was[key])))
    return [finding(
        "benchmark-slower", subject,
        found="%s at %s with %s" % (figure, _streamed(now), _release(result)),
        wanted="%s that %s had on %s" % (limit, _release(old), old["at"]),
        evidence="%s, %d + %d tokens a request" % (
            now["tool"], now["prompt_tokens"], now["output_tokens"]),
        remedy=_remedy(result, old), severity="warning") for figure, limit in told]


def _remedy(result: Benchmark, old: Benchmark) -> str:
    again = "run it again while the host does nothing else"
    if _release(result) == _release(old):
        return again + "; if it stays so, look at the host with playbooks/doctor.yml"
    return again + "; if it stays so, %s is slower here: playbooks/rollback.yml goes back" % (
        _release(result))


def _release(one: Benchmark) -> str:
    return "%s %s" % (one["engine"], one["engine_version"])


def _streamed(one: Point) -> str:
    return "1 stream" if one["concurrency"] == 1 else "%d streams" % one["concurrency"]


# For a person.


def benchmark_table(results: List[Dict[str, Any]]) -> str:
    """Results for a person: a table for each endpoint, with what it had before, and the warnings.

    :param results: what the module ``endpoint_benchmark`` returned of each endpoint.
    """
    return "\n\n".join(_paragraph(one) for one in results) or "There is no endpoint to measure."


def _paragraph(one: Dict[str, Any]) -> str:
    result = one.get("benchmark")
    if is_benchmark(result):
        assert result
        lines = _measured(str(one["name"]), result, one.get("before"))
    else:
        lines = ["%s:" % shown(str(one["name"]))]
        lines += ["  - " + shown(str(work)) for work in one.get("work") or []]
        if one.get("failed"):
            lines.append("  failed: " + shown(str(one.get("msg"))))
    for told in one.get("findings") or []:
        lines.append("  %s %s: found %s, wanted %s; %s" % tuple(
            shown(str(told[key])) for key in ("severity", "id", "found", "wanted", "remedy")))
    return "\n".join(lines)


def _measured(name: str, result: Benchmark, before: Any) -> List[str]:
    old: Benchmark = before if is_benchmark(before) else {}
    was = ", before: %s on %s" % (_release(old), old["at"]) if old else ""
    return [
        shown("%s: %s%s" % (name, _release(result), was)),
        columns(("tool", "streams", "requests", "failed", "tokens", "tokens/s", "before",
                 "first token s", "p99", "ms a token"),
                [_row(point, old.get("points") or []) for point in result["points"]],
                right=range(1, 10)),
        *("  - " + shown(str(note)) for note in result.get("notes") or []),
    ]


def _row(point: Point, before: List[Point]) -> Tuple[str, ...]:
    was = next((one for one in before if all(one[key] == point[key] for key in SAME)), {})
    per_token = point["per_token_p50_s"]
    return (
        point["tool"], str(point["concurrency"]), str(point["requests"]), str(point["failed"]),
        "%d + %d" % (point["prompt_tokens"], point["output_tokens"]),
        _figure(point["output_tokens_per_second"], "%.1f"),
        _figure(was.get("output_tokens_per_second"), "%.1f"),
        _figure(point["first_token_p50_s"], "%.3f"), _figure(point["first_token_p99_s"], "%.3f"),
        _figure(None if per_token is None else 1000 * per_token, "%.2f"))


def _figure(value: Optional[float], form: str) -> str:
    return "-" if value is None else form % value
