# SPDX-License-Identifier: Apache-2.0
"""What stands between a program and libcuda: of each break its cause, and nothing beside it."""

from __future__ import annotations

import copy
import json

import library_seen as rig
import pytest
from library_seen import (
    CASES,
    CHECKS,
    COMPAT,
    MODULE,
    NVIDIA,
    OTHER_PYTHON,
    PYTHON,
    STUBS,
    SYSTEM,
    TRITONS,
)

from ansible.module_utils.firstlight import library_path as both
from ansible.module_utils.firstlight.planning import library_path as judge
from ansible.module_utils.firstlight.planning import library_repair


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
        # A cache that is stale is in the way of Triton where it is so of libcuda.
        matters = row["id"] != "linker-cache-stale" or "libcuda" in each.finding["found"]
        assert each.stops == (row["stops"] if matters else "")
        # Two drivers in one folder have one link, and so have links to that folder.
        driver = judge.chosen(seen)
        apart = row["id"] != "libcuda-other-first" or driver is None or (
            driver["real"] != seen["loaded"]["path"])
        assert each.bypass is (row["bypass"] and apart)
        assert each.python in ("", PYTHON)
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
    ("the cache is directory, and mounted", ["in it or mounted there"]),
    ("the cache is damaged, and mounted", ["within its header; it is mounted there and cannot"]),
    ("the cache is mounted, and libcuda.so.1 is not listed", [
        "it lacks %s/libcuda.so.1; it is mounted there and cannot be replaced" % SYSTEM]),
    ("a library is not listed", ["300 libraries are listed; it lacks /usr/local/lib/libfirst"]),
    ("a library is listed and gone", ["it lists what is gone: /usr/local/lib/libfirst.so.1"]),
    ("libcuda.so.1 is listed and no more", ["what is gone: %s/libcuda.so.1" % SYSTEM]),
    ("ldconfig fails", ["amiss"]),
    ("the driver is where nobody looks", [NVIDIA + "/libcuda.so.1", "nvidia-lib64"]),
    ("a folder that the cache lists and no file names", [
        NVIDIA + "/libcuda.so.1 is listed, and no file names its folder", "nvidia-lib64"]),
    ("the link leads nowhere", [SYSTEM + "/libcuda.so.1 leads to libcuda.so.450.1"]),
    ("the stub is first", [STUBS + "/libcuda.so (40000 bytes)", "34", SYSTEM + "/libcuda.so.1"]),
    ("the stub is first, and CUDA was not asked", ["%s/libcuda.so: cuInit not asked" % STUBS]),
    ("the driver has no libraries, and a link is left", [
        SYSTEM + "/libcuda.so.1 -> libcuda.so.450.1"]),
    ("compatibility that the card does not have", [COMPAT, "804", SYSTEM + "/libcuda.so.1"]),
    ("the libraries are older than the kernel module",
     ["of 535.104.05 and the loaded kernel module of " + MODULE, "nvmlInit 18"]),
    ("a libcuda that we do not know is first, of another driver", [
        "the loader takes /opt/x/libcuda.so.1 of another version, and the loaded kernel module "
        "is of " + MODULE, "cuInit 803"]),
    ("compatibility that CUDA starts with, and NVML is of another driver", [
        "libnvidia-ml.so.1 is of another version and the loaded kernel module of " + MODULE]),
    ("one driver in two folders, and NVML is of another", [
        "is of another version and the loaded kernel module of " + MODULE]),
    ("only NVML says so", ["of 535.104.05 and the loaded kernel module of another"]),
    ("two drivers in one folder", ["535.104.05, " + MODULE]),
    ("two drivers in two folders", [NVIDIA, SYSTEM]),
    ("CUDA gives no answer", ["within 30 s"]),
    ("CUDA does not start", ["cuInit gives 999 (unknown error)", SYSTEM + "/libcuda.so." + MODULE]),
    ("what is listed cannot be loaded", ["signal 6"]),
    ("a stub in LD_LIBRARY_PATH", ["/etc/environment", STUBS, "a stub"]),
    ("compatibility in LD_LIBRARY_PATH", [
        COMPAT, "libcuda 575.57.08, which does not go with the kernel module, " + MODULE]),
    ("compatibility in LD_LIBRARY_PATH by another name", ["has /opt/cuda/compat/, which holds"]),
    ("an older driver in LD_LIBRARY_PATH", [
        NVIDIA, "libcuda 535.104.05, which does not go with the kernel module, " + MODULE]),
    ("another driver is first", [
        "%s/libcuda.so.535.104.05 of 535.104.05" % SYSTEM, "module is of " + MODULE, "cuInit 803"]),
    ("no libcuda.so for an older Triton", ["3.5.1", rig.PYTHON, "libcuda.so -> libcuda.so.1"]),
    ("no headers", ["/usr/include/python3.12", "python3.12-dev"]),
    ("a Python that does not run", [rig.PYTHON, "it is not there"]),
    ("a repair that was ended in the middle", [rig.JOURNAL]),
])
def test_a_finding_names_what_was_seen(name, texts):
    seen, ids, half_done = CASES[name]
    [found] = [each.finding for each in told(seen, half_done)
               if each.finding["id"] != "library-versions-two" or len(ids) == 1]
    assert found["id"] == ids[-1]
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
    ("the cache is mounted, and libcuda.so.1 is not listed", ""),
    *(("the cache is %s, and mounted" % state, "")
      for state in ("empty", "damaged", "directory", "unreadable")),
    ("the libraries are older than the kernel module", ""),
    # A link that is not ours to make; what is beside it may be mended.
    ("the link leads nowhere", "linker_cache"),
    ("the same, and a package owns it", ""),
    ("libcuda.so.1 is listed and no more", "linker_cache"),
    ("the same, and its folder cannot be written", ""),
    # Our file helps where it is taken in, before what is in front.
    ("the driver is where nobody looks, and nothing takes our file in", ""),
    ("a folder that the cache lists and no file names", "linker_cache"),
    ("the same, and nothing takes our file in", ""),
    ("the stub is first, and nothing takes our file in", ""),
    ("the stub is first, before our file is taken in", ""),
    ("the stub is first, after our file is taken in", "linker_cache"),
    # Another driver, where it is in another folder.
    ("another driver is first", "linker_cache"),
    ("another driver is first, and the one that is loaded is where nobody looks", "linker_cache"),
    ("a libcuda that we do not know is first, of another driver", "linker_cache"),
    ("another driver is first, and nothing takes our file in", ""),
    ("another driver is first in one folder", ""),
    ("another driver is first, and the right one is beside a third", ""),
])
def test_a_remedy_is_named_where_it_helps(name, helps):
    assert told(CASES[name][0])[-1].helps == helps


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


