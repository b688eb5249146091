# SPDX-License-Identifier: Apache-2.0
"""A wheel is built from its source, within bounds.

    path = build.build(python, sdist, plan, into="/var/lib/firstlight/cache/wheel-builds",
                       log="/var/lib/firstlight/wheels/logs/flash-attn.log")

What builds runs code of strangers for an hour, with compilers that take all there is. So it runs
in a clean environment, below everything else on the host, beside a watcher that ends it at the
limit, when memory or disk get short, and when the one who asked for it is gone; every process of
it, those that took themselves to sessions of their own too. A failed build leaves its log and
nothing else.

It gets no way out: what it fetched by itself would have no hash that we know. That is a matter of
settings (no index, proxies that lead nowhere), not of walls: a package that is built is trusted as
one that is installed.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import select
import shutil
import signal
import subprocess
import tarfile
import time
import uuid
import zipfile
import zlib
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from .. import findings, processes
from ..findings import Finding, finding
from ..planning import wheel_builds
from ..runner import run
from ..transaction import Busy, Lock
from . import archive, build_probe
from .pages import normal

BuildPlan = Dict[str, Any]

# Of a module that comes in an archive the file is gone when its process has let go of it.
PROBE = inspect.getsource(build_probe)
PROBE_S = 120.0
NVCC_S = 30.0
POLL_S = 0.1
SECONDS_TO_DIE = 10.0
MOST_TEXT = 2**20
"""Bytes of a file of the distribution that is read; none of those is larger."""
MOST_LOG = 64 * 2**20
TAIL = 64 * 1024
TAIL_LINES, LONGEST_LINE = 20, 2000
MARKER = "FIRSTLIGHT_BUILD"
FOLDER = ".build-"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# The port of `discard`, on which nobody listens: who respects a proxy gets no further.
NOWHERE = "http://127.0.0.1:9"
USER_INFO = re.compile(r"(\w+://)[^/@\s]+@")
SDIST = re.compile(r"(?P<package>.+)-(?P<version>[^-]+)\.(tar\.gz|tgz|zip)$")
WHEEL = re.compile(r"(?P<package>[^-]+)-(?P<version>[^-]+)(-\d[^-]*)?-[^-]+-[^-]+"
                   r"-(?P<platform>[^-]+)\.whl$")
# From here on pip says what it says of every failure.
PIPS_END = re.compile(r"error: subprocess-exited-with-error")
PR_SET_CHILD_SUBREAPER = 36


class BuildFailed(Exception):
    """There is no wheel.

    ``findings`` say why, the worst first; ``tail`` is the end of the log, at most 64 KiB, empty
    where the build was not begun.
    """

    def __init__(self, told: List[Finding], tail: str = "") -> None:
        super().__init__(findings.text(told))
        self.findings, self.tail = told, tail


class Ended(NamedTuple):
    """How a build ended: its exit status, or why it was ended (``why``)."""

    status: Optional[int]
    why: str
    left: List[int]
    """Processes that could not be ended."""


def build(python: str, sdist_path: str, plan: BuildPlan, into: str, log: str,
          pip: str = "") -> str:
    """Build a wheel; its path, a file directly in ``into``, which is the caller's.

    :param python: the interpreter of the environment that it is built in and for.
    :param sdist_path: the source distribution, whose hash the caller has checked.
    :param plan: of :func:`wheel_builds.build_plan`.
    :param into: folder for builds; one at a time is at work in it.
    :param log: file for what the build says; that of an earlier build is replaced.
    :param pip: the folder of a pip (``…/site-packages/pip``), where the environment has none.
    :raises BuildFailed: for whatever reason there is no wheel.
    :raises OSError: ``into`` or ``log`` cannot be written.
    """
    refused = findings.blocking(plan["findings"])
    if refused:
        raise BuildFailed(refused)
    os.makedirs(into, mode=0o755, exist_ok=True)
    try:
        with Lock(os.path.join(into, "build.lock"), wait_s=0):
            _clear(into)
            marker = uuid.uuid4().hex
            work = os.path.join(into, FOLDER + marker)
            os.mkdir(work, 0o700)
            try:
                return _build(python, sdist_path, plan, into, log, pip, work, marker)
            finally:
                _remove(work)
    except Busy as problem:
        raise BuildFailed([finding(
            "wheel-build-busy", plan["package"], str(problem), "one build at a time on a host: "
            "each takes all the memory that there is", "Run again when that one has ended.")
        ]) from problem


def _build(python: str, sdist_path: str, plan: BuildPlan, into: str, log: str, pip: str,
           work: str, marker: str) -> str:
    for name in ("home", "tmp", "wheels"):
        os.mkdir(os.path.join(work, name), 0o700)
    package, version, wrong = _named(sdist_path, plan["package"])
    env = _environment(python, plan, work, marker)
    if not wrong:
        wrong = _not_there(python, sdist_path, plan, pip, work, env)
    if wrong:
        raise BuildFailed(wrong)
    runner = [os.path.join(pip, "__pip-runner__.py")] if pip else ["-m", "pip"]
    argv = [python, "-I", "-B", *runner, "wheel", "-v", "--no-deps", "--no-build-isolation",
            "--no-index", "--no-cache-dir", "--wheel-dir", os.path.join(work, "wheels"),
            sdist_path]
    _begin_log(log, argv, env)
    ended = _watched(argv, env, work, log, plan, marker)
    if ended.why or ended.status != 0:
        raise _failure(plan, ended, log)
    return _result(os.path.join(work, "wheels"), package, version, plan, into, log)


def _environment(python: str, plan: BuildPlan, work: str, marker: str) -> Dict[str, str]:
    """All the variables of a build: none of the caller's, who may have secrets among them."""
    env = {
        "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1", "PYTHONNOUSERSITE": "1",
        # What it imports of the environment is left as it is.
        "PYTHONDONTWRITEBYTECODE": "1",
        "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_NO_INPUT": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        # Else a setup.py is run so that it fetches by itself what it wants to be built with.
        "PIP_USE_PEP517": "1",
        "GIT_TERMINAL_PROMPT": "0",
    }
    for name in ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy"):
        env[name] = env[name.upper()] = NOWHERE
    env.update(plan["environment"])
    # Programs that packages bring, ninja above all, lie beside the interpreter.
    ways = [os.path.dirname(python), env.get("PATH") or os.environ.get("PATH") or DEFAULT_PATH]
    env["PATH"] = os.pathsep.join(ways)
    env.update({"HOME": os.path.join(work, "home"), "TMPDIR": os.path.join(work, "tmp"),
                MARKER: marker})
    return env


