"""What is told in several places agrees."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pyrosep

ROOT = Path(__file__).parent.parent

#: The most lines of a module, a class and a function, docstrings included.
LONGEST = {"module": 400, "class": 250, "function": 80}


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


def parts_of(path: Path) -> Iterator[tuple[str, str, int]]:
    """Kind, name and number of lines of a module, and of each of its classes and functions, nested ones included."""
    text = path.read_text(encoding="utf-8")
    yield "module", path.stem, len(text.splitlines())
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            yield kind, node.name, (node.end_lineno or 0) - node.lineno + 1


def too_long(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)}: {kind} {name} has {lines} lines, at most {LONGEST[kind]} are allowed"
        for path in sorted(root.rglob("*.py"))
        for kind, name, lines in parts_of(path)
        if lines > LONGEST[kind]
    ]


def test_modules_classes_and_functions_can_be_read_in_one_sitting():
    assert not (found := too_long(ROOT / "pyrosep")), "split these by finding the right nouns:\n" + "\n".join(found)


def test_what_is_too_long_is_found(tmp_path):
    """Each limit is the last that is allowed; a method and a function inside another count by themselves."""
    (tmp_path / "cli").mkdir()
    longest = "def fitting():\n" + "    pass\n" * 79
    inner = "    def inner():\n" + "        pass\n" * 80
    text = longest + "def outer():\n" + inner + "class Whole:\n" + inner + "    x = 0\n" * 169
    (tmp_path / "cli" / "long.py").write_text(text, encoding="utf-8")
    (tmp_path / "empty.py").write_text("\n" * 401, encoding="utf-8")
    (tmp_path / "short.py").write_text(longest + "\n" * 320, encoding="utf-8")
    assert [line.split(" lines")[0] for line in too_long(tmp_path)] == [
        "cli/long.py: module long has 413",
        "cli/long.py: function outer has 82",
        "cli/long.py: class Whole has 251",
        "cli/long.py: function inner has 81",
        "cli/long.py: function inner has 81",
        "empty.py: module empty has 401",
    ]
