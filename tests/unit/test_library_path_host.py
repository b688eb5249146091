# SPDX-License-Identifier: Apache-2.0
"""What a host's library path is, is seen as it is: by real tools, in processes of their own."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import sys

import pytest
from library_root import REAL_LOAD, VERSION, catalog

from ansible.module_utils.firstlight.host import cuda_probe, ldconfig, library_path, triton_needs

WANTED = library_path.Wanted(catalog("library_places"), catalog("triton_releases"))


@pytest.fixture
def observe(library_root):
    """What is seen of the host."""
    def look(environment=None, pythons=()):
        return library_path.observe(library_root.reader(), WANTED._replace(pythons=pythons),
                                    environment or {})

    return look


# In a process of its own: really.


@pytest.mark.parametrize("kind, init", [("driver", 0), ("stub", 34), ("compat", 804)])
def test_what_cuinit_returns(library_files, kind, init):
    told = REAL_LOAD(str(library_files / kind), True)
    assert (told.init, told.text, told.error, told.hangs) == (init, "", "", False)


def test_without_cuinit_it_is_only_loaded(library_files):
    told = REAL_LOAD(str(library_files / "crashes"), False)
    assert (told.init, told.nvml, told.error) == (None, None, "")


def test_the_file_behind_a_link_is_told(tmp_path, library_files):
    real = shutil.copy2(library_files / "driver", tmp_path / "libcuda.so.550.54.14")
    (tmp_path / "libcuda.so.1").symlink_to(os.path.basename(real))
    assert REAL_LOAD(str(tmp_path / "libcuda.so.1"), True).path == str(real)


@pytest.mark.parametrize("name", ["two words", "two\nlines", "  a  ", "\u00fc", "a:b"])
def test_a_path_is_told_as_it_is(tmp_path, library_files, name):
    (tmp_path / name).mkdir()
    real = shutil.copy2(library_files / "driver", tmp_path / name / "libcuda.so.1")
    assert REAL_LOAD(str(real), True)[:2] == (str(real), 0)


def test_a_path_that_is_no_text_is_told_too(tmp_path, library_files):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    os.mkdir(folder)
    real = shutil.copy2(library_files / "stub", folder + "/libcuda.so")
    assert REAL_LOAD(real, True)[:2] == (real, 34)
    gone = REAL_LOAD(folder + "/gone.so", True)
    assert (gone.path, gone.init) == (None, None)
    assert gone.error


def test_a_library_that_is_not_there(tmp_path):
    told = REAL_LOAD(str(tmp_path / "libcuda.so.1"), True)
    assert told[:4] == (None, None, "", None)
    assert "cannot open shared object file" in told.error


def test_a_library_without_cuinit_gives_no_answer(library_files):
    told = REAL_LOAD(str(library_files / "mute"), True)
    assert told.init is None
    assert "undefined symbol: cuInit" in told.error


def test_a_library_that_crashes_takes_nothing_with_it(library_files):
    told = REAL_LOAD(str(library_files / "crashes"), True)
    assert (told.path, told.init, told.hangs) == (None, None, False)
    assert told.error


def test_a_library_that_ends_its_process_gives_no_answer(library_files):
    told = REAL_LOAD(str(library_files / "ends"), True)
    assert told == (None, None, "", None, "the process ended without an answer", False)


def test_a_library_that_hangs_is_given_up(library_files, monkeypatch):
    monkeypatch.setattr(cuda_probe, "LIMIT_S", 1.0)
    told = REAL_LOAD(str(library_files / "hangs"), True)
    assert told == (None, None, "", None, "no answer within 1 s", True)


def test_what_a_library_prints_is_not_the_answer(library_files):
    assert REAL_LOAD(str(library_files / "talks"), True).init == 0


def test_variables_of_this_process_do_not_count(library_files, monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", "/somewhere")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    library = str(library_files / "tells")
    assert REAL_LOAD(library, True).init == 0
    assert REAL_LOAD(library, True, {"FIRSTLIGHT_TOLD": "1"}).init == 7
    assert REAL_LOAD(library, True, {"LD_LIBRARY_PATH": "/elsewhere"}).init == 100


def test_a_folder_that_is_called_like_a_library_is_none(library_files, tmp_path, monkeypatch):
    python = tmp_path / "libcuda" / "python"
    python.parent.mkdir()
    shutil.copy2(os.path.realpath(sys.executable), python)
    monkeypatch.setattr(sys, "executable", str(python))
    real = shutil.copy2(library_files / "driver", tmp_path / "libcuda.so.1")
    assert REAL_LOAD(str(real), True)[:2] == (str(real), 0)


def test_a_name_is_looked_up_by_the_loader(library_files, tmp_path, monkeypatch):
    real = shutil.copy2(library_files / "driver", tmp_path / "libcuda.so.1")
    told = REAL_LOAD("libcuda.so.1", False, {"LD_LIBRARY_PATH": str(tmp_path)})
    assert told.path == str(real)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert REAL_LOAD("libcuda.so.1", False).path != str(real)


def test_the_words_for_an_answer_are_the_librarys(mock_libraries, mock_host):
    host = mock_host("l40s-x4", cuda={"init": 802})
    told = REAL_LOAD(str(mock_libraries / "libcuda.so.1"), True,
                     {"LD_LIBRARY_PATH": str(mock_libraries)})
    assert (told.init, told.text, told.nvml) == (802, "system not yet initialized", 0)
    host.set(cuda={"init": 0})
    told = REAL_LOAD(str(mock_libraries / "libcuda.so.1"), True)
    assert (told.init, told.text) == (0, "no error")


# What Triton needs.


def test_this_python_is_read_as_it_is():
    found, = triton_needs.read([sys.executable])
    assert found["python"] == "%d.%d" % sys.version_info[:2]
    assert (found["path"], found["error"]) == (sys.executable, "")
    assert found["headers"] is os.path.isfile(os.path.join(found["include"], "Python.h"))


def test_pythons_that_cannot_be_asked(tmp_path):
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\necho 'no json'\n")
    fails = tmp_path / "fails"
    fails.write_text("#!/bin/sh\nprintf 'Traceback:\\n  of many lines\\nno luck\\n' >&2; exit 3\n")
    mute = tmp_path / "mute"
    mute.write_text("#!/bin/sh\nexit 4\n")
    for path in (silent, fails, mute):
        path.chmod(0o755)
    missing = str(tmp_path / "missing")
    found = triton_needs.read([missing, str(silent), str(fails), str(mute)])
    assert [one["triton"] for one in found] == [None] * 4
    assert [one["prefix"] for one in found] == [None] * 4
    assert "cannot be started" in found[0]["error"]
    assert found[1]["error"] == "%s gives no answer that can be read" % silent
    assert found[2]["error"] == "%s: no luck" % fails


WHOLE = {"triton": "3.5.1", "python": "3.12", "prefix": "/p", "include": "/i", "headers": True}


@pytest.mark.parametrize("said", [
    "5", "null", "[]", '""', "{}", *(json.dumps(dict(WHOLE, **wrong)) for wrong in (
        {"triton": 5}, {"python": None}, {"include": None}, {"headers": "yes"}, {"headers": 1},
        {"prefix": ["/p"]}))])
def test_an_answer_that_is_none_is_told(library_root, observe, said):
    """An engine's environment may print what it likes."""
    python = library_root.python(said=said)
    found, = observe(pythons=[python])["pythons"]
    assert found["error"] == "%s gives no answer that can be read" % python
    assert {found[key] for key in WHOLE} == {None}


