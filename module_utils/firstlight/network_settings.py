# SPDX-License-Identifier: Apache-2.0
"""The way out of a host, as the role network_access left it, for the processes that need it.

Libraries read their variables when they are imported (huggingface_hub all of its constants), so
:func:`apply` comes before that. Secrets are read from a file here because Ansible's
``environment:`` would put them on a command line.
"""

from __future__ import annotations

import os
from typing import Dict

from . import paths

FOLDER = "network"
"""Where it lies under the root."""

ENVIRONMENT = "environment"
"""One ``NAME=value`` a line, for its owner alone: a proxy may have a password."""

STATE = "decision.json"
"""What was decided, and what was written for it."""


def path(root: str, name: str = ENVIRONMENT) -> str:
    """The path of a file of the role.

    :param root: ``firstlight_root``, in one spelling.
    """
    return os.path.join(root, FOLDER, name)


def read(root: str) -> Dict[str, str]:
    """Variables that a process which goes out gets; none where the role set nothing.

    :param root: ``firstlight_root`` on this host.
    :raises OSError: they are there and are not this user's to read.
    """
    content = paths.read(path(root))
    return {} if content is None else parse(content.decode("utf-8", "replace"))


def parse(text: str) -> Dict[str, str]:
    """Variables of a text of such lines; comments and what is no variable are left out."""
    found = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and not name.startswith("#"):
            found[name] = value
    return found


def apply(root: str) -> None:
    """Put them into the environment of this process, before anything that reads it is imported.

    :raises OSError: as :func:`read`.
    """
    os.environ.update(read(root))
