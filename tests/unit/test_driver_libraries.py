# SPDX-License-Identifier: Apache-2.0
"""A driver's libcuda is told from a stub, one for compatibility, one for another processor."""

from __future__ import annotations

import os
import platform

import pytest
from library_root import VERSION, catalog, compiled

from ansible.module_utils.firstlight.host import driver_libraries as drivers
from ansible.module_utils.firstlight.host.driver_libraries import Dangling, Place

ROWS = catalog("library_places")


@pytest.fixture
def look(library_root):
    """What is in a folder: the library as a mapping, and dangling links."""
    def read(folder, kind="", configured=(), listed=()):
        library, dangling = drivers.read(library_root.reader(), Place(folder, kind, "test"),
                                         set(configured), set(listed))
        return library._asdict() if library else None, dangling

    return read


def test_a_driver(library_root, look):
    real = os.path.realpath(library_root.path("/usr/lib/gpu"))
    size = os.path.getsize(library_root.path("/usr/lib/gpu/libcuda.so.1"))
    assert look("/usr/lib/gpu", configured=[real], listed=[real]) == ({
        "folder": "/usr/lib/gpu", "kind": "driver", "path": "/usr/lib/gpu/libcuda.so.1",
        "real": "/usr/lib/gpu/libcuda.so." + VERSION, "size": size, "version": VERSION,
        "soname": "ok", "plain": "missing", "others": [], "configured": True, "listed": True,
        "safe": True, "why": "test"}, [])
    found = look("/usr/lib/gpu")[0]
    assert (found["configured"], found["listed"]) == (False, False)


def test_a_driver_of_another_folder_by_its_links(library_root, look):
    library_root.path("/usr/lib/links").mkdir()
    library_root.path("/usr/lib/links/libcuda.so.1").symlink_to("../gpu/libcuda.so." + VERSION)
    library_root.path("/usr/lib/links/libcuda.so").symlink_to("libcuda.so.1")
    found = look("/usr/lib/links")[0]
    assert found["real"] == "/usr/lib/gpu/libcuda.so." + VERSION
    assert (found["version"], found["kind"]) == (VERSION, "driver")
    assert (found["soname"], found["plain"]) == ("ok", "ok")


def test_links_that_lead_nowhere(library_root, look):
    folder = library_root.path("/usr/lib/gpu")
    (folder / "libcuda.so.1").unlink()
    (folder / "libcuda.so.1").symlink_to("libcuda.so.535.1.1")
    (folder / "libcuda.so").symlink_to("libcuda.so.1")
    found, dangling = look("/usr/lib/gpu")
    assert (found["soname"], found["plain"]) == ("dangling", "dangling")
    assert found["path"] == "/usr/lib/gpu/libcuda.so." + VERSION
    assert dangling == [Dangling("/usr/lib/gpu/libcuda.so.1", "libcuda.so.535.1.1"),
                        Dangling("/usr/lib/gpu/libcuda.so", "libcuda.so.1")]
    (folder / ("libcuda.so." + VERSION)).unlink()
    assert look("/usr/lib/gpu") == (None, dangling)


def test_two_versions_in_one_folder(library_root, look):
    library_root.put("driver", "/usr/lib/gpu/libcuda.so.535.54.03")
    library_root.put("driver", "/usr/lib/gpu/libcuda.so.1.1")
    found = look("/usr/lib/gpu")[0]
    assert (found["version"], found["others"]) == (VERSION, ["535.54.03"])
    # Where no link says which, the newest is taken, by its numbers.
    library_root.path("/usr/lib/gpu/libcuda.so.1").unlink()
    library_root.put("driver", "/usr/lib/gpu/libcuda.so.1000.1")
    found = look("/usr/lib/gpu")[0]
    assert (found["version"], found["others"]) == ("1000.1", ["535.54.03", VERSION])


def test_a_library_of_a_jetson_has_no_version_of_a_driver(library_root, look):
    library_root.driver("/usr/lib/aarch64-linux-gnu/tegra", "1.1")
    found = look("/usr/lib/aarch64-linux-gnu/tegra")[0]
    assert (found["version"], found["others"]) == (None, [])


def test_a_small_one_has_to_be_asked(library_root, look):
    library_root.stub("/opt/toolkit/lib")
    found = look("/opt/toolkit/lib")[0]
    assert (found["kind"], found["version"]) == ("small", None)


def test_a_large_one_without_a_version_is_a_drivers(library_root, look):
    # As WSL has it.
    path = library_root.put("driver", "/usr/lib/wsl/lib/libcuda.so.1")
    os.truncate(path, drivers.STUB_BYTES)
    assert look("/usr/lib/wsl/lib")[0]["kind"] == "driver"
    os.truncate(path, drivers.STUB_BYTES - 1)
    assert look("/usr/lib/wsl/lib")[0]["kind"] == "small"


