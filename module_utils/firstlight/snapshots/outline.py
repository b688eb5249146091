# SPDX-License-Identifier: Apache-2.0
"""What a snapshot is before it is brought: its commit, its files, what the model in it is.

The commit of a branch is asked for once and then read from the cache. The model is described by
its small files and by the headers of its weights, of which some hundred kilobytes are read at the
source; the weights are files with a hole in their place for as long as that takes.
"""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import struct
import tempfile
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ansible.module_utils.firstlight import model_report
from ansible.module_utils.firstlight.findings import Finding, finding
from ansible.module_utils.firstlight.snapshots import entries as checks
from ansible.module_utils.firstlight.snapshots import layout, selection, sources, verify
from ansible.module_utils.firstlight.snapshots.entries import Entry, Manifest
from ansible.module_utils.firstlight.snapshots.fetch import fetch

Model = Dict[str, Any]

HEADED = (".safetensors", ".gguf")
"""Files that begin with a description of the rest."""
FIRST_PART = 2**18
MAX_HEADER = 256 * 2**20
MAX_SMALL = 64 * 2**20
"""What is larger and no weight is not needed to tell what a model is."""
NAMED_FILES = 5

# GGUF's own type numbers: bytes of the scalar ones (ggml/docs/gguf.md).
GGUF_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
GGUF_STRING, GGUF_ARRAY = 8, 9
MAX_COUNT = 1_000_000
MAX_ARRAY = 2**26


class Settings(NamedTuple):
    """What holds for all snapshots of a run. ``keep`` is whether anything may be written.

    ``tokenizer_classes`` and ``model_types`` are as :func:`model_report.read` takes them.
    """

    root: str
    cache: str
    offline: bool
    refresh: bool
    keep: bool
    workers: int
    tokenizer_classes: Sequence[Dict[str, Any]] = ()
    model_types: Sequence[Dict[str, Any]] = ()


class Asked(NamedTuple):
    """One snapshot that is asked for; as the module has it."""

    name: str
    repo_id: str
    revision: Optional[str]
    formats: Sequence[str]
    quantisation: Optional[str]
    allow: Sequence[str]
    ignore: Sequence[str]
    allow_code: bool
    allow_pickle: bool


class Origins:
    """Where each snapshot may be fetched; a source is made when it is first needed.

    :param hub: as :func:`sources.source` has it.
    :param peers: by the name of the snapshot, as :func:`sources.peer` has it.
    """

    def __init__(self, hub: Mapping[str, Any], token: Optional[str],
                 peers: Mapping[str, Mapping[str, Any]]) -> None:
        self._hub, self._token, self._peers = hub, token, peers
        self._made: Dict[str, sources.Source] = {}
        self.kind = str(hub.get("kind") or "huggingface")

    def peer(self, asked: Asked) -> Optional[Manifest]:
        """What another host has of it, where one was named.

        :raises sources.HubProblem: for a manifest that is none, or is of another repository.
        """
        if asked.name not in self._peers:
            return None
        told = self._peers[asked.name]
        try:
            found = checks.manifest_from_dict(told.get("manifest"), "peers.%s" % asked.name)
            if found.repo_id != asked.repo_id:
                raise ValueError("peers.%s is of %s" % (asked.name, found.repo_id))
        except ValueError as problem:
            raise sources.HubProblem(finding(
                "snapshot-not-a-hub", asked.repo_id, str(problem), "the manifest of %s"
                % asked.repo_id, "give what this module returned on that host")) from problem
        return found

    def of(self, asked: Asked, manifest: Optional[Manifest] = None) -> sources.Source:
        """The source of a snapshot.

        :param manifest: what is to be fetched from it, once that is known.
        :raises sources.NoLibrary: when the library that it needs is not there.
        """
        key = asked.name if asked.name in self._peers else ""
        if key not in self._made:
            self._made[key] = (sources.peer(self._peers[key]) if key
                               else sources.source(self._hub, self._token))
        made = self._made[key]
        if manifest is not None and isinstance(made, sources.ModelScope):
            made.at(manifest, asked.revision)
        return made

    def findings(self) -> List[Finding]:
        """Warnings of what was asked so far."""
        return [one for made in self._made.values() for one in made.findings]


