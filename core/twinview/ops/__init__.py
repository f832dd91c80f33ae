"""What several methods need, public: heads, cosines, cross-entropies, contrast, queues, crops, maps, clustering, attention, signs of collapse."""
from twinview.ops.contrast import info_nce, info_nce_batch, info_nce_queue, nt_xent
from twinview.ops.cosine import cosine, cosine_loss, cosine_pairs
from twinview.ops.crops import crops_batch, crops_geometry, random_resized_box
from twinview.ops.cross_entropy import soft_cross_entropy, soft_cross_entropy_loss
from twinview.ops.heads import conv_mlp, mlp
from twinview.ops.kmeans import spherical_kmeans
from twinview.ops.maps import resize_map, unflip
from twinview.ops.precise_roi import precise_roi_mean
from twinview.ops.propagate import propagate
from twinview.ops.queue import Queue, check_queue
from twinview.ops.ranks import gather_rows
from twinview.ops.sinkhorn import sinkhorn
from twinview.ops.spread import effective_rank, feature_spread

__all__ = [
    "Queue",
    "check_queue",
    "conv_mlp",
    "cosine",
    "cosine_loss",
    "cosine_pairs",
    "crops_batch",
    "crops_geometry",
    "effective_rank",
    "feature_spread",
    "gather_rows",
    "info_nce",
    "info_nce_batch",
    "info_nce_queue",
    "mlp",
    "nt_xent",
    "precise_roi_mean",
    "propagate",
    "random_resized_box",
    "resize_map",
    "sinkhorn",
    "soft_cross_entropy",
    "soft_cross_entropy_loss",
    "spherical_kmeans",
    "unflip",
]
