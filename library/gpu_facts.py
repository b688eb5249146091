#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: what kind of host this is, and what it has to serve a model with."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: gpu_facts
short_description: Gather what a host has to serve a model with
description:
  - Says of which class the host is, what devices it has and who uses them, and what else counts
    for serving a model - memory, disk, container engine, system.
  - What cannot be read is C(null) and has its reason under C(unread); it is never 0. Where each
    figure comes from is under C(sources).
  - Devices are read by NVML through C(pynvml) of the toolbelt. Where that is missing, by
    C(nvidia-smi); where that is missing too, by C(nvidia-smi) in a container of an image that is
    on the host already (none is ever pulled); then from C(/proc) and C(/sys), which know little.
    Where NVML is there and refuses, its reason is kept and C(/proc) and C(/sys) are read.
options:
  root:
    description: C(firstlight_root), where the toolbelt is. Empty means the default of this user.
    type: path
    default: ""
  jetson_releases:
    description:
      - The rows of C(catalog/jetson_releases.yml). Without them the JetPack of a Jetson is not
        known.
    type: list
    elements: dict
    default: []
  jetson_chips:
    description: The rows of C(catalog/jetson_chips.yml).
    type: list
    elements: dict
    default: []
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

- name: Gather it, the JetPack of a Jetson included
  gpu_facts:
    jetson_releases: "{{ lookup('file', 'catalog/jetson_releases.yml') | from_yaml }}"
    jetson_chips: "{{ lookup('file', 'catalog/jetson_chips.yml') | from_yaml }}"
