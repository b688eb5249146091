# SPDX-License-Identifier: Apache-2.0
"""The user's own flags for an engine: what the plan gives itself, and what memory depends on."""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, NamedTuple, Tuple

from . import kv

Row = Dict[str, Any]

# Flags that the plan itself gives or reckons with; what they say is asked for by the keys of the
# endpoint. An empty key: nothing says it, the plan does not reckon with other values.
DECIDED: Dict[str, Dict[str, str]] = {
    "vllm": {
        "--model": "model", "--served-model-name": "model", "--host": "bind", "--port": "port",
        "--api-key": "api_key", "--max-model-len": "context",
        "--tensor-parallel-size": "tensor_parallel", "-tp": "tensor_parallel",
        "--pipeline-parallel-size": "tensor_parallel", "-pp": "tensor_parallel",
        "--data-parallel-size": "gpus", "-dp": "gpus", "--nnodes": "gpus", "-n": "gpus",
        "--node-rank": "gpus", "-r": "gpus", "--gpu-memory-utilization": "gpus",
        "--device-memory-utilization": "gpus", "--kv-cache-memory-bytes": "context",
        "--num-gpu-blocks-override": "context", "--data-parallel-size-local": "gpus",
        "-dpl": "gpus", "--no-enable-chunked-prefill": "", "--headless": "", "--uds": "",
        "--grpc": "", "--config": "", "--ssl-keyfile": "",
    },
    "llama_cpp": {
        "--model": "model", "-m": "model", "--alias": "model", "-a": "model", "--host": "bind",
        "--port": "port", "--api-key": "api_key", "--api-key-file": "api_key",
        "--ctx-size": "context", "-c": "context", "--parallel": "", "-np": "",
        "--kv-unified": "", "-kvu": "", "--no-kv-unified": "", "-no-kvu": "",
        "--cache-ram": "", "-cram": "", "--fit": "", "-fit": "", "--n-gpu-layers": "gpus",
        "--gpu-layers": "gpus", "-ngl": "gpus", "--split-mode": "gpus", "-sm": "gpus",
        "--tensor-split": "gpus", "-ts": "gpus", "--main-gpu": "gpus", "-mg": "gpus",
        "--device": "gpus", "-dev": "gpus", "-hf": "model", "-hfr": "model",
        "--hf-repo": "model", "-mu": "model", "--model-url": "model", "-dr": "model",
        "--docker-repo": "model", "-hff": "model", "--hf-file": "model",
        # What is served asks no hub, not even for a part of a model.
        "-hft": "", "--hf-token": "", "-hfd": "", "-hfrd": "", "--hf-repo-draft": "", "-hfv": "",
        "-hfrv": "", "--hf-repo-v": "", "-mmu": "", "--mmproj-url": "",
    },
}
# Flags that memory depends on, and which of the settings they set.
OF_MEMORY: Dict[str, Dict[str, Tuple[str, ...]]] = {
    "vllm": {
        "--kv-cache-dtype": ("key_type", "value_type"),
        "--max-num-batched-tokens": ("batched_tokens",), "--max-num-seqs": ("sequences",),
    },
    "llama_cpp": {
        "--cache-type-k": ("key_type",), "-ctk": ("key_type",),
        "--cache-type-v": ("value_type",), "-ctv": ("value_type",),
        "--ubatch-size": ("batched_tokens",), "-ub": ("batched_tokens",),
        "--flash-attn": ("flash_attention",), "-fa": ("flash_attention",),
    },
}
TYPES = {
    "vllm": ("auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2"),
    "llama_cpp": ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"),
}
SWITCH = ("on", "off", "auto")
# Flags that change memory in ways that no setting of ours has.
UNRECKONED = ("--cpu-offload-gb", "--quantization", "-q", "--dtype", "--speculative-config",
              "--enable-lora", "--lora", "--mmproj", "--model-draft", "-md", "--swa-full",
              "--compilation-config", "-cc", "--limit-mm-per-prompt", "-sc", "-O0", "--block-size",
              "--kv-offloading-size", "--enable-expert-parallel", "-ep", "--hf-overrides",
              "--decode-context-parallel-size", "-dcp", "--distributed-executor-backend",
              "--override-tensor", "-ot", "--cpu-moe", "-cmoe", "--n-cpu-moe", "-ncmoe",
              "--no-kv-offload", "-nkvo", "-mm", "--spec-draft-model", "--ctx-checkpoints",
              "-ctxcp")


