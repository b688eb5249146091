# SPDX-License-Identifier: Apache-2.0
"""A host that does not exist, from a short profile: what its facts would be, and its models'.

The host is idle and well: whatever a profile does not say of it is null with that as its reason,
or is as on such hosts where a plan would be none without it (memory that the driver keeps, swap of
a Jetson).
"""

from __future__ import annotations

import difflib
import hashlib
import json
from typing import Any, Dict, Optional

from .. import model_config
from ..findings import finding
from .profile_facts import MIB, from_keys
from .profile_keys import Catalog, Profile, plain, shown
from .profile_printed import given_facts
from .requests import REPO_ID, VARIABLE

FORMATS = ("safetensors", "gguf")
# Larger than any model or disk: a slip of the unit.
MAX_BYTES, MAX_RATE_MIB = 2**50, 2**20

KEYS = ("name", "gpus", "busy", "driver", "memory_gib", "cores", "disk_mib_s", "architecture",
        "l4t", "docker", "models", "endpoints", "facts")
MODEL_KEYS = ("config", "format", "quantisation", "bytes")


def plan_profile(profile: Any, catalog: Catalog, endpoints: Any = None) -> Dict[str, Any]:
    """What ``gpu_facts``, ``model_info`` and ``endpoint_info`` would return of a host.

    :param profile: as the YAML file has it.
    :param catalog: ``{gpus: rows, jetson_releases: rows, jetson_chips: rows}``.
    :param endpoints: what is asked for where the profile has no ``endpoints`` of its own.
    :returns: ``{name, facts, models, state, endpoints, findings}``. With findings there are no
        facts: a plan of half a host would be none.
    """
    made = Profile(catalog)
    profile, endpoints = plain(profile), plain(endpoints)
    given = made.mapping("", profile, KEYS) or {}
    if "name" in given:
        made.name = made.text("name", given["name"]) or made.name
    facts = given_facts(made, given) if "facts" in given else from_keys(made, given)
    if "disk_mib_s" in given:
        rate = made.amount("disk_mib_s", given["disk_mib_s"], MAX_RATE_MIB)
        if rate and facts:
            facts["disk"] = dict(facts["disk"], read_bytes_per_second=max(1, int(rate * MIB)))
    models = _models(made, given)
    asked = given.get("endpoints", endpoints)
    if isinstance(profile, dict):
        _asked(made, asked, models, "endpoints" in given)
    whole = not made.findings
    return {
        "name": made.name,
        "facts": facts if whole else None,
        "models": models if whole else {},
        "state": _state(),
        "endpoints": asked if whole else [],
        "findings": made.findings,
    }


def _state() -> Dict[str, Any]:
    """A host of root's on which nothing of ours runs yet."""
    return {
        "root": "/var/lib/firstlight", "uid": 0, "manager": "systemd", "missing_libraries": [],
        "python": {"version": "3.11.2", "venv": True}, "endpoints": {}, "ports": {},
        "strangers": [], "environments": [], "caches": [],
    }


# Models, and what is asked for.


def _models(made: Profile, given: Dict[Any, Any]) -> Dict[str, Any]:
    models: Dict[str, Any] = {}
    if "models" not in given:
        return models
    if not isinstance(given["models"], dict):
        made.bad("not-a-mapping", "models", shown(given["models"]),
                 "a mapping of models by path or repository id")
        return models
    for name, entry in given["models"].items():
        if not isinstance(name, str) or not name.isprintable() or not (
                name.startswith("/") or REPO_ID.match(name)):
            made.bad("bad-model-name", "models", shown(name),
                     "a repository id, or an absolute path on the host")
            continue
        described = made.mapping("models[%s]" % name, entry, MODEL_KEYS)
        model = _model(made, name, described) if described is not None else None
        if model is not None:
            models[name] = model
    return models


