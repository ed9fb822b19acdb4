"""The pipeline: two data sets become batches; what is wrong with them is one clear message."""

import json
import re
import uuid

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from pais.config import add_pais_config
from pais.pipeline import read_images
from pseudolabel.config import add_masksmith_config
from pseudolabel.errors import DataError
from pseudolabel.pipeline import build_pipeline
from pseudolabel.registration import register_datasets
from pseudolabel.splits import draw, parts
from tests.tiny import write_coco


@pytest.fixture
def files(tmp_path):
    """Eight images, of which three are labelled: paths of the two JSONs."""
    data = json.loads(write_coco(tmp_path, images=8).read_text())
    ids = draw(range(1, 9), 3, fold=1)
    paths = tmp_path / "labelled.json", tmp_path / "unlabelled.json"
    for path, part in zip(paths, parts(data, ids, {})):
        path.write_text(json.dumps(part))
    return paths


def change(path, edit):
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def config(files, **options):
    cfg = get_cfg()
    add_masksmith_config(cfg)
    add_pais_config(cfg)
    names = [f"{path.stem}_{uuid.uuid4().hex}" for path in files]
    cfg.DATASETS.REGISTER = [
        {"name": name, "json": str(path), "image_root": str(path.parent)}
        for name, path in zip(names, files)
    ]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (names[0],), ()
    cfg.DATASETS.UNLABELLED = tuple(names[1:])
    cfg.INPUT.PIPELINE = "SemiSupervisedPipeline"
    cfg.INPUT.MIN_SIZE_TRAIN = (48, 64)
    cfg.MODEL.MASK_ON = True
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.merge_from_list([part for pair in options.items() for part in pair])
    register_datasets(cfg)
    return cfg


def first_batches(cfg, number=6):
    iterator = iter(build_pipeline(cfg).train_loader(cfg))
    return [next(iterator) for _ in range(number)]


def refused(cfg, message):
    with pytest.raises(DataError) as error:
        first_batches(cfg)
    assert re.search(message, str(error.value)), str(error.value)


def test_batches_hold_labelled_and_unlabelled_images(files):
    labelled, unlabelled = (
        {image["id"] for image in json.loads(path.read_text())["images"]} for path in files
    )
    seen = {True: set(), False: set()}
    for batch in first_batches(config(files)):
        kinds = [sample["labelled"] for sample in batch]
        assert len(kinds) == 4
        assert kinds == sorted(kinds, reverse=True)
        assert set(kinds) == {True, False}
        for sample in batch:
            seen[sample["labelled"]].add(sample["image_id"])
            assert ("instances" in sample) is sample["labelled"]
            assert ({"weak", "strong"} <= sample.keys()) is not sample["labelled"]
    assert seen == {True: labelled, False: unlabelled}


def test_ratio_and_mode_are_obeyed(files):
    options = {"MODEL.PAIS.LOADER.RATIO": (1, 1), "MODEL.PAIS.LOADER.MODE": "fixed"}
    for batch in first_batches(config(files, **options)):
        assert [sample["labelled"] for sample in batch] == [True, True, False, False]


def test_supervised_baseline_sees_the_same_labelled_images_and_no_others(files, tmp_path):
    def labelled(batches):
        return [
            [(s["image_id"], s["image"].float().mean().item()) for s in batch if s["labelled"]]
            for batch in batches
        ]

    whole = first_batches(config(files))
    supervised = {"MODEL.PAIS.ENABLED": False}
    alone = first_batches(config(files[:1], **supervised))
    assert all(sample["labelled"] for batch in alone for sample in batch)
    assert labelled(alone) == labelled(whole)


def test_unlabelled_json_needs_files_and_sizes_only(files):
    def only_images(data):
        for image in data["images"]:
            assert image.keys() == {"id", "file_name", "width", "height"}
        images = data["images"]
        data.clear()
        data["images"] = images

    cfg = config(files)
    change(files[1], only_images)
    assert len(first_batches(cfg)) == 6


@pytest.mark.parametrize("drop", ["annotations", "info", "licenses"])
def test_unlabelled_json_without_a_list_is_registered(drop, files):
    change(files[1], lambda data: data.pop(drop, None))
    assert first_batches(config(files), 1)


def test_annotations_of_unlabelled_images_are_not_read(tmp_path):
    whole = write_coco(tmp_path)
    name = f"hidden_{uuid.uuid4().hex}"
    DatasetCatalog.register(name, lambda: pytest.fail("loaded with its annotations"))
    change(whole, lambda data: data["annotations"][0].update(bbox="of no use"))
    MetadataCatalog.get(name).set(json_file=str(whole), image_root=str(tmp_path))
    keys = {"file_name", "height", "width", "image_id"}
    assert [record.keys() for record in read_images(name)] == [keys] * 4


