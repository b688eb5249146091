# SPDX-License-Identifier: Apache-2.0
"""The catalogs: whole rows, in the order that their heading names, each with its source."""

from __future__ import annotations

import re

from .tree import spoken

HEADING = re.compile(r"^# Sorted by: ([a-z_, ]+)\.$", re.MULTILINE)
# What says how we know: an address, or what was tried and seen.
SOURCE = re.compile(r"https://\S+|\b(tried|measured|seen|read)\b", re.IGNORECASE)


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
            if len(source.split()) < 5 or not SOURCE.search(source):
                wrong.append("%s: found source: %r, wanted an https address, or what was tried, "
                             "measured, seen or read" % (where, source[:60]))
        order = [tuple(_comparable(row.get(key)) for key in keys) for row in rows]
        wrong += ["%s:%d: found a row out of order or twice, wanted them by %s, each once" % (
            file, row.line, ", ".join(keys))
            for row, before, here in zip(rows[1:], order, order[1:]) if before >= here]
    wrong += ["%s: found a file in catalog/, wanted YAML named .yml" % file
              for file in tree.files("catalog/**/*") if file.suffix not in (".yml", ".md")]
    return wrong


def _comparable(value):
    """Text by letters, with its numbers as numbers: 0.9 comes before 0.24."""
    return [(1, int(part), "") if part.isdigit() else (0, 0, part)
            for part in re.split(r"(\d+)", str(value)) if part]
