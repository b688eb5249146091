# SPDX-License-Identifier: Apache-2.0
"""The report on a fleet as data: states, bars, times, drift, and whatever hosts may say."""

from __future__ import annotations

import copy
import html.parser
import json

import pytest
import report_fleet
import strategies
from hypothesis import given
from hypothesis import strategies as st

from ansible.module_utils.firstlight import fleet_pages
from ansible.module_utils.firstlight.findings import finding
from ansible.module_utils.firstlight.planning import fleet_report

GIB = 2**30
THEN, NOW = "2026-03-02T06:00:00Z", "2026-03-03T06:00:00Z"
RUN = {"id": "a", "playbook": "site.yml", "started": "2026-03-03T05:58:00Z", "ended": NOW}
HOT = finding("gpu-hot", "GPU 0", "91 C", "85 C", "look at the fans", "warning")
WRONG = finding("smoke-completion", "endpoint chat", "cats", "dogs", "look at its log")


def served(kind="a100-40", count=8, model="Llama-3.1-70B", **changes):
    """Facts of a host, and the passport of what it serves."""
    facts, plan = report_fleet.planned(kind, count, model)
    plan = copy.deepcopy(plan)
    plan.update(changes)
    return copy.deepcopy(facts), report_fleet.passport(plan, 40.0, 0.2)


def record(passport, facts=None, findings=(), against=(), before=None, **more):
    """What is kept of a host that serves this."""
    return fleet_report.host_record("gpu", {
        "root": "/r", "endpoints": [{"name": "chat", "passport": passport}] if passport else [],
        "verdicts": [report_fleet.verdict(passport["plan"], 40.0, 0.2, against)]
        if passport else [], "facts": facts or {}, "complete": True,
        "health": {"verdict": "ok", "findings": list(findings)}, **more}, before, NOW)


def content(host=None, entry=None, passport=None, run=RUN, of=RUN, before=None):
    """The content of a folder with one host."""
    passports = {"chat": passport} if passport else {}
    ran = fleet_report.run_record("gpu", entry, of, before, host, passports) if entry else None
    return {"run": {"run": run, "hosts": {"gpu": {}}} if run else None, "unread": [],
            "hosts": {"gpu": {"host": host, "run": ran, "passports": passports}}}


def only(told):
    """The one host of the report on a folder."""
    [host] = fleet_report.fleet_report(told, NOW)["hosts"]
    return host


OK = {"state": "ok", "recorded": True}
FAILED = {"state": "failed", "recorded": False, "stage": "toolbelt", "task": "Bring it",
          "reason": "Bad:\n[error] no-room: /\n  found:    0 B\n"}


@pytest.mark.parametrize(("entry", "against", "serves", "wanted"), [
    (OK, (), True, "proven"),
    (OK, (WRONG,), True, "not_proven"),
    (OK, (), False, "idle"),
    (FAILED, (), True, "failed"),
    (dict(FAILED, recorded=True), (), True, "failed"),
    (dict(FAILED, state="unreachable"), (), True, "unreachable"),
    ({"state": "ended", "recorded": False}, (), True, "not_proven"),
])
def test_the_state_of_a_host(entry, against, serves, wanted):
    facts, passport = served()
    passport = passport if serves else None
    host = only(content(record(passport, facts, against=against), entry, passport))
    assert host["state"] == host["was"] == wanted
    assert host["in_last_run"]
    # What was proven in an earlier run was not asked in this one.
    states = [one["state"] for one in host["endpoints"]]
    assert states == ([] if not serves else ["not_proven"] if against else
                      ["proven"] if entry["recorded"] else ["earlier"])


def test_a_failure_says_where_and_why():
    host = only(content(None, FAILED))
    assert (host["stage"], host["task"], host["reason"]) == (
        "toolbelt", "Bring it", FAILED["reason"].strip())
    assert host["brief"] == "Bad: 0 B"
    assert only(content(None, {"state": "ended"}))["brief"] == (
        "the run ended before it was through with this host")


