# SPDX-License-Identifier: Apache-2.0
"""Every endpoint answers, its passport is true, and only who may comes in from outside."""

import json
import pathlib

import pytest

REPORTS = pathlib.Path("/tmp/fl-molecule-endpoint-reports")
KEYS = ("molecule-key-of-now-0", "molecule-key-of-then-0")
ENDPOINTS = ("demo", "vllm")


@pytest.fixture
def name(host):
    return host.backend.get_pytest_id().removeprefix("ansible://")


@pytest.fixture
def root(name):
    return "/tmp/fl-molecule" if name == "here" else "/var/lib/firstlight"


@pytest.fixture(params=ENDPOINTS)
def passport(host, root, request):
    file = host.file("%s/endpoints/%s/passport.json" % (root, request.param))
    if request.param != "demo" and not file.exists:
        pytest.skip("this host has no such endpoint")
    return json.loads(file.content_string)


@pytest.fixture
def plan(passport):
    return passport["plan"]


@pytest.fixture
def way_in(plan):
    if not plan["way_in"]:
        pytest.skip("clients ask the engine itself")
    return "https://127.0.0.1:%d" % plan["port"]


@pytest.fixture
def container(host, passport):
    if passport["service"]["container"] is None:
        pytest.skip("it is not in a container")
    [found] = json.loads(host.check_output(
        "docker inspect %s", passport["service"]["container"]))
    return found


def asked(host, url, *more):
    """Status and body of a request."""
    said = host.check_output("curl -s -k --max-time 60 -w '\\n%%{http_code}' "
                             + " ".join("%s" for _ in (url, *more)), url, *more)
    body, _, status = said.rpartition("\n")
    return int(status), body


def completion(plan):
    return ["-H", "Content-Type: application/json", "-d", json.dumps({
        "model": plan["model"]["served_name"], "prompt": plan["oracle"]["prompt"],
        "max_tokens": plan["oracle"]["max_tokens"], "temperature": 0})]


def test_it_answers_as_the_passport_says(host, plan):
    status, body = asked(host, plan["url"] + "/v1/completions", *completion(plan))
    assert status == 200, body
    assert json.loads(body)["choices"][0]["text"] == plan["oracle"]["completion"]


def test_the_engine_listens_on_loopback_only(host, plan):
    assert host.socket("tcp://127.0.0.1:%d" % plan["engine_port"]).is_listening
    assert not host.socket("tcp://0.0.0.0:%d" % plan["engine_port"]).is_listening


def test_who_has_a_key_comes_in_and_nobody_else(host, plan, way_in):
    for key in KEYS:
        status, body = asked(host, way_in + "/v1/completions", "-H",
                             "Authorization: Bearer " + key, *completion(plan))
        assert status == 200, body
        assert json.loads(body)["choices"][0]["text"] == plan["oracle"]["completion"]
    for more in ([], ["-H", "Authorization: Bearer not-a-key-of-this-one"]):
        assert asked(host, way_in + "/v1/models", *more)[0] == 401
    assert asked(host, way_in + "/metrics", "-H", "Authorization: Bearer " + KEYS[0])[0] == 404


def test_no_key_is_on_the_host_in_clear(host, root, plan, way_in):
    assert host.run("grep -rl molecule-key %s /etc/systemd/system", root).stdout == ""
    assert "molecule-key" not in host.check_output("ps -ww -eo args")
    assert host.file("%s/endpoints/%s/way_in/keys" % (root, plan["name"])).mode == 0o600


def test_one_native_engine_runs_from_the_environment_of_the_plan(host, passport):
    if passport["service"]["container"]:
        pytest.skip("it is in a container")
    found = host.check_output("pgrep -af %s", passport["plan"]["venv"]).splitlines()
    engines = [line for line in found if "llama_server.py" in line]
    assert len(engines) == 1, found


def test_a_container_has_what_it_needs_and_no_more(container, plan):
    settings = container["HostConfig"]
    assert container["State"]["Status"] == "running"
    assert container["RestartCount"] == 0
    assert settings["ReadonlyRootfs"] is True
    assert settings["CapDrop"] == ["ALL"]
    assert not settings["CapAdd"]
    assert settings["Privileged"] is False
    assert any(one.startswith("no-new-privileges") for one in settings["SecurityOpt"])
    assert settings["Init"] is True
    assert settings["NetworkMode"] == "firstlight"
    assert settings["PortBindings"] == {"%d/tcp" % plan["engine_port"]: [
        {"HostIp": "127.0.0.1", "HostPort": str(plan["engine_port"])}]}
    assert settings["LogConfig"]["Config"]["max-size"] == "10m"
    assert [one["Target"] for one in settings["Mounts"] if not one.get("ReadOnly")] == (
        [plan["cache"]] if plan["cache"] else [])
    assert container["Config"]["Healthcheck"]["StartPeriod"] == plan["start_timeout_s"] * 10**9
    assert not any("TOKEN" in one or "key" in one.lower() for one in container["Config"]["Env"])


def test_one_container_of_an_endpoint_runs_and_its_file_names_it(host, root, container, plan):
    running = host.check_output(
        "docker ps --filter label=firstlight.endpoint=%s --format {{.Names}}", plan["name"])
    assert "/" + running == container["Name"]
    text = host.file("%s/endpoints/%s/compose.yaml" % (root, plan["name"])).content_string
    assert "container_name: %s\n" % running in text


def test_a_later_check_was_written(host, root, plan):
    file = host.file("%s/endpoints/%s/last_check.json" % (root, plan["name"]))
    assert json.loads(file.content_string)["passed"]


def test_the_toolbelt_holds_what_our_modules_import(host, root):
    assert host.run(root + "/venvs/toolbelt/bin/python -c 'import pynvml, requests'").rc == 0


def test_what_was_taken_back_is_what_was_there_first(host, root, plan):
    """Before the change and after the way back, the context is the whole of the model's."""
    assert plan["context"] == plan["model"]["geometry"]["context"]


def test_the_linker_cache_that_was_gone_is_there(host):
    assert "libc.so.6 (libc6" in host.check_output("/sbin/ldconfig -p")


def test_the_report_has_the_passport_of_the_host(name, plan):
    # The report is the controller's, wherever the host is.
    kept = json.loads((REPORTS / name / (plan["name"] + ".json")).read_text(encoding="utf-8"))
    assert kept["plan"]["model"] == plan["model"]
