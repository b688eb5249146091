#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: prove endpoints with real tokens."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: smoke_inference
short_description: Prove OpenAI-compatible endpoints with real tokens
description:
  - Asks running endpoints for real tokens, one endpoint after the other, and judges the answers.
    With an oracle (the canary) the answer is compared to the letter.
  - Verdicts are findings; the module fails only when asked to by the caller's C(failed_when), and
    where a verdict cannot be recorded.
options:
  endpoints:
    description: What to ask.
    type: list
    elements: dict
    required: true
    suboptions:
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
      record:
        description:
          - File that receives the verdict, the passport's C(last_check.json). Writing it is no
            change.
          - Nothing is written in check mode, or where its directory does not exist.
        type: path
  timeout_s:
    description: Seconds allowed for one request.
    type: float
    default: 120.0
attributes:
  check_mode:
    description: Asks the endpoints as always, and records nothing.
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
    endpoints:
      - url: http://127.0.0.1:8000
        model: qwen2.5-0.5b-instruct
  register: __verdicts
  failed_when: __verdicts.verdicts | rejectattr('passed') | length > 0
"""

RETURN = r"""
verdicts:
  description: What was found of each endpoint, in the order of O(endpoints).
  returned: always
  type: list
  elements: dict
  contains:
    url:
      description: The endpoint that was asked.
      type: str
    passed:
      description: Whether no finding stops the endpoint from being used.
      type: bool
    checks:
      description: Every check with its verdict and its time.
      type: list
      elements: dict
      sample:
        - {id: completion, passed: true, seconds: 0.0412}
    figures:
      description: >-
        Time to the first token in seconds, tokens per second of one stream, tokens counted.
      type: dict
      sample: {first_token_s: 0.021, tokens_per_second: 812.4, tokens: 64}
    findings:
      description: What is wrong, in Firstlight's shape of findings.
      type: list
      elements: dict
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.firstlight import passport, smoke

ENDPOINT = {
    "url": {"type": "str", "required": True},
    "model": {"type": "str", "required": True},
    "oracle": {"type": "dict"},
    "chat": {"type": "bool", "default": True},
    "record": {"type": "path"},
}


def keep(record, verdict):
    """Record a verdict; says why it could not be."""
    # Where no endpoint was ever brought there is no folder, and asking must not make one.
    if not record or not os.path.isdir(os.path.dirname(record)):
        return ""
    try:
        passport.write_check(record, verdict)
    except OSError as problem:
        return "%s: %s" % (record, problem.strerror)
    return ""


def main():
    """Ask, judge, and keep the verdicts."""
    module = AnsibleModule(
        argument_spec={
            "endpoints": {"type": "list", "elements": "dict", "required": True,
                          "options": ENDPOINT},
            "timeout_s": {"type": "float", "default": 120.0},
        },
        supports_check_mode=True,
    )
    verdicts, lost = [], []
    for one in module.params["endpoints"]:
        verdict = smoke.prove(smoke.Target(
            one["url"], one["model"], one["oracle"], one["chat"], module.params["timeout_s"]))
        verdicts.append(verdict)
        if not module.check_mode:
            lost.append(keep(one["record"], verdict))
    lost = [one for one in lost if one]
    if lost:
        module.fail_json(msg="A verdict cannot be kept in %s" % ", nor in ".join(lost),
                         verdicts=verdicts)
    module.exit_json(changed=False, verdicts=verdicts)


if __name__ == "__main__":
    main()
