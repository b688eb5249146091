# SPDX-License-Identifier: Apache-2.0
"""A service does what its definition file says, under a real supervisord and a recorded systemd.

A real systemd is not to be had where these tests run.
"""

from __future__ import annotations

import os
import pathlib
import sys

import pytest
from supervised import config, definition, kill, short_root, until
from transcripts import calls_of

from ansible.module_utils.firstlight import paths, processes
from ansible.module_utils.firstlight.services import ServiceError, Supervisor, Systemd, manager

STAYS = "import time; print('here', flush=True); time.sleep(600)"
HAS_A_CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
SAYS_ITS_ENVIRONMENT = "import os, time; print(sorted(os.environ), flush=True); time.sleep(600)"


class Rig(Supervisor):
    """A supervisor with what its tests do to it."""

    def define(self, script=STAYS, *args, name="chat", plan="abc", **env):
        os.makedirs(os.path.dirname(self.files(name)[0]), exist_ok=True)
        os.makedirs(os.path.join(self.root, "endpoints", name), exist_ok=True)
        argv = [sys.executable, "-c", script] + list(args)
        with open(self.files(name)[0], "w", encoding="utf-8") as file:
            file.write(definition(self.root, name, argv, plan, env))

    def undefine(self, name="chat"):
        os.unlink(self.files(name)[0])

    def runs(self, name="chat"):
        """Follow, and give the pid that then runs."""
        self.follow(name)
        # Before its exec, a new process still looks like its daemon.
        until(lambda: self.status(name)["pid"] in self.processes(name))
        assert self.status(name)["state"] in ("starting", "running")
        return self.status(name)["pid"]

    def processes(self, name="chat"):
        return {one["pid"] for one in processes.engines(self.root).get(name, [])}


@pytest.fixture(params=["root"])
def rig(request, supervisord):
    with short_root(request.param) as root:
        rig = Rig(root, supervisord)
        os.makedirs(rig.folder)
        with open(rig.config, "w", encoding="utf-8") as file:
            file.write(config())
        yield rig


def test_without_a_daemon_everything_is_absent(rig):
    assert rig.daemon_pid() is None
    assert rig.status("chat") == {
        "state": "absent", "pid": None, "detail": "supervisord is not running"}
    rig.follow("chat")
    assert rig.daemon_pid() is None, "nothing to run is no reason to start a daemon"


@pytest.mark.parametrize("rig", ["a root"], indirect=True)
def test_the_life_of_a_service(rig):
    """Start, the same again, a change, the end; also in a root with a space."""
    rig.define(plan="first")
    first = rig.runs()
    assert rig.processes() == {first}
    assert processes.engines(rig.root)["chat"][0]["plan"] == "first"
    until(lambda: rig.status("chat")["state"] == "running")
    daemon = rig.daemon_pid()
    assert until(lambda: rig.log_tail("chat")) == "here"

    again = rig.runs()
    assert again != first, "following restarts, also what did not change"
    assert rig.processes() == {again}

    rig.define(plan="second")
    second = rig.runs()
    assert rig.processes() == {second}
    assert processes.engines(rig.root)["chat"][0]["plan"] == "second"

    assert rig.close_if_unused() == [], "it is used"
    assert rig.status("chat")["pid"] == second
    rig.undefine()
    rig.follow("chat")
    assert rig.status("chat") == {"state": "absent", "pid": None, "detail": ""}
    assert rig.processes() == set()
    assert rig.daemon_pid() == daemon, "the daemon stays through all of it"

    removed = rig.close_if_unused()
    assert removed == ["process %d, supervisord" % daemon, "what we wrote in %s" % rig.folder]
    assert rig.daemon_pid() is None
    assert not os.path.exists(rig.folder)
    assert rig.close_if_unused() == []


def test_other_services_are_left_alone(rig):
    rig.define(name="code")
    rig.define()
    other = rig.runs("code")
    rig.runs()
    rig.define(plan="changed")
    rig.define(name="code", plan="changed as well")
    rig.runs()
    assert rig.status("code")["pid"] == other, "its change is for its own switch"
    rig.undefine()
    rig.follow("chat")
    assert rig.status("code")["pid"] == other
    assert rig.runs("code") != other
    assert processes.engines(rig.root)["code"][0]["plan"] == "changed as well"


def test_a_service_that_is_killed_comes_back(rig):
    rig.define()
    first = rig.runs()
    until(lambda: rig.status("chat")["state"] == "running")
    kill(first)
    until(lambda: rig.processes() - {first})
    assert rig.processes() == {rig.status("chat")["pid"]}


def test_the_children_of_a_service_end_with_it(rig):
    rig.define(HAS_A_CHILD, STAYS)
    rig.runs()
    was = until(lambda: len(rig.processes()) == 2 and rig.processes())
    rig.undefine()
    rig.follow("chat")
    assert rig.processes() & was == set()


