# SPDX-License-Identifier: Apache-2.0
"""A wheel is built by the real pip, within bounds, and whatever happens nothing of it is left."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tarfile
import textwrap
import time
import zipfile

import pytest
from wheels import builder

from ansible.module_utils.firstlight.planning.wheel_builds import build_plan
from ansible.module_utils.firstlight.transaction import Lock
from ansible.module_utils.firstlight.wheels import build as building
from ansible.module_utils.firstlight.wheels.build import BuildFailed, build

GIB = 2**30
HOST = {"cpu": {"cores": 3}, "memory": {"available_bytes": 64 * GIB},
        "disk": {"path": "/srv", "free_bytes": 500 * GIB}, "devices": []}
ENVIRONMENT = {"version": "3.11.2",
               "torch": {"state": "ok", "why": "", "version": "2.8.0", "cuda": "99.4",
                         "cxx11abi": True, "devices": []}}
# Processes that leave their session, their parent and their environment behind, and one that does
# nothing of that; what they are is written where the test reads it.
RUNAWAYS = """
import os, subprocess, time
for argv in (["sleep", "600"], ["setsid", "sleep", "600"],
             ["env", "-i", "setsid", "-f", "sh", "-c", "echo $$ >>%(pids)s; exec sleep 600"]):
    started = subprocess.Popen(argv, env={"PATH": os.environ["PATH"], "FIRSTLIGHT_BUILD":
                                          os.environ["FIRSTLIGHT_BUILD"]},
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    open(%(pids)r, "a").write("%%d\\n" %% started.pid)
open(%(pids)r, "a").write("%%d\\n" %% os.getpid())
while len(open(%(pids)r).readlines()) < 5:
    time.sleep(0.01)
open(%(pids)r + ".all", "w").close()
"""
FOREVER = "\nwhile True: time.sleep(60)\n"


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of an environment that has pip and nothing else."""
    return str(builder.environment(tmp_path_factory.mktemp("environment") / "env"))


@pytest.fixture
def place(tmp_path, python, monkeypatch):
    """Where a build is at work, and what is left there after it."""
    # Whatever else the one who runs this has there, pip may ask; some of that takes its time.
    monkeypatch.setenv("PATH", "/usr/local/bin:/usr/bin:/bin")
    return Place(tmp_path, python)


class Place:
    """One host's folder for builds."""

    def __init__(self, folder, python):
        self.folder, self.python = folder, python
        self.into, self.log = folder / "builds", folder / "logs" / "tiny.log"
        self.pids = folder / "pids"

    def sdist(self, setup="", version="1.0"):
        return builder.sdist(self.folder / "sdist", "tiny", version, setup)

    def legacy(self, name="tiny-1.0.tar.gz", **texts):
        """A distribution of these files, by names in which `_` is a dot."""
        path = self.folder / "sdist" / name
        path.parent.mkdir(exist_ok=True)
        with tarfile.open(path, "w:gz") as archive:
            for file, text in {"PKG-INFO": "Name: tiny\nVersion: 1.0\n", **texts}.items():
                member = tarfile.TarInfo("tiny-1.0/" + file.replace("__", "."))
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text.encode()))
        return path

    def build(self, sdist, row=None, limit_s=120, pip="", **changes):
        plan = {**build_plan(self.row(**row or {}), ENVIRONMENT, [], HOST, limit_s), **changes}
        return build(self.python, str(sdist), plan, str(self.into), str(self.log), pip)

    @staticmethod
    def row(cuda="none", capabilities=(), **told):
        return builder.row("tiny", cuda=cuda, capabilities=list(capabilities), build={
            "sdist": "pip", "environment": {}, "architectures": {}, "jobs": "", "job_bytes": GIB,
            **told})

    def fails(self, sdist, **how):
        """The findings of a build that fails, by id, and the exception."""
        with pytest.raises(BuildFailed) as caught:
            self.build(sdist, **how)
        assert self.left() == []
        return {one["id"]: one for one in caught.value.findings}, caught.value

    def left(self):
        """What is left of builds, their lock aside."""
        return sorted(set(os.listdir(self.into)) - {"build.lock"})

    def runaways(self):
        assert pathlib.Path(str(self.pids) + ".all").exists(), "they were never started"
        return [int(line) for line in self.pids.read_text().split()]

    def setup(self, text):
        return text % {"pids": str(self.pids)}


