"""The words of the command line: overrides written as options, words that are nearly right, and messages that speak of options."""
from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import NoReturn

from twinview.errors import TwinviewError, closest
from twinview.terminal import say

PLACES = (  # of the parsed words, those that are no options
    *("answer", "overrides", "recipe", "what", "of", "method", "source", "kind", "shards"), *("target",),
)
DOTTED = re.compile(r"--([A-Za-z_]\w*(?:\.\w+)+)(=.*)?", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """A parser whose faults are one line with the nearest right word."""

    def error(self, message: str) -> NoReturn:
        """Say it, and end with exit code 2."""
        wrong = re.fullmatch(r"argument (?P<what>[^:]+): invalid choice: (?P<given>'.*?'|\".*?\") \(choose from (?P<known>.*)\)", message, re.DOTALL)
        if wrong:
            given, known = wrong["given"][1:-1], [word.strip(" '\"") for word in wrong["known"].split(",")]
            message = f"{wrong['what'].lower()}: there is no {given!r}.{closest(given, known)}"
        say(f"twinview: {message.rstrip('.')}. `{self.prog} --help` says more.")
        self.exit(2)


def tidied(words: Sequence[str]) -> list[str]:
    """The words as the parser wants them: `--resume auto` as one word, `--run.steps=100` as the override that it is.  Raises TwinviewError."""
    found = [w for w in words if not w.startswith("--local_rank")]  # the deepspeed launcher puts it anywhere
    found = found[1:] if found[:1] == ["--"] else found  # torchrun needs it to leave --run alone
    for i, word in enumerate(found):
        if word == "--resume=auto" or found[i : i + 2] == ["--resume", "auto"]:
            found[i : i + (1 if "=" in word else 2)] = ["--resume-auto"]
            break
    for i, word in enumerate(found):
        if dotted := DOTTED.fullmatch(word):
            if dotted[2] is None:
                value = found[i + 1] if i + 1 < len(found) and not found[i + 1].startswith("-") else "VALUE"
                raise TwinviewError(f"{word}: keys of the recipe are no options. Write {dotted[1]}={value}.")
            found[i] = word[2:]
    return found


def unknown(rest: Sequence[str], args: argparse.Namespace) -> str:
    """What to say of words that no option and no place of the command takes."""
    word, said = rest[0], f"unrecognized arguments: {' '.join(rest)}"
    if not word.startswith("-"):
        return said
    name, equals, value = word.lstrip("-").partition("=")
    near = closest("--" + name, [option(dest) for dest in vars(args) if dest not in PLACES])
    keys = f" Keys of the recipe are written table.key={value if equals else 'VALUE'}" if hasattr(args, "overrides") else ""
    return f"{said}.{near}{keys}"


def option(argument: str) -> str:
    """`bad_samples` -> `--bad-samples`."""
    return "--" + argument.replace("_", "-")


def in_options(message: str, args: argparse.Namespace | None) -> str:
    """A message of the library, which speaks of arguments (`resume=True`, `run=DIR`), in the options of a command (`--resume`, `--run DIR`)."""
    words = vars(args) if args is not None else {}
    names = [name for name in words if name not in PLACES and (name != "run" or "resume" in words)]  # of other commands RUN is a place
    if not names:
        return message
    one = "|".join(map(re.escape, names))
    message = re.sub(rf"^({one})(?=: )", lambda m: option(m[1]), message)

    def written(found: re.Match[str]) -> str:
        name, value = found[1], found[2].strip("'\"")
        return option(name) if value == "True" else f"{option(name)} {value}"

    return re.sub(rf"(?<![\w.\[-])({one})=(\w+|'[^']*'|\"[^\"]*\")", written, message)
