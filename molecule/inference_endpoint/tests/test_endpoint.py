# SPDX-License-Identifier: Apache-2.0
"""The endpoint answers, its passport is true, and its port is closed to other hosts."""

import json
import pathlib

import pytest

REPORTS = pathlib.Path("/tmp/fl-molecule-reports")


@pytest.fixture
def name(host):
    return host.backend.get_pytest_id().removeprefix("ansible://")


@pytest.fixture
def root(name):
    return "/tmp/fl-molecule" if name == "here" else "/var/lib/firstlight"


@pytest.fixture
def passport(host, root):
    return json.loads(host.file(root + "/endpoints/demo/passport.json").content_string)


def test_it_answers_as_the_passport_says(host, root, passport):
    plan = passport["plan"]
    body = {"model": plan["model"]["served_name"], "prompt": plan["oracle"]["prompt"],
            "max_tokens": plan["oracle"]["max_tokens"], "temperature": 0}
    answer = host.check_output(
        "curl -s --max-time 30 %s/v1/completions -H 'Content-Type: application/json' -d %s",
        plan["url"], json.dumps(body))
    log = host.file(root + "/endpoints/demo/engine.log")
    assert json.loads(answer)["choices"][0]["text"] == plan["oracle"]["completion"], (
        log.content_string[-4000:] if log.exists else "no log")


def test_it_listens_on_loopback_only(host, passport):
    port = passport["plan"]["port"]
    assert host.socket("tcp://127.0.0.1:%d" % port).is_listening
    assert not host.socket("tcp://0.0.0.0:%d" % port).is_listening


def test_one_engine_runs_from_the_environment_of_the_plan(host, passport):
    found = host.check_output("pgrep -af %s", passport["plan"]["venv"]).splitlines()
    engines = [line for line in found if "llama_server.py" in line]
    assert len(engines) == 1, found


def test_a_later_check_was_written(host, root):
    assert json.loads(host.file(root + "/endpoints/demo/last_check.json").content_string)["passed"]


def test_the_toolbelt_holds_what_our_modules_import(host, root):
    assert host.run(root + "/venvs/toolbelt/bin/python -c 'import pynvml'").rc == 0


def test_the_report_has_the_passport_of_the_host(name, passport):
    # The report is the controller's, wherever the host is.
    kept = (REPORTS / name / "demo.json").read_text(encoding="utf-8")
    assert json.loads(kept) == passport


def test_the_linker_cache_that_was_gone_is_there(host):
    assert "libc.so.6 (libc6" in host.check_output("/sbin/ldconfig -p")