class Wrong(NamedTuple):
    """Flags that cannot be given."""

    kind: str
    flags: List[str]
    wanted: str
    remedy: str


def spelled(word: str) -> str:
    """The flag of a word, as the engines know it: both read ``--max_num_seqs`` too, and vLLM
    ``-cc.mode``."""
    flag = word.partition("=")[0].partition(".")[0]
    return flag.replace("_", "-") if flag.startswith("--") else flag


def check(args: List[str], row: Row, where: str) -> List[Wrong]:
    """Flags that the engine would refuse or that the plan gives, before anything is stopped.

    What follows a ``=`` is not shown: it may be a key.

    :param where: of the endpoint, for messages.
    """
    flags = [spelled(one) for one in args if one.startswith("-") and not _is_number(one)]
    engine, known = row["engine"], row["extra_flags"]
    title = "%s %s" % (row["package"] or engine, row["version"])
    unknown = [flag for flag in flags if known and flag not in known]
    decided = [flag for flag in flags if flag in DECIDED[engine] and flag not in unknown]
    keys = sorted({"%s.%s" % (where, DECIDED[engine][flag]) for flag in decided
                   if DECIDED[engine][flag]})
    bad = [flag for flag, value in _values(args, engine) if not _is_sound(engine, flag, value)]
    joined = [spelled(one) for one in args if one.startswith("-") and "=" in one] if (
        engine == "llama_cpp" and not row["launcher"]) else []
    given = settings(args, engine) if not bad else {}
    if {"batched_tokens", "sequences"} <= given.keys() and int(given["sequences"]) > int(
            given["batched_tokens"]):
        bad = [flag for flag, _ in _values(args, engine)]
    found = [
        Wrong("joined-flag", joined, "a flag and its value as two words: %s knows no `=`" % title,
              ""),
        Wrong("unknown-flag", unknown, "for %s: %s (what the plan decides is not listed)" % (
            title, " ".join(known)), ""),
        Wrong("decided-flag", decided, "flags that the plan does not give or reckon with",
              "say it by %s" % ", ".join(keys) if keys else "leave it out"),
        Wrong("removed-flag", [flag for flag in flags if flag in row["removed_flags"]],
              "flags that %s still has" % title, ""),
        Wrong("bad-flag", bad, "a whole number from 1 (a batch holds a token of every sequence), "
              "on, off or auto, or for a type of the cache one of %s" % ", ".join(
                  sorted(TYPES[engine])), ""),
    ]
    return [one for one in found if one.flags]


def settings(args: List[str], engine: str) -> Dict[str, str]:
    """What the flags set of that which memory depends on."""
    return {key: value for flag, value in _values(args, engine)
            for key in OF_MEMORY[engine][flag]}


def unreckoned(args: Iterable[str]) -> List[str]:
    """The flags among them that change memory and are not reckoned with."""
    return [flag for flag in map(spelled, args) if flag in UNRECKONED]


def _values(args: List[str], engine: str) -> List[Tuple[str, str]]:
    found = []
    for one, after in zip(args, [*args[1:], ""]):
        flag = spelled(one)
        if flag in OF_MEMORY[engine]:
            found.append((flag, one.partition("=")[2] if "=" in one else after))
    return found


def _is_sound(engine: str, flag: str, value: str) -> bool:
    key = OF_MEMORY[engine][flag][0]
    if key == "flash_attention":
        return value in SWITCH
    if key in ("key_type", "value_type"):
        return value in TYPES[engine] and value in kv.ELEMENT_BITS
    return value.isascii() and value.isdigit() and int(value[:9]) >= 1 and len(value) <= 8


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
