# SPDX-License-Identifier: Apache-2.0
"""The fence stays out of the way: a role, a module and a catalog in order break none of its rules.

What they use is what the project is going to need: variables by distribution, handlers, blocks,
polling tasks, nested options, secrets, versions with a release candidate.
"""

from __future__ import annotations

import checkout
import pytest
from fence import RULES
from fence.tree import Tree

FILES = {
    "roles/note/README.md": """# note

Writes a note, because somebody has to.

Variables: [reference](../../docs/reference/roles.md), or `ansible-doc -t role note`.
""",
    "roles/note/meta/argument_specs.yml": """---
argument_specs:
  main:
    short_description: Write a note
    description: Writes it where it is wanted.
    options: &options
      note_path:
        description: Where.
        type: path
        required: true
      note_lines:
        description: What, line by line.
        type: list
        elements: dict
        default: []
        options:
          text: {description: The words., type: str, required: true}
  remove:
    short_description: Remove it
    description: Removes it.
    options: *options
""",
    "roles/note/defaults/main.yml": """---
# What, line by line.
note_lines: []
# Not set here, because whoever calls the role knows it:
# note_path: where
""",
    "roles/note/vars/main.yml": "---\n__note_folder: \"{{ note_path | dirname }}\"\n",
    "roles/note/vars/Debian_12.yml": "---\n__note_packages: [coreutils]\n",
    "roles/note/tasks/main.yml": """---
- name: Read what differs between distributions
  ansible.builtin.include_vars: "{{ role_path }}/vars/{{ ansible_facts['distribution'] }}_12.yml"

- name: Do what is needed
  ansible.builtin.include_tasks: "{{ note_lines | length > 0 }}.yml"

- name: Write it, or say what is in the way
  block:
    - name: Write
      note_info:
        path: "{{ note_path }}"
        lines:
          - text: "{{ __note_line }}"
            colour: red
        state: kept
        api_key: "{{ vault_note_key }}"
      loop: "{{ note_lines }}"
      loop_control:
        loop_var: __note_line
      register: __note_written
      failed_when: (__note_written.bytes or 0) == 0
      async: 600
      poll: 5
      notify: Show the note
  rescue:
    - name: Say so
      ansible.builtin.fail:
        msg: "{{ __note_written.msg }}"
""",
    "roles/note/tasks/remove.yml": """---
- name: remove | Take it away
  ansible.builtin.file:
    path: "{{ note_path }}"
    state: absent
""",
    "roles/note/handlers/main.yml": """---
- name: Show it
  ansible.builtin.debug:
    msg: "{{ __note_folder }}"
  listen: Show the note
""",
    "molecule/note/molecule.yml":
        "---\nscenario:\n  test_sequence: [check, converge, idempotence, check, verify]\n",
    "molecule/note/converge.yml": """---
- name: Converge
  hosts: all
  gather_facts: false
  vars:
    note_path: /tmp/note
    __note_of_the_play: 1
  tasks:
    - name: Write the note
      ansible.builtin.include_role:
        name: note

    - name: Remove the note
      ansible.builtin.include_role:
        name: note
        tasks_from: remove
      vars:
        note_lines: []
""",
    "molecule/note/verify.yml": """---
- name: Verify
  hosts: all
  gather_facts: false
  tasks:
    - name: Read the note
      ansible.builtin.stat:
        path: /tmp/note
      register: __note

    - name: It is there
      ansible.builtin.assert:
        that:
          - __note.stat.exists
          - (__note.stat.size or 0) > 0 or not __note.stat.isreg
        quiet: true
""",
    "library/note_info.py": '''#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: a note."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: note_info
short_description: Read a note
description:
  - Reads it.
options:
  path: {description: Where., type: path, required: true}
  state: {description: How., type: str, choices: [kept, gone], default: gone}
  api_key: {description: Of the reader., type: str}
  lines:
    description: What.
    type: list
    elements: dict
    suboptions:
      text: {description: The words., type: str, required: true}
      colour: {description: Of them., type: str, default: black}
attributes:
  check_mode: {description: Changes nothing., support: full}
  diff_mode: {description: Changes nothing., support: none}
author: [Firstlight contributors]
"""

EXAMPLES = r"""
- name: Read a note
  note_info: {path: /tmp/note, state: kept, lines: [{text: a}]}
"""

RETURN = r"""
bytes: {description: How long it is., type: int, returned: always}
"""

from ansible.module_utils.basic import AnsibleModule


def main():
    """Read it."""
    AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["kept", "gone"], "default": "gone"},
            "api_key": {"type": "str", "no_log": True},
            "lines": {"type": "list", "elements": "dict", "options": {
                "text": {"type": "str", "required": True},
                "colour": {"type": "str", "default": "black"},
            }},
        },
        required_if=[("state", "kept", ["lines"])],
        supports_check_mode=True,
    ).exit_json(bytes=0)
''',
    "catalog/notes.yml": """---
# What is known of notes.
# Sorted by: name, version.
- {name: a, version: 0.9.1, below: "", source: "https://example.org/notes"}
- {name: a, version: 0.24.0rc1, below: "0.25", source: "Tried on Debian 12, it was there."}
- {name: a, version: 0.24.0, below: "", source: "Read in the notes of that release, 2026-01."}
""",
    "tests/unit/test_note_info.py": """# SPDX-License-Identifier: Apache-2.0
import pytest


def holds(note):
    check(note)


def check(note):
    assert note


@pytest.mark.skipif(True, reason="no notes here")
def test_a_note_holds(note):
    holds(note)


def test_a_note_that_is_gone_is_an_error(note, remote_calls):
    with pytest.raises(OSError):
        note()


def test_a_note_costs_nothing(remote_calls):
    remote_calls.expect(role={})
""",
    "roles/note/files/picture.png": "\x89PNG\x00\xff",
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the checkout with more in it."""
    root = checkout.copy(tmp_path_factory.mktemp("good"))
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode("latin-1"))
    return Tree(root)


# That a new role and module want `make docs` is right, and planted elsewhere.
@pytest.mark.parametrize("rule", [name for name in RULES if name != "reference_is_fresh"])
def test_what_is_in_order_breaks_no_rule(rule, tree):
    assert RULES[rule](tree) == []
