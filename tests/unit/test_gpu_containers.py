# SPDX-License-Identifier: Apache-2.0
"""Containers with GPUs are found, asked inside, started again where ours lost them."""

from __future__ import annotations

import tempfile

import gpu_containers
import pytest
from fake_docker import Docker

from ansible.module_utils.firstlight import docker_api, reload
from ansible.module_utils.firstlight.host import gpu_containers as host
from ansible.module_utils.firstlight.planning import reload_guard
from ansible.module_utils.firstlight.runner import Ran

UUID = "GPU-2e3a1c00-0000-4000-8000-000000000000"
OTHER = "GPU-2e3a1c00-0000-4000-8000-000000000001"
SLICE = "MIG-2e3a1c00-0000-4000-8000-00000000000a"
WELL = "GPU 0: NVIDIA L40S (UUID: %s)\n" % UUID
UNKNOWN = "Failed to initialize NVML: Unknown Error\n"
OURS = {"Labels": {"firstlight.endpoint": "chat", "firstlight.root": "/var/lib/firstlight"}}
CDI = {"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=" + UUID]}]}
HOOK = {"DeviceRequests": [{"Driver": "", "Count": -1, "Capabilities": [["gpu"]]}]}
BY_UUID = {"DeviceRequests": [{"Driver": "nvidia", "DeviceIDs": [UUID],
                               "Capabilities": [["compute", "gpu"]]}]}
RUNTIME = {"Runtime": "nvidia"}
NODES = {"Devices": [{"PathOnHost": "/dev/nvidia0"}, {"PathOnHost": "/dev/nvidiactl"}]}
VISIBLE = {"Env": ["PATH=/bin", "NVIDIA_VISIBLE_DEVICES=%s" % UUID]}
# What systemd says of the unit of a container: its devices as they are with and without the hook.
STRICT = "LoadState=loaded\nDevicePolicy=strict\nDeviceAllow=char-pts rwm\nDeviceAllow=%s\n"
WITHOUT, WITH = STRICT % "/dev/char/1:3 rwm", STRICT % "/dev/char/195:0 rw"


@pytest.fixture
def docker(monkeypatch):
    with tempfile.TemporaryDirectory(prefix="fl") as folder:  # the path of a socket is short
        made = Docker(folder)
        monkeypatch.setattr(docker_api, "SOCKETS", (made.socket,))
        monkeypatch.setattr(reload, "POLL_S", 0.01)
        made.start()
        yield made
        made.stop()


@pytest.fixture(autouse=True)
def systemd(monkeypatch):
    """What systemd says of units, and what it was asked to do."""
    said = {"show": WITHOUT, "calls": [], "reload": lambda: None, "needed": "yes"}

    def run(argv, timeout_s=10.0, env=None):
        said["calls"].append(argv)
        if argv[1] == "daemon-reload":
            said["reload"]()
            return Ran(argv, 0, "", "", "")
        text = "NeedDaemonReload=%s\n" % said["needed"] if "Need" in argv[2] else said["show"]
        return Ran(argv, 0, text, "", "")

    monkeypatch.setattr(host, "run", run)
    monkeypatch.setattr(reload, "run", run)
    return said


@pytest.fixture
def look(run_module, docker):
    def run(**params):
        return run_module(gpu_containers.main, **{"timeout_s": 0, **params})

    return run


# How a container was given its GPUs.


@pytest.mark.parametrize(("given", "config", "by", "names"), [
    (CDI, {}, "cdi", ["nvidia.com/gpu=" + UUID]),
    ({"DeviceRequests": [{"Driver": "", "DeviceIDs": ["nvidia.com/gpu=all"]}]}, {}, "cdi",
     ["nvidia.com/gpu=all"]),
    (HOOK, {}, "hook", ["all"]),
    ({"DeviceRequests": [{"Driver": "nvidia", "Count": 2}]}, {}, "hook", ["2 of them"]),
    (BY_UUID, {}, "hook", [UUID]),
    ({**BY_UUID, **NODES}, {}, "nodes", ["/dev/nvidia0"]),
    (RUNTIME, VISIBLE, "runtime", [UUID]),
    (NODES, {}, "nodes", ["/dev/nvidia0"]),
    ({"Privileged": True}, VISIBLE, "privileged", [UUID]),
])
def test_how_a_container_was_given_its_gpus_is_told(docker, look, given, config, by, names):
    identity = docker.run("one", host=given, config=config)
    told = look()
    assert told["cgroup_driver"] == "systemd"
    assert [(one["id"], one["name"], one["image"], one["by"], one["names"], one["endpoint"])
            for one in told["containers"]] == [(identity, "one", "example", by, names, None)]
    # Systemd lists none of the driver's devices.
    assert told["threatened"] == ([] if by == "privileged" else ["one"])


