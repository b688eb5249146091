# SPDX-License-Identifier: Apache-2.0
"""What nvidia-smi says, on the host or in a container, where NVML cannot be asked directly."""

from __future__ import annotations

import os
import re
import shutil
import xml.etree.ElementTree as ElementTree
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Set, Tuple

from .. import processes
from ..runner import Ran, run
from . import devices as common
from . import reading
from .devices import Device
from .reading import Reader

# Where drivers put it besides the PATH: WSL, driver volumes of container hosts.
PLACES = ("/usr/bin", "/usr/local/bin", "/usr/local/nvidia/bin", "/usr/lib/wsl/lib")
# Without persistence the driver initialises every card first.
TIMEOUT_S = 60.0
QUERY = ["-q", "-x"]
CAPABILITIES = ["--query-gpu=index,compute_cap", "--format=csv,noheader"]
TOPOLOGY = ["topo", "-m"]

# What it prints in the place of a value or of everything, and NVML's code for that.
SAID = (
    ("version mismatch", 18),
    ("GPU is lost", 15),
    ("requires reset", 16),
    ("requires restart", 16),
    ("couldn't communicate with the NVIDIA driver", 9),
    ("Driver Not Loaded", 9),
    ("Insufficient Permissions", 4),
    ("Unknown Error", 999),
    ("ERR!", 999),
    ("deprecated", 3),
    ("N/A", 3),
)
COMPUTE_MODES = {"Default": "default", "Exclusive_Process": "exclusive_process",
                 "Exclusive_Thread": "exclusive_thread", "Prohibited": "prohibited"}
FLAGS = {"Enabled": True, "Disabled": False, "Yes": True, "No": False}
KINDS = {"C": "compute", "G": "graphics", "C+G": "compute", "M": "mps", "M+C": "mps"}
CLOCKS_PREFIX = re.compile(r"clocks_(?:event|throttle)_reason_")
UNCORRECTED = re.compile(r"(?:sram_uncorrectable\w*|dram_uncorrectable)$")
CORRECTED = re.compile(r"[sd]ram_correctable$")


class Tool(NamedTuple):
    """A way to run nvidia-smi: the words before its arguments, and how it is called in sources."""

    argv: List[str]
    source: str
    cleanup: Optional[List[str]] = None

    def ask(self, arguments: List[str]) -> Ran:
        """Run it; what a run past its limit left is cleaned up."""
        ran = run(self.argv + arguments, timeout_s=TIMEOUT_S)
        if ran.rc is None and self.cleanup:
            run(self.cleanup)
        return ran


def on_host() -> Optional[Tool]:
    """The host's own, where it has one."""
    found = shutil.which("nvidia-smi", path=os.pathsep.join(
        (os.environ.get("PATH", ""), *PLACES)))
    return Tool([found], "nvidia-smi") if found else None


def read(reader: Reader, tool: Tool) -> Optional[Tuple[Dict[str, Any], List[Device]]]:
    """Driver and devices; ``None`` where it does not tell, the reason is at its source's label."""
    ran = tool.ask(QUERY)
    try:
        log = ElementTree.fromstring(ran.stdout) if ran.ok else None
    except ElementTree.ParseError as problem:
        reader.missing(tool.source, reading.UNKNOWN, "no XML: %s" % problem)
        return None
    if log is None:
        code = _code_of(ran.stdout + ran.stderr)
        reader.missing(tool.source, "nvml-%d" % code if code else _why(ran), ran.complaint())
        return None
    reader.sources["driver"] = reader.sources["devices"] = tool.source
    ask = _Log(reader, log)
    driver = {"version": ask.text("driver.version", "driver_version"),
              "cuda": ask.text("driver.cuda", "cuda_version"),
              "nvml": None}
    ask.nothing("driver.nvml", "nvidia-smi tells the driver's version only")
    found = [_device(_Log(reader, gpu), index) for index, gpu in enumerate(log.findall("gpu"))]
    _capabilities(reader, found, tool)
    _topology(reader, found, tool)
    return driver, found


def _why(ran: Ran) -> str:
    return reading.TIMEOUT if ran.rc is None and "no answer" in ran.error else reading.ABSENT


def _code_of(said: str) -> Optional[int]:
    return next((code for text, code in SAID if text.lower() in said.lower()), None)


