# SPDX-License-Identifier: Apache-2.0
"""Small real wheels, source distributions and virtual environments, made in a moment.

A wheel with a C extension is real too: it is of the stable ABI, so one file serves every Python
from 3.7 on, and its prototypes are written out here, so no headers are needed.

In a test::

    good = builder.wheel(tmp_path, "tiny-kernel", "1.0", extension=builder.KERNEL)
    python = builder.environment(tmp_path / "env", wheels=[builder.torch(tmp_path)])
    row = builder.row("tiny-kernel", kernel=builder.proof("tiny-kernel"))
"""

from __future__ import annotations

import ast
import base64
import csv
import ensurepip
import functools
import hashlib
import io
import os
import pathlib
import platform
import re
import stat
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import textwrap
import zipfile

BROKEN = {
    "truncated": "the end of the file is missing",
    "bad_hash": "RECORD has another hash of a file",
    "renamed": "METADATA and .dist-info are of another version than the file's name",
    "traversal": "a member leaves the folder: ../../firstlight-escaped",
    "absolute": "a member has an absolute path: /tmp/firstlight-escaped",
    "symlink": "a member is a symbolic link to /etc/passwd",
    "duplicate": "a member is there twice, with different content",
    "wrong_tags": "WHEEL has other tags than the file's name",
    "bomb": "a member of some kilobytes is %d MiB",
    "no_record": "there is no RECORD",
    "import_error": "the import raises",
    "segfault": "the import ends the process",
    "hangs": "the import does not end",
}
BOMB = 512 * 2**20
BROKEN["bomb"] %= BOMB // 2**20

IMPORTS = {
    "import_error": "raise ImportError('undefined symbol: _ZN3c104cuda9SetDeviceEa')",
    "segfault": "import ctypes\nctypes.string_at(0)",
    "hangs": "import time\nwhile True:\n    time.sleep(60)",
}

# The stable ABI in so far as an extension here needs it.
PRELUDE = """
typedef struct _object PyObject;
typedef long Py_ssize_t;
typedef PyObject *(*PyCFunction)(PyObject *, PyObject *);
typedef struct {
    const char *name; PyCFunction function; int flags; const char *doc;
} PyMethodDef;
typedef struct {
    struct {
        Py_ssize_t references; void *type; PyObject *(*init)(void); Py_ssize_t index; void *copy;
    } base;
    const char *name, *doc;
    Py_ssize_t size;
    PyMethodDef *methods;
    void *slots, *traverse, *clear, *free;
} PyModuleDef;
PyObject *PyModule_Create2(PyModuleDef *, int);
PyObject *PyFloat_FromDouble(double);
double PyFloat_AsDouble(PyObject *);
#define METH_O 8
"""
MODULE = """
static PyModuleDef MODULE = {{1, 0, 0, 0, 0}, "_kernel", 0, -1, METHODS, 0, 0, 0, 0};
PyObject *PyInit__kernel(void) { return PyModule_Create2(&MODULE, 3); }
"""
FUNCTION = """
static PyObject *squares(PyObject *self, PyObject *until)
{
    double sum = 0, i, n = PyFloat_AsDouble(until);
    %s
    for (i = 0; i < n; i++)
        sum += i * i;
    return PyFloat_FromDouble(sum);
}
static PyMethodDef METHODS[] = {{"squares", squares, METH_O, 0}, {0, 0, 0, 0}};
"""
# ``_kernel.squares(n)``: the sum of the squares below n. One that is wrong, one that crashes.
KERNEL = FUNCTION % ""
WRONG_KERNEL = FUNCTION % "n += 1;"
CRASHING_KERNEL = FUNCTION % "*(volatile int *)0 = 1;"
PROOF = """
from %s import _kernel
error = abs(_kernel.squares(10.0) - 285.0)
"""

