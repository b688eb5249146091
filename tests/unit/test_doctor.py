# SPDX-License-Identifier: Apache-2.0
"""What the doctor says of all hosts: tables, a summary on one screen, what a repair changed."""

from __future__ import annotations

import copy

import facts as made
import library_seen as rig
import planner
import pytest
from library_seen import CASES, CHECKS, TRITONS

from ansible.module_utils.firstlight.findings import SEVERITIES, finding
from ansible.module_utils.firstlight.planning import doctor, health
from ansible.module_utils.firstlight.planning import library_path as judge

REMEDIES = ["fabric_manager", "linker_cache", "page_cache", "persistence", "power_mode", "swap"]


def one(id_="linker-cache-missing", severity="error", found="there is none"):
    return finding(id_, "the library path", found, "one", "make one", severity=severity)


def report(*findings, verdict=None, devices=("ok",), remedies=(), kind="nvidia"):
    return {"class": kind, "verdict": verdict or ("degraded" if findings else "ok"),
            "devices": {"GPU-%d" % index: each for index, each in enumerate(devices)},
            "findings": list(findings), "remedies": list(remedies)}


def checks(name):
    """What host_checks returns of a case, as far as the health takes it."""
    seen, _, half_done = CASES[name]
    told = judge.problems(seen, CHECKS, TRITONS, half_done)
    return {"findings": [each.finding for each in told],
            "remedies": sorted({each.helps for each in told if each.helps}), **MORE}


MORE = {"helps": {"x": "linker_cache"}, "environment": {"A": "b"}, "blocks": []}


def lines(text):
    return [line.split() for line in text.splitlines()]


# The health with what the library path adds.


def test_a_host_in_order_stays_so():
    before = report()
    added = doctor.with_checks(before, checks("in order"))
    assert added == {**{key: before[key] for key in (
        "verdict", "devices", "findings", "remedies")}, **MORE}


@pytest.mark.parametrize("name", [name for name, (_, ids, _) in CASES.items() if ids])
@pytest.mark.parametrize("verdict", health.VERDICTS)
def test_the_library_path_makes_a_host_degraded_and_no_gpu_bad(name, verdict):
    before = report(verdict=verdict, devices=("ok", "bad"), remedies=["swap"])
    kept, found = copy.deepcopy(before), checks(name)
    added = doctor.with_checks(before, found)
    assert added["verdict"] == ("bad" if verdict == "bad" else "degraded")
    assert added["devices"] == before["devices"]
    assert added["findings"] == found["findings"]
    assert added["remedies"] == sorted({"swap", *found["remedies"]})
    assert before == kept


def test_information_alone_degrades_nothing():
    found = {"findings": [one("note", "info")], "remedies": [], **MORE}
    assert doctor.with_checks(report(), found)["verdict"] == "ok"


def test_what_nvml_says_too_is_told_once():
    catalog = planner.catalog()
    facts = made.host(unread={"nvml": made.reason("nvml-18")})
    known = health.host_health(facts, catalog)
    assert "driver-library-mismatch" in [each["id"] for each in known["findings"]]
    found = checks("the libraries are older than the kernel module")
    added = doctor.with_checks(known, found)
    assert added["findings"] == known["findings"]
    assert added["verdict"] == known["verdict"]
    # Where NVML was silent, the library path tells it.
    added = doctor.with_checks(report(), found)
    assert [each["id"] for each in added["findings"]] == ["driver-library-mismatch"]


def test_of_one_kind_several_are_told_where_the_health_has_none():
    seen = rig.seen(rig.library(), rig.stub(), variables=[
        rig.variable(rig.STUBS), rig.variable(rig.STUBS, where="the environment of this user")])
    told = [each.finding for each in judge.problems(seen, CHECKS, TRITONS)]
    added = doctor.with_checks(report(), {"findings": told, "remedies": [], **MORE})
    assert [each["id"] for each in added["findings"]] == ["library-path-harmful"] * 2


# The table.


def test_a_host_is_a_line_with_its_gpus_and_what_was_found_worst_first():
    table = doctor.doctor_table({
        "alpha": report(devices=("ok",) * 7 + ("bad",)),
        "beta": report(one("b-warning", "warning"), one("a-error"), one("a-error")),
        "gamma": report(devices=(), kind="cpu")})
    assert lines(table) == [
        ["host", "class", "verdict", "GPUs", "findings"],
        ["alpha", "nvidia", "ok", "7", "ok,", "1", "bad", "-"],
        ["beta", "nvidia", "degraded", "1", "ok", "a-error,", "b-warning"],
        ["gamma", "cpu", "ok", "none", "-"]]
    # Columns stand below each other.
    starts = [line.index(word) for line, word in zip(table.splitlines(), (
        "verdict", "ok", "degraded", "ok"))]
    assert len(set(starts)) == 1


