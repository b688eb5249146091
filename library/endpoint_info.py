#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: the state of our endpoints on a host, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: endpoint_info
short_description: Read the state of all endpoints on a host
description:
  - Reads, in one call, what serves on this host - services, processes, passports and health of
    our endpoints - and who holds the ports that are asked about.
options:
  root:
    description: C(firstlight_root). Empty means the default of this user.
    type: path
    default: ""
  ports:
    description: TCP ports whose holders are wanted.
    type: list
    elements: int
    default: []
  libraries:
    description: Shared libraries, by soname, that an engine will need.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Reads only, so it does in check mode what it always does.
    support: full
  diff_mode:
    description: Changes nothing, so there is no difference to show.
    support: none
author:
  - Firstlight contributors
"""

EXAMPLES = r"""
- name: Read what serves on this host
  endpoint_info:
    ports: [8000]
    libraries: [libgomp.so.1]
  register: __endpoints
"""

RETURN = r"""
root:
  description: C(firstlight_root) as it holds on this host.
  returned: always
  type: str
strangers:
  description: Names directly under the root that are not ours.
  returned: always
  type: list
  elements: str
environments:
  description: Names of our virtual environments under C(venvs), unfinished ones included.
  returned: always
  type: list
  elements: str
caches:
  description: Names under C(cache), where engines keep what they compiled.
  returned: always
  type: list
  elements: str
manager:
  description: C(systemd) or C(supervisor), whichever keeps native engines running here.
  returned: always
  type: str
uid:
  description: Whom the modules run as.
  returned: always
  type: int
endpoints:
  description:
    - Our endpoints by name. C(state) is C(absent), C(stopped), C(starting), C(running) or
      C(failed), C(detail) what its service manager says of that, C(restarts) how often that
      started it again since it was told to start it; C(pids) are all its processes,
      whatever started them; C(plan) is the hash of the plan that the running process was started
      with; C(healthy) is whether C(/health) answered 200; C(passport) is the passport or C(null).
    - C(manager) is what keeps it running and C(definition) the SHA-256 of its definition, or
      C(null). C(older) is how many older passports there are to go
      back to. C(half_done) is whether a switch of it was ended in the middle, or is under way.
      C(log) are the last lines of an engine that failed, C(way_in) is what the proxy before it is
      made of, in short (the filter C(way_in_digests) says what it should be), and C(gpus_seen) are
      the GPUs that a container of ours sees now, or C(null).
  returned: always
  type: dict
  sample:
    demo: {name: demo, state: running, detail: "", restarts: 0, older: 0,
           pid: 4711, pids: [4711], plan: 9f2c, healthy: true, strays: [], passport: {},
           manager: systemd, definition: 5feceb66, half_done: false, log: "", way_in: {},
           gpus_seen: null}
containers:
  description:
    - Every container of the host - C(name), C(ports) that it has on the host, and C(endpoint) and
      C(root) by the labels of one of ours. Empty where no Docker daemon answers.
  returned: always
  type: list
  elements: dict
  sample:
    - {name: firstlight-chat-5feceb66, endpoint: chat, root: /var/lib/firstlight, ports: [8000]}
network:
  description: Whether the role C(network_access) has set something on this host.
  returned: always
  type: bool
canaries:
  description: Keys of the canaries that were proven on this host.
  returned: always
  type: list
  elements: str
ports:
  description: Holders of the ports asked about; a free port is left out.
  returned: always
  type: dict
  sample:
    "8000": {pid: 812, command: nginx -g daemon off, user: www-data, endpoint: null, root: null}
python:
  description: The Python that runs the modules, and whether it can make environments.
  returned: always
  type: dict
  sample: {version: 3.11.2, venv: true}
haproxy:
  description: The version of the distribution's HAProxy, or C(null) where there is none.
  returned: always
  type: str
openssl:
  description: Whether the distribution's openssl is there, which makes self-signed certificates.
  returned: always
  type: bool
missing_libraries:
  description: Those of C(libraries) that the loader does not find.
  returned: always
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.firstlight import host_endpoints, paths, services


def main():
    """Read; nothing is ever changed."""
    module = AnsibleModule(argument_spec=host_endpoints.SPEC, supports_check_mode=True)
    params = module.params
    try:
        found = host_endpoints.observe(
            paths.root(params["root"]), params["ports"], params["libraries"])
    except services.ServiceError as problem:
        module.fail_json(msg="The service manager cannot be read: %s" % problem)
    except OSError as problem:
        module.fail_json(msg="%s: %s" % (problem.filename, problem.strerror))
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
