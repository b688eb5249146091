# SPDX-License-Identifier: Apache-2.0
"""The doctor names the cause, says what helps, and changes nothing."""

from __future__ import annotations

import os
import shutil

import host_checks
import linker_cache
import pytest
from library_root import VERSION, catalogs

from ansible.module_utils.firstlight.host import cuda_probe, triton_needs

CATALOGS = catalogs()


@pytest.fixture
def check(run_module, library_root):
    """Run the module; the host must be the same before and after."""
    def run(**params):
        before = library_root.snapshot()
        told = run_module(host_checks.main, root=library_root.state, **{**CATALOGS, **params})
        assert library_root.snapshot() == before
        assert told["changed"] is False
        return told

    return run


def ids(told):
    return [one["id"] for one in told["findings"]]


def without_a_gpu(host):
    host.path("/etc/ld.so.conf.d/gpu.conf").unlink()
    for file in host.path("/usr/lib/gpu").iterdir():
        file.unlink()
    host.ldconfig()


def test_a_healthy_host_has_no_findings(check, library_root):
    told = check()
    assert (told["findings"], told["remedies"], told["helps"]) == ([], [], {})
    assert (told["environment"], told["blocks"]) == ({}, [])
    assert told["seen"]["loaded"]["path"] == "/usr/lib/gpu/libcuda.so." + VERSION
    library_root.module()
    told = check(pythons=[library_root.python("3.8.0")])
    assert (told["findings"], told["seen"]["kernel_module"]) == ([], VERSION)


def test_a_host_without_a_gpu_has_no_findings(check, library_root):
    without_a_gpu(library_root)
    told = check()
    assert (told["findings"], told["seen"]["libraries"]) == ([], [])


def test_this_machine_can_be_asked(run_module, tmp_path):
    told = run_module(host_checks.main, root=str(tmp_path / "root"), **CATALOGS)
    assert told["seen"]["tool"]["detail"]
    assert not (tmp_path / "root").exists()


def test_folders_that_are_named_twice_are_no_matter(check, library_root):
    library_root.configure("more", "/usr/lib/gpu/", "/usr/lib/../lib/gpu", "/usr/lib//gpu")
    library_root.ldconfig()
    assert check()["findings"] == []


def test_two_copies_of_one_driver_are_no_matter(check, library_root):
    library_root.module()
    library_root.driver("/usr/local/nvidia/lib64")
    assert check()["findings"] == []


def test_what_is_left_of_our_file_after_its_driver_is_no_matter(check, run_module, library_root):
    library_root.move_driver("/usr/local/nvidia/lib64")
    run_module(linker_cache.main, root=library_root.state, **CATALOGS)
    shutil.rmtree(library_root.path("/usr/local/nvidia"))
    library_root.ldconfig()
    assert check()["findings"] == []


@pytest.mark.parametrize("sign, found", [("/.dockerenv", []), ("/run/.containerenv", []),
                                         ("/run/nvidia/driver/lib/x", []),
                                         ("/nothing", ["libcuda-missing"])])
def test_a_container_without_a_gpu_has_no_findings(check, library_root, sign, found):
    """It sees the /proc of its host, whose driver it was not given."""
    without_a_gpu(library_root)
    library_root.module()
    library_root.path(sign).parent.mkdir(parents=True, exist_ok=True)
    library_root.path(sign).write_text("")
    assert ids(check()) == found


def test_a_python_that_cannot_be_asked_stops_itself_alone(check, library_root):
    python = library_root.python("3.8.0")
    told = check(pythons=["/nowhere/python", python])
    assert ids(told) == ["engine-python-unusable"]
    assert [one["python"] for one in told["blocks"]] == ["/nowhere/python"]


