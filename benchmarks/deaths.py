"""Every way to die: `python -m benchmarks.deaths [--quick] [--table docs/deaths.csv]`.

A job writes files. It is killed at a named point or at a random moment, its disk is full or may not be written, a data
file goes, or a process that it started is killed. Afterwards what is on the disk is the old file or the new one, whole.
What goes on ends where an uninterrupted run ends, bit for bit. An error has named the path.

The processes are forked, which Linux can. Root also has disks of its own for the rows that say so."""

import argparse
import csv
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from benchmarks.death_jobs import JOBS, RANKS, Died, Job, launch_ranks, write_data

PLACES = ("before", "half", "after")
FIELDS = ("job", "way", "left", "afterwards", "seconds")


class Way(NamedTuple):
    "A row: what happens to a job."

    job: str
    way: str
    happen: Callable[[Job, Path, float], str]  # the job, its folder, seconds that it takes → what was seen

    @property
    def name(self) -> str:
        return f"{self.job}: {self.way}"


def in_child(call: Callable[[], str], kill_after: float | None = None) -> tuple[int, str]:
    "Run in a forked process. Give how it ended (0, or minus the signal), and what it answered or raised."
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            said, code = call(), 0
        except BaseException as error:
            said, code = f"{type(error).__mro__[0].__name__}: {error}\n{traceback.format_exc()}", 1
        os.write(writing, str(said).encode()[:60_000])
        os._exit(code)
    os.close(writing)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def kill_at(owner: Any, name: str, nth: int, place: str) -> None:
    "Let the nth call of a function end this process: before it, after it, or when half of the content is written."
    real, calls = getattr(owner, name), iter(range(1, 1_000_000))

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) != nth:
            return real(*args, **kwargs)
        if place == "half":
            _write_half(real, name, *args, **kwargs)
        elif place == "after":
            real(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, call)


