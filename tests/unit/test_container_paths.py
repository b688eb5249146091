# SPDX-License-Identifier: Apache-2.0
"""A container that does not see its model is told of before anything that serves is ended.

The fake daemon's containers see this machine as it is, so what is not there is not there in them.
"""

from __future__ import annotations

import os
import pathlib
import pwd
import tempfile

import pytest
from endpoint_host import Host, contained, healthy
from fake_docker import DROP
from supervised import short_root

from ansible.module_utils.firstlight import (
    container_paths,
    docker_api,
    docker_service,
    endpoint,
    services,
)


@pytest.fixture
def docker(docker, monkeypatch):
    monkeypatch.setattr(docker_api, "SOCKETS", (docker.socket,))
    monkeypatch.setattr(docker_service.Docker.__init__, "__defaults__", (None, 10.0))
    return docker


@pytest.fixture
def host(supervisord, run_module, monkeypatch, docker):
    monkeypatch.setattr(services, "kind_for_this_host", lambda: "supervisor")
    with short_root() as root:
        yield Host(root, supervisord, run_module, docker)


def container(docker, **host):
    """One as a plan has it, which waits."""
    docker.run("firstlight-chat-1", running=False, config={
        "Image": "example.org/e:1", "Env": ["A=b"], "User": "2000:0", "Labels": {
            "firstlight.endpoint": "chat", "firstlight.root": "/r", "firstlight.plan": "p"}},
        host={"Mounts": [{"Type": "bind", "Source": "/hub", "Target": "/hub", "ReadOnly": True}],
              "CapDrop": ["ALL"], "PortBindings": {"8000/tcp": []}, "DeviceRequests": [{}],
              "NetworkMode": "firstlight", "ReadonlyRootfs": True, **host})
    return docker.containers["firstlight-chat-1"]


def looked(docker, model, **host):
    return container_paths.findings(model, container(docker, **host), docker_api.Api())


def gguf(path):
    return {"path": str(path), "format": "gguf"}


@pytest.fixture
def folder(tmp_path):
    """A model's folder as a hub's cache has it, with what no engine opens."""
    (tmp_path / "blobs").mkdir()
    made = tmp_path / "snapshot"
    (made / "part").mkdir(parents=True)
    (made / ".git").mkdir()
    for name in ("config.json", "model.safetensors", "part/config.json"):
        blob = tmp_path / "blobs" / name.replace("/", "-")
        blob.write_text("{}")
        (made / name).symlink_to(os.path.relpath(blob, (made / name).parent))
    (made / "photo.png").symlink_to("nowhere")
    (made / ".git" / "x.json").symlink_to("nowhere")
    return made


def test_what_it_sees_is_no_finding_and_nothing_is_left(docker, folder):
    assert looked(docker, {"path": str(folder), "format": "safetensors"}) == []
    assert list(docker.containers) == ["firstlight-chat-1"]


def test_a_file_that_is_not_there_is_named_with_container_mount_and_the_map(docker, folder):
    os.unlink(folder.parent / "blobs" / "model.safetensors")
    [found] = looked(docker, {"path": str(folder), "format": "safetensors"})
    assert (found["id"], found["severity"]) == ("container-path-missing", "error")
    assert found["subject"] == "container firstlight-chat-1"
    assert found["found"] == "%s is not there" % (folder / "model.safetensors")
    assert "/hub as /hub" in found["evidence"]
    assert "model_snapshot_path_map" in found["remedy"]
    assert "uid 2000" in found["wanted"]
    assert list(docker.containers) == ["firstlight-chat-1"]


def test_all_parts_of_a_model_are_looked_for(docker, tmp_path):
    first = tmp_path / "it's-00001-of-00005.gguf"
    first.touch()
    [found] = looked(docker, gguf(first))
    assert found["found"] == "%s and 1 more are not there" % ", ".join(
        str(tmp_path / ("it's-%05d-of-00005.gguf" % number)) for number in (2, 3, 4))


def test_where_a_link_leads_to_on_the_host_is_said(docker, tmp_path, monkeypatch):
    (tmp_path / "real.gguf").touch()
    link = tmp_path / "m.gguf"
    link.symlink_to("real.gguf")
    # In its container it leads nowhere.
    monkeypatch.setattr(container_paths, "SCRIPT", 'echo "%s$1"; exit 1' % container_paths.MISSING)
    [found] = looked(docker, gguf(link))
    assert found["found"] == "%s is not there (on the host it leads to %s)" % (
        link, tmp_path / "real.gguf")


@pytest.fixture
def open_folder():
    """A folder that everyone may look into."""
    with tempfile.TemporaryDirectory(prefix="fl-", dir="/tmp") as name:
        os.chmod(name, 0o755)
        yield pathlib.Path(name)


def test_one_that_may_not_be_read_is_told_apart(docker, open_folder, monkeypatch):
    secret = open_folder / "m.gguf"
    secret.touch(mode=0o200)
    if not os.geteuid():
        # Root reads everything here, and not all in a container, where it has no capabilities.
        nobody = pwd.getpwnam("nobody")
        monkeypatch.setattr(container_paths, "SCRIPT", (
            "exec setpriv --reuid=%d --clear-groups --inh-caps=-all sh -c '%s' sh \"$@\"" % (
                nobody.pw_uid, container_paths.SCRIPT)))
    [found] = looked(docker, gguf(secret))
    assert found["id"] == "container-path-unreadable"
    assert found["found"] == "%s is not readable by uid 2000" % secret
    assert "chmod o+r %s " % secret in found["remedy"]


