# SPDX-License-Identifier: Apache-2.0
"""From the driver's library to the choice, on every host of the rig: seen, judged, chosen."""

from __future__ import annotations

import json
import pathlib

import mock_nvml
import pytest
import yaml

from ansible.module_utils.firstlight.host import containers, daemons, tegra
from ansible.module_utils.firstlight.host import facts as host_facts
from ansible.module_utils.firstlight.planning import devices, health

ROOT = pathlib.Path(__file__).parents[2]
CATALOG = {name: yaml.safe_load((ROOT / "catalog" / (name + ".yml")).read_text())
           for name in ("health_limits", "nvml_errors", "xid_events", "jetson_releases",
                        "jetson_chips")}
UNITS = ("Id=nvidia-fabricmanager.service\nLoadState=loaded\nActiveState=%s\n"
         "UnitFileState=disabled\n\nId=nvidia-persistenced.service\nLoadState=loaded\n"
         "ActiveState=active\nUnitFileState=enabled\n")
OK, DEGRADED, BAD = "ok", "degraded", "bad"

# profile: (verdict, verdicts of its devices, ids of the findings, remedies)
HEALTH = {
    "a100-40-x8": (OK, [OK] * 8, set(), []),
    "a100-80-x4": (OK, [OK] * 4, set(), []),
    "a100-80-x4-worn": (OK, [OK] * 4, set(), []),
    "a100-mig": (OK, [OK] * 2, set(), []),
    "cpu": (OK, [], set(), []),
    "driver-mismatch": (BAD, [BAD] * 4, {"driver-library-mismatch"}, []),
    "gb10": (OK, [OK], {"page-cache-large"}, ["page_cache"]),
    "h100-sick": (DEGRADED, [BAD] * 3 + [DEGRADED] * 4 + [OK], {
        "gpu-reset-required", "nvml-unknown-error", "ecc-uncorrected", "recovery-action",
        "row-remap-failed", "row-remap-pending", "temperature-high", "throttle-hw-slowdown",
        "throttle-hw-thermal-slowdown", "xid-48", "xid-63", "xid-64", "xid-94"}, []),
    "h100-x8": (OK, [OK] * 8, set(), []),
    "h100-x8-fabric-down": (BAD, [BAD] * 8, {"fabric-manager-inactive"}, ["fabric_manager"]),
    "h200-x8": (OK, [OK] * 8, set(), []),
    "l40s-x4": (OK, [OK] * 4, set(), []),
    "lost-gpu": (DEGRADED, [OK, BAD, OK, OK], {"gpu-lost", "xid-79"}, []),
    "orin-nx-16": (OK, [OK], {"page-cache-large", "power-mode-low"}, ["page_cache", "power_mode"]),
    "rtx3090-x2-busy": (OK, [OK] * 2, {"persistence-off"}, ["persistence"]),
    "thor": (OK, [OK], {"page-cache-large"}, ["page_cache"]),
    "v100-x4": (OK, [OK] * 4, set(), []),
}
# profile: the devices that a pair for tensor parallel gets, or the refusal; and one device alone
CHOICE = {
    "a100-40-x8": ([0, 1], [0]),
    "a100-80-x4": ([0, 1], [0]),
    "a100-80-x4-worn": ([2, 3], [2]),
    "a100-mig": ("devices-too-few", [1]),
    "cpu": ("devices-too-few", "devices-too-few"),
    "driver-mismatch": ("devices-too-few", "devices-too-few"),
    "gb10": ("devices-too-few", [0]),
    "h100-sick": ([4, 7], [7]),
    "h100-x8": ([0, 1], [0]),
    "h100-x8-fabric-down": ("devices-too-few", "devices-too-few"),
    "h200-x8": ([0, 1], [0]),
    "l40s-x4": ([0, 1], [0]),
    "lost-gpu": ([0, 2], [0]),
    "orin-nx-16": ("devices-too-few", [0]),
    "rtx3090-x2-busy": ("devices-too-few", [1]),
    "thor": ("devices-too-few", [0]),
    "v100-x4": ([0, 1], [0]),
}


