# SPDX-License-Identifier: Apache-2.0
"""Whether and how a wheel may be built from its source on a host, and why a build has failed.

A build that takes its own choices compiles for every GPU there is, with as many compilers as there
are cores; the memory goes first, and the host with it. Here the architectures are those of the
host's GPUs, the compilers as many as its memory holds, and the time has a limit.
"""

from __future__ import annotations

import re
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Pattern, Tuple

from ..findings import Finding, finding

Row = Dict[str, Any]
Environment = Dict[str, Any]
Facts = Dict[str, Any]
BuildPlan = Dict[str, Any]

# What the host keeps beside the compilers, for all else that runs on it.
SPARED_BYTES = 2 * 2**30
# A compiler of C++ that a row says nothing of.
JOB_BYTES = 4 * 2**30
# Sources, objects and the wheel; a row with larger ones says so with build.disk_bytes.
DISK_BYTES = 8 * 2**30
# Below these a build is ended, whatever was planned: the host is worth more than the wheel.
KEEP_DISK_BYTES = 2**30
KEEP_MEMORY_BYTES = 2**29
# torch's own name for it, which most builds of this kind read.
JOBS_VARIABLE = "MAX_JOBS"
CAPABILITY = re.compile(r"\d+\.\d+")
# GPUs in one chip with the CPU: of TX1, TX2, Xavier, Orin and Thor (now called 11.0).
TEGRA = ((5, 3), (6, 2), (7, 2), (8, 7), (10, 1))
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What the build is given by us; a row that said otherwise would let it out of its bounds.
OURS = ("FIRSTLIGHT_BUILD", "HOME", "TMPDIR")
MOST_LINES = 5

PACKAGES = ("Debian and Ubuntu: apt-get install build-essential. Fedora and RHEL: dnf install gcc "
            "gcc-c++ make.")
PYTHON_PACKAGES = ("Debian and Ubuntu: apt-get install python3-dev (or python3.X-dev of that "
                   "version). Fedora and RHEL: dnf install python3-devel.")


def build_plan(row: Row, environment: Environment, capabilities: Iterable[str], facts: Facts,
               limit_s: int) -> BuildPlan:
    """How the package of a row is built in an environment of this host, or why it is not.

    :param row: of ``catalog/prebuilt_wheels.yml``. Beside the keys that every ``build`` has, it
        may have ``requires`` (what the build imports and its metadata does not tell) and
        ``disk_bytes``. In the values of ``build.environment``, ``{torch}`` (2.8), ``{cuda}``
        (12.8), ``{cuda_major}`` and ``{cxx11abi}`` (TRUE or FALSE) are the environment's.
    :param environment: as ``prebuilt_wheel_info`` returns it.
    :param capabilities: compute capabilities to build for; none: those of the host's GPUs.
    :param facts: ``ansible_facts.gpu_host``; what it lacks is not known.
    :param limit_s: seconds that the build may take.
    :returns: ``package``, ``environment`` (variables), ``jobs`` (compilers at a time),
        ``architectures`` (as the build takes them), ``limit_s``, ``why`` (sentences), ``findings``
        (those that block refuse it), and for the host: ``built_for`` (what the wheel then fits),
        ``cuda`` (``wanted`` and ``least`` version of the compiler, or empty), ``requires``,
        ``keep`` (``disk_bytes`` and ``memory_bytes`` below which the build is ended) and
        ``compiled`` (whether the wheel must hold compiled code).
    """
    package, build = row["package"], row["build"]
    if not build:
        return _plan(package, [_refused(
            "wheel-build-unknown", package, "its row does not say how it is built",
            "a row with `build`", "Give a wheel (prebuilt_wheel_sources), or a row with `build` in "
            "prebuilt_wheel_rows.")], limit_s)
    torch = environment["torch"]
    findings = _torch_findings(row, torch)
    least, kernels, capability_why, told = _kernels(row, torch, capabilities, facts)
    findings += told
    jobs, jobs_why, told = _jobs(package, build, facts)
    findings += told
    disk_why, told = _disk(package, build, facts)
    findings += told
    if int(limit_s) < 1:
        findings.append(_refused(
            "wheel-build-limit", package, "a limit of %d s" % int(limit_s), "at least one second",
            "Raise prebuilt_wheel_build_limit_s."))
    variables, told = _variables(package, build, torch, row)
    findings += told
    architectures = _architectures(build, kernels)
    if architectures:
        variables[build["architectures"]["variable"]] = architectures
    variables[build.get("jobs") or JOBS_VARIABLE] = str(max(1, jobs))
    needs_cuda = row["cuda"] != "none"
    plan = _plan(package, findings, limit_s)
    plan.update(
        environment=dict(sorted(variables.items())), jobs=jobs, architectures=architectures,
        why=" ".join(one for one in (capability_why, jobs_why, disk_why) if one),
        requires=list(build.get("requires") or []),
        cuda={"wanted": torch["cuda"], "least": least} if needs_cuda else {},
        compiled=needs_cuda or bool(architectures),
        built_for=_built_for(row, environment, kernels),
    )
    return plan


