# SPDX-License-Identifier: Apache-2.0
"""What all tests share: our module_utils on Ansible's path, the rig's plugins, environments."""

from __future__ import annotations

import fcntl
import os
import pathlib
import sys

import ansible.module_utils
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))

import strategies  # noqa: E402, F401 - loads the profile of the property tests

pytest_plugins = ["fake_docker", "harness", "library_root", "mock_nvml.fixtures", "remote_calls",
                  "transcripts"]


@pytest.fixture(scope="session")
def repository():
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def engine_python(tmp_path_factory):
    """A Python that has the native engine, from the lock that the role installs.

    ``FIRSTLIGHT_TEST_ENGINE_PYTHON`` names one that is there already.
    """
    return _environment(tmp_path_factory, "FIRSTLIGHT_TEST_ENGINE_PYTHON", "xllamacpp.txt")


@pytest.fixture(scope="session")
def supervisord(tmp_path_factory):
    """The path of a supervisord, from the lock that the role installs."""
    python = _environment(tmp_path_factory, "FIRSTLIGHT_TEST_SUPERVISOR_PYTHON", "supervisor.txt")
    return os.path.join(os.path.dirname(python), "supervisord")


@pytest.fixture
def host(supervisord, run_module, monkeypatch):
    """A host that keeps engines by a supervisord of its own and has no Docker."""
    from endpoint_host import Host  # it needs modules that not every session has
    from supervised import short_root

    from ansible.module_utils.firstlight import docker_api, services

    monkeypatch.setattr(services, "kind_for_this_host", lambda: "supervisor")
    monkeypatch.setattr(docker_api, "SOCKETS", ())
    with short_root() as root:
        yield Host(root, supervisord, run_module)


def _environment(tmp_path_factory, variable, lock):
    from ansible.module_utils.firstlight.runner import run

    if os.environ.get(variable):
        return os.environ[variable]
    # What pytest-xdist starts shares one; a folder of theirs has that of the run around it.
    top = tmp_path_factory.getbasetemp()
    top = top.parent if os.environ.get("PYTEST_XDIST_WORKER") else top
    venv = top / lock.partition(".")[0]
    python = str(venv / "bin" / "python")
    locked = str(ROOT / "roles" / "inference_endpoint" / "files" / lock)
    with open("%s.lock" % venv, "w", encoding="utf-8") as taken:
        fcntl.flock(taken, fcntl.LOCK_EX)
        if not (venv / "ready").exists():
            for argv in ([sys.executable, "-m", "venv", str(venv)],
                         [python, "-m", "pip", "install", "--quiet", "--require-hashes", "-r",
                          locked]):
                ran = run(argv, timeout_s=600)
                assert ran.ok, ran.complaint()
            (venv / "ready").touch()
    return python
