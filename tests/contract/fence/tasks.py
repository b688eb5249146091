# SPDX-License-Identifier: Apache-2.0
"""What tasks may do: assign private names only, use real options, let failures be failures."""

from __future__ import annotations

import re

from . import modules
from .tree import spoken

IGNORED = re.compile(r"\bignore_errors\b|\bfailed_when:\s*(false|no)\b", re.IGNORECASE)


def assigned_names_are_private(tree):
    """What a role assigns is ``__role_x``, what a playbook assigns is ``__x``."""
    wrong = []
    for file in tree.files("playbooks/**/*.yml", "roles/*/tasks/**/*.yml",
                           "roles/*/handlers/**/*.yml"):
        prefix = "__%s_" % file.parts[1] if file.parts[0] == "roles" else "__"
        for node in tree.nodes(file):
            if "hosts" not in node:
                wrong += [_public("%s:%d" % (file, node.line), how, name, prefix)
                          for how, name in _assigned(tree, file, node)
                          if not _private(name, prefix)]
    for file in tree.files("roles/*/vars/**/*.yml"):
        prefix = "__%s_" % file.parts[1]
        wrong += [_public(file, "a role variable", name, prefix)
                  for name in tree.yaml(file) or {} if not _private(name, prefix)]
    return wrong


def _private(name, prefix):
    return str(name).startswith(prefix) or name == prefix.rstrip("_")


def _public(where, how, name, prefix):
    return "%s: found %s assigned by %s, wanted a private name, %sx" % (where, name, how, prefix)


def _assigned(tree, file, node):
    if node.get("register"):
        yield "register", node["register"]
    for key in ("loop_var", "index_var"):
        if (node.get("loop_control") or {}).get(key):
            yield key, node["loop_control"][key]
    if node.get("loop") is not None and not (node.get("loop_control") or {}).get("loop_var"):
        yield "loop", "item"
    called = [task for task in tree.tasks(file) if task.content is node]
    for task in called:
        if task.is_a("set_fact") and isinstance(task.args, dict):
            for name in task.args:
                if name != "cacheable":
                    yield "set_fact", name
        if task.is_a("include_vars"):
            name = task.args.get("name") if isinstance(task.args, dict) else None
            yield "include_vars", name or "the names in the file"
    # The variables of a role that is called are its options, not names of the caller.
    role = next((task.role for task in called), "")
    for name in node.get("vars") or {}:
        if not (role and name in tree.options(role)):
            yield "vars", name


def our_modules_get_real_options(tree):
    """Every task that calls a module of ours uses options that it has, and those it needs."""
    specs = modules.specs(tree)
    wrong = []
    for task in tree.tasks():
        if task.module in specs:
            wrong += ["%s: %s: %s" % (task.where, task.module, problem)
                      for problem in modules.misused(task.args, specs[task.module])]
    for file in tree.task_files():
        for node in tree.nodes(file):
            for module, given in (node.get("module_defaults") or {}).items():
                strange = set(given) - set(specs[module]) if module in specs else set()
                wrong += ["%s:%d: module_defaults of %s: found %s, wanted one of %s" % (
                    file, node.line, module, name, spoken(specs[module])) for name in strange]
    return wrong


def failures_are_not_ignored(tree):
    """No task looks away from a failure: what may fail says so by a condition on its result."""
    wrong = []
    for file in tree.files("*.yml", "playbooks/**/*", "roles/**/*", "library/**/*.py",
                           "molecule/**/*", "inventories/**/*", "tests/**/*.yml", "docs/**/*"):
        for number, line in enumerate(tree.text(file).splitlines(), 1):
            if IGNORED.search(line):
                wrong.append("%s:%d: found `%s`, wanted block/rescue, or failed_when with a "
                             "condition on the result" % (file, number, line.strip()))
    return wrong
