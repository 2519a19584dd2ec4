"""``python -m pyrosep``, and the command ``pyrosep``."""

import os
import sys
import threading

from pyrosep.interruption import run

__all__ = ["main"]


def main() -> None:
    """Run the command line; signals end it in order, while it is still being imported too."""
    if not os.environ.get("PYROSEP_DEBUG"):
        threading.excepthook = _told
    run(_program, _imported)


def _told(failed: threading.ExceptHookArgs) -> None:
    """One line for what went wrong in a thread of a library, as TensorBoard's that writes its files."""
    print(f"pyrosep: warning: {' '.join(str(failed.exc_value).split())}", file=sys.stderr)


def _imported() -> None:
    import pyrosep.cli  # noqa: F401


def _program() -> None:
    from pyrosep.cli import main

    main()


if __name__ == "__main__":
    main()
