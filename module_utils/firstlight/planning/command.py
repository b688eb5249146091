# SPDX-License-Identifier: Apache-2.0
"""A plan as argv and environment, in the dialect of its engine release."""

from __future__ import annotations

import posixpath
from typing import Any, Dict, List

Command = Dict[str, Any]
"""``{argv: [str], env: {str: str}}``; nothing of it goes through a shell."""


def engine_command(plan: Dict[str, Any]) -> Command:
    """The engine's command.

    :param plan: a plan of :func:`.plan.deployment_plan`; its ``command`` and ``hash`` are not
        read.
    :raises KeyError: for a dialect that no function here speaks.
    """
    return DIALECTS[plan["dialect"]](plan)


def _llama_server(plan: Dict[str, Any]) -> Command:
    argv: List[str] = [
        posixpath.join(plan["venv"], "bin", "python"),
        posixpath.join(plan["venv"], "bin", plan["launcher"]),
        "--model", plan["model"]["path"],
        "--alias", plan["model"]["served_name"],
        "--host", plan["bind"],
        "--port", str(plan["port"]),
        "--ctx-size", str(plan["context"]),
        "--parallel", str(plan["parallel"]),
        "--kv-unified",
        # Old prompts in RAM beyond the KV pool are memory that no plan knows of.
        "--cache-ram", "0",
    ]
    return {"argv": argv + list(plan["extra_args"]), "env": {"PYTHONUNBUFFERED": "1"}}


DIALECTS = {"llama_server": _llama_server}
