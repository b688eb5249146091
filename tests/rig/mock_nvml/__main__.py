# SPDX-License-Identifier: Apache-2.0
"""Make a host of a profile in a folder, and say what to export to be on it."""

from __future__ import annotations

import argparse
import pathlib
import shlex
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import mock_nvml  # noqa: E402 - the folder above had to be found first


def main() -> None:
    """Build, write, and print two lines for a shell."""
    parser = argparse.ArgumentParser(prog="mock_nvml", description=__doc__)
    parser.add_argument("profile", choices=mock_nvml.names())
    parser.add_argument("folder", type=pathlib.Path,
                        help="gets the libraries, profile.json, and under host/ the host's files")
    told = parser.parse_args()
    folder = told.folder.resolve()
    profile = mock_nvml.load(told.profile)
    libraries = mock_nvml.build(folder)
    mock_nvml.write(profile, folder / "profile.json")
    mock_nvml.write_files(profile, folder / "host")
    print("export LD_LIBRARY_PATH=%s${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
          % shlex.quote(str(libraries)))
    print("export FIRSTLIGHT_MOCK_PROFILE=%s" % shlex.quote(str(folder / "profile.json")))


main()
