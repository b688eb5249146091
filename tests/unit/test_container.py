# SPDX-License-Identifier: Apache-2.0
"""A container is made hardened, on the plan's devices, and reads in Compose as it is made."""

from __future__ import annotations

import copy

import planner
import pytest
import yaml
from facts import changed, uuid
from supervised import compose

from ansible.module_utils.firstlight.docker_service import NAMED
from ansible.module_utils.firstlight.planning import container

ROOT = "/var/lib/firstlight"
VLLM, GGUF = "/srv/models/Qwen2.5-0.5B", "/srv/models/Qwen2.5-0.5B.gguf"
ENGINE = {"cdi_devices": [], "nvidia_runtime": False, "jetson": False, "nofile_max": None,
          "memlock_unlimited": True, "device_nodes": {}}
NAMES = {"cdi_devices": ["nvidia.com/gpu=" + uuid(index) for index in range(2)]}


def plan_of(facts=None, changes=None, **asked):
    plan = planner.only(planner.plan(facts or planner.cpu(), {"runtime": "docker", **asked}))
    return changed(plan, changes or {})


def on_gpus(count=2, **asked):
    """A plan on every card of a host."""
    return plan_of(planner.host("h100", count), model=VLLM, gpus=[
        uuid(index) for index in range(count)], tensor_parallel=count, **asked)


def spec_of(plan=None, **engine):
    return container.container_spec(plan or plan_of(model=GGUF), ROOT, {**ENGINE, **engine})


def made(plan=None, **engine):
    return spec_of(plan, **engine)["made"]


# How it is hardened, and what it has.


@pytest.mark.parametrize("asked", [{"model": GGUF}, {"model": VLLM}])
def test_it_may_do_little_and_is_open_to_this_host_alone(asked):
    plan = plan_of(**asked)
    found = made(plan)
    assert found["cap_drop"] == ["ALL"]
    assert found["security_opts"] == ["no-new-privileges:true"]
    assert (found["read_only"], found["init"]) == (True, True)
    assert found["network_mode"] == container.NETWORK
    assert found["published_ports"] == ["127.0.0.1:%d:%d" % (2 * (plan["engine_port"],))]
    assert not {"privileged", "cap_add", "ipc_mode", "pid_mode"} & set(found)
    assert found["restart_policy"] == "unless-stopped"
    assert (found["log_driver"], set(found["log_options"])) == ("json-file",
                                                               {"max-size", "max-file"})


def test_behind_a_way_in_it_is_open_to_this_host_alone_too():
    plan = plan_of(model=GGUF, bind="192.0.2.1", api_key="k" * 32)
    assert plan["engine_port"] != plan["port"]
    assert made(plan)["published_ports"] == ["127.0.0.1:%d:%d" % (2 * (plan["engine_port"],))]
    assert "k" * 32 not in str(spec_of(plan))


def test_it_asks_nobody_and_tells_nobody_and_has_no_token():
    env = made(plan_of(model=VLLM))["env"]
    assert (env["HF_HUB_OFFLINE"], env["DO_NOT_TRACK"], env["VLLM_NO_USAGE_STATS"]) == (
        "1", "1", "1")
    assert env["HOME"] == "/tmp", "what its image has for that cannot be written"
    assert not [key for key in env if "TOKEN" in key]


def test_a_plan_says_what_is_started_and_by_whom():
    plan = plan_of(model=GGUF)
    found = made(plan)
    assert found["entrypoint"] + found["command"] == plan["command"]["argv"]
    assert found["image"] == plan["image"]
    assert found["user"] == plan["user"]
    assert "user" not in made(changed(plan, {"user": ""}))
    assert found["labels"] == {"firstlight.endpoint": "chat", "firstlight.root": ROOT,
                               "firstlight.plan": plan["hash"]}
    assert found["env"].items() >= plan["command"]["env"].items()


def test_its_health_is_asked_as_the_plan_has_it():
    for plan in (plan_of(model=GGUF), plan_of(model=VLLM)):
        health = made(plan)["healthcheck"]
        assert health["test"][0] == "CMD"
        assert health["test"][-1] == plan["url"] + "/health"
        assert health["start_period"] == "%ds" % plan["start_timeout_s"]


