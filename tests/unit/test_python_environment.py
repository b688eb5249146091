# SPDX-License-Identifier: Apache-2.0
"""A real virtual environment, and wheels that this test makes, from a folder that is the index."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import zipfile

import pytest
import python_environment


class Index:
    """A folder of wheels, and locks that name them with their hashes."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()

    def add(self, name, version):
        """Put a wheel there that can be imported, and give its line of a lock."""
        path = self.folder / ("%s-%s-py3-none-any.whl" % (name, version))
        info = "%s-%s.dist-info" % (name, version)
        files = {
            name + ".py": "VERSION = %r\n" % version,
            info + "/METADATA": "Metadata-Version: 2.1\nName: %s\nVersion: %s\n" % (name, version),
            info + "/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
                             "Tag: py3-none-any\n",
        }
        record = "".join(
            "%s,sha256=%s,%d\n" % (
                file,
                base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
                .rstrip(b"=").decode(), len(text))
            for file, text in files.items())
        files[info + "/RECORD"] = record + info + "/RECORD,,\n"
        with zipfile.ZipFile(path, "w") as wheel:
            for file, text in files.items():
                wheel.writestr(file, text)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return "%s==%s \\\n    --hash=sha256:%s\n" % (name, version, digest)


@pytest.fixture
def index(tmp_path, monkeypatch):
    index = Index(tmp_path / "index")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index.folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return index


