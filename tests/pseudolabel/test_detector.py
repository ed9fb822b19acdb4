"""Labeler "detector": a tiny Mask R-CNN of random weights, and models made up for one case each."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools.coco import COCO

from pseudolabel.detector import DetectorLabeler, detector
from pseudolabel.errors import DataError
from pseudolabel.masks import decode_segmentation
from tests.tiny import SIDE, tiny_config, write_coco
from tests.tools.commands import ROOT, load_command

CATEGORIES = [{"id": 3, "name": "left"}, {"id": 8, "name": "right"}]
# Random weights are sure of nothing.
OPTS = ["DETECTOR.SCORE_THRESH", "0.3", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder as training leaves it: data, config.yaml, model.pth."""
    folder = tmp_path_factory.mktemp("run")
    json_file = write_coco(folder)
    cfg = tiny_config("mask_rcnn/sample", json_file, folder)
    (folder / "config.yaml").write_text(cfg.dump())
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    return folder


def build(run, *opts):
    return detector(str(run / "config.yaml"), str(run / "model.pth"), [*OPTS, *opts])


def arguments(output, *given):
    model = ["--config-file", "config.yaml", "--weights", "model.pth"]
    return ["--labeler", "detector", *model, "--output", str(output), *map(str, given), *OPTS]


def check_labels(output, images):
    """What any reader needs; returns the file's content."""
    data, loaded = json.loads(output.read_text()), COCO(str(output))
    assert data["annotations"]
    for annotation in data["annotations"]:
        assert 0.3 <= annotation["score"] <= 1
        assert 0 <= annotation["quality"] <= 1
        assert loaded.annToMask(annotation).sum() == annotation["area"]
    assert [(c["id"], c["name"]) for c in data["categories"]] == [(3, "left"), (8, "right")]
    assert load_command("validate").main([str(output), "--images", str(images)]) == 0
    return data


def test_images_of_a_json_are_labelled(run, tmp_path):
    output = tmp_path / "found.json"
    given = arguments(output, "--images", ".", "--images-json", "instances.json")
    command = [sys.executable, str(ROOT / "tools/label.py"), *given]
    done = subprocess.run(command, cwd=run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(check_labels(output, run)["images"]) == 4
    labeler = json.loads((tmp_path / "found.manifest.json").read_text())["labeler"]
    assert (labeler["name"], labeler["quality"]) == ("detector", "mean_mask_probability")


def test_a_folder_is_labelled(run, tmp_path, monkeypatch):
    output, images = tmp_path / "found.json", tmp_path / "images"
    images.mkdir()
    for name in ("2.png", "1.png"):
        (images / name).write_bytes((run / name).read_bytes())
    monkeypatch.chdir(run)
    command = load_command("label")
    assert command.run(command.parse_args(arguments(output, "--images", images))) == 0
    assert [i["file_name"] for i in check_labels(output, images)["images"]] == ["1.png", "2.png"]


def test_boxes_are_refused(run, tmp_path, monkeypatch):
    monkeypatch.chdir(run)
    command = load_command("label")
    given = arguments(tmp_path / "found.json", "--images", ".", "--boxes", "instances.json")
    with pytest.raises(DataError, match="finds its own boxes"):
        command.run(command.parse_args(given))
    assert not (tmp_path / "found.json").exists()


def test_masks_and_quality_are_the_models(run):
    """Against the model's own output on the resized image, each value taken by its definition."""
    labeler = build(run)
    pixels = np.asarray(Image.open(run / "1.png").convert("RGB"))
    found = labeler.label(pixels)
    sample = {"image": torch.tensor(pixels[:, :, ::-1].copy()).permute(2, 0, 1).float()}
    sample |= {"height": SIDE, "width": SIDE}
    with torch.no_grad():
        maps = labeler.model.inference([sample], do_postprocess=False)[0].pred_masks[:, 0]
        stock = labeler.model([sample])[0]["instances"]
    above = [k for k in range(len(stock)) if stock.scores[k] >= 0.3]
    assert len(found) == len(above) > 0
    for instance, k in zip(found, above, strict=True):
        mask = stock.pred_masks[k].numpy()
        assert instance.score == pytest.approx(float(stock.scores[k]))
        assert instance.category_id == (3, 8)[int(stock.pred_classes[k])]
        assert instance.box == pytest.approx(stock.pred_boxes.tensor[k].tolist())
        if instance.record.mask_source == "model":
            decoded = decode_segmentation(instance.record.segmentation, SIDE, SIDE)
            np.testing.assert_array_equal(decoded, mask)
            inside = maps[k][maps[k] >= 0.5]
            assert instance.record.quality == pytest.approx(float(inside.mean()))


def test_large_images_are_resized_and_their_records_are_not(run):
    labeler = build(run, "INPUT.MIN_SIZE_TEST", "32", "INPUT.MAX_SIZE_TEST", "64")
    pixels = np.random.default_rng(0).integers(0, 255, (50, 200, 3), np.uint8)
    seen = []
    labeler.model.backbone.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape))
    for instance in labeler.label(pixels):
        assert instance.record.segmentation["size"] == [50, 200]
        x0, y0, x1, y1 = instance.box
        assert 0 <= x0 < x1 <= 200
        assert 0 <= y0 < y1 <= 50
    # 50 x 200 within 32 and 64 is 16 x 64; the backbone wants multiples of 32.
    assert seen == [(1, 3, 32, 64)]


