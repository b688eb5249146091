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
    command,
    devices,
    doctor,
    health,
    judge,
    plan,
    profiles,
    requests,
    service_text,
    table,
    tuning,
)


def endpoint_requests(asked: Any) -> Dict[str, Any]:
    """``inference_endpoints`` as ``{requests, findings}``."""
    good, wrong = requests.normalise(asked)
    return {"requests": good, "findings": wrong}


class FilterModule:
    """Every filter of the project; each is documented in the file of its name beside this one."""

    def filters(self) -> Dict[str, Callable[..., Any]]:
        """Name to function."""
        return {
            "blocking_findings": findings.blocking,
            "deployment_plan": plan.deployment_plan,
            "doctor_reports": doctor.doctor_reports,
            "doctor_summary": doctor.doctor_summary,
            "doctor_table": doctor.doctor_table,
            "endpoint_findings": judge.against_host,
            "endpoint_requests": endpoint_requests,
            "engine_command": command.engine_command,
            "findings_text": findings.text,
            "health_with_checks": doctor.with_checks,
            "host_health": health.host_health,
            "plan_profile": profiles.plan_profile,
            "plan_table": table.plan_table,
            "repair_table": doctor.repair_table,
            "select_devices": devices.select_devices,
            "startable_findings": judge.startable,
            "supervisor_command": service_text.supervisor_command,
            "systemd_command": service_text.systemd_command,
            "tuning_plan": tuning.tuning_plan,
        }
