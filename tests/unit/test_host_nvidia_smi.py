# SPDX-License-Identifier: Apache-2.0
"""What nvidia-smi printed on real machines is read as it was meant, and nothing is made up."""

from __future__ import annotations

import re

import pytest
import transcripts

from ansible.module_utils.firstlight.host import nvidia_smi
from ansible.module_utils.firstlight.host.reading import Reader

MIB = 2**20
TOOL = nvidia_smi.Tool(["nvidia-smi"], "nvidia-smi")
BUSY = "h100-x2/nvidia-smi-busy.yml"
QUERY = ["nvidia-smi", *nvidia_smi.QUERY]
CAPABILITIES = ["nvidia-smi", *nvidia_smi.CAPABILITIES]
TOPOLOGY = ["nvidia-smi", *nvidia_smi.TOPOLOGY]


@pytest.fixture
def read(replay, tmp_path):
    """Read what these transcripts, with later calls in the place of earlier ones, tell."""

    def done(*sources):
        replay(*sources)
        reader = Reader(str(tmp_path))
        return reader, nvidia_smi.read(reader, TOOL)

    return done


def changed(*pairs):
    """The recorded log with texts of its first device changed."""
    (text,) = [one["stdout"] for one in transcripts.calls_of(BUSY) if one["argv"] == QUERY]
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new, 1)
    return {"argv": QUERY, "rc": 0, "stdout": text, "stderr": ""}


def test_two_real_cards_one_of_them_busy(read):
    reader, (driver, found) = read(BUSY)
    assert driver == {"version": "580.159.04", "cuda": "13.0", "nvml": None}
    first, second = found
    uuids = ["GPU-38f55816-aa27-1157-5e2a-ec011513d1a4", "GPU-395bfe73-23fc-dbc1-63b2-f51835f635d4"]
    assert [one["uuid"] for one in found] == uuids
    assert first["name"] == "NVIDIA H100 80GB HBM3"
    assert first["bus_id"] == "0000:00:06.0"
    assert (first["architecture"], first["capability"]) == ("hopper", "9.0")
    assert first["unified_memory"] is False
    assert second["memory_total_bytes"] == 81559 * MIB
    assert second["memory_free_bytes"] > first["memory_free_bytes"]
    # No process 639 is seen from here: the tool's own name for it stands.
    assert first["holders"] == [{"pid": 639, "command": "python3", "user": None,
                                 "bytes": 10758 * MIB, "kind": "compute", "gpu_instance": None}]
    assert second["holders"] == []
    assert first["mig"] == {"enabled": False, "pending": False, "slices": []}
    assert first["ecc"] == {
        "enabled": True, "pending": True, "corrected_volatile": 0, "uncorrected_volatile": 0,
        "corrected_aggregate": 0, "uncorrected_aggregate": 0}
    assert first["remapped_rows"] == {"correctable": 0, "uncorrectable": 0, "pending": False,
                                      "failed": False}
    assert first["fabric"] == {"state": "completed", "status": "success", "clique_id": 0,
                               "cluster_uuid": "00000000-0000-0000-0000-000000000000"}
    assert (first["persistence"], first["compute_mode"]) == (True, "default")
    assert first["recovery_action"] == "none"
    assert second["throttle_reasons"] == ["gpu_idle"]
    assert first["nvlink"]["peers"] == uuids[1:]
    assert [one["nvlink"]["clique"] for one in found] == [0, 0]
    # What these cards do not have, and what the tool does not tell.
    assert first["retired_pages_pending"] is None
    assert reader.unread["devices[0].retired_pages_pending"]["code"] == "nvml-3"
    assert reader.unread["devices[0].nvlink.active"]["code"] == "unasked"
    assert reader.sources["devices"] == "nvidia-smi"


@pytest.mark.parametrize(("old", "new", "path", "code"), [
    ("<total>81559 MiB</total>", "<total>N/A</total>", "memory_total_bytes", "nvml-3"),
    ("<total>81559 MiB</total>", "<total>[GPU is lost]</total>", "memory_total_bytes", "nvml-15"),
    ("<total>81559 MiB</total>", "<total>[GPU requires reset]</total>", "memory_total_bytes",
     "nvml-16"),
    ("<total>81559 MiB</total>", "<total>[Unknown Error]</total>", "memory_total_bytes",
     "nvml-999"),
    ("<total>81559 MiB</total>", "<total>some</total>", "memory_total_bytes", "unknown"),
    ("<total>81559 MiB</total>", "", "memory_total_bytes", "absent"),
    ("<gpu_util>0 %</gpu_util>", "<gpu_util>N/A</gpu_util>", "utilisation_percent", "nvml-3"),
    ("<current_ecc>Enabled</current_ecc>", "<current_ecc>N/A</current_ecc>", "ecc", "nvml-3"),
    ("<dram_correctable>0</dram_correctable>", "<dram_correctable>N/A</dram_correctable>",
     "ecc.corrected_volatile", "nvml-3"),
    ("<remapped_row_pending>No<", "<remapped_row_pending>N/A<", "remapped_rows", "nvml-3"),
    ("<current_mig>Disabled<", "<current_mig>N/A<", "mig", "nvml-3"),
    ("<compute_mode>Default<", "<compute_mode>Odd<", "compute_mode", "unknown"),
    ("<persistence_mode>Enabled<", "<persistence_mode>[Insufficient Permissions]<", "persistence",
     "nvml-4"),
])
def test_what_it_does_not_tell_is_null_with_the_reason_and_never_0(read, old, new, path, code):
    reader, (_, found) = read(BUSY, changed((old, new)))
    value = found[0]
    for key in path.split("."):
        value = value[key]
    assert value is None
    assert reader.unread["devices[0]." + path]["code"] == code
    assert "devices[1]." + path not in reader.unread


