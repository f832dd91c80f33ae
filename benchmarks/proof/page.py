"""Tables of a page, made of the rows: what the page says is what the rows say.

A page has blocks from a line `<!-- KIND ... -->` to a line `<!-- end -->`; what stands between is made anew.  KIND is one of

    floors                       each method beside its random start and raw pixels
    claims                       what papers claim, as paired differences
    lightly                      ours beside lightly's
    table TASK PROBE [COMMIT]    every method of a task, of one commit, or each of the newest that has it
"""
from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from proof.rows import Row
from proof.stats import deviation
from proof.table import PROBES, by_method, compare, difference, newest, raw, table

ByCommit = Mapping[str, Sequence[Row]]
Methods = Mapping[str, Mapping[int, Row]]
BLOCK = re.compile(r"(<!-- (floors|claims|lightly|table [^\n]+) -->\n\n).*?(\n\n<!-- end -->)", re.DOTALL)


class Floor(NamedTuple):
    """A line of `floors`: which images and probe are meant by `what`."""

    label: str
    what: str
    task: str
    method: str
    probe: str


class Claim(NamedTuple):
    """A line of `claims` or `lightly`: `a` above `b`."""

    label: str
    task: str
    a: str
    b: str
    probe: str


CIFAR = ("CIFAR-10, linear", "cifar-vit", "linear"), ("CIFAR-10, nearest neighbors", "cifar-vit", "knn")
RESNET = ("CIFAR-10 (ResNet), linear", "cifar-resnet", "linear"), ("CIFAR-10 (ResNet), nearest neighbors", "cifar-resnet", "knn")
STREETS = (("street scenes of another place, linear, mIoU", "streets", "miou"),)
CELLS = "cifar-vit on streets-vit"
CLUSTERS = (("street scenes of another place, no label at all: clusters, mIoU", "segments", "cluster"),)
FLOORS = [
    Floor(label if not i else "", what, task, method, probe)
    for label, method, several in (
        ("**SiameseIM**", "siameseim", CIFAR),
        ("MAE", "mae", CIFAR),
        ("MoCo v3", "moco_v3", CIFAR),
        ("MAE beside SiameseIM (ours)", "mae_siameseim", CIFAR),
        ("SimCLR", "simclr", RESNET),
        ("BYOL", "byol", RESNET),
        ("**MultiSiam**", "multisiam", STREETS),
        ("DenseCL", "densecl", STREETS),
        ("PixPro", "pixpro", STREETS),
        ("SimCLR", "simclr", STREETS),
        ("BYOL", "byol", STREETS),
        ("**DenseSiam**", "densesiam", CLUSTERS),
        ("IIC", "iic", CLUSTERS),
        ("PiCIE", "picie", CLUSTERS),
        ("Modified Deep Clustering", "mdc", CLUSTERS),
    )
    for i, (what, task, probe) in enumerate(several)
]
CLAIMS = [
    Claim("**MultiSiam above BYOL** on street scenes, mIoU", "streets", "multisiam", "byol", "miou"),
    Claim("MultiSiam above itself without alignment", "streets", "multisiam", "multisiam_unaligned", "miou"),
    Claim("MultiSiam above itself without the IoU gate", "streets", "multisiam", "multisiam_any_pair", "miou"),
    Claim("MultiSiam above itself with every cell a cluster", "streets", "multisiam", "multisiam_cells", "miou"),
    Claim("MultiSiam above DenseCL", "streets", "multisiam", "densecl", "miou"),
    Claim("MultiSiam above PixPro", "streets", "multisiam", "pixpro", "miou"),
    Claim("MultiSiam above SimCLR", "streets", "multisiam", "simclr", "miou"),
    Claim("SiameseIM above MAE, linear", "cifar-vit", "siameseim", "mae", "linear"),
    Claim("SiameseIM above MAE, nearest neighbors", "cifar-vit", "siameseim", "mae", "knn"),
    Claim("SiameseIM above MoCo v3, linear", "cifar-vit", "siameseim", "moco_v3", "linear"),
    Claim("SiameseIM above MoCo v3, nearest neighbors", "cifar-vit", "siameseim", "moco_v3", "knn"),
    Claim("SiameseIM above MoCo v3 on cells of street scenes, mIoU", CELLS, "siameseim", "moco_v3", "miou"),
    Claim("SiameseIM above MAE on cells of street scenes, mIoU", CELLS, "siameseim", "mae", "miou"),
    Claim("DenseSiam above IIC, clusters, mIoU", "segments", "densesiam", "iic", "cluster"),
    Claim("DenseSiam above PiCIE", "segments", "densesiam", "picie", "cluster"),
    Claim("DenseSiam above Modified Deep Clustering", "segments", "densesiam", "mdc", "cluster"),
    Claim("both losses (ours) above SiameseIM alone, linear", "cifar-vit", "mae_siameseim", "siameseim", "linear"),
    Claim("both losses above SiameseIM alone, nearest neighbors", "cifar-vit", "mae_siameseim", "siameseim", "knn"),
    Claim("both losses (ours) above MAE alone, linear", "cifar-vit", "mae_siameseim", "mae", "linear"),
    Claim("both losses above MAE alone, nearest neighbors", "cifar-vit", "mae_siameseim", "mae", "knn"),
]
LIGHTLY = [
    *(
        Claim(f"{name}, {what}", task, method, f"{method} (lightly)", probe)
        for name, task, method in (("MAE", "cifar-vit", "mae"), ("SimCLR", "cifar-resnet", "simclr"), ("BYOL", "cifar-resnet", "byol"))
        for probe, what in (("linear", "linear"), ("knn", "nearest neighbors"))
    ),
    Claim("DenseCL, street scenes, linear, mIoU", "streets", "densecl_crops", "densecl_crops (lightly)", "miou"),
    Claim("the same, ours with the constant momentum that is published", "streets", "densecl_crops_constant", "densecl_crops (lightly)", "miou"),
]