@pytest.mark.parametrize(("engine", "limits"), [
    ({}, ["nofile:1048576:1048576", "memlock:-1:-1"]),
    ({"memlock_unlimited": False}, ["nofile:1048576:1048576"]),
    ({"nofile_max": 4096, "memlock_unlimited": None}, ["nofile:4096:4096"]),
    ({"nofile_max": 2**30}, ["nofile:1048576:1048576", "memlock:-1:-1"])])
def test_a_daemon_gives_no_more_than_it_has(engine, limits):
    assert made(**engine)["ulimits"] == limits


def test_shared_memory_is_as_the_plan_has_it():
    assert "shm_size" not in made(plan_of(model=GGUF))
    plan = on_gpus()
    assert made(plan)["shm_size"] == str(plan["shm_bytes"])


# What it sees of the host.


@pytest.mark.parametrize(("path", "format_", "folder"), [
    ("/srv/models/m/m.gguf", "gguf", "/srv/models/m"),
    ("/srv/models/m", "safetensors", "/srv/models/m"),
    ("/hub/models--a--b/snapshots/c0ffee/m.gguf", "gguf", "/hub/models--a--b"),
    ("/hub/models--a--b/snapshots/c0ffee", "safetensors", "/hub/models--a--b"),
    ("/hub/models--a--b/snapshots/c0ffee/Q4/m.gguf", "gguf", "/hub/models--a--b"),
    # The root of a host is nobody's folder of models.
    ("/m.gguf", "gguf", "/m.gguf"),
    # A folder of that name which is none of a hub's has nothing to do with what lies beside it.
    ("/snapshots/m", "safetensors", "/snapshots/m"),
    ("/data/snapshots/m/m.gguf", "gguf", "/data/snapshots/m"),
    ("/snapshots/hub/models--a--b/snapshots/c0ffee", "safetensors",
     "/snapshots/hub/models--a--b")])
def test_it_reads_what_the_model_lies_in_and_no_more(path, format_, folder):
    plan = plan_of(model=GGUF, changes={"model": {"path": path, "format": format_}, "cache": ""})
    assert made(plan)["mounts"] == [
        {"type": "bind", "source": folder, "target": folder, "read_only": True}]


@pytest.mark.parametrize(("path", "folders"), [
    ("/data/models/x", ["/data/models/x"]), ("/data/models/x/", ["/data/models/x"]),
    ("/data/hub/models--a--b/snapshots/c0ffee", [
        "/data/hub/models--a--b/blobs", "/data/hub/models--a--b/snapshots/c0ffee"])])
def test_folders_that_its_mount_shows_change_nothing(path, folders):
    def spec(folders):
        return spec_of(plan_of(model=GGUF, changes={"model": {
            "path": path, "format": "safetensors", "folders": folders}, "cache": ""}))
    assert spec(folders) == spec([])


def test_it_writes_into_its_cache_alone_which_is_its_users():
    plan = changed(on_gpus(), {"user": "65534:65533"})
    assert plan["cache"].startswith(ROOT + "/cache/")
    spec = spec_of(plan)
    assert [one for one in spec["made"]["mounts"] if not one["read_only"]] == [
        {"type": "bind", "source": plan["cache"], "target": plan["cache"], "read_only": False}]
    assert spec["folders"] == [{"path": plan["cache"], "owner": "65534", "group": "65533"}]
    [tmpfs] = spec["made"]["tmpfs"]
    assert tmpfs.startswith("/tmp:") and "nosuid" in tmpfs and "size=" in tmpfs


@pytest.mark.parametrize(("user", "owner"), [("", ("0", "0")), ("1000", ("1000", "1000")),
                                             ("1000:", ("1000", "1000"))])
def test_the_folder_of_a_cache_has_an_owner(user, owner):
    [folder] = spec_of(changed(on_gpus(), {"user": user}))["folders"]
    assert (folder["owner"], folder["group"]) == owner