def test_a_holder_without_a_number_has_none(read):
    reader, (_, found) = read(BUSY, changed(("<pid>639</pid>", "<pid>N/A</pid>")))
    (holder,) = found[0]["holders"]
    assert holder["pid"] is None and holder["command"] == "python3" and holder["bytes"]
    assert reader.unread["devices[0].holders[0].pid"]["code"] == "nvml-3"


def test_a_card_without_memory_of_its_own_is_told_by_it(read):
    _, (_, found) = read(BUSY, changed(("<total>81559 MiB</total>", "<total>N/A</total>")))
    assert [one["unified_memory"] for one in found] == [True, False]


def test_errors_that_were_not_corrected_are_added_up(read):
    _, (_, found) = read(BUSY, changed(
        ("<sram_uncorrectable_parity>0<", "<sram_uncorrectable_parity>2<"),
        ("<dram_uncorrectable>0<", "<dram_uncorrectable>3<")))
    assert found[0]["ecc"]["uncorrected_volatile"] == 5
    assert found[0]["ecc"]["uncorrected_aggregate"] == 0


MIG_DEVICE = """<mig_devices><mig_device><index>0</index><gpu_instance_id>1</gpu_instance_id>
<compute_instance_id>0</compute_instance_id><uuid>MIG-1</uuid><fb_memory_usage>
<total>20096 MiB</total><free>20000 MiB</free></fb_memory_usage></mig_device></mig_devices>"""


def test_slices_are_read(read):
    _, (_, found) = read(BUSY, changed(("<current_mig>Disabled<", "<current_mig>Enabled<"), (
        re.search(r"<mig_devices>.*?</mig_devices>", changed()["stdout"], re.DOTALL).group(0),
        MIG_DEVICE)))
    assert found[0]["mig"] == {"enabled": True, "pending": False, "slices": [
        {"uuid": "MIG-1", "name": None, "gpu_instance": 1, "compute_instance": 0,
         "memory_total_bytes": 20096 * MIB, "memory_free_bytes": 20000 * MIB}]}


@pytest.mark.parametrize(("stdout", "code"), [
    ("Failed to initialize NVML: Driver/library version mismatch\n", "nvml-18"),
    ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", "nvml-9"),
    ("Failed to initialize NVML: Insufficient Permissions\n", "nvml-4"),
    ("Failed to initialize NVML: Unknown Error\n", "nvml-999"),
    ("Unable to determine the device handle for GPU0000:41:00.0: GPU is lost.\n", "nvml-15"),
    ("No devices were found\n", "absent"),
])
def test_what_it_says_in_the_place_of_a_log_is_the_reason(read, stdout, code):
    reader, told = read({"argv": QUERY, "rc": 9, "stdout": stdout, "stderr": ""})
    assert told is None
    assert reader.unread["nvidia-smi"]["code"] == code
    assert stdout.strip() in reader.unread["nvidia-smi"]["reason"]


@pytest.mark.parametrize(("call", "code"), [
    ({"times_out": True}, "timeout"), ({"cannot_start": "ENOENT"}, "absent"),
    ({"rc": 0, "stdout": "<nvidia_smi_log><gpu", "stderr": ""}, "unknown")])
def test_a_tool_that_gives_no_log_leaves_its_reason(read, call, code):
    reader, told = read(dict(call, argv=QUERY))
    assert told is None
    assert reader.unread["nvidia-smi"]["code"] == code


@pytest.mark.parametrize("argv", [CAPABILITIES, TOPOLOGY])
def test_the_other_two_questions_may_fail_alone(read, argv):
    reader, (_, found) = read(BUSY, {"argv": argv, "rc": 2, "stdout": "", "stderr": "no such"})
    label, key = (("devices[0].capability", "capability") if argv == CAPABILITIES
                  else ("devices[0].nvlink", "nvlink"))
    assert found[0][key] is None
    assert found[0]["uuid"] is not None
    assert "no such" in reader.unread[label]["reason"]


def test_cards_without_links_are_each_alone(read):
    (matrix,) = [one["stdout"] for one in transcripts.calls_of(BUSY) if one["argv"] == TOPOLOGY]
    _, (_, found) = read(BUSY, {"argv": TOPOLOGY, "rc": 0, "stderr": "",
                                "stdout": matrix.replace("NV18", "SYS")})
    assert [one["nvlink"]["peers"] for one in found] == [[], []]
    assert [one["nvlink"]["clique"] for one in found] == [0, 1]


def test_a_run_in_a_container_past_its_limit_leaves_no_container(replay, tmp_path):
    made = replay({"argv": ["docker", "run", *nvidia_smi.QUERY], "times_out": True},
                  {"argv": ["docker", "rm"], "rc": 0, "stdout": "", "stderr": ""}, ordered=True)
    tool = nvidia_smi.Tool(["docker", "run"], "in a container", ["docker", "rm"])
    assert nvidia_smi.read(Reader(str(tmp_path)), tool) is None
    assert made.made[-1] == ["docker", "rm"]
