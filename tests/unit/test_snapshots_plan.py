# SPDX-License-Identifier: Apache-2.0
"""Models of repositories: what of them is wanted, and the plans that serve them from this host."""

from __future__ import annotations

import facts as made
import planner
import pytest

from ansible.module_utils.firstlight.findings import finding
from ansible.module_utils.firstlight.planning import container, served, snapshots
from ansible.module_utils.firstlight.planning import plan as planning
from ansible.module_utils.firstlight.planning import requests as asking

REPO, COMMIT = "Qwen/Qwen2.5-0.5B", "9217f5db79a29953eb74d5343926648285ec7e67"
HUB = "/var/lib/firstlight/models/hub/models--Qwen--Qwen2.5-0.5B"
FOLDER = "%s/snapshots/%s" % (HUB, COMMIT)
VLLM = planner.host("h100", 1)
OLD = planner.host("v100", 1, driver={"version": "450.80.02"})


def wanted(facts, allow_pickle=(), **asked):
    """What is wanted of the repository of one endpoint."""
    [found] = snapshots.snapshot_requests(
        planner.asked({"model": REPO, **asked}), facts, planner.catalog(), allow_pickle)
    return found


def snapshot(kind="gguf", **changes):
    """What the module says of the repository."""
    path = FOLDER + "/qwen-q8_0.gguf" if kind == "gguf" else FOLDER
    of = planner.gguf if kind == "gguf" else planner.model
    return {"repo_id": REPO, "revision": "main", "commit": COMMIT, "path": path,
            "fingerprint": "c" * 64, "present": False, "verified": None,
            "model": of("Qwen2.5-0.5B", path="/tmp/outline", folders=[HUB + "/blobs"]), **changes}


def planned(facts, found=None, **asked):
    """The plan of an endpoint whose repository is so."""
    taken = planner.asked({"model": REPO, **asked})
    models = snapshots.snapshot_models(taken, {"chat": found or snapshot()})
    return planner.only(planner.plan(facts, {"model": REPO, **asked}, models=models))


# What is wanted.


@pytest.mark.parametrize(("facts", "asked", "formats"), [
    (planner.cpu(), {}, ["gguf", "safetensors"]),
    (VLLM, {}, ["safetensors", "gguf"]),
    (VLLM, {"gpus": 0}, ["gguf", "safetensors"]),
    (OLD, {}, ["gguf", "safetensors"]),
    (VLLM, {"engine": "llama_cpp"}, ["gguf"]),
    (planner.cpu(), {"engine": "vllm"}, ["safetensors"]),
    (VLLM, {"model": REPO + ":Q8_0"}, ["gguf"]),
    (made.jetson_host(), {}, ["gguf", "safetensors"])])
def test_the_format_is_what_serves_best_on_the_host(facts, asked, formats):
    found = wanted(facts, **asked)
    assert found["formats"] == formats
    assert (found["name"], found["repo_id"], found["revision"]) == ("chat", REPO, None)
    assert found["quantisation"] == ("Q8_0" if ":" in asked.get("model", "") else None)


@pytest.mark.parametrize("allowed", ["chat", REPO])
def test_pickles_come_last_and_only_for_those_that_are_named(allowed):
    assert wanted(VLLM, [allowed])["formats"] == ["safetensors", "gguf", "pickle"]
    assert wanted(VLLM, ["other"])["formats"] == ["safetensors", "gguf"]
    assert wanted(VLLM, [allowed], engine="llama_cpp")["formats"] == ["gguf"]


def test_nothing_is_wanted_of_paths_and_the_canary():
    taken = planner.asked({"model": "canary"}, {"model": "/srv/models/Qwen2.5-0.5B.gguf"})
    assert snapshots.snapshot_requests(taken, VLLM, planner.catalog()) == []


# What is due.


@pytest.mark.parametrize(("found", "verify", "is_due"), [
    ({}, "fast", True),
    ({"present": True}, "fast", True),
    ({"present": True, "verified": "fast"}, "fast", False),
    ({"present": True, "verified": "full"}, "fast", False),
    ({"present": True, "verified": "fast"}, "full", True),
    ({"present": True, "verified": "full"}, "full", False)])
def test_what_is_missing_or_not_verified_is_due_at_the_commit_that_was_found(
        found, verify, is_due):
    one = wanted(VLLM, revision="main")
    due = snapshots.snapshots_due([one], {"snapshots": {"chat": snapshot(**found)}}, verify)
    assert due == ([{**one, "revision": COMMIT}] if is_due else [])