def test_an_answer_has_nothing_that_was_not_asked(library_root):
    python = library_root.python(said=json.dumps(dict(WHOLE, path="/other", error="none", more=1)))
    found, = triton_needs.read([python])
    assert found == dict(WHOLE, path=python, error="", compiler=triton_needs.compiler_of())


def test_the_version_of_an_installed_triton(tmp_path, monkeypatch):
    info = tmp_path / "triton-3.5.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: triton\nVersion: 3.5.1\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert triton_needs.read([sys.executable])[0]["triton"] == "3.5.1"


def test_the_compiler_that_triton_would_take(tmp_path, monkeypatch):
    def have(*names):
        for name in names:
            (tmp_path / name).write_text("#!/bin/sh\n")
            (tmp_path / name).chmod(0o755)

    monkeypatch.setattr(triton_needs, "SERVICE_PATH", str(tmp_path))
    assert triton_needs.compiler_of() is None
    have("clang")
    assert triton_needs.compiler_of() == str(tmp_path / "clang")
    have("gcc", "cc-of-ours")
    assert triton_needs.compiler_of() == str(tmp_path / "gcc")
    # A service has neither variable from the user who looks.
    monkeypatch.setenv("CC", str(tmp_path / "cc-of-ours"))
    monkeypatch.setenv("PATH", "/nowhere")
    assert triton_needs.compiler_of() == str(tmp_path / "gcc")


