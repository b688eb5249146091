# SPDX-License-Identifier: Apache-2.0
"""A program for the engine's own Python: whether its devices write to each other, in time.

    python -c SOURCE KIND DEVICES [SECONDS]

``KIND`` is ``cuda``, or ``cpu`` for processes without devices. It needs nothing but torch. First
one process copies a pattern from each device into the memory of each other one, and back. Then one
process a device takes part in collectives, whose results are known. Nobody waits for ever: where no
process moves on for ``SECONDS``, all of them are ended.

It ends with 0 where all is right. Else it prints what is wrong, in lines that begin with
``firstlight collective:``, beside what torch and NCCL said.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from typing import Any, Callable, Dict, List, Tuple

Tell = Callable[[str], None]
"""Says which step a process is at."""
Task = Callable[[Tell], bool]
"""What a process does; whether all was right. What was wrong it printed."""

START_S = 240.0
"""Seconds for a process to have torch and its device: it is read from a disk that may be slow."""
STEP_S = 60.0
TOTAL_S = 420.0
# How long the others may still speak when one has failed, and how long a killed one is waited for.
GRACE_S = 3.0
PERIOD_S = 0.1
MOST_OUTPUT = 256 * 1024
MOST_TOLD = 4000

START = "the start of torch"
# Sizes at which NCCL takes different ways.
NUMBERS = (1 << 10, 1 << 18, 1 << 22)
COPIED = 1 << 20
# A device maps so many others at a time, where no switch is between them.
MOST_PEERS = 8
DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
# How a process ends that said what is wrong.
TOLD = 3


def main(argv: List[str]) -> int:
    """The exit status."""
    kind, world = argv[0], int(argv[1])
    step_s = float(argv[2]) if len(argv) > 2 else STEP_S
    deadline = time.monotonic() + TOTAL_S
    end_with_parent()
    # In a process of its own: what it maps would be in the way of NCCL. Where NCCL is not to write
    # from device to device, nobody does.
    if kind == "cuda" and not _is_set("NCCL_P2P_DISABLE") and not watch(
            {"the copying process": lambda tell: _peers(world, tell)}, step_s, deadline):
        return 1
    folder = tempfile.mkdtemp(prefix="firstlight-collective-")
    try:
        store = os.path.join(folder, "store")
        ranks: Dict[str, Task] = {
            "rank %d" % rank: (lambda tell, rank=rank:  # type: ignore[misc]
                               _collectives(kind, world, rank, store, tell))
            for rank in range(world)}
        return 0 if watch(ranks, step_s, deadline) else 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_set(name: str) -> bool:
    return os.environ.get(name, "0").strip() not in ("", "0")


# What the processes do.


def _torch(tell: Tell) -> Any:
    tell(START)
    return importlib.import_module("torch")


def _peers(world: int, tell: Tell) -> bool:
    """Copy from each device to each other one, and back."""
    torch = _torch(tell)
    if not _enough(torch, world):
        return False
    right = True
    for source in range(world):
        for target in targets(source, world):
            tell("peer copy %d -> %d" % (source, target))
            wrong = _wrong_numbers(torch, source, target)
            if wrong:
                right = False
                reach = torch.cuda.can_device_access_peer(source, target)
                _say("peer copy %d -> %d differs in %d of %d numbers (%s -> %s; by the driver they "
                     "%s each other)" % (
                         source, target, wrong, 2 * COPIED, _name(torch, source),
                         _name(torch, target), "reach" if reach else "do not reach"))
    return right


def targets(source: int, world: int) -> List[int]:
    """The devices that one writes to: all others, or its neighbours where those are too many."""
    if world > MOST_PEERS:
        return sorted({(source - 1) % world, (source + 1) % world})
    return [target for target in range(world) if target != source]


def _wrong_numbers(torch: Any, source: int, target: int) -> int:
    """How many numbers are not what was written, there and read back."""
    # No two pairs have the same, and none is what fresh memory may hold.
    wanted = torch.arange(COPIED, dtype=torch.int32) * 31 + 1000003 * (64 * source + target + 1)
    here = wanted.to("cuda:%d" % source)
    there = torch.zeros(COPIED, dtype=torch.int32, device="cuda:%d" % target)
    # One half by the copying engine, the other by a kernel, as NCCL does.
    half = COPIED // 2
    there[:half].copy_(here[:half])
    there[half::2].copy_(here[half::2])
    there[half + 1::2].copy_(here[half + 1::2])
    back = torch.zeros_like(here)
    torch.cuda.synchronize(source)
    torch.cuda.synchronize(target)
    back.copy_(there)
    torch.cuda.synchronize(target)
    torch.cuda.synchronize(source)
    return sum(int((found.cpu() != wanted).sum()) for found in (there, back))


def _collectives(kind: str, world: int, rank: int, store: str, tell: Tell) -> bool:
    """Collectives of some sizes, by what the engine uses between its devices."""
    torch = _torch(tell)
    on_devices = kind == "cuda"
    if on_devices:
        if not _enough(torch, world):
            return False
        torch.cuda.set_device(rank)
    dist, backend = torch.distributed, "nccl" if on_devices else "gloo"
    tell("init_process_group")
    dist.init_process_group(backend, init_method="file://" + store, rank=rank, world_size=world)
    right = True
    for numbers in NUMBERS:
        base = torch.arange(numbers, dtype=torch.float32, device="cuda" if on_devices else "cpu")
        base = base % 509 + 1
        mine = base * (rank + 1)

        what = "%s all_gather of %d bytes" % (backend, 4 * numbers)
        tell(what)
        gathered = [torch.zeros_like(mine) for _ in range(world)]
        dist.all_gather(gathered, mine)
        for other in range(world):
            right &= _same(what, rank, gathered[other], base * (other + 1))

        what = "%s all_reduce of %d bytes" % (backend, 4 * numbers)
        tell(what)
        # Whole numbers that fit, so that the order of adding means nothing.
        dist.all_reduce(mine)
        right &= _same(what, rank, mine, base * (world * (world + 1) // 2))
    tell("gloo barrier")
    # What is not of devices vLLM says by gloo. Nobody leaves while another still reads from it.
    dist.barrier(group=dist.new_group(backend="gloo"))
    return right


def _same(what: str, rank: int, found: Any, wanted: Any) -> bool:
    wrong = int((found != wanted).sum())
    if wrong:
        _say("%s is wrong on rank %d: %d of %d numbers" % (what, rank, wrong, wanted.numel()))
    return not wrong


def _enough(torch: Any, world: int) -> bool:
    seen = torch.cuda.device_count()
    if seen < world:
        _say("torch %s sees %d of %d devices" % (torch.__version__, seen, world))
    return bool(seen >= world)


def _name(torch: Any, device: int) -> str:
    properties = torch.cuda.get_device_properties(device)
    uuid = getattr(properties, "uuid", None)
    return "GPU-%s" % uuid if uuid else str(properties.name)


def _say(text: str) -> None:
    print("firstlight collective: " + text, flush=True)


# To run them, and to wait no longer than that makes sense.


def watch(tasks: Dict[str, Task], step_s: float, deadline: float) -> bool:
    """Run each task in a process of its own; whether all of them were right.

    :param tasks: by what the process is called.
    :param step_s: seconds without a step of any process after which all are ended.
    :param deadline: of the monotonic clock; they are ended then at the latest.
    """
    output, says = os.pipe()
    steps, moves = os.pipe()
    names: Dict[int, str] = {}
    for name, task in tasks.items():
        child = os.fork()
        if child == 0:
            os.close(output)
            os.close(steps)
            _child(name, task, says, moves)
        names[child] = name
    os.close(says)
    os.close(moves)
    watched = _Watched(names, output, steps)
    try:
        return watched.wait(step_s, deadline)
    finally:
        watched.end()


def _child(name: str, task: Task, says: int, moves: int) -> None:
    """The rest of a forked process."""
    status = 1
    try:
        end_with_parent()
        for stream in (1, 2):
            os.dup2(says, stream)
        right = task(lambda step: _tell(moves, name, step))
        status = 0 if right else TOLD
    except BaseException as problem:
        # In one piece, as others write there too. Where it was is known by the step.
        said = "".join(traceback.format_exception_only(type(problem), problem))
        os.write(2, said.encode("utf-8", "replace")[:MOST_TOLD])
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        # What a library does when a program ends may hang, and has no part in it.
        os._exit(status)


def _tell(moves: int, name: str, step: str) -> None:
    os.write(moves, ("%s\t%s\n" % (name, step)).encode())


class _Watched:
    """Processes, what they print, and the step that each is at."""

    def __init__(self, names: Dict[int, str], output: int, steps: int) -> None:
        self._names, self._output, self._steps = names, output, steps
        self._open = {output, steps}
        self._alive = set(names)
        self._at: Dict[str, Tuple[int, str]] = dict.fromkeys(
            names.values(), (0, START))
        self._half, self._printed = b"", 0
        self._begun = self._moved = time.monotonic()

    def wait(self, step_s: float, deadline: float) -> bool:
        """Wait for their ends, and say what is wrong with those that nobody could have told of."""
        failed_at = None
        right = True
        while self._alive:
            self._read(PERIOD_S)
            for name, status in self._ended():
                self._moved = time.monotonic()
                if status == 0:
                    continue
                right = False
                # What happens to the others from here on follows from it. But one that is killed
                # takes its time to end, and others may have failed of that before.
                if failed_at is None or status == -signal.SIGKILL:
                    self._say_end(name, status)
                failed_at = failed_at or time.monotonic()
            now = time.monotonic()
            if failed_at is not None:
                if now - failed_at > GRACE_S:
                    break
                continue
            if not self._alive:
                break
            slowest = min(self._at[self._names[pid]] for pid in self._alive)[1]
            limit_s = START_S if slowest == START else step_s
            if now - self._moved > limit_s or now > deadline:
                right = False
                self._read(0)
                since = self._begun if now > deadline else self._moved
                _say("timed out after %d s in %s (%s)" % (
                    now - since, slowest,
                    "; ".join("%s: %s" % (name, self._at[name][1]) for name in self._at)))
                break
        self._read(0)
        return right

    def end(self) -> None:
        """Kill those that are left; one that a driver holds in the kernel is not waited for."""
        for pid in self._alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + GRACE_S
        while self._alive and time.monotonic() < deadline:
            self._read(PERIOD_S)
            self._ended()
        for pipe in (self._output, self._steps):
            os.close(pipe)

    def _ended(self) -> List[Tuple[str, int]]:
        """Names and exit statuses of those that have ended since, the worst first.

        A signal is negative. One that was killed makes others fail at once.
        """
        found = []
        for pid in sorted(self._alive):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self._alive.discard(pid)
                found.append((self._names[pid], -os.WTERMSIG(status) if os.WIFSIGNALED(status)
                              else os.WEXITSTATUS(status)))
        return sorted(found, key=lambda one: one[1])

    def _say_end(self, name: str, status: int) -> None:
        self._read(0)
        how = "was ended by signal %d" % -status if status < 0 else "failed"
        if status != TOLD:
            _say("%s %s in %s" % (name, how, self._at[name][1]))

    def _read(self, wait_s: float) -> None:
        """Pass on what they print, and take down their steps: all that is there, or one wait."""
        if not self._open:
            time.sleep(wait_s)
            return
        while True:
            ready = select.select(sorted(self._open), [], [], wait_s)[0]
            wait_s = 0
            if not ready:
                return
            for pipe in ready:
                content = os.read(pipe, 65536)
                if not content:
                    self._open.discard(pipe)
                elif pipe == self._output:
                    self._pass_on(content)
                else:
                    self._take_down(content)
            if not self._open:
                return

    def _pass_on(self, content: bytes) -> None:
        kept = content[:max(0, MOST_OUTPUT - self._printed)]
        self._printed += len(kept)
        os.write(1, kept)

    def _take_down(self, content: bytes) -> None:
        *lines, self._half = (self._half + content).split(b"\n")
        for line in lines:
            name, _, step = line.decode("utf-8", "replace").partition("\t")
            self._at[name] = (self._at[name][0] + 1, step)
            self._moved = time.monotonic()


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends: it would hold memory of devices."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
