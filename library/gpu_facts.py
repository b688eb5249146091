#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: what kind of host this is, and what it has to serve a model with."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: gpu_facts
short_description: Gather what a host has to serve a model with
description:
  - Says of which class the host is, what devices it has, and its memory, cores and system.
  - What cannot be read is C(null) and has its reason under C(unread); it is never 0.
  - Devices are read by NVML through C(pynvml) of the toolbelt; without it from
    C(/proc/driver/nvidia), which knows UUID and name only.
options:
  root:
    description: C(firstlight_root), where the toolbelt is. Empty means the default of this user.
    type: path
    default: ""
attributes:
  check_mode:
    description: Reads only, so it does in check mode what it always does.
    support: full
  diff_mode:
    description: Changes nothing, so there is no difference to show.
    support: none
  facts:
    description: Returns C(ansible_facts.gpu_host).
    support: full
author:
  - Firstlight contributors
"""

EXAMPLES = r"""
- name: Gather what the host has
  gpu_facts:
"""

RETURN = r"""
ansible_facts:
  description: The facts, as C(gpu_host).
  returned: always
  type: dict
  contains:
    gpu_host:
      description: One host.
      returned: always
      type: dict
      sample:
        class: cpu
        devices: []
        driver: null
        cpu: {architecture: x86_64, cores: 2, model: Intel(R) Xeon(R)}
        memory: {total_bytes: 25246461952, available_bytes: 24400000000, swap_bytes: 0}
        system: {kernel: 6.1.0, distribution: debian, version: "12", like: [], libc: glibc 2.36}
        sources: {devices: /proc, memory: /proc/meminfo}
        unread: {}
"""

import glob
import os
import platform
import re

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.firstlight import paths, toolbelt


class Reader:
    """Collects facts, their sources, and the reasons for what could not be read."""

    def __init__(self, system_root="/"):
        self._root = system_root
        self.sources = {}
        self.unread = {}

    def path(self, name):
        """Where a file of the host is, under the root that is looked at."""
        return os.path.join(self._root, name.lstrip("/"))

    def text(self, name):
        """A small file's text, or None with the reason kept."""
        try:
            with open(self.path(name), encoding="utf-8", errors="replace") as file:
                return file.read()
        except OSError as problem:
            self.unread[name] = problem.strerror
            return None

    def known(self, label, value, where):
        """The value as it is; of one that was not found, where it was looked for is kept."""
        if value is None:
            self.unread[label] = "not in %s" % where
        return value


def observe(root, system_root="/"):
    """Everything this module knows of the host, as one dict."""
    reader = Reader(system_root)
    host_class = _class(reader)
    driver, devices = (None, [])
    if host_class == "nvidia":
        driver, devices = _nvidia(reader, root)
    elif host_class == "jetson":
        reader.unread["devices"] = "this release does not read the GPU of a Jetson"
    return {
        "class": host_class,
        "driver": driver,
        "devices": devices,
        "cpu": _cpu(reader),
        "memory": _memory(reader),
        "system": _system(reader),
        "sources": reader.sources,
        "unread": reader.unread,
    }


def _class(reader):
    if os.path.exists(reader.path("/etc/nv_tegra_release")):
        return "jetson"
    for sign in ("/proc/driver/nvidia/version", "/dev/nvidiactl"):
        if os.path.exists(reader.path(sign)):
            reader.sources["class"] = sign
            return "nvidia"
    for name in glob.glob(reader.path("/sys/bus/pci/devices/*")):
        # A display controller of NVIDIA's: there is a GPU, and no driver is loaded for it.
        if (_first_word(name, "vendor"), _first_word(name, "class")[:4]) == ("0x10de", "0x03"):
            reader.sources["class"] = name
            return "nvidia"
    return "cpu"


