# SPDX-License-Identifier: Apache-2.0
"""Write docs/reference from argument specs, the plugins' DOCUMENTATION and the playbooks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml
from antsibull_docs_parser import md
from antsibull_docs_parser.parser import Context, Whitespace, parse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"

# Where ansible-doc finds what there is of each type, and the page that shows it.
SOURCES = {
    "role": "roles/*/",
    "module": "library/*.py",
    "filter": "filter_plugins/*.yml",
    "lookup": "lookup_plugins/*.py",
    "callback": "callback_plugins/*.py",
}

# What the templates print, and what is left out on purpose. Any other key stops the generator, so
# that nothing that somebody documented is lost in silence.
PRINTED = {
    "role": {"entry_points"},
    "entry point": {"short_description", "description", "options"},
    "plugin": {"short_description", "description", "requirements", "notes", "attributes",
               "options", "positional"},
    "option": {"description", "type", "elements", "required", "default", "choices", "aliases",
               "options", "suboptions", "env", "ini", "vars"},
    "return value": {"description", "type", "elements", "returned", "sample", "contains"},
}
# Variables that no role has to itself: they are said once, for all playbooks.
SHARED = {
    "firstlight_max_fail_percentage":
        "The share of a batch of hosts (C(firstlight_serial)), in percent, that may fail. Where "
        "more do, the run ends there, for the others of the batch too; 100, the default, is never. "
        "Where all hosts of a batch fail, the run ends, whatever this says.",
    "firstlight_offline": "Whether nothing may go out: what a host has is all there is.",
    "firstlight_root":
        "Where everything of ours lies on a host. By default C(/var/lib/firstlight) for root, "
        "C(~/.local/state/firstlight) for anyone else.",
    "firstlight_serial":
        "How many hosts make a batch: a number, a share (C(20%)), or a list; all by default.",
}
LEFT_OUT = {"author", "collection", "filename", "has_action", "module", "name", "no_log", "path",
            "plugin_name", "type", "version_added", "version_added_collection"}

# What Markdown would take for its own in running text.
SPECIAL = re.compile(r"[\\`*\[\]<>~&]|(?<!\w)_|_(?!\w)|^[-+#=]|(?<=^\d)[.)]")


class Formatter(md.MDFormatter):
    """The library's Markdown, with backticks and with no more backslashes than it needs."""

    def format_text(self, part):
        """Words."""
        return SPECIAL.sub(r"\\\g<0>", part.text)

    def format_code(self, part):
        """C()."""
        return code(part.text)

    def format_module(self, part, url):
        """M()."""
        return code(part.fqcn)

    def format_plugin(self, part, url):
        """P()."""
        return code(part.plugin.fqcn)

    def format_env_variable(self, part):
        """E()."""
        return code(part.name)

    def format_option_value(self, part):
        """V()."""
        return code(part.value)

    def format_option_name(self, part, url):
        """O()."""
        return code(part.name if part.value is None else "%s=%s" % (part.name, part.value))

    def format_return_value(self, part, url):
        """RV()."""
        return self.format_option_name(part, url)


def code(value):
    """A value as Markdown code; what is no plain text is shown as JSON."""
    if not isinstance(value, str) or not value.strip() or "\n" in value:
        value = json.dumps(value, ensure_ascii=False)
    if "`" in value:
        return "`` %s ``" % value
    return "`%s`" % value


def markdown(text):
    """Ansible's markup, one paragraph or a list of them, as Markdown."""
    return md.to_md(parse(text, Context(), errors="exception", whitespace=Whitespace.STRIP),
                    formatter=Formatter())


def cell(text):
    """Markdown as it may stand in a table."""
    return text.replace("|", r"\|").replace("\n\n", "<br>").replace("\n", " ")


def rows(fields, prefix=""):
    """Options or return values, each followed by what is nested in it: ``(path, field)``."""
    for name, field in sorted(fields.items()):
        path = prefix + name
        yield path, field
        yield from rows(inner(field), path + ".")


def inner(field):
    """What is nested in an option of a role, an option of a module or a return value."""
    return field.get("options") or field.get("suboptions") or field.get("contains") or {}


def samples(fields):
    """The samples of return values as one piece of YAML, empty where there are none."""
    found = sample({"contains": fields or {}})
    return found and yaml.safe_dump(
        found, sort_keys=False, allow_unicode=True, default_flow_style=None, width=96)


def sample(field):
    """A return value's own sample, or one made of what it contains; None without either."""
    if "sample" in field:
        return field["sample"]
    parts = {name: sample(one) for name, one in sorted(field.get("contains", {}).items())}
    parts = {name: part for name, part in parts.items() if part is not None}
    return ([parts] if field.get("type") == "list" else parts) if parts else None


def complaints(kind, name, shown):
    """Keys of one role's or plugin's documentation that no template prints."""
    if kind == "role":
        checked = [("role", shown)]
        for entry_point in shown.get("entry_points", {}).values():
            checked += [("entry point", entry_point)]
            checked += [("option", one) for _, one in rows(entry_point.get("options", {}))]
    else:
        checked = [("plugin", shown["doc"])]
        checked += [("option", one) for _, one in rows(shown["doc"].get("options", {}))]
        checked += [("return value", one) for _, one in rows(shown["return"] or {})]
    return ["%s %s: no template prints the key %s of its %s; add it to docs/templates and to "
            "PRINTED in docs/generate.py, or take it out" % (kind, name, key, what)
            for what, fields in checked for key in sorted(set(fields) - PRINTED[what] - LEFT_OUT)]


