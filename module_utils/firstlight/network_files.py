# SPDX-License-Identifier: Apache-2.0
"""The files of a host's way out: written together, known again, and taken back as they were.

What was written is remembered by its hash, and what was there before with all of it, in a file that
its owner alone reads. So a file that somebody has changed since is told from one of ours, and is
kept aside before it is written or removed.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import stat
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Set

from . import network_settings, paths
from .findings import Finding, finding
from .planning import network
from .transaction import Transaction

JOURNAL = "network_access"
KEPT = "kept"
APT = "apt"
HEAD = b"// Written by Firstlight"
SYSTEM_WIDE = "/etc/environment"
SECRET, OPEN = 0o600, 0o644


class Item(NamedTuple):
    """A file as it should be or is; a link where it has a target."""

    content: bytes = b""
    mode: int = OPEN
    target: str = ""

    def short(self) -> str:
        """What it is known by."""
        if self.target:
            return "link:" + self.target
        return "file:%04o:%s" % (self.mode, hashlib.sha256(self.content).hexdigest())


class State(NamedTuple):
    """What an earlier run left.

    :param question: hash of what was asked; empty where nothing was.
    :param settled: whether candidates were asked, and need not be again for the same question.
    :param written: what was written, by path, as :meth:`Item.short` has it.
    :param before: what was there before, by path, where something was.
    :param tail: of ``/etc/environment`` before our block: ``absent``, ``open`` (its last line had
        no end) or ``whole``; empty where there is no block.
    """

    question: str = ""
    settled: bool = False
    decision: Dict[str, Any] = {}
    written: Dict[str, str] = {}
    before: Dict[str, Dict[str, Any]] = {}
    block: str = ""
    tail: str = ""


class Steps:
    """What is to be changed, and how it is told."""

    def __init__(self) -> None:
        self.writes: Dict[str, Item] = {}
        self.removals: Dict[str, Optional[Item]] = {}
        """By path, what was there before and comes back."""
        self.aside: Dict[str, Item] = {}
        """Files of others, by the path that they are kept at."""
        self.findings: List[Finding] = []
        self.before: Dict[str, Dict[str, Any]] = {}
        self.written: Dict[str, str] = {}
        self.block = self.tail = ""

    @property
    def any(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.writes or self.removals or self.aside)

    def lines(self) -> List[str]:
        """One line for each change."""
        return (["keep aside %s" % path for path in sorted(self.aside)]
                + ["write %s" % path for path in sorted(self.writes)]
                + ["%s %s" % ("remove" if item is None else "put back", path)
                   for path, item in sorted(self.removals.items())])

    def adopt(self, lists: Mapping[str, Item], files: Files) -> None:
        """Have lists that somebody has put into our copy go where all lists are.

        :param lists: by the path where they belong.
        """
        for path, item in lists.items():
            mine = os.path.join(files.sources, "sources.list.d", os.path.basename(path))
            if mine not in self.written:
                self.removals[mine] = None
            if files.there(path) is not None:
                # Another list has that name.
                files.aside(self, mine, item)
                continue
            self.writes[path] = item
            self.findings.append(finding(
                "network-file-moved", mine, "somebody else has put this list there",
                "lists in %s" % os.path.dirname(path), "nothing: it is %s now" % path,
                severity="info"))

    def touches(self, folder: str) -> bool:
        """Whether anything in a folder changes."""
        return any(path.startswith(folder + "/") for path in (*self.writes, *self.removals))


class Files:
    """The files of one root, on a host.

    :param root: ``firstlight_root``, in one spelling.
    :param system_root: where the file system of the host is.
    """

    def __init__(self, root: str, system_root: str) -> None:
        self.root, self.system_root = root, system_root
        self.folder = os.path.join(root, network_settings.FOLDER)
        self.sources = os.path.join(self.folder, APT)
        """Where our copy of apt's lists is."""

    def at(self, path: str) -> str:
        """Where a path of the host is from here."""
        if path == self.root or path.startswith(self.root + "/"):
            return path
        return os.path.join(self.system_root, path.lstrip("/"))

    def there(self, path: str) -> Optional[Item]:
        """A file or a link as it is; ``None`` where there is none."""
        where = self.at(path)
        if os.path.islink(where):
            return Item(target=os.readlink(where))
        content = paths.read(where)
        if content is None:
            return None
        return Item(content, stat.S_IMODE(os.stat(where).st_mode))

    def state(self) -> State:
        """What an earlier run left; one that cannot be understood left nothing.

        :raises OSError: it is another user's.
        """
        content = paths.read(os.path.join(self.folder, network_settings.STATE))
        try:
            found = json.loads(content or b"")
            state = State(**{key: found[key] for key in State._fields})
        except (ValueError, KeyError, TypeError, RecursionError):
            return State()
        kinds = [isinstance(one, type(usual)) for one, usual in zip(state, State())]
        return state if all(kinds) else State()

    def transaction(self) -> Transaction:
        """The change of all of them."""
        return Transaction(os.path.join(self.root, "journal"), JOURNAL)

    # Plan.

    def plan(self, state: State, wanted: Mapping[str, Item], block: str) -> Steps:
        """What leads to the wanted files.

        :param wanted: by path; what was written earlier and is not here goes.
        :param block: ours in ``/etc/environment``; empty for none.
        """
        steps = Steps()
        for path in sorted({*wanted, *state.written}):
            there, item, mark = self.there(path), wanted.get(path), state.written.get(path)
            if item is not None:
                steps.written[path] = item.short()
            if path in state.before and item is not None:
                steps.before[path] = state.before[path]
            if there == item:
                continue
            if there is not None and mark is not None and _bytes(there.short()) != _bytes(mark):
                self.aside(steps, path, there)
            if item is None:
                back = state.before.get(path)
                if there is not None or back:
                    steps.removals[path] = _as_item(back) if back else None
                continue
            if there is not None and mark is None and not self._ours(path, there):
                steps.before[path] = _as_entry(there)
            steps.writes[path] = item
        self._plan_block(steps, state, block)
        return steps

    def _ours(self, path: str, there: Item) -> bool:
        return path.startswith(self.folder + "/") or there.content.startswith(HEAD)

    def aside(self, steps: Steps, path: str, there: Item) -> None:
        """Have a file kept that somebody has changed, and tell it."""
        kept = os.path.join(self.folder, KEPT, os.path.basename(path))
        number, taken = 1, kept
        while os.path.lexists(taken) or taken in steps.aside:
            number, taken = number + 1, "%s.%d" % (kept, number + 1)
        if not there.target:
            steps.aside[taken] = there._replace(mode=SECRET)
        steps.findings.append(finding(
            "network-file-changed", path, "somebody has changed it since it was written here",
            "what is asked for", "look at what was there%s, and say it by the variables of "
            "network_access" % (": it is kept as %s" % taken if not there.target else
                                " (a link to %s)" % there.target), severity="warning"))

    def _plan_block(self, steps: Steps, state: State, block: str) -> None:
        if not block and not state.block:
            return
        path = os.path.realpath(self.at(SYSTEM_WIDE)) if self.system_root == "/" else SYSTEM_WIDE
        there = self.there(path)
        text = (there or Item()).content.decode("utf-8", "surrogateescape")
        _, inside, _ = network.split_block(text, self.root)
        if inside and state.block and _hash(inside) != state.block:
            self.aside(steps, path, Item(inside.encode("utf-8", "surrogateescape")))
        steps.tail = state.tail or (
            "absent" if there is None else "open" if text and not text.endswith("\n") else "whole")
        if block:
            after = network.with_block(text, block, self.root)
            steps.block = _hash(block)
        else:
            after = network.without_block(text, self.root, steps.tail != "open")
            if not after and steps.tail == "absent":
                if there is not None:
                    steps.removals[path] = None
                steps.tail = ""
                return
            steps.tail = ""
        if after != text:
            steps.writes[path] = Item(after.encode("utf-8", "surrogateescape"),
                                      there.mode if there else OPEN)

    def with_state(self, steps: Steps, question: str, settled: bool,
                   decision: Mapping[str, Any]) -> None:
        """Have the steps leave what the next run knows them by."""
        state = State(question, settled, dict(decision), steps.written, steps.before, steps.block,
                      steps.tail)
        content = json.dumps(state._asdict(), indent=1, sort_keys=True) + "\n"
        path = os.path.join(self.folder, network_settings.STATE)
        item = Item(content.encode(), SECRET)
        if self.there(path) != item:
            steps.writes[path] = item

    def without_state(self, steps: Steps) -> None:
        """Have the steps leave nothing to know them by."""
        path = os.path.join(self.folder, network_settings.STATE)
        if os.path.lexists(path):
            steps.removals[path] = None

    # Apply.

    def apply(self, change: Transaction, steps: Steps) -> None:
        """Take the steps, inside the transaction: what the system reads last, or first to go.

        :raises OSError: all is put back by the transaction.
        """
        for path, item in steps.aside.items():
            self._make(os.path.dirname(path))
            change.write(path, item.content, item.mode)
        for path, back in sorted(steps.removals.items(), key=lambda one: self._inside(one[0])):
            if back is None:
                change.remove(self.at(path))
            else:
                self._put(change, path, back)
        for path, item in sorted(steps.writes.items(), key=lambda one: not self._inside(one[0])):
            self._put(change, path, item)

    def clear(self) -> None:
        """Remove our folders as far as nothing is in them."""
        inner = [os.path.join(APT, "sources.list.d"), APT, KEPT]
        paths.remove([], self.folder, *inner)

    def _inside(self, path: str) -> bool:
        return path.startswith(self.folder + "/")

    def _put(self, change: Transaction, path: str, item: Item) -> None:
        where = self.at(path)
        self._make(os.path.dirname(where))
        if item.target:
            change.link(where, item.target)
        else:
            change.write(where, item.content, item.mode)

    def _make(self, folder: str) -> None:
        """Make a folder and those it is in, for everybody to look into, whatever our umask."""
        if not os.path.isdir(folder):
            self._make(os.path.dirname(folder))
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder)
                os.chmod(folder, 0o755)

    def difference(self, steps: Steps) -> List[Dict[str, str]]:
        """Before and after of what changes, without secrets."""
        shown = []
        changed: Dict[str, Optional[Item]] = {**steps.removals, **steps.writes}
        for path in sorted(changed):
            if path != os.path.join(self.folder, network_settings.STATE):
                shown.append({"before_header": path, "after_header": path,
                              "before": _text(self.there(path)), "after": _text(changed[path])})
        return shown

    def strangers(self, state: State) -> Set[str]:
        """Names of lists in our copy that somebody else has put there."""
        folder = os.path.join(self.sources, "sources.list.d")
        names = os.listdir(folder) if os.path.isdir(folder) else []
        return {name for name in names if os.path.join(folder, name) not in state.written
                and not name.startswith(".")}


def _text(item: Optional[Item]) -> str:
    if item is None:
        return ""
    if item.target:
        return "-> %s\n" % item.target
    return network.masked(item.content.decode("utf-8", "replace"))


def _bytes(short: str) -> str:
    """What a file is known by, without its mode: of another mode nothing is lost."""
    return short.rpartition(":")[2]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _as_entry(item: Item) -> Dict[str, Any]:
    return {"content": base64.b64encode(item.content).decode(), "mode": item.mode,
            "target": item.target}


def _as_item(entry: Mapping[str, Any]) -> Item:
    return Item(base64.b64decode(entry["content"]), int(entry["mode"]), str(entry["target"]))
