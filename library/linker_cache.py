#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: bring the linker cache and the links to libcuda in order, proven or put back."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: linker_cache
short_description: Mend the linker cache and the links to libcuda, proven or put back
description:
  - Looks as C(host_checks) does. Where there is something that it can mend, it changes in one
    transaction the file C(/etc/ld.so.conf.d/0-0000-firstlight.conf), links to libcuda, links that
    ldconfig would make, and C(/etc/ld.so.cache), which is built aside and put in place as a whole.
  - Then it proves the host - what was to be mended is found no more, nothing new is, and a fresh
    process that loads C(libcuda.so.1) gets the driver's library and starts CUDA as well with it as
    with the library's own path. Else all is put back and the run fails. A repair that was killed is
    put back by the next run, which then goes on.
  - Where the system cannot be mended (without root, with a read-only C(/etc), without ldconfig) it
    makes a folder of links under RV(root) and returns the environment with which engines get around
    it, proven as well.
  - No stub is ever linked, no file of an administrator's changed, no link that a package owns
    replaced, no driver touched.
options:
  root:
    description: C(firstlight_root) on this host; empty means the default of the user.
    type: path
    default: ""
  checks:
    description: Rows of C(catalog/library_checks.yml).
    type: list
    elements: dict
    required: true
  places:
    description: Rows of C(catalog/library_places.yml), where a libcuda may lie.
    type: list
    elements: dict
    default: []
  tritons:
    description: Rows of C(catalog/triton_releases.yml).
    type: list
    elements: dict
    default: []
  pythons:
    description: Pythons of this host that run engines.
    type: list
    elements: path
    default: []
  state:
    description:
      - C(present) mends what is wrong. C(absent) removes our file and our links, and makes the
        cache anew where our file had a part in it.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode:
    description: Says what it would do and changes nothing.
    support: full
  diff_mode:
    description: Shows our file, the links, and what the cache would list more or less.
    support: full
author:
  - Firstlight contributors
"""

EXAMPLES = r"""
- name: Mend the library path
  linker_cache:
    root: /var/lib/firstlight
    checks: "{{ lookup('ansible.builtin.file', 'catalog/library_checks.yml') | from_yaml }}"
    places: "{{ lookup('ansible.builtin.file', 'catalog/library_places.yml') | from_yaml }}"
    tritons: "{{ lookup('ansible.builtin.file', 'catalog/triton_releases.yml') | from_yaml }}"
"""

RETURN = r"""
findings:
  description: What is wrong now; in check mode, what was found.
  returned: always
  type: list
  elements: dict
remedies:
  description: Names of the safe remedies that help with it.
  returned: always
  type: list
  elements: str
helps:
  description: The safe remedy that helps, by the id of the finding.
  returned: always
  type: dict
seen:
  description: What was read, as C(host_checks) returns it.
  returned: always
  type: dict
actions:
  description: What was done, or would be, one line each.
  returned: always
  type: list
  elements: str
reasons:
  description: Why, one line each.
  returned: always
  type: list
  elements: str
environment:
  description:
    - Variables with which an engine on this host finds libcuda; empty where it does without.
  returned: always
  type: dict
  sample: {TRITON_LIBCUDA_PATH: /var/lib/firstlight/libraries}
blocks:
  description:
    - What does not work on this host, in that environment either, and what no repair here would
      mend.
  returned: always
  type: list
  elements: dict
  contains:
    stops:
      description: C(cuda), C(triton) or C(both).
      type: str
    python:
      description: The Python that is concerned; empty where all programs are.
      type: str
    finding:
      description: The finding.
      type: dict
recovered:
  description: Whether an earlier repair was found half done and put back first.
  returned: always
  type: bool
