# SPDX-License-Identifier: Apache-2.0
"""One call reads what decides whether there is anything to do, as each module would read it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import sys

import endpoint_info
import gpu_facts
import host_state_info
import linker_cache
import model_info
import pytest
from endpoint_host import fake
from library_root import catalogs

from ansible.module_utils.firstlight import (
    docker_api,
    host_endpoints,
    library_steps,
    model_asked,
    python_venv,
    services,
    transaction,
)
from ansible.module_utils.firstlight.transaction import Transaction

LOCK = "a==1 --hash=sha256:00\n"


@pytest.fixture
def look(run_module, host):
    """Look at the host of one endpoint, whose library path is this machine's."""
    def looked(**params):
        return run_module(host_state_info.main, **{"root": host.root, **catalogs(), **params})

    return looked


def test_it_reads_what_each_module_reads(look, host, run_module):
    host.switched(fake())
    seen = look(ports=[1], libraries=["libnone.so.1"])
    alone = run_module(endpoint_info.main, root=host.root, ports=[1], libraries=["libnone.so.1"])
    assert seen["endpoints"]["endpoints"]["chat"]["healthy"] is True
    assert seen["endpoints"] == {key: alone[key] for key in seen["endpoints"]}
    mended = run_module(linker_cache.main, check=True, root=host.root, **catalogs())
    assert seen["library_path"] == {key: mended[key] for key in seen["library_path"]}
    assert set(mended) - set(seen["library_path"]) <= {"recovered", "invocation", "diff"}
    facts = run_module(gpu_facts.main, root=host.root)["ansible_facts"]["gpu_host"]
    assert set(seen["ansible_facts"]["gpu_host"]) == set(facts)
    assert seen["ansible_facts"]["gpu_host"]["cpu"] == facts["cpu"]
    assert (seen["models"], seen["containers"], seen["half_done"], seen["unread"]) == (
        {"models": {}, "findings": []}, None, [], {})
    assert seen["elapsed_s"] > 0
    assert seen["changed"] is False


def test_models_are_read_where_they_are_asked_about(look, run_module, tmp_path):
    asked = {"paths": [str(tmp_path / "none.gguf")], "allow_code": [], "allow_pickle": []}
    alone = run_module(model_info.main, **asked)
    assert look(**asked)["models"] == {key: alone[key] for key in ("models", "findings")}
    assert [one["id"] for one in alone["findings"]] == ["model-missing"]


def test_an_environment_is_told_by_the_steps_that_it_lacks(look, host):
    path = pathlib.Path(host.root) / "venvs/toolbelt"
    steps = ["create", "install", "place", "mark"]
    assert look(environments={"toolbelt": LOCK})["environments"] == {"toolbelt": steps}
    (path / "bin").mkdir(parents=True)
    (path / "bin/python").touch()
    marker = {"python": "%d.%d" % sys.version_info[:2], "lock": LOCK, "scripts": {}}
    (path / "firstlight.json").write_text(json.dumps(marker))
    assert look(environments={"toolbelt": LOCK})["environments"] == {"toolbelt": []}
    assert look(environments={"toolbelt": LOCK + "b==1\n"})["environments"] == {"toolbelt": steps}
    (path / "bin/python").unlink()
    assert look(environments={"toolbelt": LOCK})["environments"] == {"toolbelt": steps}
    assert look()["environments"] == {}


def test_a_change_that_was_ended_in_the_middle_is_told(look, host, tmp_path):
    journal = os.path.join(host.root, "journal")
    with contextlib.suppress(KeyboardInterrupt), Transaction(journal, "some_change") as change:
        change.snapshot(str(tmp_path / "file"))
        kept = pathlib.Path(change.path).read_bytes()
        raise KeyboardInterrupt
    assert look()["half_done"] == []
    pathlib.Path(journal, "some_change.json").write_bytes(kept)
    # What runs detached leaves its last state there.
    pathlib.Path(journal, "endpoint-chat.run.json").write_text("{}")
    assert look()["half_done"] == ["some_change"]


