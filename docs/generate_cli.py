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

`--help` after a command lists its options. They are those of the library's own settings, with the same defaults.
{doc}`results` describes what `separate` writes.

A command that fails prints one line on standard error and ends with exit status 1, or 2 if the command line itself is
wrong. With the environment variable `PYROSEP_DEBUG=1` it prints the traceback too. Ctrl-C (SIGINT), SIGTERM and SIGHUP
end a command in order, with exit statuses 130, 143 and 129. A second signal, at least a second later, ends it at once.
If an option is given twice, the last value counts, except for options that may be given again.

On a CPU, commands use one thread unless `OMP_NUM_THREADS` says otherwise.
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
