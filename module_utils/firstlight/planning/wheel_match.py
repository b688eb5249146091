# SPDX-License-Identifier: Apache-2.0
"""Which file of a package fits a Python environment, and what speaks against each other one."""

from __future__ import annotations

import json
import re
from typing import (
    Any,
    Collection,
    Dict,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from packaging.specifiers import InvalidSpecifier, Specifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from . import wheel_builds, wheel_names, wheel_tags
from .wheel_names import SDIST, BadName, Cuda, Name

Row = Mapping[str, Any]
Request = Mapping[str, Any]
Candidate = Dict[str, Any]
Environment = Mapping[str, Any]

# Indexes of wheels for one release of CUDA have it as a folder; the names in them need not.
IN_URL = re.compile(r"/cu(\d{2,3})/")
# NVIDIA's containers have builds of torch between releases, called after the container.
CONTAINER = re.compile(r"\.nv(\d{2}\.\d{2})")


class Unfit(NamedTuple):
    """Why no file at all will do in an environment."""

    id: str
    """Of its finding, without ``wheel-``."""
    found: str
    wanted: str
    remedy: str


class Told(NamedTuple):
    """What a file is for, as far as anything tells."""

    cuda: Optional[Cuda]
    torch: str
    onward: bool
    cxx11abi: Optional[bool]
    capabilities: Tuple[str, ...]


class Judged(NamedTuple):
    """A candidate with what speaks against it."""

    candidate: Candidate
    name: Optional[Name]
    told: Told
    objections: Dict[str, str]
    """Kind of objection to its sentence, the first one first; none for a file that fits."""


NOTHING = Told(None, "", False, None, ())


def matching_wheel(candidates: Iterable[Candidate], environment: Environment, request: Request,
                   capabilities: Collection[str] = ()) -> Dict[str, Any]:
    """The file that fits best.

    :param candidates: as ``prebuilt_wheel_info`` returns them.
    :param environment: likewise.
    :param request: as :func:`.wheel_requests.wheel_requests` gives it.
    :param capabilities: compute capabilities of the GPUs that it is to run on, as ``9.0``; without
        any the GPU is not asked about.
    :returns: ``wheel``, the best one or ``None``; ``ranked``, the names of all that fit, the best
        first; ``rejected``, ``{file, why}`` of each other candidate; ``sdist``, the newest source
        archive that could be compiled instead, or ``None``.
    """
    return summed_up(judged(candidates, environment, request, capabilities), request)


def summed_up(found: Sequence[Judged], request: Request) -> Dict[str, Any]:
    """What :func:`matching_wheel` returns, of candidates that are judged and sorted."""
    fit = [one for one in found if not one.objections]
    sources = [one for one in found if list(one.objections) == ["sdist"]]
    return {
        "wheel": _with_what_is_told(fit[0], request) if fit else None,
        "ranked": list(dict.fromkeys(str(one.candidate["file"]) for one in fit)),
        "rejected": [{"file": one.candidate.get("file"), "why": next(iter(one.objections.values()))}
                     for one in found if one.objections],
        "sdist": _with_what_is_told(sources[0], request) if sources else None,
    }


def judged(candidates: Iterable[Candidate], environment: Environment, request: Request,
           capabilities: Collection[str] = ()) -> List[Judged]:
    """All candidates: those that fit, the best first, then the others, the newest first."""
    row = request["row"]
    wrong = unfit(environment, row, capabilities)
    order = {tag: place for place, tag in enumerate(wheel_tags.supported(environment))}
    found = []
    for candidate in candidates:
        one = _judged(candidate, environment, request, capabilities, order)
        if wrong and not one.objections:
            one.objections[wrong.id] = wrong.found
        found.append(one)
    return sorted(found, key=lambda one: _rank(one, environment, request, order))


def unfit(environment: Environment, row: Row, capabilities: Collection[str]) -> Optional[Unfit]:
    """What is wrong with an environment for a package, whatever file it is."""
    if row["torch"] == "none":
        return None
    torch, package = environment["torch"], row["package"]
    if torch["state"] == "absent":
        return Unfit("no-torch", "there is no torch in %s" % environment["python"],
                     "torch, which %s is compiled against" % package,
                     "install torch there first; %s is chosen by its release" % package)
    if torch["state"] != "ok":
        return Unfit("torch-broken", "torch in %s does not work (%s): %s" % (
            environment["python"], torch["state"], torch["why"] or "no reason was given"),
            "a torch that can be imported", "mend torch there first")
    if row["cuda"] == "none":
        return None
    if torch["hip"]:
        return Unfit("torch-rocm", "torch %s in %s is built for ROCm %s" % (
            torch["version"], environment["python"], torch["hip"]),
            "a torch built for CUDA", "%s is installed for CUDA only" % package)
    if not cuda_of(environment):
        return Unfit("torch-cpu", "torch %s in %s is built for CPUs" % (
            torch["version"], environment["python"]), "a torch built for CUDA",
            "%s has kernels for NVIDIA GPUs only: install a torch with CUDA there, or take the "
            "entry out" % package)
    have = sorted({kernel["capability"] for kernel in row["capabilities"]}, key=_numbers)
    if capabilities and have and not _covered(capabilities, have):
        return Unfit("no-kernels", "the GPU has compute capability %s" % ", ".join(
            sorted(capabilities)), "one that %s has kernels for, as the catalog knows it: %s" % (
                package, ", ".join(have)),
            "take the entry out; where wheels of it are for this GPU, a row of %s in "
            "prebuilt_wheel_rows says so" % package)
    return None


def _judged(candidate: Candidate, environment: Environment, request: Request,
            capabilities: Collection[str], order: Mapping[str, int]) -> Judged:
    try:
        name = wheel_names.parse(candidate.get("file", ""))
    except BadName as error:
        return Judged(candidate, None, NOTHING, {"name": "its name is none of a wheel: %s" % error})
    told = _told(candidate, name, request["row"])
    against = {}
    if name.package != request["package"]:
        return Judged(candidate, name, told, {"package": "it is of the package %s" % name.package})
    if name.kind == SDIST:
        against["sdist"] = "it is a source archive, which would have to be compiled"
    for kind, why in (
            ("version", _version(name, request)),
            ("yanked", _yanked(candidate, request)),
            ("sha256", _sha256(candidate, request)),
            ("python", _requires_python(candidate, environment))):
        if why:
            against[kind] = why
    if name.kind != SDIST:
        for kind, why in (
                _tags(name, environment, order),
                ("cuda", _cuda(name, told, environment, request["row"])),
                ("torch", _torch(name, told, environment, request["row"])),
                ("cxx11abi", _cxx11abi(told, environment)),
                ("capability", _capability(told, request["row"], capabilities)),
                ("unknown", _unknown(name, told, candidate, request))):
            if why:
                against.setdefault(kind, why)
    return Judged(candidate, name, told, against)


def _told(candidate: Candidate, name: Name, row: Row) -> Told:
    built = candidate.get("built_for") or {}
    cuda = _cuda_text(built.get("cuda")) or name.cuda or _of_url(candidate)
    if cuda is None and not name.pure:
        for plain in row["plain_cuda"]:
            if name.whole in SpecifierSet(plain["versions"], prereleases=True):
                cuda = _cuda_text(plain["cuda"])
    abi = built.get("cxx11abi")
    return Told(
        cuda, str(built.get("torch") or name.torch), name.onward,
        name.cxx11abi if abi is None else bool(abi),
        tuple(built.get("capabilities") or ([name.capability] if name.capability else [])))


def _of_url(candidate: Candidate) -> Optional[Cuda]:
    match = IN_URL.search(candidate.get("url") or "")
    return wheel_names.cuda(match.group(1)) if match else None


def _with_what_is_told(one: Judged, request: Request) -> Candidate:
    """The candidate, with the SHA-256 that it must have.

    Where only its address tells CUDA, that is kept: a wheelhouse has no address.
    """
    assert one.name is not None
    found = dict(one.candidate)
    found["sha256"] = found.get("sha256") or request["sha256"]
    url = _of_url(found)
    if url and not one.name.cuda and one.name.kind != SDIST and not found.get("built_for"):
        found["built_for"] = {"cuda": dotted(url)}
    return found


# What speaks against one.


def _version(name: Name, request: Request) -> str:
    row, asked = request["row"], request["version"]
    if row["versions"] and name.whole not in SpecifierSet(row["versions"], prereleases=True):
        return "it is version %s, and the row is about %s" % (name.version, row["versions"])
    wanted = SpecifierSet(asked)
    pinned = bool(request["sha256"])
    if not wanted.contains(name.whole, prereleases=True):
        return "it is version %s, and %s is asked for" % (name.version, asked)
    if name.whole.is_prerelease and not (pinned or _names_prerelease(wanted)):
        return "it is the pre-release %s, which is not asked for by its number" % name.version
    return ""


def _names_prerelease(wanted: SpecifierSet) -> bool:
    return any(version is not None and version.is_prerelease
               for version in (_exact(one) for one in wanted))


def _exact(one: Specifier) -> Optional[Version]:
    try:
        return Version(one.version)
    except InvalidVersion:
        return None


def _is_pinned(request: Request) -> bool:
    """Whether one version or one file is asked for."""
    return bool(request["sha256"]) or any(
        one.operator in ("==", "===") and "*" not in one.version
        for one in SpecifierSet(request["version"]))


def _yanked(candidate: Candidate, request: Request) -> str:
    if not candidate.get("yanked") or _is_pinned(request):
        return ""
    return "it was withdrawn by its publishers: %s" % str(candidate["yanked"])[:200]


def _sha256(candidate: Candidate, request: Request) -> str:
    if request["sha256"] and candidate.get("sha256"):
        return "" if candidate["sha256"] == request["sha256"] else (
            "its sha256 is not the one that is asked for")
    return "" if candidate.get("sha256") or request["sha256"] else (
        "its sha256 is not known, so that what comes could not be checked")


def _requires_python(candidate: Candidate, environment: Environment) -> str:
    wanted = candidate.get("requires_python") or ""
    try:
        # pip takes one that cannot be read as none.
        fits = SpecifierSet(wanted).contains(environment["version"], prereleases=True)
    except (InvalidSpecifier, InvalidVersion):
        return ""
    return "" if fits else "it needs Python %s" % wanted


def _tags(name: Name, environment: Environment, order: Mapping[str, int]) -> Tuple[str, str]:
    if name.tags & order.keys():
        return "", ""
    split = [tag.split("-") for tag in sorted(name.tags)]
    places = {*wheel_tags.platforms(environment), "any"}
    if not any(platform in places for _, _, platform in split):
        return "platform", _platform(split[0][2], environment)
    return "python", _python(split[0][0], split[0][1], environment)


def _platform(told: str, environment: Environment) -> str:
    for prefix, system in (("win", "Windows"), ("macosx", "macOS"), ("ios", "iOS"),
                           ("android", "Android")):
        if told.startswith(prefix):
            return "it is for %s" % system
    machine, (libc, version) = wheel_tags.machine(environment), wheel_tags.libc(environment)
    if not told.endswith("_" + machine):
        return "it is for %s, and this is %s" % (
            re.sub(r"^(many|musl)?linux[\d_]*?_(?=[a-z])", "", told), machine or "unknown")
    needs = "musl" if told.startswith("musl") else "glibc"
    if needs != libc:
        return "it needs %s, and this has %s" % (needs, libc or "an unknown C library")
    return "it needs %s %s, and this has %s" % (
        needs, _least(told), "%d.%d" % version if version else "an unknown one")


def _least(told: str) -> str:
    for minor, old in wheel_tags.OLD_NAMES.items():
        if told.startswith(old + "_"):
            return "2.%d" % minor
    match = re.match(r"(?:many|musl)linux_(\d+)_(\d+)_", told)
    return "%s.%s" % match.groups() if match else "(%s)" % told


def _python(interpreter: str, abi: str, environment: Environment) -> str:
    match = re.fullmatch(r"(cp|pp|py)(\d)(\d*)", interpreter)
    if not match:
        return "it is for %s" % interpreter
    kind = {"cp": "CPython", "pp": "PyPy", "py": "Python"}[match.group(1)]
    version = ".".join(part for part in match.groups()[1:] if part)
    if abi == "abi3" or abi == "none":
        if abi == "abi3" and environment.get("free_threaded"):
            return "it is for the stable ABI, which a free-threaded Python has not"
        return "it is for %s %s and newer" % (kind, version)
    return "it is for %s%s %s" % ("free-threaded " if abi.endswith("t") else "", kind, version)


def _cuda(name: Name, told: Told, environment: Environment, row: Row) -> str:
    here = cuda_of(environment)
    if row["cuda"] == "none" or here is None:
        return ""
    if name.other:
        return "it is for %s" % name.other.upper()
    if told.cuda and told.cuda[0] != here[0]:
        return "it is for CUDA %d, and torch here for CUDA %d" % (told.cuda[0], here[0])
    return ""


def _torch(name: Name, told: Told, environment: Environment, row: Row) -> str:
    here = torch_names(environment)
    if row["torch"] == "none" or not here:
        return ""
    onward = row["torch"] == "stable" or told.onward
    if row["torch"] != "metadata" and told.torch and not (
            _numbers(here[0]) >= _numbers(told.torch) if onward else told.torch in here):
        return "it is for torch %s%s, and torch here is %s" % (
            told.torch, " and newer" if onward else "", here[0])
    wanted = required_torch(name, row)
    if wanted and not _meets(str(environment["torch"]["version"]), wanted):
        return "it needs torch %s, and torch here is %s" % (
            wanted, environment["torch"]["version"])
    return ""


def required_torch(name: Name, row: Row) -> str:
    """The releases of torch that a version needs, as a specifier; empty where that is not known."""
    public = Version(name.version)
    if public.is_prerelease:
        # What is built between releases may need what the next one does.
        return ""
    return next((one["torch"] for one in row["requires_torch"]
                 if public in SpecifierSet(one["versions"])), "")


def _meets(version: str, wanted: str) -> bool:
    try:
        return SpecifierSet(wanted).contains(Version(version), prereleases=True)
    except InvalidVersion:
        # A name of NVIDIA's or of whoever built it; the wheel's own METADATA judges it.
        return True


def _unknown(name: Name, told: Told, candidate: Candidate, request: Request) -> str:
    """What nothing tells of a file that nobody asked for by name.

    It would be tried where nothing better is there, and found by its import not to work, or not
    found. Who names its version, its hash or where it is from knows what it is.
    """
    row = request["row"]
    lacks = [] if name.pure else [
        *(["torch"] if row["torch"] in ("minor", "stable") and not told.torch
          and not required_torch(name, row) else []),
        *(["CUDA"] if row["cuda"] != "none" and told.cuda is None else [])]
    if not lacks or _is_pinned(request) or _is_from_the_user(candidate, request):
        return ""
    return "nothing tells which %s it is for; to try it, pin its version or its sha256" % (
        " and which ".join(lacks))


def _is_from_the_user(candidate: Candidate, request: Request) -> bool:
    """Whether its source is one that the user named, beside those that the row has."""
    sources, place = request["sources"], _place(candidate)
    named = [one for one in sources if one not in request["row"]["sources"]]
    if place == 0:
        # What a host that has a way out fetched from there comes by the wheelhouse.
        return bool(named)
    return place <= len(sources) and sources[place - 1] in named


def _cxx11abi(told: Told, environment: Environment) -> str:
    here = environment["torch"].get("cxx11abi")
    if told.cxx11abi is None or here is None or told.cxx11abi == here:
        return ""
    return "it is for the %s C++ ABI, and torch here has the %s" % (
        ("new", "old") if told.cxx11abi else ("old", "new"))


def _capability(told: Told, row: Row, capabilities: Collection[str]) -> str:
    if not capabilities:
        return ""
    have = list(told.capabilities)
    if not have:
        have = [kernel["capability"] for kernel in row["capabilities"]
                if not (kernel["cuda"] and told.cuda and _is_older(told.cuda, kernel["cuda"]))]
        if not row["capabilities"]:
            return ""
    if _covered(capabilities, have):
        return ""
    return "it has kernels for compute capability %s, and the GPU has %s" % (
        ", ".join(sorted(set(have), key=_numbers)) or "none", ", ".join(sorted(capabilities)))


def _is_older(told: Cuda, than: str) -> bool:
    """Whether a CUDA is older than another for sure; where only its major is told, by that."""
    least = _pair(than)
    return told[0] < least[0] if told[1] is None else told < least


def _covered(capabilities: Collection[str], kernels: Collection[str]) -> bool:
    """Whether there are kernels for one of the GPUs."""
    return any(wheel_builds.runs(kernel, device) for device in capabilities for kernel in kernels)


# The order of those that fit.


def _rank(one: Judged, environment: Environment, request: Request,
          order: Mapping[str, int]) -> Tuple[Any, ...]:
    name, candidate = one.name, one.candidate
    text = json.dumps(candidate, sort_keys=True, default=str)
    if name is None:
        return (2, text)
    return (
        bool(one.objections), bool(request["sha256"]) and not candidate.get("sha256"),
        not is_sure(one, request["row"]), _Newest(Version(name.version)),
        # Whoever gave the sources gave them in an order: the authors' own before others' builds.
        _place(candidate), _by_cuda(one.told.cuda, cuda_of(environment)),
        _by_torch(one.told.torch, environment),
        min((order[tag] for tag in name.tags if tag in order), default=len(order)),
        len(name.unknown), not candidate.get("path"), text)


def _place(candidate: Candidate) -> int:
    place = candidate.get("place")
    return place if isinstance(place, int) else 0


class _Newest:
    """A version that sorts the other way round."""

    def __init__(self, version: Version) -> None:
        self.version = version

    def __lt__(self, other: _Newest) -> bool:
        return self.version > other.version

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Newest) and self.version == other.version


