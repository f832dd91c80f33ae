"""The command line: parsed in plain Python, everything heavy imported inside the command that needs it."""
from __future__ import annotations

import io
import logging
import os
import select
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from twinview.cli import complete, embed, evaluate, export, methods, new, plan, recipes, runs, shards, show, train
from twinview.cli.words import Parser, in_options, tidied, unknown
from twinview.errors import HookError, Preempted
from twinview.faults import explained
from twinview.terminal import one_line, say
from twinview.version import __version__

EPILOG = "A wrong input gets one line and exit code 2.  Recipes by name: `twinview recipes`.  Options of a part: `twinview parts METHOD`."


def parser() -> Parser:
    """The whole command line; each command's file adds its own, and imports what it needs when it is called."""
    top = Parser(prog="twinview", description="Pre-train vision backbones on unlabeled images.", epilog=EPILOG)
    top.add_argument("--version", action="version", version=f"twinview {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for module in (train, plan, recipes, methods, runs, show, evaluate, embed, export, shards, new):
        module.add(commands)
    complete.add(commands, parser)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, 2 for a fault of the input, 130 when interrupted, 143 when told to end."""
    args = None
    try:
        args, rest = (top := parser()).parse_known_args(tidied(sys.argv[1:] if argv is None else argv))
        if rest and hasattr(args, "overrides") and all("=" in word and not word.startswith("-") for word in rest):
            args.overrides += rest  # those that stand behind an option
        elif rest:
            top.error(unknown(rest, args))
        args.answer(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        say("twinview: interrupted")
        return 130
    except Exception as e:
        if isinstance(e, BrokenPipeError) and not _stdout_is_read():
            return 0  # `twinview parts | head`
        fault = explained(e)
        if fault is not None:
            if isinstance(fault, HookError):
                say(fault.details)  # whoever wrote the part needs it
            say(f"twinview: {in_options(str(fault), args)}")
            return 128 + fault.number if isinstance(fault, Preempted) else 2
        if isinstance(e, OSError):
            say(f"twinview: {one_line(e.filename or 'a file')}: {e.strerror or e}. Name another place.")
            return 2
        say(traceback.format_exc().rstrip())  # whoever wrote the part needs it
        say(f"twinview: {_culprit(e)}: {type(e).__name__}: {e}")
        return 1
    return 0


def _stdout_is_read() -> bool:
    """Whether anyone still reads what is printed; where nobody does, nothing more is written."""
    try:
        sys.stdout.flush()
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        gone = any(event & select.POLLERR for _, event in poll.poll(0))
    except BrokenPipeError:
        gone = True
    except (OSError, ValueError):  # a stdout that is no file, or closed
        return True
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return not gone


class _Said(logging.Handler):
    """Warnings of the library, without the control codes that names of files may hold."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def entry() -> NoReturn:
    """The `twinview` command: `main`, and the end of the process."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does: names of files may be no text
    logging.getLogger("twinview").addHandler(_Said())
    code = main()
    _stdout_is_read()
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        sys.stderr.flush()
        os._exit(code)  # threads of the ranks' groups may outlive the groups; the interpreter's own shutdown aborts when it meets one
    sys.exit(code)


def _culprit(e: BaseException) -> str:
    """The plugin's file and line that an error comes from, or twinview itself."""
    from twinview.assembly.plugins import packages

    plugins = packages()
    own = [(frame, line) for frame, line in traceback.walk_tb(e.__traceback__) if frame.f_globals.get("__name__", "").partition(".")[0] in plugins]
    if own:
        return f"a fault of {own[-1][0].f_code.co_filename}, line {own[-1][1]}"
    return "a fault of twinview's own; please report it"
