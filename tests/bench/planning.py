# SPDX-License-Identifier: Apache-2.0
"""How long the plans of a fleet take on one core: 500 hosts with three endpoints each."""

from __future__ import annotations

import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "rig")]

import conftest  # noqa: E402, F401 - puts our module_utils on Ansible's path
import planner  # noqa: E402

HOSTS = 500
ROUNDS = 5
ASKED = (
    {"name": "large", "model": "example/Llama-3.1-70B", "port": 8000},
    {"name": "small", "model": "example/Qwen2.5-7B", "port": 8001},
    {"name": "window", "model": "example/Gemma-3-27b", "port": 8002},
)


def main():
    """Print the best and the median of some rounds."""
    fleet = [planner.host(card, 8) for card in ("a100-80", "h200")]
    took = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for index in range(HOSTS):
            made = planner.plan(fleet[index % len(fleet)], *ASKED)
            assert len(made["endpoints"]) == len(ASKED), made["refusals"]
        took.append(time.perf_counter() - started)
    took.sort()
    print("planning: %d hosts x %d endpoints on one core: best %.2f s, median %.2f s of %d rounds"
          % (HOSTS, len(ASKED), took[0], took[len(took) // 2], ROUNDS))


if __name__ == "__main__":
    main()
