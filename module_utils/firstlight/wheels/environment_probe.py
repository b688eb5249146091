# SPDX-License-Identifier: Apache-2.0
"""A program for an environment's own Python: what it is, and whether packages in it work.

    python -I -B -c SOURCE ANSWERS < REQUEST

It needs the standard library of Python 3.7, and tells Python 3.6 apart. ``ANSWERS`` is the number
of a file descriptor, to which it writes a line of JSON before each step and one after it: what is
imported here may crash, hang, print or end the process, and what was told before that is known.

``REQUEST`` is JSON: ``names`` of packages to look up, ``rows`` to import (``package``, ``imports``,
``kernel``, ``kernel_device``, ``needs_torch``), ``always`` whether to import what is not installed
too, and ``torch`` and ``devices``, whether to try those.

Nothing is judged here but by who reads the answers.
"""

import contextlib
import fcntl
import glob
import importlib
import importlib.util
import json
import os
import platform
import re
import struct
import subprocess
import sys
import sysconfig
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

Told = Dict[str, Any]
Tell = Callable[[str, Optional[Told]], None]

OLDEST = (3, 7)
# Where descriptors are opened and closed by their numbers, nobody looks.
ANSWERS = 512
# How it ends when the way to tell anything is gone.
CLOSED = 97
MOST_TEXT = 4000
MOST_FILE = 1 << 20
DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
KILL = 9


def main(argv: List[str]) -> None:
    """Answer the request on standard input."""
    tell = teller(int(argv[0]))
    request = json.loads(sys.stdin.buffer.read().decode("ascii"))
    # An import that reads what a user might type gets no answer, instead of waiting for one.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    _tame()

    tell("python", None)
    tell("python", python())
    if sys.version_info < OLDEST:
        tell("done", {})
        return
    tell("packages", None)
    found, unread = packages(request["names"])
    tell("packages", {"found": found, "unread": unread})

    torch, devices = None, []  # type: Any, List[Told]
    if request["torch"]:
        tell("torch", None)
        torch, told = load_torch()
        tell("torch", told)
    if torch is not None and request["devices"]:
        tell("devices", None)
        told = devices_of(torch)
        devices = told["devices"]
        tell("devices", told)

    for row in request["rows"]:
        if torch is None and row["needs_torch"]:
            continue
        if (request["always"] or row["package"] in found) and not _try(row, torch, devices, tell):
            # An error of CUDA stays with its process, and would be told of the next one too.
            tell("again", {})
            return
    tell("done", {})


def teller(answers: int) -> Tell:
    """What writes an answer, or without one that the step begins."""
    with contextlib.suppress(OSError):
        # Not for what an import starts, which may live on.
        moved = fcntl.fcntl(answers, fcntl.F_DUPFD_CLOEXEC, ANSWERS)
        os.close(answers)
        answers = moved

    def tell(step: str, told: Optional[Told]) -> None:
        answer = {"step": step}  # type: Told
        if told is not None:
            answer["told"] = told
        line = (json.dumps(answer) + "\n").encode("ascii")
        try:
            while line:
                line = line[os.write(answers, line):]
        except OSError:
            os._exit(CLOSED)

    return tell


def _tame() -> None:
    """Leave nothing behind: no dump of a crash, and no process whose parent is gone."""
    with contextlib.suppress(Exception):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(Exception):
        import ctypes

        ctypes.CDLL(None).prctl(DEATH_SIGNAL, KILL)


# What the environment is.


def python() -> Told:
    """The interpreter, its platform and where its packages are; ``unread`` for what it lacks."""
    told, unread = {}, {}  # type: Told, Dict[str, str]
    facts = {
        "implementation": lambda: sys.implementation.name,
        "version": platform.python_version,
        "abi_flags": lambda: getattr(sys, "abiflags", ""),
        "free_threaded": lambda: bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        "machine": platform.machine,
        "bits": lambda: 8 * struct.calcsize("P"),
        "libc": libc,
        "prefix": lambda: sys.prefix,
        "base_prefix": lambda: sys.base_prefix,
        "purelib": lambda: sysconfig.get_path("purelib"),
        "platlib": lambda: sysconfig.get_path("platlib"),
        "why_not_writable": why_not_writable,
        "managed": managed,
    }  # type: Dict[str, Callable[[], Any]]
    for name, fact in facts.items():
        try:
            told[name] = fact()
        except Exception as problem:
            unread[name] = _text(problem)
    told["unread"] = unread
    return told