# What an sdist is built by: in its own tree, so that an environment needs no setuptools.
BACKEND = """
import base64, hashlib, os, platform, subprocess, sys, zipfile

NAME, VERSION, PACKAGE = %(names)r

def build_wheel(into, settings=None, metadata=None):
    files = {PACKAGE + "/__init__.py": "__version__ = %%r\\n" %% VERSION}
    exec(compile(open("setup_text.py").read(), "setup_text.py", "exec"), {"files": files})
    tags, pure = "py3-none-any", "true"
    if os.path.exists("kernel.c"):
        python = "cp%%d%%d" %% sys.version_info[:2]
        tags, pure = "%%s-%%s-linux_%%s" %% (python, python, platform.machine()), "false"
        compiler = os.environ.get("CC", "cc").split()
        subprocess.run(compiler + ["-shared", "-fPIC", "kernel.c", "-o", "kernel.so"], check=True)
        with open("kernel.so", "rb") as compiled:
            files[PACKAGE + "/_kernel.abi3.so"] = compiled.read()
    info = "%%s-%%s.dist-info/" %% (PACKAGE, VERSION)
    files[info + "METADATA"] = (
        "Metadata-Version: 2.1\\nName: %%s\\nVersion: %%s\\n" %% (NAME, VERSION))
    files[info + "WHEEL"] = (
        "Wheel-Version: 1.0\\nGenerator: rig\\nRoot-Is-Purelib: %%s\\nTag: %%s\\n" %% (pure, tags))
    name = "%%s-%%s-%%s.whl" %% (PACKAGE, VERSION, tags)
    record = ""
    with zipfile.ZipFile(os.path.join(into, name), "w") as archive:
        for path, text in files.items():
            content = text if isinstance(text, bytes) else text.encode()
            archive.writestr(path, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            record += "%%s,sha256=%%s,%%d\\n" %% (path, digest.decode(), len(content))
        archive.writestr(info + "RECORD", record + info + "RECORD,,\\n")
    return name
"""


def escaped(text):
    """A package as file names have it."""
    return re.sub(r"[-_.]+", "_", text).lower()


def here():
    """The tags of an extension for this interpreter."""
    python = "cp%d%d" % sys.version_info[:2]
    return "%s-%s-linux_%s" % (python, python, platform.machine())


