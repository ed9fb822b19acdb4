"""Mappers of Detectron2 behind the project's checks of images."""

import copy

import numpy as np
import pytest
from detectron2.data import DatasetMapper
from PIL import Image

import mal.data
import mal.mask_auto_labeler  # noqa: F401  (these register the meta-architecture and pipeline)
from pseudolabel.errors import DataError
from pseudolabel.mapper import CheckedMapper
from pseudolabel.pipeline import build_pipeline
from tests.tiny import SIDE, tiny_config, write_coco

DEEP = np.full((SIDE, SIDE), 40000, dtype=np.uint16)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:2000])


def turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (SIDE, SIDE // 2)).save(path, exif=exif)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: Image.fromarray(DEEP).save(path), "mode I;16, not 8 bit"),
        (lambda path: Image.fromarray(np.float32(DEEP)).save(path, "TIFF"), "mode F, not 8 bit"),
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_text("no image"), "cannot be read"),
        (cut_off, "cannot be read"),  # sound header
        (lambda path: Image.new("RGB", (9, 7)).save(path), r"\(image 1\): is 9x7, the JSON says"),
        (turned, r"\(image 1\): is 32x64, the JSON says 64x64"),  # as an upright reader sees it
    ],
)
def test_bad_image_is_named_in_training_and_test(damage, message, tmp_path):
    cfg = tiny_config("mask_rcnn/sample", write_coco(tmp_path, images=1), tmp_path / "out")
    cfg.SOLVER.IMS_PER_BATCH = 1
    damage(tmp_path / "1.png")
    pipeline = build_pipeline(cfg)
    for loader in (pipeline.train_loader(cfg), pipeline.test_loader(cfg, cfg.DATASETS.TEST[0])):
        with pytest.raises(DataError, match=rf"1\.png.*{message}.*Remedy"):
            next(iter(loader))


def test_sound_image_is_mapped_as_by_the_mapper_alone(tmp_path):
    cfg = tiny_config("mask_rcnn/sample", write_coco(tmp_path, images=1), tmp_path / "out")
    (record,) = build_pipeline(cfg).train_loader(cfg).dataset.records
    mapper = DatasetMapper(cfg, False)
    expected, found = mapper(copy.deepcopy(record)), CheckedMapper(mapper)(copy.deepcopy(record))
    assert expected.keys() == found.keys()
    assert np.array_equal(expected["image"], found["image"])


def test_fault_of_the_mapper_stays_its_own(tmp_path):
    write_coco(tmp_path, images=1)
    record = {"file_name": str(tmp_path / "1.png"), "height": SIDE, "width": SIDE, "image_id": 1}

    def faulty(record):
        raise KeyError("proposals")

    with pytest.raises(KeyError, match="proposals"):
        CheckedMapper(faulty)(record)