def test_a_host_that_was_not_in_the_last_run_has_its_age():
    facts, passport = served()
    of = dict(RUN, id="earlier", ended=THEN)
    host = only(content(dict(record(passport, facts), at=THEN), OK, passport, of=of))
    assert (host["state"], host["was"], host["age_s"]) == ("absent", "proven", 86400)
    assert host["drift"] == []
    never = only({"run": None, "hosts": {"gpu": {"passports": {"chat": passport}}}})
    assert (never["state"], never["was"], never["seen"]) == ("absent", "", passport["written"])
    assert [one["name"] for one in never["endpoints"]] == ["chat"]


def after(entries, facts, passport):
    """The last ``run.json`` after runs: what became of each, and what it kept."""
    kept = None
    for number, (entry, host) in enumerate(entries):
        kept = fleet_report.run_record("gpu", entry, dict(RUN, id=str(number), ended=THEN), kept,
                                       host, {"chat": passport})
    return kept


UNREACHABLE = dict(FAILED, state="unreachable", reason="it does not answer")
ENDED = {"state": "ended", "recorded": False}


@pytest.mark.parametrize(("between", "wanted", "brief"), [
    ([], "proven", ""),
    ([FAILED], "failed", "Bad: 0 B"),
    # It stands until all endpoints are asked.
    ([FAILED, "benchmark"], "failed", "Bad: 0 B"),
    ([FAILED, OK], "proven", ""),
    # It has answered since.
    ([UNREACHABLE], "not_proven", "it does not answer"),
    ([ENDED], "not_proven", "the host was not proven"),
    ([dict(FAILED, recorded=True)], "failed", "Bad: 0 B"),
])
def test_a_run_that_asks_no_endpoint_proves_none(between, wanted, brief):
    facts, passport = served()
    first = record(passport, facts)
    unasked = record(passport, None, before=first, verdicts=[], health={}, complete=False)
    assert (first["asked"], unasked["asked"]) == (["chat"], [])
    before = after([(OK, first), *(
        (OK, unasked) if one == "benchmark" else (one, first) for one in between)],
        facts, passport)
    host = only(content(unasked, OK, passport, before=before))
    assert (host["state"], host["was"], host["brief"]) == (wanted, wanted, brief)
    assert [one["state"] for one in host["endpoints"]] == ["earlier"]
    assert (host["stage"], THEN in host["reason"]) == (
        "toolbelt" if between and between[0].get("stage") and wanted != "proven" else "",
        wanted != "proven")
    # A run that asks it heals it.
    healed = only(content(first, OK, passport, before=after(
        [(OK, first), (FAILED, first), (OK, unasked)], facts, passport)))
    assert (healed["state"], healed["reason"]) == ("proven", "")
    assert [one["state"] for one in healed["endpoints"]] == ["proven"]


def test_what_was_kept_without_who_was_asked_was_asked():
    facts, passport = served()
    old = {key: value for key, value in record(passport, facts).items() if key != "asked"}
    host = only(content(old, OK, passport, before=after([(FAILED, old)], facts, passport)))
    assert (host["state"], host["endpoints"][0]["state"]) == ("proven", "proven")


def test_a_login_in_an_address_is_not_kept():
    # The end of what is kept is within the login.
    long = "x" * (fleet_report.LINES - 20) + "http://ann:hunter2@proxy.example.org"
    for reason in ("no way to https://ann:hunter2@proxy.example.org:3128/", long):
        ran = fleet_report.run_record("gpu", dict(FAILED, reason=reason), RUN, None, None, {})
        assert "ann" not in ran["reason"]
        assert "http" in ran["reason"]


