"""Images of status "rejected": no reader opens them, and no check looks at them."""

from collections.abc import Mapping
from typing import Any

from pseudolabel.checks import is_integer

REJECTED = "rejected"


def without_rejected(data: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Leaves out images of status "rejected" and their annotations.

    It comes before any check, since an image may have been rejected for what a check would find.

    Args:
        data: the JSON, whatever its lists hold; stays as it is.

    Returns:
        The rest, and the number of images left out.
    """
    images, annotations = data.get("images"), data.get("annotations")
    if not isinstance(images, list):
        return dict(data), 0
    gone = {i["id"] for i in images if _is_rejected(i) and is_integer(i.get("id"))}
    rest = {**data, "images": [image for image in images if not _is_rejected(image)]}
    if gone and isinstance(annotations, list):
        rest["annotations"] = [a for a in annotations if _image_of(a) not in gone]
    return rest, len(images) - len(rest["images"])


def _is_rejected(image: object) -> bool:
    return isinstance(image, dict) and image.get("status") == REJECTED


def _image_of(annotation: object) -> int | None:
    value = annotation.get("image_id") if isinstance(annotation, dict) else None
    return value if is_integer(value) else None
