# SPDX-License-Identifier: Apache-2.0
"""Time what `gpu_facts` costs on a machine with NVIDIA GPUs: `make bench-gpu`.

Our reading of NVML is set against a bare script that asks the same questions of the same bindings
and keeps nothing, turn by turn in one process each. Then every external command that the module
runs is timed, and the whole module as Ansible runs it.
"""

from __future__ import annotations

import ctypes
import pathlib
import statistics
import subprocess
import sys
import time

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "rig"), str(TESTS.parent / "library")]

import conftest  # noqa: E402, F401 - puts our module_utils on Ansible's path
import pynvml  # noqa: E402

from ansible.module_utils.firstlight import runner  # noqa: E402
from ansible.module_utils.firstlight.host import facts as host_facts  # noqa: E402
from ansible.module_utils.firstlight.host import nvml  # noqa: E402
from ansible.module_utils.firstlight.host.reading import Reader  # noqa: E402

ROUNDS = 20


def bare():
    """The same questions, plainly."""

    def ask(function, *arguments):
        try:
            return getattr(pynvml, function)(*arguments)
        except pynvml.NVMLError:
            return None

    pynvml.nvmlInit()
    for function in ("nvmlSystemGetCudaDriverVersion_v2", "nvmlSystemGetDriverVersion",
                     "nvmlSystemGetNVMLVersion"):
        ask(function)
    handles = [ask("nvmlDeviceGetHandleByIndex", index)
               for index in range(ask("nvmlDeviceGetCount"))]
    for handle in handles:
        for function in (
                "PciInfo", "UUID", "Name", "Architecture", "CudaComputeCapability",
                "UtilizationRates", "ComputeMode", "PersistenceMode", "MigMode", "EccMode",
                "RemappedRows", "RetiredPagesPendingStatus", "CurrentClocksEventReasons",
                "ComputeRunningProcesses_v3", "GraphicsRunningProcesses_v3",
                "MPSComputeRunningProcesses_v3"):
            ask("nvmlDeviceGet" + function, handle)
        ask("nvmlDeviceGetTemperature", handle, 0)
        ask("nvmlDeviceGetMemoryInfo", handle, pynvml.nvmlMemory_v2)
        for _, kind, since in nvml.ECC_COUNTERS:
            ask("nvmlDeviceGetTotalEccErrors", handle, kind, since)
        for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
            if ask("nvmlDeviceGetNvLinkState", handle, link) is None:
                break
            ask("nvmlDeviceGetNvLinkRemoteDeviceType", handle, link)
        ask("nvmlDeviceGetGpuFabricInfoV", handle, ctypes.byref(pynvml.c_nvmlGpuFabricInfo_v2_t()))
        ask("nvmlDeviceGetFieldValues", handle, [pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
    for place, one in enumerate(handles):
        for other in handles[place + 1:]:
            ask("nvmlDeviceGetP2PStatus", one, other, pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
    pynvml.nvmlShutdown()


def ours():
    """What the module does with NVML."""
    pynvml.nvmlInit()
    nvml.read(Reader(), pynvml)
    pynvml.nvmlShutdown()


def seconds(function):
    """Wall time of one call, in seconds."""
    started = time.monotonic()
    function()
    return time.monotonic() - started


def row(label, taken):
    """A line of the table, in milliseconds."""
    print("%-46s %9.1f %9.1f %9.1f" % (
        label, *(1000 * one for one in (min(taken), statistics.median(taken), max(taken)))))


def main():
    """Print the table."""
    seconds(bare), seconds(ours)  # the first opens the driver
    pairs = [(seconds(bare), seconds(ours)) for _ in range(ROUNDS)]
    print("%-46s %9s %9s %9s" % ("milliseconds", "min", "median", "max"))
    row("a bare script, NVML alone", [one for one, _ in pairs])
    row("gpu_facts, NVML alone", [one for _, one in pairs])
    print("ratio, pair by pair: median %.3f, max %.3f" % (
        statistics.median(mine / plain for plain, mine in pairs),
        max(mine / plain for plain, mine in pairs)))
    commands = []
    real = runner.run

    def timed(argv, *arguments, **options):
        started = time.monotonic()
        try:
            return real(argv, *arguments, **options)
        finally:
            commands.append((time.monotonic() - started, argv))

    for module in list(sys.modules.values()):
        if getattr(module, "run", None) is real:
            module.run = timed
    row("gpu_facts, all of it, in this process",
        [seconds(lambda: host_facts.observe("/var/lib/firstlight")) for _ in range(ROUNDS)])
    print("external commands of these %d runs: %d" % (ROUNDS, len(commands)))
    for took, argv in sorted(commands, reverse=True)[:5]:
        print("  %8.1f ms  %s" % (1000 * took, " ".join(argv)))
    row("ansible localhost -m gpu_facts", [seconds(lambda: subprocess.run(
        [sys.executable, "-m", "ansible", "adhoc", "localhost", "-m", "gpu_facts"], check=True,
        stdout=subprocess.DEVNULL)) for _ in range(5)])


if __name__ == "__main__":
    main()
