# SPDX-License-Identifier: Apache-2.0
"""What a stranger meets first is true: the workflow, the changelog, the pages and their links."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import re

from markdown_it import MarkdownIt

from .tree import spoken

WORKFLOWS = ".github/workflows/*.yml"
PINNED = re.compile(r"uses: [\w-]+/[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
CONTRIBUTING = "CONTRIBUTING.md"
ONE_PAGE = 80  # lines


def jobs_are_the_parts_of_make_test(tree):
    """There is one job for each part of ``make test``."""
    wanted = [part for line in re.findall(r"^(?:PARTS|BESIDE) := ([a-z0-9 -]+)",
                                          tree.text("Makefile"), re.MULTILINE)
              for part in line.split()]
    made = []
    for job in (tree.yaml(".github/workflows/test.yml") or {}).get("jobs", {}).values():
        for step in job.get("steps", []):
            for target in re.findall(r"^make (.+)$", step.get("run", ""), re.MULTILINE):
                made += job["strategy"]["matrix"]["target"] if "matrix" in target else [target]
    if sorted(made) != sorted(wanted):
        return [".github/workflows/test.yml: found jobs for %s, wanted one for each part of "
                "`make test`: %s" % (spoken(made), spoken(wanted))]
    return []


def workflows_are_modest(tree):
    """Workflows read and nothing more, end by themselves, and run what was looked at."""
    wrong = []
    for file in tree.files(WORKFLOWS):
        for number, line in enumerate(tree.text(file).splitlines(), 1):
            if re.search(r"\buses:", line) and not PINNED.search(line):
                wrong.append("%s:%d: found `%s`, wanted the action by its commit of 40 digits, and "
                             "its version as a comment" % (file, number, line.strip()))
        workflow = tree.yaml(file)
        if workflow.get("permissions") != {"contents": "read"}:
            wrong.append("%s: found permissions %s, wanted contents: read" % (
                file, workflow.get("permissions")))
        if not workflow.get("concurrency"):
            wrong.append("%s: found no concurrency, wanted a group" % file)
        for name, job in workflow["jobs"].items():
            if "permissions" in job:
                wrong.append("%s: found permissions of the job %s, wanted none" % (file, name))
            if not job.get("timeout-minutes"):
                wrong.append("%s: found no timeout-minutes of the job %s, wanted some" % (
                    file, name))
            for step in job.get("steps", []):
                kept = (step.get("with") or {}).get("persist-credentials")
                if "checkout" in step.get("uses", "") and kept is not False:
                    wrong.append("%s: found a checkout that keeps the token in the job %s, wanted "
                                 "persist-credentials: false" % (file, name))
                # A title or a branch of a stranger would be run by the shell.
                wrong += ["%s: found ${{ %s }} in a shell, wanted it in env" % (file, expression)
                          for expression in re.findall(r"\$\{\{\s*(.*?)\s*\}\}",
                                                       step.get("run", ""))
                          if not expression.startswith("matrix.")]
    return wrong


def changelog_code_has_two_backticks(tree):
    """With one, reStructuredText takes it for the title of a book."""
    return ["%s:%d: found `%s`, wanted two backticks around code" % (file, number, line.strip())
            for file in tree.files("changelogs/fragments/*.yml")
            for number, line in enumerate(tree.text(file).splitlines(), 1)
            if re.search(r"(?<!`)`(?!`)", line)]


def contributing_is_true(tree):
    """CONTRIBUTING fits a page, and every path and make target that it names is there."""
    text = tree.text(CONTRIBUTING)
    wrong = []
    if not 20 < len(text.splitlines()) <= ONE_PAGE:
        wrong.append("%s: found %d lines, wanted a page of at most %d" % (
            CONTRIBUTING, len(text.splitlines()), ONE_PAGE))
    wrong += ["%s: found %s, wanted a path that is there" % (CONTRIBUTING, path)
              for path in re.findall(r"(?:`|\s)((?:[\w.]+/)+[\w.-]*)(?=[`\s])", text)
              if not (tree.root / path).exists() and not path.startswith(".venv-dev/")]
    targets = re.findall(r"^([a-z][a-z-]*):", tree.text("Makefile"), re.MULTILINE)
    wrong += ["%s: found `make %s`, wanted a target of the Makefile" % (CONTRIBUTING, target)
              for line in re.findall(r"`make ([a-z -]+)`", text)
              for target in line.split() if target not in targets]
    return wrong


def links_lead_somewhere(tree):
    """A link to a file or a heading of ours finds it."""
    wrong = []
    for page in tree.files("*.md", "roles/*/README.md", "docs/**/*.md"):
        for link in _marked(tree.text(page))[0]:
            path, _, anchor = link.partition("#")
            target = (tree.root / page).parent / path if path else tree.root / page
            there = target.exists() and (not anchor or anchor in _marked(target.read_text())[1])
            if "://" not in link and not there:
                wrong.append("%s: found a link to %s, wanted something that is there" % (
                    page, link))
    return wrong


@functools.cache
def _marked(text):
    """A page as Markdown reads it: its links, and the anchors that its headings get."""
    links, anchors, heading = [], set(), False
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if heading and token.type == "inline":
            anchors.add(re.sub(r"[^\w -]", "", token.content.lower()).replace(" ", "-"))
        heading = token.type == "heading_open"
        links += [child.attrs["href"] for child in token.children or []
                  if child.type == "link_open"]
    return links, anchors


def reference_is_fresh(tree):
    """The pages of docs/reference are what the specs and the DOCUMENTATION say."""
    spec = importlib.util.spec_from_file_location("generate", tree.root / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    pages = generate.pages()
    stale = []
    for name in sorted({*pages, *(file.name for file in tree.files("docs/reference/*"))}):
        file = "docs/reference/" + name
        lines = list(difflib.unified_diff(
            tree.text(file).splitlines(), pages.get(name, "").splitlines(), lineterm="", n=0))
        stale += ["%s: found a stale page, wanted it written by `make docs`:\n%s" % (
            file, "\n".join(lines[2:20]))] if lines else []
    return stale
