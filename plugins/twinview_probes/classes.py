"""The evaluations of whole images on class labels, by their names."""
from twinview_probes.fewshot import FewShot as FewShot
from twinview_probes.images import Thumbnails as Thumbnails
from twinview_probes.images import Whole as Whole
from twinview_probes.knn import Knn as Knn
from twinview_probes.linear_probe import Linear as Linear
from twinview_probes.whole_images import Classes as Classes
