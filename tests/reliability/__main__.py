"""Kill the commands at random moments, fill their disk, take their folder away, run two into one folder::

    OMP_NUM_THREADS=1 python -m tests.reliability --times 100

Each run is followed by one that nothing disturbs, whose result has to be that of one that was never disturbed. Prints
what was wrong, by command and disturbance, and ends with 1 where anything was.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.reliability.runs import Case, Ended, Run, cases, import_what, inputs, leftovers, remove

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
DISTURBANCES = ("signal", "full", "gone", "two")


class Trials:
    """Disturbed runs of one command, in a folder of their own; ``faults`` counts what was wrong."""

    def __init__(self, case: Case, folder: Path, seed: int) -> None:
        self.case, self.folder, self.random = case, folder, random.Random(f"{case.name} {seed}")
        folder.mkdir()
        self.count = 0
        self.done: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        reference = folder / "reference"
        first = Run(case.arguments(reference), folder / "first.log", modules=True)
        ended = first.ended()
        if ended.status != 0:
            raise RuntimeError(f"{case.name} does not work undisturbed: {ended.errors}")
        import_what(first)
        remove(reference)
        began = time.monotonic()
        Run(case.arguments(reference), folder / "reference.log").ended()
        self.seconds = time.monotonic() - began
        self.expected = case.result(reference)
        assert self.expected, f"{case.name} made nothing"

    def disturb(self, how: str) -> None:
        """Disturb one run in a way, and repeat it undisturbed."""
        self.count += 1
        out, log = self.folder / f"out{self.count}", self.folder / "run.log"
        arguments = self.case.arguments(out)
        moment = self.random.uniform(0, 1.1 * self.seconds)
        if how == "signal":
            signum = self.random.choice(SIGNALS)
            kind = signum.name
            ended = Run(arguments, log).after(moment, signum)
            expected = {0, -signum, 128 + signum}
            if signum != signal.SIGKILL:
                self.check(not leftovers(out), f"{kind} leaves {self._names(out)}")
        elif how == "full":
            kind, expected = "disk full", {0, 1}
            ended = Run(arguments, log, file_bytes=int(2 ** self.random.uniform(10, 17))).ended()
        elif how == "gone":
            kind, expected = "folder taken away", {0, 1}
            away = self.folder / "away"
            ended = Run(arguments, log).after(moment, act=lambda: out.exists() and out.rename(away))
            shutil.rmtree(away, ignore_errors=True)
        else:
            kind, expected = "two runs", {0, 1}
            other = Run(arguments, self.folder / "other.log")
            ended = Run(arguments, log).ended()
            self._ended(kind, other.ended(), expected)
        self.done[kind] += 1
        self._ended(kind, ended, expected)
        self._whole(kind, out)
        again = Run(arguments, log).ended()
        self.check(again.status == 0 and again.clean, f"{kind}: the run after it ends with {again}")
        if again.status == 0:
            found = self._whole(kind, out) or {}
            self.check(found == self.expected, f"{kind}: the run after it lacks {sorted({*self.expected} - {*found})}")
        self.check(not leftovers(out), f"{kind}: the run after it leaves {self._names(out)}")
        remove(out)

    def check(self, right: bool, words: str) -> None:
        if not right:
            self.faults[words] += 1

    def _ended(self, kind: str, ended: Ended, expected: set[int]) -> None:
        if ended.hung:
            print(f"{self.case.name}, {kind}: hung\n{ended.errors}", flush=True)
        self.check(ended.status in expected, f"{kind}: status {ended.status}")
        self.check(ended.clean, f"{kind}: {'hung' if ended.hung else ended.errors.strip()[-600:]}")

    def _whole(self, kind: str, out: Path) -> dict[str, str] | None:
        try:
            found = self.case.result(out)
        except Exception as error:
            self.check(False, f"{kind}: something half-written counts as finished: {type(error).__name__}: {error}")
            return None
        # What training writes is replaced when the next source is trained; tracks and scores stay.
        wrong = [name for name, value in found.items() if self.expected.get(name) != value]
        self.check(not wrong, f"{kind}: another result: {wrong}")
        return found

    def _names(self, out: Path) -> str:
        return ", ".join(sorted({Path(path).name[:6] + "*" for path in leftovers(out)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=100, help="disturbances of each command")
    parser.add_argument("--command", action="append", help="which command; may be given again [all]")
    parser.add_argument("--how", action="append", choices=DISTURBANCES, help="may be given again [all]")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    wrong = False
    with tempfile.TemporaryDirectory() as folder:
        place = inputs(Path(folder))
        for name, case in cases(place).items():
            if args.command and name not in args.command:
                continue
            trials = Trials(case, place / f"{name} runs", args.seed)
            ways = args.how or DISTURBANCES
            for number in range(args.times):
                # Half of the disturbances are signals, where nothing else is asked for.
                trials.disturb(ways[0] if args.how is None and number % 2 else ways[number // 2 % len(ways)])
            print(f"{name} ({trials.seconds:.1f} s): {dict(trials.done)}", flush=True)
            for fault, count in trials.faults.most_common():
                print(f"  {count} times: {fault}".replace(folder, ""), flush=True)
            wrong = wrong or bool(trials.faults)
    sys.exit(int(wrong))


if __name__ == "__main__":
    main()