"""

RETURN = r"""
ansible_facts:
  description: The facts, as C(gpu_host).
  returned: always
  type: dict
  contains:
    gpu_host:
      description: One host. Every key is always there; what could not be read is null.
      returned: always
      type: dict
      contains:
        class:
          description:
            - C(nvidia) has cards with memory of their own, C(unified) has an NVIDIA GPU that uses
              the host's (as GB10), C(jetson) is a Tegra, C(cpu) has none of them.
          type: str
          sample: nvidia
        driver:
          description: The NVIDIA driver; null where there is no NVIDIA device.
          type: dict
          contains:
            version:
              description: Version of the driver, as NVML tells it.
              type: str
              sample: 580.159.04
            cuda:
              description: The newest CUDA that the driver supports. It is not a toolkit's version.
              type: str
              sample: "13.0"
            nvml:
              description: Version of the NVML library.
              type: str
              sample: 13.580.159.04
            kernel_module:
              description: Version of the kernel module that is loaded.
              type: str
              sample: 580.159.04
        devices:
          description: NVIDIA devices in NVML's order, which is that of the PCI bus.
          type: list
          elements: dict
          contains:
            index:
              description: Place in NVML's order. It moves; pin devices by UUID.
              type: int
            uuid:
              description: Identity of the device.
              type: str
              sample: GPU-a72f33aa-11ab-983b-b95c-9ef4bf2b7112
            name:
              description: Name of the product.
              type: str
              sample: NVIDIA H200
            bus_id:
              description: PCI address, as sysfs writes it.
              type: str
              sample: "0000:00:06.0"
            architecture:
              description: Name of the GPU architecture.
              type: str
              sample: hopper
            capability:
              description: CUDA compute capability.
              type: str
              sample: "9.0"
            unified_memory:
              description: Whether the GPU has no memory of its own and the figures are the host's.
              type: bool
            memory_total_bytes:
              description: Memory of the device as the driver reports it, in bytes.
              type: int
              sample: 150754820096
            memory_free_bytes:
              description: What of it is free, in bytes.
              type: int
              sample: 150109880320
            memory_reserved_bytes:
              description: What of it the driver keeps for itself, in bytes.
              type: int
              sample: 644939776
            holders:
              description: The processes that hold memory of the device.
              type: list
              elements: dict
              contains:
                pid:
                  description: Process id on the host.
                  type: int
                command:
                  description: Command line without what may be a secret.
                  type: str
                user:
                  description: The user that it runs as.
                  type: str
                bytes:
                  description: Memory that it holds, in bytes.
                  type: int
                kind:
                  description: C(compute), C(graphics) or C(mps).
                  type: str
                gpu_instance:
                  description: The GPU instance (MIG) that it runs in; null where it runs in none.
                  type: int
            utilisation_percent:
              description: Share of the last second in which a kernel ran.
              type: int
            compute_mode:
              description: C(default), C(exclusive_process) or C(prohibited).
              type: str
            persistence:
              description: Whether the driver keeps the device initialised.
              type: bool
            temperature_c:
              description: Temperature of the GPU in degrees Celsius.
              type: int
            mig:
              description: Multi-instance GPU.
              type: dict
              contains:
                enabled:
                  description: Whether the device is cut into slices now; the whole is then none.
                  type: bool
                pending:
                  description: Whether it will be after the next reset.
                  type: bool
                slices:
                  description: The slices.
                  type: list
                  elements: dict
                  contains:
                    uuid:
                      description: Identity of the slice.
                      type: str
                      sample: MIG-9d2a1c3e-0000-5c1f-8f5e-5b7e7c8f0a01
                    name:
                      description: Name with the profile.
                      type: str
                      sample: NVIDIA A100-SXM4-40GB MIG 3g.20gb
                    gpu_instance:
                      description: Number of the GPU instance.
                      type: int
                    compute_instance:
                      description: Number of the compute instance in it.
                      type: int
                    memory_total_bytes:
                      description: Memory of the slice in bytes.
                      type: int
                    memory_free_bytes:
                      description: What of it is free, in bytes.
                      type: int
            ecc:
              description: Error correcting memory. Volatile counts are since the driver was loaded.
              type: dict
              contains:
                enabled:
                  description: Whether it is on.
                  type: bool
                pending:
                  description: Whether it will be after the next reset.
                  type: bool
                corrected_volatile:
                  description: Errors that were corrected.
                  type: int
                uncorrected_volatile:
                  description: Errors that were not.
                  type: int
                corrected_aggregate:
                  description: Errors that were corrected, over the device's life.
                  type: int
                uncorrected_aggregate:
                  description: Errors that were not, over the device's life.
                  type: int
            remapped_rows:
              description: Rows of memory that were replaced by spare ones.
              type: dict
              contains:
                correctable:
                  description: Rows replaced for correctable errors.
                  type: int
                uncorrectable:
                  description: Rows replaced for uncorrectable errors.
                  type: int
                pending:
                  description: Whether a replacement waits for a reset of the device.
                  type: bool
                failed:
                  description: Whether a replacement failed.
                  type: bool
            retired_pages_pending:
              description: The same on cards before Ampere - pages that are retired at a reset.
              type: bool
            throttle_reasons:
              description:
                - Why the clocks are not higher - C(gpu_idle), C(sw_power_cap), C(hw_slowdown),
                  C(hw_thermal_slowdown) and others.
              type: list
              elements: str
            recovery_action:
              description: What the driver wants done - C(none), C(gpu_reset), C(node_reboot) ...
              type: str
            numa_node:
              description: NUMA node of the host that the device is at.
              type: int
            cpu_list:
              description: Processors near the device.
              type: str
              sample: 0-15
            nvlink:
              description: NVLink.
              type: dict
              contains:
                links:
                  description: How many links the device has.
                  type: int
                active:
                  description: How many of them work.
                  type: int
                to_switch:
                  description: Whether they lead to NVSwitches.
                  type: bool
                peers:
                  description: UUIDs of the devices that it reaches over NVLink.
                  type: list
                  elements: str
                clique:
                  description: Number shared by devices that are all peers of each other.
                  type: int
            fabric:
              description: Registration in the fabric of an NVSwitch machine (Hopper and newer).
              type: dict
              contains:
                state:
                  description: C(not_supported), C(not_started), C(in_progress) or C(completed).
                  type: str
                status:
                  description: C(success), or the error with which it ended.
                  type: str
                clique_id:
                  description: Clique in the fabric.
                  type: int
                cluster_uuid:
                  description: Identity of the fabric's cluster.
                  type: str
            xids:
              description: Xid events of the device in the kernel's log, since boot, newest last.
              type: list
              elements: dict
              contains:
                code:
                  description: Number of the event.
                  type: int
                  sample: 79
                count:
                  description: How often it is in the log.
                  type: int
                age_s:
                  description: Seconds since it came last.
                  type: int
                text:
                  description: What the driver says of it.
                  type: str
        orphan_xids:
          description: Xid events of devices that do not answer any more.
          type: list
          elements: dict
          contains:
            bus_id:
              description: PCI address without the function.
              type: str
            code:
              description: Number of the event.
              type: int
            count:
              description: How often it is in the log.
              type: int
            age_s:
              description: Seconds since it came last.
              type: int
            text:
              description: What the driver says of it.
              type: str
        nvswitches:
          description: NVSwitches on the PCI bus. A virtual machine may not see those that it uses.
          type: int
        fabric_manager:
          description: The fabric manager's service; null where there is no NVSwitch.
          type: dict
          contains:
            state:
              description: C(active), C(inactive), C(failed), C(activating) or C(not-found).
              type: str
            enabled:
              description: Whether it starts at boot.
              type: bool
            version:
              description: Its version, which must be the driver's.
              type: str
        persistence_daemon:
          description: The persistence daemon's service; null where there is no NVIDIA device.
          type: dict
          contains:
            state:
              description: C(active), C(inactive), C(failed), C(activating) or C(not-found).
              type: str
            enabled:
              description: Whether it starts at boot.
              type: bool
        containers:
          description: The container engine.
          type: dict
          contains:
            engine:
              description: C(docker), C(podman), or null where neither is there.
              type: str
            version:
              description: Its version.
              type: str
            api_version:
              description: Version of its API.
              type: str
            cgroup_driver:
              description: C(systemd) or C(cgroupfs).
              type: str
            cgroup_version:
              description: C(1) or C(2).
              type: str
            default_runtime:
              description: The runtime of containers that name none.
              type: str
            nvidia_runtime:
              description: Whether the runtime C(nvidia) is registered.
              type: bool
            cdi_devices:
              description: Names that the Container Device Interface knows.
              type: list
              elements: str
              sample: [nvidia.com/gpu=0, nvidia.com/gpu=all]
        cpu:
          description: Processors.
          type: dict
          contains:
            architecture:
              description: Architecture, as uname gives it.
              type: str
            cores:
              description: Processors that may be used.
              type: int
            model:
              description: Name of the model.
              type: str
        memory:
          description: RAM and swap.
          type: dict
          contains:
            total_bytes:
              description: All RAM in bytes.
              type: int
            available_bytes:
              description: What a new program may get, page cache that can be dropped included.
              type: int
            free_bytes:
              description: What nothing uses, not even the page cache.
              type: int
            swap_bytes:
              description: All swap in bytes.
              type: int
            swap_free_bytes:
              description: Free swap in bytes.
              type: int
            limit_bytes:
              description: Memory that the control group allows; null where none limits it.
              type: int
        disk:
          description: Where models go.
          type: dict
          contains:
            path:
              description: The folder.
              type: str
            total_bytes:
              description: Size of its file system in bytes.
              type: int
            free_bytes:
              description: What an ordinary user may fill of it, in bytes.
              type: int
        jetson:
          description: A Jetson; null on any other host.
          type: dict
          contains:
            l4t:
              description: Release of Linux for Tegra.
              type: str
              sample: 36.4.3
            jetpack:
              description: JetPack of that release; null where the catalog does not know it.
              type: str
              sample: "6.2"
            jetpack_major:
              description: Major number of the JetPack, by the major number of the release.
              type: int
            cuda:
              description: CUDA of that JetPack.
              type: str
            board:
              description: Name of the board, from the device tree.
              type: str
            soc:
              description: The SoC, from the device tree.
              type: str
              sample: tegra234
            chip:
              description: Name of the SoC.
              type: str
              sample: Orin
            capability:
              description: CUDA compute capability of the SoC.
              type: str
            power_mode:
              description: Name of the power mode that is set.
              type: str
            power_mode_id:
              description: Number of the power mode that is set.
              type: int
            power_modes:
              description: Names and numbers of all; they differ by board.
              type: dict
            runtime:
              description: The container runtime that is needed to reach the GPU.
              type: str
        other_cards:
          description: Cards of AMD and Intel; seen, and not supported.
          type: list
          elements: dict
          contains:
            vendor:
              description: C(AMD) or C(Intel).
              type: str
            bus_id:
              description: PCI address.
              type: str
            device:
              description: PCI device id.
              type: str
        system:
          description: The system.
          type: dict
          contains:
            kernel:
              description: Release of the kernel.
              type: str
            distribution:
              description: C(ID) of os-release.
              type: str
            version:
              description: C(VERSION_ID) of os-release.
              type: str
            like:
              description: C(ID_LIKE) of os-release.
              type: list
              elements: str
            libc:
              description: The C library and its version.
              type: str
            systemd:
              description: Whether systemd is the service manager.
              type: bool
        sources:
          description:
            - Where figures come from, by the way to them. Of the ways that lead to a figure, the
              longest counts - C(devices) is for all that C(devices[0].numa_node) is not for.
          type: dict
          sample: {devices: nvml, "devices[0].cpu_list": /sys/bus/pci/devices/x/local_cpulist}
        unread:
          description:
            - Why figures are null, by the way to them or to what they are in; and why a whole
              place told nothing - a file, C(nvml), C(nvidia-smi). C(code) is
              C(nvml-N) with NVML's return code, the name of an errno in lower case, or C(absent),
              C(unknown), C(unasked), C(timeout). C(nvml-3) and C(nvml-13) mean that the hardware
              or the driver has no such thing; all others, that it could not be read.
          type: dict
          sample: {"devices[0].ecc": {code: nvml-3, reason: "NVML error 3: Not Supported"}}
timing:
  description: What the gathering took, in seconds.
  returned: always
  type: dict
  contains:
    nvml_s:
      description: From NVML's start to its end; null where it was not asked.
      type: float
    total_s:
      description: All of it.
      type: float
"""

import time

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.firstlight import paths
from ansible.module_utils.firstlight.host import facts

SYSTEM_ROOT = "/"


def main():
    """Gather; nothing is ever changed."""
    module = AnsibleModule(
        argument_spec={"root": {"type": "path", "default": ""}, **facts.SPEC},
        supports_check_mode=True,
    )
    started = time.monotonic()
    catalog = {key: module.params[key] for key in facts.SPEC}
    found, took = facts.observe(paths.root(module.params["root"]), SYSTEM_ROOT, catalog)
    module.exit_json(
        changed=False,
        ansible_facts={"gpu_host": found},
        timing={"nvml_s": took, "total_s": round(time.monotonic() - started, 4)},
    )


if __name__ == "__main__":
    main()
