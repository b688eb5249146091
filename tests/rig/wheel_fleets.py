# SPDX-License-Identifier: Apache-2.0
"""Fleets whose environments want wheels, and what becomes of them when a plan is carried out."""

from __future__ import annotations

import copy
import hashlib

from hypothesis import strategies as st
from wheels import builder

from ansible.module_utils.firstlight.planning import wheel_fleet, wheels

PYTHON = "/opt/serve/bin/python"


def environment(python=PYTHON, version="3.12.3", machine="x86_64", **installed):
    """What prebuilt_wheel_info tells of an environment without torch; ``installed`` by package."""
    return {
        "python": python, "state": "ok", "why": "", "implementation": "cpython",
        "version": version, "abi_flags": "", "free_threaded": False, "machine": machine,
        "bits": 64, "libc": {"name": "glibc", "version": "2.36"}, "prefix": "/opt/serve",
        "base_prefix": "/usr", "purelib": "/opt/serve/lib", "platlib": "/opt/serve/lib",
        "writable": True, "why_not_writable": "", "managed": "", "pip": "24.0",
        "torch": {"state": "absent", "why": "", "version": "", "cuda": "", "hip": "",
                  "cxx11abi": None, "seconds": None, "devices": [], "why_no_devices": ""},
        "installed": {name.replace("_", "-"): there(found) for name, found in installed.items()},
        "beside": {}, "facts_unread": {}}


def there(version):
    """An installed package that is imported; ``None`` is none."""
    return None if version is None else {
        "version": version, "location": "/opt/serve/lib", "installer": "pip", "conda": False,
        "imports": {"state": "ok", "why": "", "seconds": 0.1},
        "kernel": {"state": "none", "why": "", "error": None, "device": ""}}


def candidate(file, path="", **changes):
    """A file that an index tells of, or that lies at a path."""
    return {"file": file, "url": "" if path else "https://wheels.example.org/" + file,
            "path": path, "sha256": hashlib.sha256(file.encode()).hexdigest(), "size": 2500000,
            "requires_python": "", "yanked": "", "source": "https://wheels.example.org",
            "built_for": {}, **changes}


def name(package, version, python="312", machine="x86_64"):
    """The name of a file."""
    return "%s-%s-cp%s-cp%s-manylinux_2_28_%s.whl" % (
        builder.escaped(package), version, python, python, machine)


def request(package="tiny-kernel", python=PYTHON, version="", place=0, **changes):
    """One of the filter ``wheel_requests``."""
    return {"where": "prebuilt_wheel_packages[%d]" % place, "package": package, "python": python,
            "version": version, "sha256": "", "row": builder.row(package),
            "sources": [{"index": "https://wheels.example.org/simple"}], **changes}


def key(asked=None):
    """By which the answer to a request is found."""
    return wheels.question(asked or request())["key"]


def host(*requests, can=True, has=(), build=False, **where):
    """A host that wants these, whose wheelhouse has files of those names; ``where`` it wants them.
    """
    requests = list(requests)
    return {"can": can, "requests": requests, "facts": {"devices": []},
            "build_limit_s": 7200 if build else 0,
            "candidates": {key(one): [
                candidate(file, "/root/wheels/" + file) for file in has] for one in requests},
            "environments": {one["python"]: environment(
                one["python"], **{**dict.fromkeys([
                    each["package"].replace("-", "_") for each in requests
                    if each["python"] == one["python"]]), **where}) for one in requests}}


def answer(*files, house=()):
    """What the seed tells of a request: what an index has, and what its wheelhouse has."""
    return {"candidates": {key(): [candidate(file, "/seed/wheels/" + file)
                                   for file in house]
                           + [candidate(file) for file in files if file not in house]},
            "house": {file: {"sha256": candidate(file)["sha256"], "size": 1} for file in house},
            "findings": []}


def carried_out(fleet, seed, files, fails=()):
    """The fleet after one run, the files that were fetched, and the plan and its end.

    :param files: what the index has of each package.
    :param fails: files that cannot be fetched.
    """
    fleet = copy.deepcopy(fleet)
    asked = wheel_fleet.wheel_fleet_asked(fleet, seed)
    seed = asked["seed"]
    told = {}
    if asked["sought"] and seed:
        own = fleet[seed]["candidates"] if seed in fleet else {}
        listed = [one for found in own.values() for one in found]
        told = {"candidates": {one["key"]: listed + [candidate(file) for file in files]
                               for one in asked["sought"]},
                "house": {one["file"]: {"sha256": one["sha256"]} for one in listed}}
    plan = wheel_fleet.wheel_fleet_plan(fleet, asked, told)
    results = [{"failed": False, "msg": "no such file", "findings": [{"severity": "error"}]}
               if one["file"] in fails else {"failed": False, "changed": True}
               for one in plan["fetch"]]
    came = wheel_fleet.wheel_fleet_came(plan, seed, results)
    got = dict(came["copies"])
    if seed in fleet:
        got[seed] = [one for one in plan["fetch"] if one["file"] not in fails]
    for name_, mine in got.items():
        for listed in fleet[name_]["candidates"].values():
            listed += [dict(one, url="", path="/root/wheels/" + one["file"]) for one in mine]
    return fleet, [one["file"] for one in plan["fetch"]], plan, came


FILES = [name("tiny-kernel", version, python, machine) for version in ("1.0", "1.1")
         for python in ("311", "312") for machine in ("x86_64", "aarch64")]


def fleets():
    """Fleets of up to five hosts, with environments of their own for up to two packages."""
    def made(row):
        can, wanted, has, version, machine, old = row
        requests = [request(package, place=place) for place, package in enumerate(wanted)]
        about = host(*requests, can=can, has=has)
        for one in about["environments"].values():
            one.update(version=version, machine=machine)
            if old and wanted:
                one["installed"][wanted[0]] = there("1.0")
        return about

    hosts = st.tuples(
        st.booleans(), st.lists(st.sampled_from(["tiny-kernel", "other"]), unique=True,
                                max_size=2),
        st.lists(st.sampled_from(FILES), unique=True, max_size=2),
        st.sampled_from(["3.11.2", "3.12.3", "3.9.18"]),
        st.sampled_from(["x86_64", "aarch64"]), st.booleans()).map(made)
    return st.lists(hosts, max_size=5).map(
        lambda found: {"h%d" % number: one for number, one in enumerate(found)})


BUILD = {"sdist": "pip", "environment": {}, "architectures": {}, "jobs": "MAX_JOBS",
         "job_bytes": 2**30}


def to_build():
    """Decisions to compile or to do nothing, with what their filter is given beside them."""
    def made(row):
        build, available, limit_s, actions = row
        asked = request(row=builder.row("tiny-kernel", build=build))
        facts = {"devices": [], "cpu": {"cores": 4}, "memory": {"available_bytes": available}}
        decisions = [{"request": asked, "action": action, "why": "", "version": "1.1",
                      "wheel": candidate("tiny_kernel-1.1.tar.gz"), "replaces": "",
                      "findings": [], "rejected": []} for action in actions]
        return decisions, {PYTHON: environment(tiny_kernel=None)}, facts, limit_s

    return st.tuples(
        st.sampled_from([{}, BUILD]), st.sampled_from([None, 2**28, 2**35]),
        st.sampled_from([0, 7200]), st.lists(
            st.sampled_from(["build", "nothing", "install"]), max_size=3)).map(made)