def test_without_a_cache_it_writes_nothing_of_the_hosts():
    spec = spec_of(changed(plan_of(model=GGUF), {"cache": ""}))
    assert spec["folders"] == []
    assert all(one["read_only"] for one in spec["made"]["mounts"])


# GPUs.

GPU_KEYS = {"device_requests", "devices", "runtime"}


def test_without_gpus_it_has_none():
    assert not GPU_KEYS & set(made(plan_of(model=GGUF), **NAMES, nvidia_runtime=True))


def test_where_the_engine_knows_them_it_has_them_by_cdi_and_uuid():
    found = made(on_gpus(), **NAMES, nvidia_runtime=True)
    assert found["device_requests"] == [{
        "driver": "cdi", "device_ids": NAMES["cdi_devices"], "capabilities": [["gpu"]]}]
    assert not {"devices", "runtime"} & set(found)


@pytest.mark.parametrize("known", [[], NAMES["cdi_devices"][:1],
                                   ["nvidia.com/gpu=all", "nvidia.com/gpu=0", "nvidia.com/gpu=1"]])
def test_where_it_does_not_know_each_of_them_by_uuid_the_toolkits_runtime_gives_them(known):
    found = made(on_gpus(), cdi_devices=known, nvidia_runtime=True)
    assert found["runtime"] == "nvidia"
    assert found["env"]["NVIDIA_VISIBLE_DEVICES"] == "%s,%s" % (uuid(0), uuid(1))
    assert found["env"]["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    assert not {"device_requests", "devices"} & set(found)


def test_the_runtimes_devices_are_named_too_or_a_daemon_reload_takes_them():
    nodes = {uuid(0): ["/dev/nvidia3"], uuid(1): ["/dev/nvidia5"], uuid(2): ["/dev/nvidia7"]}
    found = made(on_gpus(), device_nodes=nodes)
    assert found["devices"] == ["%s:%s" % (node, node) for node in (
        "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia3",
        "/dev/nvidia5")]


def test_a_jetson_gives_all_that_it_has_by_its_runtime():
    found = made(on_gpus(1), **NAMES, jetson=True)
    assert found["runtime"] == "nvidia"
    assert found["env"]["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert found["env"]["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    assert found["env"]["HF_HUB_OFFLINE"] == "1"
    assert not {"device_requests", "devices"} & set(found)


def test_nobody_but_a_jetson_is_given_more_than_the_plans_devices():
    assert "NVIDIA_VISIBLE_DEVICES" not in made(on_gpus(), **NAMES)["env"]
    given = made(on_gpus())["env"]["NVIDIA_VISIBLE_DEVICES"]
    assert given.split(",") == [uuid(0), uuid(1)]


def test_an_image_that_came_from_a_file_is_known_by_its_tag():
    plan = on_gpus()
    assert made(plan, images={plan["image"]: "vllm/vllm-openai:v1"})["image"] == \
        "vllm/vllm-openai:v1"
    assert made(plan)["image"] == plan["image"]


# Its name.


def test_the_name_stands_for_all_the_rest():
    plan = on_gpus()
    name = spec_of(plan)["name"]
    assert name == spec_of(copy.deepcopy(plan))["name"] == made(plan)["name"]
    assert name.startswith("firstlight-chat-")
    others = [spec_of(changed(plan, one))["name"] for one in (
        {"hash": "0" * 64}, {"image": "example.org/other:1"}, {"engine_port": 9000},
        {"user": "1:1"}, {"shm_bytes": 2**30}, {"cache": ROOT + "/cache/other"},
        {"start_timeout_s": 1}, {"gpus": [uuid(0)]}, {"model": {"path": "/srv/other"}},
        {"command": {"argv": [*plan["command"]["argv"], "--more"]}},
        {"command": {"env": {**plan["command"]["env"], "A": "b"}}}, {"name": "code"})]
    others += [spec_of(plan, **one)["name"] for one in (
        NAMES, {"jetson": True}, {"nofile_max": 4096}, {"memlock_unlimited": False},
        {"device_nodes": {uuid(0): ["/dev/nvidia0"]}})]
    others += [container.container_spec(plan, "/srv/firstlight", ENGINE)["name"]]
    assert len({name, *others}) == 1 + len(others)


# The same for people.


def as_made(text):
    """What a Compose file says, in the words of community.docker."""
    project = yaml.safe_load(text)
    [(service, told)] = project["services"].items()
    told = unescaped(told)
    found = {
        "name": told.pop("container_name"), "env": told.pop("environment"),
        "published_ports": told.pop("ports"), "mounts": told.pop("volumes"),
        "security_opts": told.pop("security_opt"), "log_driver": told["logging"]["driver"],
        "log_options": told.pop("logging")["options"], "restart_policy": told.pop("restart"),
        "stop_timeout": int(told.pop("stop_grace_period").rstrip("s")),
        "ulimits": ["%s:%d:%d" % (name, one["soft"], one["hard"])
                    for name, one in told.pop("ulimits").items()]}
    [found["network_mode"]] = told.pop("networks")
    if "deploy" in told:
        found["device_requests"] = [
            {**one, "capabilities": [one["capabilities"]]}
            for one in told.pop("deploy")["resources"]["reservations"]["devices"]]
    assert project["networks"] == {found["network_mode"]: {"external": True}}
    assert (project["name"], service) == ("firstlight-chat", "chat")
    return {**found, **told}


def unescaped(value):
    if isinstance(value, dict):
        return {key: unescaped(one) for key, one in value.items()}
    if isinstance(value, list):
        return list(map(unescaped, value))
    if isinstance(value, str):
        assert "$" not in value.replace("$$", ""), "Compose would put a variable there"
        return value.replace("$$", "$")
    return value


@pytest.mark.parametrize("engine", [
    {}, NAMES, {"jetson": True}, {"device_nodes": {uuid(0): ["/dev/nvidia0"]}}])
@pytest.mark.parametrize("changes", [
    {}, {"user": ""}, {"cache": ""},
    {"model": {"path": "/srv/$HOME/${a}/$$/m: '\"#"}, "cache": ROOT + "/cache/$x"},
    {"command": {"argv": ["vllm", "--chat-template", "{{ x }} {% if $y %}\n  - ü: ", "yes", "010",
                          "", "~", " blanks ", "a\n    container_name: other\nb"],
                 "env": {"A": "$B", "C": "1e3", "D": "null", "E": "off"}}}])
def test_the_definition_says_what_is_made(changes, engine):
    plan = on_gpus()
    plan["command"] = dict(plan["command"])
    spec = spec_of(changed(plan, changes), **engine)
    text = compose(spec)
    assert as_made(text) == spec["made"]
    assert NAMED.findall(text) == [spec["name"]], "by this line the host knows what should run"


# What there is.


def state(*containers):
    return {"containers": [{"name": name, "endpoint": endpoint, "root": root, "ports": []}
                           for name, endpoint, root in containers]}


def test_what_is_missing_is_made_and_what_is_there_is_not():
    first, second = spec_of(), spec_of(on_gpus())
    assert container.containers_to_make([first, second], state()) == [first, second]
    assert container.containers_to_make(
        [first, second], state((first["name"], "chat", ROOT))) == [second]


@pytest.mark.parametrize(("endpoint", "root"), [
    (None, None), ("code", ROOT), ("chat", "/srv/firstlight"), ("chat", None)])
def test_what_has_a_name_of_ours_and_is_not_ours_stops_the_run(endpoint, root):
    spec = spec_of()
    [found] = container.foreign_containers([spec], state((spec["name"], endpoint, root)))
    assert found["id"] == "container-not-ours"
    assert found["severity"] in ("error", "fatal")
    assert found["subject"] == "container " + spec["name"]
    assert "docker rename %s" % spec["name"] in found["remedy"]


def test_ours_and_those_of_others_are_no_trouble():
    spec = spec_of()
    assert container.foreign_containers([spec], state()) == []
    assert container.foreign_containers([spec], state(
        (spec["name"], "chat", ROOT), ("theirs", None, None))) == []
