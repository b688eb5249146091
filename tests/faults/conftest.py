# SPDX-License-Identifier: Apache-2.0
"""The table of faults: what each did to the endpoint that served before."""

from __future__ import annotations

import pytest

TABLE = pytest.StashKey()
HEAD = ("fault", "what the run said", "the old endpoint", "the next run")

WIDTH = 180


@pytest.fixture
def tell(request):
    """Add a row: the fault, what the run said, what became of the old endpoint, the next run."""
    return lambda *row: request.config.stash[TABLE].append([short(cell) for cell in row])


def short(text):
    """As much of a text as a cell takes."""
    return text if len(text) <= WIDTH else text[:WIDTH].rsplit(None, 1)[0] + " …"


def pytest_configure(config):
    config.stash[TABLE] = []


def pytest_terminal_summary(terminalreporter, config):
    """Print the table, and keep it where it can be taken from."""
    if not config.stash[TABLE]:
        return
    lines = ["| %s |" % " | ".join(cell.replace("|", "\\|") for cell in row)
             for row in (HEAD, ["---"] * len(HEAD), *config.stash[TABLE])]
    file = config.rootpath / ".cache" / "faults.md"
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    terminalreporter.section("faults (%s)" % file)
    for line in lines:
        terminalreporter.write_line(line)
