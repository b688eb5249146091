# SPDX-License-Identifier: Apache-2.0
"""A profile of a running endpoint, decided: how its engine is started again to record itself.

Only the engine's own processes know what it does. So nothing is recorded from outside: the engine
is started once more by its plan, told to record, asked for few tokens, and what served comes back.
"""

from __future__ import annotations

import json
import posixpath
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from ..findings import Finding, blocking, finding
from . import way_in
from .plan import plan_hash
from .releases import version_of

Plan = Dict[str, Any]
Row = Dict[str, Any]

FOLDER = "profile"
"""Where traces are written, under the cache of the plan."""

NSYS = (
    "profile", "--trace=cuda,nvtx", "--sample=none", "--cpuctxsw=none",
    "--trace-fork-before-exec=true", "--cuda-graph-trace=node",
    "--capture-range=cudaProfilerApi", "--capture-range-end=repeat", "--force-overwrite=true",
)
"""As vLLM's documents have it (docs/contributing/profiling), without samples of the CPU."""

# What `settings` may leave out.
DEFAULTS: Dict[str, Any] = {
    "profiler": "torch", "consent": False, "requests": 2, "prompt_tokens": 128,
    "output_tokens": 16, "iterations": 10, "stacks": False, "disk_bytes": 2**30,
    "memory_bytes": 4 * 2**30, "seconds": 1800, "request_timeout_s": 120.0, "nsys": "nsys",
}
# The largest of each: few requests and few steps are what makes a trace one that can be read.
MOST = {"requests": 64, "iterations": 200, "output_tokens": 512, "prompt_tokens": 32768}
POSITIVE = ("requests", "prompt_tokens", "output_tokens", "iterations", "disk_bytes",
            "memory_bytes", "seconds", "request_timeout_s")
# Ids of tokens that every vocabulary has and that stand for plain text in most.
FIRST_TOKEN, TOKENS = 3, 200
SOURCE = "catalog/profiler_dialects.yml"


class Given(NamedTuple):
    """The profiler's flags that a command has already."""

    words: List[str]
    """All of them, values included."""
    fields: Dict[str, Any]
    rest: List[str]
    """The command without them."""


