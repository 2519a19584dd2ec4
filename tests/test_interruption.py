"""Signals end a program in order: wherever they come, whatever swallows them, with the status that shells give."""

import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="Windows has no timers")

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
#: Seconds that an end may take on a busy machine, and after which a program has not heeded its signal.
LIMIT = 30


def heeding():
    """Undo what the tests' own parent may ignore, as a shell does for programs in the background."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_DFL)


def started(program, folder, *, before="", preexec_fn=heeding, **options):
    """A process that runs a program of Python, and has printed "ready"."""
    file = folder / "program.py"
    file.write_text(f"import os, sys, time\nimport pyrosep.interruption\n{before}\n{program}\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, str(file)],
        preexec_fn=preexec_fn,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )
    said = b"".join(os.read(process.stdout.fileno(), 1) for _ in range(6))  # and no more, which readline would read
    assert said == b"ready\n"
    return process


def ended(process, *signals, pause=0.0):
    """Status, output and errors of a process after signals."""
    try:
        for signum in signals:
            process.send_signal(signum)
            time.sleep(pause)
        output, errors = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    return process.returncode, output, errors


TIDY = """
def program():
    try:
        print("ready", flush=True)
        while True:
            time.sleep(0.01)
    finally:
        print("tidy")
pyrosep.interruption.run(program)
"""


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_ends_the_program_in_order(signum, tmp_path):
    assert ended(started(TIDY, tmp_path), signum) == (128 + signum, "tidy\n", "")


def test_signals_at_once_are_one(tmp_path):
    process = started(TIDY.replace('print("tidy")', 'time.sleep(0.3); print("tidy")'), tmp_path)
    assert ended(process, signal.SIGINT, signal.SIGINT, signal.SIGTERM, pause=0.05) == (130, "tidy\n", "")


def test_a_later_signal_ends_it_at_once(tmp_path):
    process = started(TIDY.replace('print("tidy")', "time.sleep(1000)"), tmp_path)
    assert ended(process, signal.SIGINT, signal.SIGTERM, pause=1.5) == (143, "", "")


def test_what_is_ignored_from_outside_stays_ignored(tmp_path):
    process = started(TIDY, tmp_path, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert ended(process, signal.SIGHUP, signal.SIGTERM, pause=0.3) == (143, "tidy\n", "")


@pytest.mark.parametrize(
    "swallowing",
    [
        # A callback of a weak reference, as in every import; a finalizer; a bare except; an exception made of another.
        "weakref.ref(Thing(), lambda _: slow())",
        "Finalized()",
        "\n        try: slow()\n        except: pass",
        "\n        try: slow()\n        except KeyboardInterrupt: raise RuntimeError('interrupted')",
    ],
)
def test_a_swallowed_signal_comes_again(swallowing, tmp_path):
    program = f"""
import weakref
pyrosep.interruption._PATIENCE = 0.5
class Thing: pass
def slow():
    print("ready", flush=True)
    time.sleep(1)
class Finalized:
    def __del__(self): slow()
def program():
    for _ in range(1): {swallowing}
    while True: time.sleep(0.01)
pyrosep.interruption.run(program)
"""
    assert ended(started(program, tmp_path), signal.SIGINT, pause=0.1) == (130, "", "")


def test_another_exception_that_was_made_of_it_is_told(tmp_path):
    program = """
def program():
    try:
        try:
            print("ready", flush=True)
            time.sleep(1000)
        except KeyboardInterrupt: raise ValueError("no shape")
    except Exception:
        pyrosep.interruption.raise_again()
        print("a fault")
