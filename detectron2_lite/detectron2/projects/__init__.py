"""Those parts of upstream's projects that other projects build on; the rest is upstream's."""

from ..utils.env import upstream_only

__getattr__ = upstream_only(
    __name__, ["panoptic_deeplab", "tridentnet", "densepose", "tensormask", "vitdet"]
)
