#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: say what is known of the lines of an engine's log."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: engine_log_diagnosis
short_description: Say why an engine died, from its log
description:
  - Holds the end of a log against the rows of C(catalog/log_signatures.yml), and says how far the
    start of the engine came.
  - Reads the last 256 KiB. A log of several starts tells of all of them.
options:
  path:
    description: The log, a file on this host.
    type: path
    required: true
  engine:
    description: Whose log it is; without it the rows of every engine count.
    type: str
    choices: [vllm, llama_cpp]
  subject:
    description: What the findings are about; the path where this is left out.
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
"""

RETURN = r"""
findings:
  description: What is known of lines of the log, in its order, in the shape that all findings have.
  returned: always
  type: list
  elements: dict
progress:
  description: The last phase of a start that the log tells of; empty where it tells of none.
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
"""

import os
import stat

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.firstlight import engine_log


def observe(path):
    """The end of a log as text.

    :raises OSError: when it cannot be read, or is no file.
    """
    # What is no file might have nobody at its other end, and would then not even be opened.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(None, "not a file")
        file.seek(max(0, status.st_size - engine_log.LIMIT))
        return file.read(engine_log.LIMIT).decode("utf-8", "replace")


def main():
    """Read, and say what is known."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "engine": {"type": "str", "choices": ["vllm", "llama_cpp"]},
            "subject": {"type": "str"},
            "signatures": {"type": "list", "elements": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        text = observe(params["path"])
        findings = engine_log.diagnose(
            text, params["signatures"], params["engine"] or "",
            params["subject"] or params["path"])
    except OSError as problem:
        module.fail_json(msg="The log %s cannot be read: %s" % (params["path"], problem.strerror))
    except engine_log.BadSignature as problem:
        module.fail_json(msg="signatures: %s" % problem)
    module.exit_json(changed=False, findings=findings, progress=engine_log.progress(text),
                     observed=engine_log.observed(text))


if __name__ == "__main__":
    main()
