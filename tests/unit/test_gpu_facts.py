# SPDX-License-Identifier: Apache-2.0
"""What a host has is read from where it stands; what cannot be read is null with a reason."""

from __future__ import annotations

import builtins
import os
import sys
from types import SimpleNamespace

import gpu_facts
import pytest

MEMINFO = "MemTotal:   32614784 kB\nMemFree: 1 kB\nMemAvailable: 1000 kB\nSwapTotal:       0 kB\n"
CPUINFO = "processor\t: 0\nmodel name\t: AMD EPYC 7763\n\nprocessor\t: 1\nmodel name\t: other\n"
OS_RELEASE = (
    '# a comment\nPRETTY_NAME="Ubuntu 24.04 LTS"\nID=ubuntu\nVERSION_ID="24.04"\nID_LIKE=debian\n')
INFORMATION = (
    "Model: \t\t NVIDIA A100-PCIE-40GB\nIRQ:   \t\t 123\nGPU UUID: \t GPU-%s\n"
    "Bus Location: \t 0000:%s\n")
CPU_HOST = {"/proc/meminfo": MEMINFO, "/proc/cpuinfo": CPUINFO, "/etc/os-release": OS_RELEASE}
VERSION = {"/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64  580.65.06\n"}


@pytest.fixture
def observe(tmp_path):
    """Observe a host that has these files, and no toolbelt."""

    def observed(files):
        for name, content in files.items():
            path = tmp_path / "host" / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return gpu_facts.observe(str(tmp_path / "root"), str(tmp_path / "host"))

    return observed


@pytest.fixture
def without_pynvml(monkeypatch):
    real = builtins.__import__

    def imported(name, *args, **kwargs):
        if name == "pynvml":
            raise ImportError("No module named 'pynvml'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", imported)


def nulls(value, label=""):
    """The labels of everything that is null, as ``devices[0].name``."""
    if isinstance(value, dict):
        return [found for key, inner in value.items()
                for found in nulls(inner, "%s.%s" % (label, key) if label else key)]
    if isinstance(value, list):
        return [found for index, inner in enumerate(value)
                for found in nulls(inner, "%s[%d]" % (label, index))]
    return [label] if value is None else []


def test_a_cpu_host(observe):
    facts = observe(CPU_HOST)
    assert facts["class"] == "cpu"
    assert facts["devices"] == []
    assert facts["driver"] is None
    assert facts["cpu"] == {"architecture": os.uname().machine,
                            "cores": len(os.sched_getaffinity(0)), "model": "AMD EPYC 7763"}
    assert facts["memory"] == {"total_bytes": 32614784 * 1024, "available_bytes": 1000 * 1024,
                               "swap_bytes": 0}
    assert facts["system"]["distribution"] == "ubuntu"
    assert facts["system"]["version"] == "24.04"
    assert facts["system"]["like"] == ["debian"]
    assert facts["unread"] == {}


def test_a_host_that_says_nothing_is_null_with_a_reason_everywhere(observe):
    facts = observe({})
    assert facts["memory"] == dict.fromkeys(("total_bytes", "available_bytes", "swap_bytes"))
    for name in CPU_HOST:
        assert facts["unread"][name] == os.strerror(2)
    assert [label for label in nulls(facts) if label not in facts["unread"]] == ["driver"]


@pytest.mark.parametrize(("name", "content", "label"), [
    ("/proc/meminfo", "MemTotal: 1 kB\nSwapTotal: 1 kB\n", "memory.available_bytes"),
    ("/proc/meminfo", "MemTotal: lots\nMemAvailable: 1 kB\nSwapTotal: 1 kB\n",
     "memory.total_bytes"),
    ("/proc/meminfo", "MemTotal:\nMemAvailable: 1 kB\nSwapTotal: 1 kB\n", "memory.total_bytes"),
    ("/proc/cpuinfo", "processor : 0\nFeatures : fp asimd\n", "cpu.model"),
    ("/etc/os-release", "ID=debian\n", "system.version"),
    ("/etc/os-release", "VERSION_ID=12\n", "system.distribution"),
])
def test_a_line_that_is_not_there_is_null_and_says_where_it_was_looked_for(
        observe, name, content, label):
    facts = observe({**CPU_HOST, name: content})
    assert set(nulls(facts)) == {"driver", label}
    assert facts["unread"] == {label: "not in " + name}


