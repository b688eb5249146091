# SPDX-License-Identifier: Apache-2.0
"""What the engine did is on the controller, what served is back, and both engines are measured."""

import gzip
import json
import pathlib
import xml.etree.ElementTree as ElementTree

import pytest

REPORTS = pathlib.Path("/tmp/fl-molecule-reports")
ENDPOINT = "/var/lib/firstlight/endpoints/demo/"
# What measured each engine: the tool that asked the endpoint first.
TOOLS = {"vllm12": ["vllm bench serve"], "llamasid": ["firstlight", "llama-bench"]}


@pytest.fixture
def name(host):
    return host.backend.get_hostname().removeprefix("firstlight-")


@pytest.fixture
def passport(host):
    return json.loads(host.file(ENDPOINT + "passport.json").content_string)


@pytest.fixture
def recorded(name):
    """The folder on the controller that a profile was brought into."""
    if name != "vllm12":
        pytest.skip("its engine has no profiler")
    return REPORTS / name / "profiles" / "demo"


@pytest.fixture
def profile(host, recorded):
    return json.loads(host.file(ENDPOINT + "profile.json").content_string)


def test_a_trace_holds_work_of_the_engine(recorded, profile):
    events = []
    for number, trace in enumerate(profile["traces"]):
        text = gzip.decompress((recorded / ("trace-%d.json.gz" % number)).read_bytes())
        found = [one for one in json.loads(text)["traceEvents"] if one.get("cat") == "cpu_op"]
        assert len(text) > 0 and trace["bytes"] > 0
        events += found
    names = {one["name"] for one in events}
    assert {"aten::addmm", "aten::mm", "aten::linear", "_C::onednn_mm"} & names, sorted(names)[:50]


def test_what_took_most_of_the_time_is_told(recorded, profile):
    assert profile["host"] and profile["device"] == []
    first = profile["host"][0]
    assert 0 < first["self_s"] <= first["total_s"] and first["calls"] > 0
    table = (recorded / "operators.txt").read_text(encoding="utf-8")
    assert first["name"] in table
    picture = ElementTree.fromstring((recorded / "shares.svg").read_text(encoding="utf-8"))
    assert first["name"][:20] in "".join(picture.itertext())
    assert json.loads((recorded / "profile.json").read_text(encoding="utf-8")) == profile


def test_what_served_is_back_and_has_no_profiler(host, recorded, profile, passport):
    assert profile["plan"] == passport["plan"]["hash"] != profile["variant"]
    assert host.check_output("cat /proc/*/cmdline 2>/dev/null | tr '\\0' ' ' || true").count(
        "--profiler-config") == 0
    assert host.file(ENDPOINT + "profile").exists is False
    found = host.check_output(
        "find /var/lib/firstlight/cache -name '*.json.gz' -o -name '*trace*json*'")
    assert found == ""


def test_it_answers_as_before(host, passport):
    plan = passport["plan"]
    said = host.check_output(
        "curl -s --max-time 60 -H 'Content-Type: application/json' -d %s %s", json.dumps({
            "model": plan["model"]["served_name"], "prompt": plan["oracle"]["prompt"],
            "max_tokens": plan["oracle"]["max_tokens"], "temperature": 0}),
        plan["url"] + "/v1/completions")
    assert json.loads(said)["choices"][0]["text"] == plan["oracle"]["completion"]


def test_it_was_measured_by_what_its_engine_brings(name, passport):
    points = passport["benchmark"]["points"]
    assert sorted({one["tool"] for one in points}) == sorted(TOOLS[name]), passport["benchmark"]
    assert {one["concurrency"] for one in points} == {1, 4}
    for one in points:
        assert one["requests"] > 0 and one["failed"] == 0, one
        assert one["output_tokens_per_second"] > 0, one