def test_a_finding_is_whole(check, library_root):
    library_root.path("/etc/ld.so.cache").unlink()
    told = check()
    row = next(one for one in CATALOGS["checks"] if one["id"] == "linker-cache-missing")
    assert told["findings"] == [{
        "id": "linker-cache-missing", "severity": "error", "subject": "the library path",
        "found": "/etc/ld.so.cache does not exist: ldconfig -p exits with 1",
        "wanted": "the linker cache", "evidence": "/etc/ld.so.cache does not exist",
        "remedy": row["remedy"], "needs_root": True, "source": row["source"]}]
    assert told["remedies"] == ["linker_cache"]
    assert told["helps"] == {"linker-cache-missing": "linker_cache"}
    assert told["blocks"] == [], "it is mended before an engine starts"
    assert check(check=True)["findings"] == told["findings"]
    library_root.path("/sbin/ldconfig").unlink()
    told = check()
    assert told["blocks"] == [{"stops": "triton", "python": "", "finding": one}
                              for one in told["findings"]]
    assert ids(told) == ["ldconfig-missing", "linker-cache-missing"]


def test_several_causes_are_told_at_once(check, library_root):
    library_root.path("/etc/ld.so.cache").write_bytes(b"garbage")
    library_root.path("/usr/lib/gpu/libcuda.so").symlink_to("nowhere")
    told = check(pythons=["/nowhere/python", library_root.python("3.8.0", headers=False)])
    assert sorted(ids(told)) == ["engine-python-unusable", "link-dangling", "linker-cache-damaged",
                                 "python-headers-missing"]
    assert told["helps"] == {"link-dangling": "linker_cache",
                             "linker-cache-damaged": "linker_cache"}
    assert told["seen"]["dangling"] == [{"path": "/usr/lib/gpu/libcuda.so", "target": "nowhere"}]


def test_a_driver_whose_library_is_nowhere(check, library_root):
    without_a_gpu(library_root)
    library_root.module()
    told = check()
    assert ids(told) == ["libcuda-missing"]
    assert VERSION in told["findings"][0]["wanted"]
    assert told["remedies"] == []


def test_a_kernel_module_of_another_version(check, library_root):
    library_root.module("535.54.03")
    assert check()["findings"] == [], "CUDA starts: they go together all the same"
    library_root.driver("/usr/lib/gpu", kind="mismatch")
    told = check()
    assert ids(told) == ["driver-library-mismatch"]
    assert [one["stops"] for one in told["blocks"]] == ["cuda"]
    assert "reboot" in told["findings"][0]["remedy"]
    assert told["remedies"] == [], "drivers are never ours to touch"


@pytest.mark.parametrize("kind, found, said", [
    ("compat", "cuda-init-fails", "and cuInit gives 804"),
    ("mute", "libcuda-unloadable", "undefined symbol: cuInit"),
    ("ends", "libcuda-unloadable", "the process ended without an answer"),
    ("stub", "libcuda-stub-first", "the loader takes the stub /usr/lib/gpu/libcuda.so.")])
def test_a_driver_that_does_not_start(check, library_root, kind, found, said):
    library_root.module()
    library_root.driver("/usr/lib/gpu", kind=kind)
    told = check()
    assert ids(told) == [found]
    assert said in told["findings"][0]["found"]


def test_cuda_that_hangs(check, library_root, monkeypatch):
    monkeypatch.setattr(cuda_probe, "LIMIT_S", 1.0)
    library_root.module()
    library_root.driver("/usr/lib/gpu", kind="hangs")
    told = check()
    assert ids(told) == ["cuda-init-hangs"]
    assert told["findings"][0]["found"] == "cuInit gives no answer within 1 s"


@pytest.mark.parametrize("harm", ["stub", "compat", "older"])
def test_a_variable_that_does_harm(check, library_root, monkeypatch, harm):
    library_root.module()
    folder = {"stub": "/usr/local/cuda-12/lib64/stubs", "compat": "/usr/local/cuda-12/compat",
              "older": "/opt/older"}[harm]
    if harm == "stub":
        library_root.stub(folder)
    else:
        library_root.driver(folder, "535.54.03", kind="compat" if harm == "compat" else "mismatch")
    assert "library-path-harmful" not in ids(check())
    monkeypatch.setenv("LD_LIBRARY_PATH", folder)
    told = check()
    assert sorted(ids(told)) == ["library-path-harmful"] + (
        ["library-versions-two"] if harm == "older" else [])
    assert folder in told["findings"][ids(told).index("library-path-harmful")]["found"]
    assert told["blocks"] == [], "endpoints do not get it"


