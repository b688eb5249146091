# SPDX-License-Identifier: Apache-2.0
"""The two libraries, compiled once for each state of their sources."""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform
import re
import shutil
import subprocess
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
LIBRARIES = {"libnvidia-ml.so.1": "nvml.c", "libcuda.so.1": "cuda.c"}
FLAGS = ["-std=c11", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Werror", "-O1", "-fPIC",
         "-fvisibility=hidden", "-shared"]
# A function that the library gives away: written out, or by one of the macros that make many.
PUBLIC = re.compile(r"^(?:PUBLIC (?:int|const char \*) ?|TELLS_[A-Z]+\()(nvml\w+)\b", re.MULTILINE)


def build(folder: str | os.PathLike[str]) -> pathlib.Path:
    """Compile both libraries into a folder of their own under this one, unless they are there.

    The folder's name tells the sources apart; it appears whole or not at all, whoever else builds.
    """
    made = pathlib.Path(folder) / ("mock-nvml-" + _fingerprint())
    if made.is_dir():
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    unfinished = pathlib.Path(tempfile.mkdtemp(dir=made.parent, prefix=".mock-nvml-"))
    unfinished.chmod(0o755)
    try:
        for name, source in LIBRARIES.items():
            subprocess.run(
                ["gcc", *FLAGS, "-Wl,-soname," + name, "-o", str(unfinished / name),
                 str(HERE / source), str(HERE / "json.c")],
                check=True, timeout=120)
        try:
            os.replace(unfinished, made)
        except OSError:
            if not made.is_dir():  # else another one was faster
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return made


def functions() -> set[str]:
    """The names of what our NVML can be asked."""
    return set(PUBLIC.findall((HERE / "nvml.c").read_text(encoding="utf-8")))


def _fingerprint() -> str:
    told = hashlib.sha256(repr((FLAGS, platform.machine())).encode())
    for source in sorted(HERE.glob("*.[ch]")):
        told.update(source.name.encode() + b"\0" + source.read_bytes())
    return told.hexdigest()[:16]