def test_totals_count_and_hosts_come_in_the_order_of_need(tmp_path):
    report = report_fleet.small(tmp_path)
    assert [one["state"] for one in report["hosts"]] == [
        "failed", "unreachable", "not_proven", "absent", "proven", "proven", "proven", "proven"]
    assert report["totals"]["states"] == {
        "failed": 1, "unreachable": 1, "not_proven": 1, "absent": 1, "idle": 0, "proven": 4}
    assert (report["totals"]["endpoints"], report["totals"]["endpoints_proven"]) == (8, 4)
    assert report["totals"]["findings"] == {"fatal": 0, "error": 1, "warning": 1, "info": 0}
    assert report["run"]["seconds"] == 168
    assert len({one["anchor"] for one in report["hosts"]}) == 8
    assert json.loads(json.dumps(report)) == report


def test_names_are_sorted_as_people_count():
    assert sorted(["gpu-10", "gpu-9", "a", "10"], key=fleet_report.natural) == [
        "10", "a", "gpu-9", "gpu-10"]


def test_bars_of_a_gpu_have_plan_and_observation_in_parts():
    _facts, passport = served()
    memory = only(content(record(passport), OK, passport))["endpoints"][0]["memory"]
    plan, seen = passport["plan"]["memory"], passport["memory"]["observed"]
    assert memory["where"] == "each GPU"
    parts = {one["id"]: one for one in memory["parts"]}
    assert list(parts) == ["weights", "kv", "graph", "rest"]
    assert sum(one["predicted_bytes"] for one in memory["parts"]) == plan["total_bytes"]
    assert parts["kv"]["observed_bytes"] == seen["kv_bytes"]
    assert parts["kv"]["off_percent"] == 2.0
    assert parts["rest"]["observed_bytes"] is None
    assert parts["weights"]["predicted_percent"] == pytest.approx(
        100 * plan["weights_bytes"] / plan["limit_bytes"], abs=0.01)
    assert memory["observed_bytes"] is None
    assert memory["host_bytes"] == passport["memory"]["observed_bytes"]


def test_bars_of_a_host_without_gpu_have_what_its_processes_hold():
    _facts, passport = served("cpu", 0, "Qwen2.5-0.5B.gguf")
    memory = only(content(record(passport), OK, passport))["endpoints"][0]["memory"]
    assert memory["where"] == "host memory"
    assert memory["observed_bytes"] == passport["memory"]["observed_bytes"]
    assert memory["off_percent"] == pytest.approx(-6, abs=0.1)
    assert memory["host_bytes"] is None


def test_what_is_over_its_limit_stays_in_its_bar():
    _facts, passport = served("cpu", 0, "Qwen2.5-0.5B.gguf")
    passport["memory"]["observed_bytes"] = 10 * passport["plan"]["memory"]["limit_bytes"]
    memory = only(content(record(passport), OK, passport))["endpoints"][0]["memory"]
    assert memory["observed_percent"] == 100.0
    assert memory["limit_percent"] == pytest.approx(10.0)


def test_phases_follow_each_other():
    _facts, passport = served()
    passport["phases"] = {"start_s": 1.0, "port_s": 5.0, "ready_s": 9.0, "proof_s": 2.0}
    phases = only(content(record(passport), OK, passport))["endpoints"][0]["phases"]
    assert [(one["id"], one["seconds"]) for one in phases] == [
        ("start", 1.0), ("port", 5.0), ("load", 4.0), ("proof", 2.0)]
    assert sum(one["percent"] for one in phases) == pytest.approx(100, abs=0.1)


def test_short_stages_of_a_run_are_told_together():
    steps = [{"name": "a", "seconds": 1}, {"name": "b", "seconds": 96},
             {"name": "c", "seconds": 1}, {"name": "d", "seconds": 2}]
    host = only(content(None, dict(FAILED, stages=steps)))
    assert [(one["name"], one["seconds"]) for one in host["stages"]] == [
        ("b", 96), ("d", 2), ("2 others", 2)]
    assert host["seconds"] == 100


# Drift.


