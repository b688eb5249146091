#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: pinned snapshots of model repositories, described first and brought then."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: model_snapshot
short_description: Pin, describe, bring and verify snapshots of model repositories
description:
  - Brings repositories of models into a cache of Hugging Face's layout, each at one commit. A
    branch or tag is asked for once; its commit is kept in the cache (C(refs/)) and holds from then
    on, until O(refresh).
  - Of a repository only what its engine needs is fetched - one format, and of GGUF files one
    quantisation.
  - What is there is verified without a network, by size and hash. What was hashed once is known by
    its size, time of change and inode, so that it is not read again. A bad file is moved to
    C(quarantine/) in the cache and fetched again, alone.
  - To bring is done by a process of its own on the host, which this module only watches. A
    connection that is cut or a controller that dies ends nothing. What was fetched stays, however
    that ends - finished files as they are, and large unfinished ones to go on from.
  - huggingface_hub resolves revisions, lists files and says what may be had. Contents are fetched
    by this module into the cache that the library reads, because the library (2.4) begins files
    anew when it was killed and takes one that has the right size and a wrong byte.
  - A snapshot that is whole in the cache, of a revision that is known, needs no request and no
    library.
options:
  root:
    description: C(firstlight_root) on this host.
    type: path
    required: true
  cache:
    description:
      - The cache, as C(HF_HUB_CACHE) names it. It may be shared with others.
      - Empty is C(models/hub) under the root.
    type: path
    default: ""
  snapshots:
    description: What is wanted. Several may be of one repository.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: What the result is told under, such as the name of an endpoint.
        type: str
        required: true
      repo_id:
        description: The repository, C(organisation/name).
        type: str
        required: true
      revision:
        description: Branch, tag or commit of 40 digits. Empty is the hub's own branch.
        type: str
        default: ""
      formats:
        description: What the engine reads, best first.
        type: list
        elements: str
        choices: [safetensors, gguf, pickle]
        default: [safetensors, gguf]
      quantisation:
        description: That of the GGUF files, such as V(Q8_0). Empty is Q4_K_M, Q8_0 or the first.
        type: str
        default: ""
      allow:
        description: Patterns of files to bring beside those that are chosen.
        type: list
        elements: str
        default: []
      ignore:
        description: Patterns of files that count as not there.
        type: list
        elements: str
        default: []
  state:
    description:
      - V(outlined) says what there is, what a model it is and what is wrong with it. It reads
        headers at the source where files are missing, and fetches nothing else. Commits of
        revisions and lists of files are kept in the cache.
      - V(present) brings what is missing, and verifies.
    type: str
    choices: [outlined, present]
    default: present
  hub:
    description: Where to ask and fetch.
    type: dict
    default: {}
    suboptions:
      kind:
        description: What it speaks.
        type: str
        choices: [huggingface, modelscope]
        default: huggingface
      url:
        description: Its address, without a path for V(huggingface).
        type: str
        default: https://huggingface.co
      trusted:
        description: Whether it may see O(token).
        type: bool
        default: false
  token:
    description: Shown to O(hub) where that is trusted, and to no other host.
    type: str
    default: ""
  offline:
    description: Whether nothing may be asked. So it is too where the host's settings say so.
    type: bool
    default: false
  refresh:
    description: Whether branches and tags are asked for anew, whatever the cache has.
    type: bool
    default: false
  verify:
    description:
      - V(fast) reads what was not hashed as it is now. V(full) reads every byte, for V(present).
    type: str
    choices: [fast, full]
    default: fast
  allow_code:
    description: Names of snapshots, or repositories, whose models may bring code of their own.
    type: list
    elements: str
    default: []
  allow_pickle:
    description: Names of snapshots, or repositories, whose weights may be pickles.
    type: list
    elements: str
    default: []
  tokenizer_classes:
    description: Rows of C(catalog/tokenizer_classes.yml). Without them any tokenizer file will do.
    type: list
    elements: dict
    default: []
  model_types:
    description:
      - Rows of C(catalog/model_types.yml). Without them all code that a config names is taken for
        needed.
    type: list
    elements: dict
    default: []
  peers:
    description:
      - Other hosts that have snapshots, by the name in O(snapshots). They are asked in place of
        the hub, and what they have is what is wanted.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name in O(snapshots).
        type: str
        required: true
      url:
        description: Address of the server on that host.
        type: str
        required: true
      secret:
        description: What that server wants to be shown.
        type: str
        default: ""
      manifest:
        description: What this module returned there.
        type: dict
        required: true
  workers:
    description: How many files are fetched at once.
    type: int
    default: 8
  run:
    description:
      - Who asks. The work of this run is watched further, and its result told when it has ended.
        The result has it; a later call gives it back.
      - Empty is someone new. Work on the same that goes on is watched then; else it is begun.
    type: str
    default: ""
  wait_s:
    description: Seconds to watch before it returns unfinished. V(0) begins and returns.
    type: float
    default: 20.0
  limit_s:
    description: Seconds after which the work is ended. What was fetched stays.
    type: float
    default: 86400.0
