# SPDX-License-Identifier: Apache-2.0
"""The doctor names the cause, says what helps, and changes nothing."""

from __future__ import annotations

import os

import host_checks
import linker_cache
import pytest
from library_root import VERSION, catalogs

from ansible.module_utils.firstlight.host import cuda_probe

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
    assert (told["environment"], told["stops_triton"]) == ({}, [])
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
    assert told["stops_triton"] == told["findings"]
    assert check(check=True)["findings"] == told["findings"]


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
    told = check()
    assert ids(told) == ["driver-library-mismatch"]
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
        library_root.driver(folder, "535.54.03", kind="compat" if harm == "compat" else "driver")
    assert "library-path-harmful" not in ids(check())
    monkeypatch.setenv("LD_LIBRARY_PATH", folder)
    told = check()
    assert sorted(ids(told)) == ["library-path-harmful"] + (
        ["library-versions-two"] if harm == "older" else [])
    assert folder in told["findings"][ids(told).index("library-path-harmful")]["found"]
    assert told["stops_triton"] == [], "endpoints do not get it"


def test_a_compiler_is_looked_for_where_triton_would(check, library_root, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for tool in ("sh", "cat"):
        os.symlink(os.path.realpath("/bin/" + tool), tmp_path / tool)
    told = check(pythons=[library_root.python("3.8.0"), library_root.python(None, "without")])
    assert ids(told) == ["c-compiler-missing"]
    assert [one["id"] for one in told["stops_triton"]] == ["c-compiler-missing"]


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
    assert [one["id"] for one in told["stops_triton"]] == ["ldconfig-missing"]
    run_module(linker_cache.main, root=library_root.state, **CATALOGS)
    told = check()
    assert told["environment"]["TRITON_LIBCUDA_PATH"] == library_root.state + "/libraries"
    assert told["stops_triton"] == []
    assert ids(told) == ["ldconfig-missing"], "Triton finds its way, the host is as it was"
    # Links to what is gone lead nobody around anything.
    library_root.driver("/usr/local/nvidia/lib64", "575.57.08")
    library_root.path("/usr/local/nvidia/lib64/libcuda.so." + VERSION).unlink()
    assert check()["environment"] == {}


def test_a_repair_that_was_ended_in_the_middle(check, library_root):
    journal = linker_cache.library_path.journal(library_root.state)
    os.makedirs(os.path.dirname(journal.path))
    with open(journal.path, "w", encoding="utf-8") as file:
        file.write('{"entries": []}')
    told = check()
    assert ids(told) == ["repair-half-done"]
    assert told["findings"][0]["evidence"] == journal.path
    assert told["helps"] == {"repair-half-done": "linker_cache"}
