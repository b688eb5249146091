# SPDX-License-Identifier: Apache-2.0
"""Every command of ``make lint`` can fail: each meets a tree in which its kind is planted."""

from __future__ import annotations

import os
import shutil
import subprocess

import checkout
import pytest

TASKS = """---
- name: more | Do not do this
  ansible.builtin.command: "true"

- name: Lacks its prefix
  ansible.builtin.debug:
    msg: "{{ [1,2] }}"
  when: ansible_facts['x'] == ""

- name: more | Show a password
  ansible.builtin.user:
    name: someone
    password: "{{ item }}"
  loop: [a]

- name: more | Keep an owner
  ansible.posix.synchronize:
    src: a
    dest: b

- name: more | Write a file
  ansible.builtin.template:
    src: more.conf
    dest: /etc/more.conf
    mode: "0644"
"""
# What is planted: a file, and its text to add.
PLANTS = {
    "library/more.py": "import os\n",
    "catalog/more.yml": "a:   1\n",
    "roles/toolbelt/tasks/more.yml": TASKS,
    "roles/toolbelt/templates/more.conf": "x\n",
    "roles/more/tasks/main.yml": "---\n- name: Say\n  ansible.builtin.debug:\n    msg: x\n",
    "module_utils/firstlight/more.py": "def more(x):\n    return x\n",
    "filter_plugins/more.py":
        "from ansible.module_utils.firstlight import findings\n\nfindings.text(1)\n",
    "ansible.cfg": "\n[defaults_more]\nresult_format = yaml\n",
    "changelogs/fragments/more.yml": "---\nmore:\n  - text\n",
    ".github/workflows/more.yml": "---\non: push\njobs:\n  x:\n    run: make\n",
}
# The first words of each command of `make lint`, and what it must say of the plants.
CAUGHT = {
    "ruff check": ["library/more.py", "F401", "D100"],
    "yamllint --strict": ["catalog/more.yml", "document-start", "colons"],
    "ansible-lint": [
        "no-changed-when", "name[prefix]", "jinja[spacing]", "empty-string-compare",
        "no-log-password", "no-same-owner", "jinja-template-extension", "role-argument-spec"],
    "mypy": ["module_utils/firstlight/more.py:1: error: Function is missing",
             'filter_plugins/more.py:3: error: Argument 1 to "text"'],
    "ansible-config validate": ["defaults_more"],
    "antsibull-changelog lint": ["changelogs/fragments/more.yml", "more"],
    "check-jsonschema": [".github/workflows/more.yml", "runs-on"],
}


def commands():
    """The commands of ``make lint``, as make would run them in a made environment."""
    printed = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "--assume-old=.venv-dev/ready", "lint"],
        cwd=checkout.ROOT, stdout=subprocess.PIPE, text=True, check=True,
        env={key: value for key, value in os.environ.items() if not key.startswith("MAKE")})
    return printed.stdout.splitlines()


def tool(command):
    """The command without the PATH before it, in which there may be spaces."""
    return command.partition(':$PATH" ')[2]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A repository with everything planted in it, and without much else, which takes long."""
    root = checkout.copy(tmp_path_factory.mktemp("lint"))
    others = [role for role in (root / "roles").iterdir() if role.name != "toolbelt"]
    for folder in (root / "molecule", root / "playbooks", root / "tests" / "unit", *others):
        shutil.rmtree(folder)
    (root / "site.yml").unlink()
    for file, text in PLANTS.items():
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((path.read_text() if path.exists() else "") + text)
    # ansible-lint and antsibull-changelog find the root by it.
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    return root


def test_every_command_of_make_lint_has_something_planted():
    tools = [tool(line) for line in commands()]
    assert len(tools) == len(CAUGHT)
    assert [head for head in CAUGHT for one in tools if one.startswith(head)] == list(CAUGHT)


# CI builds images meanwhile.
@pytest.mark.timeout(700)
@pytest.mark.parametrize("head", CAUGHT)
def test_what_is_planted_is_caught_and_named(head, planted):
    (command,) = [line for line in commands() if tool(line).startswith(head)]
    ran = subprocess.run(command, shell=True, cwd=planted, text=True, timeout=600, check=False,
                         env=dict(os.environ, ANSIBLE_CONFIG=str(planted / "ansible.cfg")),
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert ran.returncode != 0, ran.stdout
    assert [words for words in CAUGHT[head] if words not in ran.stdout] == [], ran.stdout


def test_the_linters_have_nothing_to_skip():
    text = (checkout.ROOT / ".ansible-lint").read_text()
    assert "skip_list: []" in text
    assert "warn_list" not in text
    assert "profile: production" in text
