#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: Python environments, which packages in them work, and wheels that there are."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: prebuilt_wheel_info
short_description: Look into Python environments, and for wheels that may fit them
description:
  - Says what a Python environment is (platform, torch, CUDA, C++ ABI, GPUs) and which packages are
    in it, whether they can be imported, and whether a small kernel of each computes what it should.
    Asked is the environment's own interpreter, in a process that may crash or hang without harm.
  - A kernel that cannot run because there is no GPU, or the GPU is busy, is C(skipped), with the
    reason. That is no failure of the package.
  - Says also which wheels there are of packages, in the wheelhouse of this host and in sources.
  - It reads only, and writes nothing into an environment. An import may fill caches of its user.
options:
  root:
    description:
      - C(firstlight_root), under which the role network_access left how this host goes out. Empty
        means that candidates are looked for without it.
    type: path
    default: ""
  environments:
    description: The environments to look into.
    type: list
    elements: dict
    default: []
    suboptions:
      python:
        description: Path of the interpreter, absolute. It is not resolved through links.
        type: str
        required: true
      rows:
        description: Rows of C(catalog/prebuilt_wheels.yml), of the packages to look for.
        type: list
        elements: dict
        default: []
  probe_s:
    description:
      - Seconds for each step in an environment, which are the start of the interpreter, the import
        of torch, its look for GPUs, and for each package its imports and its kernel.
    type: float
    default: 180
  candidates:
    description: Packages of which wheels are looked for.
    type: list
    elements: dict
    default: []
    suboptions:
      package:
        description: Name of the package.
        type: str
        required: true
      version:
        description: A version or a specifier. Empty means any.
        type: str
        default: ""
      sources:
        description: Where to look, as rows of the catalog say it.
        type: list
        elements: dict
        default: []
      sha256:
        description:
          - SHA-256 of the one file that is wanted, in hex. Where one has it, only that is told.
            Empty means any.
        type: str
        default: ""
      key:
        description:
          - What the answer is returned by. Empty means O(candidates[].package). Questions with
            the same are answered together.
        type: str
        default: ""
  pythons:
    description:
      - Interpreters whose pip is asked for its index, where a source is C(index) C(pip), before
        the one that runs this module. Those of O(environments) are asked too.
    type: list
    elements: str
    default: []
  wheelhouse:
    description: Folder of wheels on this host. Empty means none.
    type: path
    default: ""
  release_api:
    description: URL of the API that is asked for releases.
    type: str
    default: https://api.github.com
  offline:
    description: Whether only what is on this host is looked at.
    type: bool
    default: false
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
- name: See whether flash-attn works in an environment
  prebuilt_wheel_info:
    environments:
      - python: /opt/serve/bin/python
        rows: "{{ lookup('file', 'catalog/prebuilt_wheels.yml') | from_yaml
          | selectattr('package', 'equalto', 'flash-attn') }}"
  register: found

- name: Say why it does not
  ansible.builtin.debug:
    msg: "{{ found.environments['/opt/serve/bin/python'].installed['flash-attn'].imports.why }}"

- name: See which wheels of it there are
  prebuilt_wheel_info:
    root: /var/lib/firstlight
    wheelhouse: /var/lib/firstlight/wheels
    candidates:
      - package: flash-attn
        version: ">=2.8,<3"
        sources:
          - release: Dao-AILab/flash-attention
            tag: v{version}
"""

RETURN = r"""
environments:
  description:
    - Each environment by the path of its interpreter. Its keys C(state) (C(ok), C(missing),
      C(broken) or C(slow)) and C(why) say whether it could be asked; the others are always there.
    - Of the platform there are C(implementation), C(version), C(abi_flags), C(free_threaded),
      C(machine), C(bits), C(libc) (C(name), C(version)), C(prefix), C(base_prefix), C(purelib) and
      C(platlib). C(pip) is its version, or empty.
    - C(writable) is whether packages can be placed there, else C(why_not_writable) says why;
      C(managed) is who else does, C(distribution), C(conda) or nobody.
    - C(torch) has C(state) (C(ok), C(absent), C(broken), C(slow) or C(crashed)), C(why),
      C(version), C(cuda), C(hip), C(cxx11abi), C(seconds), C(devices) (C(name), C(capability)) and
      C(why_no_devices).
    - C(installed) has for each package of the rows null, or C(version), C(location), C(installer),
      C(conda), C(sha256) (of the file that it was installed from, as pip records it of files;
      else empty), C(imports) (C(state) is C(ok), C(failed), C(crashed) or C(slow); C(why),
      C(seconds)) and C(kernel) (C(state) is C(ran), C(failed), C(crashed), C(slow), C(skipped) or
      C(none); C(why), C(error), C(device)).
    - C(beside) has the versions of the packages that make others needless, or null.
      C(facts_unread) has the reasons for what could not be read, by name.
  returned: always
  type: dict
  sample:
    /opt/serve/bin/python:
      python: /opt/serve/bin/python
      state: ok
      version: 3.12.3
      torch: {state: ok, version: 2.11.0+cu130, cuda: "13.0", cxx11abi: true}
      installed:
        flash-attn:
          version: 2.8.3
          imports: {state: ok, why: "", seconds: 1.2}
          kernel: {state: ran, why: "", error: 0.001, device: NVIDIA H200}
