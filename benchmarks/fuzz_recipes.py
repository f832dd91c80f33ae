"""Random damage to recipes and overrides: whatever is wrong with them, it is a line and exit code 2, within seconds.

    python benchmarks/fuzz_recipes.py --cases 10000

A case takes a recipe that comes with twinview and hurts it in one of three ways: overrides on the command line (keys that exist, nearly exist or
cannot exist; values of other kinds, dates, huge numbers, deep nests, control codes), its tables (values replaced, keys removed, renamed, moved,
tables made lists), or the bytes of its file.  `twinview check`, or `twinview.api.check`, is asked about it.  Anything but an assembled recipe or a
TwinviewError (exit code 0 or 2), a message with control codes in it, or more than LIMIT seconds is a finding.
Case n is the same in every run.  The result goes to benchmarks/results/fuzz_recipes.json; the exit code is 1 where something was found.
"""
from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import multiprocessing
import os
import platform
import random
import re
import signal
import sys
import tarfile
import tempfile
import time
import tomllib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from twinview import recipe
from twinview.api import check
from twinview.cli import main as twinview
from twinview.errors import TwinviewError
from twinview.terminal import CONTROL

OUT = Path(__file__).parent / "results" / "fuzz_recipes.json"
LIMIT = 20  # seconds for a case, which takes some hundredths of one
CHUNK = 250  # cases that a process runs; should it die, it dies alone
Draw = random.Random
Tables = dict[str, Any]

NUMBERS = (
    *("0", "-1", "1", "2", "0.5", "-0.0", "1e308", "-1e400", "nan", "inf", "-inf", "0x10", "0b2", "1_000", "1e-400", "+3", "007"),
    *("9" * 30, "9" * 5000),
)
DATES = ("1979-05-27", "1979-05-27T07:32:00Z", "07:32:00", "2024-13-40", "1979-05-27 07:32:00.999999-07:00")
WORDS = (
    "", " ", "cpu", "byol.image", "byol", ".", "..", "byol.", ".image", "a.b.c", "none.none", "toy.views", "true", "True", "null", "None", "cosine",
    "../../etc/passwd", "/dev/zero", "pipe:rm -rf /", "images:", "scenes:", "http://", "~", "~nobody/x", "$HOME", "%s", "{}", "{0}", "x" * 3000,
    *("'", '"', "'''", '"""', "\\", "#", "=", "[", "]", "{", "}"),
    "\x1b[31mred\x1b]0;title\x07", "a\nb", "\0", "\u202e", "\ud800", "\ufeff", "²", "ﬁ", "🎈",
)
COMPOUNDS = (
    "[]", "[[]]", "[1]", "[1,2]", "['a']", "[true]", "[1,'a']", "{}",
    "{a=1}", "{use=1}", "{use='byol.image'}", "[{}]", "[{use='byol.image'}]", "[1,",
    "{a=", "{a={a={a=1}}}", "[1979-05-27]", "[" * 200 + "]" * 200, "[" * 20000 + "]" * 20000, "{a=" * 2000 + "1" + "}" * 2000, "true",
    "[nan,inf,-inf]", "false",
    '"""a\nb"""', "'''", '"\\u0007"', '"\\ud800"', "1 = 2", "1 # two", "1\nrun.steps = 3", "[0.1,0.2,0.3,0.4]", "[9,9]", "[-1,0]", "[1e999]",
)


def value_text(draw: Draw) -> str:
    """A value as somebody writes it on a command line."""
    return draw.choice(draw.choice((NUMBERS, DATES, WORDS, COMPOUNDS)))


def value(draw: Draw, depth: int = 0) -> Any:
    """A value of a table."""
    if depth < 3 and draw.random() < 0.3:
        many = range(draw.randrange(4))
        return [value(draw, depth + 1) for _ in many] if draw.random() < 0.5 else {draw.choice(WORDS): value(draw, depth + 1) for _ in many}
    text = value_text(draw)
    with contextlib.suppress(ValueError, RecursionError):
        return tomllib.loads(f"x = {text}")["x"]
    return text


