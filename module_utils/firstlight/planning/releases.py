# SPDX-License-Identifier: Apache-2.0
"""Which engine release serves a model on a kind of device, and why the others do not."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Tuple

from packaging.version import InvalidVersion, Version

from . import known_issues
from .requests import IMAGE

Row = Dict[str, Any]
Model = Dict[str, Any]
Request = Dict[str, Any]
Facts = Dict[str, Any]
Objection = Optional[Tuple[str, str]]
"""The key of the request that it concerns, and why; ``None`` where there is none."""

# The engine whose own format it is comes first.
NATIVE_ENGINE = {"gguf": "llama_cpp", "safetensors": "vllm", "pickle": "vllm"}
# What reads safetensors reads these too; whether they may be read was asked before.
READ_AS = {"pickle": "safetensors"}
# What a config calls a type of plain weights, as the catalog of kernels does.
PLAIN_METHODS = {"bf16": "bfloat16", "f16": "float16", "f32": "float16"}


class Target(NamedTuple):
    """What a release must run on."""

    kind: str
    """``cpu`` or ``gpu``."""
    name: str
    """For sentences."""
    capability: str
    datacenter: bool


ON_CPU = Target("cpu", "the CPU", "", False)


class Choice(NamedTuple):
    """A release, the kernel row of its quantisation, and what must be set for it."""

    row: Row
    kernel: Optional[Row]
    env: Dict[str, str]
    reasons: List[str]


class NoRelease(Exception):
    """No release in the catalog will do; ``against`` has the objection to each."""

    def __init__(self, against: List[Tuple[Row, str, str]]) -> None:
        super().__init__("no release")
        self.against = against


def choose(request: Request, facts: Facts, state: Dict[str, Any], model: Model, target: Target,
           catalog: Dict[str, Any]) -> Choice:
    """The best release: of the format's own engine, measured by us, newest.

    :raises NoRelease: when the catalog has none.
    """
    against = []
    for row in ranked(catalog["engine_releases"], model["format"]):
        kernel = _kernel(row, model, catalog)
        objection = (
            _not_asked_for(request, row)
            or _wrong_kind(request, row, target)
            or _broken(request, facts, row, model, target, catalog)
            or _unread(request, row, model)
            or _wrong_machine(request, facts, state, row)
            or _wrong_device(request, facts, row, target)
            or _no_kernel(row, model, kernel, target)
            or _unasked_container(request, row, target)
        )
        if objection is None:
            env, reasons = _compatibility(request, facts, row, target)
            reasons += _weights_alone(kernel, model, target)
            return Choice(row, kernel, env, [_why(request, row, model, target, facts)] + reasons)
        against.append((row, *objection))
    raise NoRelease(against)


def may_run(request: Request, facts: Facts, row: Row, target: Target) -> bool:
    """Whether a release is one that is asked for and runs on this target, whatever the model.

    The Python of the host, which an engine of ours needs, is not looked at.
    """
    return not (_not_asked_for(request, row) or _wrong_kind(request, row, target)
                or _wrong_machine(request, facts, {"python": {"version": "999"}}, row)
                or _wrong_device(request, facts, row, target))


def ranked(rows: Iterable[Row], model_format: str) -> List[Row]:
    """Releases in the order in which they are preferred."""
    first = NATIVE_ENGINE.get(model_format)
    return sorted(
        sorted(rows, key=lambda row: row["variant"]),
        key=lambda row: (row["engine"] != first, not row["measured"], -_place(row["version"])))


@lru_cache(maxsize=256)
def _place(version: str) -> int:
    """A number that sorts as the version does."""
    place = 0
    for part in (*version_of(version).release, 0, 0, 0)[:4]:
        place = place * 10**6 + part
    return place


@lru_cache(maxsize=1024)
def version_of(text: str) -> Version:
    """A version; one that is none is older than all."""
    try:
        return Version(text)
    except InvalidVersion:
        return Version("0.dev0")


def method_of(model: Model) -> str:
    """The quantisation by the name that the catalog of kernels has for it."""
    if model["format"] == "gguf":
        return "gguf"
    method = str(model["quantisation"]).lower()
    return PLAIN_METHODS.get(method, method)


def title(row: Row) -> str:
    """A release for a person."""
    return "%s %s (%s)" % (row["engine"], row["version"], " ".join(
        part for part in (row["runtime"], row["variant"]) if part))


def _kernel(row: Row, model: Model, catalog: Dict[str, Any]) -> Optional[Row]:
    return next((one for one in catalog["quantisation_kernels"]
                 if one["engine"] == row["engine"] and one["method"] == method_of(model)), None)


def _not_asked_for(request: Request, row: Row) -> Objection:
    for key, value in (("engine", row["engine"]), ("engine_version", row["version"])):
        if request[key] not in ("auto", value):
            return key, "%s is asked for" % request[key]
    if request["runtime"] not in ("auto", row["runtime"]) and not is_own(request):
        return "runtime", "%s is asked for" % request["runtime"]
    return None


def is_own(request: Request) -> bool:
    """Whether the engine is a program of the host, which the user brings."""
    return bool(request["engine_python"] or request["engine_binary"])


def is_brought(request: Request) -> bool:
    """Whether the user brings the engine, as a program or as an image: nobody knows what it was
    built for."""
    return is_own(request) or bool(request["image"])


def image_of(request: Request, row: Row) -> Tuple[str, List[str], str]:
    """The image, what it starts already, and who runs in it; of a stranger's image nothing is
    known. All are empty for an engine beside containers."""
    if is_own(request) or row["runtime"] == "native":
        return "", [], ""
    known = (list(row["entrypoint"]), row["user"])
    if not request["image"]:
        return ("%s:%s%s" % (row["image"], row["tag"],
                             "@" + row["digest"] if row["digest"] else ""), *known)
    found = IMAGE.fullmatch(request["image"])
    return (request["image"], *(
        known if found and found["name"] == row["image"] else ([], "")))


def _wrong_kind(request: Request, row: Row, target: Target) -> Objection:
    if target.kind in row["devices"] or (request["engine_binary"] and target.kind == "cpu"):
        return None
    if target.kind == "gpu":
        return "gpus", "is a build for the CPU, and gpus: 0 would say that the CPU is meant"
    return "engine", "runs on %s, not on the CPU" % " and ".join(row["devices"])


def _unasked_container(request: Request, row: Row, target: Target) -> Objection:
    """On a CPU our own build needs no Docker engine."""
    if target.kind == "cpu" and row["runtime"] == "docker" and request["runtime"] == "auto" and (
            not is_own(request)):
        return "runtime", "is taken on the CPU only where runtime: docker asks for it"
    return None


def _unread(request: Request, row: Row, model: Model) -> Objection:
    if READ_AS.get(model["format"], model["format"]) not in row["formats"]:
        return "model", "reads %s, not %s" % (" and ".join(row["formats"]), model["format"])
    if request["engine"] == "auto" and row["engine"] != NATIVE_ENGINE[model["format"]]:
        return "engine", "is taken for %s only where engine: %s asks for it" % (
            model["format"], row["engine"])
    method = method_of(model)
    if model["format"] == "gguf" or method in PLAIN_METHODS.values() or not row["quantisations"]:
        return None
    if method not in row["quantisations"]:
        return "model", "does not know the quantisation %s" % model["quantisation"]
    return None


def _wrong_machine(request: Request, facts: Facts, state: Dict[str, Any],
                   row: Row) -> Objection:
    if is_brought(request):
        return None
    architecture = facts["cpu"]["architecture"]
    if architecture not in row["architectures"]:
        return "engine", "is built for %s, not for %s" % (
            " and ".join(row["architectures"]), architecture)
    if row["minimum_python"] and row["launcher"]:
        there = state["python"]["version"]
        if version_of(there) < version_of(row["minimum_python"]):
            return "engine", ("needs Python %s, and %s runs the modules "
                              "(ansible_python_interpreter names another)"
                              % (row["minimum_python"], there))
    return None


def _wrong_device(request: Request, facts: Facts, row: Row, target: Target) -> Objection:
    if target.kind == "cpu" or is_brought(request):
        return None
    jetson = facts["jetson"]
    if jetson is None and row["variant"].startswith("l4t"):
        return "engine", "is for Jetsons"
    if jetson is not None and l4t_major(facts) not in row["l4t"]:
        return "engine", "is not for Jetson Linux %s" % (jetson["l4t"] or "of an unknown release")
    if not target.capability:
        return "gpus", "the compute capability of %s is not known" % target.name
    architecture = facts["cpu"]["architecture"]
    driver = (facts["driver"] or {}).get("version") or ""
    if target.capability not in row["capabilities"].get(architecture, []):
        known = [one for one in row["ptx"].get(architecture, [])
                 if version_of(one) <= version_of(target.capability)]
        if not known:
            return "engine", "has no kernels for compute capability %s (%s)" % (
                target.capability, target.name)
        if not row["full_driver"] or version_of(driver) < version_of(row["full_driver"]):
            return "engine", ("has only PTX for compute capability %s, which needs driver %s; "
                              "this host has %s" % (target.capability, row["full_driver"]
                                                    or "that is not known", _said(facts)))
    if row["minimum_driver"] and jetson is None and not _driver_will_do(driver, row, target):
        return "engine", "CUDA %s needs driver %s, and this host has %s" % (
            row["cuda"], row["minimum_driver"], _said(facts))
    return None


def _said(facts: Facts) -> str:
    """The driver for a person."""
    driver = facts["driver"]
    return "none" if driver is None else driver["version"] or "one whose version is not known"


def l4t_major(facts: Facts) -> Optional[int]:
    """The major release of Jetson Linux."""
    release = str((facts["jetson"] or {}).get("l4t") or "").partition(".")[0]
    return int(release) if release.isdigit() else None


def _driver_will_do(driver: str, row: Row, target: Target) -> bool:
    return version_of(driver) >= version_of(row["minimum_driver"]) or _by_compatibility(
        driver, row, target)


def _by_compatibility(driver: str, row: Row, target: Target) -> bool:
    return (target.datacenter and driver.partition(".")[0] in row["compat_drivers"]
            and "VLLM_ENABLE_CUDA_COMPATIBILITY" in row["environment"])


def _compatibility(request: Request, facts: Facts, row: Row,
                   target: Target) -> Tuple[Dict[str, str], List[str]]:
    """What has to be set where the image's CUDA is newer than the driver's."""
    driver = (facts["driver"] or {}).get("version") or ""
    floor = row["minimum_driver"]
    if (target.kind == "cpu" or is_brought(request) or facts["jetson"] is not None or not floor
            or version_of(driver) >= version_of(floor)):
        return {}, []
    return {"VLLM_ENABLE_CUDA_COMPATIBILITY": "1"}, [
        "Driver %s is older than CUDA %s asks for; the image's compatibility libraries make up "
        "for it on data-centre cards." % (driver, row["cuda"])]


def _no_kernel(row: Row, model: Model, kernel: Optional[Row], target: Target) -> Objection:
    if target.kind == "cpu" or kernel is None or row["engine"] != "vllm":
        return None
    # Plain bfloat16 is computed as float16 on older cards: a row of known_issues says so.
    if method_of(model) == "bfloat16":
        return None
    if version_of(target.capability) < version_of(kernel["minimum_capability"]):
        return "model", "has %s kernels from compute capability %s on, and %s has %s" % (
            model["quantisation"], kernel["minimum_capability"], target.name, target.capability)
    return None


def _weights_alone(kernel: Optional[Row], model: Model, target: Target) -> List[str]:
    """Whether the card computes in the model's format, or only keeps the weights in it."""
    if (target.kind == "cpu" or kernel is None or not kernel["native_capability"]
            or method_of(model) in PLAIN_METHODS.values()
            or version_of(target.capability) >= version_of(kernel["native_capability"])):
        return []
    return ["The weights stay in %s and the compute is 16 bit: computing in it needs compute "
            "capability %s, and %s has %s." % (model["quantisation"], kernel["native_capability"],
                                               target.name, target.capability)]


