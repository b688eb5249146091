# SPDX-License-Identifier: Apache-2.0
"""A checkout as the rules read it: files by room, YAML with line numbers, tasks in any nesting."""

from __future__ import annotations

import functools
import pathlib

import jinja2
import jinja2.nodes
import yaml
from ansible.playbook.handler import Handler

BLOCKS = ("block", "rescue", "always")
SECTIONS = ("pre_tasks", "tasks", "post_tasks", "handlers")
# What a task may carry beside its module, as Ansible has it. Anything else is the module.
KEYWORDS = frozenset(Handler.fattributes) | {"action", "local_action", "args"}


class Mapping(dict):
    """A mapping that knows the line it begins on."""

    line = 0


class _Loader(yaml.SafeLoader):
    def mapping(self, node):
        made = Mapping(self.construct_mapping(node, deep=True))
        made.line = node.start_mark.line + 1
        return made


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.mapping)
# Ansible's own tags (!vault, !unsafe) stand for a text.
_Loader.add_multi_constructor("!", lambda loader, suffix, node: "!" + suffix)


@functools.cache
def _loaded(text):
    """The YAML of a text. Trees that differ in one file share what they have of all others."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader


class Task:
    """A task where it stands: its file, its line, its module and the module's arguments."""

    def __init__(self, file, content):
        self.file = file
        self.content = content
        self.where = "%s:%d" % (file, content.line)
        self.module, self.args = self._called()

    def _called(self):
        """The module and its arguments; arguments that are a template are a text."""
        for word in ("action", "local_action"):
            called = self.content.get(word)
            if isinstance(called, dict):
                called = dict(called)
                return called.pop("module", ""), called
            if isinstance(called, str):
                return called.partition(" ")[0], called.partition(" ")[2]
        for key, value in self.content.items():
            if key not in KEYWORDS and key not in BLOCKS and not str(key).startswith("with_"):
                more = self.content.get("args") or {}
                if isinstance(value, str) or isinstance(more, str):
                    return key, value or more
                return key, {**(value or {}), **more}
        return "", {}

    def is_a(self, *names):
        """Whether it calls one of these, bare or by its full name."""
        return self.module.rpartition(".")[2] in names

    @property
    def role(self):
        """The role that it imports or includes, or nothing."""
        if self.is_a("import_role", "include_role") and isinstance(self.args, dict):
            return self.args.get("name", "")
        return ""


class Tree:
    """A checkout."""

    def __init__(self, root):
        self.root = pathlib.Path(root)
        self.last = ""  # the file that was read last, for what goes wrong with it

    def files(self, *patterns):
        """The files that match, in order, as paths relative to the root."""
        found = {path.relative_to(self.root) for pattern in patterns
                 for path in self.root.glob(pattern) if path.is_file()}
        return sorted(path for path in found if "__pycache__" not in path.parts)

    def text(self, file):
        """A file's text, empty where there is none."""
        path = self.root / file
        self.last = file
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    def yaml(self, file):
        """A file's YAML, ``None`` where there is none."""
        self.last = file
        return self._parsed(file)

    @functools.cache  # noqa: B019 - a tree lives as long as its test
    def _parsed(self, file):
        try:
            return _loaded(self.text(file))
        except yaml.YAMLError as problem:
            raise ValueError("%s: found no YAML document, wanted one: %s" % (
                file, problem)) from problem

    @property
    def roles(self):
        """The names of the roles."""
        return sorted(path.name for path in (self.root / "roles").iterdir() if path.is_dir())

    def specs(self, role):
        """A role's argument specs by entry point."""
        held = self.yaml("roles/%s/meta/argument_specs.yml" % role)
        return (held or {}).get("argument_specs") or {}

    def options(self, role):
        """Every option of a role, whatever its entry point."""
        return {name: option for spec in self.specs(role).values()
                for name, option in (spec.get("options") or {}).items()}

    def task_files(self):
        """The files that hold tasks or plays, of the roles, the playbooks and the scenarios."""
        return self.files("*.yml", "playbooks/**/*.yml", "roles/*/tasks/**/*.yml",
                          "roles/*/handlers/**/*.yml", "molecule/**/*.yml")

    def nodes(self, file):
        """Every play, block and task of a file."""
        return list(_nodes(self.yaml(file)))

    def tasks(self, *files):
        """Every task of these files (of all where none is named), blocks taken apart."""
        return [Task(file, node) for file in files or self.task_files() for node in self.nodes(file)
                if not set(node) & {*BLOCKS, *SECTIONS, "hosts"}]


def _nodes(content):
    for node in content if isinstance(content, list) else []:
        if isinstance(node, dict):
            yield node
            for section in BLOCKS + SECTIONS:
                yield from _nodes(node.get(section))


def spoken(names):
    """Names for a sentence."""
    return ", ".join(sorted(map(str, names))) or "nothing"


def decided(condition):
    """What a condition is whatever its variables are; ``None`` where they count."""
    if not isinstance(condition, str):
        return bool(condition)
    text = condition.strip()
    if text.startswith("{{") and text.endswith("}}"):
        text = text[2:-2].strip()
    # Words that are no variables, though Jinja takes them for names.
    if text.lower() in ("", "yes", "no", "on", "off"):
        return text.lower() in ("yes", "on")
    try:
        (output,) = jinja2.Environment().parse("{{ (%s) }}" % text).body
    except (jinja2.TemplateSyntaxError, ValueError):
        return None  # a lint finds it, and so does the first run
    return _decided(output.nodes[0]) if len(output.nodes) == 1 else None


def _decided(node):
    if isinstance(node, (jinja2.nodes.Or, jinja2.nodes.And)):
        wins = isinstance(node, jinja2.nodes.Or)
        sides = {_decided(node.left), _decided(node.right)}
        if wins in sides:
            return wins
        return None if None in sides else not wins
    if isinstance(node, jinja2.nodes.Not):
        inner = _decided(node.node)
        return None if inner is None else not inner
    if isinstance(node, jinja2.nodes.Name) or list(node.find_all(jinja2.nodes.Name)):
        return None
    try:
        return bool(node.as_const())
    except jinja2.nodes.Impossible:
        return None
