# SPDX-License-Identifier: Apache-2.0
"""Folders of reports, as runs on fleets leave them: plans are the planner's, the rest is made up.

    python3 tests/rig/report_fleet.py FOLDER          a small fleet with everything that can be
    python3 tests/rig/report_fleet.py FOLDER 500      a fleet of so many hosts
"""

from __future__ import annotations

import copy
import functools
import pathlib
import sys

if __name__ == "__main__":
    import ansible.module_utils

    ansible.module_utils.__path__.append(
        str(pathlib.Path(__file__).resolve().parents[2] / "module_utils"))

import facts as made
import planner

from ansible.module_utils.firstlight import fleet_pages
from ansible.module_utils.firstlight.findings import finding, text
from ansible.module_utils.firstlight.planning import fleet_report

GIB = 2**30
STAGES = (("deployment_plan", 2.1), ("linker_cache", 0.6), ("network_access", 0.7),
          ("toolbelt", 0.5), ("host_health", 1.4), ("model_snapshot", 1.2),
          ("container_runtime", 1.9), ("inference_endpoint", 96.0), ("endpoint_smoke", 6.2),
          ("host_report", 0.1))
CHECKS = ("model-listed", "completion", "chat", "usage", "streaming", "repeatable", "stop",
          "structured-output", "concurrent")
BEFORE, NOW = "2026-03-02T06:00:00Z", "2026-03-03T06:00:00Z"


def stages(until="", last=0.4):
    """What a host went through, up to a stage."""
    names = [name for name, _seconds in STAGES]
    kept = STAGES[:names.index(until)] if until in names else STAGES
    return [{"name": name, "seconds": seconds} for name, seconds in kept] + (
        [{"name": until, "seconds": last}] if until else [])


def entry(state="changed", until="", task="", reason=""):
    """What became of a host in a run."""
    failed = state in ("failed", "unreachable")
    return {"state": state, "recorded": not failed, "stage": until, "task": task,
            "reason": reason, "stages": stages(until)}


@functools.lru_cache(maxsize=32)
def planned(kind, count, model, name="chat"):
    """Facts of a host and the plan of an endpoint on it."""
    facts = (made.jetson_host(cpu={"architecture": "aarch64"}) if kind == "jetson"
             else planner.cpu(64) if kind == "cpu" else planner.host(kind, count))
    entries = {"name": name, "model": planner.FOLDER + model}
    answer = planner.plan(facts, entries, state=planner.state())
    return facts, planner.only(answer)


def passport(plan, speed, first, written=BEFORE, off=1.02, benchmark=False):
    """The passport of an endpoint that was proven."""
    memory, on_gpus = plan["memory"], bool(plan["gpus"])
    seen = {}
    if on_gpus and plan["engine"] == "vllm":
        seen = {"weights_bytes": int(memory["weights_bytes"] * (2 - off)),
                "kv_bytes": int(memory["kv_bytes"] * off),
                "graph_bytes": int(memory["graph_bytes"] * 0.8),
                "kv_tokens": int(memory["kv_tokens"] * off)}
    load = 20 + plan["model"]["bytes"] / (2.1 * GIB)
    made_up = {
        "schema": 1, "endpoint": plan["name"], "written": written, "plan": plan,
        "facts": {}, "placement": {"gpus": plan["gpus"], "reason": "", "source": "nvidia-smi"},
        "service": {"manager": "docker" if plan["runtime"] == "docker" else "systemd",
                    "definition": "", "text": "", "container": None, "way_in": None},
        "memory": {"predicted_bytes": memory["total_bytes"], "observed": seen,
                   "observed_bytes": int(6.2 * GIB) if on_gpus else int(
                       memory["total_bytes"] * (off - 0.08))},
        "smoke": {"figures": {"tokens_per_second": speed, "first_token_s": first, "tokens": 64},
                  "checks": [], "findings": []},
        "phases": {"start_s": 1.4, "port_s": round(load, 2), "ready_s": round(load + 14.2, 2),
                   "listed_s": 0.01, "proof_s": 5.1},
        "attempts": [{"at": written, "plan": plan["hash"], "outcome": "proven", "findings": []}],
    }
    if benchmark:
        made_up["benchmark"] = {"schema": 1, "at": written, "tool": "vllm bench serve", "points": [
            {"concurrency": streams, "requests": 3 * streams, "failed": 0,
             "output_tokens_per_second": speed * streams * 0.82, "first_token_p50_s": first,
             "first_token_p99_s": 3 * first, "per_token_p50_s": 1 / speed}
            for streams in (1, 8, 32)]}
    return made_up


