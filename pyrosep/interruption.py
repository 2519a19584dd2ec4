"""Signals that end a program: Ctrl-C (SIGINT), SIGTERM and SIGHUP end it in order, and none of them is lost.

Python raises :class:`KeyboardInterrupt` wherever the main thread happens to be, and that may be a place that swallows
it: a finalizer or a callback of a weak reference, which every import has, or a bare ``except``. A long run then goes on
as if nothing had been said. Inside an import it may also come out as another exception.

:func:`run` therefore raises :class:`Interruption` only where no import is under way, raises it again where it was
swallowed, and ends the program with the exit status that shells give: 128 and the number of the signal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

__all__ = ["Interruption", "leave_signals_to_parent", "raise_again", "run"]

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
#: Windows has no timers: there an interruption is raised once, wherever the program is.
_CAN_REMIND = hasattr(signal, "setitimer")
#: The signal that came first, if one has.
_came: list[int] = []
#: Seconds between looks whether the import that a signal came in is over.
_SOON = 0.05
#: Seconds that an import may take to its end, and after which an interruption that ended nothing is raised again.
_IMPORT, _PATIENCE = 2.0, 5.0
#: Signals less than so many seconds after the first belong to it: some parents pass on what their terminal sent too.
_SAME = 1.0


class Interruption(KeyboardInterrupt):
    """A signal asked the program to end.

    Attributes:
        signum: the number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def run(program: Callable[[], Any], prepare: Callable[[], Any] = lambda: None) -> None:
    """Call a whole program, which ends in order when a signal asks it to.

    The first signal raises :class:`Interruption` in the program, which may clean up. Another one, a second later or
    more, ends the process at once. Signals that are ignored from outside, as by ``nohup``, stay ignored. This function
    belongs in the main thread of a program, and not in a library: it takes over the handlers of the signals for good.

    Arguments:
        program: what is to be run.
        prepare: what is called before it and leaves nothing to clean up, for instance imports: a signal in it ends the
            process at once.
    """
    heeded = [signum for signum in _SIGNALS if signal.getsignal(signum) is not signal.SIG_IGN]
    for signum in heeded:
        signal.signal(signum, _end)
    prepare()
    watch = _Watch()
    try:
        try:
            watch.start(heeded)
            program()
        finally:
            watch.stop()
    except BaseException:
        if watch.signum is None:
            raise
        # After a signal all that comes out is its doing: exceptions of half-done work too.
        _end(watch.signum)
    if watch.signum is not None:
        _end(watch.signum)


def raise_again() -> None:
    """Raise the interruption of this program, if a signal has come; to be called first in an ``except Exception``.

    Code in C may make another exception of it: torch's, for instance, a ``ValueError`` about a shape.

    Raises:
        Interruption: a signal has come to a program that :func:`run` runs.
    """
    if _came:
        raise Interruption(_came[0])


def leave_signals_to_parent() -> None:
    """Make a worker process ignore Ctrl-C, which reaches its parent too, and end with its parent.

    It is meant as the ``initializer`` of a pool of processes; :func:`run` in the parent ends the workers.
    """
    import multiprocessing
    import threading
    from multiprocessing import connection

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _end(signum: int, frame: FrameType | None = None) -> NoReturn:
    """End the process at once, without what is done at the interpreter's exit, which may wait for threads."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the terminal may be gone, or the signal have come in a write
            stream.flush()
    os._exit(128 + signum)


class _Watch:
    """The handlers of one run, and which signal came first."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._since = 0.0
        self._over = False
        self._former = sys.unraisablehook

    def start(self, signals: list[int]) -> None:
        if _CAN_REMIND:
            signal.signal(signal.SIGALRM, self._remind)
        sys.unraisablehook = self._swallowed
        for signum in signals:
            signal.signal(signum, self._heed)

    def stop(self) -> None:
        self._over = True
        _remind_in(0.0)
        sys.unraisablehook = self._former

    def _heed(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._over:
            _end(signum)
        elif self.signum is None:
            self.signum, self._since = signum, now
            _came.append(signum)
            _end_workers()
            self._raise(frame)
        elif now - self._since >= _SAME:
            _end(signum)

    def _remind(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None and not self._over:
            self._raise(frame)

    def _raise(self, frame: FrameType | None) -> None:
        if _CAN_REMIND and _importing(frame) and time.monotonic() - self._since < _IMPORT:
            _remind_in(_SOON)
            return
        assert self.signum is not None
        _remind_in(_PATIENCE)
        raise Interruption(self.signum)

    def _swallowed(self, lost: sys.UnraisableHookArgs) -> None:
        if issubclass(lost.exc_type, Interruption):
            _remind_in(_SOON)
        else:
            self._former(lost)


def _remind_in(seconds: float) -> None:
    """Have SIGALRM sent after a time, or not at all (0)."""
    if _CAN_REMIND:
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _importing(frame: FrameType | None) -> bool:
    """Whether an import is under way in the stack of a frame."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _end_workers() -> None:
    """End the processes of pools, for which their pool would wait."""
    if "multiprocessing" in sys.modules:
        import multiprocessing

        for worker in multiprocessing.active_children():
            worker.terminate()
