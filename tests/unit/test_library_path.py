# SPDX-License-Identifier: Apache-2.0
"""What stands between a program and libcuda: of each break its cause, and nothing beside it."""

from __future__ import annotations

import copy
import json

import library_seen as rig
import pytest
from library_seen import CASES, CHECKS, COMPAT, MODULE, NVIDIA, STUBS, SYSTEM, TRITONS

from ansible.module_utils.firstlight.planning import library_path as judge


def told(seen, half_done=""):
    return judge.problems(seen, CHECKS, TRITONS, half_done)


def one(seen, id_, half_done=""):
    [found] = [each for each in told(seen, half_done) if each.finding["id"] == id_]
    return found


@pytest.mark.parametrize("name", CASES)
def test_exactly_the_causes_are_told(name):
    seen, ids, half_done = CASES[name]
    before = copy.deepcopy(seen)
    found = told(seen, half_done)
    assert [each.finding["id"] for each in found] == ids
    assert seen == before
    for each in found:
        row = next(row for row in CHECKS if row["id"] == each.finding["id"])
        assert each.finding["severity"] == row["severity"]
        assert each.finding["needs_root"] is row["needs_root"]
        assert each.stops == row["stops"]
        assert each.bypass is (row["bypass"] and "cannot be led" not in name)
        assert each.helps in ("", row["helps"])
        for key in ("found", "wanted", "remedy", "subject", "source", "evidence"):
            assert each.finding[key].strip(), key
            assert "None" not in each.finding[key]
    json.dumps([each.finding for each in found])


def test_every_row_is_found_in_some_case():
    assert {id_ for _, ids, _ in CASES.values() for id_ in ids} == {row["id"] for row in CHECKS}


def test_every_row_is_found_alone_in_some_case_but_those_that_need_another():
    alone = {ids[0] for _, ids, _ in CASES.values() if len(ids) == 1}
    assert {row["id"] for row in CHECKS} - alone == {"not-root", "root-read-only"}


# What the texts say.


@pytest.mark.parametrize("name, texts", [
    ("the cache is damaged", ["/etc/ld.so.cache, 30 bytes: it ends within its header"]),
    ("the cache is directory", ["is a directory, with something in it or mounted there"]),
    ("a library is not listed", ["300 libraries are listed; it lacks /usr/local/lib/libfirst"]),
    ("a library is listed and gone", ["it lists what is gone: /usr/local/lib/libfirst.so.1"]),
    ("libcuda.so.1 is listed and no more", ["what is gone: %s/libcuda.so.1" % SYSTEM]),
    ("ldconfig fails", ["amiss"]),
    ("the driver is where nobody looks", [NVIDIA + "/libcuda.so.1", "nvidia-lib64"]),
    ("the link leads nowhere", [SYSTEM + "/libcuda.so.1 leads to libcuda.so.450.1"]),
    ("the stub is first", [STUBS + "/libcuda.so (40000 bytes)", "34", SYSTEM + "/libcuda.so.1"]),
    ("compatibility that the card does not have", [COMPAT, "804", SYSTEM + "/libcuda.so.1"]),
    ("the libraries are older than the kernel module",
     ["of 535.104.05 and the loaded kernel module of " + MODULE, "nvmlInit 18"]),
    ("only NVML says so", ["of 535.104.05 and the loaded kernel module of another"]),
    ("two drivers in one folder", ["535.104.05, " + MODULE]),
    ("two drivers in two folders", [NVIDIA, SYSTEM]),
    ("CUDA gives no answer", ["within 30 s"]),
    ("CUDA does not start", ["999", SYSTEM + "/libcuda.so." + MODULE]),
    ("what is listed cannot be loaded", ["signal 6"]),
    ("a stub in LD_LIBRARY_PATH", ["/etc/environment", STUBS, "a stub"]),
    ("compatibility in LD_LIBRARY_PATH", [COMPAT, "does not go here"]),
    ("no libcuda.so for an older Triton", ["3.5.1", rig.PYTHON, "libcuda.so -> libcuda.so.1"]),
    ("no headers", ["/usr/include/python3.12", "python3.12-dev"]),
    ("a Python that does not run", [rig.PYTHON, "it is not there"]),
    ("a repair that was ended in the middle", [rig.JOURNAL]),
])
def test_a_finding_names_what_was_seen(name, texts):
    seen, ids, half_done = CASES[name]
    [found] = [each.finding for each in told(seen, half_done)]
    assert found["id"] == ids[0]
    said = "\n".join(str(value) for value in found.values())
    assert [text for text in texts if text not in said] == []


