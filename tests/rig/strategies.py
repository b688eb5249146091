# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies: findings, requests, hosts, models and catalogs in their real shapes.

Whatever comes from a host or from a user may be any text; what the project itself decides (names,
severities, kinds) is of its finite kinds.
"""

from __future__ import annotations

import copy
import string
from pathlib import Path

import facts as made
import library_seen
import planner
import yaml
from hypothesis import settings
from hypothesis import strategies as st
from model_configs import CONFIGS

from ansible.module_utils.firstlight import findings
from ansible.module_utils.firstlight.planning import health, requests, snapshots

# Machines are noisy, so there is no deadline. A failure prints the line that repeats it elsewhere.
# What hypothesis itself sets on CI (no database, the same examples each time) stays.
settings.register_profile("firstlight", deadline=None, max_examples=50, print_blob=True)
settings.load_profile("firstlight")

GIB = 2**30
ROOT = "/var/lib/firstlight"

# Characters that end lines, move cursors or end quotes, more often than chance has them.
HOSTILE = st.text(
    st.characters(exclude_categories=["Cs"])
    | st.sampled_from("\n\r\t\0\x1b\x7f\x85\u2028\u202e'\"\\$%{};# "), max_size=12)
PRINTABLE = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner,
                                                                max_size=4),
    max_leaves=8,
)

FINDINGS = st.builds(
    findings.finding,
    id=st.from_regex(r"[a-z]{1,6}(-[a-z0-9]{1,6}){0,2}", fullmatch=True),
    subject=HOSTILE, found=HOSTILE, wanted=HOSTILE, remedy=HOSTILE,
    severity=st.sampled_from(findings.SEVERITIES), evidence=HOSTILE, needs_root=st.booleans(),
    source=HOSTILE,
)

NAMES = st.sampled_from(["chat", "embed"]) | st.from_regex(requests.NAME, fullmatch=True)
MODEL_PATHS = st.sampled_from(["/srv/models/a.gguf", "/srv/models/b c.gguf", "/srv/models/d/"])

# What a user may write, right or wrong: known keys with likely values, or with anything at all.
LIKELY = {
    "name": NAMES | st.sampled_from(["\x1b[2J", "../chat", ["chat"], {}]),
    "model": st.just("canary") | MODEL_PATHS | st.sampled_from([
        "Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B-GGUF:Q8_0", "a/b:", "a/b@main", "./m.gguf",
        "file:///srv/models/b%20c.gguf", "file://other/m.gguf", "file:%ff", "file:///%00"]),
    "revision": st.sampled_from(["main", "v1.0", "a" * 40, "a" * 7, "../x", 7, {}]),
    "engine": st.sampled_from([*requests.ENGINES, "llama.cpp"]),
    "runtime": st.sampled_from(requests.RUNTIMES),
    "port": st.integers(-1, 65536) | st.integers(7999, 8001) | st.just("8000"),
    "bind": st.sampled_from(["127.0.0.1", "0.0.0.0", "::1", "192.0.2.10", "2001:db8::1"]),
    "api_key": st.sampled_from(["k" * 16, ["k" * 16, "l" * 20], ["k"], "short", {}]),
    "engine_port": st.integers(-1, 65536) | st.integers(17999, 18002) | st.just("18000"),
    "tls_certificate": st.sampled_from(["/etc/c.pem", "c.pem"]),
    "tls_key": st.sampled_from(["/etc/k.pem", ["/etc/k.pem"]]),
    "context": st.just("auto") | st.integers(0, 10**7),
    "tensor_parallel": st.just("auto") | st.integers(0, 4),
    "gpus": st.just("auto") | st.integers(-1, 4) | st.lists(HOSTILE, max_size=2),
    "extra_args": st.lists(HOSTILE | st.integers() | st.booleans(), max_size=3),
}
ENTRIES = st.builds(
    lambda likely, other: {**likely, **other},
    st.fixed_dictionaries({}, optional=LIKELY),
    st.just({}) | st.dictionaries(st.sampled_from(sorted(requests.DEFAULTS)) | HOSTILE, JSON,
                                  max_size=2),
)
PATH_MAPS = st.none() | st.just({"/srv/models": "/fsx", "/srv": "/mnt/"}) | JSON | st.dictionaries(
    st.sampled_from(["/", "/srv", "/srv/models/", "/etc", "srv"]),
    st.sampled_from(["/", "/fsx", "/srv/models", "x", 7]), max_size=3)
ASKED = JSON | st.lists(ENTRIES, min_size=1, max_size=3) | st.lists(ENTRIES | JSON, max_size=3)

# What is right by itself; whether a host can do it is another matter.
GOOD_ENTRY = st.fixed_dictionaries(
    {"name": NAMES, "model": st.just("canary") | PRINTABLE.map("/srv/".__add__)},
    optional={
        "engine": st.sampled_from(requests.ENGINES),
        "runtime": st.sampled_from(requests.RUNTIMES),
        "port": st.integers(1, 65535) | st.integers(1, 65535).map(str),
        "bind": st.just("127.0.0.1"),
        "context": st.just("auto") | st.integers(1, 10**7),
        "tensor_parallel": st.just("auto") | st.integers(1, 16),
        "gpus": st.sampled_from(["auto", "all"]) | st.integers(0, 16) | st.lists(
            PRINTABLE, min_size=1, max_size=2),
        "extra_args": st.lists(PRINTABLE | st.integers(), max_size=3),
    },
)

# What a host with enough memory is likely to do.
PORTS = st.sampled_from([1, 8000, 8001]) | st.integers(1, 65535)
_SERVABLE = st.fixed_dictionaries(
    {"name": NAMES, "port": PORTS, "model": st.just("canary") | MODEL_PATHS,
     "gpus": st.just(0)},
    optional={
        "context": st.just("auto") | st.integers(1, 4096),
        "extra_args": st.sampled_from([[], ["--threads", "4"], ["-fa", "on"]]),
    },
)
SERVABLE = st.lists(_SERVABLE, min_size=1, max_size=3,
                    unique_by=(lambda one: one["name"], lambda one: one["port"]))

COUNTS = st.sampled_from([True] * 19 + [False]).flatmap(
    lambda known: st.integers(1, 256) if known else st.none())
_PLAIN = {"sliding_window": None, "sliding_layers": 0, "state_bytes_per_sequence": 0,
          "tied_embeddings": False, "vision": False, "kv_lora_rank": None, "rope_head_dim": None,
          "query_lora_rank": None, "experts": None, "experts_per_token": None,
          "moe_intermediate": None, "shared_intermediate": None, "dense_layers": None}
# Shapes of one kind of layer, some of it not known; models with all kinds are in model_configs.
GEOMETRIES = st.fixed_dictionaries({
    "architecture": st.sampled_from(["llama", "qwen2"]), "layers": COUNTS, "hidden": COUNTS,
    "heads": COUNTS, "kv_heads": COUNTS, "head_dim": COUNTS, "value_head_dim": COUNTS,
    "attention_layers": COUNTS, "intermediate": COUNTS,
    "context": st.none() | st.integers(1, 10**6), "vocabulary": COUNTS,
}).map(lambda one: {**_PLAIN, **one, "dense_layers": one["layers"]})
MODELS = st.fixed_dictionaries({
    "path": MODEL_PATHS, "format": st.sampled_from(["gguf", "gguf", "gguf", "safetensors"]),
    "files": st.integers(1, 9),
    "bytes": st.integers(1, 80 * GIB), "fingerprint": st.text("0123456789abcdef", min_size=64,
                                                              max_size=64),
    "name": HOSTILE, "quantisation": st.sampled_from(["F16", "Q8_0", "unknown"]),
    "quantisation_bits": st.none() | st.just(4), "quantisation_group": st.none() | st.just(128),
    "chat_template": st.booleans(), "tensors": st.none() | st.fixed_dictionaries({
        "embedding_bytes": st.integers(1, 2**20), "head_bytes": st.integers(0, 2**20),
        "other_bytes": st.integers(1, 2**20)}),
    "geometry": GEOMETRIES,
}).map(lambda one: {**one, "bytes": one["bytes"] + sum((one["tensors"] or {}).values())})

# Hosts as gpu_facts describes them: what is usual with changes, some of it not known.
BYTES = st.none() | st.integers(0, 2**38)
XIDS = st.fixed_dictionaries({
    "code": st.sampled_from([31, 48, 79, 94]) | st.integers(0, 999),
    "age_s": st.none() | st.integers(0, 10**7), "text": HOSTILE,
    "bus_id": st.sampled_from(["0000:41:00.0", "0000:42:00.0"])})
GPU_CHANGES = st.fixed_dictionaries({}, optional={
    "name": st.none() | HOSTILE, "memory_free_bytes": BYTES, "memory_total_bytes": BYTES,
    "memory_reserved_bytes": BYTES, "unified_memory": st.booleans(),
    "holders": st.none() | st.lists(st.builds(
        made.holder, st.integers(1, 9), BYTES, command=st.none() | HOSTILE, user=HOSTILE),
        max_size=2),
    "compute_mode": st.none() | st.sampled_from(["prohibited", "exclusive_process"]),
    "persistence": st.none() | st.booleans(), "temperature_c": st.none() | st.integers(20, 99),
    "mig": st.none() | st.builds(
        lambda on, slices: {"enabled": on, "pending": not on, "slices": slices},
        st.booleans(), st.none() | st.lists(st.integers(1, 2).map(made.piece), max_size=2)),
    "ecc": st.none() | st.fixed_dictionaries({"uncorrected_volatile": st.none() | st.just(1)}),
    "remapped_rows": st.none() | st.fixed_dictionaries({"pending": st.booleans()}),
    "throttle_reasons": st.none() | st.just(["hw_slowdown"]),
    "recovery_action": st.none() | st.sampled_from(["gpu_reset", "drain_p2p"]),
    "nvlink": st.none() | st.fixed_dictionaries({"active": st.integers(0, 18)}),
    "fabric": st.none() | st.fixed_dictionaries({"state": st.just("in_progress")}),
    "xids": st.none() | st.lists(XIDS, max_size=3),
})
REASONS = st.sampled_from(["nvml-3", "nvml-4", "nvml-13", "nvml-15", "nvml-999", "eacces", "absent",
                           "unknown", "timeout"]).map(made.reason)


@st.composite
def hosts(draw):
    """Facts of a host with up to four GPUs, each null with a reason of any kind, or with none."""
    devices = [made.device(index, **changes)
               for index, changes in enumerate(draw(st.lists(GPU_CHANGES, max_size=4)))]
    facts = draw(st.sampled_from([made.host, made.cpu_host, made.jetson_host]))(
        devices=devices, orphan_xids=draw(st.none() | st.lists(XIDS, max_size=2)))
    labels = ["nvml", "driver", *("devices[%d]" % one["index"] for one in devices)]
    labels += ["devices[%d].%s" % (one["index"], key)
               for one in devices for key, value in one.items() if value is None]
    facts["unread"] = draw(st.dictionaries(st.sampled_from(labels), REASONS, max_size=6))
    return facts


# Hosts of cards that there are, idle, in the state that a fleet is in before a first run.
CARDS = st.sampled_from(["a100-40", "a100-80", "h100", "h200", "l40s", "v100", "t4", "a10"])
DRIVERS = st.sampled_from(["535.104.05", "570.124.06", "580.159.04"])


@st.composite
def idle_hosts(draw, most=8):
    """Idle hosts with one kind of card, in one clique or in two or without NVLink."""
    facts = planner.host(draw(CARDS), draw(st.integers(1, most)),
                         driver={"version": draw(DRIVERS)})
    kind = draw(st.sampled_from(["one", "one", "two", "none"]))
    for index, one in enumerate(facts["devices"]):
        if kind == "two":
            one["nvlink"]["clique"] = index % 2
        elif kind == "none":
            one["nvlink"] = {"links": 0, "active": 0, "to_switch": False, "peers": [],
                             "clique": None}
    return facts


CPU_CHANGES = st.fixed_dictionaries({
    "cpu": st.fixed_dictionaries({
        "architecture": st.sampled_from(["x86_64", "x86_64", "aarch64", "riscv64"]),
        "cores": st.none() | st.integers(1, 256), "model": st.none() | HOSTILE}),
    "memory": st.fixed_dictionaries({
        "total_bytes": st.sampled_from([None, 0]) | st.integers(1, 2**42) | st.integers(
            2**33, 2**42),
        "available_bytes": st.none() | st.integers(0, 2**42),
        "swap_bytes": st.none() | st.integers(0, 2**36)}),
    "system": st.fixed_dictionaries({
        "distribution": st.none() | st.sampled_from(["debian", "ubuntu", "rocky"]),
        "version": st.none() | st.just("12"),
        "like": st.sampled_from([[], ["debian"], ["rhel", "centos", "fedora"]])}),
})
FACTS = CPU_CHANGES.map(lambda changes: made.cpu_host(**changes)) | idle_hosts() | st.builds(
    made.changed, hosts(), CPU_CHANGES)

# What may be asked for of such hosts, of models as they are published.
PUBLISHED = st.sampled_from(sorted(CONFIGS)).flatmap(lambda name: st.sampled_from(
    [planner.FOLDER + name, planner.FOLDER + name, planner.FOLDER + name + ".gguf"]))
_ON_GPUS = st.fixed_dictionaries(
    {"name": NAMES, "port": PORTS, "model": PUBLISHED},
    optional={
        "context": st.just("auto") | st.integers(1, 300000),
        "gpus": st.sampled_from(["auto", "all", 0, 1, 2, 4, [made.uuid(0)],
                                 [made.uuid(1), made.uuid(0)]]),
        "tensor_parallel": st.sampled_from(["auto", 1, 2, 4]),
        "engine": st.sampled_from(["auto", "auto", "vllm", "llama_cpp"]),
        "extra_args": st.sampled_from([[], [], ["--enforce-eager"], ["--kv-cache-dtype", "fp8"],
                                       ["--max-num-batched-tokens=4096"], ["-ub", "256"]]),
    },
)
ON_GPUS = st.lists(_ON_GPUS, min_size=1, max_size=3,
                   unique_by=(lambda one: one["name"], lambda one: one["port"]))

WANTED = st.fixed_dictionaries({
    "where": HOSTILE, "name": NAMES, "count": st.just("all") | st.integers(0, 4),
    "uuids": st.just([]) | st.lists(st.integers(0, 4).map(made.uuid), max_size=2),
    "keep": st.lists(st.integers(0, 4).map(made.uuid), max_size=2),
    "tensor_parallel": st.booleans(), "memory_bytes": st.sampled_from([0, GIB]),
    "share": st.booleans(),
    "taken": st.dictionaries(st.integers(0, 4).map(made.uuid), NAMES, max_size=2)})
HELD = st.none() | st.fixed_dictionaries({}, optional={
    "pids": st.lists(st.integers(1, 9), max_size=2),
    "bytes": st.dictionaries(st.integers(0, 4).map(made.uuid), st.integers(0, GIB), max_size=2)})

GOOD_ROOTS = st.text(string.ascii_letters + "/ .@+-é", max_size=90).map("/".__add__)
ROOTS = st.just(ROOT) | GOOD_ROOTS | st.text("a/'\"$;{\n", max_size=9).map("/".__add__)
HOLDERS = st.fixed_dictionaries({
    "pid": st.none() | st.integers(1, 4194304), "command": st.none() | HOSTILE, "user": HOSTILE,
    "endpoint": st.none() | NAMES | HOSTILE, "root": st.just(ROOT) | HOSTILE})
SERVED = st.fixed_dictionaries({
    "state": st.sampled_from(["absent", "stopped", "starting", "running", "failed"]),
    "pid": st.none() | st.integers(1, 4194304), "plan": st.none() | st.just("9f2c"),
    "healthy": st.booleans(), "strays": st.lists(st.integers(1, 4194304), max_size=2),
    "detail": HOSTILE, "restarts": st.integers(0, 3), "older": st.integers(0, 3),
    "manager": st.sampled_from([None, "systemd", "supervisor", "docker"]),
    "definition": st.none() | HOSTILE, "half_done": st.booleans(), "log": HOSTILE,
    "way_in": st.dictionaries(HOSTILE, HOSTILE, max_size=2),
    "gpus_seen": st.none() | st.lists(HOSTILE, max_size=2),
    "passport": st.none() | st.just({"plan": {"url": "http://127.0.0.1:8001", "hash": "9f2c"}})})
STATES = st.fixed_dictionaries({
    "root": ROOTS,
    "strangers": st.lists(HOSTILE, max_size=2),
    "environments": st.lists(HOSTILE, max_size=2),
    "manager": st.sampled_from(["systemd", "supervisor"]),
    "uid": st.sampled_from([0, 1000]),
    "endpoints": st.dictionaries(NAMES, SERVED, max_size=2),
    "ports": st.dictionaries(st.sampled_from(["8000", "8001", "1"]), HOLDERS, max_size=2),
    "python": st.fixed_dictionaries({
        "version": st.sampled_from(["3.9.18", "3.10.0", "3.14.0rc1"]), "venv": st.booleans()}),
    "missing_libraries": st.sampled_from([[], ["libgomp.so.1"]]),
    "haproxy": st.sampled_from([None, "2.2.9", "2.6.12", "3.0.11"]), "openssl": st.booleans(),
})
MODEL_FINDINGS = st.lists(
    st.builds(lambda one, path: dict(one, subject=path), FINDINGS, MODEL_PATHS), max_size=2)

HEALTH_CATALOG = planner.catalog()
RELEASES = HEALTH_CATALOG["engine_releases"]
RELEASE_ROWS = st.builds(
    lambda row, changes: copy.deepcopy({**row, **changes}),
    st.sampled_from(RELEASES),
    st.fixed_dictionaries({}, optional={
        "version": st.sampled_from(["1.0", "2027.1.2"]),
        "measured": st.booleans(),
        "digest": st.just("sha256:" + "0" * 64),
        "minimum_python": st.sampled_from(["3.9", "3.12"])}))
CATALOGS = st.lists(RELEASE_ROWS, max_size=2).map(
    lambda more: planner.catalog(engine_releases=more + copy.deepcopy(RELEASES)))


# Profiles as the examples have them, with any part of them changed, or none at all.
_EXAMPLES = [yaml.safe_load(path.read_text()) for path in sorted(
    (Path(__file__).parents[2] / "inventories" / "example" / "profiles").glob("*.yml"))]
PROFILES = JSON | st.builds(
    lambda one, changes: {**copy.deepcopy(one), **changes}, st.sampled_from(_EXAMPLES),
    st.dictionaries(st.sampled_from([
        "name", "gpus", "busy", "driver", "memory_gib", "cores", "disk_mib_s", "architecture",
        "l4t", "docker", "models", "endpoints"]), JSON, max_size=2))


@st.composite
def situations(draw, asked=None):
    """All arguments of ``deployment_plan``: requests, facts, models, state, catalog, health."""
    if asked is None:
        asked = SERVABLE | ON_GPUS | st.lists(GOOD_ENTRY, max_size=3)
    good, wrong = requests.normalise(draw(asked))
    taken = [one for one in good
             if not any(each["subject"].startswith(one["where"]) for each in wrong)]
    published = planner.models_of([one for one in taken
                                   if one["model"].startswith(planner.FOLDER)
                                   and model_name(one["model"]) in CONFIGS])
    paths = {one["model"] for one in taken if one["model_kind"] == "path"} - set(published)
    models = {path: {**draw(MODELS), "path": path} for path in sorted(paths)}
    facts, rows = draw(FACTS), draw(CATALOGS)
    return (taken, facts, {**models, **published}, draw(STATES), rows,
            health.host_health(facts, rows))


def model_name(path):
    """The name of a published model in its path."""
    name = path.rpartition("/")[2]
    return name[: -len(".gguf")] if name.endswith(".gguf") else name


@st.composite
def on_gpus(draw):
    """A situation with idle GPUs and published models; some of it will not fit."""
    facts, rows = draw(idle_hosts()), planner.catalog()
    taken, wrong = requests.normalise(draw(ON_GPUS))
    assert wrong == []
    return (taken, facts, planner.models_of(taken), planner.state(), rows,
            health.host_health(facts, rows))


@st.composite
def roomy(draw):
    """A situation in which every request gets its plan, on the CPU."""
    taken, facts, models, state, rows, _ = draw(situations(SERVABLE))
    facts["memory"]["total_bytes"] = 2**60
    facts["cpu"]["architecture"] = "x86_64"
    state["python"]["version"] = "3.14.0rc1"
    state["root"] = draw(GOOD_ROOTS)
    state["missing_libraries"] = []
    sides = ("layers", "hidden", "heads", "kv_heads", "head_dim", "value_head_dim", "vocabulary",
             "attention_layers")
    for model in models.values():
        model["geometry"].update(zip(sides, draw(st.tuples(*[st.integers(1, 256)] * len(sides)))))
        model["geometry"]["context"] = draw(st.none() | st.integers(4096, 10**6))
        model["format"] = "gguf"
    for request in taken:
        if request["model"] == "canary" and request["context"] != "auto":
            request["context"] = min(request["context"], 2048)
    return taken, facts, models, state, rows, health.host_health(facts, rows)


@st.composite
def repositories(draw):
    """Requests of which some are of repositories, what is wanted of these, and what a module said
    of them: all is there, some of it, nothing, or nothing was asked."""
    taken, wrong = requests.normalise(draw(st.lists(st.fixed_dictionaries(
        {"name": NAMES, "port": PORTS, "model": st.sampled_from(
            ["canary", "/srv/models/a.gguf", "Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B:Q8_0"])},
        optional={"engine": st.sampled_from(["auto", "vllm", "llama_cpp"]),
                  "gpus": st.sampled_from(["auto", 0]),
                  "revision": st.sampled_from(["main", "c0ffee" + "0" * 34])}),
        max_size=3, unique_by=(lambda one: one["name"], lambda one: one["port"]))))
    taken = [one for one in taken
             if not any(each["subject"].startswith(one["where"]) for each in wrong)]
    wanted = snapshots.snapshot_requests(taken, made.cpu_host(), planner.catalog())
    told = {}
    for one in wanted:
        model = draw(st.none() | MODELS)
        told[one["name"]] = {
            "repo_id": one["repo_id"], "revision": one["revision"] or "main",
            "commit": "c0ffee" + "0" * 34, "path": "/hub/a", "fingerprint": "f" * 64,
            "present": draw(st.booleans()),
            "verified": draw(st.sampled_from([None, "fast", "full"])), "model": model}
    for name in draw(st.sets(st.sampled_from(sorted(told)))) if told else ():
        del told[name]
    outlined = draw(st.just({}) | st.fixed_dictionaries({
        "snapshots": st.just(told),
        "findings": st.lists(st.builds(lambda one, about: dict(one, subject=about), FINDINGS,
                                       st.sampled_from(["Qwen/Qwen2.5-0.5B", "hub"])),
                             max_size=2)},
        optional={"skipped": st.lists(st.sampled_from([one["name"] for one in wanted]), max_size=2)
                  if wanted else st.just([])}))
    return taken, wanted, outlined


REPOSITORIES = repositories()


# The words of a command: text that both service managers may be given, and what they could take
# for a mark of their own.
WORDS = st.lists(
    st.text(st.characters(exclude_categories=["C", "Zl", "Zp"])).filter(str.isprintable)
    | st.sampled_from([";", "#", "a ;b", "a #b", "%", "%(here)s", "x%%(here)s", "%(ENV_HOME)s", "",
                       "$HOME", "${HOME}", "$$", "\\", "a\\", '"', "'", "%h", "\\x41", "a b"]),
    min_size=1, max_size=5,
)


# Hosts as the filter tuning_plan looks at them, and what it is asked for.
_DAEMONS = st.none() | st.fixed_dictionaries({
    "state": st.sampled_from(["active", "inactive", "failed", "activating", "not-found"]),
    "enabled": st.booleans(), "version": st.sampled_from(["580.159.04", "580.126.09", None])})
_FABRICS = st.none() | st.fixed_dictionaries({
    "state": st.sampled_from(["not_supported", "not_started", "in_progress", "completed", None]),
    "status": st.sampled_from(["success", None]) | HOSTILE})
_MODES = st.dictionaries(
    st.sampled_from(["MAXN", "MAXN_SUPER", "15W", "MODE_20W_6CORE", "MODE_20W_2CORE"]) | HOSTILE,
    st.integers(0, 9), max_size=4)
_SIZES = st.none() | st.integers(0, 2**40)
TUNABLE = st.fixed_dictionaries({
    "class": st.sampled_from(["nvidia", "jetson", "unified", "cpu"]),
    "driver": st.none() | st.fixed_dictionaries({"version": st.sampled_from([None, "580.159.04"])}),
    "devices": st.lists(st.fixed_dictionaries({
        "index": st.integers(0, 7), "uuid": st.none() | HOSTILE,
        "persistence": st.none() | st.booleans(), "fabric": _FABRICS}), max_size=3),
    "fabric_manager": _DAEMONS, "persistence_daemon": _DAEMONS,
    "jetson": st.none() | st.fixed_dictionaries({
        "power_modes": st.none() | _MODES, "power_mode": st.none() | HOSTILE,
        "power_mode_id": st.none() | st.integers(0, 9)}),
    "memory": st.fixed_dictionaries({"swap_bytes": _SIZES}),
    "disk": st.fixed_dictionaries({
        "path": st.just(ROOT + "/models"), "total_bytes": _SIZES, "free_bytes": _SIZES}),
    "unread": st.dictionaries(
        st.sampled_from(["fabric_manager", "devices[0]", "devices[0].fabric", "jetson"]),
        st.fixed_dictionaries({"code": st.sampled_from(["nvml-3", "nvml-999", "enoent"]),
                               "reason": HOSTILE}), max_size=2),
})
REMEDIES = st.lists(st.sampled_from(
    ["fabric_manager", "persistence", "page_cache", "swap", "power_mode"]), unique=True)
TUNINGS = st.tuples(
    TUNABLE, REMEDIES, st.integers(-1, 2**41),
    st.just(ROOT + "/swapfile") | HOSTILE | HOSTILE.map("/".__add__),
    st.just("") | st.sampled_from(["MAXN", "15W"]) | HOSTILE)


# Library paths as the modules host_checks and linker_cache see them, of which nothing need agree
# with anything; and what the doctor has of a host.
OUR_LIBRARIES = ROOT + "/libraries"
LIBRARY_FOLDERS = st.sampled_from([
    library_seen.SYSTEM, library_seen.NVIDIA, library_seen.STUBS, library_seen.COMPAT,
    "/opt/the driver", "/opt/a#b", "/opt/a\nb", OUR_LIBRARIES,
]) | HOSTILE.map(lambda text: "/opt/x" + text.replace("/", "").replace("\0", ""))
_SAID = HOSTILE.map("it said: ".__add__)
_VERSIONS = st.sampled_from([None, library_seen.MODULE, "535.104.05"])
_MOSTLY = st.sampled_from([True] * 5 + [False])
_INITS = st.sampled_from([None, 0, 34, 100, 802, 803, 804, 999])
_LINK_STATES = st.sampled_from(["ok", "missing", "dangling"])
_CALLS = st.builds(lambda rc, said: {"rc": rc, "said": said if rc != 0 else ""},
                   st.sampled_from([0] * 8 + [1, None, -9]), _SAID)
_NAMED_LIBRARIES = st.sampled_from(["libcuda.so.1", "libcuda.so", "libfirst.so.1"])
_LIBRARY_PATHS = st.builds(lambda folder, name: folder + "/" + name, LIBRARY_FOLDERS,
                           _NAMED_LIBRARIES)
_LIBRARIES = st.builds(
    lambda folder, name, version, own, rest: {
        **rest, "folder": folder, "path": folder + "/" + name, "version": version,
        "real": "%s/libcuda.so.%s" % (folder if own else "/opt/real" + folder, version or "1.1")},
    LIBRARY_FOLDERS, st.sampled_from(["libcuda.so.1", "libcuda.so"]), _VERSIONS, st.booleans(),
    st.fixed_dictionaries({
        "kind": st.sampled_from(["driver"] * 4 + ["stub", "stub", "compat", "foreign", "small"]),
        "size": st.integers(0, 2**30), "soname": _LINK_STATES, "plain": _LINK_STATES,
        "others": st.sampled_from([[], [], ["535.104.05"], [library_seen.MODULE]]),
        "configured": st.booleans(), "listed": st.booleans(), "safe": _MOSTLY,
        "why": _SAID}))
_PYTHONS = st.fixed_dictionaries({
    "path": st.just(library_seen.PYTHON) | _SAID, "python": st.sampled_from(["3.9", "3.12"]),
    "triton": st.sampled_from([None, "", "2.1.0", "2.2.0", "3.5.1", "3.6.0+git"]) | HOSTILE,
    "prefix": st.none() | _SAID, "include": _SAID, "headers": st.booleans(),
    "compiler": st.none() | _SAID, "error": st.just("") | _SAID})


@st.composite
def library_paths(draw):
    """What was seen of a library path."""
    libraries = draw(st.lists(_LIBRARIES, max_size=4, unique_by=lambda one: one["folder"]))
    folders = [one["folder"] for one in libraries]
    variables = draw(st.lists(st.builds(
        lambda where, listed: {"where": where, "value": ":".join(listed), "folders": listed},
        _SAID, st.lists(st.sampled_from([*folders, "", "lib", "/opt/x/"]), max_size=3)),
        max_size=2))
    for one in variables:
        # By whatever name, it is a folder that was looked into.
        one["places"] = draw(st.dictionaries(
            st.sampled_from(one["folders"] or [""]), st.sampled_from(folders or [""]), max_size=2))
        one["starts"] = {folder: draw(_INITS) for folder in folders
                         if folder in one["folders"] or folder in one["places"].values()}
    works = draw(st.sampled_from(["ok"] * 6 + ["missing", "not_executable"]))
    without_cache = draw(st.sampled_from([False] * 5 + [True]))
    asked = works == "ok" and not without_cache
    dangling = {path: target for path, target in draw(st.dictionaries(
        _LIBRARY_PATHS | st.sampled_from([folder + "/libcuda.so.1" for folder in folders]
                                         or ["/opt/x/libcuda.so"]), _SAID, max_size=3)).items()
        if not path.endswith("/libfirst.so.1")}
    for one in libraries:
        for key, name in (("soname", "/libcuda.so.1"), ("plain", "/libcuda.so")):
            if one["folder"] + name in dangling:
                one[key] = "dangling"
    loaded = draw(st.none() | st.fixed_dictionaries({
        "path": st.sampled_from([None, "/opt/x/libcuda.so.1", *(one["real"] for one in libraries)]),
        "init": _INITS, "text": st.just("") | HOSTILE, "nvml": st.sampled_from([None, 0, 18]),
        "error": _SAID, "hangs": st.sampled_from([False] * 5 + [True])}))
    return {
        "root": draw(st.booleans()),
        "without_cache": without_cache,
        "etc_writable": draw(_MOSTLY),
        "read_only": draw(st.sampled_from([None, False, True])),
        "tool": {"state": works, "detail": draw(_SAID)},
        "cache": {"state": draw(st.sampled_from([
            "ok", "ok", "missing", "empty", "damaged", "directory", "unreadable", "unknown"])),
            "detail": draw(_SAID), "movable": draw(_MOSTLY),
            "libraries": draw(st.integers(0, 10**4))},
        "listing": draw(_CALLS) if asked else None,
        "rehearsal": draw(_CALLS) if asked else None,
        "folders": draw(st.dictionaries(
            LIBRARY_FOLDERS | st.sampled_from(folders or ["/lib"]),
            HOSTILE | st.sampled_from(["/etc/ld.so.conf:1", "<builtin>:0"]), max_size=3)),
        "unlisted": draw(st.lists(_LIBRARY_PATHS, max_size=3)),
        "gone": draw(st.lists(_LIBRARY_PATHS, max_size=3)),
        "strays": draw(st.lists(_LIBRARY_PATHS, max_size=2)),
        "kept": draw(st.dictionaries(
            _LIBRARY_PATHS | st.sampled_from(
                [*dangling, *(folder + "/libcuda.so.1" for folder in folders)] or ["/opt/x/y.so"]),
            st.just("belongs to the package libcuda1"), max_size=2)),
        "included_at": draw(st.sampled_from([1, 1, 1, 2, None])),
        "links_safe": draw(_MOSTLY),
        "links_missing": draw(st.dictionaries(
            _LIBRARY_PATHS.filter(lambda path: path not in dangling),
            st.sampled_from(["libcuda.so." + library_seen.MODULE, "libx.so.1.2"]), max_size=3)),
        "libraries": libraries,
        "dangling": [{"path": path, "target": target} for path, target in dangling.items()],
        "variables": variables, "kernel_module": draw(_VERSIONS | st.just("570.1.2")),
        "driver_loaded": draw(st.booleans()), "loaded": loaded, "limit_s": 30.0,
        "pythons": draw(st.lists(_PYTHONS, max_size=2)), "unread": {},
    }


_FILES = st.sampled_from(["libcuda.so.1", "libnvidia-ml.so.1"])


def our_library_files(seen, folder):
    """What there is of ours, where this was seen and the driver's library is in this folder."""
    return st.fixed_dictionaries({
        "conf": st.none() | HOSTILE,
        "companions": st.lists(_FILES, unique=True),
        "shadowed": st.lists(st.just("libz.so.1"), max_size=1), "writable": st.booleans(),
        "kept": st.just(seen["kept"]),
        "links": st.dictionaries(_FILES.map((folder + "/").__add__), st.just("libnvidia-ml.so.1.2"),
                                 max_size=1),
        "private": st.dictionaries(_FILES, _LIBRARY_PATHS, max_size=2)})


