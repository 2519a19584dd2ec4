"""``python -m pyrosep``, and the command ``pyrosep``."""

from pyrosep.interruption import run

__all__ = ["main"]


def main() -> None:
    """Run the command line; signals end it in order, while it is still being imported too."""
    run(_program, _imported)


def _imported() -> None:
    import pyrosep.cli  # noqa: F401


def _program() -> None:
    from pyrosep.cli import main

    main()


if __name__ == "__main__":
    main()
