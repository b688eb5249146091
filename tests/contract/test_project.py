# SPDX-License-Identifier: Apache-2.0
"""What a stranger meets first is true: the workflow, the changelog, the pages and their links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

REPOSITORY = Path(__file__).parents[2]
MAKEFILE = (REPOSITORY / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
CONTRIBUTING = REPOSITORY / "CONTRIBUTING.md"
FRAGMENTS = sorted((REPOSITORY / "changelogs" / "fragments").glob("*.yml"))
PAGES = sorted(
    [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("roles/*/README.md"),
     *REPOSITORY.glob("docs/**/*.md")],
    key=str)

each_workflow = pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.stem)
each_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda file: str(file.relative_to(REPOSITORY)))


def jobs(workflow):
    return yaml.safe_load(workflow.read_text())["jobs"]


def steps(workflow):
    return [step for job in jobs(workflow).values() for step in job["steps"]]


def made_by(job):
    """The make targets that a job runs, one for each row of its matrix."""
    targets = []
    for step in job["steps"]:
        for target in re.findall(r"^make (.+)$", step.get("run", ""), re.MULTILINE):
            targets += job["strategy"]["matrix"]["target"] if "matrix" in target else [target]
    return targets


def marked(page):
    """A page as Markdown reads it: its links, and the anchors that GitHub makes of its headings."""
    links, anchors, heading = [], set(), False
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text()):
        if heading and token.type == "inline":
            anchors.add(re.sub(r"[^\w -]", "", token.content.lower()).replace(" ", "-"))
        heading = token.type == "heading_open"
        links += [child.attrs["href"] for child in token.children or []
                  if child.type == "link_open"]
    return links, anchors


# --- The workflow ----------------------------------------------------------------------------


def test_there_is_a_job_for_each_part_of_make_test():
    prerequisites = re.search(r"^test: ([a-z0-9 -]+)", MAKEFILE, re.MULTILINE).group(1).split()
    found = [target for job in jobs(REPOSITORY / ".github/workflows/test.yml").values()
             for target in made_by(job)]
    assert sorted(found) == sorted(prerequisites)


@each_workflow
def test_an_action_is_pinned_by_its_commit_and_says_its_version(workflow):
    used = re.findall(r"\buses:.*", workflow.read_text())
    assert used
    assert [line for line in used if not re.fullmatch(
        r"uses: [\w-]+/[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)] == []


@each_workflow
def test_a_workflow_may_read_and_nothing_more(workflow):
    assert yaml.safe_load(workflow.read_text())["permissions"] == {"contents": "read"}
    assert [name for name, job in jobs(workflow).items() if "permissions" in job] == []
    assert [step for step in steps(workflow) if "checkout" in step.get("uses", "")
            and step.get("with", {}).get("persist-credentials") is not False] == []


@each_workflow
def test_a_workflow_ends_by_itself_and_gives_way_to_a_newer_run(workflow):
    assert yaml.safe_load(workflow.read_text())["concurrency"]["cancel-in-progress"]
    assert [name for name, job in jobs(workflow).items() if not job.get("timeout-minutes")] == []


@each_workflow
def test_no_text_of_a_stranger_reaches_a_shell(workflow):
    expressions = [found for step in steps(workflow)
                   for found in re.findall(r"\$\{\{\s*(.*?)\s*\}\}", step.get("run", ""))]
    assert set(expressions) <= {"matrix.target"}


# --- The changelog ---------------------------------------------------------------------------


def test_code_in_the_changelog_has_two_backticks():
    # With one, reStructuredText takes it for the title of a book.
    assert [str(file) for file in FRAGMENTS
            if re.search(r"(?<!`)`(?!`)", file.read_text())] == []


# --- The pages -------------------------------------------------------------------------------


def test_contributing_fits_one_page():
    assert len(CONTRIBUTING.read_text().splitlines()) <= 80


def test_what_contributing_names_is_there():
    text = CONTRIBUTING.read_text()
    named = re.findall(r"(?:`|\s)((?:[\w.]+/)+[\w.-]*)(?=[`\s])", text)
    assert len(named) > 10
    missing = [path for path in named if not (REPOSITORY / path).exists()
               and not path.startswith(".venv-dev/")]
    missing += [target for line in re.findall(r"`make ([a-z -]+)`", text)
                for target in line.split() if target not in TARGETS]
    assert missing == []


@each_page
def test_a_link_leads_somewhere(page):
    broken = []
    for link in marked(page)[0]:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if "://" not in link and not (
                target.exists() and (not anchor or anchor in marked(target)[1])):
            broken.append(link)
    assert broken == []
