# SPDX-License-Identifier: Apache-2.0
"""Environments with a torch, files by their published names, and what asks for them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import wheel_fleets
import yaml
from hypothesis import strategies as st
from strategies import HOSTILE, JSON

from ansible.module_utils.firstlight.planning import wheels

REPOSITORY = Path(__file__).resolve().parents[2]
PYTHON = wheel_fleets.PYTHON
CATALOG = yaml.safe_load((REPOSITORY / "catalog" / "prebuilt_wheels.yml").read_text())
NAMES = [line for line in (
    REPOSITORY / "tests" / "fixtures" / "wheels" / "names.txt").read_text().splitlines()
    if not line.startswith("#")]
ROWS = {row["package"]: row for row in CATALOG}


def environment(torch="2.8.0+cu128", cuda="12.8", python="3.12.3", machine="x86_64",
                libc="glibc 2.35", capability="9.0", **changes):
    """What prebuilt_wheel_info tells of an environment with a torch for CUDA and one GPU."""
    found = wheel_fleets.environment(version=python, machine=machine)
    of_torch = {"state": "ok" if torch else "absent", "version": torch, "cuda": cuda,
                "cxx11abi": True if torch else None, "seconds": 2.5 if torch else None,
                "devices": [{"name": "a GPU", "capability": capability}] if capability else []}
    name, version = libc.split()
    found.update(libc={"name": name, "version": version})
    found["torch"].update(of_torch)
    found["torch"].update({key: changes.pop(key) for key in list(changes) if key in found["torch"]})
    found.update(changes)
    return found


ENVIRONMENTS = {
    "torch 2.8": environment(),
    "torch 2.11": environment("2.11.0+cu130", "13.0"),
    "torch 2.11, arm": environment("2.11.0+cu130", "13.0", machine="aarch64", libc="glibc 2.39",
                                   capability="12.1"),
    "torch 2.9, arm": environment("2.9.1+cu128", machine="aarch64"),
    "ada, 3.13": environment("2.10.0+cu130", "13.0", "3.13.1", capability="8.9"),
    "old": environment("2.6.0+cu124", "12.4", "3.10.4", libc="glibc 2.27", capability="8.0",
                       cxx11abi=False),
    "musl": environment(libc="musl 1.2"),
    "free-threaded": environment("2.11.0+cu130", "13.0", "3.14.0", free_threaded=True),
    "jetson": environment("2.7.0", "12.6", "3.10.12", "aarch64", capability="8.7"),
    "container of NVIDIA": environment("2.9.0a0+50eac811a6.nv25.09", "13.0", machine="aarch64"),
    "volta": environment(capability="7.0"),
    "cpu": environment("2.8.0+cpu", "", capability=""),
    "rocm": environment("2.14.0+rocm7.2", "", hip="7.2.26015", capability=""),
    "no torch": environment("", "", capability=""),
}


def candidate(file, **changes):
    """A file that a release has."""
    return {"file": file, "url": "https://github.com/example/x/releases/download/v1/" + file,
            "path": "", "sha256": hashlib.sha256(file.encode()).hexdigest(), "size": 2500000,
            "requires_python": "", "yanked": "", "source": "release example/x", "built_for": {},
            **changes}


def request(package="flash-attn", version="", rows=(), **changes):
    """One that the filter ``wheel_requests`` gives."""
    asked = wheels.wheel_requests(
        [{"package": package, "python": PYTHON, "version": version, **changes}], list(rows),
        CATALOG)
    assert asked["findings"] == []
    return asked["requests"][0]


def of(package):
    """The files of a package, of the published ones."""
    begin = package.replace("-", "_") + "-"
    return [candidate(name) for name in NAMES if name.startswith(begin)]


def answered(asked, listed):
    """The files that the module prebuilt_wheel_info tells of for a request."""
    return {wheels.question(asked)["key"]: listed}


def there(version, imports="ok", kernel="ran", why="", sha256=""):
    """An installed package."""
    found = {**wheel_fleets.there(version), "sha256": sha256}
    found["imports"].update(state=imports, why=why)
    found["kernel"].update(state=kernel, why=why)
    return found


# For properties.

FILES = st.sampled_from(NAMES) | HOSTILE | st.sampled_from([
    "..", "../../etc/passwd", "-----.whl", "a" * 10000 + ".whl", "flash_attn-2.8.3-..-..-any.whl",
    "flash_attn-2.8.3%2Bcu12torch2.8-cp312-cp312-linux_x86_64.whl", "..-1.0-py3-none-any.whl",
    "flash_attn-2.8.3-cp312-cp312-linux_x86_64.whl\n", "flash_attn-٢-cp312-cp312-any.whl",
    "flash_attn-2.8.3-%s-none-any.whl" % ".".join(["py3"] * 50),
    "flash_attn-2.8.3-%s-%s-%s.whl" % (("a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a",) * 3),
    "x-%s-py3-none-any.whl" % ("9" * 200), "flash_attn-2.8.3.tar.gz\x1b[2J"])
CANDIDATES = st.builds(
    candidate, FILES, sha256=st.sampled_from(["", "a" * 64, "b" * 64]),
    path=st.sampled_from(["", "/srv/wheels/x"]), yanked=st.sampled_from(["", "broken"]),
    requires_python=st.sampled_from(["", ">=3.9", "<3", "no specifier"]),
    built_for=st.sampled_from([{}, {"torch": "2.8", "cuda": "12.8", "cxx11abi": True,
                                    "capabilities": ["9.0"]}]))
LISTED = st.lists(CANDIDATES, max_size=8)
WHERE = st.sampled_from(sorted(ENVIRONMENTS)).map(ENVIRONMENTS.get)
REQUESTS = st.builds(
    request, st.sampled_from(sorted(ROWS)), st.sampled_from(["", ">=0.0.1", "!=2.8.3"]),
    sha256=st.sampled_from(["", "a" * 64]))
STATES = st.sampled_from(["ok", "failed", "crashed", "slow"])
INSTALLED = st.none() | st.builds(
    there, st.sampled_from(["2.8.3", "2.8.3+cu12torch2.8", "1.0", "no version"]), STATES,
    st.sampled_from(["ran", "failed", "crashed", "slow", "skipped", "none"]),
    HOSTILE, st.sampled_from(["", "a" * 64, "b" * 64]))


def _seen(row):
    found, where, installed, state, managed, writable = row
    place = {**where, "state": state, "managed": managed, "writable": writable,
             "installed": {one["package"]: installed for one in found},
             "beside": {"vllm": "0.24.0"}}
    return found, {PYTHON: place} if state != "missing" else {}


ASKED = st.tuples(
    st.lists(REQUESTS, max_size=2, unique_by=lambda one: one["package"]), WHERE, INSTALLED,
    st.sampled_from(["ok", "ok", "ok", "missing", "broken", "slow"]),
    st.sampled_from(["", "", "conda", "distribution"]), st.booleans()).map(_seen)


def _decided(row):
    (found, places), listed, facts, build, offline = row
    return (found, places, {wheels.question(one)["key"]: listed for one in found}, facts, build,
            offline)


TO_DECIDE = st.tuples(
    ASKED, LISTED, st.sampled_from([{}, {"devices": [{"capability": "9.0"}]},
                                    {"devices": [{"capability": None}]}]),
    st.booleans(), st.booleans()).map(_decided)
DECISIONS = TO_DECIDE.map(lambda row: (wheels.wheel_decisions(*row),))
SOURCES = st.sampled_from([
    {"index": "pip"}, {"index": "https://user:secret@example.org/simple"}, {"index": "ftp://x"},
    {"index": "https://example.org/simple", "page": "https://example.org"}, {},
    {"release": "example/x", "tag": "v{version}"}, {"release": "../x"}, {"folder": "wheels"},
    {"file": "https://example.org/x-1-py3-none-any.whl"}, {"index": "https://[::1"}]) | JSON
ENTRIES = st.fixed_dictionaries({}, optional={
    "package": st.sampled_from(["flash-attn", "Flash_Attn", "flashattn", "xformers"]) | JSON,
    "python": st.sampled_from([PYTHON, "python", "/opt/../bin/python"]) | HOSTILE | JSON,
    "version": st.sampled_from(["", "2.8.3", ">=2,<3", "latest", 2.8]) | JSON,
    "sha256": st.sampled_from(["", "A" * 64, "a" * 63]) | JSON,
    "sources": st.lists(SOURCES, max_size=2) | JSON, "vresion": st.just("2")})
OWN_ROWS = st.fixed_dictionaries({}, optional={
    "package": st.sampled_from(["own", "flash-attn"]) | JSON, "imports": st.just(["own"]) | JSON,
    **{key: JSON | st.just(ROWS["flash-attn"][key]) for key in (
        "versions", "torch", "requires_torch", "cuda", "plain_cuda", "capabilities", "kernel",
        "kernel_device", "tolerance", "not_needed", "sources", "build", "source")},
    "pakage": st.just("x")})
TO_JUDGE = st.tuples(
    st.lists(ENTRIES | JSON, max_size=3) | JSON, st.lists(OWN_ROWS | JSON, max_size=2) | JSON,
    st.just(CATALOG), st.lists(SOURCES, max_size=2) | JSON)
