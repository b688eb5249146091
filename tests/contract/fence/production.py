# SPDX-License-Identifier: Apache-2.0
"""What is shipped: it knows nothing of its tests, and says under what licence it is."""

from __future__ import annotations

import re

ROOMS = ("*.yml", "ansible.cfg", "playbooks/**/*", "roles/**/*", "library/**/*",
         "module_utils/**/*", "filter_plugins/**/*", "callback_plugins/**/*", "catalog/**/*",
         "inventories/**/*")
TESTS = re.compile(
    r"\b(molecule\w*|pytest\w*|testinfra|unittest|monkeypatch|hypothesis|conftest|mock\w*)\b"
    r"|\btests?/|FIRSTLIGHT_TEST|\bin_tests?\b|\bunder test\b", re.IGNORECASE)
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
                       "callback_plugins/**/*.py", "roles/**/*.py", "tests/**/*.py",
                       "molecule/**/*.py", "docs/**/*.py")
    return ["%s: found no licence in the first two lines, wanted `%s`" % (file, LICENCE)
            for file in files if LICENCE not in tree.text(file).splitlines()[:2]]
