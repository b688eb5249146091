# SPDX-License-Identifier: Apache-2.0
"""The log of an endpoint is found and read, whatever keeps the endpoint, or says why it is not."""

from __future__ import annotations

import json
import os
import pathlib
import shlex
import tempfile

import engine_log_diagnosis
import pytest
import yaml
from endpoint_host import contained
from fake_docker import Docker
from supervised import compose

from ansible.module_utils.firstlight import (
    docker_api,
    docker_service,
    passport,
    paths,
    services,
)
from ansible.module_utils.firstlight.docker_api import Api
from ansible.module_utils.firstlight.planning import diagnosis
from ansible.module_utils.firstlight.planning.container import container_spec
from ansible.module_utils.firstlight.services import ServiceError

ROWS = yaml.safe_load((pathlib.Path(__file__).resolve().parents[2]
                       / "catalog" / "log_signatures.yml").read_text())
BEGINS = "(APIServer pid=1) INFO 11-29 01:11:41 [api_utils.py:286] non-default args: {'port': 1}\n"
READY = "(APIServer pid=1) INFO:     Application startup complete.\n"
MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
PORT = "OSError: [Errno 98] Address already in use\n"
SHORT = ("ValueError: To serve at least one request with the model's max seq len (131072), (10.00 "
         "GiB KV cache is needed, which is larger than the available KV cache memory (2.57 GiB). "
         "Based on the available memory, the estimated maximum model length is 33712.\n")
LOST = ("subprocess.CalledProcessError: Command '['/sbin/ldconfig', '-p']' returned non-zero exit "
        "status 1.")


def ids(found):
    return [one["id"] for one in found]


@pytest.fixture(autouse=True)
def no_daemon(monkeypatch):
    monkeypatch.setattr(docker_api, "SOCKETS", ("/nonexistent/docker.sock",))


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(services, "kind_for_this_host", lambda: "supervisor")
    return tmp_path / "root"


@pytest.fixture
def folder(root):
    made = root / "endpoints" / "chat"
    made.mkdir(parents=True)
    return made


@pytest.fixture
def diagnose(run_module, root):
    def run(name="chat", **more):
        return run_module(engine_log_diagnosis.main, name=name, root=str(root), signatures=ROWS,
                          **more)

    return run


# Under supervisor.


def test_the_log_and_those_that_were_laid_aside_are_one(diagnose, folder):
    (folder / "engine.log.10").write_text(BEGINS + MEMORY)
    (folder / "engine.log.2").write_text(BEGINS + PORT)
    (folder / "engine.log.txt").write_text(LOST)
    (folder / "engine.log").write_text(BEGINS + READY)
    told = diagnose()
    assert (told["starts"], told["progress"]) == (3, {"text": "listening"})
    assert told["findings"] == []
    assert [(one["id"], one["subject"]) for one in told["earlier"]] == [
        ("port-in-use", "endpoint chat, start 2 of 3"),
        ("cuda-out-of-memory", "endpoint chat, start 1 of 3")]
    assert told["place"] == str(folder / "engine.log")
    assert diagnose(check=True) == told


def test_a_log_that_is_not_there_is_told_and_is_no_end(diagnose, folder):
    told = diagnose()
    assert told["unread"] == "%s: No such file or directory" % (folder / "engine.log")
    assert (told["findings"], told["lines"]) == ([], 0)


@pytest.mark.parametrize("name, says", [
    ("none", "There is no endpoint none under %s: there are chat, other."),
    ("../chat", "../chat is no name of an endpoint: small letters, digits and hyphens."),
])
def test_an_endpoint_that_is_not_there_is_an_error_that_says_which_are(
        diagnose, root, folder, name, says):
    (root / "endpoints" / "other").mkdir()
    told = diagnose(name)
    assert told["failed"] is True
    assert told["msg"] == (says % root if "%s" in says else says)


def test_without_any_endpoint_that_is_told(diagnose, root):
    assert diagnose()["msg"] == "There is no endpoint chat under %s: there is none." % root


