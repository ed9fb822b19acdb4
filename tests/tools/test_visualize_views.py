"""tools/visualize_views.py: the picture and what is said of it, labels of both kinds, faults."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from pais.drawing import Example, View, captions, draw_grid
from tests.pais.tiny_run import PYRAMID, tiny_config, write_split
from tests.tools.commands import load_command

command = load_command("visualize_views")

SIDE = 96
PIXEL = np.zeros((1, 1, 3), np.uint8)


@pytest.fixture
def folder(tmp_path):
    """A config with two labelled and four unlabelled images of two discs each."""
    data = tmp_path / "data"
    data.mkdir()
    cfg = tiny_config(write_split(data), tmp_path, *PYRAMID, "MODEL.PAIS.SCORE_FLOOR", 0.1)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    return tmp_path


def run(folder, *arguments, output="grid.png"):
    paths = [str(folder / "config.yaml"), "--output", str(folder / output)]
    return command.main([*paths, "--side", str(SIDE), "--images", "2", *arguments])


def test_masks_of_the_training_set_stand_in_for_labels(folder, capsys):
    assert run(folder) == 0
    out = capsys.readouterr()
    assert out.out == f"wrote {folder / 'grid.png'}: 2 images with 4 labels\n"
    assert out.err == ""
    with Image.open(folder / "grid.png") as image:
        width, height = image.size
    assert width > 4 * SIDE
    assert height > 2 * SIDE


def test_the_picture_is_fixed_by_the_seed(folder):
    for name, seed in (("a.png", "1"), ("b.png", "1"), ("c.png", "2")):
        assert run(folder, "--seed", seed, output=name) == 0
    first, again, other = (np.array(Image.open(folder / f"{name}.png")) for name in "abc")
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)


def test_a_teacher_labels_the_unlabelled_images(folder, capsys, monkeypatch):
    drawn = []

    def spy(examples, *rest):
        drawn.extend(examples)
        return draw_grid(examples, *rest)

    monkeypatch.setattr(command, "draw_grid", spy)
    options = ["--weights", str(folder / "model.pth"), "MODEL.PAIS.SCORE_FLOOR", "0.05"]
    options += ["MODEL.PAIS.ROI_SCORE_FLOOR", "0.05"]
    assert run(folder, *options) == 0
    labels = sum(len(one.weak.masks) for one in drawn)
    assert f"2 images with {labels} labels" in capsys.readouterr().out
    assert labels > 0
    assert all(one.used.all() for one in drawn)
    for one in drawn:
        # Images 1 and 2 are the labelled ones.
        assert one.name not in ("1.png", "2.png")
        assert (one.scores > 0.05).all()
        assert np.allclose(one.weights, 2.5 * one.quality**4)
        assert len(one.strong.masks) == len(one.weak.masks)


def test_labels_that_the_heads_do_not_see_are_not_drawn_as_such(folder, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        command, "draw_grid", lambda examples, *rest: (drawn.extend(examples), PIXEL)[1]
    )
    options = ["--weights", str(folder / "model.pth"), "MODEL.PAIS.SCORE_FLOOR", "0.05"]
    assert run(folder, *options, "MODEL.PAIS.ROI_SCORE_FLOOR", "0.99") == 0
    labels = sum(len(one.weak.masks) for one in drawn)
    assert labels > 0
    expected = f"{labels} labels, {labels} of them not above the floor of the heads\n"
    assert capsys.readouterr().out.endswith(expected)
    assert not any(one.used.any() or one.weights.any() for one in drawn)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL.PAIS.VIEWS.SHIFT", "-1.0"], "VIEWS.SHIFT"),
        (["--weights", "absent.pth"], "absent.pth"),
        (["DATASETS.TRAIN", "()"], "no image"),
        (["INPUT.FORMAT", "L"], "INPUT.FORMAT"),
        (["MODEL.NO_SUCH_KEY", "1"], "NO_SUCH_KEY"),
        (
            ["--weights", "model.pth", "MODEL.META_ARCHITECTURE", "GeneralizedRCNN"],
            "has no teacher",
        ),
    ],
)
def test_faults_end_with_one_line(folder, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    assert run(folder, *arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (folder / "grid.png").exists()


def test_a_config_that_is_not_there(tmp_path, capsys):
    assert command.main([str(tmp_path / "no.yaml"), "--output", "grid.png"]) == 1
    assert "no.yaml: the config does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["c.yaml"],  # no output
        ["c.yaml", "--output", "grid.jpg"],  # would blur the outlines
        ["c.yaml", "--output", "grid.png", "--images", "0"],
    ],
)
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2
    capsys.readouterr()


def example(weights=None, used=None):
    image = np.full((40, 60, 3), 100, np.uint8)
    masks = np.zeros((2, 40, 60), bool)
    masks[0, 5:35, 5:35] = True
    masks[1, 2:4, 50:55] = True
    boxes = np.array([[5.0, 5, 35, 35], [50, 2, 55, 4]])
    gone = masks & (np.arange(2) == 0)[:, None, None]
    known = {}
    if weights is not None:
        known = {
            "scores": np.array([0.9, 0.6]),
            "quality": np.array([0.8, 0.4]),
            "weights": np.array(weights),
            "used": used if used is None else np.array(used),
        }
    return Example("a.png", View(image, boxes, masks), View(image, boxes, gone), **known)


def test_captions_count_what_is_drawn():
    assert captions(example()) == [
        "weak view 60x40, a.png",
        "2 labels of the JSON",
        "strong view 60x40",
        "1 left the view",
    ]
    _, weak, _, strong = captions(example([1.5, 0.1]))
    assert weak == "2 pseudo-labels, score s 0.75, quality u 0.60"
    assert strong == "1 left the view, weight w 0.80 (0.10 to 1.50)"
    *_, strong = captions(example([1.5, 0.0], [True, False]))
    one = "weight w 1.50 (1.50 to 1.50); 1 grey: not above ROI_SCORE_FLOOR"
    assert strong == f"1 left the view, {one}"


def test_no_label_is_drawn_as_well():
    none = View(np.zeros((8, 9, 3), np.uint8), np.zeros((0, 4)), np.zeros((0, 8, 9), bool))
    empty = np.zeros(0)
    assert draw_grid([Example("b.png", none, none, empty, empty, empty)], SIDE).ndim == 3
    assert "0 pseudo-labels, score s –" in captions(Example("b", none, none, empty, empty))[1]


def test_the_fill_shows_the_weight():
    """Of the same mask: the heavier, the further from the grey below it."""
    changes = []
    for weight in (0.0, 1.0, 2.5):
        grid = draw_grid([example([weight, 1.0])], side=120).astype(int)
        # The middle of the first mask in the fourth panel, below its numbers.
        inside = grid[50:60, 3 * 126 + 40 : 3 * 126 + 60]
        changes.append(np.abs(inside - 100).mean())
    assert changes[0] == 0
    assert 0 < changes[1] < changes[2]


def test_an_unused_label_is_a_grey_outline():
    """Its colour, box, numbers and fill are gone; the weak view shows it as ever."""
    panels = {}
    for used in (True, False):
        grid = draw_grid([example([2.5, 1.0], [used, used])], side=120).astype(int)
        panels[used] = grid[:80, 126:246], grid[:80, 3 * 126 : 3 * 126 + 120]
    assert np.array_equal(panels[True][0], panels[False][0])
    colourful = [np.ptp(strong, axis=2).max() for _, strong in panels.values()]
    assert colourful[0] > 50
    assert colourful[1] == 0
    assert (panels[False][1] == 150).any()
