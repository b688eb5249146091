# SPDX-License-Identifier: Apache-2.0
"""What a host needs for the containers that its plans want, decided from what was read of it."""

from __future__ import annotations

import re
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

from ..findings import Finding, finding
from . import docker_settings

Plan = Dict[str, Any]
Facts = Dict[str, Any]
Seen = Dict[str, Any]

OLDEST = (20, 10)
"""The engine's oldest release that containers are made with here."""

CDI_FROM, CDI_DEFAULT_FROM = (25, 0), (28, 2)
"""Releases from which the engine can do CDI, and from which it does so unless it is told not to."""

TOOLKIT = "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/"
TOOLKIT_PACKAGE = "nvidia-container-toolkit"
CDI_NEEDS = {"features": {"cdi": True}}
RUNTIME_NEEDS = {"runtimes": {"nvidia": {"args": [], "path": "nvidia-container-runtime"}}}
SPECIFICATION = "/etc/cdi/nvidia.yaml"
# What is before the first slash is a registry only where it could be a host's name.
REGISTRY = re.compile(r"(?:[^/]*[.:][^/]*|localhost)(?=/)")
USUAL_REGISTRY = "docker.io"


class Gpu(NamedTuple):
    """How containers are given GPUs, and what it takes.

    :param by: ``none``, ``cdi`` or ``runtime``.
    :param toolkit: whether NVIDIA's toolkit must be installed first.
    :param generate: ``""``, ``refresh`` (the toolkit's service) or ``generate``: how the
        specification is made.
    """

    by: str
    needs: Dict[str, Any]
    toolkit: bool
    generate: str
    reasons: List[str]
    refusals: List[Finding]


def container_runtime(plans: List[Plan], facts: Facts, seen: Seen,
                      packages: List[Dict[str, Any]], consent: bool) -> Dict[str, Any]:
    """What is done to bring containers to a host.

    :param plans: of the host's endpoints; only those whose ``runtime`` is ``docker`` count.
    :param facts: ``gpu_host`` of ``gpu_facts``.
    :param seen: what ``docker_daemon`` returned, with the defaults as its options.
    :param packages: rows of ``catalog/container_packages.yml``.
    :param consent: whether containers that run may be started again.
    :returns: ``{wanted, install, start, toolkit, gpu, needs, act, generate, reasons, refusals}``:
        packages to install (the engine's), the unit to start, the toolkit's package, how GPUs are
        given, settings that are needed, whether the daemon's file or the daemon is to be changed,
        how the specification is made, why, and findings against it. Given what is seen after it was
        done, nothing of it is left.
    """
    decided: Dict[str, Any] = {
        "wanted": False, "install": [], "start": "", "toolkit": "", "gpu": "none", "needs": {},
        "act": False, "generate": "", "reasons": [], "refusals": []}
    ours = [plan for plan in plans if plan["runtime"] == "docker"]
    if not ours:
        return decided
    decided["wanted"] = True
    row = _row(facts["system"], packages)
    decided["refusals"] = _engine(decided, seen, facts["system"], row)
    gpus = sorted({uuid for plan in ours for uuid in plan["gpus"]})
    if gpus and not decided["refusals"]:
        gpu = _gpus(gpus, facts, seen, consent)
        decided.update(gpu=gpu.by, needs=gpu.needs, generate=gpu.generate)
        decided["reasons"] += gpu.reasons
        decided["refusals"] += gpu.refusals
        if gpu.toolkit:
            _toolkit(decided, seen)
    decided["act"] = not decided["refusals"] and bool(decided["needs"] or seen["changes"])
    if decided["refusals"]:
        decided.update(install=[], start="", toolkit="", needs={}, generate="")
    return decided


