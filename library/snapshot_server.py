#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: let the other hosts of a fleet copy snapshots from this one, for a while."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: snapshot_server
short_description: Let other hosts copy snapshots of models from this one
description:
  - Serves the files of some snapshots of a Hugging Face cache to other hosts, over HTTP and as a
    hub does, so that C(model_snapshot), huggingface_hub and C(hf download) can read from it.
  - It serves these snapshots alone, read-only, at one address, to whoever sends O(secret).
  - There is one for each O(root). Where one runs that another O(secret) began, V(started) fails,
    and V(stopped) with a secret leaves it.
  - It is a process of its own that ends by itself after O(limit_s), and sooner where nobody has
    asked for anything in O(idle_s). So it ends, too, when the controller does not come back.
  - What goes over the line is not encrypted. Who can listen there can read it, and O(secret) too.
options:
  root:
    description: C(firstlight_root) on this host.
    type: path
    required: true
  state:
    description: V(started) serves, V(stopped) does not.
    type: str
    choices: [started, stopped]
    required: true
  cache:
    description: The cache that it serves from. Empty means C(models/hub) under O(root).
    type: path
    default: ""
  snapshots:
    description:
      - The snapshots to serve, as the key C(manifest) of what C(model_snapshot) returns has them.
      - A file that the cache lacks is listed and not served.
    type: list
    elements: dict
    default: []
  secret:
    description:
      - What clients send as their token. Needed for V(started).
      - V(stopped) ends the server that was started with it; without a secret, any.
    type: str
    default: ""
  address:
    description:
      - The address of this host's own to serve at. Empty means the first of O(known_as) that is
        one, else what the route to the others begins with.
    type: str
    default: ""
  known_as:
    description: Names and addresses by which this host may be known to others.
    type: list
    elements: str
    default: []
  towards:
    description: Names and addresses of the hosts that are to reach it.
    type: list
    elements: str
    default: []
  port:
    description: The port to serve at; V(0) is any that is free.
    type: int
    default: 8473
  limit_s:
    description: Seconds after which it ends, whatever is being copied.
    type: float
    default: 86400.0
  idle_s:
    description: Seconds without a request after which it ends.
    type: float
    default: 900.0
attributes:
  check_mode:
    description: Says whether it would start or stop the server, and does neither.
    support: full
  diff_mode:
    description: A server has no content to compare.
    support: none
author:
  - Firstlight contributors
"""

EXAMPLES = r"""
- name: Serve a snapshot to the other hosts
  snapshot_server:
    root: /var/lib/firstlight
    state: started
    snapshots: ["{{ __snapshots.snapshots.chat.manifest }}"]
    secret: "{{ vault_secret_of_this_run }}"
    address: 192.0.2.7

- name: Serve nothing any more of this run
  snapshot_server:
    root: /var/lib/firstlight
    state: stopped
    secret: "{{ vault_secret_of_this_run }}"

- name: Serve nothing any more, whoever began it
  snapshot_server:
    root: /var/lib/firstlight
    state: stopped
"""

RETURN = r"""
running:
  description: Whether a server runs now, or would.
  returned: always
  type: bool
url:
  description: Where it serves; empty where it does not, or is not known yet in check mode.
  returned: always
  type: str
  sample: http://192.0.2.7:8473
addresses:
  description: This host's own addresses by which others may reach it, the best one first.
  returned: when started
  type: list
  elements: str
served_bytes:
  description: Bytes of files that it sent so far.
  returned: always
  type: int
requests:
  description: What it was asked for so far.
  returned: always
  type: int
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.firstlight import processes
from ansible.module_utils.firstlight.snapshots import entries, server
from ansible.module_utils.firstlight.transaction import Busy

NOWHERE = ("0.0.0.0", "::")


def observe(params):
    """What runs, what is to run and where: ``{standing, taken, shelf, addresses, address}``.

    ``taken`` is since when another secret's server runs, where that matters.
    """
    found = {"standing": server.standing(params["root"]),
             "taken": server.taken(params["root"], params["secret"]) if params["secret"] else None}
    if params["state"] == "started":
        found["shelf"] = server.Shelf(
            params["cache"] or os.path.join(params["root"], "models", "hub"),
            [entries.manifest_from_dict(one, "snapshots[%d]" % index)
             for index, one in enumerate(params["snapshots"])])
        found["addresses"] = server.addresses(params["towards"])
        found["address"] = address(params, found["addresses"])
    return found


