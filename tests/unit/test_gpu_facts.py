# SPDX-License-Identifier: Apache-2.0
"""What a host has is read from where it stands; what cannot be read is null with a reason."""

from __future__ import annotations

import builtins
import os
import pathlib
import re

import gpu_facts
import mock_nvml
import pytest
import transcripts
import yaml

from ansible.module_utils.firstlight.host import containers, daemons, nvidia_smi, nvml, tegra
from ansible.module_utils.firstlight.host import facts as host_facts

ROOT = pathlib.Path(__file__).parents[2]

MEMINFO = ("MemTotal:   32614784 kB\nMemFree: 1 kB\nMemAvailable: 1000 kB\n"
           "SwapTotal:       0 kB\nSwapFree:        0 kB\n")
REST = "MemFree: 1 kB\nSwapTotal: 1 kB\nSwapFree: 1 kB\n"
CPUINFO = "processor\t: 0\nmodel name\t: AMD EPYC 7763\n\nprocessor\t: 1\nmodel name\t: other\n"
OS_RELEASE = (
    '# a comment\nPRETTY_NAME="Ubuntu 24.04 LTS"\nID=ubuntu\nVERSION_ID="24.04"\nID_LIKE=debian\n')
INFORMATION = (
    "Model: \t\t NVIDIA A100-PCIE-40GB\nIRQ:   \t\t 123\nGPU UUID: \t GPU-%s\n"
    "Bus Location: \t 0000:%s\n")
CPU_HOST = {"/proc/meminfo": MEMINFO, "/proc/cpuinfo": CPUINFO, "/etc/os-release": OS_RELEASE}
VERSION = {"/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64  580.65.06\n"}

# Null where the host has none of it; for all else a null has its reason.
NONE_OF_IT = {"driver", "jetson", "fabric_manager", "persistence_daemon", "memory.limit_bytes"}
NO_ENGINE = {"containers." + key for key in containers.KEYS if key != "cdi_devices"}


@pytest.fixture
def observe(tmp_path, without_library, monkeypatch):
    """Observe a host that has these files, no toolbelt, no NVML, no nvidia-smi and no podman."""
    monkeypatch.setattr(nvidia_smi, "on_host", lambda: None)
    monkeypatch.setattr(containers.shutil, "which", lambda *_, **__: None)

    def observed(files):
        for name, content in {"/dev/kmsg": "", **files}.items():
            path = tmp_path / "host" / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return host_facts.observe(str(tmp_path / "root"), str(tmp_path / "host"))[0]

    return observed


@pytest.fixture
def without_library(monkeypatch):
    """A host without NVML, whatever this machine has."""
    import pynvml

    def not_found():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", not_found)


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


def reason(facts, label):
    """The reason of the label, or of what it is in."""
    while label and label not in facts["unread"]:
        label = re.sub(r"(\.[^.\[\]]+|\[\d+\]|^[^.\[\]]+)$", "", label)
    return facts["unread"][label]["reason"] if label else None


def source(facts, label):
    """The source of the label, or of what it is in."""
    while label and label not in facts["sources"]:
        label = re.sub(r"(\.[^.\[\]]+|\[\d+\]|^[^.\[\]]+)$", "", label)
    return facts["sources"].get(label)


def test_a_cpu_host(observe):
    facts = observe(CPU_HOST)
    assert facts["class"] == "cpu"
    assert facts["devices"] == []
    assert facts["driver"] is None
    assert facts["cpu"] == {"architecture": os.uname().machine,
                            "cores": len(os.sched_getaffinity(0)), "model": "AMD EPYC 7763"}
    assert facts["memory"] == {"total_bytes": 32614784 * 1024, "available_bytes": 1000 * 1024,
                               "free_bytes": 1024, "swap_bytes": 0, "swap_free_bytes": 0,
                               "limit_bytes": None}
    assert facts["system"]["distribution"] == "ubuntu"
    assert facts["system"]["version"] == "24.04"
    assert facts["system"]["like"] == ["debian"]
    assert set(facts["unread"]) == {"containers"}
    assert set(nulls(facts)) == NONE_OF_IT | NO_ENGINE