HALF_DONE = st.sampled_from(["", "", library_seen.JOURNAL])
HELPFUL = st.lists(st.sampled_from(
    ["fabric_manager", "linker_cache", "page_cache", "persistence", "power_mode", "swap"]),
    unique=True).map(sorted)
LIBRARY_CHECKS = st.fixed_dictionaries(
    {"findings": st.lists(FINDINGS, max_size=4), "remedies": HELPFUL,
     "helps": st.dictionaries(HOSTILE, HOSTILE, max_size=2), "blocks": st.just([]),
     "environment": st.dictionaries(HOSTILE, HOSTILE, max_size=2)})
REPORTS = st.fixed_dictionaries({
    "class": st.sampled_from(["nvidia", "jetson", "unified", "cpu"]),
    "verdict": st.sampled_from(health.VERDICTS),
    "devices": st.dictionaries(HOSTILE, st.sampled_from(health.VERDICTS), max_size=3),
    "findings": st.lists(FINDINGS, max_size=4), "remedies": HELPFUL})
FLEETS = st.dictionaries(HOSTILE, REPORTS, max_size=12)

# What a failed start may have left, and the changes that rows call safe.
CHANGES = [
    {"id": "a", "change": {"kind": "context", "to": "fits"}},
    {"id": "b", "change": {"kind": "other_gpu"}}, {"id": "c", "change": {"kind": "eager"}},
    {"id": "d", "change": {"kind": "start_budget"}}, {"id": "e", "change": {}},
    {"id": "f", "change": {"kind": "environment", "set": {"NCCL_P2P_DISABLE": "1"}}},
    {"id": "g", "change": {"kind": "shared_memory"}},
]


