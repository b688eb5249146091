# SPDX-License-Identifier: Apache-2.0
"""Which containers would lose their GPUs when systemd reads its units anew, and what then.

The toolkit's hook lets a container use a GPU behind systemd's back. At a daemon-reload systemd
applies its own list of devices again, and NVML fails in that container from then on, until it is
started again. An older runc (seen with 1.1.5) does not tell systemd of devices that are named
either, where they have no links in /dev/char; so what systemd lists counts, where it was asked.
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, Optional

from ..findings import Finding, finding

Container = Dict[str, Any]

SOURCE = ("https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/"
          "troubleshooting.html")
BEHIND_ITS_BACK = ("hook", "runtime")
PREVENTION = ("by CDI (device nvidia.com/gpu=...), or with every /dev/nvidia* that it uses as "
              "--device, after nvidia-ctk system create-dev-char-symlinks --create-all; or have "
              "the daemon keep the groups itself (cgroup driver cgroupfs)")
GO, REPAIR, POSTPONE = "go", "repair", "postpone"
"""Decisions: nobody loses anything; go on and start those of ``repair`` again; do not."""


def threatened(containers: Iterable[Container], cgroup_driver: Optional[str]) -> List[Container]:
    """The containers that would lose their GPUs.

    :param containers: as :func:`..host.gpu_containers.read` gives them.
    :param cgroup_driver: of the daemon; systemd forgets devices only where it keeps the groups.
    """
    if cgroup_driver != "systemd":
        return []
    return [one for one in containers if one["by"] != "privileged" and (
        one["allowed"] is False or (one["allowed"] is None and one["by"] in BEHIND_ITS_BACK))]


def guard(containers: List[Container], cgroup_driver: Optional[str], consent: bool = False,
          roots: Optional[List[str]] = None) -> Dict[str, Any]:
    """Whether systemd may read its units anew now.

    :param containers: as for :func:`threatened`.
    :param cgroup_driver: as for :func:`threatened`.
    :param consent: whether containers of others may be started again too.
    :param roots: whose containers are ours; ``None``: those of every root.
    :returns: ``{decision, repair, findings}``. ``decision`` is ``go``, ``repair`` (go on, then
        start the containers of ``repair``, by name, again) or ``postpone``, which is said by
        findings that stop a run.
    """
    losing = threatened(containers, cgroup_driver)
    ours = [one for one in losing if is_ours(one, roots)]
    foreign = [one for one in losing if not is_ours(one, roots)]
    if foreign and not consent:
        return {"decision": POSTPONE, "repair": [], "findings": [_foreign(one) for one in foreign]}
    again = ours + foreign
    return {"decision": REPAIR if again else GO, "repair": [one["name"] for one in again],
            "findings": [_again(one) for one in again]}


def lost(containers: List[Container], roots: Optional[List[str]] = None) -> List[Finding]:
    """What is wrong with the GPUs that containers see inside, after they were asked.

    One of ours is an error; one of others, which is not ours to start again, a warning.
    """
    return [_lost(one, is_ours(one, roots)) for one in containers if is_lost(one)]


def is_lost(one: Container) -> bool:
    """Whether NVML fails in it, or sees other devices than those that it was given by UUID."""
    if one["gpus"] is None:
        return False
    return bool(one["reason"]) or bool(_wanted(one) - set(one["gpus"]))


def is_ours(one: Container, roots: Optional[List[str]] = None) -> bool:
    """Whether it is an endpoint of ours."""
    return one["endpoint"] is not None and (roots is None or one["root"] in roots)


def _wanted(one: Container) -> Any:
    names = (name.rpartition("=")[2] for name in one["names"])
    return {name for name in names if name.startswith(("GPU-", "MIG-"))}


def _subject(one: Container) -> str:
    return "container %s" % one["name"]


def _how(one: Container) -> str:
    return {"hook": "by the toolkit's hook", "runtime": "by the runtime nvidia",
            "cdi": "by CDI", "nodes": "by its device nodes",
            "privileged": "as a privileged container"}[one["by"]]


def _foreign(one: Container) -> Finding:
    return finding(
        "container-would-lose-gpu", _subject(one),
        "it has its GPU %s, and systemd does not know of that: NVML would fail in it after the "
        "daemon-reload that is needed here" % _how(one),
        "a container that keeps its GPU",
        "make it anew %s; or set container_runtime_consent: true for one run: it is started again"
        % PREVENTION, evidence="image %s" % one["image"], needs_root=True, source=SOURCE)


def _again(one: Container) -> Finding:
    return finding(
        "container-started-again", _subject(one),
        "it has its GPU %s, and loses it at the daemon-reload that is needed here" % _how(one),
        "a container that keeps its GPU",
        "nothing: it is started again after that, and its GPU is looked for inside",
        severity="warning", source=SOURCE)


def _lost(one: Container, ours: bool) -> Finding:
    missing = sorted(_wanted(one) - set(one["gpus"]))
    found = "inside, nvidia-smi -L says: %s" % one["reason"] if one["reason"] else (
        "inside, NVML does not see %s" % ", ".join(missing))
    return finding(
        "container-lost-gpu", _subject(one), found,
        "the GPUs that it was given %s" % _how(one),
        "look at the driver on the host (nvidia-smi -L, journalctl -k)" if ours else
        "start it again (docker restart %s)%s" % (
            one["name"], "; to keep it from coming back, make it anew %s" % PREVENTION
            if one["allowed"] is not True and one["by"] != "privileged" else ""),
        severity="error" if ours else "warning", evidence="image %s" % one["image"],
        needs_root=True, source=SOURCE)