def test_it_is_asked_with_the_mounts_and_user_of_its_engine_and_without_its_devices(docker):
    asked = []
    create = docker._create
    docker._create = lambda name, body: asked.append((name, body)) or create(name, body)
    assert looked(docker, gguf(__file__)) == []
    [(name, body)] = asked
    assert name == "firstlight-chat-1-paths"
    assert (body["Image"], body["User"], body["Entrypoint"]) == (
        "example.org/e:1", "2000:0", ["sh"])
    assert body["Cmd"][-1] == __file__
    assert body["Labels"] == {"firstlight.endpoint": "chat", "firstlight.root": "/r"}
    host = body["HostConfig"]
    assert (host["CapDrop"], host["ReadonlyRootfs"], host["NetworkMode"]) == (
        ["ALL"], True, "none")
    assert host["Mounts"][0]["Source"] == "/hub"
    assert "DeviceRequests" not in host


def test_a_mount_that_is_not_there_any_more_is_a_finding(docker):
    docker.say("POST", "/containers/create", (400, {
        "message": "invalid mount config for type \"bind\": bind source path does not exist: /hub"
    }))
    [found] = looked(docker, gguf(__file__))
    assert found["id"] == "container-path-missing"
    assert "bind source path does not exist: /hub" in found["found"]


def test_an_image_without_a_shell_is_not_asked(docker):
    docker.say("POST", "/containers/.*/start", (400, {
        "message": "failed to create task for container: failed to create shim task: OCI runtime "
                   "create failed: runc create failed: unable to start container process: error "
                   "during container init: exec: \"sh\": executable file not found in $PATH"}))
    assert looked(docker, gguf("/no/such.gguf")) == []
    assert list(docker.containers) == ["firstlight-chat-1"]


def test_a_daemon_that_is_away_is_said(docker):
    docker.say("POST", "/containers/create", DROP)
    with pytest.raises(services.ServiceError, match="Docker does not answer"):
        looked(docker, gguf(__file__))


def test_a_look_that_does_not_end_is_ended(docker, monkeypatch):
    monkeypatch.setattr(container_paths, "SCRIPT", "exec sleep 600")
    monkeypatch.setattr(container_paths, "LIMIT_S", 0.5)
    with pytest.raises(services.ServiceError, match="took more than"):
        looked(docker, gguf(__file__))
    assert list(docker.containers) == ["firstlight-chat-1"]


def test_a_switch_is_refused_while_what_serves_goes_on(host, docker, tmp_path):
    old = contained()
    host.switched(old)
    served = docker.containers[host.spec(old)["name"]]["State"]["Pid"]
    kept = host.passport()
    failed = host.switch(contained(model=str(tmp_path / "gone.gguf")))
    assert failed["failed"] is True
    assert "cannot read its model" in failed["msg"]
    assert "container-path-missing" in failed["msg"]
    assert str(tmp_path / "gone.gguf") in failed["msg"]
    assert "attempt" not in failed, "no other try would see it"
    # It never was ended.
    assert docker.containers[host.spec(old)["name"]]["State"]["Pid"] == served
    assert healthy(old["url"])
    assert host.passport() == kept
    assert host.running() == set(docker.containers) == {host.spec(old)["name"]}
    assert host.switch(old)["changed"] is False
    assert endpoint.Endpoint(host.root, "chat", "docker").journal().half_done is False


def test_what_is_listed_is_what_an_engine_opens(folder):
    assert [str(pathlib.Path(one).relative_to(folder)) for one in container_paths.files_of(
        {"path": str(folder), "format": "safetensors"})] == [
            "config.json", "model.safetensors"]
    for name in ("optimizer.pt", "pytorch_model.bin", "notes.txt", "trainer_state.json", "x.py",
                 "consolidated.safetensors", "merges.txt"):
        (folder / name).touch()
    (folder / "original").symlink_to("nowhere")
    (folder / "generation_config.json").symlink_to("nowhere")
    assert [os.path.basename(one) for one in container_paths.files_of(
        {"path": str(folder), "format": "safetensors"})] == [
            "config.json", "merges.txt", "model.safetensors"]
    assert str(folder / "x.py") in container_paths.files_of(
        {"path": str(folder), "format": "safetensors", "custom_code": ["x.py"]})
    (folder / "model.safetensors").unlink()
    (folder / "consolidated.safetensors").unlink()
    assert str(folder / "pytorch_model.bin") in container_paths.files_of(
        {"path": str(folder), "format": "pickle"})
    assert container_paths.files_of(gguf("/m.gguf")) == ["/m.gguf"]
    assert container_paths.files_of({"path": "/no/such", "format": "safetensors"}) == ["/no/such"]
    assert container_paths.files_of(gguf("/m-00001-of-00000.gguf")) == ["/m-00001-of-00000.gguf"]
