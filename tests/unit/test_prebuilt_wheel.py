# SPDX-License-Identifier: Apache-2.0
"""A wheel gets into a real environment, works there, or leaves everything as it was."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import pathlib
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import time

import prebuilt_wheel
import prebuilt_wheel_info
import pytest
from wheels import builder

from ansible.module_utils.firstlight.wheels import install, installed

PACKAGE = "tiny-kernel"
ROW = builder.row(PACKAGE, kernel=builder.proof(PACKAGE))


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """An environment to copy: its path is told by nothing in it but pyvenv.cfg and its scripts."""
    folder = tmp_path_factory.mktemp("model")
    python = builder.environment(folder / "env", wheels=[builder.torch(folder, "2.8.0+cu128")])
    # As `python -m venv` does it; pip starts sooner.
    subprocess.run([python, "-m", "compileall", "-q", site(folder / "env")], check=True)
    return folder / "env"


@pytest.fixture
def env(model, tmp_path):
    """An environment of the test's own."""
    shutil.copytree(model, tmp_path / "env", symlinks=True)
    return tmp_path / "env"


@pytest.fixture
def python(env):
    return str(env / "bin" / "python")


@pytest.fixture
def bring(run_module, tmp_path, python):
    """Run the module for a wheel at a path."""
    def brought(path, row=ROW, **options):
        modes = {key: options.pop(key) for key in ("check", "diff") if key in options}
        return run_module(prebuilt_wheel.main, **modes, **{
            "root": str(tmp_path / "root"), "python": python, "row": row, "probe_s": 60,
            "wheel": candidate(path), **options})

    return brought


def candidate(path, **changes):
    return {"file": os.path.basename(path), "url": "", "path": str(path),
            "sha256": builder.sha256(path), "size": os.stat(path).st_size, "requires_python": "",
            "yanked": "", "source": "the test", "built_for": {}, **changes}


def good(folder, version="2.0", **options):
    options.setdefault("extension", builder.KERNEL)
    return builder.wheel(folder, PACKAGE, version, **options)


def tree(folder, times=True):
    """Everything below a folder: kind, mode, time, content."""
    found = {}
    for path in sorted(pathlib.Path(folder).rglob("*")):
        status = path.lstat()
        what = (os.readlink(path) if path.is_symlink() else
                "folder" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest())
        found[str(path.relative_to(folder))] = (
            what, stat.S_IMODE(status.st_mode), status.st_mtime_ns if times else 0)
    return found


def ids(result):
    return [one["id"] for one in result["findings"]]


def left_over(tmp_path):
    """What is under the root beside the wheelhouse and the lock."""
    root = tmp_path / "root"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*")
                  if path.is_file() and path.relative_to(root).parts[0] != "wheels"
                  and path.suffix != ".lock") + sorted(
        path.name for path in root.glob("wheels-aside"))


def run(python, code):
    ran = subprocess.run([python, "-I", "-B", "-c", code], capture_output=True, text=True,
                         timeout=60)
    return ran.stdout.strip()


# The way that it should go.


def test_a_wheel_is_fetched_installed_and_proved_and_then_left_alone(bring, env, tmp_path):
    before = tree(env)
    path = good(tmp_path / "from", requires=["torch>=2.8,<2.9"])
    told = bring(path, check=True, diff=True)
    assert (told["changed"], told["version"], told["replaced"]) == (True, "2.0", "")
    assert told["diff"] == {"before": "", "after": "tiny-kernel 2.0 (%s)\n" % path.name}
    assert tree(env) == before
    assert not (tmp_path / "root").exists()

    result = bring(path, diff=True)
    assert (result["changed"], result["version"], result["replaced"]) == (True, "2.0", "")
    assert result["imports"]["state"] == "ok" and result["kernel"]["state"] == "ran"
    assert result["kernel"]["error"] == 0.0
    assert result["rolled_back"] is False and result["findings"] == []
    assert (tmp_path / "root/wheels" / path.name).is_file()
    assert left_over(tmp_path) == []

    after = tree(env)
    assert {name for name in after if name in before and after[name] != before[name]} == {
        str(site(env).relative_to(env))}, "only the time of that folder"
    new = set(after) - set(before)
    recorded = {str((site(env) / line.split(",")[0]).relative_to(env)) for line in (
        site(env) / "tiny_kernel-2.0.dist-info/RECORD").read_text().splitlines()}
    assert {name for name in new if after[name][0] != "folder"} == recorded

    again = bring(path)
    assert (again["changed"], again["replaced"], again["kernel"]["state"]) == (False, "", "ran")
    assert bring(path, check=True)["changed"] is False
    assert tree(env) == after


def site(env):
    return env / "lib" / ("python%d.%d" % sys.version_info[:2]) / "site-packages"


def test_another_version_takes_the_place_of_the_one_that_is_there(bring, env, python, tmp_path):
    old = good(tmp_path / "old", "1.0", files={"tiny_kernel/only_old.py": "x = 1\n"})
    bring(old)
    new = good(tmp_path / "new")
    told = bring(new, check=True, diff=True)
    assert told["diff"] == {"before": "tiny-kernel 1.0\n",
                            "after": "tiny-kernel 2.0 (%s)\n" % new.name}
    result = bring(new)
    assert (result["changed"], result["replaced"], result["version"]) == (True, "1.0", "2.0")
    assert not list(site(env).rglob("*only_old*"))
    assert run(python, "import tiny_kernel; print(tiny_kernel.__version__)") == "2.0"
    assert bring(new)["changed"] is False
    assert bring(old)["replaced"] == "2.0", "and back, by its name"


