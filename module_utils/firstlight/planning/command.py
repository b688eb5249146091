# SPDX-License-Identifier: Apache-2.0
"""A plan as argv and environment, in the dialect of its engine release.

Nothing of it goes through a shell, and device lists have no quotes: those of ``docker run --gpus
'"device=0,1"'`` are for that command line's CSV alone (docker/cli, opts/gpus.go).
"""

from __future__ import annotations

import posixpath
from typing import Any, Dict, List

Command = Dict[str, Any]
"""``{argv: [str], env: {str: str}}``. A container is given the first word as its entry point, so
that nothing depends on the image's own."""


# vLLM asks nobody and tells nobody: what it serves is there, or its start fails. And where its
# processes give themselves titles, setproctitle keeps off the environment they are known by.
VLLM_ENV = {
    "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "SPT_NOENV": "1", "VLLM_NO_USAGE_STATS": "1",
}
# What is compiled outlives a start; where it runs, nothing else may be written.
CACHES = {
    "CUDA_CACHE_PATH": "cuda", "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton", "XDG_CACHE_HOME": "xdg",
}


def engine_command(plan: Dict[str, Any]) -> Command:
    """The engine's command, the same in a container and beside one.

    :param plan: a plan of :func:`.plan.deployment_plan`; its ``command`` and ``hash`` are not
        read.
    :raises KeyError: for a dialect that no function here speaks.
    """
    argv = DIALECTS[plan["dialect"]](plan)
    return {"argv": argv + plan["extra_args"], "env": dict(sorted(_environment(plan).items()))}


def _environment(plan: Dict[str, Any]) -> Dict[str, str]:
    """What every engine is given, and what is known to be needed by this one."""
    env = {"PYTHONUNBUFFERED": "1"}
    if plan["engine"] == "vllm":
        env.update(VLLM_ENV)
    if plan["cache"]:
        env.update((key, posixpath.join(plan["cache"], folder)) for key, folder in CACHES.items())
    env.update(plan["env"])
    # A device without a UUID has no name that CUDA knows.
    if plan["runtime"] == "native" and plan["gpus"] and not any(
            "[" in one for one in plan["gpus"]):
        # A container sees only its devices, and by other numbers: it must not be told again.
        env.update(CUDA_DEVICE_ORDER="PCI_BUS_ID", CUDA_VISIBLE_DEVICES=",".join(plan["gpus"]))
    return env


def _llama_server(plan: Dict[str, Any]) -> List[str]:
    argv = [
        *_llama_program(plan),
        "--model", plan["model"]["path"],
        "--alias", plan["model"]["served_name"],
        "--host", plan["listen"],
        "--port", str(plan["engine_port"]),
        "--ctx-size", str(plan["context"]),
        "--parallel", str(plan["parallel"]),
        "--kv-unified",
        # Old prompts in RAM beyond the KV pool are memory that no plan knows of.
        "--cache-ram", "0",
    ]
    return argv + list(plan["flags"])


def _llama_program(plan: Dict[str, Any]) -> List[str]:
    if plan["engine_binary"]:
        return [plan["engine_binary"]]
    if plan["launcher"]:
        return [posixpath.join(plan["venv"], "bin", "python"),
                posixpath.join(plan["venv"], "bin", plan["launcher"])]
    return list(plan["entrypoint"] or ["llama-server"])


def _vllm_serve(plan: Dict[str, Any]) -> List[str]:
    if plan["engine_python"]:
        return _vllm_api_server(plan)
    return ["vllm", "serve", plan["model"]["path"], *_vllm_flags(plan)]


def _vllm_api_server(plan: Dict[str, Any]) -> List[str]:
    return [plan["engine_python"] or "python3", "-m", "vllm.entrypoints.openai.api_server",
            "--model", plan["model"]["path"], *_vllm_flags(plan)]


def _vllm_flags(plan: Dict[str, Any]) -> List[str]:
    argv = [
        "--served-model-name", plan["model"]["served_name"],
        "--host", plan["listen"],
        "--port", str(plan["engine_port"]),
        "--max-model-len", str(plan["context"]),
        "--max-num-batched-tokens", str(plan["batched_tokens"]),
        "--max-num-seqs", str(plan["sequences"]),
        "--tensor-parallel-size", str(plan["tensor_parallel"]),
    ]
    if plan["utilisation"] is not None:
        # On a CPU there is none: a variable says how large the cache is.
        argv += ["--gpu-memory-utilization", "%.3f" % plan["utilisation"]]
    if plan["pipeline_parallel"] > 1:
        argv += ["--pipeline-parallel-size", str(plan["pipeline_parallel"])]
    return argv + list(plan["flags"])


DIALECTS = {
    "llama_server": _llama_server,
    "vllm_api_server": _vllm_api_server,
    "vllm_serve": _vllm_serve,
}
