"""What a module can know about a feature map before seeing one."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ShapeSpec"]


@dataclass
class ShapeSpec:
    """Channels, height, width and stride (relative to the input image); None where unknown."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