def test_the_engine_of_the_passport_says_which_rows_count(diagnose, folder, passports):
    (folder / "engine.log").write_text(MEMORY)
    assert ids(diagnose()["findings"]) == ["cuda-out-of-memory"]
    passports(folder, "llama_cpp")
    assert diagnose()["findings"] == []
    assert ids(diagnose(engine="vllm")["findings"]) == ["cuda-out-of-memory"]


@pytest.fixture
def passports(root):
    def write(folder, engine):
        plan = dict(contained(), engine=engine)
        plan.pop("argv", None)
        (folder / "passport.json").write_text(json.dumps({
            "schema": passport.SCHEMA, "endpoint": "chat", "plan": plan, "phases": {},
            "service": {"manager": "supervisor", "text": ""}, "smoke": {"figures": {}}}))

    return write


def test_the_last_attempt_that_failed_is_told_beside_what_serves(diagnose, folder):
    (folder / "engine.log").write_text(BEGINS + READY)
    (folder / "failed.log").write_text(BEGINS + SHORT)
    os.utime(folder / "failed.log", (1796000000, 1796000000))
    told = diagnose()
    assert told["findings"] == []
    assert told["attempt"]["at"] == "2026-11-30T00:53:20Z"
    assert ids(told["attempt"]["findings"]) == ["cache-too-small-for-context"]
    assert told["attempt"]["words"]["cache-too-small-for-context"]["fits"] == "33712"
    assert told["attempt"]["progress"] == {}


# Under systemd.


@pytest.fixture
def journal(tmp_path, monkeypatch):
    """What journalctl is to say: text, complaint and exit status, and what it was asked."""
    def say(text="", complaint="", status=0):
        tool = tmp_path / "bin" / "journalctl"
        tool.parent.mkdir(exist_ok=True)
        tool.write_text("#!/bin/sh\necho \"$@\" > %s\ncat %s\nprintf %%s %s >&2\nexit %d\n" % (
            shlex.quote(str(tmp_path / "asked")), shlex.quote(str(tmp_path / "said")),
            shlex.quote(complaint), status))
        tool.chmod(0o755)
        (tmp_path / "said").write_text(text)
        monkeypatch.setenv("PATH", "%s:%s" % (tool.parent, os.environ["PATH"]))

    monkeypatch.setattr(services, "kind_for_this_host", lambda: "systemd")
    return say


def test_all_that_the_journal_has_of_a_unit_is_read(diagnose, folder, journal, tmp_path):
    filler = "".join("line %d\n" % number for number in range(100000))
    journal("Started firstlight-chat.service - Firstlight endpoint chat on http://x.\n" + BEGINS
            + MEMORY + filler)
    told = diagnose()
    assert ids(told["findings"]) == ["cuda-out-of-memory"]
    assert (told["starts"], told["lines"]) == (1, 100003)
    unit = services.Systemd(str(folder.parents[1])).files("chat")[0].rpartition("/")[2]
    assert told["place"] == "journalctl --unit " + unit
    assert (tmp_path / "asked").read_text().split() == [
        "--unit", unit, "--lines", str(services.LOG_LINES), "--output", "cat"]


@pytest.mark.parametrize("complaint, status, says", [
    # Recorded on Debian 12, as a user who is in none of the groups that may.
    ("No journal files were opened due to insufficient permissions.\n", 1,
     "No journal files were opened due to insufficient permissions."),
    ("Hint: You are currently not seeing messages from other users and the system.\n", 0,
     "Hint: You are currently not seeing messages"),
    ("", 2, "exit 2"),
])
def test_a_journal_that_cannot_be_read_says_why(diagnose, folder, journal, complaint, status, says):
    journal("", complaint, status)
    told = diagnose()
    assert told["unread"].startswith("journalctl --unit firstlight-chat-")
    assert says in told["unread"]


def test_what_is_complained_of_beside_a_log_is_no_error(diagnose, folder, journal):
    journal(MEMORY, "Hint: You are currently not seeing messages from the system.")
    told = diagnose()
    assert (told["unread"], ids(told["findings"])) == ("", ["cuda-out-of-memory"])


