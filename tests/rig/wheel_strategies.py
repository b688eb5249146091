# SPDX-License-Identifier: Apache-2.0
"""Rows, environments and facts that a build of a wheel may be asked for with."""

from __future__ import annotations

from hypothesis import strategies as st

GIB = 2**30
CAPABILITIES = st.sampled_from(["7.5", "8.0", "8.6", "9.0", "10.3", "12.1"])
CUDA = st.sampled_from(["", "11.8", "12.6", "12.8", "13.0"])
KERNELS = st.lists(st.fixed_dictionaries({"capability": CAPABILITIES, "cuda": CUDA}), max_size=3)
BUILD_ROWS = st.fixed_dictionaries({
    "package": st.just("tiny"),
    "torch": st.sampled_from(["minor", "stable", "none"]),
    "cuda": st.sampled_from(["major", "none"]),
    "capabilities": KERNELS,
    "build": st.fixed_dictionaries({
        "sdist": st.just("pip"),
        "environment": st.dictionaries(
            st.sampled_from(["X", "LOCAL", "HOME", "not one"]),
            st.sampled_from(["TRUE", 3, True, "cu{cuda_major}torch{torch}cxx11abi{cxx11abi}"]),
            max_size=2),
        "architectures": st.sampled_from([{}, {"variable": "ARCHS", "form": "80;90"},
                                          {"variable": "ARCHS", "form": "8.0;9.0"}]),
        "jobs": st.sampled_from(["", "MAX_JOBS", "JOBS"]),
        "job_bytes": st.sampled_from([1, GIB, 9 * GIB]),
    }, optional={"requires": st.just(["ninja"]), "disk_bytes": st.just(GIB)}) | st.just({}),
})
ENVIRONMENTS = st.fixed_dictionaries({"version": st.just("3.12.3"), "torch": st.fixed_dictionaries({
    "state": st.just("ok"), "why": st.just(""),
    "version": st.sampled_from(["2.8.0", "2.11.0+cu130"]), "cuda": CUDA,
    "cxx11abi": st.sampled_from([True, False, None]),
    "devices": st.lists(st.fixed_dictionaries({"capability": CAPABILITIES}), max_size=2),
}) | st.sampled_from([
    {"state": state, "why": "it says so", "version": "", "cuda": "", "cxx11abi": None,
     "devices": []} for state in ("absent", "broken", "slow", "crashed")])})
# What is left where the facts of a host were not read, or in part.
FACTS = st.fixed_dictionaries({}, optional={
    "devices": st.lists(st.fixed_dictionaries({"capability": CAPABILITIES | st.none()}),
                        max_size=2),
    "cpu": st.sampled_from([{"cores": None}, {"cores": 1}, {"cores": 64}]),
    "memory": st.sampled_from([
        {"available_bytes": None, "total_bytes": None, "limit_bytes": None},
        {"available_bytes": 0}, {"available_bytes": 64 * GIB, "limit_bytes": 20 * GIB}]),
    "disk": st.sampled_from([{"path": "/srv", "free_bytes": None}, {"free_bytes": 0},
                             {"free_bytes": 900 * GIB}]),
})
