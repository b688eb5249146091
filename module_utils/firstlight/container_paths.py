# SPDX-License-Identifier: Apache-2.0
"""Whether a container sees the files of the model that it is to serve.

A path is of the host: in a container it is there only where something that is mounted has it, with
all that links on its way lead to, and it is read by the container's user, who has no capabilities.
An engine that does not find it takes it for the id of a repository, and says that it is none.
"""

from __future__ import annotations

import os
import re
from typing import Any, Dict, List, Tuple

from . import model_files, one_shot
from .docker_api import Api, Refused
from .findings import Finding, finding
from .services import ServiceError

Model = Dict[str, Any]
Container = Dict[str, Any]

LIMIT_S = 60.0
SUFFIX = "-paths"
# What an engine opens beside the weights. A folder of a model may have anything else.
OPENED = (".codes", ".jinja", ".json", ".model", ".spm", ".tiktoken")
TEXTS = ("merges.txt", "vocab.txt")
MOST_FILES = 4000
MOST_TOLD = 3
SHARD = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
MISSING, DENIED = "firstlight missing: ", "firstlight denied: "
# To open is what counts: a shell's own test says of root that it may.
SCRIPT = ('for one; do true < "$one" || { status=1; if [ -e "$one" ]; then echo "%s$one"; '
          'else echo "%s$one"; fi; }; done 2>/dev/null; exit "${status:-0}"' % (DENIED, MISSING))
# What of the engine's container decides which files it sees. It needs no device for that.
KEPT = ("Binds", "CapAdd", "CapDrop", "GroupAdd", "LogConfig", "Mounts", "ReadonlyRootfs",
        "SecurityOpt", "UsernsMode")
NO_SHELL = re.compile(r"exec: .*(not found|no such file)", re.IGNORECASE)


def files_of(model: Model) -> List[str]:
    """The files of a model that an engine may open, as they lie on this host; its path alone where
    there is nothing to list.

    :param model: ``path``, ``format`` and ``custom_code`` of a plan's.
    """
    path = model["path"]
    if os.path.isdir(path):
        weights = model_files.weights_of(path)
        ends = OPENED + ((".py",) if model.get("custom_code") else ())
        # What is not there on the host either is no matter of its container.
        small = [one for one in sorted(os.listdir(path))
                 if (one.endswith(ends) or one in TEXTS) and not one.startswith(".")
                 and not model_files.NO_WEIGHTS.fullmatch(one)
                 and os.path.isfile(os.path.join(path, one))]
        return [os.path.join(path, one) for one in sorted([*weights, *small])][:MOST_FILES] or [
            path]
    shards = SHARD.search(path)
    if not shards:
        return [path]
    return ["%s-%05d-of-%s.gguf" % (path[:shards.start()], number, shards.group(1))
            for number in range(1, min(int(shards.group(1)), MOST_FILES) + 1)] or [path]


def findings(model: Model, container: Container, api: Api) -> List[Finding]:
    """What of a model the engine's container does not see or may not read.

    An image without a shell is not asked: its engine says what it finds.

    :param model: ``path`` and ``format`` of a plan's.
    :param container: the engine's, as the daemon describes it; it need not run.
    :raises ServiceError: the daemon does not answer, or the look takes too long.
    """
    given = container["HostConfig"]
    host = {key: given[key] for key in KEPT if given.get(key) is not None}
    try:
        ended = one_shot.run(
            container, SUFFIX, "sh", ["-c", SCRIPT, "sh", *files_of(model)],
            # A daemon may give everyone GPUs, and then who has none must say so.
            {"NVIDIA_VISIBLE_DEVICES": "void"}, {**host, "NetworkMode": "none"}, LIMIT_S, api)
    except Refused as problem:
        if NO_SHELL.search(str(problem)):
            return []
        return [_finding(container, "container-path-missing", str(problem), model["path"])]
    if ended.status is None:
        raise ServiceError("A look at the model's files in the container %s took more than %d s."
                           % (container["Name"].lstrip("/"), LIMIT_S))
    return _told(container, ended.said.splitlines(), ended.status, model["path"])


def _told(container: Container, lines: List[str], status: int, path: str) -> List[Finding]:
    missing, denied = (_after(lines, mark) for mark in (MISSING, DENIED))
    found = []
    if missing:
        found.append(_finding(container, "container-path-missing", "%s not there%s" % (
            _some(missing), _leads(missing[0])), missing[0]))
    if denied:
        found.append(_finding(container, "container-path-unreadable", "%s not readable by %s" % (
            _some(denied), _user(container)), denied[0]))
    if status and not found:
        found.append(_finding(container, "container-path-missing", "a look at its files ended with "
                              "%d: %s" % (status, " ".join(lines)[:300] or "nothing said"), path))
    return found


def _after(lines: List[str], mark: str) -> List[str]:
    return [one[len(mark):] for one in lines if one.startswith(mark)]


def _some(paths: List[str]) -> str:
    more = len(paths) - MOST_TOLD
    return "%s%s %s" % (", ".join(paths[:MOST_TOLD]), " and %d more" % more if more > 0 else "",
                        "is" if len(paths) == 1 else "are")


def _leads(path: str) -> str:
    real = os.path.realpath(path)
    return " (on the host it leads to %s)" % real if real != path and os.path.exists(real) else ""


def _user(container: Container) -> str:
    user = container["Config"].get("User") or ""
    return "uid %s" % user.partition(":")[0] if user else "the image's user, without capabilities"


def _mounted(container: Container) -> List[Tuple[str, str]]:
    given = container["HostConfig"]
    mounts = [(str(one.get("Source")), str(one.get("Target"))) for one in given.get("Mounts") or []]
    return mounts + [tuple((one + ":").split(":")[:2]) for one in given.get("Binds") or []]


def _finding(container: Container, kind: str, said: str, path: str) -> Finding:
    mounts = ", ".join("%s as %s" % pair for pair in _mounted(container)) or "nothing"
    if kind == "container-path-unreadable":
        remedy = ("let it be read: chmod o+r %s (and the others), and o+x every folder above it"
                  % os.path.realpath(path))
    else:
        remedy = ("name the model by the path at which its files lie on this host, or map the "
                  "prefix of %s to that with model_snapshot_path_map" % path)
    return finding(
        kind, "container %s" % container["Name"].lstrip("/"), said,
        "every file of the model at the path that it has on the host, readable by %s"
        % _user(container), remedy, evidence="mounted: %s" % mounts)
