#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: containers that run with GPUs, and whether they still have them inside."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: gpu_containers
short_description: Read which containers have GPUs, ask inside, and start ours again that lost them
description:
  - Lists the containers that run and have GPUs - how each was given them, whether it is of ours,
    and whether it would lose them when systemd reads its units anew.
  - With O(inside) it asks NVML in each of them, with C(nvidia-smi -L).
  - With O(repair) those that lost a GPU are started again and asked once more - ours, and with
    O(consent) those of others. Whatever gave them their GPUs does so anew at a start.
  - A host without a Docker daemon that answers has none.
options:
  inside:
    description: Whether to ask in each container.
    type: bool
    default: false
  repair:
    description: Whether to start again what lost its GPU. It asks inside, whatever O(inside) says.
    type: bool
    default: false
  consent:
    description: Whether containers of others may be started again too.
    type: bool
    default: false
  timeout_s:
    description: Seconds within which NVML must answer in one that was started again.
    type: int
    default: 30
attributes:
  check_mode:
    description: Says which it would start again, and starts none.
    support: full
  diff_mode:
    description: No file is changed, so there is no difference to show.
    support: none
author:
  - Firstlight contributors
"""

EXAMPLES = r"""
- name: Look whether containers still have their GPUs
  gpu_containers:
    inside: true
  register: __containers
"""

RETURN = r"""
engine:
  description: Whether a daemon answered.
  returned: always
  type: bool
cgroup_driver:
  description: C(systemd) or C(cgroupfs); C(null) where no daemon answered.
  returned: always
  type: str
containers:
  description: Those that run and have GPUs.
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: Its id.
      type: str
    name:
      description: Its name.
      type: str
    image:
      description: What it was made from.
      type: str
    endpoint:
      description: Name of the endpoint of ours that it is; C(null) for one of others.
      type: str
    root:
      description: The C(firstlight_root) that one of ours belongs to.
      type: str
    by:
      description:
        - How it was given GPUs - C(cdi), C(hook), C(runtime), C(nodes) or C(privileged).
      type: str
    names:
      description: The devices that it was given, as they were named.
      type: list
      elements: str
    allowed:
      description: Whether systemd knows that it uses them; C(null) where that was not asked.
      type: bool
    gpus:
      description: UUIDs that NVML gives inside; C(null) where nobody asked, or could.
      type: list
      elements: str
    reason:
      description: Why there are none, or what NVML said; empty where all is well.
      type: str
threatened:
  description: Names of those that lose their GPUs when systemd reads its units anew.
  returned: always
  type: list
  elements: str
findings:
  description: What is wrong with the GPUs inside, now.
  returned: always
  type: list
  elements: dict
restarted:
  description: Names of those that were started again, or would be.
  returned: always
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.firstlight import reload
from ansible.module_utils.firstlight.docker_api import Api, Away, Refused
from ansible.module_utils.firstlight.host import gpu_containers
from ansible.module_utils.firstlight.planning import reload_guard


def observe(api, inside):
    """What runs with GPUs; nothing where no daemon answers."""
    try:
        return {"engine": True, **gpu_containers.read(api, inside)}
    except Away:
        return {"engine": False, "cgroup_driver": None, "containers": []}


def plan(found, consent):
    """The containers to start again."""
    return [one for one in found["containers"] if reload_guard.is_lost(one)
            and (consent or reload_guard.is_ours(one))]


def apply(api, lost, timeout_s):
    """Start them again, and ask once more in each."""
    for one in lost:
        problem = reload.started_again(api, one, timeout_s)
        one.update({"gpus": [], "reason": problem} if problem else
                   gpu_containers.inside(api, one["id"]))


def main():
    """Observe, plan, and unless in check mode apply."""
    module = AnsibleModule(
        argument_spec={
            "inside": {"type": "bool", "default": False},
            "repair": {"type": "bool", "default": False},
            "consent": {"type": "bool", "default": False},
            "timeout_s": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    params, api = module.params, Api(timeout_s=gpu_containers.TIMEOUT_S)
    try:
        found = observe(api, params["inside"] or params["repair"])
        lost = plan(found, params["consent"]) if params["repair"] else []
        names = [one["name"] for one in lost]
        if not module.check_mode:
            apply(api, lost, params["timeout_s"])
    except (Away, Refused) as problem:
        module.fail_json(msg="Docker: %s" % problem)
    module.exit_json(
        changed=bool(names), restarted=names, **found,
        threatened=[one["name"] for one in reload_guard.threatened(
            found["containers"], found["cgroup_driver"])],
        findings=reload_guard.lost(found["containers"]))


if __name__ == "__main__":
    main()