def test_an_earlier_image_changes_nothing(run):
    first, second = (np.asarray(Image.open(run / f"{k}.png").convert("RGB")) for k in (1, 2))
    labeler = build(run)
    before = labeler.label(second)
    labeler.label(first)
    assert labeler.label(second) == before


def test_thresholds_and_description(run):
    low, high = build(run), build(run, "DETECTOR.SCORE_THRESH", "0.99")
    pixels = np.asarray(Image.open(run / "1.png").convert("RGB"))
    assert low.label(pixels)
    assert not high.label(pixels)
    assert high.describe()["score_thresh"] == 0.99
    assert low.describe()["config_sha256"] != high.describe()["config_sha256"]
    assert low.describe() == build(run).describe()
    assert json.dumps(low.describe())


def test_an_image_without_any_object_has_no_label(run):
    # A trained model finds none in the black image that it is tried on, either.
    labeler = build(run, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0")
    assert labeler.quality == "mean_mask_probability"
    assert labeler.label(np.asarray(Image.open(run / "1.png").convert("RGB"))) == []


class Made(torch.nn.Module):
    """Gives one instance of stated fields, whatever it is shown."""

    def __init__(self, **fields):
        super().__init__()
        self.fields = fields

    def forward(self, batch):
        size = batch[0]["height"], batch[0]["width"]
        mask = torch.zeros(1, *size, dtype=torch.bool)
        mask[0, 10:20, 30:50] = True
        fields = {"scores": torch.tensor([0.75]), "pred_classes": torch.tensor([1])}
        fields |= {"pred_boxes": Boxes(torch.tensor([[29.0, 9.0, 51.0, 21.0]])), "pred_masks": mask}
        fields |= self.fields
        return [
            {"instances": Instances(size, **{k: v for k, v in fields.items() if v is not None})}
        ]


def made(**fields):
    return DetectorLabeler(Made(**fields), CATEGORIES, {})


IMAGE = np.zeros((SIDE, SIDE, 3), np.uint8)
EMPTY_BOX = Boxes(torch.zeros(1, 4))
RANKED = {"scores": torch.tensor([0.1]), "class_scores": torch.tensor([0.75])}
# Fields of the model; quality, its source and the box of the label.
GIVEN = [
    ({"pred_quality": torch.tensor([0.4])}, 0.4, "pred_quality", (29, 9, 51, 21)),
    ({}, 0.75, "score", (29, 9, 51, 21)),
    ({"pred_masks": torch.ones(1, SIDE, SIDE)}, 0.75, "score", (29, 9, 51, 21)),  # as numbers
    ({"pred_boxes": EMPTY_BOX}, 0.75, "score", (30, 10, 50, 20)),  # the mask's own
    (RANKED, 0.75, "score", (29, 9, 51, 21)),  # what it ranks by is no score of a class
    ({"pred_boxes": None}, 0.75, "score", (30, 10, 50, 20)),
]


@pytest.mark.parametrize(("fields", "quality", "source", "box"), GIVEN)
def test_what_a_model_gives_is_taken(fields, quality, source, box):
    labeler = made(**fields)
    assert labeler.describe()["quality"] == source
    (instance,) = labeler.label(IMAGE)
    assert instance.record.quality == pytest.approx(quality)
    assert (instance.box, instance.category_id, instance.score) == (box, 8, 0.75)


def test_without_box_and_mask_there_is_no_instance():
    empty = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    assert made(pred_boxes=EMPTY_BOX, pred_masks=empty).label(IMAGE) == []
    (instance,) = made(pred_masks=empty).label(IMAGE)
    assert instance.record.mask_source == "filled_empty"


NAN = torch.tensor([float("nan")])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scores": NAN}, "score nan"),
        ({"scores": torch.tensor([1.5])}, "score 1.5"),
        ({"pred_quality": NAN}, "pred_quality nan"),
        ({"pred_quality": torch.tensor([-0.1])}, "pred_quality -0.1"),
        ({"pred_classes": torch.tensor([2])}, "class 2 of 2"),
        ({"pred_masks": None}, "gives no masks"),
    ],
)
def test_what_no_label_can_be_made_of_is_refused(fields, message):
    with pytest.raises(DataError, match=message):
        made(**fields).label(IMAGE)


