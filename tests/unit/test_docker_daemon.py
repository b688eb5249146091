# SPDX-License-Identifier: Apache-2.0
"""Settings are merged into daemon.json, the daemon follows, or everything is as it was."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import tempfile

import docker_daemon
import pytest
from fake_docker import Docker

from ansible.module_utils.firstlight import docker_api, paths
from ansible.module_utils.firstlight.host import docker_engine
from ansible.module_utils.firstlight.host.cdi import parsed
from ansible.module_utils.firstlight.runner import Ran
from ansible.module_utils.firstlight.transaction import Transaction

PID = 4711
UUIDS = ["GPU-2e3a1c00-0000-4000-8000-00000000000%d" % number for number in range(2)]
DEFAULTS = {"log-driver": "json-file", "log-opts": {"max-size": "10m", "max-file": "3"},
            "default-ulimits": {"nofile": {"Name": "nofile", "Soft": 65536, "Hard": 524288}}}
CDI = {"features": {"cdi": True}}
RUNTIME = {"runtimes": {"nvidia": {"path": "nvidia-container-runtime", "args": []}}}
FOREIGN = """{
  "insecure-registries": ["registry.example.org"],
  "log-opts": {"max-size": "1g"}
}
"""
SPEC = """\
cdiVersion: 0.5.0
containerEdits:
  deviceNodes:
  - path: /dev/nvidiactl
  hooks:
  - args:
    - nvidia-cdi-hook
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
  mounts:
  - containerPath: /usr/lib/libcuda.so.1
    hostPath: /usr/lib/libcuda.so.570
    options:
    - ro
devices:
- containerEdits:
    deviceNodes:
    - hostPath: /dev/nvidia0
      path: /dev/elsewhere
  name: "0"
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
  name: %s
