# SPDX-License-Identifier: Apache-2.0
"""What a host needs for containers, decided: an engine, GPUs, images, or why not."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from ansible.module_utils.firstlight.planning import container_runtime as planned

CATALOG = Path(__file__).parents[2] / "catalog"
PACKAGES, ERRORS = (yaml.safe_load((CATALOG / name).read_text())
                    for name in ("container_packages.yml", "registry_errors.yml"))
DONE = ("install", "start", "toolkit", "needs", "generate", "act")
NOTHING = [[], "", "", {}, "", False]
UUID = "GPU-2e3a1c00-0000-4000-8000-000000000000"
ENGINE = {"version": "26.1.5+dfsg1", "cdi": True, "nvidia_runtime": False, "live_restore": False}
NVIDIA = {"ctk": "/usr/bin/nvidia-ctk", "runtime": "/usr/bin/nvidia-container-runtime", "hook": "",
          "refresh": False, "devices": {}, "unreadable": [], "nodes": {UUID: "/dev/nvidia0"}}
NAMED = {UUID: {"file": "/etc/cdi/nvidia.yaml", "nodes": ["/dev/nvidiactl", "/dev/nvidia0"],
                "gone": []}}


def seen(engine=None, nvidia=None, **changes):
    found = {"state": "running", "why": "", "root": True, "systemd": True, "pid": 1,
             "unit": "docker.service", "words": [], "file": "/etc/docker/daemon.json",
             "engine": {**ENGINE, **(engine or {})}, "running": [], "changes": [],
             "nvidia": {**NVIDIA, **(nvidia or {})}, **changes}
    return found if found["state"] == "running" else {**found, "engine": None}


def facts(kind="nvidia", distribution="debian", like=()):
    return {"class": kind, "system": {"distribution": distribution, "version": "13",
                                      "like": list(like)}}


def plan(*gpus, runtime="docker", image="example.org/engine:1"):
    return {"name": "chat", "runtime": runtime, "image": image, "gpus": list(gpus)}


def decide(plans, host=None, found=None, consent=False):
    return planned.container_runtime(plans, host or facts(), found or seen(), PACKAGES, consent)


def ids(decided):
    return [one["id"] for one in decided["refusals"]]


# The engine.


def test_without_a_plan_for_a_container_nothing_is_done():
    for plans in ([], [plan(UUID, runtime="native")]):
        decided = decide(plans, found={"skipped": True})
        assert (decided["wanted"], decided["act"], decided["refusals"]) == (False, False, [])


@pytest.mark.parametrize("version", ["20.10.24+dfsg1", "28.2.2", "29.0.0-rc.1"])
def test_a_good_engine_is_left_alone(version):
    decided = decide([plan()], found=seen({"version": version}))
    assert [decided[key] for key in DONE] == NOTHING


@pytest.mark.parametrize("version", ["19.03.15", "20.9.0", "", "dev"])
def test_an_old_engine_is_refused(version):
    assert ids(decide([plan()], found=seen({"version": version}))) == ["docker-too-old"]


@pytest.mark.parametrize(("distribution", "like", "packages"), [
    ("debian", [], ["docker.io", "iptables"]), ("mint", ["ubuntu", "debian"], ["docker.io",
                                                                              "iptables"]),
    ("fedora", [], ["moby-engine"]), ("opensuse-leap", ["suse", "opensuse"], ["docker"])])
def test_the_distributions_engine_is_installed(distribution, like, packages):
    decided = decide([plan()], facts(distribution=distribution, like=like), seen(state="absent"))
    assert (decided["install"], decided["start"]) == (packages, "docker.service")
    # Without systemd nothing here starts it.
    assert decide([plan()], facts(distribution=distribution, like=like), seen(
        state="absent", systemd=False))["start"] == ""


@pytest.mark.parametrize(("host", "found"), [
    (facts(), {"state": "absent", "root": False}),
    (facts(distribution="rhel"), {"state": "absent"}),
    (facts(distribution=None), {"state": "absent"})])
def test_what_cannot_be_installed_is_refused(host, found):
    decided = decide([plan()], host, seen(**found))
    assert (ids(decided), decided["install"]) == (["docker-absent"], [])


def test_a_stopped_engine_is_started_where_that_is_ours_to_do():
    assert decide([plan()], found=seen(state="stopped"))["start"] == "docker.service"
    for changes in ({"unit": ""}, {"root": False}):
        assert ids(decide([plan()], found=seen(state="stopped", **changes))) == ["docker-stopped"]


def test_a_daemon_that_this_user_may_not_ask_is_refused():
    assert ids(decide([plan()], found=seen(state="refused", why="Permission denied"))) == [
        "docker-not-permitted"]


def test_defaults_alone_are_a_reason_to_act():
    assert decide([plan()], found=seen(changes=["log-opts.max-size: default"]))["act"] is True


# GPUs.


def test_an_engine_with_cdi_and_a_good_specification_needs_nothing():
    decided = decide([plan(UUID)], found=seen(nvidia={"devices": NAMED}))
    assert (decided["gpu"], decided["needs"], decided["generate"], decided["act"]) == (
        "cdi", {}, "", False)


def test_cdi_is_turned_on_where_it_is_off():
    decided = decide([plan(UUID)], found=seen({"cdi": False}, {"devices": NAMED}))
    assert (decided["gpu"], decided["needs"], decided["act"]) == (
        "cdi", {"features": {"cdi": True}}, True)


@pytest.mark.parametrize(("refresh", "how"), [(True, "refresh"), (False, "generate")])
def test_a_missing_specification_is_made(refresh, how):
    decided = decide([plan(UUID)], found=seen(nvidia={"refresh": refresh}))
    assert (decided["gpu"], decided["generate"], decided["toolkit"]) == ("cdi", how, "")
    assert UUID in decided["reasons"][0]


@pytest.mark.parametrize("change", [
    {"gone": ["/usr/lib/libcuda.so.535"]}, {"nodes": ["/dev/nvidia1"]}])
def test_a_stale_specification_is_made_anew(change):
    nvidia = {"devices": {UUID: {**NAMED[UUID], **change}}}
    decided = decide([plan(UUID)], found=seen(nvidia=nvidia))
    assert decided["generate"] == "generate"


def test_a_specification_without_nodes_is_not_held_against_the_host():
    nvidia = {"devices": {UUID: {**NAMED[UUID], "nodes": []}}}
    assert decide([plan(UUID)], found=seen(nvidia=nvidia))["generate"] == ""


def test_without_root_a_stale_specification_is_refused():
    assert ids(decide([plan(UUID)], found=seen(root=False))) == ["cdi-stale"]


def test_without_the_toolkit_it_is_installed_or_said():
    bare = {"ctk": "", "runtime": ""}
    assert decide([plan(UUID)], found=seen(nvidia=bare))["toolkit"] == "nvidia-container-toolkit"
    old = {"version": "24.0.9", "cdi": False}
    assert decide([plan(UUID)], found=seen(old, bare))["toolkit"] == "nvidia-container-toolkit"
    assert ids(decide([plan(UUID)], found=seen(old, bare, root=False))) == [
        "container-toolkit-missing"]
    # A specification of somebody's own does without.
    assert decide([plan(UUID)], found=seen(nvidia={**bare, "devices": NAMED}))["toolkit"] == ""


@pytest.mark.parametrize("version", ["20.10.24", "24.0.9"])
def test_an_engine_without_cdi_gives_gpus_by_the_runtime(version):
    old = {"version": version, "cdi": False}
    decided = decide([plan(UUID)], found=seen(old))
    assert (decided["gpu"], list(decided["needs"])) == ("runtime", ["runtimes"])
    decided = decide([plan(UUID)], found=seen({**old, "nvidia_runtime": True}))
    assert (decided["gpu"], decided["needs"], decided["act"]) == ("runtime", {}, False)


def test_a_jetson_has_the_runtime_always():
    decided = decide([plan(UUID)], facts("jetson"), seen(nvidia={"devices": NAMED}))
    assert (decided["gpu"], list(decided["needs"])) == ("runtime", ["runtimes"])


def test_what_runs_is_not_stopped_for_cdi_where_the_runtime_does():
    busy = {"engine": {"cdi": False}, "nvidia": {"devices": NAMED}, "running": ["one"]}
    decided = decide([plan(UUID)], found=seen(**busy))
    assert (decided["gpu"], list(decided["needs"])) == ("runtime", ["runtimes"])
    assert decide([plan(UUID)], found=seen(**busy), consent=True)["gpu"] == "cdi"
    # Where there is no runtime either, it is the module that says what a restart would stop.
    busy["nvidia"] = {"devices": NAMED, "runtime": ""}
    assert decide([plan(UUID)], found=seen(**busy))["needs"] == {"features": {"cdi": True}}


def test_without_an_engine_gpus_are_decided_once_there_is_one():
    decided = decide([plan(UUID)], found=seen(state="absent"))
    assert (decided["gpu"], decided["needs"], decided["install"][0]) == ("none", {}, "docker.io")


def test_what_is_refused_does_nothing():
    decided = decide([plan(UUID)], found=seen(root=False, changes=["x"]))
    assert decided["refusals"]
    assert [decided[key] for key in DONE] == NOTHING


def test_a_decision_leaves_what_it_was_given():
    plans, host, found = [plan(UUID)], facts(), seen({"cdi": False})
    before = copy.deepcopy((plans, host, found))
    decide(plans, host, found)
    assert (plans, host, found) == before


# Images.

DIGEST = "@sha256:" + "0" * 64


@pytest.mark.parametrize(("image", "name"), [
    ("example.org/engine:1", "example.org/engine:1"), ("engine", "engine"),
    ("example.org:5000/engine:1" + DIGEST, "example.org:5000/engine" + DIGEST),
    ("example.org:5000/engine" + DIGEST, "example.org:5000/engine" + DIGEST)])
def test_an_image_is_looked_for_by_its_digest_where_it_has_one(image, name):
    assert planned.container_images([plan(image=image)], {}, {}) == [
        {"image": image, "name": name, "source": "pull", "path": ""}]


@pytest.mark.parametrize("key", ["example.org/engine:1" + DIGEST, "example.org/engine:1"])
def test_an_image_of_an_archive_or_a_build_is_looked_for_by_its_tag(key):
    image = "example.org/engine:1" + DIGEST
    for given, source in (({key: "/srv/x"}, "archive"), ({}, "build")):
        assert planned.container_images([plan(image=image)], given, {key: "/srv/x"}) == [
            {"image": image, "name": "example.org/engine:1", "source": source, "path": "/srv/x"}]


def test_each_image_is_brought_once_and_only_for_containers():
    plans = [plan(), plan(), plan(image="b"), plan(image="", runtime="native")]
    assert [one["image"] for one in planned.container_images(plans, {}, {})] == [
        "b", "example.org/engine:1"]


@pytest.mark.parametrize(("image", "registry"), [
    ("engine:1", "docker.io"), ("vllm/vllm-openai:v1", "docker.io"), ("localhost/x", "localhost"),
    ("example.org/x", "example.org"), ("example.org:5000/x:1", "example.org:5000")])
def test_the_registry_of_an_image(image, registry):
    assert planned.registry(image) == registry


# As engine 20.10 and 26.1 say it.
SAID = {
    "image-no-room": "failed to register layer: write /usr/lib/x: no space left on device",
    "image-limit": "toomanyrequests: You have reached your pull rate limit.",
    "image-not-permitted": "unauthorized: authentication required",
    "image-unknown": "manifest for example.org/engine:9 not found: manifest unknown: OCI index "
                     "found, but Accept header does not support OCI indexes",
    "image-other-platform": "no matching manifest for linux/arm64/v8 in the manifest list entries",
    "registry-certificate": 'Get "https://example.org/v2/": x509: certificate signed by unknown '
                            "authority",
    "registry-unreachable": 'Get "https://example.org/v2/": dial tcp: lookup example.org on '
                            "192.0.2.1:53: no such host",
    "image-not-had": "something new",
}


@pytest.mark.parametrize("id_", SAID)
def test_why_an_image_cannot_be_had_is_told_apart(id_):
    image, = planned.container_images([plan()], {}, {})
    told, = planned.image_findings(SAID[id_], image, ERRORS)
    assert told["id"] == id_
    assert "example.org/engine:1" in told["subject"]
    assert "%" not in told["found"] + told["wanted"] + told["remedy"]


def test_an_archive_that_does_not_give_it_names_the_file():
    image, = planned.container_images([plan()], {"example.org/engine:1": "/srv/x.tar"}, {})
    told, = planned.image_findings("No such file or directory", image, ERRORS)
    assert (told["id"], "/srv/x.tar" in told["found"]) == ("image-no-archive", True)
    assert "container_runtime_archives" in told["remedy"]