def _write_half(real: Callable, name: str, first: Any, second: Any, *args: Any, **kwargs: Any) -> None:
    if name == "save":  # torch's: (object, file)
        real(first, second, *args, **kwargs)
        os.truncate(second, Path(second).stat().st_size // 2)
    else:  # a path's: (path, content)
        real(first, second[: len(second) // 2], *args, **kwargs)


def killed(owner: Any, name: str, nth: int, place: str) -> Callable[[Job, Path, float], str]:
    "Kill a job at the nth call of a function."

    def happen(job: Job, folder: Path, _seconds: float) -> str:
        def die() -> str:
            kill_at(owner, name, nth, place)
            return job.run(folder)

        code, said = in_child(die)
        if code != -signal.SIGKILL:
            raise Died(f"was not killed, but ended with {code}: {said}")
        return "killed"

    return happen


def killed_at_random(seed: int) -> Callable[[Job, Path, float], str]:
    "Kill a job at some moment of the time that it takes."

    def happen(job: Job, folder: Path, seconds: float) -> str:
        after = Random(seed).uniform(0.1, 0.95) * seconds
        code, said = in_child(lambda: job.run(folder), kill_after=after)
        if code == 1:
            raise Died(said)
        return "killed" if code else "had ended"

    return happen


def refused(trouble: Callable[[Job, Path], Any], where: str = "") -> Callable[[Job, Path, float], str]:
    "Run a job in trouble: it has to raise a `FileError` or `HeadsError` that names the path."

    def happen(job: Job, folder: Path, _seconds: float) -> str:
        def run() -> str:
            with trouble(job, folder):
                try:
                    job.run(folder)
                except OSError as error:
                    return f"{type(error).__name__}: {error}"
                except ValueError as error:  # a `HeadsError`
                    return f"{type(error).__name__}: {error}"
            return "nothing was raised"

        code, said = in_child(run)
        if code or not said.startswith(("FileError", "HeadsError")) or str(folder / where) not in said:
            raise Died(said)
        return said.split(":")[0]

    return happen


@contextmanager
def small_files(share: float) -> Iterator[None]:
    "Let no file become larger, as a full disk or a quota does."
    most = int(share)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    "Become a user who may not write the folder."
    for found in [folder, *folder.rglob("*")]:
        found.chmod(0o555 if found.is_dir() else 0o444)
    if os.getuid() == 0:
        os.setuid(65534)
    yield


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    "Mount a file system of its own in a folder."
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def remount(options: str) -> Callable[[Job, Path], Any]:
    "Change the file system that the row has been given."

    def trouble(_job: Job, folder: Path) -> Any:
        subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
        return nullcontext()

    return trouble


def full(_job: Job, folder: Path) -> Any:
    "Fill a file system."
    free = os.statvfs(folder)
    (folder / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize))
    return nullcontext()


def ways() -> list[Way]:
    "List every row."
    import torch

    points = {
        "fit": [(torch, "save", 2, p) for p in PLACES] + [(os, "fsync", 3, "before"), (Path, "replace", 2, "before")]
        + [(Path, "replace", 1, "after"), (torch, "save", 1, "half"), (torch.optim.Optimizer, "none", 0, "")][:-1],
        "save": [(torch, "save", 1, p) for p in PLACES] + [(os, "fsync", 1, "after"), (Path, "replace", 1, "before")]
        + [(Path, "replace", 1, "after")],
        "export": [(torch, "save", 1, p) for p in PLACES] + [(Path, "replace", 1, p) for p in ("before", "after")],
        "save_bundle": [(Path, "write_bytes", n, "half") for n in (1, 2, 3)] + [(os, "fsync", 2, "before")]
        + [(Path, "replace", n, p) for n in (1, 2) for p in ("before", "after")],
        "taps": [(Path, "rename", 1, "before"), (Path, "rename", 1, "after"), (Path, "write_text", 1, "half")]
        + [(os, "fsync", n, "before") for n in (1, 3)],
        "compare_to_single": [(Path, "write_text", n, "half") for n in (1, 2, 3)]
        + [(Path, "replace", n, p) for n, p in ((2, "before"), (3, "after"))],
        "predict_folder": [(Path, "replace", 1, "before"), (os, "fsync", 1, "before")],
        "digit_scenes": [(Path, "write_text", 1, "half"), (Path, "replace", 1, "before")],
        "export_onnx": [(Path, "replace", 1, "before"), (Path, "replace", 1, "after")],
    }  # fmt: skip
    rows = [Way(job, f"killed {p} {owner.__name__}.{name}, call {n}", killed(owner, name, n, p))
            for job, listed in points.items() for owner, name, n, p in listed]  # fmt: skip
    timed = {"fit": 5, "taps": 3, "compare_to_single": 3, "save": 1, "export": 1, "save_bundle": 2}
    rows += [Way(job, f"killed at random moment {i}", killed_at_random(100 * i + len(job)))
             for job, n in timed.items() for i in range(n)]  # fmt: skip
    for job in ("fit", "save", "export", "save_bundle", "taps", "compare_to_single", "predict_folder", "digit_scenes"):
        most = 40 if job in ("compare_to_single", "predict_folder") else 900
        rows.append(Way(job, "no file may grow", refused(lambda j, f, most=most: small_files(most))))
        rows.append(Way(job, "a folder that may not be written", refused(lambda j, f: as_nobody(f))))
        if os.getuid() == 0:
            rows.append(Way(job, "a full disk (tmpfs)", refused(full)))
            rows.append(Way(job, "a disk to be read only (tmpfs)", refused(remount("ro"))))
    for job in JOBS:
        if job.startswith(("file, ", "worker, ")):
            way = "goes" if job.startswith("file") else "is killed"
            rows.append(Way(job, way, lambda j, f, _seconds: in_order(j.run, f)))
    return rows + [Way("two ranks", f"rank {rank} is killed {when}", launch_ranks(rank, when)) for rank, when in RANKS]


def in_order(run: Callable[[Path], str], folder: Path) -> str:
    "Run what looks for its own trouble and answers what was raised."
    code, said = in_child(lambda: run(folder))
    if code:
        raise Died(said)
    return said


def happen(way: Way, seconds: float) -> dict[str, str]:
    "Run a row: the job's old state, what happens, and what is there afterwards."
    job, start = JOBS[way.job], time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)  # nobody may pass
        folder = Path(place, "job")
        folder.mkdir()
        with mounted(folder, "size=64m") if "tmpfs" in way.way else nullcontext():
            code, said = in_child(lambda: job.prepare(folder))
            try:
                if code:
                    raise Died(said)
                left = way.happen(job, folder, seconds)
                if "tmpfs" in way.way:
                    remount("rw")(job, folder)
                    (folder / "filler").unlink(missing_ok=True)
                for found in [folder, *folder.rglob("*")]:
                    found.chmod(0o755 if found.is_dir() else 0o644)
                code, afterwards = in_child(lambda: job.check(folder))
                if code:
                    raise Died(afterwards)
            except Died as error:
                left, afterwards = "FAULT", " ".join(str(error).split())[-400:]
    return {"job": way.job, "way": way.way, "left": left, "afterwards": afterwards,
            "seconds": f"{time.monotonic() - start:.1f}"}  # fmt: skip


def time_of(job: Job) -> float:
    "Seconds that a job takes undisturbed; what it ends with is kept for the comparison."
    with tempfile.TemporaryDirectory() as folder:
        in_child(lambda: job.prepare(Path(folder)))
        start = time.monotonic()
        code, said = in_child(lambda: job.run(Path(folder)))
        if code:
            raise Died(said)
        seconds = time.monotonic() - start
        code, said = in_child(lambda: job.keep(Path(folder)))
        if code:
            raise Died(said)
        return seconds


QUICK = (
    "fit: killed half torch.save, call 2",
    "save: killed before Path.replace",
    "export: no file may grow",
    "save_bundle: killed after Path.replace, call 1",
    "taps: killed before Path.rename",
)


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    "Write rows to a table. Others that it has stay; rows that are no longer tried go."
    old = list(csv.DictReader(path.open(newline=""))) if path.exists() else []
    found = {(row["job"], row["way"]): row for row in [*old, *rows]}
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found[way.job, way.way] for way in ways() if (way.job, way.way) in found)


def main() -> int:
    "Run the command. Exits with 1 where there is a fault."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, help="write the rows to this CSV")
    parser.add_argument("--quick", action="store_true", help="a few rows, for the tests")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    options = parser.parse_args()
    chosen = [w for w in ways() if options.only in w.name]
    if options.quick:
        chosen = [w for w in chosen if w.name.startswith(QUICK)]
    rows, seconds = [], {}
    with tempfile.TemporaryDirectory() as data:
        Path(data).chmod(0o755)
        write_data(Path(data))
        for way in chosen:
            if way.job not in seconds and JOBS[way.job].timed:
                seconds[way.job] = time_of(JOBS[way.job])
            rows.append(happen(way, seconds.get(way.job, 0.0)))
            print(*rows[-1].values(), sep=" | ", flush=True)
    faults = sum(row["left"] == "FAULT" for row in rows)
    print(f"{len(rows) - faults} of {len(rows)} ways")
    if options.table:
        write_table(options.table, rows)
    return int(faults > 0 or not rows)


if __name__ == "__main__":
    sys.exit(main())