def test_without_hosts_there_is_only_the_head():
    assert lines(doctor.doctor_table({})) == [["host", "class", "verdict", "GPUs", "findings"]]
    assert doctor.doctor_summary({}) == ""


# The summary.


def test_where_all_is_well_nothing_is_summed_up():
    assert doctor.doctor_summary({"alpha": report(), "beta": report(one("note", "info"),
                                                                    verdict="ok")}) == ""


def test_what_is_not_well_is_told_worst_first_and_what_helps():
    summary = doctor.doctor_summary({
        "alpha": report(one("a-warning", "warning", "half"), remedies=["swap"]),
        "beta": report(),
        "gamma": report(one("b-error"), one("c-fatal", "fatal"), one("note", "info"),
                        remedies=["linker_cache"])})
    assert summary.splitlines() == [
        "2 of 3 hosts are not well.",
        "gamma  [fatal] c-fatal: there is none",
        "gamma  [error] b-error: there is none",
        "alpha  [warning] a-warning: half",
        "playbooks/repair.yml helps with some of it: linker_cache, swap."]


def test_what_only_a_person_can_change_is_said_so():
    summary = doctor.doctor_summary({"alpha": report(one())})
    assert summary.endswith("\nWhat to change stands with each finding above.")
    # Of a host that is well nothing is named that would help.
    summary = doctor.doctor_summary({"alpha": report(one()), "beta": report(remedies=["swap"])})
    assert "swap" not in summary


@pytest.mark.parametrize("count", [1, 19, 20, 21, 22, 500])
@pytest.mark.parametrize("remedies", [[], ["swap"], REMEDIES])
def test_the_summary_fits_one_screen(count, remedies):
    reports = {"host-%03d" % index: report(*[
        one("f%d-%s" % (index, severity), severity, "x" * 200) for severity in SEVERITIES],
        remedies=remedies) for index in range(count)}
    told = doctor.doctor_summary(reports).splitlines()
    assert len(told) <= doctor.SCREEN
    assert max(map(len, told)) <= doctor.WIDTH
    assert told[0] == "%d of %d hosts are not well." % (count, count)
    named = [line for line in told if line.startswith("host-")]
    # All but the informations are told, or counted.
    more = 3 * count - len(named)
    assert ("and %d findings more, told above" % more in told) is (more > 0)
    assert more == 0 or len(named) == 20
    assert " ".join(told).count("[fatal]") == min(count, len(named))
    for name in remedies:
        assert name in " ".join(told[-2:])


def test_what_comes_from_a_host_moves_no_cursor_and_ends_no_line():
    hostile = "a\x1b[2Jb\nc\rd\x85e\u2028f\u202eg\0"
    bad = report(one(found=hostile))
    for text in (doctor.doctor_summary({hostile: bad}), doctor.doctor_table({hostile: bad}),
                 doctor.repair_table(dict(bad, verdict=hostile), bad)):
        assert all(each.isprintable() for each in text.split("\n"))
        assert r"a\x1b[2Jb\nc\rd\x85e\u2028f\u202eg\x00" in text
    assert len(doctor.doctor_summary({hostile: bad}).split("\n")) == 3


# What a repair changed.


def test_each_finding_is_mended_left_or_new():
    before = report(one("mended-one"), one("left-one", "warning"), one("left-one", "warning"))
    after = report(one("left-one", "warning"), one("new-one"), verdict="bad")
    assert lines(doctor.repair_table(before, after)) == [
        ["finding", "before", "after"],
        ["mended-one", "found", "mended"],
        ["left-one", "found", "left"],
        ["new-one", "-", "new"],
        ["verdict", "degraded", "bad"]]


def test_where_all_was_mended_the_verdict_says_so():
    assert lines(doctor.repair_table(report(one()), report()))[-1] == ["verdict", "degraded", "ok"]


# Hosts that were not judged.


def test_a_host_that_was_not_judged_stands_in_all_that_is_shown_and_is_not_well():
    hosts = ["gone.example.org", "gpu.example.org"]
    all_of_them = doctor.doctor_reports({"gpu.example.org": report()}, hosts)
    assert list(all_of_them) == hosts
    assert lines(doctor.doctor_table(all_of_them))[1:] == [
        ["gone.example.org", "unknown", "unknown", "none", "host-unknown"],
        ["gpu.example.org", "nvidia", "ok", "1", "ok", "-"]]
    summary = doctor.doctor_summary(all_of_them)
    assert summary.startswith("1 of 2 hosts are not well.")
    assert "gone.example.org  [error] host-unknown" in summary