def _plan(package: str, findings: List[Finding], limit_s: int) -> BuildPlan:
    return {
        "package": package, "environment": {}, "jobs": 0, "architectures": "",
        "limit_s": int(limit_s), "why": "", "findings": findings, "built_for": {}, "cuda": {},
        "requires": [], "compiled": False,
        "keep": {"disk_bytes": KEEP_DISK_BYTES, "memory_bytes": KEEP_MEMORY_BYTES},
    }


def _refused(name: str, package: str, found: str, wanted: str, remedy: str, severity: str = "error",
             evidence: str = "", needs_root: bool = False) -> Finding:
    return finding(name, package, found, wanted, remedy, severity=severity, evidence=evidence,
                   needs_root=needs_root)


def _torch_findings(row: Row, torch: Dict[str, Any]) -> List[Finding]:
    package = row["package"]
    if row["torch"] == "none" and row["cuda"] == "none":
        return []
    if torch["state"] != "ok":
        return [_refused(
            "wheel-build-torch", package, "torch in this environment is %s%s" % (
                torch["state"], ": " + torch["why"] if torch["why"] else ""),
            "a torch that can be imported: the build compiles against it",
            "Install torch into this environment first.")]
    if row["cuda"] != "none" and not torch["cuda"]:
        return [_refused(
            "wheel-build-torch", package, "torch %s, which has no CUDA" % torch["version"],
            "a torch with CUDA", "Install a CUDA build of torch into this environment, or leave "
            "%s out on this host." % package)]
    return []


def _kernels(row: Row, torch: Dict[str, Any], asked: Iterable[str], facts: Facts
             ) -> Tuple[str, List[str], str, List[Finding]]:
    """The least CUDA that they need, capabilities of kernels, why these, and what is wrong."""
    if row["cuda"] == "none":
        return "", [], "", []
    package = row["package"]
    wanted = _known(asked)
    why = "For the compute capabilities that were asked for: %s." % ", ".join(wanted)
    findings: List[Finding] = []
    if not wanted:
        wanted = _known([*(one.get("capability") for one in facts.get("devices") or []),
                         *(one.get("capability") for one in torch["devices"])])
        why = "For this host's GPUs: %s." % ", ".join(wanted)
        silent = [one for one in facts.get("devices") or []
                  if not _known([one.get("capability")])]
        if silent and wanted:
            findings.append(_refused(
                "wheel-build-architecture", package, "%d of this host's GPUs do not tell their "
                "compute capability" % len(silent), "every GPU's",
                "Run playbooks/doctor.yml for them. The wheel is built for the others: %s."
                % ", ".join(wanted), severity="warning"))
    if not wanted:
        return "", [], "", [_refused(
            "wheel-build-architecture", package, "no GPU of this host tells its compute capability",
            "one to build for: a build for all of them takes hours",
            "Build on a host that has the GPU; its wheel is kept in the wheelhouse for the "
            "others. If this host has one, run playbooks/doctor.yml.")]
    rows = row["capabilities"]
    chosen: List[Tuple[str, str]] = []
    for one in wanted:
        fitting = [(each["capability"], each["cuda"]) for each in rows
                   if runs(each["capability"], one)
                   and number(torch["cuda"]) >= number(each["cuda"])]
        if fitting or not rows:
            chosen.append(max(fitting, key=lambda pair: number(pair[0])) if rows else (one, ""))
            continue
        newer = [each["cuda"] for each in rows if runs(each["capability"], one)]
        findings.append(_refused(
            "wheel-build-architecture", package,
            "a GPU of compute capability %s, and torch's CUDA %s" % (one, torch["cuda"] or "none"),
            "CUDA %s or newer for that GPU" % min(newer, key=number) if newer else
            "one of %s: there is no kernel for this GPU"
            % ", ".join(each["capability"] for each in rows),
            "Install a torch with a newer CUDA." if newer else
            "Leave %s out on this host." % package,
            # Another GPU of the host may be the one that is meant.
            severity="warning"))
    if not chosen:
        findings = [{**one, "severity": "error"} for one in findings]
    kernels = sorted({capability for capability, _ in chosen}, key=number)
    least = max((cuda for _, cuda in chosen), key=number, default="")
    return least, kernels, why, findings