def test_a_host_that_says_nothing_is_null_with_a_reason_everywhere(observe):
    facts = observe({})
    assert facts["memory"] == dict.fromkeys((
        "total_bytes", "available_bytes", "free_bytes", "swap_bytes", "swap_free_bytes",
        "limit_bytes"))
    for name in CPU_HOST:
        assert facts["unread"][name] == {"code": "enoent", "reason": os.strerror(2)}
    assert {label for label in nulls(facts) if not reason(facts, label)} == NONE_OF_IT


@pytest.mark.parametrize(("name", "content", "label"), [
    ("/proc/meminfo", "MemTotal: 1 kB\n" + REST, "memory.available_bytes"),
    ("/proc/meminfo", "MemTotal: lots\nMemAvailable: 1 kB\n" + REST,
     "memory.total_bytes"),
    ("/proc/meminfo", "MemTotal:\nMemAvailable: 1 kB\n" + REST, "memory.total_bytes"),
    ("/proc/cpuinfo", "processor : 0\nFeatures : fp asimd\n", "cpu.model"),
    ("/etc/os-release", "ID=debian\n", "system.version"),
    ("/etc/os-release", "VERSION_ID=12\n", "system.distribution"),
])
def test_a_line_that_is_not_there_is_null_and_says_where_it_was_looked_for(
        observe, name, content, label):
    facts = observe({**CPU_HOST, name: content})
    assert set(nulls(facts)) == {label} | NONE_OF_IT | NO_ENGINE
    assert facts["unread"].pop("containers")
    assert facts["unread"] == {label: {"code": "absent", "reason": "not in " + name}}


def test_quotes_of_either_kind_and_equal_signs_are_read(observe):
    facts = observe({**CPU_HOST, "/etc/os-release": "ID='rocky'\nVERSION_ID=\"9=4\"\n"
                                                    'ID_LIKE="rhel centos fedora"\n'})
    assert facts["system"]["distribution"] == "rocky"
    assert facts["system"]["version"] == "9=4"
    assert facts["system"]["like"] == ["rhel", "centos", "fedora"]


def test_a_board_that_calls_itself_a_model_is_named(observe):
    facts = observe({**CPU_HOST, "/proc/cpuinfo": "processor : 0\nModel : Raspberry Pi 5\n"})
    assert facts["cpu"]["model"] == "Raspberry Pi 5"


def test_a_jetson_without_nvml_is_known_by_its_marker_and_its_gpu_is_there(observe, replay):
    replay({"argv": tegra.PACKAGE, "cannot_start": "ENOENT"},
           {"argv": tegra.POWER_MODE, "cannot_start": "ENOENT"})
    facts = observe({**CPU_HOST, "/etc/nv_tegra_release": "# R35 (release), REVISION: 4.1, GCID"})
    assert facts["class"] == "jetson"
    assert facts["jetson"]["l4t"] == "35.4.1"
    assert facts["jetson"]["runtime"] == "nvidia"
    (gpu,) = facts["devices"]
    assert gpu["unified_memory"] is True
    assert gpu["memory_total_bytes"] == facts["memory"]["total_bytes"]
    assert gpu["uuid"] is None
    assert "no NVML" in reason(facts, "devices[0].uuid")


@pytest.mark.parametrize("sign", ["/proc/driver/nvidia/version", "/dev/nvidiactl"])
def test_a_gpu_host_without_a_readable_device_is_still_a_gpu_host(observe, without_pynvml, sign):
    facts = observe({**CPU_HOST, sign: ""})
    assert facts["class"] == "nvidia"
    assert facts["sources"]["class"] == sign
    assert facts["unread"]["nvml"]["code"] == "absent"
    assert "pynvml cannot be imported" in facts["unread"]["nvml"]["reason"]
    assert reason(facts, "nvidia-smi") == "no nvidia-smi in PATH"
    assert reason(facts, "nvidia-smi in a container")


