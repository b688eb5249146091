# SPDX-License-Identifier: Apache-2.0
"""Real environments, whose packages work, lie, crash, hang, print, exit and close what they can."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from library_root import UNSHARE
from wheels import builder

from ansible.module_utils.firstlight.wheels import environment, environment_probe

# Long enough for a Python under load, where nothing hangs; short where something does.
LONG, SHORT = 60.0, 2.0
HERE = "%d.%d.%d" % sys.version_info[:3]


def of(python):
    """The site-packages of an environment."""
    return next(pathlib.Path(python).parent.parent.glob("lib/python*/site-packages"))


def package(folder, name, text="", version="1.0", **more):
    """A wheel of a package whose import runs a text."""
    return builder.wheel(folder, name, version, tags="py3-none-any",
                         files={builder.escaped(name) + "/__init__.py": text}, **more)


@pytest.fixture
def made(tmp_path):
    """Make an environment of packages, told by their texts."""
    def make(wheels=(), with_pip=False, **texts):
        wheels = [*wheels, *(package(tmp_path / "wheels", name, text)
                             for name, text in texts.items())]
        return str(builder.environment(tmp_path / "e", with_pip=with_pip, wheels=wheels))
    return make


def looked(python, *rows, limit_s=LONG, env=None):
    """What `read` says, of the right shape."""
    rows = [builder.row(row) if isinstance(row, str) else row for row in rows]
    found = environment.read(str(python), rows, limit_s, env)
    of_the_right_shape(found)
    assert set(found["installed"]) == {row["package"] for row in rows}
    return found


def imports(found, name):
    return found["installed"][name]["imports"]


def kernel(found, name):
    return found["installed"][name]["kernel"]


NUMBER = (int, float, type(None))
SHAPE = {
    "python": str, "state": {"ok", "missing", "broken", "slow"}, "why": str, "implementation": str,
    "version": str, "abi_flags": str, "free_threaded": bool, "machine": str, "bits": int,
    "libc": {"name": str, "version": str}, "prefix": str, "base_prefix": str, "purelib": str,
    "platlib": str, "writable": bool, "why_not_writable": str,
    "managed": {"", "conda", "distribution"}, "pip": str,
    "torch": {"state": {"ok", "absent", "broken", "slow", "crashed"}, "why": str, "version": str,
              "cuda": str, "hip": str, "cxx11abi": (bool, type(None)), "seconds": NUMBER,
              "devices": [{"name": str, "capability": str}], "why_no_devices": str},
    "installed": dict, "beside": dict, "facts_unread": dict,
}
INSTALLED = {
    "version": str, "location": str, "installer": str, "conda": bool, "sha256": str,
    "imports": {"state": {"ok", "failed", "crashed", "slow"}, "why": str, "seconds": NUMBER},
    "kernel": {"state": {"ran", "failed", "crashed", "slow", "skipped", "none"}, "why": str,
               "error": NUMBER, "device": str},
}


def of_the_right_shape(found):
    json.dumps(found, allow_nan=False).encode("ascii")
    alike(found, SHAPE, "")
    for name, one in found["installed"].items():
        if one is not None:
            alike(one, INSTALLED, name)
            for what in ("imports", "kernel"):
                told = one[what]["state"] not in ("ok", "ran", "none")
                assert bool(one[what]["why"]) == told, one
    for version in found["beside"].values():
        assert version is None or isinstance(version, str)
    for reason in found["facts_unread"].values():
        assert isinstance(reason, str)
    assert (found["state"] == "ok") == (found["why"] == "")
    assert found["writable"] == (found["why_not_writable"] == "")


def alike(value, shape, where):
    if isinstance(shape, dict):
        assert isinstance(value, dict) and set(value) == set(shape), (where, value)
        for key in shape:
            alike(value[key], shape[key], where + "." + key)
    elif isinstance(shape, list):
        for one in value:
            alike(one, shape[0], where)
    elif isinstance(shape, set):
        assert value in shape, (where, value)
    else:
        assert isinstance(value, shape), (where, value)
        assert shape is not int or not isinstance(value, bool)
        assert not isinstance(value, str) or len(value) <= 4096


# What an environment is.


def test_an_environment_is_what_its_own_python_says(made):
    python = made(with_pip=True)
    text = "import sys, sysconfig, platform, json; print(json.dumps([sys.prefix, sys.base_prefix," \
        "sysconfig.get_path('purelib'), sysconfig.get_path('platlib'), platform.machine()]))"
    said = json.loads(subprocess.run([python, "-c", text], capture_output=True, check=True).stdout)
    found = looked(python)
    assert found["state"] == "ok"
    assert found["python"] == python, "the path that was asked, not where its link leads"
    assert [found[key] for key in ("prefix", "base_prefix", "purelib", "platlib", "machine")
            ] == said
    assert (found["version"], found["implementation"]) == (HERE, "cpython")
    assert (found["bits"], found["abi_flags"], found["free_threaded"]) == (64, sys.abiflags, False)
    assert found["libc"] == dict(zip(("name", "version"),
                                     os.confstr("CS_GNU_LIBC_VERSION").split(), strict=True))
    assert found["pip"] == next(of(python).glob("pip-*.dist-info")).name[4:-10]
    assert (found["managed"], found["writable"]) == ("", True)
    assert found["facts_unread"] == {}
    assert found["torch"]["state"] == "absent"


def test_an_environment_without_pip_says_so(made):
    assert looked(made())["pip"] == ""


PYTHONS = sorted(str(path) for path in pathlib.Path.home().glob(".pyenv/versions/3.*/bin/python"))


@pytest.mark.parametrize("base", PYTHONS or ["/usr/bin/python3"])
def test_every_python_that_is_here(base, tmp_path):
    python = tmp_path / "e" / "bin" / "python"
    subprocess.run([base, "-m", "venv", "--without-pip", str(tmp_path / "e")], check=True)
    version = subprocess.run([base, "-c", "import platform; print(platform.python_version())"],
                             capture_output=True, check=True, text=True).stdout.strip()
    for wheel in (
            builder.wheel(tmp_path, "tiny.Kernel", "1.0", extension=builder.KERNEL),
            builder.torch(tmp_path)):
        builder.unpack(wheel, of(python))
    found = looked(python, builder.row("tiny-kernel", kernel=builder.proof("tiny-kernel"),
                                       torch="minor"))
    assert found["version"] == version
    if tuple(map(int, version.split(".")[:2])) < (3, 7):
        assert found["state"] == "broken"
        assert found["why"] == "it is Python %s, and 3.7 is the oldest that can be looked into" \
            % version
        return
    assert found["torch"]["version"] == "2.8.0+cu128"
    assert imports(found, "tiny-kernel")["state"] == "ok"
    assert kernel(found, "tiny-kernel") == {"state": "ran", "why": "", "error": 0.0,
                                            "device": "cpu"}


def test_reading_leaves_everything_as_it_was(made, tmp_path):
    python = made([builder.torch(tmp_path)], tiny="VALUE = 1\n")
    root = pathlib.Path(python).parent.parent

    def disk():
        return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size)
                for path in root.rglob("*")}

    was = disk()
    assert imports(looked(python, builder.row("tiny", torch="minor")), "tiny")["state"] == "ok"
    assert disk() == was


def test_what_is_installed_is_found_by_any_spelling(made):
    python = made()
    (of(python) / "Some_Old.Name-1.2-py3.9.egg-info").write_text("Name: x\nVersion: 1.2.post1\n")
    (of(python) / "no_metadata-3.1.dist-info").mkdir()
    (of(python) / "~lash_attn-2.0.dist-info").mkdir()
    found = looked(python, "some-old-name", "no-metadata", "flash-attn", "Some.old_NAME")
    assert found["installed"]["some-old-name"]["version"] == "1.2.post1"
    assert found["installed"]["Some.old_NAME"]["version"] == "1.2.post1"
    assert found["installed"]["no-metadata"]["version"] == "3.1"
    assert found["installed"]["flash-attn"] is None


def test_what_is_installed_says_where_and_by_whom(made):
    python = made(tiny="")
    one = looked(python, "tiny")["installed"]["tiny"]
    assert (one["version"], one["location"], one["installer"], one["conda"]) == (
        "1.0", str(of(python)), "pip", False)


def test_the_file_that_pip_installed_is_told_by_its_hash(made, tmp_path):
    python = made()
    wheel = package(tmp_path, "tiny")
    # Not every pip reckons it itself; with it in the address, each writes it down.
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "--no-index",
                    "--no-deps", "--quiet", "%s#sha256=%s" % (
                        wheel.as_uri(), builder.sha256(wheel))], check=True)
    assert looked(python, "tiny")["installed"]["tiny"]["sha256"] == builder.sha256(wheel)


@pytest.mark.parametrize(("record", "told"), [
    ('{"archive_info": {"hashes": {"sha256": "%s"}}, "url": "file:///x"}' % ("aB" * 32), "ab" * 32),
    ('{"archive_info": {"hash": "sha256=%s"}, "url": "file:///x"}' % ("a" * 64), "a" * 64),
    ('{"archive_info": {"hash": "md5=%s"}, "url": "file:///x"}' % ("a" * 64), ""),
    ('{"archive_info": {"hash": "sha256=short"}}', ""), ('{"archive_info": {"hash": 7}}', ""),
    ('{"archive_info": {}}', ""), ('{"archive_info": []}', ""), ('{"dir_info": {}}', ""),
    ('{"archive_info": {"hashes": {"sha256": 7}}}', ""), ("[", ""), ("[]", ""), ("", ""),
    ("[" * 100000, ""),
])
def test_a_record_that_tells_no_hash_is_none(made, record, told):
    python = made(tiny="")
    info = next(of(python).glob("tiny-*.dist-info"))
    (info / "direct_url.json").write_text(record)
    assert looked(python, "tiny")["installed"]["tiny"]["sha256"] == told


def test_two_records_of_a_package_are_told(made, tmp_path):
    python = made(tiny="")
    builder.unpack(package(tmp_path, "tiny", version="2.0"), of(python))
    reason = looked(python, "tiny")["facts_unread"]["tiny"]
    assert "1.0" in reason and "2.0" in reason


def test_packages_that_make_others_needless_are_told(made):
    row = builder.row("tiny", not_needed=[{"beside": "vLLM", "why": "it brings its own"},
                                          {"beside": "other", "why": "it too"}])
    assert looked(made(vllm="", tiny=""), row)["beside"] == {"vllm": "1.0", "other": None}


def test_an_environment_of_conda(tmp_path):
    wheels = [package(tmp_path, name) for name in ("by_conda", "by_pip", "listed", "listed_more")]
    python = builder.environment(tmp_path / "e", wheels=wheels, conda=["by-conda"])
    inside = of(python).relative_to(tmp_path / "e")
    (tmp_path / "e" / "conda-meta" / "other-1.0-0.json").write_text(json.dumps(
        {"name": "other", "files": ["%s/listed-1.0.dist-info/METADATA" % inside]}))
    found = looked(python, "by-conda", "by-pip", "listed", "listed-more")
    assert found["managed"] == "conda"
    assert {name: one["conda"] for name, one in found["installed"].items()} == {
        "by-conda": True, "by-pip": False, "listed": True, "listed-more": False}


@pytest.fixture
def base(tmp_path):
    """A Python of its own, as uv and distributions have them: its files are links."""
    python = os.path.realpath(sys.executable)
    lib = pathlib.Path(os.__file__).parent
    folder = tmp_path / "base"
    (folder / "bin").mkdir(parents=True)
    inside = folder / "lib" / lib.name
    inside.mkdir(parents=True)
    shutil.copy(python, folder / "bin" / "python")
    for entry in lib.iterdir():
        if entry.name not in ("site-packages", "EXTERNALLY-MANAGED"):
            (inside / entry.name).symlink_to(entry)
    (inside / "site-packages").mkdir()
    return folder


def test_a_python_of_the_distribution_and_an_environment_of_it(base, tmp_path):
    python = base / "bin" / "python"
    assert looked(python)["managed"] == ""
    next(base.glob("lib/python*")).joinpath("EXTERNALLY-MANAGED").write_text("[x]\n")
    found = looked(python)
    assert (found["prefix"], found["managed"]) == (str(base), "distribution")
    subprocess.run([python, "-m", "venv", "--without-pip", tmp_path / "of"], check=True)
    of_it = looked(tmp_path / "of" / "bin" / "python")
    assert (of_it["base_prefix"], of_it["managed"]) == (str(base), "")
    # pip refuses there whoever manages it.
    (base / "conda-meta").mkdir()
    assert looked(python)["managed"] == "distribution"


def wrapped(folder, command, python):
    """A program that runs a Python in some way."""
    wrapper = folder / "wrapped"
    wrapper.write_text("#!/bin/sh\n%s\n" % (command % ('"%s" "$@"' % python)))
    wrapper.chmod(0o755)
    return wrapper


def plain_user(folder, python):
    """The same Python for somebody whom permissions hold."""
    if os.geteuid():
        return python
    wrapper = wrapped(folder, "exec setpriv --bounding-set=-all %s", python)
    if subprocess.run([wrapper, "-c", ""], capture_output=True).returncode:
        pytest.skip("root cannot give up what it may here")
    return wrapper


def test_an_environment_that_cannot_be_written(made, tmp_path):
    python = made(tiny="")
    site = of(python)
    site.chmod(0o555)
    try:
        found = looked(plain_user(tmp_path, python), "tiny")
    finally:
        site.chmod(0o755)
    assert found["state"] == "ok"
    assert found["why_not_writable"] == "%s belongs to uid %d (mode 555) and cannot be written " \
        "by uid %d" % (site, os.geteuid(), os.geteuid())
    assert imports(found, "tiny")["state"] == "ok"


def test_an_environment_whose_packages_cannot_be_read(made, tmp_path):
    python = made(tiny="")
    site = of(python)
    site.chmod(0o000)
    try:
        found = looked(plain_user(tmp_path, python), "tiny")
    finally:
        site.chmod(0o755)
    assert found["state"] == "ok"
    assert found["writable"] is False
    assert found["installed"]["tiny"] is None
    assert "Permission denied" in found["facts_unread"][str(site)]


def test_a_file_system_that_is_mounted_read_only(made, tmp_path):
    python = made(tiny="")
    root = pathlib.Path(python).parent.parent
    command = "exec %s sh -c 'mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && " \
        "exec \"$@\"' %s %%s" % (" ".join(UNSHARE), root)
    wrapper = wrapped(tmp_path, command, python)
    if subprocess.run([wrapper, "-c", ""], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    found = looked(wrapper, "tiny")
    assert found["why_not_writable"] == "%s is on a file system that is mounted read-only" % of(
        python)
    assert imports(found, "tiny")["state"] == "ok"


def test_variables_reach_the_environment_and_those_of_python_do_not(made, monkeypatch, tmp_path):
    text = "import os\nraise ValueError('%(LD_LIBRARY_PATH)s %(GIVEN)s' % os.environ)\n"
    python = made(tiny=text)
    (tmp_path / "tiny.py").write_text("")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/kept")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    assert imports(looked(python, "tiny", env={"GIVEN": "more"}), "tiny")["why"] == \
        "import tiny: ValueError: /opt/kept more"


def test_musl_is_known_by_what_the_process_has_mapped(tmp_path, monkeypatch):
    loader = tmp_path / "lib" / "ld-musl-x86_64.so.1"
    loader.parent.mkdir()
    # As musl's loader answers where it is given nothing to run.
    loader.write_text("#!/bin/sh\nprintf 'musl libc (x86_64)\\nVersion 1.2.5\\nDynamic Program "
                      "Loader\\nUsage: %s [options] [--] pathname\\n' >&2\nexit 1\n" % loader)
    loader.chmod(0o755)
    maps = tmp_path / "maps"
    maps.write_text("7f1c00000000-7f1c00014000 r--p 00000000 08:01 1234     %s\n"
                    "7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0        [stack]\n" % loader)
    found = environment_probe.musl_loader
    assert found("/proc/self/maps") == "", "this Python has glibc"
    monkeypatch.setattr(environment_probe, "musl_loader", lambda _: found(str(maps)))
    monkeypatch.setattr(os, "confstr", lambda _: (_ for _ in ()).throw(ValueError("unknown")))
    assert environment_probe.libc() == {"name": "musl", "version": "1.2.5"}


# Interpreters that are none.


def test_what_is_not_there_and_what_leads_nowhere(tmp_path):
    assert looked(tmp_path / "python", "tiny")["state"] == "missing"
    (tmp_path / "link").symlink_to(tmp_path / "python3.99")
    found = looked(tmp_path / "link")
    assert found["state"] == "broken"
    assert str(tmp_path / "python3.99") in found["why"]
    for path in ("python3", "", "/tmp/\0"):
        assert "no absolute path" in looked(path)["why"]


@pytest.mark.parametrize(("content", "mode", "wanted"), [
    (b"#!/bin/sh\necho I am no Python\nexit 0\n", 0o755, "I am no Python"),
    (b"#!/bin/sh\nyes garbage\n", 0o755, "no"),
    (b"#!/bin/sh\nkill -SEGV $$\n", 0o755, "SIGSEGV"),
    (b"#!/nowhere/python\n", 0o755, "No such file or directory"),
    (b"\x00\x01\x02\x03", 0o755, "Exec format error"),
    (b"#!/bin/sh\n", 0o644, "Permission denied"),
    (None, 0o755, "Permission denied"),
], ids=["talks", "floods", "crashes", "no-interpreter", "no-program", "not-executable", "folder"])
def test_what_is_no_python(tmp_path, content, mode, wanted):
    path = tmp_path / "python"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
        path.chmod(mode)
    found = looked(path, "tiny", limit_s=SHORT if wanted == "no" else LONG)
    assert found["state"] == ("slow" if wanted == "no" else "broken")
    assert wanted in found["why"]
    assert found["installed"] == {"tiny": None}


def test_an_interpreter_that_never_starts(tmp_path):
    path = tmp_path / "python"
    path.write_text("#!/bin/sh\necho waiting for the disk\nexec sleep 600\n")
    path.chmod(0o755)
    found = looked(path, limit_s=0.5)
    assert found["state"] == "slow"
    assert "0.5 s" in found["why"] and "waiting for the disk" in found["why"]


def test_an_environment_that_crashes_at_its_start(made):
    python = made()
    (of(python) / "x.pth").write_text("import os; os.write(2, b'no luck'); os.abort()\n")
    found = looked(python)
    assert found["state"] == "broken"
    assert "SIGABRT" in found["why"] and "no luck" in found["why"]


ANSWERS = """#!%s
import json, os, sys
for line in %r:
    os.write(int(sys.argv[5]), line if isinstance(line, bytes) else json.dumps(line).encode())
    os.write(int(sys.argv[5]), b"\\n")