kind: nvidia.com/gpu
""" % UUIDS[0]


class Host:
    """A machine with a daemon: its files, its tools, what its systemd does."""

    def __init__(self, folder, monkeypatch):
        self.root, self.docker = folder, Docker(folder)
        self.state = str(folder / "state")
        self.unit, self.validates, self.ran = "docker.service", True, []
        # What the tools do beside their work, before they do it.
        self.on_restart = lambda: None
        monkeypatch.setattr(docker_api, "SOCKETS", (self.docker.socket,))
        monkeypatch.setattr(docker_daemon, "SYSTEM_ROOT", str(folder))
        monkeypatch.setattr(docker_daemon, "RELOAD_S", 0.3)
        for module in (docker_daemon, docker_engine):
            monkeypatch.setattr(module, "run", self.run)
        monkeypatch.setattr(docker_engine, "reload", self.reload)
        monkeypatch.setenv("PATH", str(folder / "bin"))
        monkeypatch.setattr("ansible.module_utils.firstlight.host.cdi.MORE_PATH", ())
        self.program("dockerd")
        self.put("/run/docker.pid", "%d\n" % PID)
        self.put("/proc/%d/comm" % PID, "dockerd\n")
        self.put("/proc/%d/cgroup" % PID, "0::/system.slice/docker.service\n")
        self.put("/proc/%d/cmdline" % PID, "/usr/bin/dockerd\0-H\0fd://\0")
        self.put("/proc/%d/status" % PID, "CapEff:\t000001ffffffffff\n")
        self.put("/proc/sys/fs/nr_open", "1048576\n")
        (folder / "run/systemd/system").mkdir(parents=True)

    def put(self, path, text):
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def program(self, name):
        self.put("/bin/" + name, "#!/bin/sh\n").chmod(0o755)

    def flags(self, *words):
        self.put("/proc/%d/cmdline" % PID, "\0".join(["dockerd", *words, ""]))

    def gone(self):
        self.docker.stop()
        (self.root / ("proc/%d/comm" % PID)).unlink()

    def without_a_unit(self):
        self.put("/proc/%d/cgroup" % PID, "0::/user.slice\n")

    def run(self, argv, timeout_s=10.0, env=None):
        self.ran.append(argv)
        tool, word = os.path.basename(argv[0]), argv[1]
        if tool == "systemctl" and word == "restart":
            self.on_restart()
            up = self.docker.restart()
            return Ran(argv, 0 if up else 1, "", "" if up else "Job for docker.service failed", "")
        if tool == "journalctl":
            return Ran(argv, 0, "\n".join(self.docker.said), "", "")
        if word == "--validate":
            if not self.validates:
                return Ran(argv, 125, "", "unknown flag: --validate\n", "")
            with open(argv[-1], encoding="utf-8") as file:
                bad = "no-such-key" in json.load(file)
            return Ran(argv, 1 if bad else 0, "", "unable to configure: no-such-key" if bad else "",
                       "")
        return Ran(argv, 0, "LoadState=loaded\n", "", "")

    def reload(self, pid):
        self.ran.append(["kill", "-HUP", str(pid)])
        self.docker.reload()

    def did(self, word):
        return [argv for argv in self.ran if word in argv]


@pytest.fixture
def host(monkeypatch):
    # The path of a unix socket is short.
    with tempfile.TemporaryDirectory(prefix="fl") as folder:
        made = Host(pathlib.Path(folder), monkeypatch)
        made.docker.start()
        yield made
        made.docker.stop()


@pytest.fixture
def daemon(run_module, host):
    def run(**params):
        return run_module(docker_daemon.main, **{"root": host.state, "timeout_s": 2, **params})

    return run


def settings(host):
    return json.loads(host.docker.file.read_text())


# Reading.


def test_all_is_read_and_nothing_is_changed(host, daemon):
    host.put("/etc/cdi/nvidia.yaml", SPEC)
    host.put("/proc/driver/nvidia/gpus/0000:38:00.0/information",
             "Model: \t\t X\nGPU UUID: \t %s\nDevice Minor: \t 0\n" % UUIDS[0])
    for path in ("/dev/nvidia0", "/dev/nvidiactl", "/usr/bin/nvidia-cdi-hook",
                 "/usr/lib/systemd/system/nvidia-cdi-refresh.service"):
        host.put(path, "")
    host.program("nvidia-ctk")
    host.docker.run("one")
    host.docker.images["example:1"] = "sha256:1"
    host.docker.say("GET", "/info", (200, {
        **docker_api.Api().get("/info"), "HttpsProxy": "http://jo:pw@proxy.example.org:3128"}))
    told = daemon(images=["example:1", "example:2"])
    assert (told["changed"], told["state"], told["unit"], told["running"]) == (
        False, "running", "docker.service", ["one"])
    assert told["images"] == {"example:1": "sha256:1", "example:2": None}
    assert told["engine"] == {
        "version": "26.1.5+dfsg1", "api_version": "1.45", "cgroup_driver": "systemd",
        "cgroup_version": "2", "cdi": False, "cdi_devices": [], "nvidia_runtime": False,
        "live_restore": False, "log_driver": "json-file", "nofile_max": 1048576,
        "proxies": {"http-proxy": "", "https-proxy": "http://***@proxy.example.org:3128",
                    "no-proxy": ""},
        "memlock_unlimited": True, "device_nodes": {UUIDS[0]: ["/dev/nvidia0"]}}
    assert told["nvidia"] == {
        "ctk": str(host.root / "bin/nvidia-ctk"), "runtime": "", "hook": "", "refresh": True,
        "unreadable": [], "nodes": {UUIDS[0]: "/dev/nvidia0"}, "devices": {
            name: {"file": "/etc/cdi/nvidia.yaml", "nodes": ["/dev/nvidia0"],
                   "gone": ["/usr/lib/libcuda.so.570"]} for name in ("0", UUIDS[0])}}
    assert not host.docker.file.exists()


def test_of_two_specifications_the_later_folder_counts(host, daemon):
    host.put("/etc/cdi/nvidia.yaml", SPEC)
    host.put("/var/run/cdi/nvidia.json", json.dumps({
        "kind": "nvidia.com/gpu", "devices": [{"name": "0", "containerEdits": {
            "deviceNodes": [{"path": "/dev/nvidia1"}]}}]}))
    host.put("/etc/cdi/vendor.yaml", "kind: vendor.example.org/net\ndevices:\n- name: x\n")
    host.put("/etc/cdi/broken.yaml", "{")
    host.put("/dev/nvidia1", "")
    told = daemon(needs=CDI)
    assert told["nvidia"]["unreadable"] == ["/etc/cdi/broken.yaml"]
    assert told["nvidia"]["devices"]["0"] == {
        "file": "/var/run/cdi/nvidia.json", "nodes": ["/dev/nvidia1"], "gone": []}
    assert told["engine"]["cdi_devices"] == ["nvidia.com/gpu=0", "nvidia.com/gpu=" + UUIDS[0]]


@pytest.mark.parametrize("text", ["", "[]", "{}", "\0", "devices:\n- name: x\n", "a: [",
                                  '{"kind": 1, "devices": 2}', '{"devices": [{"name": "x"}]}'])
def test_what_is_no_specification_is_none(text):
    found = parsed(text)
    assert found is None or found.devices == {}


def test_names_before_their_nodes_are_read_too():
    found = parsed("kind: nvidia.com/gpu\ndevices:\n  - name: 'a'\n    containerEdits:\n"
                   "      deviceNodes:\n        - path: /dev/nvidia3\n  - name: b\n")
    assert found.devices == {"a": ["/dev/nvidia3"], "b": []}


@pytest.mark.parametrize(("stop", "program", "state"), [
    (True, True, "stopped"), (True, False, "absent"), (False, True, "running")])
def test_a_daemon_that_does_not_answer_is_told_from_none(host, daemon, stop, program, state):
    if stop:
        host.gone()
    if not program:
        (host.root / "bin/dockerd").unlink()
    told = daemon()
    assert told["state"] == state
    assert bool(told["why"]) is (told["engine"] is None) is stop
    assert told["unit"] == ("" if state == "absent" else "docker.service")


def test_limits_of_a_daemon_that_may_not_raise_them_are_its_own(host, daemon):
    host.put("/proc/%d/status" % PID, "CapEff:\t00000000a80425fb\n")
    host.put("/proc/%d/limits" % PID,
             "Limit                     Soft Limit           Hard Limit           Units     \n"
             "Max open files            1024                 4096                 files     \n"
             "Max locked memory         65536                65536                bytes     \n")
    told = daemon(defaults=DEFAULTS, check=True)
    assert (told["engine"]["nofile_max"], told["engine"]["memlock_unlimited"]) == (4096, False)
    # A container could not be started with more than that.
    assert not [line for line in told["changes"] if line.startswith("default-ulimits")]


# Changing.


def test_defaults_are_merged_into_what_others_have(host, daemon):
    host.docker.file.parent.mkdir(parents=True)
    host.docker.file.write_text(FOREIGN)
    host.docker.file.chmod(0o640)
    would = daemon(defaults=DEFAULTS, check=True, diff=True)
    assert (would["changed"], would["how"], would["restarted"]) == (True, "restart", False)
    assert host.docker.file.read_text() == FOREIGN
    did = daemon(defaults=DEFAULTS, diff=True)
    assert (did["changed"], did["how"], did["restarted"]) == (True, "restart", True)
    assert (did["changes"], did["diff"]) == (would["changes"], would["diff"])
    # What is secret of the rest is not shown.
    assert "registry.example.org" not in json.dumps(did)
    text = host.docker.file.read_text()
    assert text.startswith('{\n  "insecure-registries": [\n    "registry.example.org"\n  ],\n')
    assert settings(host) == {
        "insecure-registries": ["registry.example.org"], "log-driver": "json-file",
        "log-opts": {"max-size": "1g", "max-file": "3"},
        "default-ulimits": DEFAULTS["default-ulimits"]}
    assert host.docker.file.stat().st_mode & 0o777 == 0o640
    assert host.docker.starts == 2
    again = daemon(defaults=DEFAULTS, diff=True)
    assert (again["changed"], again["changes"], again["how"]) == (False, [], "")
    assert host.docker.starts == 2


def test_a_link_stays_a_link(host, daemon):
    host.docker.file.parent.mkdir(parents=True)
    real = host.put("/srv/daemon.json", "{}")
    host.docker.file.symlink_to(real)
    daemon(needs=CDI)
    assert host.docker.file.is_symlink()
    assert json.loads(real.read_text()) == CDI


def test_the_file_that_the_command_line_names_is_the_one(host, daemon):
    host.flags("--config-file", "/srv/other.json")
    host.docker.file = host.put("/srv/other.json", '{"debug": true}')
    assert daemon(needs=RUNTIME)["file"] == "/srv/other.json"
    assert settings(host) == {"debug": True, **RUNTIME}
    assert not (host.root / "etc/docker").exists()


def test_what_a_running_daemon_reads_again_takes_no_restart(host, daemon):
    host.docker.run("one")
    host.put("/etc/docker/daemon.json", "")
    did = daemon(needs=RUNTIME)
    assert (did["how"], did["restarted"], did["engine"]["nvidia_runtime"]) == (
        "reload", False, True)
    assert host.docker.starts == 1
    assert daemon(needs=RUNTIME)["changed"] is False


def test_a_daemon_that_does_not_run_is_written_for(host, daemon):
    host.gone()
    did = daemon(needs=CDI)
    assert (did["how"], did["state"], settings(host)) == ("write", "stopped", CDI)
    assert host.docker.starts == 1


@pytest.mark.parametrize(("words", "driver"), [
    (["--log-opt", "max-size=1m"], "json-file"), (["--log-opt=max-size=1m"], "json-file"),
    (["--log-driver", "journald"], "journald")])
def test_what_the_command_line_has_is_not_written_too(host, daemon, words, driver):
    host.flags(*words)
    host.docker.settings["log-driver"] = driver  # as the command line has it
    assert daemon(defaults={"log-driver": "json-file", "log-opts": {"max-size": "10m"}})[
        "changes"] == []


def test_limits_are_not_given_to_another_log_driver(host, daemon):
    host.put("/etc/docker/daemon.json", '{"log-driver": "journald"}')
    daemon(defaults=DEFAULTS)
    assert settings(host) == {"log-driver": "journald",
                              "default-ulimits": DEFAULTS["default-ulimits"]}


# What stands in the way.


def refused(told):
    assert told["failed"]
    return [one["id"] for one in told["findings"]]


def test_defaults_are_postponed_where_a_restart_would_stop_containers(host, daemon):
    host.docker.run("one")
    told = daemon(defaults=DEFAULTS)
    assert (told["changed"], told["changes"]) == (False, [])
    assert "stop 1 running containers: one" in told["postponed"][0]
    assert not host.docker.file.exists()


def test_needs_that_are_read_again_are_not_held_up_by_defaults(host, daemon):
    host.docker.run("one")
    told = daemon(needs=RUNTIME, defaults=DEFAULTS)
    assert (told["how"], settings(host)) == ("reload", RUNTIME)
    assert len(told["postponed"]) == 1


def test_mirrors_of_ours_come_before_those_of_others_and_take_no_restart(host, daemon):
    mine, theirs = ["https://one.example.org", "https://two.example.org"], "https://old.example.org"
    host.docker.file.parent.mkdir(parents=True)
    host.docker.file.write_text(json.dumps({"registry-mirrors": [theirs, mine[1] + "/"]}))
    host.docker.run("one")
    told = daemon(needs={"registry-mirrors": mine})
    assert told["how"] == "reload"
    assert settings(host) == {"registry-mirrors": [*mine, theirs]}
    assert daemon(needs={"registry-mirrors": mine})["changed"] is False
    # Those that are no longer needed may be others' by now.
    assert daemon(needs={"registry-mirrors": mine[:1]})["changed"] is False
    assert daemon(needs={"registry-mirrors": [theirs]})["changed"] is True
    assert settings(host) == {"registry-mirrors": [theirs, *mine]}


def test_needs_fail_where_a_restart_would_stop_containers(host, daemon):
    host.docker.run("one")
    told = daemon(needs=CDI)
    assert refused(told) == ["docker-restart-stops-containers"]
    assert "container_runtime_consent" in told["msg"]
    assert not host.docker.file.exists()
    assert host.docker.starts == 1


def test_with_consent_they_are_started_again(host, daemon):
    host.docker.run("one")
    host.docker.run("two", host={"RestartPolicy": {"Name": "always"}})
    host.docker.run("three", running=False)
    told = daemon(needs=CDI, consent=True)
    # One with a policy comes back by itself, and what did not run is left.
    assert told["started_again"] == ["one"]
    assert told["running"] == ["one", "two"]
    assert told["engine"]["cdi"] is True


def test_containers_that_outlive_a_restart_do_not_stand_in_its_way(host, daemon):
    host.put("/etc/docker/daemon.json", '{"live-restore": true}')
    host.docker.restart()
    host.docker.run("one")
    told = daemon(needs=CDI)
    assert (told["restarted"], told["running"], told["started_again"]) == (True, ["one"], [])


def test_a_daemon_that_nobody_could_start_again_is_not_restarted(host, daemon):
    host.without_a_unit()
    assert refused(daemon(needs=CDI)) == ["docker-restart-not-ours"]
    assert daemon(defaults=DEFAULTS)["postponed"]
    assert daemon(needs=RUNTIME)["how"] == "reload"
    assert host.did("restart") == []


def test_needs_that_the_command_line_has_are_refused(host, daemon):
    host.flags("--add-runtime", "nvidia=/opt/runtime")
    assert refused(daemon(needs=RUNTIME)) == ["docker-settings-as-flags"]


def test_a_damaged_file_is_a_finding(host, daemon):
    for text in ('{"debug": ', "[]", "[" * 100000):
        host.put("/etc/docker/daemon.json", text)
        assert refused(daemon(needs=CDI)) == ["docker-settings-damaged"]
        assert host.docker.file.read_text() == text


def test_without_root_defaults_are_left_and_needs_refused(host, daemon, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert daemon(defaults=DEFAULTS)["postponed"]
    assert refused(daemon(needs=CDI)) == ["docker-settings-not-ours"]
    assert not host.docker.file.exists()


def test_what_dockerd_itself_refuses_touches_nothing(host, daemon):
    told = daemon(needs={"no-such-key": 1})
    assert refused(told) == ["docker-settings-refused"]
    assert "unable to configure: no-such-key" in told["msg"]
    assert not host.docker.file.exists()
    assert host.docker.starts == 1


# Faults.


def test_a_daemon_that_does_not_come_back_is_put_back_with_its_file(host, daemon):
    host.validates = False
    host.put("/etc/docker/daemon.json", FOREIGN)
    host.docker.run("one")
    told = daemon(needs={"log-driver": "nonesuch"}, consent=True)
    assert refused(told) == ["docker-not-back"]
    assert "no log driver named 'nonesuch' is registered" in told["msg"]
    assert host.docker.file.read_text() == FOREIGN
    assert host.docker.starts == 2
    assert daemon()["running"] == ["one"]


def test_a_daemon_that_lacks_what_is_needed_is_put_back(host, daemon):
    host.docker.version = "24.0.9"
    host.docker.run("one")
    told = daemon(needs=CDI, consent=True)
    assert refused(told) == ["docker-lacks-setting"]
    assert not host.docker.file.exists()
    assert host.docker.starts == 3
    assert daemon()["running"] == ["one"]


def test_one_that_cannot_be_put_back_is_told_and_tried_again(host, daemon):
    host.validates = False
    host.docker.restart = lambda: host.docker.stop()
    told = daemon(needs={"log-driver": "nonesuch"}, consent=True)
    assert "Putting everything back failed too" in told["msg"]
    assert not host.docker.file.exists(), "the file is back all the same"
    del host.docker.restart
    told = daemon(needs=RUNTIME)
    assert (told["recovered"], told["state"]) == (True, "running")
    assert settings(host) == RUNTIME


@pytest.mark.parametrize("after", [False, True])
def test_a_run_that_was_killed_is_put_back_by_the_next(host, daemon, after):
    host.put("/etc/docker/daemon.json", FOREIGN)
    pid = os.fork()
    if pid == 0:
        change = Transaction(os.path.join(host.state, "journal"), docker_daemon.JOURNAL)
        change.__enter__()
        change.write(str(host.docker.file), b'{"log-driver": "nonesuch"}')
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    if after:
        assert host.docker.restart() is False
    told = daemon()
    assert (told["changed"], told["recovered"], told["state"]) == (True, True, "running")
    assert host.docker.file.read_text() == FOREIGN
    assert daemon()["changed"] is False


def test_two_at_once_are_one_after_the_other(host, daemon, monkeypatch):
    monkeypatch.setattr(docker_daemon.Daemon, "transaction", lambda self: Transaction(
        os.path.join(self.root, "journal"), docker_daemon.JOURNAL, wait_s=0))
    with Transaction(os.path.join(host.state, "journal"), docker_daemon.JOURNAL):
        told = daemon(needs=CDI)
    assert told["failed"]
    assert "another run holds" in told["msg"]


def test_a_full_disk_leaves_everything(host, daemon, monkeypatch):
    def full(path, content, mode=0o644):
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(paths, "write", full)
    told = daemon(needs=CDI)
    assert "No space left on device" in told["msg"]
    assert host.docker.starts == 1