def test_without_nvml_devices_have_uuid_and_name_and_no_made_up_numbers(observe, without_pynvml):
    gpus = "/proc/driver/nvidia/gpus/0000:%s/information"
    facts = observe({**CPU_HOST, **VERSION, gpus % "41:00.0": INFORMATION % ("b", "41:00.0"),
                     gpus % "01:00.0": INFORMATION % ("a", "01:00.0")})
    assert facts["sources"]["devices"] == "/proc/driver/nvidia"
    assert facts["driver"] == {"version": "580.65.06", "kernel_module": "580.65.06",
                               "cuda": None, "nvml": None}
    assert "NVML" in reason(facts, "driver.cuda")
    assert "NVML" in reason(facts, "devices[1].memory_total_bytes")
    for index, uuid in enumerate("ab"):
        device = facts["devices"][index]
        told = {"index": index, "uuid": "GPU-" + uuid, "name": "NVIDIA A100-PCIE-40GB",
                "bus_id": ("0000:01:00.0", "0000:41:00.0")["ab".index(uuid)], "xids": []}
        assert {key: device[key] for key in told} == told
        assert {key for key in device if device[key] is not None} == set(told)
    assert all(reason(facts, label) for label in set(nulls(facts)) - NONE_OF_IT)


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
    assert [one["bus_id"] for one in facts["devices"]] == (
        ["0000:41:00.0"] if expected == "nvidia" else [])
    assert all(reason(facts, label) for label in set(nulls(facts)) - NONE_OF_IT)
    assert [one["vendor"] for one in facts["other_cards"]] == (
        ["Intel"] if vendor == "0x8086" else [])


@pytest.mark.parametrize("text", [
    "IRQ: 1\n", "GPU UUID: \t GPU-????????-????-????-????-????????????\nModel: \t Unknown ???\n"])
def test_a_device_that_does_not_name_itself_is_null_with_a_reason(observe, without_pynvml, text):
    facts = observe({**CPU_HOST, **VERSION, "/proc/driver/nvidia/gpus/0/information": text})
    assert facts["devices"][0]["uuid"] is None
    assert facts["devices"][0]["name"] is None
    assert {"devices[0].uuid", "devices[0].name"} <= set(facts["unread"])


# --- Hosts that this machine is not: real bindings on the mock library ----------------------

ROWS = {name: yaml.safe_load((ROOT / "catalog" / (name + ".yml")).read_text())
        for name in ("jetson_releases", "jetson_chips")}
NO_TOOLS = [{"argv": argv, "cannot_start": "ENOENT"}
            for argv in (tegra.POWER_MODE, tegra.PACKAGE, daemons.SHOW,
                         daemons.FABRIC_MANAGER_VERSION)]


@pytest.fixture
def facts_of(mock_host, replay, monkeypatch, tmp_path):
    """The facts of the host of a profile, with changes."""
    replay(*NO_TOOLS)
    monkeypatch.setattr(containers.shutil, "which", lambda *_, **__: None)

    def gathered(name, **changes):
        if hasattr(gathered, "host"):
            gathered.host.set(**changes)  # the same host, later
        else:
            gathered.host = mock_host(name, **changes)
        return host_facts.observe(str(tmp_path), str(gathered.host.root), ROWS)[0]

    return gathered


