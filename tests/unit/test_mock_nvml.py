# SPDX-License-Identifier: Apache-2.0
"""The mock of NVIDIA's libraries is what pynvml finds on real machines, and refuses typos."""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import subprocess
import sys

import mock_nvml
import pynvml
import pytest
from mock_nvml import building, survey

GIB = 2**30
NOT_SUPPORTED = "NVMLError_NotSupported"
UNINITIALISED, INVALID_ARGUMENT, INSUFFICIENT_SIZE, NOT_LOADED = 1, 2, 7, 9
VERSION_MISMATCH = 25
UNKNOWN_INSTANCE = 2**32 - 1
# Functions of the system or of the library itself: all others take a device first.
OF_NO_DEVICE = {"nvmlInitWithFlags", "nvmlInit_v2", "nvmlShutdown", "nvmlErrorString",
                "nvmlDeviceGetCount_v2", "nvmlDeviceGetHandleByIndex_v2",
                "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetHandleByPciBusId_v2"} | {
    name for name in building.functions() if name.startswith("nvmlSystem")}
OF_A_DEVICE = sorted(building.functions() - OF_NO_DEVICE)


@pytest.fixture
def on(mock_host):
    """Be on a host with NVML initialised."""

    def start(name, **changes):
        host = mock_host(name, **changes)
        pynvml.nvmlInit()
        return host

    return start


def handle(place=0):
    return pynvml.nvmlDeviceGetHandleByIndex(place)


def code_of(call, *args):
    """The code that a call of pynvml raises."""
    with pytest.raises(pynvml.NVMLError) as raised:
        call(*args)
    return raised.value.value


def recorded(repository, name):
    return json.loads((repository / "tests" / "fixtures" / name / "nvml.json").read_text())


# --- Against real machines ------------------------------------------------------------------


def same_as(recording, told):
    """What was recorded of each device, and what is told in its place."""
    return [(was, {call: now[call] for call in was})
            for was, now in zip(recording["devices"], told["devices"], strict=True)]


def test_two_h100_tell_what_two_real_ones_told(on, repository):
    real = recorded(repository, "h100-x2")
    seen = [(one["nvmlDeviceGetUUID()"], one["nvmlDeviceGetTemperature(0)"],
             one["nvmlDeviceGetPowerUsage()"]) for one in real["devices"]]
    on("h100-x8", defaults={"virtualization": 1, "cpu_affinity": [2**32 - 1],
                            "memory_affinity": [1]},
       devices=[{"bus_id": "00000000:00:%02X.0" % (place + 6), "uuid": uuid, "temperature": celsius,
                 "power_mw": power} for place, (uuid, celsius, power) in enumerate(seen)])
    told = survey.machine()
    assert {call: told["answers"][call] for call in real["answers"]} == real["answers"]
    for was, now in same_as(real, told):
        assert now == was


def test_an_h200_tells_what_a_real_one_told(on, repository):
    real = recorded(repository, "h200")
    # Alone in its machine, that one had no link.
    on("h200-x8", devices=[{"bus_id": "00000000:00:06.0", "temperature": 37, "power_mw": 80822,
                            "uuid": real["devices"][0]["nvmlDeviceGetUUID()"],
                            "nvlink": None, "fabric": None}])
    told = survey.machine()
    assert {call: told["answers"][call] for call in real["answers"]} == real["answers"]
    for was, now in same_as(real, told):
        assert now == was


# --- Every function, on every profile -------------------------------------------------------


def padded(words):
    return NOT_SUPPORTED if words is None else (words + [0] * 4)[:4]


def pci_of(device):
    if "bus_id" not in device:
        return NOT_SUPPORTED
    domain, bus, rest = device["bus_id"].split(":")
    return {"busIdLegacy": device["bus_id"][4:], "domain": int(domain, 16), "bus": int(bus, 16),
            "device": int(rest.split(".")[0], 16), "pciDeviceId": device["pci_device_id"],
            "pciSubSystemId": device["pci_subsystem_id"], "busId": device["bus_id"]}


def processes_of(device, kind):
    if kind not in device.get("processes", {}):
        return NOT_SUPPORTED
    return [{"pid": one["pid"], "usedGpuMemory": one["bytes"],
             "gpuInstanceId": one.get("gpu_instance", UNKNOWN_INSTANCE),
             "computeInstanceId": one.get("compute_instance", UNKNOWN_INSTANCE)}
            for one in device["processes"][kind]]


def field(value):
    return {"nvmlReturn": 3 if value is None else 0, "valueType": 1, "value": value or 0}


def fabric_of(device, **more):
    told = device.get("fabric")
    if told is None:
        return NOT_SUPPORTED
    return {"clusterUuid": [0] * 16, "status": told["status"], "cliqueId": told["clique_id"],
            "state": told["state"], **more}


