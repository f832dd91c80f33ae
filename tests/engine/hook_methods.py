"""Methods whose state hooks keep, as a stranger would write them: a classifier made anew each epoch, a queue, a center, an average of features.

The tests install this file as a package named `held`.
"""
# mypy: ignore-errors
import torch
from torch import nn
from torch.nn import functional as F

from twinview.hooks import hookimpl, part
from twinview.ops.ranks import gather_rows, summed
from twinview.values import Head, ParamRule


class Labels(nn.Module):
    def __init__(self, samples):
        super().__init__()
        self.register_buffer("labels", torch.zeros(samples, dtype=torch.int64))


@part
class Deep:
    """DeepCluster, with the sign of a few features for a clustering: labels by sample, a classifier drawn anew, images uniform over labels."""

    clusters: int = 4
    train: bool = False
    optimizer: str = ""

    @hookimpl
    def heads(self, dims):
        return {
            "classifier": Head(nn.Sequential(nn.Linear(dims.width("pooled"), 6), nn.ReLU(), nn.Linear(6, self.clusters))),
            "labels": Head(Labels(dims.dataset_size), "state"),
        }

    @hookimpl
    def before_epoch(self, branches, data, progress, rng):
        found = []
        for batch in data.plain(size=(32, 32), batch_size=4):
            pooled = data.features(branches.online, batch).pooled
            bits = (pooled[:, :2] > pooled[:, 2:4]).long()
            found.append(torch.stack([batch.ids, bits[:, 0] * 2 + bits[:, 1]], 1))
        rows = gather_rows(torch.cat(found))
        store = branches.online.of(self, "labels")
        store.labels[rows[:, 0]] = rows[:, 1] % self.clusters
        branches.reset(self, "classifier")

    @hookimpl
    def sample_weights(self, branches, progress):
        labels = branches.online.of(self, "labels").labels
        return 1 / labels.bincount(minlength=self.clusters).clamp(min=1)[labels].double()

    @hookimpl
    def loss(self, step):
        labels = step.branches.online.of(self, "labels").labels[step.batch.ids]
        logits = step.apply(step.head(self, "classifier"), 0, "online", on="pooled")
        return {"deep": F.cross_entropy(logits, labels)}


class Queue(nn.Module):
    """Rows of unit length, the oldest overwritten, and those of the step under way."""

    def __init__(self, rows, width, batch):
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(rows, width), dim=1))
        self.register_buffer("coming", torch.zeros(batch, width))
        self.register_buffer("at", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))


@part
class Contrast:
    """MoCo's queue, DINO's center and an average of the online features; the loss uses all three."""

    size: int = 24

    @hookimpl
    def heads(self, dims):
        width = dims.width("pooled")
        center = nn.Module()
        for name in ("center", "sum", "mean"):
            center.register_buffer(name, torch.zeros(width))
        center.register_buffer("seen", torch.zeros(()))
        return {"queue": Head(Queue(self.size, width, dims.global_batch), "state"), "center": Head(center, "state")}

    @hookimpl
    def loss(self, step):
        queue, center = step.branches.online.of(self, "queue"), step.branches.online.of(self, "center")
        q = F.normalize(step.online[0].pooled, dim=1)
        k = F.normalize(step.target[1].pooled - center.center, dim=1)
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.rows.T.clone()], 1)
        pull = (step.online[0].pooled - center.mean).square().mean()
        return {"contrast": F.cross_entropy(logits / 0.2, torch.zeros(len(q), dtype=torch.int64)) + 0.1 * pull}

    @hookimpl
    def after_micro_batch(self, branches, step, progress):
        queue, center = branches.online.of(self, "queue"), branches.online.of(self, "center")
        keys = gather_rows(F.normalize(step.target[1].pooled, dim=1))
        queue.coming[queue.filled : queue.filled + len(keys)] = keys
        queue.filled += len(keys)
        center.sum += summed(step.target[1].pooled.sum(0))
        center.seen += summed(torch.tensor(float(len(step.batch.keys))))
        step.note("micro", torch.tensor(float(progress.micro)))
        if progress.micro == 0:
            step.note("first", torch.tensor(3.0))

    @hookimpl
    def after_step(self, branches, step, progress):
        queue, center = branches.online.of(self, "queue"), branches.online.of(self, "center")
        places = (queue.at + torch.arange(len(queue.coming))) % self.size
        queue.rows[places] = queue.coming
        queue.at.copy_((queue.at + len(queue.coming)) % self.size)
        queue.filled.zero_()
        mean = center.sum / center.seen
        center.center.lerp_(mean, 0.1)
        center.mean.mul_(0.5).add_(0.5 * mean)
        center.sum.zero_(), center.seen.zero_()
        step.note("center", center.center.norm())


@part
class Writes:
    """Writes to parameters where the documentation says that it may: SwAV's unit rows after each step, a bias before each epoch."""

    @hookimpl
    def after_step(self, branches):
        weight = branches.online.heads["toy/pooled/projector"].weight
        weight.copy_(F.normalize(weight, dim=1))

    @hookimpl
    def before_epoch(self, branches, progress):
        with torch.no_grad():
            branches.online.heads["toy/pooled/projector"].bias.fill_(progress.epoch + 1)
            branches.online.encoder.patch.weight.data.mul_(0.5)


@part
class Late:
    """DINO's last layer: still in the first epochs."""

    epochs: int = 1

    @hookimpl
    def param_groups(self, name, parameter):
        return ParamRule(frozen_until=self.epochs) if "predictor" in name else None


@hookimpl
def parts():
    return {"deep": Deep, "contrast": Contrast, "writes": Writes, "late": Late}