def sha256(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def row(package, **changes):
    """A whole row, as catalog/prebuilt_wheels.yml has them: of a package that needs nothing."""
    whole = {
        "package": package,
        "versions": "",
        "imports": [escaped(package)],
        "torch": "none",
        "requires_torch": [],
        "cuda": "none",
        "plain_cuda": [],
        "capabilities": [],
        "kernel": "",
        "kernel_device": "any",
        "tolerance": 0.001,
        "not_needed": [],
        "sources": [],
        "build": {},
        "source": "made by tests/rig/wheels/builder.py",
    }
    unknown = set(changes) - set(whole)
    assert not unknown, "a row has no %s" % ", ".join(unknown)
    return {**whole, **changes}


def proof(package):
    """The text of a row's kernel, for a wheel with :data:`KERNEL` or one of the others."""
    return PROOF % escaped(package)


def wheel(
    folder,
    package,
    version,
    local="",
    tags=None,
    files=None,
    extension=None,
    requires=(),
    requires_python="",
    broken="",
    build="",
):
    """Make a wheel; its path.

    :param folder: where it is put; made where it is not there.
    :param local: the local version, as ``cu12torch2.8cxx11abiTRUE``.
    :param tags: as the file's name has them, as ``cp311-cp311-linux_x86_64`` or ``py3-none-any``.
        None: of this interpreter.
    :param files: text or bytes by path; beside ``<package>/__init__.py``, which is made unless it
        is among them.
    :param extension: C source that defines ``METHODS``, as :data:`KERNEL`: compiled, it is
        ``<package>/_kernel.abi3.so``. Bytes are one that is compiled already.
    :param requires: lines of Requires-Dist.
    :param broken: what is wrong with it, of :data:`BROKEN`; several have commas between them.
    :param build: the build tag, as ``1``.
    """
    faults = set(filter(None, broken.split(",")))
    assert faults <= set(BROKEN), "unknown faults: %s" % broken
    name, tags = escaped(package), tags or here()
    told = version + ("+" + local if local else "")
    inner = version + ".999" if "renamed" in faults else told
    members = {"%s/__init__.py" % name: "__version__ = %r\n" % told}
    for fault in faults & set(IMPORTS):
        members["%s/__init__.py" % name] += IMPORTS[fault] + "\n"
    members.update(files or {})
    if extension is not None:
        compiled = extension if isinstance(extension, bytes) else _compiled(extension)
        members["%s/_kernel.abi3.so" % name] = compiled
    info = "%s-%s.dist-info/" % (name, inner)
    members[info + "METADATA"] = _headers(
        [("Metadata-Version", "2.1"), ("Name", package), ("Version", inner)]
        + [("Requires-Python", requires_python)] * bool(requires_python)
        + [("Requires-Dist", line) for line in requires]
    )
    pure = "true" if tags.endswith("-any") else "false"
    wrong = "cp27-cp27mu-manylinux1_x86_64"
    members[info + "WHEEL"] = _headers(
        [("Wheel-Version", "1.0"), ("Generator", "rig"), ("Root-Is-Purelib", pure)]
        + [("Build", build)] * bool(build)
        + [("Tag", tag) for tag in _expanded(wrong if "wrong_tags" in faults else tags)]
    )
    if "traversal" in faults:
        members["../../firstlight-escaped"] = "out"
    if "absolute" in faults:
        members["/tmp/firstlight-escaped"] = "out"
    pairs = [(path, _bytes(content), 0o644) for path, content in members.items()]
    if "symlink" in faults:
        pairs.append(("%s/link" % name, b"/etc/passwd", stat.S_IFLNK | 0o777))
    if "duplicate" in faults:
        pairs.append(("%s/__init__.py" % name, b"twice = True\n", 0o644))
    if "bomb" in faults:
        pairs.append(("%s/zeros" % name, bytes(BOMB), 0o644))
    if "no_record" not in faults:
        lying = "%s/__init__.py" % name if "bad_hash" in faults else ""
        pairs.append((info + "RECORD", _record(pairs, info + "RECORD", lying), 0o644))
    path = pathlib.Path(folder) / "-".join(filter(None, [name, told, build, tags + ".whl"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_zipped(pairs))
    if "truncated" in faults:
        os.truncate(path, path.stat().st_size * 2 // 3)
    return path


def torch(folder, version="2.8.0+cu128", cuda="12.8", cxx11abi=True, hip="", devices=(), tags=None):
    """Make a wheel called torch, which tells what it was built for and does nothing; its path.

    :param cuda: of ``torch.version.cuda``; empty: a CPU-only one.
    :param devices: the GPUs that it sees, as ``("NVIDIA H200", "9.0")`` each.
    :param tags: by default those of any Python.
    """
    public, _, local = version.partition("+")
    gpus = [
        (name, tuple(int(part) for part in capability.split("."))) for name, capability in devices
    ]
    texts = {
        "torch/__init__.py": """
            from . import _C, cuda, version
            __version__ = version.__version__
            def compiled_with_cxx11_abi():
                return _C._GLIBCXX_USE_CXX11_ABI
            class device:
                def __init__(self, type, index=None):
                    self.type, _, told = str(type).partition(":")
                    self.index = int(told) if told else index
                def __str__(self):
                    return self.type if self.index is None else "%s:%d" % (self.type, self.index)
                def __repr__(self):
                    return "device(type=%r)" % self.type
            """,
        "torch/version.py": f"""
            __version__ = {version!r}
            cuda = {cuda or None!r}
            hip = {hip or None!r}
            """,
        "torch/_C.py": f"_GLIBCXX_USE_CXX11_ABI = {cxx11abi!r}\n",
        "torch/cuda.py": f"""
            GPUS = {gpus!r}
            class OutOfMemoryError(RuntimeError):
                pass
            def is_available():
                return bool(GPUS)
            def device_count():
                return len(GPUS)
            def get_device_name(device=0):
                return GPUS[getattr(device, "index", device) or 0][0]
            def get_device_capability(device=0):
                return GPUS[getattr(device, "index", device) or 0][1]
            def synchronize(device=None):
                pass
            """,
    }
    files = {path: textwrap.dedent(text).lstrip() for path, text in texts.items()}
    return wheel(folder, "torch", public, local, tags or "py3-none-any", files)


def sdist(folder, package, version, setup="", extension=None):
    """Make a source distribution; its path. It is built without any other package.

    :param setup: Python that runs before the wheel is made, as a setup.py would: in the unpacked
        source, with the builder's environment; ``files`` is what the wheel has, text or bytes by
        path, and may be changed.
    :param extension: C source as :func:`wheel` takes it, which the build compiles with ``cc``.
    """
    name = escaped(package)
    root = "%s-%s" % (name, version)
    info = _headers([("Metadata-Version", "2.1"), ("Name", package), ("Version", version)])
    files = {
        "PKG-INFO": info,
        "pyproject.toml": (
            '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        ),
        "backend.py": BACKEND % {"names": (package, version, name)},
        "setup_text.py": textwrap.dedent(setup),
    }
    ast.parse(files["setup_text.py"])
    if extension is not None:
        files["kernel.c"] = PRELUDE + extension + MODULE
    path = pathlib.Path(folder) / (root + ".tar.gz")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for inner, text in files.items():
            member = tarfile.TarInfo("%s/%s" % (root, inner))
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


def environment(folder, with_pip=True, wheels=(), conda=()):
    """Make a virtual environment of this interpreter; the path of its python.

    :param wheels: paths of wheels that are unpacked into it, as pip would.
    :param conda: packages among them that conda installed; with any, it is an environment of conda.
    """
    folder = pathlib.Path(folder)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = folder / "lib" / ("python%d.%d" % sys.version_info[:2]) / "site-packages"
    if with_pip:
        # Distributions have the wheels that come with Python in a folder of their own.
        own = pathlib.Path(ensurepip.__file__).parent / "_bundled"
        bundled = pathlib.Path(sysconfig.get_config_var("WHEEL_PKG_DIR") or own)
        unpack(next(bundled.glob("pip-*.whl")), site)
    for path in wheels:
        unpack(path, site)
    for package in conda:
        (folder / "conda-meta").mkdir(exist_ok=True)
        (folder / "conda-meta/history").touch()
        info = next(site.glob(escaped(package) + "-*.dist-info"))
        version = info.name[: -len(".dist-info")].split("-", 1)[1]
        (info / "INSTALLER").write_text("conda\n")
        (folder / "conda-meta" / ("%s-%s-0.json" % (package, version))).write_text(
            '{"name": "%s", "version": "%s", "files": []}' % (package, version)
        )
    return folder / "bin/python"


def unpack(path, site):
    """Unpack a wheel into a site-packages, as ``pip install --no-deps`` would."""
    with zipfile.ZipFile(path) as archive:
        archive.extractall(site)
        record = next(n for n in archive.namelist() if n.endswith(".dist-info/RECORD"))
    info = pathlib.Path(site) / pathlib.PurePath(record).parent
    (info / "INSTALLER").write_text("pip\n")
    with (info / "RECORD").open("a") as lines:
        lines.write("%s/INSTALLER,,\n" % info.name)


@functools.cache
def _compiled(source):
    """The bytes of an extension."""
    with tempfile.TemporaryDirectory() as folder:
        made = pathlib.Path(folder) / "_kernel.so"
        compiler = os.environ.get("CC") or (sysconfig.get_config_var("CC") or "cc").split()[0]
        argv = [compiler, "-shared", "-fPIC", "-O1", "-s", "-x", "c", "-", "-o", str(made)]
        subprocess.run(argv, input=PRELUDE + source + MODULE, text=True, check=True)
        return made.read_bytes()


def _bytes(content):
    return content if isinstance(content, bytes) else content.encode()


def _headers(pairs):
    return "".join("%s: %s\n" % pair for pair in pairs)


def _expanded(tags):
    """Single tags, of a set of them that is written with dots."""
    pythons, abis, platforms = tags.split("-")
    return [
        "-".join((python, abi, where))
        for python in pythons.split(".")
        for abi in abis.split(".")
        for where in platforms.split(".")
    ]


def _record(pairs, own, lying):
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    for path, content, _ in {pair[0]: pair for pair in pairs}.values():
        digest = hashlib.sha256(b"other" if path == lying else content).digest()
        encoded = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        rows.writerow([path, "sha256=" + encoded, len(content)])
    rows.writerow([own, "", ""])
    return text.getvalue().encode()


def _zipped(pairs):
    """The bytes of an archive, which are the same each time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        seen = set()
        for path, content, mode in pairs:
            member = zipfile.ZipInfo(path)
            member.external_attr = (mode if mode > 0o777 else stat.S_IFREG | mode) << 16
            member.compress_type = zipfile.ZIP_DEFLATED
            if path in seen:
                # zipfile warns of a name that is there twice, which here is what is wanted.
                archive.NameToInfo.pop(path)
            seen.add(path)
            archive.writestr(member, content, compresslevel=1 if len(content) > 2**20 else None)
    return buffer.getvalue()
