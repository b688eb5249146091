# SPDX-License-Identifier: Apache-2.0
"""One description of a container: what it is made with, and the same as Compose has it.

It is made by community.docker and can be read, or run by hand, from its ``compose.yaml``.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from typing import Any, Dict, List, Optional

from ..findings import Finding, finding
from .container_runtime import without_tag

Plan = Dict[str, Any]
Engine = Dict[str, Any]

NETWORK = "firstlight"
"""The bridge network of our containers, on which they do not reach each other."""

STOP_SECONDS = 30
LOG_OPTIONS = {"max-size": "10m", "max-file": "3"}
# vLLM opens a file a shard, a socket a request and more; some daemons give 1024 (Docker 29).
OPEN_FILES = 1048576
# Ours and not the image's: that has the wrong port, and no time for a start.
HEALTH = {
    "llama_cpp": ["CMD", "curl", "--fail", "--silent", "--output", "/dev/null", "--max-time", "4"],
    "vllm": ["CMD", "python3", "-c",
             "import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=4)"],
}
# Where a container that may write nothing else writes.
SCRATCH = "/tmp"
CAPABILITIES = "compute,utility"
# Hubs have 256 of them beside each other.
PART_OF_STORE = re.compile("[0-9a-f]{2}")
# What the legacy hook would lose at a daemon-reload when nobody names it (NVIDIA's own advice).
COMMON_NODES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")


def container_spec(plan: Plan, root: str, engine: Engine) -> Dict[str, Any]:
    """The container of a plan.

    :param plan: a plan whose ``runtime`` is ``docker``.
    :param root: ``firstlight_root``.
    :param engine: of the host: ``cdi_devices``, ``nvidia_runtime``, ``jetson``, ``nofile_max``,
        ``memlock_unlimited``, ``device_nodes`` (by UUID), ``images`` (the daemon's name of an
        image, by the plan's); what is not known is ``None``.
    :returns: ``{name, made, compose, folders}``: the container's name, which stands for all the
        rest; arguments of ``community.docker.docker_container``; a Compose project; and folders
        that must be there, with who owns them. Whose owner is empty stays as it is.
    """
    made = _made(plan, root, engine)
    digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:8]
    name = "firstlight-%s-%s" % (plan["name"], digest)
    made["name"] = name
    return {"name": name, "made": made, "compose": _compose(plan, made), "folders": _folders(plan)}


def _made(plan: Plan, root: str, engine: Engine) -> Dict[str, Any]:
    argv, port = plan["command"]["argv"], plan["engine_port"]
    made: Dict[str, Any] = {
        "image": _image(plan, engine),
        "entrypoint": [argv[0]],
        "command": argv[1:],
        "env": _environment(plan),
        "labels": {
            "firstlight.endpoint": plan["name"], "firstlight.root": root,
            "firstlight.plan": plan["hash"],
        },
        "init": True,
        "network_mode": NETWORK,
        "published_ports": ["127.0.0.1:%d:%d" % (port, port)],
        "mounts": _mounts(plan),
        "tmpfs": ["%s:rw,nosuid,nodev,size=%d" % (SCRATCH, 4 * 2**30)],
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opts": ["no-new-privileges:true"],
        "ulimits": _limits(engine),
        "log_driver": "json-file",
        "log_options": dict(LOG_OPTIONS),
        # A crash is tried again, ever more slowly; that it happened is said at the next run.
        "restart_policy": "unless-stopped",
        "stop_timeout": STOP_SECONDS,
        "healthcheck": {
            "test": [*HEALTH[plan["engine"]], plan["url"] + "/health"],
            "interval": "15s", "timeout": "6s", "retries": 4,
            "start_period": "%ds" % plan["start_timeout_s"],
        },
    }
    if plan["user"]:
        made["user"] = plan["user"]
    if plan["shm_bytes"]:
        made["shm_size"] = str(plan["shm_bytes"])
    made.update(_gpus(plan, engine))
    return made


def _image(plan: Plan, engine: Engine) -> str:
    """The name by which the daemon has it: it finds none by a tag and a digest together."""
    return str((engine.get("images") or {}).get(plan["image"]) or without_tag(plan["image"]))


def _environment(plan: Plan) -> Dict[str, str]:
    """The plan's own; the home that an image may have cannot be written into."""
    return dict(sorted({"HOME": SCRATCH, **plan["command"]["env"]}.items()))


def _mounts(plan: Plan) -> List[Dict[str, Any]]:
    """The model, read-only at the path that it has on the host, and the cache."""
    mounts = [{"type": "bind", "source": one, "target": one, "read_only": True}
              for one in _model_folders(plan["model"])]
    if plan["cache"]:
        mounts.append({"type": "bind", "source": plan["cache"], "target": plan["cache"],
                       "read_only": False})
    return mounts


def _model_folders(model: Dict[str, Any]) -> List[str]:
    """Where a model lies: under its path, and where links of its files lead out of that.

    No folder is in another one of them.
    """
    found = [_needed(model["path"], model)]
    for one in sorted({_whole_store(one) for one in model.get("folders") or []}):
        # The root of a host is nobody's folder of models.
        if one != "/" and not any(
                (one + "/").startswith(other.rstrip("/") + "/") for other in found):
            found.append(one)
    return found


def _whole_store(folder: str) -> str:
    """Of one of the many folders of a hub's store of blobs, which it shares, the store."""
    parent = posixpath.dirname(folder)
    return parent if PART_OF_STORE.fullmatch(posixpath.basename(folder)) and (
        posixpath.basename(parent) == "blobs") else folder


def _needed(path: str, model: Dict[str, Any]) -> str:
    """The folder of the model; a file of a hub's snapshot is a link out of its own."""
    folder = posixpath.dirname(path) if model["format"] == "gguf" else path
    parts = folder.split("/")
    for at, part in enumerate(parts):
        # Any other folder may be called so too.
        if part == "snapshots" and parts[at - 1].startswith("models--"):
            return "/".join(parts[:at])
    return path if folder == "/" else folder


def _folders(plan: Plan) -> List[Dict[str, str]]:
    """Folders that are made before the container: it may write into its cache alone."""
    found = []
    if plan["model"].get("repo_id"):
        # Its files may still be on their way, and what is not there cannot be mounted.
        found.append({"path": _needed(plan["model"]["path"], plan["model"]),
                      "owner": "", "group": ""})
    if plan["cache"]:
        owner, _, group = (plan["user"] or "0:0").partition(":")
        found.append({"path": plan["cache"], "owner": owner, "group": group or owner})
    return found


def _limits(engine: Engine) -> List[str]:
    """What the daemon itself may give: more than that would keep the container from starting."""
    most = engine.get("nofile_max")
    files = OPEN_FILES if most is None else min(OPEN_FILES, most)
    return ["nofile:%d:%d" % (files, files)] + (
        ["memlock:-1:-1"] if engine.get("memlock_unlimited") else [])


# GPUs.


def _gpus(plan: Plan, engine: Engine) -> Dict[str, Any]:
    """The plan's devices by UUID: by CDI where the engine knows them, else by the runtime."""
    uuids = plan["gpus"]
    if not uuids:
        return {}
    if engine.get("jetson"):
        # Its runtime gives all there is (one), and takes no device requests.
        return _by_runtime(plan, "all")
    names = cdi_names(uuids, engine)
    if names:
        return {"device_requests": [
            {"driver": "cdi", "device_ids": names, "capabilities": [["gpu"]]}]}
    # A request for devices would need the toolkit's hook in the daemon's own PATH.
    found = _by_runtime(plan, ",".join(uuids))
    nodes = [node for uuid in uuids for node in (engine.get("device_nodes") or {}).get(uuid, [])]
    if nodes:
        found["devices"] = ["%s:%s" % (node, node) for node in (*COMMON_NODES, *nodes)]
    return found


def _by_runtime(plan: Plan, visible: str) -> Dict[str, Any]:
    return {"runtime": "nvidia", "env": dict(sorted({
        **_environment(plan), "NVIDIA_VISIBLE_DEVICES": visible,
        "NVIDIA_DRIVER_CAPABILITIES": CAPABILITIES}.items()))}


def cdi_names(uuids: List[str], engine: Engine) -> Optional[List[str]]:
    """The devices by the names that a CDI specification has for them; ``None`` unless for all."""
    known = set(engine.get("cdi_devices") or [])
    names = ["nvidia.com/gpu=" + uuid for uuid in uuids]
    return names if names and all(name in known for name in names) else None


# The same for people.


def _compose(plan: Plan, made: Dict[str, Any]) -> Dict[str, Any]:
    """The container as a Compose project of one service, which ``docker compose up`` runs."""
    service: Dict[str, Any] = {
        "container_name": made["name"],
        "image": made["image"],
        "entrypoint": made["entrypoint"],
        "command": made["command"],
        "environment": made["env"],
        "labels": made["labels"],
        "init": made["init"],
        "ports": made["published_ports"],
        "volumes": [dict(one) for one in made["mounts"]],
        "tmpfs": made["tmpfs"],
        "read_only": made["read_only"],
        "cap_drop": made["cap_drop"],
        "security_opt": made["security_opts"],
        "ulimits": {name: {"soft": int(soft), "hard": int(hard)}
                    for name, soft, hard in (one.split(":") for one in made["ulimits"])},
        "logging": {"driver": made["log_driver"], "options": made["log_options"]},
        "restart": made["restart_policy"],
        "stop_grace_period": "%ds" % made["stop_timeout"],
        "healthcheck": made["healthcheck"],
        "networks": [NETWORK],
    }
    for key in ("user", "shm_size", "runtime", "devices"):
        if key in made:
            service[key] = made[key]
    if "device_requests" in made:
        service["deploy"] = {"resources": {"reservations": {"devices": [
            {"driver": one["driver"], "device_ids": one["device_ids"],
             "capabilities": one["capabilities"][0]} for one in made["device_requests"]]}}}
    return {
        "name": "firstlight-" + plan["name"],
        "services": {plan["name"]: _literal(service)},
        "networks": {NETWORK: {"external": True}},
    }


def _literal(value: Any) -> Any:
    """The same with texts in which Compose puts no variable."""
    if isinstance(value, dict):
        return {key: _literal(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_literal(one) for one in value]
    return value.replace("$", "$$") if isinstance(value, str) else value


# What there is against what is wanted.


def containers_to_make(specs: List[Dict[str, Any]], state: Dict[str, Any]) -> List[Dict[str, Any]]:
    """Those of the containers that are not there yet.

    :param specs: as :func:`container_spec` gives them.
    :param state: what ``endpoint_info`` returned.
    """
    there = {one["name"] for one in state["containers"]}
    return [spec for spec in specs if spec["name"] not in there]


def foreign_containers(specs: List[Dict[str, Any]], state: Dict[str, Any]) -> List[Finding]:
    """Containers that have a name of these and were not made by us: they are not touched."""
    there = {one["name"]: one for one in state["containers"]}
    found = []
    for spec in specs:
        labels = spec["made"]["labels"]
        one = there.get(spec["name"])
        if one and (one["endpoint"], one["root"]) != (
                labels["firstlight.endpoint"], labels["firstlight.root"]):
            found.append(finding(
                "container-not-ours", "container %s" % spec["name"],
                "it is there and has not our labels (firstlight.endpoint: %s, firstlight.root: %s)"
                % (one["endpoint"], one["root"]), "that name for the container of endpoint %s"
                % labels["firstlight.endpoint"],
                "rename or remove it: docker rename %s NEW_NAME" % spec["name"]))
    return found
