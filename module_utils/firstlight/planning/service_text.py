# SPDX-License-Identifier: Apache-2.0
"""An argv as one line of a unit or of a supervisor program, which quote differently."""

from __future__ import annotations

import re
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

    Before that it reads an INI file, which knows no quotes: `` ;`` and `` #`` begin a comment
    anywhere, and ``%(here)s`` is replaced even after another ``%``. So the quotes are closed and
    opened again between those characters.
    """
    line = " ".join(shlex.quote(word).replace("%", "%%") for word in argv)
    return re.sub(r"(?<=[\s%])(?=[;#(])", "''", line)
