"""byol.image: the published loss, its gradients and what it does not depend on."""
from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from twinview.assembly import assemble
from twinview.model import LazyStep, Siamese
from twinview.recipe import read
from twinview.values import Batch, Geometry, Progress

RECIPE: dict[str, Any] = {
    "views": {"use": "byol.crops", "size": 32},
    "encoder": {"use": "torchvision.resnet", "name": "resnet18"},
    "loss": [{"use": "byol.image", "hidden": 48, "channels": 16}],
    "data": {"shards": "unread.tar"},
    "optimizer": {"use": "sgd", "lr": 0.1},
    "run": {"steps": 1},
}
B = 6


def model_of(**tables: Any) -> Siamese:
    torch.manual_seed(0)
    assembly = assemble(read({**RECIPE, **tables}))
    encoder = assembly.encoder()
    return Siamese(assembly, assembly.dims(encoder, 100), encoder)


def batch_of(views: int = 2, pairs: tuple[tuple[int, int], ...] = ((0, 1), (1, 0))) -> Batch:
    g = torch.Generator().manual_seed(1)
    images = tuple(torch.randint(0, 256, (B, 3, 32, 32), generator=g, dtype=torch.uint8) for _ in range(views))
    box = torch.tensor([0.0, 0, 1, 1]).expand(B, views, 4)
    geometry = Geometry(box, torch.zeros(B, views, dtype=torch.bool), torch.full((B, 2), 64.0), ((32, 32),) * views, pairs)
    return Batch(tuple("abcdef"), torch.arange(B), torch.arange(B), 0, images, geometry, (None,) * views)


def step_of(model: Siamese, batch: Batch) -> LazyStep:
    return LazyStep(model, batch, Progress(0, 1, 0, 0.0), False)


def image_loss(model: Siamese, batch: Batch) -> Tensor:
    return model.assembly.calls.loss(step=step_of(model, batch))[0]["image"]


def byol_by_hand(model: Siamese, batch: Batch) -> Tensor:
    """Algorithm 1 of the paper on two views, as 2 - 2 cos summed both ways, then brought to the mean of -cos."""
    assert model.target is not None
    step = step_of(model, batch)
    pixels = step.pixels
    online, target = model.online.heads, model.target.heads
    total = torch.zeros(())
    for view, other in ((0, 1), (1, 0)):
        q = online["byol/image/predictor"](online["byol/image/projector"](model.online.encoder(pixels[view]).pooled))
        with torch.no_grad():
            z = target["byol/image/projector"](model.target.encoder(pixels[other]).pooled)
        q, z = q / q.norm(dim=1, keepdim=True), z / z.norm(dim=1, keepdim=True)
        total = total + (q - z).square().sum(1).mean()
    return total / 4 - 1


def test_it_is_byols_loss() -> None:
    model, batch = model_of(), batch_of()
    assert model.target is not None
    with torch.no_grad():
        for p in model.target.parameters():
            p.add_(0.02 * torch.randn_like(p))  # so that a mix-up of the branches shows
    found = image_loss(model, batch)
    assert found.ndim == 0 and -1 <= found.item() <= 1
    assert torch.allclose(found, byol_by_hand(model, batch), atol=1e-5)


def test_gradient_reaches_the_online_branch_alone() -> None:
    model = model_of()
    image_loss(model, batch_of()).backward()  # type: ignore[no-untyped-call]
    assert model.target is not None
    assert all(p.grad is None for p in model.target.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.online.parameters())


def test_the_predictor_is_online_only_and_the_heads_have_their_widths() -> None:
    model = model_of()
    assert model.target is not None
    assert set(model.online.heads) == {"byol/image/projector", "byol/image/predictor"} and set(model.target.heads) == {"byol/image/projector"}
    shapes = {k: tuple(p.shape) for k, p in model.online.heads.named_parameters() if p.ndim == 2}
    assert list(shapes.values()) == [(48, 512), (16, 48), (48, 16), (16, 48)]


def test_it_ignores_the_order_of_samples_and_of_pairs() -> None:
    model, batch = model_of(), batch_of()
    found = image_loss(model, batch)
    turned = batch._replace(images=tuple(v.flip(0) for v in batch.images))
    assert torch.allclose(image_loss(model, turned), found, atol=1e-5)
    assert torch.allclose(image_loss(model, batch._replace(geometry=batch.geometry._replace(pairs=((1, 0), (0, 1))))), found, atol=1e-6)


def test_it_is_the_mean_over_the_pairs() -> None:
    model = model_of(views={"use": "byol.crops", "size": 32, "views": 3})
    every = ((0, 1), (0, 2), (1, 2))
    alone = torch.stack([image_loss(model, batch_of(3, (pair,))) for pair in every])
    assert torch.allclose(image_loss(model, batch_of(3, every)), alone.mean(), atol=1e-5)
    assert alone.std().item() > 1e-4


def test_it_ignores_the_scale_of_what_it_compares() -> None:
    """A cosine: predictions twice as long cost the same."""
    model, batch = model_of(), batch_of()
    found = image_loss(model, batch)
    with torch.no_grad():
        last: Any = model.online.heads["byol/image/predictor"]
        last[-1].weight *= 2
        last[-1].bias *= 2
    assert torch.allclose(image_loss(model, batch), found, atol=1e-5)


def test_without_an_averaged_target_it_compares_with_the_online_branch_and_stops_the_gradient() -> None:
    """Stop-gradient alone (SimSiam): the loss of a projection with itself is -1 if nothing is predicted."""
    model = model_of(target={"momentum": 0.0})
    assert model.target is None
    model.online.heads["byol/image/predictor"] = torch.nn.Identity()
    images = batch_of().images[0]
    found = image_loss(model, batch_of()._replace(images=(images, images)))
    assert found.item() == pytest.approx(-1, abs=1e-5)


def test_the_cosine_is_fp32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert image_loss(model_of(), batch_of()).dtype == torch.float32
