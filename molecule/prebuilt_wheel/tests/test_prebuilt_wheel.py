# SPDX-License-Identifier: Apache-2.0
"""What came is the one wheel that fits, it computes, and a second run asks for nothing."""

import json
import os
import pathlib

import pytest

HERE = pathlib.Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
OFFERED = HERE / "wheels"
ENV = "/opt/nano"
HOUSE = "/var/lib/firstlight/wheels"
PYTHONS = {"deb12": "cp311", "deb13": "cp313"}

# Who computes with the extension, and what pip's own files say of what is there.
LOOK = """
import importlib.metadata, json, tiny_kernel, torch
from tiny_kernel import _kernel
told = importlib.metadata.distribution("tiny-kernel")
print(json.dumps({
    "sum": _kernel.squares(1000.0),
    "version": told.version,
    "tags": told.read_text("WHEEL"),
    "installer": told.read_text("INSTALLER").strip(),
    "changed": [str(one) for one in told.files if one.hash and one.hash.mode == "sha256"
                and one.read_binary() and not same(one)],
    "torch": torch.__version__,
}))
"""
SAME = """
import base64, hashlib
def same(one):
    digest = hashlib.sha256(one.read_binary()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == one.hash.value
"""


def lines(file):
    """What a log of one JSON object a line holds."""
    text = (OFFERED / file).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def name(host):
    return host.backend.get_hostname().removeprefix("firstlight-")


@pytest.fixture
def wheel(name):
    """The one file that fits."""
    tags = "-{0}-{0}-linux_{1}.whl".format(PYTHONS[name], os.uname().machine)
    return "tiny_kernel-1.4.0+cu12torch2.8cxx11abiTRUE" + tags


@pytest.fixture
def found(host):
    return json.loads(host.check_output("%s/bin/python -c %s", ENV, SAME + LOOK))


def test_it_computes_in_the_environment(found):
    assert found["sum"] == 332833500.0


def test_it_is_the_version_that_fits_and_whole(found, name):
    assert found["version"] == "1.4.0+cu12torch2.8cxx11abiTRUE"
    assert "Tag: {0}-{0}-linux_".format(PYTHONS[name]) in found["tags"]
    assert found["changed"] == []


def test_pip_knows_it_and_finds_nothing_wrong(host, found):
    assert found["installer"] == "pip"
    shown = host.check_output("%s/bin/python -m pip show tiny-kernel", ENV)
    assert "Version: 1.4.0" in shown
    host.check_output("%s/bin/python -m pip check", ENV)


def test_torch_is_what_it_was(found):
    assert found["torch"] == "2.8.0+cu128"


def test_nothing_but_it_was_fetched():
    fetched = {one["path"] for one in lines("brought/requests") if "/files/" in one["path"]}
    assert len(fetched) == 2
    for python in PYTHONS.values():
        assert [one for one in fetched if "/tiny_kernel-1.4.0" in one and python in one], fetched


def test_its_hash_is_kept_where_it_lies(host, wheel):
    rows = json.loads(host.file(HOUSE + "/manifest.json").content_string)["files"]
    assert rows[wheel]["sha256"] == host.file("%s/%s" % (HOUSE, wheel)).sha256sum


def test_who_uses_the_environment_can_read_it(host):
    said = host.run("runuser -u nobody -- %s/bin/python -c 'import tiny_kernel._kernel'", ENV)
    assert said.rc == 0, said.stderr


def test_a_second_run_asks_the_index_nothing_and_the_host_once(name):
    assert lines("played/requests") == []
    calls = [one for one in lines("played/calls") if one["host"] == name]
    assert len([one for one in calls if one["role"] == "prebuilt_wheel"]) == 1, calls


def test_check_mode_asks_the_index_nothing_where_all_is_there():
    assert lines("checked/requests") == []


def test_nothing_is_left_at_work(host):
    said = host.run("pgrep --full --list-full '[A]nsiballZ|[/]opt/[a-z]*/bin/python|[s]leep 9876'")
    assert said.rc == 1, said.stdout
    left = host.check_output("find /opt/nano /opt/faults -name '*firstlight*'")
    assert left == ""