def _model(made: Profile, name: str, given: Dict[Any, Any]) -> Optional[Dict[str, Any]]:
    """The model as ``model_info`` would describe it."""
    where = "models[%s]" % name
    before = len(made.findings)
    config = given.get("config")
    if not isinstance(config, dict) or not config:
        made.bad("missing", where + ".config", shown(config),
                 "the fields of the model's config.json")
        return None
    for sentence in model_config.contradictions(config):
        made.bad("contradiction", where + ".config", sentence, "a config that can be")
    kind = made.choice(where + ".format", given.get(
        "format", "gguf" if name.endswith(".gguf") else "safetensors"), FORMATS)
    geometry, quantised = model_config.geometry(config), model_config.quantisation(config)
    method = str(quantised["method"])
    if kind == "gguf":
        method = made.text(where + ".quantisation", given.get("quantisation", "unknown")) or ""
    elif "quantisation" in given:
        made.bad("contradiction", where + ".quantisation", shown(given["quantisation"]),
                 "none: the config says it", "remove it, or put it into config")
    size = None
    if "bytes" in given:
        size = made.count(where + ".bytes", given["bytes"], MAX_BYTES)
    elif kind == "safetensors":
        size = model_config.weight_bytes(geometry, quantised)
    if size is None and "bytes" not in given and kind:
        made.bad("missing", where + ".bytes", "nothing, and the config does not tell them",
                 "the bytes of the model's files")
    if len(made.findings) > before:
        return None
    plain = kind == "safetensors" and model_config.quantisation_method(config) is None
    return {
        "path": name,
        "format": kind,
        "files": 1,
        "bytes": size,
        "fingerprint": hashlib.sha256(json.dumps(
            _with_texts(config), sort_keys=True).encode()).hexdigest(),
        "name": name.rstrip("/").rpartition("/")[2],
        # As the tensors' own headers have it.
        "quantisation": method.upper() if plain and method != "unknown" else method,
        "quantisation_bits": quantised["bits"] if kind == "safetensors" else None,
        "quantisation_group": quantised["group"] if kind == "safetensors" else None,
        "chat_template": True,
        "tensors": _tensors(geometry, method, size) if kind == "safetensors" else None,
        "geometry": geometry,
    }


def _with_texts(value: Any) -> Any:
    """The same with every key a text, as in JSON."""
    if isinstance(value, dict):
        return {str(key): _with_texts(one) for key, one in value.items()}
    return [_with_texts(one) for one in value] if isinstance(value, list) else value


def _tensors(geometry: Dict[str, Any], method: str,
             size: Optional[int]) -> Optional[Dict[str, int]]:
    """Bytes by use: embeddings and head stay in 16 bits where the rest is quantised."""
    counted = model_config.parameters(geometry)
    if counted is None or size is None:
        return None
    width = 4 if method == "f32" else 2
    embedding, head = counted["embedding"] * width, counted["head"] * width
    if embedding + head > size:
        return None
    return {"embedding_bytes": embedding, "head_bytes": head,
            "other_bytes": size - embedding - head}


def _asked(made: Profile, asked: Any, models: Dict[str, Any], own: bool) -> None:
    """Every model that is asked for is described; the rest is judged as on any host."""
    where = "endpoints" if own else VARIABLE
    if not isinstance(asked, (list, tuple)) or not asked:
        made.bad("missing", "endpoints", shown(asked) if asked or own else "nothing",
                 "a list of endpoints, here or in %s" % VARIABLE)
        return
    for number, one in enumerate(asked):
        model = one.get("model") if isinstance(one, dict) else None
        if not isinstance(model, str) or model in models or model == "canary":
            continue
        near = difflib.get_close_matches(model, models, n=1)
        made.findings.append(finding(
            "profile-model-unknown", "%s[%d].model" % (
                "profile." + where if own else where, number), shown(model),
            "a model that profile.models describes: %s" % (", ".join(models) or "it has none"),
            "did you mean %s?" % near[0] if near else "describe it in profile.models"))
