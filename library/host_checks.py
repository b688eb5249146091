#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: find what keeps programs of a host from its GPU's libraries."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: host_checks
short_description: Find what stands between programs and libcuda, cause by cause
description:
  - Reads the linker cache, what C(ldconfig) lists and what it would list, where libraries of a
    driver lie, the links to them, C(LD_LIBRARY_PATH), and what Triton needs of the Pythons that run
    engines. Last, a process of its own loads C(libcuda.so.1) and starts CUDA, for 30 s at most.
  - Several causes have the same symptom and opposite remedies; each finding is a cause, and what
    only follows from another is not told. A healthy host and one without a GPU give none.
  - What is read is held against the rows of C(catalog/library_checks.yml).
options:
  root:
    description: C(firstlight_root) on this host; empty means the default of the user.
    type: path
    default: ""
  checks:
    description: Rows of C(catalog/library_checks.yml).
    type: list
    elements: dict
    required: true
  places:
    description: Rows of C(catalog/library_places.yml), where a libcuda may lie.
    type: list
    elements: dict
    default: []
  tritons:
    description: Rows of C(catalog/triton_releases.yml).
    type: list
    elements: dict
    default: []
  pythons:
    description:
      - Pythons of this host that run engines. Their Triton, a C compiler and their headers are
        looked for; none are where this is empty.
    type: list
    elements: path
    default: []
attributes:
  check_mode:
    description: It reads only.
    support: full
  diff_mode:
    description: It changes nothing, so there is no difference.
    support: none
author:
  - Firstlight contributors
"""

EXAMPLES = r"""
- name: Find what keeps programs from libcuda
  host_checks:
    checks: "{{ lookup('ansible.builtin.file', 'catalog/library_checks.yml') | from_yaml }}"
    places: "{{ lookup('ansible.builtin.file', 'catalog/library_places.yml') | from_yaml }}"
    tritons: "{{ lookup('ansible.builtin.file', 'catalog/triton_releases.yml') | from_yaml }}"
    pythons: [/opt/vllm/bin/python]
"""

RETURN = r"""
findings:
  description: What was found, in the shape that all findings have.
  returned: always
  type: list
  elements: dict
remedies:
  description: Names of the safe remedies that help, sorted, as C(linker_cache).
  returned: always
  type: list
  elements: str
helps:
  description: The safe remedy that helps, by the id of the finding.
  returned: always
  type: dict
  sample: {linker-cache-missing: linker_cache}
environment:
  description:
    - Variables with which an engine on this host finds libcuda where the host itself cannot be
      mended; empty where it does without, or where the links for it were not made yet.
  returned: always
  type: dict
  sample: {TRITON_LIBCUDA_PATH: /var/lib/firstlight/libraries}
blocks:
  description:
    - What does not work on this host, in that environment either, and what no repair here would
      mend.
  returned: always
  type: list
  elements: dict
  contains:
    stops:
      description: C(cuda), C(triton) or C(both).
      type: str
    python:
      description: The Python that is concerned; empty where all programs are.
      type: str
    finding:
      description: The finding.
      type: dict
seen:
  description: What was read, for whoever wants to know more.
  returned: always
  type: dict
  contains:
    cache:
      description: The cache file, C(state), C(detail), C(movable) and the number of C(libraries).
      type: dict
    tool:
      description: The program C(/sbin/ldconfig), C(state) and C(detail).
      type: dict
    libraries:
      description: Every libcuda that was found, its folder, kind, size, version and links.
      type: list
      elements: dict
    dangling:
      description: Links of libcuda that lead nowhere.
      type: list
      elements: dict
    loaded:
      description: What a fresh process got; null where there is nothing to load.
      type: dict
    kernel_module:
      description: Version of the kernel module that is loaded; null where none tells it.
      type: str
    pythons:
      description: What was read of the Pythons that run engines.
      type: list
      elements: dict
    unread:
      description: Why something could not be read, by what it is.
      type: dict
elapsed_s:
  description: Seconds that all of it took.
  returned: always
  type: float
"""

import os
import time

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.firstlight import library_path, paths
from ansible.module_utils.firstlight.host.reading import Reader

SYSTEM_ROOT = "/"


def main():
    """Observe and judge; nothing is ever changed."""
    module = AnsibleModule(argument_spec=library_path.SPEC, supports_check_mode=True)
    started = time.monotonic()
    reader, root = Reader(SYSTEM_ROOT), paths.root(module.params["root"])
    looked = library_path.look(reader, module.params, os.environ)
    told = library_path.told(looked, library_path.environment_now(reader, looked, root))
    module.exit_json(
        changed=False,
        **library_path.printable(told),
        elapsed_s=round(time.monotonic() - started, 4),
    )


if __name__ == "__main__":
    main()
