# SPDX-License-Identifier: Apache-2.0
"""The judgement of health: each finding, each verdict, and that what is not known is not well."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from facts import (
    GIB,
    changed,
    cpu_host,
    device,
    holder,
    host,
    jetson_host,
    reason,
    unopened,
    unread,
    uuid,
)
from hypothesis import given
from hypothesis import strategies as st

from ansible.module_utils.firstlight import findings
from ansible.module_utils.firstlight.planning.health import VERDICTS, host_health

FOLDER = Path(__file__).parents[2] / "catalog"
CATALOG = {name: yaml.safe_load((FOLDER / (name + ".yml")).read_text())
           for name in ("health_limits", "nvml_errors", "xid_events")}
ROWS = {row["id"]: row for row in CATALOG["health_limits"]}
MIG = {"enabled": True, "pending": False, "slices": []}
FM = "fabric_manager"


def judge(facts):
    return host_health(facts, CATALOG)


def ids(health):
    return {one["id"] for one in health["findings"]}


def only(health, id):  # noqa: A002
    """The one finding of this id."""
    (one,) = [each for each in health["findings"] if each["id"] == id]
    return one


def with_device(**changes):
    """A host of which the second device is changed."""
    return host([device(0), device(1, **changes)])


def xid(code, age_s=60, text="said so"):
    return {"code": code, "age_s": age_s, "text": text}


@pytest.mark.parametrize("facts", [host(), cpu_host(), jetson_host(), host([device()])])
def test_a_host_with_nothing_wrong_is_ok_and_says_nothing(facts):
    health = judge(facts)
    assert (health["verdict"], health["findings"], health["remedies"]) == ("ok", [], [])
    assert health["devices"] == {one["uuid"]: "ok" for one in facts["devices"]}


DEVICE_CASES = [
    ("row-remap-failed", {"remapped_rows": {"failed": True}}),
    ("row-remap-pending", {"remapped_rows": {"pending": True}}),
    ("retired-pages-pending", {"retired_pages_pending": True}),
    ("ecc-uncorrected", {"ecc": {"uncorrected_volatile": 1}}),
    ("recovery-action", {"recovery_action": "node_reboot"}),
    ("recovery-action", {"recovery_action": "gpu_reset"}),
    ("recovery-action", {"recovery_action": "drain_and_reset"}),
    ("recovery-action-p2p", {"recovery_action": "drain_p2p"}),
    ("throttle-hw-slowdown", {"throttle_reasons": ["hw_slowdown"]}),
    ("throttle-hw-thermal-slowdown", {"throttle_reasons": ["gpu_idle", "hw_thermal_slowdown"]}),
    ("throttle-hw-power-brake-slowdown", {"throttle_reasons": ["hw_power_brake_slowdown"]}),
    ("throttle-sw-thermal-slowdown", {"throttle_reasons": ["sw_thermal_slowdown"]}),
    ("temperature-high", {"temperature_c": 88}),
    ("mig-pending", {"mig": {"pending": True}}),
    ("mig-pending", {"mig": MIG}),
    ("compute-prohibited", {"compute_mode": "prohibited"}),
    ("compute-exclusive", {"compute_mode": "exclusive_process"}),
    ("persistence-off", {"persistence": False}),
    ("fabric-not-completed", {"fabric": {"state": "not_started"}}),
    ("fabric-not-completed", {"fabric": {"state": "in_progress"}}),
    ("fabric-failed", {"fabric": {"status": "NVML error 999: Unknown Error"}}),
    ("nvlink-inactive", {"nvlink": {"active": 17}}),
    # no switch: the other card has more, so this one has lost some
    ("nvlink-inactive", {"nvlink": {"active": 4, "to_switch": False}}),
    ("memory-held-unseen", {"memory_free_bytes": 10 * GIB}),
    ("memory-held-unseen", {"memory_free_bytes": 10 * GIB, "holders": [holder(7, 20 * GIB)]}),
    ("memory-implausible", {"memory_total_bytes": GIB, "memory_reserved_bytes": None}),
]


@pytest.mark.parametrize("id, changes", DEVICE_CASES)
def test_what_is_wrong_with_a_device_is_found_and_is_that_devices(id, changes):  # noqa: A002
    health = judge(with_device(**changes))
    verdict = ROWS[id]["verdict"]
    assert ids(health) == {id}
    assert health["devices"] == {uuid(0): "ok", uuid(1): verdict}
    assert health["verdict"] == ("ok" if verdict == "ok" else "degraded")
    one = only(health, id)
    assert one["subject"] == "GPU 1 (NVIDIA H200, %s)" % uuid(1)
    assert one["evidence"].startswith("devices[1]." + ROWS[id]["figure"])
    assert "nvml" in one["evidence"]
    assert one["severity"] == {"ok": "info", "degraded": "warning", "bad": "error"}[verdict]
    assert "%" not in one["found"] + one["wanted"] + one["remedy"]


@pytest.mark.parametrize("changes", [
    {"throttle_reasons": ["gpu_idle", "sw_power_cap", "applications_clocks_setting",
                          "sync_boost", "display_clock_setting"]},
    {"temperature_c": 87}, {"retired_pages_pending": False}, {"ecc": {"corrected_volatile": 9}},
    {"remapped_rows": {"correctable": 3, "uncorrectable": 1}},
    {"fabric": {"state": "not_supported", "status": "NVML error 3: Not Supported"}},
    {"nvlink": {"links": 0, "active": 0}},
    {"name": "bridged", "nvlink": {"links": 12, "active": 4, "to_switch": False}},
    {"name": "alone", "nvlink": {"links": 12, "active": 0, "to_switch": None}},
    {"memory_free_bytes": 10 * GIB, "holders": [holder(7, 130 * GIB)]},
    {"memory_free_bytes": 10 * GIB, "holders": [holder(7, None)]},
    {"memory_free_bytes": 10 * GIB, "mig": {"enabled": True, "pending": True}},
])
def test_what_is_usual_is_not_found(changes):
    assert judge(with_device(**changes))["findings"] == []


HOST_CASES = [
    ("no-gpu-answers", host([])),
    ("driver-module-mismatch", host(driver={"kernel_module": "580.95.05"})),
    ("fabric-manager-inactive", host(fabric_manager={"state": "inactive"})),
    ("fabric-manager-inactive", host(fabric_manager={"state": "not-found", "version": None})),
    ("fabric-manager-mismatched", host(fabric_manager={"state": "failed", "version": "575.1"})),
    ("fabric-manager-version", host(fabric_manager={"version": "575.1"})),
    ("containers-without-gpu", host(containers={"nvidia_runtime": False})),
    ("jetson-runtime-missing", jetson_host(containers={"nvidia_runtime": False})),
    ("l4t-unknown", jetson_host(jetson={"l4t": "36.9.9", "jetpack": None})),
    ("power-mode-low", jetson_host(jetson={"power_mode": "15W"})),
    ("power-mode-low", jetson_host(jetson={"power_mode": "15W",
                                           "power_modes": {"10W": 1, "15W": 2, "MAXN_SUPER": 0}})),
    ("swap-missing", jetson_host(memory={"swap_bytes": 0})),
    ("page-cache-large", jetson_host(memory={"free_bytes": 2 * GIB})),
    ("page-cache-large", changed(host([device(unified_memory=True)]), {
        "class": "unified", "memory": {"free_bytes": 2 * GIB}})),
    ("card-not-supported", cpu_host(other_cards=[
        {"vendor": "AMD", "bus_id": "0000:03:00.0", "device": "0x744c"}])),
]


@pytest.mark.parametrize("id, facts", HOST_CASES)
def test_what_is_wrong_with_a_host_is_found(id, facts):  # noqa: A002
    health = judge(facts)
    assert ids(health) == {id}
    assert health["verdict"] == ROWS[id]["verdict"]
    helps = ROWS[id]["helps"]
    assert health["remedies"] == ([helps] if helps else [])
    worst = "bad" if ROWS[id]["verdict"] == "bad" else "ok"
    assert set(health["devices"].values()) <= {worst}


@pytest.mark.parametrize("facts", [
    host(nvswitches=0, fabric_manager=None),
    host(containers={"nvidia_runtime": False, "cdi_devices": ["nvidia.com/gpu=0"]}),
    host(containers={"engine": None, "nvidia_runtime": False}),
    jetson_host(memory={"swap_bytes": 0, "total_bytes": 32 * GIB}),
    jetson_host(jetson={"power_mode": "MAXN_SUPER", "power_modes": {"25W": 1, "MAXN_SUPER": 3}}),
    jetson_host(jetson={"power_modes": None}),
    host(memory={"free_bytes": GIB}),
])
def test_what_a_host_does_not_need_is_not_found(facts):
    assert judge(facts)["findings"] == []


def test_every_row_of_the_limits_has_a_case():
    cases = {case[0] for case in DEVICE_CASES + HOST_CASES}
    assert set(ROWS) - cases == {"memory-repair-untold", "gpu-silent"}


def test_persistence_is_a_remedy_and_no_reproach():
    health = judge(with_device(persistence=False))
    assert (health["verdict"], health["remedies"]) == ("ok", ["persistence"])


def test_a_fabric_manager_of_another_version_is_not_started():
    health = judge(host(fabric_manager={"state": "failed", "version": "575.1"}))
    assert (health["verdict"], health["remedies"]) == ("bad", [])


def test_where_the_fabric_is_down_only_the_cause_is_told():
    facts = host([device(fabric={"state": "not_started"}, nvlink={"active": 0})],
                 fabric_manager={"state": "inactive"})
    health = judge(facts)
    assert ids(health) == {"fabric-manager-inactive"}
    assert health["remedies"] == ["fabric_manager"]
    assert health["devices"] == {uuid(0): "bad"}


def test_what_is_wrong_with_one_device_hides_nothing_of_another():
    facts = host([device(0, fabric={"status": "failed"}), device(1, nvlink={"active": 0})])
    assert ids(judge(facts)) == {"fabric-failed", "nvlink-inactive"}


def test_ecc_without_any_word_on_failing_memory_is_not_well():
    facts = unread(host(), "devices[0].remapped_rows", "nvml-3")
    health = judge(facts)
    assert ids(health) == {"memory-repair-untold"}
    assert health["devices"] == {uuid(0): "degraded", uuid(1): "ok"}
    for fine in ({"ecc": {"enabled": False}}, {"mig": {"enabled": True, "pending": True}}):
        facts["devices"][0] = changed(facts["devices"][0], fine)
        assert judge(facts)["verdict"] == "ok"
        facts["devices"][0] = changed(facts["devices"][0], {
            "ecc": {"enabled": True}, "mig": {"enabled": False, "pending": False}})


# NVML.


@pytest.mark.parametrize("row", CATALOG["nvml_errors"], ids=lambda row: row["name"])
def test_nvml_that_gives_an_error_is_bad_and_only_that_is_told(row):
    code = "nvml-%d" % row["code"]
    facts = changed(host([], driver=dict.fromkeys(host()["driver"])),
                    {"unread": {"nvml": reason(code), "driver": {"code": "unasked",
                                                                 "reason": "nobody to ask"}}})
    health = judge(facts)
    assert health["verdict"] == "bad"
    assert ids(health) == {row["finding"]}
    assert "NVML error %d" % row["code"] in only(health, row["finding"])["evidence"]


@pytest.mark.parametrize("code", ["nvml-17", "timeout", "absent"])
def test_nvml_that_fails_otherwise_is_bad_with_its_reason(code):
    health = judge(changed(host([]), {"unread": {"devices": reason(code)}}))
    assert (health["verdict"], ids(health)) == ("bad", {"no-gpu-answers"})
    assert reason(code)["reason"] in only(health, "no-gpu-answers")["evidence"]


@pytest.mark.parametrize("code, id", [
    ("nvml-15", "gpu-lost"), ("nvml-16", "gpu-reset-required"), ("nvml-999", "nvml-unknown-error"),
    ("nvml-18", "driver-library-mismatch"), ("nvml-3", "gpu-silent"), ("timeout", "gpu-silent")])
def test_a_device_that_cannot_be_opened_is_bad_and_the_others_are_not(code, id):  # noqa: A002
    gone, why = unopened(1, code)
    facts = host([device(0)])
    facts["devices"].append(gone)
    facts["unread"].update(why)
    health = judge(facts)
    assert health["devices"] == {uuid(0): "ok", "devices[1]": "bad"}
    assert health["verdict"] == "degraded"
    assert ids(health) == {id}
    assert only(health, id)["severity"] == "error"
    facts["devices"] = [gone]
    assert judge(facts)["verdict"] == "bad"


@pytest.mark.parametrize("code, verdict", [
    ("nvml-15", "bad"), ("nvml-16", "bad"), ("nvml-18", "bad"), ("nvml-999", "degraded"),
    ("nvml-4", "degraded")])
def test_an_error_in_the_place_of_one_figure_counts(code, verdict):
    health = judge(unread(host(), "devices[1].temperature_c", code))
    assert health["devices"] == {uuid(0): "ok", uuid(1): verdict}
    assert len(health["findings"]) == 1


def test_one_error_in_the_place_of_many_figures_is_told_once():
    facts = host()
    for figure in ("temperature_c", "utilisation_percent", "ecc"):
        facts = unread(facts, "devices[0]." + figure, "nvml-15")
    assert len(judge(facts)["findings"]) == 1


# Xids.


@pytest.mark.parametrize("row", CATALOG["xid_events"][1:], ids=lambda row: str(row["code"]))
def test_a_recent_xid_counts_as_its_row_says_and_an_old_one_does_not(row):
    recent = judge(with_device(xids=[xid(row["code"], row["recent_s"])]))
    assert recent["devices"] == {uuid(0): "ok", uuid(1): row["verdict"]}
    assert "said so" in only(recent, "xid-%d" % row["code"])["found"]
    assert judge(with_device(xids=[xid(row["code"], row["recent_s"] + 1)]))["findings"] == []


def test_an_xid_of_unknown_age_counts():
    assert judge(with_device(xids=[xid(79, None)]))["devices"][uuid(1)] == "bad"


def test_an_unknown_xid_is_told_as_unknown():
    one = only(judge(with_device(xids=[xid(7777)])), "xid-7777")
    assert "does not know" in one["found"]
    assert one["severity"] == "info"


def test_many_xids_of_a_code_are_one_finding():
    health = judge(with_device(xids=[xid(31, 9000), xid(31, 900), xid(31, 90, "the last")]))
    assert "2 in the kernel log, the last 90 s ago: the last" in only(health, "xid-31")["found"]
    counted = judge(with_device(xids=[dict(xid(31), count=40)]))
    assert "40 in the kernel log" in only(counted, "xid-31")["found"]


@pytest.mark.parametrize("age_s", [60, 10**8])
def test_a_gpu_that_fell_off_the_bus_is_bad_however_long_ago(age_s):
    lost = dict(xid(79, age_s), bus_id="0000:41:00.0")
    health = judge(host(orphan_xids=[lost]))
    assert health["devices"] == {uuid(0): "ok", uuid(1): "ok", "0000:41:00.0": "bad"}
    assert health["verdict"] == "degraded"
    assert "0000:41:00.0" in only(health, "xid-79")["subject"]
    assert str(age_s) in only(health, "xid-79")["found"]


# What is not known.

NEEDED = sorted({condition["figure"] for row in CATALOG["health_limits"] if row["needed"]
                 and row["scope"] == "devices"
                 for condition in [*row["given"], row]} | {"xids", "memory_free_bytes"})
NO_SUCH_THING = ("nvml-3", "nvml-13")


@given(figure=st.sampled_from(NEEDED), data=st.data(),
       code=st.sampled_from(["eacces", "absent", "unknown", "timeout", "unasked", "nvml-4",
                             "nvml-10", "nvml-15", "nvml-999"]))
def test_what_could_not_be_read_is_never_ok(figure, data, code):
    # The figure itself, or what it is in.
    parts = figure.split(".")
    label = "devices[1]." + ".".join(parts[:data.draw(st.integers(1, len(parts)))])
    health = judge(unread(host(), label, code))
    assert health["devices"][uuid(1)] != "ok"
    assert health["verdict"] != "ok"
    assert any(label in one["found"] + one["evidence"] for one in health["findings"])


@given(figure=st.sampled_from(NEEDED))
def test_what_is_null_without_a_reason_is_never_ok(figure):
    facts = unread(host(), "devices[1]." + figure, "unknown")
    del facts["unread"]["devices[1]." + figure]
    assert judge(facts)["devices"][uuid(1)] == "degraded"


@pytest.mark.parametrize("code", NO_SUCH_THING)
@pytest.mark.parametrize("figure", ["fabric", "nvlink", "mig", "recovery_action", "temperature_c",
                                    "throttle_reasons", "ecc", "retired_pages_pending"])
def test_what_the_hardware_has_not_is_no_reproach(figure, code):
    assert judge(unread(host(), "devices[1]." + figure, code))["verdict"] == "ok"


@pytest.mark.parametrize("label", ["fabric_manager", "driver.kernel_module", "orphan_xids"])
def test_what_a_host_needs_and_is_not_known_degrades_it(label):
    health = judge(unread(host(), label, "absent"))
    assert (health["verdict"], ids(health)) == ("degraded", {"health-unread"})


def test_an_unread_figure_says_what_to_change():
    one = only(judge(unread(host(), "devices[0].xids", "eacces")), "health-unread")
    assert one["needs_root"]
    assert "root" in one["remedy"]
    assert one["severity"] == "warning"


def test_a_host_without_gpu_needs_nothing():
    facts = changed(cpu_host(), {"memory": dict.fromkeys(cpu_host()["memory"]),
                                 "unread": {"nvml": reason("nvml-12"), "memory": reason("eacces")}})
    assert judge(facts)["verdict"] == "ok"


def test_the_verdict_of_a_host_is_the_worst_unless_some_devices_are_well():
    bad = {"compute_mode": "prohibited"}
    assert judge(host([device(i, **(bad if i else {})) for i in range(8)]))["verdict"] == "degraded"
    assert judge(host([device(i, **bad) for i in range(8)]))["verdict"] == "bad"
    assert set(judge(host())["devices"].values()) <= set(VERDICTS)


def test_text_of_a_host_is_data():
    name = "%(limit)s \x1b[2J {{ 1 }}"
    health = judge(with_device(name=name, temperature_c=99,
                               xids=[xid(79, text="%s %(code)s {{ x }}")]))
    assert "%s %(code)s {{ x }}" in only(health, "xid-79")["found"]
    assert "\x1b" not in findings.text(health["findings"])


def test_all_that_one_reason_hides_is_one_finding():
    facts = host()
    for figure in ("temperature_c", "ecc", "throttle_reasons"):
        facts = unread(facts, "devices[0]." + figure, "timeout")
    facts = unread(facts, "devices[0].fabric", "eacces")
    found = [one for one in judge(facts)["findings"] if one["id"] == "health-unread"]
    assert len(found) == 2
    (late,) = [one for one in found if "timeout" in one["evidence"]]
    for figure in ("temperature_c", "ecc.uncorrected_volatile", "throttle_reasons"):
        assert late["found"].count("devices[0].%s" % figure) == 1


def test_figures_that_nobody_asked_for_are_not_told_beside_the_failure_that_is_why():
    facts = host(unread={"nvml": {"code": "nvml-18", "reason": "mismatch"}})
    for figure in ("temperature_c", "ecc"):
        facts = unread(facts, "devices[0]." + figure, "unasked")
    assert ids(judge(facts)) == {"driver-library-mismatch"}
    facts["unread"]["nvml"] = {"code": "absent", "reason": "no pynvml"}
    assert ids(judge(facts)) == {"health-unread"}
    (one,) = judge(facts)["findings"]
    assert "toolbelt" in one["remedy"]
