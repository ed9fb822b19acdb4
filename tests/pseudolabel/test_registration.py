"""`DATASETS.REGISTER`: any COCO JSON by config, classes read from it, errors by name."""

import json
import uuid

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools import mask as rle_tools

import mal.data
import mal.pretext  # noqa: F401  (these register pipelines without class heads)
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


def load(one):
    """Registers an entry and reads its data set."""
    register_datasets(config(one))
    return DatasetCatalog.get(one["name"])


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


@pytest.mark.parametrize("file_format", ["coco", "lvis"])
def test_weights_and_hardness_pass_into_the_dataset_dicts(file_format, tmp_path):
    write_coco(tmp_path)
    file = tmp_path / "boxes.json"
    data = json.loads(file.read_text())
    data["images"][0] |= {"weight": 0.5, "hardness": 0.25, "licence": 3}
    data["images"].append({"id": 2, "file_name": "2.png", "weight": 0, **SIZE})
    data["annotations"][0] |= {"weight": 2, "score": 0.75, "quality": 0.125, "note": "x"}
    data["annotations"].append({"id": 6, "image_id": 1, "category_id": 4, "bbox": [1, 1, 2, 2]})
    file.write_text(json.dumps(data))
    one, two = load(entry(tmp_path, format=file_format))
    assert (one["weight"], one["hardness"], "licence" in one) == (0.5, 0.25, False)
    assert (two["weight"], "hardness" in two) == (0, False)
    first, second = one["annotations"]
    assert (first["weight"], first["score"], first["quality"]) == (2, 0.75, 0.125)
    assert "note" not in first
    assert "weight" not in second, "absent stays absent; the reader's default is 1"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(-0.5, "-0.5"), ("0.5", "'0.5'"), (None, "None"), (True, "True"), ([1], r"\[1\]")],
)
@pytest.mark.parametrize("kind", ["images", "annotations"])
def test_a_weight_that_is_none_is_named(kind, value, shown, tmp_path):
    write_coco(tmp_path)
    file = tmp_path / "boxes.json"
    data = json.loads(file.read_text())
    data[kind][0]["weight"] = value
    file.write_text(json.dumps(data))
    record = {"images": "image 1", "annotations": "annotation 5"}[kind]
    message = rf"boxes\.json \({record}\): its weight is {shown}, no number >= 0\. Remedy"
    with pytest.raises(DataError, match=message):
        load(entry(tmp_path))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(value, tmp_path):
    write_coco(tmp_path)
    file = tmp_path / "boxes.json"
    data = json.loads(file.read_text())
    data["annotations"][0]["weight"] = value
    file.write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"boxes\.json .*weight is (nan|inf), no number >= 0"):
        load(entry(tmp_path))


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
    with pytest.raises(DataError, match=r"is taken by .* with format 'coco'"):
        register_datasets(config({**one, "format": "lvis"}))


def test_lvis_file_brings_its_evaluation_frequencies_and_lists(tmp_path):
    write_coco(tmp_path)
    file = tmp_path / "boxes.json"
    data = json.loads(file.read_text())
    (image,) = data["images"]
    image.update(coco_url="http://host/val2017/1.png", neg_category_ids=[4])
    del image["file_name"], data["annotations"][0]["iscrowd"]
    file.write_text(json.dumps(data))
    one = entry(tmp_path, format="lvis")
    cfg = config(one)
    register_datasets(cfg)
    metadata = MetadataCatalog.get(one["name"])
    assert metadata.evaluator_type == "lvis"
    assert metadata.class_image_count == [{"id": 4, "image_count": 0}, {"id": 9, "image_count": 1}]
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2
    (record,) = DatasetCatalog.get(one["name"])
    assert record["file_name"] == str(tmp_path / "1.png")
    assert (record["neg_category_ids"], record["not_exhaustive_category_ids"]) == ([4], [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 7}, r"annotation 5.*category"),
        ({"bbox": [1, 2, -3, 4]}, r"annotation 5"),
        ({"bbox": [1, 2, float("nan"), 4]}, r"annotation 5"),
        ({"segmentation": [[1, 2, 3, 4, 5]]}, r"annotation 5"),
        ({"segmentation": {"size": [10, 20], "counts": [100]}}, r"annotation 5"),  # too short
    ],
)
@pytest.mark.parametrize("file_format", ["coco", "lvis"])
def test_loading_makes_the_checks_of_validation(file_format, change, message, tmp_path):
    write_coco(tmp_path)
    file = tmp_path / "boxes.json"
    data = json.loads(file.read_text())
    data["annotations"][0].update(change)
    file.write_text(json.dumps(data))
    one = entry(tmp_path, format=file_format)
    with pytest.raises(DataError, match=rf"boxes\.json.*{message}.*Remedy"):
        load(one)


