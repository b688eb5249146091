# SPDX-License-Identifier: Apache-2.0
"""Hosts with libraries: a root file system of a few real ones, on which the real ldconfig works.

``library_root`` is such a host, whole: libc, a driver's libcuda in a configured folder, a cache.
The modules take it for theirs, and a process that loads a library by its name gets what the loader
of that host would give it, and really runs it.

``in_own_mounts`` is for what only the real loader shows: a process on this machine whose ``/etc``
is a small copy.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import stat
import subprocess
import sys

import pytest
import yaml

from ansible.module_utils.firstlight.host import cuda_probe, ldconfig, library_path
from ansible.module_utils.firstlight.host.reading import Reader

HERE = pathlib.Path(__file__).resolve()
REPOSITORY = HERE.parents[2]
LDCONFIG = shutil.which("ldconfig", path="/sbin:/usr/sbin")
VERSION = "550.54.14"
REAL_LOAD = cuda_probe.load
CONFIGURED = "include /etc/ld.so.conf.d/*.conf\n"

# Where the loader of Debian looks without a cache.
BUILT_IN = ("/usr/lib/x86_64-linux-gnu/", "/lib/", "/usr/lib/")

INIT = "int cuInit(unsigned flags) { (void)flags; %s }"
# Name, soname, source. Of a libc only its name counts here.
SOURCES = {
    "libc": ("libc.so.6", "int nothing(void) { return 0; }"),
    "other": ("libother.so.1", "int other(void) { return 0; }"),
    "driver": ("libcuda.so.1", INIT % "return 0;"),
    "stub": ("libcuda.so.1", INIT % "return 34;"),
    "compat": ("libcuda.so.1", INIT % "return 804;"),
    "mismatch": ("libcuda.so.1", INIT % "return 803;"),
    "mute": ("libcuda.so.1", "int nothing(void) { return 0; }"),
    "crashes": ("libcuda.so.1", "#include <stdlib.h>\n" + INIT % "abort();"),
    "ends": ("libcuda.so.1", "#include <stdlib.h>\n" + INIT % "exit(0);"),
    "hangs": ("libcuda.so.1", "#include <unistd.h>\n" + INIT % "for (;;) pause();"),
    "talks": ("libcuda.so.1", "#include <stdio.h>\n#include <stdlib.h>\n"
              "static void bye(void) { puts(\"bye\"); }\n"
              + INIT % "atexit(bye); printf(\"{\\\"path\\\": 1}\\n\"); return 0;"),
    "tells": ("libcuda.so.1", "#include <stdlib.h>\n" + INIT %
              "return getenv(\"LD_LIBRARY_PATH\") || getenv(\"CUDA_VISIBLE_DEVICES\") "
              "? 100 : getenv(\"FIRSTLIGHT_TOLD\") ? 7 : 0;"),
}


def compiled(path, soname, source="int nothing(void) { return 0; }"):
    """Make a shared library."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(path),
                    "-Wl,-soname," + soname], input=source.encode(), check=True, timeout=60)
    return path


def catalog(name):
    """Rows of a catalog."""
    return yaml.safe_load((REPOSITORY / "catalog" / (name + ".yml")).read_text(encoding="utf-8"))


def catalogs():
    """The options of both modules that are catalogs."""
    return {"checks": catalog("library_checks"), "places": catalog("library_places"),
            "tritons": catalog("triton_releases")}


