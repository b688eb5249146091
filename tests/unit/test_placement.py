# SPDX-License-Identifier: Apache-2.0
"""Whether an engine is on the devices that the plan gave it, as far as anybody can tell."""

from __future__ import annotations

import tempfile

import pytest
from fake_docker import DROP, Docker

from ansible.module_utils.firstlight import docker_api, placement
from ansible.module_utils.firstlight.runner import Ran

FIRST, SECOND, THIRD = ("GPU-2e3a1c00-0000-4000-8000-00000000000%d" % one for one in range(3))
SLICE = "MIG-2e3a1c00-0000-4000-8000-00000000000a"


def plan(*gpus):
    return {"name": "chat", "gpus": list(gpus)}


@pytest.fixture
def smi(monkeypatch):
    """What nvidia-smi says of processes, and what it was asked."""
    class Smi:
        said, rc, asked = "", 0, []

    def run(argv, timeout_s=10.0, env=None):
        Smi.asked.append(argv)
        return Ran(argv, Smi.rc, Smi.said, "no devices were found" if Smi.rc else "", "")

    Smi.asked = []
    monkeypatch.setattr(placement, "run", run)
    return Smi


@pytest.fixture
def docker(monkeypatch):
    with tempfile.TemporaryDirectory(prefix="fl", dir="/tmp") as folder:  # a socket's path is short
        made = Docker(folder)
        monkeypatch.setattr(docker_api, "SOCKETS", (made.socket,))
        made.start()
        made.run("engine")
        yield made
        made.end()


def listed(*uuids):
    return 0, "".join("GPU %d: NVIDIA L40S (UUID: %s)\n" % one for one in enumerate(uuids))


def test_without_devices_nobody_is_asked(smi):
    for container in (None, "engine"):
        seen = placement.look(plan(), [4711], container)
        assert seen == {"gpus": [], "source": "the plan", "reason": ""}
        assert placement.findings(plan(), seen) == []
    assert smi.asked == []


# Natively.


def test_a_native_engine_is_found_by_its_processes(smi):
    smi.said = "".join("%d, %s\n" % one for one in (
        (4711, SECOND), (4712, FIRST), (4712, FIRST), (99, THIRD), (47110, THIRD)))
    seen = placement.look(plan(FIRST, SECOND), [4711, 4712], None)
    assert seen == {"gpus": [FIRST, SECOND], "source": "nvidia-smi", "reason": ""}
    assert placement.findings(plan(FIRST, SECOND), seen) == []
    [argv] = smi.asked
    assert "--query-compute-apps=pid,gpu_uuid" in argv


def test_vllm_on_a_real_card_is_found_by_its_engine_core(replay):
    """The server, 2343, and its tracker, 2462, hold nothing of the card."""
    replay("h200/nvidia-smi-apps.yml")
    card = "GPU-668a3f35-1b66-ba98-d3f8-dff8e6a51dea"
    seen = placement.look(plan(card), [2343, 2462, 2463], None)
    assert seen == {"gpus": [card], "source": "nvidia-smi", "reason": ""}


@pytest.mark.parametrize("said", ["", "\n", "99, %s\n" % FIRST, "[N/A], %s\n" % FIRST, "4711, \n"])
def test_one_that_is_not_listed_is_not_known(smi, said):
    """In a PID namespace the driver knows it by another number."""
    smi.said = said
    seen = placement.look(plan(FIRST), [4711], None)
    assert (seen["gpus"], seen["reason"]) == (None, "it lists no process of ours")
    assert placement.findings(plan(FIRST), seen) == []


def test_without_an_answer_it_is_not_known(smi):
    smi.rc = 6
    seen = placement.look(plan(FIRST), [4711], None)
    assert seen["gpus"] is None
    assert "no devices were found" in seen["reason"]
    assert placement.findings(plan(FIRST), seen) == []


def test_the_slices_of_a_card_are_not_told_by_process(smi):
    seen = placement.look(plan(SLICE), [4711], None)
    assert (seen["gpus"], smi.asked) == (None, [])
    assert placement.findings(plan(SLICE), seen) == []


# In a container.


@pytest.mark.parametrize(("wanted", "said"), [
    ((FIRST, SECOND), (SECOND, FIRST)), ((SLICE,), (SLICE,))])
def test_a_container_is_asked_what_it_sees(docker, smi, wanted, said):
    docker.inside["engine"] = listed(*said)
    seen = placement.look(plan(*wanted), [], "engine")
    assert seen == {"gpus": sorted(wanted), "source": "nvidia-smi in the container", "reason": ""}
    assert placement.findings(plan(*wanted), seen) == []
    assert smi.asked == [], "what the host sees is not what it has"


def test_a_container_without_nvidia_smi_cannot_tell(docker):
    seen = placement.look(plan(FIRST), [], "engine")
    assert seen["gpus"] is None
    assert "nvidia-smi" in seen["reason"]
    assert placement.findings(plan(FIRST), seen) == []


def test_a_container_that_lost_them_has_none(docker):
    docker.inside["engine"] = (255, "Failed to initialize NVML: Unknown Error\n")
    seen = placement.look(plan(FIRST), [], "engine")
    assert seen["gpus"] == []
    assert "Unknown Error" in seen["reason"]
    [found] = placement.findings(plan(FIRST), seen)
    assert found["found"] == "its engine is on no GPU"


def test_a_container_that_does_not_run_is_not_known(docker):
    docker.run("ended", False)
    for name, says in (("ended", "is not running"), ("none", "No such container")):
        seen = placement.look(plan(FIRST), [], name)
        assert seen["gpus"] is None
        assert says in seen["reason"]


def test_a_daemon_that_does_not_answer_is_not_known(docker):
    docker.say("POST", "/containers/engine/exec", DROP)
    seen = placement.look(plan(FIRST), [], "engine")
    assert seen["gpus"] is None
    assert "closed connection" in seen["reason"]


# What is wrong with it.


@pytest.mark.parametrize("seen", [[SECOND], [FIRST, SECOND], [], [SLICE]])
def test_other_devices_than_the_plans_are_told(seen):
    [found] = placement.findings(plan(FIRST), {"gpus": seen, "source": "nvidia-smi", "reason": ""})
    assert (found["id"], found["severity"]) == ("endpoint-on-other-gpus", "fatal")
    assert found["subject"] == "endpoint chat"
    assert FIRST in found["wanted"]
    assert all(one in found["found"] for one in seen)
    assert found["evidence"] == "nvidia-smi"


def test_a_device_without_a_uuid_cannot_be_held_to_one():
    assert placement.findings(plan("54d0709b-1ff4-5e3b-9b9e-000000000000"), {
        "gpus": [], "source": "nvidia-smi in the container", "reason": "x"}) == []