def profile_plan(plan: Plan, root: str, dialects: List[Row],
                 settings: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
    """The plan by which an endpoint's engine records itself, or the findings against it.

    All that is not about recording stays as it is, but for the port: nobody who asks the endpoint
    is to be answered, or recorded, by an engine that records.

    :param plan: what the endpoint runs by, of its passport.
    :param root: ``firstlight_root`` on the host.
    :param dialects: rows of ``catalog/profiler_dialects.yml``.
    :param settings: ``profiler`` (``torch`` or ``nsys``), ``consent`` (that the endpoint may be
        started again), ``requests``, ``prompt_tokens``, ``output_tokens``, ``iterations`` (steps of
        the engine), ``stacks``, ``disk_bytes``, ``memory_bytes`` (what its processes may grow by),
        ``seconds`` (from the first request to the last trace), ``request_timeout_s`` and ``nsys``
        (the program). What is left out is as in :data:`DEFAULTS`.
    :returns: ``{plan, findings}``; the plan is ``None`` where a finding stops it. Its ``profile``
        says what to do: ``of`` (the plan that serves), ``profiler``, ``folder``, ``start``,
        ``stop``, ``requests`` and their sizes, ``limits``, ``graphs`` (whether it runs with CUDA
        graphs).
    """
    asked = {**DEFAULTS, **(settings or {})}
    where = "endpoint %s" % plan["name"]
    found = _wrong_settings(asked)
    row = dialect(dialects, plan["engine"], asked["profiler"], plan["engine_version"])
    if row is None:
        found.append(_no_dialect(plan, where, dialects, asked["profiler"]))
    else:
        found += _in_the_way(plan, where, row)
    if not asked["consent"]:
        found.append(_no_consent(plan, where))
    if row is None or blocking(found):
        return {"plan": None, "findings": found}
    sizes, told = _sizes(plan, where, asked)
    given = given_flags(plan["command"]["argv"])
    folder = posixpath.join(plan["cache"], FOLDER)
    made = _variant(plan, row, given, folder, asked)
    made["profile"] = {
        "of": plan["hash"], "profiler": asked["profiler"], "folder": folder,
        "start": row["start"], "stop": row["stop"], "bounded": row["bounded"],
        "frontend": row["frontend"], "iterations": asked["iterations"], **sizes,
        "tokens": _tokens(plan), "graphs": _has_graphs(plan),
        "limits": {key: asked[key] for key in (
            "disk_bytes", "memory_bytes", "seconds", "request_timeout_s")},
    }
    made["hash"] = plan_hash(made)
    return {"plan": made, "findings": found + told + _replaced(where, given)}


def dialect(rows: List[Row], engine: str, profiler: str, version: str) -> Optional[Row]:
    """The row of a release, or ``None`` where there is none."""
    of = version_of(version)
    for row in rows:
        if (row["engine"], row["profiler"]) == (engine, profiler) and (
                version_of(row["first"]) <= of
                and (not row["before"] or of < version_of(row["before"]))):
            return row
    return None


# What is against it.


def _wrong_settings(asked: Dict[str, Any]) -> List[Finding]:
    found = []
    if asked["profiler"] not in ("torch", "nsys"):
        found.append(finding(
            "profile-setting", "endpoint_profile_profiler", "%r" % (asked["profiler"],),
            "torch or nsys", "set endpoint_profile_profiler: torch"))
    for key in POSITIVE:
        value, most = asked[key], MOST.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not (
                0 < value <= (most or 2**62)) or (key != "request_timeout_s" and value % 1):
            found.append(finding(
                "profile-setting", "endpoint_profile_" + key, "%r" % (value,),
                "a number above 0%s" % ("" if most is None else ", %d at most" % most),
                "set endpoint_profile_%s: %s, or leave it out" % (key, DEFAULTS[key])))
    return found


def _no_dialect(plan: Plan, where: str, dialects: List[Row], profiler: str) -> Finding:
    engine, version = plan["engine"], plan["engine_version"]
    if engine == "llama_cpp":
        return finding(
            "profiler-none", where, "llama.cpp %s has no profiler that can be asked" % version,
            "an engine that records itself: vLLM",
            "measure it with playbooks/benchmark.yml (llama-bench); on a GPU record it by hand, "
            "beside the endpoint: nsys profile --delay=30 --duration=10 llama-server ...",
            source="llama.cpp, tools/server/README.md: no route starts a profile.")
    known = ["%s to %s" % (row["first"], "before " + row["before"] if row["before"] else "now")
             for row in dialects if (row["engine"], row["profiler"]) == (engine, profiler)]
    return finding(
        "profiler-unknown", where, "%s %s: it is not known how it is told to record with %s"
        % (engine, version, profiler), "a release that is known: %s" % (
            "; ".join(known) or "none of this engine"),
        "take a release in that range%s, or add a row" % (
            ", or endpoint_profile_profiler: torch" if profiler == "nsys" else ""), source=SOURCE)


def _in_the_way(plan: Plan, where: str, row: Row) -> List[Finding]:
    found = []
    if row["profiler"] == "nsys" and plan["runtime"] != "native":
        found.append(finding(
            "nsys-in-container", where, "its engine runs in a container, where no nsys is",
            "an engine that runs natively", "set endpoint_profile_profiler: torch, or serve it by "
            "engine_python", source=row["source"]))
    if row["profiler"] == "nsys" and not plan["gpus"]:
        found.append(finding(
            "nsys-without-gpu", where, "its engine runs on the CPU", "an engine on a GPU: nsys "
            "records between cudaProfilerStart and cudaProfilerStop",
            "set endpoint_profile_profiler: torch", source=row["source"]))
    if not plan["cache"]:
        found.append(finding(
            "profile-without-cache", where, "its plan has no folder that its engine may write into",
            "a cache in the plan", "run playbooks/site.yml, which gives vLLM one"))
    if plan["context"] < 4:
        found.append(finding(
            "profile-context", where, "a context of %d tokens" % plan["context"],
            "room for a prompt and an answer, 4 tokens at least", "give the endpoint more context"))
    left = sorted(set(row["leftover"]) & set(plan["command"]["env"]))
    if left:
        found.append(finding(
            "profiler-variables", where, "its plan sets %s" % ", ".join(left),
            "no variables of the profiler: %s %s takes %s" % (
                plan["engine"], plan["engine_version"], row["flag"]),
            "take them out of its environment and run playbooks/site.yml", source=row["source"]))
    return found


def _no_consent(plan: Plan, where: str) -> Finding:
    return finding(
        "profile-consent", where,
        "to be recorded, %s %s with %s has to be started again twice (%d s at most each): with the "
        "profiler, and back as it is. It answers nobody in between" % (
            plan["engine"], plan["engine_version"], plan["model"]["served_name"],
            plan["start_timeout_s"]),
        "your consent", "set endpoint_profile_consent: true when nobody needs %s"
        % plan["public_url"])


# What is recorded.


def _sizes(plan: Plan, where: str, asked: Dict[str, Any]) -> Tuple[Dict[str, int], List[Finding]]:
    """Tokens of a prompt and of an answer, both together no longer than the context."""
    wanted = asked["prompt_tokens"], asked["output_tokens"]
    output = min(wanted[1], plan["context"] // 2)
    prompt = min(wanted[0], plan["context"] - output - 1)
    sizes = {"requests": int(min(asked["requests"], plan["sequences"] or asked["requests"])),
             "prompt_tokens": int(prompt), "output_tokens": int(output)}
    if (prompt, output) == wanted:
        return sizes, []
    return sizes, [finding(
        "profile-cut-to-context", where, "a prompt of %d and an answer of %d tokens were asked for"
        % wanted, "both in a context of %d" % plan["context"],
        "nothing: %d and %d are taken" % (prompt, output), severity="info")]


def _tokens(plan: Plan) -> List[int]:
    """The first and the last id of the tokens that prompts are made of."""
    vocabulary = (plan["model"].get("geometry") or {}).get("vocabulary") or TOKENS
    return [min(FIRST_TOKEN, vocabulary - 1), min(FIRST_TOKEN + TOKENS, vocabulary) - 1]


def _has_graphs(plan: Plan) -> bool:
    return bool(plan["gpus"]) and "--enforce-eager" not in plan["command"]["argv"]


# How.


def _variant(plan: Plan, row: Row, given: Given, folder: str, asked: Dict[str, Any]) -> Plan:
    values = {"<folder>": folder, "<iterations>": int(asked["iterations"]),
              "<stacks>": bool(asked["stacks"]), "<milliseconds>": int(asked["seconds"]) * 1000}
    port = next(one for one in way_in.inner_ports(plan["port"], None)
                if one not in (plan["engine_port"], plan["port"]))
    url = "http://127.0.0.1:%d" % port
    argv = list(given.rest)
    argv[argv.index("--port") + 1] = str(port)
    added = []
    if row["flag"]:
        added = [row["flag"], json.dumps({
            key: values.get(value, value) if isinstance(value, str) else value
            for key, value in row["fields"].items()})]
    argv += added
    if row["profiler"] == "nsys":
        argv = [asked["nsys"], *NSYS, "--output=%s" % posixpath.join(folder, "trace"), *argv]
    environment = {key: _as_text(values.get(value, value))
                   for key, value in row["environment"].items()}
    return {
        **plan, "flags": list(plan["flags"]) + added,
        "extra_args": given_flags(plan["extra_args"]).rest,
        "bind": "127.0.0.1", "port": port, "engine_port": port, "url": url, "public_url": url,
        "way_in": False, "tls": "none", "tls_certificate": "", "tls_key": "", "beside": False,
        "command": {"argv": argv, "env": dict(sorted({
            **plan["command"]["env"], **environment}.items()))},
    }


def _as_text(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def given_flags(argv: List[str]) -> Given:
    """The profiler's flags among these words: ``--profiler-config`` with JSON, and with a field."""
    words, rest, fields = [], [], {}
    taken = False
    for at, word in enumerate(argv):
        if taken:
            taken = False
            continue
        name, sign, value = word.partition("=")
        flag, _, field = name.replace("_", "-").partition(".")
        if flag != "--profiler-config":
            rest.append(word)
            continue
        words.append(word)
        if not sign and at + 1 < len(argv):
            value, taken = argv[at + 1], True
            words.append(value)
        if field:
            fields[name.partition(".")[2].replace("-", "_")] = value
        else:
            fields.update(_object(value))
    return Given(words, fields, rest)


def _object(text: str) -> Dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _replaced(where: str, given: Given) -> List[Finding]:
    """What becomes of flags of the profiler that the endpoint has, and whether they are right."""
    if not given.words:
        return []
    found = [finding(
        "profiler-flags-replaced", where, "its extra_args have flags of the profiler",
        "those of this profile while it is recorded", "nothing: they are back afterwards",
        severity="info")]
    folders = [key for key in given.fields if key.startswith("torch_profiler")]
    if folders and given.fields.get("profiler") != "torch":
        found.append(finding(
            "profiler-flags-wrong", where, "its extra_args have %s without profiler=torch" % (
                ", ".join(sorted(folders))),
            "both: from 0.16.0 on the engine does not start otherwise (torch_profiler_dir is only "
            "applicable when profiler is set to 'torch')",
            "give --profiler-config.profiler=torch too, or take them out of extra_args: "
            "playbooks/profile.yml needs none", severity="warning", source=SOURCE))
    return found
