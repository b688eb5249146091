# SPDX-License-Identifier: Apache-2.0
"""A newcomer's way, whole: a clone, `make demo` and `make down`, on a real engine.

One clone, one story: each test takes the machine as the one before left it.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request

import checkout
import hub
import pytest

from ansible.module_utils.firstlight import canary, processes

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
ROOT = pathlib.Path(__file__).resolve().parents[2]
WORK = "TASK [host_state : say | Say what there is to do and why]"
MOST_TASKS = 25
"""Tasks that a host on which there is nothing to do may meet."""


class Demo:
    """The clone, its state, and how to run make in it."""

    def __init__(self, folder):
        self.clone = folder / "a clone"  # a space, because somebody's path has one
        self.root = folder / "a root"
        self.port = free_port()

    def make(self, target, environment=(), before=(), **variables):
        """Run a make target; returns what it printed, standard error included, and its status.

        ``before`` are the words of a command that runs it.
        """
        given = {"PORT": str(self.port), "ROOT": str(self.root), **variables}
        # An outer make must not reach in: it hands its own variables down.
        env = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
        env.update(environment)
        done = subprocess.run(
            [*before, "make", target, *("%s=%s" % pair for pair in given.items())],
            cwd=self.clone, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=500, check=False)
        return done.returncode, done.stdout

    @property
    def url(self):
        return "http://127.0.0.1:%d" % self.port

    def pids(self):
        return [one["pid"] for one in processes.engines(str(self.root)).get("demo", [])]

    def file(self, name):
        return self.root / "endpoints" / "demo" / name

    def answers(self):
        """The served model's name and its answer to the canary's prompt."""
        with urllib.request.urlopen(self.url + "/v1/models", timeout=10) as answer:
            name = json.load(answer)["data"][0]["id"]
        oracle = canary.oracle()
        body = {"model": name, "prompt": oracle["prompt"], "temperature": 0,
                "max_tokens": oracle["max_tokens"]}
        request = urllib.request.Request(
            self.url + "/v1/completions", json.dumps(body).encode(),
            {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return name, json.load(answer)["choices"][0]["text"]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def recap(output):
    """What the play recap counted, e.g. ``{"changed": 0, "failed": 0, ...}``."""
    line = re.search(r"^localhost +: (.*)$", output, re.MULTILINE).group(1)
    return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", line)}


@pytest.fixture(scope="module")
def demo():
    """A clone in a short path: unix sockets have little room."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="fl-e2e-", dir="/tmp"))
    here = Demo(folder)
    checkout.copy(here.clone)
    yield here
    for pid in here.pids():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    pidfile = here.root / "supervisor" / "supervisord.pid"
    if pidfile.exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pidfile.read_text()), signal.SIGKILL)
    shutil.rmtree(folder)


def test_the_first_run_ends_with_a_proven_endpoint(demo):
    status, output = demo.make("demo")
    assert status == 0, output
    assert recap(output)["failed"] == 0
    assert "demo on localhost: proven" in output
    assert "endpoint  " + demo.url in output
    assert re.search(r"engine +llama_cpp \S+ \(native\)", output)
    assert re.search(r"speed +[\d.]+ tokens/s", output)
    assert re.search(
        r"time +controller [\d.]+ s .* inference_endpoint [\d.]+ s .* endpoint_smoke [\d.]+ s",
        output)
    assert re.search(r"^localhost +inference_endpoint +changed +[\d.]+ s  \S", output, re.MULTILINE)
    passport = json.loads(demo.file("passport.json").read_text())
    assert "passport  %s" % demo.file("passport.json") in output
    assert passport["plan"]["url"] == demo.url
    assert passport["smoke"]["figures"]["tokens_per_second"] > 0
    assert passport["memory"]["observed_bytes"] > 0
    copy = demo.clone / "reports" / "localhost" / "demo.json"
    assert json.loads(copy.read_text()) == passport

    curl = re.search(r"^try +(curl .*)$", output, re.MULTILINE).group(1)
    answer = subprocess.run(["sh", "-c", curl], stdout=subprocess.PIPE, timeout=30, check=True)
    assert json.loads(answer.stdout)["choices"][0]["text"] == canary.oracle()["completion"]


