"""`DATASETS.REGISTER`: any COCO JSON by config, classes read from it, errors by name."""

import json
import uuid

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from pseudolabel.config import add_masksmith_config
from pseudolabel.errors import DataError
from pseudolabel.registration import register_datasets


def write_coco(folder, file_name="1.png", categories=((9, "bolt"), (4, "nut"))):
    Image.new("RGB", (20, 10)).save(folder / "1.png")
    data = {
        "images": [{"id": 1, "file_name": file_name, "width": 20, "height": 10}],
        "annotations": [
            {"id": 5, "image_id": 1, "category_id": 9, "bbox": [1, 2, 3, 4], "iscrowd": 0}
        ],
        "categories": [{"id": key, "name": name} for key, name in categories],
    }
    (folder / "boxes.json").write_text(json.dumps(data))


def entry(folder, **changes):
    """A valid entry under a name that no other test uses."""
    name = f"test_{uuid.uuid4().hex}"
    return {
        "name": name,
        "json": str(folder / "boxes.json"),
        "image_root": str(folder),
        **changes,
    }


def config(*entries):
    cfg = get_cfg()
    add_masksmith_config(cfg)
    cfg.DATASETS.REGISTER = list(entries)
    cfg.DATASETS.TRAIN = tuple(e["name"] for e in entries if "name" in e)
    cfg.DATASETS.TEST = ()
    return cfg


def test_classes_boxes_and_ids_come_from_the_json(tmp_path):
    write_coco(tmp_path)
    one = entry(tmp_path)
    cfg = config(one)
    cfg.freeze()
    assert register_datasets(cfg) == [one["name"]]
    assert MetadataCatalog.get(one["name"]).thing_classes == ["nut", "bolt"]  # by category id
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2
    assert cfg.is_frozen()
    (record,) = DatasetCatalog.get(one["name"])
    (annotation,) = record["annotations"]
    assert (annotation["category_id"], annotation["id"]) == (1, 5)
    assert "segmentation" not in annotation  # boxes alone are enough


def test_registering_twice_is_harmless_but_a_taken_name_is_not(tmp_path):
    write_coco(tmp_path)
    one = entry(tmp_path)
    register_datasets(config(one))
    register_datasets(config(one))
    other = tmp_path / "other"
    other.mkdir()
    write_coco(other)
    with pytest.raises(DataError, match="is taken by"):
        register_datasets(config(entry(other, name=one["name"])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"json": ""}, "has no json"),  # forgotten key
        ({"json": "/nowhere/a.json"}, r"a\.json.*does not exist"),
        ({"image_root": "/nowhere"}, "no image folder"),
        ({"format": "yolo"}, "unknown format"),
        ({"json": "$MASKSMITH_UNSET_ROOT/a.json"}, "environment variable"),
    ],
)
def test_bad_entry_is_refused(change, message, tmp_path):
    write_coco(tmp_path)
    with pytest.raises(DataError, match=message):
        register_datasets(config(entry(tmp_path, **change)))


def test_wrong_class_count_is_refused(tmp_path):
    write_coco(tmp_path)
    cfg = config(entry(tmp_path))
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    with pytest.raises(DataError, match=r"is 80, but .* has 2 classes"):
        register_datasets(cfg)


def test_image_path_cannot_leave_the_root(tmp_path):
    write_coco(tmp_path, file_name="../secret.png")
    one = entry(tmp_path)
    register_datasets(config(one))
    with pytest.raises(DataError, match="not a path below the image folder"):
        DatasetCatalog.get(one["name"])


def test_json_without_categories_is_refused(tmp_path):
    write_coco(tmp_path, categories=())
    with pytest.raises(DataError, match="has no categories"):
        register_datasets(config(entry(tmp_path)))
