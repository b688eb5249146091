# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies: Docker daemons as modules tell of them, plans for containers, images."""

from __future__ import annotations

import json
from pathlib import Path

import strategies
import yaml
from hypothesis import strategies as st

CATALOG = Path(__file__).parents[2] / "catalog"
PACKAGES, ERRORS = (yaml.safe_load((CATALOG / name).read_text())
                    for name in ("container_packages.yml", "registry_errors.yml"))
UUIDS = ["GPU-2e3a1c00-0000-4000-8000-00000000000%d" % number for number in range(3)]
VERSIONS = st.sampled_from(["20.10.24+dfsg1", "19.03.15", "24.0.9", "26.1.5", "28.2.2", "29.0.0",
                            ""]) | strategies.HOSTILE
IMAGES = st.sampled_from(["example.org/engine:1", "example.org:5000/engine:1@sha256:" + "0" * 64,
                          "engine", "localhost/a"]) | strategies.PRINTABLE
PATHS = st.dictionaries(IMAGES, strategies.PRINTABLE, max_size=2)
PLANS = st.lists(st.fixed_dictionaries({
    "name": strategies.NAMES, "runtime": st.sampled_from(["docker", "native"]), "image": IMAGES,
    "gpus": st.lists(st.sampled_from(UUIDS), max_size=2, unique=True)}), max_size=3)
FACTS = st.fixed_dictionaries({
    "class": st.sampled_from(["nvidia", "unified", "jetson", "cpu"]),
    "system": st.fixed_dictionaries({
        "distribution": st.none() | st.sampled_from(
            ["debian", "ubuntu", "rhel", "fedora", "nixos"]),
        "version": st.none() | strategies.HOSTILE,
        "like": st.lists(st.sampled_from(["debian", "rhel", "suse"]), max_size=2)})})
_TOOL = st.sampled_from(["", "/usr/bin/tool"])
NVIDIA = st.fixed_dictionaries({
    "ctk": _TOOL, "runtime": _TOOL, "hook": _TOOL, "refresh": st.booleans(),
    "unreadable": st.just([]),
    "devices": st.dictionaries(st.sampled_from(["0", "all", *UUIDS]), st.fixed_dictionaries({
        "file": strategies.HOSTILE,
        "nodes": st.lists(st.sampled_from(["/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl"]),
                          max_size=2),
        "gone": st.lists(strategies.HOSTILE, max_size=1)}), max_size=4),
    "nodes": st.dictionaries(st.sampled_from(UUIDS), st.sampled_from(
        ["/dev/nvidia0", "/dev/nvidia1"]), max_size=3)})
_ENGINE = st.fixed_dictionaries({
    "version": VERSIONS, "cdi": st.booleans(), "nvidia_runtime": st.booleans(),
    "live_restore": st.booleans()})


@st.composite
def daemons(draw):
    """What the module docker_daemon returns of a host."""
    state = draw(st.sampled_from(["running", "running", "stopped", "absent", "refused"]))
    return {
        "state": state, "why": draw(strategies.HOSTILE) or "nothing", "root": draw(st.booleans()),
        "systemd": draw(st.booleans()), "unit": draw(st.sampled_from(["", "docker.service"])),
        "pid": draw(st.none() | st.just(4711)), "file": "/etc/docker/daemon.json",
        "words": draw(st.lists(st.sampled_from(["--log-driver=local", "--feature", "-H"]),
                               max_size=2)),
        "engine": draw(_ENGINE) if state == "running" else None,
        "running": draw(st.lists(strategies.HOSTILE, max_size=2)) if state == "running" else [],
        "changes": draw(st.lists(strategies.HOSTILE, max_size=1)), "nvidia": draw(NVIDIA)}


RUNTIMES = st.tuples(PLANS, FACTS, daemons(), st.just(PACKAGES), st.booleans())
BROUGHT = st.fixed_dictionaries({
    "image": IMAGES, "name": IMAGES, "path": strategies.PRINTABLE,
    "source": st.sampled_from(["archive", "build", "pull"])})
_PROXY = st.none() | strategies.HOSTILE | st.just("http://192.0.2.1:3128")
WAYS = st.tuples(
    st.lists(BROUGHT, max_size=2), daemons(), st.lists(strategies.PRINTABLE, max_size=2),
    st.fixed_dictionaries({}, optional={
        "offline": st.booleans(), "environment": st.dictionaries(st.sampled_from(
            ["http_proxy", "HTTPS_PROXY", "no_proxy", "HF_ENDPOINT"]), _PROXY, max_size=3)}),
    st.just(strategies.ROOT))
REFUSED = st.tuples(
    strategies.HOSTILE | st.sampled_from(["dial tcp: no such host", "manifest unknown", "EOF"]),
    BROUGHT, st.just(ERRORS))
CONTAINERS = st.lists(st.fixed_dictionaries({
    "id": st.just("0"), "name": strategies.PRINTABLE, "image": strategies.HOSTILE,
    "endpoint": st.none() | strategies.NAMES, "root": st.none() | st.just(strategies.ROOT),
    "by": st.sampled_from(["cdi", "hook", "runtime", "nodes", "privileged"]),
    "names": st.lists(st.sampled_from(["all", "nvidia.com/gpu=" + UUIDS[0], *UUIDS]), max_size=2),
    "allowed": st.none() | st.booleans(),
    "gpus": st.none() | st.lists(st.sampled_from(UUIDS), max_size=2),
    "reason": st.just("") | strategies.HOSTILE}), max_size=4)
DRIVERS = st.sampled_from(["systemd", "cgroupfs", None])
# JSON knows no NaN, and one equals nothing, itself included.
VALUES = strategies.JSON.filter(lambda one: "NaN" not in json.dumps(one))
SETTINGS = st.dictionaries(st.sampled_from(
    ["features", "runtimes", "log-driver", "log-opts", "default-ulimits", "debug", "bip"]),
    VALUES | st.dictionaries(st.sampled_from(["cdi", "nvidia", "max-size", "nofile"]),
                             VALUES, max_size=2), max_size=4)
