#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: build the canary model on the target."""

from __future__ import annotations

DOCUMENTATION = r"""
module: canary_model
short_description: Build the canary model, whose answer is known exactly
version_added: 0.1.0
description:
  - Builds a tiny Llama-shaped model on the target, byte for byte the same on every machine, as a
    GGUF file and as a Hugging Face directory (safetensors, tokenizer, chat template).
  - Its greedy answer to one prompt is known in advance and returned as C(oracle). An engine that
    gives it has working weights, attention, RoPE, MLP, tokenizer and chat template.
  - Every file is verified by its SHA-256; a missing or changed file is built again, in under a
    second and with no download.
options:
  path:
    description: Directory that holds the model. It is made if it is missing.
    type: path
    required: true
  state:
    description:
      - V(present) builds what is missing or differs.
      - V(absent) removes the files that this module makes, and the directories they leave empty.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode:
    description: Builds and removes nothing, and says what it would do.
    support: full
  diff_mode:
    description: Shows the files before and after, with their SHA-256.
    support: full
  idempotent:
    description: A second run verifies the files and changes nothing.
    support: full
author:
  - Firstlight contributors
"""

EXAMPLES = r"""
- name: Build the canary model
  canary_model:
    path: /var/lib/firstlight/models/canary
  register: canary

- name: Remove the canary model
  canary_model:
    path: /var/lib/firstlight/models/canary
    state: absent
"""

RETURN = r"""
path:
  description: The model's directory.
  returned: success
  type: str
  sample: /var/lib/firstlight/models/canary
gguf:
  description: The GGUF file, for llama.cpp.
  returned: when O(state=present)
  type: str
  sample: /var/lib/firstlight/models/canary/canary.gguf
safetensors:
  description: The Hugging Face model directory, for vLLM.
  returned: when O(state=present)
  type: str
  sample: /var/lib/firstlight/models/canary/safetensors
description:
  description: Geometry of the model, number of parameters, and sizes in bytes by format.
  returned: when O(state=present)
  type: dict
  sample: {layers: 2, hidden_size: 512, head_dim: 64, bytes: {gguf: 10643264}}
oracle:
  description: What to ask the model at temperature 0, and what it must answer.
  returned: when O(state=present)
  type: dict
  contains:
    max_tokens:
      description: Tokens to ask for; both answers fill them.
      type: int
    prompt:
      description: Prompt for C(/v1/completions).
      type: str
    prompt_ids:
      description: Its token ids.
      type: list
      elements: int
    completion:
      description: The exact answer, leading space included.
      type: str
    completion_ids:
      description: Its token ids.
      type: list
      elements: int
    chat_messages:
      description: Messages for C(/v1/chat/completions).
      type: list
      elements: dict
    chat_prompt_ids:
      description: Token ids of the messages in the chat template.
      type: list
      elements: int
    chat_completion:
      description: The exact answer to the messages, leading space included.
      type: str
    chat_completion_ids:
      description: Its token ids.
      type: list
      elements: int
elapsed_s:
  description: How long the files took to build and write, 0 when none was.
  returned: success
  type: float
  sample: 0.1
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, Optional

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.firstlight import canary

Found = dict[str, Optional[str]]  # by file: its SHA-256, None when it is absent
PART = ".part"  # ends the name of a file that is being written, or that a killed build left


class Plan(NamedTuple):
    """The files to build and the files to remove."""

    build: list[str]
    remove: list[str]


def observe(path: str) -> Found:
    """The SHA-256 of each of the model's files under ``path``, finished and half-written.

    :raises OSError: a file or directory is there but cannot be read.
    """
    found: Found = {}
    for name in (*canary.FILES, *(name + PART for name in canary.FILES)):
        digest = hashlib.sha256()
        try:
            with open(os.path.join(path, name), "rb") as file:
                for block in iter(lambda: file.read(1 << 20), b""):
                    digest.update(block)
        except FileNotFoundError:
            found[name] = None
        else:
            found[name] = digest.hexdigest()
    return found


def plan(state: str, found: Found) -> Plan:
    """What brings the files found to ``state``."""
    if state == "absent":
        return Plan(build=[], remove=[name for name in found if found[name]])
    wrong = [name for name, file in canary.FILES.items() if found[name] != file.sha256]
    return Plan(build=wrong, remove=[])


def apply(path: str, plan: Plan) -> None:
    """Carry out a plan under ``path``.

    :raises OSError: a file or directory cannot be written or removed.
    """
    if plan.build:
        # Whatever the umask: an engine in a container reads them as another user.
        _make_directory(os.path.join(path, canary.SAFETENSORS))
        with _locked(path):
            for name in plan.build:
                _write(os.path.join(path, name), canary.content(name))
    if plan.remove:
        with _locked(path):
            for name in plan.remove:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(path, name))
        for directory in (os.path.join(path, canary.SAFETENSORS), path):
            with contextlib.suppress(FileNotFoundError):
                if not os.listdir(directory):
                    os.rmdir(directory)


def _make_directory(path: str) -> None:
    if not os.path.isdir(path):
        _make_directory(os.path.dirname(path))
        os.mkdir(path)
        os.chmod(path, 0o755)


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Keep a second build out of ``path``; the lock ends with the process, however it ends."""
    directory = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _write(path: str, content: bytes) -> None:
    """Put ``content`` at ``path`` whole or not at all; what a killed build left is overwritten."""
    part = path + PART
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        os.rename(part, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


def explain(path: str, error: OSError) -> str:
    """What an error means to whoever called, and what to change."""
    needed = sum(file.size for file in canary.FILES.values()) / 1e6
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = f"The canary model needs {needed:.0f} MB there: free some, or set path elsewhere."
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "Set path to a directory that this user can write, or run the task with become."
    else:
        remedy = "Set path to a directory that can hold the model."
    what = f"{error.filename or path}: {os.strerror(error.errno or errno.EIO)}"
    return f"Cannot build or remove the canary model in {path}: {what}. {remedy}"


def listing(path: str, files: Found) -> str:
    """The files that are there, one a line with its SHA-256, for a diff."""
    lines = (f"{sha256}  {os.path.join(path, name)}" for name, sha256 in files.items() if sha256)
    return "".join(f"{line}\n" for line in sorted(lines, key=lambda line: line.split("  ")[1]))


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    path, state = os.path.abspath(module.params["path"]), module.params["state"]
    result: dict[str, Any] = {"path": path, "elapsed_s": 0.0}
    try:
        found = observe(path)
        wanted = plan(state, found)
        result["changed"] = bool(wanted.build or wanted.remove)
        if result["changed"] and not module.check_mode:
            started = time.monotonic()
            apply(path, wanted)
            result["elapsed_s"] = round(time.monotonic() - started, 3)
    except OSError as error:
        module.fail_json(msg=explain(path, error), path=path)
    after: Found = {**found, **dict.fromkeys(wanted.remove)}
    after.update((name, canary.FILES[name].sha256) for name in wanted.build)
    if module._diff:
        result["diff"] = {
            "before_header": path,
            "after_header": path,
            "before": listing(path, found),
            "after": listing(path, after),
        }
    if state == "present":
        result["gguf"] = os.path.join(path, canary.GGUF)
        result["safetensors"] = os.path.join(path, canary.SAFETENSORS)
        result["description"] = canary.describe()
        result["oracle"] = canary.oracle()
    module.exit_json(**result)


if __name__ == "__main__":
    main()
