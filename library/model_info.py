#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: read what models on disk are."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: model_info
short_description: Read the geometry, size and format of models on disk
description:
  - Reads the headers of GGUF files and of directories of safetensors, and the configs and
    tokenizers beside them, never the weights, so a model of any size is read in well under a
    second.
  - A path is taken as it is meant where that can be told - a C(file://) address, the folder of a
    repository in a Hugging Face cache, a short hash, a folder with one GGUF file - and the finding
    says so.
  - A model that is missing, damaged, without a tokenizer or described by a config that contradicts
    itself is a finding, not a failure. So is one that brings code or pickles, unless its name is
    allowed.
options:
  paths:
    description: Absolute paths of GGUF files or of directories with C(config.json) and safetensors.
    type: list
    elements: str
    required: true
  allow_code:
    description: Those of the paths, as they are asked for, whose own code engines may run.
    type: list
    elements: str
    default: []
  allow_pickle:
    description: Those of the paths, as they are asked for, whose weights may be pickles.
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
      - /srv/cache/hub/models--Qwen--Qwen2.5-0.5B-Instruct
    tokenizer_classes: >-
      {{ lookup('ansible.builtin.file', 'catalog/tokenizer_classes.yml') | from_yaml }}
    model_types: "{{ lookup('ansible.builtin.file', 'catalog/model_types.yml') | from_yaml }}"
  register: __models
"""

RETURN = r"""
models:
  description:
    - What each readable path holds, by path as it was asked for. What is not known is null.
    - C(path) is where the model lies, C(resolved_path) the same without links in its folders, and
      C(folders) are all folders in which its files and the links to them lie.
    - C(dtype) is what C(config.json) says that it computes in. C(format) is C(gguf),
      C(safetensors) or C(pickle); of pickles the sizes are told and what the config says.
    - C(weights) are the files that engines load, C(extra) others beside them, with their bytes.
    - C(metadata) are the short values of a GGUF file's header.
    - C(custom_code) are the files of Python that an engine would have to run.
    - C(tokenizer) has the class and the files that are there and whole.
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
      dtype: null
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
      weights: [m.gguf]
      extra: {}
      metadata: {general.architecture: qwen2, tokenizer.ggml.model: gpt2,
                 tokenizer.ggml.tokens: 151936}
      folders: [/srv/models]
      custom_code: []
      pickle: false
      tokenizer: {class: gpt2, files: []}
      generation_config: null
      resolved_path: /srv/models/m.gguf
findings:
  description:
    - Everything that is wrong with each path, in Firstlight's shape of findings; the subject is the
      path as it was asked for. Notes on how a path was taken are among them.
  returned: always
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.firstlight import model_asked


def main():
    """Read every path; nothing is ever changed."""
    names = {"type": "list", "elements": "str", "default": []}
    rows = {"type": "list", "elements": "dict", "default": []}
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "str", "required": True},
            "allow_code": names, "allow_pickle": names,
            "tokenizer_classes": rows, "model_types": rows,
        },
        supports_check_mode=True,
    )
    models, findings = model_asked.observe(module.params)
    module.exit_json(changed=False, models=models, findings=findings)


if __name__ == "__main__":
    main()
