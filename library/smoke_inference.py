#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: prove an endpoint with real tokens."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: smoke_inference
short_description: Prove an OpenAI-compatible endpoint with real tokens
description:
  - Asks a running endpoint for real tokens and judges the answers. With an oracle (the canary)
    the answer is compared to the letter.
  - Verdicts are findings; the module fails only when asked to by the caller's C(failed_when).
options:
  url:
    description: Base URL of the endpoint, without C(/v1).
    type: str
    required: true
  model:
    description: The model name that requests carry.
    type: str
    required: true
  oracle:
    description: What the canary must answer, as C(canary_model) returns it.
    type: dict
  chat:
    description: Whether the model has a chat template, so that chat must work.
    type: bool
    default: true
  timeout_s:
    description: Seconds allowed for one request.
    type: float
    default: 120.0
  record:
    description:
      - File that receives the verdict, the passport's C(last_check.json). Writing it is no change.
      - Nothing is written in check mode, or where its directory does not exist.
    type: path
attributes:
  check_mode:
    description: Asks the endpoint as always, and does not write O(record).
    support: full
  diff_mode:
    description: Changes nothing, so there is no difference to show.
    support: none
author:
  - Firstlight contributors
"""

EXAMPLES = r"""
- name: Prove the endpoint
  smoke_inference:
    url: http://127.0.0.1:8000
    model: qwen2.5-0.5b-instruct
  register: __verdict
  failed_when: not __verdict.passed
"""

RETURN = r"""
url:
  description: The endpoint that was asked.
  returned: always
  type: str
passed:
  description: Whether no finding stops the endpoint from being used.
  returned: always
  type: bool
checks:
  description: Every check with its verdict and its time.
  returned: always
  type: list
  elements: dict
  sample:
    - {id: completion, passed: true, seconds: 0.0412}
figures:
  description: Time to the first token in seconds, tokens per second of one stream, tokens counted.
  returned: always
  type: dict
  sample: {first_token_s: 0.021, tokens_per_second: 812.4, tokens: 64}
findings:
  description: What is wrong, in Firstlight's shape of findings.
  returned: always
  type: list
  elements: dict
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.firstlight import passport, smoke


def main():
    """Ask, judge, and keep the verdict."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "model": {"type": "str", "required": True},
            "oracle": {"type": "dict"},
            "chat": {"type": "bool", "default": True},
            "timeout_s": {"type": "float", "default": 120.0},
            "record": {"type": "path"},
        },
        supports_check_mode=True,
    )
    params = module.params
    verdict = smoke.prove(smoke.Target(
        params["url"], params["model"], params["oracle"], params["chat"], params["timeout_s"]
    ))
    # Where no endpoint was ever brought there is no folder, and asking must not make one.
    record = params["record"]
    if record and os.path.isdir(os.path.dirname(record)) and not module.check_mode:
        try:
            passport.write_check(record, verdict)
        except OSError as problem:
            module.fail_json(msg="The verdict cannot be kept in %s: %s" % (
                record, problem.strerror), **verdict)
    module.exit_json(changed=False, **verdict)


if __name__ == "__main__":
    main()
