# SPDX-License-Identifier: Apache-2.0
"""All that NVML says of this machine, as pynvml tells it: what a mock is held against.

On a machine with NVIDIA's driver and pynvml, to record it::

    python3 tests/rig/mock_nvml/survey.py "what the machine is" > tests/fixtures/MACHINE/nvml.json

Answers are by the call, as ``nvmlDeviceGetName()``; a refusal is the name of its exception.
"""

from __future__ import annotations

import ctypes
import json
import platform
import sys
import time

import pynvml

SYSTEM = ("nvmlSystemGetDriverVersion", "nvmlSystemGetNVMLVersion",
          "nvmlSystemGetCudaDriverVersion", "nvmlSystemGetCudaDriverVersion_v2",
          "nvmlDeviceGetCount")
PLAIN = (
    "nvmlDeviceGetUUID", "nvmlDeviceGetName", "nvmlDeviceGetSerial", "nvmlDeviceGetMinorNumber",
    "nvmlDeviceGetPciInfo", "nvmlDeviceGetArchitecture", "nvmlDeviceGetCudaComputeCapability",
    "nvmlDeviceGetBrand", "nvmlDeviceGetVirtualizationMode", "nvmlDeviceGetGspFirmwareVersion",
    "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetPerformanceState", "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetCurrentClocksThrottleReasons", "nvmlDeviceGetPersistenceMode",
    "nvmlDeviceGetComputeMode", "nvmlDeviceGetEccMode", "nvmlDeviceGetRemappedRows",
    "nvmlDeviceGetRetiredPagesPendingStatus", "nvmlDeviceGetMigMode",
    "nvmlDeviceGetMaxMigDeviceCount", "nvmlDeviceGetGpuInstanceId",
    "nvmlDeviceGetComputeInstanceId", "nvmlDeviceGetComputeRunningProcesses",
    "nvmlDeviceGetGraphicsRunningProcesses_v3", "nvmlDeviceGetMPSComputeRunningProcesses_v3",
    "nvmlDeviceGetNumaNodeId", "nvmlDeviceIsMigDeviceHandle",
)
LINK = ("nvmlDeviceGetNvLinkState", "nvmlDeviceGetNvLinkRemoteDeviceType",
        "nvmlDeviceGetNvLinkRemotePciInfo")
FIELDS = (pynvml.NVML_FI_DEV_NVLINK_LINK_COUNT, pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION)
CPU_WORDS, LINKS, P2P_INDEXES = 4, range(19), range(6)


def system():
    """What is said of the system."""
    return dict(_ask(name) for name in SYSTEM)


def device(handle, others=()):
    """What is said of a device (or slice), and of it to the others."""
    answers = dict(_ask(name, handle) for name in PLAIN)
    answers.update([
        _ask("nvmlDeviceGetMemoryInfo", handle, pynvml.nvmlMemory_v2),
        _ask("nvmlDeviceGetTemperature", handle, pynvml.NVML_TEMPERATURE_GPU),
        _ask("nvmlDeviceGetTemperatureV", handle, pynvml.NVML_TEMPERATURE_GPU),
        _ask("nvmlDeviceGetCpuAffinity", handle, CPU_WORDS),
        _ask("nvmlDeviceGetMemoryAffinity", handle, CPU_WORDS, pynvml.NVML_AFFINITY_SCOPE_NODE),
        _ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, 0),
    ])
    answers.update(_ask("nvmlDeviceGetTotalEccErrors", handle, kind, counter)
                   for kind in (0, 1) for counter in (0, 1))
    answers.update(_ask(name, handle, link) for name in LINK for link in LINKS)
    answers.update(_filled("nvmlDeviceGetGpuFabricInfo", handle, pynvml.c_nvmlGpuFabricInfo_t()))
    for info in (pynvml.c_nvmlGpuFabricInfo_v2_t(), pynvml.c_nvmlGpuFabricInfo_v3_t()):
        answers.update(_filled("nvmlDeviceGetGpuFabricInfoV", handle, info, str(info.version)))
    for field in FIELDS:
        call, values = _ask("nvmlDeviceGetFieldValues", handle, [field])
        if isinstance(values, list):
            values = {key: values[0][key] for key in ("nvmlReturn", "valueType", "value")}
        answers[call] = values
    for place, other in enumerate(others):
        for index in P2P_INDEXES:
            _, said = _ask("nvmlDeviceGetP2PStatus", handle, other, index)
            answers["nvmlDeviceGetP2PStatus(other %d, %d)" % (place, index)] = said
    return answers


def machine():
    """What is said of everything."""
    handles = [pynvml.nvmlDeviceGetHandleByIndex(place)
               for place in range(pynvml.nvmlDeviceGetCount())]
    return {"answers": system(),
            "devices": [device(handle, [other for other in handles if other is not handle])
                        for handle in handles]}


def plain(value):
    """An answer as JSON can have it."""
    if isinstance(value, ctypes.Union):
        return value.uiVal
    if isinstance(value, ctypes.Structure):
        return {name: plain(getattr(value, name)) for name, _ in value._fields_}
    if isinstance(value, pynvml.nvmlFriendlyObject):
        return plain(vars(value))
    if isinstance(value, ctypes._Pointer):
        return "a handle"
    if isinstance(value, ctypes._SimpleCData):
        return value.value
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, ctypes.Array)):
        return [plain(inner) for inner in value]
    return value.decode() if isinstance(value, bytes) else value


def _ask(name, *args):
    call = "%s(%s)" % (name, ", ".join(
        str(arg) for arg in args if not isinstance(arg, ctypes._Pointer)))
    try:
        return call, plain(getattr(pynvml, name)(*args))
    except pynvml.NVMLError as problem:
        return call, type(problem).__name__


def _filled(name, handle, info, version=""):
    """A function that fills what it is given."""
    try:
        getattr(pynvml, name)(handle, ctypes.byref(info))
    except pynvml.NVMLError as problem:
        return {"%s(%s)" % (name, version): type(problem).__name__}
    return {"%s(%s)" % (name, version): plain(info)}


if __name__ == "__main__":
    pynvml.nvmlInit()
    json.dump({"machine": sys.argv[1], "recorded": time.strftime("%Y-%m-%d, by survey.py"),
               "system": "%s, %s" % (platform.platform(), platform.machine()), **machine()},
              sys.stdout, indent=1)
    sys.stdout.write("\n")
