# SPDX-License-Identifier: Apache-2.0
"""A role's interface: its specs, its defaults, its README, the scenario that plays it."""

from __future__ import annotations

import re

from .tree import spoken

SPEC = "roles/%s/meta/argument_specs.yml"
DEFAULTS = "roles/%s/defaults/main.yml"
COVERED = "molecule/covered_by.yml"


def entry_points_have_specs(tree):
    """Every way into a role has a spec, and every spec a way in."""
    wrong = []
    called = {(task.role, task.args.get("tasks_from", "main")): task.where
              for task in tree.tasks() if task.role in tree.roles
              and "{{" not in task.args.get("tasks_from", "")}
    for role in tree.roles:
        specs = set(tree.specs(role))
        entries = {entry: "roles/%s/tasks/main.yml" % role for entry in ("main",)
                   if tree.text("roles/%s/tasks/main.yml" % role)}
        entries.update({entry.removesuffix(".yml"): where
                        for (name, entry), where in called.items() if name == role})
        wrong += ["%s: found the entry point %s of %s without a spec, wanted it in %s" % (
            where, entry, role, SPEC % role)
            for entry, where in entries.items() if entry not in specs]
        wrong += ["%s: found a spec of %s, wanted the tasks file roles/%s/tasks/%s.yml" % (
            SPEC % role, entry, role, entry)
            for entry in specs if not tree.text("roles/%s/tasks/%s.yml" % (role, entry))]
    return wrong


def specs_are_typed(tree):
    """Every entry point is described, every option is prefixed, described and typed to the leaf."""
    wrong = []
    for role in tree.roles:
        first = {}
        for entry, spec in tree.specs(role).items():
            where = "%s: %s" % (SPEC % role, entry)
            wrong += ["%s: found no %s, wanted a sentence" % (where, key)
                      for key in ("short_description", "description") if not spec.get(key)]
            for name, option in (spec.get("options") or {}).items():
                if not name.startswith(role + "_"):
                    wrong.append("%s: found the option %s, wanted a name that begins with %s_" % (
                        where, name, role))
                if first.setdefault(name, option) != option:
                    wrong.append("%s: found %s described otherwise than in another entry point, "
                                 "wanted one description (a YAML anchor keeps it)" % (where, name))
                wrong += ["%s: %s" % (where, found) for found in _untyped(name, option)]
    return wrong


def _untyped(name, option):
    if not option.get("description"):
        yield "found %s without description, wanted a sentence" % name
    kind = option.get("type")
    if not kind:
        yield "found %s without type, wanted one" % name
    if kind == "list" and not option.get("elements"):
        yield "found the list %s without elements, wanted their type" % name
    if kind == "raw" and "judged by" not in str(option.get("description")):
        yield ("found %s of type raw, wanted a type, or a description with the words 'judged by' "
               "that says who checks it" % name)
    if option.get("required") and "default" in option:
        yield "found %s both required and with a default, wanted one of them" % name
    for inner, suboption in (option.get("options") or {}).items():
        if "default" in suboption:
            yield "found a default of %s.%s, wanted none: Ansible applies no nested default" % (
                name, inner)
        yield from _untyped("%s.%s" % (name, inner), suboption)


def defaults_equal_specs(tree):
    """Defaults and specs say the same: names, values, order; what is required is a comment."""
    wrong = []
    for role in tree.roles:
        file = DEFAULTS % role
        defaults = dict(tree.yaml(file) or {})
        options = tree.options(role)
        specified = {name: option["default"] for name, option in options.items()
                     if "default" in option}
        wrong += ["%s: found %s, wanted it in %s with this default" % (file, name, SPEC % role)
                  for name in defaults if name not in specified]
        wrong += ["%s: found a default of %s, wanted it in %s too" % (SPEC % role, name, file)
                  for name in specified if name not in defaults]
        wrong += ["%s: found a second file of defaults, wanted them in %s" % (other, file)
                  for other in tree.files("roles/%s/defaults/**/*" % role) if str(other) != file]
        both = [name for name in specified if name in defaults]
        # bool is an int to Python and 1 == 1.0: types are part of the value.
        wrong += ["%s: found %s: %r, wanted %r as in %s" % (
            file, name, defaults[name], specified[name], SPEC % role)
            for name in both if repr(defaults[name]) != repr(specified[name])]
        if [name for name in defaults if name in specified] != both:
            wrong.append("%s: found the order %s, wanted that of the spec: %s" % (
                file, ", ".join(defaults), ", ".join(both)))
        wrong += ["%s: found nothing of %s, wanted the comment `# %s: what it is`" % (
            file, name, name)
            for name, option in options.items() if option.get("required")
            and not re.search(r"^# %s: \S" % name, tree.text(file), re.MULTILINE)]
        wrong += ["%s: found %s neither required nor with a default, wanted one of them" % (
            SPEC % role, name) for name, option in options.items()
            if "default" not in option and not option.get("required")]
    return wrong


