# SPDX-License-Identifier: Apache-2.0
"""Addresses of files: ``file:///srv/models/x`` for ``/srv/models/x`` (RFC 8089)."""

from __future__ import annotations

import urllib.parse
from typing import Optional, Tuple

SCHEME = "file:"


def is_one(text: str) -> bool:
    """Whether it is an address of a file, right or wrong."""
    return text[:len(SCHEME)].lower() == SCHEME


def path(address: str) -> Tuple[Optional[str], str]:
    """The path of an address, or ``None`` and why there is none.

    Percent signs are decoded, once. A host may be ``localhost`` or nothing.
    """
    rest = address[len(SCHEME):]
    host, quoted = "", rest
    if rest.startswith("//"):
        host, slash, behind = rest[2:].partition("/")
        quoted = slash + behind
    if host.lower() not in ("", "localhost"):
        return None, ("%s is taken for the name of another host; three slashes begin a path"
                      % ascii(host))
    if not quoted.startswith("/"):
        return None, "no absolute path in it"
    try:
        found = urllib.parse.unquote(quoted, errors="strict")
    except UnicodeDecodeError:
        return None, "its percent signs are no UTF-8"
    if not found.isprintable():
        return None, "a control character in it"
    return found, ""
