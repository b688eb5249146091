# SPDX-License-Identifier: Apache-2.0
"""An argv as one line of a unit or of a supervisor program, which quote differently."""

from __future__ import annotations

import shlex
from typing import Iterable


def systemd_command(argv: Iterable[str]) -> str:
    """For ``ExecStart=``: quoted, with systemd's own ``%`` and ``$`` made literal.

    See systemd.service(5), "Command lines", and systemd.unit(5), "Specifiers".
    """
    return " ".join(
        '"%s"' % word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace(
            "$", "$$")
        for word in argv
    )


def supervisor_command(argv: Iterable[str]) -> str:
    """For ``command=``: supervisord splits it with shlex and expands ``%``.

    A word that begins a comment in an INI file is quoted as well.
    """
    return " ".join(_supervisor_word(word) for word in argv)


def _supervisor_word(word: str) -> str:
    quoted = shlex.quote(word).replace("%", "%%")
    return "'%s'" % quoted if ";" in quoted and not quoted.startswith("'") else quoted