def filled(text: str, by_commit: ByCommit, kinds: Sequence[str] = ("floors", "claims", "lightly", "table")) -> str:
    """The page with its blocks of these kinds made anew.  A line whose runs nobody has made is left out."""

    def made(found: re.Match[str]) -> str:
        kind, *words = found[2].split()
        return found[0] if kind not in kinds else found[1] + "\n".join(MAKERS[kind](by_commit, *words)) + found[3]

    return BLOCK.sub(made, text)


def floors(by_commit: ByCommit) -> list[str]:
    """The block of that name."""
    heads = "| | images, probe | seeds | trained | random start | raw pixels | above random start | above raw pixels |"
    lines = [heads, "|---|---|---|---|---|---|---|---|"]
    for label, what, task, method, probe in FLOORS:
        floor = raw(probe, _of(by_commit, task, (method, "random")))
        found = _scores(by_commit, task, (method, "random", floor), probe)
        if found is None:
            continue
        own, start, pixels = found
        shared = {seed: score for seed, score in start.items() if seed in own}
        gains = [difference(own, floor) for floor in (shared, pixels)]
        said = (f"{d.mean:+.1f} ± {d.deviation:.1f} [{d.low:+.1f}, {d.high:+.1f}]" if d and d.seeds > 1 else "one seed" for d in gains)
        means = " (k-means)" if probe == "cluster" else ""
        cells = [label, what, str(len(own)), _mean(own), _mean(shared) + means, f"{statistics.fmean(pixels.values()):.1f}{means}", *said]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def claims(by_commit: ByCommit) -> list[str]:
    """The block of that name."""
    lines = ["| | seeds | difference | over seeds | over seeds and images |", "|---|---|---|---|---|"]
    for label, task, a, b, probe in CLAIMS:
        if (found := _compared(by_commit, task, a, b, probe)) is not None:
            images = f"[{found['images_low']:+.1f}, {found['images_high']:+.1f}]" if probe != "cluster" else ""
            lines.append(f"| {label} | {found['seeds']} | {_difference(found)} | [{found['low']:+.1f}, {found['high']:+.1f}] | {images} |")
    return lines


def lightly(by_commit: ByCommit) -> list[str]:
    """The block of that name."""
    lines = ["| | seeds | twinview | lightly | difference | CPU s | lightly's |", "|---|---|---|---|---|---|---|"]
    for label, task, a, b, probe in LIGHTLY:
        if (found := _compared(by_commit, task, a, b, probe)) is not None:
            methods = _of(by_commit, task, (a, b))
            means = [_mean({seed: float(row[probe]) for seed, row in methods[name].items()}) for name in (a, b)]
            seconds = [f"{statistics.fmean(float(row['cpu_seconds']) for row in methods[name].values()):.0f}" for name in (a, b)]
            between = f"{_difference(found)} [{found['low']:+.1f}, {found['high']:+.1f}]"
            lines.append(f"| {' | '.join([label, str(found['seeds']), *means, between, *seconds])} |")
    return lines


def rows_of_task(by_commit: ByCommit, *words: str) -> list[str]:
    """The block `table`: the words of a task (`cifar-vit on streets-vit`), a probe, and perhaps a commit."""
    commit = words[-1] if words[-1] not in PROBES else ""
    *named, probe = words[:-1] if commit else words
    task = " ".join(named)
    rows = [row for row in by_commit.get(commit, []) if row["task"] == task] if commit else newest(by_commit, task)
    return [line for line in table(rows, [probe]) if line]


MAKERS: dict[str, Callable[..., list[str]]] = {"floors": floors, "claims": claims, "lightly": lightly, "table": rows_of_task}


def _of(by_commit: ByCommit, task: str, names: Sequence[str]) -> Methods:
    """The methods of a task at the newest commit that has all of `names`; none where there is no such."""
    for rows in reversed(list(by_commit.values())):
        found = by_method([row for row in rows if row["task"] == task])
        if set(names) <= found.keys():
            return found
    return {}


def _scores(by_commit: ByCommit, task: str, names: Sequence[str], probe: str) -> list[dict[int, float]] | None:
    methods = _of(by_commit, task, names)
    found = [{seed: float(row[probe]) for seed, row in methods.get(name, {}).items() if probe in row} for name in names]
    return found if all(found) else None


def _compared(by_commit: ByCommit, task: str, a: str, b: str, probe: str) -> dict[str, Any] | None:
    methods = _of(by_commit, task, (a, b))
    own, other = ({seed: row for seed, row in methods.get(name, {}).items() if probe in row} for name in (a, b))
    return compare(own, other, probe) if len(set(own) & set(other)) > 1 else None


def _difference(found: Mapping[str, Any]) -> str:
    return f"{found['mean']:+.1f} ± {found['deviation']:.1f}"


def _mean(scores: Mapping[int, float]) -> str:
    values = list(scores.values())
    return f"{statistics.fmean(values):.1f}" + (f" ± {deviation(values):.1f}" if len(values) > 1 else "")
