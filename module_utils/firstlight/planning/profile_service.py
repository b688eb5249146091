# SPDX-License-Identifier: Apache-2.0
"""The service of a variant of a plan, made from the one that runs: all but the command stays.

What is kept in a passport is the text that started the endpoint, and the daemon knows the container
that runs; neither depends on what a template or a role of today would make of the plan.
"""

from __future__ import annotations

import re
from typing import Any, Dict

from .service_text import supervisor_command, systemd_command

Plan = Dict[str, Any]

HEADER = "# Written by Firstlight for a profile; what served before comes back after it.\n"
SAFE = re.compile(r"[\w ./:,@+=-]*")
"""Values that no service manager reads anything into."""


class Unknown(ValueError):
    """A definition that is not as ours are."""


def native_definition(text: str, manager: str, of: Plan, plan: Plan) -> str:
    """The text of a unit or of a supervisor program with another command.

    :param text: as the passport has it.
    :param manager: ``systemd`` or ``supervisor``.
    :param of: the plan that the text is of.
    :param plan: the plan that it is to be of.
    :raises Unknown: the text has not the command or the hash of its plan, or a value cannot be
        written.
    """
    env = {key: value for key, value in plan["command"]["env"].items()
           if of["command"]["env"].get(key) != value}
    for value in env.values():
        if not SAFE.fullmatch(value):
            raise Unknown("%r cannot be written into a definition" % value)
    if manager == "systemd":
        added = "".join('Environment="%s=%s"\n' % one for one in sorted(env.items()))
        text = _once(text, 'Environment="FIRSTLIGHT_PLAN=%s"\n' % of["hash"],
                     'Environment="FIRSTLIGHT_PLAN=%s"\n' % plan["hash"])
        return _once(text, "ExecStart=%s\n" % systemd_command(of["command"]["argv"]),
                     "%sExecStart=%s\n" % (added, systemd_command(plan["command"]["argv"])))
    added = "".join(',%s="%s"' % one for one in sorted(env.items()))
    text = _once(text, 'FIRSTLIGHT_PLAN="%s"' % of["hash"],
                 'FIRSTLIGHT_PLAN="%s"%s' % (plan["hash"], added))
    return _once(text, "command=%s\n" % supervisor_command(of["command"]["argv"]),
                 "command=%s\n" % supervisor_command(plan["command"]["argv"]))


def _once(text: str, old: str, new: str) -> str:
    if text.count(old) != 1:
        raise Unknown("its definition has not %s once" % old.strip()[:80])
    return text.replace(old, new)


def container_name(plan: Plan) -> str:
    """The name of the container that a profile runs in."""
    return "firstlight-%s-%s" % (plan["name"], plan["hash"][:8])


def container_definition(plan: Plan) -> str:
    """Compose's text by which the switch and a person know that container."""
    return HEADER + "services:\n  %s:\n    container_name: %s\n" % (
        plan["name"], container_name(plan))


def container_body(seen: Dict[str, Any], plan: Plan) -> Dict[str, Any]:
    """What the daemon makes that container from: all that the one that serves has, image, devices,
    mounts and limits, but for command, variables, port and name.

    :param seen: the container that serves, as the daemon describes it.
    """
    config, port = seen["Config"], plan["engine_port"]
    argv = plan["command"]["argv"]
    env = dict(one.partition("=")[::2] for one in config.get("Env") or [])
    env.update(plan["command"]["env"])
    health = dict(config.get("Healthcheck") or {})
    if health.get("Test"):
        health["Test"] = [*health["Test"][:-1], plan["url"] + "/health"]
    body = {key: config[key] for key in ("User", "WorkingDir", "StopTimeout", "StopSignal")
            if config.get(key)}
    body.update({
        # By its id: a name may be another image's by now.
        "Image": seen["Image"],
        "Entrypoint": argv[:1],
        "Cmd": argv[1:],
        "Env": ["%s=%s" % one for one in sorted(env.items())],
        "Labels": {**(config.get("Labels") or {}), "firstlight.plan": plan["hash"]},
        "ExposedPorts": {"%d/tcp" % port: {}},
        "HostConfig": {
            **seen["HostConfig"],
            "PortBindings": {"%d/tcp" % port: [{"HostIp": "127.0.0.1", "HostPort": str(port)}]},
            # It is to end where it ends.
            "RestartPolicy": {"Name": "no"}, "AutoRemove": False,
        },
    })
    if health:
        body["Healthcheck"] = health
    return body
