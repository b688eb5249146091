# SPDX-License-Identifier: Apache-2.0
"""What file names of wheels tell, and which tags an interpreter takes."""

from __future__ import annotations

import platform
import sys
import sysconfig

import pytest
import wheel_cases
from hypothesis import given
from packaging import tags
from wheel_cases import ENVIRONMENTS, NAMES, environment

from ansible.module_utils.firstlight.planning import wheel_names, wheel_tags

TOLD = [
    # File; package, version, CUDA, torch, C++ ABI.
    ("flash_attn-2.8.3+cu12torch2.8cxx11abiTRUE-cp312-cp312-linux_x86_64.whl",
     "flash-attn", "2.8.3", (12, None), "2.8", True),
    ("flash_attn-2.8.3.post1+cu12torch2.8cxx11abiFALSE-cp310-cp310-linux_x86_64.whl",
     "flash-attn", "2.8.3.post1", (12, None), "2.8", False),
    ("flash_attn-2.6.3+cu123torch2.4cxx11abiFALSE-cp310-cp310-linux_x86_64.whl",
     "flash-attn", "2.6.3", (12, 3), "2.4", False),
    ("flash_attn-2.8.3+cu130torch2.10-cp312-cp312-linux_x86_64.whl",
     "flash-attn", "2.8.3", (13, 0), "2.10", None),
    ("flash_attn_3-3.0.0+cu130torch2.11gite2743ab-cp39-abi3-linux_x86_64.whl",
     "flash-attn-3", "3.0.0", (13, 0), "2.11", None),
    ("flash_attn-2.8.4+d20260328cu130torch2.12.0cxx11abiTRUE-cp314-cp314-win_amd64.whl",
     "flash-attn", "2.8.4", (13, 0), "2.12", True),
    ("flash_attn-2.8.3+rocm7.2torch2.14-cp312-cp312-linux_x86_64.whl",
     "flash-attn", "2.8.3", None, "2.14", None),
    ("mamba_ssm-2.3.0+cu11torch2.7cxx11abiTRUE-cp310-cp310-linux_x86_64.whl",
     "mamba-ssm", "2.3.0", (11, None), "2.7", True),
    ("mamba_ssm-2.2.6.post3+cu13torch25.09cxx11abiTRUE-cp312-cp312-linux_aarch64.whl",
     "mamba-ssm", "2.2.6.post3", (13, None), "25.09", True),
    ("natten-0.21.0+torch2.8cu128-cp310-cp310-linux_x86_64.whl",
     "natten", "0.21.0", (12, 8), "2.8", None),
    ("torch_scatter-2.1.2+pt24cu121-cp310-cp310-linux_x86_64.whl",
     "torch-scatter", "2.1.2", (12, 1), "2.4", None),
    ("sageattention-2.2.0+cu128torch2.9.0cxx11abi1-cp312-cp312-win_amd64.whl",
     "sageattention", "2.2.0", (12, 8), "2.9", True),
    ("vllm-0.8.5.dev455+gd6484ef3c.d20250504.cu124-cp310-cp310-linux_aarch64.whl",
     "vllm", "0.8.5.dev455", (12, 4), "", None),
    ("vllm-0.33.0-cp38-abi3-manylinux_2_28_x86_64.whl", "vllm", "0.33.0", None, "", None),
    ("flash_attn-2.8.3.tar.gz", "flash-attn", "2.8.3", None, "", None),
]
MADE = [
    # Names of these kinds, which nobody of those whose names are in the fixture gives.
    # 2.1.0 or 2.10, nobody knows.
    ("x-1.0+pt210cu128-cp312-cp312-linux_x86_64.whl", (12, 8), ""),
    ("x-1.0+pt212cu121-cp312-cp312-linux_x86_64.whl", (12, 1), ""),
    ("x-1.0+torch221cu121-cp312-cp312-linux_x86_64.whl", (12, 1), ""),
    ("natten-0.20.1+torch270cu128-cp312-cp312-linux_x86_64.whl", (12, 8), "2.7"),
    ("x-1.0+pt271cu128-cp312-cp312-linux_x86_64.whl", (12, 8), "2.7"),
    ("x-1.0+torch200cu118-cp311-cp311-linux_x86_64.whl", (11, 8), "2.0"),
    ("natten-0.21.5+torch2100cu130-cp312-cp312-linux_x86_64.whl", (13, 0), "2.10"),
    ("x-1.0+torch2111cu130-cp312-cp312-linux_x86_64.whl", (13, 0), "2.11"),
    ("x-1.0+pt113cu117-cp310-cp310-linux_x86_64.whl", (11, 7), "1.13"),
    ("x-1.0+pt1121cu116-cp310-cp310-linux_x86_64.whl", (11, 6), "1.12"),
    ("x-1.0+torch21001cu130-cp312-cp312-linux_x86_64.whl", (13, 0), ""),
    ("x-1.0+cu12.8torch2.7-cp312-cp312-linux_x86_64.whl", (12, 8), "2.7"),
    ("x-1.0+cu92-cp37-cp37m-linux_x86_64.whl", (9, 2), ""),
    ("x-1.0+cu118.torch2.1-cp312-cp312-linux_x86_64.whl", (11, 8), "2.1"),
    ("x-1.0+custom1234-cp312-cp312-linux_x86_64.whl", None, ""),
]
BAD = [
    ("", "empty"), ("..", "ends neither"), ("flash_attn.whl", "1 parts"), (None, "no text"),
    ("flash_attn-2.8.3-cp312-cp312-linux_x86_64.whl\n", "characters"),
    ("flash_attn-2.8.3\x1b[2J-cp312-cp312-linux_x86_64.whl", "characters"),
    ("flash_attn-2.8.3-cp312-cp312-linux_x86_64.exe", "ends neither"),
    ("flash_attn-2.8.3%2Bcu12torch2.8-cp312-cp312-linux_x86_64.whl", "%2B"),
    ("../flash_attn-2.8.3-cp312-cp312-linux_x86_64.whl", "characters"),
    ("..-1.0-py3-none-any.whl", "no name of a package"),
    ("a..b-1.0-py3-none-any.whl", "no name of a package"),
    ("flash_attn-2.8.3-..-..-any.whl", "PEP 425"),
    ("flash_attn-latest-py3-none-any.whl", "latest"),
    ("flash_attn-2.8.3-tag-py3-none-any.whl", "tag"),
    ("flash_attn-2.8.3-cp312-cp312-linux_x86_64-more-more.whl", "7 parts"),
    ("flash_attn-٢-py3-none-any.whl", "characters"), ("flash_attn.tar.gz", "flash_attn"),
    ("a" * 10000 + "-1.0-py3-none-any.whl", "255"), ("%" * 10000, "%-escape"),
    ("x-1.0-%s-%s-%s.whl" % ((".".join("abcdefghij"),) * 3), "1000 tags"),
]


