# SPDX-License-Identifier: Apache-2.0
"""Each reader of a host's places: the PCI bus, the kernel's log, daemons, containers, memory."""

from __future__ import annotations

import http.server
import json
import os
import socketserver
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible.module_utils.firstlight.host import (
    containers,
    daemons,
    devices,
    kernel_log,
    machine,
    pci,
)
from ansible.module_utils.firstlight.host.reading import Reader


@pytest.fixture
def reader_of(tmp_path):
    """A reader of a host that has these files."""

    def made(files=(), folders=()):
        for name in folders:
            (tmp_path / "host" / name.lstrip("/")).mkdir(parents=True, exist_ok=True)
        for name, content in dict(files).items():
            path = tmp_path / "host" / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return Reader(str(tmp_path / "host"))

    return made


# --- The PCI bus ----------------------------------------------------------------------------


def card(bus_id, vendor, kind, device="0x1234"):
    folder = "/sys/bus/pci/devices/%s/" % bus_id
    return {folder + "vendor": vendor + "\n", folder + "class": kind + "\n",
            folder + "device": device + "\n"}


def test_cards_and_switches_are_told_apart(reader_of):
    bus = pci.read(reader_of({
        **card("0000:01:00.0", "0x10de", "0x030200"),
        **card("0000:01:00.1", "0x10de", "0x040300"),  # the sound of a card
        **card("0000:02:00.0", "0x10de", "0x068000"),
        **card("0000:03:00.0", "0x1002", "0x120000", "0x74a1"),
        **card("0000:04:00.0", "0x8086", "0x030000", "0x56a0"),
        **card("0000:05:00.0", "0x1a03", "0x030000"),  # the console of a server
    }))
    assert bus.nvidia == ["0000:01:00.0"]
    assert bus.nvswitches == ["0000:02:00.0"]
    assert bus.others == [
        {"vendor": "AMD", "bus_id": "0000:03:00.0", "device": "0x74a1"},
        {"vendor": "Intel", "bus_id": "0000:04:00.0", "device": "0x56a0"}]


def test_a_host_without_a_bus_has_no_cards(reader_of):
    assert pci.read(reader_of()) == ([], [], [])


@pytest.mark.parametrize(("said", "wanted"), [
    ("00000000:2B:00.0", "0000:2b:00.0"), ("0000:2b:00.0", "0000:2b:00.0"),
    ("00010000:01:00.0", "10000:01:00.0"), ("0001:01:00.0", "0001:01:00.0"),
    ("", None), ("N/A", None), ("????:??:??.?", None), ("0000:2b:00.0/../x", None)])
def test_addresses_are_those_of_sysfs(said, wanted):
    assert devices.bus_id(said) == wanted


# --- NVLink cliques -------------------------------------------------------------------------


@pytest.mark.parametrize(("peers", "wanted"), [
    ([], []),
    ([set(), set()], [0, 1]),
    ([{1}, {0}, {3}, {2}], [0, 0, 1, 1]),
    ([{1, 2, 3}, {0, 2, 3}, {0, 1, 3}, {0, 1, 2}], [0, 0, 0, 0]),
    # the hybrid cube mesh of eight V100s: two blocks of four, and a link from each to its twin
    ([{1, 2, 3, 4}, {0, 2, 3, 5}, {0, 1, 3, 6}, {0, 1, 2, 7},
      {5, 6, 7, 0}, {4, 6, 7, 1}, {4, 5, 7, 2}, {4, 5, 6, 3}], [0, 0, 0, 0, 1, 1, 1, 1]),
])
def test_in_a_clique_all_are_peers_of_each_other(peers, wanted):
    assert devices.cliques(peers) == wanted


@given(st.integers(0, 8).flatmap(lambda size: st.sets(st.tuples(
    st.integers(0, max(size - 1, 0)), st.integers(0, max(size - 1, 0)))).map(
        lambda pairs: [{b for a, b in {*pairs, *((b, a) for a, b in pairs)}
                        if a == one and b != one} for one in range(size)])))