# All of it.


def test_a_whole_host(library_root, observe):
    seen = observe()
    assert json.loads(json.dumps(seen)) == seen, "plain data"
    assert (seen["tool"]["state"], seen["cache"]["state"]) == ("ok", "ok")
    assert seen["cache"]["libraries"] == 3
    assert seen["listing"] == seen["rehearsal"] == {"rc": 0, "said": ""}
    assert (seen["unlisted"], seen["gone"], seen["links_missing"], seen["dangling"]) == (
        [], [], {}, [])
    assert seen["folders"]["/usr/lib/gpu"].endswith("/etc/ld.so.conf.d/gpu.conf:1")
    library, = seen["libraries"]
    assert (library["configured"], library["listed"]) == (True, True)
    assert seen["loaded"]["path"] == library["real"] == "/usr/lib/gpu/libcuda.so." + VERSION
    assert seen["loaded"]["init"] is None, "no driver is loaded: CUDA cannot start"
    assert (seen["kernel_module"], seen["driver_loaded"]) == (None, False)
    assert seen["root"] is (os.geteuid() == 0)
    assert (seen["etc_writable"], seen["read_only"]) == (True, False)
    assert (seen["variables"], seen["pythons"], seen["unread"]) == ([], [], {})
    assert (seen["strays"], seen["included_at"]) == ([], 1)


def test_where_a_driver_is_loaded_cuda_is_started_last(library_root, observe, monkeypatch):
    library_root.module()
    library_root.stub("/usr/local/cuda-12/lib64/stubs")
    called = []

    def load(library, init, env=None):
        called.append((library, init))
        return library_root.load(library, init, env)

    monkeypatch.setattr(cuda_probe, "load", load)
    seen = observe()
    assert (seen["kernel_module"], seen["driver_loaded"]) == (VERSION, True)
    assert seen["loaded"]["init"] == 0
    assert called == [("libcuda.so.1", True)]


@pytest.mark.parametrize("signs, loaded", [
    *(([sign], True) for sign in library_path.DEVICES),
    # A host that was just booted has no device nodes yet; a container sees the driver of its host.
    (["/proc/driver/nvidia/version"], True),
    *((["/proc/driver/nvidia/version", one], False) for one in library_path.CONTAINERS),
    *((["/proc/driver/nvidia/version", "/dev/nvidiactl", one], True)
      for one in library_path.CONTAINERS),
    # The GPU operator has it for containers alone.
    (["/dev/nvidiactl", "/proc/driver/nvidia/version", "/run/nvidia/driver/usr/lib"], False),
    ([], False)])
def test_signs_of_a_loaded_driver(library_root, observe, signs, loaded):
    for sign in signs:
        library_root.path(sign).parent.mkdir(parents=True, exist_ok=True)
        library_root.path(sign).write_text("")
    assert observe()["driver_loaded"] is loaded