def attempts(plans):
    """What ``endpoint_switch`` returns of these plans: served, or not."""
    said = st.dictionaries(st.sampled_from(["fits", "device"]),
                           HOSTILE | st.integers(-9, 10**9).map(str), max_size=2)
    found = st.lists(st.sampled_from("abcdefgh").flatmap(
        lambda id_: FINDINGS.map(lambda one: dict(one, id=id_))), max_size=4)
    attempt = st.fixed_dictionaries(
        {"findings": found, "words": st.dictionaries(st.sampled_from("abcdefgh"), said)})
    return st.fixed_dictionaries({"name": st.sampled_from([one["name"] for one in plans]) | NAMES},
                                 optional={"msg": HOSTILE, "attempt": attempt})


def log_readings():
    """What ``engine_log_diagnosis`` returns, of endpoints and of files."""
    ids = st.sampled_from("abcdefgh")
    found = st.lists(ids.flatmap(lambda id_: FINDINGS.map(lambda one: dict(one, id=id_))),
                     max_size=3)
    words = st.dictionaries(ids, st.dictionaries(st.just("fits"), HOSTILE, max_size=1))
    stand = st.sampled_from([{}, {"text": "listening"}, {
        "text": "loading weights", "done": 1, "total": 3, "unit": "shards"}])
    attempt = st.fixed_dictionaries({
        "at": st.just("2026-11-29T01:11:41Z"), "findings": found, "words": words,
        "progress": stand})
    return st.fixed_dictionaries({
        "name": st.just("") | NAMES, "place": HOSTILE, "unread": st.just("") | HOSTILE,
        "findings": found, "earlier": found, "words": words, "progress": stand,
        "starts": st.integers(1, 9), "lines": st.integers(0, 9),
        "attempt": st.none() | attempt})


# What ``endpoint_benchmark`` returns of endpoints, measured or not.
POINTS = st.fixed_dictionaries({
    "tool": HOSTILE, "seconds": st.floats(0, 9),
    **dict.fromkeys(("concurrency", "requests", "failed", "prompt_tokens", "output_tokens"),
                    st.integers(0, 9)),
    **dict.fromkeys(("output_tokens_per_second", "first_token_p50_s", "first_token_p99_s",
                     "per_token_p50_s"), st.none() | st.floats(0, 1e9))})
BENCHMARKS = JSON | st.fixed_dictionaries({
    "schema": st.just(1), "points": st.lists(POINTS, max_size=3),
    "notes": st.lists(HOSTILE, max_size=2),
    **dict.fromkeys(("at", "engine", "engine_version", "tool"), HOSTILE)})
MEASURED = st.lists(st.fixed_dictionaries({"name": NAMES}, optional={
    "benchmark": BENCHMARKS, "before": BENCHMARKS, "work": st.lists(HOSTILE, max_size=2),
    "findings": st.lists(FINDINGS, max_size=2), "failed": st.booleans(), "msg": HOSTILE}),
    max_size=3)