def test_the_same_version_built_otherwise_is_another_wheel(bring, python, tmp_path):
    bring(good(tmp_path / "one", files={"tiny_kernel/made.py": "by = 1\n"}))
    result = bring(good(tmp_path / "two", files={"tiny_kernel/made.py": "by = 2\n"}))
    assert (result["changed"], result["replaced"]) == (True, "2.0")
    assert run(python, "import tiny_kernel.made as made; print(made.by)") == "2"


def test_a_damaged_package_is_installed_anew(bring, env, tmp_path):
    path = good(tmp_path)
    bring(path)
    (site(env) / "tiny_kernel/_kernel.abi3.so").unlink()
    result = bring(path)
    assert (result["changed"], result["kernel"]["state"]) == (True, "ran")


def test_scripts_data_and_headers_find_their_places(bring, env, tmp_path):
    path = good(tmp_path, files={
        "tiny_kernel-2.0.data/scripts/tiny-tool": "#!python\nprint('tool')\n",
        "tiny_kernel-2.0.data/data/share/tiny/notes": "n",
        "tiny_kernel-2.0.data/headers/tiny.h": "/* */",
        "tiny_kernel/cli.py": "def main():\n    print('cli')\n",
        "tiny_kernel-2.0.dist-info/entry_points.txt":
            "[console_scripts]\ntiny-cli = tiny_kernel.cli:main\n"})
    bring(path)
    for tool, says in (("tiny-tool", "tool"), ("tiny-cli", "cli")):
        ran = subprocess.run([env / "bin/python", env / "bin" / tool], capture_output=True,
                             text=True, timeout=60)
        assert ran.stdout == says + "\n", ran.stderr
    assert (env / "share/tiny/notes").is_file()
    before = tree(env)
    bad = builder.wheel(tmp_path / "bad", PACKAGE, "3.0", broken="import_error", files={
        "tiny_kernel-3.0.data/scripts/tiny-tool": "#!python\nprint('other')\n",
        "tiny_kernel-3.0.data/scripts/tiny-more": "#!python\n",
        "tiny_kernel-3.0.data/data/share/tiny/more": "n",
        "tiny_kernel-3.0.data/data/share/other/more": "n",
        "tiny_kernel-3.0.data/headers/other.h": "/* */",
        "tiny_kernel-3.0.dist-info/entry_points.txt":
            "[console_scripts]\ntiny-cli = tiny_kernel:main\ntiny-other = tiny_kernel:main\n"})
    assert bring(bad)["rolled_back"] is True
    assert tree(env) == before


def test_only_into_the_wheelhouse(bring, env, tmp_path):
    before, path = tree(env), good(tmp_path)
    told = bring(path, state="fetched", python="", row={}, check=True, diff=True)
    assert told["changed"] is True and not (tmp_path / "root").exists()
    result = bring(path, state="fetched", python="", row={}, wheelhouse=str(tmp_path / "house"))
    assert (result["changed"], result["file"]) == (True, path.name)
    assert (tmp_path / "house" / path.name).is_file()
    again = bring(path, state="fetched", python="", row={}, wheelhouse=str(tmp_path / "house"))
    assert again["changed"] is False
    assert tree(env) == before