def drifted(change, against=(), findings=(), entry=OK):
    """What the report says after a change to facts and passport between two runs."""
    facts, passport = served()
    old = fleet_report.run_record("gpu", OK, dict(RUN, id="0", ended=THEN), None,
                                  record(passport, facts, [HOT]), {"chat": passport})
    speed = change(facts, passport) or 40.0
    new = fleet_report.host_record("gpu", {
        "root": "/r", "facts": facts, "complete": True,
        "verdicts": [report_fleet.verdict(passport["plan"], speed, 0.2, against)],
        "health": {"verdict": "ok", "findings": findings},
        "endpoints": [{"name": "chat", "passport": passport}]}, None, NOW)
    host = only(content(new, entry, passport, before=old))
    return {(one["what"], one["subject"]): (one["before"], one["after"], one["good"])
            for one in host["drift"]}


def set_in(place, **changes):
    place.update(changes)


@pytest.mark.parametrize(("change", "wanted"), [
    (lambda facts, _: set_in(facts["driver"], version="580.1"),
     {("driver", "host"): ("580.159.04", "580.1", "neither")}),
    (lambda facts, _: set_in(facts["system"], kernel="6.2"),
     {("kernel", "host"): ("6.1.0", "6.2", "neither")}),
    (lambda facts, _: facts["devices"].pop() and None,
     {("gpus", "host"): ("8 x NVIDIA A100-SXM4-40GB", "7 x NVIDIA A100-SXM4-40GB", "worse")}),
    (lambda facts, _: set_in(facts["devices"][0], uuid="GPU-new"),
     {("gpus", "host"): ("8 x NVIDIA A100-SXM4-40GB", "1 of them replaced", "neither")}),
    (lambda facts, _: set_in(facts["memory"], total_bytes=100 * GIB),
     {("memory", "host"): (200 * GIB, 100 * GIB, "worse")}),
    (lambda _, passport: set_in(passport["plan"], engine_version="9.9", hash="new"),
     {("engine", "chat"): ("vllm 0.24.0", "vllm 9.9", "neither")}),
    (lambda _, passport: set_in(passport["plan"], hash="n" * 64),
     {("plan", "chat"): (served()[1]["plan"]["hash"][:12], "n" * 12, "neither")}),
    (lambda _, passport: set_in(passport["plan"]["model"], commit="c" * 40),
     {("revision", "chat"): ("f" * 40, "c" * 40, "neither")}),
    (lambda facts, passport: 12.0, {("speed", "chat"): (40.0, 12.0, "worse")}),
    (lambda facts, passport: 60.0, {("speed", "chat"): (40.0, 60.0, "better")}),
    # Figures of short proofs differ.
    (lambda facts, passport: 36.0, {}),
    (lambda facts, passport: None, {}),
])
def test_drift_tells_what_changed_and_nothing_else(change, wanted):
    assert drifted(change, findings=[HOT]) == wanted


def test_drift_of_memory_is_of_what_the_engine_took():
    def smaller(_facts, passport):
        passport["memory"]["observed"]["kv_bytes"] //= 2

    [(key, (before, after, good))] = drifted(smaller, findings=[HOT]).items()
    assert (key, good) == (("memory", "chat"), "neither")
    assert before > after > 0


def test_drift_of_findings_and_state():
    assert drifted(lambda *_: None, against=[WRONG]) == {
        ("state", "host"): ("proven", "not proven", "worse"),
        ("finding", "endpoint chat"): ("", "smoke-completion (error)", "worse"),
        ("finding", "GPU 0"): ("gpu-hot (warning)", "", "better")}


def test_of_a_host_that_was_not_looked_at_only_its_state_can_have_changed():
    assert drifted(lambda facts, passport: 1.0, entry=FAILED) == {
        ("state", "host"): ("proven", "failed", "worse")}


def test_after_a_failure_the_next_run_compares_with_what_was_last_seen():
    facts, passport = served()
    host = record(passport, facts)
    first = fleet_report.run_record("gpu", OK, dict(RUN, id="0"), None, host, {"chat": passport})
    failed = fleet_report.run_record("gpu", FAILED, dict(RUN, id="1"), first, host, {})
    facts["driver"]["version"] = "600"
    told = drift_of(failed, record(passport, facts), passport)
    assert told == {"state": ("failed", "proven"), "driver": ("580.159.04", "600")}


