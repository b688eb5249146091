# SPDX-License-Identifier: Apache-2.0
"""The linker cache: the file as it lies there, what ldconfig lists, and what it would list."""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

from ..runner import Ran, run
from .reading import Reader

TOOL = "/sbin/ldconfig"
"""The path that Triton has written into it, from 2.2.0 on."""
CACHE = "/etc/ld.so.cache"
CONFIGURED = "/etc/ld.so.conf.d"
CONF = CONFIGURED + "/0-0000-firstlight.conf"
"""Our file: the first of its folder, whether names are sorted by bytes or by a language, so that
what it names comes before a stub or a library for compatibility; CUDA's own begin with ``000``."""

# dl-cache.h of glibc: the format since 2.2, and the one before, which may stand in front of it.
NEW_MAGIC = b"glibc-ld.so.cache1.1"
NEW_HEADER = struct.Struct("=20sIIB3xI12x")
NEW_ENTRY = struct.Struct("=iIIIQ")
OLD_MAGIC = b"ld.so-1.7.0\0"
OLD_HEADER = struct.Struct("=12sI")
OLD_ENTRY = struct.Struct("=iII")
# Since glibc 2.33.
EXTENSION_MAGIC = 0xEAA42174
EXTENSION = struct.Struct("=II")
SECTION = struct.Struct("=IIII")

MOUNTS = "/proc/self/mountinfo"
# How a space, a tab, a line break and a backslash are written there.
ESCAPED = re.compile(r"\\([0-7]{3})")

ELF = b"\x7fELF"
LIMIT_S = 20.0
LISTED = re.compile(r"^\t(\S+) \(.*?\) => (/.*)$", re.MULTILINE)
FOLDER = re.compile(r"^(/.*?):(?: \((?:from (.*?)|hwcap.*|legacy.*)\))?$")
# What -v says of a library: its soname, the file, and what it did or would not do about the link.
LIBRARY = re.compile(r"^\t(\S+) -> (.*[^)]|.+?)(?: \((?:changed|SKIPPED|skipped)\))?$")

Entry = Tuple[str, str]
"""A folder and the name by which the loader knows a library in it."""


class Cache(NamedTuple):
    """The cache file.

    ``state`` is ``ok``, ``missing``, ``empty``, ``damaged``, ``directory``, ``unreadable`` (to
    others than root) or ``unknown`` (to whoever asks). ``detail`` says in words what was read.
    ``movable``: whether another can take its place: it is no mount point, nor a directory with
    something in it.
    """

    state: str
    detail: str
    movable: bool = True


class Configured(NamedTuple):
    """What the cache would be if it were made now.

    ``entries``: each library that it would list, and the file that the entry's link leads to.
    ``folders``: the folders that are configured, with the file and line that names them.
    """

    entries: Dict[Entry, str]
    folders: Dict[str, str]


def cache(reader: Reader) -> Cache:
    """How the cache file is, without asking ldconfig, which lists garbage from some broken ones."""
    path = reader.path(CACHE)
    read = _read(path)
    return read._replace(movable=read.movable and not _is_mounted(path))


def _is_mounted(path: str) -> bool:
    """Whether something is mounted there; of a file of the same file system ``ismount`` is blind.

    A link can be replaced, wherever it leads.
    """
    here = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    try:
        with open(MOUNTS, encoding="utf-8", errors="surrogateescape") as file:
            places = [line.split(" ")[4] for line in file]
    except (OSError, IndexError):
        return os.path.ismount(here)
    return here in (ESCAPED.sub(lambda found: chr(int(found.group(1), 8)), place)
                    for place in places)