pyrosep.interruption.run(program)
"""
    assert ended(started(program, tmp_path), signal.SIGHUP) == (129, "", "")
    process = started(program.replace("time.sleep(1000)", "1 / 0").replace("KeyboardInterrupt", "Exception"), tmp_path)
    assert ended(process) == (0, "a fault\n", "")


def test_an_import_is_finished_first(tmp_path):
    """An interruption in the middle of an import could come out as any exception, and leave half a module."""
    (tmp_path / "slow_module.py").write_text(
        "import time\nprint('ready', flush=True)\ntime.sleep(0.5)\nprint('whole')\n"
    )
    program = """
def program():
    try: import slow_module
    except BaseException: print("broken")
    try:
        while True: time.sleep(0.01)
    except KeyboardInterrupt: print("interrupted")
pyrosep.interruption.run(program)
"""
    assert ended(started(program, tmp_path), signal.SIGINT) == (130, "whole\ninterrupted\n", "")


def test_an_import_that_hangs_is_not_waited_for(tmp_path):
    (tmp_path / "slow_module.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(1000)\n")
    program = """
pyrosep.interruption._IMPORT = 0.3
def program(): import slow_module
pyrosep.interruption.run(program)
"""
    assert ended(started(program, tmp_path), signal.SIGTERM) == (143, "", "")


@pytest.mark.parametrize("signum", SIGNALS)
def test_preparations_end_at_once(signum, tmp_path):
    program = """
def prepare():
    print("ready", flush=True)
    try: time.sleep(1000)
    except BaseException: print("caught")
pyrosep.interruption.run(lambda: None, prepare)
"""
    assert ended(started(program, tmp_path), signum) == (128 + signum, "", "")


def test_the_interpreters_exit_is_not_waited_for(tmp_path):
    """A thread for which the interpreter waits does not keep an interrupted program, nor one that is done, alive."""
    program = """
import threading
threading.Thread(target=time.sleep, args=(1000,)).start()
pyrosep.interruption.run(lambda: print("ready", flush=True))
"""
    assert ended(started(program, tmp_path), signal.SIGINT, pause=0.3) == (130, "", "")


def test_a_program_without_signals_ends_as_it_does(tmp_path):
    for program, status in (("lambda: None", 0), ("lambda: sys.exit(3)", 3), ("lambda: 1 / 0", 1)):
        process = started(f"print('ready', flush=True)\npyrosep.interruption.run({program})", tmp_path)
        returned, _, errors = ended(process)
        assert returned == status
        assert ("ZeroDivisionError" in errors) == (status == 1)


POOL = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pyrosep.interruption import leave_signals_to_parent
from work import work
def program():
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context, initializer=leave_signals_to_parent) as pool:
        list(pool.map(work, ["first", "second"]))
if __name__ == "__main__":
    pyrosep.interruption.run(program)
"""


@pytest.mark.parametrize("signum", [*SIGNALS, signal.SIGKILL])
@pytest.mark.parametrize("whom", ["parent", "all"])
def test_workers_end_with_their_parent(signum, whom, tmp_path):
    """They do so when the signal reaches the parent alone, and when it reaches the whole group, as Ctrl-C does."""
    (tmp_path / "work.py").write_text(
        "import os, pathlib, time\n"
        "def work(name):\n"
        "    pathlib.Path(__file__).with_name(name).write_text(str(os.getpid()))\n"
        "    time.sleep(1000)\n"
    )
    process = started(
        POOL, tmp_path, before="if __name__ == '__main__': print('ready', flush=True)", start_new_session=True
    )
    deadline = time.monotonic() + LIMIT
    files = [tmp_path / name for name in ("first", "second")]
    while not all(file.is_file() and file.read_text() for file in files) and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = [int(file.read_text()) for file in files]
    if whom == "all":
        os.killpg(process.pid, signum)
    status, _, errors = ended(process, *([signum] if whom == "parent" else []))
    assert status == (-signum if signum == signal.SIGKILL else 128 + signum)
    if signum in (signal.SIGINT, signal.SIGTERM):  # of the others Python's tracker of semaphores has its own to say
        assert errors == ""
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:  # one that has ended and that nobody has asked for its status yet
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