def snapshot(folder):
    """Everything below a folder as plain data, to be compared; what ldconfig keeps for itself
    is left out."""
    found = {}
    for path in sorted(pathlib.Path(folder).rglob("*")):
        name = str(path.relative_to(folder))
        if name.startswith("var/cache"):
            continue
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_dir():
            found[name] = "folder"
        else:
            found[name] = (path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
    return found


class LibraryRoot:
    """A root file system.

    :ivar root: the folder that plays it.
    :ivar state: ``firstlight_root``; ``outside``: a folder that can be named from outside too.
       Both are links to where they are in it, so that a path of one means the same there and here,
       and links by whole paths, which ours are, lead somewhere.
    """

    def __init__(self, folder, libraries):
        self.root, self.libraries = pathlib.Path(folder) / "root", libraries
        self.state = self._as_outside(pathlib.Path(folder) / "state")
        self.outside = self._as_outside(pathlib.Path(folder) / "outside")
        for name in ("etc/ld.so.conf.d", "sbin", "usr/lib", "lib", "var/cache"):
            (self.root / name).mkdir(parents=True)
        self.tool('exec %s "$@"' % LDCONFIG)
        self.path("/etc/ld.so.conf").write_text(CONFIGURED)
        self.put("libc", "/usr/lib/libc.so.6")
        self.put("other", "/usr/lib/libother.so.1.0")
        self.configure("gpu", "/usr/lib/gpu")
        self.driver("/usr/lib/gpu")
        self.ldconfig()

    def _as_outside(self, path):
        within = self.root / str(path).lstrip("/")
        within.mkdir(parents=True)
        path.symlink_to(within)
        return str(path)

    def path(self, name):
        """Where a file of it is."""
        return self.root / str(name).lstrip("/")

    def tool(self, script):
        """Have this as its ldconfig."""
        path = self.path("/sbin/ldconfig")
        path.write_text("#!/bin/sh\n" + script + "\n")
        path.chmod(0o755)

    def ldconfig(self, *options):
        """Run the real one on it."""
        return subprocess.run([LDCONFIG, "-r", str(self.root), *options], check=True,
                              capture_output=True, text=True, timeout=60).stdout

    def listed(self):
        """The paths that the cache lists; none where ldconfig fails."""
        told = ldconfig.listing(Reader(str(self.root)))
        return ["/".join(entry) for entry in ldconfig.listed(told.stdout)] if told.ok else []

    def put(self, kind, name):
        """Have one of the libraries at a path."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(self.libraries / kind, path)
        return path

    def driver(self, folder, version=VERSION, kind="driver", soname=True, plain=False):
        """Have a driver's libcuda in a folder, and the links to it."""
        file = "libcuda.so." + version
        self.put(kind, folder + "/" + file)
        for name, target in (("libcuda.so.1", file if soname else ""),
                             ("libcuda.so", "libcuda.so.1" if plain else "")):
            if target:
                self.path(folder + "/" + name).unlink(missing_ok=True)
                self.path(folder + "/" + name).symlink_to(target)

    def stub(self, folder):
        """Have a stub in a folder, under the name that the loader looks for too."""
        self.put("stub", folder + "/libcuda.so")
        self.path(folder + "/libcuda.so.1").symlink_to("libcuda.so")

    def configure(self, name, *folders):
        """Have a file of ``ld.so.conf.d``."""
        self.path("/etc/ld.so.conf.d/%s.conf" % name).write_text(
            "".join(folder + "\n" for folder in folders))

    def move_driver(self, folder):
        """Have the driver's libraries in a folder that nothing names."""
        self.path("/etc/ld.so.conf.d/gpu.conf").unlink()
        self.path(folder).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(str(self.path("/usr/lib/gpu")), str(self.path(folder)))
        self.ldconfig()

    def module(self, version=VERSION):
        """Have a kernel module loaded."""
        path = self.path("/proc/driver/nvidia/version")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  %s  Thu Feb 22 2024\n"
                        % version)

    def python(self, triton="3.5.1", name="python", headers=True, version="3.12", said=None):
        """A Python that runs engines, as far as it is asked; returns its path."""
        path = self.root.parent / name
        answer = json.dumps({"triton": triton, "python": version, "prefix": str(path.parent),
                             "include": "/usr/include/p",
                             "headers": headers}) if said is None else said
        path.write_text("#!/bin/sh\ncat <<'EOF'\n%s\nEOF\n" % answer)
        path.chmod(0o755)
        return str(path)

    def load(self, library, init, env=None):
        """As ``cuda_probe.load``, in this root, where links lead to what is in it."""
        path = library if library.startswith("/") else self._found(library, env or {})
        if path is None:
            return cuda_probe.Loaded(None, None, "", None, "%s: cannot open shared object file: "
                                     "No such file or directory" % library, False)
        # Where the loader looks is what the folders of this root say, not those of this machine.
        rest = {name: value for name, value in (env or {}).items() if name != "LD_LIBRARY_PATH"}
        got = REAL_LOAD(str(self.path(self.leads_to(path))), init, rest)
        inside = got.path and "/" + os.path.relpath(got.path, os.path.realpath(self.root))
        return got._replace(path=inside)

    def leads_to(self, name):
        """The path of it without links, all of them taken as in this root."""
        here, left = [], [part for part in reversed(name.split("/")) if part]
        for _ in range(200):
            if not left:
                break
            part = left.pop()
            if part in (".", ".."):
                here = here[:-1] if part == ".." else here
                continue
            found = self.path("/".join([*here, part]))
            if found.is_symlink():
                target = os.readlink(found)
                here = [] if target.startswith("/") else here
                left += [one for one in reversed(target.split("/")) if one]
            else:
                here = [*here, part]
        return "/" + "/".join([*here, *reversed(left)])

    def _found(self, library, env):
        """As ld.so(8) looks: the variable, what the cache lists first, its own folders."""
        found = [os.path.join(folder, library)
                 for folder in env.get("LD_LIBRARY_PATH", "").split(":") if folder]
        listing = ldconfig.listing(Reader(str(self.root)))
        if listing.ok:
            found += [os.path.join(*entry) for entry in ldconfig.listed(listing.stdout)
                      if entry[1] == library][:1]
        found += [folder + library for folder in BUILT_IN]
        return next((path for path in found if self.path(self.leads_to(path)).is_file()), None)

    def snapshot(self):
        """All of it, to be compared."""
        return snapshot(self.root)

    def reader(self):
        """A reader of it."""
        return Reader(str(self.root))