def alive(pid):
    with contextlib.suppress(OSError):
        return pathlib.Path("/proc/%d/stat" % pid).read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def until(holds):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def inside(path, name):
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


# A build that goes well.


def test_a_wheel_is_built_and_nothing_else_is_left_but_its_log(place):
    path = place.build(place.sdist("print('this is said')"))
    assert path == str(place.into / "tiny-1.0-py3-none-any.whl")
    assert place.left() == ["tiny-1.0-py3-none-any.whl"]
    assert b"1.0" in inside(path, "tiny/__init__.py")
    assert "this is said" in place.log.read_text()
    assert place.log.stat().st_mode & 0o777 == 0o600


COMPILES = """
import subprocess, sysconfig
open("twice.c", "w").write('''
#include <Python.h>
static PyObject *twice(PyObject *self, PyObject *n)
{ return PyLong_FromLong(2 * PyLong_AsLong(n)); }
static PyMethodDef METHODS[] = {{"twice", twice, METH_O, 0}, {0, 0, 0, 0}};
static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_kernel", 0, -1, METHODS};
PyMODINIT_FUNC PyInit__kernel(void) { return PyModule_Create(&MODULE); }
''')
subprocess.run(["cc", "-shared", "-fPIC", "-I", sysconfig.get_paths()["include"], "twice.c",
                "-o", "twice.so"], check=True)
files["tiny/_kernel.so"] = open("twice.so", "rb").read()
"""