# Whom it stops.


LED = {"TRITON_LIBCUDA_PATH": "/var/lib/firstlight/libraries"}


def looked(name, **changes):
    seen, _, half_done = CASES[name]
    seen = {**seen, **changes}
    return both.Looked(seen, told(seen, half_done), judge.deaf(seen, TRITONS))


def blocks(name, environment=None, **changes):
    answer = both.told(looked(name, **changes), environment or {})
    assert all(one["finding"] in answer["findings"] for one in answer["blocks"])
    return [(one["finding"]["id"], one["stops"], one["python"]) for one in answer["blocks"]]


@pytest.mark.parametrize("triton, is_deaf", [
    ("2.1.0", True), ("2.2.0", False), ("3.6.0+git", False), ("junk", False), (None, False),
    ("", False)])
def test_a_triton_without_the_variable_hears_nothing(triton, is_deaf):
    seen = rig.seen(pythons=[rig.python(), rig.python(triton, path=OTHER_PYTHON)])
    assert judge.deaf(seen, TRITONS) == ([OTHER_PYTHON] if is_deaf else [])


@pytest.mark.parametrize("name", ["no C compiler", "no headers", "a Python that does not run",
                                  "no libcuda.so for an older Triton"])
def test_what_one_python_lacks_stops_that_one(name):
    assert [each.python for each in told(CASES[name][0])] == [PYTHON]
    [(id_, stops, python)] = blocks(name, etc_writable=False)
    assert (id_, python) == (CASES[name][1][0], PYTHON)
    assert stops == ("both" if name == "a Python that does not run" else "triton")