def test_what_cannot_be_read_is_null_with_its_reason(look, monkeypatch):
    def denied(*_):
        raise PermissionError(13, "Permission denied", "/etc/ld.so.conf.d")

    monkeypatch.setattr(library_steps, "told", denied)
    seen = look()
    assert seen["library_path"] is None
    assert seen["unread"] == {"library_path": "/etc/ld.so.conf.d: Permission denied"}


def test_what_cannot_be_read_hides_nothing_else(look, monkeypatch, host):
    def denied(*_):
        raise PermissionError(13, "Permission denied", "/state")

    def strange(*_):
        raise OSError("no such thing")

    monkeypatch.setattr(python_venv, "observe", denied)
    monkeypatch.setattr(transaction, "left", strange)
    seen = look(environments={"toolbelt": LOCK})
    assert (seen["environments"], seen["half_done"]) == (None, None)
    assert seen["unread"] == {"environments": "/state: Permission denied",
                              "half_done": "%s: no such thing" % host.root}
    assert seen["library_path"] is not None
    assert seen["ansible_facts"]["gpu_host"]["cpu"]
    # Of what no role can do without, all reasons are told at once.
    monkeypatch.setattr(host_endpoints, "observe", denied)
    monkeypatch.setattr(model_asked, "observe", strange)
    failed = look(paths=["/none.gguf"])
    assert failed["failed"]
    assert failed["msg"] == "/state: Permission denied\n%s: no such thing" % host.root
    assert set(failed["unread"]) == {"endpoints", "models", "half_done"}


@pytest.mark.parametrize("problem", [
    services.ServiceError("no answer"), PermissionError(13, "Permission denied", "/state")])
def test_what_serves_must_be_readable(look, run_module, monkeypatch, host, problem):
    def fails(*_):
        raise problem

    monkeypatch.setattr(host_endpoints, "observe", fails)
    failed = look()
    assert failed["failed"]
    assert failed["msg"] == run_module(endpoint_info.main, root=host.root)["msg"]


@pytest.fixture
def in_a_container(host, docker, monkeypatch):
    """The endpoint's passport says that it is in a container of the daemon."""
    host.switched(fake())
    monkeypatch.setattr(docker_api, "SOCKETS", (docker.socket,))
    file = pathlib.Path(host.root) / "endpoints/chat/passport.json"
    passport = json.loads(file.read_text())
    passport["plan"].update(runtime="docker", image="example.org/engine:1@sha256:" + "0" * 64)
    file.write_text(json.dumps(passport))
    return docker


def test_of_an_endpoint_in_a_container_the_engine_is_read_too(look, in_a_container):
    name = "example.org/engine:1"
    in_a_container.images[name] = "sha256:" + hashlib.sha256(b"image").hexdigest()
    seen = look(docker_needs={"registry-mirrors": ["https://mirror.example.org"]})
    there = seen["containers"]
    assert there["state"] == "running"
    assert there["images"] == {name: in_a_container.images[name],
                               "example.org/engine@sha256:" + "0" * 64: None}
    assert there["how"] == "reload"
    assert there["changes"] == ['registry-mirrors: need ["https://mirror.example.org"]']
    assert there["lost"] == []
    assert look()["containers"]["how"] == ""


def test_settings_that_are_refused_are_told(look, in_a_container, monkeypatch):
    from ansible.module_utils.firstlight.host import docker_engine
    seen = docker_engine.observe

    def with_flags(*given):
        return {**seen(*given), "words": ["dockerd", "--registry-mirror=https://a.example.org"]}

    monkeypatch.setattr(docker_engine, "observe", with_flags)
    seen_here = look(docker_needs={"registry-mirrors": ["https://mirror.example.org"]})
    assert seen_here["containers"] is None
    assert "registry-mirrors" in seen_here["unread"]["containers"]
    assert look()["containers"]["how"] == ""


def test_settings_that_cannot_be_understood_are_told(look, in_a_container, monkeypatch):
    from ansible.module_utils.firstlight.host import docker_engine

    def damaged(_):
        raise ValueError("it is no JSON object")

    monkeypatch.setattr(docker_engine, "settings", damaged)
    seen = look()
    assert seen["containers"] is None
    assert "it cannot be read: it is no JSON object" in seen["unread"]["containers"]