def test_a_c_extension_is_compiled_and_runs(place, tmp_path):
    path = place.build(place.sdist(COMPILES))
    env = builder.environment(tmp_path / "other", with_pip=False, wheels=[path])
    said = subprocess.run([env, "-c", "from tiny import _kernel; print(_kernel.twice(21))"],
                          capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "42"


SEEN = """
import json, os
seen = {"env": dict(os.environ), "nice": os.nice(0), "session": os.getsid(0),
        "oom": open("/proc/self/oom_score_adj").read().strip(),
        "writes": os.access(os.environ["TMPDIR"], os.W_OK)}
files["tiny/seen.json"] = json.dumps(seen)
"""


def test_a_build_gets_a_clean_environment_and_lets_all_others_go_first(place, monkeypatch):
    for name in ("HF_TOKEN", "PIP_INDEX_URL", "PYTHONPATH", "CFLAGS", "ANSIBLE_VAULT_PASSWORD"):
        monkeypatch.setenv(name, "of the caller")
    path = place.build(place.sdist(SEEN), row={"environment": {"OWN": "the row's"}})
    seen = json.loads(inside(path, "tiny/seen.json"))
    assert "of the caller" not in seen["env"].values()
    assert seen["env"]["OWN"] == "the row's"
    assert seen["env"]["MAX_JOBS"] == "3"
    assert seen["env"]["PATH"].split(":")[0] == os.path.dirname(place.python)
    assert seen["env"]["HOME"].startswith(str(place.into))
    assert seen["writes"] is True
    assert not os.path.exists(seen["env"]["HOME"])
    assert (seen["nice"], seen["oom"]) == (19, "1000")
    assert seen["session"] != os.getsid(0)


def test_the_log_tells_how_it_was_built_and_no_secret(place):
    place.build(place.sdist(), row={"environment": {"HUB_TOKEN": "hf_abcdefghijklmnop"}})
    said = place.log.read_text()
    assert "MAX_JOBS=3" in said
    assert "HUB_TOKEN=" in said
    assert "hf_abcdefghijklmnop" not in said


def test_a_log_of_before_is_replaced_and_a_link_in_its_place_not_followed(place, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.write_text("precious")
    place.log.parent.mkdir()
    place.log.symlink_to(theirs)
    place.build(place.sdist("print('this is said')"))
    assert theirs.read_text() == "precious"
    assert not place.log.is_symlink()
    place.build(place.sdist())
    assert "this is said" not in place.log.read_text()


def test_what_a_build_that_goes_well_leaves_running_is_ended(place):
    place.build(place.sdist(place.setup(RUNAWAYS)))
    assert [pid for pid in place.runaways() if alive(pid)] == []


def test_an_environment_without_pip_is_built_in_with_anothers(place, tmp_path):
    pip = os.path.join(os.path.dirname(os.path.dirname(place.python)), "lib",
                       "python%d.%d" % sys.version_info[:2], "site-packages", "pip")
    place.python = str(builder.environment(tmp_path / "bare", with_pip=False))
    found, _ = place.fails(place.sdist())
    assert "no pip" in found["wheel-build-requires"]["found"]
    path = place.build(place.sdist("import sys; files['tiny/by'] = sys.executable"), pip=pip)
    assert inside(path, "tiny/by").decode() == place.python


def test_a_zip_is_a_source_distribution_too(place, tmp_path):
    with tarfile.open(place.sdist()) as archive, zipfile.ZipFile(
            tmp_path / "tiny-1.0.zip", "w") as other:
        for member in archive.getmembers():
            other.writestr(member.name, archive.extractfile(member).read())
    assert place.build(tmp_path / "tiny-1.0.zip").endswith("tiny-1.0-py3-none-any.whl")


# A build that is ended, and all that it started with it.


def test_at_the_limit_every_process_of_a_build_is_ended(place, monkeypatch):
    # The limit comes when all of them run, however long that takes here.
    all_run, now = pathlib.Path(str(place.pids) + ".all"), time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + 3600 * all_run.exists())
    found, failed = place.fails(
        place.sdist(place.setup("print('so far')" + RUNAWAYS + FOREVER)), limit_s=3600)
    assert [pid for pid in place.runaways() if alive(pid)] == []
    assert list(found) == ["wheel-build-slow"]
    assert "3600 s" in found["wheel-build-slow"]["found"]
    assert "prebuilt_wheel_build_limit_s" in found["wheel-build-slow"]["wanted"]
    assert "so far" in failed.tail
    assert "so far" in place.log.read_text()


FIRST_THREAD_ENDED = """
import ctypes, os, subprocess, threading, time
def works_on():
    child = subprocess.Popen(["sleep", "600"], env={}, executable="/bin/sleep",
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with open(%(pids)r, "a") as file:
        file.write("%%d %%d\\n" %% (child.pid, os.getpid()))
    open(%(pids)r + ".all", "w").close()
    time.sleep(600)
if os.fork() == 0:
    os.setsid()
    threading.Thread(target=works_on).start()
    ctypes.CDLL(None).syscall({"x86_64": 60}.get(os.uname().machine, 93), 0)
while not os.path.exists(%(pids)r + ".all"):
    time.sleep(0.01)
raise SystemExit("the moon is full")
"""


def test_a_process_whose_first_thread_has_ended_ends_too(place):
    place.fails(place.sdist(place.setup(FIRST_THREAD_ENDED)))
    for pid in place.runaways():
        assert not pathlib.Path("/proc/%d/task" % pid).exists()


CALLER = """
import json, signal, sys
# As a module has them, whatever the one who runs the tests ignores.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
import ansible.module_utils
ansible.module_utils.__path__.append(sys.argv[1])
from ansible.module_utils.firstlight.wheels.build import build
build(*json.loads(sys.argv[2]))
"""


@pytest.fixture
def caller(place, repository):
    """A process that builds a wheel which is never done; it is ended after the test."""
    plan = build_plan(place.row(), ENVIRONMENT, [], HOST, 600)
    sdist = place.sdist(place.setup(RUNAWAYS + FOREVER))
    process = subprocess.Popen([sys.executable, "-c", CALLER, str(repository / "module_utils"),
                                json.dumps([place.python, str(sdist), plan, str(place.into),
                                            str(place.log)])], stderr=subprocess.PIPE, text=True)
    try:
        until(pathlib.Path(str(place.pids) + ".all").exists)
        yield process
    finally:
        process.kill()
        process.wait()


def watcher_of(process):
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)],
                              capture_output=True, text=True, check=True).stdout.split()
    assert len(children) == 1
    return int(children[0])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_when_the_one_who_asked_is_gone_so_is_the_build(place, caller, how):
    caller.send_signal(how)
    until(lambda: not any(map(alive, place.runaways())))
    until(lambda: place.left() == [])
    caller.wait(timeout=30)
    with Lock(str(place.into / "build.lock"), wait_s=10):
        assert place.left() == []