def expected(device):
    """What pynvml makes of a device without errors, by reading the profile another time."""
    def one(key):
        return device.get(key, NOT_SUPPORTED)

    def several(key, *inner):
        told = device.get(key)
        return NOT_SUPPORTED if told is None else [told[name] for name in inner]

    memory, mig = device.get("memory"), device.get("mig", {})
    free = memory and memory["total"] - memory["reserved"] - memory["used"]
    answers = {
        "nvmlDeviceGetUUID()": one("uuid"), "nvmlDeviceGetName()": one("name"),
        "nvmlDeviceGetSerial()": one("serial"), "nvmlDeviceGetMinorNumber()": one("minor"),
        "nvmlDeviceGetPciInfo()": pci_of(device),
        "nvmlDeviceGetArchitecture()": one("architecture"),
        "nvmlDeviceGetCudaComputeCapability()": one("capability"),
        "nvmlDeviceGetBrand()": one("brand"),
        "nvmlDeviceGetVirtualizationMode()": one("virtualization"),
        "nvmlDeviceGetGspFirmwareVersion()": one("gsp_firmware"),
        "nvmlDeviceGetMemoryInfo()": NOT_SUPPORTED if memory is None else {
            "total": memory["total"], "free": free, "used": memory["used"] + memory["reserved"]},
        "nvmlDeviceGetMemoryInfo(33554472)": NOT_SUPPORTED if memory is None else {
            "version": 0x02000028, "free": free, **memory},
        "nvmlDeviceGetUtilizationRates()":
            NOT_SUPPORTED if mig.get("current") else one("utilisation"),
        "nvmlDeviceGetPowerUsage()": one("power_mw"),
        "nvmlDeviceGetPerformanceState()": one("performance_state"),
        "nvmlDeviceGetCurrentClocksEventReasons()": one("clocks_event_reasons"),
        "nvmlDeviceGetCurrentClocksThrottleReasons()": one("clocks_event_reasons"),
        "nvmlDeviceGetPersistenceMode()": one("persistence"),
        "nvmlDeviceGetComputeMode()": one("compute_mode"),
        "nvmlDeviceGetEccMode()": several("ecc", "current", "pending"),
        "nvmlDeviceGetRemappedRows()": several("remapped_rows", "correctable", "uncorrectable",
                                               "pending", "failed"),
        "nvmlDeviceGetRetiredPagesPendingStatus()": one("retired_pages_pending"),
        "nvmlDeviceGetMigMode()": several("mig", "current", "pending"),
        "nvmlDeviceGetMaxMigDeviceCount()": 7 if mig.get("current") else 0,
        "nvmlDeviceGetMigDeviceHandleByIndex(0)":
            NOT_SUPPORTED if not mig else "a handle" if mig["current"] else "NVMLError_NotFound",
        "nvmlDeviceGetGpuInstanceId()": NOT_SUPPORTED,
        "nvmlDeviceGetComputeInstanceId()": NOT_SUPPORTED,
        "nvmlDeviceIsMigDeviceHandle()": 0,
        "nvmlDeviceGetComputeRunningProcesses()": processes_of(device, "compute"),
        "nvmlDeviceGetGraphicsRunningProcesses_v3()": processes_of(device, "graphics"),
        "nvmlDeviceGetMPSComputeRunningProcesses_v3()": processes_of(device, "mps"),
        "nvmlDeviceGetNumaNodeId()": one("numa_node"),
        "nvmlDeviceGetTemperature(0)": one("temperature"),
        "nvmlDeviceGetTemperatureV(0)": one("temperature"),
        "nvmlDeviceGetCpuAffinity(4)": padded(device.get("cpu_affinity")),
        "nvmlDeviceGetMemoryAffinity(4, 0)": padded(device.get("memory_affinity")),
        "nvmlDeviceGetGpuFabricInfo()": fabric_of(device),
        "nvmlDeviceGetGpuFabricInfoV(33554468)": fabric_of(
            device, version=0x02000024, healthMask=0),
        "nvmlDeviceGetGpuFabricInfoV(50331688)": fabric_of(
            device, version=0x03000028, healthMask=0, healthSummary=0),
        "nvmlDeviceGetFieldValues([91])": field(device.get("nvlink", {}).get("links")),
        "nvmlDeviceGetFieldValues([230])": field(device.get("recovery_action")),
    }
    for kind, word in enumerate(("corrected", "uncorrected")):
        for counter, span in enumerate(("volatile", "aggregate")):
            answers["nvmlDeviceGetTotalEccErrors(%d, %d)" % (kind, counter)] = (
                device.get("ecc", {}).get("%s_%s" % (word, span), NOT_SUPPORTED))
    return answers


def expected_links(devices, device):
    """What is said of each link, up to one that no device has."""
    nvlink, peers = device.get("nvlink"), device.get("p2p_nvlink")
    answers = {}
    for link in survey.LINKS:
        if nvlink is None or link >= nvlink["links"]:
            said = (NOT_SUPPORTED if nvlink is None else "NVMLError_InvalidArgument",) * 3
        else:
            far = pci_of(devices[peers[link % len(peers)]]) if (
                nvlink["remote_type"] == 0 and peers) else {
                "busIdLegacy": "FFFFFFF:FF:FF.0", "domain": 2**32 - 1, "bus": 255, "device": 255,
                "pciDeviceId": 2**32 - 1, "pciSubSystemId": 0, "busId": "FFFFFFFF:FF:FF.0"}
            said = (int(link < nvlink["active"]), nvlink["remote_type"], far)
        answers.update(("%s(%d)" % (name, link), one)
                       for name, one in zip(survey.LINK, said, strict=True))
    return answers


@pytest.mark.parametrize("name", [name for name in mock_nvml.names()
                                  if not mock_nvml.load(name).get("init")])
def test_pynvml_reads_what_the_profile_says(on, name):
    # Errors that devices are told have tests of their own.
    count = len(mock_nvml.load(name)["devices"])
    profile = on(name, devices={place: {"errors": None} for place in range(count)}).profile
    devices = profile["devices"]
    told = survey.machine()
    assert told["answers"] == {
        "nvmlSystemGetDriverVersion()": profile["driver_version"],
        "nvmlSystemGetNVMLVersion()": profile["nvml_version"],
        "nvmlSystemGetCudaDriverVersion()": profile["cuda_driver_version"],
        "nvmlSystemGetCudaDriverVersion_v2()": profile["cuda_driver_version"],
        "nvmlDeviceGetCount()": len(devices)}
    for place, (device, answers) in enumerate(zip(devices, told["devices"], strict=True)):
        others = [other for other in range(len(devices)) if other != place]
        wanted = {**expected(device), **expected_links(devices, device)}
        for at, other in enumerate(others):
            for index in survey.P2P_INDEXES:
                wanted["nvmlDeviceGetP2PStatus(other %d, %d)" % (at, index)] = (
                    0 if other in device.get("p2p_nvlink", []) and index != 4 else 5)
        assert answers == wanted