@pytest.mark.parametrize("folder, row, kind", [
    ("/usr/local/cuda-12/lib64/stubs", "", "stub"), ("/opt/x/stubs/lib", "", "stub"),
    ("/opt/mystubs", "", "driver"), ("/opt/x", "stub", "stub"),
    ("/usr/local/cuda-12/compat", "", "compat"), ("/opt/conda/cuda-compat", "", "compat"),
    ("/opt/x", "compat", "compat"), ("/opt/x", "driver", "driver"),
    ("/opt/incompatible", "", "driver")])
def test_the_kind_by_its_place(library_root, look, folder, row, kind):
    library_root.driver(folder)
    assert look(folder, row)[0]["kind"] == kind


@pytest.mark.parametrize("place, kind", [("lib64/stubs", "stub"), ("compat", "compat")])
def test_what_a_link_leads_to_counts(library_root, look, place, kind):
    real = "/usr/local/cuda-12/%s/libcuda.so.%s" % (place, VERSION)
    library_root.put("stub", real)
    link = library_root.path("/opt/links/libcuda.so.1")
    link.parent.mkdir(parents=True)
    link.symlink_to(os.path.relpath(library_root.path(real), link.parent))
    assert look("/opt/links")[0]["kind"] == kind


def test_a_library_of_another_processor_is_foreign(library_root, look):
    path = library_root.path("/usr/lib/gpu/libcuda.so." + VERSION)
    content = bytearray(path.read_bytes())
    content[18:20] = b"\x08\x00"  # MIPS, in the order of this header
    path.write_bytes(content)
    assert look("/usr/lib/gpu")[0]["kind"] == "foreign"


