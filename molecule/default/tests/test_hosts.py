# SPDX-License-Identifier: Apache-2.0
"""The containers are hosts: systemd runs, ssh answers, each wears what the inventory says."""

import os
import pathlib
import subprocess

import pytest

FOLDER = pathlib.Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
INVENTORY = pathlib.Path(os.environ["MOLECULE_PROJECT_DIRECTORY"]) / "molecule" / "inventory"
# Asks the two libraries as any program would: by name, from where the loader looks.
ASK = """
import ctypes
nvml, number = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_uint()
print(nvml.nvmlInit_v2(), nvml.nvmlDeviceGetCount_v2(ctypes.byref(number)), number.value,
      ctypes.CDLL("libcuda.so.1").cuInit(0))
"""
# host: what NVML says to init and count, how many devices there are, what CUDA says to init.
WORN = {"hgx": "0 0 8 802", "a100": "0 0 8 0", "mig": "0 0 2 0", "orin": "0 0 1 0",
        "cdi13": "0 0 4 0"}
# host: the engines whose images lie in it, and the major version of its Docker, if it has one.
ARCHIVES = {"dock12": ["llama-server", "vllm-cpu"], "cdi13": ["llama-server"]}
DOCKER = {"engine": "20", "dock12": "20", "cdi13": "26"}
# host: an engine of its owner's, and what it says of itself.
OWN = {"vllm12": ("ls -d /opt/vllm/lib/python3*/site-packages/vllm_cpu-*.dist-info", "-0.32.0."),
       "llamasid": ("llama-server --version 2>&1", "build 11669")}


@pytest.fixture
def name(host):
    return host.backend.get_hostname().removeprefix("firstlight-")


def only(name, *wanted):
    if name not in wanted:
        pytest.skip("it is not for this host")


@pytest.fixture
def booted(name):
    if name == "llamasid":
        pytest.skip("it is a host without systemd and ssh")


def test_systemd_runs_and_no_unit_failed(host, booted):
    state = host.run("systemctl is-system-running --wait")
    assert state.stdout.strip() == "running", host.run(
        "systemctl --failed --no-legend;"
        " journalctl --no-pager --priority warning --lines 20").stdout


def test_ssh_answers(host, name, booted):
    said = subprocess.run(
        ["ssh", "-F", str(FOLDER / "ssh_config"), "firstlight-" + name, "hostname"], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=180)
    assert (said.returncode, said.stdout.strip()) == (0, name)


def test_ansible_comes_in_by_ssh(name):
    only(name, "deb12")
    said = subprocess.run(
        ["ansible", "--inventory", str(INVENTORY), "deb12_ssh", "--module-name",
         "ansible.builtin.command", "--args", "printenv SSH_CONNECTION"],
        text=True, env=dict(os.environ, ANSIBLE_FORCE_COLOR="0", ANSIBLE_NOCOLOR="1"),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=180)
    assert said.returncode == 0 and said.stdout.splitlines()[-1].endswith(" 22"), said.stdout


def test_pip_and_apt_find_the_indexes_of_the_controller(host, name):
    only(name, "deb12", "deb13")
    host.check_output("python3 -m venv /root/venv")
    host.check_output("/root/venv/bin/pip download --quiet --no-deps --dest /root/wheels "
                      "nvidia-ml-py")
    assert len(host.file("/root/wheels").listdir()) == 1
    # What it warns of, such as a release without notes, is the mirror's; what it lacks is not.
    updated = host.run("apt-get -qq update")
    assert updated.rc == 0 and "Failed to fetch" not in updated.stderr, updated.stderr


def test_a_profile_is_worn(host, name):
    only(name, *WORN)
    assert host.check_output("python3 -c %s", ASK) == WORN[name]
    assert "libnvidia-ml.so.1" in host.check_output("ldconfig -p")
    assert "NVRM" in host.file("/dev/kmsg").content_string
    assert "NVIDIA" in host.file("/proc/driver/nvidia/version").content_string


def test_the_pci_bus_is_that_of_the_profile(host, name):
    only(name, "hgx", "a100", "mig")
    classes = host.check_output("cat /sys/bus/pci/devices/*/class").split()
    # GPUs, and on the boards of eight the switches between them.
    assert classes.count("0x030200") == {"mig": 2}.get(name, 8)
    assert (classes.count("0x068000") > 0) == (name != "mig")


def test_a_jetson_says_which_board_it_is(host, name):
    only(name, "orin")
    assert "Orin NX" in host.file("/sys/firmware/devicetree/base/model").content_string
    assert "R36" in host.file("/etc/nv_tegra_release").content_string


def test_a_plain_host_has_no_gpu(host, name):
    only(name, "deb12", "deb13")
    assert host.run("python3 -c %s", ASK).rc != 0
    assert not host.file("/proc/driver/nvidia").exists


def test_a_nested_engine_runs_containers(host, name):
    only(name, *DOCKER)
    assert host.check_output(
        "docker version --format {{.Server.Version}}").split(".")[0] == DOCKER[name]
    # An image of one program and what it is linked with.
    host.check_output("tar -C / -ch usr/bin/echo $(ldd /usr/bin/echo | grep -o '/[^ )]*') | "
                      "docker import - lit")
    for runtime in ("runc", "nvidia") if name == "engine" else ("runc",):
        said = host.check_output("docker run --rm --runtime %s lit /usr/bin/echo here", runtime)
        assert said == "here"


def test_an_engine_answers_from_its_archive(host, name):
    only(name, *ARCHIVES)
    assert sorted(host.file("/mnt/firstlight-archives").listdir()) == [
        engine + ".tar" for engine in ARCHIVES[name]]
    for engine in ARCHIVES[name]:
        archive = host.file("/mnt/firstlight-archives/%s.tar" % engine)
        assert archive.size > 100e6 and host.run("touch %s", archive.path).rc != 0
    host.check_output("docker load --quiet --input /mnt/firstlight-archives/llama-server.tar")
    # The network's part is what an old kernel or a lack of rights takes first.
    host.check_output(
        "docker run --detach --name router --publish 127.0.0.1:8080:8080"
        " firstlight-engine:llama-server llama-server --host 0.0.0.0 --port 8080")
    said = host.check_output("curl --silent --retry 60 --retry-all-errors --retry-delay 1"
                             " http://127.0.0.1:8080/health")
    assert '"ok"' in said
    host.check_output("docker rm --force router")


def test_a_host_has_the_engine_of_its_owner(host, name):
    only(name, *OWN)
    command, said = OWN[name]
    assert said in host.check_output(command)


def test_a_host_without_systemd_reaps_what_lost_its_parent(host, name):
    only(name, "llamasid")
    assert host.check_output("cat /proc/1/comm") == "docker-init"


def test_a_host_without_an_engine_has_a_place_for_one(host, name):
    only(name, "bare12")
    assert not host.exists("docker")
    assert host.check_output("findmnt -no TARGET -T /var/lib/docker") == "/var/lib/docker"


def test_what_a_nested_engine_stores_is_no_layer_of_ours(host, name):
    only(name, *DOCKER)
    assert host.check_output("findmnt -no TARGET -T /var/lib/docker") == "/var/lib/docker"
    # Which driver a volume's file system allows is the machine's to say: its own engine has it too.
    asked = ["docker", "info", "--format", "{{.Driver}}"]
    outer = subprocess.run(asked, text=True, stdout=subprocess.PIPE, check=True).stdout
    inner = host.check_output("docker info --format %s", "{{.Driver}}")
    assert inner.startswith("overlay") == outer.startswith("overlay"), (inner, outer)