attributes:
  check_mode:
    description: Says what would be brought, and writes nothing.
    support: full
  diff_mode:
    description: Shows no difference; models are no texts.
    support: none
author:
  - Firstlight contributors
"""

EXAMPLES = r"""
- name: Say what the model is and what is wrong with it
  model_snapshot:
    root: /var/lib/firstlight
    state: outlined
    snapshots:
      - name: chat
        repo_id: Qwen/Qwen2.5-0.5B-Instruct
        revision: main
        formats: [safetensors]
  register: __outlined

- name: Bring it, and watch
  model_snapshot:
    root: /var/lib/firstlight
    run: "{{ (2**62) | random }}"
    snapshots:
      - name: chat
        repo_id: Qwen/Qwen2.5-0.5B-Instruct-GGUF
        quantisation: Q8_0
        formats: [gguf]
    token: "{{ vault_hub_token }}"
    hub: {url: https://hub.example.org, trusted: true}
  register: __brought
  until: __brought.finished | default(true)
  retries: 1000
  delay: 1

- name: Copy what another host has
  model_snapshot:
    root: /var/lib/firstlight
    snapshots:
      - {name: chat, repo_id: Qwen/Qwen2.5-0.5B-Instruct}
    peers:
      - name: chat
        url: http://192.0.2.7:8473
        secret: "{{ vault_peer_secret }}"
        manifest: "{{ hostvars['gpu1'].__outlined.snapshots.chat.manifest }}"
"""

RETURN = r"""
snapshots:
  description: What is known of each, by its name. Not while the work goes on.
  returned: when finished
  type: dict
  sample:
    chat:
      repo_id: Qwen/Qwen2.5-0.5B-Instruct
      revision: main
      commit: 7ae557604adf67be50417f59c2c2f167def9a775
      format: safetensors
      quantisation: null
      path: /var/lib/firstlight/models/hub/models--Qwen--Qwen2.5-0.5B-Instruct/snapshots/7ae5...
      present: true
      verified: fast
      bytes: 1000000000
      missing_bytes: 0
      files: 8
      fingerprint: 0f3e...
      source: cache
      manifest: {repo_id: Qwen/Qwen2.5-0.5B-Instruct, commit: 7ae5..., entries: [...]}
      model: {format: safetensors, bytes: 988097824, ...}
      reasons: [...]
findings:
  description: What is wrong, in Firstlight's shape of findings.
  returned: when finished
  type: list
  elements: dict
needed:
  description: Names of the snapshots for which V(present) has something to do.
  returned: when finished
  type: list
  elements: str
left_out:
  description: Names of those that could not be told of, as huggingface_hub cannot be used.
  returned: when finished
  type: list
  elements: str
finished:
  description: Whether there is nothing more to wait for.
  returned: always
  type: bool
run:
  description: What to give back as O(run), to watch further.
  returned: when there is or was work
  type: str
progress:
  description: How far the work is; in bytes, seconds, and bytes a second.
  returned: when not finished
  type: dict
  contains:
    done:
      description: Bytes that are there, or were read.
      type: int
    total:
      description: All bytes that are missing, or are to be read.
      type: int
    rate:
      description: Bytes a second.
      type: int
    eta_s:
      description: Seconds left at this rate.
      type: float
    unit:
      description: V(bytes).
      type: str
    text:
      description: What is done.
      type: str
"""

import errno
import glob
import os

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.firstlight import network_settings, paths, toolbelt
from ansible.module_utils.firstlight.findings import blocking, text
from ansible.module_utils.firstlight.snapshots import entries, outline, work
from ansible.module_utils.firstlight.transaction import Busy

YES = ("1", "true", "yes", "on")


def observe(params, settings, temporary, ahead=True):
    """Every snapshot as it is, with the model in it, and where each may be fetched.

    :param ahead: whether models that are not there yet are described too, from their source.
    """
    origins = outline.Origins(params["hub"], params["token"],
                              {one["name"]: one for one in params["peers"]})
    found = [outline.look(_asked(one, params), origins, settings) for one in params["snapshots"]]
    for one in found:
        if ahead or one.present:
            outline.describe(one, origins, settings, temporary)
    return found, origins


def _asked(one, params):
    def allowed(names):
        return bool({one["name"], one["repo_id"]} & set(names))

    return outline.Asked(
        one["name"], one["repo_id"], one["revision"] or None, one["formats"],
        one["quantisation"] or None, one["allow"], one["ignore"],
        allowed(params["allow_code"]), allowed(params["allow_pickle"]))


def plan(found, origins, full):
    """What there is to do; empty where all is there and known to be good."""
    return work.jobs([one for one in found if not blocking(one.findings)], origins, full)


def apply(params, settings, todo, where):
    """Have it done on the host, and watch it."""
    return work.watch(where, params["run"], params["wait_s"],
                      lambda report: work.bring(todo, settings, report), params["limit_s"])


def told(one, settings, full, origin):
    """What is returned of a snapshot."""
    manifest, chosen = one.manifest, one.chosen
    made = dict.fromkeys((
        "format", "quantisation", "path", "verified", "bytes", "missing_bytes", "files",
        "fingerprint", "source", "manifest"))
    made.update(repo_id=one.asked.repo_id, revision=one.revision or None,
                commit=one.commit or None, present=one.present, model=one.model, reasons=[])
    if manifest is not None:
        made["manifest"] = entries.manifest_to_dict(manifest)
    if chosen is not None:
        good = one.present and not one.unverified and not one.damaged
        made.update(
            format=chosen.format, quantisation=chosen.quantisation, reasons=chosen.reasons,
            path=outline.path(settings.cache, manifest, chosen),
            verified=("full" if full else "fast") if good else None,
            bytes=sum(entry.size for entry in chosen.entries),
            missing_bytes=sum(entry.size for entry in one.missing),
            files=len(chosen.entries), fingerprint=entries.fingerprint(chosen.entries),
            source=origin or (one.origin.name if one.missing and one.origin else "cache"))
    return made


def main():
    """Observe, plan, and unless in check mode apply."""
    strings = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "cache": {"type": "path", "default": ""},
            "snapshots": {"type": "list", "elements": "dict", "required": True, "options": {
                "name": {"type": "str", "required": True},
                "repo_id": {"type": "str", "required": True},
                "revision": {"type": "str", "default": ""},
                "formats": {"type": "list", "elements": "str",
                            "choices": ["safetensors", "gguf", "pickle"],
                            "default": ["safetensors", "gguf"]},
                "quantisation": {"type": "str", "default": ""},
                "allow": strings,
                "ignore": strings,
            }},
            "state": {"type": "str", "choices": ["outlined", "present"], "default": "present"},
            "hub": {"type": "dict", "default": {}, "apply_defaults": True, "options": {
                "kind": {"type": "str", "choices": ["huggingface", "modelscope"],
                         "default": "huggingface"},
                "url": {"type": "str", "default": "https://huggingface.co"},
                "trusted": {"type": "bool", "default": False},
            }},
            "token": {"type": "str", "default": "", "no_log": True},
            "offline": {"type": "bool", "default": False},
            "refresh": {"type": "bool", "default": False},
            "verify": {"type": "str", "choices": ["fast", "full"], "default": "fast"},
            "allow_code": strings,
            "allow_pickle": strings,
            "tokenizer_classes": {"type": "list", "elements": "dict", "default": []},
            "model_types": {"type": "list", "elements": "dict", "default": []},
            "peers": {"type": "list", "elements": "dict", "default": [], "options": {
                "name": {"type": "str", "required": True},
                "url": {"type": "str", "required": True},
                "secret": {"type": "str", "default": "", "no_log": True},
                "manifest": {"type": "dict", "required": True},
            }},
            "workers": {"type": "int", "default": 8},
            "run": {"type": "str", "default": ""},
            "wait_s": {"type": "float", "default": 20.0},
            "limit_s": {"type": "float", "default": 86400.0},
        },
        supports_check_mode=True,
    )
    params = module.params
    root = params["root"] = paths.root(params["root"])
    try:
        # What huggingface_hub and the way out need, before anything reads it.
        network_settings.apply(root)
        toolbelt.reach(root)
        settings = outline.Settings(
            root, params["cache"] or os.path.join(root, "models", "hub"),
            params["offline"] or os.environ.get("HF_HUB_OFFLINE", "").lower() in YES,
            params["refresh"], not module.check_mode, max(1, params["workers"]),
            params["tokenizer_classes"], params["model_types"])
        result = _run(module, params, settings)
    except Busy as problem:
        module.fail_json(msg="%s. Run again when it has ended." % problem)
    except OSError as problem:
        full = problem.errno in (errno.ENOSPC, errno.EDQUOT)
        module.fail_json(msg="Snapshots under %s: %s%s" % (
            root, problem, ". Make room there, or set `model_snapshot_cache` to a folder of a "
            "larger file system; what was fetched stays." if full else ""))
    module.exit_json(**result)


def _run(module, params, settings):
    full = params["verify"] == "full"
    where = _begun(params)
    if where:
        # The same run again: what was found before the work began is not asked again.
        return _followed(module, params, settings, apply(params, settings, [], where))
    # What is brought at once is described when it is there, so that nothing is fetched twice.
    found, origins = observe(params, settings, module.tmpdir,
                             ahead=params["state"] == "outlined" or module.check_mode)
    todo = plan(found, origins, full)
    if params["state"] == "outlined":
        return _result(params, settings, found, origins, todo,
                       changed=any(one.written for one in found))
    if module.check_mode or not todo:
        result = _result(params, settings, found, origins, todo,
                         changed=bool(todo) or any(one.written for one in found))
        return _judged(module, result)
    where = work.file(settings.root, work.set_id(found, settings, full))
    before = [finding for one in found for finding in one.findings] + origins.findings()
    return _followed(module, params, settings, apply(params, settings, todo, where), before)


def _begun(params):
    """The state of this very run's work, if there is any."""
    names = glob.glob(work.file(glob.escape(params["root"]), "*"))
    return next((one for one in sorted(names) if work.has_begun(one, params["run"])), None)


def _followed(module, params, settings, seen, before=()):
    """What to return of work that was watched.

    :param before: findings of when it was begun.
    """
    if not seen["finished"]:
        return {"changed": False, "finished": False, "run": seen["run"],
                "progress": seen["progress"]}
    ended = seen["result"]
    if "failed" in ended:
        module.fail_json(msg=ended["failed"], finished=True, run=seen["run"])
    # As it is now, with nothing asked for anew.
    again, origins = observe(params, settings._replace(refresh=False), module.tmpdir)
    full = params["verify"] == "full"
    done = {(repo_id, commit): source for repo_id, commit, source in ended["done"]}
    result = _result(params, settings, again, origins, plan(again, origins, False),
                     ended["changed"], done, full)
    known = [one["id"] for one in result["findings"]]
    result["findings"] += ended["findings"] + [
        one for one in before if one["id"] not in known]
    for one in ended["findings"]:
        if not blocking([one]):
            module.warn(text([one]))
    return _judged(module, dict(result, run=seen["run"]))


def _result(params, settings, found, origins, todo, changed, done=None, full=False):
    short = work.space(todo, settings.cache)
    at_work = {(one.manifest.repo_id, one.manifest.commit) for one in todo}
    return {
        "changed": changed,
        "finished": True,
        "snapshots": {one.asked.name: told(
            one, settings, full and (one.asked.repo_id, one.commit) in (done or {}),
            (done or {}).get((one.asked.repo_id, one.commit), "")) for one in found},
        "findings": [finding for one in found for finding in one.findings]
        + origins.findings() + short,
        "needed": [one.asked.name for one in found
                   if (one.asked.repo_id, one.commit) in at_work],
        "left_out": [one.asked.name for one in found if one.left_out],
    }


def _judged(module, result):
    """The result, which is a failure where something stops what was asked for."""
    wrong = blocking(result["findings"])
    if wrong:
        module.fail_json(msg=text(wrong), **result)
    return result


if __name__ == "__main__":
    main()