def test_quotes_of_either_kind_and_equal_signs_are_read(observe):
    facts = observe({**CPU_HOST, "/etc/os-release": "ID='rocky'\nVERSION_ID=\"9=4\"\n"
                                                    'ID_LIKE="rhel centos fedora"\n'})
    assert facts["system"]["distribution"] == "rocky"
    assert facts["system"]["version"] == "9=4"
    assert facts["system"]["like"] == ["rhel", "centos", "fedora"]


def test_a_board_that_calls_itself_a_model_is_named(observe):
    facts = observe({**CPU_HOST, "/proc/cpuinfo": "processor : 0\nModel : Raspberry Pi 5\n"})
    assert facts["cpu"]["model"] == "Raspberry Pi 5"


def test_a_jetson_is_known_by_its_marker_and_its_gpu_is_said_to_be_unread(observe):
    facts = observe({**CPU_HOST, **VERSION, "/etc/nv_tegra_release": "# R36 (release)"})
    assert facts["class"] == "jetson"
    assert "Jetson" in facts["unread"]["devices"]


@pytest.mark.parametrize("sign", ["/proc/driver/nvidia/version", "/dev/nvidiactl"])
def test_a_gpu_host_without_a_readable_device_is_still_a_gpu_host(observe, without_pynvml, sign):
    facts = observe({**CPU_HOST, sign: ""})
    assert facts["class"] == "nvidia"
    assert facts["sources"]["class"] == sign
    assert "pynvml cannot be imported" in facts["unread"]["nvml"]


def test_without_nvml_devices_have_uuid_and_name_and_no_made_up_numbers(observe, without_pynvml):
    gpus = "/proc/driver/nvidia/gpus/0000:%s/information"
    facts = observe({**CPU_HOST, **VERSION, gpus % "41:00.0": INFORMATION % ("b", "41:00.0"),
                     gpus % "01:00.0": INFORMATION % ("a", "01:00.0")})
    assert facts["sources"]["devices"] == "/proc/driver/nvidia"
    assert facts["driver"] == {"version": "580.65.06", "cuda": None}
    assert "NVML" in facts["unread"]["driver.cuda"]
    assert "devices[1].memory_total_bytes" in facts["unread"]
    assert facts["devices"] == [
        {"index": index, "uuid": "GPU-" + uuid, "name": "NVIDIA A100-PCIE-40GB",
         "capability": None, "memory_total_bytes": None, "memory_free_bytes": None}
        for index, uuid in enumerate("ab")]
    asked = ("capability", "memory_total_bytes", "memory_free_bytes")
    assert set(facts["unread"]) == {"nvml", "driver.cuda"} | {
        "devices[%d].%s" % (index, key) for index in range(2) for key in asked}


@pytest.mark.parametrize("line, version", [
    ("NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023", "535.104.05"),
    # read on an H200
    ("NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (nixbld@)  ",
     "580.159.04"),
    ("NVIDIA UNIX Open Kernel Module for aarch64  570.26  Release Build", "570.26"),
    ("something else", None),
])
def test_the_drivers_own_line_gives_its_version(observe, without_pynvml, line, version):
    facts = observe({**CPU_HOST, "/proc/driver/nvidia/version": "NVRM version: %s\n" % line})
    assert facts["driver"]["version"] == version


@pytest.mark.parametrize("vendor, kind, expected", [
    ("0x10de", "0x030200", "nvidia"), ("0x10de", "0x030000", "nvidia"),
    ("0x10de", "0x040300", "cpu"), ("0x8086", "0x030000", "cpu"),
])
def test_a_card_without_a_driver_is_not_taken_for_no_card(
        observe, without_pynvml, vendor, kind, expected):
    card = "/sys/bus/pci/devices/0000:41:00.0/"
    facts = observe({**CPU_HOST, card + "vendor": vendor + "\n", card + "class": kind + "\n"})
    assert facts["class"] == expected
    assert (facts["devices"] == [] and "devices" in facts["unread"]) == (expected == "nvidia")


