# SPDX-License-Identifier: Apache-2.0
"""The cache lists what it should, and nothing of ours is left where it was cleared away."""

import pytest


def test_the_cache_lists_libc(host):
    assert "libc.so.6 (libc6" in host.check_output("/sbin/ldconfig -p")


def test_the_cache_is_what_ldconfig_would_make(host):
    host.check_output("/sbin/ldconfig -X -C /tmp/again")
    assert host.check_output("cmp /etc/ld.so.cache /tmp/again") == ""


def test_a_program_gets_the_drivers_library(host):
    if host.backend.get_hostname() == "deb12":
        pytest.skip("it has no driver")
    said = host.check_output(
        "python3 -c 'import ctypes; print(ctypes.CDLL(\"libcuda.so.1\").cuInit(0))'")
    assert said == "0"


def test_nothing_is_left_of_a_repair(host):
    assert not host.file("/etc/.ld.so.cache.firstlight").exists
    assert not host.file("/var/lib/firstlight/journal/linker_cache.json").exists
    assert not host.file("/etc/ld.so.conf.d/0-0000-firstlight.conf").exists