def test_the_survey_asks_all_that_the_library_has(on, monkeypatch):
    on("a100-40-x8")
    asked = set()
    real = pynvml._nvmlGetFunctionPointer
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer",
                        lambda name: asked.add(name) or real(name))
    survey.machine()
    elsewhere = {"nvmlInitWithFlags", "nvmlInit_v2", "nvmlShutdown", "nvmlErrorString",
                 "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetHandleByPciBusId_v2",
                 "nvmlDeviceGetDeviceHandleFromMigDeviceHandle"}
    assert asked == building.functions() - elsewhere


@pytest.mark.parametrize("name, count, total, capability", [
    ("a100-40-x8", 8, 40960 * 2**20, [8, 0]), ("a100-80-x4", 4, 81920 * 2**20, [8, 0]),
    ("a100-80-x4-worn", 4, 81920 * 2**20, [8, 0]),
    ("a100-mig", 2, 40960 * 2**20, [8, 0]), ("cpu", 0, None, None),
    ("driver-mismatch", 4, 81920 * 2**20, [8, 0]), ("gb10", 1, None, [12, 1]),
    ("h100-sick", 8, 85520809984, [9, 0]), ("h100-x8", 8, 85520809984, [9, 0]),
    ("h100-x8-fabric-down", 8, 85520809984, [9, 0]), ("h200-x8", 8, 150754820096, [9, 0]),
    ("l40s-x4", 4, 46068 * 2**20, [8, 9]), ("lost-gpu", 4, 81920 * 2**20, [8, 0]),
    ("orin-nx-16", 1, None, [8, 7]), ("rtx3090-x2-busy", 2, 24576 * 2**20, [8, 6]),
    ("thor", 1, None, [11, 0]), ("v100-x4", 4, 32768 * 2**20, [7, 0]),
])
def test_the_machines_are_those_that_they_are_said_to_be(name, count, total, capability):
    devices = mock_nvml.load(name)["devices"]
    assert len(devices) == count
    for device in devices:
        assert device.get("memory", {}).get("total") == total
        assert device["capability"] == capability


def test_every_profile_has_a_row_above():
    rows = test_the_machines_are_those_that_they_are_said_to_be.pytestmark[0].args[1]
    assert [row[0] for row in rows] == mock_nvml.names()


# --- Initialising ---------------------------------------------------------------------------


def test_another_profile_is_read_at_the_next_init(on):
    host = on("l40s-x4")
    assert pynvml.nvmlDeviceGetCount() == 4
    first = handle(0)
    host.set(devices=[{"bus_id": "00000000:38:00.0", "name": "NVIDIA L40"}])
    pynvml.nvmlInit()
    assert pynvml.nvmlDeviceGetCount() == 1
    assert pynvml.nvmlDeviceGetName(first) == "NVIDIA L40"


def test_a_handle_of_a_device_that_is_gone_is_no_handle(on):
    host = on("l40s-x4")
    last = handle(3)
    host.set(devices=[{"bus_id": "00000000:38:00.0"}])
    pynvml.nvmlInit()
    assert code_of(pynvml.nvmlDeviceGetName, last) == INVALID_ARGUMENT


def test_each_init_wants_its_shutdown_and_one_beside_another_reads_nothing(on, monkeypatch):
    on("l40s-x4")
    monkeypatch.setenv("FIRSTLIGHT_MOCK_PROFILE", "/nonexistent")
    pynvml.nvmlInit()
    pynvml.nvmlShutdown()
    assert pynvml.nvmlDeviceGetCount() == 4
    pynvml.nvmlShutdown()
    assert code_of(pynvml.nvmlShutdown) == UNINITIALISED
    assert code_of(pynvml.nvmlInit) == NOT_LOADED


@pytest.mark.parametrize("name", OF_A_DEVICE)
def test_without_init_a_device_is_not_asked(on, name):
    on("l40s-x4")
    device = handle()
    pynvml.nvmlShutdown()
    assert raw(name, device, *ROOM) == UNINITIALISED


@pytest.mark.parametrize("call", [
    pynvml.nvmlSystemGetDriverVersion, pynvml.nvmlSystemGetCudaDriverVersion,
    pynvml.nvmlSystemGetCudaDriverVersion_v2, pynvml.nvmlDeviceGetCount,
    lambda: pynvml.nvmlDeviceGetHandleByIndex(0), lambda: pynvml.nvmlDeviceGetHandleByUUID("x"),
    lambda: pynvml.nvmlDeviceGetHandleByPciBusId("0:0:0.0")])
def test_without_init_the_system_is_not_asked(mock_host, call):
    mock_host("l40s-x4")
    assert code_of(call) == UNINITIALISED


def test_the_library_knows_its_version_where_the_driver_is_another(mock_host):
    mock_host("driver-mismatch")
    assert code_of(pynvml.nvmlInit) == 18
    assert code_of(pynvml.nvmlDeviceGetCount) == UNINITIALISED
    assert pynvml.nvmlSystemGetNVMLVersion() == "12.550.90.07"