def test_whatever_the_wiring_a_clique_is_one(peers):
    numbers = devices.cliques(peers)
    assert len(numbers) == len(peers)
    for one, own in enumerate(peers):
        assert all(other in own for other in range(len(peers))
                   if other != one and numbers[other] == numbers[one])


# --- NUMA -----------------------------------------------------------------------------------

PLACE = "/sys/bus/pci/devices/0000:41:00.0/"


def placed(reader, bus_id="0000:41:00.0"):
    device = dict.fromkeys(devices.KEYS)
    device.update(index=3, bus_id=bus_id)
    devices.place(reader, device)
    return device


def test_the_node_and_the_processors_near_a_device(reader_of):
    reader = reader_of({PLACE + "numa_node": "1\n", PLACE + "local_cpulist": "64-127\n"})
    device = placed(reader)
    assert (device["numa_node"], device["cpu_list"]) == (1, "64-127")
    assert reader.sources["devices[3].numa_node"] == PLACE + "numa_node"
    assert reader.unread == {}


def test_a_node_of_minus_one_is_no_node_and_not_node_0(reader_of):
    reader = reader_of({PLACE + "numa_node": "-1\n", PLACE + "local_cpulist": "0-31\n"})
    device = placed(reader)
    assert device["numa_node"] is None
    assert reader.unread["devices[3].numa_node"]["code"] == "unknown"
    assert "-1" in reader.unread["devices[3].numa_node"]["reason"]


@pytest.mark.parametrize(("bus_id", "code"), [("0000:41:00.0", "enoent"), (None, "unasked")])
def test_a_place_that_cannot_be_read_has_its_reason(reader_of, bus_id, code):
    reader = reader_of()
    device = placed(reader, bus_id)
    assert device["numa_node"] is None and device["cpu_list"] is None
    assert {one["code"] for one in reader.unread.values()} == {code}


# --- The kernel's log -----------------------------------------------------------------------

LOG = (
    "6,1,1000000,-;NVRM: loading NVIDIA UNIX Open Kernel Module\n"
    "4,2,5000000,-;NVRM: Xid (PCI:0000:41:00): 31, pid=1234, name=python, Ch 00000010\n"
    " SUBSYSTEM=pci\n DEVICE=+pci:0000:41:00.0\n"
    "4,3,9000000,-;NVRM: Xid (PCI:0000:C1:00 GPU-I:05): 79, GPU has fallen off the bus.\n"
    "4,4,9500000,-;NVRM: Xid (PCI:0000:41:00): 31, pid=99, name=python, Ch 00000010\n")
UPTIME = {"/proc/uptime": "100.50 350.00\n"}


def test_events_are_read_once_each_with_their_age(reader_of):
    reader = reader_of({**UPTIME, "/dev/kmsg": LOG})
    assert kernel_log.xids(reader) == [
        {"bus_id": "0000:c1:00", "code": 79, "count": 1, "age_s": 91,
         "text": "GPU has fallen off the bus."},
        {"bus_id": "0000:41:00", "code": 31, "count": 2, "age_s": 91,
         "text": "pid=99, name=python, Ch 00000010"}]
    assert reader.sources["xids"] == "/dev/kmsg"


def test_a_device_gets_its_events_and_the_others_are_orphans(reader_of):
    reader = reader_of({**UPTIME, "/dev/kmsg": LOG})
    found = [{"index": 0, "bus_id": "0000:41:00.0"}, {"index": 1, "bus_id": None}]
    orphans = kernel_log.share_out(reader, found, kernel_log.xids(reader))
    assert [one["code"] for one in found[0]["xids"]] == [31]
    assert found[1]["xids"] == []
    assert [one["bus_id"] for one in orphans] == ["0000:c1:00"]
    assert set(reader.sources) == {"orphan_xids", "devices[0].xids", "devices[1].xids"}


def test_the_real_log_of_this_machine_is_read_to_its_end_and_not_waited_for():
    reader = Reader()
    events = kernel_log.xids(reader)
    assert events is not None or reader.unread["xids"]["reason"]


