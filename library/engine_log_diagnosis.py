#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: say what is known of the lines of an engine's log."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: engine_log_diagnosis
short_description: Say why an engine died, from its log
description:
  - Holds a whole log against the rows of C(catalog/log_signatures.yml), tells its starts apart, and
    says how far the last one came.
  - The log is a file, or that of an endpoint of ours, running or dead - its file and those that
    were laid aside, what the journal has of its unit, or what its container wrote. Of the journal
    and of a container the last two million lines are read, of a file the last GiB.
options:
  path:
    description: The log, a file on this host.
    type: path
  name:
    description: The endpoint whose log it is, in the place of O(path).
    type: str
  root:
    description: C(firstlight_root), for O(name). Empty means the default of this user.
    type: path
    default: ""
  engine:
    description:
      - Whose log it is; without it the one of the endpoint's passport, else the rows of every
        engine count.
    type: str
    choices: [vllm, llama_cpp]
  subject:
    description: What the findings are about; the path or the endpoint where this is left out.
    type: str
  signatures:
    description: Rows of C(catalog/log_signatures.yml).
    type: list
    elements: dict
    required: true
attributes:
  check_mode:
    description: It reads only.
    support: full
  diff_mode:
    description: It changes nothing, so there is no difference to show.
    support: none
author:
  - Firstlight contributors
"""

EXAMPLES = r"""
- name: Say why the engine died
  engine_log_diagnosis:
    path: /var/lib/firstlight/endpoints/chat/engine.log
    engine: vllm
    signatures: "{{ lookup('ansible.builtin.file', 'catalog/log_signatures.yml') | from_yaml }}"

- name: Say what the log of an endpoint has, whatever keeps it
  engine_log_diagnosis:
    name: chat
    signatures: "{{ lookup('ansible.builtin.file', 'catalog/log_signatures.yml') | from_yaml }}"
"""

RETURN = r"""
name:
  description: The endpoint whose log it is; empty for a file.
  returned: always
  type: str
place:
  description: Where the log is, or the command that shows it.
  returned: always
  type: str
  sample: journalctl --unit firstlight-chat.service
unread:
  description: Why the log of the endpoint could not be read; empty where it was.
  returned: always
  type: str
findings:
  description:
    - What is known of lines of the last start in the log, in its order, in the shape that all
      findings have. Each is told once; its evidence is the first such line with its number, and how
      many there are.
  returned: always
  type: list
  elements: dict
earlier:
  description: What starts before the last one say too, the last of them first; as C(findings).
  returned: always
  type: list
  elements: dict
words:
  description: What the patterns of the rows found, by the id of the finding.
  returned: always
  type: dict
  sample: {cache-too-small-for-context: {length: "131072", fits: "33712"}}
progress:
  description: The last phase of the last start that the log tells of; empty where it tells of none.
  returned: always
  type: dict
  contains:
    text:
      description: What the engine was at.
      type: str
    done:
      description: How much of it was done, where the engine counts.
      type: int
    total:
      description: How much there is.
      type: int
    unit:
      description: What is counted.
      type: str
  sample: {text: loading weights, done: 5, total: 9, unit: shards}
observed:
  description: The memory that vLLM says it took on a device, in bytes, and its cache in tokens.
  returned: always
  type: dict
  sample: {weights_bytes: 16106127360, kv_bytes: 116833852129, kv_tokens: 891392}
starts:
  description: How many starts the log tells of.
  returned: always
  type: int
lines:
  description: How many lines were read.
  returned: always
  type: int
bytes:
  description: How many bytes were read.
  returned: always
  type: int
attempt:
  description:
    - What the log of the last attempt to bring the endpoint says, where that failed - C(at), when
      it failed, and C(findings), C(words) and C(progress) of it. C(null) where the last one went
      well.
  returned: always
  type: dict
  contains:
    at:
      description: When it failed, in UTC.
      type: str
    findings:
      description: As above.
      type: list
      elements: dict
    words:
      description: As above.
      type: dict
    progress:
      description: As above.
      type: dict