@pytest.mark.parametrize("text", [
    "", "{", "[1,", '{"init": 0', '{"init": 0.5}', '{"init": 1e3}', '{init: 0}', '{"init" 0}',
    '{"driver_version": "\\q"}', '{"driver_version": "\\u12"}', '{"driver_version": "', "{} {}",
    "[" * 100 + "]" * 100])
def test_without_a_whole_profile_there_is_no_driver(mock_host, text):
    host = mock_host("cpu")
    pathlib.Path(host.json).write_text(text)
    assert code_of(pynvml.nvmlInit) == NOT_LOADED


def test_json_is_read_whatever_stands_in_it(mock_host):
    host = mock_host("cpu")
    name = "tab\t quote\" slash/\\ line\n \u00e9 \u20ac \u0001"
    pathlib.Path(host.json).write_text(
        ' {"driver_version":%s ,"init" : false,"devices":[ {"name":"a\\/b\\u00e9","temperature":-5'
        ',"cpu_affinity":[18446744073709551615],"utilisation":{"gpu":true,"memory":null}} , {}]}\n'
        % json.dumps(name))
    pynvml.nvmlInit()
    assert pynvml.nvmlSystemGetDriverVersion() == name
    assert pynvml.nvmlDeviceGetCount() == 2
    assert pynvml.nvmlDeviceGetName(handle()) == "a/b\u00e9"
    assert pynvml.nvmlDeviceGetTemperatureV(handle(), 0) == -5
    assert list(pynvml.nvmlDeviceGetCpuAffinity(handle(), 2)) == [2**64 - 1, 0]
    assert survey.device(handle())["nvmlDeviceGetUtilizationRates()"] == NOT_SUPPORTED


# --- What C callers may do and pynvml does not ----------------------------------------------

# Enough memory for whatever a function wants to put behind each of its arguments.
ROOM = [ctypes.create_string_buffer(4096) for _ in range(4)]


def raw(name, *args):
    return getattr(pynvml.nvmlLib, name)(*args)


@pytest.mark.parametrize("name", OF_A_DEVICE)
def test_what_is_no_handle_is_an_invalid_argument(on, name):
    on("a100-mig")
    assert raw(name, None, *ROOM) == INVALID_ARGUMENT
    assert raw(name, ROOM[0], *ROOM) == INVALID_ARGUMENT


@pytest.mark.parametrize("name", OF_A_DEVICE)
def test_nothing_to_put_the_answer_into_is_an_invalid_argument(on, name):
    on("a100-mig")
    # Where a number comes first, it is 0.
    assert raw(name, handle(), None, None, None, None) == INVALID_ARGUMENT


@pytest.mark.parametrize("name, length", [
    ("nvmlDeviceGetName", len("NVIDIA L40S")), ("nvmlDeviceGetUUID", 40)])
def test_a_text_needs_room_for_its_end(on, name, length):
    on("l40s-x4")
    assert raw(name, handle(), ROOM[0], length) == INSUFFICIENT_SIZE
    assert raw(name, handle(), ROOM[0], length + 1) == 0


def test_versions_of_structures_are_held_to(on):
    on("h100-x8")
    memory = pynvml.c_nvmlMemory_v2_t(version=0x01000028)
    fabric = pynvml.c_nvmlGpuFabricInfo_v2_t()
    fabric.version = 0x04000024
    temperature = pynvml.c_nvmlTemperature_v1_t(version=0)
    for name, asked in (("nvmlDeviceGetMemoryInfo_v2", memory),
                        ("nvmlDeviceGetGpuFabricInfoV", fabric),
                        ("nvmlDeviceGetTemperatureV", temperature)):
        assert raw(name, handle(), ctypes.byref(asked)) == VERSION_MISMATCH


BUSY = [{"pid": pid, "bytes": pid * GIB} for pid in (11, 12, 13)]


def test_processes_are_told_in_two_calls(on):
    on("l40s-x4", devices={0: {"processes": {"compute": BUSY}}})
    name, count = "nvmlDeviceGetComputeRunningProcesses_v3", ctypes.c_uint(0)
    found = (pynvml.c_nvmlProcessInfo_v3_t * 4)()
    assert raw(name, handle(), ctypes.byref(count), None) == INSUFFICIENT_SIZE
    assert count.value == 3
    count.value = 2
    assert raw(name, handle(), ctypes.byref(count), found) == INSUFFICIENT_SIZE
    assert count.value == 3
    assert [one.pid for one in found] == [11, 12, 0, 0]
    count.value = 4
    assert raw(name, handle(), ctypes.byref(count), found) == 0
    assert count.value == 3
    assert [(one.pid, one.usedGpuMemory) for one in found] == [
        (11, 11 * GIB), (12, 12 * GIB), (13, 13 * GIB), (0, 0)]
    count.value = 0
    assert raw(name, handle(1), ctypes.byref(count), None) == 0
    assert count.value == 0


def test_memory_of_a_process_that_the_driver_does_not_tell_is_none(on):
    on("l40s-x4", devices={0: {"processes": {"graphics": [{"pid": 1, "bytes": None}]}}})
    (process,) = pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3(handle())
    assert (process.pid, process.usedGpuMemory) == (1, None)


