"""Tasks of an experiment, spread over processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

from pyrosep.interruption import leave_signals_to_parent

__all__ = ["mapped"]

Task = TypeVar("Task")


def mapped(
    function: Callable[[Task], Any], tasks: Sequence[Task], workers: int, *, fresh: bool = False
) -> Iterator[tuple[Task, Any]]:
    """Tasks and what ``function`` makes of them, as they are done, in so many processes (1: in this one).

    With ``fresh`` every task has a process of its own, whose memory is then the task's.
    """
    # Large tensors made anew at every step: the allocator keeps their memory instead of giving it back each time.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "4294967296")
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "8589934592")
    if workers <= 1 and not fresh:
        yield from ((task, function(task)) for task in tasks)
        return
    import multiprocessing

    # Started afresh: a forked copy of a process with threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers,
        mp_context=context,
        initializer=leave_signals_to_parent,
        max_tasks_per_child=1 if fresh else None,
    ) as pool:
        futures = {pool.submit(function, task): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()
