# SPDX-License-Identifier: Apache-2.0
"""A build is planned for the GPUs, the memory and the disk of its host, and for no more."""

from __future__ import annotations

import facts as made
import pytest

from ansible.module_utils.firstlight import findings
from ansible.module_utils.firstlight.planning import wheel_builds
from ansible.module_utils.firstlight.planning.wheel_builds import build_plan, build_signs

GIB = 2**30
ROW = {
    "package": "flash-attn", "torch": "minor", "cuda": "major",
    "capabilities": [
        {"capability": "8.0", "cuda": ""}, {"capability": "9.0", "cuda": "11.8"},
        {"capability": "10.0", "cuda": "12.8"}, {"capability": "12.0", "cuda": "12.8"}],
    "build": {
        "sdist": "pip", "environment": {"FLASH_ATTENTION_FORCE_BUILD": "TRUE"},
        "architectures": {"variable": "FLASH_ATTN_CUDA_ARCHS", "form": "80;90"},
        "jobs": "MAX_JOBS", "job_bytes": 9 * GIB},
}
PLAIN = {"package": "tiny", "torch": "none", "cuda": "none", "capabilities": [],
         "build": {"sdist": "pip", "environment": {}, "architectures": {}, "jobs": "",
                   "job_bytes": 0}}
KEYS = {"package", "environment", "jobs", "architectures", "limit_s", "why", "findings",
        "built_for", "cuda", "requires", "keep", "compiled"}


def environment(cuda="12.8", devices=(), **torch):
    return {"version": "3.12.3", "torch": {
        "state": "ok", "why": "", "version": "2.8.0+cu128", "cuda": cuda, "cxx11abi": True,
        "devices": [{"name": "a GPU", "capability": one} for one in devices], **torch}}


def gpus(*capabilities):
    return made.host([made.device(index, capability=one)
                      for index, one in enumerate(capabilities)])


def with_build(row, **changes):
    return {**row, "build": {**row["build"], **changes}}


def planned(row=ROW, env=None, capabilities=(), facts=None, limit_s=7200):
    plan = build_plan(row, env or environment(), list(capabilities),
                      gpus("9.0") if facts is None else facts, limit_s)
    assert set(plan) == KEYS
    return plan


def ids(plan):
    return [(one["id"], one["severity"]) for one in plan["findings"]]


def refusals(plan):
    return [one["id"] for one in findings.blocking(plan["findings"])]


@pytest.mark.parametrize(("capabilities", "architectures"), [
    (["8.0"], "80"),
    (["8.6"], "80"),  # flash-attn knows no 86: it would build nothing for it
    (["8.9", "8.6"], "80"),
    (["9.0", "9.0"], "90"),
    (["9.0", "8.6"], "80;90"),
    (["10.0"], "100"),
    (["10.3"], "100"),
    (["12.1", "9.0"], "90;120"),
])
def test_only_the_kernels_that_this_hosts_gpus_run_are_built(capabilities, architectures):
    plan = planned(facts=gpus(*capabilities))
    assert plan["architectures"] == architectures
    assert plan["environment"]["FLASH_ATTN_CUDA_ARCHS"] == architectures
    assert plan["findings"] == []


def test_torchs_own_list_has_dots():
    row = with_build(ROW, architectures={"variable": "TORCH_CUDA_ARCH_LIST", "form": "8.0;9.0"})
    plan = planned(row, facts=gpus("9.0", "12.0"))
    assert plan["environment"]["TORCH_CUDA_ARCH_LIST"] == "9.0;12.0"


def test_a_row_that_has_no_list_of_kernels_builds_for_the_gpu_itself():
    plan = planned({**ROW, "capabilities": []}, facts=gpus("8.6"))
    assert plan["architectures"] == "86"
    assert plan["built_for"]["capabilities"] == ["8.6"]


def test_capabilities_that_are_asked_for_win_over_the_hosts():
    plan = planned(capabilities=["8.0", "10.0"])
    assert plan["architectures"] == "80;100"
    assert "asked for" in plan["why"]


@pytest.mark.parametrize("facts", [{}, made.cpu_host(), gpus(None)])
def test_torch_tells_the_gpus_where_the_host_does_not(facts):
    plan = planned(env=environment(devices=["9.0"]), facts=facts)
    assert plan["architectures"] == "90"
    assert refusals(plan) == []


@pytest.mark.parametrize("facts", [{}, made.cpu_host(), gpus(None)])
def test_nothing_is_built_for_gpus_that_nobody_knows(facts):
    plan = planned(facts=facts)
    assert refusals(plan) == ["wheel-build-architecture"]
    assert plan["architectures"] == ""