class _Log:
    """An element of the log: its texts as values, or null and why."""

    def __init__(self, reader: Reader, element: Any) -> None:
        self.reader = reader
        self.element = element

    def text(self, label: str, path: str) -> Optional[str]:
        """What stands there."""
        said = (self.element.findtext(path) or "").strip()
        code = _code_of(said) if said else None
        if code:
            self.reader.missing(label, "nvml-%d" % code, "nvidia-smi says %s" % said[:80])
        elif not said:
            self.reader.missing(label, reading.ABSENT, "nvidia-smi has no %s" % path)
        return None if code or not said else said

    def nothing(self, label: str, why: str) -> None:
        """A figure that it never tells."""
        self.reader.missing(label, reading.UNASKED, why)

    def number(self, label: str, path: str) -> Optional[int]:
        """The number that a text begins with."""
        said = self.text(label, path)
        return None if said is None else self._converted(
            label, said, re.match(r"\d+(?= |$)", said), lambda found: int(found.group()))

    def size(self, label: str, path: str) -> Optional[int]:
        """A text as ``143771 MiB``, in bytes."""
        said = self.text(label, path)
        return None if said is None else self._converted(
            label, said, re.match(r"(\d+) MiB$", said), lambda found: int(found.group(1)) * 2**20)

    def named(self, label: str, path: str, names: Dict[str, Any]) -> Any:
        """A text as what it stands for."""
        said = self.text(label, path)
        return None if said is None else self._converted(
            label, said, said if said in names else None, lambda found: names[found])

    def _converted(self, label: str, said: str, found: Any, convert: Callable[[Any], Any]) -> Any:
        if found is None:
            self.reader.missing(label, reading.UNKNOWN, "nvidia-smi says %s" % said[:80])
            return None
        return convert(found)


def _device(ask: _Log, index: int) -> Device:
    label = "devices[%d]." % index
    device: Device = dict.fromkeys(common.KEYS)
    device.update(
        index=index,
        uuid=ask.text(label + "uuid", "uuid"),
        name=ask.text(label + "name", "product_name"),
        bus_id=ask.reader.known(label + "bus_id", common.bus_id(ask.element.get("id") or ""),
                                "nvidia-smi's log"),
        architecture=(ask.text(label + "architecture", "product_architecture") or "").lower()
        or None,
        memory_total_bytes=ask.size(label + "memory_total_bytes", "fb_memory_usage/total"),
        memory_free_bytes=ask.size(label + "memory_free_bytes", "fb_memory_usage/free"),
        memory_reserved_bytes=ask.size(label + "memory_reserved_bytes",
                                       "fb_memory_usage/reserved"),
        utilisation_percent=ask.number(label + "utilisation_percent", "utilization/gpu_util"),
        compute_mode=ask.named(label + "compute_mode", "compute_mode", COMPUTE_MODES),
        persistence=ask.named(label + "persistence", "persistence_mode", FLAGS),
        temperature_c=ask.number(label + "temperature_c", "temperature/gpu_temp"),
        mig=_mig(ask, label),
        ecc=_ecc(ask, label),
        remapped_rows=_remapped_rows(ask, label),
        retired_pages_pending=ask.named(label + "retired_pages_pending",
                                        "retired_pages/pending_retirement", FLAGS),
        throttle_reasons=_throttle_reasons(ask, label),
        fabric=_fabric(ask, label),
        holders=_holders(ask, label),
    )
    device["unified_memory"] = (
        ask.reader.unread.get(label + "memory_total_bytes", {}).get("code") == "nvml-3")
    action = ask.text(label + "recovery_action", "gpu_recovery_action")
    device["recovery_action"] = action and re.sub(r"\W+", "_", action.lower())
    return device


def _mig(ask: _Log, label: str) -> Optional[Dict[str, Any]]:
    enabled = ask.named(label + "mig", "mig_mode/current_mig", FLAGS)
    if enabled is None:
        return None
    slices = []
    for number, element in enumerate(ask.element.findall("mig_devices/mig_device")):
        part, here = _Log(ask.reader, element), "%smig.slices[%d]." % (label, number)
        slices.append({
            "uuid": part.text(here + "uuid", "uuid"),
            "name": part.text(here + "name", "name"),
            "gpu_instance": part.number(here + "gpu_instance", "gpu_instance_id"),
            "compute_instance": part.number(here + "compute_instance", "compute_instance_id"),
            "memory_total_bytes": part.size(here + "memory_total_bytes", "fb_memory_usage/total"),
            "memory_free_bytes": part.size(here + "memory_free_bytes", "fb_memory_usage/free"),
        })
    return {"enabled": enabled, "slices": slices,
            "pending": ask.named(label + "mig.pending", "mig_mode/pending_mig", FLAGS)}


def _ecc(ask: _Log, label: str) -> Optional[Dict[str, Any]]:
    enabled = ask.named(label + "ecc", "ecc_mode/current_ecc", FLAGS)
    if enabled is None:
        return None
    found = {"enabled": enabled,
             "pending": ask.named(label + "ecc.pending", "ecc_mode/pending_ecc", FLAGS)}
    for since in ("volatile", "aggregate"):
        for kind, pattern in (("corrected", CORRECTED), ("uncorrected", UNCORRECTED)):
            key = "%s_%s" % (kind, since)
            names = [one.tag for one in ask.element.findall("ecc_errors/%s/*" % since)
                     if pattern.match(one.tag)]
            counts = [ask.number(label + "ecc." + key, "ecc_errors/%s/%s" % (since, name))
                      for name in names]
            known = [count for count in counts if count is not None]
            found[key] = sum(known) if counts and len(known) == len(counts) else None
            ask.reader.known(label + "ecc." + key, found[key], "ecc_errors/" + since)
    return found


