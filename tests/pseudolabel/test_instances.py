"""COCO and LVIS JSON to dataset dicts: equal to Detectron2's for COCO; any mask form for LVIS."""

import json

import numpy as np
import pytest
from detectron2.data.datasets import load_coco_json
from pycocotools import mask as rle_tools

from pseudolabel.errors import DataError
from pseudolabel.image_paths import OutsideError, image_candidates, image_path
from pseudolabel.instances import class_image_counts, load_instances
from pseudolabel.masks import decode_segmentation, encode_rle

SQUARE = [[1.0, 1.0, 4.0, 1.0, 4.0, 4.0, 1.0, 4.0]]
MASK = np.zeros((6, 8), dtype=bool)
MASK[1:4, 1:4] = True


def lvis(**annotation):
    """One v1 image with one annotation, categories 4 and 9."""
    return {
        "images": [
            {
                "id": 7,
                "coco_url": "http://images.cocodataset.org/train2017/000000000007.jpg",
                "height": 6,
                "width": 8,
                "neg_category_ids": [4],
                "not_exhaustive_category_ids": [9],
            }
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 9, "bbox": [1, 1, 3, 3], **annotation}
        ],
        "categories": [{"id": 4, "name": "nut"}, {"id": 9, "name": "bolt"}],
    }


def load(data, root="images", **options):
    classes = {category["id"]: index for index, category in enumerate(data["categories"])}
    return load_instances(data, "a.json", root, classes, ("id", "score"), **options)


@pytest.mark.parametrize(
    "file",
    [
        "coco_dev/annotations/instances_train.json",  # polygons, and crowds as lists of runs
        "coco_dev/annotations/instances_val.json",
        "dsb2018_dev/annotations/instances_val.json",  # compressed RLE
    ],
)
def test_coco_is_read_as_detectron2_reads_it(file, data_dir):
    root = data_dir / file.split("/")[0] / "images"
    data = json.loads((data_dir / file).read_text())
    data["categories"].sort(key=lambda category: category["id"])
    expected = load_coco_json(str(data_dir / file), str(root), None, ["id", "score"])
    if "coco" in file:  # without a name, Detectron2 keeps the category ids
        of_class = {i: category["id"] for i, category in enumerate(data["categories"])}
    else:
        of_class = {0: data["categories"][0]["id"]}
    records = load(data, root)
    for record in records:
        for annotation in record["annotations"]:
            annotation["category_id"] = of_class[annotation["category_id"]]
    assert records == expected


@pytest.mark.parametrize(
    "segmentation",
    [
        SQUARE,  # LVIS as released
        encode_rle(MASK),  # a pseudo-label
        {"size": [6, 8], "counts": [7, 3, 3, 3, 3, 3, 26]},  # a list of runs
    ],
)
def test_lvis_takes_any_form_of_mask(segmentation):
    (record,) = load(lvis(segmentation=segmentation, score=0.5), federated=True)
    (annotation,) = record["annotations"]
    decoded = decode_segmentation(annotation["segmentation"], 6, 8)
    assert np.array_equal(decoded, MASK)
    if isinstance(annotation["segmentation"], dict):
        assert rle_tools.area(annotation["segmentation"]) == 9  # Detectron2 decodes it so
    assert (annotation["category_id"], annotation["id"], annotation["score"]) == (1, 1, 0.5)
    assert (record["neg_category_ids"], record["not_exhaustive_category_ids"]) == ([4], [9])
    assert "iscrowd" not in annotation  # LVIS has none


@pytest.mark.parametrize("change", [{}, {"segmentation": None}, {"segmentation": []}])
def test_lvis_takes_boxes_alone(change):
    (record,) = load(lvis(**change), federated=True)
    assert "segmentation" not in record["annotations"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 5}, "annotation 1.*unknown category_id 5"),
        ({"image_id": 8}, "image_id 8.*does not have"),
        ({"segmentation": [[1, 2, 3, 4]]}, "annotation 1.*neither polygons nor an RLE"),
        ({"segmentation": "abc"}, "annotation 1.*neither polygons nor an RLE"),
        ({"segmentation": {"counts": "abc"}}, "annotation 1.*neither polygons nor an RLE"),
    ],
)
def test_annotation_that_fits_nothing_is_named(change, message):
    with pytest.raises(DataError, match=rf"a\.json.*{message}.*Remedy"):
        load(lvis(**change))