def test_a_fabric_is_told_with_its_cluster_and_its_health(on):
    cluster = "0F1E2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
    on("h100-x8", devices={0: {"fabric": {
        "state": 2, "status": 27, "clique_id": 32766, "cluster_uuid": cluster,
        "health_mask": 0x1A, "health_summary": 2}}})
    answers = survey.device(handle())
    told = {"clusterUuid": list(bytes.fromhex(cluster.replace("-", ""))), "status": 27,
            "cliqueId": 32766, "state": 2}
    assert answers["nvmlDeviceGetGpuFabricInfo()"] == told
    assert answers["nvmlDeviceGetGpuFabricInfoV(33554468)"] == {
        **told, "version": 0x02000024, "healthMask": 0x1A}
    assert answers["nvmlDeviceGetGpuFabricInfoV(50331688)"] == {
        **told, "version": 0x03000028, "healthMask": 0x1A, "healthSummary": 2}


# --- Which device ---------------------------------------------------------------------------


def test_a_device_is_found_by_index_uuid_and_address(on):
    host = on("h100-x8")
    for place, device in enumerate(host.profile["devices"]):
        for found in (handle(place), pynvml.nvmlDeviceGetHandleByUUID(device["uuid"]),
                      pynvml.nvmlDeviceGetHandleByPciBusId(device["bus_id"]),
                      pynvml.nvmlDeviceGetHandleByPciBusId(device["bus_id"][4:].lower())):
            assert pynvml.nvmlDeviceGetMinorNumber(found) == place


def test_a_device_that_is_not_there_is_not_found(on):
    on("l40s-x4")
    assert code_of(handle, 4) == INVALID_ARGUMENT
    assert code_of(pynvml.nvmlDeviceGetHandleByUUID, "GPU-x") == 6
    assert code_of(pynvml.nvmlDeviceGetHandleByPciBusId, "0000:ff:00.0") == 6
    assert code_of(pynvml.nvmlDeviceGetHandleByPciBusId, "first") == INVALID_ARGUMENT


def test_slices_of_mig_are_devices_of_their_own(on):
    host = on("a100-mig")
    parent = handle(0)
    slices = host.profile["devices"][0]["mig"]["slices"]
    assert pynvml.nvmlDeviceGetMigMode(parent) == [1, 1]
    assert pynvml.nvmlDeviceGetMaxMigDeviceCount(parent) == 7
    assert len(slices) == 3
    for place, told in enumerate(slices):
        own = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(parent, place)
        answers = survey.device(own)
        ours = answers.pop("nvmlDeviceGetComputeRunningProcesses()")
        assert [one["pid"] for one in ours] == ([5150] if place == 0 else [])
        memory = told["memory"]
        free = memory["total"] - memory["used"]
        said = {call: one for call, one in answers.items() if one not in (NOT_SUPPORTED, [])}
        assert said == {
            "nvmlDeviceGetUUID()": told["uuid"], "nvmlDeviceGetName()": told["name"],
            "nvmlDeviceGetMemoryInfo()": {
                "total": memory["total"], "free": free, "used": memory["used"]},
            "nvmlDeviceGetMemoryInfo(33554472)": {"version": 0x02000028, "free": free, **memory},
            "nvmlDeviceGetGpuInstanceId()": told["gpu_instance"],
            "nvmlDeviceGetComputeInstanceId()": told["compute_instance"],
            "nvmlDeviceIsMigDeviceHandle()": 1, "nvmlDeviceGetMaxMigDeviceCount()": 0,
            "nvmlDeviceGetFieldValues([91])": field(None),
            "nvmlDeviceGetFieldValues([230])": field(None)}
        above = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(own)
        assert pynvml.nvmlDeviceGetUUID(above) == host.profile["devices"][0]["uuid"]
        by_uuid = pynvml.nvmlDeviceGetHandleByUUID(told["uuid"])
        assert pynvml.nvmlDeviceGetGpuInstanceId(by_uuid) == told["gpu_instance"]
    assert code_of(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, parent, 3) == 6
    assert code_of(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, parent) == INVALID_ARGUMENT
    assert pynvml.nvmlDeviceGetMigMode(handle(1)) == [0, 0]


# --- Errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OF_A_DEVICE)
def test_a_function_fails_as_the_device_is_told_and_on_that_device_only(on, name):
    on("h100-x8", devices={1: {"errors": {name: 999}}})
    assert raw(name, handle(1), *ROOM) == 999
    assert "NVMLError_Unknown" not in survey.device(handle(0), [handle(2)]).values()


@pytest.mark.parametrize("name", sorted(building.functions() - {"nvmlShutdown", "nvmlErrorString"}))
def test_a_function_fails_as_the_system_is_told(mock_host, name):
    host = mock_host("h100-x8")
    pynvml.nvmlInit()
    device = handle()
    host.set(errors={name: 13})
    raw("nvmlInit_v2" if name == "nvmlInitWithFlags" else "nvmlInitWithFlags", 0)
    first = {"nvmlInit_v2": 0, "nvmlInitWithFlags": 0, "nvmlDeviceGetHandleByIndex_v2": 0,
             "nvmlDeviceGetHandleByPciBusId_v2": b"0000:1b:00.0"}.get(
        name, ROOM[0] if name in OF_NO_DEVICE else device)
    assert raw(name, first, *ROOM[1:]) == 13


@pytest.mark.parametrize("name", OF_A_DEVICE)
def test_a_lost_device_has_a_handle_and_nothing_else(on, name):
    on("lost-gpu")
    assert raw(name, handle(1), *ROOM) == 15
    assert "NVMLError_GpuIsLost" not in survey.device(handle(0), [handle(2)]).values()