PROFILES = {
    # profile: class, devices, name, capability, architecture, GiB in all, NVLink peers of the first
    "a100-40-x8": ("nvidia", 8, "NVIDIA A100-SXM4-40GB", "8.0", "ampere", 40, 7),
    "a100-80-x4": ("nvidia", 4, "NVIDIA A100-SXM4-80GB", "8.0", "ampere", 80, 3),
    "a100-80-x4-worn": ("nvidia", 4, "NVIDIA A100-SXM4-80GB", "8.0", "ampere", 80, 3),
    "a100-mig": ("nvidia", 2, "NVIDIA A100-SXM4-40GB", "8.0", "ampere", 40, 0),
    "h100-x8": ("nvidia", 8, "NVIDIA H100 80GB HBM3", "9.0", "hopper", 79, 7),
    "h100-x8-fabric-down": ("nvidia", 8, "NVIDIA H100 80GB HBM3", "9.0", "hopper", 79, 0),
    "h200-x8": ("nvidia", 8, "NVIDIA H200", "9.0", "hopper", 140, 7),
    "rtx3090-x2-busy": ("nvidia", 2, "NVIDIA GeForce RTX 3090", "8.6", "ampere", 24, 1),
    "l40s-x4": ("nvidia", 4, "NVIDIA L40S", "8.9", "ada", 44, None),
    "v100-x4": ("nvidia", 4, "Tesla V100-SXM2-32GB", "7.0", "volta", 32, 3),
    "gb10": ("unified", 1, "NVIDIA GB10", "12.1", "blackwell", None, None),
    "orin-nx-16": ("jetson", 1, "Orin (nvgpu)", "8.7", "ampere", None, None),
    "thor": ("jetson", 1, "NVIDIA Thor", "11.0", "blackwell", None, None),
    "lost-gpu": ("nvidia", 4, "NVIDIA A100-SXM4-80GB", "8.0", "ampere", 80, 2),
    "driver-mismatch": ("nvidia", 4, None, None, None, None, None),
    "cpu": ("cpu", 0, None, None, None, None, None),
}


def test_every_profile_is_expected_here():
    assert set(mock_nvml.names()) - {"h100-sick"} == set(PROFILES)


@pytest.mark.parametrize("name", PROFILES)
def test_a_host_is_known_for_what_it_is(facts_of, name):
    wanted = PROFILES[name]
    facts = facts_of(name)
    assert facts["class"] == wanted[0]
    assert len(facts["devices"]) == wanted[1]
    if wanted[2]:
        first = facts["devices"][0]
        assert (first["name"], first["capability"], first["architecture"]) == wanted[2:5]
        peers = (first["nvlink"] or {}).get("peers")
        assert (None if peers is None else len(peers)) == wanted[6]
        total = first["memory_total_bytes"]
        if wanted[5] is None:
            assert first["unified_memory"] is True
            assert total == facts["memory"]["total_bytes"]
            assert first["memory_free_bytes"] == facts["memory"]["available_bytes"]
            assert (source(facts, "devices[0].memory_total_bytes")
                    == "/proc/meminfo (NVML error 3: Not Supported)")
        else:
            assert first["unified_memory"] is False
            assert total // 2**30 == wanted[5]
            assert source(facts, "devices[0].memory_total_bytes") == "nvml"


@pytest.mark.parametrize("name", [*PROFILES, "h100-sick"])
def test_every_null_has_its_reason_and_every_figure_its_source(facts_of, name):
    facts = facts_of(name)
    without = {label for label in nulls(facts) if not reason(facts, label)}
    assert without <= NONE_OF_IT | {
        label for label in without if label.endswith("].gpu_instance")}
    told = {key: value for key, value in facts.items() if key not in ("sources", "unread")}
    unknown = [label for label, value in leaves(told) if value is not None
               and not source(facts, label) and label not in ("class", "nvswitches")
               and not label.startswith("other_cards")]
    assert unknown == []
    assert facts["class"] == "cpu" or source(facts, "class")


def leaves(value, label=""):
    """Every figure with its label."""
    if isinstance(value, dict) and value:
        return [found for key, inner in value.items()
                for found in leaves(inner, "%s.%s" % (label, key) if label else key)]
    if isinstance(value, list) and value:
        return [found for index, inner in enumerate(value)
                for found in leaves(inner, "%s[%d]" % (label, index))]
    return [] if value in ({}, []) else [(label, value)]


def test_slices_are_devices_of_their_own_and_who_holds_them_is_known(facts_of):
    cut, whole = facts_of("a100-mig")["devices"]
    assert cut["mig"]["enabled"] is True
    assert [one["name"].rpartition(" ")[2] for one in cut["mig"]["slices"]] == [
        "3g.20gb", "2g.10gb", "1g.5gb"]
    assert all(one["uuid"].startswith("MIG-") for one in cut["mig"]["slices"])
    assert cut["mig"]["slices"][0]["memory_total_bytes"] == 20937965568
    assert [(one["pid"], one["gpu_instance"]) for one in cut["holders"]] == [(5150, 2)]
    assert cut["utilisation_percent"] is None
    assert whole["mig"] == {"enabled": False, "pending": False, "slices": []}