def test_of_what_nothing_is_known_nothing_is_fetched():
    assert snapshots.snapshots_due([wanted(VLLM)], {"snapshots": {}, "findings": []}) == []


# What is wrong with it.


def test_a_finding_names_the_variable_of_every_endpoint_that_has_the_repository():
    taken = planner.asked({"model": REPO}, {"model": REPO + ":Q8_0"}, {"model": "canary"})
    gated = finding("snapshot-gated", REPO, "it is gated", "access", "ask for it")
    hub = finding("snapshot-hub-unreachable", "https://example.org", "no answer", "one", "wait")
    found = snapshots.snapshot_findings(taken, {"findings": [gated, hub]})
    assert found[0]["subject"] == (
        "inference_endpoints[0] (chat).model and inference_endpoints[1] (chat1).model")
    assert found[0]["found"] == REPO + ": it is gated"
    assert found[1] == hub


def test_only_what_can_be_planned_for_is_left():
    taken = planner.asked({"model": "canary"}, {"model": REPO}, {"model": "other/one"})
    gated = finding("snapshot-gated", "other/one", "it is gated", "access", "ask for it")
    told = {"snapshots": {"chat1": snapshot(), "chat2": snapshot(model=None)}}

    def left(**more):
        return [one["name"] for one in snapshots.snapshot_known(taken, {**told, **more})]

    assert left(findings=[gated]) == ["chat", "chat1"]
    assert left(skipped=["chat2"]) == ["chat", "chat1"]
    # Nobody says why: then the planner says that it knows nothing of it.
    assert left(findings=[dict(gated, severity="warning")]) == ["chat", "chat1", "chat2"]
    assert [one["name"] for one in snapshots.snapshot_known(taken, {})] == [
        "chat", "chat1", "chat2"]


def test_a_repository_that_nobody_looked_at_is_refused():
    found = planner.refusal(planner.plan(planner.cpu(), {"model": REPO}, models={}))
    assert found["id"] == "plan-model-unknown"
    assert REPO in found["found"]


# The plan.


@pytest.mark.parametrize(("facts", "kind", "asked"), [
    (planner.cpu(), "gguf", {"model": REPO + ":Q8_0"}), (VLLM, "safetensors", {})])
def test_an_engine_is_given_a_path_of_the_host_and_clients_the_repositorys_id(facts, kind, asked):
    plan = planned(facts, snapshot(kind), **asked)
    argv = plan["command"]["argv"]
    assert argv[argv.index("--model" if kind == "gguf" else "serve") + 1] == snapshot(kind)["path"]
    assert argv[argv.index("--alias" if kind == "gguf" else "--served-model-name") + 1] == REPO
    assert not {"-hf", "--hf-repo", "--revision", "--download-dir"} & set(argv)
    if kind == "safetensors":
        assert plan["command"]["env"]["HF_HUB_OFFLINE"] == "1"
    assert {key: plan["model"][key] for key in ("repo_id", "revision", "commit", "fingerprint")
            } == {"repo_id": REPO, "revision": "main", "commit": COMMIT, "fingerprint": "c" * 64}


def test_the_same_files_make_the_same_plan_whatever_the_revision_is_called():
    plan = planned(planner.cpu())
    for changes in ({"revision": COMMIT}, {"present": True, "verified": "full"}):
        assert planned(planner.cpu(), snapshot(**changes))["hash"] == plan["hash"]
    assert planned(planner.cpu(), snapshot(fingerprint="d" * 64))["hash"] != plan["hash"]


def test_a_name_is_not_changed_by_what_else_is_served():
    taken = planner.asked({"model": REPO + ":Q8_0"}, {"model": REPO + ":Q4_0"})
    models = snapshots.snapshot_models(taken, {"chat": snapshot(), "chat1": snapshot(
        path=FOLDER + "/qwen-q4_0.gguf", fingerprint="d" * 64)})
    plans = planner.plan(planner.cpu(), {"model": REPO + ":Q8_0"}, {"model": REPO + ":Q4_0"},
                         models=models)["endpoints"]
    assert [one["model"]["served_name"] for one in plans] == [REPO, REPO]
    assert plans[0]["model"]["path"] != plans[1]["model"]["path"]


@pytest.mark.parametrize("entry", [{"model": "canary"}, {"model": "/srv/models/Qwen2.5-0.5B.gguf"},
                                   {"model": "/srv/models/Qwen2.5-0.5B", "engine": "vllm"}])