def _first_word(folder, name):
    try:
        with open(os.path.join(folder, name), encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _nvidia(reader, root):
    toolbelt.reach(root)
    try:
        import pynvml
    except ImportError as problem:
        reader.unread["nvml"] = "pynvml cannot be imported: %s" % problem
        return _nvidia_from_proc(reader)
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as problem:
        reader.unread["nvml"] = "NVML error %s: %s" % (problem.value, problem)
        return _nvidia_from_proc(reader)
    try:
        return _nvidia_from_nvml(reader, pynvml)
    finally:
        pynvml.nvmlShutdown()


def _nvidia_from_nvml(reader, nvml):
    reader.sources["devices"] = "nvml"

    def ask(label, function, *arguments):
        try:
            value = function(*arguments)
        except nvml.NVMLError as problem:
            reader.unread[label] = "NVML error %s: %s" % (problem.value, problem)
            return None
        return value.decode() if isinstance(value, bytes) else value

    cuda = ask("cuda", nvml.nvmlSystemGetCudaDriverVersion_v2)
    driver = {
        "version": ask("driver", nvml.nvmlSystemGetDriverVersion),
        "cuda": None if cuda is None else "%d.%d" % (cuda // 1000, cuda % 1000 // 10),
    }
    devices = []
    for index in range(ask("devices", nvml.nvmlDeviceGetCount) or 0):
        label = "devices[%d]" % index
        handle = ask(label, nvml.nvmlDeviceGetHandleByIndex, index)
        if handle is None:
            continue
        memory = ask(label + ".memory", nvml.nvmlDeviceGetMemoryInfo, handle)
        capability = ask(label + ".capability", nvml.nvmlDeviceGetCudaComputeCapability, handle)
        devices.append({
            "index": index,
            "uuid": ask(label + ".uuid", nvml.nvmlDeviceGetUUID, handle),
            "name": ask(label + ".name", nvml.nvmlDeviceGetName, handle),
            "capability": None if capability is None else "%d.%d" % tuple(capability),
            "memory_total_bytes": None if memory is None else memory.total,
            "memory_free_bytes": None if memory is None else memory.free,
        })
    return driver, devices


def _nvidia_from_proc(reader):
    """What the driver tells everyone: its version, and UUID and name of each device."""
    reader.sources["devices"] = "/proc/driver/nvidia"
    version = re.search(r"NVRM version:.*?\s(\d+\.\d+(?:\.\d+)?)\s",
                        reader.text("/proc/driver/nvidia/version") or "")
    driver = {
        "version": reader.known("driver.version", version.group(1) if version else None,
                                "/proc/driver/nvidia/version"),
        "cuda": reader.known("driver.cuda", None, "/proc/driver/nvidia (NVML tells it)"),
    }
    devices = []
    pattern = reader.path("/proc/driver/nvidia/gpus/*/information")
    for index, name in enumerate(sorted(glob.glob(pattern))):
        text = reader.text(os.path.relpath(name, reader.path("/"))) or ""
        said = {key: value.strip() for key, _, value in
                (line.partition(":") for line in text.splitlines())}
        device = {"uuid": said.get("GPU UUID"), "name": said.get("Model"), "capability": None,
                  "memory_total_bytes": None, "memory_free_bytes": None}
        devices.append(dict(
            {key: reader.known("devices[%d].%s" % (index, key), value or None, name)
             for key, value in device.items()}, index=index))
    if not devices:
        reader.unread["devices"] = "nothing matches %s" % pattern
    return driver, devices


def _cpu(reader):
    model = None
    for line in (reader.text("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            model = value.strip()
            break
    return {
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "model": reader.known("cpu.model", model, "/proc/cpuinfo"),
    }


def _memory(reader):
    reader.sources["memory"] = "/proc/meminfo"
    said = {}
    for line in (reader.text("/proc/meminfo") or "").splitlines():
        key, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            said[key] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    return {
        label: reader.known("memory." + label, said.get(key), "/proc/meminfo")
        for label, key in (("total_bytes", "MemTotal"), ("available_bytes", "MemAvailable"),
                           ("swap_bytes", "SwapTotal"))
    }


def _system(reader):
    release = {}
    for line in (reader.text("/etc/os-release") or "").splitlines():
        key, sign, value = line.partition("=")
        if sign:
            release[key] = value.strip().strip("\"'")
    return {
        "kernel": platform.release(),
        "distribution": reader.known("system.distribution", release.get("ID"), "/etc/os-release"),
        "version": reader.known("system.version", release.get("VERSION_ID"), "/etc/os-release"),
        "like": release.get("ID_LIKE", "").split(),
        "libc": reader.known("system.libc", " ".join(platform.libc_ver()).strip() or None,
                             "the Python that runs this"),
    }


def main():
    """Gather; nothing is ever changed."""
    module = AnsibleModule(
        argument_spec={"root": {"type": "path", "default": ""}}, supports_check_mode=True
    )
    facts = observe(paths.root(module.params["root"]))
    module.exit_json(changed=False, ansible_facts={"gpu_host": facts})


if __name__ == "__main__":
    main()
