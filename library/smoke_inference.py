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
    With an oracle (the canary) the answer is compared to the letter; of any other model it is
    judged whether it can be a text.
  - A request that is not answered in its time is waited for longer, as long as the server's own
    counters show that it works.
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
      name:
        description: Name of the endpoint, for messages.
        type: str
        default: ""
      oracle:
        description: What the canary must answer, as C(canary_model) returns it.
        type: dict
      chat:
        description: Whether the model has a chat template, so that chat must work.
        type: bool
        default: true
      context:
        description:
          - Tokens of a request and its answer together. A longer prompt must be refused.
          - Where it is not given, no such prompt is sent.
        type: int
      claims:
        description:
          - What the engine claims to do, so that it must. With V(tool_calls_by_template) only where
            C(/props) of llama.cpp says that the model's template has tools.
        type: list
        elements: str
        choices: [structured_output, tool_calls, tool_calls_by_template]
        default: []
      keyed:
        description: Where clients need a key; without a C(url) where they need none.
        type: dict
        suboptions:
          url:
            description: Base URL that clients use, as this host reaches it.
            type: str
            default: ""
          certificate:
            description: File in PEM by whose first certificate the server is known.
            type: path
      streams:
        description: How many requests are sent at once. Below 2, none are.
        type: int
        default: 4
      floors:
        description: How slow the endpoint may be.
        type: dict
        suboptions:
          first_token_s:
            description: Seconds to the first token of one stream, at most.
            type: float
          tokens_per_second:
            description: Tokens per second of one stream, at least.
            type: float
          tokens_per_second_all:
            description: Tokens per second of all streams together, at least.
            type: float
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
        context: 32768
        claims: [structured_output]
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
      description:
        - Every check that applies to the endpoint, with its verdict and its time. Their findings
          have the same names, with C(smoke-) before them.
        - A server that gives no answer, or no token, is not asked further.
      type: list
      elements: dict
      sample:
        - {id: completion, passed: true, seconds: 0.0412}
    figures:
      description:
        - Seconds since the proof began until the port took a connection (C(port_s)), C(/health) was
          200 (C(health_s)), the model was listed (C(listed_s)) and a first token came
          (C(token_s)).
        - Of one stream the seconds to its first token (C(first_token_s)), tokens per second
          (C(tokens_per_second)) and tokens counted (C(tokens)).
        - Of all C(streams) at once the seconds to the last of their first tokens
          (C(first_token_all_s)), and tokens per second together (C(tokens_per_second_all)).
        - C(busy_s), where a busy server got more time than its requests have, in seconds.
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

FLOORS = {
    "first_token_s": {"type": "float"},
    "tokens_per_second": {"type": "float"},
    "tokens_per_second_all": {"type": "float"},
}
KEYED = {
    "url": {"type": "str", "default": ""},
    "certificate": {"type": "path"},
}
ENDPOINT = {
    "url": {"type": "str", "required": True},
    "model": {"type": "str", "required": True},
    "name": {"type": "str", "default": ""},
    "oracle": {"type": "dict"},
    "chat": {"type": "bool", "default": True},
    "context": {"type": "int"},
    "claims": {"type": "list", "elements": "str", "default": [], "choices": [
        "structured_output", "tool_calls", "tool_calls_by_template"]},
    "keyed": {"type": "dict", "options": KEYED},
    "streams": {"type": "int", "default": 4},
    "floors": {"type": "dict", "options": FLOORS},
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
        # What is left out is there without a value.
        floors = {key: value for key, value in (one["floors"] or {}).items() if value is not None}
        verdict = smoke.prove(smoke.of_request(
            dict(one, floors=floors), module.params["timeout_s"]))
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
