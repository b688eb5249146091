# SPDX-License-Identifier: Apache-2.0
"""The catalogs: whole rows, in the order that their heading names, each with its source."""

from __future__ import annotations

import re

from packaging.version import InvalidVersion, Version

from .tree import spoken

HEADING = re.compile(r"^# Sorted by: ([a-z0-9_, ]+)\.$", re.MULTILINE)
# What says how we know: an address, or a sentence on what was tried and seen.
ADDRESS = re.compile(r"https://\S+")
FIRST_HAND = re.compile(r"\b(tried|measured|seen|read)\b", re.IGNORECASE)


def catalogs_are_whole(tree):
    """Every catalog is a sorted list of rows with the same keys, each with a source."""
    wrong = []
    for file in tree.files("catalog/**/*.yml"):
        rows = tree.yaml(file)
        heading = HEADING.search(tree.text(file))
        if not isinstance(rows, list) or not rows:
            wrong.append("%s: found no list of rows, wanted one" % file)
            continue
        if not heading:
            wrong.append("%s: found no order, wanted the comment `# Sorted by: key, key.`" % file)
            continue
        keys = heading.group(1).split(", ")
        usual = set().union(*rows)
        for row in rows:
            where = "%s:%d" % (file, row.line)
            if set(row) != usual:
                wrong.append("%s: found a row without %s, wanted the keys of the other rows" % (
                    where, spoken(usual - set(row))))
            source = str(row.get("source") or "")
            wrong += ["%s: found %s: null, wanted a value, an empty text or an empty list" % (
                where, key) for key, value in row.items() if value is None]
            if not ADDRESS.search(source) and not (
                    FIRST_HAND.search(source) and len(source.split()) >= 5):
                wrong.append("%s: found source: %r, wanted an https address, or what was tried, "
                             "measured, seen or read" % (where, source[:60]))
        if not set(keys) <= usual:
            wrong.append("%s: found the order %s, wanted keys of the rows: %s" % (
                file, ", ".join(keys), spoken(usual)))
            continue
        order = list(zip(*(_comparable([row.get(key) for row in rows]) for key in keys)))
        wrong += ["%s:%d: found a row out of order or twice, wanted them by %s, each once" % (
            file, row.line, ", ".join(keys))
            for row, before, here in zip(rows[1:], order, order[1:]) if before >= here]
    wrong += ["%s: found a file in catalog/, wanted YAML named .yml" % file
              for file in tree.files("catalog/**/*") if file.suffix not in (".yml", ".md")]
    return wrong


def _comparable(values):
    """A column so that it sorts: versions as versions, else text with its numbers as numbers."""
    try:
        return [Version(str(value)) for value in values]
    except InvalidVersion:
        return [[(1, int(part), "") if part.isdigit() else (0, 0, part)
                 for part in re.split(r"(\d+)", str(value)) if part] for value in values]