def test_the_sick_ones_are_sick_each_in_its_way(on):
    on("h100-sick")
    asked = [survey.device(handle(place)) for place in range(8)]
    well = asked[7]
    kept = ("UUID", "Serial", "MinorNumber", "PciInfo", "CpuAffinity", "MemoryAffinity")
    differ = [{call.partition("(")[0][len("nvmlDeviceGet"):] for call, said in one.items()
               if said != well[call]} - set(kept) for one in asked]
    assert differ == [
        {"RemappedRows", "FieldValues"}, {"RemappedRows"}, {"MemoryInfo", "FieldValues"},
        {"MemoryInfo", "UtilizationRates"},
        {"Temperature", "TemperatureV", "CurrentClocksEventReasons",
         "CurrentClocksThrottleReasons"}, {"TotalEccErrors"}, set(), set()]
    assert asked[2]["nvmlDeviceGetMemoryInfo()"] == "NVMLError_ResetRequired"
    assert asked[3]["nvmlDeviceGetMemoryInfo(33554472)"] == "NVMLError_Unknown"


def test_a_lost_device_is_no_peer_and_is_not_found_by_its_name(on):
    host = on("lost-gpu")
    assert code_of(pynvml.nvmlDeviceGetP2PStatus, handle(0), handle(1), 2) == 15
    lost = host.profile["devices"][1]
    assert code_of(pynvml.nvmlDeviceGetHandleByUUID, lost["uuid"]) == 15
    assert code_of(pynvml.nvmlDeviceGetHandleByPciBusId, lost["bus_id"]) == 15


def test_a_device_that_cannot_be_opened_leaves_the_others(on):
    on("l40s-x4", devices={2: {"errors": {"nvmlDeviceGetHandleByIndex_v2": 15}}})
    assert pynvml.nvmlDeviceGetCount() == 4
    assert code_of(handle, 2) == 15
    assert pynvml.nvmlDeviceGetMinorNumber(handle(3)) == 3


def test_what_a_device_is_told_goes_before_what_all_functions_do(on):
    on("l40s-x4", devices={0: {"errors": {"*": 15, "nvmlDeviceGetUUID": 0}}})
    assert pynvml.nvmlDeviceGetUUID(handle()).startswith("GPU-")
    assert code_of(pynvml.nvmlDeviceGetName, handle()) == 15


def test_errors_have_their_texts(mock_libraries):
    library = ctypes.CDLL(str(mock_libraries / "libnvidia-ml.so.1"))
    library.nvmlErrorString.restype = ctypes.c_char_p
    texts = {code: library.nvmlErrorString(code).decode() for code in (
        0, 3, 15, 18, 25, 30, 31, -1, 999)}
    assert texts == {0: "Success", 3: "Not Supported", 15: "GPU is lost",
                     18: "Driver/library version mismatch", 25: "Argument version mismatch",
                     30: "Reset type not supported", 31: "Unknown Error", -1: "Unknown Error",
                     999: "Unknown Error"}


# --- CUDA -----------------------------------------------------------------------------------

ASK_CUDA = """
import ctypes, json, sys
cuda, number, text = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(-1), ctypes.c_char_p()
before = cuda.cuDeviceGetCount(ctypes.byref(number))
code = cuda.cuInit(0)
count = number.value if cuda.cuDeviceGetCount(ctypes.byref(number)) else number.value
known = cuda.cuDriverGetVersion(ctypes.byref(number)) == 0
cuda.cuGetErrorName(code, ctypes.byref(text))
name = text.value.decode()
cuda.cuGetErrorString(code, ctypes.byref(text))
json.dump([before, code, count, number.value if known else None, name, text.value.decode()],
          sys.stdout)
"""


def ask_cuda(libraries, profile):
    ran = subprocess.run(
        [sys.executable, "-c", ASK_CUDA], check=True, capture_output=True, text=True, timeout=60,
        env={**os.environ, "LD_LIBRARY_PATH": str(libraries), "FIRSTLIGHT_MOCK_PROFILE": profile})
    return json.loads(ran.stdout)


