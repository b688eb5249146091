# SPDX-License-Identifier: Apache-2.0
"""With a real torch, devices that reach each other are right, and those that do not are told."""

import json
import pathlib
import subprocess

import ansible.module_utils
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
ansible.module_utils.__path__.append(str(REPOSITORY / "module_utils"))

from ansible.module_utils.firstlight import collective, docker_api  # noqa: E402

PYTHON = "/opt/vllm/bin/python"
IMAGE = "firstlight-engine:vllm-cpu"
NAME = "firstlight-molecule-0"
# Two devices whose memory is the host's, by the functions of torch that name a device.
DEVICES = """
import types, torch, torch.distributed as dist

def at_home(function):
    def made(*sizes, device=None, **more):
        return function(*sizes, **more)
    return made

torch.arange, torch.zeros = at_home(torch.arange), at_home(torch.zeros)
torch.Tensor.to = lambda self, where: self.clone()
torch.cuda.device_count = lambda: 2
torch.cuda.set_device = torch.cuda.synchronize = lambda device: None
torch.cuda.can_device_access_peer = lambda one, other: True
torch.cuda.get_device_properties = lambda device: types.SimpleNamespace(uuid="uuid-%d" % device)
begin = dist.init_process_group
dist.init_process_group = lambda backend, **more: begin("gloo", **more)
"""
LOST = "torch.Tensor.copy_ = lambda self, other: self\n"
# The third copy from each device: a part of what a kernel writes.
HALF_LOST = """
copy, calls = torch.Tensor.copy_, []
def third_is_lost(self, other):
    calls.append(1)
    return self if len(calls) % 4 == 3 else copy(self, other)
torch.Tensor.copy_ = third_is_lost
"""
WRONG = """
import torch.distributed as dist
reduce = dist.all_reduce
def worse(tensor):
    reduce(tensor)
    tensor[7] += dist.get_rank() == 1
dist.all_reduce = worse
"""
KILLED = """
import os, signal, torch.distributed as dist
reduce = dist.all_reduce
dist.all_reduce = lambda tensor: (
    os.kill(os.getpid(), signal.SIGKILL) if dist.get_rank() == 1 else reduce(tensor))
"""
SLEEPS = """
import time, torch.distributed as dist
gather = dist.all_gather
dist.all_gather = lambda *some: time.sleep(600) if dist.get_rank() == 1 else gather(*some)
"""


@pytest.fixture
def probe(host):
    """Run the probe where a vLLM is, with a change to its torch: exit status and what it said."""
    if not host.file(PYTHON).exists:
        pytest.skip("this host has no vLLM")

    def probed(before, *words, env=""):
        code = "%s\nexec(compile(%r, 'probe', 'exec'), {'__name__': '__main__'})" % (
            before, collective.SOURCE)
        ran = host.run(env + " %s -c %s" + " %s" * len(words), PYTHON, code, *words)
        return ran.rc, (ran.stdout + ran.stderr).strip()

    return probed


@pytest.mark.parametrize("words", [("cpu", "2"), ("cpu", "3")])
def test_processes_that_reach_each_other_are_right(probe, words):
    assert probe("", *words) == (0, "")


def test_devices_that_reach_each_other_are_right(probe):
    assert probe(DEVICES, "cuda", "2") == (0, "")


@pytest.mark.parametrize(("fault", "wrong"), [(LOST, 2097152), (HALF_LOST, 524288)])
def test_copies_that_do_not_arrive_are_told_for_each_pair(probe, fault, wrong):
    status, said = probe(DEVICES + fault, "cuda", "2")
    assert (status, said.splitlines()) == (1, [
        "firstlight collective: peer copy %d -> %d differs in %d of 2097152 numbers (GPU-uuid-%d "
        "-> GPU-uuid-%d; by the driver they reach each other)" % (one, other, wrong, one, other)
        for one, other in ((0, 1), (1, 0))])


def test_nobody_copies_where_nccl_is_not_to(probe):
    assert probe(DEVICES + LOST, "cuda", "2", env="NCCL_P2P_DISABLE=1") == (0, "")


def test_a_wrong_number_is_found_at_each_size(probe):
    status, said = probe(WRONG, "cpu", "2")
    assert (status, said.splitlines()) == (1, [
        "firstlight collective: gloo all_reduce of %d bytes is wrong on rank 1: 1 of %d numbers"
        % (4 * numbers, numbers) for numbers in (1 << 10, 1 << 18, 1 << 22)])


def test_a_rank_that_is_killed_is_named(probe):
    status, said = probe(KILLED, "cpu", "2")
    assert status == 1
    assert said.splitlines()[-1] == (
        "firstlight collective: rank 1 was ended by signal 9 in gloo all_reduce of 4096 bytes")


def test_a_rank_that_never_comes_is_not_waited_for(probe):
    status, said = probe(SLEEPS, "cpu", "2", "2")
    assert status == 1
    assert " s in gloo all_gather of 4096 bytes (" in said.splitlines()[-1]


def test_an_interface_that_is_not_there_is_told_in_gloos_words(probe):
    status, said = probe("", "cpu", "2", env="GLOO_SOCKET_IFNAME=nope0")
    assert status == 1
    assert "Unable to find address for: nope0" in said
    assert " failed in init_process_group" in said


@pytest.fixture
def engine():
    """A container of vLLM as it waits for its start, on this machine."""
    subprocess.run(["docker", "rm", "--force", NAME], check=False, capture_output=True)
    docker("create", "--name", NAME, "--label", "firstlight.endpoint=collective",
           "--label", "firstlight.root=/molecule", "--init", "--publish", "127.0.0.1::8000",
           "--read-only", "--tmpfs", "/tmp:rw,nosuid,nodev", "--cap-drop", "ALL", "--security-opt",
           "no-new-privileges:true", "--user", "2000:0", "--shm-size", "96m", "--restart",
           "unless-stopped", "--entrypoint", "vllm", IMAGE, "serve", "/nowhere")
    yield json.loads(docker("inspect", NAME))[0]
    docker("rm", "--force", "--volumes", NAME)


def docker(*words):
    return subprocess.run(["docker", *words], check=True, text=True, capture_output=True).stdout


def in_container(engine, env):
    plan = {"tensor_parallel": 2, "pipeline_parallel": 1, "gpus": []}
    said = collective.check(plan, env, engine, docker_api.Api())
    assert docker("ps", "--all", "--quiet", "--filter", "label=firstlight.root=/molecule",
                  "--filter", "name=" + collective.SUFFIX) == ""
    return said


def test_a_container_as_the_engines_can_do_it(engine):
    assert in_container(engine, {}) == ""


def test_what_fails_in_a_container_is_told(engine):
    said = in_container(engine, {"GLOO_SOCKET_IFNAME": "nope0"})
    assert "Unable to find address for: nope0" in said
    assert "firstlight collective: rank " in said
