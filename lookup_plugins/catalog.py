# SPDX-License-Identifier: Apache-2.0
"""The catalogs of this project, read once for a run."""

from __future__ import annotations

import os
import re
from typing import Any, Dict, List, Tuple

import yaml
from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

DOCUMENTATION = """
name: catalog
short_description: The rows of a catalog
description:
  - Gives the rows of C(catalog/NAME.yml), as they stand there. No text in them is a template.
  - Each file is parsed once for a run. The callback C(preload) has it parsed before the
    first worker is forked, so that no worker does it again.
options:
  _terms:
    description: Names of catalogs.
    type: list
    elements: str
    required: true
author:
  - Firstlight contributors
"""

EXAMPLES = """
- name: Say which engines are known
  ansible.builtin.debug:
    msg: "{{ lookup('catalog', 'engine_releases') | map(attribute='engine') | unique }}"
"""

RETURN = """
_raw:
  description: The rows of each catalog; those of one where one is named.
  type: list
  elements: list
"""

FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "catalog")
NAME = re.compile(r"[a-z0-9_]+")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Rows = List[Dict[str, Any]]
_known: Dict[str, Tuple[Tuple[int, int], Rows]] = {}


def rows(name: str) -> Rows:
    """The rows of a catalog, which are nobody's to change.

    :raises OSError: it cannot be read.
    :raises yaml.YAMLError: it is no YAML.
    """
    path = os.path.join(FOLDER, name + ".yml")
    status = os.stat(path)
    version = (status.st_mtime_ns, status.st_size)
    known = _known.get(name)
    if known is None or known[0] != version:
        with open(path, encoding="utf-8") as file:
            known = _known[name] = (version, yaml.load(file, LOADER))
    return known[1]


def parse_all() -> None:
    """Have every catalog at hand."""
    for file in sorted(os.listdir(FOLDER)):
        if file.endswith(".yml"):
            rows(file[: -len(".yml")])


class LookupModule(LookupBase):
    """Gives rows."""

    def run(self, terms: Any, variables: Any = None, **options: Any) -> List[Rows]:
        """The rows of each catalog that is named."""
        found = []
        for name in terms:
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise AnsibleLookupError("A catalog has a name such as engine_releases, not %r."
                                         % (name,))
            try:
                found.append(rows(name))
            except (OSError, yaml.YAMLError) as problem:
                raise AnsibleLookupError("The catalog %s cannot be read: %s" % (
                    name, problem)) from problem
        return found
