# SPDX-License-Identifier: Apache-2.0
"""Shims: the pure functions of module_utils/firstlight, as filters."""

from __future__ import annotations

import os
from typing import Any, Callable, Dict

import ansible.module_utils

# The controller does not look into our module_utils for filters (it does for modules).
ansible.module_utils.__path__.append(
    os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "module_utils"))

from ansible.module_utils.firstlight import findings
from ansible.module_utils.firstlight.planning import (
    benchmark,
    canary_plan,
    command,
    container,
    container_runtime,
    devices,
    diagnosis,
    doctor,
    healing,
    health,
    images_way,
    judge,
    network,
    plan,
    prefetch,
    profile_picture,
    profiles,
    profiling,
    proof,
    requests,
    service_text,
    snapshots,
    switching,
    table,
    tuning,
    way_in,
    wheel_fleet,
    wheels,
    work,
)


def endpoint_requests(asked: Any, path_map: Any = None) -> Dict[str, Any]:
    """``inference_endpoints`` as ``{requests, findings}``."""
    good, wrong = requests.normalise(asked, path_map)
    return {"requests": good, "findings": wrong}


class FilterModule:
    """Every filter of the project; each is documented in the file of its name beside this one."""

    def filters(self) -> Dict[str, Callable[..., Any]]:
        """Name to function."""
        return {
            "benchmark_table": benchmark.benchmark_table,
            "blocking_findings": findings.blocking,
            "canaries_needed": canary_plan.canaries_needed,
            "canary_key": canary_plan.canary_key,
            "canary_plan": canary_plan.canary_plan,
            "canary_trials": switching.canary_trials,
            "container_images": container_runtime.container_images,
            "container_runtime_plan": container_runtime.container_runtime,
            "container_spec": container.container_spec,
            "containers_to_make": container.containers_to_make,
            "deployment_plan": plan.deployment_plan,
            "diagnosis_text": diagnosis.diagnosis_text,
            "doctor_reports": doctor.doctor_reports,
            "doctor_summary": doctor.doctor_summary,
            "doctor_table": doctor.doctor_table,
            "endpoint_findings": judge.against_host,
            "endpoint_keys": way_in.endpoint_keys,
            "endpoint_ports": way_in.endpoint_ports,
            "endpoint_requests": endpoint_requests,
            "endpoint_wheels": wheel_fleet.endpoint_wheels,
            "endpoints_to_switch": switching.endpoints_to_switch,
            "engine_command": command.engine_command,
            "findings_text": findings.text,
            "foreign_containers": container.foreign_containers,
            "healing": healing.healing,
            "health_with_checks": doctor.with_checks,
            "host_health": health.host_health,
            "image_findings": container_runtime.image_findings,
            "images_way": images_way.images_way,
            "matching_wheel": wheels.matching_wheel,
            "models_allowed": snapshots.models_allowed,
            "network_question": network.unasked,
            "plan_profile": profiles.plan_profile,
            "plan_table": table.plan_table,
            "prefetch_outline": prefetch.prefetch_outline,
            "prefetch_peers": prefetch.prefetch_peers,
            "prefetch_round": prefetch.prefetch_round,
            "prefetch_seeds": prefetch.prefetch_seeds,
            "prefetch_text": prefetch.prefetch_text,
            "profile_files": profile_picture.profile_files,
            "profile_plan": profiling.profile_plan,
            "profile_table": profile_picture.profile_table,
            "profile_texts": profile_picture.profile_texts,
            "repair_table": doctor.repair_table,
            "select_devices": devices.select_devices,
            "smoke_requests": proof.smoke_requests,
            "snapshot_findings": snapshots.snapshot_findings,
            "snapshot_known": snapshots.snapshot_known,
            "snapshot_models": snapshots.snapshot_models,
            "snapshot_requests": snapshots.snapshot_requests,
            "snapshots_due": snapshots.snapshots_due,
            "snapshots_text": prefetch.snapshots_text,
            "supervisor_command": service_text.supervisor_command,
            "systemd_command": service_text.systemd_command,
            "toolkit_findings": container_runtime.toolkit_findings,
            "tuning_plan": tuning.tuning_plan,
            "way_in_service": way_in.way_in_service,
            "way_in_wanted": way_in.way_in_wanted,
            "wheel_build_decisions": wheel_fleet.wheel_build_decisions,
            "wheel_decisions": wheels.wheel_decisions,
            "wheel_environments": wheel_fleet.wheel_environments,
            "wheel_findings": wheels.wheel_findings,
            "wheel_fleet_asked": wheel_fleet.wheel_fleet_asked,
            "wheel_fleet_came": wheel_fleet.wheel_fleet_came,
            "wheel_fleet_plan": wheel_fleet.wheel_fleet_plan,
            "wheel_fleet_text": wheel_fleet.wheel_fleet_text,
            "wheel_requests": wheels.wheel_requests,
            "wheel_texts": wheels.wheel_texts,
            "wheels_due": wheels.wheels_due,
            "wheels_sought": wheel_fleet.wheels_sought,
            "wheels_there": wheel_fleet.wheels_there,
            "wheels_wanted": wheels.wheels_wanted,
            "work_due": work.work_due,
            "work_seen": work.work_seen,
            "work_text": work.work_text,
        }
