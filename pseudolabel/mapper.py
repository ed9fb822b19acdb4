"""The project's checks of images, for mappers that read the files by themselves."""

from collections.abc import Callable
from typing import Any

from PIL import Image

from pseudolabel.files import check_image_size, is_deep, read_image


class CheckedMapper:
    """Calls a mapper of Detectron2, but refuses images that it would misread or fail at.

    Only the header is read twice: the whole file is looked at again only after a failure, to tell
    a bad image from a fault of the mapper.

    Args:
        mapper: dataset dict -> model input.
    """

    def __init__(self, mapper: Callable[[dict[str, Any]], Any]):
        self.mapper = mapper

    def __call__(self, record: dict[str, Any]) -> Any:
        """What the mapper makes of a dataset dict with file_name, height, width and image_id.

        Raises:
            DataError: the image is missing, unreadable, deeper than 8 bit, or of another size.
        """
        if _is_suspect(record["file_name"]):
            check_image(record)
        try:
            return self.mapper(record)
        except Exception:
            check_image(record)
            raise


def check_image(record: dict[str, Any]) -> None:
    """Reads the image of a dataset dict to its end.

    Raises:
        DataError: as `read_image` and `check_image_size`.
    """
    image = read_image(record["file_name"])
    if "height" in record and "width" in record:
        where = f"image {record.get('image_id')}"
        check_image_size(image, record["file_name"], record["height"], record["width"], where)


def _is_suspect(path: str) -> bool:
    try:
        with Image.open(path) as image:
            return is_deep(image.mode)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return True