def is_sure(one: Judged, row: Row) -> bool:
    """Whether it tells all that its row wants told.

    What tells nothing may fit, and is tried where it is pinned and there is nothing better:
    whoever compiled it on a machine of their own had one torch and one CUDA there. Of a version
    that the row does not know, METADATA judges after the fetch.
    """
    if one.name is None:
        return False
    known = bool(required_torch(one.name, row))
    if row["torch"] == "metadata" and row["requires_torch"] and not known:
        return False
    return one.name.pure or (
        (row["cuda"] == "none" or one.told.cuda is not None)
        and (row["torch"] in ("none", "metadata") or known or bool(one.told.torch)))


def _by_torch(told: str, environment: Environment) -> Tuple[int, List[int]]:
    """The same, then the nearest older one."""
    return (0, []) if told in torch_names(environment) else (
        (2, []) if not told else (1, [-part for part in _numbers(told)]))


def _by_cuda(told: Optional[Cuda], here: Optional[Tuple[int, int]]) -> Tuple[int, int]:
    """The same minor, then one that only tells its major, older ones, newer ones, and no word."""
    if told is None or here is None:
        return (4, 0)
    if told[1] is None:
        return (1, 0)
    away = here[1] - told[1]
    return (0, 0) if away == 0 else (2, away) if away > 0 else (3, -away)