def test_a_device_that_does_not_name_itself_is_null_with_a_reason(observe, without_pynvml):
    facts = observe({**CPU_HOST, **VERSION, "/proc/driver/nvidia/gpus/0/information": "IRQ: 1\n"})
    assert facts["devices"][0]["uuid"] is None
    assert facts["devices"][0]["name"] is None
    assert {"devices[0].uuid", "devices[0].name"} <= set(facts["unread"])


class NVMLError(Exception):
    def __init__(self, value):
        super().__init__("Not Supported")
        self.value = value


def nvml(failing=(), **changes):
    """A pynvml of two devices in which the functions named ``failing`` fail."""
    answers = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetCudaDriverVersion_v2": lambda: 12040,
        "nvmlSystemGetDriverVersion": lambda: "550.54.14",
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(total=40 * 2**30, free=39 * 2**30),
        "nvmlDeviceGetCudaComputeCapability": lambda _: (8, 0),
        "nvmlDeviceGetUUID": lambda handle: "GPU-%d" % handle,
        "nvmlDeviceGetName": lambda _: b"NVIDIA A100-PCIE-40GB",
        **changes,
    }

    def fails(*_):
        raise NVMLError(3)

    return SimpleNamespace(NVMLError=NVMLError, **{
        name: fails if name in failing else answer for name, answer in answers.items()})


def observe_with(observe, monkeypatch, fake):
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return observe({**CPU_HOST, **VERSION})


def test_nvml_knows_the_rest(observe, monkeypatch):
    facts = observe_with(observe, monkeypatch, nvml())
    assert facts["driver"] == {"version": "550.54.14", "cuda": "12.4"}
    assert facts["devices"][1] == {
        "index": 1, "uuid": "GPU-1", "name": "NVIDIA A100-PCIE-40GB", "capability": "8.0",
        "memory_total_bytes": 40 * 2**30, "memory_free_bytes": 39 * 2**30}
    assert facts["sources"]["devices"] == "nvml"
    assert facts["unread"] == {}


NVML_LABELS = {
    "nvmlSystemGetCudaDriverVersion_v2": "cuda",
    "nvmlSystemGetDriverVersion": "driver",
    "nvmlDeviceGetCount": "devices",
    "nvmlDeviceGetHandleByIndex": "devices[1]",
    "nvmlDeviceGetMemoryInfo": "devices[1].memory",
    "nvmlDeviceGetCudaComputeCapability": "devices[1].capability",
    "nvmlDeviceGetUUID": "devices[1].uuid",
    "nvmlDeviceGetName": "devices[1].name",
}


@pytest.mark.parametrize("function", NVML_LABELS)
def test_a_question_that_nvml_does_not_answer_has_its_reason(observe, monkeypatch, function):
    facts = observe_with(observe, monkeypatch, nvml(failing=[function]))
    assert facts["unread"][NVML_LABELS[function]] == "NVML error 3: Not Supported"
    assert 0 not in (one["memory_total_bytes"] for one in facts["devices"])


def test_a_driver_that_does_not_answer_leaves_what_proc_says(observe, monkeypatch):
    facts = observe_with(observe, monkeypatch, nvml(failing=["nvmlInit"]))
    assert facts["class"] == "nvidia"
    assert facts["unread"]["nvml"] == "NVML error 3: Not Supported"
    assert facts["sources"]["devices"] == "/proc/driver/nvidia"


def test_nvml_is_closed_even_when_reading_breaks(observe, monkeypatch):
    closed = []

    def breaks():
        raise RuntimeError("broken binding")

    fake = nvml(nvmlDeviceGetCount=breaks, nvmlShutdown=lambda: closed.append(True))
    with pytest.raises(RuntimeError):
        observe_with(observe, monkeypatch, fake)
    assert closed == [True]


@pytest.mark.parametrize("check", [False, True])
def test_the_module_changes_nothing_and_reads_this_host(run_module, tmp_path, check):
    result = run_module(gpu_facts.main, check=check, root=str(tmp_path))
    assert result["changed"] is False
    assert result["ansible_facts"]["gpu_host"]["memory"]["total_bytes"] > 0
    assert list(tmp_path.iterdir()) in ([], [tmp_path / "remote-tmp"])