def test_who_holds_the_rest_is_named(facts_of):
    facts = facts_of("rtx3090-x2-busy")
    busy, idle = sorted(facts["devices"], key=lambda one: one["memory_free_bytes"])
    assert [(one["pid"], one["bytes"], one["kind"], one["command"])
            for one in busy["holders"]] == [
        (4711, 20 * 2**30, "compute", "python3 train.py --batch-size 32"),
        (1802, 9437184, "graphics", "/usr/lib/xorg/Xorg vt2")]
    assert idle["holders"] == []
    assert busy["persistence"] is False
    assert busy["ecc"] is None
    assert facts["unread"]["devices[%d].ecc" % busy["index"]]["code"] == "nvml-3"


def test_the_host_of_a_profile_has_all_its_parts(facts_of):
    facts = facts_of("h100-x8-fabric-down")
    assert facts["driver"]["version"] == facts["driver"]["kernel_module"]
    assert facts["driver"]["cuda"]
    assert facts["nvswitches"] > 0
    assert {one["fabric"]["state"] for one in facts["devices"]} == {"not_started"}
    assert {one["nvlink"]["active"] for one in facts["devices"]} == {0}
    assert {one["nvlink"]["clique"] for one in facts["devices"]} == set(range(8))
    assert reason(facts, "fabric_manager")  # no systemd in a folder that plays a host
    first = facts["devices"][0]
    assert first["cpu_list"] and first["numa_node"] is not None


def test_a_healthy_fabric_is_one_clique(facts_of):
    facts = facts_of("h100-x8")
    assert {one["fabric"]["state"] for one in facts["devices"]} == {"completed"}
    assert {one["nvlink"]["clique"] for one in facts["devices"]} == {0}
    assert {one["nvlink"]["to_switch"] for one in facts["devices"]} == {True}
    assert {(one["nvlink"]["links"], one["nvlink"]["active"])
            for one in facts["devices"]} == {(18, 18)}


def test_a_lost_device_is_listed_and_its_end_is_in_the_log(facts_of):
    facts = facts_of("lost-gpu")
    (lost,) = [one for one in facts["devices"] if one["memory_total_bytes"] is None]
    label = "devices[%d]" % lost["index"]
    # It does not tell any more who it is; the driver's files do.
    assert lost["bus_id"] == "0000:41:00.0"
    assert lost["uuid"].startswith("GPU-") and lost["name"] == "NVIDIA A100-SXM4-80GB"
    assert source(facts, label + ".uuid").startswith("/proc/driver/nvidia/gpus/")
    assert all(reason(facts, "%s.%s" % (label, key)) for key, value in lost.items()
               if value is None)
    assert "nvml-15" in {entry["code"] for key, entry in facts["unread"].items()
                         if key.startswith(label)}
    assert [event["code"] for event in lost["xids"]] == [79]
    assert facts["orphan_xids"] == []


def test_a_device_that_cannot_be_opened_is_listed_with_the_reason(facts_of):
    facts = facts_of("a100-80-x4", devices={1: {"errors": {"nvmlDeviceGetHandleByIndex_v2": 15}}})
    assert facts["unread"]["devices[1]"] == {
        "code": "nvml-15", "reason": "NVML error 15: GPU is lost"}
    assert [one["memory_free_bytes"] is None for one in facts["devices"]] == [
        False, True, False, False]
    assert len(facts["devices"][0]["nvlink"]["peers"]) == 2
    assert len({one["uuid"] for one in facts["devices"]}) == 4


def test_devices_that_cannot_be_told_apart_stay_without_a_name(facts_of):
    gone = {"errors": {"nvmlDeviceGetHandleByIndex_v2": 15}}
    facts = facts_of("a100-80-x4", devices={1: gone, 2: gone}, files={
        "/proc/driver/nvidia/gpus/0000:81:00.0/information": None})
    assert facts["devices"][1]["bus_id"] != facts["devices"][2]["bus_id"]


