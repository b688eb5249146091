# SPDX-License-Identifier: Apache-2.0
"""What tests of supervised endpoints share: roots, definitions, and an end to every process."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import time

import jinja2
import yaml
from ansible.plugins.filter.core import to_nice_yaml

from ansible.module_utils.firstlight import processes, services
from ansible.module_utils.firstlight.planning import way_in
from ansible.module_utils.firstlight.planning.service_text import (
    supervisor_command,
    systemd_command,
)

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TEMPLATES = ROOT / "roles" / "inference_endpoint" / "templates"
WAY_IN_PATHS = yaml.safe_load((ROOT / "catalog" / "way_in_paths.yml").read_text())
FAKE_ENGINE = str(ROOT / "tests" / "rig" / "fake_engine.py")


def config():
    """supervisord's configuration, as the role writes it."""
    return _rendered("supervisord.conf.j2", inference_endpoint_state={"uid": os.geteuid()})


def definition(root, name, argv, plan_hash, env=None):
    """A program's definition, as the role writes it."""
    plan = {"name": name, "hash": plan_hash, "command": {"argv": argv, "env": env or {}}}
    return _rendered("program.conf.j2", __inference_endpoint_plan=plan,
                     __inference_endpoint_root=root)


def compose(spec):
    """A container's definition, as the role writes it."""
    return _rendered("compose.yaml.j2", __inference_endpoint_spec=spec)


def way_in_plan(port, engine_port, bind="127.0.0.1", tls=("", ""), engine="llama_cpp"):
    """What a way in needs to know of a plan."""
    return {
        "name": "chat", "engine": engine, "way_in": True, "bind": bind, "port": port,
        "engine_port": engine_port, "public_url": "https://" + way_in.address(bind, port),
        "tls": "given" if tls[0] else "self-signed", "tls_certificate": tls[0], "tls_key": tls[1],
    }


def way_in_wanted(root, plan, keys, manager="supervisor"):
    """A way in as the role renders it; keys in clear."""
    decided = way_in.way_in_service(plan, WAY_IN_PATHS, root, manager, os.geteuid())
    texts = {name: _rendered(template, __inference_endpoint_way_in=decided,
                             __inference_endpoint_root=root)
             for name, template in (
                 ("config", "haproxy.cfg.j2"),
                 ("definition", "way_in_program.conf.j2" if manager == "supervisor"
                  else "way_in_unit.service.j2"))}
    digests = way_in.endpoint_keys([{"name": "chat", "api_key": list(keys)}])["chat"]
    return way_in.way_in_wanted(decided, texts["config"], texts["definition"], digests)


def _rendered(template, **variables):
    # Ansible's own settings for templates.
    world = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True,
                               undefined=jinja2.StrictUndefined)
    world.filters.update(supervisor_command=supervisor_command, systemd_command=systemd_command,
                         quote=shlex.quote, to_nice_yaml=to_nice_yaml)
    return world.from_string((TEMPLATES / template).read_text()).render(**variables)


def fake_engine(port, *flags):
    """The command of an engine that needs no model."""
    return [sys.executable, FAKE_ENGINE, "--port", str(port)] + list(flags)


@contextlib.contextmanager
def short_root(name="root"):
    """A ``firstlight_root`` whose socket fits in a socket's address; all in it ends with it."""
    top = tempfile.mkdtemp(dir="/tmp", prefix="fl-")
    root = os.path.join(top, name)
    try:
        yield root
    finally:
        # The daemon first, so that it starts nothing again.
        kill(services.Supervisor(root).daemon_pid())
        for engine in processes.engines(root):
            processes.end(root, engine, grace_s=0)
        for name in processes.ways_in(root):
            processes.end(root, way_in.service_name(name), grace_s=0)
        # What was told to go on by itself may still write its last word.
        until(lambda: gone(top))


def gone(folder):
    """Remove a folder; whether it is away."""
    shutil.rmtree(folder, ignore_errors=True)
    return not os.path.exists(folder)


def kill(pid):
    """SIGKILL, for a process that may be gone already."""
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def free_port():
    """A loopback port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def until(condition, patience_s=30):
    """Wait for a condition and give its value; a test that waits for ever fails here."""
    deadline = time.monotonic() + patience_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, "waited %d s in vain" % patience_s
        time.sleep(0.02)
