# SPDX-License-Identifier: Apache-2.0
"""Snapshots in a cache, laid out by the code that the modules use."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile

from ansible.module_utils.firstlight.snapshots import entries, layout

REPO = "example/model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".gguf", ".bin")


def entry(path, content):
    """The entry of a file: by sha256 where a hub would keep it in LFS."""
    if path.endswith(LARGE):
        return entries.Entry(path, len(content), hashlib.sha256(content).hexdigest(), None)
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return entries.Entry(path, len(content), None, git)


def manifest(files, repo_id=REPO, commit=COMMIT):
    """The manifest of files, which are content by path."""
    return entries.checked(repo_id, commit, [entry(*one) for one in files.items()])


def lay(cache, files, repo_id=REPO, commit=COMMIT, revision="main"):
    """Lay out a whole snapshot; its manifest."""
    made = manifest(files, repo_id, commit)
    layout.prepare(cache, repo_id)
    layout.write_tree(cache, made)
    if revision:
        layout.write_ref(cache, repo_id, revision, commit)
    for one in made.entries:
        pathlib.Path(layout.blob(cache, repo_id, one)).write_bytes(files[one.path])
        layout.link(cache, repo_id, commit, one)
    return made


def library(program, **environment):
    """What huggingface_hub does with these settings, which it reads when it is imported.

    :returns: status and output of the program in Python.
    """
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PATH": os.environ["PATH"], "HF_HUB_DISABLE_TELEMETRY": "1",
             "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1", **environment})
    return done.returncode, done.stdout.strip()


@contextlib.contextmanager
def open_folder():
    """A temporary folder that every user can enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory(prefix="fl-cache-") as folder:
        os.chmod(folder, 0o755)
        yield pathlib.Path(folder)
