# SPDX-License-Identifier: Apache-2.0
"""What to change in ``daemon.json``, and what it takes for the daemon to follow."""

from __future__ import annotations

import copy
from typing import Any, Dict, List, NamedTuple

from ..findings import Finding, finding

Settings = Dict[str, Any]

RELOADED = (
    "authorization-plugins", "debug", "default-runtime", "insecure-registries", "labels",
    "live-restore", "max-concurrent-downloads", "max-concurrent-uploads", "max-download-attempts",
    "registry-mirrors", "runtimes", "shutdown-timeout")
"""Keys that a running daemon follows at SIGHUP. ``features`` is one of them, but CDI is not."""

ADDED = ("registry-mirrors",)
"""Lists in which ours come first and what is there of others stays."""

SOURCE = "https://docs.docker.com/reference/cli/dockerd/#configuration-reload-behavior"

# A key that is given on the command line too keeps the daemon from starting.
FLAGS = {"default-ulimits": "default-ulimit", "exec-opts": "exec-opt", "features": "feature",
         "hosts": "host", "labels": "label", "log-opts": "log-opt", "runtimes": "add-runtime",
         "insecure-registries": "insecure-registry", "registry-mirrors": "registry-mirror"}
# The one whose options the default limits are.
LOG_DRIVER = "json-file"


class Change(NamedTuple):
    """One value that changes.

    :param key: the key, or ``key.inner``.
    :param needed: whether something does not work without it; else it is a default.
    """

    key: str
    before: Any
    after: Any
    needed: bool


class Decision(NamedTuple):
    """What is done.

    :param how: ``""`` (nothing changes), ``write`` (the daemon does not run), ``reload`` or
        ``restart``.
    :param changes: what is written.
    :param postponed: sentences on what would be good and is left.
    """

    how: str
    changes: List[Change]
    postponed: List[str]
    refusals: List[Finding]


def changes(now: Settings, needs: Settings, defaults: Settings, log_driver: str,
            words: List[str], nofile_max: Any = None) -> List[Change]:
    """What is to be different: needs as they are, defaults where the file says nothing of them.

    Mappings are merged one level deep, so that what others have beside ours stays.

    :param now: the settings as they are.
    :param log_driver: what the daemon logs with now; empty where it does not run.
    :param words: the daemon's command line.
    :param nofile_max: open files that a container may be given at most; ``None``: not known.
    """
    found = _differences(now, needs, True)
    merged = merge(now, found)
    driver = merged.get("log-driver") or log_driver or LOG_DRIVER
    for change in _differences(merged, defaults, False):
        key = change.key.partition(".")[0]
        if change.before is not None or given(key, words):
            continue
        if "." not in change.key and key in needs:
            continue
        if key in ("log-driver", "log-opts") and (
                driver != LOG_DRIVER or given("log-opts", words)):
            continue
        if _beyond(change, nofile_max):
            continue
        found.append(change)
    # A driver that is the daemon's own default is named only beside its limits.
    if not any(one.key.startswith("log-opts.") for one in found):
        found = [one for one in found if one.needed or one.key != "log-driver"]
    return found


def _beyond(change: Change, nofile_max: Any) -> bool:
    """Whether this limit is more than a container could be started with."""
    if change.key != "default-ulimits.nofile" or type(nofile_max) is not int:
        return False
    hard = change.after.get("Hard") if isinstance(change.after, dict) else None
    return type(hard) is not int or hard > nofile_max


def _differences(now: Settings, wanted: Settings, needed: bool) -> List[Change]:
    """What is wanted and is not so; what is wanted to be null is not wanted at all."""
    found: List[Change] = []
    for key, value in wanted.items():
        there = now.get(key)
        if key in ADDED and value is not None:
            value = _added(there, value)
        if isinstance(value, dict) and (there is None or isinstance(there, dict)):
            found += [Change("%s.%s" % (key, inner), (there or {}).get(inner), one, needed)
                      for inner, one in value.items()
                      if one is not None and (there or {}).get(inner) != one]
        elif value is not None and there != value:
            found.append(Change(key, there, value, needed))
    return found


def _added(there: Any, ours: List[str]) -> List[str]:
    """Addresses of ours before those that are there; a slash at the end makes no other one."""
    before = [one for one in there if isinstance(one, str)] if isinstance(there, list) else []
    mine = [one.rstrip("/") for one in ours]
    after = [*ours, *(one for one in before if one.rstrip("/") not in mine)]
    return before if [one.rstrip("/") for one in after] == [
        one.rstrip("/") for one in before] else after


