"""`twinview help`, and completion of commands, options, recipes and parts by the shell."""
from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence

from twinview.cli.commands import Commands, command
from twinview.cli.words import Parser
from twinview.errors import TwinviewError, closest
from twinview.terminal import answer

SCRIPTS = {
    "bash": """_twinview() {
  local IFS=$'\\n'
  COMPREPLY=($(twinview completion --words "$COMP_CWORD" -- "${COMP_WORDS[@]}" 2>/dev/null))
  [[ ${#COMPREPLY[@]} -gt 0 ]] || COMPREPLY=($(compgen -f -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o filenames -F _twinview twinview""",
    "zsh": """#compdef twinview
_twinview() {
  local -a found
  found=("${(@f)$(twinview completion --words "$((CURRENT - 1))" -- "${words[@]}" 2>/dev/null)}")
  if [[ -n "${found[1]}" ]]; then compadd -- "${found[@]}"; else _files; fi
}
compdef _twinview twinview""",
    "fish": """function __twinview
  set -l before (commandline -opc)
  twinview completion --words (count $before) -- $before (commandline -ct) 2>/dev/null
end
complete -c twinview -a '(__twinview)'""",
}
HOW = {
    "bash": 'eval "$(twinview completion bash)"    # in ~/.bashrc', "zsh": 'eval "$(twinview completion zsh)"    # in ~/.zshrc, behind compinit',
    "fish": "twinview completion fish | source    # in ~/.config/fish/config.fish",
}  # fmt: skip


def add(commands: Commands, top: Callable[[], Parser]) -> None:
    """Add `help` and `completion` to the command line; `top` makes the whole of it."""
    made = command(commands, "help", lambda args: explain(top(), args.words), "say what twinview, or one of its commands, takes")
    made.add_argument("words", metavar="COMMAND", nargs="*", help="for example: train, or shards pack")
    made = command(commands, "completion", lambda args: completion(top(), args), "print what makes a shell complete commands, options and recipes")
    made.add_argument("shell", metavar="SHELL", nargs="?", help=", ".join(SCRIPTS))
    made.add_argument("--words", metavar="N", type=int, help=argparse.SUPPRESS)
    made.add_argument("typed", nargs="*", help=argparse.SUPPRESS)


def explain(top: Parser, words: Sequence[str]) -> None:
    """Print the help of a command.  Raises TwinviewError where there is none of the name."""
    here = top
    for word in words:
        known = _commands(here)
        if word not in known:
            there = closest(word, known) if known else f" `{here.prog}` has no commands of its own."
            raise TwinviewError(f"help: there is no command {word!r}.{there}")
        here = known[word]
    answer(here.format_help().rstrip())


def completion(top: Parser, args: argparse.Namespace) -> None:
    """Print a shell's script; or, for that script, what may stand at the place of a word."""
    if args.words is not None:
        typed = [word for word in (args.shell, *args.typed) if word is not None]
        answer("\n".join(candidates(top, typed[1 : args.words], typed[args.words] if args.words < len(typed) else "")))
        return
    shell = args.shell or os.path.basename(os.environ.get("SHELL", ""))
    if shell not in SCRIPTS:
        raise TwinviewError(f"completion: there is none for {shell!r}.{closest(shell, SCRIPTS)}")
    answer(f"# {HOW[shell]}\n{SCRIPTS[shell]}")


def candidates(top: Parser, before: Sequence[str], word: str) -> list[str]:
    """What may stand behind the words `before` and begins with `word`; nothing where files may."""
    here, option, places = top, None, 0
    for one in before:
        if option is not None:
            option = None
        elif one.startswith("-"):
            action = _options(here).get(one)
            option = action if action is not None and action.nargs != 0 else None
        elif one in (known := _commands(here)):
            here, places = known[one], 0
        else:
            places += 1
    if option is not None:
        found: Sequence[str] = [str(choice) for choice in option.choices or ()]
    elif word.startswith("-"):
        found = [name for name, action in _options(here).items() if name.startswith("--") and action.help != argparse.SUPPRESS]
    else:
        found = list(_commands(here)) or _named(here, places)
    return sorted(name for name in found if name.startswith(word))


def _named(here: Parser, places: int) -> list[str]:
    """Names that the next positional word of a command may have: recipes and methods; nothing where it is a file."""
    positional = [action for action in here._actions if not action.option_strings]
    action = positional[min(places, len(positional) - 1)] if positional else None
    if action is None:
        return []
    if action.choices:
        return [str(choice) for choice in action.choices]
    if action.dest == "recipe":
        from twinview.recipe import names

        return list(names())
    if action.dest == "method":
        from importlib.metadata import entry_points

        return sorted({entry.name for entry in entry_points(group="twinview")})
    return list(SCRIPTS) if action.dest == "shell" else ["run", "views"] if action.dest == "what" and here.prog.endswith("show") else []


def _commands(here: Parser) -> dict[str, Parser]:
    for action in here._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _options(here: Parser) -> dict[str, argparse.Action]:
    return dict(_named_options(here))


def _named_options(here: Parser) -> Iterator[tuple[str, argparse.Action]]:
    for action in here._actions:
        for name in action.option_strings:
            yield name, action
