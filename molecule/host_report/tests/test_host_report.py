# SPDX-License-Identifier: Apache-2.0
"""What the controller has after a run: the results of the host, and the pages of them."""

import json
import pathlib

REPORTS = pathlib.Path("/tmp/fl-molecule-host-report")
RECORDED = pathlib.Path(__file__).parents[1] / "files" / "demo.json"


def test_the_passport_is_kept_as_the_host_has_it():
    assert json.loads((REPORTS / "here" / "demo.json").read_text()) == json.loads(
        RECORDED.read_text())


def test_the_report_has_the_host_proven():
    report = json.loads((REPORTS / "report.json").read_text())
    [host] = report["hosts"]
    assert (host["name"], host["state"]) == ("here", "proven")
    # The checks and the idempotence run were runs too; nothing drifted between them.
    assert host["drift"] == []
    [endpoint] = host["endpoints"]
    assert (endpoint["engine"], endpoint["state"]) == ("llama_cpp", "proven")
    assert endpoint["memory"]["observed_bytes"] > 0


def test_the_pages_say_the_same():
    assert "<h1>1 of 1 host proven</h1>" in (REPORTS / "index.html").read_text()
    assert (REPORTS / "report.md").read_text().startswith("# First light: 1 of 1 hosts proven\n")


def test_the_run_is_written_down():
    last = json.loads((REPORTS / "runs" / "last.json").read_text())
    assert last["run"]["playbook"] == "converge.yml"
    # Check mode, which came last, writes nothing; the run before it changed nothing.
    assert last["hosts"]["here"]["state"] == "ok"