def test_on_a_processor_that_is_not_known_nothing_is_foreign(library_root, look, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert look("/usr/lib/gpu")[0]["kind"] == "driver"


@pytest.mark.parametrize("content", [b"", b"INPUT(-lcuda)", b"\x7fELF"])
def test_a_file_that_is_no_library_is_still_there(library_root, look, content):
    library_root.path("/usr/lib/gpu/libcuda.so." + VERSION).write_bytes(content)
    assert look("/usr/lib/gpu")[0]["size"] == len(content)


def test_a_folder_in_the_place_of_a_library_is_none(library_root, look):
    library_root.path("/opt/x/libcuda.so.1").mkdir(parents=True)
    library_root.path("/opt/x/libcuda.so.550.1").mkdir()
    assert look("/opt/x") == (None, [])


def test_a_folder_that_cannot_be_read_is_told(library_root, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    reader = library_root.reader()
    monkeypatch.setattr(os, "listdir", refuse)
    assert drivers.read(reader, Place("/usr/lib/gpu", "", "test"), set(), set()) == (None, [])
    assert reader.unread == {"/usr/lib/gpu": {"code": "eacces", "reason": "Permission denied"}}


def test_the_places_of_the_catalog_are_looked_into(library_root):
    for folder in ("/usr/local/cuda-12.4/compat", "/usr/local/cuda/lib64/stubs",
                   "/opt/miniconda3/lib/stubs", "/usr/local/nvidia/lib64", "/run/opengl-driver/lib",
                   "/.singularity.d/libs", "/usr/lib/wsl/lib", "/usr/lib64-nvidia",
                   "/usr/lib/x86_64-linux-gnu/nvidia/current", "/usr/lib/nvidia-470"):
        library_root.path(folder).mkdir(parents=True)
    found = {one.folder: (one.kind, one.why)
             for one in drivers.places(library_root.reader(), ROWS, [])}
    assert found == {
        "/usr/local/cuda-12.4/compat": ("compat", "cuda-compat"),
        "/usr/local/cuda/lib64/stubs": ("stub", "cuda-stubs"),
        "/opt/miniconda3/lib/stubs": ("stub", "conda-stubs"),
        "/usr/local/nvidia/lib64": ("driver", "nvidia-lib64"),
        "/run/opengl-driver/lib": ("driver", "nixos"),
        "/.singularity.d/libs": ("driver", "apptainer"),
        "/usr/lib/wsl/lib": ("driver", "wsl"),
        "/usr/lib64-nvidia": ("driver", "colab"),
        "/usr/lib/x86_64-linux-gnu": ("driver", "multiarch"),
        "/usr/lib/x86_64-linux-gnu/nvidia/current": ("driver", "debian-current"),
        "/usr/lib/nvidia-470": ("driver", "ubuntu-numbered")}


def test_a_place_is_looked_into_once_however_it_is_called(library_root):
    library_root.path("/usr/local/cuda-12/compat").mkdir(parents=True)
    library_root.path("/usr/local/cuda").symlink_to("cuda-12")
    found = drivers.places(library_root.reader(), ROWS, [
        ("/usr/local/cuda-12/compat", "configured"), ("/usr/local/cuda/compat", "configured too"),
        ("/nowhere", "configured")])
    # As it was called first, and of the kind that the catalog knows.
    assert found == [Place("/usr/local/cuda-12/compat", "compat", "configured")]


def test_the_libraries_that_come_with_it(library_root):
    folder = library_root.path("/usr/lib/gpu")
    for name in ("libnvidia-ml.so.1", "libnvidia-ptxjitcompiler.so.1", "libcudadebugger.so.1",
                 "libnvcuvid.so.1", "libGLX_nvidia.so.0", "libdxcore.so", "libd3d12.so",
                 "libcudart.so.12", "libc.so.6", "libnvidia.conf", "other", "libnvrm_gpu.so",
                 # Of the toolkit, which is not the driver's.
                 "libnvrtc.so.12", "libnvJitLink.so.12", "libnvinfer.so.8", "libnvblas.so.12",
                 "libnvToolsExt.so.1", "libnvjpeg.so.12", "libnvptxcompiler.so"):
        compiled(folder / name, name)
    (folder / "libnvidia-gone.so.1").symlink_to("nowhere")
    assert drivers.siblings(library_root.reader(), "/usr/lib/gpu") == [
        "libGLX_nvidia.so.0", "libcuda.so.1", "libcuda.so." + VERSION, "libcudadebugger.so.1",
        "libd3d12.so", "libdxcore.so", "libnvcuvid.so.1", "libnvidia-ml.so.1",
        "libnvidia-ptxjitcompiler.so.1", "libnvrm_gpu.so"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a folder away")
@pytest.mark.parametrize("folder, mode, owner, safe", [
    ("/opt/a/b", 0o755, 0, True), ("/opt/a/b", 0o775, 0, False), ("/opt/a/b", 0o757, 0, False),
    ("/opt/a/b", 0o755, 1000, False), ("/opt/a", 0o777, 0, False), ("/opt/a", 0o755, 1000, False),
    ("/opt/a", 0o1777, 0, True), ("/opt/a", 0o1777, 1000, False)])
def test_a_folder_is_safe_where_nobody_else_can_change_it(library_root, look, folder, mode, owner,
                                                          safe):
    library_root.driver("/opt/a/b/c")
    os.chown(library_root.path(folder), owner, owner)
    os.chmod(library_root.path(folder), mode)
    assert look("/opt/a/b/c")[0]["safe"] is safe
    assert drivers.safe(str(library_root.path("/opt/a/b/c/to be made"))) is safe
    # By a link as well, from a folder that is safe.
    library_root.path("/opt/links").mkdir()
    library_root.path("/opt/links/libcuda.so.1").symlink_to("../a/b/c/libcuda.so." + VERSION)
    assert look("/opt/links")[0]["safe"] is safe
    library_root.path("/opt/link").symlink_to("a/b/c")
    assert look("/opt/link")[0]["safe"] is safe
    assert drivers.safe(str(library_root.path("/opt/link/to be made"))) is safe


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_what_others_can_lead_elsewhere_is_not_safe(library_root, look):
    """A way to what is safe, through what is not, and a file that others can write."""
    for folder in ("theirs", "tmp"):
        library_root.path("/opt/" + folder).mkdir(parents=True)
    library_root.path("/opt/tmp").chmod(0o1777)
    os.chown(library_root.path("/opt/theirs"), 1000, 1000)
    for link, target in (("theirs/link", "../../usr/lib/gpu"), ("ours", "theirs/link"),
                         ("tmp/link", "../../usr/lib/gpu"), ("good", "tmp/link")):
        library_root.path("/opt/" + link).symlink_to(target)
    assert look("/usr/lib/gpu")[0]["safe"] is True
    assert [look("/opt/" + link)[0]["safe"] for link in (
        "theirs/link", "ours", "tmp/link", "good")] == [False, False, True, True]
    os.chown(library_root.path("/opt/tmp/link"), 1000, 1000, follow_symlinks=False)
    assert drivers.safe(str(library_root.path("/opt/good"))) is False
    # What is to be made in a folder for all may be made by another first.
    assert drivers.safe(str(library_root.path("/opt/tmp/to be made"))) is False
    library_root.path("/usr/lib/gpu/libcuda.so." + VERSION).chmod(0o777)
    assert look("/usr/lib/gpu")[0]["safe"] is False