def _remapped_rows(ask: _Log, label: str) -> Optional[Dict[str, Any]]:
    if ask.text(label + "remapped_rows", "remapped_rows/remapped_row_pending") is None:
        return None
    here = label + "remapped_rows."
    return {
        "correctable": ask.number(here + "correctable", "remapped_rows/remapped_row_corr"),
        "uncorrectable": ask.number(here + "uncorrectable", "remapped_rows/remapped_row_unc"),
        "pending": ask.named(here + "pending", "remapped_rows/remapped_row_pending", FLAGS),
        "failed": ask.named(here + "failed", "remapped_rows/remapped_row_failure", FLAGS),
    }


def _throttle_reasons(ask: _Log, label: str) -> Optional[List[str]]:
    told = [one for group in ("clocks_event_reasons", "clocks_throttle_reasons")
            for one in ask.element.findall(group + "/*")]
    if not told:
        ask.nothing(label + "throttle_reasons", "nvidia-smi has no clocks_event_reasons")
        return None
    return [CLOCKS_PREFIX.sub("", one.tag).replace("display_clocks", "display_clock")
            for one in told if (one.text or "").strip() == "Active"]


def _fabric(ask: _Log, label: str) -> Optional[Dict[str, Any]]:
    state = ask.text(label + "fabric", "fabric/state")
    if state is None:
        return None
    return {
        "state": re.sub(r"\W+", "_", state.lower()),
        "status": (ask.text(label + "fabric.status", "fabric/status") or "").lower() or None,
        "clique_id": ask.number(label + "fabric.clique_id", "fabric/cliqueId"),
        "cluster_uuid": ask.text(label + "fabric.cluster_uuid", "fabric/clusterUuid"),
    }


def _holders(ask: _Log, label: str) -> Optional[List[Dict[str, Any]]]:
    listed = ask.element.find("processes")
    if listed is None or _code_of((listed.text or "").strip() or "-"):
        ask.text(label + "holders", "processes")
        return None
    found = []
    for number, element in enumerate(listed.findall("process_info")):
        part, here = _Log(ask.reader, element), "%sholders[%d]" % (label, number)
        pid = part.number(here + ".pid", "pid")
        instance = (element.findtext("gpu_instance_id") or "").strip()
        found.append(common.holder(
            ask.reader, here, pid, part.size(here + ".bytes", "used_memory"),
            KINDS.get((element.findtext("type") or "").strip(), "compute"),
            int(instance) if instance.isdigit() else None))
        name = (element.findtext("process_name") or "").strip()
        if found[-1]["command"] is None and name and not _code_of(name):
            found[-1]["command"] = processes.shown(name.split())
            ask.reader.unread.pop(here + ".command", None)
    return found


def _capabilities(reader: Reader, found: List[Device], tool: Tool) -> None:
    """Compute capabilities: the log has none, a question of its own does."""
    ran = tool.ask(CAPABILITIES)
    told = dict(re.findall(r"^(\d+), (\d+\.\d+)$", ran.stdout, re.MULTILINE)) if ran.ok else {}
    for device in found:
        label = "devices[%d].capability" % device["index"]
        device["capability"] = told.get(str(device["index"]))
        if device["capability"] is None:
            reader.missing(label, reading.UNKNOWN, ran.complaint())


def _topology(reader: Reader, found: List[Device], tool: Tool) -> None:
    """NVLink peers, from the matrix; it underlines its heading with escapes."""
    ran = tool.ask(TOPOLOGY)
    text = re.sub(r"\x1b\[[0-9;]*m", "", ran.stdout) if ran.ok else ""
    rows = {int(row[0]): row[1].split("\t") for row in re.findall(
        r"^GPU(\d+)\t(.*)$", text, re.MULTILINE)}
    peers: List[Optional[Set[int]]] = []
    for device in found:
        index = device["index"]
        label = "devices[%d].nvlink" % index
        cells = [cell.strip() for cell in rows.get(index, [])][:len(found)]
        links = {other: int(cell[2:]) for other, cell in enumerate(cells)
                 if re.match(r"NV\d+$", cell)}
        peers.append(set(links) if cells else None)
        if not cells:
            reader.missing(label, reading.UNKNOWN, ran.complaint())
            continue
        device["nvlink"] = {"links": None, "active": None, "to_switch": None}
        for key in ("links", "active", "to_switch"):
            reader.missing("%s.%s" % (label, key), reading.UNASKED,
                           "nvidia-smi's matrix has the peers only")
    common.link(reader, found, peers)