def merge(now: Settings, wanted: List[Change]) -> Settings:
    """The settings with these changes; the order of what is there stays."""
    merged = copy.deepcopy(now)
    for one in wanted:
        key, dot, inner = one.key.partition(".")
        if dot:
            merged[key] = merged.get(key) or {}
            merged[key][inner] = copy.deepcopy(one.after)
        else:
            merged[key] = copy.deepcopy(one.after)
    return merged


def given(key: str, words: List[str]) -> bool:
    """Whether the daemon's command line has this setting."""
    flag = "--" + FLAGS.get(key, key)
    return any(word == flag or word.startswith(flag + "=") for word in words)


def decide(wanted: List[Change], daemon: Dict[str, Any], consent: bool) -> Decision:
    """What of it is done now, and how.

    :param daemon: ``state``, ``pid``, ``unit``, ``words``, ``file``, ``running`` (names of
        containers), ``root`` and, where it answers, ``engine``, of
        :func:`..host.docker_engine.observe`.
    :param consent: whether containers may be stopped and started again.
    """
    needs = [one for one in wanted if one.needed]
    defaults = [one for one in wanted if not one.needed]
    refusals = _refused(needs, daemon)
    if refusals or not wanted:
        return Decision("", [], [], refusals)
    if not daemon["root"]:
        return Decision("", [], ["%s: %s is root's to change" % (
            _keys(defaults), daemon["file"])], [])
    if daemon["state"] in ("stopped", "absent"):
        return Decision("write", wanted, [], [])
    restarts = [one for one in wanted if one.key.partition(".")[0] not in RELOADED]
    if not restarts and daemon["pid"]:
        return Decision("reload", wanted, [], [])
    against = _against_restart(daemon, consent)
    if against is None:
        return Decision("restart", wanted, [], [])
    if [one for one in needs if one in restarts or not daemon["pid"]]:
        return Decision("", [], [], [against])
    left = [one for one in defaults if one in restarts or not daemon["pid"]]
    kept = [one for one in wanted if one not in left]
    return Decision("reload" if kept else "", kept, ["%s: %s. %s" % (
        _keys(left), against["found"], against["remedy"])], [])


def _keys(some: List[Change]) -> str:
    return ", ".join(one.key for one in some)


def _refused(needs: List[Change], daemon: Dict[str, Any]) -> List[Finding]:
    """Why what is needed cannot be written at all."""
    if not needs:
        return []
    found = []
    if not daemon["root"]:
        found.append(finding(
            "docker-settings-not-ours", daemon["file"], "it is root's to change",
            "%s in it" % _keys(needs), "run this as root (become: true)", needs_root=True))
    flags = [one for one in needs if given(one.key.partition(".")[0], daemon["words"])]
    if flags:
        found.append(finding(
            "docker-settings-as-flags", daemon["file"],
            "the daemon has %s on its command line, and does not start where the file has the "
            "same" % _keys(flags), "the setting in the file alone",
            "move that option from the daemon's unit (systemctl cat %s) into %s" % (
                daemon["unit"] or "docker", daemon["file"]), needs_root=True, source=SOURCE))
    return found


def _against_restart(daemon: Dict[str, Any], consent: bool) -> Any:
    """Why the daemon is not to be started again now, as a finding; ``None`` where it may be."""
    if not daemon["unit"]:
        return finding(
            "docker-restart-not-ours", "dockerd",
            "no unit of systemd runs the daemon (process %s), so nothing here could start it again"
            % (daemon["pid"] or "unknown"), "a daemon that was started with the new settings",
            "start it again in the way it was started, then run this again", needs_root=True)
    names = daemon["running"]
    if not names or daemon["engine"]["live_restore"] or consent:
        return None
    return finding(
        "docker-restart-stops-containers", daemon["unit"],
        "a restart of the daemon would stop %d running containers: %s" % (
            len(names), ", ".join(names[:8]) + (" and more" if len(names) > 8 else "")),
        "a restart that stops nothing, or your consent",
        "set container_runtime_consent: true for one run (what runs is started again), or stop "
        "them, or set live-restore in %s" % daemon["file"], needs_root=True,
        source="https://docs.docker.com/engine/daemon/live-restore/")
