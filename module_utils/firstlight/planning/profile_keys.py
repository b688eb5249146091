# SPDX-License-Identifier: Apache-2.0
"""The keys of a profile, read one by one, and everything that is wrong with them."""

from __future__ import annotations

import difflib
from typing import Any, Dict, List, Mapping, Optional, Tuple

from ..findings import Finding, finding
from .requests import whole_number

Catalog = Dict[str, List[Dict[str, Any]]]


class Profile:
    """A profile as far as it was read, and everything that is wrong with it."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.findings: List[Finding] = []
        self.name = "host"

    def bad(self, id: str, key: str, found: str, wanted: str,  # noqa: A002
            remedy: str = "") -> None:
        """Something is wrong with a key."""
        subject = "profile.%s" % key if key else "profile"
        self.findings.append(finding(
            "profile-" + id, subject, found, wanted, remedy or "change %s" % subject))

    def known(self, key: str, given: Mapping[Any, Any], keys: Tuple[str, ...]) -> None:
        """Every key is one that is read."""
        for one in given:
            if one in keys:
                continue
            shown = one if isinstance(one, str) else repr(one)
            near = difflib.get_close_matches(shown.lower(), keys, n=1)
            inner = "%s.%s" % (key, shown) if key else shown
            self.bad("unknown-key", inner, "a key that nothing reads",
                     "one of " + ", ".join(keys),
                     "did you mean `%s`?" % near[0] if near else "remove it")

    def mapping(self, key: str, given: Any, keys: Tuple[str, ...]) -> Optional[Dict[Any, Any]]:
        """A mapping of known keys; ``None`` where it is something else, which is told."""
        if not isinstance(given, dict):
            self.bad("not-a-mapping", key, shown(given), "a mapping with " + ", ".join(keys))
            return None
        self.known(key, given, keys)
        return given

    def count(self, key: str, given: Any, most: int, least: int = 1) -> Optional[int]:
        """A whole number between two."""
        number = whole_number(given)
        if number is None or not least <= number <= most:
            self.bad("not-a-count", key, shown(given),
                     "a whole number from %d to %d" % (least, most))
            return None
        return int(number)

    def amount(self, key: str, given: Any, most: int) -> Optional[float]:
        """A number above 0."""
        if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 < given <= most:
            self.bad("not-an-amount", key, shown(given), "a number above 0, at most %d" % most)
            return None
        return float(given)

    def text(self, key: str, given: Any) -> Optional[str]:
        """Text, of which YAML may have made a number."""
        if isinstance(given, str) and given.strip() and given.isprintable():
            return given
        self.bad("not-text", key, shown(given), "text",
                 "quote it: YAML reads it as a number" if isinstance(given, (int, float)) else "")
        return None

    def choice(self, key: str, given: Any, choices: Tuple[str, ...]) -> Optional[str]:
        """One of some words."""
        if isinstance(given, str) and given in choices:
            return given
        self.bad("unknown-word", key, shown(given), "one of " + ", ".join(choices))
        return None


def plain(value: Any) -> Any:
    """A value of Python's own types: Ansible's numbers and texts carry more, and are none here."""
    if isinstance(value, dict):
        return {plain(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if value is None or isinstance(value, bool):
        return value
    kind = next((one for one in (int, float) if isinstance(value, one)), str)
    return kind(value)


def shown(value: Any) -> str:
    """A value as it stands in the profile, not too long."""
    if value is None:
        return "nothing"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**30:
        return "a number of more than 30 digits"
    if isinstance(value, (dict, list, tuple)):
        return "a mapping" if isinstance(value, dict) else "a list"
    shown = ascii(value)
    return shown if len(shown) <= 60 else shown[:60] + "..."
