# SPDX-License-Identifier: Apache-2.0
"""What NVML says, through the real bindings (``pynvml`` of the package nvidia-ml-py)."""

from __future__ import annotations

import ctypes
from typing import Any, Dict, List, Optional, Set, Tuple

from . import devices as common
from .devices import Device
from .reading import Reader

SOURCE = "nvml"
NOT_SUPPORTED, NOT_FOUND, FUNCTION_NOT_FOUND = 3, 6, 13
HAS_NONE = (NOT_SUPPORTED, FUNCTION_NOT_FOUND)
# A process that runs in no GPU instance has this in its place.
NO_INSTANCE = 0xFFFFFFFF

ARCHITECTURES = {2: "kepler", 3: "maxwell", 4: "pascal", 5: "volta", 6: "turing", 7: "ampere",
                 8: "ada", 9: "hopper", 10: "blackwell", 13: "rubin"}
COMPUTE_MODES = {0: "default", 1: "exclusive_thread", 2: "prohibited", 3: "exclusive_process"}
RECOVERY_ACTIONS = {0: "none", 1: "gpu_reset", 2: "node_reboot", 3: "drain_p2p",
                    4: "drain_and_reset", 5: "recover_imex_domain", 6: "bus_reset",
                    7: "system_reboot"}
THROTTLE_REASONS = (
    (0x001, "gpu_idle"), (0x002, "applications_clocks_setting"), (0x004, "sw_power_cap"),
    (0x008, "hw_slowdown"), (0x010, "sync_boost"), (0x020, "sw_thermal_slowdown"),
    (0x040, "hw_thermal_slowdown"), (0x080, "hw_power_brake_slowdown"),
    (0x100, "display_clock_setting"),
)
ECC_COUNTERS = (("corrected_volatile", 0, 0), ("uncorrected_volatile", 1, 0),
                ("corrected_aggregate", 0, 1), ("uncorrected_aggregate", 1, 1))
TO_SWITCH = 2
FABRIC_STATUS_SUCCESS = 0


class Asker:
    """Asks NVML, and keeps the reason where it does not answer.

    :param nvml: the module ``pynvml``, initialised.
    """

    def __init__(self, reader: Reader, nvml: Any) -> None:
        self.reader = reader
        self.nvml = nvml

    def __call__(self, label: str, function: str, *arguments: Any) -> Any:
        """The answer; ``None`` where NVML gives a return code instead, kept under the label."""
        value, code = self.code(function, *arguments)
        if code:
            self.refused(label, code)
        return value

    def code(self, function: str, *arguments: Any) -> Tuple[Any, int]:
        """The answer and NVML's return code; one of them is nothing."""
        asked = getattr(self.nvml, function, None)
        if asked is None:  # bindings older than the question
            return None, FUNCTION_NOT_FOUND
        try:
            value = asked(*arguments)
        except self.nvml.NVMLError as problem:
            return None, problem.value
        except ValueError:  # a text that the bindings cannot decode
            return None, self.nvml.NVML_ERROR_UNKNOWN
        return (value.decode("utf-8", "replace") if isinstance(value, bytes) else value), 0

    def refused(self, label: str, code: int) -> None:
        """Keep a return code as the reason."""
        self.reader.missing(label, "nvml-%d" % code,
                            "NVML error %d: %s" % (code, self.nvml.NVMLError(code)))

    def named(self, label: str, names: Dict[int, str], function: str,
              *arguments: Any) -> Optional[str]:
        """A number as its name; an unknown one is null and says which it was."""
        value = self(label, function, *arguments)
        if value is None:
            return None
        if value not in names:
            self.reader.missing(label, "unknown", "%s gave %r" % (function, value))
        return names.get(value)


