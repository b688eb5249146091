# SPDX-License-Identifier: Apache-2.0
"""Write docs/reference from the roles' argument specs and the plugins' DOCUMENTATION."""

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


def page(kind, found):
    """The page of a kind."""
    environment = Environment(
        loader=FileSystemLoader(ROOT / "docs" / "templates"), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.filters.update(cell=cell, code=code, markdown=markdown, rows=rows, samples=samples)
    text = environment.get_template(kind + "s.md.j2").render(found=sorted(found.items()))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def pages():
    """The whole reference: ``{file name: text}``."""
    return {kind + "s.md": page(kind, documented(kind)) for kind in SOURCES}


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