# What must be there before it is begun, all of it at once.


def _named(sdist_path: str, package: str) -> Tuple[str, str, List[Finding]]:
    """The package and version that a source distribution's file name tells."""
    named = SDIST.fullmatch(os.path.basename(sdist_path))
    if named and normal(named["package"]) == normal(package):
        return named["package"], named["version"], []
    return "", "", [finding(
        "wheel-build-sdist", package, "the file %s" % os.path.basename(sdist_path),
        "a source distribution of %s: its name, a hyphen, its version, .tar.gz" % package,
        "Give that one in prebuilt_wheel_sources.")]


def _not_there(python: str, sdist_path: str, plan: BuildPlan, pip: str, work: str,
               env: Dict[str, str]) -> List[Finding]:
    """What the build would miss; sets where CUDA is, where it is to be used."""
    package = plan["package"]
    try:
        texts, own = _texts(sdist_path)
    except (OSError, EOFError, ValueError, tarfile.TarError, zipfile.BadZipFile,
            zlib.error) as problem:
        return [finding("wheel-build-sdist", package, "%s: %s" % (sdist_path, problem),
                        "a whole source distribution", "Remove that file and run again.")]
    wrong = _compilers(package, env) + _cuda(python, plan, env)
    asked = {"pyproject": texts["pyproject.toml"], "setup": texts["setup.py"],
             "setup_cfg": texts["setup.cfg"], "own": sorted(own), "requires": plan["requires"],
             "pip": pip}
    question = os.path.join(work, "asked.json")
    with open(question, "w", encoding="utf-8") as file:
        json.dump(asked, file)
    ran = run([python, "-I", "-B", "-c", PROBE, question], timeout_s=PROBE_S)
    try:
        told = json.loads(ran.stdout)
    except ValueError:
        return [*wrong, finding(
            "wheel-build-requires", package, "%s does not say what is installed: %s" % (
                python, ran.error or _last(ran.stderr) or "exit %s" % ran.rc),
            "an interpreter that runs", "Repair that environment.")]
    if not told["pip"]:
        wrong.append(finding(
            "wheel-build-requires", package, "the environment of %s has no pip" % python,
            "a pip to build with", "Run `%s -m ensurepip`." % python))
    if told["problem"]:
        wrong.append(finding(
            "wheel-build-sdist", package, told["problem"], "a source distribution whose build "
            "requirements can be read", "Bring a newer pip into this environment."))
    if told["missing"]:
        wrong.append(finding(
            "wheel-build-requires", package,
            "; ".join("%s: %s (%s)" % (one["need"], one["found"], one["how"])
                      for one in told["missing"]),
            "all that the build takes, in the environment of %s: it is built there, against its "
            "torch, not in an isolated one" % python,
            "Install them into that environment, then run again."))
    if not told["header"] and plan["compiled"]:
        wrong.append(finding(
            "wheel-build-no-compiler", package, "%s has no Python.h" % python,
            "Python's headers", wheel_builds.PYTHON_PACKAGES, needs_root=True))
    return wrong


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return findings.shown(lines[-1])[:LONGEST_LINE] if lines else ""