"""


def liar(tmp_path, *lines):
    path = tmp_path / "liar"
    path.write_text(ANSWERS % (sys.executable, lines))
    path.chmod(0o755)
    return path


def step(name, told=None):
    return {"step": name} if told is None else {"step": name, "told": told}


@pytest.mark.parametrize("lines", [
    [b"[" * 100000], [b"null"], [b"1"], [b'{"step": 5}'], [b"\xff\xfe"],
    [step("python", {"version": "3.11.0"})] * 3 + [step("done", {})],
    [step("python"), step("python", {"version": "x" * 9000})],
    [step("python"), step("python", {"version": ["3.11"], "bits": 1e400})],
    [step("packages"), step("packages", {"found": {}}), step("done", {})],
])
def test_answers_that_are_none_leave_a_broken_environment(tmp_path, lines):
    assert looked(liar(tmp_path, *lines), "tiny")["state"] == "broken"


def test_answers_without_an_end_are_not_read(tmp_path):
    path = tmp_path / "liar"
    path.write_text("#!/bin/sh\nexec yes '{\"step\": \"python\"}' >/proc/self/fd/$5\n")
    path.chmod(0o755)
    found = looked(path)
    assert (found["state"], found["why"]) == ("broken", "it answers without an end")


# What a process of the environment may answer at its worst.
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20)
    | st.sampled_from(["3.11.2", "9.0", "\x1b[31m", "\ud800", "x" * 10000, 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["version", "found", "unread", "raised", "devices", "seconds", "error",
                         "libc", "tiny", "torch", "capability", "name", "skipped", "conda",
                         "why_not_writable", "purelib"]), inner, max_size=6), max_leaves=12)
TOLD = st.dictionaries(st.sampled_from(sorted({*environment.FACTS, "unread", "found", "raised",
                                               "devices", "seconds", "error", "device", "cuda",
                                               "cxx11abi", "absent", "name", "skipped"})),
                       ANYTHING, max_size=8)
STEPS = ("packages", "torch", "devices", "imports tiny", "kernel tiny")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(python=TOLD, told=st.dictionaries(st.sampled_from(STEPS), TOLD),
       how=st.sampled_from(["done", "again", "crashed", "slow"]), at=st.sampled_from(STEPS))
def test_whatever_comes_back_is_of_the_right_shape(monkeypatch, python, told, how, at):
    def ended(_python, _request, _limit_s, _env, answers):
        answers.update({"python": {"version": "3.11.2", **python}, "packages": {}, **told})
        return environment._Ended(how, at, "why" if how in ("crashed", "slow") else "")

    monkeypatch.setattr(environment, "_round", ended)
    row = builder.row("tiny", kernel="error = 0", torch="minor",
                      not_needed=[{"beside": "vllm", "why": "x"}])
    looked(sys.executable, row)


# torch.


def torch_of(python, **how):
    return looked(python, **how)["torch"]


def test_torch_and_what_it_is_built_for(made, tmp_path):
    python = made([builder.torch(tmp_path, devices=[("NVIDIA H200", "9.0"), ("B200", "10.0")])])
    torch = torch_of(python)
    assert torch.pop("seconds") >= 0
    assert torch == {
        "state": "ok", "why": "", "version": "2.8.0+cu128", "cuda": "12.8", "hip": "",
        "cxx11abi": True, "why_no_devices": "",
        "devices": [{"name": "NVIDIA H200", "capability": "9.0"},
                    {"name": "B200", "capability": "10.0"}]}


def test_torch_for_the_cpu_and_torch_for_rocm(made, tmp_path):
    python = made([builder.torch(tmp_path, version="2.9.1+cpu", cuda="", cxx11abi=False)])
    torch = torch_of(python)
    assert (torch["state"], torch["cuda"], torch["cxx11abi"]) == ("ok", "", False)
    assert torch["why_no_devices"] == "torch 2.9.1+cpu is built for the CPU alone"
    (of(python) / "torch" / "version.py").write_text("cuda, hip = None, '6.4.1'\n"
                                                     "__version__ = '2.9.1+rocm6.4'\n")
    torch = torch_of(python)
    assert (torch["hip"], torch["why_no_devices"] != "") == ("6.4.1", True)


def change(python, text, file="__init__.py"):
    (of(python) / "torch" / file).write_text(text)


def test_torch_that_cannot_be_imported_says_why(made, tmp_path):
    python = made([builder.torch(tmp_path)])
    change(python, "raise ImportError('libcudart.so.12: cannot open shared object file: No such "
                   "file or directory')\n")
    torch = torch_of(python)
    assert (torch["state"], torch["version"]) == ("broken", "2.8.0+cu128")
    assert "CUDA 12" in torch["why"] and "libcudart.so.12" in torch["why"]


@pytest.mark.parametrize(("text", "state", "wanted"), [
    ("import ctypes; ctypes.string_at(0)", "crashed", "SIGSEGV"),
    ("import os; os._exit(3)", "crashed", "status 3"),
    ("import time; time.sleep(600)", "slow", "2 s"),
    ("raise SystemExit('bye')", "broken", "bye"),
    ("raise KeyboardInterrupt", "broken", "KeyboardInterrupt"),
    ("import sys; sys.modules['torch'] = None", "broken", "torch"),
    ("class Bad(Exception):\n    def __str__(self): raise ValueError\nraise Bad", "broken", "Bad"),
], ids=["crashes", "ends", "hangs", "exits", "interrupts", "hides", "speechless"])
def test_torch_that_is_no_good_leaves_the_rest_to_be_told(made, tmp_path, text, state, wanted):
    python = made([builder.torch(tmp_path)], needs="", alone="", others="import torch")
    change(python, text + "\n")
    found = looked(python, builder.row("needs", torch="minor"), "alone", limit_s=SHORT)
    assert found["torch"]["state"] == state
    assert wanted in found["torch"]["why"]
    assert found["state"] == "ok"
    assert imports(found, "alone")["state"] == "ok"
    assert imports(found, "needs")["state"] == "failed"
    assert found["torch"]["why"] in imports(found, "needs")["why"]


def test_what_is_left_of_torch_is_none(made, tmp_path):
    python = made()
    (of(python) / "torch" / "lib").mkdir(parents=True)
    torch = torch_of(python)
    assert torch["state"] == "broken"
    assert str(of(python) / "torch") in torch["why"]
    shutil.rmtree(of(python) / "torch")
    builder.unpack(builder.torch(tmp_path), of(python))
    shutil.rmtree(of(python) / "torch")
    torch = torch_of(python)
    assert (torch["state"], torch["version"]) == ("broken", "2.8.0+cu128")
    assert "a record says" in torch["why"]


def test_a_package_that_needs_torch_where_there_is_none(made):
    why = imports(looked(made(tiny=""), builder.row("tiny", torch="stable")), "tiny")["why"]
    assert why == "torch, which it needs, is not installed"


NO_GPU = """
def is_available():
    return False
