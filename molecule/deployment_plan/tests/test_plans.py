# SPDX-License-Identifier: Apache-2.0
"""The plans are those of each host's own hardware, and no host was touched for them."""

import json
import pathlib

import pytest

PLANS = pathlib.Path("/tmp/fl-molecule-plans.json")
# Where anything of ours would go.
PLACES = "/etc /usr /opt /srv /var/lib/firstlight"


@pytest.fixture
def name(host):
    return host.backend.get_hostname()


@pytest.fixture
def plans(name):
    found = json.loads(PLANS.read_text(encoding="utf-8"))[name]
    assert found["refusals"] == []
    return {plan["name"]: plan for plan in found["endpoints"]}


def on(host, wanted):
    if host.backend.get_hostname() != wanted:
        pytest.skip("about the host " + wanted)


def test_a_model_is_split_over_two_cards_of_the_host_named_by_uuid(host, plans):
    on(host, "a100")
    profile = json.loads(host.file("/etc/firstlight-mock/profile.json").content_string)
    plan = plans["chat"]
    assert (plan["engine"], plan["tensor_parallel"], len(set(plan["gpus"]))) == ("vllm", 2, 2)
    assert set(plan["gpus"]) < {device["uuid"] for device in profile["devices"]}
    argv = plan["command"]["argv"]
    assert argv[argv.index("--tensor-parallel-size") + 1] == "2"


def test_the_weights_are_those_that_the_header_promises(host, plans):
    on(host, "a100")
    plan = plans["chat"]
    assert plan["model"]["bytes"] == host.file("/srv/models/llama-3.1-8b/model.safetensors").size
    # Llama 3.1 8B has 8,030,261,248 weights of two bytes; the header comes to them.
    assert 0 < plan["model"]["bytes"] - 2 * 8030261248 < 2**20


def test_a_canary_on_the_cpu_stands_beside_it(host, plans):
    on(host, "a100")
    assert (plans["canary"]["engine"], plans["canary"]["gpus"]) == ("llama_cpp", [])


def test_a_slice_is_planned_with_its_own_memory(host, plans):
    on(host, "mig")
    plan = plans["chat"]
    assert plan["gpus"] == ["MIG-0c8b1f0a-6b1e-5f0e-9d3c-0d2f7a1b4c02"]
    # All of a 2g.10gb of the profile.
    assert plan["memory"]["total_bytes"] <= plan["memory"]["limit_bytes"] <= 10468982784


def test_a_host_without_cards_serves_on_its_processors(host, plans):
    on(host, "deb12")
    assert {(plan["engine"], plan["runtime"], tuple(plan["gpus"])) for plan in plans.values()} == {
        ("llama_cpp", "native", ())}


def test_the_context_fits_into_the_memory_that_is_reckoned_for_it(plans):
    for plan in plans.values():
        memory = plan["memory"]
        assert 0 < plan["context"] <= memory["largest_context"]
        assert memory["total_bytes"] <= memory["limit_bytes"]


def test_no_file_was_written_on_the_host(host):
    found = host.run("find %s -newer /root/ready ! -type d ! -path '*/__pycache__/*'" % PLACES)
    assert found.stdout == ""
    assert host.file("/root/ready").exists


def test_a_host_that_had_nothing_of_ours_still_has_nothing(host):
    on(host, "deb12")
    assert not host.file("/var/lib/firstlight").exists


def test_no_engine_runs(host):
    # The brackets keep the pattern from finding the shell that has it.
    assert host.run("pgrep --list-full --full 'llama_serve[r]|vllm serv[e]'").stdout == ""
