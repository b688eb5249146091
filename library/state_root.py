#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: clear away what is left of ours when no endpoint is."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: state_root
short_description: Clear away what is left under firstlight_root when no endpoint is
description:
  - Ends a supervisord of ours that has no program, removes its files, models that were fetched into
    C(models/hub), lock files that nobody holds and our folders as far as they are empty, and then
    the root itself when it is. A cache of models elsewhere stays as it is.
  - Nothing else is removed. A file that is not ours stays, and so do its folder and the root.
options:
  root:
    description: C(firstlight_root) on this host.
    type: path
    required: true
  manager:
    description: What keeps native engines running here.
    type: str
    choices: [systemd, supervisor]
    required: true
  state:
    description: What is left should go.
    type: str
    choices: [absent]
    required: true
attributes:
  check_mode:
    description: Says what it would end and remove as things are now, and changes nothing.
    support: full
  diff_mode:
    description: What it removes is in RV(removed); there is no difference to show.
    support: none
author:
  - Firstlight contributors
"""

EXAMPLES = r"""
- name: Clear away what is left
  state_root:
    root: /var/lib/firstlight
    manager: systemd
    state: absent
"""

RETURN = r"""
removed:
  description: What was ended and removed, or would be, one line each.
  returned: always
  type: list
  elements: str
"""

import contextlib
import glob
import json
import os
import re
import shutil

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.firstlight import paths, services
from ansible.module_utils.firstlight.transaction import Busy, Lock
from ansible.module_utils.firstlight.wheels.house import House, HouseProblem

RECORD = re.compile(r"[0-9a-f]{64}\.json")


def observe(root, manager):
    """What is left that can go: ``{service, records, caches, models, locks, folders}``."""
    inside = glob.escape(root)
    records = sorted(path for path in glob.glob(os.path.join(inside, "canaries", "*.json"))
                     if RECORD.fullmatch(os.path.basename(path)))
    return {
        "records": records + sorted(glob.glob(os.path.join(
            inside, "journal", "endpoint-*.run.json")) + glob.glob(os.path.join(
                inside, "journal", "snapshots-*.run.json")) + _tag(root) + _wheels(root)),
        "caches": _caches(root, records) + _builds(root),
        "models": _models(root),
        "service": services.manager(manager, root).left_over(),
        "locks": sorted(glob.glob(os.path.join(inside, "journal", "*.lock"))
                        + glob.glob(os.path.join(inside, "venvs", "*.lock"))
                        + glob.glob(os.path.join(inside, "wheels", ".manifest.lock"))),
        # Inner ones first, so that an emptied folder can go after them.
        "folders": [folder for folder in (
            *glob.glob(os.path.join(inside, "endpoints", "*")),
            *(os.path.join(root, "models", name) for name in (
                "hub/quarantine", "hub/.locks", "hub", "verified")),
            *(os.path.join(root, name) for name in paths.FOLDERS), root)
            if os.path.isdir(folder) and not os.path.islink(folder)],
    }


def _caches(root, records):
    """What engines compiled while the canary was tried; nothing outside our folder of caches."""
    found = set()
    for path in records:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            cache = json.loads(paths.read(path))["plan"]["cache"]
            if os.path.normpath(cache) == cache and os.path.isdir(cache) \
                    and os.path.dirname(cache) == os.path.join(root, "cache") \
                    and not os.path.islink(cache):
                found.add(cache)
    return sorted(found)


def _models(root):
    """What was fetched into our own cache, and what is remembered of it; no link is followed."""
    cache = os.path.join(root, "models", "hub")
    found = [] if os.path.islink(cache) else [
        path for folder in (cache, os.path.join(cache, ".locks"), os.path.join(cache, "quarantine"))
        for path in glob.glob(os.path.join(glob.escape(folder), "models--*"))]
    found += glob.glob(os.path.join(glob.escape(root), "models", "verified", "models--*"))
    return sorted(path for path in found if os.path.isdir(path) and not os.path.islink(path))


def _builds(root):
    """What builds of wheels left."""
    folder = os.path.join(root, "cache", "wheel-builds")
    return [folder] if os.path.isdir(folder) and not os.path.islink(folder) else []


def _wheels(root):
    """The files of our wheelhouse; what else lies in it stays."""
    folder = os.path.join(root, "wheels")
    if os.path.islink(folder):
        return []
    house, names = House(folder), []
    with contextlib.suppress(HouseProblem):
        names = sorted(house.files())
    return [path for path in (*(os.path.join(folder, name) for name in names), house.manifest)
            if os.path.isfile(path)]


def _tag(root):
    """The file by which programs for backups know our cache."""
    cache = os.path.join(root, "models", "hub")
    path = os.path.join(cache, "CACHEDIR.TAG")
    return [path] if os.path.isfile(path) and not os.path.islink(cache) else []


def left(found):
    """What of it is removed whole, one line each."""
    return (["folder %s" % path for path in found["caches"] + found["models"]]
            + ["file %s" % path for path in found["records"]])


def apply(root, manager, found):
    """End and remove what was found; says what went."""
    removed = services.manager(manager, root).close_if_unused() + left(found)
    for path in found["caches"] + found["models"]:
        shutil.rmtree(path)
    for path in found["records"]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    for file in found["locks"]:
        # Whoever holds it is at work: then it is not left over.
        with contextlib.suppress(Busy), Lock(file, wait_s=0) as lock:
            lock.forget()
    for folder in found["folders"]:
        # Not empty, or a mount point: then it stays.
        with contextlib.suppress(OSError):
            os.rmdir(folder)
            removed.append("directory %s" % folder)
    return removed


def main():
    """Observe, and unless in check mode apply."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "manager": {"type": "str", "choices": ["systemd", "supervisor"], "required": True},
            "state": {"type": "str", "choices": ["absent"], "required": True},
        },
        supports_check_mode=True,
    )
    root, manager = module.params["root"], module.params["manager"]
    try:
        found = observe(root, manager)
        if module.check_mode:
            removed = found["service"] + left(found) + [
                "directory %s" % folder for folder in found["folders"] if not os.listdir(folder)]
        else:
            removed = apply(root, manager, found)
    except (OSError, services.ServiceError) as problem:
        module.fail_json(msg="%s cannot be cleared: %s" % (root, problem))
    module.exit_json(changed=bool(removed), removed=removed)


if __name__ == "__main__":
    main()
