# SPDX-License-Identifier: Apache-2.0
"""Our modules: what they document is what they take, show and return."""

from __future__ import annotations

import importlib.util
import sys
from unittest import mock

import yaml
from ansible.module_utils.common import validation
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from .tree import BLOCKS, Task, _Loader, _nodes, spoken

# How an option's documentation and its spec name the same thing.
SAME = ("required", "default", "choices", "elements", "aliases")
# What holds between options, as AnsibleModule and its checks name it.
BETWEEN = {
    "mutually_exclusive": validation.check_mutually_exclusive,
    "required_together": validation.check_required_together,
    "required_one_of": validation.check_required_one_of,
    "required_if": validation.check_required_if,
    "required_by": validation.check_required_by,
}
TYPES = {"str", "int", "float", "bool", "list", "dict", "path", "raw", "complex"}
SUPPORT = {"full", "partial", "none", "N/A"}


class _Specified(Exception):
    """Thrown in the place of a run: the module has said what it takes."""


def load(tree, name):
    """A module of the tree's library, imported without being run or kept."""
    path = tree.root / "library" / (name + ".py")
    spec = importlib.util.spec_from_file_location("fence_" + name, path)
    module = importlib.util.module_from_spec(spec)
    with mock.patch.object(sys, "dont_write_bytecode", True):
        spec.loader.exec_module(module)
    return module


def declared(module):
    """The keywords that a module gives to ``AnsibleModule``."""
    with mock.patch.object(module, "AnsibleModule", side_effect=_Specified) as made:
        try:
            module.main()
        except _Specified:
            return made.call_args.kwargs
    raise AssertionError("main() of %s makes no AnsibleModule" % module.__name__)


def names(tree):
    """The names of our modules."""
    return [file.stem for file in tree.files("library/*.py")]


def specs(tree):
    """What each of our modules gives to ``AnsibleModule``."""
    return {name: declared(load(tree, name)) for name in names(tree)}


def document(text):
    """A block of documentation as YAML, or an empty mapping."""
    return yaml.safe_load(text) or {}


def documentation_equals_spec(tree):
    """DOCUMENTATION says what the argument spec says, no more and no less."""
    wrong = []
    for name in names(tree):
        module = load(tree, name)
        told, made = document(module.DOCUMENTATION), declared(module)
        problems = list(_heading(name, told))
        problems += _support(told.get("attributes") or {}, made)
        problems += _options("", told.get("options") or {}, made["argument_spec"])
        wrong += ["library/%s.py: %s" % (name, problem) for problem in problems]
    return wrong


def _heading(name, told):
    if told.get("module") != name:
        yield "found module: %s in DOCUMENTATION, wanted %s" % (told.get("module"), name)
    for key in ("short_description", "description", "author"):
        if not told.get(key):
            yield "found no %s in DOCUMENTATION, wanted one" % key
    if str(told.get("short_description")).endswith("."):
        yield "found a short_description that ends with a full stop, wanted none"


def _support(attributes, made):
    for key in ("check_mode", "diff_mode"):
        told = attributes.get(key) or {}
        if told.get("support") not in SUPPORT or not told.get("description"):
            yield "found attributes.%s: %s, wanted a description and a support of %s" % (
                key, dict(told), spoken(SUPPORT))
    documented = (attributes.get("check_mode") or {}).get("support")
    if (documented in ("full", "partial")) != bool(made.get("supports_check_mode")):
        yield "found check_mode support: %s, wanted what supports_check_mode=%s means" % (
            documented, made.get("supports_check_mode"))


def _options(path, told, made):
    for name in sorted({*told, *made}):
        here = path + name
        if name not in told:
            yield "found the option %s undocumented, wanted it in DOCUMENTATION" % here
        elif name not in made:
            yield "found %s in DOCUMENTATION, wanted an option of the argument spec" % here
        else:
            yield from _option(here, told[name], made[name])


