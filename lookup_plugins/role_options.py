# SPDX-License-Identifier: Apache-2.0
"""The options of roles of this project, read once for a run."""

from __future__ import annotations

import os
from typing import Any, Dict, List

import yaml
from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

DOCUMENTATION = """
name: role_options
short_description: The options of all roles
description:
  - Gives every option of every role of this project by its name, as the roles' argument specs have
    it, whatever the entry point.
  - The specs are parsed once for a run. The callback C(preload) has them parsed before the
    first worker is forked, so that no worker does it again.
options: {}
author:
  - Firstlight contributors
"""

EXAMPLES = """
- name: Say which options there are
  ansible.builtin.debug:
    msg: "{{ lookup('role_options') | list }}"
"""

RETURN = """
_raw:
  description: The options by their names.
  type: list
  elements: dict
"""

FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "roles")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Options = Dict[str, Dict[str, Any]]
_known: Options = {}


def options() -> Options:
    """Every option of every role by its name; they are nobody's to change.

    :raises OSError: a spec cannot be read.
    :raises yaml.YAMLError: it is no YAML.
    """
    if not _known:
        found: Options = {}
        for role in sorted(os.listdir(FOLDER)):
            path = os.path.join(FOLDER, role, "meta", "argument_specs.yml")
            if os.path.exists(path):
                with open(path, encoding="utf-8") as file:
                    specs = yaml.load(file, LOADER)["argument_specs"]
                for spec in specs.values():
                    found.update(spec.get("options") or {})
        # Only whole: the next who asks would take a part for all of it.
        _known.update(found)
    return _known


class LookupModule(LookupBase):
    """Gives the options."""

    def run(self, terms: Any, variables: Any = None, **given: Any) -> List[Options]:
        """All of them."""
        try:
            return [options()]
        except (OSError, yaml.YAMLError) as problem:
            raise AnsibleLookupError("A role's options cannot be read: %s" % problem) from problem
