#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: read what models on disk are."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: model_info
short_description: Read the geometry, size and format of models on disk
description:
  - Reads the headers of GGUF files and of directories of safetensors, never the weights, so a
    model of any size is read in well under a second.
  - A model that is missing, damaged or described by a config that contradicts itself is a
    finding, not a failure.
options:
  paths:
    description: Absolute paths of GGUF files or of directories with C(config.json) and safetensors.
    type: list
    elements: str
    required: true
attributes:
  check_mode:
    description: Reads only, so it does in check mode what it always does.
    support: full
  diff_mode:
    description: Changes nothing, so there is no difference to show.
    support: none
author:
  - Firstlight contributors
"""

EXAMPLES = r"""
- name: Read what the model is
  model_info:
    paths:
      - /srv/models/qwen2.5-0.5b-instruct-q8_0.gguf
  register: __models
"""

RETURN = r"""
models:
  description:
    - What each readable path holds, by path. What is not known is null.
    - C(quantisation_bits) and C(quantisation_group) are what C(config.json) says of quantised
      weights; a GGUF file has its types by tensor.
    - C(tensors) is the exact size of the tensors - the table of embeddings, the head and the rest.
      It is null where a tensor is of a type that is not known.
    - In C(geometry), C(attention_layers) are the layers that keep keys and values for each token,
      and C(sliding_layers) those of them that keep only the last C(sliding_window) tokens.
      C(state_bytes_per_sequence) is what layers with a constant state keep for each sequence.
      C(dense_layers) are the layers without experts. C(kv_lora_rank), C(rope_head_dim) and
      C(query_lora_rank) are those of multi-head latent attention. C(vision) says that the config
      has a vision tower; all other figures are those of the language model.
  returned: always
  type: dict
  sample:
    /srv/models/m.gguf:
      path: /srv/models/m.gguf
      format: gguf
      files: 1
      bytes: 531068096
      fingerprint: 0f3e...
      name: Qwen2.5 0.5B Instruct
      quantisation: Q8_0
      quantisation_bits: null
      quantisation_group: null
      chat_template: true
      tensors: {embedding_bytes: 144643072, head_bytes: 0, other_bytes: 380463616}
      geometry: {architecture: qwen2, layers: 24, hidden: 896, heads: 14, kv_heads: 2,
                 head_dim: 64, value_head_dim: 64, context: 32768, vocabulary: 151936,
                 intermediate: 4864, tied_embeddings: true, vision: false, kv_lora_rank: null,
                 rope_head_dim: null, query_lora_rank: null, sliding_window: null,
                 sliding_layers: 0, attention_layers: 24, state_bytes_per_sequence: 0,
                 experts: null, experts_per_token: null, moe_intermediate: null,
                 shared_intermediate: null, dense_layers: 24}
findings:
  description: One for each path that cannot be served, in Firstlight's shape of findings.
  returned: always
  type: list
  elements: dict
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.firstlight import model_files
from ansible.module_utils.firstlight.findings import finding


def observe(path):
    """(model, None) or (None, finding) for one path."""
    try:
        return model_files.describe(path), None
    except FileNotFoundError as problem:
        near = _nearest_parent(path)
        if near == path:
            return None, _damaged(path, problem)
        return None, finding(
            "model-missing",
            path,
            found="no such file or directory; the last part that exists is %s" % near,
            wanted="a GGUF file, or a directory with config.json and *.safetensors",
            remedy="set `model` to the path as the host sees it",
        )
    except PermissionError as problem:
        return None, finding(
            "model-unreadable",
            path,
            found="%s: %s" % (problem.filename, problem.strerror),
            wanted="readable by uid %d, which serves it" % os.geteuid(),
            remedy="chmod or chown it, or run as a user who may read it",
        )
    except (model_files.BadModel, OSError) as problem:
        return None, _damaged(path, problem)


def _damaged(path, problem):
    return finding(
        "model-damaged",
        path,
        found=str(problem),
        wanted="a GGUF file, or a directory with config.json and *.safetensors",
        remedy="fetch it again, or set `model` to another one",
    )


def _nearest_parent(path):
    while path and not os.path.exists(path):
        path = os.path.dirname(path.rstrip("/"))
    return path or "/"


def main():
    """Read every path; nothing is ever changed."""
    module = AnsibleModule(
        argument_spec={"paths": {"type": "list", "elements": "str", "required": True}},
        supports_check_mode=True,
    )
    models, findings = {}, []
    for path in module.params["paths"]:
        model, problem = observe(path)
        if model:
            models[path] = model
        if problem:
            findings.append(problem)
    module.exit_json(changed=False, models=models, findings=findings)


if __name__ == "__main__":
    main()
