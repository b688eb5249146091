# SPDX-License-Identifier: Apache-2.0
"""What the planner is given: the catalogs as they are, hosts with cards, models by their names.

``plan(host("h100", 2), {"model": "/srv/models/Llama-3.1-8B"})`` is the answer of the planner. What
``host`` and ``model`` return may be changed; the rows of ``catalog()`` are shared and may not.
"""

from __future__ import annotations

import functools
from pathlib import Path

import facts as made
import yaml
from model_configs import CONFIGS

from ansible.module_utils.firstlight import model_config
from ansible.module_utils.firstlight.planning import health
from ansible.module_utils.firstlight.planning import plan as planning
from ansible.module_utils.firstlight.planning import requests as asking

GIB = 2**30
ROOT = "/var/lib/firstlight"
FOLDER = "/srv/models/"
NAMES = ("engine_costs", "engine_releases", "gguf_counterparts", "gpus", "health_limits",
         "jetson_chips", "jetson_releases", "known_issues", "log_signatures", "nvml_errors",
         "quantisation_kernels", "without_triton", "xid_events")
# What the driver keeps of an idle card's memory where the catalog has no figure.
RESERVED_SHARE = 0.01
ENVIRONMENT = "a1b2c3d4e5"


@functools.lru_cache(maxsize=1)
def _loaded():
    folder = Path(__file__).parents[2] / "catalog"
    return {name: yaml.safe_load((folder / (name + ".yml")).read_text()) for name in NAMES}


def catalog(**changes):
    """All catalogs by name, some of them replaced, and a digest for each lock that rows name."""
    found = {**_loaded(), **changes}
    locks = sorted({row["lock"] for row in found["engine_releases"] if row["lock"]})
    return {"environments": dict.fromkeys(locks, ENVIRONMENT), **found}


def row(**wanted):
    """The one engine release that has these values."""
    [found] = [one for one in _loaded()["engine_releases"]
               if all(one[key] == value for key, value in wanted.items())]
    return dict(found)


def rows_without(**unwanted):
    """The engine releases without those that have these values."""
    return [one for one in _loaded()["engine_releases"]
            if not all(one[key] == value for key, value in unwanted.items())]


def card(name):
    """The row of a card by its short or its whole name."""
    return next(one for one in _loaded()["gpus"] if name in (one["short"], one["name"]))


def gpu(name, index=0, **changes):
    """One idle card of that name."""
    of = card(name)
    reserved = of["reserved_mib"] or int(of["memory_mib"] * RESERVED_SHARE)
    return made.device(index, **{
        "name": of["nvml_name"], "capability": of["capability"],
        "architecture": of["architecture"], "memory_total_bytes": of["memory_mib"] * 2**20,
        "memory_free_bytes": (of["memory_mib"] - reserved) * 2**20,
        "memory_reserved_bytes": reserved * 2**20 if of["reserved_mib"] else None, **changes})


def host(name, count, **changes):
    """An idle host with so many of the card, NVLink peers of each other.

    :param changes: of the facts, as :func:`facts.host` takes them.
    """
    return made.host([gpu(name, index) for index in range(count)], **changes)


def cpu(gib=32, **changes):
    """A host without a GPU, with so much RAM."""
    return made.changed(made.cpu_host(memory={"total_bytes": int(gib * GIB)}), changes)


def model(name, **changes):
    """The model with the ``config.json`` of that name, in whole, as ``model_info`` describes it."""
    config = CONFIGS[name]
    shape, how = model_config.geometry(config), model_config.quantisation(config)
    return made.changed({
        "path": FOLDER + name, "format": "safetensors", "files": 1,
        "bytes": model_config.weight_bytes(shape, how), "fingerprint": "f" * 64, "name": name,
        "quantisation": how["method"], "quantisation_bits": how["bits"],
        "quantisation_group": how["group"], "chat_template": True, "tensors": None,
        "geometry": shape}, changes)


def gguf(name, size=None, quantisation="Q4_K_M", **changes):
    """The same model as GGUF; ``size`` in bytes, else that of four and a half bits a weight.

    Where weights are not known by the config, 16 GiB.
    """
    plain = model(name)["bytes"] or 57 * GIB
    return model(name, **{"format": "gguf", "quantisation": quantisation,
                          "bytes": size or plain * 9 // 32, "path": FOLDER + name + ".gguf",
                          "quantisation_bits": None, "quantisation_group": None, **changes})


def state(endpoints=None, **changes):
    """What ``endpoint_info`` returns of a host, root's, on which those endpoints are."""
    return {"root": ROOT, "uid": 0, "manager": "systemd", "missing_libraries": [],
            "python": {"version": "3.11.2", "venv": True}, "endpoints": endpoints or {},
            "environments": [], "ports": {}, "strangers": [], **changes}


def serving(plan, pids=(4711,), condition="running", **memory):
    """The endpoint of a plan as ``endpoint_info`` tells of it; ``memory`` is what was observed."""
    return {"state": condition, "pid": pids[0] if pids else None, "pids": list(pids),
            "plan": plan["hash"] if condition != "absent" else None, "healthy": True, "strays": [],
            "restarts": 0,
            "passport": {"plan": plan, "memory": {"observed": memory} if memory else {}}}


def asked(*entries):
    """Requests: a mapping each; the name is ``chat`` and ports count from 8000 where not given."""
    found, wrong = asking.normalise([
        {"name": "chat" if index == 0 else "chat%d" % index, "port": 8000 + index, **one}
        for index, one in enumerate(entries)])
    assert wrong == [], wrong
    return found


def models_of(requests):
    """The models that are asked for, each by the last part of its path or repository id."""
    found = {}
    for one in requests:
        name = one["model"].rpartition("/")[2]
        if one["model_kind"] != "canary":
            found[one["model"]] = (gguf(name[: -len(".gguf")]) if name.endswith(".gguf")
                                   else model(name, path=one["model"]))
    return found


def plan(facts, *entries, models=None, state=None, catalog=None, verdict=None, library_path=None):
    """The planner's answer to these requests.

    :param models: by path; else those that the paths are named after (:func:`models_of`). The path
        of a GGUF ends in ``.gguf``.
    :param verdict: of the host's health; else what :mod:`.health` says of the facts.
    """
    taken = asked(*entries)
    known = catalog or globals()["catalog"]()
    return planning.deployment_plan(
        taken, facts, models_of(taken) if models is None else models,
        globals()["state"]() if state is None else state, known,
        verdict or health.host_health(facts, known), library_path)


def only(result):
    """The one plan of an answer without refusals."""
    assert result["refusals"] == [], result["refusals"]
    [found] = result["endpoints"]
    return found


def refusal(result):
    """The one refusal of an answer without plans."""
    assert result["endpoints"] == [], [one["reasons"] for one in result["endpoints"]]
    [found] = result["refusals"]
    return found