@pytest.mark.parametrize("name, answer", [
    ("h100-x8", [3, 0, 8, 13000, "CUDA_SUCCESS", "no error"]),
    ("h100-x8-fabric-down", [3, 802, -1, 13000, "CUDA_ERROR_SYSTEM_NOT_READY",
                             "system not yet initialized"]),
    ("driver-mismatch", [3, 803, -1, 12040, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
                         "system has unsupported display driver / cuda driver combination"]),
    ("cpu", [3, 100, -1, None, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"]),
])
def test_cuda_starts_or_says_why_not(mock_host, mock_libraries, name, answer):
    assert ask_cuda(mock_libraries, mock_host(name).json) == answer


def test_without_a_profile_cuda_has_no_device(mock_libraries):
    assert ask_cuda(mock_libraries, "/nonexistent")[1] == 100


@pytest.mark.parametrize("code, name", [
    (34, b"CUDA_ERROR_STUB_LIBRARY"), (804, b"CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE"),
    (999, b"CUDA_ERROR_UNKNOWN"), (12345, None)])
def test_errors_of_cuda_have_their_names(mock_libraries, code, name):
    cuda, told = ctypes.CDLL(str(mock_libraries / "libcuda.so.1")), ctypes.c_char_p(b"x")
    assert (cuda.cuGetErrorName(code, ctypes.byref(told)) == 0) == (name is not None)
    assert told.value == name


# --- Profiles -------------------------------------------------------------------------------


@pytest.mark.parametrize("changes, said", [
    ({"drivers": "1"}, "l40s-x4: found the key 'drivers'"),
    ({"devices": {1: {"temprature": 4}}}, r"devices\[1\]: found the key 'temprature'"),
    ({"devices": {1: {"ecc": {"curent": 1}}}}, r"devices\[1\].ecc: found the key 'curent'"),
    ({"defaults": {"mig": {"mode": 1}}}, "defaults.mig: found the key 'mode'"),
    ({"devices": {0: {"processes": {"compute": [{"pit": 1}]}}}}, r"compute\[0\]: .* 'pit'"),
    ({"devices": {0: {"errors": {"nvmlDeviceGetTemprature": 3}}}}, "'nvmlDeviceGetTemprature'"),
    ({"errors": {"nvmlShutdown": 3}}, "'nvmlShutdown', which means nothing"),
    ({"host": {"ram": 1}}, "host: found the key 'ram'"),
    ({"cuda": {"init": "802"}}, "cuda.init: found '802', wanted int"),
    ({"devices": {0: {"persistence": True}}}, "persistence: found True, wanted int"),
    ({"devices": {0: {"power_mw": 3.5}}}, "power_mw: found 3.5, wanted int"),
    ({"devices": {0: {"capability": [8]}}}, r"capability: found \[8\]"),
    ({"devices": {0: {"p2p_nvlink": [0]}}}, "found no other device 0"),
    ({"devices": {0: {"p2p_nvlink": [4]}}}, "found no other device 4"),
    ({"devices": {0: {"p2p_nvlink": [1]}}}, "device 1 does not say the same"),
    ({"devices": {0: {"p2p_nvlink": "every"}}}, "p2p_nvlink: found 'every'"),
    ({"devices": {0: {"node": 2}}}, r"node: found 2, wanted a place in host.numa_cpus"),
    ({"devices": {0: {"minor": 1}}}, "two of the same minor"),
    ({"devices": {0: {"bus_id": "00000000:5A:00.0"}}}, "two of the same bus_id"),
    ({"devices": {0: {"memory": {"used": 2**36}}}}, "less in total than is taken"),
    ({"devices": {4: {"minor": 9}}}, "found no device 4 to change"),
    ({"devices": {0: {"mig": {"current": 0, "slices": [{"uuid": "MIG-x"}]}}}}, "MIG is off"),
    ({"source": None}, "found no source"),
    ({"xids": [{"code": 79, "at_s": 1, "text": ""}]}, r"xids\[0\]: found neither"),
    ({"host": {"distribution": "debian-11"}}, "distribution: found 'debian-11', wanted one of"),
])
def test_what_no_profile_can_say_is_refused(changes, said):
    with pytest.raises(mock_nvml.Wrong, match=said):
        mock_nvml.changed(mock_nvml.load("l40s-x4"), **changes)


def test_changes_go_as_deep_as_they_say_and_null_takes_away():
    before = mock_nvml.load("l40s-x4")
    after = mock_nvml.changed(before, init=0, devices={
        1: {"memory": {"used": 5}, "persistence": None, "ecc": {"current": None}, "node": 1}})
    assert before == mock_nvml.load("l40s-x4")
    for place, device in enumerate(after["devices"]):
        if place != 1:
            assert device == before["devices"][place]
    own = after["devices"][1]
    assert own["memory"] == {**before["devices"][1]["memory"], "used": 5}
    assert "persistence" not in own
    assert "current" not in own["ecc"]
    assert own["ecc"]["pending"] == 1
    assert own["cpu_affinity"] == before["devices"][2]["cpu_affinity"]
    again = mock_nvml.changed(after, devices={1: {"persistence": 0}})
    assert again["devices"][1] == {**own, "persistence": 0}


def test_uuids_that_are_made_up_are_always_the_same_and_of_one_machine_only():
    uuids = [device["uuid"] for name in mock_nvml.names()
             for device in mock_nvml.load(name)["devices"]]
    assert len(set(uuids)) == len(uuids)
    assert uuids == [device["uuid"] for name in mock_nvml.names()
                     for device in mock_nvml.load(name)["devices"]]
    assert mock_nvml.load("l40s-x4")["devices"][0]["uuid"] == (
        "GPU-9666d7aa-c176-562f-a5d0-63f5897b6cb4")


# --- The files of the host ------------------------------------------------------------------


def test_the_kernel_tells_of_each_card_and_where_it_sits(mock_host):
    host = mock_host("h100-x8")
    pci = host.root / "sys/bus/pci/devices"
    classes = {path.name: (path / "class").read_text() for path in pci.iterdir()}
    cards = [device["bus_id"][4:].lower() for device in host.profile["devices"]]
    assert sorted(name for name, kind in classes.items() if kind == "0x030200\n") == sorted(cards)
    assert sorted(name for name, kind in classes.items() if kind == "0x068000\n") == [
        "0000:%02x:00.0" % bus for bus in (5, 6, 7, 8)]
    last = pci / "0000:df:00.0"
    assert {path.name: path.read_text() for path in last.iterdir()} == {
        "vendor": "0x10de\n", "device": "0x2330\n", "class": "0x030200\n", "numa_node": "1\n",
        "local_cpulist": "56-111,168-223\n"}
    information = host.root / "proc/driver/nvidia/gpus/0000:df:00.0/information"
    assert "GPU UUID: \t %s\n" % host.profile["devices"][7]["uuid"] in information.read_text()
    assert (host.root / "dev/nvidia7").exists()
    assert "for x86_64  580.159.04  " in (host.root / "proc/driver/nvidia/version").read_text()


def test_a_card_of_a_virtual_machine_is_of_no_node(mock_host):
    card = mock_host("h200-x8").root / "sys/bus/pci/devices/0000:00:06.0"
    assert (card / "numa_node").read_text() == "-1\n"
    assert (card / "local_cpulist").read_text() == "0-127\n"


def test_the_kernel_log_is_as_the_kernel_gives_it(mock_host):
    assert (mock_host("lost-gpu").root / "dev/kmsg").read_text().splitlines()[-1] == (
        "4,2,99880000000,-;NVRM: Xid (PCI:0000:41:00): 79, GPU has fallen off the bus.")


def test_the_module_that_is_loaded_may_be_older_than_the_libraries(mock_host):
    root = mock_host("driver-mismatch").root
    assert " 550.54.15 " in (root / "proc/driver/nvidia/version").read_text()
    assert (root / "sys/module/nvidia/version").read_text() == "550.54.15\n"


def test_a_jetson_has_its_board_its_release_and_its_power_mode(mock_host):
    root = mock_host("orin-nx-16").root
    assert (root / "proc/device-tree/model").read_bytes() == (
        b"NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0")
    assert (root / "proc/device-tree/compatible").read_bytes().split(b"\0")[-2:] == [
        b"nvidia,tegra234", b""]
    assert (root / "etc/nv_tegra_release").read_text().startswith("# R36 (release), REVISION: 4.3,")
    assert (root / "var/lib/nvpmodel/status").read_text() == "pmode:0002 fmode:fanNull\n"
    assert not (root / "sys/bus/pci").exists()


def test_a_process_has_its_command_line_and_the_host_its_memory(mock_host):
    root = mock_host("rtx3090-x2-busy").root
    assert (root / "proc/4711/cmdline").read_bytes() == b"python3\0train.py\0--batch-size\00032\0"
    assert "MemTotal:       131817216 kB\n" in (root / "proc/meminfo").read_text()
    assert (root / "proc/cpuinfo").read_text().count("processor") == 48


def test_a_cpu_host_has_nothing_of_nvidia(mock_host):
    root = mock_host("cpu").root
    found = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    assert found == ["dev/kmsg", "etc/os-release", "proc/cpuinfo", "proc/meminfo", "proc/uptime"]
    assert "NVRM" not in (root / "dev/kmsg").read_text()


def test_files_follow_what_changes_and_a_test_may_add_or_take_away(mock_host):
    host = mock_host("l40s-x4", files={"/etc/mine": "x", "/dev/kmsg": None})
    assert (host.root / "etc/mine").read_text() == "x"
    assert not (host.root / "dev/kmsg").exists()
    host.set(devices=[{"bus_id": "00000000:38:00.0"}], files={"/dev/kmsg": "4,0,0,-;hello\n"})
    assert (host.root / "etc/mine").read_text() == "x"
    assert (host.root / "dev/kmsg").read_text() == "4,0,0,-;hello\n"
    assert (host.root / "dev/nvidia0").exists()
    assert not (host.root / "dev/nvidia1").exists()


@pytest.mark.parametrize("cpus, words", [
    ("0", [1]), ("0-3,8", [0x10F]), ("63-64", [2**63, 1]), ("130", [0, 0, 4])])
def test_lists_of_cpus_become_words(cpus, words):
    assert mock_nvml.files.words(cpus) == words


# --- Building, and the command line ---------------------------------------------------------


def test_libraries_have_the_names_that_loaders_look_for(mock_libraries):
    for name in building.LIBRARIES:
        told = subprocess.run(["readelf", "-d", str(mock_libraries / name)], check=True,
                              capture_output=True, text=True, timeout=60).stdout
        assert "Library soname: [%s]" % name in told
        needed = [line for line in told.splitlines() if "(NEEDED)" in line]
        assert [line.rpartition("[")[2] for line in needed] == ["libc.so.6]"]


def test_libraries_give_away_what_they_should_and_nothing_else(mock_libraries):
    told = subprocess.run(
        ["nm", "--dynamic", "--defined-only", str(mock_libraries / "libnvidia-ml.so.1")],
        check=True, capture_output=True, text=True, timeout=60).stdout
    assert {line.split()[-1] for line in told.splitlines()} == building.functions()


def test_libraries_are_built_once_whoever_builds_beside(tmp_path):
    code = ("import sys; sys.path.insert(0, %r); import mock_nvml; print(mock_nvml.build(%r))"
            % (str(building.HERE.parent), str(tmp_path / "libraries")))
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
               for _ in range(3)]
    made = {one.communicate(timeout=120)[0].strip() for one in running}
    assert [one.returncode for one in running] == [0, 0, 0]
    assert [str(path) for path in (tmp_path / "libraries").iterdir()] == list(made)
    (folder,) = made
    at = (pathlib.Path(folder) / "libcuda.so.1").stat().st_mtime_ns
    assert mock_nvml.build(tmp_path / "libraries") == pathlib.Path(folder)
    assert (pathlib.Path(folder) / "libcuda.so.1").stat().st_mtime_ns == at


def test_a_shell_can_be_on_a_host_that_does_not_exist(tmp_path, repository):
    script = 'eval "$("$1" tests/rig/mock_nvml gb10 "$2")" && "$1" -c "$3"'
    ask = ("import pynvml; pynvml.nvmlInit();"
           "print(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0)))")
    folder = tmp_path / "a host"
    ran = subprocess.run(["bash", "-c", script, "bash", sys.executable, str(folder), ask],
                         cwd=repository, capture_output=True, text=True, timeout=120)
    assert (ran.stdout, ran.stderr) == ("NVIDIA GB10\n", "")
    assert (folder / "host/proc/meminfo").exists()


def test_an_unknown_host_is_refused_by_the_names_of_those_there_are(tmp_path, repository):
    ran = subprocess.run([sys.executable, "tests/rig/mock_nvml", "a100", str(tmp_path)],
                         cwd=repository, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 2
    assert "'a100-40-x8'" in ran.stderr
