# SPDX-License-Identifier: Apache-2.0
"""The hub as a process of its own."""

from __future__ import annotations

import argparse
import json
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import hub  # noqa: E402


def main():
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description="A small model hub with faults.")
    parser.add_argument("--repos", required=True, metavar="DIR")
    parser.add_argument("--bind", default="127.0.0.1", metavar="ADDRESS")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--faults", default="{}", metavar="JSON")
    parser.add_argument("--log", metavar="FILE", help="a JSON line for each request")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with hub.Hub(options.repos, json.loads(options.faults), options.bind, options.port,
                 options.log) as serving:
        print(serving.url, flush=True)
        while True:
            signal.pause()


if __name__ == "__main__":
    main()
