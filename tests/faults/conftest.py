# SPDX-License-Identifier: Apache-2.0
"""The tables of faults: what each did to the endpoint that served before."""

from __future__ import annotations

import pytest

TABLES = pytest.StashKey()
HEAD = ("fault", "what the run said", "the old endpoint", "the next run")

WIDTH = 180


@pytest.fixture
def tell(request):
    """Add a row: the fault, what the run said, what became of the old endpoint, the next run.

    The table is that of the test's file.
    """
    rows = request.config.stash[TABLES].setdefault(request.module.TABLE, [])
    return lambda *row: rows.append([short(cell) for cell in row])


def short(text):
    """As much of a text as a cell takes."""
    return text if len(text) <= WIDTH else text[:WIDTH].rsplit(None, 1)[0] + " …"


def pytest_configure(config):
    config.stash[TABLES] = {}


def pytest_terminal_summary(terminalreporter, config):
    """Print the tables, and keep them where they can be taken from."""
    lines = []
    for title, rows in config.stash[TABLES].items():
        lines += ["", "## " + title, ""]
        lines += ["| %s |" % " | ".join(cell.replace("|", "\\|") for cell in row)
                  for row in (HEAD, ["---"] * len(HEAD), *rows)]
    if not lines:
        return
    file = config.rootpath / ".cache" / "faults.md"
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(lines[1:]) + "\n", encoding="utf-8")
    terminalreporter.section("faults (%s)" % file)
    for line in lines[1:]:
        terminalreporter.write_line(line)
