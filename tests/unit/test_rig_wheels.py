# SPDX-License-Identifier: Apache-2.0
"""The rig's wheels and environments are what they are said to be."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import stat
import subprocess
import sys
import zipfile

import pytest
from wheels import builder


def run(python, code, **options):
    return subprocess.run(
        [python, "-c", code], capture_output=True, text=True, timeout=60, **options
    )


def install(python, path):
    argv = [python, "-m", "pip", "--isolated", "--disable-pip-version-check", "install"]
    return subprocess.run(
        [*argv, "--no-deps", "--no-index", path], capture_output=True, text=True, timeout=120
    )


def inside(path):
    """What a wheel has by path, and its headers of METADATA and WHEEL."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    return members, {
        kind: [tuple(line.split(": ", 1)) for line in content.decode().splitlines()]
        for name, content in members.items()
        for kind in ("METADATA", "WHEEL")
        if name.endswith(".dist-info/" + kind)
    }


def lies(path):
    """The members of which RECORD does not tell the truth, or nothing."""
    members, _ = inside(path)
    record = next(content for name, content in members.items() if name.endswith("/RECORD"))
    told = {row[0]: row[1:] for row in csv.reader(io.StringIO(record.decode()))}
    return {
        name
        for name, content in members.items()
        if not name.endswith("/RECORD")
        and told.get(name)
        != [
            "sha256="
            + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode(),
            str(len(content)),
        ]
    }


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    folder = tmp_path_factory.mktemp("env")
    return builder.environment(folder / "env", wheels=[builder.torch(folder)])


def test_pip_installs_a_wheel_and_its_extension_runs(tmp_path, python):
    path = builder.wheel(
        tmp_path, "Tiny-Kernel", "1.0", "cu128torch2.8", extension=builder.KERNEL,
        files={"tiny_kernel/data.bin": b"\0"}, requires=["torch >=2"], requires_python=">=3.7",
    )  # fmt: skip
    assert path.name == "tiny_kernel-1.0+cu128torch2.8-%s.whl" % builder.here()
    assert not lies(path)
    done = install(python, path)
    assert done.returncode == 0, done.stderr
    code = (
        builder.proof("tiny-kernel") + "import tiny_kernel\nprint(error, tiny_kernel.__version__)"
    )
    assert run(python, code).stdout == "0.0 1.0+cu128torch2.8\n"
    headers = inside(path)[1]
    assert ("Requires-Dist", "torch >=2") in headers["METADATA"]
    assert ("Requires-Python", ">=3.7") in headers["METADATA"]


def test_the_same_wheel_has_the_same_bytes(tmp_path):
    one, other = (
        builder.wheel(tmp_path / name, "a", "1", extension=builder.KERNEL) for name in "ab"
    )
    assert builder.sha256(one) == builder.sha256(other)


@pytest.mark.parametrize(
    "extension, said", [(builder.WRONG_KERNEL, "100.0\n"), (builder.CRASHING_KERNEL, "")]
)
def test_kernels_that_are_wrong_and_that_crash(tmp_path, extension, said):
    path = builder.wheel(tmp_path, "a", "1", extension=extension)
    builder.unpack(path, tmp_path / "site")
    done = run(sys.executable, builder.proof("a") + "print(error)", cwd=tmp_path / "site")
    assert (done.stdout, done.returncode) == (said, 0 if said else -11)


@pytest.mark.parametrize("fault", ["import_error", "segfault"])
def test_imports_that_fail(tmp_path, python, fault):
    path = builder.wheel(tmp_path, fault, "1", tags="py3-none-any", broken=fault)
    assert install(python, path).returncode == 0
    done = run(python, "import " + fault)
    assert done.returncode == {"import_error": 1, "segfault": -11}[fault]
    assert ("undefined symbol" in done.stderr) == (fault == "import_error")


def test_an_import_that_hangs(tmp_path):
    path = builder.wheel(tmp_path, "a", "1", broken="hangs")
    builder.unpack(path, tmp_path / "site")
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", "import a"], cwd=tmp_path / "site", timeout=1)


