# SPDX-License-Identifier: Apache-2.0
"""Where pip looks on this host, told by its variables and by pip itself.

Addresses may hold a user and a password: they are for requests alone, and :func:`logins` makes of
them what a request to that very origin carries.
"""

from __future__ import annotations

import ast
import contextlib
import os
import re
import sys
import urllib.parse
from typing import Any, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence

from ansible.module_utils.firstlight.runner import run
from ansible.module_utils.firstlight.wheels import pages

PIP_S = 30.0
LINE = re.compile(r"(global|install|:env:)\.([a-z_-]+)=(.+)")
SECTIONS = ("global", "install", ":env:")
"""Where pip's settings stand; the last that has one wins."""
DEFAULT = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
"""pip's own index has no command that tells it."""
NO = ("", "0", "false", "no", "off")


class PipSettings(NamedTuple):
    """Addresses of indexes and places of ``find-links``, in pip's order, with who is in them.

    ``why`` is empty, or says why there is no index.
    """

    indexes: List[str]
    find_links: List[str]
    why: str


def read(env: Optional[Mapping[str, str]] = None, pythons: Sequence[str] = (),
         default: bool = True) -> PipSettings:
    """Where pip looks.

    :param env: variables on top of this process's own, as ``network_settings.read`` gives them.
    :param pythons: interpreters whose pip is asked, in order; this process's comes last.
    :param default: whether pip is asked for its own index where nothing names one.
    """
    variables = {**os.environ, **(env or {})}
    found: Dict[str, str] = {}
    python = ""
    for one in (*pythons, sys.executable):
        ran = run([one, "-I", "-B", "-m", "pip", "--disable-pip-version-check", "config", "list"],
                  timeout_s=PIP_S, env=env)
        if ran.ok:
            python, found = one, parsed(ran.stdout)
            break
    for key in ("index-url", "extra-index-url", "find-links", "no-index"):
        value = variables.get("PIP_" + key.upper().replace("-", "_"))
        # To pip a variable that is empty is not set.
        if value:
            found[key] = value
    find_links = found.get("find-links", "").split()
    if found.get("no-index", "").lower() not in NO:
        return PipSettings([], find_links, "pip is told to use no index (PIP_NO_INDEX, no-index)")
    index = found.get("index-url", "")
    why = ""
    if not index and default:
        if python:
            ran = run([python, "-I", "-B", "-c", DEFAULT], timeout_s=PIP_S, env=env)
            index = ran.stdout.strip() if ran.ok else ""
            why = "" if index else "pip does not tell its own index: " + ran.complaint()
        else:
            why = "no pip in %s" % ", ".join((*pythons, sys.executable))
    indexes = [one for one in (index, *found.get("extra-index-url", "").split()) if one]
    return PipSettings(list(dict.fromkeys(indexes)), list(dict.fromkeys(find_links)), why)


def parsed(text: str) -> Dict[str, str]:
    """What ``pip config list`` prints, by the name of the setting."""
    found: Dict[str, Dict[str, str]] = {section: {} for section in SECTIONS}
    for line in text.splitlines():
        said = LINE.fullmatch(line)
        if not said:
            continue
        section, name, value = said.groups()
        with contextlib.suppress(ValueError, SyntaxError):
            value = ast.literal_eval(value)
        found[section][name.replace("_", "-")] = str(value)
    return {key: value for section in SECTIONS for key, value in found[section].items()}


def logins(urls: Iterable[Any]) -> Dict[str, str]:
    """The header ``Authorization`` by origin, of addresses that hold a user; the first one counts.
    """
    found: Dict[str, str] = {}
    for url in urls:
        if not isinstance(url, str) or "@" not in url:
            continue
        with contextlib.suppress(ValueError):
            plain, login = pages.split_login(url)
            at = pages.origin(plain)
            if login and at and urllib.parse.urlsplit(plain).scheme in ("http", "https"):
                found.setdefault(at, login)
    return found


@contextlib.contextmanager
def variables(env: Optional[Mapping[str, str]]) -> Iterator[None]:
    """Proxies and certificates as they are set for this host, while something is asked.

    :param env: as :func:`read` has it.
    """
    before = {name: os.environ.get(name) for name in env or ()}
    os.environ.update(env or {})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