def test_of_many_libraries_a_few_are_named_those_of_cuda_first():
    paths = ["/usr/lib/lib%d.so.1" % number for number in range(20)] + [SYSTEM + "/libcuda.so.1"]
    found = one(rig.seen(unlisted=paths), "linker-cache-stale").finding["found"]
    assert "it lacks %s/libcuda.so.1, /usr/lib/lib0.so.1" % SYSTEM in found
    assert found.endswith("and 16 more")


def test_a_percent_sign_in_what_was_seen_is_only_a_character():
    folder = "/opt/100%s %(path)s"
    found = one(rig.seen(rig.elsewhere(folder=folder, path=folder + "/libcuda.so.1")),
                "libcuda-unlisted").finding
    assert folder in found["found"]


# Whether the safe remedy helps here.


@pytest.mark.parametrize("name, helps", [
    ("the cache is directory", ""),
    ("the cache is an empty directory", "linker_cache"),
    ("the stub is first", "linker_cache"),
    ("the driver is where nobody looks", "linker_cache"),
    ("the libraries are older than the kernel module", ""),
])
def test_a_remedy_is_named_where_it_helps(name, helps):
    [found] = told(CASES[name][0])
    assert found.helps == helps


def test_nothing_can_be_put_first_where_nothing_says_which_driver_is_right():
    drivers = [rig.library(), rig.elsewhere(version="535.104.05")]
    stub = rig.stub(configured=True, listed=True)
    found = one(rig.seen(stub, *drivers, kernel_module=None, loaded=rig.loaded(stub, 34)),
                "libcuda-stub-first")
    assert found.helps == ""
    assert " or ".join(each["path"] for each in drivers) in found.finding["wanted"]


def test_who_cannot_write_is_told_so_where_root_could_mend_something():
    read_only = rig.broken_cache("missing", etc_writable=False, read_only=True, root=True)
    assert one(read_only, "root-read-only").helps == ""
    unknown = rig.broken_cache("missing", etc_writable=False, read_only=None, root=False)
    assert one(unknown, "not-root").finding["severity"] == "warning"
    # Not for what takes a person, and an entry of LD_LIBRARY_PATH takes no root.
    for name in ("the driver has no libraries", "a stub in LD_LIBRARY_PATH", "CUDA does not start",
                 "the cache is directory"):
        seen, ids, _ = CASES[name]
        assert [each.finding["id"] for each in told({**seen, "etc_writable": False})] == ids


# The library to go by.


@pytest.mark.parametrize("libraries, module, expected", [
    ([], MODULE, None),
    ([rig.stub(), rig.compat()], MODULE, None),
    ([rig.library()], None, 0),
    ([rig.library(version="535.104.05"), rig.elsewhere()], MODULE, 1),
    ([rig.library(version="535.104.05"), rig.elsewhere()], None, None),
    ([rig.library(version="535.104.05"), rig.elsewhere()], "570.1", None),
    ([rig.elsewhere(), rig.library()], MODULE, 1),
    ([rig.elsewhere(), rig.library(listed=False)], MODULE, 1),
    ([rig.elsewhere(), rig.library("/opt/b", listed=True)], MODULE, 1),
    # A Jetson's has no version.
    ([rig.library(version=None), rig.elsewhere(version=None)], None, 0),
    ([rig.stub(), rig.library("/usr/lib/i386-linux-gnu", "foreign"), rig.elsewhere()], MODULE, 2),
])
def test_the_library_to_go_by_is_of_the_loaded_version_listed_and_configured(
        libraries, module, expected):
    found = judge.chosen(rig.seen(libraries=libraries, kernel_module=module))
    assert found == (None if expected is None else libraries[expected])


# Releases of Triton.


@pytest.mark.parametrize("version, first", [
    ("2.0.0", None), ("2.1.0", "2.1.0"), ("2.2.0", "2.2.0"), ("2.3.1", "2.2.0"), ("3", "3.0.0"),
    ("3.5.1", "3.0.0"), ("3.5.99+git", "3.0.0"), ("3.6", "3.6.0"), ("3.6.0+git", "3.6.0"),
    ("3.10.0", "3.6.0"), ("10.0", "3.6.0"), ("junk", None), ("", None), ("3.x.9", "3.0.0"),
])
def test_a_release_is_in_the_row_of_its_numbers(version, first):
    row = judge.triton_row(version, TRITONS)
    assert (row and row["first"]) == first