@pytest.mark.parametrize(("given", "config"), [
    ({}, {}), ({}, VISIBLE), (RUNTIME, {}), (RUNTIME, {"Env": ["NVIDIA_VISIBLE_DEVICES=void"]}),
    ({"Devices": [{"PathOnHost": "/dev/fuse"}]}, {}), ({"Privileged": True}, {})])
def test_a_container_without_gpus_is_none(docker, look, given, config):
    docker.run("one", host=given, config=config)
    docker.run("two", host=CDI, running=False)
    assert look(inside=True)["containers"] == []


def test_without_a_daemon_there_are_none(docker, look):
    docker.stop()
    told = look(repair=True)
    assert (told["changed"], told["engine"], told["containers"]) == (False, False, [])


# What systemd would forget.


@pytest.mark.parametrize(("show", "driver", "threatened"), [
    (WITHOUT, "systemd", ["hooked", "named"]), (WITH, "systemd", []), (WITHOUT, "cgroupfs", []),
    # Where it cannot be asked, how it was given decides.
    ("LoadState=not-found\n", "systemd", ["hooked"]), (STRICT % "char-nvidia rw", "systemd", []),
    ("LoadState=loaded\nDevicePolicy=auto\nDeviceAllow=\n", "systemd", [])])
def test_systemd_forgets_what_it_does_not_list(docker, look, systemd, show, driver, threatened):
    systemd["show"], docker.driver = show, driver
    docker.run("hooked", host=HOOK)
    docker.run("named", host=CDI)
    assert look()["threatened"] == threatened


def test_a_reload_that_nothing_needs_is_none(docker, systemd):
    docker.run("one", host=HOOK)
    systemd["needed"] = "no"
    assert reload.daemon_reload(["firstlight-chat.service"]).ran is None
    assert ["systemctl", "daemon-reload"] not in systemd["calls"]


def test_a_reload_that_costs_nobody_a_gpu_is_done(docker, systemd):
    docker.run("one", host=CDI)
    docker.run("two", host=HOOK)
    docker.driver = "cgroupfs"
    told = reload.daemon_reload()
    assert (told.ran.ok, told.restarted, told.findings) == (True, [], [])


def test_one_of_ours_is_started_again_after_it(docker, systemd):
    docker.run("chat", host=HOOK, config=OURS)
    docker.inside["chat"] = (0, WELL)
    systemd["reload"] = lambda: docker.inside.update(chat=(255, UNKNOWN))
    docker.after_restart["chat"] = (0, WELL)
    told = reload.daemon_reload(["firstlight-other.service"])
    assert told.restarted == ["chat"]
    assert [one["id"] for one in told.findings] == ["container-started-again"]
    assert docker.inside["chat"] == (0, WELL)


def test_one_of_ours_whose_gpu_stays_away_is_told(docker, systemd, monkeypatch):
    monkeypatch.setattr(reload.started_again, "__defaults__", (0,))
    docker.run("chat", host=HOOK, config=OURS)
    docker.inside["chat"] = (255, UNKNOWN)
    told = reload.daemon_reload()
    assert [(one["id"], one["severity"]) for one in told.findings] == [
        ("container-lost-gpu", "error")]
    assert "Unknown Error" in told.findings[0]["found"]


def test_for_one_of_others_nothing_is_done_without_consent(docker, systemd):
    docker.run("chat", host=HOOK, config=OURS)
    docker.run("theirs", host=RUNTIME, config=VISIBLE)
    with pytest.raises(reload.Threatened) as told:
        reload.daemon_reload()
    assert [one["subject"] for one in told.value.findings] == ["container theirs"]
    assert "container_runtime_consent" in str(told.value)
    assert ["systemctl", "daemon-reload"] not in systemd["calls"]
    docker.inside.update(chat=(0, WELL), theirs=(0, WELL))
    assert reload.daemon_reload(consent=True).restarted == ["chat", "theirs"]


