"""Probes, votes and mCE beside tensors of the code that made the tables."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from twinview.errors import DataError, RecipeError
from twinview_probes.fewshot import FewShot, own_scale, softmax_regression
from twinview_probes.images import Embedded, name_hash
from twinview_probes.knn import Knn
from twinview_probes.linear_probe import Linear
from twinview_probes.regression import logistic, ridge
from twinview_probes.robustness import ALEXNET, class_list, mce
from twinview_probes.tables import TABLES, Probe, optimizer, train
from twinview_probes.whole_images import Truth

FIXTURES = Path(__file__).with_name("fixtures") / "evaluation"


def reference(name: str) -> Any:
    return torch.load(FIXTURES / f"{name}.pt", weights_only=True)


def test_four_steps_of_the_probe_of_mae() -> None:
    ref, table = reference("linear_probe_step"), TABLES["mae"]
    assert table.peak(ref["meta"]["batch"]) == pytest.approx(6.4)
    for epoch, rate in ref["schedule"].tolist():
        assert table.peak(ref["meta"]["batch"]) * table.share(epoch) == pytest.approx(rate, rel=1e-12)
    probe = Probe(20, 9, norm=True).double()
    names = {"0.": "norm.", "1.": "layer."}
    probe.load_state_dict({names[key[:2]] + key[2:]: value for key, value in ref["state"].items()})
    moves = optimizer(table, probe, 0.0)
    for x, y, lr, loss in zip(ref["x"], ref["y"], ref["lr"], ref["losses"]):
        moves.param_groups[0]["lr"] = moves.param_groups[1]["lr"] = float(lr)
        found = F.cross_entropy(probe(x), y)
        moves.zero_grad()
        found.backward()  # type: ignore[no-untyped-call]
        moves.step()
        assert float(found.detach()) == pytest.approx(float(loss), rel=1e-12)
    after = {names[key[:2]] + key[2:]: value for key, value in ref["state_after"].items()}
    for name, value in probe.state_dict().items():
        torch.testing.assert_close(value, after[name], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(probe.eval()(ref["x"][0]), ref["eval_logits"], rtol=1e-12, atol=1e-12)


def test_three_steps_of_the_probe_of_moco() -> None:
    ref, table = reference("linear_probe_step"), TABLES["moco"]
    assert table.peak(256) == table.peak(1024) == 30 and [table.share(e) for e in (0, 59, 60, 80)] == pytest.approx([1, 1, 0.1, 0.01])
    assert [table.lasting(10).share(e) for e in (0, 5, 6, 8)] == pytest.approx([1, 1, 0.1, 0.01])  # the same shares of a shorter training
    probe = Probe(20, 9, norm=False).double()
    probe.layer.load_state_dict(ref["moco_state"])
    moves = optimizer(table, probe, table.peak(256))
    for x, y, loss in zip(ref["x"], ref["y"], ref["moco_losses"]):
        found = F.cross_entropy(probe(x * ref["meta"]["moco"]["input_scale"]), y)
        moves.zero_grad()
        found.backward()  # type: ignore[no-untyped-call]
        moves.step()
        assert float(found.detach()) == pytest.approx(float(loss), rel=1e-12)
    for name, value in probe.layer.state_dict().items():
        torch.testing.assert_close(value, ref["moco_state_after"][name], rtol=1e-12, atol=1e-12)


def probe_of(kind: Any, **options: Any) -> Any:
    return kind(val="val", size=(8, 8), **options)


def test_votes_and_accuracies_of_dino_s_neighbours() -> None:
    ref = reference("knn_dino")
    knn = probe_of(Knn, k=ref["k"].tolist(), metrics=["top1", "top5"])
    data = Embedded(ref["train"], ref["train_labels"], ref["train_labels"])
    classify = knn.fit_numbered(data, 11)
    votes = classify(ref["test"])["@k20,t0.07"]
    near = (ref["test"] @ ref["train"].T).max(1, keepdim=True).values  # what is taken off against overflow
    torch.testing.assert_close(votes * (near / 0.07).exp(), ref["votes_k20"], rtol=5e-5, atol=1e-4)
    torch.testing.assert_close(votes.double() / votes.double().sum(1, True), ref["votes_k20"].double() / ref["votes_k20"].double().sum(1, True), rtol=0, atol=1e-6)
    test = Embedded(ref["test"], ref["test_labels"], ref["test_labels"])
    found = knn._measured(classify, test, Truth(test.y, torch.bincount(data.y)))
    for k, first, five in zip(ref["k"].tolist(), ref["top1"].tolist(), ref["top5"].tolist()):
        assert found[f"top1@k{k},t0.07"] == pytest.approx(first, abs=1e-4) and found[f"top5@k{k},t0.07"] == pytest.approx(five, abs=1e-4)
    assert {f"knn/{name}" for name in found} == knn.names()


def test_mce_and_the_cut_to_200_classes() -> None:
    ref = reference("mce")
    names = ref["meta"]["corruptions"]
    torch.testing.assert_close(torch.tensor([ALEXNET[name] for name in names], dtype=torch.float64), ref["alexnet_error"])
    errors = {name: float(1 - row.mean()) for name, row in zip(names, ref["accuracy"])}
    assert mce(errors) == pytest.approx(float(ref["mce"]), rel=1e-12) and 100 - mce(errors) == pytest.approx(float(ref["one_minus_mce"]), rel=1e-12)
    for kind in "ar":
        classes = class_list(f"imagenet_{kind}")
        assert classes == ref[f"imagenet_{kind}_classes"].tolist()
        right = ref["logits"][:, classes].argmax(1) == ref[f"labels_{kind}"]
        assert 100 * float(right.double().mean()) == pytest.approx(float(ref[f"accuracy_{kind}"]))
    with pytest.raises(RecipeError, match="there is no list of classes 'imagenet_b'. Did you mean 'imagenet_"):
        class_list("imagenet_b")


def blobs(n: int = 400, channels: int = 12, classes: int = 5, spread: float = 0.6) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    y = torch.arange(n) % classes
    return torch.randn(classes, channels, generator=draws)[y] + spread * torch.randn(n, channels, generator=draws) + 3, y


def test_few_shot_is_scikit_learn_s_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    x, y = blobs()
    z = own_scale(x)
    torch.testing.assert_close(z.mean(1), torch.zeros(len(z), dtype=torch.float64), atol=1e-12, rtol=0)
    weight = softmax_regression(z, y, 5, 0.1 / len(x))
    theirs = LogisticRegression(C=10, fit_intercept=False, tol=1e-10, max_iter=5000).fit(z.numpy(), y.numpy())
    assert np.abs(weight.T.numpy() - theirs.coef_).max() < 1e-4 * np.abs(theirs.coef_).max()


def test_few_shot_draws_a_share_of_each_class_and_reads_lists(tmp_path: Path) -> None:
    x, y = blobs(spread=2.0)
    names = torch.tensor([name_hash(f"train/c/img_{i}.JPEG") for i in range(len(y))])
    data, val = Embedded(x, y, names), Embedded(x, y, names)
    part = probe_of(FewShot, share=0.05, draws=3, train="train")
    drawn = part._drawn(data, 5)
    assert [torch.bincount(y[rows]).tolist() for rows in drawn] == [[4] * 5] * 3 and not torch.equal(drawn[0], drawn[1])
    scores = part._measured(part.fit_numbered(data, 5), val, Truth(y, torch.bincount(y)))
    assert {f"fewshot/{name}" for name in scores} == part.names() and 40 < scores["top1"] < 100 and scores["deviation"] > 0
    listed = tmp_path / "list.txt"
    listed.write_text("img_3.JPEG\nimg_17\n  img_21.JPEG")
    part = probe_of(FewShot, images=str(listed), train="train")
    assert part._named(data).tolist() == [3, 17, 21]
    listed.write_text("img_3.JPEG\nimg_999.JPEG")
    with pytest.raises(DataError, match=r"names 2 images, and train holds 1 of them\. Name the set that the list is of"):
        part._named(data)
    with pytest.raises(DataError, match="per_class = 81, and a class of train has 80 images"):
        probe_of(FewShot, per_class=81, train="train")._drawn(data, 5)


def test_solvers_without_tuning_agree_with_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression, Ridge

    x, y = blobs(spread=1.5)
    z = (x - x.mean(0)) / x.std(0, correction=0)
    ours = logistic(x, y, 5, decays=[0.01], iterations=500)
    theirs = LogisticRegression(C=1 / (0.01 * len(x)), tol=1e-10, max_iter=5000).fit(z.double().numpy(), y.numpy())  # in float32 theirs stops early
    expected = torch.from_numpy(theirs.predict_log_proba(z.numpy())).float()
    torch.testing.assert_close(ours(x).log_softmax(1), expected, atol=2e-3, rtol=0)
    assert logistic(x, y, 5).decay in (1e-1, 1e-2, 1e-3, 1e-4)
    solved = ridge(x, y, 5, decays=[0.1])
    target = F.one_hot(y, 5).double().numpy()
    expected = torch.from_numpy(Ridge(alpha=0.1 * len(x)).fit(z.double().numpy(), target).predict(z.double().numpy())).float()
    torch.testing.assert_close(solved(x), expected, atol=1e-4, rtol=0)
    errors = {d: loo(z.double(), torch.from_numpy(target), d) for d in (0.001, 0.1, 10.0)}
    assert ridge(x, y, 5, decays=[*errors]).decay == min(errors, key=lambda d: errors[d])


def loo(z: torch.Tensor, target: torch.Tensor, decay: float) -> float:
    """Leave-one-out by its definition: the hat matrix of ridge regression with a free intercept."""
    n = len(z)
    hat = z @ torch.linalg.solve(z.T @ z / n + decay * torch.eye(z.shape[1], dtype=z.dtype), z.T) / n + 1 / n
    left = (target - hat @ target) / (1 - hat.diagonal())[:, None]
    return float(left.square().mean())


@pytest.mark.parametrize("solver", ["adamw", "lbfgs", "ridge", *TABLES])
def test_every_solver_learns_what_can_be_told_apart(solver: str) -> None:
    x, y = blobs()
    rates = {"mae": 3.0, "simsiam": 6.0, "moco": 1.0, "dino": 1.0, "moco_v3": 0.0}
    options = {"adamw": {"steps": 60, "lr": 0.1}, "lbfgs": {}, "ridge": {}}.get(solver, {"epochs": 12, "batch": 32, "lr": rates.get(solver)})
    part = probe_of(Linear, solver=solver, metrics=["top1", "per_class", "groups"], shots=(80, 90), **options)
    found = part._measured(part.fit_numbered(Embedded(x, y, y), 5), Embedded(x, y, y), Truth(y, torch.bincount(y)))
    assert found["top1"] > (50 if solver == "mae" else 90)  # LARS moves slowly: MAE's table has 90 epochs
    assert found["per_class"] == pytest.approx(found["top1"]) and found["medium"] == pytest.approx(found["top1"])
    assert np.isnan(found["many"]) and np.isnan(found["few"])


def test_the_probe_of_a_table_is_the_same_every_time() -> None:
    x, y = blobs()
    one, two = (train(TABLES["mae"], x, y, 5, epochs=4, batch=64, lr=0.0, seed=3) for _ in range(2))
    assert torch.equal(one.layer.weight, two.layer.weight) and not torch.equal(one.layer.weight, train(TABLES["mae"], x, y, 5, epochs=4, batch=64, lr=0.0, seed=4).layer.weight)


def test_options_that_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="epochs is none of solver = 'lbfgs', which takes nothing to tune"):
        probe_of(Linear, solver="lbfgs", epochs=3)
    with pytest.raises(ValueError, match="crop_share is of crop = true"):
        probe_of(Knn, crop_share=0.875)
    with pytest.raises(ValueError, match="k must be > 0: a number, or a list of different ones"):
        probe_of(Knn, k=[5, 5])