class Environment:
    """One path, and the module that brings it."""

    def __init__(self, path, run_module):
        self.path, self.run_module = path, run_module

    def bring(self, lock, scripts=None, **how):
        return self.run_module(python_environment.main, path=str(self.path), lock=lock,
                               scripts=scripts or {}, **how)

    def brought(self, lock, scripts=None):
        result = self.bring(lock, scripts)
        assert result.get("changed") is True, result
        return result

    def remove(self, **how):
        return self.run_module(python_environment.main, path=str(self.path), state="absent", **how)

    def version(self, name):
        """What the environment's own Python imports, or None."""
        ran = subprocess.run(
            [str(self.path / "bin" / "python"), "-I", "-c", "import %s as it; print(it.VERSION)"
             % name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=60)
        return ran.stdout.strip() or None

    def disk(self):
        return {str(path): path.lstat().st_mtime_ns for path in self.path.rglob("*")
                if "__pycache__" not in str(path)}


@pytest.fixture
def environment(tmp_path, run_module):
    return Environment(tmp_path / "venvs" / "tool", run_module)


def test_the_life_of_an_environment(environment, index):
    first = index.add("first_light", "1.0") + index.add("second_light", "1.0")
    told = environment.bring(first, {"launch.py": "print('one')\n"}, check=True, diff=True)
    assert told["changed"] is True
    assert told["diff"]["before"] == ""
    assert told["diff"]["after"] == first + "launch.py\n"
    assert not environment.path.exists()

    result = environment.brought(first, {"launch.py": "print('one')\n"})
    assert result["path"] == str(environment.path)
    assert result["elapsed_s"] > 0
    assert environment.version("first_light") == "1.0"
    script = environment.path / "bin" / "launch.py"
    assert (script.read_text(), script.stat().st_mode & 0o777) == ("print('one')\n", 0o755)

    was = environment.disk()
    again = environment.bring(first, {"launch.py": "print('one')\n"}, diff=True)
    assert (again["changed"], again["elapsed_s"]) == (False, 0.0)
    assert "diff" not in again
    assert environment.disk() == was

    # A script is no reason to ask the index for anything.
    for wheel in index.folder.iterdir():
        wheel.unlink()
    environment.brought(first, {"other.py": "print('two')\n"})
    assert (environment.path / "bin" / "other.py").read_text() == "print('two')\n"
    assert not script.exists()
    assert environment.version("first_light") == "1.0"

    second = "# Locked by hand.\n" + index.add("First.Light", "2.0")
    told = environment.bring(second, check=True, diff=True)
    assert told["diff"]["before"] == first + "other.py\n"
    assert environment.version("first_light") == "1.0"
    environment.brought(second)
    assert environment.version("second_light") is None, "the lock names it no longer"
    assert not (environment.path / "bin" / "other.py").exists()
    assert environment.bring(second)["changed"] is False

    assert environment.remove(check=True)["changed"] is True
    assert environment.path.exists()
    assert environment.remove(diff=True)["diff"]["after"] == ""
    assert not environment.path.exists()
    assert environment.remove()["changed"] is False


def test_what_pip_refuses_changes_nothing_and_the_next_run_repairs(environment, index):
    right = index.add("first_light", "1.0")
    environment.brought(right)
    newer = index.add("first_light", "2.0")
    wrong = newer[:-5] + "0000\n"
    failed = environment.bring(wrong)
    assert failed["failed"] is True
    assert "pip could not install" in failed["msg"]
    assert "DO NOT MATCH THE HASHES" in failed["msg"]
    assert environment.version("first_light") == "1.0", "what ran goes on running"
    assert environment.bring(right, check=True)["changed"] is True, "it is not known to be whole"
    environment.brought(newer)
    assert environment.version("first_light") == "2.0"
    assert environment.bring(newer)["changed"] is False

    bare = environment.bring("first_light==1.0\n")
    assert bare["failed"] is True
    assert "hashes" in bare["msg"].lower()
    for wheel in index.folder.iterdir():
        wheel.unlink()
    missing = environment.bring(right)
    assert "No matching distribution found for first_light==1.0" in missing["msg"]
    assert "PIP_INDEX_URL" in missing["msg"]
    assert environment.version("first_light") == "2.0"


def test_an_environment_that_was_interrupted_is_finished(environment, index):
    lock = index.add("first_light", "1.0")
    # As far as a killed run may have come: an interpreter, and nothing else.
    subprocess.run([os.sys.executable, "-m", "venv", "--without-pip", str(environment.path)],
                   check=True, timeout=60)
    assert environment.bring(lock, check=True)["changed"] is True
    environment.brought(lock)
    assert environment.version("first_light") == "1.0"
    for marker in ("", "nonsense", "[]", '{"lock": 5}'):
        (environment.path / python_environment.MARKER).write_text(marker)
        assert environment.bring(lock, check=True, diff=True)["changed"] is True
    (environment.path / "bin" / "python").unlink()
    environment.brought(lock)
    assert environment.version("first_light") == "1.0"


def test_the_callers_environment_does_not_change_where_packages_go(
        environment, index, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    lock = index.add("first_light", "1.0")
    with zipfile.ZipFile(index.folder / "first_light-1.0-py3-none-any.whl") as wheel:
        wheel.extractall(elsewhere)
    # Already there, for a Python that looks there.
    monkeypatch.setenv("PYTHONPATH", str(elsewhere))
    for variable in ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setenv("PIP_USER", "1")
    environment.brought(lock)
    assert environment.version("first_light") == "1.0"
    assert (elsewhere / "first_light.py").exists()
    assert [path.name for path in tmp_path.glob("PIP_*")] == []


def test_pip_goes_out_as_the_host_does(environment, index, tmp_path, monkeypatch):
    lock = index.add("first_light", "1.0")
    # Not by the settings of whoever calls it: by those that the role left.
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    settings = tmp_path / "root" / "network" / "environment"
    settings.parent.mkdir(parents=True)
    settings.write_text("PIP_NO_INDEX=1\n")
    failed = environment.bring(lock, network_root=str(tmp_path / "root"))
    assert "No matching distribution found" in failed["msg"]
    assert "network_access_pip_indexes" in failed["msg"]
    settings.write_text("PIP_NO_INDEX=1\nPIP_FIND_LINKS=%s\nPIP_TARGET=%s\n" % (
        index.folder, tmp_path / "elsewhere"))
    result = environment.bring(lock, network_root=str(tmp_path / "root"))
    assert result.get("changed") is True, result
    assert environment.version("first_light") == "1.0"
    assert environment.bring(lock)["changed"] is False, "the way is no part of what is there"


def test_a_path_that_cannot_be_written_is_named(environment):
    environment.path.parent.write_text("a file where the folder should be")
    failed = environment.bring("")
    assert failed["failed"] is True
    assert str(environment.path.parent) in failed["msg"]


def test_a_link_is_not_removed_and_that_is_said(environment, tmp_path):
    (tmp_path / "venvs").mkdir()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "firstlight.json").touch()
    environment.path.symlink_to(tmp_path / "kept")
    failed = environment.remove()
    assert failed["failed"] is True
    assert str(environment.path) in failed["msg"]
    assert "symbolic link" in failed["msg"]
    assert (tmp_path / "kept").is_dir()


def test_a_directory_that_is_no_environment_is_not_removed(environment):
    environment.path.mkdir(parents=True)
    (environment.path / "letters").write_text("dear")
    (environment.path / "pyvenv.cfg").touch()  # somebody else's
    failed = environment.remove()
    assert failed["failed"] is True
    assert "not a virtual environment" in failed["msg"]
    assert (environment.path / "letters").read_text() == "dear"


def test_an_environment_whose_python_is_gone_is_made_anew(environment):
    assert environment.bring("")["changed"] is True
    for python in list((environment.path / "bin").glob("python*")):
        python.unlink()
        python.symlink_to("/usr/bin/python0.1")  # as an upgrade of the host leaves it
    assert environment.bring("")["changed"] is True
    assert os.path.exists(environment.path / "bin" / "python3")
    assert environment.bring("")["changed"] is False


def test_an_environment_of_another_python_is_made_anew():
    wanted = {"python": "3.11", "lock": "", "scripts": {}}
    assert python_environment.plan(wanted, dict(wanted, python="3.9"), True)[0] == "create"
    assert python_environment.plan(wanted, dict(wanted), True) == []
