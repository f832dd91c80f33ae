"""Positions of another view's cells, and the decoder that is asked for them."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from twinview.ops.sines import sine_table, sines
from twinview.ops.transformer import TokenNorm, to_map
from twinview.values import Geometry
from twinview_siameseim.align import Relative
from twinview_siameseim.network import Decoder, Projector
from twinview_siameseim.positions import Relation, relate, relative_sines

WIDTH = 32


def geometry(boxes: list[list[float]], flips: list[bool]) -> Geometry:
    return Geometry(torch.tensor([boxes]), torch.tensor([flips]), torch.tensor([[100, 100]]), ((32, 32), (32, 32)), ((0, 1),))


def random_relation(batch: int, rows: int, columns: int) -> Relation:
    g = torch.Generator().manual_seed(1)
    return Relation(torch.rand(batch, rows, generator=g) * 9, torch.rand(batch, columns, generator=g) * 9, torch.rand(batch, 2, generator=g) + 0.5)


def decoder(channels: int = WIDTH, width: int = WIDTH) -> Decoder:
    torch.manual_seed(0)
    made = Decoder(channels, width, depth=2, heads=4, mlp_ratio=2, norm="batch")
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return made


def tokens(batch: int, n: int, channels: int = WIDTH) -> Tensor:
    return torch.randn(batch, n, channels, generator=torch.Generator().manual_seed(2))


# ---- positions
def test_sines_come_before_cosines() -> None:
    found = sines(torch.tensor([0.0, 1.5]), 8)
    assert found[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    rates = 10000 ** (-torch.arange(4) / 4)
    torch.testing.assert_close(found[1], torch.cat([(1.5 * rates).sin(), (1.5 * rates).cos()]))


def test_rows_come_before_columns() -> None:
    table = sine_table((2, 3), 16, row_first=True).view(2, 3, 16)
    assert torch.equal(table[0, :, :8], table[0, :1, :8].expand(3, 8)) and not torch.equal(table[0, 0, :8], table[1, 0, :8])
    assert torch.equal(table[:, 1, 8:], table[:1, 1, 8:].expand(2, 8)) and torch.equal(table[1, 2], torch.cat([sines(torch.tensor(1.0), 8), sines(torch.tensor(2.0), 8)]))


@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
@pytest.mark.parametrize("flip", [False, True])
def test_a_view_of_the_same_place_has_the_cells_own_positions(grid: tuple[int, int], flip: bool) -> None:
    box = [0.25, 0.125, 0.75, 0.5]
    found = relate(geometry([box, box], [flip, flip]), 0, 1, (grid, grid))
    torch.testing.assert_close(found.rows, torch.arange(float(grid[0]))[None], rtol=0, atol=1e-6)
    torch.testing.assert_close(found.columns, torch.arange(float(grid[1]))[None], rtol=0, atol=1e-6)
    blocks = [e.expand(1, *grid, -1) for e in relative_sines(found, WIDTH)]
    torch.testing.assert_close(torch.cat(blocks[:2], -1).flatten(1, 2)[0], sine_table(grid, WIDTH, row_first=True), rtol=0, atol=1e-5)
    assert all(set(block.flatten().tolist()) == {0, 1} for block in blocks[2:])


def test_a_mirrored_pair_runs_backwards_along_its_columns() -> None:
    boxes = [[0.1, 0.2, 0.6, 0.9], [0.3, 0.1, 0.8, 0.7]]
    plain, mirrored = (relate(geometry(boxes, [False, flip]), 0, 1, ((4, 4), (4, 4))) for flip in (False, True))
    assert torch.equal(plain.rows, mirrored.rows) and torch.equal(plain.scales, mirrored.scales)
    torch.testing.assert_close(plain.columns.flip(1), mirrored.columns)


def test_grids_may_differ() -> None:
    found = relate(geometry([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0]], [False, False]), 0, 1, ((4, 8), (2, 2)))
    torch.testing.assert_close(found.rows, torch.tensor([[0.5, 2.5]]))
    torch.testing.assert_close(found.columns, torch.tensor([[0.5, 2.5]]))
    torch.testing.assert_close(found.scales, torch.tensor([[1.0, 0.5]]))


# ---- decoder
def test_places_are_one_linear_layer_of_all_four_blocks() -> None:
    net, relation = decoder(), random_relation(3, 4, 5)
    e = torch.cat([block.expand(3, 4, 5, -1) for block in relative_sines(relation, WIDTH)], -1)
    torch.testing.assert_close(net.places(relation), net.place(e).flatten(1, 2), rtol=1e-5, atol=1e-5)
    assert e.shape[-1] == 2 * WIDTH and not any(block.requires_grad for block in relative_sines(relation, WIDTH))
    net.places(relation).sum().backward()  # type: ignore[no-untyped-call]
    assert net.place.weight.grad is not None and net.place.weight.grad.abs().sum() > 0


def test_positions_are_float32_under_autocast() -> None:
    net, relation = decoder(), random_relation(2, 4, 4)
    plain = net.places(relation)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net.places(relation), plain)
        assert net(tokens(2, 7), 1, None, (2, 3), relation).dtype == torch.bfloat16


def test_cells_asked_in_another_order_are_answered_in_that_order() -> None:
    net, relation = decoder(), random_relation(2, 4, 4)
    mirrored = relation._replace(columns=relation.columns.flip(1))
    found, other = (net(tokens(2, 7), 1, None, (2, 3), r) for r in (relation, mirrored))
    torch.testing.assert_close(found, other.flip(3), rtol=1e-4, atol=1e-5)
    assert found.shape == (2, WIDTH, 4, 4) and (found - other).abs().max() > 1e-3


def test_visible_tokens_stand_at_their_own_places() -> None:
    net, relation = decoder(), random_relation(2, 2, 2)
    x, kept = tokens(2, 4), torch.tensor([[0, 2, 5], [1, 3, 4]])
    order = torch.tensor([0, 3, 1, 2])  # the class token, then cells in another order
    moved = net(x[:, order], 1, kept[:, order[1:] - 1], (2, 3), relation)
    torch.testing.assert_close(net(x, 1, kept, (2, 3), relation), moved, rtol=1e-4, atol=1e-5)
    assert (net(x, 1, kept.flip(1), (2, 3), relation) - moved).abs().max() > 1e-3
    assert (net(x, 1, kept, (3, 2), relation) - moved).abs().max() > 1e-3


def test_a_decoder_may_be_wider_than_what_it_answers() -> None:
    net = decoder(27, 64)
    assert net(tokens(2, 6, 27), 0, None, (2, 3), random_relation(2, 4, 4)).shape == (2, 27, 4, 4) and net.mask_token.shape == (1, 1, 64)


def test_statistics_are_over_batch_and_tokens() -> None:
    norm = TokenNorm(5)
    x = torch.randn(4, 6, 5) * 3 + 2
    y = norm(x)
    torch.testing.assert_close(y.mean((0, 1)), torch.zeros(5), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.var((0, 1), correction=0), torch.ones(5), rtol=1e-4, atol=0)
    torch.testing.assert_close(norm.bn.running_var, 0.9 + 0.1 * x.var((0, 1)))
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x.bfloat16()).dtype == torch.float32


def test_a_projector_takes_a_maps_cells_as_tokens() -> None:
    torch.manual_seed(0)
    net = Projector(6, 16, depth=1, heads=4, mlp_ratio=2, norm="layer")
    x = torch.randn(2, 6, 3, 4)
    torch.testing.assert_close(net(x), to_map(net(x.flatten(2).mT), (3, 4)))


def test_tokens_become_a_map_with_blanks_where_none_stands() -> None:
    x, kept = tokens(2, 3, 4), torch.tensor([[0, 5], [2, 3]])
    found = to_map(x, (2, 3), 1, kept)
    assert torch.equal(found[0, :, 0, 0], x[0, 1]) and torch.equal(found[0, :, 1, 2], x[0, 2]) and torch.equal(found[1, :, 0, 2], x[1, 1])
    assert int((found != 0).any(1).sum()) == 4


@pytest.mark.parametrize("width", [40, 100, 8])
def test_a_width_that_heads_do_not_divide_is_refused(width: int) -> None:
    with pytest.raises(ValueError, match="width wants a multiple of 16 for 16 attention heads"):
        Relative(width=width)