def test_after_a_first_run_that_failed_only_the_state_has_changed():
    facts, passport = served()
    failed = fleet_report.run_record("gpu", FAILED, dict(RUN, id="0"), None, None, {})
    assert drift_of(failed, record(passport, facts, [HOT]), passport) == {
        "state": ("failed", "proven")}


def test_an_endpoint_that_is_no_more_makes_a_host_no_worse():
    facts, passport = served()
    one = fleet_report.run_record(
        "gpu", OK, dict(RUN, id="0"), None, record(passport, facts), {"chat": passport})
    told = only(content(record(None, facts), OK, before=one))["drift"]
    assert {(change["what"], change["good"]) for change in told} == {
        ("state", "neither"), ("endpoint", "neither")}


def drift_of(before, host, passport):
    return {one["what"]: (one["before"], one["after"]) for one in only(
        content(host, OK, passport, before=before))["drift"]}


def test_an_endpoint_that_comes_or_goes_is_drift():
    facts, passport = served()
    one = fleet_report.run_record("gpu", OK, dict(RUN, id="0"), None, record(None, facts), {})
    assert drift_of(one, record(passport, facts), passport)["endpoint"] == (
        "", "Llama-3.1-70B on vllm 0.24.0")


# What is kept of a host.


def test_a_host_that_is_as_it_was_is_the_same_whatever_was_measured():
    facts, passport = served()
    one = record(passport, facts, [HOT])
    facts["memory"].update(free_bytes=1, available_bytes=2)
    facts["devices"][0].update(temperature_c=90, memory_free_bytes=3)
    other = record(passport, facts, against=[WRONG], before=one)
    assert fleet_report.identity(one) == fleet_report.identity(other)
    assert one["verdicts"] != other["verdicts"]
    facts["driver"]["version"] = "600"
    assert fleet_report.identity(record(passport, facts)) != fleet_report.identity(one)


def test_what_was_not_asked_keeps_its_verdict_as_long_as_its_plan():
    facts, passport = served()
    one = record(passport, facts, against=[WRONG])
    kept = record(passport, None, before=one, verdicts=[], health={})
    assert kept["verdicts"] == one["verdicts"]
    assert kept["facts"] == one["facts"]
    assert kept["health"] == one["health"]
    passport["plan"]["hash"] = "another"
    anew = record(passport, facts, before=one, verdicts=[])["verdicts"]["chat"]
    assert (anew["passed"], anew["at"]) == (True, passport["written"])


def test_endpoints_that_were_not_told_of_go_only_when_all_were():
    facts, passport = served()
    one = record(passport, facts)
    assert record(None, facts, before=one, complete=False)["endpoints"] == ["chat"]
    assert record(None, facts, before=one, complete=False)["verdicts"] == one["verdicts"]
    assert record(None, facts, before=one)["endpoints"] == []


def test_what_may_be_a_key_is_not_told():
    _facts, passport = served()
    passport["plan"]["extra_args"] = ["--api-key", "hunter2", "--hf-token=hunter2", "hunter2"]
    passport["plan"]["command"] = {"argv": ["hunter2"], "env": {"KEY": "hunter2"}}
    passport["service"]["text"] = "KEY=hunter2"
    told = content(record(passport), OK, passport)
    report = fleet_report.fleet_report(told, NOW)
    assert report["hosts"][0]["endpoints"][0]["extra_flags"] == ["--api-key", "--hf-token"]
    for page in fleet_pages.rendered(report).values():
        assert b"hunter2" not in page


# The page.