def test_a_mismatch_is_told_and_what_the_kernel_says_is_read(facts_of):
    facts = facts_of("driver-mismatch")
    assert facts["unread"]["nvml"]["code"] == "nvml-18"
    assert facts["driver"]["version"] == facts["driver"]["kernel_module"] is not None
    assert facts["sources"]["devices"] == "/proc/driver/nvidia"
    assert facts["devices"][0]["uuid"].startswith("GPU-")
    assert facts["devices"][0]["memory_total_bytes"] is None


def test_a_jetson_is_told_by_the_catalog(facts_of):
    jetson = facts_of("orin-nx-16")["jetson"]
    assert jetson == {
        "l4t": "36.4.3", "jetpack": "6.2", "jetpack_major": 6, "cuda": "12.6", "chip": "Orin",
        "soc": "tegra234", "capability": "8.7", "runtime": "nvidia",
        "board": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
        "power_modes": {"MAXN": 0, "10W": 1, "15W": 2, "25W": 3},
        "power_mode": None, "power_mode_id": None}


@pytest.mark.parametrize(("said", "l4t", "jetpack", "major"), [
    ("# R36 (release), REVISION: 4.7, GCID: 1", "36.4.7", None, 6),
    ("# R41 (release), REVISION: 1.0, GCID: 1", "41.1.0", None, None),
    ("# R39 (release), REVISION: 2.1, GCID: 1", "39.2.1", "7.2.1", 7),
])
def test_an_unknown_release_is_not_taken_for_the_newest(facts_of, said, l4t, jetpack, major):
    facts = facts_of("orin-nx-16", files={"/etc/nv_tegra_release": said + "\n"})
    assert (facts["jetson"]["l4t"], facts["jetson"]["jetpack"],
            facts["jetson"]["jetpack_major"]) == (l4t, jetpack, major)
    if jetpack is None:
        assert facts["unread"]["jetson.jetpack"]["code"] == "unknown"
        assert l4t in reason(facts, "jetson.jetpack")


POWER = {"argv": tegra.POWER_MODE, "rc": 0, "stderr": "", "stdout": "NV Power Mode: 15W\n2\n"}
PACKAGE = {"argv": tegra.PACKAGE, "rc": 0, "stderr": "", "stdout": "36.4.4-20250616085344"}


def test_a_jetson_without_its_release_file_is_told_by_its_package(facts_of, replay):
    replay(POWER, PACKAGE)
    facts = facts_of("orin-nx-16", files={"/etc/nv_tegra_release": None})
    assert facts["class"] == "jetson"
    assert facts["jetson"]["l4t"] == "36.4.4"
    assert (facts["jetson"]["power_mode"], facts["jetson"]["power_mode_id"]) == ("15W", 2)
    assert source(facts, "jetson.l4t") == "the package nvidia-l4t-core"


# What NVML knows by another question too, so that one refusal is no loss.
ASKED_TWICE = {
    # what the driver's files tell, and the old name of a question that was answered
    ("nvmlDeviceGet" + what, code) for code in (3, 4, 13, 15, 999)
    for what in ("PciInfo", "UUID", "Name", "CurrentClocksThrottleReasons")} | {
    ("nvmlDeviceGetCurrentClocksEventReasons", 13)} | {
    # of kinds of processes that a device may have none of
    ("nvmlDeviceGet%sRunningProcesses_v3" % kind, code)
    for kind in ("Graphics", "MPSCompute") for code in (3, 13)}
FULL = {"ecc": {"corrected_volatile": 7, "uncorrected_volatile": 5, "corrected_aggregate": 9,
                "uncorrected_aggregate": 8},
        "remapped_rows": {"correctable": 3, "uncorrectable": 2, "pending": 1, "failed": 1},
        "utilisation": {"gpu": 50, "memory": 20}, "retired_pages_pending": 1,
        "memory": {"used": 2**30}, "clocks_event_reasons": 0x4,
        "processes": {"compute": [{"pid": 1, "bytes": 2**30}]}}