@pytest.fixture(scope="session")
def library_files(tmp_path_factory):
    """The folder of the libraries, compiled once; as on a host, only their owner can write them."""
    folder = tmp_path_factory.mktemp("libraries")
    for name, (soname, source) in SOURCES.items():
        compiled(folder / name, soname, source).chmod(0o755)
    return folder


@pytest.fixture
def library_root(request, library_files, tmp_path, monkeypatch):
    """A host, whole, that the modules take for theirs."""
    import host_checks
    import linker_cache

    umask = os.umask(0o022)
    request.addfinalizer(lambda: os.umask(umask))
    host = LibraryRoot(tmp_path, library_files)
    monkeypatch.setattr(host_checks, "SYSTEM_ROOT", str(host.root))
    monkeypatch.setattr(linker_cache, "SYSTEM_ROOT", str(host.root))
    monkeypatch.setattr(cuda_probe, "load", host.load)
    # What this machine's packages own is no matter of that host.
    monkeypatch.setattr(library_path, "OWNERS", ())
    for variable in ("LD_LIBRARY_PATH", "CONDA_PREFIX", "CC"):
        monkeypatch.delenv(variable, raising=False)
    return host


# A module run as on the host itself. What it is run with is given as JSON.
CHILD = r"""
import importlib, json, sys
told = json.loads(sys.argv[1])
sys.path[:0] = told["path"]
import ansible.module_utils
ansible.module_utils.__path__.append(told["utils"])
from ansible.module_utils.firstlight.host import library_path
from ansible.module_utils.testing import patch_module_args
library_path.DEVICES = tuple(told["signs"])
module = importlib.import_module(told["module"])
library_path.OWNERS = ()
exec(told["before"])
with patch_module_args(told["args"]):
    module.main()
"""


def module_process(module, params, remote_tmp, signs=(), before=""):
    """The command of a process that runs a module.

    :param signs: files that are there where a driver is loaded.
    :param before: Python to run first.
    """
    told = {"path": [str(REPOSITORY / "library"), *[one for one in sys.path if one]],
            "utils": str(REPOSITORY / "module_utils"), "module": module, "signs": list(signs),
            "before": before, "args": dict(params, _ansible_remote_tmp=remote_tmp)}
    return [sys.executable, "-c", CHILD, json.dumps(told)]


UNSHARE = ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
MOUNTS = ('mount --make-rprivate / && mount --bind "$0/etc" /etc && '
          'mount --bind "$0/empty" /var/cache/ldconfig && eval "$1" && shift && exec "$@"')


def _can_mount():
    if not shutil.which("unshare") or not os.path.isdir("/var/cache/ldconfig"):
        return False
    return subprocess.run([*UNSHARE, "mount", "--bind", "/etc", "/mnt"], capture_output=True,
                          timeout=60).returncode == 0


@pytest.fixture
def in_own_mounts(tmp_path):
    """``run(argv, first)`` where ``/etc`` is of its own; ``first`` is shell to run before."""
    if not _can_mount():
        pytest.skip("this user cannot have mounts of its own here (unshare --mount)")
    etc = tmp_path / "etc"
    shutil.copytree("/etc/ld.so.conf.d", etc / "ld.so.conf.d")
    for name in ("ld.so.conf", "passwd", "group", "nsswitch.conf"):
        shutil.copy2("/etc/" + name, etc / name)
    (tmp_path / "empty").mkdir()

    def run(argv, first=":"):
        return subprocess.run(
            [*UNSHARE, "sh", "-c", MOUNTS, str(tmp_path), first, *argv], capture_output=True,
            text=True, timeout=120)

    run.etc = etc
    return run
