"""Random damage to real shards: whatever is wrong with the bytes, it is a DataError or a BadSample, within seconds.

    python benchmarks/fuzz.py --cases 2000

A case damages files of a small shard (JPEGs, some with EXIF, grey, CMYK, PNGs, a GIF, label maps, classes), the tar around them (three formats), or
the index beside it: bytes flipped, overwritten, cut off, put in, moved, sizes misstated, headers with right checksums over wrong fields.  Then it is
opened, and every image, label map and class in it is read; `shards check` reads it once more.  Anything but those two exceptions, a death of the
process, or more than LIMIT seconds is a finding.
Case n is the same in every run.  The result goes to benchmarks/results/fuzz.json; the exit code is 1 where something was found.
"""
from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import platform
import signal
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from twinview.data.dataset.open import open_shards
from twinview.data.dataset.read import BadSample, read_class, read_image, read_map
from twinview.data.prepare.check import check_shards
from twinview.data.scenes.street import draw_scene
from twinview.data.store import index
from twinview.errors import TwinviewError

OUT = Path(__file__).parent / "results" / "fuzz.json"
LIMIT = 20  # seconds for a case, which takes some hundredths of one
CHUNK = 100  # cases that a process runs; should it die, it dies alone
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def samples() -> dict[str, bytes]:
    """The files of ten samples."""
    exif = Image.Exif()
    exif[0x0112] = 6
    files: dict[str, bytes] = {}
    for n in range(10):
        pixels, labels = draw_scene(n, (32, 48))
        picture = Image.fromarray(pixels)
        field, image = [
            ("jpg", encoded(picture, "JPEG")), ("jpg", encoded(picture, "JPEG", exif=exif)), ("jpg", encoded(picture.convert("L"), "JPEG")),
            ("jpg", encoded(picture.convert("CMYK"), "JPEG")), ("jpg", encoded(picture, "JPEG", progressive=True)), ("png", encoded(picture, "PNG")),
            ("png", encoded(picture.convert("P"), "PNG")), ("png", encoded(picture.convert("RGBA"), "PNG")), ("webp", encoded(picture, "WEBP")),
            ("jpg", encoded(picture.convert("P"), "GIF")),
        ][n]
        key = f"street/{n:03}" if n % 3 else f"{'straße' * 10}/{n:03}"
        files |= {f"{key}.{field}": image, f"{key}.seg.png": encoded(Image.fromarray(labels), "PNG"), f"{key}.cls": b"%d" % n}
    return files


def packed(files: dict[str, bytes], form: int) -> bytes:
    """A tar of them."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three wounds."""
    for _ in range(int(rng.integers(1, 4))):
        if data:
            data = WOUNDS[int(rng.integers(len(WOUNDS)))](bytearray(data), rng)
    return data


def flip(data: bytearray, rng: np.random.Generator) -> bytes:
    for at in rng.integers(len(data), size=int(rng.integers(1, 30))):
        data[at] ^= 1 << int(rng.integers(8))
    return bytes(data)


def overwrite(data: bytearray, rng: np.random.Generator) -> bytes:
    at, length = int(rng.integers(len(data))), int(rng.integers(1, 700))
    new = rng.bytes(length) if rng.random() < 0.5 else bytes([int(rng.choice([0, 255]))]) * length
    data[at : at + length] = new[: len(data) - at]
    return bytes(data)


def cut(data: bytearray, rng: np.random.Generator) -> bytes:
    return bytes(data[: int(rng.integers(len(data)))])


def insert(data: bytearray, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(len(data)))
    return bytes(data[:at] + rng.bytes(int(rng.choice([1, 17, 512, 1024]))) + data[at:])


