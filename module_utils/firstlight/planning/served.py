# SPDX-License-Identifier: Apache-2.0
"""The model that an endpoint serves: from where, under which name, and whether it says enough."""

from __future__ import annotations

import hashlib
import posixpath
from typing import Any, Dict, List

from .. import canary
from ..canary import tokenizer, weights
from ..findings import Finding, finding
from .requests import Request

Model = Dict[str, Any]

# What hubs' caches put before the name of a repository.
HUB_FOLDER = "models--"
ORIGIN = ("repo_id", "revision", "commit")
"""Where a model of a repository is from; ``None`` for others."""
BESIDE = (*ORIGIN, "folders", "custom_code")
"""Of a model what decides nothing by itself: path, name and fingerprint say what is served, the
container's description where it lies, and a flag that its code is run."""
# Memory cannot be reckoned without these.
NEEDED = ("layers", "hidden", "heads", "kv_heads", "head_dim", "value_head_dim", "vocabulary",
          "attention_layers", "state_bytes_per_sequence")
MAY_BE_NONE_AT_ALL = ("attention_layers", "state_bytes_per_sequence")
NEEDED_OF_EXPERTS = ("experts_per_token", "moe_intermediate")
NEEDED_OF_LATENTS = ("rope_head_dim",)


def served(request: Request, models: Dict[str, Any], root: str) -> Model:
    """The model as a plan has it.

    :param models: what ``model_info`` tells, by path; :func:`.snapshots.snapshot_models`, by the
        request's place; or a profile, by repository id.
    :raises KeyError: for a model of which nothing is known.
    """
    if request["model_kind"] == "canary":
        return the_canary("safetensors" if request["engine"] == "vllm" else "gguf", root)
    path = request["model"]
    if request["model_kind"] == "repo":
        # A profile describes it by its id, and then it lies nowhere.
        known = [one for one in (request["where"], path, request["repo_id"]) if one in models]
        found = models[known[0] if known else path]
        # Each endpoint is a server of its own: its name says no more than clients have to know,
        # and nothing that another endpoint could change.
        return _in_a_plan("repo", found["path"], request["repo_id"], found)
    found = models[path]
    name = posixpath.basename(path.rstrip("/"))
    if name.endswith(".gguf"):
        name = name[: -len(".gguf")]
    elif name.startswith(HUB_FOLDER):
        name = name[len(HUB_FOLDER):].replace("--", "/")
    # What is asked for may be a way to say where it lies.
    return _in_a_plan("path", found.get("path") or path, name, found)


def the_canary(kind: str, root: str) -> Model:
    """The canary as a plan has it.

    :param kind: ``gguf`` or ``safetensors``.
    """
    path = posixpath.join(root, "models", "canary",
                          canary.GGUF if kind == "gguf" else canary.SAFETENSORS)
    return _in_a_plan("canary", path, "canary", of_the_canary(kind))


def _in_a_plan(kind: str, path: str, name: str, found: Dict[str, Any]) -> Model:
    return {
        "kind": kind,
        "path": path,
        "served_name": name,
        "format": found["format"],
        "quantisation": found["quantisation"],
        "quantisation_bits": found.get("quantisation_bits"),
        "quantisation_group": found.get("quantisation_group"),
        "bytes": found["bytes"],
        "fingerprint": found["fingerprint"],
        "chat_template": found["chat_template"],
        "tensors": found.get("tensors"),
        "geometry": found["geometry"],
        **{key: found.get(key) for key in ORIGIN},
        "folders": list(found.get("folders") or []),
        "custom_code": list(found.get("custom_code") or []),
    }


def of_the_canary(kind: str = "gguf") -> Dict[str, Any]:
    """The canary as ``model_info`` would describe it, known before it is built.

    But for its fingerprint, which is that of its content: it says when the canary is another one.

    :param kind: ``gguf`` or ``safetensors``.
    """
    gguf = kind == "gguf"
    files = {name: file for name, file in canary.FILES.items() if (name == canary.GGUF) is gguf}
    weighs = files[canary.GGUF if gguf else canary.SAFETENSORS + "/model.safetensors"]
    table = tokenizer.VOCABULARY * weights.HIDDEN * 2
    return {
        "format": kind,
        "quantisation": "F16" if gguf else "BF16",
        "quantisation_bits": None,
        "quantisation_group": None,
        "bytes": weighs.size,
        "fingerprint": weighs.sha256 if gguf else hashlib.sha256("".join(
            files[name].sha256 for name in sorted(files)).encode()).hexdigest(),
        "chat_template": True,
        "tensors": {"embedding_bytes": table, "head_bytes": table,
                    "other_bytes": 9447424 if gguf else 9442304},
        "geometry": {
            "architecture": "llama",
            "layers": weights.LAYERS,
            "hidden": weights.HIDDEN,
            "heads": weights.HEADS,
            "kv_heads": weights.KV_HEADS,
            "head_dim": weights.HEAD_DIM,
            "value_head_dim": weights.HEAD_DIM,
            "context": weights.CONTEXT,
            "vocabulary": tokenizer.VOCABULARY,
            "intermediate": weights.INTERMEDIATE,
            "tied_embeddings": False,
            "vision": False,
            "kv_lora_rank": None,
            "rope_head_dim": None,
            "query_lora_rank": None,
            "sliding_window": None,
            "sliding_layers": 0,
            "attention_layers": weights.LAYERS,
            "state_bytes_per_sequence": 0,
            "experts": None,
            "experts_per_token": None,
            "moe_intermediate": None,
            "shared_intermediate": None,
            "dense_layers": weights.LAYERS,
        },
    }


def gaps(request: Request, model: Model) -> List[Finding]:
    """What memory cannot be reckoned without and the model does not say, by its names."""
    shape = model["geometry"]
    needed = list(NEEDED)
    if shape.get("experts"):
        needed += NEEDED_OF_EXPERTS
    elif model["format"] != "gguf":
        needed.append("intermediate")
    if shape.get("kv_lora_rank"):
        needed += NEEDED_OF_LATENTS
    missing = [key for key in needed if not _is_count(shape.get(key), key in MAY_BE_NONE_AT_ALL)]
    if not missing and not shape["attention_layers"] and not shape["state_bytes_per_sequence"]:
        missing = ["attention_layers"]
    subject = "%s.model" % request["where"]
    findings = []
    if missing:
        findings.append(finding(
            "plan-geometry-unknown", subject, "%s does not say its %s" % (
                model["path"], ", ".join(missing)),
            "a model whose header or config.json is complete", "change " + subject))
    if not _is_count(model["bytes"], False):
        findings.append(finding(
            "plan-no-weights", subject, "bytes: %s of weights in %s" % (
                model["bytes"], model["path"]), "the size of its weights, in bytes",
            "change " + subject))
    return findings


def _is_count(value: Any, may_be_zero: bool) -> bool:
    return type(value) is int and value >= (0 if may_be_zero else 1)
