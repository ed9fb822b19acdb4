"""A second reading of converted masks: numpy over whole images, pycocotools for the codes."""

import numpy as np
from pycocotools import mask as coco_rle


def check_masks(data, expected):
    """Every object of `expected(image)`, {number: (category, bool (H, W))}, is there, and no other.

    Pixels, box, area and ids are compared.
    """
    found = {}
    for annotation in data["annotations"]:
        found.setdefault(annotation["image_id"], {})[annotation["instance_id"]] = annotation
    ids = [annotation["id"] for annotation in data["annotations"]]
    assert ids == list(range(1, len(ids) + 1))
    assert ids, "nothing to compare"
    for image in data["images"]:
        objects = expected(image)
        annotations = found.pop(image["id"], {})
        assert sorted(annotations) == sorted(objects), image["file_name"]
        for number, (category, mask) in objects.items():
            annotation = annotations[number]
            decoded = coco_rle.decode(annotation["segmentation"]).astype(bool)
            np.testing.assert_array_equal(decoded, mask)
            y, x = np.nonzero(mask)
            box = [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]
            assert annotation["bbox"] == box
            assert annotation["area"] == mask.sum()
            assert annotation["category_id"] == category
            assert annotation["iscrowd"] == 0
    assert not found, "annotations of unknown images"