def _read(path: str) -> Cache:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        # A link that leads nowhere is no cache either.
        return Cache("missing", "%s does not exist" % CACHE)
    except OSError as problem:
        # A link to itself can be replaced as any other broken cache.
        state = "damaged" if problem.errno == errno.ELOOP else "unknown"
        return Cache(state, "%s: %s" % (CACHE, problem.strerror))
    if stat.S_ISDIR(found.st_mode):
        return Cache("directory", "%s is a directory" % CACHE, not os.listdir(path))
    if not stat.S_ISREG(found.st_mode):
        return Cache("damaged", "%s is no regular file" % CACHE)
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as problem:
        return Cache("unreadable", "%s: %s" % (CACHE, problem.strerror))
    state, detail = of_content(content)
    if state == "ok" and not found.st_mode & stat.S_IROTH:
        return Cache("unreadable", "%s has the mode %04o" % (CACHE, stat.S_IMODE(found.st_mode)))
    return Cache(state, "%s, %d bytes: %s" % (CACHE, len(content), detail))


def of_content(content: bytes) -> Tuple[str, str]:
    """``ok``, ``empty`` or ``damaged``, and why.

    :param content: the bytes of a cache file. Its layout is that of ``dl-cache.h`` of glibc.
    """
    if not content:
        return "empty", "no bytes"
    start, listed = 0, 0
    if content.startswith(OLD_MAGIC) and len(content) >= OLD_HEADER.size:
        listed = OLD_HEADER.unpack_from(content)[1]
        start = (OLD_HEADER.size + listed * OLD_ENTRY.size + 7) & ~7
    if content[start:start + len(NEW_MAGIC)] == NEW_MAGIC:
        return _of_new(content, start)
    if not start:
        return "damaged", "it does not begin as a cache does"
    end = OLD_HEADER.size + listed * OLD_ENTRY.size
    if len(content) < end:
        return "damaged", "it ends within its %d entries" % listed
    # Texts are counted from the end of the entries.
    texts = content[end:]
    if listed and not texts.endswith(b"\0") or any(
            max(key, value) >= len(texts)
            for _, key, value in OLD_ENTRY.iter_unpack(content[OLD_HEADER.size:end])):
        return "damaged", "an entry leads out of it"
    return ("ok", "%d libraries" % listed) if listed else ("empty", "no libraries")


def _of_new(content: bytes, start: int) -> Tuple[str, str]:
    if len(content) < start + NEW_HEADER.size:
        return "damaged", "it ends within its header"
    _, listed, text_bytes, _, extension = NEW_HEADER.unpack_from(content, start)
    first = start + NEW_HEADER.size
    end = first + listed * NEW_ENTRY.size + text_bytes
    if len(content) < end:
        return "damaged", "it should have %d libraries in %d bytes or more" % (listed, end)
    if extension and not _extension_is_whole(content, extension):
        return "damaged", "what follows its %d libraries is not whole" % listed
    # Texts are counted from the start of this format.
    within = range(first - start + listed * NEW_ENTRY.size, end - start)
    for _, key, value, _, _ in NEW_ENTRY.iter_unpack(
            content[first:first + listed * NEW_ENTRY.size]):
        if key not in within or value not in within:
            return "damaged", "an entry leads out of it"
    return ("ok", "%d libraries" % listed) if listed else ("empty", "no libraries")


def _extension_is_whole(content: bytes, start: int) -> bool:
    """Whether all sections are there: ldconfig fails where one is not, and the loader goes on."""
    if len(content) < start + EXTENSION.size:
        return False
    magic, count = EXTENSION.unpack_from(content, start)
    first = start + EXTENSION.size
    if magic != EXTENSION_MAGIC or (len(content) - first) // SECTION.size < count:
        return False
    return all(offset + size <= len(content) for _, _, offset, size in SECTION.iter_unpack(
        content[first:first + count * SECTION.size]))


def tool(reader: Reader) -> Tuple[str, str]:
    """``ok``, ``missing`` or ``not_executable``, and what was seen."""
    path = reader.path(TOOL)
    if not os.path.exists(path):
        return "missing", "%s does not exist" % TOOL
    if not os.path.isfile(path) or not os.access(path, os.X_OK):
        return "not_executable", "%s has the mode %04o" % (
            TOOL, stat.S_IMODE(os.stat(path).st_mode))
    return "ok", TOOL