JOURNAL = [
    {"_SOURCE_MONOTONIC_TIMESTAMP": "9000000", "MESSAGE":
     "NVRM: Xid (PCI:0000:c1:00): 79, GPU has fallen off the bus."},
    {"__MONOTONIC_TIMESTAMP": "10500000", "MESSAGE": "NVRM: Xid (PCI:0000:c1:00): 154, again"},
    {"MESSAGE": "no time"}, ["no record"]]


def test_where_the_ring_buffer_is_closed_the_journal_is_read(reader_of, replay):
    replay({"argv": kernel_log.JOURNAL, "rc": 0, "stderr": "",
            "stdout": "\n".join(json.dumps(one) for one in JOURNAL) + "\nbroken\n"})
    reader = reader_of(UPTIME)
    assert [(one["code"], one["age_s"]) for one in kernel_log.xids(reader)] == [
        (79, 91), (154, 90)]
    assert reader.sources["xids"] == "journalctl --dmesg"
    assert reader.unread == {}


def test_a_journal_without_an_event_is_an_answer(reader_of, replay):
    replay({"argv": kernel_log.JOURNAL, "rc": 0, "stderr": "", "stdout": json.dumps(
        {"__MONOTONIC_TIMESTAMP": "1", "MESSAGE": "Linux version 6.1"})})
    assert kernel_log.xids(reader_of(UPTIME)) == []


@pytest.mark.parametrize("call", [
    {"cannot_start": "ENOENT"}, {"times_out": True},
    {"rc": 1, "stdout": "", "stderr": "No journal files were opened due to insufficient "
     "permissions.\n"},
    {"rc": 0, "stdout": "-- No entries --\n", "stderr": ""}, {"rc": 0, "stdout": "", "stderr": ""}])
def test_a_log_that_nobody_may_read_is_null_with_both_reasons(reader_of, replay, call):
    replay(dict(call, argv=kernel_log.JOURNAL))
    reader = reader_of(UPTIME)
    found = [{"index": 0, "bus_id": "0000:41:00.0", "xids": None}]
    assert kernel_log.share_out(reader, found, kernel_log.xids(reader)) is None
    assert found[0]["xids"] is None
    assert set(reader.unread) == {"orphan_xids", "devices[0].xids"}
    for label in ("orphan_xids", "devices[0].xids"):
        assert reader.unread[label]["code"] == "enoent"
        assert "/dev/kmsg" in reader.unread[label]["reason"]
        assert "journal" in reader.unread[label]["reason"]


# --- The driver's daemons -------------------------------------------------------------------

SYSTEMD = ["/run/systemd/system"]
UNITS = ("Id=nvidia-fabricmanager.service\nLoadState=%s\nActiveState=%s\nUnitFileState=%s\n\n"
         "Id=nvidia-persistenced.service\nLoadState=loaded\nActiveState=active\n"
         "UnitFileState=enabled-runtime\n")


def show(*manager):
    return {"argv": daemons.SHOW, "rc": 0, "stderr": "", "stdout": UNITS % manager}


def test_the_daemons_and_the_fabric_managers_version(reader_of, replay):
    replay(show("loaded", "failed", "disabled"),
           {"argv": daemons.FABRIC_MANAGER_VERSION, "rc": 0, "stderr": "",
            "stdout": "Fabric Manager version is : 550.54.14\n"})
    reader = reader_of(folders=SYSTEMD)
    assert daemons.read(reader, nvswitches=6) == {
        "fabric_manager": {"state": "failed", "enabled": False, "version": "550.54.14"},
        "persistence_daemon": {"state": "active", "enabled": True}}
    assert reader.unread == {}


def test_a_manager_that_is_not_installed_is_not_asked_for_its_version(reader_of, replay):
    replay(show("not-found", "inactive", ""))
    reader = reader_of(folders=SYSTEMD)
    assert daemons.read(reader, nvswitches=6)["fabric_manager"] == {
        "state": "not-found", "enabled": False, "version": None}
    assert reader.unread["fabric_manager.version"]["code"] == "absent"