def test_a_watcher_that_is_asked_to_end_ends_the_build_and_says_so(place, caller):
    os.kill(watcher_of(caller), signal.SIGTERM)
    _, said = caller.communicate(timeout=60)
    assert "ended from outside" in said
    assert [pid for pid in place.runaways() if alive(pid)] == []
    assert place.left() == []


def test_a_watcher_that_is_killed_does_not_leave_the_build_behind(place, caller):
    os.kill(watcher_of(caller), signal.SIGKILL)
    _, said = caller.communicate(timeout=60)
    assert "what watched the build was killed" in said
    assert place.left() == []
    # What threw away its environment is then known by nothing: one of those that ran.
    assert sum(map(alive, place.runaways())) <= 1
    for pid in filter(alive, place.runaways()):
        os.kill(pid, signal.SIGKILL)


def test_what_a_build_left_that_was_killed_as_a_whole_goes_with_the_next_one(place, caller):
    watcher = watcher_of(caller)
    os.kill(watcher, signal.SIGSTOP)
    caller.kill()
    os.kill(watcher, signal.SIGKILL)
    caller.wait()
    until(lambda: not alive(watcher))  # it has its lock until then
    assert len(place.left()) == 1
    running = [pid for pid in place.runaways() if alive(pid)]
    assert running
    path = place.build(place.sdist())
    assert place.left() == [os.path.basename(path)]
    assert sum(map(alive, running)) <= 1
    for pid in filter(alive, running):
        os.kill(pid, signal.SIGKILL)


def test_while_a_build_is_at_work_there_is_no_other(place, caller):
    with pytest.raises(BuildFailed, match="wheel-build-busy"):
        place.build(place.sdist(version="2.0"))
    assert caller.poll() is None
    assert all(map(alive, [watcher_of(caller)]))


@pytest.mark.parametrize(("keep", "name"), [
    ({"disk_bytes": 2**60, "memory_bytes": 0}, "wheel-build-disk"),
    ({"disk_bytes": 0, "memory_bytes": 2**60}, "wheel-build-memory"),
])
def test_a_build_that_takes_what_the_host_needs_is_ended(place, keep, name):
    found, _ = place.fails(place.sdist(place.setup(RUNAWAYS + FOREVER)), keep=keep)
    assert list(found) == [name]
    assert [pid for pid in place.pids.read_text().split() if alive(int(pid))] == [] \
        if place.pids.exists() else True


def test_a_build_that_says_without_end_is_ended(place, monkeypatch):
    monkeypatch.setattr(building, "MOST_LOG", 2**20)
    found, failed = place.fails(place.sdist("while True: print('x' * 1000)"))
    assert "said more than 1 MiB" in found["wheel-build-failed"]["found"]
    assert len(failed.tail) <= 64 * 1024


# A build that fails.


def test_a_build_that_fails_tells_its_last_lines_and_where_the_log_is(place):
    found, failed = place.fails(place.sdist("raise SystemExit('the moon is full')"))
    assert list(found) == ["wheel-build-failed"]
    evidence = found["wheel-build-failed"]["evidence"].splitlines()
    # Without what pip says of every failure.
    assert evidence[-1].strip() == "the moon is full"
    assert str(place.log) in found["wheel-build-failed"]["remedy"]
    assert "the moon is full" in failed.tail
    assert "the moon is full" in place.log.read_text()


def test_a_password_in_an_address_is_not_told(place):
    found, failed = place.fails(place.sdist(
        "raise SystemExit('see https://user:hunter2@example.org/x')"))
    assert "https://example.org/x" in found["wheel-build-failed"]["evidence"]
    assert "hunter2" not in failed.tail + str(failed)


COMPILER_KILLED = """
import glob, os, signal, subprocess, time
gcc = subprocess.Popen(["gcc", "-x", "c", "-", "-o", "x"], stdin=subprocess.PIPE)
cc1 = []
while not cc1:
    time.sleep(0.01)
    cc1 = subprocess.run(["ps", "-o", "pid=", "--ppid", str(gcc.pid)], capture_output=True,
                         text=True).stdout.split()
os.kill(int(cc1[0]), signal.SIGKILL)
raise SystemExit(gcc.wait())
"""