@pytest.mark.parametrize("text, line", [
    ("include /etc/ld.so.conf.d/*.conf\n", 1), ("include ld.so.conf.d/*.conf\n", 1),
    ("# a comment\n\n/usr/lib/x\n  include\t/etc/other /etc/ld.so.conf.d/*.conf # all\n", 4),
    ("include /etc/ld.so.conf.d/0-*\ninclude /etc/ld.so.conf.d/*.conf\n", 1),
    ("include /etc/ld.so.conf.d/gpu.conf\n", None), ("# include /etc/ld.so.conf.d/*.conf\n", None),
    ("/usr/lib\n", None), ("", None), ("include\n", None), (None, None)])
def test_the_line_that_takes_our_file_in(library_root, observe, text, line):
    path = library_root.path("/etc/ld.so.conf")
    path.unlink()
    if text is not None:
        path.write_text(text)
    assert observe()["included_at"] == line
    # The real one agrees.
    library_root.configure(os.path.basename(ldconfig.CONF)[:-len(".conf")], "/usr/lib/ours")
    library_root.path("/usr/lib/ours").mkdir()
    if text:
        assert ("/usr/lib/ours" in observe()["folders"]) is (line is not None)


def test_a_host_without_a_gpu_loads_nothing(library_root, observe, monkeypatch):
    for file in library_root.path("/usr/lib/gpu").iterdir():
        file.unlink()
    library_root.ldconfig()

    def load(*_):
        raise AssertionError("a process was started")

    monkeypatch.setattr(cuda_probe, "load", load)
    seen = observe()
    assert (seen["libraries"], seen["loaded"]) == ([], None)


@pytest.mark.parametrize("cache", ["missing", "empty", "truncated"])
def test_of_a_broken_cache_nothing_is_believed(library_root, observe, cache):
    path = library_root.path(ldconfig.CACHE)
    content = path.read_bytes()
    path.unlink()
    if cache != "missing":
        path.write_bytes(content[:-1] if cache == "truncated" else b"")
    seen = observe()
    assert seen["cache"]["libraries"] == 0
    assert (seen["unlisted"], seen["gone"]) == ([], []), "it lacks all: that is one finding"
    assert "/usr/lib/gpu" in seen["folders"]
    assert seen["rehearsal"]["rc"] == 0
    assert [one["listed"] for one in seen["libraries"]] == [False]


def test_without_the_tool_the_catalogs_places_are_looked_into(library_root, observe):
    library_root.path("/sbin/ldconfig").unlink()
    library_root.driver("/usr/local/nvidia/lib64")
    seen = observe()
    assert (seen["listing"], seen["rehearsal"], seen["folders"]) == (None, None, {})
    assert [one["folder"] for one in seen["libraries"]] == ["/usr/local/nvidia/lib64"]


def test_a_small_library_is_asked_what_it_is(library_root, observe):
    library_root.stub("/opt/toolkit/lib")
    library_root.put("driver", "/opt/small/libcuda.so.1")
    library_root.put("mute", "/opt/mute/libcuda.so.1")
    library_root.configure("more", "/opt/toolkit/lib", "/opt/small", "/opt/mute")
    library_root.ldconfig()
    assert {one["folder"]: one["kind"] for one in observe()["libraries"]} == {
        "/usr/lib/gpu": "driver", "/opt/toolkit/lib": "stub", "/opt/small": "driver",
        "/opt/mute": "small"}


def test_where_the_variable_is_set(library_root, observe):
    library_root.path("/etc/environment").write_text(
        "# LD_LIBRARY_PATH=/comment\nLD_LIBRARY_PATH=\"/usr/local/cuda-12/compat:/a b\" # end\n"
        "MY_LD_LIBRARY_PATH=/other\nexport LD_LIBRARY_PATH='/c;/d\n")
    library_root.driver("/usr/local/cuda-12/compat", "555.1.1", kind="compat")
    library_root.module()
    seen = observe({"LD_LIBRARY_PATH": "/usr/local/cuda-12/lib64/stubs::"})
    assert [(one["where"], one["folders"]) for one in seen["variables"]] == [
        ("/etc/environment", ["/usr/local/cuda-12/compat", "/a b"]),
        ("/etc/environment", ["'/c", "/d"]),
        ("the environment of this user", ["/usr/local/cuda-12/lib64/stubs", "", ""])]
    assert seen["variables"][0]["starts"] == {"/usr/local/cuda-12/compat": 804}
    # A login takes it over from there: it is the same.
    seen = observe({"LD_LIBRARY_PATH": "/usr/local/cuda-12/compat:/a b"})
    assert [one["where"] for one in seen["variables"]] == ["/etc/environment"] * 2
    assert "/usr/local/cuda-12/compat" in [one["folder"] for one in seen["libraries"]]