def version(text: str) -> Tuple[int, int]:
    """Major and minor of a version as engines write it; (0, 0) where it is none."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found.group(1)), int(found.group(2))) if found else (0, 0)


def _row(system: Dict[str, Any], packages: List[Dict[str, Any]]) -> Optional[Dict[str, Any]]:
    family = [system["distribution"], *system["like"]]
    return next((row for name in family for row in packages if row["like"] == name), None)


# The engine.


def _engine(decided: Dict[str, Any], seen: Seen, system: Dict[str, Any],
            row: Optional[Dict[str, Any]]) -> List[Finding]:
    """What brings an engine that answers; why none can be had."""
    if seen["state"] == "running":
        if version(seen["engine"]["version"]) >= OLDEST:
            return []
        return [finding(
            "docker-too-old", "dockerd", "version %s" % (seen["engine"]["version"] or "unknown"),
            "%d.%d or newer" % OLDEST, "update the package that it comes from", needs_root=True,
            source="https://docs.docker.com/engine/release-notes/20.10/")]
    if seen["state"] == "refused":
        return [finding(
            "docker-not-permitted", "dockerd", seen["why"], "a daemon that this user may ask",
            "run this as root (become: true), or put the user into the group docker, which is as "
            "much as root", source="https://docs.docker.com/engine/install/linux-postinstall/")]
    if seen["state"] == "stopped":
        if seen["unit"] and seen["root"]:
            decided["start"] = seen["unit"]
            decided["reasons"].append("The daemon does not run: %s is started." % seen["unit"])
            return []
        return [finding(
            "docker-stopped", "dockerd", "it is installed and does not answer: %s" % seen["why"],
            "a daemon that answers", "start it (systemctl start docker) and see what it says "
            "(journalctl -u docker)", needs_root=True)]
    return _absent(decided, seen, system, row)


def _absent(decided: Dict[str, Any], seen: Seen, system: Dict[str, Any],
            row: Optional[Dict[str, Any]]) -> List[Finding]:
    names = row["engine"] if row else []
    if names and row and seen["root"]:
        decided["install"] = list(names)
        decided["start"] = row["service"] if seen["systemd"] else ""
        decided["reasons"].append("No container engine: %s of the distribution %s installed." % (
            " and ".join(names), "is" if len(names) == 1 else "are"))
        return []
    named = " ".join(filter(None, [system["distribution"], system["version"]])) or "not known"
    remedy = "install one by hand: no package of this distribution (%s) is known here" % named
    if names:
        remedy = "run this as root (become: true), which installs %s" % " ".join(names)
    return [finding(
        "docker-absent", "dockerd", "there is none (%s)" % seen["why"],
        "a Docker engine of %d.%d or newer" % OLDEST, remedy, needs_root=True,
        source=row["source"] if row else "https://docs.docker.com/engine/install/")]


# GPUs.


def _gpus(gpus: List[str], facts: Facts, seen: Seen, consent: bool) -> Gpu:
    """How containers get these devices."""
    engine, nvidia = seen["engine"], seen["nvidia"]
    if facts["class"] == "jetson":
        return _by_runtime(seen, ["A Jetson's GPU is given by the runtime nvidia: its toolkit "
                                  "takes no device requests."])
    if engine is None:
        # It is judged again once there is an engine.
        return Gpu("none", {}, False, "", [], [])
    release = version(engine["version"])
    stale = stale_devices(gpus, nvidia)
    can_make = bool(nvidia["ctk"] or nvidia["refresh"])
    if release < CDI_FROM:
        return _by_runtime(seen, ["Docker %s has no CDI: GPUs are given by the runtime nvidia."
                                  % engine["version"]])
    has_runtime = bool(engine["nvidia_runtime"] or nvidia["runtime"])
    if not engine["cdi"] and has_runtime and _would_stop(seen, consent):
        return _by_runtime(seen, [
            "CDI is off, and to turn it on the daemon must be started again, which would stop what "
            "runs: GPUs are given by the runtime nvidia."])
    needs = {} if engine["cdi"] else CDI_NEEDS
    reasons = [] if engine["cdi"] else [
        "CDI gives GPUs to containers in a way that outlives a daemon-reload: it is turned on."]
    if not stale:
        return Gpu("cdi", needs, False, "", reasons, [])
    if not seen["root"]:
        return Gpu("none", {}, False, "", [], [finding(
            "cdi-stale", SPECIFICATION, "; ".join(stale), "a specification that names the devices",
            "run this as root (become: true), or: nvidia-ctk cdi generate --output=%s"
            % SPECIFICATION, needs_root=True, source=TOOLKIT + "cdi-support.html")])
    return Gpu("cdi", needs, not can_make, "refresh" if nvidia["refresh"] else "generate",
               reasons + ["The CDI specification is made anew: %s." % "; ".join(stale)], [])


def _by_runtime(seen: Seen, reasons: List[str]) -> Gpu:
    engine = seen["engine"]
    if engine and engine["nvidia_runtime"]:
        return Gpu("runtime", {}, False, "", reasons, [])
    return Gpu("runtime", RUNTIME_NEEDS if engine else {}, not seen["nvidia"]["runtime"], "",
               reasons, [])


def _would_stop(seen: Seen, consent: bool) -> bool:
    """Whether a restart of the daemon is not ours to make now."""
    change = docker_settings.Change("features.cdi", None, True, True)
    return bool(docker_settings.decide([change], seen, consent).refusals)


def _toolkit(decided: Dict[str, Any], seen: Seen) -> None:
    """Have the toolkit installed, or say why that is for a person."""
    if seen["root"]:
        decided["toolkit"] = TOOLKIT_PACKAGE
        decided["reasons"].append("NVIDIA's container toolkit is not there: %s is installed."
                                  % TOOLKIT_PACKAGE)
    else:
        decided["refusals"] += toolkit_findings("")


def toolkit_findings(said: str) -> List[Finding]:
    """That the toolkit is not there, and cannot be had from what the host is set up with.

    :param said: by the package manager; empty: nobody asked it.
    """
    return [finding(
        "container-toolkit-missing", TOOLKIT_PACKAGE,
        "it is not installed%s" % (", and the package manager does not give it" if said else ""),
        "NVIDIA's container toolkit, which gives GPUs to containers",
        "set up NVIDIA's repository and install %s, as root: %sinstall-guide.html"
        % (TOOLKIT_PACKAGE, TOOLKIT), evidence=said[:600], needs_root=True,
        source=TOOLKIT + "install-guide.html")]


def stale_devices(gpus: List[str], nvidia: Dict[str, Any]) -> List[str]:
    """What is wrong with the specification for these devices, in words; nothing where it is good.

    :param gpus: UUIDs.
    :param nvidia: as ``docker_daemon`` returns it.
    """
    said = []
    unnamed = [uuid for uuid in gpus if uuid not in nvidia["devices"]]
    if unnamed:
        said.append("none of the files in /etc/cdi and /var/run/cdi names %s" % ", ".join(unnamed))
    for uuid in gpus:
        known = nvidia["devices"].get(uuid)
        if known is None:
            continue
        node, named = nvidia["nodes"].get(uuid), _cards(known["nodes"])
        if known["gone"]:
            said.append("%s gives %s files that are not there, as %s" % (
                known["file"], uuid, known["gone"][0]))
        elif node and named and node not in named:
            said.append("%s gives %s for %s, which is %s" % (
                known["file"], " and ".join(named), uuid, node))
    return said


def _cards(nodes: List[str]) -> List[str]:
    return [node for node in nodes if re.fullmatch(r"/dev/nvidia\d+", node)]


# Images.


def registry(image: str) -> str:
    """The registry that an image is had from."""
    found = REGISTRY.match(image)
    return found.group(0) if found else USUAL_REGISTRY


def without_digest(image: str) -> str:
    """``name:tag`` of an image that may have a digest."""
    return image.partition("@")[0]


def without_tag(image: str) -> str:
    """The name by which a daemon knows it: of a tag and a digest the digest alone."""
    name, at, digest = image.partition("@")
    if not at:
        return image
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(":")[0] + at + digest


def container_images(plans: List[Plan], archives: Mapping[str, str],
                     builds: Mapping[str, str]) -> List[Dict[str, str]]:
    """The images of a host's plans and where each comes from.

    :param plans: of the host's endpoints; only those whose ``runtime`` is ``docker`` count.
    :param archives: files on the host by image, with or without its digest.
    :param builds: folders on the host by image, in the same way.
    :returns: ``{image, name, source, path}`` each: the plan's name of it, the name that it is
        looked for by, ``archive``, ``build`` or ``pull``, and the file or folder. What comes from
        an archive or a build has no digest of a registry, and is looked for by its tag.
    """
    found = []
    for image in sorted({plan["image"] for plan in plans if plan["runtime"] == "docker"}):
        short = without_digest(image)
        path = archives.get(image) or archives.get(short) or ""
        folder = builds.get(image) or builds.get(short) or ""
        source = "archive" if path else "build" if folder else "pull"
        found.append({"image": image, "source": source, "path": path or folder,
                      "name": short if path or folder else without_tag(image)})
    return found


def image_findings(said: str, image: Dict[str, str], rows: List[Dict[str, Any]]) -> List[Finding]:
    """Why an image cannot be had.

    :param said: by the daemon or the module that asked it.
    :param image: as :func:`container_images` gives it.
    :param rows: of ``catalog/registry_errors.yml``.
    """
    subject = "image %s" % image["image"]
    if image["source"] != "pull":
        option = "container_runtime_%ss" % image["source"]
        return [finding(
            "image-no-%s" % image["source"], subject,
            "%s does not give it: %s" % (image["path"], said[:600]),
            "%s that holds %s" % ("an archive (docker save)" if image["source"] == "archive" else
                                  "a folder with a Dockerfile", image["name"]),
            "correct %s, or bring that file to the host" % option)]
    words = {"image": image["image"], "registry": registry(image["image"])}
    for row in sorted(rows, key=lambda row: int(row["rank"])):
        if re.search(row["pattern"], said, re.IGNORECASE):
            return [finding(row["id"], subject, row["found"] % words, row["wanted"] % words,
                            row["remedy"] % words, evidence=said[:600], source=row["source"])]
    return [finding(
        "image-not-had", subject, "it cannot be pulled: %s" % (said[:600] or "nothing was said"),
        "the image on the host",
        "pull it by hand on the host (docker pull), or name an archive in "
        "container_runtime_archives")]