def _texts(path: str) -> Tuple[Dict[str, str], Set[str]]:
    """The files of a distribution that tell how it is built, and the modules it brings."""
    texts = dict.fromkeys(("pyproject.toml", "setup.py", "setup.cfg"), "")
    own: Set[str] = set()
    for name, read in _members(path):
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if len(parts) > 1:
            own.add(parts[1][:-3] if parts[1].endswith(".py") else parts[1])
        if len(parts) == 2 and parts[1] in texts:
            texts[parts[1]] = read().decode("utf-8", "replace")
    return texts, own - {"setup"}


def _members(path: str) -> Iterator[Tuple[str, Callable[[], bytes]]]:
    if path.endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                def from_zip(name: str = name) -> bytes:
                    with archive.open(name) as file:
                        return file.read(MOST_TEXT)
                yield name, from_zip
        return
    with tarfile.open(path) as tar:
        for member in tar:
            def from_tar(member: tarfile.TarInfo = member) -> bytes:
                file = tar.extractfile(member) if member.isfile() else None
                return file.read(MOST_TEXT) if file else b""
            yield member.name, from_tar


def _compilers(package: str, env: Dict[str, str]) -> List[Finding]:
    missing = []
    for variable, names in (("CC", ("cc", "gcc")), ("CXX", ("c++", "g++"))):
        told = env.get(variable, "").split()
        if not any(shutil.which(name, path=env["PATH"]) for name in told[:1] or names):
            missing.append(" or ".join(told[:1] or names))
    if not missing:
        return []
    return [finding("wheel-build-no-compiler", package, "no %s in %s" % (
        ", no ".join(missing), env["PATH"]), "compilers of C and C++", wheel_builds.PACKAGES,
        needs_root=True)]


def _cuda(python: str, plan: BuildPlan, env: Dict[str, str]) -> List[Finding]:
    """What is wrong with CUDA's toolkits here; sets ``CUDA_HOME`` to the one that fits best."""
    wanted, least = plan["cuda"].get("wanted"), plan["cuda"].get("least", "")
    if not wanted:
        return []
    seen = dict(_toolkits(python, env))
    fitting = [(home, version) for home, version in seen.items()
               if version.partition(".")[0] == wanted.partition(".")[0]
               and wheel_builds.number(version) >= wheel_builds.number(least)]
    if fitting:
        # The same minor, else the nearest: torch takes another one with a warning.
        home, _ = min(fitting, key=lambda pair: abs(
            wheel_builds.number(pair[1])[-1] - wheel_builds.number(wanted)[-1]))
        env["CUDA_HOME"] = home
        env["PATH"] = os.path.join(home, "bin") + os.pathsep + env["PATH"]
        return []
    remedy = ("Install the CUDA toolkit %s with its headers (nvcc is not part of the driver; on "
              "Debian and Ubuntu with NVIDIA's repository: apt-get install cuda-toolkit-%s), or "
              "name another place of it: CUDA_HOME in build.environment of the row." % (
                  wanted, wanted.replace(".", "-")))
    if not seen:
        return [finding("wheel-build-no-compiler", plan["package"], "no CUDA toolkit: nvcc and "
                        "cuda_runtime.h are not in CUDA_HOME, beside nvcc, in /usr/local/cuda*, or "
                        "in the environment", "the CUDA toolkit %s" % wanted, remedy,
                        needs_root=True)]
    return [finding(
        "wheel-build-cuda", plan["package"], "; ".join(
            "CUDA %s in %s" % (version, home) for home, version in sorted(seen.items())),
        "CUDA %s, as torch was built with%s" % (
            wanted, "; its compiler must be %s or newer for this host's GPUs" % least
            if least else ""), remedy, needs_root=True)]