def verdict(plan, speed, first, findings=()):
    """What the last proof of an endpoint said."""
    return {"url": plan["url"], "passed": not any(
        one["severity"] in ("error", "fatal") for one in findings),
        "figures": {"tokens_per_second": speed, "first_token_s": first, "tokens": 64},
        "checks": [{"id": one, "seconds": 0.4, "passed": not any(
            "smoke-" + one == found["id"] for found in findings)} for one in CHECKS],
        "findings": list(findings)}


def keep(folder, host, facts, passports, verdicts, at, findings=()):
    """What C(host_record) writes of a host."""
    where = pathlib.Path(fleet_pages.host_folder(str(folder), host))
    path = where / "host.json"
    record = fleet_report.host_record(host, {
        "root": planner.ROOT, "facts": facts, "verdicts": verdicts, "complete": True,
        "health": {"verdict": "degraded" if findings else "ok", "findings": list(findings)},
        "endpoints": [{"name": one["endpoint"], "passport": one} for one in passports],
    }, fleet_pages.read(str(path)), at)
    for one in passports:
        fleet_pages.write(fleet_pages.passport_path(str(folder), host, one["endpoint"]),
                          fleet_pages.as_json(one))
    fleet_pages.write(str(path), fleet_pages.as_json(record))


def run(number, started, ended):
    """A run."""
    return {"id": "run-%d" % number, "playbook": "site.yml", "started": started, "ended": ended}