def read(reader: Reader, nvml: Any) -> Tuple[Dict[str, Any], List[Device]]:
    """Driver and devices.

    :param nvml: the module ``pynvml``, initialised.
    """
    reader.sources["driver"] = reader.sources["devices"] = SOURCE
    ask = Asker(reader, nvml)
    cuda = ask("driver.cuda", "nvmlSystemGetCudaDriverVersion_v2")
    driver = {
        "version": ask("driver.version", "nvmlSystemGetDriverVersion"),
        "cuda": None if cuda is None else "%d.%d" % (cuda // 1000, cuda % 1000 // 10),
        "nvml": ask("driver.nvml", "nvmlSystemGetNVMLVersion"),
    }
    found: List[Device] = []
    handles: List[Any] = []
    for index in range(ask("devices", "nvmlDeviceGetCount") or 0):
        handles.append(ask("devices[%d]" % index, "nvmlDeviceGetHandleByIndex", index))
        found.append(_device(ask, index, handles[-1]))
    _nvlink_peers(ask, found, handles)
    return driver, found


def _device(ask: Asker, index: int, handle: Any) -> Device:
    device: Device = dict.fromkeys(common.KEYS)
    device["index"] = index
    if handle is None:
        return device  # the reason is at devices[index]
    label = "devices[%d]." % index
    pci = ask(label + "bus_id", "nvmlDeviceGetPciInfo", handle)
    device.update(
        uuid=ask(label + "uuid", "nvmlDeviceGetUUID", handle),
        name=ask(label + "name", "nvmlDeviceGetName", handle),
        bus_id=None if pci is None else ask.reader.known(
            label + "bus_id", common.bus_id(_text(pci.busId)), "NVML's answer"),
        architecture=ask.named(label + "architecture", ARCHITECTURES,
                               "nvmlDeviceGetArchitecture", handle),
        capability=_capability(ask, label, handle),
        utilisation_percent=_utilisation(ask, label, handle),
        compute_mode=ask.named(label + "compute_mode", COMPUTE_MODES,
                               "nvmlDeviceGetComputeMode", handle),
        persistence=_flag(ask(label + "persistence", "nvmlDeviceGetPersistenceMode", handle)),
        temperature_c=ask(label + "temperature_c", "nvmlDeviceGetTemperature", handle, 0),
        mig=_mig(ask, label, handle),
        ecc=_ecc(ask, label, handle),
        remapped_rows=_remapped_rows(ask, label, handle),
        retired_pages_pending=_flag(ask(label + "retired_pages_pending",
                                        "nvmlDeviceGetRetiredPagesPendingStatus", handle)),
        throttle_reasons=_throttle_reasons(ask, label, handle),
        nvlink=_nvlink(ask, label, handle),
        fabric=_fabric(ask, label, handle),
    )
    device.update(_memory(ask, label, handle))
    device["unified_memory"] = (
        ask.reader.unread.get(label + "memory_total_bytes", {}).get("code")
        == "nvml-%d" % NOT_SUPPORTED)
    device["holders"] = _holders(ask, label, handle)
    device["recovery_action"] = _recovery_action(ask, label, handle)
    return device


def _text(value: Any) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


def _flag(value: Optional[int]) -> Optional[bool]:
    return None if value is None else bool(value)


def _capability(ask: Asker, label: str, handle: Any) -> Optional[str]:
    value = ask(label + "capability", "nvmlDeviceGetCudaComputeCapability", handle)
    return None if value is None else "%d.%d" % tuple(value)


def _utilisation(ask: Asker, label: str, handle: Any) -> Optional[int]:
    value = ask(label + "utilisation_percent", "nvmlDeviceGetUtilizationRates", handle)
    return None if value is None else int(value.gpu)


def _memory(ask: Asker, label: str, handle: Any) -> Dict[str, Optional[int]]:
    """Total, free and what the driver keeps for itself, in bytes.

    The second version of the question tells the driver's share apart; drivers before R510 know
    the first only.
    """
    keys = ("memory_total_bytes", "memory_free_bytes", "memory_reserved_bytes")
    second = getattr(ask.nvml, "nvmlMemory_v2", None)
    info, code = (ask.code("nvmlDeviceGetMemoryInfo", handle, second) if second
                  else (None, FUNCTION_NOT_FOUND))
    if info is not None:
        return dict(zip(keys, (info.total, info.free, info.reserved)))
    ask.refused(label + "memory_reserved_bytes", code)
    info, code = ask.code("nvmlDeviceGetMemoryInfo", handle)
    if info is not None:
        return dict(zip(keys, (info.total, info.free, None)))
    for key in keys:
        ask.refused(label + key, code)
    return dict.fromkeys(keys)


def _mig(ask: Asker, label: str, handle: Any) -> Optional[Dict[str, Any]]:
    modes = ask(label + "mig", "nvmlDeviceGetMigMode", handle)
    if modes is None:
        return None
    slices: List[Dict[str, Any]] = []
    most = ask(label + "mig.slices", "nvmlDeviceGetMaxMigDeviceCount", handle) if modes[0] else 0
    for place in range(most or 0):
        here = "%smig.slices[%d]" % (label, len(slices))
        part, code = ask.code("nvmlDeviceGetMigDeviceHandleByIndex", handle, place)
        if code and code != NOT_FOUND:
            ask.refused(here, code)
        if part is not None:
            memory = ask(here + ".memory_total_bytes", "nvmlDeviceGetMemoryInfo", part)
            if memory is None:
                ask.reader.unread[here + ".memory_free_bytes"] = dict(
                    ask.reader.unread[here + ".memory_total_bytes"])
            slices.append({
                "uuid": ask(here + ".uuid", "nvmlDeviceGetUUID", part),
                "name": ask(here + ".name", "nvmlDeviceGetName", part),
                "gpu_instance": ask(here + ".gpu_instance", "nvmlDeviceGetGpuInstanceId", part),
                "compute_instance": ask(here + ".compute_instance",
                                        "nvmlDeviceGetComputeInstanceId", part),
                "memory_total_bytes": None if memory is None else memory.total,
                "memory_free_bytes": None if memory is None else memory.free,
            })
    return {"enabled": bool(modes[0]), "pending": bool(modes[1]),
            "slices": None if most is None else slices}


def _ecc(ask: Asker, label: str, handle: Any) -> Optional[Dict[str, Any]]:
    modes = ask(label + "ecc", "nvmlDeviceGetEccMode", handle)
    if modes is None:
        return None
    counts = {key: ask(label + "ecc." + key, "nvmlDeviceGetTotalEccErrors", handle, kind, since)
              for key, kind, since in ECC_COUNTERS}
    return dict(counts, enabled=bool(modes[0]), pending=bool(modes[1]))


def _remapped_rows(ask: Asker, label: str, handle: Any) -> Optional[Dict[str, Any]]:
    rows = ask(label + "remapped_rows", "nvmlDeviceGetRemappedRows", handle)
    if rows is None:
        return None
    return {"correctable": rows[0], "uncorrectable": rows[1], "pending": bool(rows[2]),
            "failed": bool(rows[3])}


def _throttle_reasons(ask: Asker, label: str, handle: Any) -> Optional[List[str]]:
    key = label + "throttle_reasons"
    bits, code = ask.code("nvmlDeviceGetCurrentClocksEventReasons", handle)
    if code == FUNCTION_NOT_FOUND:
        # Drivers before R535 know it by its old name.
        bits, code = ask.code("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
    if code:
        ask.refused(key, code)
        return None
    return [name for bit, name in THROTTLE_REASONS if bits & bit]


def _holders(ask: Asker, label: str, handle: Any) -> Optional[List[Dict[str, Any]]]:
    """Every process that holds memory; one with two kinds of context is listed once."""
    found: Dict[Tuple[int, int], Tuple[Any, str]] = {}
    questions: Tuple[Tuple[str, str], ...] = (
        ("compute", "nvmlDeviceGetComputeRunningProcesses_v3"),
        ("graphics", "nvmlDeviceGetGraphicsRunningProcesses_v3"),
        ("mps", "nvmlDeviceGetMPSComputeRunningProcesses_v3"))
    for kind, question in questions:
        answer, code = ask.code(question, handle)
        if code == FUNCTION_NOT_FOUND:
            # Drivers before R510 have the version without MIG instances right.
            answer, code = ask.code(question.replace("_v3", "_v2"), handle)
        if code and (kind == "compute" or code not in HAS_NONE):
            # Some of the holders would look like all of them.
            ask.refused(label + "holders", code)
            return None
        for process in answer or []:
            found.setdefault((process.pid, process.gpuInstanceId), (process, kind))
    return [
        common.holder(ask.reader, "%sholders[%d]" % (label, number), process.pid,
                      process.usedGpuMemory, kind,
                      None if process.gpuInstanceId == NO_INSTANCE else process.gpuInstanceId)
        for number, (process, kind) in enumerate(found.values())
    ]


def _recovery_action(ask: Asker, label: str, handle: Any) -> Optional[str]:
    """What the driver itself wants done about the device."""
    key = label + "recovery_action"
    field = getattr(ask.nvml, "NVML_FI_DEV_GET_GPU_RECOVERY_ACTION", None)
    if field is None:
        ask.refused(key, FUNCTION_NOT_FOUND)
        return None
    values = ask(key, "nvmlDeviceGetFieldValues", handle, [field])
    if values is None:
        return None
    if values[0].nvmlReturn:
        ask.refused(key, values[0].nvmlReturn)
        return None
    number = values[0].value.uiVal
    if number not in RECOVERY_ACTIONS:
        ask.reader.missing(key, "unknown", "the driver gave the action %d" % number)
    return RECOVERY_ACTIONS.get(number)


def _nvlink(ask: Asker, label: str, handle: Any) -> Optional[Dict[str, Any]]:
    """Links of a device: how many there are, how many work, whether they lead to switches."""
    active, links, kinds = 0, 0, set()
    for number in range(ask.nvml.NVML_NVLINK_MAX_LINKS):
        state, code = ask.code("nvmlDeviceGetNvLinkState", handle, number)
        if code == ask.nvml.NVML_ERROR_INVALID_ARGUMENT:
            break  # past the last link
        if code:
            ask.refused(label + "nvlink", code)
            return None
        links += 1
        if state:
            active += 1
            kinds.add(ask.code("nvmlDeviceGetNvLinkRemoteDeviceType", handle, number)[0])
    to_switch = None if kinds <= {None} else TO_SWITCH in kinds
    if to_switch is None:
        ask.reader.missing(label + "nvlink.to_switch", "unknown",
                           "no active link tells what is at its other end")
    return {"links": links, "active": active, "to_switch": to_switch}


def _nvlink_peers(ask: Asker, found: List[Device], handles: List[Any]) -> None:
    """Which devices reach each other over NVLink: NVML knows, whatever is between them."""
    by_nvlink = ask.nvml.NVML_P2P_CAPS_INDEX_NVLINK
    peers: List[Optional[Set[int]]] = [None if one["nvlink"] is None else set() for one in found]
    for one, own in enumerate(peers):
        for other in range(one + 1, len(found)):
            theirs = peers[other]
            if own is None or theirs is None:
                continue
            status, code = ask.code("nvmlDeviceGetP2PStatus", handles[one], handles[other],
                                    by_nvlink)
            if code:
                for place in (one, other):
                    for key in ("peers", "clique"):
                        ask.refused("devices[%d].nvlink.%s" % (place, key), code)
                    peers[place] = None
                own = None
            elif status == ask.nvml.NVML_P2P_STATUS_OK:
                own.add(other)
                theirs.add(one)
    common.link(ask.reader, found, peers)


def _fabric(ask: Asker, label: str, handle: Any) -> Optional[Dict[str, Any]]:
    """How far the device is registered in the fabric of an NVSwitch machine."""
    key = label + "fabric"
    make = getattr(ask.nvml, "c_nvmlGpuFabricInfo_v2_t", None)
    if make is None:
        ask.refused(key, FUNCTION_NOT_FOUND)
        return None
    info = make()
    if ask(key, "nvmlDeviceGetGpuFabricInfoV", handle, ctypes.byref(info)) is None:
        return None
    if info.state >= len(common.FABRIC_STATES):
        ask.reader.missing(key, "unknown", "the driver gave the state %d" % info.state)
        return None
    if info.state == 0:  # not_supported
        # Its other fields are then 0 of no meaning; nvidia-smi says N/A.
        ask.reader.missing(key, "nvml-%d" % NOT_SUPPORTED, "the driver says: in no fabric")
        return None
    digits = bytes(bytearray(info.clusterUuid)).hex()
    return {
        "state": common.FABRIC_STATES[info.state],
        "status": "success" if info.status == FABRIC_STATUS_SUCCESS
        else "NVML error %d: %s" % (info.status, ask.nvml.NVMLError(info.status)),
        "clique_id": info.cliqueId,
        "cluster_uuid": "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20],
                                  digits[20:])),
    }