half_done:
  description:
    - Those of the interpreters in whose environments a run of C(prebuilt_wheel) was killed, and
      what it left is not put back yet. Empty without O(root).
  returned: always
  type: list
  elements: str
candidates:
  description:
    - By C(key) or else by package what files there are, wheels and source distributions, each with
      C(file), C(url), C(path), C(sha256), C(size), C(requires_python), C(yanked), C(source),
      C(place) (0 for the wheelhouse, then that of its source) and C(built_for).
  returned: always
  type: dict
  sample:
    flash-attn:
      - file: flash_attn-2.8.3+cu12torch2.8cxx11abiTRUE-cp312-cp312-linux_x86_64.whl
        url: https://files.example.org/flash_attn-2.8.3%2Bcu12torch2.8cxx11abiTRUE-cp312-cp312-linux_x86_64.whl
        path: ""
        sha256: 0b1c2ae3fb5bbcc6dcc8bd3e5e1d4c0d6e9b7f4f7b9c9d3d2ad9fdb2a6d1a9b7
        size: 256040057
        requires_python: ">=3.9"
        yanked: ""
        source: release v2.8.3 of Dao-AILab/flash-attention
        built_for: {}
house:
  description:
    - The files of the wheelhouse that its manifest names, each with C(sha256), C(size), C(source)
      and C(built_for). Empty without O(wheelhouse).
  returned: always
  type: dict
findings:
  description: What is wrong with sources or with the wheelhouse.
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: Stable name of the kind of finding.
      type: str
    severity:
      description: C(info), C(warning), C(error) or C(fatal).
      type: str
    subject:
      description: What it is about.
      type: str
    found:
      description: What there is.
      type: str
    wanted:
      description: What there should be.
      type: str
    evidence:
      description: What was read, and where.
      type: str
    remedy:
      description: What to change.
      type: str
    needs_root:
      description: Whether the remedy needs root on the host.
      type: bool
    source:
      description: Where the knowledge behind it comes from.
      type: str
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.firstlight import network_settings
from ansible.module_utils.firstlight.wheels import candidates, environment
from ansible.module_utils.firstlight.wheels.house import House
from ansible.module_utils.firstlight.wheels.installed import Stash


def look_into(asked, probe_s):
    """The environments by their interpreters; one that is named twice is looked into once."""
    rows = {}
    for one in asked:
        rows.setdefault(one["python"], []).extend(one["rows"])
    return {python: environment.read(python, of_it, probe_s) for python, of_it in rows.items()}


def half_done(root, pythons):
    """The interpreters in whose environments a killed run left what has to be put back."""
    changes = {python: Stash(root, python).change(os.path.join(root, "journal"), 0.0)
               for python in pythons if root}
    return [python for python, one in changes.items() if one.half_done and not one.under_way]


def look_for(params, house, env, pythons):
    """Candidates by question, files of the wheelhouse, and findings."""
    found = {}
    files_there, findings = house.read() if house else ({}, [])
    for one in params["candidates"]:
        files, wrong = candidates.find(
            one["package"], one["version"], one["sources"], house, params["release_api"],
            params["offline"], env, pythons)
        files = [file for file in files if file["sha256"] == one["sha256"].lower() != ""] or files
        known = found.setdefault(one["key"] or one["package"], [])
        known.extend(file for file in files if file not in known)
        findings.extend(new for new in wrong if new not in findings)
    return found, files_there, findings


def main():
    """Look, and say what is there."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": ""},
            "environments": {
                "type": "list", "elements": "dict", "default": [],
                "options": {
                    "python": {"type": "str", "required": True},
                    "rows": {"type": "list", "elements": "dict", "default": []},
                },
            },
            "probe_s": {"type": "float", "default": 180},
            "candidates": {
                "type": "list", "elements": "dict", "default": [],
                "options": {
                    "package": {"type": "str", "required": True},
                    "version": {"type": "str", "default": ""},
                    "sources": {"type": "list", "elements": "dict", "default": []},
                    "sha256": {"type": "str", "default": ""},
                    "key": {"type": "str", "default": "", "no_log": False},
                },
            },
            "pythons": {"type": "list", "elements": "str", "default": []},
            "wheelhouse": {"type": "path", "default": ""},
            "release_api": {"type": "str", "default": "https://api.github.com"},
            "offline": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    params = module.params
    if not params["probe_s"] > 0:
        module.fail_json(msg="probe_s is %g, wanted a number of seconds above 0. Change "
                             "`prebuilt_wheel_probe_s`." % params["probe_s"])
    try:
        house = House(params["wheelhouse"]) if params["wheelhouse"] else None
        env = network_settings.read(params["root"]) if params["root"] else {}
        environments = look_into(params["environments"], params["probe_s"])
        pythons = [*params["pythons"], *(python for python, one in environments.items()
                                         if one["pip"] and python not in params["pythons"])]
        found, files_there, findings = look_for(params, house, env, pythons)
        module.exit_json(
            changed=False,
            environments=environments,
            half_done=half_done(params["root"], environments),
            candidates=found,
            house=files_there,
            findings=findings,
        )
    except OSError as problem:
        module.fail_json(msg="%s: %s" % (
            problem.filename or "a temporary file", problem.strerror or problem))


if __name__ == "__main__":
    main()
