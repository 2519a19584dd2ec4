"""What is told in several places agrees."""

import re
import tomllib
from pathlib import Path

import pyrosep

ROOT = Path(__file__).parent.parent


def test_the_version_is_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    assert (ROOT / project["tool"]["hatch"]["version"]["path"]).read_text(encoding="utf-8").count(
        pyrosep.__version__
    ) == 1
    assert re.search(rf"^version: {re.escape(pyrosep.__version__)}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)


def test_the_floors_are_those_that_contributors_are_told_of():
    """Every module of the package is in the imports contract and in the table."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    listed = {name.strip() for layer in layers for name in layer.split("|")}
    there = {path.stem for path in (ROOT / "pyrosep").glob("*.py")} | {
        path.parent.name for path in (ROOT / "pyrosep").glob("*/__init__.py")
    }
    assert listed == there - {"__init__", "__main__"}
    table = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    assert all(f"`{name}/`" in table or f"`{name}.py`" in table for name in listed)


def test_the_wheel_is_small_and_holds_what_the_demonstration_needs():
    from hatchling.builders.wheel import WheelBuilder

    builder = WheelBuilder(str(ROOT))
    files = {str(file.distribution_path): Path(file.path).stat().st_size for file in builder.recurse_included_files()}
    assert sum(files.values()) < 60e6
    for needed in ("toy", "music-small", "song-gaussian", "guides/music-guide", "guides/toy-guide"):
        assert f"pyrosep/weights/{needed}/config.json" in files
    assert "pyrosep/weights/catalogue.json" in files
    assert "pyrosep/py.typed" in files