def init():
    raise RuntimeError("Found no NVIDIA driver on your system. Please check that you have one")
"""


@pytest.mark.parametrize(("text", "wanted"), [
    (NO_GPU, "no NVIDIA driver"),
    ("def is_available():\n    import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    ("def is_available():\n    import time; time.sleep(600)", "2 s"),
    ("def is_available():\n    return True\ndef device_count():\n    return 1\n"
     "def get_device_name(_):\n    raise RuntimeError('CUDA error: CUDA-capable device(s) is/are "
     "busy or unavailable')", "exclusive"),
], ids=["none", "crashes", "hangs", "busy"])
def test_why_there_are_no_devices_and_kernels_are_skipped(made, tmp_path, text, wanted):
    python = made([builder.torch(tmp_path)], on_gpu="", anywhere="")
    change(python, text + "\n", "cuda.py")
    found = looked(python, builder.row("on-gpu", torch="minor", kernel="error = 0",
                                       kernel_device="cuda"),
                   builder.row("anywhere", torch="minor", kernel="error = 0"), limit_s=SHORT)
    assert (found["torch"]["state"], found["torch"]["devices"]) == ("ok", [])
    assert wanted in found["torch"]["why_no_devices"]
    assert kernel(found, "on-gpu")["state"] == "skipped"
    assert wanted in kernel(found, "on-gpu")["why"]
    assert kernel(found, "anywhere") == {"state": "ran", "why": "", "error": 0.0, "device": "cpu"}


# Packages.


CRASH_AT_IMPORT = builder.KERNEL + """
__attribute__((constructor)) static void crash(void)
{
    volatile int *volatile nothing = 0;
    *nothing = 1;
}
"""
BAD = {
    "raises": ("raise ImportError('/x.so: undefined symbol: _ZN3c104cuda9SetDeviceEa')", "failed",
               "built for another torch"),
    "segfaults": ("from segfaults import _kernel", "crashed", "SIGSEGV"),
    "ends": ("import os; os._exit(0)", "crashed", "status 0"),
    "ends_and_says_so": ("import os; os.write(1, b'terminate called\\n  what():  boom\\n'); "
                         "os.abort()", "crashed", "terminate called | what():  boom"),
    "exits": ("import sys; sys.exit('no licence')", "failed", "no licence"),
    "kills_all": ("import os, signal; os.killpg(0, signal.SIGKILL)", "crashed", "SIGKILL"),
    "hangs": ("import time\nprint('compiling', flush=True)\ntime.sleep(600)", "slow", "compiling"),
    "floods": ("import os\nwhile True: os.write(2, b'garbage ' * 999)", "slow", "2 s"),
    "ignores_signals": ("import signal, time\nfor one in range(1, 32):\n    try: signal.signal(one,"
                        " signal.SIG_IGN)\n    except OSError: pass\ntime.sleep(600)", "slow", ""),
    "closes": ("import os; os.closerange(0, 4096)", "crashed", "closed the files"),
    "recurses": ("def f(): f()\nf()", "failed", "RecursionError"),
    "stops": ("import os, signal; os.kill(0, signal.SIGSTOP)", "slow", ""),
    "talks_to_us": ("import os; [os.write(n, b'{\"step\": \"done\"') for n in (512,)]; "
                    "os._exit(1)", "crashed", "status 1"),
    "chain": ("try:\n    raise OSError('libcudart.so.11.0: cannot open shared object file: No such"
              " file or directory')\nexcept OSError as it:\n    raise RuntimeError('no') from it",
              "failed", "CUDA 11"),
}


def test_bad_packages_leave_the_good_ones_and_are_told_apart(made, tmp_path):
    python = made([builder.wheel(
        tmp_path, "segfaults", "1.0", extension=CRASH_AT_IMPORT,
        files={"segfaults/__init__.py": BAD["segfaults"][0]})], prints=(
            "import sys\nprint('\\x00\\xff garbage' * 9999)\nsys.stderr.write('x' * 99999)"),
        last="", **{name: text for name, (text, _, _) in BAD.items() if name != "segfaults"})
    found = looked(python, *(name.replace("_", "-") for name in [*BAD, "prints", "last"]),
                   limit_s=SHORT)
    for name, (_, state, wanted) in BAD.items():
        one = imports(found, name.replace("_", "-"))
        assert one["state"] == state, (name, one)
        assert wanted in one["why"], (name, one)
    for name in ("prints", "last"):
        assert imports(found, name)["state"] == "ok"


def test_every_name_is_imported(made):
    row = builder.row("tiny", imports=["tiny", "tiny.more"])
    why = imports(looked(made(tiny=""), row), "tiny")["why"]
    assert why == "import tiny.more: it needs tiny.more, which is not installed in this " \
        "environment. It said: ModuleNotFoundError: No module named 'tiny.more'"


def test_what_a_package_started_ends_too(made, tmp_path):
    left = tmp_path / "left"
    python = made(tiny="import subprocess, sys\nopen(%r, 'w').write(str(subprocess.Popen(["
                       "'sleep', '600']).pid))" % str(left))
    begun = time.monotonic()
    assert imports(looked(python, "tiny"), "tiny")["state"] == "ok"
    assert time.monotonic() - begun < LONG, "what it started holds nobody up"
    deadline = time.monotonic() + LONG
    while alive(left.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid):
    with contextlib.suppress(OSError):
        return pathlib.Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_crash_leaves_no_dump(made, tmp_path):
    limit = tmp_path / "limit"
    python = made(tiny="import resource\nopen(%r, 'w').write(str(resource.getrlimit("
                       "resource.RLIMIT_CORE)[0]))" % str(limit))
    looked(python, "tiny")
    assert limit.read_text() == "0"


def test_a_process_does_not_outlive_who_asked(made, tmp_path):
    begun = tmp_path / "begun"
    python = made(tiny="import os, time\nopen(%r, 'w').write(str(os.getpid()))\ntime.sleep(600)"
                       % str(begun))
    child = os.fork()
    if child == 0:
        environment.read(python, [builder.row("tiny")], LONG)
        os._exit(0)
    try:
        deadline = time.monotonic() + LONG
        while not (begun.exists() and begun.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    while alive(begun.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_nobody_is_read_from(made):
    python = made(tiny="import sys; assert sys.stdin.read() == ''; input()")
    assert "EOFError" in imports(looked(python, "tiny", limit_s=SHORT), "tiny")["why"]


# Kernels.


def kernel_of(python, name, limit_s=LONG, **row):
    return kernel(looked(python, builder.row(name, **row), limit_s=limit_s), name)


@pytest.mark.parametrize(("source", "state", "wanted"), [
    (builder.KERNEL, "ran", ""), (builder.WRONG_KERNEL, "failed", "computes nonsense"),
    (builder.CRASHING_KERNEL, "crashed", "SIGSEGV"),
], ids=["right", "wrong", "crashing"])
def test_a_kernel_is_run(tmp_path, source, state, wanted):
    python = builder.environment(tmp_path / "e", wheels=[
        builder.wheel(tmp_path, "tiny-kernel", "1.0", extension=source),
        package(tmp_path, "other")])
    found = looked(python, builder.row("tiny-kernel", kernel=builder.proof("tiny-kernel")), "other")
    one = kernel(found, "tiny-kernel")
    assert one["state"] == state
    assert wanted in one["why"]
    assert (one["error"] is None) == (state == "crashed")
    assert imports(found, "tiny-kernel")["state"] == "ok"
    assert (imports(found, "other")["state"], kernel(found, "other")["state"]) == ("ok", "none")


@pytest.mark.parametrize(("text", "state", "wanted"), [
    ("error = 0.001", "ran", ""), ("error = -0.5", "failed", "0.5"), ("error = 0.002", "failed",
                                                                      "0.001 is allowed"),
    ("error = float('nan')", "failed", "no number"), ("error = float('inf')", "failed", "no numb"),
    ("error = 10**400", "failed", "OverflowError"), ("pass", "failed", "KeyError"),
    ("error = 'none'", "failed", "ValueError"), ("error =", "failed", "SyntaxError"),
    ("while True: pass", "slow", "2 s"), ("import os; os._exit(4)", "crashed", "status 4"),
    ("raise RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB')", "skipped",
     "no memory free"),
    ("assert str(device) == 'cpu' and torch.version.cuda; error = 0", "ran", ""),
])
def test_what_a_kernel_may_say(made, tmp_path, text, state, wanted):
    python = made([builder.torch(tmp_path)], tiny="")
    one = kernel_of(python, "tiny", SHORT, torch="minor", kernel=text)
    assert one["state"] == state, one
    assert wanted in one["why"]


def test_a_kernel_without_torch(made):
    one = kernel_of(made(tiny=""), "tiny", kernel="assert torch is None; error = 0")
    assert one["state"] == "ran"
    assert one["device"] == "cpu"


def test_what_a_kernel_sets_is_not_for_the_next(made):
    found = looked(made(one="", two=""),
                   builder.row("one", kernel="import os; os.environ['X_OF_ONE'] = '1'; error = 0"),
                   builder.row("two", kernel="import os; error = 'X_OF_ONE' in os.environ"))
    assert (kernel(found, "one")["state"], kernel(found, "two")["error"]) == ("ran", 0.0)


def test_a_kernel_for_a_gpu_without_torch_is_skipped(made):
    one = kernel_of(made(tiny=""), "tiny", kernel="error = 0", kernel_device="cuda")
    assert (one["state"], one["why"]) == (
        "skipped", "there is no GPU for it: torch is not installed")


def test_a_kernel_of_what_cannot_be_imported_is_not_run(made):
    found = looked(made(tiny="raise ValueError"), builder.row("tiny", kernel="error = 0"))
    assert kernel(found, "tiny") == {"state": "skipped", "why": "it was not imported",
                                     "error": None, "device": ""}


def test_on_a_gpu_the_next_kernel_gets_a_process_without_the_last_ones_error(made, tmp_path):
    python = made([builder.torch(tmp_path, devices=[("NVIDIA H200", "9.0")])], one="", two="",
                  three="")
    fails = "torch.poisoned = True\nraise RuntimeError('CUDA error: an illegal memory access')"
    fine = "assert not hasattr(torch, 'poisoned') and str(device) == 'cuda:0'; error = 0"
    found = looked(python, *(builder.row(name, torch="minor", kernel_device="cuda", kernel=text)
                             for name, text in (("one", fails), ("two", fine), ("three", fails))))
    assert kernel(found, "one")["state"] == kernel(found, "three")["state"] == "failed"
    assert kernel(found, "two") == {"state": "ran", "why": "", "error": 0.0,
                                    "device": "NVIDIA H200"}


def test_what_goes_wrong_on_the_device_is_told_of_its_kernel(made, tmp_path):
    python = made([builder.torch(tmp_path, devices=[("NVIDIA H200", "9.0")])], tiny="")
    with (of(python) / "torch" / "cuda.py").open("a") as file:
        file.write("def synchronize(device=None):\n    raise RuntimeError('CUDA error: no kernel "
                   "image is available for execution on the device')\n")
    one = kernel_of(python, "tiny", torch="minor", kernel_device="cuda", kernel="error = 0")
    assert one["state"] == "failed"
    assert "no kernels for this GPU" in one["why"]


def test_torch_that_works_only_the_first_time_is_told(made, tmp_path):
    python = made([builder.torch(tmp_path)], one="import os; os._exit(1)", two="", three="")
    mark = tmp_path / "mark"
    change(python, (of(python) / "torch" / "__init__.py").read_text() + "import os\nif os.path."
           "exists(%r): os.abort()\nopen(%r, 'w')\n" % (str(mark), str(mark)))
    found = looked(python, builder.row("one", torch="minor"), builder.row("two", torch="minor"),
                   "three")
    assert (found["torch"]["state"], imports(found, "two")["state"]) == ("crashed", "failed")
    assert imports(found, "three")["state"] == "ok"


def test_an_interpreter_that_works_only_the_first_time_is_told(made, tmp_path):
    mark = tmp_path / "mark"
    python = made(one="import os; open(%r, 'w'); os._exit(1)" % str(mark), two="")
    (of(python) / "x.pth").write_text("import os; os.path.exists(%r) and os._exit(7)\n"
                                      % str(mark))
    found = looked(python, "one", "two")
    assert "status 1" in imports(found, "one")["why"]
    assert "status 7" in imports(found, "two")["why"]


# One package alone.


def test_a_package_is_proved_without_a_record(made, tmp_path):
    python = made()
    row = builder.row("tiny-kernel", kernel=builder.proof("tiny-kernel"))
    told, ran = environment.prove(python, row, LONG)
    assert (told["state"], ran["state"]) == ("failed", "skipped")
    builder.unpack(builder.wheel(tmp_path, "tiny-kernel", "1.0", extension=builder.KERNEL),
                   of(python))
    shutil.rmtree(next(of(python).glob("tiny_kernel-*.dist-info")))
    told, ran = environment.prove(python, row, LONG)
    assert (told["state"], ran["state"], ran["error"]) == ("ok", "ran", 0.0)
    told, ran = environment.prove(str(tmp_path / "no"), row, LONG)
    assert (told["state"], ran["state"]) == ("failed", "skipped")
    assert "does not exist" in told["why"]
