# SPDX-License-Identifier: Apache-2.0
"""How fast a whole log is read: 200 MB of one that serves, and of one that starts ever anew."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import yaml

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "rig")]

import conftest  # noqa: E402, F401 - puts our module_utils on Ansible's path

from ansible.module_utils.firstlight import engine_log  # noqa: E402

MEGABYTES = 200
CHUNK = 256 * 1024
ROWS = yaml.safe_load((TESTS.parent / "catalog" / "log_signatures.yml").read_text())
FIXTURES = TESTS / "fixtures"
SERVES = "".join(
    '(APIServer pid=1) INFO:     192.0.2.7:%d - "POST /v1/chat/completions HTTP/1.1" 200 OK\n'
    "(APIServer pid=1) INFO 11-29 01:11:%02d [loggers.py:248] Engine 000: Avg prompt throughput: "
    "%d.5 tokens/s, Avg generation throughput: 189.0 tokens/s, Running: 1 reqs, Waiting: 0 reqs, "
    "GPU KV cache usage: 0.%d%%, Prefix cache hit rate: 0.0%%\n"
    % (30000 + 7 * number % 30000, number % 60, number % 900, number % 100)
    for number in range(2000))


def starts(*files):
    """Real starts, one after the other."""
    return "".join(one["log"] for file in files
                   for one in yaml.safe_load((FIXTURES / file).read_text())["logs"])


def chunks(text):
    """A log of the wanted size, as a file is read."""
    said = io.BytesIO(text.encode())
    left = MEGABYTES * 10**6
    while left > 0:
        chunk = said.read(min(CHUNK, left))
        left -= len(chunk)
        if chunk:
            yield chunk
        else:
            said.seek(0)


def main():
    """Print the best of some rounds."""
    for what, text in (("serves", SERVES), ("starts anew", starts(
            "debian12/vllm-cpu-logs.yml", "debian12/llama-server-logs.yml", "h200/vllm-log.yml"))):
        took = []
        for _ in range(3):
            started = time.perf_counter()
            told = engine_log.scan(chunks(text), ROWS)
            took.append(time.perf_counter() - started)
        print("engine log that %s: %d MB in %.2f s at best, %.0f MB/s; %d rows, %d starts, "
              "%d findings" % (what, MEGABYTES, min(took), MEGABYTES / min(took), len(ROWS),
                               told["starts"], len(told["findings"]) + len(told["earlier"])))


if __name__ == "__main__":
    main()