@pytest.mark.parametrize("counts", [[0, 4, 196], [0.0, 4.0, 196.0], "compressed"])
def test_loading_settles_null_crowds_and_masks_written_with_fractions(counts, tmp_path):
    write_coco(tmp_path)
    file = tmp_path / "boxes.json"
    data = json.loads(file.read_text())
    if isinstance(counts, str):
        counts = rle_tools.frPyObjects({"size": [10, 20], "counts": [0, 4, 196]}, 10, 20)["counts"]
        counts = counts.decode()
    mask = {"size": [10.0, 20.0], "counts": counts}
    data["annotations"][0].update(iscrowd=None, segmentation=mask)
    file.write_text(json.dumps(data))
    (record,) = load(entry(tmp_path))
    (annotation,) = record["annotations"]
    assert annotation["iscrowd"] == 0
    assert rle_tools.area(annotation["segmentation"]) == 4


@pytest.mark.parametrize("box", [[1, 2, 0, 4], [40, 2, 3, 4]])
def test_box_without_area_in_its_image_is_counted_and_left_to_the_mappers(box, tmp_path, caplog):
    write_coco(tmp_path)
    file = tmp_path / "boxes.json"
    data = json.loads(file.read_text())
    data["annotations"][0]["bbox"] = box
    file.write_text(json.dumps(data))
    one = entry(tmp_path)
    register_datasets(config(one))
    (record,) = DatasetCatalog.get(one["name"])
    assert record["annotations"][0]["bbox"] == box
    assert any("1 boxes have no area" in r.getMessage() for r in caplog.records)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"json": ""}, "has no json"),  # forgotten key
        ({"json": "/nowhere/a.json"}, r"a\.json.*does not exist"),
        ({"image_root": "/nowhere"}, "no image folder"),
        ({"format": "yolo"}, "unknown format 'yolo'.*use one of .*coco.*lvis"),
        ({"allow_link": True}, "unknown key 'allow_link'.*remove it; there are .*allow_links"),
        ({"allow_links": "no"}, "allow_links of .* is 'no'.*write True or False"),
        ({"json": 5}, "has no json"),
        ({"json": "$MASKSMITH_UNSET_ROOT/a.json"}, "environment variable"),
    ],
)
def test_bad_entry_is_refused(change, message, tmp_path):
    write_coco(tmp_path)
    with pytest.raises(DataError, match=message):
        register_datasets(config(entry(tmp_path, **change)))


def test_entry_that_is_no_mapping_is_refused():
    cfg = config()
    cfg.DATASETS.REGISTER = ["boxes.json"]
    with pytest.raises(DataError, match=r"'boxes\.json' is no mapping"):
        register_datasets(cfg)


