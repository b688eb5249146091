# SPDX-License-Identifier: Apache-2.0
"""Where everything of ours lies on a host, and how files are written there."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from typing import Iterable, Iterator, Optional

DEFAULT_ROOT = "/var/lib/firstlight"
"""Where root keeps its state."""

LIBRARIES = "libraries"
"""The folder of links to a driver's libraries."""

FOLDERS = ("cache", "canaries", "endpoints", "journal", LIBRARIES, "models", "network",
           "supervisor", "venvs", "wheels", "wheels-aside")
"""What lies directly under the root."""


def root(asked: str = "") -> str:
    """``firstlight_root``, in one spelling: as asked, else the default for this user.

    Root gets ``/var/lib/firstlight``, anyone else ``$XDG_STATE_HOME/firstlight``
    (``~/.local/state/firstlight`` where that is unset).
    """
    if not asked and os.geteuid() == 0:
        return DEFAULT_ROOT
    if not asked:
        state = os.environ.get("XDG_STATE_HOME", "")
        # The XDG specification has a relative path ignored.
        asked = os.path.join(state if os.path.isabs(state) else "~/.local/state", "firstlight")
    path = os.path.abspath(os.path.expanduser(asked))
    # POSIX keeps two leading slashes apart from one, Linux does not.
    return "/" + path.lstrip("/")


def read(path: str) -> Optional[bytes]:
    """The file's bytes, or ``None`` when there is no such file.

    :raises OSError: when it is there and cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def chunks(path: str, size: int, most: int = 2**30) -> Iterator[bytes]:
    """The bytes of a file in parts, the last ``most`` of them.

    :raises OSError: when it cannot be read, or is no file.
    """
    # What is no file might have nobody at its other end, and would then not even be opened.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(None, "not a file")
        file.seek(max(0, status.st_size - most))
        left = min(status.st_size, most)
        # What is written while it is read is left: there might be no end of it.
        while left > 0:
            chunk = file.read(min(size, left))
            if not chunk:
                return
            left -= len(chunk)
            yield chunk


def write(path: str, content: bytes, mode: int = 0o644) -> None:
    """Replace a file as a whole: readers see the old bytes or the new, a crash leaves either.

    :raises OSError: no space, no permission; the old file is then untouched.
    """
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix="." + os.path.basename(path) + ".")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    fsync_folder(folder)


def remove(files: Iterable[str], folder: str, *inner: str) -> None:
    """Remove files of ours, then the folder and those in it, as far as nothing else is in them."""
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file)
    for name in (*inner, ""):
        with contextlib.suppress(OSError):
            os.rmdir(os.path.join(folder, name))


def fsync_folder(folder: str) -> None:
    """Make a rename or an unlink in this folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