@pytest.mark.parametrize(("file", "package", "version", "cuda", "torch", "abi"), TOLD)
def test_a_published_name_tells_what_it_is_for(file, package, version, cuda, torch, abi):
    assert file in NAMES
    name = wheel_names.parse(file)
    assert (name.package, name.version, name.cuda, name.torch, name.cxx11abi) == (
        package, version, cuda, torch, abi)
    assert name.kind == ("wheel" if file.endswith(".whl") else "sdist")


@pytest.mark.parametrize(("file", "cuda", "torch"), MADE)
def test_other_ways_to_write_the_same_are_read(file, cuda, torch):
    name = wheel_names.parse(file)
    assert (name.cuda, name.torch) == (cuda, torch)


def test_what_else_names_tell():
    parse = wheel_names.parse
    assert parse("sageattention-2.2.0+cu130sm89torch2.10.0-cp313-cp313-linux_x86_64.whl"
                 ).capability == "8.9"
    on = parse("sageattention-2.2.0+cu130torch2.9.0andhigher.post4-cp39-abi3-win_amd64.whl")
    assert (on.onward, on.unknown) == (True, ("post4",))
    assert parse("vllm-0.29.0+cpu-cp38-abi3-manylinux_2_34_x86_64.whl").other == "cpu"
    assert parse("torch-2.6.0+rocm6.4.2.git76481f7c-cp312-cp312-linux_x86_64.whl"
                 ).other == "rocm6.4.2"
    editable = parse(
        "xformers-0.0.28+c909f0d6.d20250506-0.editable-cp310-cp310-linux_aarch64.whl")
    assert (editable.build, editable.unknown) == ("0.editable", ("c909f0d6",))
    both = parse("flash_attn-2.7.4+cu128torch2.8-cp310-cp310-"
                 "manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl")
    assert both.tags == {"cp310-cp310-manylinux_2_24_x86_64", "cp310-cp310-manylinux_2_28_x86_64"}
    assert parse("sageattention-1.0.6-py3-none-any.whl").pure
    assert not parse("flash_attn-2.8.3.tar.gz").pure