def test_without_nvswitches_nobody_needs_a_fabric_manager(reader_of, replay):
    replay(show("loaded", "active", "enabled"))
    reader = reader_of(folders=SYSTEMD)
    assert daemons.read(reader, nvswitches=0)["fabric_manager"] is None
    assert reader.unread == {}


@pytest.mark.parametrize(("folders", "call", "code"), [
    ([], {"rc": 0, "stdout": "", "stderr": ""}, "absent"),
    (SYSTEMD, {"rc": 1, "stdout": "", "stderr": "Failed to connect to bus"}, "unknown")])
def test_daemons_that_cannot_be_asked_for_are_null_with_the_reason(
        reader_of, replay, folders, call, code):
    replay(dict(call, argv=daemons.SHOW))
    reader = reader_of(folders=folders)
    assert daemons.read(reader, nvswitches=6) == {
        "fabric_manager": None, "persistence_daemon": None}
    assert {label: one["code"] for label, one in reader.unread.items()} == {
        "fabric_manager": code, "persistence_daemon": code}


def test_a_version_that_is_not_told_is_null_with_the_reason(reader_of, replay):
    replay(show("loaded", "active", "enabled"),
           {"argv": daemons.FABRIC_MANAGER_VERSION, "cannot_start": "ENOENT"})
    reader = reader_of(folders=SYSTEMD)
    assert daemons.read(reader, nvswitches=1)["fabric_manager"]["version"] is None
    assert "nv-fabricmanager" in reader.unread["fabric_manager.version"]["reason"]


# --- The container engine -------------------------------------------------------------------

