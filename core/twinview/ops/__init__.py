"""What several methods need, public: heads, cosines, crops, clustering, statistics over ranks."""
from twinview.ops.cosine import cosine, cosine_loss
from twinview.ops.heads import conv_mlp, mlp

__all__ = ["conv_mlp", "cosine", "cosine_loss", "mlp"]
