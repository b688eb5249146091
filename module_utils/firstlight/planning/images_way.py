# SPDX-License-Identifier: Apache-2.0
"""How images get to a host: what the engine needs for a pull, and what is in the way of one."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence

from ..findings import Finding, finding
from .container_runtime import version

PROXIES_FROM = (23, 0)
"""The release from which the engine takes proxies from its settings file."""

PROXIES = {"http": "http-proxy", "https": "https-proxy", "no_proxy": "no-proxy"}
SOURCE = "https://docs.docker.com/engine/daemon/proxy/"


def images_way(missing: Sequence[Mapping[str, str]], seen: Mapping[str, Any],
               packages: Sequence[str], way: Mapping[str, Any], root: str) -> Dict[str, Any]:
    """What a pull takes, given the host's way out.

    :param missing: images that are not there, as ``container_images`` gives them.
    :param seen: what ``docker_daemon`` returned.
    :param packages: that would be installed; an empty name is none.
    :param way: the fact of the role network_access; empty where nothing is known of it.
    :param root: ``firstlight_root`` on the host.
    :returns: ``{needs, warnings, refusals}``: settings of the daemon, and findings.
    """
    found: Dict[str, Any] = {"needs": {}, "warnings": [], "refusals": []}
    # Of a daemon that does not run it is not known what it has: it is judged again once it does.
    pulls = [one["image"] for one in missing
             if one["source"] == "pull" and seen.get("state") in ("running", "absent")]
    named = [name for name in packages if name]
    if way.get("offline"):
        found["refusals"] = _offline(pulls, named)
        return found
    engine = seen.get("engine") or {}
    wanted = _proxies(way.get("environment") or {})
    if not pulls or not engine or not wanted:
        return found
    has = engine.get("proxies") or {}
    if all(has.get(key) if value is None else has.get(key) == value
           for key, value in wanted.items()):
        return found
    against = _against(wanted, engine, seen)
    if against:
        found["warnings"] = [_by_hand(against, pulls, seen, root)]
    else:
        found["needs"] = {"proxies": wanted}
    return found


def _offline(pulls: Sequence[str], packages: Sequence[str]) -> List[Finding]:
    found = [finding(
        "image-offline", "image %s" % image,
        "it is not on the host, and network_access_offline keeps it from being pulled",
        "the image on the host, or a way to it",
        "name an archive of it (docker save) in container_runtime_archives, or a folder with its "
        "Dockerfile in container_runtime_builds, or run once without network_access_offline")
        for image in pulls]
    if packages:
        found.append(finding(
            "packages-offline", " ".join(packages),
            "not installed, and network_access_offline keeps them from being fetched",
            "what containers need on the host",
            "install them by hand, or run once without network_access_offline", needs_root=True))
    return found


def _proxies(variables: Mapping[str, Any]) -> Dict[str, Any]:
    """The daemon's keys of the proxies that are set; ``None`` is one that is not shown."""
    found: Dict[str, Any] = {}
    for name, key in PROXIES.items():
        small = name if name == "no_proxy" else name + "_proxy"
        for variable in (small, small.upper()):
            if variable in variables:
                value = variables[variable]
                found[key] = value if value is None or name == "no_proxy" or "://" in value \
                    else "http://" + value
                break
    return found if set(found) - {"no-proxy"} else {}


def _against(wanted: Mapping[str, Any], engine: Mapping[str, Any], seen: Mapping[str, Any]) -> str:
    """Why the daemon's file is no place for them; empty where it is one."""
    if None in wanted.values():
        return "the proxy has a password, and everybody may read %s" % seen["file"]
    if version(engine["version"]) < PROXIES_FROM:
        return "Docker %s takes no proxy from %s" % (engine["version"], seen["file"])
    flags = ["--" + key for key in PROXIES.values()]
    if any(word.partition("=")[0] in flags for word in seen["words"]):
        return "the daemon has a proxy on its command line"
    return ""


def _by_hand(why: str, pulls: Sequence[str], seen: Mapping[str, Any], root: str) -> Finding:
    unit = seen["unit"] or "docker.service"
    return finding(
        "docker-without-proxy", "dockerd",
        "it does not have the proxy of network_access, by which %s would be pulled: %s" % (
            ", ".join(pulls), why), "the proxy in the environment of %s" % unit,
        "as root, write the two lines [Service] and EnvironmentFile=-%s/network/environment to "
        "/etc/systemd/system/%s.d/firstlight-proxy.conf, then: systemctl daemon-reload && "
        "systemctl restart %s (which stops containers without live-restore)" % (
            root, unit, unit),
        severity="warning", needs_root=True, source=SOURCE)