def move(data: bytearray, rng: np.random.Generator) -> bytes:
    """A run of blocks stands where another did."""
    blocks = max(len(data) // 512, 1)
    one, other, length = (int(n) for n in (*rng.integers(blocks, size=2), rng.integers(1, 9)))
    data[other * 512 : (other + length) * 512] = data[one * 512 : (one + length) * 512]
    return bytes(data)


def forge(data: bytearray, rng: np.random.Generator) -> bytes:
    """A tar header with a wrong field and the right checksum."""
    found = [at for at in range(0, len(data) - 512, 512) if data[at + 257 : at + 262] == b"ustar"]
    if not found:
        return bytes(data)
    at = int(rng.choice(found))
    first, last = [(0, 100), (100, 124), (124, 136), (156, 157), (157, 257), (257, 265), (345, 500)][int(rng.integers(7))]
    place = at + int(rng.integers(first, last))
    data[place] = int(rng.choice([0, 32, 45, 48, 55, 128, 255, int(rng.integers(256))]))
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return bytes(data)


def stretch(data: bytearray, rng: np.random.Generator) -> bytes:
    """An image that states another size than it has."""
    marks = ((b"IHDR", 4, 8), (b"\xff\xc0", 5, 4), (b"\xff\xc2", 5, 4))
    found = [(data.find(mark, int(rng.integers(len(data)))), skip, wide) for mark, skip, wide in marks]
    found = [place for place in found if place[0] >= 0]
    if found:
        at, skip, wide = found[int(rng.integers(len(found)))]
        data[at + skip : at + skip + wide] = rng.bytes(wide)
    return bytes(data)


Wound = Callable[[bytearray, np.random.Generator], bytes]
WOUNDS: tuple[Wound, ...] = (flip, overwrite, cut, insert, move, forge, stretch)


def read_all(path: Path) -> tuple[str, int]:
    """How it ends (`whole`, `refused`), and how many samples were bad."""
    try:
        shards = open_shards(str(path))
    except TwinviewError as e:
        assert "\n" not in str(e), "an error is one line"
        return "refused", 0
    bad = 0
    for i in range(len(shards)):
        for read in (read_image, read_map, read_class):
            try:
                read(shards, i)
            except (BadSample, TwinviewError) as e:
                assert "\n" not in str(e), "an error is one line"
                bad += 1
    shards.close()
    return "bad samples" if bad else "whole", bad


def run_case(n: int, folder: Path, files: dict[str, bytes]) -> tuple[str, int]:
    """Damage, open, read, check.  Raises whatever is a finding."""
    rng = np.random.default_rng(n)
    path, form = folder / f"{n}.tar", FORMATS[n % len(FORMATS)]
    what = rng.random()
    if what < 0.5:
        hurt = rng.choice(list(files), size=6, replace=False)
        path.write_bytes(packed({name: damaged(data, rng) if name in hurt else data for name, data in files.items()}, form))
    elif what < 0.9:
        path.write_bytes(damaged(packed(files, form), rng))
    else:
        path.write_bytes(packed(files, form))
        index.build(path)
        index.sidecar(path).write_bytes(damaged(index.sidecar(path).read_bytes(), rng))
    try:
        found = read_all(path)
        check_shards([str(path)])
        return found
    finally:
        path.unlink()
        index.sidecar(path).unlink(missing_ok=True)


def run_cases(first: int, last: int, folder: Path) -> dict[str, Any]:
    """Cases first..last - 1 in this process: how they ended, and what was found."""
    files = samples()
    ends, findings, bad, slowest = Counter[str](), list[str](), 0, 0.0

    def late(*_: Any) -> None:
        raise TimeoutError(f"longer than {LIMIT} s")

    signal.signal(signal.SIGALRM, late)
    for n in range(first, last):
        started = time.monotonic()
        signal.alarm(LIMIT)
        try:
            end, refused = run_case(n, folder, files)
            ends[end] += 1
            bad += refused
        except Exception:
            findings.append(f"case {n}: {traceback.format_exc()}")
        finally:
            signal.alarm(0)
        slowest = max(slowest, time.monotonic() - started)
    return {"ends": dict(ends), "bad": bad, "findings": findings, "slowest_s": slowest}


def in_a_process(first: int, last: int) -> dict[str, Any]:
    """The same, in a process of its own; its death is a finding."""
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe(duplex=False)

    def work() -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libjpeg remarks on every damaged image
        there.send(run_cases(first, last, Path(folder)))

    with tempfile.TemporaryDirectory() as folder:
        process = fork.Process(target=work)
        process.start()
        there.close()
        try:
            found: dict[str, Any] = here.recv()
        except EOFError:
            found = {"ends": {}, "bad": 0, "findings": [f"cases {first} to {last - 1}: the process died"], "slowest_s": 0.0}
        process.join()
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cases", type=int, default=2000)
    options.add_argument("--first", type=int, default=0, help="number of the first case")
    args = options.parse_args()
    os.environ["RANK"] = "1"  # no progress bars
    import torchvision.io  # noqa: F401 - before the cases are timed: the first JPEG of a process would wait for it
    started, cpu = time.monotonic(), os.times()
    ends, findings, bad, slowest = Counter[str](), list[str](), 0, 0.0
    for first in range(args.first, args.first + args.cases, CHUNK):
        found = in_a_process(first, min(first + CHUNK, args.first + args.cases))
        ends.update(found["ends"])
        findings += found["findings"]
        bad, slowest = bad + found["bad"], max(slowest, found["slowest_s"])
    spent = os.times()
    result = {
        "command": f"python benchmarks/fuzz.py --cases {args.cases}" + (f" --first {args.first}" if args.first else ""),
        "machine": f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, Pillow {Image.__version__}",  # type: ignore[attr-defined]
        "cases": args.cases,
        "ends": dict(sorted(ends.items())),
        "reads_refused": bad,
        "slowest_case_s": round(slowest, 2),
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(sum(spent[:4]) - sum(cpu[:4]), 1),
        "findings": findings,
    }
    OUT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    raise SystemExit(bool(findings))


if __name__ == "__main__":
    main()