def test_a_gpu_that_tells_nothing_does_not_stop_the_others_and_is_told():
    plan = planned(facts=gpus("9.0", None))
    assert plan["architectures"] == "90"
    assert ids(plan) == [("wheel-build-architecture", "warning")]


def test_a_gpu_without_a_kernel_refuses_where_there_is_no_other():
    assert refusals(planned(facts=gpus("7.5"))) == ["wheel-build-architecture"]
    both = planned(facts=gpus("7.5", "9.0"))
    assert both["architectures"] == "90"
    assert ids(both) == [("wheel-build-architecture", "warning")]
    assert "7.5" in both["findings"][0]["found"]


def test_a_gpu_that_needs_a_newer_cuda_is_told_which():
    plan = planned(env=environment(cuda="12.6"), facts=gpus("10.0"))
    assert refusals(plan) == ["wheel-build-architecture"]
    assert plan["findings"][0]["wanted"].startswith("CUDA 12.8 or newer")


def test_the_compiler_must_know_the_newest_gpu():
    assert planned(facts=gpus("9.0", "12.0"))["cuda"] == {"wanted": "12.8", "least": "12.8"}
    assert planned(facts=gpus("8.0"))["cuda"] == {"wanted": "12.8", "least": ""}
    assert planned(PLAIN)["cuda"] == {}


def test_what_it_is_built_for_is_told():
    assert planned(facts=gpus("8.6"))["built_for"] == {
        "python": "3.12", "torch": "2.8", "cuda": "12.8", "cxx11abi": True, "capabilities": ["8.0"]}
    assert planned(PLAIN)["built_for"] == {"python": "3.12"}


def memory(available, cores=16, **more):
    return made.host([made.device()], cpu={"cores": cores}, memory={
        "available_bytes": available, **more})


@pytest.mark.parametrize(("facts", "jobs"), [
    (memory(180 * GIB), 16),
    (memory(180 * GIB, cores=64), 19),
    (memory(11 * GIB), 1),
    (memory(20 * GIB), 2),
    (memory(180 * GIB, limit_bytes=29 * GIB), 3),
    (memory(180 * GIB, cores=None), 1),
    (memory(None), 1),
    (memory(None, total_bytes=None), 1),
    ({"devices": [made.device()]}, 1),
])
def test_there_are_as_many_compilers_as_memory_and_cores_allow(facts, jobs):
    plan = planned(facts=facts)
    assert (plan["jobs"], plan["environment"]["MAX_JOBS"]) == (jobs, str(jobs))
    assert refusals(plan) == []
    assert "at a time" in plan["why"]


@pytest.mark.parametrize("facts", [
    memory(11 * GIB - 1), memory(180 * GIB, limit_bytes=8 * GIB), memory(0),
    memory(None, total_bytes=8 * GIB)])
def test_a_host_without_memory_for_one_compiler_is_refused(facts):
    plan = planned(facts=facts)
    assert refusals(plan) == ["wheel-build-memory"]
    assert plan["jobs"] == 0


def test_unknown_figures_are_told():
    plan = planned(facts={"devices": [made.device()]})
    assert "memory is not known" in plan["why"]
    assert "free space is not known" in plan["why"]
    assert "cores is not known" in planned(facts=memory(180 * GIB, cores=None))["why"]


def test_a_disk_without_room_is_refused():
    full = made.host([made.device()], disk={"free_bytes": 9 * GIB - 1})
    plan = planned(facts=full)
    assert refusals(plan) == ["wheel-build-disk"]
    assert "/var/lib/firstlight" in plan["findings"][0]["found"]
    assert refusals(planned(with_build(ROW, disk_bytes=GIB), facts=full)) == []


@pytest.mark.parametrize(("torch", "says"), [
    ({"state": "absent", "version": "", "cuda": "", "cxx11abi": None}, "absent"),
    ({"state": "broken", "why": "libcudart.so.13", "version": "", "cuda": "", "cxx11abi": None},
     "libcudart.so.13"),
    ({"version": "2.8.0+cpu", "cuda": ""}, "no CUDA"),
])
def test_a_package_for_cuda_needs_a_torch_that_has_it(torch, says):
    plan = planned(env=environment(**torch))
    assert "wheel-build-torch" in refusals(plan)
    assert says in plan["findings"][0]["found"]


def test_a_package_that_needs_no_torch_does_not_ask_for_one():
    plan = planned(PLAIN, env=environment(state="absent", version="", cuda="", cxx11abi=None))
    assert plan["findings"] == []
    assert plan["compiled"] is False


