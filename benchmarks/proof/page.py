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
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from proof.rows import Row
from proof.table import PROBES, ByCommit, compare, difference, mean, newest, of_newest, raw, table

BLOCK = re.compile(r"(<!-- (floors|claims|lightly|table [^\n]+) -->\n).*?(<!-- end -->)", re.DOTALL)


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
R18 = (("street scenes of another place, linear, mIoU", "streets-r18", "miou"),)
CELLS = "cifar-vit on streets-vit"
CLUSTERS = (("street scenes of another place, no label at all: clusters, mIoU", "segments", "cluster"),)
FLOORS = [
    Floor(label if not i else "", what, task, method, probe)
    for label, method, several in (
        ("**SiameseIM**", "siameseim", CIFAR),
        ("SiameseIM, three times the steps", "siameseim_6000", CIFAR),
        ("MAE", "mae", CIFAR),
        ("MoCo v3", "moco_v3", CIFAR),
        ("MAE beside SiameseIM (ours)", "mae_siameseim", CIFAR),
        ("SimCLR", "simclr", RESNET),
        ("BYOL", "byol", RESNET),
        ("BYOL, eight times the steps", "byol_4800", RESNET),
        ("**MultiSiam**", "multisiam", STREETS),
        ("**MultiSiam, three times the steps**", "multisiam_2400", STREETS),
        ("MultiSiam with a whole ResNet-18, three times the steps", "multisiam", R18),
        ("SimCLR with it", "simclr", R18),
        ("ReSim with it, slow target", "resim", R18),
        ("DenseCL", "densecl", STREETS),
        ("PixPro", "pixpro", STREETS),
        ("SimCLR", "simclr", STREETS),
        ("ReSim", "resim", STREETS),
        ("MoCo v2, slow target", "moco_v2_slow", STREETS),
        ("DenseCL, slow target", "densecl_slow", STREETS),
        ("ReSim, slow target", "resim_slow", STREETS),
        ("DetCo, slow target", "detco_slow", STREETS),
        ("MoCo v3", "moco_v3", STREETS),
        ("SimSiam", "simsiam", STREETS),
        ("BYOL", "byol", STREETS),
        ("BYOL, three times the steps", "byol_2400", STREETS),
        ("**DenseSiam**", "densesiam", CLUSTERS),
        ("DenseSiam, three times the steps", "densesiam_2400", CLUSTERS),
        ("IIC", "iic", CLUSTERS),
        ("PiCIE", "picie", CLUSTERS),
        ("PiCIE with DenseSiam's optimizer", "picie_sgd", CLUSTERS),
        ("Modified Deep Clustering", "mdc", CLUSTERS),
        ("the same, ending where an epoch ends", "mdc_six_epochs", CLUSTERS),
    )
    for i, (what, task, probe) in enumerate(several)
]
CLAIMS = [
    Claim("**MultiSiam above BYOL** on street scenes, mIoU", "streets", "multisiam", "byol", "miou"),
    Claim("the same, both with three times the steps", "streets", "multisiam_2400", "byol_2400", "miou"),
    Claim("MultiSiam with three times the steps above itself", "streets", "multisiam_2400", "multisiam", "miou"),
    Claim("MultiSiam above itself without alignment", "streets", "multisiam", "multisiam_unaligned", "miou"),
    Claim("MultiSiam above itself without the IoU gate", "streets", "multisiam", "multisiam_any_pair", "miou"),
    Claim("MultiSiam above itself with every cell a cluster", "streets", "multisiam", "multisiam_cells", "miou"),
    Claim("MultiSiam above DenseCL", "streets", "multisiam", "densecl", "miou"),
    Claim("MultiSiam above PixPro", "streets", "multisiam", "pixpro", "miou"),
    Claim("MultiSiam above ReSim", "streets", "multisiam", "resim", "miou"),
    Claim("DenseCL with a slow target above itself", "streets", "densecl_slow", "densecl", "miou"),
    Claim("ReSim with a slow target above itself", "streets", "resim_slow", "resim", "miou"),
    Claim("MultiSiam above SimSiam", "streets", "multisiam", "simsiam", "miou"),
    Claim("MultiSiam above SimCLR", "streets", "multisiam", "simclr", "miou"),
    Claim("MultiSiam above MoCo v3", "streets", "multisiam", "moco_v3", "miou"),
    Claim("SiameseIM above MAE, linear", "cifar-vit", "siameseim", "mae", "linear"),
    Claim("SiameseIM above MAE, nearest neighbors", "cifar-vit", "siameseim", "mae", "knn"),
    Claim("SiameseIM with three times the steps above itself, linear", "cifar-vit", "siameseim_6000", "siameseim", "linear"),
    Claim("SiameseIM with three times the steps above itself, nearest neighbors", "cifar-vit", "siameseim_6000", "siameseim", "knn"),
    Claim("SiameseIM above MoCo v3, linear", "cifar-vit", "siameseim", "moco_v3", "linear"),
    Claim("SiameseIM above MoCo v3, nearest neighbors", "cifar-vit", "siameseim", "moco_v3", "knn"),
    Claim("SiameseIM above MoCo v3 on cells of street scenes, mIoU", CELLS, "siameseim", "moco_v3", "miou"),
    Claim("SiameseIM above MAE on cells of street scenes, mIoU", CELLS, "siameseim", "mae", "miou"),
    Claim("DenseSiam above IIC, clusters, mIoU", "segments", "densesiam", "iic", "cluster"),
    Claim("DenseSiam with three times the steps above itself", "segments", "densesiam_2400", "densesiam", "cluster"),
    Claim("DenseSiam above PiCIE", "segments", "densesiam", "picie", "cluster"),
    Claim("DenseSiam above PiCIE with DenseSiam's optimizer", "segments", "densesiam", "picie_sgd", "cluster"),
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
        return found[0] if kind not in kinds else "\n".join([found[1], *MAKERS[kind](by_commit, *words), "", found[3]])

    return BLOCK.sub(made, text)


def floors(by_commit: ByCommit) -> list[str]:
    """The block of that name."""
    heads = "| | images, probe | seeds | trained | random start | raw pixels | above random start | above raw pixels |"
    lines = [heads, "|---|---|---|---|---|---|---|---|"]
    for label, what, task, method, probe in FLOORS:
        _, methods = of_newest(by_commit, task, (method, "random", "pixels"))
        own, start, pixels = (scored(methods.get(name, {}), probe) for name in (method, "random", raw(probe, methods)))
        if not (own and start and pixels):
            continue
        shared = {seed: score for seed, score in start.items() if seed in own}
        gains = [difference(own, shared), difference(own, pixels, constant=True)]
        said = (f"{d.mean:+.1f} ± {d.deviation:.1f} [{d.low:+.1f}, {d.high:+.1f}]" if d and d.seeds > 1 else "one seed" for d in gains)
        means = " (k-means)" if probe == "cluster" else ""
        cells = [label, what, str(len(own)), mean(own), mean(shared) + means, f"{statistics.fmean(pixels.values()):.1f}{means}", *said]
        lines.append(row(cells))
    return lines


def claims(by_commit: ByCommit) -> list[str]:
    """The block of that name."""
    lines = ["| | seeds | difference | over seeds | over seeds and images |", "|---|---|---|---|---|"]
    for claim, _, found in pairs(by_commit, CLAIMS):
        images = "[{images_low:+.1f}, {images_high:+.1f}]".format(**found) if claim.probe != "cluster" else ""
        lines.append(row([claim.label, "{seeds}", "{mean:+.1f} ± {deviation:.1f}", "[{low:+.1f}, {high:+.1f}]", images]).format(**found))
    return lines


def lightly(by_commit: ByCommit) -> list[str]:
    """The block of that name."""
    lines = ["| | seeds | twinview | lightly | difference | CPU s | lightly's |", "|---|---|---|---|---|---|---|"]
    for claim, both, found in pairs(by_commit, LIGHTLY):
        means = [mean(scored(rows, claim.probe)) for rows in both]
        known = [list(scored(rows, "cpu_seconds").values()) for rows in both]
        seconds = [f"{statistics.fmean(of_runs):.0f}" if of_runs else "" for of_runs in known]
        lines.append(row([claim.label, "{seeds}", *means, "{mean:+.1f} ± {deviation:.1f} [{low:+.1f}, {high:+.1f}]", *seconds]).format(**found))
    return lines


def pairs(by_commit: ByCommit, asked: Sequence[Claim]) -> Iterator[tuple[Claim, list[dict[int, Row]], dict[str, Any]]]:
    """Each claim with the rows of both its methods, of the seeds that have both, and what `compare` says of them; from two seeds on."""
    for claim in asked:
        _, methods = of_newest(by_commit, claim.task, (claim.a, claim.b))
        a, b = ({seed: one for seed, one in methods.get(name, {}).items() if claim.probe in one} for name in (claim.a, claim.b))
        both = [{seed: one for seed, one in rows.items() if seed in a and seed in b} for rows in (a, b)]
        if len(both[0]) > 1:
            yield claim, both, compare(both[0], both[1], claim.probe)


def scored(rows: dict[int, Row], name: str) -> dict[int, float]:
    """A number of the rows that have it, by seed."""
    return {seed: float(one[name]) for seed, one in rows.items() if name in one}


def row(cells: Sequence[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def rows_of_task(by_commit: ByCommit, *words: str) -> list[str]:
    """The block `table`: the words of a task (`cifar-vit on streets-vit`), a probe, and perhaps a commit."""
    commit = words[-1] if words[-1] not in PROBES else ""
    *named, probe = words[:-1] if commit else words
    task = " ".join(named)
    rows = [one for one in by_commit.get(commit, []) if one["task"] == task] if commit else newest(by_commit, task)
    return [line for line in table(rows, [probe]) if line]


MAKERS: dict[str, Callable[..., list[str]]] = {"floors": floors, "claims": claims, "lightly": lightly, "table": rows_of_task}