def address(params, own):
    """The address to serve at.

    :raises ValueError: there is none that others could ask for; what to set.
    """
    asked = params["address"]
    if asked in NOWHERE:
        raise ValueError("%s is no address that another host could ask for: name one of %s"
                         % (asked, ", ".join(own) or "this host's"))
    if asked and not server.is_own(asked):
        raise ValueError("%s is no address of this host; to others it has %s"
                         % (asked, ", ".join(own) or "none"))
    known = server.resolved(params["known_as"])
    found = [asked, *(one for one in known if server.is_own(one)), *own]
    chosen = next((one for one in found if one), "")
    if not chosen:
        raise ValueError("this host has no address but its loopback, so that no other can copy "
                         "from it: set model_snapshot_peer_address for it")
    return chosen


def plan(params, found):
    """Whether something has to be done.

    :raises Busy: another run serves.
    """
    if params["state"] == "stopped":
        return found["taken"] is None and server.is_left(params["root"])
    if found["taken"] is not None:
        raise Busy("another run serves from here, since %s" % found["taken"])
    wanted = server.question(found["shelf"], found["address"], params["port"], params["secret"])
    return found["standing"] is None or found["standing"]["question"] != wanted


def apply(params, found):
    """Start or stop it; returns what :func:`server.start` or :func:`server.stop` told."""
    if params["state"] == "stopped":
        return server.stop(params["root"], params["secret"])
    try:
        return server.start(params["root"], found["shelf"], found["address"], params["port"],
                            params["secret"], params["limit_s"], params["idle_s"])
    except OSError as problem:
        holder = processes.holders([params["port"]]).get(params["port"])
        raise OSError("It cannot listen at %s, port %d: %s.%s" % (
            found["address"], params["port"], problem,
            " The port is held by %s (pid %s, user %s); set model_snapshot_peer_port to a free one."
            % (holder["command"], holder["pid"], holder["user"]) if holder else "")) from None


def main():
    """Observe, plan, and unless in check mode apply."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "state": {"type": "str", "required": True, "choices": ["started", "stopped"]},
            "cache": {"type": "path", "default": ""},
            "snapshots": {"type": "list", "elements": "dict", "default": []},
            "secret": {"type": "str", "default": "", "no_log": True},
            "address": {"type": "str", "default": ""},
            "known_as": {"type": "list", "elements": "str", "default": []},
            "towards": {"type": "list", "elements": "str", "default": []},
            "port": {"type": "int", "default": 8473},
            "limit_s": {"type": "float", "default": 86400.0},
            "idle_s": {"type": "float", "default": 900.0},
        },
        supports_check_mode=True,
    )
    params = module.params
    started = params["state"] == "started"
    if started and not params["secret"]:
        module.fail_json(msg="state: started needs a secret; without one anybody could read.")
    try:
        found = observe(params)
        changed = plan(params, found)
        # What another run's has served is none of this one's.
        told = dict(found["standing"] or {}) if found["taken"] is None else {}
        if changed and not module.check_mode:
            told = apply(params, found)
    except Busy as problem:
        module.fail_json(msg="%s; nothing was changed. Wait for it to end, or stop it, as the "
                         "same user: ansible HOST -m snapshot_server -a 'root=%s state=stopped'"
                         % (problem, params["root"]))
    except (OSError, ValueError) as problem:
        module.fail_json(msg="Snapshots cannot be served: %s" % problem)
    known = started and "port" in told and not (changed and module.check_mode)
    result = {"changed": changed, "running": started or found["taken"] is not None,
              "url": server.url(told["address"], told["port"]) if known else "",
              "served_bytes": told.get("served_bytes", 0), "requests": told.get("requests", 0)}
    if started:
        result["addresses"] = found["addresses"]
    module.exit_json(**result)


if __name__ == "__main__":
    main()
