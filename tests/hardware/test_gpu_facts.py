# SPDX-License-Identifier: Apache-2.0
"""On a machine with NVIDIA GPUs: what we say of them is what nvidia-smi says (`make test-gpu`).

The log of nvidia-smi is read here once more and in another way than the module's own fallback
reads it, so that the two cannot be wrong together.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import gpu_facts
import pytest
import yaml

from ansible.module_utils.firstlight.host import nvidia_smi
from ansible.module_utils.firstlight.host.reading import Reader
from ansible.module_utils.firstlight.planning import devices as choice
from ansible.module_utils.firstlight.planning import health

pytestmark = pytest.mark.skipif(shutil.which("nvidia-smi") is None,
                                reason="this machine has no nvidia-smi")
MIB = 2**20
NOTHING = ("N/A", "Not Supported")
HOLD = """
import sys, torch
held = torch.empty(int(sys.argv[1]), dtype=torch.uint8, device="cuda:0")
held.zero_()
torch.cuda.synchronize()
print("held", flush=True)
sys.stdin.readline()
"""


def mib(text):
    return int(text.split()[0])


def yes(text):
    return {"Enabled": True, "Yes": True, "Disabled": False, "No": False}[text]


def leading(text):
    return int(text.split()[0])


# Figure of ours, element of the log, how its text is to be understood.
SAME = [
    ("uuid", "uuid", str),
    ("name", "product_name", str),
    ("architecture", "product_architecture", str.lower),
    ("compute_mode", "compute_mode", str.lower),
    ("persistence", "persistence_mode", yes),
    ("mig.enabled", "mig_mode/current_mig", yes),
    ("mig.pending", "mig_mode/pending_mig", yes),
    ("ecc.enabled", "ecc_mode/current_ecc", yes),
    ("ecc.pending", "ecc_mode/pending_ecc", yes),
    ("remapped_rows.correctable", "remapped_rows/remapped_row_corr", leading),
    ("remapped_rows.uncorrectable", "remapped_rows/remapped_row_unc", leading),
    ("remapped_rows.pending", "remapped_rows/remapped_row_pending", yes),
    ("remapped_rows.failed", "remapped_rows/remapped_row_failure", yes),
    ("retired_pages_pending", "retired_pages/pending_retirement", yes),
    ("fabric.state", "fabric/state", lambda text: text.lower().replace(" ", "_")),
    ("fabric.status", "fabric/status", str.lower),
    ("fabric.clique_id", "fabric/cliqueId", int),
    ("fabric.cluster_uuid", "fabric/clusterUuid", str),
    ("recovery_action", "gpu_recovery_action", lambda text: text.lower().replace(" ", "_")),
]


@pytest.fixture
def facts(run_module):
    result = run_module(gpu_facts.main)
    # The whole JSON, for whoever wants to read it: pytest -s.
    print(json.dumps(result, indent=1, sort_keys=True))
    return result["ansible_facts"]["gpu_host"]


@pytest.fixture
def log():
    return ElementTree.fromstring(subprocess.run(
        ["nvidia-smi", "-q", "-x"], check=True, stdout=subprocess.PIPE).stdout)


def figure(device, path):
    value = device
    for key in path.split("."):
        value = None if value is None else value[key]
    return value


def test_every_figure_is_that_of_nvidia_smi(facts, log):
    gpus = log.findall("gpu")
    assert len(facts["devices"]) == len(gpus) > 0
    assert facts["driver"]["version"] == log.findtext("driver_version")
    assert facts["driver"]["kernel_module"] == log.findtext("driver_version")
    assert facts["driver"]["cuda"] == log.findtext("cuda_version")
    compared = []
    for device, gpu in zip(facts["devices"], gpus):
        assert device["bus_id"] == gpu.get("id").lower()[4:]
        for path, element, understood in SAME:
            text = (gpu.findtext(element) or "").strip()
            wanted = None if text in NOTHING else understood(text)
            assert figure(device, path) == wanted, (path, text)
            compared.append((path, text, figure(device, path)))
        for key, name in (("total", "total"), ("free", "free"), ("reserved", "reserved")):
            ours = device["memory_%s_bytes" % key]
            # nvidia-smi rounds to MiB, up or down by the figure.
            theirs = mib(gpu.findtext("fb_memory_usage/" + name))
            assert abs(ours - theirs * MIB) <= MIB, (key, ours, theirs)
            compared.append((key, theirs, ours))
        assert abs(device["temperature_c"] - leading(gpu.findtext("temperature/gpu_temp"))) <= 5
        wrong = sum(int(one.text) for one in gpu.findall("ecc_errors/volatile/*")
                    if "uncorrectable" in one.tag)
        assert device["ecc"]["uncorrected_volatile"] == wrong
    print("compared", len(compared), "figures:", *compared, sep="\n")


def test_capabilities_and_peers_are_those_of_nvidia_smi(facts):
    said = subprocess.run(["nvidia-smi", "--query-gpu=uuid,compute_cap", "--format=csv,noheader"],
                          check=True, stdout=subprocess.PIPE, text=True).stdout
    assert {one["uuid"]: one["capability"] for one in facts["devices"]} == dict(
        line.split(", ") for line in said.splitlines())
    matrix = re.sub(r"\x1b\[[0-9;]*m", "", subprocess.run(
        ["nvidia-smi", "topo", "-m"], check=True, stdout=subprocess.PIPE, text=True).stdout)
    for device in facts["devices"]:
        row = re.search(r"^GPU%d\t(.*)" % device["index"], matrix, re.MULTILINE).group(1)
        linked = [other["uuid"] for other, cell in zip(facts["devices"], row.split("\t"))
                  if cell.strip().startswith("NV")]
        assert ((device["nvlink"] or {}).get("peers") or []) == linked


def test_no_figure_is_null_without_a_reason(facts):
    labels = set(facts["unread"])
    for device in facts["devices"]:
        for key, value in device.items():
            label = "devices[%d].%s" % (device["index"], key)
            assert value is not None or label in labels, label


def test_without_bindings_nvidia_smi_tells_the_same(facts):
    reader = Reader()
    driver, devices = nvidia_smi.read(reader, nvidia_smi.on_host())
    assert driver["version"] == facts["driver"]["version"]
    assert driver["cuda"] == facts["driver"]["cuda"]
    # Load and heat move, NVML alone tells of links, the rest must be the same but for rounding.
    moving = {"utilisation_percent", "temperature_c", "throttle_reasons", "nvlink", "numa_node",
              "cpu_list", "xids"}
    for ours, theirs in zip(facts["devices"], devices):
        for key in set(ours) - moving:
            if key.startswith("memory_") and ours[key] is not None:
                assert abs(ours[key] - theirs[key]) <= MIB, key
            else:
                assert ours[key] == theirs[key], key
        assert ((ours["nvlink"] or {}).get("peers") or []) == (
            (theirs["nvlink"] or {}).get("peers") or [])


def test_who_holds_memory_is_named_and_the_device_is_not_chosen(run_module, repository):
    torch = pytest.importorskip("torch", reason="torch is what holds the memory here")
    held = int(torch.cuda.mem_get_info(0)[0] * 0.72)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(held), "--api-key", "sk-abcdefgh1"],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        facts = run_module(gpu_facts.main)["ansible_facts"]["gpu_host"]
        (named,) = [one for one in facts["devices"][0]["holders"] if one["pid"] == holder.pid]
        print("holder:", named)
        assert named["bytes"] >= held
        assert named["kind"] == "compute"
        assert "sk-abcdefgh1" not in named["command"]
        catalog = {name: yaml.safe_load((repository / "catalog" / (name + ".yml")).read_text())
                   for name in ("xid_events", "nvml_errors", "health_limits", "jetson_releases",
                                "jetson_chips")}
        judged = health.host_health(facts, catalog)
        print("health:", json.dumps(judged, indent=1))
        wanted = {"where": "inference_endpoints[0] (chat)", "name": "chat",
                  "count": len(facts["devices"]), "uuids": [], "tensor_parallel": False,
                  "memory_bytes": 0, "share": False, "keep": []}
        chosen = choice.select_devices(facts, wanted, judged)
        print("choice:", json.dumps(chosen, indent=1))
        assert chosen["devices"] == []
        assert str(holder.pid) in chosen["refusals"][0]["found"]
        if len(facts["devices"]) > 1:
            fewer = choice.select_devices(facts, dict(wanted, count=1), judged)
            assert fewer["devices"] and facts["devices"][0]["uuid"] not in fewer["devices"]
    finally:
        holder.stdin.write("\n")
        holder.stdin.close()
        holder.wait(60)
