# SPDX-License-Identifier: Apache-2.0
"""The fake engine with vLLM's paths of a profiler, and the faults that those may have.

``python profiled_engine.py --port 8000 --profiler-config '{"profiler": "torch", ...}'``: as vLLM it
has ``/start_profile`` and ``/stop_profile`` with that flag only, and writes a trace where it says.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import signal
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import fake_engine  # noqa: E402 - of the folder that this file lies in

HARMLESS = "ERROR: External init callback must run in same thread as registerClient (1 != 2)"
WORK = [
    {"ph": "X", "cat": "cpu_op", "name": "aten::linear", "pid": 1, "tid": 1, "ts": 0, "dur": 100},
    {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "pid": 1, "tid": 1, "ts": 10, "dur": 80},
    {"ph": "X", "cat": "cpu_op", "name": "aten::add", "pid": 1, "tid": 1, "ts": 200, "dur": 20},
]
# What an engine on a GPU writes besides: two streams of it, which work at once for a while.
KERNELS = [
    {"ph": "X", "cat": "kernel", "name": "gemm", "pid": 0, "tid": 7, "ts": 20, "dur": 60,
     "args": {"device": 0, "stream": 7}},
    {"ph": "X", "cat": "kernel", "name": "copy", "pid": 0, "tid": 8, "ts": 50, "dur": 50,
     "args": {"device": 0, "stream": 8}},
]
FAULTS = ("none", "kernels", "no-paths", "refuses", "no-trace", "no-work", "no-json", "a-link",
          "hangs", "hangs-once", "too-much", "grows", "dies", "no-start")
BLOCK = b"x" * 2**20


class Handler(fake_engine.Handler):
    """One request, of the profiler or as of any engine."""

    def do_POST(self):  # noqa: N802
        told, fault = self.server.told, self.server.fault
        if self.path not in ("/start_profile", "/stop_profile"):
            if told.get("recording") and fault == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if told.get("recording") and fault == "grows":
                told["held"] = [bytearray(BLOCK) for _ in range(96)]
                time.sleep(30)
            super().do_POST()
            return
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not told or fault == "no-paths":
            self.send(404, b'{"detail":"Not Found"}')
        elif fault == "refuses":
            self.send(500, b"Internal Server Error")
        elif self.path == "/start_profile":
            told["recording"] = True
            self.send(200, b"")
        else:
            self.write(pathlib.Path(told["torch_profiler_dir"]), fault)
            told["recording"] = False
            self.send(200, b"")

    def write(self, folder, fault):
        """What it recorded."""
        file, hung = folder / "rank0.1.pt.trace.json", folder.parent / "hung"
        if fault == "hangs" or (fault == "hangs-once" and not hung.exists()):
            hung.touch()
            self.server.closing.wait(60)
        elif fault == "too-much":
            with file.open("wb") as trace:
                for _ in range(64):
                    trace.write(BLOCK)
                    trace.flush()
                    time.sleep(0.05)
        elif fault == "a-link":
            file.symlink_to("/etc/hostname")
        elif fault == "no-json":
            file.write_text("disk full")
        elif fault != "no-trace":
            events = {"no-work": [], "kernels": WORK + KERNELS}.get(fault, WORK)
            file.write_text(json.dumps({"traceEvents": events}))


def main():
    """Serve in the foreground until SIGTERM, as an engine does."""
    flags = argparse.ArgumentParser()
    flags.add_argument("--port", type=int, required=True)
    flags.add_argument("--profile-fault", choices=FAULTS, default="none")
    flags.add_argument("--profiler-config", type=json.loads, default={})
    asked = flags.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    told = asked.profiler_config
    if told and asked.profile_fault == "no-start":
        sys.exit("ValueError: torch_profiler_dir is only applicable when profiler is set to "
                 "'torch'")
    engine = fake_engine.Engine(asked.port)
    engine.RequestHandlerClass = Handler
    engine.told, engine.fault = dict(told), asked.profile_fault
    if told:
        print(HARMLESS, file=sys.stderr, flush=True)
    threading.Thread(target=engine.serve_forever, args=(0.02,), daemon=True).start()
    print("fake engine: serves on port %d" % asked.port, flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