def libc() -> Told:
    """The C library of this process, which wheels must be built for."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        if name == "glibc":
            return {"name": name, "version": version}
    loader = musl_loader("/proc/self/maps")
    if loader:
        # It says its version where it is called without anything to load.
        said = subprocess.run([loader], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, timeout=10).stderr.decode("ascii", "replace")
        told = re.search(r"^Version (\d+\.\d+[\d.]*)", said, re.MULTILINE)
        return {"name": "musl", "version": told.group(1) if told else ""}
    return {"name": "", "version": ""}


def musl_loader(maps: str) -> str:
    """The path of musl's loader among what a process has mapped; empty where it has another."""
    with open(maps, "rb") as file:
        found = re.search(rb"\s(/\S*/ld-musl-\S+\.so\.1)$", file.read(), re.MULTILINE)
    return os.fsdecode(found.group(1)) if found else ""


def why_not_writable() -> str:
    """Why packages cannot be placed there; empty where they can."""
    for folder in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        # What is not there yet is made.
        while not os.path.lexists(folder) and folder != os.path.dirname(folder):
            folder = os.path.dirname(folder)
        if os.statvfs(folder).f_flag & os.ST_RDONLY:
            return "%s is on a file system that is mounted read-only" % folder
        if not os.access(folder, os.W_OK | os.X_OK):
            return "%s belongs to uid %d (mode %o) and cannot be written by uid %d" % (
                folder, os.stat(folder).st_uid, os.stat(folder).st_mode & 0o7777, os.geteuid())
    return ""


def managed() -> str:
    """Who else manages the packages: ``distribution``, ``conda``, or empty.

    ``distribution`` is whoever left the marker of PEP 668, for which pip refuses to install.
    """
    marker = os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")
    if sys.prefix == sys.base_prefix and os.path.isfile(marker):
        return "distribution"
    return "conda" if os.path.isdir(os.path.join(sys.prefix, "conda-meta")) else ""


def packages(names: List[str]) -> Tuple[Told, Dict[str, str]]:
    """What is installed of the packages, and what could not be read.

    One way for all Pythons: before 3.8 there is no ``importlib.metadata``.
    """
    found, unread = {}, {}  # type: Told, Dict[str, str]
    for folder in sys.path:
        if not os.path.isdir(folder):
            continue
        try:
            entries = sorted(os.listdir(folder))
        except OSError as problem:
            unread[folder] = _text(problem)
            continue
        for entry in entries:
            stem, suffix = os.path.splitext(entry)
            if suffix not in (".dist-info", ".egg-info"):
                continue
            name, _, version = stem.partition("-")
            name = re.sub(r"[-_.]+", "-", name).lower()
            if name not in names:
                continue
            path = os.path.join(folder, entry)
            try:
                version = version_of(path) or version.partition("-")[0]
                if name not in found:
                    found[name] = {
                        "version": version, "location": folder,
                        "installer": _read(os.path.join(path, "INSTALLER")).strip(),
                        "conda": is_of_conda(path), "sha256": sha256_of(path)}
                elif found[name]["location"] == folder:
                    unread[name] = "%s has the records of two versions: %s and %s" % (
                        folder, found[name]["version"], version)
            except OSError as problem:
                unread[name] = _text(problem)
    return found, unread


def version_of(record: str) -> str:
    """The version of a package by its record, a folder or for old tools a file."""
    files = [os.path.join(record, name) for name in ("METADATA", "PKG-INFO")] + [record]
    for file in files:
        head = _read(file).partition("\n\n")[0]
        version = re.search(r"^Version:[ \t]*(\S+)", head, re.MULTILINE)
        if version:
            return version.group(1)
    return ""


def sha256_of(record: str) -> str:
    """The SHA-256 of the file that a package was installed from (PEP 610); empty: none is told."""
    try:
        archive = json.loads(_read(os.path.join(record, "direct_url.json")))["archive_info"]
        # The older way to write it has no `hashes`.
        sha256 = archive.get("hashes", {}).get("sha256") or archive["hash"].partition("sha256=")[2]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
    return sha256.lower() if isinstance(sha256, str) else ""