QUESTIONS = sorted(set(re.findall(
    r'"(nvmlDeviceGet\w+)"', pathlib.Path(nvml.__file__).read_text())) - {
        "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex",
        # of slices, and of versions that drivers of today do not need
        "nvmlDeviceGetMigDeviceHandleByIndex", "nvmlDeviceGetMaxMigDeviceCount",
        "nvmlDeviceGetGpuInstanceId", "nvmlDeviceGetComputeInstanceId"})
# The symbol that the bindings call for it.
SYMBOLS = {"nvmlDeviceGetPciInfo": "nvmlDeviceGetPciInfo_v3",
           "nvmlDeviceGetMemoryInfo": "nvmlDeviceGetMemoryInfo_v2",
           "nvmlDeviceGetNvLinkRemotePciInfo": "nvmlDeviceGetNvLinkRemotePciInfo_v2"}


@pytest.mark.parametrize("code", [3, 4, 13, 15, 999])
@pytest.mark.parametrize("question", QUESTIONS)
def test_what_nvml_refuses_is_never_0(facts_of, question, code):
    whole = dict(leaves(facts_of("h200-x8", devices={0: FULL})))
    refused = {SYMBOLS.get(question, question): code}
    if question == "nvmlDeviceGetMemoryInfo":
        refused[question] = code
    facts = facts_of("h200-x8", devices={0: {"errors": refused}})
    now = dict(leaves(facts))
    # A list that is empty now has no leaves; none may have become empty.
    shrunk = [key for key, value in facts["devices"][0].items() if value in ([], {}, 0, "", False)
              and key not in emptiness(whole)]
    assert shrunk == []
    changed = {label for label in set(whole) | set(now) if label.startswith("devices[0].")
               and whole.get(label) != now.get(label)}
    assert bool(changed) != ((question, code) in ASKED_TWICE)
    for label in changed & set(now):
        assert now[label] is None, label
        assert reason(facts, label), label
    assert {label for label in now if label.startswith("devices[1].")
            and now[label] != whole.get(label)} <= {
                label for label in now if ".nvlink." in label}


def emptiness(whole):
    """The figures of the first device that are nothing from the start."""
    return {"xids", "unified_memory"} | {
        label.rpartition(".")[2] for label, value in whole.items()
        if label.startswith("devices[0].") and value in (0, "", False)}


def test_the_right_reasons_are_kept_where_a_function_is_too_new(facts_of):
    facts = facts_of("h200-x8", devices={0: {"errors": {
        "nvmlDeviceGetCurrentClocksEventReasons": 13, "nvmlDeviceGetMemoryInfo_v2": 13,
        "nvmlDeviceGetComputeRunningProcesses_v3": 13}}})
    first = facts["devices"][0]
    assert first["throttle_reasons"] == ["gpu_idle"]  # by the question's old name
    assert first["memory_total_bytes"] == facts["devices"][1]["memory_total_bytes"]
    assert first["memory_reserved_bytes"] is None
    assert facts["unread"]["devices[0].memory_reserved_bytes"]["code"] == "nvml-13"


def test_a_wrong_cuda_version_of_the_driver_is_null(facts_of):
    facts = facts_of("h200-x8", errors={"nvmlSystemGetCudaDriverVersion_v2": 999,
                                        "nvmlSystemGetDriverVersion": 999})
    assert facts["driver"]["cuda"] is None
    assert facts["driver"]["version"] is None
    assert facts["unread"]["driver.version"]["code"] == "nvml-999"