def test_archives_that_are_no_good(tmp_path):
    def made(fault):
        return builder.wheel(tmp_path / fault, "a", "1", tags="py3-none-any", broken=fault)

    with pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile(made("truncated"))
    assert lies(made("bad_hash")) == {"a/__init__.py"}
    assert ("Version", "1.999") in inside(made("renamed"))[1]["METADATA"]
    assert ("Tag", "py3-none-any") not in inside(made("wrong_tags"))[1]["WHEEL"]
    assert not any(name.endswith("RECORD") for name in inside(made("no_record"))[0])
    assert "../../firstlight-escaped" in inside(made("traversal"))[0]
    assert "/tmp/firstlight-escaped" in inside(made("absolute"))[0]
    with zipfile.ZipFile(made("symlink")) as archive:
        assert stat.S_ISLNK(archive.getinfo("a/link").external_attr >> 16)
    with zipfile.ZipFile(made("duplicate")) as archive:
        twice = [member for member in archive.infolist() if member.filename == "a/__init__.py"]
    assert len({member.CRC for member in twice}) == 2
    bomb = made("bomb")
    with zipfile.ZipFile(bomb) as archive:
        assert archive.getinfo("a/zeros").file_size == builder.BOMB
    assert bomb.stat().st_size < builder.BOMB / 100


def test_a_torch_tells_what_it_was_built_for(tmp_path, python):
    code = (
        "import torch; print(torch.__version__, torch.version.cuda, torch.version.hip,"
        " torch._C._GLIBCXX_USE_CXX11_ABI, torch.cuda.is_available(), torch.device('cpu'))"
    )
    assert run(python, code).stdout == "2.8.0+cu128 12.8 None True False cpu\n"
    path = builder.torch(tmp_path, "2.9.1+cpu", "", False, devices=[("NVIDIA H200", "9.0")])
    builder.unpack(path, tmp_path / "site")
    code += "\nprint(torch.cuda.get_device_name(0), torch.cuda.get_device_capability(0))"
    done = run(sys.executable, code, cwd=tmp_path / "site")
    assert done.stdout == "2.9.1+cpu None None False True cpu\nNVIDIA H200 (9, 0)\n", done.stderr


def test_pip_builds_a_source_distribution(tmp_path, python):
    setup = """
    import os
    files["tiny_kernel/built.py"] = "jobs = %r" % os.environ["MAX_JOBS"]
    """
    path = builder.sdist(tmp_path, "tiny-kernel", "2.0", setup, builder.KERNEL)
    done = subprocess.run(
        [python, "-m", "pip", "--isolated", "wheel", "--no-deps", "--no-build-isolation"]
        + ["--no-index", "--wheel-dir", tmp_path / "out", path],
        env={"MAX_JOBS": "3", "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    built = tmp_path / ("out/tiny_kernel-2.0-%s.whl" % builder.here())
    assert inside(built)[0]["tiny_kernel/built.py"] == b"jobs = '3'"
    assert not lies(built)
    builder.unpack(built, tmp_path / "site")
    code = builder.proof("tiny-kernel") + "print(error)"
    assert run(sys.executable, code, cwd=tmp_path / "site").stdout == "0.0\n"


def test_a_source_distribution_without_c_is_for_any_python(tmp_path, python):
    path = builder.sdist(tmp_path, "plain", "2.0")
    assert install(python, path).returncode == 0
    assert run(python, "import plain; print(plain.__version__)").stdout == "2.0\n"


def test_environments_without_pip_and_of_conda(tmp_path, python):
    path = builder.wheel(tmp_path, "a", "1")
    bare = builder.environment(tmp_path / "env", with_pip=False, wheels=[path], conda=["a"])
    assert run(bare, "import a; print(a.__version__)").stdout == "1\n"
    assert run(bare, "import pip").returncode == 1
    assert run(python, "import pip").returncode == 0
    code = "import importlib.metadata as m; print(m.distribution('a').read_text('INSTALLER'))"
    assert run(bare, code).stdout.strip() == "conda"
    assert (tmp_path / "env/conda-meta/a-1-0.json").is_file()


def test_a_row_has_no_other_keys():
    assert builder.row("Tiny-Kernel")["imports"] == ["tiny_kernel"]
    with pytest.raises(AssertionError):
        builder.row("a", kernels="")
