# SPDX-License-Identifier: Apache-2.0
"""The path that was meant: what people give for a model, and where it lies.

Most of it is about Hugging Face caches, ``<cache>/models--org--name/snapshots/<commit>/``, whose
paths are easily got wrong. Nothing is changed on the host.
"""

from __future__ import annotations

import os
import re
from typing import List, Optional, Tuple

from ansible.module_utils.firstlight.findings import Finding, finding
from ansible.module_utils.firstlight.planning import file_address

REPOSITORY = re.compile(r"models--.+")
PART_OF_HASH = re.compile(r"[0-9a-f]{4,39}")
COMMIT = re.compile(r"[0-9a-f]{40}")
LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")
AS_A_REPOSITORY = (
    "engines take a path that does not exist for a repository id, and say `Repo id must be in the "
    "form 'repo_name' or 'namespace/repo_name'`")
# Names that are shown of many.
SHOWN = 5

Answer = Tuple[str, List[Finding]]


def resolve(asked: str) -> Answer:
    """Where a model lies.

    :param asked: a path, or a ``file://`` address.
    :returns: the path, and notes (``info``, ``warning``) on how it was found. With an ``error``
        among them the path is as far as it could be told.
    """
    path, notes = asked, []
    if file_address.is_one(asked):
        found, why_not = file_address.path(asked)
        if found is None:
            return asked, [_refused(
                "model-file-address", asked, why_not, "file:///path, or the path itself")]
        path = found
        notes.append(_note("model-file-address", asked, "an address; its path is %s" % path,
                           "a path", "info"))
    if not path.startswith("/"):
        return path, [*notes, _refused(
            "model-path-relative", asked, "a relative path: it depends on the folder in which an "
            "engine is started, and %s" % AS_A_REPOSITORY, "an absolute path")]
    for step in (_other_cache, _into_repository, _whole_hash, _one_gguf):
        path, found_notes = step(asked, path)
        notes += found_notes
    return path, notes


def _other_cache(asked: str, path: str) -> Answer:
    """``HF_HOME=/x`` keeps models in ``/x/hub``, ``HF_HUB_CACHE=/x`` in ``/x`` itself."""
    if os.path.lexists(path):
        return path, []
    cache, name, rest = _split(path)
    if not name:
        # .../org/name, where it is kept as models--org--name.
        parent, last = os.path.split(path.rstrip("/"))
        above, organisation = os.path.split(parent)
        name = "models--%s--%s" % (organisation, last)
        for place in (above, os.path.join(above, "hub")):
            if organisation and os.path.isdir(os.path.join(place, name)):
                return os.path.join(place, name), [_note(
                    "model-path-of-repository", asked, "a cache keeps that repository in %s"
                    % os.path.join(place, name), "the path of a folder that is there", "info")]
        return path, []
    other = (os.path.dirname(cache) if os.path.basename(cache) == "hub"
             else os.path.join(cache, "hub"))
    if os.path.isdir(os.path.join(cache, name)) or not os.path.isdir(os.path.join(other, name)):
        return path, []
    meant = os.path.join(other, name, rest) if rest else os.path.join(other, name)
    return meant, [_note(
        "model-cache-mismatch", asked, "%s is not in %s but in %s" % (name, cache, other),
        "one meaning of the folder: HF_HOME=/x keeps models in /x/hub, and HF_HUB_CACHE=/x in /x "
        "itself", "warning",
        "set HF_HUB_CACHE=%s for whoever else uses that cache, and `model` to %s"
        % (other, meant))]


def _split(path: str) -> Tuple[str, str, str]:
    """The cache, the folder of a repository in it, and what comes behind."""
    parts = path.rstrip("/").split("/")
    for index in range(len(parts) - 1, 0, -1):
        if REPOSITORY.fullmatch(parts[index]):
            return "/".join(parts[:index]) or "/", parts[index], "/".join(parts[index + 1:])
    return path, "", ""


def _into_repository(asked: str, path: str) -> Answer:
    """From the folder of a repository, which is no model itself, to a snapshot in it."""
    cache, name, rest = _split(path)
    folder = os.path.join(cache, name)
    snapshots = os.path.join(folder, "snapshots")
    if not name or not os.path.isdir(snapshots):
        return path, []
    first, _, behind = rest.partition("/")
    if first == "snapshots":
        if behind:
            return path, []
        first = ""
    elif rest and os.path.lexists(path):
        return path, []
    elif PART_OF_HASH.fullmatch(first) or COMMIT.fullmatch(first):
        return os.path.join(snapshots, rest), [_note(
            "model-path-without-snapshots", asked, "a commit, without the folder snapshots",
            os.path.join(snapshots, rest), "info")]
    else:
        behind = rest
    return _chosen(asked, folder, snapshots, behind)