def documented(kind):
    """Every role or plugin of a kind: ``{name: what ansible-doc knows of it}``."""
    names = sorted(path.stem for path in ROOT.glob(SOURCES[kind])
                   if not path.name.startswith((".", "_")))
    ran = subprocess.run(
        [sys.executable, "-m", "ansible", "doc", "--json", "--type", kind, *names],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env=dict(os.environ, ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"), LC_ALL="C.UTF-8"))
    if ran.returncode:
        raise ValueError("ansible-doc failed on a %s:\n%s" % (kind, ran.stderr))
    found = json.loads(ran.stdout)
    wrong = ["%s %s: ansible-doc finds no documentation (roles: meta/argument_specs.yml)\n%s" % (
        kind, name, ran.stderr) for name in names if name not in found]
    for name, shown in found.items():
        wrong += complaints(kind, name, shown)
    if wrong:
        raise ValueError("\n".join(wrong))
    return found


def inside(role, file):
    """The tags of tasks in a role's file and in those that it imports, and the roles of those."""
    tags, roles = set(), {role}
    for task in flat(yaml.safe_load((ROOT / "roles" / role / "tasks" / file).read_text()) or []):
        tags |= set(task["tags"])
        if "tasks" in task:
            deeper = inside(role, task["tasks"])
        elif "role" in task:
            deeper = inside(task["role"], task["file"])
        else:
            continue
        tags, roles = tags | deeper[0], roles | deeper[1]
    return tags, roles


def flat(tasks, tags=()):
    """Tasks without their blocks: name, tags, and the role or the file that each imports."""
    for task in tasks:
        own = task.get("tags", [])
        held = [*tags, *([own] if isinstance(own, str) else own)]
        for section in ("block", "rescue", "always"):
            yield from flat(task.get(section, []), held)
        if "block" not in task:
            made = {"name": task.get("name", ""), "tags": held}
            for word in ("import_role", "include_role"):
                if "ansible.builtin." + word in task:
                    asked = task["ansible.builtin." + word]
                    made.update(role=asked["name"], file=asked.get("tasks_from", "main") + ".yml")
            if "ansible.builtin.import_tasks" in task:
                asked = task["ansible.builtin.import_tasks"]
                made["tasks"] = asked if isinstance(asked, str) else asked["file"]
            yield made


def _with_included(tasks, folder):
    """Tasks of a play, and in the place of each file that it includes what is in that."""
    for task in tasks:
        asked = task.get("ansible.builtin.include_tasks")
        if asked is None:
            yield task
            continue
        asked = {"file": asked} if isinstance(asked, str) else asked
        inherited = asked.get("apply", {}).get("tags", [])
        for one in yaml.safe_load((folder / asked["file"]).read_text(encoding="utf-8")):
            yield dict(one, name=one["name"].partition(" | ")[2],
                       tags=[*inherited, *one.get("tags", [])])


def playbooks():
    """Every playbook: ``{name: {about, hosts, steps}}``, a step being a role's turn.

    :raises ValueError: for one that does not say what it does, and for a shared variable that
        nobody described.
    """
    found, used = {}, set()
    for path in sorted((ROOT / "playbooks").glob("*.yml")):
        text = path.read_text(encoding="utf-8")
        about = re.match(r"---\n((?:# .*\n)+)", text)
        if not about:
            raise ValueError("playbooks/%s: it begins with no comment that says what it does"
                             % path.name)
        made = {"about": " ".join(line[2:] for line in about[1].splitlines()), "hosts": [],
                "steps": [], "variables": set(re.findall(r"\bfirstlight_[a-z_]+\b", text))}
        for play in yaml.safe_load(text):
            made["hosts"].append(play["hosts"])
            for task in flat(_with_included(play["tasks"], path.parent)):
                if "role" not in task:
                    continue
                tags, roles = inside(task["role"], task["file"])
                made["steps"].append(dict(task, alone=sorted(tags - {"always", *task["tags"]})))
                for role in roles:
                    defaults = (ROOT / "roles" / role / "defaults" / "main.yml").read_text()
                    made["variables"] |= set(re.findall(r"\bfirstlight_[a-z_]+\b", defaults))
        found[path.stem] = made
        used |= made["variables"]
    if used - set(SHARED):
        raise ValueError("SHARED in docs/generate.py: it does not say what %s is" % ", ".join(
            sorted(used - set(SHARED))))
    return found


def shared(found):
    """Variables of no role: ``[(name, description, playbooks that heed it)]``."""
    return [(name, about, [one for one, made in sorted(found.items()) if name in made["variables"]])
            for name, about in SHARED.items()]


def page(kind, found, **more):
    """The page of a kind."""
    environment = Environment(
        loader=FileSystemLoader(ROOT / "docs" / "templates"), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.filters.update(cell=cell, code=code, markdown=markdown, rows=rows, samples=samples)
    text = environment.get_template(kind + "s.md.j2").render(
        found=sorted(found.items()), **more)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def pages():
    """The whole reference: ``{file name: text}``."""
    found = playbooks()
    return {**{kind + "s.md": page(kind, documented(kind)) for kind in SOURCES},
            "playbooks.md": page("playbook", found, shared=shared(found))}


def main():
    """Write every page."""
    try:
        written = pages()
    except ValueError as problem:
        sys.exit("docs/generate.py: %s" % problem)
    REFERENCE.mkdir(exist_ok=True)
    for name, text in written.items():
        (REFERENCE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