def test_without_bindings_nvidia_smi_is_asked_then_one_in_a_container(
        mock_host, replay, monkeypatch, tmp_path, without_pynvml):
    host = mock_host("h100-x8")
    monkeypatch.setattr(nvidia_smi, "on_host",
                        lambda: nvidia_smi.Tool(["nvidia-smi"], "nvidia-smi"))
    replay("h100-x2/nvidia-smi-busy.yml", *NO_TOOLS)
    facts, took = host_facts.observe(str(tmp_path), str(host.root), ROWS)
    assert took is None
    assert source(facts, "devices") == "nvidia-smi"
    assert [one["name"] for one in facts["devices"]] == ["NVIDIA H100 80GB HBM3"] * 2

    fails = {"argv": ["nvidia-smi", *nvidia_smi.QUERY], "cannot_start": "ENOENT"}
    replay(fails, *NO_TOOLS, *({"argv": ["docker", *call["argv"][1:]], **{
        key: value for key, value in call.items() if key != "argv"}}
        for call in transcripts.calls_of("h100-x2/nvidia-smi-busy.yml")))
    monkeypatch.setattr(containers, "nvidia_smi_in_container",
                        lambda *_: nvidia_smi.Tool(["docker"], "nvidia-smi in a container of x"))
    facts, _ = host_facts.observe(str(tmp_path), str(host.root), ROWS)
    assert source(facts, "devices") == "nvidia-smi in a container of x"
    assert facts["unread"]["nvidia-smi"]["code"] == "absent"


def test_nvml_is_closed_even_when_reading_breaks(mock_host, monkeypatch, tmp_path):
    import pynvml

    host = mock_host("h100-x8")

    def breaks(*_):
        raise RuntimeError("broken binding")

    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", breaks)
    with pytest.raises(RuntimeError):
        host_facts.observe(str(tmp_path), str(host.root), ROWS)
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlDeviceGetHandleByIndex(0)


# --- The whole module -----------------------------------------------------------------------

DAEMONS = {"argv": daemons.SHOW, "rc": 0, "stderr": "", "stdout":
           "Id=nvidia-fabricmanager.service\nLoadState=loaded\nActiveState=active\n"
           "UnitFileState=enabled\n\nId=nvidia-persistenced.service\nLoadState=loaded\n"
           "ActiveState=active\nUnitFileState=enabled\n"}
FABRIC_MANAGER = {"argv": daemons.FABRIC_MANAGER_VERSION, "rc": 0, "stderr": "",
                  "stdout": "Fabric Manager version is : 550.54.14\n"}
ENGINE = {"engine": "docker", "version": "28.2.2", "api_version": "1.50", "cgroup_driver":
          "systemd", "cgroup_version": "2", "default_runtime": "runc", "nvidia_runtime": True,
          "cdi_devices": ["nvidia.com/gpu=0"]}
LIMITED = {"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/memory.max": "1073741824\n",
           "/run/systemd/system/x": "", "/sys/bus/pci/devices/0000:99:00.0/vendor": "0x1002\n",
           "/sys/bus/pci/devices/0000:99:00.0/class": "0x030000\n",
           "/sys/bus/pci/devices/0000:99:00.0/device": "0x744c\n",
           "/dev/kmsg": "4,1,5000000,-;NVRM: Xid (PCI:0000:ff:00): 79, GPU has fallen off\n"}


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("name", ["h100-x8", "a100-mig", "h100-sick", "v100-x4", "orin-nx-16"])
def test_the_module_returns_what_it_documents(
        run_module, mock_host, replay, monkeypatch, tmp_path, name, check):
    host = mock_host(name)
    for path, content in {} if name == "h100-sick" else LIMITED.items():
        place = host.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)
    (host.root / "proc" / "5150").mkdir(exist_ok=True, parents=True)
    replay(DAEMONS, FABRIC_MANAGER, POWER)
    monkeypatch.setattr(containers, "read", lambda _: dict(ENGINE))
    monkeypatch.setattr(gpu_facts, "SYSTEM_ROOT", str(host.root))
    result = run_module(gpu_facts.main, check=check, root=str(tmp_path / "root"), **ROWS)
    assert result["changed"] is False
    assert result["timing"]["total_s"] >= result["timing"]["nvml_s"] > 0
    assert len(result["ansible_facts"]["gpu_host"]["devices"]) == len(host.profile["devices"])
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("check", [False, True])
def test_the_module_changes_nothing_and_reads_this_host(run_module, tmp_path, check):
    result = run_module(gpu_facts.main, check=check, root=str(tmp_path))
    assert result["changed"] is False
    assert result["ansible_facts"]["gpu_host"]["memory"]["total_bytes"] > 0
    assert list(tmp_path.iterdir()) in ([], [tmp_path / "remote-tmp"])