def test_two_pythons_that_lack_the_same_are_two_that_it_stops():
    seen = rig.seen(pythons=[rig.python(compiler=None),
                             rig.python(compiler=None, path=OTHER_PYTHON)])
    answer = both.told(both.Looked(seen, told(seen), []), {})
    assert [one["python"] for one in answer["blocks"]] == [PYTHON, OTHER_PYTHON]


@pytest.mark.parametrize("name", CASES)
def test_what_is_mended_and_what_stops_nothing_blocks_nobody(name):
    seen, ids, half_done = CASES[name]
    mended = {one.finding["id"] for one in library_repair.mendable(seen, told(seen, half_done))}
    rows = {row["id"]: row for row in CHECKS}
    found = [id_ for id_, _, _ in blocks(name)]
    assert not set(found) & mended
    assert {id_ for id_ in ids if rows[id_]["stops"]} - mended - set(found) <= {
        "linker-cache-stale"}


def test_an_engine_that_is_led_around_is_not_stopped_and_one_that_cannot_be_is():
    name = "one of two Tritons cannot be led anywhere, and no cache"
    closed = {"etc_writable": False}
    missing = ("linker-cache-missing", "triton")
    assert blocks(name) == []
    # Without an environment, or before its links are there, nobody is led.
    assert blocks(name, **closed) == [(*missing, "")]
    assert blocks(name, LED, **closed) == [(*missing, OTHER_PYTHON)]
    assert blocks("the cache is missing", LED, **closed) == []
    assert blocks("no libcuda.so for an older Triton", LED, **closed) == []
    # What is in the way of one of them is not in the way of the other that cannot be led.
    for python, expected in ((PYTHON, []), (OTHER_PYTHON, [OTHER_PYTHON])):
        seen, _, _ = CASES["no libcuda.so for an older Triton"]
        seen = {**seen, "etc_writable": False, "pythons": [rig.python("2.1.0", path=python)]}
        answer = both.told(both.Looked(seen, told(seen), [OTHER_PYTHON]), LED)
        assert [one["python"] for one in answer["blocks"]] == expected


def test_no_environment_leads_around_what_it_does_not_change():
    for name in ("CUDA does not start", "no C compiler", "the driver has no libraries"):
        assert blocks(name, LED) == blocks(name) != []


def test_what_helps_is_told_by_finding_as_long_as_it_is_to_be_done():
    name = "the stub is first"
    for environment, changes, helps in (
            ({}, {}, {"libcuda-stub-first": "linker_cache"}),
            # The links to lead engines with are to be made, then they are there.
            ({}, {"etc_writable": False}, {"libcuda-stub-first": "linker_cache"}),
            (LED, {"etc_writable": False}, {})):
        answer = both.told(looked(name, **changes), environment)
        assert answer["helps"] == helps
        assert answer["remedies"] == sorted(set(helps.values()))
        assert answer["environment"] == environment
    assert both.told(looked("another driver is first in one folder"), {})["helps"] == {}
    # What the host itself is not mended of, engines can be led around: that is to be done too.
    for environment, helps in (({}, {"ldconfig-missing": "linker_cache"}), (LED, {})):
        assert both.told(looked("no ldconfig"), environment)["helps"] == helps


def test_of_two_folders_that_lead_to_one_library_it_goes_by_that_in_which_it_lies():
    lies = rig.elsewhere(listed=True, configured=True)
    led = rig.library(folder="/lib", real=lies["real"], listed=True, configured=True)
    for libraries in ([led, lies], [lies, led]):
        assert judge.chosen(rig.seen(*libraries)) == lies