def test_folders_of_variables_and_of_conda_are_looked_into(library_root, observe):
    library_root.driver("/data/lib")
    library_root.driver("/data/conda/lib", "535.54.03")
    seen = observe({"LD_LIBRARY_PATH": "relative:/data/lib", "CONDA_PREFIX": "/data/conda"})
    assert {one["folder"]: one["why"] for one in seen["libraries"]} == {
        "/usr/lib/gpu": "configured in %s" % seen["folders"]["/usr/lib/gpu"],
        "/data/lib": "LD_LIBRARY_PATH in the environment of this user",
        "/data/conda/lib": "the environment /data/conda"}


def test_the_environments_of_pythons_are_looked_into(library_root, observe):
    python = library_root.python(said=json.dumps(dict(WHOLE, prefix="/srv/env")))
    library_root.stub("/srv/env/lib/stubs")
    library_root.driver("/srv/env/cuda-compat", kind="compat")
    broken = library_root.python(said="no answer", name="broken")
    seen = observe(pythons=[python, broken])
    assert {one["folder"]: (one["kind"], one["why"]) for one in seen["libraries"][1:]} == {
        "/srv/env/lib/stubs": ("stub", "the environment /srv/env"),
        "/srv/env/cuda-compat": ("compat", "the environment /srv/env")}


@pytest.mark.parametrize("spelled", [
    "/usr/local/cuda/lib64/stubs", "/usr/local/cuda-12/lib64/stubs/",
    "/usr/local//cuda-12/lib64/../lib64/stubs"])
def test_a_folder_of_a_variable_is_known_by_any_name(library_root, observe, spelled):
    library_root.stub("/usr/local/cuda-12/lib64/stubs")
    library_root.path("/usr/local/cuda").symlink_to("cuda-12")
    seen = observe({"LD_LIBRARY_PATH": spelled + ":/nowhere:relative:"})
    variable, = seen["variables"]
    place = variable["places"][spelled]
    assert [one["kind"] for one in seen["libraries"] if one["folder"] == place] == ["stub"]
    assert set(variable["places"]) == {spelled}


def test_links_that_ldconfig_would_make(library_root, observe):
    library_root.path("/usr/lib/gpu/libcuda.so.1").unlink()
    library_root.path(ldconfig.CACHE).unlink()
    assert observe()["links_missing"] == {"/usr/lib/gpu/libcuda.so.1": "libcuda.so." + VERSION}


def test_pythons_are_asked(library_root, observe):
    found, = observe(pythons=[library_root.python("3.5.1", headers=False)])["pythons"]
    assert (found["triton"], found["headers"], found["error"]) == ("3.5.1", False, "")


def test_a_cache_that_a_folder_replaces(library_root, observe):
    library_root.path(ldconfig.CACHE).unlink()
    library_root.path(ldconfig.CACHE).mkdir()
    seen = observe()
    assert (seen["cache"]["state"], seen["cache"]["movable"]) == ("directory", True)


def test_looking_changes_nothing(library_root, observe):
    library_root.stub("/opt/toolkit/lib")
    library_root.configure("more", "/opt/toolkit/lib")
    before = library_root.snapshot()
    observe(pythons=[library_root.python()])
    assert library_root.snapshot() == before


def test_a_root_file_system_that_cannot_be_looked_at(tmp_path):
    from ansible.module_utils.firstlight.host.reading import Reader

    seen = library_path.observe(Reader(str(pathlib.Path(tmp_path) / "nowhere")), WANTED, {})
    assert (seen["read_only"], seen["etc_writable"]) == (None, False)
    assert (seen["tool"]["state"], seen["cache"]["state"]) == ("missing", "missing")
