"""Writes cli.md from the commands themselves: ``python docs/generate_cli.py``."""

import inspect
from pathlib import Path

from pyrosep.cli import app
from pyrosep.cli.manners import described

PAGE = Path(__file__).with_name("cli.md")
INTRODUCTION = """\
% Written by generate_cli.py from the commands themselves.

# Command line

```console
$ pyrosep demo | separate | evaluate | calibrate | train-prior | train-guide | experiment | models | diagnose
```

`--help` after any of them lists its options, which are those of the library's own settings, with the same defaults.
{doc}`results` tells what `separate` writes.

What goes wrong ends with one line on standard error and exit status 1, a mistake in the command itself with 2. With the
environment variable `PYROSEP_DEBUG=1` the traceback comes too. Ctrl-C (SIGINT), SIGTERM and SIGHUP end a command in
order, with exit statuses 130, 143 and 129; a second one, a second later or more, ends it at once. An option that is
given twice counts as it was given last, but for those that may be given again.

On a CPU one thread is used unless `OMP_NUM_THREADS` says otherwise.
"""


def commands(parent=app, words=()):
    """All commands by their words."""
    for name in parent:
        if name[0] != "-":
            inner = list(commands(parent[name], (*words, name)))
            yield from inner or [((*words, name), parent[name])]


def section(words, command):
    """One command: what it does, an example, and its options."""
    lines = [f"## pyrosep {' '.join(words)}", "", described(command.default_command), ""]
    lines += ["| option | default | |", "| --- | --- | --- |"]
    for one in command.assemble_argument_collection(default_parameter=app.default_parameter, parse_docstring=True):
        if one.parse and not one.children:
            lines.append(row(one))
    return "\n".join(lines)


def row(argument):
    """An option as a row of a table: its names, its default, and what it is."""
    names = ", ".join(f"`{name}`" for name in sorted(argument.names, key=lambda name: not name.startswith("--")))
    default = argument.field_info.default
    if argument.required:
        default = "required"
    elif default is False or default in (inspect.Parameter.empty, None, "", ()):
        default = ""
    elif isinstance(default, tuple | list):
        default = ", ".join(map(str, default)) if not isinstance(default[0], str) else "all"
    else:
        default = "on" if default is True else f"`{default}`"
    what = " ".join((argument.parameter.help or "").split()).replace("``", "`").replace("|", "\\|")
    return f"| {names} | {default} | {what} |"


def page():
    """The whole page."""
    return "\n\n".join([INTRODUCTION.strip(), *(section(words, one) for words, one in commands())]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
