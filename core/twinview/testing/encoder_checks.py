"""Checks of encoders and of alignments."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from twinview.assembly.answers import CHECKS, promised
from twinview.errors import ContractError, TwinviewError
from twinview.testing.data_checks import pick
from twinview.testing.failure import Failure
from twinview.testing.subject import SIDE
from twinview.testing.trial import Trial
from twinview.values import Alignment, Features, Geometry

CELLS_OFF = 1.0  # by how many cells two places may differ that an alignment puts on one another


class _Branch:
    """What the contract of `encode` looks at."""

    def __init__(self, encoder: nn.Module) -> None:
        self.encoder = encoder


def spec(trial: Trial) -> Iterator[Failure]:
    """What the module gives has the widths, strides and prefix of its `spec`, for square images and others; and all that traits promise."""
    subject, encoder = trial.subject, _encoder(trial)
    for size in ((SIDE, SIDE), (SIDE, SIDE + SIDE // 2), (2 * SIDE, SIDE)):
        images = _images(2, size)
        try:
            found = encoder(images)
            CHECKS["encode"](found, {"branch": _Branch(encoder), "images": images})
            promised(found, subject.traits.gives, cast(Any, encoder.spec))
        except ContractError as e:
            got, _, wanted = str(e).removeprefix("gives ").partition(". ")
            yield Failure(subject.name, "make_encoder", f"{got} for images of {size[0]}x{size[1]}", wanted.rstrip(".").removeprefix("Give "))
            return
        except TwinviewError:
            continue  # a size that it refuses in one line


def by_image(trial: Trial) -> Iterator[Failure]:
    """In eval mode an image's features do not depend on the others of the batch, and are the same when it is asked again."""
    encoder, images = _encoder(trial), _images(4)
    with torch.no_grad():
        whole, again, single = encoder(images), encoder(images), encoder(images[1:2])
    for name in whole.names():
        if not torch.equal(whole.at(name), again.at(name)):
            yield Failure(trial.subject.name, "make_encoder", f"other {name} for the same images in eval mode", "the same: no dropout in eval mode")
            return
        if not _close(whole.at(name)[1:2], single.at(name)):
            yield Failure(
                trial.subject.name, "make_encoder", f"other {name} for an image alone than among four, in eval mode", "each image by itself",
            )
            return


def same_start(trial: Trial) -> Iterator[Failure]:
    """Two encoders of one seed start alike."""
    assembly = trial.subject.assemble()
    torch.manual_seed(1)
    one, other = assembly.encoder().state_dict(), assembly.encoder().state_dict()
    for name, value in one.items():
        if not torch.equal(value, other[name]):
            wanted = "the same for the same seed: draw from torch's global generator, which is seeded then"
            yield Failure(trial.subject.name, "make_encoder", f"another start of {name} when it is made again", wanted)
            return


def reaches_all(trial: Trial) -> Iterator[Failure]:
    """A gradient of all that it gives reaches every parameter that is to be trained."""
    yield from _all_reached(trial, _encoder(trial).train())