def _known(capabilities: Iterable[Any]) -> List[str]:
    return sorted({one for one in capabilities
                   if isinstance(one, str) and CAPABILITY.fullmatch(one)}, key=number)


def runs(kernel: str, device: str) -> bool:
    """Whether a kernel for one compute capability runs on a device of another.

    Those for X.Y run on X.Z where Z is not less than Y. A Tegra runs none but its own: NVIDIA
    promises nothing between these and others.
    """
    of, on = number(kernel), number(device)
    if of in TEGRA or on in TEGRA:
        return of == on
    return of[:1] == on[:1] and of <= on


def number(version: str) -> Tuple[int, ...]:
    """The first two numbers of a version, to be compared; ``()`` of a text that has none."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _architectures(build: Dict[str, Any], kernels: List[str]) -> str:
    told = build.get("architectures") or {}
    if not told or not told.get("variable"):
        return ""
    return ";".join(one if "." in told["form"] else one.replace(".", "") for one in kernels)


def _jobs(package: str, build: Dict[str, Any], facts: Facts) -> Tuple[int, str, List[Finding]]:
    """Compilers at a time, 0 where there is no room for one, and why."""
    job_bytes = int(build.get("job_bytes") or JOB_BYTES)
    cores = (facts.get("cpu") or {}).get("cores")
    memory = facts.get("memory") or {}
    room = [one for one in (memory.get("available_bytes"), memory.get("limit_bytes"))
            if one is not None]
    if memory.get("available_bytes") is None:
        # What there is in all may still be too little.
        room += [one for one in [memory.get("total_bytes")] if one is not None]
    if room and min(room) - SPARED_BYTES < job_bytes:
        return 0, "", [_refused(
            "wheel-build-memory", package, "%s of memory are available" % _size(min(room)),
            "%s for one compiler, and %s for all else on this host" % (
                _size(job_bytes), _size(SPARED_BYTES)),
            "Build on a host with more memory (its wheel is kept in the wheelhouse for the "
            "others), or end what uses the memory of this one.")]
    if memory.get("available_bytes") is None:
        return 1, "One compiler at a time, as the available memory is not known.", []
    if cores is None:
        return 1, "One compiler at a time, as the number of cores is not known.", []
    jobs = max(1, min(int(cores), (min(room) - SPARED_BYTES) // job_bytes))
    why = "At most %d at a time: %d cores; %s of memory less %s, at %s for each compiler." % (
        jobs, cores, _size(min(room)), _size(SPARED_BYTES), _size(job_bytes))
    return jobs, why, []


def _disk(package: str, build: Dict[str, Any], facts: Facts) -> Tuple[str, List[Finding]]:
    wanted = int(build.get("disk_bytes") or DISK_BYTES) + KEEP_DISK_BYTES
    disk = facts.get("disk") or {}
    free = disk.get("free_bytes")
    if free is None:
        return "The free space is not known; the build is ended when less than %s is left." % (
            _size(KEEP_DISK_BYTES)), []
    if free >= wanted:
        return "", []
    return "", [_refused(
        "wheel-build-disk", package, "%s are free%s" % (
            _size(free), " at %s" % disk["path"] if disk.get("path") else ""),
        "%s for the build" % _size(wanted), "Make room there, or choose another firstlight_root.")]


def _size(count: int) -> str:
    return "%.1f GiB" % (count / 2**30)


def _variables(package: str, build: Dict[str, Any], torch: Dict[str, Any], row: Row
               ) -> Tuple[Dict[str, str], List[Finding]]:
    marks = {
        "{torch}": _minor(torch["version"]), "{cuda}": torch["cuda"],
        "{cuda_major}": torch["cuda"].partition(".")[0],
        "{cxx11abi}": {True: "TRUE", False: "FALSE"}.get(torch["cxx11abi"], ""),
    }
    variables, findings = {}, []
    for name, value in (build.get("environment") or {}).items():
        if not VARIABLE.fullmatch(str(name)) or name in OURS:
            findings.append(_refused(
                "wheel-build-variable", package, "build.environment has %r" % name,
                "the name of a variable that is not one of %s" % ", ".join(OURS),
                "Correct the row in prebuilt_wheel_rows."))
            continue
        text = str(value)
        for mark, meant in marks.items():
            text = text.replace(mark, meant)
        variables[str(name)] = text
    return variables, findings


def _minor(version: str) -> str:
    return ".".join(str(part) for part in number(version))


def _built_for(row: Row, environment: Environment, kernels: List[str]) -> Dict[str, Any]:
    """What the wheel fits; its name does not tell all of it."""
    torch = environment["torch"]
    built: Dict[str, Any] = {"python": _minor(environment["version"])}
    if row["torch"] != "none":
        built.update(torch=_minor(torch["version"]), cxx11abi=torch["cxx11abi"])
    if row["cuda"] != "none":
        built.update(cuda=torch["cuda"], capabilities=kernels)
    return built


class Sign(NamedTuple):
    """What a line of a build's log means."""

    pattern: Pattern[str]
    name: str
    found: str
    wanted: str
    remedy: str
    needs_root: bool = False