SIZE = {"width": 20, "height": 10}
# Whatever the JSON holds: a DataError that names the place, at registration or at loading.
MALFORMED = [
    ("images", None, "no list 'images'"),
    ("images", [5], "image at position 0"),
    ("annotations", None, "no list 'annotations'"),
    ("annotations", {"a": 1}, "no list 'annotations'"),
    ("annotations", [[1]], "annotation at position 0"),
    (
        "annotations",
        [{"id": 5, "image_id": [1], "category_id": 9, "bbox": [1, 2, 3, 4]}],
        "ation 5",
    ),
    (
        "annotations",
        [{"id": 5, "image_id": 1, "category_id": [9], "bbox": [1, 2, 3, 4]}],
        "ation 5",
    ),
    ("annotations", [{"id": [5], "image_id": 1, "category_id": 9, "bbox": [1, 2, 3, 4]}], "tion 0"),
    ("categories", None, "has no categories"),
    ("categories", {"9": "bolt"}, "has no categories"),
    ("categories", [9], "category at position 0"),
    ("categories", [{"id": "9", "name": "bolt"}], "category at position 0"),
    ("categories", [{"id": True, "name": "bolt"}], "category at position 0"),
    ("categories", [{"id": 9, "name": ["bolt"]}], "category 9"),
    ("categories", [{"id": 9, "name": "a"}, {"id": 9, "name": "b"}], "category 9.*twice"),
]


@pytest.mark.parametrize("file_format", ["coco", "lvis"])
@pytest.mark.parametrize(("key", "value", "message"), MALFORMED)
def test_malformed_json_is_named_and_nothing_is_half_registered(
    key, value, message, file_format, tmp_path
):
    write_coco(tmp_path)
    file = tmp_path / "boxes.json"
    whole = file.read_text()
    file.write_text(json.dumps({**json.loads(whole), key: value}))
    one = entry(tmp_path, format=file_format)
    with pytest.raises(DataError, match=rf"boxes\.json.*{message}.*Remedy"):
        load(one)
    if one["name"] in DatasetCatalog.list():
        return
    # The same name is free for the corrected file.
    file.write_text(whole)
    assert len(load(one)) == 1


def test_half_registration_leaves_no_trace(tmp_path):
    write_coco(tmp_path)
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": [3]}))
    one = entry(tmp_path, format="lvis")
    with pytest.raises(DataError):
        register_datasets(config(one))
    assert one["name"] not in DatasetCatalog.list()


def test_frequencies_are_counted_without_what_a_label_job_rejected(tmp_path):
    write_coco(tmp_path)
    file = tmp_path / "boxes.json"
    data = json.loads(file.read_text())
    data["images"].append({"id": 2, "file_name": "../x.png", "status": "rejected", **SIZE})
    data["annotations"].append({"id": 6, "image_id": 2, "category_id": 4, "bbox": None})
    file.write_text(json.dumps(data))
    one = entry(tmp_path, format="lvis")
    register_datasets(config(one))
    counts = MetadataCatalog.get(one["name"]).class_image_count
    assert counts == [{"id": 4, "image_count": 0}, {"id": 9, "image_count": 1}]


