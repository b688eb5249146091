# SPDX-License-Identifier: Apache-2.0
"""What the callbacks of the controller say of tasks and results, without giving secrets away.

Core's own objects come in (``Task``, ``Play``, ``CallbackTaskResult``); they carry no types.
"""

from __future__ import annotations

import posixpath
from typing import Any, List

JSON_CALLBACKS = ("json", "jsonl")
HIDDEN = "its result is hidden (no_log)"
"""What is told of a result instead of its words."""


def stage_of(task: Any, play: Any) -> str:
    """The role of a task, else its play."""
    if task._role:
        return str(posixpath.basename(task._role.get_name()))
    return str(play.get_name().strip() or "play")


def hosts_of(play: Any) -> List[Any]:
    """The hosts of a play; of a serial one also those whose batch comes later, or never."""
    return list(play.get_variable_manager()._inventory.get_hosts(
        play.hosts, ignore_restrictions=True))


def is_hidden(result: Any) -> bool:
    """Whether no_log was said of a result, by its task or by a part of it."""
    return bool(result.task_fields.get("no_log", result.task.no_log) or "censored" in result.result)


def name_of(task: Any) -> str:
    """The task's name; as it is written where no_log is: a secret may have been put into it."""
    return _written(task) if task.no_log else str(task.name or task.action)


def name_in(result: Any) -> str:
    """The task's name as the host has it; as it is written where the result is hidden."""
    if is_hidden(result):
        return _written(result.task)
    return str(result.task_fields.get("name") or name_of(result.task))


def _written(task: Any) -> str:
    """The name before any variable was put into it."""
    source = task.get_ds()
    return str((source.get("name") if isinstance(source, dict) else "") or task.action)


def is_one_document(stdout_callback: str) -> bool:
    """Whether what a run prints is one document, to which nobody may add a line.

    :param stdout_callback: its name, with or without the collection that it is of.
    """
    return stdout_callback.rpartition(".")[2] in JSON_CALLBACKS


def reason_of(result: Any, whole: bool = False) -> str:
    """Why something failed, of a loop why its first item did; the first line, or all of it."""
    if is_hidden(result):
        return HIDDEN
    text = _said(result.result)
    if whole:
        return text
    lines = [line.strip() for line in text.splitlines()]
    # A heading says nothing without the first thing under it, and of a finding what was found.
    told = lines[:2] if lines[0].endswith(":") else lines[:1]
    told += [line for line in lines[len(told):] if line.startswith("found:")][:1]
    return " ".join(told)[:300]


def _said(result: Any) -> str:
    for one in result.get("results") or []:
        if isinstance(one, dict) and (one.get("failed") or one.get("unreachable")):
            return HIDDEN if "censored" in one else _said(one)
    said = result.get("msg") or result.get("stderr") or result.get("reason")
    text = "\n".join(map(str, said)) if isinstance(said, list) else str(said or "")
    return text.strip() or "no reason given"


def plain(text: str) -> str:
    """Text of others as one line without control characters, which a terminal would obey."""
    return "".join(one if one.isprintable() else " " for one in text)