def test_pip_is_told_nothing_by_the_caller(bring, env, python, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    for name, value in {"PIP_TARGET": elsewhere, "PIP_PREFIX": elsewhere, "PIP_USER": "1",
                        "PIP_REQUIRE_VIRTUALENV": "1", "PIP_DRY_RUN": "1", "PIP_NO_COMPILE": "1",
                        "PIP_CONSTRAINT": tmp_path / "none", "PIP_CONFIG_FILE": tmp_path / "conf",
                        "PYTHONPATH": elsewhere, "PYTHONPYCACHEPREFIX": elsewhere}.items():
        monkeypatch.setenv(name, str(value))
    (tmp_path / "conf").write_text("[global]\ntarget = %s\n" % elsewhere)
    (env / "pip.conf").write_text("[install]\nroot = %s\n" % elsewhere)
    assert bring(good(tmp_path))["changed"] is True
    assert not elsewhere.exists()
    assert (site(env) / "tiny_kernel").is_dir()


# What is refused before anything changes.


@pytest.mark.parametrize("fault", sorted(set(builder.BROKEN) - set(builder.IMPORTS)))
def test_a_wheel_that_is_no_good_changes_nothing(bring, env, tmp_path, fault):
    bring(good(tmp_path / "old", "1.0"))
    before = tree(env)
    path = builder.wheel(tmp_path / "bad", PACKAGE, "2.0", broken=fault)
    result = bring(path)
    assert result["failed"] and result["rolled_back"] is False
    assert tree(env) == before
    assert not pathlib.Path("/tmp/firstlight-escaped").exists()
    assert left_over(tmp_path) == []
    assert bring(path, check=True)["failed"], "a check reads what is there already"


def test_a_file_that_is_not_the_one_that_was_promised(bring, env, tmp_path):
    before, path = tree(env), good(tmp_path)
    result = bring(path, wheel=candidate(path, sha256="0" * 64))
    assert result["failed"] and "0" * 64 in result["msg"]
    assert tree(env) == before


@pytest.mark.parametrize("state", ["installed", "fetched"])
def test_a_file_of_which_no_hash_is_known(bring, tmp_path, state):
    path = good(tmp_path)
    for check in (True, False):
        result = bring(path, wheel=candidate(path, sha256=""), state=state, check=check)
        assert ids(result) == ["wheel-no-hash"], check
    assert not (tmp_path / "root/wheels").exists()


def test_what_a_wheel_says_of_itself_is_short_and_moves_no_cursor(bring, env, tmp_path):
    many = bring(good(tmp_path / "many", requires=["p%d" % one for one in range(3000)]))
    assert ids(many) == ["wheel-needs"] and "and 2988 more" in many["findings"][0]["found"]
    assert len(many["msg"]) < 3000
    odd = bring(good(tmp_path / "odd", requires=["what is \x1b[2J this", "x" * 10**6]))
    assert ids(odd) == ["wheel-needs", "wheel-needs-unread"], odd["findings"]
    assert max(len(one["found"]) for one in odd["findings"]) < 1500
    assert not any("\x1b" in str(one) for one in odd["findings"])
    (site(env) / "pip/__init__.py").write_text(
        "import sys\n__version__ = '24.0'\n"
        "if 'install' in sys.argv: sys.exit('\x1b[2J no pip today' + 'x' * 10**6)\n")
    said = bring(good(tmp_path / "new"))
    assert ids(said) == ["wheel-pip-failed"] and "no pip today" in said["findings"][0]["found"]
    assert "\x1b" not in said["findings"][0]["found"] and len(said["msg"]) < 3000


def test_a_wheel_of_another_python_or_machine(bring, env, tmp_path):
    before = tree(env)
    for tags in ("cp38-cp38-linux_x86_64", "cp311-cp311-win_amd64", "cp311-cp311-linux_mips"):
        result = bring(builder.wheel(tmp_path, PACKAGE, "2.0", tags=tags))
        assert ids(result) == ["wheel-tags"], result["msg"]
    assert tree(env) == before


def test_what_a_wheel_requires_is_told_all_at_once_and_torch_first(bring, env, tmp_path):
    before = tree(env)
    path = good(tmp_path, requires_python="<3", requires=[
        "einops", "torch==2.9.*", "ninja>1; python_version > '3'", "packaging; extra == 'dev'",
        "pywin32; sys_platform == 'win32'"])
    result = bring(path)
    assert ids(result) == ["wheel-python", "wheel-needs"]
    needs = result["findings"][1]
    assert needs["found"] == ("needs torch ==2.9.*, there is 2.8.0+cu128; needs einops, there is "
                              "none; needs ninja >1, there is none")
    assert "'einops' 'ninja>1'" in needs["remedy"]
    assert tree(env) == before


def test_a_requirement_in_another_version_is_a_warning(bring, env, tmp_path):
    result = bring(good(tmp_path, requires=["pip>900", "torch", "what is this"]))
    assert result["changed"] is True
    assert ids(result) == ["wheel-needs-other", "wheel-needs-unread"]
    assert {one["severity"] for one in result["findings"]} == {"warning"}


@pytest.mark.parametrize("target", [
    "tiny_kernel-2.0.data/scripts/python", "tiny_kernel-2.0.data/data/pyvenv.cfg",
    "torch/__init__.py", "pip/__init__.py"])
def test_what_others_have_is_not_overwritten(bring, env, tmp_path, target):
    before = tree(env)
    result = bring(good(tmp_path, files={target: "mine now"}))
    assert ids(result) == ["wheel-overwrites"], result["msg"]
    assert tree(env) == before


def test_files_that_packages_share_are_shared(bring, env, tmp_path):
    text = (site(env) / "torch/version.py").read_text()
    assert bring(good(tmp_path, files={"torch/version.py": text}))["changed"] is True


def test_what_nobody_has_makes_room(bring, env, tmp_path):
    (site(env) / "tiny_kernel").mkdir()
    (site(env) / "tiny_kernel/__init__.py").write_text("left over\n")
    assert bring(good(tmp_path))["changed"] is True


@pytest.mark.parametrize("target, there", [
    ("other/__init__.py", "egg"), ("elses.py", "nobody"), ("easy-install.pth", "nobody"),
    ("tiny_kernel.pth", "nobody"), ("sitecustomize.py", "nobody"), ("usercustomize.py", "nobody")])
def test_what_no_record_has_is_not_overwritten_either(bring, env, tmp_path, target, there):
    """Packages from before there was RECORD, and what the site has of its own."""
    (site(env) / target).parent.mkdir(exist_ok=True)
    (site(env) / target).write_text("# theirs\n")
    if there == "egg":
        info = site(env) / "other-1.0.egg-info"
        info.mkdir()
        (info / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
        (info / "installed-files.txt").write_text("../other/__init__.py\nPKG-INFO\n")
    before = tree(env)
    result = bring(good(tmp_path, files={target: "# mine now\n"}))
    assert ids(result) == ["wheel-overwrites"], result["msg"]
    assert ("of other" in result["msg"]) == (there == "egg")
    assert tree(env) == before


@pytest.mark.parametrize("new", ["without it", "with another"])
def test_what_another_package_shares_is_not_removed(bring, env, tmp_path, new):
    text = (site(env) / "torch/version.py").read_text()
    bring(good(tmp_path / "old", "1.0", files={"torch/version.py": text}))
    before = tree(env)
    files = {"torch/version.py": "other = True\n"} if new == "with another" else {}
    result = bring(good(tmp_path / "new", files=files))
    assert ids(result) == ["wheel-overwrites" if files else "wheel-removes-shared"]
    assert "torch/version.py of torch" in result["msg"]
    assert tree(env) == before


def test_environments_that_cannot_be(bring, tmp_path):
    path = good(tmp_path)
    assert ids(bring(path, python=str(tmp_path / "none/bin/python"))) == [
        "wheel-environment-missing"]
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no\nexit 3\n")
    broken.chmod(0o755)
    assert ids(bring(path, python=str(broken))) == ["wheel-environment-broken"]
    assert not (tmp_path / "root/wheels").exists(), "nothing was fetched for it"


def test_environments_that_others_manage(bring, tmp_path):
    path = good(tmp_path / "new")
    old = good(tmp_path / "old", "1.0")
    conda = builder.environment(tmp_path / "conda", wheels=[old], conda=[PACKAGE])
    before = tree(tmp_path / "conda")
    result = bring(path, python=str(conda))
    assert ids(result) == ["wheel-conda"] and "conda remove" in result["msg"]
    assert tree(tmp_path / "conda") == before
    assert not (tmp_path / "root/wheels").exists(), "nothing was fetched for it"


@pytest.mark.parametrize("change, wanted", [
    ({"managed": "distribution"}, "wheel-managed"),
    ({"version": "3.7.16"}, "wheel-environment-old"),
    ({"writable": False, "why_not_writable": "it is mounted read-only"}, "wheel-not-writable")])
def test_environments_of_the_distribution_and_read_only_ones(
        bring, env, tmp_path, monkeypatch, change, wanted):
    read = prebuilt_wheel.environment.read
    monkeypatch.setattr(prebuilt_wheel.environment, "read",
                        lambda *args: {**read(*args), **change})
    before = tree(env)
    assert ids(bring(good(tmp_path))) == [wanted]
    assert tree(env) == before and not (tmp_path / "root/wheels").exists()


def test_a_package_without_a_list_of_its_files(bring, env, tmp_path):
    bring(good(tmp_path / "old", "1.0"))
    (site(env) / "tiny_kernel-1.0.dist-info/RECORD").unlink()
    before = tree(env)
    assert ids(bring(good(tmp_path / "new"))) == ["wheel-not-removable"]
    assert tree(env) == before


@pytest.mark.parametrize("source", ["elsewhere", "gone"])
def test_a_package_that_is_a_link_to_its_source(bring, env, python, tmp_path, source):
    """`setup.py develop`: pip goes by the link, and would remove it with its line of a .pth."""
    src = tmp_path / "src"
    (src / "tiny_kernel.egg-info").mkdir(parents=True)
    (src / "tiny_kernel.py").write_text("__version__ = '1.0'\n")
    (src / "tiny_kernel.egg-info/PKG-INFO").write_text(
        "Metadata-Version: 2.1\nName: tiny-kernel\nVersion: 1.0\n")
    (site(env) / "tiny-kernel.egg-link").write_text("%s\n.\n" % src)
    (site(env) / "easy-install.pth").write_text("%s\n/opt/other\n" % src)
    assert run(python, "import tiny_kernel; print(tiny_kernel.__version__)") == "1.0"
    if source == "gone":
        shutil.rmtree(src)
    before = tree(tmp_path / "env")
    result = bring(good(tmp_path / "new"))
    assert ids(result) == ["wheel-not-removable"] and "egg-link" in result["msg"]
    assert tree(env) == before and result["rolled_back"] is False


def test_a_package_of_an_environment_whose_path_begins_alike(bring, env, python, tmp_path):
    """pip compares texts, and takes /opt/env-shared for a part of /opt/env."""
    other = tmp_path / "env-shared"
    builder.unpack(good(tmp_path / "old", "1.0"), other)
    (site(env) / "shared.pth").write_text("%s\n" % other)
    before = tree(env), tree(other)
    result = bring(good(tmp_path / "new"))
    assert ids(result) == ["wheel-not-removable"] and str(other) in result["msg"]
    assert (tree(env), tree(other)) == before


def test_one_that_comes_before_the_environments_own(bring, env, tmp_path):
    bring(good(tmp_path / "old", "1.0"))
    builder.unpack(good(tmp_path / "older", "0.9"), tmp_path / "first")
    (site(env) / "first.pth").write_text(
        "import sys; sys.path.insert(0, %r)\n" % str(tmp_path / "first"))
    before = tree(env)
    result = bring(good(tmp_path / "new"))
    assert ids(result) == ["wheel-installed-twice"] and str(tmp_path / "first") in result["msg"]
    assert tree(env) == before


@pytest.mark.parametrize("there", [True, False])
def test_packages_that_lie_elsewhere_by_a_link(bring, env, tmp_path, there):
    """pip would never remove what it put there, so that each version lay beside the last."""
    real = tmp_path / "elsewhere"
    shutil.move(site(env), real)
    site(env).symlink_to(real)
    if there:
        builder.unpack(good(tmp_path / "old", "1.0"), real)
    before = tree(real)
    result = bring(good(tmp_path / "new"))
    assert ids(result) == ["wheel-site-linked"] and str(real) in result["msg"]
    assert tree(real) == before


@pytest.mark.parametrize("kind", ["console_scripts", "gui_scripts", "distutils"])
def test_programs_that_pip_removes_by_their_names_come_back(bring, env, tmp_path, kind):
    name = "tiny_kernel-1.0.dist-info/" + (
        "scripts/tiny-tool" if kind == "distutils" else "entry_points.txt")
    text = "#!python\n" if kind == "distutils" else "[%s]\ntiny-tool = tiny_kernel:main\n" % kind
    builder.unpack(good(tmp_path / "old", "1.0", files={name: text}), site(env))
    (env / "bin/tiny-tool").write_text("#!/bin/sh\n# in no list of files\n")
    before = tree(env)
    bad = builder.wheel(tmp_path / "bad", PACKAGE, "2.0", broken="import_error")
    assert bring(bad)["rolled_back"] is True
    assert tree(env) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="root's files are made by root")
@pytest.mark.parametrize("uid, name", [(1234567, "#1234567"), (1, pwd.getpwuid(1).pw_name)])
def test_root_leaves_no_files_in_somebody_elses_environment(bring, env, tmp_path, uid, name):
    os.chown(site(env), uid, uid)
    before = tree(env)
    for check in (True, False):
        result = bring(good(tmp_path), check=check)
        assert ids(result) == ["wheel-owner"] and "ansible_become_user: " + name in result["msg"]
    assert tree(env) == before and not (tmp_path / "root/wheels").exists()


def test_a_package_that_is_recorded_twice(bring, env, tmp_path):
    bring(good(tmp_path / "old", "1.0"))
    shutil.copytree(site(env) / "tiny_kernel-1.0.dist-info",
                    site(env) / "tiny_kernel-0.9.dist-info")
    before = tree(env)
    assert ids(bring(good(tmp_path / "new"))) == ["wheel-installed-twice"]
    assert tree(env) == before


def test_a_record_that_leads_out_of_the_environment(bring, env, tmp_path):
    bring(good(tmp_path / "old", "1.0"))
    dear = tmp_path / "dear"
    dear.write_text("dear")
    with (site(env) / "tiny_kernel-1.0.dist-info/RECORD").open("a") as record:
        record.write("%s,,\n" % os.path.relpath(dear, site(env)))
    before = tree(env)
    assert ids(bring(good(tmp_path / "new"))) == ["wheel-record-outside"]
    assert tree(env) == before and dear.read_text() == "dear"


def test_a_folder_of_the_package_that_is_a_link(bring, env, tmp_path):
    bring(good(tmp_path / "old", "1.0"))
    (site(env) / "tiny_kernel").rename(tmp_path / "elsewhere")
    (site(env) / "tiny_kernel").symlink_to(tmp_path / "elsewhere")
    before = tree(env), tree(tmp_path / "elsewhere")
    assert ids(bring(good(tmp_path / "new"))) == ["wheel-not-kept"]
    assert (tree(env), tree(tmp_path / "elsewhere")) == before
    assert left_over(tmp_path) == []


def test_a_disk_without_room(bring, env, tmp_path, monkeypatch):
    bring(good(tmp_path / "old", "1.0"))
    before = tree(env)
    monkeypatch.setattr(installed, "RESERVE", 2**60)
    result = bring(good(tmp_path / "new"))
    assert ids(result) == ["wheel-no-space"] and result["rolled_back"] is False
    assert tree(env) == before and left_over(tmp_path) == []


# Without a pip of its own.


@pytest.fixture
def bare(tmp_path):
    """An environment as uv makes it."""
    return builder.environment(tmp_path / "bare", with_pip=False)


def test_without_any_pip_the_way_to_one_is_told(bring, bare, tmp_path):
    before = tree(tmp_path / "bare")
    result = bring(good(tmp_path), python=str(bare))
    assert ids(result) == ["wheel-no-pip"]
    assert "%s -m ensurepip" % bare in result["msg"]
    assert tree(tmp_path / "bare") == before
    assert ids(bring(good(tmp_path), python=str(bare), check=True)) == ["wheel-no-pip"]
    assert not (tmp_path / "root/wheels").exists(), "nothing was fetched for it"


def test_the_toolbelts_pip_serves_an_environment_without_one(bring, bare, tmp_path):
    toolbelt = builder.environment(tmp_path / "root/venvs/toolbelt")
    before = tree(tmp_path / "root/venvs")
    assert bring(good(tmp_path / "old", "1.0"), python=str(bare))["changed"] is True
    there = tree(tmp_path / "bare")
    assert not [name for name in there if "/pip" in name]
    bad = builder.wheel(tmp_path / "bad", PACKAGE, "2.0", broken="import_error")
    assert bring(bad, python=str(bare))["rolled_back"] is True
    assert tree(tmp_path / "bare") == there
    result = bring(good(tmp_path / "new"), python=str(bare))
    assert (result["replaced"], result["kernel"]["state"]) == ("1.0", "ran")
    assert tree(tmp_path / "root/venvs") == before, "the toolbelt is as it was"
    assert toolbelt.exists()


def test_an_environment_of_uv_and_its_cache(bring, tmp_path):
    """uv links its environments to one cache, where a byte written in place would stay."""
    builder.environment(tmp_path / "root/venvs/toolbelt")
    uv_env = tmp_path / "uv-env"
    options = {**os.environ, "UV_CACHE_DIR": str(tmp_path / "cache"), "UV_LINK_MODE": "hardlink",
               "UV_OFFLINE": "1", "UV_NO_CONFIG": "1"}
    for argv in (["venv", "--python", sys.executable, uv_env],
                 ["pip", "install", "--python", uv_env / "bin/python", "--no-deps",
                  good(tmp_path / "old", "1.0")]):
        subprocess.run(["uv", "--quiet", *argv], env=options, check=True)
    there, cache = tree(uv_env), tree(tmp_path / "cache", times=False)
    assert os.stat(site(uv_env) / "tiny_kernel/__init__.py").st_nlink > 1
    bad = good(tmp_path / "bad", extension=builder.WRONG_KERNEL)
    python = str(uv_env / "bin/python")
    assert bring(bad, python=python)["rolled_back"] is True
    assert tree(uv_env) == there
    result = bring(good(tmp_path / "new"), python=python)
    assert (result["changed"], result["replaced"]) == (True, "1.0")
    assert tree(tmp_path / "cache", times=False) == cache


def test_a_toolbelt_whose_pip_is_too_old(bring, bare, tmp_path):
    toolbelt = tmp_path / "root/venvs/toolbelt/bin/python"
    toolbelt.parent.mkdir(parents=True)
    toolbelt.write_text("#!/bin/sh\nprintf '22.2.1\\n/somewhere\\n'\n")
    toolbelt.chmod(0o755)
    result = bring(good(tmp_path), python=str(bare))
    assert ids(result) == ["wheel-no-pip"] and "22.2.1" in result["msg"]


# What fails is put back.


FAILURES = {
    "wheel-import-failed": {"broken": "import_error"},
    "wheel-import-crashed": {"broken": "segfault"},
    "wheel-import-failed of a Python that starts no more": {
        "files": {"tiny.pth": "import os; os._exit(3)\n"}},
    "wheel-import-failed of one that wrote files before": {"files": {
        "tiny_kernel/__init__.py":
            "import os\nhere = os.path.dirname(__file__)\nos.makedirs(here + '/made/deep')\n"
            "open(here + '/cache.bin', 'w').write('x')\nraise ImportError('no')\n"}},
    "wheel-kernel-failed": {"extension": builder.WRONG_KERNEL},
    "wheel-kernel-crashed": {"extension": builder.CRASHING_KERNEL},
}


@pytest.mark.parametrize("wanted", FAILURES)
@pytest.mark.parametrize("before", ["nothing", "another"])
def test_what_does_not_work_is_put_back(bring, env, python, tmp_path, wanted, before):
    if before == "another":
        bring(good(tmp_path / "old", "1.0", files={"tiny_kernel/deep/er/x.py": "x = 1\n"}))
        os.chmod(site(env) / "tiny_kernel/deep", 0o700)
        (site(env) / "tiny_kernel/deep/link").symlink_to("er/x.py")
    there = tree(env)
    result = bring(good(tmp_path / "new", **{"extension": builder.KERNEL, **FAILURES[wanted]}))
    assert (ids(result), result["rolled_back"]) == ([wanted.split()[0]], True), result["msg"]
    assert tree(env) == there
    assert left_over(tmp_path) == []
    if before == "another":
        assert run(python, builder.proof(PACKAGE) + "print(error)") == "0.0"


def test_a_library_for_something_else_is_put_back_with_the_reason(bring, env, tmp_path):
    there = tree(env)
    result = bring(good(tmp_path, extension=b"\x7fELF not really"))
    assert (ids(result), result["rolled_back"]) == (["wheel-kernel-failed"], True)
    assert "_kernel.abi3.so" in result["msg"]
    assert tree(env) == there


def test_an_import_without_an_end_is_put_back(bring, env, tmp_path):
    there = tree(env)
    result = bring(builder.wheel(tmp_path, PACKAGE, "2.0", broken="hangs"), probe_s=2)
    assert (ids(result), result["rolled_back"]) == (["wheel-import-slow"], True)
    assert tree(env) == there


def test_a_pip_without_an_end_is_ended_and_put_back(bring, env, tmp_path):
    bring(good(tmp_path / "old", "1.0"))
    stops(env, "removed", tmp_path / "stopped")
    there = tree(env)
    result = bring(good(tmp_path / "new"), install_s=6)
    assert (ids(result), result["rolled_back"]) == (["wheel-pip-slow"], True)
    assert tree(env) == there
    assert not alive(int((tmp_path / "stopped").read_text()))


def test_a_pip_that_fails_is_put_back_with_what_it_says(bring, env, tmp_path):
    bring(good(tmp_path / "old", "1.0"))
    (site(env) / "pip/__init__.py").write_text(
        "import sys\n__version__ = '24.0'\nif 'install' in sys.argv: sys.exit('no pip today')\n")
    there = tree(env)
    result = bring(good(tmp_path / "new"))
    assert ids(result) == ["wheel-pip-failed"] and "no pip today" in result["msg"]
    assert tree(env) == there


# Runs that are killed, and runs at once.


FORK = multiprocessing.get_context("fork")


def killed(bring, path, where):
    """Run the module in a process that kills itself at a point, as the kernel would."""
    def run():
        where(lambda: os.kill(os.getpid(), signal.SIGKILL))
        with contextlib.suppress(BaseException):
            bring(path)
        os._exit(0)

    process = FORK.Process(target=run)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL, "it ended before it could be killed"


def before_pip(die):
    kept = installed.Stash.holder
    installed.Stash.holder = lambda self, argv: die() or kept(self, argv)


def while_it_is_kept(die):
    linked, seen = installed._linked, []

    def link(*args):
        seen.append(args)
        return die() if len(seen) == 3 else linked(*args)

    installed._linked = link


def after_it_is_kept(die):
    installed.Transaction.snapshot = lambda self, path: die()


def in_the_proof(die):
    install.environment.prove = lambda *args: die()


def after_the_proof(die):
    done = installed.Stash.done
    installed.Stash.done = lambda self: (done(self), die())


def before_it_is_done(die):
    installed.Stash.done = lambda self: die()


def while_it_is_put_back(die):
    install.environment.prove = lambda *args: (
        {"state": "failed", "why": "it was told to", "seconds": None}, {"state": "none"})
    put, seen = installed._put_file, []

    def put_file(*args):
        seen.append(args)
        return die() if len(seen) == 3 else put(*args)

    installed._put_file = put_file


def when_it_is_put_back(die):
    install.environment.prove = lambda *args: (
        {"state": "failed", "why": "it was told to", "seconds": None}, {"state": "none"})
    settle = installed._settle
    installed._settle = lambda folder: (settle(folder), die())


POINTS = {one.__name__: one for one in (
    while_it_is_kept, after_it_is_kept, before_pip, in_the_proof, before_it_is_done,
    while_it_is_put_back, when_it_is_put_back)}


@pytest.mark.parametrize("point", POINTS)
def test_a_run_that_was_killed_is_put_back_by_the_next(bring, env, tmp_path, point):
    bring(good(tmp_path / "old", "1.0", files={"tiny_kernel/deep/er/x.py": "x = 1\n"}))
    there = tree(env)
    killed(bring, good(tmp_path / "new"), POINTS[point])
    # The next run is about another package, which is refused, so that it changes nothing itself.
    other = builder.wheel(tmp_path / "other", "other", "1.0", tags="cp27-cp27mu-linux_x86_64")
    result = bring(other, builder.row("other"))
    assert ids(result) == ["wheel-tags"], result["msg"]
    assert tree(env) == there
    assert left_over(tmp_path) == []


def test_a_run_that_was_killed_when_all_was_done_is_done(bring, env, tmp_path):
    bring(good(tmp_path / "old", "1.0"))
    new = good(tmp_path / "new")
    killed(bring, new, after_the_proof)
    there = tree(env)
    result = bring(new)
    assert result["version"] == "2.0" and tree(env) == there
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("moment", ["removed", "written", "compiled"])
def test_pip_is_killed_at_its_work_and_so_is_the_run(bring, env, tmp_path, moment):
    """pip itself stops at the point, so that the kill hits it in the middle."""
    bring(good(tmp_path / "old", "1.0", files={"tiny_kernel/deep/er/x.py": "x = 1\n"}))
    stops(env, moment, tmp_path / "stopped")
    there = tree(env)

    def run():
        with contextlib.suppress(BaseException):
            bring(good(tmp_path / "new"))
        os._exit(0)

    process = FORK.Process(target=run)
    process.start()
    wait_for(lambda: (tmp_path / "stopped").exists())
    pip = int((tmp_path / "stopped").read_text())
    process.kill()
    process.join(30)
    os.kill(pip, 0)
    assert tree(env) != there, "pip had changed something"
    told = bring(good(tmp_path / "new"), check=True)
    assert (ids(told), told["changed"]) == (["wheel-half-done"], True)
    other = builder.wheel(tmp_path / "other", "other", "1.0", tags="cp27-cp27mu-linux_x86_64")
    result = bring(other, builder.row("other"))
    assert ids(result) == ["wheel-tags"] and result["rolled_back"] is True, result["msg"]
    assert tree(env) == there
    assert left_over(tmp_path) == []
    wait_for(lambda: not alive(pip))


def stops(env, moment, flag):
    """Have this environment's pip stop for good at a moment."""
    where = {
        "removed": ("pip._internal.operations.install.wheel", "_install_wheel"),
        "written": ("compileall", "compile_file"),
        "compiled": ("pip._internal.operations.install.wheel", "get_csv_rows_for_installed"),
    }[moment]
    (site(env) / "stop.pth").write_text("import stop_here\n")
    (site(env) / "stop_here.py").write_text(
        "import os, sys, time\n"
        "def stop(*args, **options):\n"
        "    with open(%r, 'w') as file: file.write(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name != 'pip._internal.req.req_install': return None\n"
        "        sys.meta_path.remove(self)\n"
        "        import importlib\n"
        "        setattr(importlib.import_module(%r), %r, stop)\n"
        "        return None\n"
        "if 'install' in sys.argv: sys.meta_path.insert(0, Finder())\n" % (str(flag), *where))


def alive(pid):
    with contextlib.suppress(OSError):
        state = pathlib.Path("/proc/%d/stat" % pid).read_text().rpartition(")")[2].split()[0]
        return state not in "ZX"
    return False


def wait_for(what):
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_run_after_a_killed_one_goes_on(bring, tmp_path):
    new = good(tmp_path / "new")
    killed(bring, new, in_the_proof)
    result = bring(new)
    assert result["changed"] is True and result["rolled_back"] is True
    assert ids(result) == ["wheel-half-done"]
    assert bring(new)["changed"] is False


def test_what_was_left_half_done_is_told_and_can_be_put_back_alone(
        bring, env, python, run_module, tmp_path):
    root, there = str(tmp_path / "root"), tree(env)
    killed(bring, good(tmp_path / "new"), in_the_proof)
    assert tree(env) != there

    def told():
        return run_module(prebuilt_wheel_info.main, root=root,
                          environments=[{"python": python}])["half_done"]

    def recover(**options):
        return run_module(prebuilt_wheel.main, root=root, python=python, state="recovered",
                          **options)

    assert told() == [python]
    assert recover(check=True)["changed"] is True
    assert told() == [python]
    done = recover()
    assert (done["changed"], done["rolled_back"], ids(done)) == (True, True, ["wheel-half-done"])
    assert tree(env) == there
    assert told() == []
    assert recover()["changed"] is False
    assert recover(check=True)["changed"] is False


def test_one_change_to_an_environment_at_a_time(bring, env, python, tmp_path, monkeypatch):
    monkeypatch.setattr(prebuilt_wheel, "WAIT_S", 0.0)
    there = tree(env)
    stash = installed.Stash(str(tmp_path / "root"), python)
    with stash.change(str(tmp_path / "root/journal"), 0.0):
        # python3 is of the same environment.
        results = [bring(good(tmp_path), python=python + "3", check=check)
                   for check in (False, True)]
    assert [ids(result) for result in results] == [["wheel-busy"]] * 2
    assert tree(env) == there


def test_two_runs_at_once_are_one_after_the_other(bring, env, python, tmp_path):
    paths = [good(tmp_path / version, version) for version in ("1.0", "2.0")]

    def run(path, codes):
        codes.put(bring(path).get("failed", False))

    codes = FORK.Queue()
    both = [FORK.Process(target=run, args=(path, codes)) for path in paths]
    for one in both:
        one.start()
    assert [codes.get(timeout=120) for _ in both] == [False, False]
    for one in both:
        one.join(30)
    assert run_proof(python) == "0.0"
    assert len(list(site(env).glob("tiny_kernel-*.dist-info"))) == 1
    assert left_over(tmp_path) == []


def run_proof(python):
    return run(python, builder.proof(PACKAGE) + "print(error)")


# Built here.


PLAN = {"package": PACKAGE, "environment": {}, "jobs": 1, "architectures": "", "limit_s": 600,
        "why": "", "findings": [], "built_for": {"torch": "2.8"}, "cuda": {}, "requires": [],
        "keep": {"disk_bytes": 0, "memory_bytes": 0}, "compiled": False}


def test_a_wheel_is_built_installed_and_kept_for_others(bring, env, python, tmp_path):
    source = builder.sdist(tmp_path, PACKAGE, "2.0")
    row = builder.row(PACKAGE)
    hyphens = tmp_path / "tiny-kernel-2.0.tar.gz"
    shutil.copy(source, hyphens)
    for path in (source, hyphens):
        told = bring(path, row, state="built", build=PLAN, check=True)
        assert (told["changed"], told["version"]) == (True, "2.0")
    result = bring(source, row, state="built", build=PLAN)
    assert (result["changed"], result["file"]) == (True, "tiny_kernel-2.0-py3-none-any.whl")
    house = prebuilt_wheel.House(str(tmp_path / "root/wheels"))
    assert house.files()[result["file"]]["built_for"]["torch"] == "2.8"
    assert run(python, "import tiny_kernel; print(tiny_kernel.__version__)") == "2.0"
    again = bring(source, row, state="built", build=PLAN)
    assert (again["changed"], again["file"]) == (False, result["file"])


def made(tmp_path, number, setup=""):
    """A source distribution of one name and version, of whatever content."""
    return builder.sdist(tmp_path / ("source-%d" % number), PACKAGE, "2.0", "# %d\n%s" % (
        number, setup))


def built_by(python):
    return run(python, "import tiny_kernel; print(getattr(tiny_kernel, 'by', 0))")


def by(number):
    return "files['tiny_kernel/__init__.py'] = '__version__ = \"2.0\"; by = %d'" % number


def test_another_source_of_the_same_name_is_built_anew(bring, python, tmp_path):
    row = builder.row(PACKAGE)
    bring(made(tmp_path, 1, by(1)), row, state="built", build=PLAN)
    assert built_by(python) == "1"
    second = made(tmp_path, 2, by(2))
    assert bring(second, row, state="built", build=PLAN)["changed"]
    assert built_by(python) == "2"
    assert not bring(second, row, state="built", build=PLAN)["changed"]


def test_what_was_built_for_another_environment_is_built_anew(bring, python, tmp_path):
    row, source = builder.row(PACKAGE), made(tmp_path, 1)
    bring(source, row, state="built", build=PLAN)
    told = bring(source, row, state="built", build={**PLAN, "built_for": {"torch": "2.9"}},
                 check=True)
    assert told["changed"]
    assert not bring(source, row, state="built", build=PLAN, check=True)["changed"]


def test_what_was_built_and_has_changed_since_is_built_anew(bring, python, tmp_path):
    row, source = builder.row(PACKAGE), made(tmp_path, 1)
    name = bring(source, row, state="built", build=PLAN)["file"]
    wheel = tmp_path / "root" / "wheels" / name
    content = wheel.read_bytes()
    wheel.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    result = bring(source, row, state="built", build=PLAN)
    assert not result.get("failed"), result["msg"]
    assert wheel.read_bytes() != content[:-1] + bytes([content[-1] ^ 1])


def test_a_name_as_long_as_a_name_may_be_is_known_again(tmp_path):
    house = prebuilt_wheel.House(str(tmp_path / "house"))
    params = {"wheel": {"file": "%s-2.0.tar.gz" % ("x" * 240), "sha256": "a" * 64},
              "build": {"built_for": {}}}
    wheel = good(tmp_path)
    house.add(str(wheel), wheel.name, source=prebuilt_wheel.made_from(params))
    assert prebuilt_wheel.house_made(params, house) == wheel.name


def test_nothing_is_built_that_the_wheelhouse_has_no_room_for(bring, env, tmp_path, monkeypatch):
    there = tree(env)
    monkeypatch.setattr(prebuilt_wheel, "BUILT_BYTES", 2**60)
    source = made(tmp_path, 1, "open(%r, 'w').close()" % str(tmp_path / "was-built"))
    result = bring(source, builder.row(PACKAGE), state="built", build=PLAN)
    assert result["failed"] and ids(result) == ["wheel-no-space"]
    assert not (tmp_path / "was-built").exists()
    assert tree(env) == there


def test_a_build_that_fails_changes_nothing(bring, env, tmp_path):
    there = tree(env)
    source = builder.sdist(tmp_path, PACKAGE, "2.0", "raise SystemExit('no compiler')")
    result = bring(source, builder.row(PACKAGE), state="built", build=PLAN)
    assert result["failed"] and "no compiler" in result["msg"]
    assert tree(env) == there