def keys(table: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything in a tree of tables."""
    for key, inner in table.items() if isinstance(table, dict) else enumerate(table) if isinstance(table, list) else ():
        yield (*path, key)
        yield from keys(inner, (*path, key))


def damaged_word(word: str, draw: Draw) -> str:
    """A word with one slip."""
    at = draw.randrange(len(word) + 1)
    slip = draw.choice(("", draw.choice("abcdefghijklmnopqrstuvwxyz._-0 "), draw.choice(WORDS)[:5]))
    return word[:at] + slip + word[at + draw.randrange(2) :]


def override(table: Tables, draw: Draw) -> str:
    """`key=value`, or nearly."""
    path = ".".join(map(str, draw.choice(list(keys(table)))))
    if draw.random() < 0.3:
        path = damaged_word(path, draw)
    elif draw.random() < 0.2:
        path += "." + draw.choice(("0", "1", "9", "-1", "²", "x", "use", "weight", "name", "", "9" * 4400))
    elif draw.random() < 0.1:
        path = draw.choice(WORDS)
    return f"{path}={value_text(draw)}" if draw.random() < 0.95 else path


def hurt(table: Tables, draw: Draw) -> Tables:
    """One to three wounds of a tree of tables."""
    table = copy.deepcopy(table)
    for _ in range(draw.randint(1, 3)):
        *way, key = draw.choice(list(keys(table)) or [("run",)])
        here: Any = table
        for step in way:
            here = here[step]
        wound = draw.randrange(6)
        if wound == 0:
            here[key] = value(draw)
        elif wound == 1:
            del here[key]
        elif wound == 2 and isinstance(here, dict):
            here[damaged_word(str(key), draw)] = here.pop(key)
        elif wound == 3:
            here[key] = [here[key]] if draw.random() < 0.5 else {"use": here[key]}
        elif wound == 4:
            table[draw.choice([*table, *WORDS[:20]])] = copy.deepcopy(here[key])
        elif isinstance(here, dict):
            here[draw.choice(WORDS)] = value(draw)
        else:
            here.append(value(draw))
    return table


def torn(data: bytes, draw: Draw) -> bytes:
    """The bytes of a file, flipped, cut, doubled, or with something put in."""
    found = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(found) + 1)
        way = draw.randrange(5)
        if way == 0 and at < len(found):
            found[at] ^= 1 << draw.randrange(8)
        elif way == 1:
            del found[at : at + draw.choice((1, 5, 100, len(found)))]
        elif way == 2:
            found[at:at] = value_text(draw).encode("utf-8", "surrogatepass")
        elif way == 3:
            found[at:at] = found[at : at + draw.randrange(200)]
        else:
            found[:0] = draw.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\n", b"[run]\n", b"\0"))
    return bytes(found)


def run_case(n: int, folder: Path, tables: dict[str, Tables]) -> str:
    """How it ends: `assembled` or `refused`.  Raises whatever is a finding."""
    draw = Draw(n)
    name = draw.choice(list(tables))
    way = draw.random()
    if way < 0.35:
        try:
            check(hurt(tables[name], draw))
        except TwinviewError as e:
            judge(str(e))
            return "refused"
        return "assembled"
    if way < 0.7:
        words = [name, *(override(tables[name], draw) for _ in range(draw.randint(1, 3)))]
    else:
        path = folder / f"{n}.toml"
        path.write_bytes(torn(recipe.find(name).read_bytes(), draw))
        words = [str(path)]
    said, out = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(out):
        try:
            code = twinview(["check", *words])
        except SystemExit as e:  # of a word that is no override
            code = int(e.code or 0)
    assert code in (0, 2), f"exit code {code} for {words!r:.500}\n{said.getvalue()}"
    assert not CONTROL.search(out.getvalue()), f"control codes on stdout for {words!r:.500}"
    if code:
        judge(said.getvalue().rstrip("\n"))
    return "refused" if code else "assembled"


def judge(message: str) -> None:
    """A message says something, without control codes, and not at endless length."""
    assert message.strip() and "Traceback" not in message and not CONTROL.search(message), f"a message that is none: {message!r:.500}"
    assert len(message) < 20000, f"a message of {len(message)} characters: {message!r:.500}"
    assert not re.search(r"<[\w.]+ object at 0x", message), f"a message of addresses: {message!r:.500}"


def stand_ins(folder: Path) -> None:
    """Go to a folder that holds the shards that shipped recipes evaluate on: `check` refuses a recipe without them, whatever else is wrong."""
    os.chdir(folder)
    picture = io.BytesIO()
    Image.new("L", (32, 32)).save(picture, "PNG")
    files = {"0.png": picture.getvalue(), "0.seg.png": picture.getvalue(), "0.cls": b"0"}
    for name in recipe.names():
        for evaluation in tomllib.loads(recipe.find(name).read_text(encoding="utf-8")).get("evaluate", []):
            for shards in {value for key, value in evaluation.items() if key in ("val", "train") and value.startswith("shards/")}:
                Path(shards).mkdir(parents=True, exist_ok=True)
                with tarfile.open(f"{shards}/shard-000000.tar", "w") as tar:
                    for member, content in files.items():
                        info = tarfile.TarInfo(member)
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))


def run_cases(first: int, last: int, folder: Path) -> dict[str, Any]:
    """Cases first..last - 1 in this process: how they ended, and what was found."""
    tables = {name: tomllib.loads(recipe.find(name).read_text(encoding="utf-8")) for name in recipe.names()}
    ends, findings, slowest = Counter[str](), list[str](), 0.0

    def late(*_: Any) -> None:
        raise TimeoutError(f"longer than {LIMIT} s")

    signal.signal(signal.SIGALRM, late)
    for n in range(first, last):
        started = time.monotonic()
        signal.alarm(LIMIT)
        try:
            ends[run_case(n, folder, tables)] += 1
        except Exception:
            findings.append(f"case {n}: {traceback.format_exc()[-3000:]}")
        finally:
            signal.alarm(0)
        slowest = max(slowest, time.monotonic() - started)
    return {"ends": dict(ends), "findings": findings, "slowest_s": slowest}


def in_a_process(work: Callable[[int, int, Path], dict[str, Any]], first: int, last: int) -> dict[str, Any]:
    """The same, in a process of its own; its death is a finding."""
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        process = fork.Process(target=lambda: there.send(work(first, last, Path(folder))))
        process.start()
        there.close()
        try:
            found: dict[str, Any] = here.recv()
        except EOFError:
            found = {"ends": {}, "findings": [f"cases {first} to {last - 1}: the process died"], "slowest_s": 0.0}
        process.join()
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cases", type=int, default=10000)
    options.add_argument("--first", type=int, default=0, help="number of the first case")
    options.add_argument("--out", type=Path, default=OUT)
    args = options.parse_args()
    started, cpu = time.monotonic(), os.times()
    stand_ins(Path(tempfile.mkdtemp(prefix="twinview-fuzz-")))
    for name in recipe.names():
        check(name)  # imports the methods once, and all of these assemble
    ends, findings, slowest = Counter[str](), list[str](), 0.0
    for first in range(args.first, args.first + args.cases, CHUNK):
        found = in_a_process(run_cases, first, min(first + CHUNK, args.first + args.cases))
        ends.update(found["ends"])
        findings += found["findings"]
        slowest = max(slowest, found["slowest_s"])
        print(f"{first + CHUNK - args.first} cases, {len(findings)} findings", file=sys.stderr, flush=True)
    spent = os.times()
    result = {
        "command": f"python benchmarks/fuzz_recipes.py --cases {args.cases}" + (f" --first {args.first}" if args.first else ""),
        "machine": f"{platform.processor() or platform.machine()}, Python {platform.python_version()}",
        "recipes": len(recipe.names()),
        "cases": args.cases,
        "ends": dict(sorted(ends.items())),
        "slowest_case_s": round(slowest, 2),
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(sum(spent[:4]) - sum(cpu[:4]), 1),
        "findings": findings,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({**result, "findings": findings[:10]}, indent=1))
    raise SystemExit(bool(findings))


if __name__ == "__main__":
    main()