@pytest.mark.parametrize("elsewhere", ["older", "compat"])
def test_a_variable_that_leads_to_what_cuda_starts_with_does_none(check, library_root, monkeypatch,
                                                                 elsewhere):
    library_root.module()
    library_root.driver("/opt/%s" % elsewhere, "555.42.02")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/%s" % elsewhere)
    assert "library-path-harmful" not in ids(check())


def test_a_variable_that_is_set_in_two_places_is_told_once(check, library_root, monkeypatch):
    folder = "/usr/local/cuda-12/lib64/stubs"
    library_root.stub(folder)
    library_root.path("/etc/environment").write_text('LD_LIBRARY_PATH="%s:%s"\n' % (folder, folder))
    monkeypatch.setenv("LD_LIBRARY_PATH", "%s:%s" % (folder, folder))
    told = check()
    assert ids(told) == ["library-path-harmful"]
    assert "LD_LIBRARY_PATH in /etc/environment has %s" % folder in told["findings"][0]["found"]


def test_a_compiler_is_looked_for_where_a_service_would(check, library_root, monkeypatch, tmp_path):
    for name in ("gcc", "cc-of-ours"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    # What this user has set is not what a service has.
    monkeypatch.setenv("PATH", "%s:%s" % (tmp_path, os.environ["PATH"]))
    monkeypatch.setenv("CC", str(tmp_path / "cc-of-ours"))
    monkeypatch.setattr(triton_needs, "SERVICE_PATH", str(tmp_path / "nowhere"))
    python = library_root.python("3.8.0")
    told = check(pythons=[python, library_root.python(None, "without")])
    assert ids(told) == ["c-compiler-missing"]
    assert [(one["stops"], one["python"], one["finding"]["id"]) for one in told["blocks"]] == [
        ("triton", python, "c-compiler-missing")]
    monkeypatch.setattr(triton_needs, "SERVICE_PATH", str(tmp_path))
    assert check(pythons=[python])["findings"] == []


@pytest.mark.parametrize("triton, found", [("2.1.0", True), ("3.5.1", True), ("3.6.0", False),
                                           ("3.6.0+git1", False), ("4.0.0", False)])
def test_the_plain_name_matters_to_some_tritons(check, library_root, triton, found):
    told = check(pythons=[library_root.python(triton)])
    assert ids(told) == (["libcuda-plain-missing"] if found else [])


def test_the_environment_is_told_once_its_links_are_there(check, run_module, library_root):
    library_root.path("/sbin/ldconfig").unlink()
    library_root.driver("/usr/local/nvidia/lib64")
    told = check()
    assert ids(told) == ["ldconfig-missing"]
    assert told["environment"] == {}
    assert [one["finding"]["id"] for one in told["blocks"]] == ["ldconfig-missing"]
    run_module(linker_cache.main, root=library_root.state, **CATALOGS)
    told = check()
    assert told["environment"]["TRITON_LIBCUDA_PATH"] == library_root.state + "/libraries"
    assert told["blocks"] == []
    assert ids(told) == ["ldconfig-missing"], "Triton finds its way, the host is as it was"
    # An update of the driver leads them to the new one.
    library_root.driver("/usr/local/nvidia/lib64", "575.57.08")
    library_root.path("/usr/local/nvidia/lib64/libcuda.so." + VERSION).unlink()
    assert check()["environment"] == told["environment"]
    # Links to what is gone lead nobody around anything.
    library_root.path("/usr/local/nvidia/lib64").rename(library_root.path("/usr/local/nvidia/lib"))
    told = check()
    assert told["environment"] == {}
    assert [one["finding"]["id"] for one in told["blocks"]] == ["ldconfig-missing"]


def test_a_repair_that_was_ended_in_the_middle(check, library_root):
    journal = linker_cache.library_path.journal(library_root.state)
    os.makedirs(os.path.dirname(journal.path))
    with open(journal.path, "w", encoding="utf-8") as file:
        file.write('{"entries": []}')
    told = check()
    assert ids(told) == ["repair-half-done"]
    assert told["findings"][0]["evidence"] == journal.path
    assert told["helps"] == {"repair-half-done": "linker_cache"}
