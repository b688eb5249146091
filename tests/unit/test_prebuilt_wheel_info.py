# SPDX-License-Identifier: Apache-2.0
"""The module as a whole: real environments, a real wheelhouse, an index on this machine."""

from __future__ import annotations

import json
import os
import pathlib

import prebuilt_wheel_info
import pytest
from wheels import builder, index

from ansible.module_utils.firstlight import network_settings
from ansible.module_utils.firstlight.wheels.house import House


@pytest.fixture
def info(run_module):
    """What the module says; in check mode it says the same."""
    def run(**options):
        found = run_module(prebuilt_wheel_info.main, **options)
        assert found.get("failed") or found["changed"] is False
        return found
    return run


@pytest.fixture
def wheels(tmp_path):
    folder = tmp_path / "wheels"
    builder.wheel(folder, "tiny-kernel", "1.0", extension=builder.KERNEL)
    builder.wheel(folder, "tiny-kernel", "1.1", local="cu12torch2.8", extension=builder.KERNEL)
    return folder


def test_environments_and_what_works_in_them(info, wheels, tmp_path):
    good = str(builder.environment(tmp_path / "good", wheels=[
        next(wheels.glob("*-1.0-*")), builder.torch(tmp_path)]))
    gone = str(tmp_path / "gone" / "bin" / "python")
    row = builder.row("tiny-kernel", kernel=builder.proof("tiny-kernel"), torch="minor")
    options = {"environments": [{"python": good, "rows": [row]}, {"python": gone, "rows": [row]},
                                {"python": good, "rows": [builder.row("other")]}]}
    found = info(**options)
    assert set(found["environments"]) == {good, gone}
    one = found["environments"][good]
    assert one["torch"]["version"] == "2.8.0+cu128"
    assert one["installed"]["other"] is None
    assert one["installed"]["tiny-kernel"]["version"] == "1.0"
    assert one["installed"]["tiny-kernel"]["kernel"]["state"] == "ran"
    assert found["environments"][gone]["state"] == "missing"
    assert (found["candidates"], found["house"], found["findings"]) == ({}, {}, [])
    again = info(**options, check=True)["environments"][good]
    assert again["installed"]["tiny-kernel"]["kernel"] == one["installed"]["tiny-kernel"]["kernel"]


def test_candidates_of_the_wheelhouse_and_of_sources(info, wheels, tmp_path):
    house = House(str(tmp_path / "house"))
    mine = next(wheels.glob("*-1.0-*"))
    house.add(str(mine), mine.name, builder.sha256(mine), "built here", {"torch": "2.8"})
    with index.Index(wheels) as served:
        asked = {"package": "tiny-kernel", "version": ">=1", "sources": [{"index": served.simple}]}
        found = info(candidates=[asked, {"package": "Tiny_Kernel", "sources": [
            {"release": "some/one", "tag": "v{version}"}]}], wheelhouse=str(house.folder),
            release_api=served.url)
        pinned = info(candidates=[{**asked, "sha256": builder.sha256(mine).upper()}])
        unknown = info(candidates=[{**asked, "sha256": "0" * 64}])
    files = [(one["file"], bool(one["path"])) for one in found["candidates"]["tiny-kernel"]]
    newer = next(wheels.glob("*-1.1+*")).name
    assert files == [(mine.name, True), (mine.name, False), (newer, False)]
    assert {one["file"] for one in found["candidates"]["Tiny_Kernel"]} == {mine.name, newer}
    assert found["candidates"]["tiny-kernel"][0]["built_for"]["torch"] == "2.8"
    assert found["house"][mine.name]["sha256"] == builder.sha256(mine)
    assert [one["file"] for one in pinned["candidates"]["tiny-kernel"]] == [mine.name]
    assert len(unknown["candidates"]["tiny-kernel"]) == 2, "what there is instead is told"


def test_questions_about_one_package_are_answered_each_by_its_key(info, wheels, tmp_path):
    apart = tmp_path / "apart"
    audited = builder.wheel(apart, "tiny-kernel", "0.9")
    sources = {"one": str(wheels), "two": str(apart)}
    found = info(candidates=[{"package": "tiny-kernel", "key": key, "sources": [{"folder": folder}]}
                             for key, folder in sources.items()])["candidates"]
    assert {key: {one["file"] for one in listed} for key, listed in found.items()} == {
        "one": {path.name for path in wheels.iterdir()}, "two": {audited.name}}


def test_offline_nobody_is_asked(info, wheels):
    with index.Index(wheels) as served:
        found = info(candidates=[{"package": "tiny-kernel", "sources": [
            {"index": served.simple}, {"folder": str(wheels)}]}], offline=True)
        assert served.done() == []
    assert {one["file"] for one in found["candidates"]["tiny-kernel"]} == {
        path.name for path in wheels.iterdir()}
    assert [one["id"] for one in found["findings"]] == ["wheel-offline"]


def test_a_bad_wheelhouse_is_told_once(info, tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    found = info(wheelhouse=str(tmp_path), candidates=[
        {"package": "tiny-kernel"}, {"package": "other"}])
    assert found["house"] == {}
    assert [one["subject"] for one in found["findings"]
            if "manifest.json" in one["subject"] + one["found"] + one["evidence"]] != []
    assert len({json.dumps(one) for one in found["findings"]}) == len(found["findings"])


def test_pip_of_an_environment_names_the_index(info, wheels, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    python = builder.environment(tmp_path / "e")
    monkeypatch.delenv("PIP_CONFIG_FILE")
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    with index.Index(wheels) as served:
        pathlib.Path(python).parent.parent.joinpath("pip.conf").write_text(
            "[global]\nindex-url = %s\n" % served.simple)
        asked = [{"package": "tiny-kernel", "sources": [{"index": "pip"}]}]
        for options in ({"environments": [{"python": str(python)}]}, {"pythons": [str(python)]}):
            found = info(candidates=asked, **options)
            assert len(found["candidates"]["tiny-kernel"]) == 2


def test_the_hosts_way_out_is_used(info, wheels, tmp_path):
    with index.Index(wheels) as served:
        folder = pathlib.Path(network_settings.path(str(tmp_path))).parent
        folder.mkdir()
        (folder / network_settings.ENVIRONMENT).write_text("PIP_INDEX_URL=%s\n" % served.simple)
        found = info(root=str(tmp_path), candidates=[
            {"package": "tiny-kernel", "sources": [{"index": "pip"}]}])
    assert len(found["candidates"]["tiny-kernel"]) == 2


def test_a_way_out_that_cannot_be_read_is_an_error(info, tmp_path):
    (tmp_path / "network" / network_settings.ENVIRONMENT).mkdir(parents=True)
    found = info(root=str(tmp_path))
    assert found["failed"] is True
    assert str(tmp_path / "network") in found["msg"]


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_limit_of_no_time_is_an_error(info, seconds):
    found = info(probe_s=seconds)
    assert found["failed"] is True
    assert "prebuilt_wheel_probe_s" in found["msg"]


def test_the_limit_holds(info, tmp_path):
    python = str(builder.environment(tmp_path / "e", wheels=[
        builder.wheel(tmp_path, "tiny", "1.0", broken="hangs")]))
    found = info(environments=[{"python": python, "rows": [builder.row("tiny")]}], probe_s=1)
    one = found["environments"][python]["installed"]["tiny"]["imports"]
    assert (one["state"], "1 s" in one["why"]) == ("slow", True)