def _toolkits(python: str, env: Dict[str, str]) -> Iterator[Tuple[str, str]]:
    """Where CUDA toolkits are, with their versions."""
    homes = [env["CUDA_HOME"]] if env.get("CUDA_HOME") else [
        os.environ.get("CUDA_HOME", ""), os.environ.get("CUDA_PATH", ""),
        _above(shutil.which("nvcc", path=env["PATH"]) or ""), _above(python)]
    if not env.get("CUDA_HOME"):
        with contextlib.suppress(OSError):
            homes += sorted(os.path.join("/usr/local", name) for name in os.listdir("/usr/local")
                            if name.startswith("cuda"))
    real: Set[str] = set()
    for home in homes:
        nvcc = os.path.join(home, "bin", "nvcc")
        if not home or os.path.realpath(home) in real or not os.access(nvcc, os.X_OK):
            continue
        real.add(os.path.realpath(home))
        if not any(os.path.exists(os.path.join(home, folder, "cuda_runtime.h")) for folder in (
                "include", *("targets/%s-linux/include" % one for one in (
                    "x86_64", "sbsa", "aarch64")))):
            continue
        version = re.search(r"\brelease (\d+\.\d+)", run([nvcc, "--version"],
                                                         timeout_s=NVCC_S).stdout)
        if version:
            yield home, version.group(1)


def _above(program: str) -> str:
    return os.path.dirname(os.path.dirname(program))


# The log.