def test_images_come_by_id_and_keep_the_order_of_their_annotations():
    data = lvis()
    data["images"].insert(0, {**data["images"][0], "id": 30})
    data["annotations"] += [{**data["annotations"][0], "id": 0}]
    records = load(data)
    assert [record["image_id"] for record in records] == [7, 30]
    assert [[a["id"] for a in record["annotations"]] for record in records] == [[1, 0], []]
    assert "neg_category_ids" not in records[0]  # COCO has none


URL = "http://images.cocodataset.org/train2017/000000000007.jpg"
OLD = "COCO_train2014_000000000007.jpg"


@pytest.mark.parametrize(
    ("image", "present", "expected"),
    [
        ({"file_name": "a.jpg"}, ["a.jpg"], "a.jpg"),
        # v0.5: as it is before the renamed one, that before the address
        ({"file_name": OLD, "coco_url": URL}, [OLD, "000000000007.jpg"], OLD),
        ({"file_name": OLD}, ["000000000007.jpg"], "000000000007.jpg"),
        ({"file_name": f"x/{OLD}"}, ["x/000000000007.jpg"], "x/000000000007.jpg"),
        ({"file_name": OLD, "coco_url": URL}, ["train2017/000000000007.jpg"], None),
        # v1: split and name below the common parent, or the name below the folder of the split
        ({"coco_url": URL}, ["train2017/000000000007.jpg", "000000000007.jpg"], None),
        ({"coco_url": URL}, ["000000000007.jpg"], "000000000007.jpg"),
        # a label file of v1: the label job adds the file_name
        ({"file_name": "000000000007.jpg", "coco_url": URL}, ["train2017/000000000007.jpg"], None),
        # nowhere: the first rule names the missing file
        ({"file_name": "b.jpg", "coco_url": URL}, [], "b.jpg"),
    ],
)
def test_image_is_found_by_the_first_rule_that_fits(image, present, expected, tmp_path):
    for name in present:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = image_path(image, tmp_path, "a.json")
    assert found == tmp_path / (expected or "train2017/000000000007.jpg")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"id": 3}, "image 3.*neither a file_name nor a coco_url"),
        ({"id": 3, "file_name": "../a.jpg"}, "not a path below"),
        ({"id": 3, "coco_url": "http://host/../a.jpg"}, "not a path below"),
        ({"id": 3, "coco_url": "http://host/"}, "image 3.*neither a file_name nor a coco_url"),
    ],
)
def test_image_without_a_safe_path_is_refused(image, message):
    with pytest.raises(DataError, match=message):
        image_candidates(image, "images", "a.json")


def test_all_images_of_the_v05_subset_are_found(data_dir):
    folder = data_dir / "lvis_dev"
    data = json.loads((folder / "annotations/lvis_v0.5_val_subset.json").read_text())
    records = load(data, folder / "images", federated=True)
    names = {record["file_name"] for record in records}
    assert names == {str(path) for path in (folder / "images").iterdir()}
    assert len(names) == 62


@pytest.mark.parametrize("federated", [False, True])
def test_file_name_comes_first_and_the_documented_places_after_it(federated, tmp_path):
    data = lvis()
    second = {"id": 8, "file_name": OLD, "coco_url": URL, "height": 6, "width": 8}
    data["images"].append(second)
    (tmp_path / "train2017").mkdir()
    (tmp_path / "train2017/000000000007.jpg").touch()
    names = [record["file_name"] for record in load(data, tmp_path, federated=federated)]
    assert names == [str(tmp_path / "train2017/000000000007.jpg")] * 2
    (tmp_path / OLD).touch()
    assert load(data, tmp_path, federated=federated)[1]["file_name"] == str(tmp_path / OLD)


@pytest.mark.parametrize("federated", [False, True])
def test_link_out_of_the_folder_needs_leave(federated, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "secret.jpg").touch()
    (tmp_path / "images/000000000007.jpg").symlink_to("../secret.jpg")
    with pytest.raises(OutsideError, match=r"a\.json \(image 7\).*allow_links"):
        load(lvis(), tmp_path / "images", federated=federated)
    (record,) = load(lvis(), tmp_path / "images", federated=federated, allow_links=True)
    assert record["file_name"] == str(tmp_path / "images/000000000007.jpg")


def test_class_image_counts_are_the_files_where_it_states_all():
    annotations = [{"category_id": 9, "image_id": image} for image in (1, 1, 2)]
    stated = [{"id": 4, "image_count": 70}, {"id": 9, "image_count": 5}]
    assert [c["image_count"] for c in class_image_counts(stated, annotations)] == [70, 5]
    del stated[0]["image_count"]
    assert class_image_counts(stated, annotations) == [
        {"id": 4, "image_count": 0},
        {"id": 9, "image_count": 2},
    ]