def test_links_out_of_the_folder_are_followed_only_where_the_entry_says_so(tmp_path):
    write_coco(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.png").symlink_to("../1.png")
    one = entry(tmp_path, image_root=str(tmp_path / "images"))
    register_datasets(config(one))
    with pytest.raises(DataError, match=r"outside of the image folder.*allow_links: true"):
        DatasetCatalog.get(one["name"])
    with pytest.raises(DataError, match=r"is taken by .* allow_links False"):
        register_datasets(config({**one, "allow_links": True}))
    other = entry(tmp_path, image_root=str(tmp_path / "images"), allow_links=True)
    register_datasets(config(other))
    (record,) = DatasetCatalog.get(other["name"])
    assert record["file_name"] == str(tmp_path / "images/1.png")


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


NUTS, SWAPPED, MORE = (
    ((9, "bolt"), (4, "nut")),
    ((4, "bolt"), (9, "nut")),
    ((4, "nut"), (9, "bolt"), (10, "washer")),
)


@pytest.mark.parametrize(
    ("val", "pipeline", "message"),
    [
        (NUTS, "StockPipeline", None),  # the same classes
        (SWAPPED, "StockPipeline", r"class 0 is 'nut' and 'bolt'"),  # the same count, other order
        (MORE, "StockPipeline", "2 and 3 classes"),
        (SWAPPED, "BoxCropPipeline", None),  # class-agnostic: no class heads to mix up
        (MORE, "PastedBlobPipeline", None),
    ],
)
def test_class_lists_of_train_and_val_must_agree(val, pipeline, message, tmp_path):
    entries = []
    for part, categories in (("train", NUTS), ("val", val)):
        folder = tmp_path / part
        folder.mkdir()
        write_coco(folder, categories=categories)
        entries.append(entry(folder))
    cfg = config(entries[0])
    cfg.DATASETS.REGISTER = entries
    cfg.DATASETS.TEST = (entries[1]["name"],)
    cfg.INPUT.PIPELINE = pipeline
    if message is None:
        assert len(register_datasets(cfg)) == 2
        return
    with pytest.raises(DataError, match=message) as error:
        register_datasets(cfg)
    assert all(one["name"] in str(error.value) for one in entries)


@pytest.mark.parametrize("damage", ["absent", "null"])
@pytest.mark.parametrize(
    ("kind", "key", "where"),
    [
        ("images", "id", "image at position 0"),
        ("images", "file_name", "image 1"),
        ("images", "height", "image 1"),
        ("images", "width", "image 1"),
        ("annotations", "bbox", "annotation 5"),
        ("annotations", "id", "annotation at position 0"),
        ("annotations", "image_id", "annotation 5"),
        ("annotations", "category_id", "annotation 5"),
    ],
)
def test_record_without_a_needed_key_is_named(kind, key, where, damage, tmp_path):
    write_coco(tmp_path)
    file = tmp_path / "boxes.json"
    data = json.loads(file.read_text())
    data[kind][0][key] = None
    if damage == "absent":
        del data[kind][0][key]
    file.write_text(json.dumps(data))
    one = entry(tmp_path)
    register_datasets(config(one))
    with pytest.raises(
        DataError, match=rf"boxes\.json \({where}\): has (no|neither a) {key}\b.*Remedy"
    ):
        DatasetCatalog.get(one["name"])


def test_rejected_images_are_left_out_and_counted(tmp_path, caplog):
    write_coco(tmp_path)
    file = tmp_path / "boxes.json"
    data = json.loads(file.read_text())
    size = {"width": 20, "height": 10}
    data["images"] += [
        {"id": 2, "file_name": "gone.png", "status": "rejected", **size},
        {"id": 3, "file_name": "1.png", "status": "empty", **size},  # negatives are data
        {"id": 4, "file_name": "../x.png", "status": "rejected", **size},  # rejected for its path
    ]
    file.write_text(json.dumps(data))
    one = entry(tmp_path)
    register_datasets(config(one))
    assert [record["image_id"] for record in DatasetCatalog.get(one["name"])] == [1, 3]
    (message,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert "left out 2 of 4 images" in message


def test_images_alone_are_registered_without_classes(tmp_path):
    write_coco(tmp_path)
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps({"images": json.loads(file.read_text())["images"]}))
    one = entry(tmp_path)
    register_datasets(config(one))
    assert MetadataCatalog.get(one["name"]).thing_classes == []
    # It is no training set of a detector.
    with pytest.raises(DataError, match=r"boxes\.json.*has no list"):
        DatasetCatalog.get(one["name"])


def test_split_that_is_missing_comes_with_the_command_that_makes_it(tmp_path):
    write_coco(tmp_path)
    (tmp_path / "boxes.json").rename(tmp_path / "train.json")
    splits = tmp_path / "semi_supervised"
    one = entry(tmp_path, json=str(splits / "train.2@10-unlabeled.json"))
    command = (
        f"python datasets/prepare_splits.py {tmp_path / 'train.json'} --percent 10 --fold 2 "
        f"--output {splits}"
    )
    message = rf"train\.2@10-unlabeled\.json: this split does not exist\. Remedy: .*{command}\."
    with pytest.raises(DataError, match=message):
        register_datasets(config(one))