def test_without_a_daemon_it_is_done(docker, systemd):
    docker.stop()
    assert reload.daemon_reload().ran.ok


# What is seen inside.


@pytest.mark.parametrize(("status", "said", "gpus", "lost"), [
    (0, WELL, [UUID], False),
    (0, WELL + "  MIG 1g.10gb Device 0: (UUID: %s)\n" % SLICE, [SLICE], True),
    (0, WELL.replace(UUID, OTHER), [OTHER], True),
    (255, UNKNOWN, [], True),
    (9, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", [],
     True),
    (0, "Unable to determine the device handle for gpu 0000:38:00.0: Unknown Error\n", [], True),
    (0, "", [], True), (1, "", [], True),
    (127, "exec: \"nvidia-smi\": executable file not found in $PATH", None, False)])
def test_what_nvml_gives_inside_is_held_against_what_was_given(docker, look, status, said, gpus,
                                                               lost):
    docker.run("one", host=CDI)
    docker.inside["one"] = (status, said)
    told = look(inside=True)
    assert told["containers"][0]["gpus"] == gpus
    assert [(one["id"], one["severity"]) for one in told["findings"]] == (
        [("container-lost-gpu", "warning")] if lost else [])
    assert bool(told["containers"][0]["reason"]) is (
        not gpus or gpus is None)


@pytest.mark.parametrize(("said", "reason"), [
    ("OCI runtime exec failed: exec: \"nvidia-smi\": executable file not found in $PATH: unknown",
     "no nvidia-smi in it"), ("", "no nvidia-smi in it"),
    ("OCI runtime exec failed: exec failed: error adding pid 1 to cgroups: unknown\n",
     "OCI runtime exec failed: exec failed: error adding pid 1 to cgroups: unknown")])
def test_why_nobody_could_ask_inside_is_told(docker, look, said, reason):
    docker.run("one", host=CDI)
    docker.inside["one"] = (126, said)
    told = look(inside=True)
    assert (told["containers"][0]["gpus"], told["containers"][0]["reason"]) == (None, reason)
    assert told["findings"] == []


def test_ours_is_started_again_and_asked_once_more(docker, look):
    docker.run("chat", host=HOOK, config=OURS)
    docker.run("theirs", host=HOOK)
    docker.inside.update(chat=(255, UNKNOWN), theirs=(255, UNKNOWN))
    docker.after_restart["chat"] = (0, WELL)
    would = look(repair=True, check=True)
    assert (would["changed"], would["restarted"]) == (True, ["chat"])
    assert docker.inside["chat"] == (255, UNKNOWN)
    did = look(repair=True)
    assert (did["changed"], did["restarted"]) == (True, ["chat"])
    assert [(one["subject"], one["severity"]) for one in did["findings"]] == [
        ("container theirs", "warning")]
    again = look(repair=True)
    assert (again["changed"], again["restarted"]) == (False, [])
    # With consent that of others too.
    docker.after_restart["theirs"] = (0, WELL)
    assert look(repair=True, consent=True)["restarted"] == ["theirs"]
    assert look(repair=True)["findings"] == []


def test_one_that_does_not_get_it_back_is_an_error(docker, look):
    docker.run("chat", host=BY_UUID, config=OURS)
    docker.inside["chat"] = (255, UNKNOWN)
    did = look(repair=True)
    assert [(one["id"], one["severity"]) for one in did["findings"]] == [
        ("container-lost-gpu", "error")]


def test_a_container_that_ends_while_it_is_looked_at_is_left_out(docker, look):
    docker.run("one", host=CDI)
    answer = docker.answer
    docker.answer = lambda method, path, query, body: (
        (404, {"message": "No such container"}) if path.endswith("1/json")
        else answer(method, path, query, body))
    assert look(inside=True)["containers"] == []


def test_whose_a_container_is_its_labels_say():
    one = {"endpoint": "chat", "root": "/var/lib/firstlight"}
    assert reload_guard.is_ours(one)
    assert reload_guard.is_ours(one, ["/var/lib/firstlight"])
    assert not reload_guard.is_ours(one, ["/elsewhere"])
    assert not reload_guard.is_ours({"endpoint": None, "root": None})