def test_the_second_run_changes_nothing_and_checks_again(demo, remote_calls):
    before = demo.pids(), demo.file("passport.json").read_bytes()
    checked = demo.file("last_check.json").stat().st_mtime_ns
    status, output = demo.make("demo", remote_calls.environment(demo.clone / "ansible.cfg"))
    assert status == 0, output
    remote_calls.expect(role={"host_state": 1, "endpoint_smoke": 1})
    assert recap(output)["changed"] == 0
    # Each costs a host as much as a small decision.
    assert recap(output)["ok"] + recap(output)["skipped"] <= MOST_TASKS, output
    assert WORK not in output
    assert (demo.pids(), demo.file("passport.json").read_bytes()) == before
    assert demo.file("last_check.json").stat().st_mtime_ns > checked
    assert json.loads(demo.file("last_check.json").read_text())["passed"] is True


def test_check_mode_after_the_run_reports_no_change(demo):
    status, output = playbook(demo, "site.yml", "--check", "--diff")
    assert status == 0, output
    assert recap(output)["changed"] == 0
    assert "demo on localhost: proven" in output


def without_passport(demo):
    demo.file("passport.json").unlink()


def without_toolbelt(demo):
    (demo.root / "venvs/toolbelt/firstlight.json").unlink()


def with_another_program(demo):
    [file] = (demo.root / "supervisor").rglob("*demo.conf")
    file.write_text(file.read_text() + "; somebody was here\n")


def with_a_change_half_done(demo):
    (demo.root / "journal" / "endpoint-demo.json").write_text('{"entries": []}')


def stopped(demo):
    stop(demo)


ENDPOINT = "inference_endpoint: demo is not as its plan wants it."


@pytest.mark.parametrize(("harm", "told"), [
    (without_passport, ENDPOINT),
    (without_toolbelt, "toolbelt: its environment is not as its lock wants it."),
    (with_another_program, ENDPOINT),
    (with_a_change_half_done, ENDPOINT),
    (stopped, ENDPOINT),
])
def test_what_is_not_as_it_should_be_is_found_and_brought_back(demo, harm, told):
    harm(demo)
    status, output = demo.make("demo")
    assert status == 0, output
    assert told in output.partition(WORK)[2].partition("TASK [")[0], output
    assert recap(output)["changed"] > 0
    assert demo.answers()[1] == canary.oracle()["completion"]


def test_after_that_there_is_nothing_to_do(demo):
    status, output = demo.make("demo")
    assert status == 0, output
    assert WORK not in output
    assert recap(output)["changed"] == 0


def playbook(demo, *arguments):
    """Run ansible-playbook in the clone; returns its status and what it printed."""
    env = dict(os.environ, ANSIBLE_CONFIG=str(demo.clone / "ansible.cfg"),
               FIRSTLIGHT_ROOT=str(demo.root), FIRSTLIGHT_PORT=str(demo.port))
    done = subprocess.run(
        [".venv/bin/ansible-playbook", *arguments], cwd=demo.clone, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, check=False)
    return done.returncode, done.stdout


@pytest.mark.parametrize("tag", [
    "preflight", "linker_cache", "network_access", "toolbelt", "host_health", "host_tuning",
    "model_snapshot", "deployment_plan", "inference_endpoint", "endpoint_smoke", "verify",
    "host_report"])
def test_each_tag_is_safe_alone(demo, tag):
    status, output = playbook(demo, "site.yml", "--tags", tag)
    assert status == 0, output
    assert recap(output)["changed"] == 0
    assert ("demo on localhost" in output) == (tag == "host_report")


def test_a_remedy_that_fails_does_not_keep_a_host_from_serving(demo):
    if os.geteuid():
        pytest.skip("only root can repair what is found here")
    journal = demo.root / "journal" / "linker_cache.json"
    journal.parent.mkdir(exist_ok=True)
    journal.write_text("no journal\n")
    try:
        status, output = playbook(demo, "site.yml")
    finally:
        journal.unlink()
    assert status == 0, output
    assert "should say what an earlier change left half done, and cannot be read" in output
    assert "repair-half-done" in output
    assert demo.answers()[1] == canary.oracle()["completion"]


