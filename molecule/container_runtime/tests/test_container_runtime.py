# SPDX-License-Identifier: Apache-2.0
"""Each host has an engine that answers, its settings whole, its devices named, its images."""

import json

import pytest

DEFAULT = {"Name": "nofile", "Soft": 65536, "Hard": 524288}


def name(host):
    return host.backend.get_hostname()


@pytest.fixture
def settings(host):
    return json.loads(host.file("/etc/docker/daemon.json").content_string)


def only(host, *names):
    if name(host) not in names:
        pytest.skip("it is not for this host")


def test_an_engine_answers_and_starts_at_boot(host):
    assert host.service("docker").is_running
    assert host.service("docker").is_enabled
    assert host.check_output("docker info --format '{{.ServerVersion}}'")


def test_the_logs_of_containers_have_an_end(host, settings):
    assert settings["log-opts"]["max-file"] == "3"
    assert host.check_output("docker info --format '{{.LoggingDriver}}'") == "json-file"


def test_a_container_may_open_many_files_where_the_engine_can_give_them(host, settings):
    most = int(host.check_output("sed -n 's/^Max open files *[0-9]* *\\([0-9]*\\).*/\\1/p' "
                                 "/proc/$(cat /run/docker.pid)/limits"))
    # Without the capability to raise limits a container would not start with more.
    free = int(host.check_output("sed -n 's/^CapEff:\\s*//p' /proc/$(cat /run/docker.pid)/status"),
               16) >> 24 & 1
    given = settings.get("default-ulimits", {}).get("nofile")
    assert given == (DEFAULT if free or most >= DEFAULT["Hard"] else None)


def test_what_others_have_set_is_there(host, settings):
    only(host, "dock12")
    assert settings["insecure-registries"] == ["registry.example.org:5000"]
    assert (settings["log-opts"]["max-size"], settings["shutdown-timeout"]) == ("50m", 20)
    assert host.file("/etc/docker/daemon.json").mode == 0o640
    assert "registry.example.org:5000" in host.check_output("docker info")


def test_the_images_are_there(host):
    image = {"bare12": "example.org/small:1"}.get(name(host), "firstlight-engine:llama-server")
    assert host.check_output("docker image ls --quiet %s" % image)


def test_the_devices_are_those_of_the_host(host):
    only(host, "cdi13")
    profile = json.loads(host.file("/etc/firstlight-mock/profile.json").content_string)
    spec = host.file("/etc/cdi/nvidia.yaml").content_string
    assert all('"%s"' % one["uuid"] in spec for one in profile["devices"])
    assert "535.1.1" not in spec


def test_a_container_sees_one_gpu_of_four(host):
    only(host, "cdi13")
    profile = json.loads(host.file("/etc/firstlight-mock/profile.json").content_string)
    uuid = profile["devices"][3]["uuid"]
    said = host.check_output(
        "docker run --rm --device nvidia.com/gpu=%s --entrypoint nvidia-smi "
        "firstlight-engine:llama-server -L" % uuid)
    assert said == "GPU 0: NVIDIA L40S (UUID: %s)" % uuid


def test_nothing_is_left_half_done(host):
    assert not host.file("/var/lib/firstlight/journal/docker_daemon.json").exists