def test_a_passport_from_before_keeps_its_plan(entry):
    """Its plan says nothing of repositories, folders and code."""
    facts = VLLM if "engine" in entry else planner.cpu()
    plan = planner.only(planner.plan(facts, entry))
    for key in served.BESIDE:
        del plan["model"][key]
    assert planning.plan_hash(plan) == plan["hash"]
    again = planner.only(planner.plan(facts, entry, state=planner.state(
        {"chat": planner.serving(plan)})))
    assert again["hash"] == plan["hash"]
    assert again["command"] == plan["command"]


def test_a_path_that_is_a_way_to_say_where_it_lies_is_served_from_there():
    asked = "/hub/models--Qwen--Qwen2.5-0.5B"
    plan = planner.only(planner.plan(VLLM, {"model": asked}, models={
        asked: planner.model("Qwen2.5-0.5B", path=FOLDER)}))
    assert (plan["model"]["path"], plan["model"]["served_name"]) == (FOLDER, REPO)


def test_code_of_a_model_is_run_where_it_needs_it():
    code = {"custom_code": ["modeling_own.py"]}
    model = planner.model("Qwen2.5-0.5B", **code)
    for asked, times in (({}, 1), ({"extra_args": ["--trust-remote-code"]}, 1)):
        plan = planned(VLLM, snapshot("safetensors", model=model), **asked)
        assert plan["command"]["argv"].count("--trust-remote-code") == times
    without = planned(VLLM, snapshot("safetensors"))
    assert "--trust-remote-code" not in without["command"]["argv"]
    assert plan["hash"] != without["hash"]


def test_pickles_are_served_by_what_serves_safetensors():
    model = planner.model("Qwen2.5-0.5B", format="pickle", pickle=True)
    assert planned(VLLM, snapshot("safetensors", model=model))["engine"] == "vllm"


# Containers.


@pytest.mark.parametrize(("path", "folders", "mounted"), [
    (FOLDER, [HUB + "/blobs", FOLDER], [HUB]),
    # Blobs that a hub's cache shares between its repositories.
    (FOLDER, [HUB + "/blobs", "/hub/blobs/3f", "/hub/blobs/c0"], [HUB, "/hub/blobs"]),
    ("/srv/m", ["/srv/m", "/srv/m/part", "/data/weights"], ["/srv/m", "/data/weights"]),
    ("/srv/m", ["/srv/mine"], ["/srv/m", "/srv/mine"]),
    ("/srv/m", ["/data/a/b", "/data/a"], ["/srv/m", "/data/a"]),
    ("/srv/m", [], ["/srv/m"])])
def test_a_container_has_all_folders_that_the_files_lie_in(path, folders, mounted):
    plan = planner.only(planner.plan(VLLM, {"model": "/srv/models/Qwen2.5-0.5B"}))
    plan["model"].update(path=path, folders=folders)
    found = container.container_spec({**plan, "cache": ""}, planner.ROOT, {})["made"]["mounts"]
    assert [(one["source"], one["target"], one["read_only"]) for one in found] == [
        (one, one, True) for one in mounted]


def test_the_root_of_a_host_is_never_mounted():
    plan = planner.only(planner.plan(planner.cpu(), {
        "model": "/srv/models/Qwen2.5-0.5B.gguf", "runtime": "docker"}))
    plan["model"].update(path="/m.gguf", folders=["/"])
    found = container.container_spec(plan, planner.ROOT, {})["made"]["mounts"]
    assert [one["source"] for one in found] == ["/m.gguf"]


def test_what_is_mounted_is_there_before_its_files_are_and_stays_whose_it_is():
    plan = planned(planner.cpu(), runtime="docker")
    [folder] = [one for one in container.container_spec(plan, planner.ROOT, {})["folders"]
                if one["path"] != plan["cache"]]
    assert folder == {"path": HUB, "owner": "", "group": ""}


def test_what_a_request_without_a_repository_has():
    [request] = asking.normalise([{"name": "chat", "model": "canary"}])[0]
    assert (request["repo_id"], request["quantisation"]) == (None, None)


@pytest.mark.parametrize("names", [["chat"], ["/ceph/models/m"], ["/fsx/models/m"]],
                         ids=["endpoint", "as it is asked for", "as it is mapped"])
def test_a_model_is_allowed_by_each_of_its_names_and_no_other_is(names):
    taken = asking.normalise([{"name": "chat", "model": "/ceph/models/m"},
                              {"name": "code", "model": "/fsx/models/other", "port": 8001}],
                             {"/ceph": "/fsx"})[0]
    assert snapshots.models_allowed(taken, names) == ["/fsx/models/m"]
    assert snapshots.models_allowed(taken, ["m", "models/m"]) == []