def _option(here, told, made):
    if not told.get("description"):
        yield "found %s without description, wanted a sentence" % here
    pairs = [("type", told.get("type", "str"), made.get("type", "str"))]
    for key in SAME:
        empty = {"required": False, "choices": [], "aliases": []}.get(key)
        pairs.append((key, told.get(key, empty), made.get(key, empty)))
    for key, documented, specified in pairs:
        if repr(documented) != repr(specified):
            yield "found %s of %s documented as %r, wanted %r as in the argument spec" % (
                key, here, documented, specified)
    if made.get("type") == "list" and not made.get("elements"):
        yield "found the list %s without elements, wanted their type" % here
    yield from _options(here + ".", told.get("suboptions") or {}, made.get("options") or {})


def misused(args, made):
    """What is wrong with a task's arguments for a module that is made like this."""
    if not isinstance(args, dict):
        return ["found arguments in one line, wanted a mapping"]
    spec = made["argument_spec"]
    names_of = {alias: name for name, option in spec.items() for alias in option.get("aliases", [])}
    args = {names_of.get(name, name): value for name, value in args.items()}
    wrong = list(_strange("", args, spec))
    # What is a template is known at the run only: it counts as given. The rest can be judged by
    # Ansible itself now.
    given = {name: value for name, value in args.items() if value != "{{ omit }}"}
    wrong += ["found no %s, wanted this required option" % name
              for name, option in spec.items() if option.get("required") and name not in given]
    usual = {name: option["default"] for name, option in spec.items() if "default" in option}
    for relation, check in BETWEEN.items():
        try:
            # In this order Ansible does it: defaults come after what excludes.
            check(made.get(relation), given if relation == "mutually_exclusive" else {
                **usual, **given})
        except TypeError as problem:
            wrong.append(str(problem))
    literal = {name: value for name, value in args.items()
               if name in spec and "{{" not in str(value)}
    lenient = {name: {key: value for key, value in option.items() if key != "required"}
               for name, option in spec.items()}
    return wrong + ArgumentSpecValidator(lenient).validate(literal).error_messages


def _strange(path, args, spec):
    """Options that there are none of, however deep."""
    known = set(spec) | {alias for option in spec.values() for alias in option.get("aliases", [])}
    for name, value in args.items():
        if name not in known:
            yield "found the option %s%s, wanted one of %s" % (path, name, spoken(spec))
        inner = spec.get(name, {}).get("options")
        for one in value if isinstance(value, list) else [value]:
            if inner and isinstance(one, dict):
                yield from _strange("%s%s." % (path, name), one, inner)


def examples_are_real(tree):
    """EXAMPLES are tasks that could be run: they parse, they call the module, with real options."""
    wrong = []
    taken = specs(tree)
    for name in names(tree):
        file = "library/%s.py" % name
        try:
            nodes = list(_nodes(yaml.load(load(tree, name).EXAMPLES, Loader=_Loader)))
        except yaml.YAMLError as problem:
            wrong.append("%s: found EXAMPLES that are no YAML (%s), wanted a list of tasks" % (
                file, problem))
            continue
        tasks = [Task(file, node) for node in nodes if not set(node) & set(BLOCKS)]
        if name not in [task.module for task in tasks]:
            wrong.append("%s: found no task of %s in EXAMPLES, wanted one" % (file, name))
        wrong += ["%s: EXAMPLES: %s" % (file, problem) for task in tasks if task.module in taken
                  for problem in misused(task.args, taken[task.module])]
        wrong += ["%s: found a task without name in EXAMPLES, wanted one" % file
                  for task in tasks if not task.content.get("name")]
    return wrong


def returns_are_described(tree):
    """Every key of RETURN is described and typed. That runs return them, ``run_module`` checks."""
    return ["library/%s.py: RETURN: %s" % (name, problem) for name in names(tree)
            for problem in _returned("", document(load(tree, name).RETURN))]


def _returned(path, told):
    for name, key in told.items():
        here = path + str(name)
        if not key.get("description"):
            yield "found %s without description, wanted a sentence" % here
        if key.get("type") not in TYPES:
            yield "found %s of type %s, wanted one of %s" % (here, key.get("type"), spoken(TYPES))
        if key.get("type") == "list" and key.get("elements") not in TYPES:
            yield "found the list %s with elements %s, wanted their type" % (
                here, key.get("elements"))
        if not path and not key.get("returned"):
            yield "found %s without `returned`, wanted when it is" % here
        yield from _returned(here + ".", key.get("contains") or {})