# Facts of an environment.


def cuda_of(environment: Environment) -> Optional[Tuple[int, int]]:
    """The CUDA that torch was built for."""
    return _cuda_pair(environment["torch"].get("cuda"))


def torch_names(environment: Environment) -> List[str]:
    """What names may call the torch here: its minor, and NVIDIA's container that it is from."""
    version = str(environment["torch"].get("version") or "")
    found = re.match(r"\d+\.\d+", version, re.ASCII)
    container = CONTAINER.search(version)
    return [*([found.group()] if found else []), *([container.group(1)] if container else [])]


def dotted(cuda: Optional[Cuda]) -> str:
    """CUDA for people: ``12.8``, or ``12`` where only the major is told."""
    if cuda is None:
        return ""
    major, minor = cuda
    return str(major) if minor is None else "%d.%d" % (major, minor)


def _cuda_text(text: Any) -> Optional[Cuda]:
    match = re.match(r"(\d{1,3})(?:\.(\d{1,3}))?", str(text or ""), re.ASCII)
    if not match:
        return None
    return int(match.group(1)), None if match.group(2) is None else int(match.group(2))


def _cuda_pair(text: Any) -> Optional[Tuple[int, int]]:
    found = _cuda_text(text)
    return (found[0], found[1] or 0) if found else None


def _pair(text: str) -> Tuple[int, int]:
    return _cuda_pair(text) or (0, 0)


def _numbers(text: str) -> List[int]:
    return [int(part) for part in re.findall(r"\d{1,6}", text, re.ASCII)]
