# SPDX-License-Identifier: Apache-2.0
"""The documents as a reader takes them: blocks of YAML, commands, and what these print.

A block that is marked ``console`` has commands after ``$ `` and, below each, lines of what it
prints. In one that is marked ``bash`` or ``sh`` every line is a command. A command goes on on the
next line after a backslash. ``…`` in what is printed stands for anything.
"""

from __future__ import annotations

import dataclasses
import re
import shlex

from markdown_it import MarkdownIt

PAGES = ("*.md", "docs/*.md", "roles/*/README.md", "molecule/**/*.md", "tests/**/*.md")
SHELLS = ("bash", "sh", "shell")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: the page, the line of its first line (from 1), its mark and its text."""

    page: str
    line: int
    language: str
    text: str

    @property
    def where(self):
        return "%s:%d" % (self.page, self.line)


@dataclasses.dataclass(frozen=True)
class Command:
    """A command as it is written, where that is, and the lines that it is said to print."""

    where: str
    text: str
    output: tuple[str, ...] = ()

    @property
    def key(self):
        """The command in one spelling: its words, without comments, line breaks and quotes."""
        return key(self.text)


def key(text):
    """A command in one spelling; raises ValueError where a quote is not closed."""
    return " ".join(shlex.split(text.replace("\\\n", " "), comments=True))


def pages(root):
    """The documents under a checkout, as paths relative to it; the generated ones are left out."""
    found = {path.relative_to(root) for pattern in PAGES for path in root.glob(pattern)}
    return sorted(str(path) for path in found if not set(path.parts) & {"fixtures", "node_modules"}
                  and not path.parts[0].startswith("."))


def blocks(page, text):
    """The fenced blocks of a page."""
    return [Block(page, token.map[0] + 2, token.info.split()[0] if token.info.split() else "",
                  token.content)
            for token in MarkdownIt("commonmark").parse(text) if token.type == "fence"]


def commands(block):
    """The commands of a block.

    :raises ValueError: for what is printed by no command, for a command that does not end, and for
        one whose quotes are not closed.
    """
    if block.language not in ("console", *SHELLS):
        return []
    prompt = "$ " if block.language == "console" else ""
    found, text, begun, output = [], None, 0, []

    def done():
        if text is not None:
            made = Command("%s:%d" % (block.page, block.line + begun), text, tuple(output))
            made.key  # noqa: B018 - a quote that is not closed is an error here
            found.append(made)

    lines = block.text.splitlines()
    number = 0
    while number < len(lines):
        line = lines[number]
        if prompt and not line.startswith(prompt):
            if text is None and line.strip():
                raise ValueError("%s:%d: nothing prints %r" % (
                    block.page, block.line + number, line))
            output += [line] if line.strip() else []
        elif line.strip() and (prompt or not line.startswith("#")):
            done()
            begun, text, output = number, line[len(prompt):], []
            while text.endswith("\\"):
                number += 1
                if number == len(lines):
                    raise ValueError("%s:%d: the command does not end" % (
                        block.page, block.line + begun))
                text += "\n" + lines[number]
        number += 1
    done()
    return found


def all_blocks(root):
    """Every fenced block of every document."""
    return [block for page in pages(root)
            for block in blocks(page, (root / page).read_text(encoding="utf-8"))]


def all_commands(root):
    """Every command of every document."""
    return [command for block in all_blocks(root) for command in commands(block)]


def missing(expected, printed, exact=False):
    """The first line that a page shows and that was not printed; None where all were.

    :param expected: lines, in which ``…`` stands for anything.
    :param exact: whether figures are to be the same; else any figure stands for any.
    """
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    for wanted in expected:
        pattern = re.compile(_pattern(" ".join(wanted.split()), exact))
        if not any(pattern.search(line) for line in lines):
            return wanted
    return None


def _pattern(wanted, exact):
    made = ""
    for part in re.split(r"(…|\d[\d.,]*)", wanted):
        figure = part[:1].isdigit() and not exact
        made += ".*" if part == "…" else r"\d[\d.,]*" if figure else re.escape(part)
    return made