def _begin_log(log: str, argv: List[str], env: Dict[str, str]) -> None:
    os.makedirs(os.path.dirname(log), mode=0o755, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(log)
    lines = [processes.shown(argv), *(processes.shown(["%s=%s" % pair])
                                      for pair in sorted(env.items()))]
    # Its own, so that nobody finds a link of a stranger's there.
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write("\n".join(map(findings.shown, lines)) + "\n\n")


def _lines(log: str) -> Iterator[str]:
    """What the build said, without what we said before it."""
    with open(log, encoding="utf-8", errors="replace") as file:
        for line in file:
            if line == "\n":
                break
        for line in file:
            yield USER_INFO.sub(r"\1", line.rstrip("\n")[:LONGEST_LINE])


def _failure(plan: BuildPlan, ended: Ended, log: str) -> BuildFailed:
    package, jobs = plan["package"], plan["jobs"]
    tail: List[str] = []
    size = 0
    for line in _lines(log):
        tail.append(line)
        size += len(line) + 1
        while size > TAIL:
            size -= len(tail.pop(0)) + 1
    own = next((number for number, line in enumerate(tail) if PIPS_END.fullmatch(line.strip())),
               len(tail))
    end = "\n".join(tail[max(0, own - TAIL_LINES):own])
    where = "%s on this host" % log
    told = []
    if ended.why:
        told.append(_stopped(plan, ended.why, end, where))
    signs = [] if ended.why else wheel_builds.build_signs(package, jobs, _lines(log))
    for one in signs:
        one["evidence"] = "%s\n(%s)" % (one["evidence"], where)
    told += signs
    if not told:
        status = ended.status or 0
        told.append(finding(
            "wheel-build-failed", package,
            "the build ended with %s %d" % ("signal" if status < 0 else "status", abs(status)),
            "a wheel", "Read the whole log: %s. A wheel that is made elsewhere (the package's "
            "releases, another host's wheelhouse) needs no build." % where, evidence=end))
    if ended.left:
        told.append(finding(
            "wheel-build-left", package, "processes of the build that do not end: %s" % ", ".join(
                map(str, ended.left)), "none", "See what they wait for (the kernel, for a driver "
            "or a file system), and end them.", severity="warning"))
    return BuildFailed(told, "\n".join(tail))


def _stopped(plan: BuildPlan, why: str, end: str, where: str) -> Finding:
    package, keep = plan["package"], plan["keep"]
    name, found, wanted, remedy = {
        "limit": ("wheel-build-slow", "the build was not done within %d s and was ended" % (
            plan["limit_s"]), "a build within prebuilt_wheel_build_limit_s",
            "Raise that limit, or build on a host with more cores and memory (%d compiler%s at a "
            "time here)." % (plan["jobs"], "" if plan["jobs"] == 1 else "s")),
        "memory": ("wheel-build-memory", "less than %d MiB of memory were left on the host, and "
                   "the build was ended" % (keep["memory_bytes"] // 2**20),
                   "memory for the compilers and for all else on the host",
                   "Raise build.job_bytes of the row (prebuilt_wheel_rows), so that fewer "
                   "compilers run at a time, or build on another host."),
        "disk": ("wheel-build-disk", "less than %d MiB of disk were left, and the build was ended"
                 % (keep["disk_bytes"] // 2**20), "room for the sources, the objects and the wheel",
                 "Make room, and set build.disk_bytes of the row to what it takes."),
        "log": ("wheel-build-failed", "the build said more than %d MiB and was ended" % (
            MOST_LOG // 2**20), "a build that ends", "Read the log."),
        "asked": ("wheel-build-failed", "the build was ended from outside", "a build that is let "
                  "run", "Run again."),
        "watcher": ("wheel-build-failed", "what watched the build was killed, and the build was "
                    "ended", "a build that is let run", "See the kernel's log for who was short of "
                    "memory, and run again."),
        "start": ("wheel-build-failed", "the build could not be started", "a build",
                  "Read the log."),
    }[why]
    return finding(name, package, found, wanted, remedy, evidence="%s\n(%s)" % (end, where))


def _result(folder: str, package: str, version: str, plan: BuildPlan, into: str,
            log: str) -> str:
    """Take the wheel out of the folder of the build."""
    files = sorted(os.listdir(folder))
    named = WHEEL.fullmatch(files[0]) if len(files) == 1 else None
    found = "the build made %s" % (", ".join(files[:5]) or "no wheel")
    wanted = "one wheel of %s %s" % (plan["package"], version)
    remedy = "Read %s on this host, and use another version or source." % log
    if (named is None or normal(named["package"]) != normal(package)
            or not _is_of(named["version"], version)):
        raise BuildFailed([finding("wheel-build-result", plan["package"], found, wanted, remedy)])
    if plan["compiled"] and named["platform"] == "any":
        raise BuildFailed([finding(
            "wheel-build-result", plan["package"], found,
            "one with the compiled part: this one has none", remedy)])
    path = os.path.join(into, files[0])
    os.replace(os.path.join(folder, files[0]), path)
    return path


def _is_of(made: str, version: str) -> bool:
    """Whether a wheel's version is its source's; it may tell what it was built for, behind a +."""
    return archive.same_version(made if "+" in version else made.partition("+")[0], version)


# Running it, and ending all of it.


def _watched(argv: List[str], env: Dict[str, str], work: str, log: str, plan: BuildPlan,
             marker: str) -> Ended:
    """Run the build under a watcher that outlives us: when we are gone, so is the build."""
    alive, ours = os.pipe()
    telling, theirs = os.pipe()
    watcher = os.fork()
    if watcher == 0:
        os.close(ours)
        os.close(telling)
        _never_back(lambda: _watch(argv, env, work, log, plan, marker, alive, theirs))
    os.close(alive)
    os.close(theirs)
    said = b""
    try:
        with os.fdopen(telling, "rb") as pipe:
            said = pipe.read()
    finally:
        os.close(ours)
        os.waitpid(watcher, 0)
        # A watcher that was killed could not.
        left = [] if said else _end(marker)
    if not said:
        return Ended(None, "watcher", left)
    return Ended(**json.loads(said))


def _never_back(task: Callable[[], None]) -> None:
    """Run the rest of a forked process, which must never go on in its parent's code."""
    try:
        task()
    finally:
        os._exit(1)


def _watch(argv: List[str], env: Dict[str, str], work: str, log: str, plan: BuildPlan,
           marker: str, alive: int, telling: int) -> None:
    asked: List[int] = []
    for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(one, lambda number, _: asked.append(number))
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1, 2):
        os.dup2(null, handle)
    _adopt()
    status, why = None, ""
    tool: Optional[int] = None
    deadline = time.monotonic() + plan["limit_s"]
    try:
        tool = _start(argv, env, work, log)
    except OSError as problem:
        why = "start"
        with open(log, "a", encoding="utf-8") as file:
            file.write("%s: %s\n" % (argv[0], problem.strerror))
    abandoned = False
    while not why:
        _, status = _reap(tool)
        if status is not None:
            break
        if asked:
            why = "asked"
        elif select.select([alive], [], [], POLL_S)[0]:
            why, abandoned = "asked", True
        elif time.monotonic() > deadline:
            why = "limit"
        else:
            why = _short(plan["keep"], work, log)
    # What it started and did not wait for ends with it too.
    left = _end(marker, os.getpid())
    if abandoned:
        _remove(work)
    with contextlib.suppress(OSError), os.fdopen(telling, "wb") as pipe:
        pipe.write(json.dumps({"status": status, "why": why, "left": left}).encode())
    os._exit(0)


def _start(argv: List[str], env: Dict[str, str], work: str, log: str) -> int:
    ionice = shutil.which("ionice")
    words = [ionice, "-c", "3", *argv] if ionice else argv
    with open(log, "ab") as out:
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, cwd=work,
            start_new_session=True, preexec_fn=_stand_back).pid


def _stand_back() -> None:
    """Let everything else on the host go first; where memory is short, be the first to go."""
    os.nice(19)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _adopt() -> None:
    """Be the parent of every orphan of the build: who leaves his session stays in the family."""
    with contextlib.suppress(ImportError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _reap(tool: Optional[int] = None) -> Tuple[bool, Optional[int]]:
    """Wait for all that has ended: whether no child is left, and the status that ``tool`` had."""
    status = None
    while True:
        try:
            pid, how = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return True, status
        if pid == 0:
            return False, status
        if pid == tool:
            status = -os.WTERMSIG(how) if os.WIFSIGNALED(how) else os.WEXITSTATUS(how)


def _short(keep: Dict[str, int], work: str, log: str) -> str:
    """What there is too little of on this host, if anything."""
    with contextlib.suppress(OSError):
        room = os.statvfs(work)
        if room.f_bavail * room.f_frsize < keep["disk_bytes"]:
            return "disk"
        if os.stat(log).st_size > MOST_LOG:
            return "log"
        with open("/proc/meminfo", encoding="ascii") as file:
            left = re.search(r"^MemAvailable: +(\d+) kB", file.read(), re.MULTILINE)
        if left and int(left.group(1)) * 1024 < keep["memory_bytes"]:
            return "memory"
    return ""


def _end(marker: str, above: Optional[int] = None) -> List[int]:
    """Kill every process of a build; the pids of those that do not end.

    :param above: the watcher, where it is the one who asks: that it has no child any more is the
        kernel's word for the end of them all.
    """
    deadline = time.monotonic() + SECONDS_TO_DIE
    seen_none = 0
    while True:
        childless = above is None or _reap()[0]
        left = _of_build(marker, above)
        # Twice: one that begins another program has no environment for a moment.
        seen_none = 0 if left or not childless else seen_none + 1
        if seen_none == 2 or time.monotonic() > deadline:
            return sorted(left)
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _of_build(marker: str, above: Optional[int]) -> Set[int]:
    """Processes that have the build's mark in their environment, or descend from its watcher."""
    parents: Dict[int, int] = {}
    marked, ended = set(), set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            with open("/proc/%s/stat" % name, encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
            parents[int(name)] = int(fields[1])
            # One whose first thread has ended looks ended, while the others work on.
            if fields[0] in "ZX" and int(fields[17]) < 2:
                ended.add(int(name))
            with open("/proc/%s/environ" % name, "rb") as file:
                if ("%s=%s" % (MARKER, marker)).encode() in file.read().split(b"\0"):
                    marked.add(int(name))
    found = marked | ({above} if above is not None else set())
    grown = True
    while grown:
        further = {pid for pid, parent in parents.items() if parent in found} - found
        found |= further
        grown = bool(further)
    return found - ended - {above, os.getpid()}


def _clear(into: str) -> None:
    """Remove what a build left whose watcher was killed too, and end what of it still runs."""
    for name in os.listdir(into):
        if name.startswith(FOLDER):
            _end(name[len(FOLDER):])
            _remove(os.path.join(into, name))


def _remove(folder: str) -> None:
    """Remove a folder, those in it included that the build has made read-only."""
    for path, names, _ in os.walk(folder):
        for name in names:
            inner = os.path.join(path, name)
            if not os.path.islink(inner):
                with contextlib.suppress(OSError):
                    os.chmod(inner, 0o700)
    shutil.rmtree(folder, ignore_errors=True)
