# SPDX-License-Identifier: Apache-2.0
"""What was down is up, what was refused left nothing, and nobody said yes to a reboot."""

import json

import pytest

PROFILE = "/etc/firstlight-mock/profile.json"
SWAP = "/tmp/fl-molecule/swapfile"


def on(host, name):
    if host.backend.get_hostname() != name:
        pytest.skip("about the host " + name)
    return host


@pytest.fixture
def hgx(host):
    return on(host, "hgx")


@pytest.fixture
def orin(host):
    return on(host, "orin")


@pytest.mark.parametrize("unit", ["nvidia-fabricmanager", "nvidia-persistenced"])
def test_the_daemons_run_now_and_after_a_boot(hgx, unit):
    service = hgx.service(unit)
    journal = hgx.check_output("journalctl --no-pager --lines 20 --unit %s", unit)
    assert service.is_running, journal
    assert service.is_enabled


def test_every_gpu_is_in_the_fabric_and_stays_initialised(hgx):
    devices = json.loads(hgx.file(PROFILE).content_string)["devices"]
    found = [(device["fabric"]["state"], device["persistence"]) for device in devices]
    assert found == [(3, 1)] * 8


def test_the_power_mode_is_the_largest_of_the_board(orin):
    assert orin.check_output("nvpmodel -q").split() == ["NV", "Power", "Mode:", "MAXN", "0"]


def test_nobody_said_yes_to_a_reboot(orin):
    assert not orin.file("/var/lib/nvpmodel/rebooted").exists


def test_swap_is_used_now_and_after_a_boot(orin):
    assert SWAP in orin.file("/proc/swaps").content_string
    assert orin.file("/etc/fstab").content_string.count("%s none swap sw" % SWAP) == 1
    assert (orin.file(SWAP).mode, orin.file(SWAP).size) == (0o600, 64 * 2**20)


def test_the_page_cache_was_dropped_when_it_was_asked_for(orin):
    assert orin.file("/proc/sys/vm/drop_caches").content_string == "3\n"