class Outline(html.parser.HTMLParser):
    """Whether what is opened is closed, ids are there once, and links to them lead somewhere."""

    VOID = {"meta", "link", "br", "input", "img", "hr"}

    def __init__(self):
        super().__init__()
        self.open, self.wrong, self.ids, self.links, self.headings = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if "href" in found else []
        self.headings += [int(tag[1])] if tag in ("h1", "h2", "h3", "h4", "h5") else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append((tag, self.getpos()))


def outline(page):
    """The outline of a page, which has to be well-formed."""
    found = Outline()
    found.feed(page.decode())
    found.close()
    assert (found.wrong, found.open) == ([], [])
    assert len(found.ids) == len(set(found.ids))
    assert {one[1:] for one in found.links if one.startswith("#")} <= set(found.ids)
    # It needs nothing from elsewhere.
    assert [one for one in found.links if not one.startswith(("#", "data:"))] == []
    return found


def test_the_page_is_well_formed_and_its_headings_leave_out_no_level(tmp_path):
    report_fleet.small(tmp_path)
    found = outline((tmp_path / "index.html").read_bytes())
    assert found.headings[0] == 1
    assert all(after <= before + 1 for before, after in zip(found.headings, found.headings[1:]))


def test_pages_of_no_host_are_pages():
    pages = fleet_pages.rendered(fleet_report.fleet_report({}, NOW))
    assert outline(pages["index.html"]).headings == [1, 2, 2]
    assert b"0 of 0 hosts proven" in pages["report.md"]


# Whatever is in the folder.


def corrupted(sound):
    """The same with some of it replaced by anything."""
    def places(value, way=()):
        yield way
        inner = value.items() if isinstance(value, dict) else (
            enumerate(value) if isinstance(value, list) else ())
        for key, one in inner:
            yield from places(one, (*way, key))

    def put(way, anything):
        made = copy.deepcopy(sound)
        place = made
        for key in way[:-1]:
            place = place[key]
        if not way:
            return anything
        place[way[-1]] = anything
        return made

    return st.builds(put, st.sampled_from(list(places(sound))),
                     strategies.JSON | strategies.HOSTILE | st.sampled_from(
                         [10**400, -1, float("nan"), float("inf"), "\ud800", "x" * 5000]))


FACTS, PASSPORT = served()
KEPT = record(PASSPORT, FACTS, [HOT], [WRONG])
SOUND = content(KEPT, dict(OK, stages=report_fleet.stages()), PASSPORT, before=(
    fleet_report.run_record("gpu", OK, dict(RUN, id="0"), None, KEPT, {"chat": PASSPORT})))


@given(corrupted(SOUND) | strategies.JSON)
def test_no_content_breaks_the_report_or_its_pages(told):
    report = fleet_report.fleet_report(told, NOW)
    assert set(report["totals"]["states"]) == set(fleet_report.STATES)
    for host in report["hosts"]:
        assert host["state"] in fleet_report.STATES
        for one in host["endpoints"]:
            assert one["state"] in fleet_report.ENDPOINT_STATES
            assert all(0 <= part["predicted_percent"] <= 100 for part in one["memory"]["parts"])
    json.dumps(report, allow_nan=False)
    pages = fleet_pages.rendered(report)
    assert b"\x1b" not in b"".join(pages.values())
    outline(pages["index.html"])


@given(corrupted({"facts": FACTS, "verdicts": [report_fleet.verdict(PASSPORT["plan"], 1.0, 1.0)],
                  "health": {"findings": [HOT]}, "root": "/r", "complete": False,
                  "endpoints": [{"name": "chat", "passport": PASSPORT}]}) | strategies.JSON,
       corrupted(KEPT) | strategies.JSON)
def test_no_host_breaks_what_is_kept_of_it(said, before):
    kept = fleet_report.host_record("gpu", said if isinstance(said, dict) else {}, before, NOW)
    assert kept["host"] == "gpu"
    again = fleet_report.run_record("gpu", OK, RUN, before, kept, {"chat": PASSPORT})
    assert again["now"]["state"] in fleet_report.STATES
    json.dumps([kept, again])
