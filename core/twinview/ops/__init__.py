"""What several methods need, public: heads, clustering, statistics over ranks."""
from twinview.ops.heads import conv_mlp, mlp

__all__ = ["conv_mlp", "mlp"]