def test_every_published_name_is_read():
    assert len(NAMES) > 300
    for file in NAMES:
        name = wheel_names.parse(file)
        assert file.lower().replace("_", "-").startswith(name.package), file
        assert name.version in file
        assert bool(name.tags) is file.endswith(".whl")
        # What is said in a local version is understood, but for a few words.
        assert set(name.unknown) <= {"gb10", "post2", "post3", "post4", "c909f0d6"}, file


@pytest.mark.parametrize(("file", "why"), BAD, ids=range(len(BAD)))
def test_what_is_no_name_is_said_to_be_none(file, why):
    with pytest.raises(wheel_names.BadName, match=why):
        wheel_names.parse(file)


@given(wheel_cases.FILES)
def test_any_text_is_a_name_or_a_bad_one(file):
    try:
        name = wheel_names.parse(file)
    except wheel_names.BadName as error:
        assert str(error).isprintable()
        return
    assert name.package
    assert str(name.whole).startswith(name.version)


# Tags.


def this_one():
    """The environment that these tests run in, from what it says of itself."""
    libc, version = platform.libc_ver()
    return {"implementation": sys.implementation.name, "version": platform.python_version(),
            "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
            "machine": platform.machine(), "bits": 64 if sys.maxsize > 2**32 else 32,
            "libc": {"name": libc, "version": version}}


def test_the_tags_are_those_that_packaging_finds_for_its_own_interpreter():
    found, theirs = wheel_tags.supported(this_one()), [str(tag) for tag in tags.sys_tags()]
    assert set(found) == set(theirs)
    # What promises nothing of the C library comes last with us, and first with them.
    assert [one for one in found if "-linux_" not in one] == [
        one for one in theirs if "-linux_" not in one]


@pytest.mark.parametrize(("changes", "takes", "not_"), [
    ({}, ["cp312-cp312-manylinux_2_35_x86_64", "cp312-cp312-manylinux2014_x86_64",
          "cp312-cp312-linux_x86_64", "cp39-abi3-manylinux_2_28_x86_64",
          "py39-none-manylinux_2_28_x86_64", "py3-none-any", "cp312-cp312-manylinux1_x86_64"],
     ["cp312-cp312-manylinux_2_36_x86_64", "cp311-cp311-linux_x86_64", "cp313-abi3-linux_x86_64",
      "cp312-cp312-musllinux_1_2_x86_64", "cp312-cp312-linux_aarch64"]),
    ({"machine": "aarch64"}, ["cp312-cp312-manylinux_2_17_aarch64"],
     ["cp312-cp312-manylinux_2_5_aarch64", "cp312-cp312-manylinux1_aarch64"]),
    ({"libc": "musl 1.2"}, ["cp312-cp312-musllinux_1_2_x86_64", "cp312-cp312-musllinux_1_1_x86_64"],
     ["cp312-cp312-musllinux_1_3_x86_64", "cp312-cp312-manylinux_2_17_x86_64"]),
    ({"python": "3.14.0", "free_threaded": True},
     ["cp314-cp314t-manylinux_2_28_x86_64", "py3-none-any"],
     ["cp314-cp314-linux_x86_64", "cp39-abi3-manylinux_2_28_x86_64"]),
    ({"bits": 32}, ["cp312-cp312-manylinux_2_5_i686"], ["cp312-cp312-linux_x86_64"]),
    ({"implementation": "pypy"}, ["py3-none-any", "pp312-none-any"], ["cp312-cp312-linux_x86_64"]),
    ({"python": "unknown"}, [], ["py3-none-any"]),
])
def test_an_environment_takes_its_tags_and_no_others(changes, takes, not_):
    found = wheel_tags.supported(environment(**changes))
    assert set(takes) <= set(found)
    assert not set(not_) & set(found)
    assert len(found) == len(set(found))


def test_more_specific_tags_come_first():
    found = wheel_tags.supported(ENVIRONMENTS["torch 2.8"])
    order = ["cp312-cp312-manylinux_2_35_x86_64", "cp312-cp312-manylinux_2_28_x86_64",
             "cp312-cp312-linux_x86_64", "cp312-abi3-linux_x86_64",
             "cp39-abi3-manylinux_2_28_x86_64", "py39-none-manylinux_2_28_x86_64", "py3-none-any"]
    assert sorted(order, key=found.index) == order


def test_an_absurd_libc_makes_no_endless_list():
    assert len(wheel_tags.supported(environment(libc="glibc 2.9999"))) < 50000
