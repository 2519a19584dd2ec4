"""Feed damaged files and senseless command lines to the package::

    OMP_NUM_THREADS=1 python -m tests.fuzz --inputs 10000

Inputs are shared out among audio files, model folders, run.json, posterior.nc and command lines, and follow from the
seed. Each has to end well or be refused by an error of the package or of the system: by no other exception, by no
signal, within 20 s of computing, and with less than 2 GiB of memory beyond what the package needs by itself. What was
wrong is printed once for each kind, with the smallest input, which ``--keep FOLDER`` writes; it ends with 1 where
anything was.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

from pyrosep.errors import PyrosepError
from tests.fuzz.targets import Foreign, Target, targets

#: Seconds of computing, and bytes of memory, that an input may take.
SECONDS, MEMORY = 20, 2 << 30
#: Seconds by the clock, on a machine that may be busy, after which an input that computes nothing is said to hang.
PATIENCE = 120
#: Inputs after which a process is replaced, lest what they left in memory is held against the next.
BATCH = 200


class Fuzzing:
    """Inputs of one target, called in forked processes; ``faults`` has the smallest input of each kind of fault."""

    def __init__(self, name: str, target: Target, folder: Path, seed: int) -> None:
        self.name, self.target, self.folder, self.seed = name, target, folder, seed
        self.faults: dict[str, tuple[str, bytes]] = {}
        self.refused = 0

    def input(self, number: int) -> tuple[str, bytes]:
        return self.target.make(random.Random(f"{self.name} {self.seed} {number}"))

    def run(self, inputs: int) -> None:
        """Call all inputs, each process for as many as it lives."""
        number = 0
        while number < inputs:
            number = self._batch(number, min(number + BATCH, inputs))

    def _batch(self, begin: int, end: int) -> int:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            self._child(begin, end, writing)
        os.close(writing)
        number = begin
        hung = False
        with os.fdopen(reading, "rb", buffering=0) as answers:
            while True:
                if not select.select([answers], [], [], PATIENCE)[0]:
                    os.kill(pid, signal.SIGKILL)
                    hung = True
                if not (head := answers.read(5)):
                    break
                refused, length = struct.unpack("<BI", head)
                kind = answers.read(length).decode("utf-8", "replace")
                self.refused += refused
                if kind:
                    self._fault(kind, number)
                number += 1
        _, status = os.waitpid(pid, 0)
        if number < end:  # it died of this input
            code = os.waitstatus_to_exitcode(status)
            if hung or code == -signal.SIGVTALRM:
                self._fault(f"hung for {PATIENCE} s" if hung else f"took more than {SECONDS} s", number)
            elif code < 0:
                self._fault(f"killed by {signal.Signals(-code).name}", number)
            else:
                self._fault(f"ended the process with {code}", number)
            number += 1
        return number

    def _fault(self, kind: str, number: int) -> None:
        name, data = self.input(number)
        if kind not in self.faults or len(data) < len(self.faults[kind][1]):
            self.faults[kind] = (name, data)

    def _child(self, begin: int, end: int, writing: int) -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        warnings.simplefilter("ignore")
        used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, used + MEMORY))
        signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
        for number in range(begin, end):
            # Stops what computes in C as well, which a handler in Python would not.
            signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
            place = self.folder / "input"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            kind, refused = "", 0
            try:
                self.target.call(*self.input(number), place)
            except (PyrosepError, OSError):
                refused = 1
            except BaseException as error:
                kind = _kind(error)
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            text = kind.encode("utf-8", "replace")
            os.write(writing, struct.pack("<BI", refused, len(text)) + text)
        os._exit(0)


def _kind(error: BaseException) -> str:
    """An exception by its type and the last line of the package that it came through."""
    if isinstance(error, Foreign):
        return " ".join(str(error).split())[:160]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/pyrosep/" in frame.filename]
    where = f"{frames[-1].filename.rpartition('/pyrosep/')[2]}:{frames[-1].lineno}" if frames else "elsewhere"
    return f"{type(error).__name__} at {where}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="of all targets together")
    parser.add_argument("--target", action="append", help="which one; may be given again [all]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the smallest input of each kind of fault")
    args = parser.parse_args()
    # Of a hundred inputs; command lines and records take the longest.
    shares = {"audio": 40, "models": 30, "posteriors": 15, "records": 5, "commands": 10}
    chosen = args.target or list(shares)
    wrong = False
    with tempfile.TemporaryDirectory() as folder:
        for name, target in targets(Path(folder)).items():
            if name not in chosen:
                continue
            count = max(1, round(args.inputs * shares[name] / sum(shares[one] for one in chosen)))
            fuzzing = Fuzzing(name, target, Path(folder), args.seed)
            fuzzing.run(count)
            print(
                f"{name}: {count} inputs, {fuzzing.refused} refused, {len(fuzzing.faults)} kinds of faults", flush=True
            )
            for number, (kind, (file, data)) in enumerate(sorted(fuzzing.faults.items())):
                print(f"  {kind} ({file}, {len(data)} bytes)", flush=True)
                if args.keep is not None:
                    place = args.keep / f"{name}-{number}" / file
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(data)
            wrong = wrong or bool(fuzzing.faults)
    sys.exit(int(wrong))


if __name__ == "__main__":
    main()