def case_of(request: Request, facts: Facts, row: Row, model: Model, capability: str,
            tensor_parallel: Optional[int] = None) -> known_issues.Case:
    """What the rows of known issues are held against."""
    containers = facts.get("containers") or {}
    return {
        "engine": row["engine"], "version": row["version"], "torch": row["torch"],
        "runtime": "native" if is_own(request) else row["runtime"], "class": facts["class"],
        "l4t_major": l4t_major(facts), "device": row["devices"][0],
        "capability": capability or None,
        "quantisation": method_of(model),
        "format": model["format"],
        "docker": containers.get("version") if containers.get("engine") == "docker" else None,
        "tensor_parallel": tensor_parallel,
    }


def _broken(request: Request, facts: Facts, row: Row, model: Model, target: Target,
            catalog: Dict[str, Any]) -> Objection:
    if target.kind == "cpu":
        return None
    case = case_of(request, facts, row, model, target.capability)
    for issue in known_issues.that_hold(case, catalog["known_issues"]):
        if issue["action"].get("forbid"):
            return "engine", "%s (known issue %s; %s)" % (
                issue["action"]["note"], issue["id"], issue["remedy"].rstrip("."))
        if issue["action"].get("avoid") and request["engine"] == "auto":
            return "engine", "%s (known issue %s; engine: %s takes it all the same)" % (
                issue["action"]["note"], issue["id"], row["engine"])
    return None


def _why(request: Request, row: Row, model: Model, target: Target, facts: Facts) -> str:
    if is_own(request):
        return "%s %s: a program of the host's own, taken for the release of that version." % (
            row["engine"], row["version"])
    if request["image"]:
        return "%s %s: an image of your own, taken for the release of that version." % (
            row["engine"], row["version"])
    return "%s: %s release in the catalog that serves %s on %s (%s)." % (
        title(row), "the newest measured" if row["measured"] else "the newest fitting",
        "GGUF" if model["format"] == "gguf" else "%s in %s" % (
            model["quantisation"], model["format"]),
        target.name, facts["cpu"]["architecture"])