"""

import contextlib
import os
import shutil

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.firstlight import library_path, paths
from ansible.module_utils.firstlight.host import cuda_probe, driver_libraries, ldconfig
from ansible.module_utils.firstlight.library_steps import Host, Steps
from ansible.module_utils.firstlight.planning import library_path as judge
from ansible.module_utils.firstlight.planning import library_repair
from ansible.module_utils.firstlight.runner import run
from ansible.module_utils.firstlight.transaction import Busy, RollbackFailed

SYSTEM_ROOT = "/"
ASIDE = "/etc/.ld.so.cache.firstlight"
TRITON = ("triton", "both")
"""What no repair may bring; that CUDA itself does not start may come to light by one."""


class NotMended(Exception):
    """The change failed or its proof did; the message is for the operator."""


def apply(host, state):
    """Change and prove; the transaction puts everything back when either fails.

    Says whether it did anything, what, the steps, and what is seen now.
    """
    make(host.root)
    with library_path.journal(host.root, lambda: relabel(host)) as change:
        # Only now is it sure that nothing is half done, by an earlier run or by one beside us.
        looked, ours = host.observe()
        steps = Steps(host, looked, ours, state)
        done = steps.actions()
        if steps.any:
            take(host, change, steps)
            more = Steps(host, *host.observe(), state)
            # What comes to light only with the new cache: a library that now is before another, or
            # a link that it lists and that is not ours to make.
            if steps.cache and (more.conf_changes or more.private):
                take(host, change, more)
                done += more.actions()
                steps.add(more)
            looked = prove(host, steps, state)
        if state == "absent":
            paths.remove([], host.reader.path(host.folder))
    return steps, done, looked, change.recovered


def take(host, change, steps):
    """Take the steps, the cache last."""
    where = host.reader.path
    if steps.repair.clear:
        change.remove(where(ldconfig.CACHE))
    for path in steps.stale:
        change.remove(where(path))
    if steps.private:
        make(where(host.folder))
    for path, target in {**steps.private, **steps.links}.items():
        change.link(where(path), target)
    if steps.conf_changes and steps.repair.conf is None:
        change.remove(where(ldconfig.CONF))
    elif steps.conf_changes:
        change.write(where(ldconfig.CONF), steps.repair.conf.encode())
    if steps.cache:
        build(host, change)


def make(folder):
    """Make a folder and those it is in: whoever runs an engine reads it, whatever our umask."""
    if not os.path.isdir(folder):
        make(os.path.dirname(folder))
        # Another may have made it by now; a file in its place the lock tells of.
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
            os.chmod(folder, 0o755)


def relabel(host):
    """Give a cache that was put back the label that ldconfig gives it, where there are labels."""
    restorecon = shutil.which("restorecon")
    if restorecon:
        run([restorecon, host.reader.path(ldconfig.CACHE)])


def build(host, change):
    """Have ldconfig make a cache aside, and put it in place when it is whole.

    So what is there stays until it can be replaced, and an ldconfig of the distribution's that runs
    at the same time has its temporary file for itself. Links are ours to make (``-X``): left to
    itself it would also turn those of a driver to the newest version beside it.
    """
    aside = host.reader.path(ASIDE)
    try:
        ran = ldconfig.call(host.reader, "-X", "-C", ASIDE)
        if not ran.ok:
            raise NotMended("ldconfig cannot make a cache: %s" % ran.complaint())
        state, detail = ldconfig.of_content(paths.read(aside) or b"")
        if state != "ok":
            raise NotMended("ldconfig made a cache that is %s: %s" % (state, detail))
        os.chmod(aside, 0o644)
        change.take(host.reader.path(ldconfig.CACHE), aside)
    finally:
        for left in (aside, aside + "~"):
            if os.path.lexists(left):
                os.unlink(left)


def prove(host, steps, state):
    """Look again: what was to be mended is gone, nothing came, and libcuda is the driver's.

    :raises NotMended: with what is not as it should be.
    """
    looked, _ = host.observe()
    now = {one.finding["id"]: one for one in looked.problems}
    before = {one.finding["id"] for one in steps.told}
    wrong = []
    if steps.cache:
        there = [name for _, name in ldconfig.listed(ldconfig.listing(host.reader).stdout)]
        if not any(name.startswith("libc.so") for name in there):
            wrong.append("ldconfig -p does not list libc")
    if state == "present":
        # How CUDA itself starts, the library tells below.
        mendable = library_repair.mendable(looked.seen, looked.problems)
        around = steps.repair.environment
        wrong += [one.finding["found"] for id_, one in now.items()
                  if one in mendable and steps.cache or (
                      one.stops in TRITON and id_ not in before and not (one.bypass and around))]
        wrong += loads(host, steps, looked.seen)
    if wrong:
        raise NotMended("After the repair it is not right: %s" % "; ".join(wrong))
    return looked


def loads(host, steps, seen):
    """What is wrong with what a fresh process gets, in the environment that engines get."""
    driver = judge.chosen(seen)
    if driver is None:
        return []
    got = cuda_probe.load(driver_libraries.SONAME, seen["driver_loaded"],
                          steps.repair.environment)
    if got.path is None and steps.repair.left and not steps.repair.environment:
        return []  # the link that it would come by is not ours to make
    # The same driver may lie in two folders, which of two drivers is right is not for us to mend,
    # and a library for compatibility that CUDA starts with is there on purpose.
    kinds = {one["real"]: one["kind"] for one in seen["libraries"]}
    kind = kinds.get(got.path)
    if kind != "driver" and not (kind == "compat" and not got.init):
        return ["a program that loads libcuda.so.1 gets %s, not %s" % (
            got.path or got.error, driver["real"])]
    if got.init:
        # What the library itself does by its path is not for its place to mend.
        own = cuda_probe.load(got.path, True)
        if own.init != got.init:
            return ["cuInit gives %s (%s), and %s with the library's own path" % (
                got.init, got.text, own.init)]
    return []


def difference(host, steps, state):
    """Before and after, as far as they differ: our file, links, what the cache lists."""
    shown = []
    if steps.conf_changes:
        shown.append({"before_header": ldconfig.CONF, "after_header": ldconfig.CONF,
                      "before": steps.ours.conf or "", "after": steps.repair.conf or ""})
    links = {**steps.private, **steps.links}
    if links or steps.stale:
        there = {path: os.readlink(host.reader.path(path)) for path in [*links, *steps.stale]
                 if os.path.islink(host.reader.path(path))}
        shown.append({"before_header": "links", "after_header": "links",
                      "before": _as_text(there), "after": _as_text(links)})
    if steps.cache:
        there, would = _listings(host, steps)
        shown.append({"before_header": ldconfig.CACHE, "after_header": ldconfig.CACHE,
                      "before": "".join(sorted(there - would)),
                      "after": "".join(sorted(would - there))})
    return shown


def _as_text(links):
    return "".join("%s -> %s\n" % pair for pair in sorted(links.items()))


def _listings(host, steps):
    """What the cache lists and what it would, a line each; of ours, the folder as it will be."""
    listing = ldconfig.listing(host.reader)
    there = set(ldconfig.listed(listing.stdout)) if listing.ok else set()
    folders = [line for line in (steps.repair.conf or "").splitlines() if line.startswith("/")
               and os.path.isdir(host.reader.path(line))]
    would = set(ldconfig.configured(ldconfig.rehearsal(host.reader, folders).stdout).entries)
    # Of a folder that is to be made, what will be in it: a library is listed by the name that its
    # links have, where it has any.
    if steps.repair.private and host.folder in (steps.repair.conf or ""):
        real = {name: os.path.realpath(host.reader.path(target))
                for name, target in steps.repair.private.items()}
        own = {path: os.path.basename(path) for path in real.values()}
        linked = {path for name, path in real.items()
                  if name != own[path] and not name.endswith(".so")}
        would |= {(host.folder, name) for name, path in real.items()
                  if name != own[path] or path not in linked}
    # Names without a version are in a cache too and are not told before; they say nothing here.
    return tuple({"%s => %s\n" % (name, os.path.join(folder, name)) for folder, name in entries
                  if not name.endswith(".so")} for entries in (there, would))


def main():
    """Observe, plan, and unless in check mode apply."""
    module = AnsibleModule(
        argument_spec={
            **library_path.SPEC,
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    host, state = Host(module.params, SYSTEM_ROOT), module.params["state"]
    try:
        result = _run(module, host, state)
    except Busy as problem:
        said = "%s; nothing was changed. Run again when it has ended." % problem
    except RollbackFailed as problem:
        said = str(problem)
    except NotMended as problem:
        said = "%s\nEverything is as it was before." % problem
    except OSError as problem:
        said = "%s: %s. Everything is as it was before." % (
            problem.filename or host.root, problem.strerror or problem)
    else:
        module.exit_json(**library_path.printable(result))
    module.fail_json(msg=library_path.printable(said))


def _run(module, host, state):
    looked, ours = host.observe()
    steps = Steps(host, looked, ours, state)
    result = {"changed": steps.any, "actions": steps.actions(), "recovered": False}
    if module._diff and steps.any:
        result["diff"] = difference(host, steps, state)
    if steps.any and not module.check_mode:
        steps, done, looked, result["recovered"] = apply(host, state)
        # What a run beside us did meanwhile is not ours to tell.
        result["changed"] = bool(done) or result["recovered"]
        result["actions"] = done
    return {
        **result,
        **library_path.told(looked, steps.repair.environment),
        "reasons": steps.repair.reasons + steps.repair.left,
    }


if __name__ == "__main__":
    main()
