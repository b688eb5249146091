# SPDX-License-Identifier: Apache-2.0
"""The benchmarks that engines bring themselves: run where the engine is, and read with suspicion.

``vllm bench serve`` asks the endpoint, ``llama-bench`` loads the model once more beside it. Both
end by themselves when their time is over, also where nobody is left who watches them.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from . import load
from .docker_api import FRAME, Api, Away, Refused, quoted
from .planning import benchmark
from .runner import run

Plan = Dict[str, Any]
Point = benchmark.Point

SLACK_S = 15.0
"""What a tool may take to end after its time."""

REPETITIONS = 3
"""Of each test of llama-bench."""

# The load is for loopback, whatever proxy the environment names; nothing is fetched.
ENV = {"NO_PROXY": "*", "no_proxy": "*", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
       "DO_NOT_TRACK": "1"}

# Run by the engine's own Python: argv is a time limit and the tool's flags; says the figures of the
# result, which the tool writes into a file, and the first error. It ends its whole group, so
# nothing of the tool is left over.
VLLM_RUNNER = """
import contextlib, json, os, shutil, signal, subprocess, sys, tempfile
with contextlib.suppress(OSError):
    os.setsid()
folder = tempfile.mkdtemp()
try:
    tool = subprocess.Popen(
        [sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "serve", *sys.argv[2:],
         "--save-result", "--save-detailed", "--result-dir", folder,
         "--result-filename", "result.json"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        said, _ = tool.communicate(timeout=float(sys.argv[1]))
    except subprocess.TimeoutExpired:
        shutil.rmtree(folder, ignore_errors=True)
        os.killpg(0, signal.SIGKILL)
    result = os.path.join(folder, "result.json")
    if tool.returncode or not os.path.exists(result):
        sys.stderr.write(said[-4000:].decode("utf-8", "replace"))
        sys.exit(tool.returncode or 1)
    with open(result) as file:
        found = json.load(file)
    errors = [one for one in found.get("errors") or [] if one]
    found = {key: one for key, one in found.items() if not isinstance(one, (dict, list))}
    print(json.dumps(dict(found, error=str(errors[0])[-500:] if errors else "")))
finally:
    shutil.rmtree(folder, ignore_errors=True)
"""

# Flags of a vLLM server that its client needs as well, and how many words each has.
VLLM_SHARED = {"--tokenizer": 2, "--tokenizer-mode": 2, "--trust-remote-code": 1}
# Flags of a llama-server that mean the same to llama-bench.
LLAMA_SHARED = (
    "--threads", "-t", "--n-gpu-layers", "-ngl", "--flash-attn", "-fa", "--cache-type-k", "-ctk",
    "--cache-type-v", "-ctv", "--batch-size", "-b", "--ubatch-size", "-ub", "--split-mode", "-sm",
    "--tensor-split", "-ts", "--main-gpu", "-mg", "--device", "-dev",
)
# Where images have it: beside the server, in PATH, where the project's own images keep all.
LLAMA_BENCH_PLACES = ("llama-bench", "/app/llama-bench")
# `timeout` and shells say that there is no such program.
NO_PROGRAM = (126, 127)
# What is known of these by their last lines; the last is what ended.
ENDED = re.compile(r"^\S*(?:Error|Exception)\b.*|^error: .*|.*: error: .*", re.MULTILINE)


class Unusable(Exception):
    """The tool cannot be used here, or said nothing that could be relied on."""


class Said(NamedTuple):
    """What a tool ended with; ``rc`` is ``None`` where it did not end by itself."""

    rc: Optional[int]
    stdout: str
    stderr: str


class Native:
    """Beside an engine that runs natively.

    :param env: of the engine.
    """

    def __init__(self, env: Dict[str, str]) -> None:
        self._env = env

    def run(self, argv: List[str], limit_s: float) -> Said:
        """Run a tool. It and its children are ended when its time is over."""
        ran = run(argv, limit_s + SLACK_S, {**self._env, **ENV})
        return Said(ran.rc, ran.stdout, ran.stderr or ran.error)


class Inside:
    """In the container of an engine.

    :param container: its name.
    """

    def __init__(self, container: str) -> None:
        self._container = container

    def run(self, argv: List[str], limit_s: float) -> Said:
        """Run a tool. The daemon ends nothing that it started so: the tool has to do it itself."""
        api = Api(timeout_s=limit_s + 2 * SLACK_S)
        try:
            made = api.post("/containers/%s/exec" % quoted(self._container), {
                "AttachStdout": True, "AttachStderr": True, "Cmd": argv,
                "Env": ["%s=%s" % one for one in sorted(ENV.items())]})
            begun = "/exec/%s" % quoted(str(made["Id"]))
            said = api.call("POST", begun + "/start", {}, {"Detach": False, "Tty": False})
            told = api.get(begun + "/json")
            rc = told["ExitCode"]
        except Away as problem:
            return Said(None, "", str(problem))
        except Refused as problem:
            return Said(NO_PROGRAM[0], "", str(problem))
        except (TypeError, KeyError):
            return Said(None, "", "the daemon's answer has another shape")
        stdout, stderr = (b"".join(part for stream, part in _frames(said) if stream == wanted)
                          .decode("utf-8", "replace") for wanted in (1, 2))
        return Said(rc if type(rc) is int else None, stdout, stderr)


def _frames(said: bytes) -> Iterator[Tuple[int, bytes]]:
    """What came on each stream; the last part may be cut off."""
    at = 0
    while at + FRAME <= len(said):
        length = int.from_bytes(said[at + 4:at + FRAME], "big")
        yield said[at], said[at + FRAME:at + FRAME + length]
        at += FRAME + length


# vllm bench serve.


def vllm_bench(plan: Plan, where: Any, point: Point, limit_s: float) -> Tuple[Point, str]:
    """One load by vLLM's own client.

    :param where: :class:`Native` or :class:`Inside`.
    :param limit_s: seconds for all of it, the start of the tool included.
    :returns: the point with its figures, and what the first request that failed ended with.
    :raises Unusable: with what is wrong.
    """
    argv = [plan.get("engine_python") or "python3", "-c", VLLM_RUNNER, "%.1f" % limit_s,
            *vllm_flags(plan, point)]
    said = where.run(argv, limit_s)
    if said.rc != 0:
        raise Unusable(_why("vllm bench serve", said, limit_s))
    return of_vllm_bench(said.stdout, point), _first_error(said.stdout)


def vllm_flags(plan: Plan, point: Point) -> List[str]:
    """What the client is told. It knows the tokenizer by the model's path on this host."""
    name, argv = plan["model"]["served_name"], plan["command"]["argv"]
    flags = [
        "--backend", "openai", "--base-url", plan["url"], "--endpoint", "/v1/completions",
        "--model", name, "--served-model-name", name, "--dataset-name", "random",
        "--random-input-len", str(point["prompt_tokens"]),
        "--random-output-len", str(point["output_tokens"]),
        "--num-prompts", str(point["requests"]), "--max-concurrency", str(point["concurrency"]),
        "--seed", "0", "--temperature", "0", "--ignore-eos", "--disable-tqdm",
        "--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,99",
    ]
    if "--tokenizer" not in argv:
        flags += ["--tokenizer", plan["model"]["path"]]
    for flag, words in VLLM_SHARED.items():
        if flag in argv:
            at = argv.index(flag)
            flags += argv[at:at + words]
    return flags


def of_vllm_bench(said: str, point: Point) -> Point:
    """The result file of ``vllm bench serve`` as a point.

    Requests that its figures leave out have failed; older releases do not count them.

    :raises Unusable: for anything else than a result of the load that was asked for.
    """
    found = _json(said)
    if not isinstance(found, dict):
        raise Unusable("vllm bench serve wrote no JSON object")
    done, asked = found.get("completed"), found.get("num_prompts")
    if type(done) is not int or asked != point["requests"] or not 0 <= done <= point["requests"]:
        raise Unusable("vllm bench serve tells of %.50r of %.50r requests, %d were asked for" % (
            done, asked, point["requests"]))
    return dict(
        point, tool=benchmark.VLLM_BENCH, failed=point["requests"] - done,
        seconds=_figure(found, "duration"),
        output_tokens_per_second=_figure(found, "output_throughput") if done else None,
        first_token_p50_s=_seconds(found, "p50_ttft_ms", done),
        first_token_p99_s=_seconds(found, "p99_ttft_ms", done),
        per_token_p50_s=_seconds(found, "p50_tpot_ms", done))


def _first_error(said: str) -> str:
    """The last line of a traceback, which says what it was."""
    lines = str(_json(said).get("error") or "").strip().splitlines()
    return lines[-1].strip()[:300] if lines else ""


def _seconds(found: Dict[str, Any], key: str, done: int) -> Optional[float]:
    return round(_figure(found, key) / 1000, 6) if done else None


def _figure(found: Dict[str, Any], key: str) -> float:
    value = found.get(key)
    if not benchmark.is_figure(value):
        raise Unusable("%.100r is no figure for %s" % (value, key))
    return round(float(value), 3)  # type: ignore[arg-type]


# llama-bench.


def llama_bench(plan: Plan, where: Any, point: Point, limit_s: float) -> Point:
    """A prompt and an answer by llama-bench, which loads the model of the plan once more.

    :raises Unusable: as :func:`vllm_bench`.
    """
    for program in llama_bench_programs(plan):
        said = where.run(["timeout", "-k", "5", "%.1f" % limit_s, program,
                          *llama_flags(plan, point)], limit_s)
        if said.rc not in NO_PROGRAM:
            break
    else:
        raise Unusable("there is no llama-bench")
    if said.rc != 0:
        raise Unusable(_why("llama-bench", said, limit_s))
    return of_llama_bench(said.stdout, point)


def llama_bench_programs(plan: Plan) -> List[str]:
    """Where it may be; beside an engine's own file it is, or it is not there."""
    if plan["runtime"] != "docker":
        beside = posixpath.join(posixpath.dirname(plan.get("engine_binary") or ""), "llama-bench")
        return [beside] if plan.get("engine_binary") and os.access(beside, os.X_OK) else []
    server = plan["command"]["argv"][0]
    folder = posixpath.dirname(server)
    return ([posixpath.join(folder, "llama-bench")] if folder else []) + list(LLAMA_BENCH_PLACES)


def llama_flags(plan: Plan, point: Point) -> List[str]:
    """The plan's model and those of its flags that it knows."""
    words = plan["command"]["argv"]
    flags = ["--model", plan["model"]["path"], "-p", str(point["prompt_tokens"]),
             "-n", str(point["output_tokens"]), "-r", str(REPETITIONS), "-o", "json"]
    for at, word in enumerate(words[:-1]):
        if word in LLAMA_SHARED:
            flags += [word, words[at + 1]]
    return flags


def of_llama_bench(said: str, point: Point) -> Point:
    """The JSON of llama-bench as a point of one stream.

    :raises Unusable: for anything else than a test of the prompt and one of the answer.
    """
    rows = _json(said)
    if not isinstance(rows, list):
        raise Unusable("llama-bench wrote no JSON list")
    prompt, answer = (
        _test(rows, n_prompt=point["prompt_tokens"], n_gen=0),
        _test(rows, n_prompt=0, n_gen=point["output_tokens"]))
    first, steps = (sorted(_samples(one)) for one in (prompt, answer))
    total = sum(steps)
    if not total:
        raise Unusable("llama-bench measured no time")
    return {
        "tool": benchmark.LLAMA_BENCH, "concurrency": 1, "requests": len(steps), "failed": 0,
        "prompt_tokens": point["prompt_tokens"], "output_tokens": point["output_tokens"],
        "seconds": round(sum(first) + total, 3),
        "output_tokens_per_second": round(len(steps) * point["output_tokens"] / total, 2),
        "first_token_p50_s": load.rounded(load.quantile(first, 0.5)),
        "first_token_p99_s": load.rounded(load.quantile(first, 0.99)),
        "per_token_p50_s": load.rounded(
            load.quantile([one / point["output_tokens"] for one in steps], 0.5)),
    }


def _test(rows: List[Any], **wanted: int) -> Dict[str, Any]:
    for one in rows:
        if isinstance(one, dict) and all(one.get(key) == value for key, value in wanted.items()):
            return one
    raise Unusable("llama-bench tells of no test with %s" % wanted)


def _samples(test: Dict[str, Any]) -> List[float]:
    """Seconds of each repetition."""
    found = test.get("samples_ns")
    if not (isinstance(found, list) and 1 <= len(found) <= REPETITIONS
            and all(map(benchmark.is_figure, found))):
        raise Unusable("%.100r are no times" % (found,))
    return [one / 1e9 for one in found]


# Both.


def _json(said: str) -> Any:
    try:
        return json.loads(said)
    except (ValueError, RecursionError):
        return None


def _why(tool: str, said: Said, limit_s: float) -> str:
    """Why it ended as it did: the line of its output that says so, else the last one."""
    if said.rc in (-9, 124, 137) or (said.rc is None and "no answer within" in said.stderr):
        return "%s did not end within %g s" % (tool, round(limit_s))
    lines = [one for one in ENDED.findall(said.stderr) if one.strip()] or [
        one for one in said.stderr.splitlines() if one.strip()] or ["nothing"]
    return "%s ended with %s: %s" % (
        tool, "status %d" % said.rc if said.rc is not None else "no status",
        lines[-1].strip()[:300])