def test_a_compiler_that_the_kernel_killed_is_told_as_memory(place):
    found, _ = place.fails(place.sdist(COMPILER_KILLED))
    told = found["wheel-build-memory"]
    assert "Killed signal terminated program" in told["evidence"]
    assert "3 ran at a time" in told["found"]
    assert "job_bytes" in told["remedy"]


@pytest.mark.parametrize("setup", [
    "import urllib.request; urllib.request.urlopen('%s/wheel.whl')",
    """
    import subprocess, sys
    subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "-i", "%s", "tiny"],
                   check=True)
    """,
])
def test_a_build_that_wants_the_network_does_not_get_it_and_is_told(place, setup):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        found, _ = place.fails(place.sdist(setup % "http://127.0.0.1:%d" % server.getsockname()[1]))
        with pytest.raises(BlockingIOError):
            server.accept()
    assert "no hash" in found["wheel-build-network"]["wanted"]
    assert str(place.log) in found["wheel-build-network"]["evidence"]


def test_a_build_that_imports_what_is_not_there_is_told_by_its_name(place):
    found, _ = place.fails(place.sdist("import torch_of_the_moon"))
    assert "torch_of_the_moon" in found["wheel-build-requires"]["evidence"]


def test_a_build_that_ends_well_without_a_wheel_has_failed(place):
    found, _ = place.fails(place.sdist("import os; os._exit(0)"))
    assert list(found) == ["wheel-build-failed"]


BESIDE = """
import os, pathlib
(pathlib.Path(os.environ["HOME"]).parent / "wheels" / "%s").write_text("")
"""


def test_more_than_one_wheel_is_none(place):
    found, _ = place.fails(place.sdist(BESIDE % "evil-1.0-py3-none-any.whl"))
    assert "evil-1.0-py3-none-any.whl, tiny-1.0" in found["wheel-build-result"]["found"]


def test_a_wheel_of_another_version_is_none(place):
    renamed = place.sdist().with_name("tiny-2.0.tar.gz")
    place.sdist().rename(renamed)
    found, _ = place.fails(renamed)
    assert "tiny-1.0-py3-none-any.whl" in found["wheel-build-result"]["found"]
    assert "tiny 2.0" in found["wheel-build-result"]["wanted"]


def test_a_wheel_may_tell_more_of_its_version_than_its_source(place):
    made = place.sdist(version="1.0+cu12torch2.8").rename(place.folder / "tiny-1.0.tar.gz")
    assert place.build(made).endswith("tiny-1.0+cu12torch2.8-py3-none-any.whl")


LOCAL = """
import os, sys
sys.modules["backend"].VERSION += "+" + os.environ["FLASH_ATTN_LOCAL_VERSION"]
"""


def test_a_wheel_that_the_row_has_named_by_what_it_is_built_for_is_the_one(place):
    path = place.build(place.sdist(LOCAL, version="2.8.3"), row={
        "environment": {"FLASH_ATTN_LOCAL_VERSION": "cu{cuda_major}torch{torch}"}})
    assert os.path.basename(path) == "tiny-2.8.3+cu99torch2.8-py3-none-any.whl"
    assert place.left() == [os.path.basename(path)]


@pytest.mark.parametrize(("source", "made"), [
    ("1.0+cu12", "1.0+cu12"), ("2024.01.2", "2024.1.2"), ("1.0", "1.0.0+cu12"),
    ("1.0.0rc1", "1.0rc1+cu12")])
def test_a_version_may_be_spelt_otherwise(place, source, made):
    sdist = place.sdist(version=made).rename(place.folder / ("tiny-%s.tar.gz" % source))
    assert place.build(sdist).endswith("tiny-%s-py3-none-any.whl" % made)


@pytest.mark.parametrize(("source", "made"), [
    ("1.0+cu12", "1.0+cu13"), ("1.0", "1.0.1+cu12"), ("1.0", "1.0.post1"), ("1.0+cu12", "1.0")])
def test_a_version_that_is_another_is_none(place, source, made):
    sdist = place.sdist(version=made).rename(place.folder / ("tiny-%s.tar.gz" % source))
    found, _ = place.fails(sdist)
    assert "tiny " + source in found["wheel-build-result"]["wanted"]