def test_data_set_without_a_json_gives_its_records(tmp_path):
    name = f"code_{uuid.uuid4().hex}"
    record = {"file_name": "a.png", "height": 2, "width": 3, "image_id": 7}
    DatasetCatalog.register(name, lambda: [{**record, "annotations": [{"bbox": 1}]}])
    assert read_images(name) == [record]


def rename(data):
    data["categories"][1]["name"] = "other"


def swap(data):
    one, two = data["categories"]
    one["name"], two["name"] = two["name"], one["name"]


def no_annotations(data):
    data["annotations"] = []


def crowds_alone(data):
    for annotation in data["annotations"]:
        annotation["iscrowd"] = 1


def no_area(data):
    for annotation in data["annotations"]:
        annotation["bbox"][2] = 0


def no_masks(data):
    for annotation in data["annotations"]:
        del annotation["segmentation"]


@pytest.mark.parametrize(
    ("which", "edit", "message"),
    [
        # class lists
        (1, rename, "class lists of labelled_.* differ: .* lacks 'right'; only it has 'other'"),
        (1, swap, "class lists of labelled_.* differ: the order of their ids. Remedy: give both"),
        # a labelled set of which nothing remains
        (0, no_annotations, "TRAIN: no labelled image is left of labelled_.* Remedy: label more"),
        (0, crowds_alone, "TRAIN: no labelled image is left of labelled_"),
        (0, no_area, "the 3 labelled images of labelled_.* have no instance with an area"),
        (0, no_masks, r"\.png \(annotation \d+\): has no mask to train on"),
        (0, lambda d: d.update(images=[], annotations=[]), "no labelled image is left"),
        # unlabelled images
        (1, lambda d: d.update(images=[]), "unlabelled_.*: has no unlabelled image"),
        (1, lambda d: d.pop("images"), "unlabelled.json: has no list 'images'"),
        (1, lambda d: d["images"][0].pop("width"), r"unlabelled.json \(image \d\): has no width"),
        (1, lambda d: d["images"][0].update(file_name="../x"), "file_name"),
        (1, lambda d: d["images"][0].update(width=9), r"\d\.png \(image \d\): is 64x64, the JSON"),
    ],
)
def test_bad_files_are_refused(which, edit, message, files):
    change(files[which], edit)
    refused(config(files), message)


@pytest.mark.parametrize("which", [0, 1])
def test_missing_images_are_named_before_the_first_batch(which, files):
    images = json.loads(files[which].read_text())["images"]
    for image in images[:2]:
        (files[which].parent / image["file_name"]).unlink()
    cfg = config(files)
    message = rf"{images[0]['id']}\.png \(image {images[0]['id']}\): the image does not exist, nor "
    with pytest.raises(DataError, match=message + r"do 1 more of \w*labelled_.* Remedy: check"):
        build_pipeline(cfg).train_loader(cfg)


def test_a_corrupt_unlabelled_image_is_named(files, tmp_path):
    names = [image["file_name"] for image in json.loads(files[1].read_text())["images"]]
    for name in names:
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    refused(config(files), r"\d\.png.*: the image cannot be read .* Remedy: ")


def test_a_deep_unlabelled_image_is_named(files, tmp_path):
    for image in json.loads(files[1].read_text())["images"]:
        Image.new("I;16", (64, 64)).save(tmp_path / image["file_name"])
    refused(config(files), r"\d\.png.*: the image has mode I;16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"DATASETS.UNLABELLED": ()}, "UNLABELLED: names no data set.*ENABLED False"),
        ({"DATASETS.UNLABELLED": ("else",)}, "UNLABELLED: the data set 'else' is not registered"),
        ({"SOLVER.IMS_PER_BATCH": 1}, "IMS_PER_BATCH: gives 1 image to a process"),
        ({"MODEL.PAIS.LOADER.MODE": "odd"}, "MODE: unknown mode 'odd'"),
        (
            {"DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler"},
            "SAMPLER_TRAIN: 'RepeatFactorTrainingSampler' is not supported by SemiSupervisedPip",
        ),
    ],
)
def test_bad_config_is_refused(options, message, files):
    refused(config(files, **options), message)


def test_images_in_both_sets_are_told(files, tmp_path, caplog):
    cfg = config((files[0], files[0]))
    with caplog.at_level("INFO"):
        build_pipeline(cfg).train_loader(cfg)
    assert "3 labelled and 3 unlabelled images" in caplog.text
    assert "3 labelled images are among the unlabelled ones as well" in caplog.text