VERSION = {"Version": "28.2.2", "ApiVersion": "1.50"}
INFO = {"CgroupDriver": "systemd", "CgroupVersion": "2", "DefaultRuntime": "runc",
        "Runtimes": {"runc": {}, "nvidia": {}},
        "DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=all"},
                              {"Source": "cdi", "ID": "nvidia.com/gpu=0"}]}


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    """A Docker daemon, as far as its socket and two of its answers go."""
    # The path of a unix socket is short.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    answers = {"/version": VERSION, "/info": INFO}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            said = answers.get(self.path)
            body = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(200 if said is not None else 500)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def address_string(self):
            return "unix"

        def log_message(self, *_):
            pass

    server = socketserver.ThreadingUnixStreamServer("run/docker.sock", Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield answers
    server.shutdown()
    server.server_close()
    thread.join()


def test_docker_is_asked_over_its_socket(daemon):
    reader = Reader(".")
    assert containers.read(reader) == {
        "engine": "docker", "version": "28.2.2", "api_version": "1.50",
        "cgroup_driver": "systemd", "cgroup_version": "2", "default_runtime": "runc",
        "nvidia_runtime": True, "cdi_devices": ["nvidia.com/gpu=0", "nvidia.com/gpu=all"]}
    assert reader.unread == {}


def test_an_older_daemon_says_less_and_nothing_is_made_up(daemon):
    daemon["/info"] = {"Runtimes": {"runc": {}}}
    reader = Reader(".")
    found = containers.read(reader)
    assert found["nvidia_runtime"] is False
    assert found["cdi_devices"] == []  # no folder of specifications either
    assert found["cgroup_driver"] is None
    assert reader.unread["containers.cgroup_driver"]["code"] == "absent"


@pytest.mark.parametrize("answer", [None, b"no json", b"[]"])
def test_a_daemon_that_answers_nonsense_is_null_with_the_reason(daemon, answer):
    daemon["/info"] = answer
    reader = Reader(".")
    assert containers.read(reader)["engine"] is None
    assert "docker.sock" in reader.unread["containers"]["reason"]


def test_a_socket_that_nobody_listens_on_is_null_with_the_reason(reader_of):
    reader = reader_of({"/run/docker.sock": ""})
    assert containers.read(reader)["engine"] is None
    assert reader.unread["containers"]["code"] == "econnrefused"


PODMAN = {"host": {"cgroupManager": "systemd", "cgroupVersion": "v2",
                   "ociRuntime": {"name": "crun"}},
          "version": {"Version": "5.4.0", "APIVersion": "5.4.0"}}


@pytest.fixture
def tools(monkeypatch):
    """The host has these tools in its PATH."""

    def there(*names):
        monkeypatch.setattr(containers.shutil, "which",
                            lambda name, **_: "/usr/bin/" + name if name in names else None)

    return there


def test_podman_is_asked_where_there_is_no_docker(reader_of, replay, tools):
    tools("podman")
    replay({"argv": ["podman", "info", "--format", "json"], "rc": 0, "stderr": "",
            "stdout": json.dumps(PODMAN)})
    assert containers.read(reader_of()) == {
        "engine": "podman", "version": "5.4.0", "api_version": "5.4.0",
        "cgroup_driver": "systemd", "cgroup_version": "2", "default_runtime": "crun",
        "nvidia_runtime": False, "cdi_devices": []}


@pytest.mark.parametrize("call", [{"rc": 125, "stdout": "", "stderr": "cannot clone"},
                                  {"rc": 0, "stdout": "{}", "stderr": ""}])
def test_a_podman_that_does_not_tell_is_null_with_the_reason(reader_of, replay, tools, call):
    tools("podman")
    replay(dict(call, argv=["podman", "info", "--format", "json"]))
    reader = reader_of()
    assert containers.read(reader)["engine"] is None
    assert "podman info" in reader.unread["containers"]["reason"]


def test_a_host_without_an_engine_says_so(reader_of, tools):
    tools()
    reader = reader_of()
    assert containers.read(reader)["engine"] is None
    assert reader.unread["containers"]["code"] == "absent"


def test_specifications_of_devices_are_read_by_the_toolkit(reader_of, replay, tools):
    tools()
    replay({"argv": ["nvidia-ctk", "cdi", "list"], "rc": 0,
            "stderr": 'time="x" level=info msg="Found 2 CDI devices"\n',
            "stdout": "nvidia.com/gpu=0\nnvidia.com/gpu=all\n"})
    found = containers.read(reader_of({"/etc/cdi/nvidia.yaml": "kind: nvidia.com/gpu\n"}))
    assert found["cdi_devices"] == ["nvidia.com/gpu=0", "nvidia.com/gpu=all"]


def test_specifications_that_nothing_reads_are_null_and_not_none(reader_of, replay, tools):
    tools()
    replay({"argv": ["nvidia-ctk", "cdi", "list"], "cannot_start": "ENOENT"})
    reader = reader_of({"/var/run/cdi/nvidia.yaml": "kind: nvidia.com/gpu\n"})
    assert containers.read(reader)["cdi_devices"] is None
    assert "/var/run/cdi/nvidia.yaml" in reader.unread["containers.cdi_devices"]["reason"]


ENGINE = dict.fromkeys(containers.KEYS)
IMAGES = ["/usr/bin/docker", "image", "ls", "--format={{.Repository}}:{{.Tag}}"]


def in_container(reader, replay, tools, images="alpine:3\nvllm/vllm-openai:v0.24.0\n", **engine):
    tools("docker", "podman")
    replay({"argv": IMAGES, "rc": 0, "stdout": images, "stderr": ""})
    return containers.nvidia_smi_in_container(reader, dict(ENGINE, engine="docker", **engine))


def test_the_likeliest_image_runs_nvidia_smi_and_none_is_pulled(reader_of, replay, tools):
    tool = in_container(reader_of(), replay, tools, nvidia_runtime=True)
    assert tool.argv[:4] == ["/usr/bin/docker", "run", "--rm", "--pull=never"]
    assert "--runtime=nvidia" in tool.argv and "--network=none" in tool.argv
    assert tool.argv[-2:] == ["--entrypoint=nvidia-smi", "vllm/vllm-openai:v0.24.0"]
    (name,) = [word[7:] for word in tool.argv if word.startswith("--name=")]
    assert tool.cleanup == ["/usr/bin/docker", "rm", "--force", name]


def test_where_only_cdi_is_set_up_the_device_is_named_by_it(reader_of, replay, tools):
    tool = in_container(reader_of(), replay, tools, nvidia_runtime=False,
                        cdi_devices=["nvidia.com/gpu=0", "nvidia.com/gpu=all"])
    assert "--device=nvidia.com/gpu=all" in tool.argv
    assert "--runtime=nvidia" not in tool.argv


@pytest.mark.parametrize(("images", "engine", "why"), [
    ("alpine:3\n", {"nvidia_runtime": False, "cdi_devices": []}, "toolkit is not set up"),
    ("alpine:3\n", {"nvidia_runtime": False, "cdi_devices": None}, "toolkit is not set up"),
    ("<none>:<none>\n", {"nvidia_runtime": True}, "no image on the host")])
def test_a_container_that_could_not_tell_is_not_started(
        reader_of, replay, tools, images, engine, why):
    reader = reader_of()
    assert in_container(reader, replay, tools, images, **engine) is None
    assert why in reader.unread["nvidia-smi in a container"]["reason"]


# --- The machine ----------------------------------------------------------------------------


def test_the_tightest_limit_of_the_control_groups_counts(reader_of):
    reader = reader_of({
        "/proc/self/cgroup": "0::/system.slice/x.service\n",
        "/sys/fs/cgroup/system.slice/memory.max": "4294967296\n",
        "/sys/fs/cgroup/system.slice/x.service/memory.max": "max\n"})
    assert machine.memory(reader)["limit_bytes"] == 4294967296
    assert reader.sources["memory.limit_bytes"] == "/sys/fs/cgroup"


@pytest.mark.parametrize("files", [
    {}, {"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/memory.max": "max\n"},
    {"/proc/self/cgroup": "5:memory:/user\n1:name=systemd:/\n"}])
def test_no_limit_is_null_and_not_0(reader_of, files):
    assert machine.memory(reader_of(files))["limit_bytes"] is None


def test_the_room_for_models_is_that_of_the_nearest_folder_that_is_there(tmp_path):
    reader = Reader()
    found = machine.disk(reader, str(tmp_path / "not" / "yet" / "models"))
    room = os.statvfs(tmp_path)
    assert found["path"].endswith("/not/yet/models")
    assert found["total_bytes"] == room.f_blocks * room.f_frsize
    assert 0 < found["free_bytes"] <= found["total_bytes"]
    assert reader.sources["disk"] == "statvfs of %s" % tmp_path


# --- Processes ------------------------------------------------------------------------------


def test_a_holder_that_is_not_seen_is_named_by_pid_and_the_reason_is_kept(reader_of):
    reader = reader_of(folders=["/proc"])
    holder = devices.holder(reader, "devices[0].holders[0]", 4242, None, "compute", None)
    assert holder == {"pid": 4242, "command": None, "user": None, "bytes": None,
                      "kind": "compute", "gpu_instance": None}
    assert set(reader.unread) == {"devices[0].holders[0]." + key
                                  for key in ("command", "user", "bytes")}
    assert "another container" in reader.unread["devices[0].holders[0].command"]["reason"]


def test_a_process_whose_command_is_empty_is_told_from_one_that_is_gone(reader_of):
    reader = reader_of({"/proc/7/cmdline": ""})
    holder = devices.holder(reader, "devices[0].holders[0]", 7, 5, "compute", 3)
    assert holder["command"] is None and holder["user"] and holder["bytes"] == 5
    assert "another user's" in reader.unread["devices[0].holders[0].command"]["reason"]


def test_units_of_other_names_than_asked_for_are_null_with_a_reason(reader_of, replay):
    replay({"argv": daemons.SHOW, "rc": 0, "stderr": "", "stdout": "Id=other.service\n"})
    reader = reader_of(folders=SYSTEMD)
    assert daemons.read(reader, nvswitches=1) == {
        "fabric_manager": None, "persistence_daemon": None}
    assert reader.unread["fabric_manager"]["code"] == "unknown"
