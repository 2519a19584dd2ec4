"""``python -m pyrosep``."""

from pyrosep.cli import main

main()