def test_a_wheel_without_its_compiled_part_is_none(place):
    found, _ = place.fails(place.sdist(), compiled=True)
    assert "compiled part" in found["wheel-build-result"]["wanted"]


# What must be there before it is begun.


def test_a_plan_that_is_refused_is_not_begun(place):
    with pytest.raises(BuildFailed, match="wheel-build-limit"):
        place.build(place.sdist(), limit_s=0)
    assert not place.into.exists()


SETUP = """
from setuptools import setup
import the_sun
import own_module.part
try:
    import perhaps
except ImportError:
    pass
setup(name="tiny", setup_requires=["moon>=2"])
open(%(pids)r, "w").close()
"""


def test_all_that_is_missing_is_told_at_once_and_nothing_is_run(place):
    sdist = place.legacy(setup__py=place.setup(SETUP), own_module="",
                         setup__cfg="[options]\nsetup_requires =\n  venus\n  pip\n")
    found, failed = place.fails(sdist, row={"requires": ["ninja", "pip>999", "pip"]})
    said = found["wheel-build-requires"]["found"]
    for name in ("setuptools>=40.8.0: not installed", "the_sun", "moon>=2", "venus",
                 "ninja: not installed (the row's build.requires)", "pip>999"):
        assert name in said
    for name in ("own_module", "perhaps", "pip: "):
        assert name not in said
    assert not place.pids.exists()
    assert not place.log.exists()
    assert failed.tail == ""


def test_requirements_of_pyproject_are_read_with_versions_and_markers(place):
    sdist = place.legacy(pyproject__toml=textwrap.dedent("""
        [build-system]
        requires = ["pip>=1", "pip<1", "mars; python_version < '3'", "jupiter", "not a need"]
        build-backend = "jupiter"
        """))
    found, _ = place.fails(sdist)
    said = found["wheel-build-requires"]["found"]
    assert [name for name in ("pip<1", "jupiter", "not a need") if name not in said] == []
    assert [name for name in ("pip>=1", "mars", "setuptools") if name in said] == []


def test_a_pyproject_that_cannot_be_read_is_told(place):
    found, _ = place.fails(place.legacy(pyproject__toml="[build-system"))
    assert "pyproject.toml" in found["wheel-build-sdist"]["found"]


def test_an_old_setuptools_makes_no_wheels_alone(place, tmp_path):
    place.python = str(builder.environment(tmp_path / "old", wheels=[
        builder.wheel(tmp_path, "setuptools", "65.5.0", tags="py3-none-any")]))
    found, _ = place.fails(place.legacy(setup__py="from setuptools import setup; setup()"))
    assert found["wheel-build-requires"]["found"].startswith("wheel: not installed")


SETUPTOOLS = """
import os, zipfile
class __legacy__:
    @staticmethod
    def build_wheel(into, settings=None, metadata=None):
        name = "tiny-1.0-py3-none-any.whl"
        with zipfile.ZipFile(os.path.join(into, name), "w") as archive:
            info = "tiny-1.0.dist-info/"
            archive.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1.0")
            archive.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any")
            archive.writestr(info + "RECORD", "")
        return name
"""


def test_a_setup_py_is_built_by_its_backend_and_never_run_as_a_program(place, tmp_path):
    # Run as a program, it fetches its setup_requires.
    place.python = str(builder.environment(tmp_path / "new", wheels=[
        builder.wheel(tmp_path, "setuptools", "99.0", tags="py3-none-any",
                      files={"setuptools/build_meta.py": SETUPTOOLS, "setuptools/__init__.py": ""}),
        builder.wheel(tmp_path, "wheel", "99.0", tags="py3-none-any",
                      files={"wheel/__init__.py": ""})]))
    sdist = place.legacy(setup__py=place.setup("open(%(pids)r, 'w').close()"))
    assert place.build(sdist).endswith("tiny-1.0-py3-none-any.whl")
    assert not place.pids.exists()