def test_a_service_that_ends_at_once_has_failed_and_is_not_starting_for_ever(rig):
    rig.define("import sys; print('no such model'); sys.exit(3)")
    path = pathlib.Path(rig.files("chat")[0])
    path.write_text(path.read_text().replace("startretries=3", "startretries=1"))
    rig.follow("chat")
    # Between two of supervisord's attempts it is starting; in the end it must not be.
    until(lambda: rig.status("chat")["state"] == "failed"
          and "FATAL" in pathlib.Path(rig.folder, "supervisord.log").read_text())
    assert rig.status("chat")["pid"] is None
    assert "Exited too quickly" in rig.status("chat")["detail"]
    assert rig.log_tail("chat", lines=1) == "no such model"
    rig.define()
    assert rig.runs()


def test_a_command_that_is_not_there_has_failed_and_says_so(rig):
    rig.define()
    path = pathlib.Path(rig.files("chat")[0])
    path.write_text(path.read_text().replace(sys.executable, "/nowhere/python"))
    rig.follow("chat")
    until(lambda: rig.status("chat")["state"] == "failed")
    assert "/nowhere/python" in rig.status("chat")["detail"]


def test_a_definition_that_supervisord_refuses_is_an_error_that_says_why(rig):
    rig.define()
    rig.runs()
    with open(rig.files("chat")[0], "a", encoding="utf-8") as file:
        file.write("\nstopsignal=NONSENSE\n")
    with pytest.raises(ServiceError, match="supervisord: .*"):
        rig.follow("chat")
    rig.define()
    assert rig.runs(), "the old definition must be able to come back"


def test_a_daemon_that_cannot_start_says_why(rig):
    rig.define()
    with open(rig.config, "a", encoding="utf-8") as file:
        file.write("\n[supervisord]\nloglevel=nonsense\n")
    with pytest.raises(ServiceError, match=r"supervisord.*exit"):
        rig.follow("chat")


def test_a_root_too_long_for_a_socket_is_said_at_once(rig, supervisord, tmp_path):
    deep = Supervisor(str(tmp_path / ("x" * 100)), supervisord)
    os.makedirs(os.path.dirname(deep.files("chat")[0]))
    pathlib.Path(deep.files("chat")[0]).touch()
    pathlib.Path(deep.config).write_text(config())
    with pytest.raises(ServiceError, match="too long"):
        deep.follow("chat")


def test_a_killed_daemon_leaves_orphans_which_the_next_start_ends(rig):
    rig.define()
    orphan = rig.runs()
    # What it prints when its daemon is gone would end it.
    until(lambda: rig.log_tail("chat"))
    kill(rig.daemon_pid())
    until(lambda: rig.daemon_pid() is None)
    assert rig.status("chat")["state"] == "absent"
    assert rig.processes() == {orphan}
    pid = rig.runs()
    assert pid != orphan
    assert rig.processes() == {pid}


def test_orphans_end_also_when_the_service_is_gone(rig):
    rig.define()
    orphan = rig.runs()
    # What it prints when its daemon is gone would end it.
    until(lambda: rig.log_tail("chat"))
    kill(rig.daemon_pid())
    until(lambda: rig.daemon_pid() is None)
    rig.undefine()
    rig.follow("chat")
    assert orphan not in rig.processes()
    assert rig.close_if_unused() == ["what we wrote in %s" % rig.folder]