def _all_reached(trial: Trial, encoder: nn.Module, hidden: Tensor | None = None) -> Iterator[Failure]:
    """A failure for the first parameter that no gradient reaches; `hidden` [4, h * w]: not in a second pass either, with these cells hidden."""
    generator = torch.Generator().manual_seed(0)
    for more in ((),) if hidden is None else ((), (hidden,)):
        found: Features = encoder(_images(4), *more)
        values = [value for name in found.names() if (value := found.at(name)).requires_grad]
        loss = torch.stack([(value * torch.randn(value.shape, generator=generator)).sum() for value in values]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad and (parameter.grad is None or not bool(torch.count_nonzero(parameter.grad))):
            where, wanted = "", "one, or requires_grad_(False): what serves hidden cells alone is frozen where `masked` is false"
            if hidden is not None:
                where, wanted = ", with hidden cells or without", "one: what stands in the place of a hidden cell is learned"
            yield Failure(trial.subject.name, "make_encoder", f"no gradient in {name}{where}", wanted)
            return


def hides(trial: Trial) -> Iterator[Failure]:
    """Nothing of a hidden cell's pixels reaches what is given of the others, and gradients reach what stands in its place."""
    if "hides" not in trial.subject.traits.gives:
        return
    assembly = trial.subject.assemble()
    encoder = assembly.calls.make_encoder(masked=True, channels=assembly.recipe.data.channels).eval()
    height, width = cast(Any, encoder.spec).grid((SIDE, SIDE))
    hidden = torch.zeros(2, height * width, dtype=torch.bool)
    hidden[:, ::2] = True
    images = _images(2)
    where = hidden.view(2, 1, height, width).float()
    changed = torch.where(nn.functional.interpolate(where, size=(SIDE, SIDE), mode="nearest").bool(), images + 5, images)
    with torch.no_grad():
        one, other = (_seen(encoder(given, hidden), where) for given in (images, changed))
    for name, value in one.items():
        if not _close(value, other[name]):
            said = f"other {name} that are seen" if name != "pooled" else "another pooled"
            yield Failure(trial.subject.name, "make_encoder", f"{said} when the pixels of hidden cells change", "nothing of hidden cells there")
            return
    yield from _all_reached(trial, encoder.train(), hidden.repeat(2, 1))


def _seen(found: Features, hidden: Tensor) -> dict[str, Tensor]:
    """What is given of cells that are seen; `hidden` [B, 1, h, w], 1 where they are not."""
    given: dict[str, Tensor] = {}
    maps = {**({} if found.cells is None else {"cells": found.cells}), **{f"cells of level {name}": value for name, value in found.levels.items()}}
    for name, value in maps.items():
        given[name] = value * (nn.functional.interpolate(hidden, size=value.shape[2:], mode="bilinear") == 0)
    if found.tokens is not None:
        of_cells = found.tokens[:, found.prefix :]
        given["tokens"] = of_cells if found.kept is not None else of_cells * (hidden.flatten(1)[..., None] == 0)
    return given if found.pooled is None else {**given, "pooled": found.pooled}


def channels(trial: Trial) -> Iterator[Failure]:
    """Images of five channels, where traits give `any_channels`."""
    if "any_channels" in trial.subject.traits.gives:
        encoder = trial.subject.assemble().calls.make_encoder(masked=False, channels=5).eval()
        with torch.no_grad():
            encoder(_images(2, channels=5))
        yield from ()


def blocks(trial: Trial) -> Iterator[Failure]:
    """`recomputable()` gives the module's blocks, none inside another, where traits say `recomputable`."""
    if "recomputable" not in trial.subject.traits.gives:
        return
    encoder = _encoder(trial)
    found = list(cast(Any, encoder).recomputable()) if hasattr(encoder, "recomputable") else []
    if not found:
        yield Failure(trial.subject.name, "make_encoder", "no blocks from recomputable()", "its blocks, or traits without `recomputable`")
    inside = [block for block in found if any(block is not other and block in list(other.modules()) for other in found)]
    if inside:
        yield Failure(trial.subject.name, "make_encoder", "a block of recomputable() inside another", "blocks of which none holds another")


def exports(trial: Trial) -> Iterator[Failure]:
    """A run's encoder is loaded again with the weights that it ended with; what it publishes is a dictionary of finite tensors."""
    from twinview.analysis.load import load_encoder

    folder, _ = trial.run
    encoder, trained = load_encoder(folder), trial.rehearsal.model.online.encoder
    images = _images(2)
    with torch.no_grad():
        one, other = encoder(images), trained.eval()(images)
    trained.train()
    name = next((name for name in one.names() if not torch.allclose(one.at(name), other.at(name), rtol=1e-3, atol=1e-4)), "")
    if name:
        yield Failure(
            trial.subject.name, "make_encoder", f"other {name} from twinview.load(run) than from the encoder that was trained",
            "all that it uses in state_dict()",
        )
    if hasattr(encoder, "published"):
        try:
            found = cast(Any, encoder).published((SIDE, SIDE))
        except ValueError:
            return
        for key, value in found.tensors.items() if found is not None else ():  # None: of this network its library has none
            if not isinstance(value, Tensor) or not bool(value.isfinite().all()):
                yield Failure(
                    trial.subject.name, "published", f"{key} that is no tensor of finite numbers",
                    "what load_state_dict of the library's module takes",
                )
                return


# ---- alignments
def places(trial: Trial) -> Iterator[Failure]:
    """A map whose feature is its own place in the source meets itself through the alignment, to within a cell; mirrored views too."""
    still = trial.still
    batch = still.batches(1)[0]
    step = still.step(batch)
    with torch.no_grad():
        for online, target in step.pairs:
            found: Alignment = step.alignment(online, target)
            if found.extra is not None or found.fills_hidden:
                return  # it tells a predictor by how much the views are displaced, or is learned: it does not put places on one another
            one = found.online(_place(step.geometry, online, step.grids[online]))
            other = found.target(_place(step.geometry, target, step.grids[target]))
            if one.shape != other.shape or one.shape[-2:] != found.weight.shape[-2:]:
                got = f"maps {list(one.shape)} and {list(other.shape)} with a weight {list(found.weight.shape)}"
                yield Failure(trial.subject.name, "align", got, "one common grid")
                return
            cell = torch.stack([_cell(step.geometry, view, step.grids[view]) for view in (online, target)]).amax(0)  # [B, 2]
            off = ((one - other).abs() / cell[:, :, None, None]).amax(1)  # cells
            counted = found.weight > found.weight.max() * 0.01
            worst = float(off[counted].max()) if bool(counted.any()) else 0.0
            if worst > CELLS_OFF:
                wanted = f"at most {CELLS_OFF:g} where its weight is above 0: flips, and boxes, are in step.geometry"
                yield Failure(trial.subject.name, "align", f"places that are {worst:.1f} cells apart, of views {online} and {target}", wanted)
                return


def alignment_by_image(trial: Trial) -> Iterator[Failure]:
    """An image's alignment does not depend on the others of the batch."""
    still = trial.still
    batch = still.batches(1)[0]
    which = [2, 0, 5]
    generator = torch.Generator().manual_seed(0)
    was = still.model.training
    still.model.eval()
    with torch.no_grad():
        whole, part = still.step(batch), still.step(pick(batch, which))
        online, target = whole.pairs[0]
        one, other = whole.alignment(online, target), part.alignment(online, target)
        for side, view in (("online", online), ("target", target)):
            features = torch.randn((len(batch.keys), still.model.dims.width("cells"), *whole.grids[view]), generator=generator)
            if not torch.allclose(getattr(one, side)(features)[which], getattr(other, side)(features[which]), rtol=1e-3, atol=1e-4):
                yield Failure(
                    trial.subject.name, "align", f"another {side} map for three images than for the same among eight", "each image by itself",
                )
                break
    still.model.train(was)


# ---- pieces
def _encoder(trial: Trial) -> nn.Module:
    return trial.subject.assemble().encoder().eval()


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def _images(count: int, size: tuple[int, int] = (SIDE, SIDE), channels: int = 3) -> Tensor:
    return torch.randn((count, channels, *size), generator=torch.Generator().manual_seed(count))


def _place(geometry: Geometry, view: int, grid: tuple[int, int]) -> Tensor:
    """[B, 2, h, w]: x, y of the middle of each cell, fractions of the source."""
    found: Tensor = geometry.centers(view, grid).mT.reshape(-1, 2, *grid)
    return found


def _cell(geometry: Geometry, view: int, grid: tuple[int, int]) -> Tensor:
    """[B, 2]: width and height of a view's cell, fractions of the source."""
    box = geometry.boxes[..., view, :]
    return (box[..., 2:] - box[..., :2]) / torch.tensor([grid[1], grid[0]])