def is_of_conda(record: str) -> bool:
    """Whether conda has it among its own, and would be left with what is not true."""
    if _read(os.path.join(record, "INSTALLER")).strip() == "conda":
        return True
    inside = os.path.relpath(record, sys.prefix)
    for file in glob.glob(os.path.join(glob.escape(sys.prefix), "conda-meta", "*.json")):
        with open(file, "rb") as content:
            # The list of its files, of which that is one or the folder of some.
            if re.search(rb'"%s["/]' % re.escape(os.fsencode(inside)), content.read()):
                return True
    return False


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(MOST_FILE).decode("utf-8", "replace").replace("\r\n", "\n")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return ""


# What is imported.


def load_torch() -> Tuple[Any, Told]:
    """torch, and what it is built for; ``None`` where it is not there or cannot be imported."""
    begun = time.monotonic()
    try:
        if importlib.util.find_spec("torch") is None:
            return None, {"absent": True}
        torch = importlib.import_module("torch")
        version = getattr(torch, "__version__", None)
        if version is None:
            return None, {"raised": ["torch has no version: only what is left of one is in %s"
                                     % ", ".join(map(str, getattr(torch, "__path__", [])))]}
        build = torch.version
        abi = getattr(getattr(torch, "_C", None), "_GLIBCXX_USE_CXX11_ABI", None)
        if abi is None:
            with contextlib.suppress(Exception):
                abi = torch.compiled_with_cxx11_abi()
        return torch, {
            "version": str(version), "cuda": str(getattr(build, "cuda", None) or ""),
            "hip": str(getattr(build, "hip", None) or ""),
            "cxx11abi": None if abi is None else bool(abi),
            "seconds": round(time.monotonic() - begun, 3)}
    except BaseException as problem:
        return None, {"raised": chain(problem)}


def devices_of(torch: Any) -> Told:
    """The devices that torch has, or in ``raised`` why it has none."""
    devices = []
    try:
        if torch.cuda.is_available():
            for index in range(torch.cuda.device_count()):
                devices.append({
                    "name": str(torch.cuda.get_device_name(index)),
                    "capability": "%d.%d" % tuple(torch.cuda.get_device_capability(index))})
        elif getattr(torch.version, "cuda", None) or getattr(torch.version, "hip", None):
            # It says why not when it is made to start.
            torch.cuda.init()
    except BaseException as problem:
        return {"devices": [], "raised": chain(problem)}
    return {"devices": devices}


def _try(row: Told, torch: Any, devices: List[Told], tell: Tell) -> bool:
    """Import a package, and run its kernel; whether this process is good for another."""
    step = "imports " + row["package"]
    tell(step, None)
    begun = time.monotonic()
    for name in row["imports"]:
        try:
            importlib.import_module(name)
        except BaseException as problem:
            tell(step, {"name": name, "raised": chain(problem)})
            return True
    tell(step, {"seconds": round(time.monotonic() - begun, 3)})
    if not row["kernel"]:
        return True

    step = "kernel " + row["package"]
    tell(step, None)
    if not devices and row["kernel_device"] != "any":
        tell(step, {"skipped": True})
        return True
    told = {"device": devices[0]["name"] if devices else "cpu"}  # type: Told
    variables = dict(os.environ)
    try:
        device = torch and torch.device("cuda:0" if devices else "cpu")
        names = {"__name__": "kernel", "torch": torch, "device": device}
        exec(compile(row["kernel"], "<kernel of %s>" % row["package"], "exec"), names)
        if devices:
            # What went wrong on the device is told by then.
            torch.cuda.synchronize()
        told["error"] = float(names["error"])
    except BaseException as problem:
        told["raised"] = chain(problem)
    # What it sets is for itself.
    os.environ.clear()
    os.environ.update(variables)
    tell(step, told)
    return not (devices and "raised" in told)


def chain(problem: Optional[BaseException]) -> List[str]:
    """What was raised, and what led to it."""
    said = []  # type: List[str]
    while problem is not None and len(said) < 5:
        said.append("%s: %s" % (type(problem).__name__, _text(problem)))
        problem = problem.__cause__ or problem.__context__
    return said


def _text(problem: BaseException) -> str:
    try:
        text = str(problem)
    except Exception:
        text = "(it cannot say what is wrong)"
    return text if len(text) <= MOST_TEXT else text[:MOST_TEXT // 2] + text[-MOST_TEXT // 2:]


if __name__ == "__main__":
    main(sys.argv[1:])
    # What a library does when a program ends has no part in it.
    os._exit(0)