# Config overrides, and the error: one line with a remedy.
REFUSED = [
    (["NO.SUCH_KEY", "1"], "options.*NO"),
    (["MODEL.META_ARCHITECTURE", "NoSuchModel"], "NoSuchModel"),
    (["MODEL.MASK_ON", "False"], "gives no masks"),
    (["MODEL.ROI_HEADS.NUM_CLASSES", "5"], "is 5, but .* has 2 classes"),
    (["DATASETS.TRAIN", "('unheard_of',)"], "unheard_of.*is no known data set"),
    (["DATASETS.TRAIN", "()"], "is no known data set"),
    (["MODEL.FPN.OUT_CHANNELS", "64"], "weights are not in it"),
    (["INPUT.FORMAT", "L"], "INPUT.FORMAT.*'L'"),
]


@pytest.mark.parametrize(("opts", "message"), REFUSED)
def test_a_config_that_does_not_fit(run, opts, message):
    with pytest.raises(DataError, match=message):
        build(run, *opts)


@pytest.mark.parametrize(
    ("config", "weights", "message"),
    [
        ("", "", "needs a config and weights"),
        ("config.yaml", "absent.pth", "absent.pth.*does not exist"),
        ("absent.yaml", "model.pth", "absent.yaml"),
        ("config.yaml", "instances.json", "cannot be loaded"),
    ],
)
def test_files_that_are_not_there_or_no_checkpoint(run, monkeypatch, config, weights, message):
    monkeypatch.chdir(run)
    with pytest.raises(DataError, match=message):
        detector(config, weights)


def test_classes_of_a_data_set_that_detectron2_knows(run):
    MetadataCatalog.get("known_by_name").set(
        thing_classes=["cat", "dog"], thing_dataset_id_to_contiguous_id={18: 1, 17: 0}
    )
    labeler = build(run, "DATASETS.TRAIN", "('known_by_name',)")
    assert labeler.categories == [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]