class Snapshot:
    """What was found of one snapshot that is asked for."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.revision = asked.revision or ""
        self.findings: List[Finding] = []
        self.commit = ""
        self.manifest: Optional[Manifest] = None
        self.chosen: Optional[selection.Selection] = None
        self.missing: List[Entry] = []
        self.unverified: List[Entry] = []
        self.damaged = False
        self.closed = False
        """Whether there is a file that not every user may read."""
        self.model: Optional[Model] = None
        self.origin: Optional[sources.Source] = None
        self.left_out = False
        """Whether nothing could be told of it for want of the library."""
        self.written = False
        """Whether its commit or its list of files was, or would be, written down."""

    @property
    def present(self) -> bool:
        """Whether all its files are there, by their sizes."""
        return self.chosen is not None and not self.missing


def record(root: str, repo_id: str, commit: str) -> str:
    """The file that remembers which files of a snapshot were verified."""
    return os.path.join(root, "models", "verified", layout.name(repo_id), commit + ".json")


def path(cache: str, manifest: Manifest, chosen: selection.Selection) -> str:
    """What an engine is given: the folder, or the first GGUF file."""
    folder = layout.snapshot(cache, manifest.repo_id, manifest.commit)
    return os.path.join(folder, chosen.main) if chosen.main else folder


def look(asked: Asked, origins: Origins, settings: Settings) -> Snapshot:
    """What there is of a snapshot, and what is wrong with it; nothing is raised for that."""
    found = Snapshot(asked)
    try:
        _pin(found, origins, settings)
        _choose(found, origins, settings)
    except sources.HubProblem as problem:
        found.findings += problem.findings
    except selection.NoChoice as problem:
        found.findings += problem.findings
    except sources.NoLibrary as problem:
        found.left_out = True
        found.findings.append(sources.no_library(asked.repo_id, problem, not settings.keep))
    except ValueError as problem:
        found.findings.append(finding(
            "snapshot-bad-name", asked.repo_id, str(problem),
            "organisation/name, and a branch, tag or commit", "change `model` or `revision`"))
    return found


def _pin(found: Snapshot, origins: Origins, settings: Settings) -> None:
    """Find the commit and its list of files, in the cache where they are there."""
    asked, cache = found.asked, settings.cache
    shared = origins.peer(asked)
    own = sources.DEFAULT_REVISION.get(origins.kind, "main")
    found.revision = asked.revision or ("main" if shared else own)
    commit = shared.commit if shared else None
    if commit is None and (settings.offline or not settings.refresh or checks.COMMIT.fullmatch(
            found.revision)):
        commit = _known(found, cache)
    if commit is None:
        if settings.offline:
            raise sources.HubProblem(finding(
                "snapshot-offline-missing", asked.repo_id,
                "the commit of revision %s is not known in %s, and this host is offline"
                % (found.revision, cache), "a snapshot that was fetched before",
                "run once with `firstlight_offline: false`, or bring it from another host"
                " (playbooks/prefetch.yml)"))
        found.origin = origins.of(asked)
        commit = found.origin.resolve(asked.repo_id, asked.revision)
    found.commit = commit
    # A list may be wrong, as one of another hub.
    manifest = shared or (None if settings.refresh and not settings.offline
                          else layout.read_tree(cache, asked.repo_id, commit))
    if manifest is None:
        manifest = _listed(found, origins, settings)
    found.manifest = manifest
    if not settings.keep:
        found.written = layout.read_ref(cache, asked.repo_id, found.revision) != commit
        return
    if not checks.COMMIT.fullmatch(found.revision):
        found.written = layout.write_ref(cache, asked.repo_id, found.revision, commit)
    if found.origin or shared:
        found.written = layout.write_tree(cache, manifest) or found.written


def _known(found: Snapshot, cache: str) -> Optional[str]:
    """The commit that the revision had when it was last asked for; a commit is its own."""
    asked = found.asked
    commit = layout.read_ref(cache, asked.repo_id, found.revision)
    if commit is None and not asked.revision:
        # A repository that came whole from a hub with another name for it stays.
        for name in sorted(set(sources.DEFAULT_REVISION.values()) - {found.revision}):
            other = layout.read_ref(cache, asked.repo_id, name)
            manifest = other and layout.read_tree(cache, asked.repo_id, other)
            if other and manifest and _is_whole(cache, manifest, asked):
                found.revision = name
                return other
    return commit


def _is_whole(cache: str, manifest: Manifest, asked: Asked) -> bool:
    try:
        chosen = _select(manifest, asked)
    except selection.NoChoice:
        return False
    return not layout.missing(cache, manifest, chosen.entries)


def _listed(found: Snapshot, origins: Origins, settings: Settings) -> Manifest:
    """The files of a commit that the cache has no list of."""
    asked = found.asked
    try:
        if not settings.offline:
            found.origin = origins.of(asked)
            return found.origin.manifest(asked.repo_id, found.commit)
    except sources.NoLibrary:
        kept = layout.of_snapshot(settings.cache, asked.repo_id, found.commit)
        if kept is None:
            raise
        return kept
    kept = layout.of_snapshot(settings.cache, asked.repo_id, found.commit)
    if kept is None:
        raise sources.HubProblem(finding(
            "snapshot-offline-missing", asked.repo_id,
            "nothing of commit %s is in %s, and this host is offline" % (
                found.commit, settings.cache), "a snapshot that was fetched before",
            "run once with `firstlight_offline: false`, or bring it from another host"
            " (playbooks/prefetch.yml)"))
    return kept


def _select(manifest: Manifest, asked: Asked) -> selection.Selection:
    formats = list(asked.formats)
    if asked.allow_pickle and "pickle" not in formats:
        formats.append("pickle")
    return selection.select(manifest, formats, asked.quantisation, asked.allow, asked.ignore)


def _choose(found: Snapshot, origins: Origins, settings: Settings) -> None:
    """Choose the files, and see which of them are there and known to be good."""
    asked, manifest, cache = found.asked, found.manifest, settings.cache
    assert manifest is not None
    found.chosen = _select(manifest, asked)
    found.missing = layout.missing(cache, manifest, found.chosen.entries)
    found.unverified = verify.unknown(
        cache, record(settings.root, asked.repo_id, manifest.commit), manifest,
        found.chosen.entries)
    found.closed = _is_closed(cache, manifest, found.chosen.entries)
    if found.missing and settings.offline:
        raise sources.HubProblem(finding(
            "snapshot-offline-missing", asked.repo_id,
            "%d of %d files are missing in %s, and this host is offline: %s" % (
                len(found.missing), len(found.chosen.entries), cache, _named(found.missing)),
            "all files of commit %s" % found.commit,
            "run once with `firstlight_offline: false`, or bring it from another host"
            " (playbooks/prefetch.yml)"))
    if found.missing:
        found.origin = origins.of(asked, manifest)


def _is_closed(cache: str, manifest: Manifest, entries: Sequence[Entry]) -> bool:
    view = layout.View(cache, manifest.repo_id, manifest.commit)
    repository = layout.folder(cache, manifest.repo_id)
    folders = [cache, repository, layout.snapshot(cache, manifest.repo_id, manifest.commit),
               *(os.path.join(repository, one) for one in ("blobs", "snapshots"))]
    modes = [(os.stat(one).st_mode, 0o555) for one in folders if os.path.isdir(one)]
    modes += [(status.st_mode, 0o444) for status in (view.find(one).status for one in entries)
              if status is not None]
    return any(mode & wanted != wanted for mode, wanted in modes)


def _named(entries: Sequence[Entry]) -> str:
    more = len(entries) - NAMED_FILES
    return ", ".join(one.path for one in entries[:NAMED_FILES]) + (
        " and %d more" % more if more > 0 else "")


def describe(found: Snapshot, origins: Origins, settings: Settings, temporary: str) -> None:
    """Put into ``found`` what the model is, as it will be when it was brought.

    :param temporary: a folder for what has to be fetched for that, as of the module.
    """
    asked, manifest, chosen = found.asked, found.manifest, found.chosen
    if manifest is None or chosen is None:
        return
    final = path(settings.cache, manifest, chosen)
    if not found.missing:
        model, wrong = _read(final, asked, settings)
        found.damaged = model is None and not settings.offline and bool(wrong)
        if not found.damaged:
            found.findings += wrong
            found.model = _final(model, found, settings)
            return
    if settings.offline:
        return  # that files are missing was said
    try:
        found.origin = origins.of(asked, manifest)
        folder = tempfile.mkdtemp(dir=temporary, prefix="outline-")
        try:
            _materialise(found, found.origin, folder, settings)
            model, wrong = _read(path(folder, manifest, chosen), asked, settings)
            found.findings += _moved(wrong, folder, settings.cache)
            found.model = _final(_moved(model, folder, settings.cache), found, settings)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except sources.HubProblem as problem:
        found.findings += problem.findings
    except sources.NoLibrary as problem:
        found.findings.append(sources.no_library(asked.repo_id, problem, not settings.keep))
        found.left_out = True


def _read(where: str, asked: Asked,
          settings: Settings) -> Tuple[Optional[Model], List[Finding]]:
    return model_report.read(where, asked.allow_code, asked.allow_pickle, asked.repo_id,
                             settings.tokenizer_classes, settings.model_types)


def _final(model: Optional[Model], found: Snapshot, settings: Settings) -> Optional[Model]:
    """The model as it is told: the same before it is brought, after, and on all hosts."""
    manifest, chosen = found.manifest, found.chosen
    assert manifest is not None and chosen is not None
    if model is None:
        return None
    # A folder that is named after a commit gives no name.
    name = manifest.repo_id if model["name"] == manifest.commit else model["name"]
    return dict(model, name=name, path=path(settings.cache, manifest, chosen),
                folders=sorted({os.path.realpath(one) for one in model["folders"]}),
                fingerprint=checks.fingerprint(chosen.entries))


def _moved(value: Any, old: str, new: str) -> Any:
    """What was read, with the final path in place of the one where it was read."""
    if isinstance(value, str):
        return value.replace(os.path.realpath(old), new).replace(old, new)
    if isinstance(value, dict):
        return {_moved(key, old, new): _moved(one, old, new) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_moved(one, old, new) for one in value]
    return value


def _materialise(found: Snapshot, origin: sources.Source, folder: str,
                 settings: Settings) -> None:
    """Lay out a cache as it will be, the weights without their data."""
    manifest, chosen = found.manifest, found.chosen
    assert manifest is not None and chosen is not None
    view = layout.View(settings.cache, manifest.repo_id, manifest.commit)
    small: Dict[str, Entry] = {}
    headed: Dict[str, Entry] = {}
    for entry in chosen.entries:
        layout.link(folder, manifest.repo_id, manifest.commit, entry)
        target = layout.blob(folder, manifest.repo_id, entry)
        there = view.find(entry)
        if os.path.lexists(target):
            continue  # another path has the same content
        if not there.wrong_size(entry) and not found.damaged:
            _copy(there.path, target, entry)
        elif entry.path.lower().endswith(HEADED):
            headed[target] = entry
        elif entry.size <= MAX_SMALL and not entry.path.endswith((".bin", ".pt", ".pth")):
            small[target] = entry
        else:
            _sparse(target, b"", entry.size)
    if small or headed:
        # One question that shows whether its files may be had at all.
        origin.check(manifest.repo_id, manifest.commit, next(iter({**small, **headed}.values())))
    try:
        fetch([origin.wanted(manifest.repo_id, manifest.commit, entry, target)
               for target, entry in small.items()], workers=settings.workers,
              direct=origin.inside)
    except OSError:
        raise  # of this host's disk
    except Exception as error:
        raise sources.HubProblem(*origin.problem(
            error, manifest.repo_id, manifest.commit)) from error

    def lay(target: str, entry: Entry) -> None:
        def part(first: int, count: int) -> bytes:
            return origin.part(manifest.repo_id, manifest.commit, entry, first, count)

        _sparse(target, header(entry, part), entry.size)

    with concurrent.futures.ThreadPoolExecutor(max(1, settings.workers)) as pool:
        for one in [pool.submit(lay, *row) for row in headed.items()]:
            one.result()


def _copy(source: str, target: str, entry: Entry) -> None:
    """The same of a file that is there: of weights no more than the header."""
    if not entry.path.lower().endswith(HEADED):
        if entry.size <= MAX_SMALL:
            shutil.copyfile(source, target)
        else:
            _sparse(target, b"", entry.size)
        return
    with open(source, "rb") as file:
        def part(first: int, count: int) -> bytes:
            file.seek(first)
            return file.read(count)

        _sparse(target, header(entry, part), entry.size)


def _sparse(target: str, begin: bytes, size: int) -> None:
    with open(target, "wb") as file:
        file.write(begin[:size])
        file.truncate(size)


def header(entry: Entry, part: Callable[[int, int], bytes]) -> bytes:
    """The beginning of a file of weights, as long as its header at least.

    :param part: gives bytes of the file from a place on, as many as asked for and as there are.
    """
    needs = _safetensors_needs if entry.path.lower().endswith(".safetensors") else gguf_needs
    most = min(entry.size, MAX_HEADER)
    data = part(0, min(FIRST_PART, most))
    while len(data) < most:
        wanted = needs(data)
        if wanted <= len(data):
            break
        data += part(len(data), min(wanted, most) - len(data))
    return data


def _safetensors_needs(data: bytes) -> int:
    return 8 + int(struct.unpack_from("<Q", data)[0]) if len(data) >= 8 else 8


def gguf_needs(data: bytes) -> int:
    """How many bytes of a GGUF file have to be read to know its header, as far as these tell.

    It is not more than was given once that holds the header, or when it can be none.
    """
    try:
        return _gguf_end(data)
    except _More:
        return 8 * len(data)


class _More(Exception):
    """The header goes on behind what is there."""


def _gguf_end(data: bytes) -> int:
    at = 8

    def number(code: str) -> int:
        nonlocal at
        size = struct.calcsize("<" + code)
        if at + size > len(data):
            raise _More
        value: int = struct.unpack_from("<" + code, data, at)[0]
        at += size
        return value

    def skip(count: int) -> None:
        nonlocal at
        at += count
        if at > len(data):
            raise _More

    def value(kind: int, depth: int = 0) -> bool:
        """Skip a value; whether there can be one like it."""
        if kind in GGUF_SIZES:
            skip(GGUF_SIZES[kind])
        elif kind == GGUF_STRING:
            skip(number("Q"))
        elif kind == GGUF_ARRAY and depth < 4:
            inner, count = number("I"), number("Q")
            if inner in GGUF_SIZES:
                skip(GGUF_SIZES[inner] * count)
            elif count > MAX_ARRAY:
                return False
            else:
                return all(value(inner, depth + 1) for _ in range(count))
        else:
            return False
        return True

    if len(data) < 8:
        raise _More
    if data[:4] != b"GGUF":
        return 0
    tensors, pairs = number("Q"), number("Q")
    if tensors > MAX_COUNT or pairs > MAX_COUNT:
        return 0
    for _ in range(pairs):
        skip(number("Q"))
        if not value(number("I")):
            return 0
    for _ in range(tensors):
        skip(number("Q"))
        dimensions = number("I")
        if dimensions > 8:
            return 0
        skip(8 * dimensions + 4 + 8)
    return at