def test_a_row_may_name_its_wheel_by_what_it_is_built_for():
    row = with_build(ROW, environment={
        "FLASH_ATTN_LOCAL_VERSION": "cu{cuda_major}torch{torch}cxx11abi{cxx11abi}", "X": 3})
    variables = planned(row)["environment"]
    assert variables["FLASH_ATTN_LOCAL_VERSION"] == "cu12torch2.8cxx11abiTRUE"
    assert variables["X"] == "3"


@pytest.mark.parametrize("name", ["HOME", "FIRSTLIGHT_BUILD", "A B", "1X", "X=Y", ""])
def test_a_variable_that_is_ours_or_is_none_is_refused(name):
    assert refusals(planned(with_build(ROW, environment={name: "x"}))) == ["wheel-build-variable"]


def test_a_row_without_a_build_and_a_limit_of_nothing_are_refused():
    assert refusals(planned({**ROW, "build": {}})) == ["wheel-build-unknown"]
    assert refusals(planned(limit_s=0)) == ["wheel-build-limit"]


def test_everything_that_is_wrong_is_told_at_once():
    facts = made.host([made.device(capability="7.5")], memory={"available_bytes": GIB},
                      disk={"free_bytes": GIB})
    assert set(refusals(planned(facts=facts))) == {
        "wheel-build-architecture", "wheel-build-memory", "wheel-build-disk"}


# What compilers, torch, setuptools, pip and git say when a build fails.
@pytest.mark.parametrize(("line", "name"), [
    ("c++: fatal error: Killed signal terminated program cc1plus", "wheel-build-memory"),
    ("nvcc error   : 'cicc' died due to signal 9 (Kill signal)", "wheel-build-memory"),
    ("sh: line 1:  4711 Killed                  cicc --c++17", "wheel-build-memory"),
    ("cc1plus: out of memory allocating 65536 bytes after a total of 1 bytes",
     "wheel-build-memory"),
    ("virtual memory exhausted: Cannot allocate memory", "wheel-build-memory"),
    ("The detected CUDA version (13.0) mismatches the version that was used to compile",
     "wheel-build-cuda"),
    ("nvcc fatal   : Unsupported gpu architecture 'compute_120'", "wheel-build-cuda"),
    ("#error -- unsupported GNU version! gcc versions later than 13 are not supported!",
     "wheel-build-cuda"),
    ("OSError: CUDA_HOME environment variable is not set. Please set it to your CUDA install root",
     "wheel-build-no-compiler"),
    ("FileNotFoundError: [Errno 2] No such file or directory: '/usr/local/cuda/bin/nvcc'",
     "wheel-build-no-compiler"),
    ("/bin/sh: 1: nvcc: not found", "wheel-build-no-compiler"),
    ("fatal error: Python.h: No such file or directory", "wheel-build-no-compiler"),
    ("error: command 'x86_64-linux-gnu-gcc' failed: No such file or directory",
     "wheel-build-no-compiler"),
    ("ModuleNotFoundError: No module named 'torch'", "wheel-build-requires"),
    ("error: invalid command 'bdist_wheel'", "wheel-build-requires"),
    ("fatal error: error writing to /tmp/x.s: No space left on device", "wheel-build-disk"),
    ("urllib.error.URLError: <urlopen error [Errno 111] Connection refused>",
     "wheel-build-network"),
    ("fatal: unable to access 'https://example.org/x.git/': Could not resolve proxy",
     "wheel-build-network"),
    ("ERROR: Could not find a version that satisfies the requirement psutil",
     "wheel-build-network"),
])
def test_a_line_of_a_log_tells_why_a_build_failed(line, name):
    told = build_signs("flash-attn", 3, ["[1/73] c++ -MMD", "  " + line, "ninja: build stopped"])
    assert [(one["id"], one["evidence"], one["severity"]) for one in told] == [
        (name, line, "error")]
    assert "{" not in told[0]["found"]


@pytest.mark.parametrize("line", [
    "[1/73] /usr/local/cuda/bin/nvcc -O3 -gencode arch=compute_90,code=sm_90 -c x.cu",
    "ptxas info    : Used 168 registers, 0 bytes spill stores",
    "running build_ext", "copying flash_attn/modules/mha.py -> build/lib", ""])
def test_what_a_build_says_in_passing_tells_nothing(line):
    assert build_signs("flash-attn", 3, [line]) == []


def test_a_log_with_much_of_the_same_is_told_in_short_and_memory_first():
    lines = ["No module named 'x%d'" % number for number in range(50)]
    lines += ["c++: fatal error: Killed signal terminated program cc1plus"] * 50
    first, second = build_signs("flash-attn", 7, lines)
    assert first["id"] == "wheel-build-memory"
    assert "7" in first["found"]
    assert len(first["evidence"].splitlines()) == 1
    assert len(second["evidence"].splitlines()) == wheel_builds.MOST_LINES