def _sign(pattern: str, *rest: Any) -> Sign:
    return Sign(re.compile(pattern), *rest)


# The texts of gcc, nvcc, torch/utils/cpp_extension.py, setuptools, pip, git and curl.
SIGNS = (
    _sign(r"Killed signal terminated program|died due to signal 9|"
          r"\bKilled\b.*\b(cc1|cc1plus|cicc|ptxas|nvcc|ninja|c\+\+|g\+\+|gcc)\b|"
          r"virtual memory exhausted|std::bad_alloc|Cannot allocate memory|"
          r"out of memory allocating",
          "wheel-build-memory", "a compiler ran out of memory ({jobs} ran at a time)",
          "memory for every compiler at work",
          "Raise build.job_bytes of the row (prebuilt_wheel_rows), so that fewer compilers run at "
          "a time; end what uses the memory of this host, or build on another."),
    _sign(r"detected CUDA version \([\d.]+\) mismatches|Unsupported gpu architecture|"
          r"unsupported GNU version|unsupported clang version",
          "wheel-build-cuda", "the CUDA compiler does not go with torch, the GPU or gcc",
          "the CUDA toolkit that torch was built with, and a gcc that it takes",
          "Install the CUDA toolkit of torch.version.cuda, or a gcc that it supports, and name "
          "them in build.environment of the row (CUDA_HOME, CC, CXX).", True),
    _sign(r"nvcc was not found|nvcc['\"]?: (command )?not found|"
          r"CUDA_HOME environment variable is not set|No such file or directory: '[^']*nvcc'",
          "wheel-build-no-compiler", "the build did not find nvcc", "a CUDA toolkit",
          "Install the CUDA toolkit of torch.version.cuda (the driver alone has no compiler).",
          True),
    _sign(r"Python\.h: No such file", "wheel-build-no-compiler",
          "Python's headers are not there", "Python.h of that interpreter", PYTHON_PACKAGES, True),
    _sign(r"command '[^']*(cc|c\+\+|g\+\+|clang)[^']*' failed: No such file|"
          r"unable to execute '[^']*': No such file|No CMAKE_C\w*_COMPILER could be found",
          "wheel-build-no-compiler", "the build did not find a compiler", "gcc and g++", PACKAGES,
          True),
    _sign(r"No module named '?[\w.]+|BackendUnavailable|Cannot import '[\w.]+'|"
          r"invalid command 'bdist_wheel'",
          "wheel-build-requires", "the build imports what is not installed",
          "all that it imports, in this environment: it is built there, against its torch, not in "
          "an isolated one", "Install what the lines name into this environment, and list it in "
          "build.requires of the row."),
    _sign(r"No space left on device|Disk quota exceeded", "wheel-build-disk",
          "the disk is full", "room for the sources, the objects and the wheel",
          "Make room, and set build.disk_bytes of the row to what it takes."),
    _sign(r"urlopen error|Temporary failure in name resolution|Could not resolve (host|proxy)|"
          r"ProxyError|Cannot connect to proxy|Failed to connect to |unable to access 'https?:|"
          r"NewConnectionError|Could not find a version that satisfies",
          "wheel-build-network", "the build wanted something from the network",
          "a source distribution that holds all that it needs: what a build fetches by itself has "
          "no hash that we know",
          "See whether a variable stops it (build.environment of the row), or install what it "
          "wanted beforehand."),
)


def build_signs(package: str, jobs: int, lines: Iterable[str]) -> List[Finding]:
    """Why a build has failed, as far as the lines of its log tell; nothing where they do not.

    :param jobs: how many compilers ran at a time.
    """
    seen: Dict[int, List[str]] = {}
    for line in lines:
        number = _first(line)
        if number is not None and line.strip() not in seen.setdefault(number, []):
            seen[number] = (seen[number] + [line.strip()])[:MOST_LINES]
    return [_refused(SIGNS[number].name, package,
                     SIGNS[number].found.replace("{jobs}", str(jobs)), SIGNS[number].wanted,
                     SIGNS[number].remedy, evidence="\n".join(seen[number]),
                     needs_root=SIGNS[number].needs_root)
            for number in sorted(seen)]


def _first(line: str) -> Optional[int]:
    return next((number for number, sign in enumerate(SIGNS) if sign.pattern.search(line)), None)