def _chosen(asked: str, folder: str, snapshots: str, behind: str) -> Answer:
    """The snapshot of ``refs/main``, or the only one."""
    there = _listed(snapshots)
    main = _ref(folder, "main")
    if main in there:
        commit, why = main, "the one that its refs/main names"
    elif len(there) == 1:
        commit, why = there[0], "the only one"
    else:
        return os.path.join(snapshots, behind), [_refused(
            "model-path-of-repository", asked, "the folder of a repository, with %s" % (
                "no snapshot in it" if not there else "%d snapshots and none that refs/main names"
                ": %s" % (len(there), _some(there))),
            "a snapshot: %s/<commit>" % snapshots)]
    meant = os.path.join(snapshots, commit, behind) if behind else os.path.join(snapshots, commit)
    return meant, [_note(
        "model-path-of-repository", asked, "the folder of a repository, which holds snapshots of "
        "the model; taken is %s: %s" % (why, meant), "a snapshot", "info",
        "set `model` to that path, so that a new snapshot there changes nothing")]


def _whole_hash(asked: str, path: str) -> Answer:
    """``.../snapshots/<the first digits of a commit, or a branch>``."""
    cache, name, rest = _split(path)
    parts = rest.split("/")
    if not name or len(parts) < 2 or parts[0] != "snapshots" or COMMIT.fullmatch(parts[1]):
        return path, []
    folder = os.path.join(cache, name)
    snapshots = os.path.join(folder, "snapshots")
    if os.path.lexists(os.path.join(snapshots, parts[1])) or not os.path.isdir(snapshots):
        return path, []
    there = _listed(snapshots)
    fitting = [one for one in there if PART_OF_HASH.fullmatch(parts[1].lower())
               and one.startswith(parts[1].lower())]
    if not fitting:
        fitting = [one for one in there if one == _ref(folder, parts[1])]
    if len(fitting) == 1:
        meant = os.path.join(snapshots, fitting[0], *parts[2:])
        return meant, [_note(
            "model-short-hash", asked, "%s stands for %s" % (parts[1], fitting[0]),
            "all 40 digits: neither engines nor the hub's library complete a short hash, and %s"
            % AS_A_REPOSITORY, "warning", "set `model` to %s" % meant)]
    return path, [_refused(
        "model-short-hash", asked, "%s is the beginning of %s there" % (
            parts[1], "%d snapshots (%s)" % (len(fitting), _some(fitting)) if fitting
            else "no snapshot; there %s" % ("are %s" % _some(there) if there else "is none")),
        "the 40 digits of a commit whose snapshot is there")]


def _one_gguf(asked: str, path: str) -> Answer:
    """A folder whose only model is a GGUF file stands for it."""
    if not os.path.isdir(path) or os.path.lexists(os.path.join(path, "config.json")):
        return path, []
    found = [name for name in _listed(path) if name.endswith(".gguf")
             and not name.lower().startswith("mmproj") and not LATER_PART.search(name)]
    if len(found) == 1:
        return os.path.join(path, found[0]), [_note(
            "model-path-of-folder", asked, "a folder with one GGUF file: %s" % found[0],
            "the path of the file", "info")]
    if found:
        return path, [_refused(
            "model-path-of-folder", asked, "a folder with %d GGUF models: %s"
            % (len(found), _some(found)), "the path of one of them")]
    return path, []


def _listed(folder: str) -> List[str]:
    """Names in a folder; none where it cannot be listed, which reading it will tell."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _ref(folder: str, name: str) -> Optional[str]:
    """The commit that a branch or a tag of a cached repository stood for."""
    place = os.path.join(folder, "refs", name)
    if not os.path.isfile(place):
        return None
    try:
        with open(place, "rb") as file:
            found = file.read(41).decode("ascii", "replace").strip()
    except OSError:
        return None
    return found if COMMIT.fullmatch(found) else None


def _some(names: List[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (" and %d more" % more if more > 0 else "")


def _note(id_: str, asked: str, found: str, wanted: str, severity: str,
          remedy: str = "") -> Finding:
    return finding(id_, asked, found, wanted, remedy or "nothing has to be changed",
                   severity=severity)


def _refused(id_: str, asked: str, found: str, wanted: str) -> Finding:
    return finding(id_, asked, found, wanted, "set `model` to it")
