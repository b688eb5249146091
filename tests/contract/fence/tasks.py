# SPDX-License-Identifier: Apache-2.0
"""What tasks may do: assign private names only, use real options, let failures be failures."""

from __future__ import annotations

import re

from . import modules
from .tree import decided, spoken

IGNORED = re.compile(r"\bignore_(errors|unreachable)\b")
# The files of variables that a role may read: its own, by the distribution for example.
OWN_VARIABLES = "{{ role_path }}/vars/"


def assigned_names_are_private(tree):
    """What a role assigns is ``__role_x``, what a playbook assigns is ``__x``."""
    wrong = []
    for file in tree.files("playbooks/**/*.yml", "roles/*/tasks/**/*.yml",
                           "roles/*/handlers/**/*.yml"):
        prefix = "__%s_" % file.parts[1] if file.parts[0] == "roles" else "__"
        for node in tree.nodes(file):
            wrong += [_public("%s:%d" % (file, node.line), how, name, prefix)
                      for how, name in _assigned(tree, file, node) if not _private(name, prefix)]
    for file in tree.files("roles/*/vars/**/*.yml"):
        prefix = "__%s_" % file.parts[1]
        wrong += [_public(file, "a role variable", name, prefix)
                  for name in tree.yaml(file) or {} if not _private(name, prefix)]
    return wrong


# A word of Ansible's own: which Python runs a module, of a task alone.
ANSIBLES = {"ansible_python_interpreter"}


def _private(name, prefix):
    return (str(name).startswith(prefix) or name == prefix.rstrip("_") or name in ANSIBLES)


def _public(where, how, name, prefix):
    return "%s: found %s assigned by %s, wanted a private name, %sx" % (where, name, how, prefix)


def _assigned(tree, file, node):
    if node.get("register"):
        yield "register", node["register"]
    control = node.get("loop_control") or {}
    control = control if isinstance(control, dict) else {"loop_var": control}
    for key in ("loop_var", "index_var"):
        if control.get(key):
            yield key, control[key]
    loops = "loop" in node or any(str(key).startswith("with_") for key in node)
    if loops and not control.get("loop_var"):
        yield "loop", "item"
    called = [task for task in tree.tasks(file) if task.content is node]
    for task in called:
        if task.is_a("set_fact") and isinstance(task.args, dict):
            for name in task.args:
                if name != "cacheable":
                    yield "set_fact", name
        if task.is_a("include_vars"):
            given = task.args.get("file", "") if isinstance(task.args, dict) else task.args
            if not given.startswith(OWN_VARIABLES):
                yield "include_vars", "what is in %s (a catalog is read with lookup('catalog'))" % (
                    given or "a folder")
    # The variables of a role that is called are its options, not names of the caller; a play
    # gives them to all of its roles.
    roles = tree.roles if "hosts" in node else [task.role for task in called if task.role]
    options = {option for role in roles for option in tree.options(role)}
    for name in node.get("vars") or {}:
        if name not in options:
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
            defaults = node.get("module_defaults")
            for module, given in (defaults if isinstance(defaults, dict) else {}).items():
                given = given if isinstance(given, dict) else {}
                known = specs[module]["argument_spec"] if module in specs else given
                wrong += ["%s:%d: module_defaults of %s: found %s, wanted one of %s" % (
                    file, node.line, module, name, spoken(known))
                    for name in sorted(set(given) - set(known))]
    return wrong


def failures_are_not_ignored(tree):
    """No task looks away from a failure: what may fail says so by a condition on its result."""
    wrong = []
    for file in tree.files("*.yml", "playbooks/**/*.yml", "roles/**/*.yml", "library/**/*.py",
                           "molecule/**/*.yml", "inventories/**/*.yml", "tests/**/*.yml"):
        for number, line in enumerate(tree.text(file).splitlines(), 1):
            if IGNORED.search(line):
                wrong.append("%s:%d: found `%s`, wanted block/rescue, or failed_when with a "
                             "condition on the result" % (file, number, line.strip()))
    for file in tree.task_files():
        for node in tree.nodes(file):
            said = node.get("failed_when", "result")
            verdicts = [decided(one) for one in (said if isinstance(said, list) else [said])]
            # All of a list must be true for the task to fail.
            if False in verdicts or None not in verdicts:
                wrong.append("%s:%d: found failed_when: %s, wanted a condition on the result" % (
                    file, node.line, said))
    return wrong