def test_without_a_journal_that_is_told(diagnose, folder, journal, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert diagnose()["unread"] == "journalctl: No such file or directory"


def test_who_reads_no_further_leaves_no_journalctl_behind(root, journal):
    journal("x" * 10**6)
    chunks = services.Systemd(str(root)).log_chunks("chat")
    assert next(chunks)
    chunks.close()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


# In a container.


@pytest.fixture
def docker(monkeypatch):
    with tempfile.TemporaryDirectory(prefix="fl", dir="/tmp") as place:  # a socket's path is short
        made = Docker(place)
        monkeypatch.setattr(docker_api, "SOCKETS", (made.socket,))
        made.start()
        yield made
        made.end()


def frame(text):
    return b"\1\0\0\0" + len(text).to_bytes(4, "big") + text


def container(docker, root, said, defined=True):
    spec = container_spec(contained(), str(root), {})
    docker.make(spec["made"])
    if defined:
        path = pathlib.Path(docker_service.Docker(str(root)).files("chat")[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(compose(spec))
    docker.say("GET", "/containers/%s/logs" % spec["name"], said if isinstance(said, tuple) else (
        200, b"".join(frame(line.encode()) for line in said.splitlines(True))))
    return spec["name"]


def test_all_that_a_container_wrote_is_read(diagnose, root, docker):
    name = container(docker, root, BEGINS + MEMORY + "x" * 100 + "\n" + BEGINS + PORT)
    told = diagnose()
    assert (told["place"], told["unread"]) == ("docker logs " + name, "")
    assert (told["starts"], told["lines"]) == (2, 5)
    assert ids(told["findings"]) == ["port-in-use"]


def test_a_container_that_no_definition_names_is_read_too(diagnose, root, docker):
    name = container(docker, root, MEMORY, defined=False)
    told = diagnose()
    assert (told["place"], ids(told["findings"])) == ("docker logs " + name, ["cuda-out-of-memory"])


def test_a_container_with_a_terminal_has_no_frames(diagnose, root, docker):
    container(docker, root, (200, (MEMORY * 20000).encode()))
    assert diagnose()["lines"] == 20000


def test_frames_are_read_however_they_come(docker):
    said = [b"line %d\n" % number * (number % 7 + 1) for number in range(30000)]
    docker.say("GET", "/containers/one/logs", (200, b"".join(map(frame, said)) + b"\1\0\0"))
    chunks = list(Api(docker.socket, timeout_s=10).log_chunks("one", 5))
    assert b"".join(chunks) == b"".join(said)
    assert len(chunks) > 2


def test_a_log_that_the_daemon_does_not_keep_is_told(diagnose, root, docker):
    name = container(docker, root, (
        501, b'{"message": "configured logging driver does not support reading"}'))
    assert diagnose()["unread"] == (
        "The log of the container %s cannot be read: configured logging driver does not support "
        "reading" % name)


def test_a_container_or_a_daemon_that_is_gone_is_told(diagnose, root, docker):
    name = container(docker, root, (404, b'{"message": "No such container"}'))
    assert "The log of the container %s cannot be read: No such container" % name in (
        diagnose()["unread"])
    docker.stop()
    assert "The log of the container %s cannot be read: " % name in diagnose()["unread"]


# A file in parts.


def test_of_a_long_file_the_end_is_read(tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789")
    assert list(paths.chunks(str(tmp_path / "file"), 4)) == [b"0123", b"4567", b"89"]
    assert list(paths.chunks(str(tmp_path / "file"), 4, most=5)) == [b"5678", b"9"]


def test_what_is_written_meanwhile_is_left(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123")
    read = []
    for chunk in paths.chunks(str(path), 3):
        read.append(chunk)
        with path.open("ab") as file:
            file.write(b"more")
    assert read == [b"012", b"3"]


def test_a_service_without_a_container_says_so(root, docker):
    with pytest.raises(ServiceError, match="There is no container of chat"):
        docker_service.Docker(str(root), Api(docker.socket)).log_place("chat")


# What is said of it.


def told_of(diagnose, folder, text, failed="", **state):
    (folder / "engine.log").write_text(text)
    if failed:
        (folder / "failed.log").write_text(failed)
    known = {"state": "failed", "healthy": False, "detail": "exit status 1", "restarts": 0,
             "half_done": False, "passport": {"plan": {"url": "http://127.0.0.1:8000"}}, **state}
    return diagnosis.diagnosis_text(diagnose(), {"chat": known}, ROWS)


def test_of_a_dead_endpoint_the_cause_is_told_and_what_to_do(diagnose, folder):
    said = told_of(diagnose, folder, BEGINS + PORT + BEGINS + SHORT + LOST, restarts=3)
    lines = said.split("\n")
    assert lines[0] == "chat: is dead (exit status 1, started again 3 times)"
    assert lines[1] == "  Its log (%s) has 5 lines of 2 starts. How far the last one came it does "\
        "not say." % (folder / "engine.log")
    assert "    [fatal] cache-too-small-for-context: endpoint chat, start 2 of 2" in lines
    assert "    [info] port-in-use: endpoint chat, start 1 of 2" in lines
    assert said.index("cache-too-small") < said.index("port-in-use")
    assert lines[-3:] == [
        "  Next:",
        "    site.yml changes this by itself, once, where inventory leaves it open: a context "
        "below 33712 tokens",
        "    ansible-playbook playbooks/repair.yml -t linker_cache"]


def test_of_an_endpoint_that_serves_nothing_reads_as_if_it_were_dead(diagnose, folder):
    said = told_of(diagnose, folder, BEGINS + SHORT + BEGINS + PORT + READY, healthy=True,
                   state="running", detail="pid 7, uptime 0:01:02")
    assert said.split("\n")[0] == "chat: serves on http://127.0.0.1:8000"
    assert "The last one came to: listening." in said
    assert "  What it got over in this start:" in said
    assert "[warning] port-in-use" in said
    assert "[info] cache-too-small-for-context" in said
    for word in ("[fatal]", "[error]", "Next:", "dead"):
        assert word not in said


def test_an_attempt_that_failed_is_told_beside_what_serves(diagnose, folder):
    said = told_of(diagnose, folder, BEGINS + READY, BEGINS + SHORT, healthy=True, state="running")
    assert "  Of the last attempt to change it, which failed at " in said
    assert ", and was put back:" in said
    assert "[fatal] cache-too-small-for-context" in said
    assert "a context below 33712 tokens" in said


@pytest.mark.parametrize("state, says", [
    ({"state": "running", "detail": ""}, "chat: runs, and does not answer /health with 200"),
    ({"state": "starting", "detail": "", "half_done": True},
     "chat: starts (a switch of it was ended in the middle, or is under way)"),
    ({"state": "stopped", "detail": ""}, "chat: is stopped"),
    ({"state": "absent", "detail": ""}, "chat: has no service"),
])
def test_how_it_is_comes_first(diagnose, folder, state, says):
    bar = "Loading safetensors checkpoint shards:  40% Completed | 2/5 [00:01<00:01, 1.6it/s]"
    said = told_of(diagnose, folder, BEGINS + bar, **state).split("\n")
    assert said[0] == says
    assert "The last one came to: loading weights (2 of 5 shards)." in said[1]


def test_where_no_line_is_known_it_says_where_to_read(diagnose, folder):
    said = told_of(diagnose, folder, BEGINS + "Traceback: something new\n")
    assert said.split("\n")[-1] == "  No line of it is known. Read its end: %s" % (
        folder / "engine.log")
    (folder / "engine.log").unlink()
    told = diagnosis.diagnosis_text(diagnose(), {}, ROWS)
    assert told.split("\n") == [
        "chat: is not known to this host",
        "  Its log could not be read: %s: No such file or directory" % (folder / "engine.log")]


def test_of_a_file_it_says_what_it_says(run_module, tmp_path):
    file = tmp_path / "x.log"
    file.write_text(PORT)
    told = run_module(engine_log_diagnosis.main, path=str(file), signatures=ROWS)
    said = diagnosis.diagnosis_text(told, {}, ROWS).split("\n")
    assert said[0] == "The log %s has 1 lines of one start. How far the last one came it does " \
        "not say." % file
    assert "    [fatal] port-in-use: %s" % file in said


@pytest.mark.parametrize("row", [row for row in ROWS if row["change"]], ids=lambda row: row["id"])
def test_every_change_is_worded(row):
    assert diagnosis._change(row["change"], {}).strip()