@pytest.mark.parametrize("name", ["mars-1.0.tar.gz", "tiny.tar.gz", "tiny-1.0-py3-none-any.whl"])
def test_a_file_that_is_not_of_that_package_is_not_built(place, name):
    found, _ = place.fails(place.sdist().rename(place.folder / name))
    assert name in found["wheel-build-sdist"]["found"]


def test_a_distribution_that_is_not_whole_is_not_built(place):
    sdist = place.sdist()
    sdist.write_bytes(sdist.read_bytes()[:200])
    found, _ = place.fails(sdist)
    assert str(sdist) in found["wheel-build-sdist"]["found"]


def test_an_interpreter_that_does_not_answer_is_told_without_its_control_characters(
        place, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nprintf 'no \\033[2J%05000d' 0 >&2\nexit 1\n")
    broken.chmod(0o755)
    sdist, place.python = place.sdist(), str(broken)
    found, _ = place.fails(sdist)
    said = found["wheel-build-requires"]["found"]
    assert "no \\x1b[2J000" in said
    assert len(said) < 2500


def test_a_host_without_compilers_is_told_what_to_install(place, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found, _ = place.fails(place.sdist())
    told = found["wheel-build-no-compiler"]
    assert "no cc or gcc, no c++ or g++" in told["found"]
    assert "build-essential" in told["remedy"]
    assert told["needs_root"] is True


def test_a_compiler_that_the_row_names_is_the_one_looked_for(place):
    found, _ = place.fails(place.sdist(), row={"environment": {"CXX": "clang++-of-the-moon"}})
    assert "no clang++-of-the-moon" in found["wheel-build-no-compiler"]["found"]


# CUDA's own compiler. No host has a CUDA 99.


def toolkit(folder, version, headers="include"):
    (folder / "bin").mkdir(parents=True)
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text("#!/bin/sh\necho Cuda compilation tools, release %s, V%s.1\n" % (
        version, version))
    nvcc.chmod(0o755)
    if headers:
        (folder / headers).mkdir(parents=True)
        (folder / headers / "cuda_runtime.h").write_text("")
    return folder


CUDA = {"cuda": {"wanted": "99.4", "least": ""}}


@pytest.mark.parametrize(("versions", "chosen"), [
    (("99.4", "99.3"), "99.4"), (("99.1", "99.3"), "99.3"), (("98.4", "99.0"), "99.0")])
def test_the_toolkit_nearest_to_torchs_is_taken(place, tmp_path, monkeypatch, versions, chosen):
    homes = {version: toolkit(tmp_path / version, version) for version in versions}
    for variable, version in zip(("CUDA_HOME", "CUDA_PATH"), versions):
        monkeypatch.setenv(variable, str(homes[version]))
    seen = json.loads(inside(place.build(place.sdist(SEEN), **CUDA), "tiny/seen.json"))
    assert seen["env"]["CUDA_HOME"] == str(homes[chosen])
    assert seen["env"]["PATH"].split(":")[0] == str(homes[chosen] / "bin")


def test_the_row_may_say_where_cuda_is(place, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "host", "99.4")))
    own = toolkit(tmp_path / "row", "99.1", headers="targets/x86_64-linux/include")
    path = place.build(place.sdist(SEEN), row={"environment": {"CUDA_HOME": str(own)}}, **CUDA)
    assert json.loads(inside(path, "tiny/seen.json"))["env"]["CUDA_HOME"] == str(own)


@pytest.mark.parametrize(("version", "headers", "cuda", "name", "says"), [
    ("98.4", "include", {"wanted": "99.4", "least": ""}, "wheel-build-cuda", "CUDA 98.4"),
    ("99.2", "include", {"wanted": "99.4", "least": "99.3"}, "wheel-build-cuda", "99.3 or newer"),
    ("99.4", "", {"wanted": "99.4", "least": ""}, "wheel-build-no-compiler", "cuda_runtime.h"),
])
def test_a_toolkit_that_does_not_go_with_torch_is_refused_before_the_build(
        place, tmp_path, version, headers, cuda, name, says):
    home = toolkit(tmp_path / "cuda", version, headers)
    found, _ = place.fails(place.sdist(), row={"environment": {"CUDA_HOME": str(home)}}, cuda=cuda)
    assert says in found[name]["found"] + found[name]["wanted"]
    assert "99.4" in found[name]["remedy"]
    assert not place.log.exists()