def small(folder):
    """A fleet of eight in which all that can be is, after two runs."""
    hosts = {
        "a100-01.example.org": ("a100-40", 8, "Llama-3.1-70B", 38.4, 0.182),
        "a100-02.example.org": ("a100-40", 8, "Llama-3.1-70B", 38.1, 0.185),
        "h100-01.example.org": ("h100", 2, "Qwen3-30B-A3B", 141.7, 0.048),
        "orin-01.example.org": ("jetson", 1, "Qwen2.5-7B.gguf", 14.2, 0.61),
        "cpu-01.example.org": ("cpu", 0, "Qwen2.5-0.5B.gguf", 42.0, 0.12),
        "l40s-old.example.org": ("l40s", 4, "Mistral-7B-v0.1", 61.0, 0.07),
    }
    made_of = {}
    for host, (kind, count, model, speed, first) in hosts.items():
        facts, plan = planned(kind, count, model)
        made_of[host] = (facts, plan, passport(
            plan, speed, first, benchmark=host.startswith("h100")), speed, first)
        keep(folder, host, facts, [made_of[host][2]], [verdict(plan, speed, first)], BEFORE)
    entries = {host: entry() for host in (*hosts, "a100-03.example.org", "gpu-lost.example.org")}
    for host in ("a100-03.example.org", "gpu-lost.example.org"):
        facts, plan, kept, speed, first = made_of["a100-01.example.org"]
        keep(folder, host, facts, [kept], [verdict(plan, speed, first)], BEFORE)
    del entries["l40s-old.example.org"]
    fleet_pages.keep_run(str(folder), run(0, "2026-02-10T06:00:00Z", "2026-02-10T06:02:00Z"),
                         {"l40s-old.example.org": entry("ok")})
    fleet_pages.keep_run(str(folder), run(1, "2026-03-02T05:57:40Z", BEFORE), entries)

    # Of the second run: a newer driver and engine, one that got slow, one with an old driver.
    facts, plan, kept, speed, first = copy.deepcopy(made_of["h100-01.example.org"])
    facts["driver"]["version"], plan["hash"] = "580.195.03", "9e" * 32
    plan["engine_version"] = "0.33.0"
    keep(folder, "h100-01.example.org", facts,
         [passport(plan, 176.3, 0.041, NOW, benchmark=True)], [verdict(plan, 176.3, 0.041)], NOW)
    facts, plan, kept, speed, first = made_of["a100-02.example.org"]
    slow = finding(
        "smoke-speed", "endpoint chat", "11.9 tokens/s in one stream", "at least 20 tokens/s",
        "look at what else uses these GPUs (nvidia-smi), then prove it again with "
        "--tags endpoint_smoke", "error", evidence="64 tokens in 5.38 s")
    hot = finding(
        "gpu-throttled", facts["devices"][3]["uuid"], "it slows down for its temperature, 91 C",
        "below 85 C", "look at the fans and at the air in front of the machine", "warning",
        evidence="NVML: clocks event reasons sw_thermal_slowdown", source="NVIDIA NVML reference")
    keep(folder, "a100-02.example.org", facts, [kept], [verdict(plan, 11.9, 0.71, [slow])], NOW,
         [hot])
    for host in ("a100-01.example.org", "orin-01.example.org", "cpu-01.example.org"):
        facts, plan, kept, speed, first = made_of[host]
        keep(folder, host, facts, [kept], [verdict(plan, speed * 1.03, first)], NOW)
    stale = finding(
        "nvml-18", "driver", "NVML error 18: the driver's library is 580.195.03, its kernel module "
        "570.124.06", "one version of both", "restart the machine, so that the kernel module of "
        "the installed driver is loaded", evidence="/proc/driver/nvidia/version", needs_root=True)
    entries = {host: entry("ok") for host in hosts}
    del entries["l40s-old.example.org"]
    entries["h100-01.example.org"] = entry("changed")
    entries["a100-03.example.org"] = entry(
        "failed", "deployment_plan", "Stop at a host that is bad",
        "The host is bad:\n" + text([stale]))
    entries["gpu-lost.example.org"] = entry(
        "unreachable", "deployment_plan", "Look at what serves on the host",
        "Failed to connect to the host via ssh: ssh: connect to host 192.0.2.17 port 22: "
        "Connection timed out")
    fleet_pages.keep_run(str(folder), run(2, "2026-03-03T05:57:12Z", NOW), entries)
    # The pages as they were made then, not now.
    report = fleet_report.fleet_report(fleet_pages.read_all(str(folder)), NOW)
    for name, content in fleet_pages.rendered(report).items():
        fleet_pages.write(str(pathlib.Path(folder) / name), content)
    return report


def many(folder, count):
    """A fleet of so many hosts: most are proven, some failed; three of four have eight GPUs."""
    kinds = [("a100-40", 8, "Llama-3.1-70B", 38.4), ("h100", 8, "Llama-3.1-70B", 71.0),
             ("l40s", 4, "Mistral-7B-v0.1", 61.0), ("cpu", 0, "Qwen2.5-0.5B.gguf", 42.0)]
    entries = {}
    for number in range(count):
        kind, gpus, model, speed = kinds[number % 4]
        host = "gpu-%04d.example.org" % number
        if number % 50 == 7:
            entries[host] = entry("failed", "container_runtime", "Bring the engine",
                                  "no space left on device")
            continue
        facts, plan = planned(kind, gpus, model)
        found = [finding("gpu-throttled", "GPU 3", "91 C", "below 85 C", "look at the fans",
                         "warning")] if number % 10 == 3 else []
        keep(folder, host, facts, [passport(plan, speed + number % 7, 0.1)],
             [verdict(plan, speed + number % 7, 0.1)], NOW, found)
        entries[host] = entry("ok")
    return fleet_pages.keep_run(str(folder), run(1, "2026-03-03T05:47:12Z", NOW), entries)


if __name__ == "__main__":
    report = many(sys.argv[1], int(sys.argv[2])) if len(sys.argv) > 2 else small(sys.argv[1])
    print({state: number for state, number in report["totals"]["states"].items() if number})