def roles_have_readmes(tree):
    """Every role says what it is for."""
    wrong = []
    for role in tree.roles:
        file = "roles/%s/README.md" % role
        lines = [line for line in tree.text(file).splitlines() if line.strip()]
        if not lines or lines[0] != "# " + role or len(lines) < 3:
            wrong.append("%s: found %s, wanted the title `# %s` and what the role does" % (
                file, repr(lines[0]) if lines else "no README", role))
    return wrong


def roles_have_scenarios(tree):
    """Every role is played by a scenario of its name, or by one that covered_by.yml names."""
    wrong = []
    covered = {role: row if isinstance(row, dict) else {}
               for role, row in (tree.yaml(COVERED) or {}).items()}
    for role in tree.roles:
        own = bool(tree.text("molecule/%s/molecule.yml" % role))
        row = covered.get(role)
        if own and row:
            wrong.append("%s: found %s, which has a scenario of its own, wanted no row" % (
                COVERED, role))
        elif own and role not in _played(tree, "molecule/%s/converge.yml" % role):
            wrong.append("molecule/%s/converge.yml: found no play of %s, wanted one" % (role, role))
        elif not own and not row:
            wrong.append("molecule/%s: found no scenario, wanted one, or a row in %s with scenario "
                         "and reason" % (role, COVERED))
        elif row:
            converge = "molecule/%s/converge.yml" % row.get("scenario")
            if role not in _played(tree, converge):
                wrong.append("%s: found %s covered by %s, wanted a scenario that plays it" % (
                    COVERED, role, row.get("scenario")))
            if len(str(row.get("reason") or "").split()) < 5:
                wrong.append("%s: found no reason why %s has no scenario of its own, wanted one" % (
                    COVERED, role))
    wrong += ["%s: found %s, wanted the name of a role" % (COVERED, name)
              for name in covered if name not in tree.roles]
    return wrong


def _played(tree, playbook):
    """The roles that a playbook plays, with the playbooks it imports and the tasks it includes."""
    played = set()
    for node in tree.nodes(playbook):
        for key, value in node.items():
            if key.rpartition(".")[2] in ("import_playbook", "include_tasks"):
                named = value["file"] if isinstance(value, dict) else value
                if "{{" not in named:
                    file = ((tree.root / playbook).parent / named).resolve()
                    played |= _played(tree, str(file.relative_to(tree.root.resolve())))
    called = {task.role for task in tree.tasks(playbook)} - played - {""}
    while called:
        played |= called
        files = [file for role in called for file in tree.files("roles/%s/tasks/**/*.yml" % role)]
        # Of no file there are no tasks; without names these would be all of the tree.
        called = {task.role for task in tree.tasks(*files)} - played - {""} if files else set()
    return played


def plays_import_roles(tree):
    """A play calls its roles by tasks: there each has its name, its tags and its place."""
    return ["%s:%d: found `roles:`, wanted a task with import_role for each" % (file, node.line)
            for file in tree.task_files() for node in tree.nodes(file)
            if "hosts" in node and "roles" in node]


def role_variables_are_options(tree):
    """A variable with a role's prefix is an option of that role: Ansible would not notice."""
    wrong = []
    places = [(file, name) for file in tree.files("inventories/**/*.yml", "molecule/**/*.yml")
              for name in _names(tree.yaml(file))]
    for file in tree.task_files():
        for node in tree.nodes(file):
            places += [("%s:%d" % (file, node.line), name) for name in node.get("vars") or {}]
    for where, name in places:
        role = _owner(tree, name)
        if role and name not in tree.options(role):
            wrong.append("%s: found %s, wanted an option of the role %s: %s" % (
                where, name, role, spoken(tree.options(role))))
    return sorted(set(wrong))


def _owner(tree, name):
    owners = [role for role in tree.roles if str(name).startswith(role + "_")]
    return max(owners, key=len, default="")


def _names(content):
    """Every key of an inventory's or a variable file's mappings."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield key
            if key in ("all", "children", "hosts", "vars") or isinstance(value, dict):
                yield from _names(value)
