# SPDX-License-Identifier: Apache-2.0
"""What is left of ours goes when no endpoint is; nothing else does."""

from __future__ import annotations

import fcntl
import json
import os

import pytest
import state_root
from supervised import config, definition, short_root

from ansible.module_utils.firstlight import paths, services
from ansible.module_utils.firstlight.wheels.house import House


@pytest.fixture
def clear(run_module):
    def cleared(root, manager="systemd", **how):
        return run_module(state_root.main, root=str(root), manager=manager, state="absent", **how)

    return cleared


def skeleton(root):
    """What a teardown of every endpoint leaves."""
    for name in (*paths.FOLDERS, "endpoints/chat"):
        os.makedirs(root / name)
    (root / "journal" / "endpoint-chat.lock").touch()
    (root / "venvs" / "toolbelt.lock").touch()


def test_an_empty_skeleton_goes_whole(clear, tmp_path):
    root = tmp_path / "root"
    skeleton(root)
    told = clear(root, check=True)
    assert told["changed"] is True
    assert (root / "journal" / "endpoint-chat.lock").exists()
    assert "directory %s" % root in clear(root)["removed"]
    assert not root.exists()
    again = clear(root)
    assert (again["changed"], again["removed"]) == (False, [])


@pytest.mark.parametrize("file", [
    "letters", "lost+found/x", "cache/x", "venvs/mine/pyvenv.cfg", "models/mine/m.gguf",
    "endpoints/chat/notes", "journal/notes", "supervisor/notes"])
def test_what_is_not_ours_stays(clear, tmp_path, file):
    skeleton(tmp_path)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("dear")
    for manager in ("systemd", "supervisor"):
        clear(tmp_path, manager)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / file]


def test_records_of_the_canary_go_with_what_was_compiled_for_it(clear, tmp_path):
    root = tmp_path / "root"
    for folder in ("canaries", "cache/vllm-1"):
        (root / folder).mkdir(parents=True)
    outside = tmp_path / "cache"
    outside.mkdir()
    (root / "cache" / "vllm-1" / "kernel").write_text("compiled")
    for name, cache in (("a" * 64, root / "cache" / "vllm-1"), ("b" * 64, outside),
                        ("d" * 64, root / "cache" / "..")):
        (root / "canaries" / (name + ".json")).write_text(
            json.dumps({"plan": {"cache": str(cache)}}))
    (root / "canaries" / ("c" * 64 + ".json")).write_text("no JSON")
    (root / "canaries" / "notes.json").write_text("{}")
    told = clear(root, check=True)["removed"]
    removed = clear(root)["removed"]
    assert set(told) <= set(removed)
    assert "folder %s" % (root / "cache" / "vllm-1") in removed
    assert outside.is_dir(), "a record lies on the host, and may say anything"
    assert (root / "canaries").is_dir(), "a way up as well"
    assert [path.name for path in (root / "canaries").iterdir()] == ["notes.json"]
    assert not (root / "cache").exists()


def test_models_that_were_fetched_go_and_models_beside_them_stay(clear, tmp_path):
    root, shared = tmp_path / "root", tmp_path / "shared"
    repository = "models--firstlight--canary"
    for folder in ("hub/%s/blobs", "hub/.locks/%s", "hub/quarantine/%s", "verified/%s"):
        (root / "models" / (folder % repository)).mkdir(parents=True)
    (root / "models/hub" / repository / "blobs" / "a").write_text("weights")
    (root / "models/hub/CACHEDIR.TAG").write_text("Signature")
    (root / "journal").mkdir()
    (root / "journal/snapshots-0123.run.json").write_text("{}")
    (shared / repository).mkdir(parents=True)
    (root / "models/hub/models--linked").symlink_to(shared / repository)
    told = clear(root, check=True)["removed"]
    assert (root / "models/hub" / repository / "blobs" / "a").exists()
    removed = clear(root)["removed"]
    assert set(told) <= set(removed)
    assert "folder %s" % (root / "models/hub" / repository) in removed
    assert os.listdir(root / "models") == ["hub"]
    assert os.listdir(root / "models/hub") == ["models--linked"]
    assert (shared / repository).is_dir()
    (root / "models/hub/models--linked").unlink()
    clear(root)
    assert not root.exists()


def test_our_wheelhouse_goes_and_what_others_put_there_stays(clear, tmp_path):
    root, name = tmp_path / "root", "tiny-1.0-py3-none-any.whl"
    (tmp_path / name).write_bytes(b"a wheel")
    (root / "cache" / "wheel-builds").mkdir(parents=True)
    (root / "cache" / "wheel-builds" / "tiny.log").write_text("a log")
    kept = root / "wheels-aside" / "x"
    kept.parent.mkdir()
    kept.write_text("of an environment that was not put back")
    House(str(root / "wheels")).add(str(tmp_path / name), name)
    (root / "wheels" / "mine.whl").write_text("mine")
    assert clear(root, check=True)["changed"] is True
    assert (root / "wheels" / name).exists()
    removed = clear(root)["removed"]
    assert "file %s" % (root / "wheels" / name) in removed
    assert "folder %s" % (root / "cache" / "wheel-builds") in removed
    assert os.listdir(root / "wheels") == ["mine.whl"]
    assert kept.exists()
    assert clear(root)["changed"] is False


def test_a_cache_that_is_a_link_is_somebody_elses(clear, tmp_path):
    root, shared = tmp_path / "root", tmp_path / "shared"
    (shared / "models--a--b").mkdir(parents=True)
    (root / "models").mkdir(parents=True)
    (root / "models/hub").symlink_to(shared)
    (shared / "CACHEDIR.TAG").write_text("Signature")
    clear(root)
    assert sorted(os.listdir(shared)) == ["CACHEDIR.TAG", "models--a--b"]


def test_foreign_folders_stay_even_when_they_are_empty(clear, tmp_path):
    skeleton(tmp_path)
    (tmp_path / "models" / "mine").mkdir()
    (tmp_path / "lost+found").mkdir()
    clear(tmp_path)
    assert {path.name for path in tmp_path.rglob("*")} == {"models", "mine", "lost+found"}


def test_a_lock_that_is_held_is_not_left_over(clear, tmp_path):
    skeleton(tmp_path)
    with open(tmp_path / "journal" / "endpoint-chat.lock", "a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        clear(tmp_path)
    assert (tmp_path / "journal" / "endpoint-chat.lock").exists()


def test_a_supervisord_without_programs_ends_and_one_with_programs_goes_on(clear, supervisord):
    with short_root() as root:
        service = services.Supervisor(root, supervisord)
        paths.write(service.config, config().encode())
        program = service.files("chat")[0]
        paths.write(program, definition(root, "chat", ["/bin/sleep", "600"], "h", {}).encode())
        os.makedirs(os.path.join(root, "endpoints", "chat"))
        service.follow("chat")
        daemon = service.daemon_pid()
        assert daemon

        assert not [line for line in clear(root, "supervisor")["removed"] if "supervisor" in line]
        assert service.daemon_pid() == daemon

        os.unlink(program)
        service.follow("chat")
        told = clear(root, "supervisor", check=True)["removed"]
        assert "process %d, supervisord" % daemon in told
        assert service.daemon_pid() == daemon
        removed = clear(root, "supervisor")["removed"]
        assert "process %d, supervisord" % daemon in removed
        assert service.daemon_pid() is None
        assert not os.path.exists(service.folder)
