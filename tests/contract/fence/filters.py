# SPDX-License-Identifier: Apache-2.0
"""Our filters: each has its page beside it, and the page names the arguments that it takes."""

from __future__ import annotations

import importlib.util
import inspect
import re

from .tree import spoken

FOLDER = "filter_plugins"


def functions(tree):
    """Name to function of every filter of the tree, and the file that each is in."""
    found = {}
    for file in tree.files(FOLDER + "/*.py"):
        spec = importlib.util.spec_from_file_location("fence_" + file.stem, tree.root / file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found.update({name: (file, function)
                      for name, function in module.FilterModule().filters().items()})
    return found


def filters_are_documented(tree):
    """A filter has a sidecar whose options are its parameters, in order, and an example."""
    wrong = []
    found = functions(tree)
    for name, (file, function) in found.items():
        page = tree.yaml("%s/%s.yml" % (FOLDER, name)) or {}
        where = "%s/%s.yml" % (FOLDER, name)
        told = page.get("DOCUMENTATION") or {}
        if not page:
            wrong.append("%s: found the filter %s without a page, wanted %s" % (file, name, where))
            continue
        if told.get("name") != name:
            wrong.append("%s: found name: %s, wanted %s" % (where, told.get("name"), name))
        wrong += ["%s: found no %s, wanted one" % (where, key)
                  for key in ("short_description", "description", "author") if not told.get(key)]
        wrong += ["%s: found %s, wanted %s" % (where, spoken(page), "DOCUMENTATION, EXAMPLES and "
                  "RETURN")] if set(page) != {"DOCUMENTATION", "EXAMPLES", "RETURN"} else []
        first, *others = inspect.signature(function).parameters
        documented = [option for option in told.get("options") or {} if option != "_input"]
        if documented != others:
            wrong.append("%s: found the options %s, wanted the parameters of the function, in "
                         "order: %s" % (where, ", ".join(documented) or "none",
                                        ", ".join(others) or "none"))
        if others and told.get("positional", "").split(", ") != others:
            wrong.append("%s: found positional: %s, wanted %s" % (
                where, told.get("positional"), ", ".join(others)))
        if not re.search(r"\|\s*%s\b" % name, str(page.get("EXAMPLES"))):
            wrong.append("%s: found no use of %s in EXAMPLES, wanted one" % (where, name))
    wrong += ["%s: found a page of no filter, wanted a filter of this name" % file
              for file in tree.files(FOLDER + "/*.yml") if file.stem not in found]
    return wrong
