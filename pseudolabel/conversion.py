"""From label maps (one number per pixel) to a COCO JSON with a run-length mask per object.

Shape legend: H, W image rows and columns. Annotation ids count from 1 in the order of the images
and, within one, of the numbers in its map; so the same files give the same JSON on every machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from pseudolabel.errors import DataError
from pseudolabel.files import failure_line, guarded_join, refuse_overwrite, write_json
from pseudolabel.masks import rle_from_patch

MAX_LABEL = 65535
"""Label maps are 8 or 16 bits deep."""


class Region(NamedTuple):
    """All pixels of one number in a label map, connected or not.

    Attributes:
        value: the number.
        patch: bool (h, w), the pixels within their tight box.
        y0, x0: row and column of ``patch[0, 0]`` in the image.
    """

    value: int
    patch: np.ndarray
    y0: int
    x0: int


def read_label_map(path: str | Path) -> np.ndarray:
    """The stored numbers of a one-channel PNG; of a palette image the indices, not the colours.

    Returns:
        int32 array (H, W).

    Raises:
        DataError: missing, unreadable, or with several channels.
    """
    try:
        with Image.open(path) as image:
            mode, pixels = image.mode, np.array(image)
    except FileNotFoundError as error:
        raise DataError(path, "the label map does not exist", "restore the file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        problem = f"the label map cannot be read ({error})"
        raise DataError(path, problem, "replace the file") from error
    if pixels.ndim != 2 or mode == "F":
        raise DataError(
            path,
            f"is an image of mode {mode}, not a map of labels",
            "give the original PNG, with one number per pixel",
        )
    numbers = pixels.astype(np.int64)
    if numbers.min(initial=0) < 0 or numbers.max(initial=0) > MAX_LABEL:
        raise DataError(path, f"holds numbers outside [0, {MAX_LABEL}]", "replace the file")
    return numbers.astype(np.int32)


def image_size(path: str | Path) -> tuple[int, int]:
    """(H, W) of an image, from its header alone.

    Raises:
        DataError: missing, or no image.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except FileNotFoundError as error:
        raise DataError(path, "the image does not exist", "restore the file") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(path, f"the image cannot be read ({error})", "replace the file") from error


def check_same_size(label_map: np.ndarray, path: str | Path, size: tuple[int, int]) -> None:
    """Refuses a label map (H, W) that is not as large as its image, `size` = (H, W)."""
    if label_map.shape != size:
        raise DataError(
            path,
            f"is {label_map.shape[1]}x{label_map.shape[0]}, its image {size[1]}x{size[0]}",
            "take both files from the same release",
        )


def regions(label_map: np.ndarray) -> Iterator[Region]:
    """The regions of the non-zero numbers of a map (H, W), in ascending order of the number."""
    present = np.flatnonzero(np.bincount(label_map.ravel()))
    present = present[present > 0]
    rank = np.zeros(MAX_LABEL + 1, dtype=np.int32)
    rank[present] = np.arange(1, len(present) + 1)
    ranked = rank[label_map]
    for index, place in enumerate(ndimage.find_objects(ranked)):
        patch = ranked[place] == index + 1
        yield Region(int(present[index]), patch, place[0].start, place[1].start)


class CocoWriter:
    """Collects images and regions into the dictionary of a COCO JSON.

    Args:
        description: what the JSON was made from.
        classes: {category id: name}.
    """

    def __init__(self, description: str, classes: dict[int, str]):
        self.data: dict[str, Any] = {
            "info": {"description": description},
            "images": [],
            "annotations": [],
            "categories": [{"id": key, "name": classes[key]} for key in sorted(classes)],
        }

    def add_image(self, file_name: str | PurePosixPath, size: tuple[int, int]) -> None:
        """Opens the next image; `file_name` is relative to the image folder, `size` = (H, W)."""
        images = self.data["images"]
        entry = {"id": len(images) + 1, "file_name": str(file_name)}
        images.append({**entry, "height": size[0], "width": size[1]})

    def add_region(self, region: Region, category_id: int, iscrowd: bool = False) -> None:
        """Adds an object of the last image; `instance_id` keeps its number in the label map."""
        image = self.data["images"][-1]
        annotations = self.data["annotations"]
        rows, columns = region.patch.shape
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": image["id"],
                "category_id": category_id,
                "bbox": [region.x0, region.y0, columns, rows],
                "area": int(np.count_nonzero(region.patch)),
                "iscrowd": int(iscrowd),
                "segmentation": rle_from_patch(
                    region.patch, region.y0, region.x0, image["height"], image["width"]
                ),
                "instance_id": region.value,
            }
        )

    def summary(self) -> str:
        """Counts, for the last line of a command."""
        annotations = self.data["annotations"]
        crowds = sum(annotation["iscrowd"] for annotation in annotations)
        filled = len({annotation["image_id"] for annotation in annotations})
        images = len(self.data["images"])
        return (
            f"{images} images ({images - filled} without any object), "
            f"{len(annotations) - crowds} instances, {crowds} crowd regions, "
            f"{len(self.data['categories'])} classes"
        )


def read_image_list(path: str | Path) -> list[str]:
    """Names, one a line, sorted; empty lines do not count.

    Raises:
        DataError: missing, unreadable, empty, or with a name twice.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(
            path, f"cannot be read ({error})", "check the path and the split"
        ) from error
    names = sorted(line.strip() for line in lines if line.strip())
    if not names:
        raise DataError(path, "lists no image", "restore the file")
    for name, following in pairwise(names):
        if name == following:
            raise DataError(path, "lists an image twice", "remove one of the lines", name)
    for name in names:
        guarded_join("", name, source=path)
    return names


def refuse_own_input(output: Path, folders: Iterable[Path]) -> None:
    """Stops a conversion, before it works, whose output would replace what it reads.

    Args:
        output: the JSON to write; one that exists is replaced.
        folders: what is read lies in them.

    Raises:
        DataError: the output lies in one of the folders, by whatever link, or is there and no JSON.
    """
    for folder in folders:
        if output.resolve().is_relative_to(folder.resolve()):
            problem = f"lies in {folder}, among the files of the data set"
            raise DataError(output, problem, "name an output outside of it")
    if output.exists() and output.suffix.lower() != ".json":
        raise DataError(output, "exists and is no .json", "name a .json file as output")


def run_conversion(
    convert: Callable[[argparse.Namespace], CocoWriter],
    parser: argparse.ArgumentParser,
    folders: Sequence[str],
    argv: Sequence[str] | None = None,
) -> int:
    """A converter as a command: parses, converts, writes `--output` atomically, prints counts.

    Args:
        convert: makes the data from the parsed options.
        parser: has at least `output` (a path) and `root` (a folder).
        folders: below `root`, that are read; the output may not lie in them.

    Returns:
        0; 1 with one clear error line, and nothing written.
    """
    options = parser.parse_args(argv)
    try:
        refuse_overwrite(options.root, options.output)
        refuse_own_input(options.output, [options.root / folder for folder in folders])
        writer = convert(options)
        write_json(options.output, writer.data)
    except (DataError, OSError) as error:
        sys.stderr.write(f"{failure_line(error, options.output)}\n")
        return 1
    sys.stdout.write(f"{options.output}: {writer.summary()}\n")
    return 0
