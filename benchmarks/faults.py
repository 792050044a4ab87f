"""Kills, signals, damages and fills up real runs at random moments, and counts which end as if nothing had been.

python benchmarks/faults.py [--seed=0] [--scale=1] [--processes 1 2] [--output=table.md]

Does `PLAN`, or that share of it. Runs are interrupted up to five times each and then left
alone; one counts as identical when metrics.jsonl and the checksum of every array of its last checkpoint are those of a
run that nothing happened to. Full disks need the right to mount a tmpfs and are left out without it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS_PER_EPOCH = 8
TRAIN = [
    "--config=configs/quickstart.py",
    "--config.train.num_epochs=4",
    "--config.validation.every_epochs=1",
    "--config.data.train_examples=256",
    "--config.train.batch_size=32",
    "--config.train.log_every_steps=3",
    "--config.attack.num_steps=2",
    "--config.validation.num_steps=2",
]
# fault -> how many over one process, and over two
PLAN = {
    "kill in start-up": (8, 3),
    "kill in a step": (12, 4),
    "kill in a save": (12, 4),
    "kill in an evaluation": (12, 3),
    "kill at any moment": (12, 4),
    "SIGTERM": (6, 2),
    "SIGINT": (4, 1),
    "SIGTERM twice": (4, 0),
    "damaged checkpoint": (16, 4),
    "full disk": (8, 2),
}
MOST_FAULTS_OF_A_RUN = 5
SECONDS_TO_END = 120  # in which all processes of a run have to end after one was killed; start-up included
DISK = "64m"
COLUMNS = ("injected", "identical", "lost", "wrong")


class Bench:
    """Runs in a folder, on a small disk of their own where that can be had."""

    def __init__(self, folder: Path, seed: int):
        self.folder = folder
        self.random = random.Random(seed)
        self.disk = folder / "disk"
        self.disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(self.disk)]
        self.mounted = os.name == "posix" and subprocess.run(mount, capture_output=True, check=False).returncode == 0
        self.seconds: dict[int, tuple[float, float]] = {}  # processes -> until the first line, until the end
        self.wanted: dict[int, tuple[str, str]] = {}  # processes -> ending of an undisturbed run

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.disk)], check=False)

    def start(self, workdir: Path, processes: int) -> list[subprocess.Popen]:
        """The processes of a run; what they print lies beside the workdir."""
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(4 // processes),
            "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        together = []
        if processes > 1:
            with socket.socket() as free:
                free.bind(("localhost", 0))
                together = [f"--coordinator=localhost:{free.getsockname()[1]}", f"--num_processes={processes}"]
        started = []
        for i in range(processes):
            numbered = [f"--process_id={i}"] if together else []
            command = [sys.executable, "-m", "robustjax.train", *TRAIN, f"--workdir={workdir}", *together, *numbered]
            with open(self.folder / f"{workdir.name}.{i}.err", "w") as errors:
                started.append(
                    subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
                )
        return started

    def errors(self, workdir: Path, process: int = 0) -> list[str]:
        return (self.folder / f"{workdir.name}.{process}.err").read_text().strip().splitlines()

    def measure(self, processes: int) -> None:
        """An undisturbed run twice: first to fill the compilation cache, then for the times and the ending."""
        for name in ("cold", "warm"):
            workdir = self.disk / f"{name}{processes}"
            began = time.monotonic()
            running = self.start(workdir, processes)
            first = wait(running, lambda workdir=workdir: metrics(workdir)) - began
            statuses = [process.wait() for process in running]
            assert not any(statuses), self.errors(workdir)
            self.seconds[processes] = first, time.monotonic() - began
            ended = ending(workdir)
            assert self.wanted.setdefault(processes, ended) == ended, "two undisturbed runs differ"


def metrics(workdir: Path) -> str:
    path = workdir / "metrics.jsonl"
    return path.read_text() if path.exists() else ""


def checkpoints(workdir: Path) -> list[int]:
    """The steps of the whole checkpoints, rising."""
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) if folder.exists() else []


def ending(workdir: Path) -> tuple[str, str]:
    last = workdir / "checkpoints" / str(checkpoints(workdir)[-1])
    return metrics(workdir), (last / "manifest" / "metadata").read_text()


def wait(running: list[subprocess.Popen], condition: Callable[[], object]) -> float:
    """Until the condition holds or a process has ended; the time then."""
    while all(process.poll() is None for process in running) and not condition():
        time.sleep(0.001)
    return time.monotonic()


def moment(bench: Bench, fault: str, workdir: Path, running: list[subprocess.Popen]) -> None:
    """Waits for a moment of the kind that the fault names, at random within it."""
    first, whole = bench.seconds[len(running)]
    before = len(metrics(workdir))

    def saving() -> bool:
        folder = workdir / "checkpoints"
        return folder.exists() and any("tmp" in path.name for path in folder.iterdir())

    def evaluating() -> bool:
        text = metrics(workdir)
        if len(text) <= before or not text.endswith("\n"):
            return False
        line = json.loads(text.splitlines()[-1])
        return line["split"] == "train" and line["step"] % STEPS_PER_EPOCH == 0

    if fault.endswith("start-up"):
        condition, within = (lambda: True), first
    elif fault.endswith("step"):
        condition, within = (lambda: len(metrics(workdir)) > before), whole - first
    elif fault.endswith("save"):
        condition, within = saving, 0.1
    elif fault.endswith("evaluation"):
        condition, within = evaluating, 0.1
    else:
        condition, within = (lambda: True), whole
    wait(running, condition)
    until = time.monotonic() + bench.random.uniform(0, within)
    wait(running, lambda: time.monotonic() >= until)


def inject(bench: Bench, fault: str, workdir: Path, processes: int) -> tuple[bool, str]:
    """One fault of a run. Whether there was an occasion for it, and what was wrong with how the run took it."""
    if fault == "damaged checkpoint":
        return damage(bench, workdir, processes)
    if fault == "full disk":
        return fill(bench, workdir, processes)
    began = time.monotonic()
    running = bench.start(workdir, processes)
    moment(bench, fault, workdir, running)
    if any(process.poll() is not None for process in running):  # it was too quick
        return False, end(running, bench, workdir, allowed=(0,))
    kill = fault.startswith("kill")
    # While they wait for each other to begin, processes allow for minutes: there all are killed, as a scheduler does.
    all_of_them = bench.random.random() < 0.3 or time.monotonic() - began < bench.seconds[processes][0]
    victims = running if all_of_them else [bench.random.choice(running)]
    for process in victims:
        process.send_signal(signal.SIGKILL if kill else getattr(signal, fault.split()[0]))
        if fault.endswith("twice"):
            time.sleep(bench.random.uniform(0, 0.2))
            process.send_signal(signal.SIGTERM)
    # A signal before training began ends a process in the usual way: there is nothing yet to save.
    allowed = None if kill or processes > 1 else (0, -signal.SIGTERM, -signal.SIGINT, 130)
    return True, end(running, bench, workdir, allowed=allowed)


def end(running: list[subprocess.Popen], bench: Bench, workdir: Path, *, allowed: tuple[int, ...] | None) -> str:
    deadline = time.monotonic() + SECONDS_TO_END
    try:
        statuses = [process.wait(timeout=max(0.1, deadline - time.monotonic())) for process in running]
    except subprocess.TimeoutExpired:
        for process in running:
            process.kill()
            process.wait()
        return f"still running after {SECONDS_TO_END} s"
    if allowed is not None and not set(statuses) <= set(allowed):
        return f"exit status {statuses}: {' '.join(bench.errors(workdir))[-500:]}"
    return ""


def damage(bench: Bench, workdir: Path, processes: int) -> tuple[bool, str]:
    if len(checkpoints(workdir)) < 2:
        running = bench.start(workdir, processes)
        wait(running, lambda: len(checkpoints(workdir)) >= 2)
        for process in running:
            process.kill()
        end(running, bench, workdir, allowed=None)
    newest = workdir / "checkpoints" / str(checkpoints(workdir)[-1])
    files = [path for path in newest.rglob("*") if path.is_file()]
    path = bench.random.choice([path for path in files if path.stat().st_size])
    content = bytearray(path.read_bytes())
    how = bench.random.choice(("flip", "tear", "empty", "remove"))
    if how == "flip":
        content[bench.random.randrange(len(content))] ^= 1 << bench.random.randrange(8)
    elif how == "tear":
        content = content[: bench.random.randrange(len(content))]
    path.write_bytes(b"" if how == "empty" else content)
    if how == "remove":
        path.unlink()
    return True, ""


def fill(bench: Bench, workdir: Path, processes: int) -> tuple[bool, str]:
    used = sum(path.stat().st_blocks * 512 for path in bench.disk.rglob("*"))
    resize(bench, str(used + bench.random.randrange(8_000, 400_000)))
    try:
        running = bench.start(workdir, processes)
        wrong = end(running, bench, workdir, allowed=(0, 1, 2) if processes == 1 else None)
    finally:
        resize(bench, DISK)
    if running[0].returncode == 0:
        return False, wrong
    lines = [line for line in bench.errors(workdir) if "space left" in line]
    if not wrong and processes == 1 and (len(lines) != 1 or len(bench.errors(workdir)) != 1):
        wrong = f"not one clear line: {bench.errors(workdir)}"
    return True, wrong


def resize(bench: Bench, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(bench.disk)], check=True)


def series(bench: Bench, faults: list[str], processes: int, report: Callable[[str], None]) -> dict[str, Counter]:
    """Injects all the faults in random order, several to a run. fault -> counts."""
    counts = {fault: Counter() for fault in faults}
    left = faults[:]
    bench.random.shuffle(left)
    number = 0
    while left:
        number += 1
        workdir = bench.disk / f"run{processes}_{number}"
        injected: list[str] = []
        lost = damaged = False
        while left and len(injected) < MOST_FAULTS_OF_A_RUN and (metrics(workdir), "") != bench.wanted[processes]:
            fault = left.pop()
            before = checkpoints(workdir)
            occasion, wrong = inject(bench, fault, workdir, processes)
            after = checkpoints(workdir)
            lost |= bool(before) and (not after or after[-1] < before[-1] - (STEPS_PER_EPOCH if damaged else 0))
            damaged = fault == "damaged checkpoint"
            if wrong:
                counts[fault]["wrong"] += 1
                report(f"{workdir.name}: {fault}: {wrong}")
            if not occasion:
                left.insert(bench.random.randrange(len(left) + 1), fault)
                break  # the run has come to its end
            injected.append(fault)
        end(bench.start(workdir, processes), bench, workdir, allowed=(0,))
        identical = bool(checkpoints(workdir)) and ending(workdir) == bench.wanted[processes]
        if not identical:
            report(f"{workdir.name} after {injected}: differs; {bench.errors(workdir)[-3:]}")
        for fault in injected:
            counts[fault]["injected"] += 1
            counts[fault]["identical"] += identical
            counts[fault]["lost"] += lost
        report(f"{workdir.name}: {', '.join(injected) or 'nothing'}: {'identical' if identical else 'DIFFERENT'}")
        if identical:
            subprocess.run(["rm", "-rf", str(workdir)], check=True)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of faults")
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--output", type=Path, help="file for the table")
    options = parser.parse_args()
    began = time.monotonic()
    rows = []
    with tempfile.TemporaryDirectory(prefix="faults") as name:
        bench = Bench(Path(name), options.seed)
        try:
            for processes in options.processes:
                bench.measure(processes)
                numbers = {
                    fault: round(options.scale * number[processes - 1])
                    for fault, number in PLAN.items()
                    if bench.mounted or fault != "full disk"
                }
                faults = [fault for fault, number in numbers.items() for _ in range(number)]
                counts = series(bench, faults, processes, lambda line: print(line, file=sys.stderr, flush=True))
                rows += [(fault, processes, count) for fault, count in counts.items()]
        finally:
            bench.close()
    lines = ["| fault | processes | injected | runs that ended bit-identical | checkpoints lost | taken wrongly |"]
    lines.append("|---|--:|--:|--:|--:|--:|")
    total = Counter()
    for fault, processes, count in rows:
        total += count
        lines.append(f"| {fault} | {processes} | " + " | ".join(str(count[key]) for key in COLUMNS) + " |")
    lines.append("| all | | " + " | ".join(str(total[key]) for key in COLUMNS) + " |")
    table = "\n".join(lines)
    print(table)
    print(f"{time.monotonic() - began:.0f} s")
    if options.output:
        options.output.write_text(table + "\n")
    return 0 if total["injected"] == total["identical"] and not total["lost"] and not total["wrong"] else 1


if __name__ == "__main__":
    sys.exit(main())