@pytest.fixture
def seen(mock_host, replay, monkeypatch, tmp_path):
    """Facts and health of the host of a profile on which systemd runs."""

    def looked(name):
        host = mock_host(name)
        (host.root / "run/systemd/system").mkdir(parents=True)
        manager = "inactive" if name == "h100-x8-fabric-down" else "active"
        version = host.profile.get("driver_version", "")
        replay({"argv": daemons.SHOW, "rc": 0, "stderr": "", "stdout": UNITS % manager},
               {"argv": daemons.FABRIC_MANAGER_VERSION, "rc": 0, "stderr": "",
                "stdout": "Fabric Manager version is : %s\n" % version},
               {"argv": tegra.POWER_MODE, "rc": 0, "stderr": "",
                "stdout": "NV Power Mode: %s\n" % ("15W\n2" if "orin" in name else "MAXN\n0")})
        monkeypatch.setattr(containers.shutil, "which", lambda *_, **__: None)
        facts, _ = host_facts.observe(str(tmp_path), str(host.root), CATALOG)
        return facts, health.host_health(facts, CATALOG)

    return looked


def test_every_profile_is_expected_here():
    assert set(mock_nvml.names()) == set(HEALTH) == set(CHOICE)


@pytest.mark.parametrize("name", HEALTH)
def test_a_host_is_judged(seen, name):
    _, judged = seen(name)
    assert (judged["verdict"], list(judged["devices"].values()),
            {one["id"] for one in judged["findings"]}, judged["remedies"]) == HEALTH[name]


@pytest.mark.parametrize("name", CHOICE)
def test_devices_of_a_host_are_chosen(seen, name):
    facts, judged = seen(name)
    index = {one["uuid"]: one["index"] for one in facts["devices"]}
    for count, wanted in zip((2, 1), CHOICE[name]):
        chosen = devices.select_devices(facts, {
            "where": "inference_endpoints[0] (chat)", "name": "chat", "count": count, "uuids": [],
            "keep": [], "tensor_parallel": count > 1, "memory_bytes": 0, "share": False,
            "taken": {}}, judged)
        if isinstance(wanted, str):
            assert [one["id"] for one in chosen["refusals"]] == [wanted]
            # Every device is named with the reason why it cannot be had.
            assert all("GPU %d" % one["index"] in chosen["refusals"][0]["found"]
                       for one in facts["devices"])
        else:
            assert [index.get(one) for one in chosen["devices"]] == wanted
            assert chosen["refusals"] == []


def kinds(value):
    """The keys of facts and the kinds of their values, whatever the values are."""
    if isinstance(value, dict):
        return {key: kinds(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [kinds(one) for one in value[:1]]
    return type(value).__name__


def test_a_real_h200_and_the_one_of_the_rig_are_told_alike(seen):
    real = json.loads((ROOT / "tests/fixtures/h200/gpu_facts.json").read_text())
    real = real["result"]["ansible_facts"]["gpu_host"]
    ours, _ = seen("h200-x8")
    assert set(real) == set(ours)
    # A lone card in a virtual machine has no fabric, no links and no node, and no systemd is there.
    apart = {"nvlink", "fabric", "numa_node", "holders"}
    for key in set(real["devices"][0]) - apart:
        assert kinds(real["devices"][0][key]) == kinds(ours["devices"][0][key]), key
    for key in apart - {"holders"}:
        assert real["unread"]["devices[0]." + key]["code"] in ("nvml-3", "unknown")
    for key in ("driver", "memory", "cpu", "disk", "system"):
        same = {one for one in real[key] if real[key][one] is not None}
        assert {one: kinds(ours[key][one]) for one in same - {"limit_bytes"}} == {
            one: kinds(real[key][one]) for one in same - {"limit_bytes"}}
    judged = health.host_health(real, CATALOG)
    assert (judged["verdict"], judged["findings"]) == (OK, [])
