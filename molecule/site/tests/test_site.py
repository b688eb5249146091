# SPDX-License-Identifier: Apache-2.0
"""Three hosts serve what their plans say; the fourth has its repairs and nothing that serves."""

import json
import pathlib
import ssl
import urllib.error
import urllib.request

import pytest

REPORTS = pathlib.Path("/tmp/fl-molecule-site")
ROOT = "/var/lib/firstlight"
KEY = "molecule-key-of-site-0"
# host: the engine, its release, its image; each serves the canary on the CPU.
SERVED = {
    "site-a100": ("llama_cpp", "11669", "firstlight-engine:llama-server"),
    "site-orin": ("llama_cpp", "11669", "firstlight-engine:llama-server"),
    "site-cpu": ("vllm", "0.32.0", "firstlight-engine:vllm-cpu"),
}


@pytest.fixture
def name(host):
    return host.backend.get_hostname().removeprefix("firstlight-")


def only(name, *wanted):
    if name not in wanted:
        pytest.skip("it is not for this host")


@pytest.fixture
def passport(host, name):
    only(name, *SERVED)
    return json.loads(host.file(ROOT + "/endpoints/demo/passport.json").content_string)


@pytest.fixture
def plan(passport):
    return passport["plan"]


def completion(plan):
    return json.dumps({
        "model": plan["model"]["served_name"], "prompt": plan["oracle"]["prompt"],
        "max_tokens": plan["oracle"]["max_tokens"], "temperature": 0})


def from_here(url, body=None, key=None):
    """Status and body of a request of this machine; the certificate is the host's own."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    request = urllib.request.Request(url, body and body.encode(), {
        "Content-Type": "application/json", **({"Authorization": "Bearer " + key} if key else {})})
    try:
        with urllib.request.urlopen(request, timeout=60, context=context) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()


def test_it_answers_the_words_of_the_canary(host, plan):
    said = json.loads(host.check_output(
        "curl --silent --retry 30 --retry-all-errors --retry-delay 1 --max-time 60"
        " --header 'Content-Type: application/json' --data %s %s",
        completion(plan), plan["url"] + "/v1/completions"))
    assert said["choices"][0]["text"] == plan["oracle"]["completion"]


def test_each_process_of_vllm_keeps_its_environment(host, name, plan):
    only(name, "site-cpu")
    # It has a title of its own. Natively, should its parent be killed, nothing else tells whose it
    # is.
    around = host.check_output(
        "for one in $(grep -ls VLLM::EngineCore /proc/[0-9]*/cmdline); do"
        " tr '\\0' '\\n' < $(dirname $one)/environ; done").splitlines()
    assert plan["command"]["env"].items() <= dict(
        one.split("=", 1) for one in around if one).items()


def test_who_has_the_key_comes_in_from_this_machine(host, name, plan):
    only(name, "site-a100")
    address = host.check_output("echo $SSH_CONNECTION").split()[2]
    url = "https://%s:%d/v1/completions" % (address, plan["port"])
    status, body = from_here(url, completion(plan), KEY)
    assert status == 200, body
    assert json.loads(body)["choices"][0]["text"] == plan["oracle"]["completion"]
    assert from_here(url, completion(plan), "not-a-key-of-this-one")[0] == 401


def test_a_passport_says_what_was_asked_for_and_what_runs(host, name, passport, plan):
    assert (plan["engine"], plan["engine_version"], plan["image"]) == SERVED[name]
    assert (plan["runtime"], plan["gpus"], plan["tensor_parallel"]) == ("docker", [], 1)
    [found] = json.loads(host.check_output("docker inspect %s", passport["service"]["container"]))
    assert (found["State"]["Status"], found["Config"]["Image"]) == ("running", plan["image"])
    assert host.check_output("docker ps --quiet").split() == [found["Id"][:12]]
    last = json.loads(host.file(ROOT + "/endpoints/demo/last_check.json").content_string)
    assert last["passed"]


def test_the_report_has_the_passports_of_three_hosts(name, passport):
    kept = json.loads((REPORTS / name / "demo.json").read_text(encoding="utf-8"))
    assert kept == passport


def test_no_key_is_in_what_is_kept(host, name):
    for file in REPORTS.rglob("*"):
        assert file.is_dir() or KEY not in file.read_text(encoding="utf-8"), file
    assert host.run("grep -rl %s /etc %s", KEY, ROOT).stdout == ""


def test_what_was_down_is_up(host, name):
    only(name, "site-a100", "site-orin")
    if name == "site-a100":
        assert host.service("nvidia-fabricmanager").is_running
        assert host.service("nvidia-fabricmanager").is_enabled
    else:
        assert host.check_output("nvpmodel -q").split()[-2:] == ["MAXN", "0"]


def test_every_host_finds_the_libraries_of_its_driver(host, name):
    listed = host.check_output("/sbin/ldconfig -p")
    assert "libc.so.6 (libc6" in listed
    assert ("libcuda.so.1" in listed) == (name != "site-cpu")


def test_a_host_that_cannot_be_served_has_nothing_of_ours_that_serves(host, name):
    only(name, "site-worn")
    assert host.check_output("docker ps --all --quiet") == ""
    assert host.check_output("docker image ls --quiet") == ""
    assert not host.file(ROOT + "/endpoints/demo").exists
    assert host.run("ls /etc/systemd/system | grep firstlight | grep -v rig").stdout == ""
    assert not (REPORTS / name / "demo.json").exists()


def test_what_others_run_there_still_runs(host, name):
    only(name, "site-worn")
    for rank in (0, 1):
        unit = host.service("training-%d" % rank)
        assert unit.is_running and unit.systemd_properties["NRestarts"] == "0"


def test_seventy_billion_weights_are_split_over_eight_cards(host, name):
    only(name, "site-a100")
    profile = json.loads(host.file("/etc/firstlight-mock/profile.json").content_string)
    [plan] = json.loads((REPORTS / "plans.json").read_text(encoding="utf-8"))[name]["endpoints"]
    assert (plan["engine"], plan["tensor_parallel"]) == ("vllm", 8)
    assert sorted(plan["gpus"]) == sorted(one["uuid"] for one in profile["devices"])
    argv = plan["command"]["argv"]
    assert argv[argv.index("--tensor-parallel-size") + 1] == "8"
    assert 0 < plan["context"] <= plan["memory"]["largest_context"]


def test_cards_that_others_hold_are_left_out(host, name):
    only(name, "site-worn")
    devices = json.loads(host.file("/etc/firstlight-mock/profile.json").content_string)["devices"]
    [plan] = json.loads((REPORTS / "plans.json").read_text(encoding="utf-8"))[name]["endpoints"]
    assert sorted(plan["gpus"]) == sorted(one["uuid"] for one in devices[2:])
    held = [reason for reason in plan["reasons"] if "left out: pid " in reason]
    pids = [one["processes"]["compute"][0]["pid"] for one in devices[:2]]
    assert len(held) == 2
    assert all(any("pid %d of nobody" % pid in reason for reason in held) for pid in pids)