def test_the_callers_environment_does_not_reach_the_service(rig, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    rig.define(SAYS_ITS_ENVIRONMENT, PYTHONUNBUFFERED="1")
    rig.runs()
    said = until(lambda: rig.log_tail("chat"))
    for wanted in ("PATH", "PYTHONUNBUFFERED", "FIRSTLIGHT_ROOT"):
        assert "'%s'" % wanted in said
    for foreign in ("HF_TOKEN", "http_proxy", "PYTEST_CURRENT_TEST"):
        assert foreign not in said
    assert b"HF_TOKEN" not in pathlib.Path("/proc/%d/environ" % rig.daemon_pid()).read_bytes()


def test_the_end_of_a_log_is_told(rig):
    path = os.path.join(rig.root, "endpoints", "chat", "engine.log")
    assert "No such file" in rig.log_tail("chat")
    os.makedirs(os.path.dirname(path))
    with open(path, "wb") as file:
        file.write(b"first\n" + b"x" * 100000 + b"\n\xff\xfe\nlast\n")
    assert rig.log_tail("chat", lines=2) == "\ufffd\ufffd\nlast"


# systemd -----------------------------------------------------------------------------------

MACHINE = "debian12-systemd/"
# systemd has another text of the unit than its file.
NEEDED = MACHINE + "systemctl-need-reload.yml"


@pytest.fixture
def systemd(tmp_path, monkeypatch):
    """A systemd that answers from transcripts, and looks for units under ``tmp_path``."""
    monkeypatch.setattr(Systemd, "FOLDER", str(tmp_path / "units"))
    monkeypatch.setattr(paths, "DEFAULT_ROOT", str(tmp_path / "root"))
    return Systemd(str(tmp_path / "root"))


def define(systemd):
    unit = pathlib.Path(systemd.files("chat")[0])
    unit.parent.mkdir()
    unit.touch()


@pytest.mark.parametrize("name, state, pid, detail", [
    ("running", "running", 76, "success"),
    ("starting", "starting", 78, "success"),
    ("restarting", "failed", None, "exit-code"),
    ("stopping", "stopped", 86, "success"),
    ("failed", "failed", None, "exit-code"),
    ("killed", "failed", None, "signal"),
    ("stopped", "stopped", None, "success"),
    ("masked", "stopped", None, "success"),
    ("absent", "absent", None, "success"),
    # The unit file is gone and the process is not.
    ("deleted", "running", 89, "success"),
    ("deleted-failed", "failed", None, "exit-code"),
])
def test_what_systemd_says(systemd, replay, name, state, pid, detail):
    replay(MACHINE + "systemctl-show.yml")
    assert systemd.status(name) == {"state": state, "pid": pid, "detail": detail}


def test_how_often_systemd_started_it_again(systemd, replay):
    [loop, absent] = calls_of(MACHINE + "systemctl-restarts.yml")
    replay(MACHINE + "systemctl-restarts.yml")
    assert systemd.restarts("loop") == int(loop["stdout"].strip().rpartition("=")[2]) > 1
    assert systemd.restarts("absent") == 0


def test_a_systemd_that_does_not_answer_is_an_error(systemd, replay):
    replay("debian12/tools.yml")
    with pytest.raises(ServiceError, match="not been booted with systemd as init system"):
        systemd.status("chat")


def test_systemd_is_told_to_restart_what_is_there(systemd, replay):
    replay(NEEDED, *calls_of(MACHINE + "systemctl-follow-there.yml"), ordered=True)
    define(systemd)
    unit, link = systemd.files("chat")
    systemd.write_link("chat")
    systemd.write_link("chat")
    assert os.readlink(link) == unit
    systemd.follow("chat")


@pytest.mark.parametrize("kind", ["gone", "unknown"])
def test_systemd_is_told_to_stop_what_is_gone(systemd, replay, kind):
    """One that systemd does not know is stopped already."""
    transcript = MACHINE + "systemctl-follow-%s.yml" % kind
    replayed = replay(transcript, ordered=True)
    systemd.follow("chat")
    assert replayed.made == [call["argv"] for call in calls_of(transcript)]


@pytest.mark.parametrize("verb", ["daemon-reload", "stop", "start"])
def test_what_systemd_refuses_is_an_error(systemd, replay, verb):
    refused = calls_of(MACHINE + "systemctl-refused.yml")
    replay(NEEDED, *calls_of(MACHINE + "systemctl-follow-there.yml"),
           *[call for call in refused if call["argv"][1] == verb])
    define(systemd)
    with pytest.raises(ServiceError, match=r"systemctl %s.* \(exit \d\): .*Access denied" % verb):
        systemd.follow("chat")


def test_a_unit_that_systemd_cannot_read_is_an_error(systemd, replay):
    replay(NEEDED, *calls_of(MACHINE + "systemctl-bad-unit.yml"))
    define(systemd)
    with pytest.raises(ServiceError, match="bad unit file setting"):
        systemd.follow("chat")


def test_the_journal_gives_the_end_of_the_log(systemd, replay):
    replay(MACHINE + "journalctl.yml")
    assert systemd.log_tail("chat") == "Started firstlight-chat.service - chat.\nloading\nlistening"
    assert systemd.log_tail("chat", lines=1) == "listening"
    replay(MACHINE + "systemctl-refused.yml")
    assert "No journal files were opened" in systemd.log_tail("chat")


def test_a_manager_by_its_name():
    assert isinstance(manager("systemd", "/r"), Systemd)
    assert isinstance(manager("supervisor", "/r", "/bin/supervisord"), Supervisor)


def test_units_of_another_root_have_names_of_their_own(systemd, tmp_path):
    other = Systemd(str(tmp_path / "other"))
    assert set(other.files("chat")).isdisjoint(systemd.files("chat"))
    assert systemd.files("chat")[0].endswith("/firstlight-chat.service")


def test_closing_leaves_what_is_not_ours(tmp_path):
    service = Supervisor(str(tmp_path))
    (tmp_path / "supervisor").mkdir()
    (tmp_path / "supervisor" / "supervisord.log").touch()
    (tmp_path / "supervisor" / "letters").touch()
    assert service.close_if_unused() == ["what we wrote in %s" % service.folder]
    assert os.listdir(service.folder) == ["letters"]
    assert service.close_if_unused() == []
