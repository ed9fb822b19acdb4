"""Decoded images kept by one process."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from pseudolabel.files import read_image


class ImageCache:
    """`read_image` that keeps the last images; a copy sent to a loader process starts empty.

    Args:
        size: images to keep; 0 keeps none.
    """

    def __init__(self, size: int):
        self.size = size
        self._read = lru_cache(maxsize=size)(read_image)

    def __call__(self, path: str | Path) -> np.ndarray:
        """uint8 (H, W, 3), RGB, shared between calls: do not write to it.

        Raises:
            DataError: as `read_image`.
        """
        return self._read(path)

    def __reduce__(self) -> tuple:
        # The function cache itself cannot be pickled, which processes that are spawned need.
        return ImageCache, (self.size,)
