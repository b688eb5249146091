# SPDX-License-Identifier: Apache-2.0
"""What is shipped: it knows nothing of its tests, and says under what licence it is."""

from __future__ import annotations

import re

ROOMS = ("*.yml", "ansible.cfg", "playbooks/**/*", "roles/**/*", "library/**/*",
         "module_utils/**/*", "filter_plugins/**/*", "lookup_plugins/**/*", "action_plugins/**/*",
         "callback_plugins/**/*", "catalog/**/*", "inventories/**/*")
# `_` is no border of a word to \b, and names like __role_in_molecule are what is looked for.
TESTS = re.compile(
    r"(?<![a-z])(molecule|pytest|testinfra|unittest|monkeypatch|conftest|mock(?!er))"
    r"|import hypothesis|FIRSTLIGHT_TEST|(?<![a-z])test_?mode|(?<![a-z])tests?/"
    r"|(?<![a-z])(in|for|under|during|skip)[_ ](the[_ ])?tests?(?![a-z])|[\"']CI[\"']",
    re.IGNORECASE)
LICENCE = "# SPDX-License-Identifier: Apache-2.0"


def production_knows_no_tests(tree):
    """No production file mentions a test tool or a test: it runs the same everywhere."""
    wrong = []
    for file in tree.files(*ROOMS):
        if file.suffix == ".md":
            continue  # pages for people may say how a role is tested
        for number, line in enumerate(tree.text(file).splitlines(), 1):
            found = TESTS.search(line)
            if found:
                wrong.append("%s:%d: found `%s`, wanted nothing of tests in production" % (
                    file, number, found.group(0)))
    return wrong


def files_carry_the_licence(tree):
    """Every Python file says its licence in its first lines."""
    files = tree.files("library/**/*.py", "module_utils/**/*.py", "filter_plugins/**/*.py",
                       "lookup_plugins/**/*.py", "action_plugins/**/*.py",
                       "callback_plugins/**/*.py", "roles/**/*.py", "tests/**/*.py",
                       "molecule/**/*.py", "docs/**/*.py")
    return ["%s: found no licence in the first two lines, wanted `%s`" % (file, LICENCE)
            for file in files if LICENCE not in tree.text(file).splitlines()[:2]]


def yaml_is_named_yml(tree):
    """YAML files end in .yml: the other rules, and the lints, look for that."""
    rooms = ("catalog", "filter_plugins", "inventories", "molecule", "playbooks", "roles", "tests")
    return ["%s: found the ending .yaml, wanted .yml" % file
            for file in tree.files("*.yaml", *("%s/**/*.yaml" % room for room in rooms))]