def test_check_mode_of_the_teardown_only_says_what_it_would_remove(demo):
    pids = demo.pids()
    status, output = playbook(demo, "playbooks/teardown.yml", "--check")
    assert status == 0, output
    assert "would be removed on localhost:\n  process %d of endpoint demo" % pids[0] in output
    assert demo.pids() == pids
    assert demo.answers()[1] == canary.oracle()["completion"]


def test_a_name_that_a_host_makes_up_chooses_no_path_here(demo):
    file = demo.file("passport.json")
    passport = json.loads(file.read_text())
    file.write_text(json.dumps(dict(passport, endpoint="../../../evil")))
    status, output = demo.make("demo")
    assert status == 0, output  # it counted as no passport and was written anew
    assert json.loads(file.read_text())["endpoint"] == "demo"
    assert not list(demo.clone.parent.rglob("evil*"))


def test_a_killed_engine_comes_back_by_itself(demo):
    (old,) = demo.pids()
    os.kill(old, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while True:
        assert time.monotonic() < deadline, "the engine did not come back"
        with contextlib.suppress(OSError):
            if demo.answers() == ("canary", canary.oracle()["completion"]):
                break
        time.sleep(0.2)
    assert demo.pids() != [old]


def test_bad_input_is_judged_before_anything_is_touched(demo):
    before = demo.pids(), demo.file("passport.json").read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as held:
        status, output = demo.make(
            "demo", PORT=str(held.getsockname()[1]), MODEL="/no/such/model.gguf")
    assert status != 0
    assert "Nothing was touched" in output
    assert "held by pid %d" % os.getpid() in output
    assert "inference_endpoints[0] (demo).port" in output
    assert "/no/such/model.gguf: no such file" in output
    assert (demo.pids(), demo.file("passport.json").read_bytes()) == before
    assert demo.answers()[1] == canary.oracle()["completion"]


def test_a_model_that_cannot_be_served_leaves_the_old_one_serving(demo, tmp_path):
    before = demo.file("passport.json").read_bytes()
    broken = tmp_path / "broken.gguf"
    # A whole file of an architecture that no engine knows: only the engine can find out.
    broken.write_bytes(canary.content(canary.GGUF).replace(b"llama", b"llamx"))
    status, output = demo.make("demo", MODEL=str(broken))
    assert status != 0
    assert "The engine of demo died" in output
    assert "What served before is back on " + demo.url in output
    assert demo.file("passport.json").read_bytes() == before
    assert demo.answers() == ("canary", canary.oracle()["completion"])


def test_another_model_is_served_by_its_path_and_given_back(demo, tmp_path):
    other = tmp_path / "it's a %d model; $HOME.gguf"
    other.write_bytes(canary.content(canary.GGUF))
    status, output = demo.make("demo", MODEL=str(other).replace("$", "$$"))
    assert status == 0, output
    assert demo.answers() == (other.stem, canary.oracle()["completion"])
    status, output = demo.make("demo")
    assert status == 0, output
    assert demo.answers()[0] == "canary"
    assert recap(demo.make("demo")[1])["changed"] == 0


FETCHED = "firstlight/canary-gguf"


@pytest.fixture(scope="module")
def own_hub(tmp_path_factory):
    """A hub of this machine with repositories of the canary; it serves where it is entered."""
    port = free_port()
    repos = hub.canary_repos(tmp_path_factory.mktemp("hub"))
    return lambda: hub.Hub(repos, port=port)


def test_a_model_of_a_hub_is_fetched_once_and_served_from_here(demo, own_hub, remote_calls):
    with own_hub() as there:
        status, output = demo.make("demo", {"HF_ENDPOINT": there.url}, MODEL=FETCHED)
        assert status == 0, output
        assert demo.answers() == (FETCHED, canary.oracle()["completion"])
        model = json.loads(demo.file("passport.json").read_text())["plan"]["model"]
        assert (model["repo_id"], model["revision"]) == (FETCHED, "main")
        assert model["commit"] == there.commit(FETCHED)
        assert model["path"].startswith("%s/models/hub/" % demo.root)
        asked = list(there.done())
        # One file of several, and what is said of it.
        assert {pathlib.Path(one.path).name for one in asked if "/resolve/" in one.path
                and FETCHED in one.path} == {"LICENSE", "canary-Q4_K_M.gguf"}

        before = demo.pids(), demo.file("passport.json").read_bytes()
        status, output = demo.make(
            "demo", {"HF_ENDPOINT": there.url,
                     **remote_calls.environment(demo.clone / "ansible.cfg")}, MODEL=FETCHED)
        assert status == 0, output
        assert recap(output)["changed"] == 0
        assert (demo.pids(), demo.file("passport.json").read_bytes()) == before
        remote_calls.expect(role={
            "host_state": 1, "network_access": 1, "model_snapshot": 1, "endpoint_smoke": 1})
        assert there.done() == asked


def test_what_was_fetched_is_served_without_a_way_out(demo, own_hub):
    """In a network of its own, in which there is nobody else."""
    alone = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
    if subprocess.run([*alone, "true"], stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("only root can cut the way out")
    with own_hub() as there:
        url = there.url
    stop(demo)
    status, output = demo.make("demo", {"HF_ENDPOINT": url}, before=alone, MODEL=FETCHED)
    assert status == 0, output
    assert "demo on localhost: proven" in output
    [pid] = demo.pids()
    assert os.readlink("/proc/%d/ns/net" % pid) != os.readlink("/proc/self/ns/net")
    variables = pathlib.Path("/proc/%d/environ" % pid).read_bytes().split(b"\0")
    assert not [one for one in variables if one.startswith(b"HF_")]
    stop(demo)


def stop(demo):
    """End what serves and what keeps it, as a machine that goes down does."""
    pids = [int((demo.root / "supervisor" / "supervisord.pid").read_text()), *demo.pids()]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while any(map(processes.is_alive, pids)):
        assert time.monotonic() < deadline, "they did not end"
        time.sleep(0.05)


def test_a_directory_with_something_else_in_it_is_no_root(demo, tmp_path):
    (tmp_path / "letters").write_text("dear")
    status, output = demo.make("demo", ROOT=str(tmp_path), PORT=str(free_port()))
    assert status != 0
    assert "root-not-ours" in output
    assert "%s holds letters" % tmp_path in output
    assert os.listdir(tmp_path) == ["letters"]


def test_down_leaves_what_is_not_ours(demo, tmp_path):
    (tmp_path / "venvs/mine").mkdir(parents=True)
    (tmp_path / "venvs/mine/pyvenv.cfg").touch()
    for folder in ("cache", "venvs/mine", "journal", "endpoints/mine", "models/mine"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "precious").write_text("dear")
    status, output = playbook(
        demo, "playbooks/teardown.yml", "-e", "firstlight_root=%s" % tmp_path)
    assert status == 0, output
    assert len(list(tmp_path.rglob("precious"))) == 5
    assert re.search(r"removed on localhost:\n  nothing", output)


def test_a_recovered_endpoint_is_proven_again(demo):
    # A switch that was killed after it had put everything back.
    journal = demo.root / "journal" / "endpoint-demo.json"
    journal.write_text('{"entries": []}')
    status, output = demo.make("demo")
    assert status == 0, output
    assert not journal.exists()
    assert "demo on localhost: proven" in output


def test_down_of_one_demo_leaves_the_others(demo):
    other = {"ROOT": str(demo.root) + "-2", "PORT": str(free_port())}
    status, output = demo.make("demo", **other)
    assert status == 0, output
    status, output = demo.make("down", ROOT=other["ROOT"])
    assert status == 0, output
    assert "Other demos of this checkout are still there:\n%s\n" % demo.root in output
    assert not os.path.exists(other["ROOT"])
    assert demo.answers()[1] == canary.oracle()["completion"]


def test_down_removes_everything_and_says_so(demo):
    pids = demo.pids()
    status, output = demo.make("down")
    assert status == 0, output
    assert "process %d of endpoint demo" % pids[0] in output
    assert str(demo.root) in output
    assert not demo.root.exists()
    assert demo.pids() == []
    assert processes.holders([demo.port]) == {}
    left = {path.name for path in demo.clone.iterdir()} & {".venv", ".demo", ".ansible", "reports"}
    assert left == set()


def test_down_without_a_demo_touches_nothing(demo):
    status, output = demo.make("down", ROOT="")
    assert status == 0
    assert "nothing to take down" in output
    assert not (demo.clone / ".venv").exists()