"""

import os
import re
import time

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.firstlight import engine_log, passport, paths, services
from ansible.module_utils.firstlight.docker_api import Api
from ansible.module_utils.firstlight.docker_service import Docker, has_docker

CHUNK = 256 * 1024
# Seconds for a daemon to answer: whether there is a container is a part of what is asked.
DOCKER_S = 60
FAILED_LOG = "failed.log"
NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


class Missing(Exception):
    """There is no such endpoint; the message says which there are."""


def observe(params):
    """What is known of the log, as the module returns it.

    :raises OSError: a file cannot be read, or is none.
    :raises Missing: there is no such endpoint.
    :raises engine_log.BadSignature: a row is none.
    """
    if params["path"]:
        found = engine_log.scan(paths.chunks(params["path"], CHUNK), params["signatures"],
                                params["engine"] or "", params["subject"] or params["path"])
        return dict(found, name="", place=params["path"], unread="", attempt=None)
    return _of_endpoint(paths.root(params["root"]), params)


def _of_endpoint(root, params):
    name = params["name"]
    keeper = _keeper(root, name)
    kept = passport.read(root, name)
    engine = params["engine"] or (kept["plan"]["engine"] if kept else "")

    def read(chunks):
        return engine_log.scan(chunks, params["signatures"], engine,
                               params["subject"] or "endpoint " + name)

    place, unread = "", ""
    try:
        place = keeper.log_place(name)
        found = read(keeper.log_chunks(name))
    except services.ServiceError as problem:
        unread, found = str(problem), read([])
    file = os.path.join(root, "endpoints", name, FAILED_LOG)
    attempt = None
    if os.path.lexists(file):
        told = read(paths.chunks(file, CHUNK))
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(os.stat(file).st_mtime))
        attempt = dict({key: told[key] for key in ("findings", "words", "progress")}, at=at)
    return dict(found, name=name, place=place, unread=unread, attempt=attempt)


def _keeper(root, name):
    """What keeps the endpoint running, or did.

    :raises Missing: nothing is left of such an endpoint, or it never was.
    """
    if not NAME.fullmatch(name):
        raise Missing("%s is no name of an endpoint: small letters, digits and hyphens." % name)
    native = services.manager(services.kind_for_this_host(), root)
    docker = Docker(root, Api(timeout_s=DOCKER_S), patience_s=0)
    for one in (native, docker):
        if os.path.exists(one.files(name)[0]):
            return one
    try:
        if has_docker() and docker.ours(name):
            return docker
    except services.ServiceError:
        pass  # then it is not known whether one is left
    if os.path.isdir(os.path.join(root, "endpoints", name)):
        return native
    there = [one for one in _listed(os.path.join(root, "endpoints")) if NAME.fullmatch(one)]
    raise Missing("There is no endpoint %s under %s: %s." % (
        name, root, "there are " + ", ".join(sorted(there)) if there else "there is none"))


def _listed(folder):
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def main():
    """Read, and say what is known."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path"},
            "name": {"type": "str"},
            "root": {"type": "path", "default": ""},
            "engine": {"type": "str", "choices": ["vllm", "llama_cpp"]},
            "subject": {"type": "str"},
            "signatures": {"type": "list", "elements": "dict", "required": True},
        },
        mutually_exclusive=[("path", "name")],
        required_one_of=[("path", "name")],
        supports_check_mode=True,
    )
    params = module.params
    try:
        found = observe(params)
    except OSError as problem:
        module.fail_json(msg="The log %s cannot be read: %s" % (
            problem.filename or params["path"] or params["name"], problem.strerror))
    except Missing as problem:
        module.fail_json(msg=str(problem))
    except engine_log.BadSignature as problem:
        module.fail_json(msg="signatures: %s" % problem)
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
