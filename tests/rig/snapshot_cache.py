# SPDX-License-Identifier: Apache-2.0
"""Caches of snapshots as huggingface_hub makes them, and the library itself as a client."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

from ansible.module_utils.firstlight.snapshots import entries, layout

# Its constants are read when it is imported: a process of its own for each hub.
CLIENT = """
import json, sys
from huggingface_hub import snapshot_download
told = json.loads(sys.argv[1])
print(snapshot_download(**told))
"""


def download(url, cache, token="", **how):
    """Have huggingface_hub download a snapshot: the process that did it.

    ``how`` are arguments of ``snapshot_download``.
    """
    # None of this machine's own settings: a token, an endpoint, a proxy.
    env = {name: value for name, value in os.environ.items()
           if not name.startswith(("HF_", "HUGGING")) and not name.lower().endswith("_proxy")}
    env.update(HF_ENDPOINT=url, HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_PROGRESS_BARS="1",
               HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_UPDATE_CHECK="1",
               HF_HOME=str(cache) + ".home", **({"HF_TOKEN": token} if token else {}))
    return subprocess.run(
        [sys.executable, "-c", CLIENT, json.dumps(dict(how, cache_dir=str(cache)))], env=env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120, check=False)


def filled(url, cache, repo_id):
    """A cache with all of a repository, from a hub: its manifest."""
    done = download(url, cache, repo_id=repo_id)
    assert done.returncode == 0, done.stderr
    commit = pathlib.Path(done.stdout.strip()).name
    manifest = layout.read_tree(str(cache), repo_id, commit)
    assert manifest is not None
    return manifest


def contents(cache, manifest):
    """The bytes of every file of a snapshot that is there, by path."""
    folder = pathlib.Path(layout.snapshot(str(cache), manifest.repo_id, manifest.commit))
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def as_option(manifest):
    """A manifest as modules take it."""
    return entries.manifest_to_dict(manifest)