def call(reader: Reader, *options: str) -> Ran:
    """Run ldconfig on the system that the reader looks at."""
    elsewhere = [] if reader.path("/") == "/" else ["-r", reader.path("/")]
    return run([reader.path(TOOL), *elsewhere, *options], timeout_s=LIMIT_S)


def listing(reader: Reader) -> Ran:
    """What Triton asks: ``ldconfig -p``."""
    return call(reader, "-p")


def listed(text: str) -> Iterator[Entry]:
    """The entries of a listing.

    :param text: what ``ldconfig -p`` printed.
    """
    for name, path in LISTED.findall(text):
        folder, _, file = path.rpartition("/")
        if file == name:
            yield folder or "/", name


def rehearsal(reader: Reader, folders: Sequence[str] = ()) -> Ran:
    """What ldconfig would do: ``-N`` makes no cache, and ``-X`` is what keeps it from links.

    :param folders: more folders, taken before the configured ones.
    """
    return call(reader, "-N", "-X", "-v", *folders)


def configured(text: str) -> Configured:
    """What ldconfig would list.

    :param text: what ``ldconfig -N -X -v`` printed.
    """
    entries: Dict[Entry, str] = {}
    folders: Dict[str, str] = {}
    here: Optional[str] = None
    for line in text.split("\n"):
        library = LIBRARY.match(line)
        if library and here is not None:
            name, file = library.groups()
            # A soname is what the library's maker wrote there: one with a way in it is no name.
            if "/" not in name + file and name not in (".", ".."):
                entries[here, name] = file
            continue
        folder = FOLDER.match(line)
        if folder:
            here = folder.group(1)
            folders[here] = folder.group(2) or ""
    return Configured(entries, folders)


class Compared(NamedTuple):
    """A listing held against what would be listed: paths, each sorted.

    ``strays`` are there and listed, and lie in folders that are not configured.
    """

    unlisted: List[str]
    gone: List[str]
    strays: List[str]


def compare(reader: Reader, there: Set[Entry], wanted: Configured) -> Compared:
    """What the cache lacks, and what it lists that is there no more.

    Folders are compared as they are, not as they are spelled: ``/lib`` is ``/usr/lib`` on most.
    """
    real: Dict[str, str] = {}

    def settled(entry: Entry) -> Entry:
        folder, name = entry
        if folder not in real:
            real[folder] = os.path.realpath(reader.path(folder))
        return real[folder], name

    # Nearly all are spelled alike, of ten thousand too; only the others are settled.
    lacking, over = wanted.entries.keys() - there, there - wanted.entries.keys()
    names = {name for _, name in lacking | over}
    known = {settled(entry) for entry in there if entry[1] in names}
    wished = {settled(entry) for entry in wanted.entries if entry[1] in names}
    unlisted = sorted(
        os.path.join(*entry) for entry in lacking
        if settled(entry) not in known and is_library(reader, entry[0], wanted.entries[entry]))
    rest = [entry for entry in over if settled(entry) not in wished]
    gone = {entry for entry in rest if _is_gone(reader.path(os.path.join(*entry)))}
    configured_ = {os.path.realpath(reader.path(folder)) for folder in wanted.folders}
    strays = [entry for entry in rest if entry not in gone and settled(entry)[0] not in configured_]
    return Compared(unlisted, *(sorted(os.path.join(*entry) for entry in entries)
                                for entries in (gone, strays)))


def _is_gone(path: str) -> bool:
    """Whether it is not there. What this user may not see may be."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        pass
    return False


def is_library(reader: Reader, folder: str, file: str) -> bool:
    """Whether the file is one; what ldconfig prints of a soname with line breaks is none."""
    try:
        with open(reader.path(os.path.join(folder, file)), "rb") as content:
            return content.read(len(ELF)) == ELF
    except OSError:
        return False


def as_data(ran: Ran) -> Dict[str, Any]:
    """What a call came to, for evidence."""
    return {"rc": ran.rc, "said": "" if ran.ok else ran.complaint()}
