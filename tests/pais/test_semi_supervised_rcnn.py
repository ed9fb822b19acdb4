"""Teacher and student in one module, on a tiny random network and drawn images."""

import logging
import pickle

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from pais.config import warn_after
from pais.evaluation import NETWORKS
from pais.semi_supervised_rcnn import class_names
from pseudolabel.errors import DataError
from pseudolabel.loader import seed_everything
from tests.pais.tiny_run import PYRAMID, tiny_config, write_split

SUPERVISED = {"rpn_cls", "rpn_loc", "cls", "box_reg", "mask", "mask_iou", "box_iou"}
UNSUPERVISED = {"rpn_cls", "rpn_loc", "cls", "box_reg", "mask"}
LOSSES = {f"loss_sup_{n}" for n in SUPERVISED} | {f"loss_unsup_{n}" for n in UNSUPERVISED}
# Random weights are sure of nothing: a third for each of three classes.
LOW = [
    *("MODEL.PAIS.SCORE_FLOOR", 0.1, "MODEL.PAIS.RPN_SCORE_FLOOR", 0.1),
    *("MODEL.PAIS.ROI_SCORE_FLOOR", 0.1),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_split(tmp_path_factory.mktemp("data"))


@pytest.fixture
def build(files, tmp_path):
    def built(*opts):
        seed_everything(0)
        return build_model(tiny_config(files, tmp_path, *PYRAMID, *LOW, *opts)).train()

    return built


def batch(labelled=1, unlabelled=2):
    """Noise; the strong view is the weak one, mirrored."""
    generator = torch.Generator().manual_seed(3)

    def view():
        return torch.randint(0, 256, (3, 64, 64), generator=generator, dtype=torch.uint8)

    objects = Instances((64, 64), gt_boxes=Boxes(torch.tensor([[8.0, 8, 40, 40]])))
    objects.gt_classes = torch.tensor([1])
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[:, 8:40, 8:30] = True
    objects.gt_masks = BitMasks(masks)
    flip = torch.tensor([[-1.0, 0, 64], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    samples = [{"image": view(), "instances": objects, "labelled": True} for _ in range(labelled)]
    for _ in range(unlabelled):
        weak = view()
        sample = {"weak": {"image": weak}, "strong": {"image": weak.flip(2)}, "labelled": False}
        samples.append({**sample, "weak_to_strong": flip})
    return samples


def run(model, samples=None, step=None):
    """Losses of one batch, the same random numbers each time, and what was stored."""
    if step is not None:
        model.steps.fill_(step)
    seed_everything(1)
    with EventStorage() as storage:
        losses = model(batch() if samples is None else samples)
        return losses, storage.latest()


def test_losses_say_which_images_they_are_of(build):
    model = build()
    losses, stored = run(model)
    assert set(losses) == LOSSES
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert stored["pseudo-labels/kept per image"][0] > 0
    # What the stock parts store is told apart as well.
    assert "rpn/num_pos_anchors" in stored
    assert {"unlabelled/rpn/num_pos_anchors", "unlabelled/roi_head/num_fg_samples"} <= set(stored)


def test_views_may_differ_in_size(build):
    """Of one image and of several; coordinates are those of the views without padding."""
    samples = batch(labelled=2)
    for sample, side in zip(samples[2:], (40, 56)):
        sample["strong"] = {"image": sample["strong"]["image"][:, :side, : side + 8]}
    samples[2]["weak"] = {"image": samples[2]["weak"]["image"][:, :48]}
    model, sizes = build(), []
    stock = model.roi_heads.losses_unlabelled

    def spy(features, proposals, labels, background):
        sizes.extend(each.image_size for each in labels)
        return stock(features, proposals, labels, background)

    model.roi_heads.losses_unlabelled = spy
    losses, stored = run(model, samples)
    assert sizes == [(40, 48), (56, 64)]
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert stored["pseudo-labels/kept per image"][0] > 0


def test_gradients_reach_every_part_of_the_student_and_nothing_of_the_teacher(build):
    model = build()
    sum(run(model)[0].values()).backward()
    for name, parameter in model.named_parameters():
        if name.startswith("teacher."):
            assert parameter.grad is None
            assert not parameter.requires_grad
        else:
            assert parameter.grad is not None, name


def test_unlabelled_images_leave_the_other_losses_alone(build):
    """Also: the baseline of the same file is that of the same batch without them."""
    with_both, alone = run(build())[0], run(build(), batch(unlabelled=0))[0]
    baseline, stored = run(build("MODEL.PAIS.ENABLED", False))
    assert not any(name.startswith("pseudo-labels") for name in stored)
    assert set(alone) == set(baseline) == {name for name in LOSSES if "_sup_" in name}
    for name, loss in alone.items():
        assert with_both[name].item() == pytest.approx(loss.item(), rel=1e-5), name
        assert baseline[name].item() == pytest.approx(loss.item(), rel=1e-5), name


def test_the_factor_of_unlabelled_images_is_obeyed(build):
    once, thrice = (run(build("MODEL.PAIS.UNLABELLED_WEIGHT", weight))[0] for weight in (0.5, 1.5))
    for name in LOSSES:
        factor = 3 if "_unsup_" in name else 1
        assert thrice[name].item() == pytest.approx(factor * once[name].item(), rel=1e-5), name


@pytest.mark.parametrize(
    ("rpn", "roi", "proposed", "kept"),
    [
        (0.0, 0.0, True, True),
        (0.0, 1.0, True, False),  # each loss has its own floor
        (1.0, 0.0, False, True),
        (1.0, 1.0, False, False),  # all below the floors
    ],
)
def test_each_floor_has_its_losses(rpn, roi, proposed, kept, build):
    model = build(
        *("MODEL.PAIS.SCORE_FLOOR", 0.0, "MODEL.PAIS.RPN_SCORE_FLOOR", rpn),
        *("MODEL.PAIS.ROI_SCORE_FLOOR", roi),
    )
    losses, stored = run(model)
    assert (stored["pseudo-labels/for proposals per image"][0] > 0) == proposed
    assert (stored["pseudo-labels/kept per image"][0] > 0) == kept
    # Nothing but background is learned without pseudo-labels.
    assert (losses["loss_unsup_rpn_loc"] > 0) == proposed
    for name in ("loss_unsup_mask", "loss_unsup_box_reg"):
        assert (losses[name] > 0) == kept
    assert losses["loss_unsup_cls"] > 0
    assert losses["loss_unsup_rpn_cls"] > 0
    sum(losses.values()).backward()
    assert model.roi_heads.mask_head.predictor.weight.grad is not None


def test_a_teacher_that_finds_nothing_is_no_error(build, caplog):
    model = build("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.0, "MODEL.PAIS.LOG.WARN_AFTER", 1)
    losses, stored = run(model)
    assert set(losses) == LOSSES
    assert losses["loss_unsup_mask"] == losses["loss_unsup_box_reg"] == 0
    assert stored["pseudo-labels/best score"][0] == 0
    assert "detects nothing at all" in caplog.text


def test_pseudo_labels_are_the_teachers_on_the_weak_view(build):
    """Against the teacher's own inference on it: boxes and masks mirrored, fields the same."""
    model = build()
    samples, targets = batch(), []
    model.roi_heads.losses_unlabelled = lambda f, p, labels, b: targets.extend(labels) or {}
    run(model, samples)
    stock = model.teacher.inference([sample["weak"] for sample in samples[1:]])
    for own, output in zip(targets, stock, strict=True):
        found = output["instances"]
        found = found[found.scores > 0.1]
        assert len(own) == len(found) > 0
        x0, y0, x1, y1 = found.pred_boxes.tensor.unbind(1)
        mirrored = torch.stack([64 - x1, y0, 64 - x0, y1], dim=1)
        torch.testing.assert_close(own.gt_boxes.tensor, mirrored, atol=1e-3, rtol=0)
        assert torch.equal(own.gt_classes, found.pred_classes)
        torch.testing.assert_close(own.gt_scores, found.scores)
        torch.testing.assert_close(own.gt_quality, found.pred_quality)
        assert torch.equal(own.gt_masks.tensor, found.pred_masks.flip(2))


def test_background_is_weighed_by_the_teacher(build):
    """With a teacher that sees background nowhere, negatives teach nothing."""
    model = build("MODEL.PAIS.ROI_SCORE_FLOOR", 1.0)
    some = run(model)[0]["loss_unsup_cls"].item()
    with torch.no_grad():
        model.teacher.roi_heads.box_predictor.cls_score.bias[-1] = -50
    none = run(model)[0]["loss_unsup_cls"].item()
    assert some > 0.1
    assert none == pytest.approx(0, abs=1e-6)


def test_burn_in(build, caplog):
    caplog.set_level(logging.INFO)
    model = build("MODEL.PAIS.BURN_IN_ITERS", 3)
    unsupervised = []
    for step in range(5):
        # Two batches of one step say it once.
        for _ in range(2):
            losses, _ = run(model, step=step)
        unsupervised.append(any("_unsup_" in name for name in losses))
    assert unsupervised == [False, False, False, True, True]
    said = [message for message in caplog.messages if "burn-in" in message]
    begin, look, end = said
    assert begin == "burn-in: 3 iterations on labelled images alone (iteration 1)"
    assert end == "burn-in: over (iteration 4)"
    # What it finds in the end is that of the first iteration with pseudo-labels; none has moved.
    assert look.startswith("burn-in, iteration 1: on an unlabelled image the teacher finds ")
    assert look.endswith(" above the floor of 0.1")


def test_a_process_that_resumes_a_burn_in_says_so(build, caplog):
    """And looks at once, then every twentieth step."""
    caplog.set_level(logging.INFO)
    model = build("MODEL.PAIS.BURN_IN_ITERS", 50)
    for step in (7, 8, 19, 20, 21):
        _, stored = run(model, step=step)
        assert ("pseudo-labels/best score" in stored) == (step in (7, 20))
    said = [message.split(":")[0] for message in caplog.messages if "burn-in" in message]
    assert said == ["burn-in", "burn-in, iteration 8", "burn-in, iteration 21"]


def test_a_look_during_a_burn_in_changes_nothing(build):
    """Neither the losses of labelled images nor the random numbers after them."""
    found = []
    for unlabelled in (0, 2):
        losses, _ = run(build("MODEL.PAIS.BURN_IN_ITERS", 3), batch(unlabelled=unlabelled), 0)
        values = {name: loss.item() for name, loss in losses.items()}
        found.append((values, torch.rand(3).tolist()))
    assert found[0] == found[1]


def moved(model, by=1.0):
    """The student's weights shifted, as by an optimizer step."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("teacher."):
                parameter += by
    return model


def weight_of(model, network):
    part = model.teacher if network == "teacher" else model
    return part.roi_heads.mask_head.predictor.weight.detach().clone()


def test_the_teacher_follows(build):
    """m = min(limit, 1 - 1 / (t + 1)), t being the steps made."""
    model = build("MODEL.PAIS.EMA.MOMENTUM", 0.7)
    start = weight_of(model, "student")
    assert torch.equal(weight_of(model, "teacher"), start)
    expected, student = start, start
    for momentum in (0.5, 2 / 3, 0.7, 0.7):
        moved(model).update_teacher()
        student = student + 1
        expected = momentum * expected + (1 - momentum) * student
        torch.testing.assert_close(weight_of(model, "teacher"), expected)
    assert int(model.steps) == 4


@pytest.mark.parametrize("start", NETWORKS)
def test_a_training_starts_from_the_network_that_is_named(start, build):
    model = build("MODEL.PAIS.EMA.START", start)
    moved(model).update_teacher()
    expected = weight_of(model, start)
    assert not torch.equal(weight_of(model, "student"), weight_of(model, "teacher"))
    model.begin_training()
    assert torch.equal(weight_of(model, "student"), expected)
    assert torch.equal(weight_of(model, "teacher"), expected)
    assert int(model.steps) == 0
    assert all(p.requires_grad for p in model.roi_heads.parameters())


def test_the_teacher_stays_in_evaluation_mode(build):
    model = build()
    assert model.train().training
    assert not any(module.training for module in model.teacher.modules())


@pytest.mark.parametrize("network", NETWORKS)
def test_the_named_network_answers_and_both_are_evaluated(network, build):
    model = moved(build("MODEL.PAIS.TEST.NETWORK", network), 0.01)
    model.update_teacher()
    model.eval()
    sample = {"image": batch()[0]["image"], "height": 32, "width": 48}
    (output,) = model([sample])
    assert set(output) == {"instances", "teacher", "student"}
    assert output["instances"] is output[network]
    assert output["instances"].pred_masks.shape[1:] == (32, 48)
    scores = {name: output[name].scores for name in NETWORKS}
    assert not torch.equal(scores["teacher"], scores["student"])
    (alone,) = model.inference([sample])
    assert torch.equal(alone["instances"].scores, scores[network])
    (raw,) = model.inference([sample], do_postprocess=False)
    assert raw.pred_masks.shape[1:] == (1, 14, 14)
    assert ((raw.pred_quality >= 0) & (raw.pred_quality <= 1)).all()


# Weights


def test_a_checkpoint_holds_both_networks_once_they_differ(build):
    model = build()
    names = set(model.state_dict())
    assert not any(name.startswith("teacher.") for name in names)
    moved(model).update_teacher()
    state = model.state_dict()
    assert {name for name in state if not name.startswith("teacher.")} == names
    parts = ("backbone", "proposal_generator", "roi_heads")
    mirrored = {f"teacher.{name}" for name in names if name.split(".")[0] in parts}
    assert {name for name in state if name.startswith("teacher.")} == mirrored
    fresh = build("SEED", 5)
    fresh.load_state_dict(state)
    for network in NETWORKS:
        assert torch.equal(weight_of(fresh, network), weight_of(model, network))
    assert int(fresh.steps) == 1


def test_a_stock_mask_rcnn_serves_as_weights(build, tmp_path):
    """Its names are the student's; what it lacks (quality branches) stays as initialised."""
    model = moved(build())
    stock = {k: v for k, v in model.state_dict().items() if "quality" not in k and k != "steps"}
    torch.save({"model": stock}, tmp_path / "stock.pth")
    fresh = build()
    DetectionCheckpointer(fresh).load(str(tmp_path / "stock.pth"))
    for network in NETWORKS:
        assert torch.equal(weight_of(fresh, network), weight_of(model, "student"))
    assert torch.equal(
        fresh.roi_heads.mask_head.quality[1].weight,
        fresh.teacher.roi_heads.mask_head.quality[1].weight,
    )


def test_a_checkpoint_of_other_classes_gives_what_fits(build, files, tmp_path, caplog):
    """All but the last layers, which stay as they were, equal in both networks."""
    model = moved(build())
    model.update_teacher()
    torch.save({"model": model.state_dict()}, tmp_path / "pais.pth")
    cfg = tiny_config(files, tmp_path, *PYRAMID, "MODEL.PAIS.EMA.START", "teacher")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    fresh = build_model(cfg)
    before = fresh.roi_heads.box_predictor.cls_score.weight.clone()
    DetectionCheckpointer(fresh).load(str(tmp_path / "pais.pth"))
    (line,) = [m for m in caplog.messages if "teacher.roi_heads.mask_head.predictor.weight" in m]
    assert "weights of another shape are not loaded" in line
    assert "conv" not in line
    for own, origin in ((fresh, model), (fresh.teacher, model.teacher)):
        assert torch.equal(own.backbone.stages[0].weight, origin.backbone.stages[0].weight)
        assert torch.equal(own.roi_heads.box_predictor.cls_score.weight, before)
    with pytest.raises(RuntimeError, match="size mismatch"):
        fresh.load_state_dict(model.state_dict())


def test_weights_of_a_trunk_are_matched_by_the_end_of_their_names(build, tmp_path):
    """As those of ImageNet in Detectron2's zoo; each has to match one name alone."""
    model = build()
    stage = model.backbone.stages[0].weight
    path = tmp_path / "trunk.pkl"
    content = {"stages.0.weight": np.full(tuple(stage.shape), 0.25, np.float32)}
    path.write_bytes(
        pickle.dumps({"model": content, "__author__": "test", "matching_heuristics": True})
    )
    DetectionCheckpointer(model).load(str(path))
    for network in (model, model.teacher):
        assert (network.backbone.stages[0].weight == 0.25).all()


def test_a_stock_mask_rcnn_takes_the_student_out_of_a_checkpoint(build, files, tmp_path):
    model = moved(build())
    model.update_teacher()
    torch.save({"model": model.state_dict()}, tmp_path / "pais.pth")
    cfg = tiny_config(files, tmp_path, *PYRAMID)
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    stock = build_model(cfg)
    assert type(stock) is GeneralizedRCNN
    DetectionCheckpointer(stock).load(str(tmp_path / "pais.pth"))
    assert torch.equal(stock.roi_heads.mask_head.predictor.weight, weight_of(model, "student"))


# Options


def test_mixed_precision(build):
    """Of the model, and of losses in single precision."""
    # All regions are taken, and many are objects: which are drawn would matter more than rounding.
    opts = ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 128, "MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0]
    opts += ["MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.2]]
    model = build(*opts)
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = run(model)
    exact, _ = run(build(*opts))
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    pairs = {name: (loss.item(), exact[name].item()) for name, loss in losses.items()}
    far = {n: p for n, p in pairs.items() if p[0] != pytest.approx(p[1], rel=0.05, abs=0.01)}
    assert not far, pairs
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("stated", "burn_in", "expected"),
    [
        (500, 0, 250),  # of a short schedule a quarter
        (100, 0, 100),
        (500, 900, 25),  # of what is left after the burn-in
        (500, 2000, 1),
        (0, 0, 0),  # never
    ],
)
def test_the_warning_comes_within_the_schedule(stated, burn_in, expected, files, tmp_path):
    cfg = tiny_config(files, tmp_path, "MODEL.PAIS.LOG.WARN_AFTER", stated)
    cfg.SOLVER.MAX_ITER, cfg.MODEL.PAIS.BURN_IN_ITERS = 1000, burn_in
    assert warn_after(cfg) == expected


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "SemiSupervisedROIHeads"),
        ("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead", "MaskQualityHead"),
        ("MODEL.MASK_ON", False, "set it to True"),
    ],
)
def test_heads_of_a_stock_mask_rcnn_are_refused(key, value, remedy, build):
    with pytest.raises(DataError, match=rf"{key}.*Remedy.*{remedy}"):
        build(key, value)


@pytest.mark.parametrize(
    ("opts", "line"),
    [
        ((), None),
        (("RPN_SCORE_FLOOR", 0.05), "RPN_SCORE_FLOOR 0.05 has no effect: SCORE_FLOOR is 0.1"),
        (("ROI_SCORE_FLOOR", 0.05), "ROI_SCORE_FLOOR 0.05 has no effect"),
        (("CLASS_WEIGHT", True, "DALOSS", False), "CLASS_WEIGHT True has no effect"),
        (("CLASS_WEIGHT", True, "RPN_SCORE_FLOOR", 0.0), None),  # CLASS_FLOOR is the floor
        (("SCORE_FLOOR", 0.02), "SCORE_FLOOR 0.02 has no effect: the teacher's detections end"),
        (("CLASS_WEIGHT", True, "CLASS_FLOOR", 0.02), "CLASS_FLOOR 0.02 has no effect"),
        (("SCORE_FLOOR", 0.2, "ENABLED", False), None),  # the baseline has no pseudo-labels
    ],
)
def test_values_without_effect_are_named(opts, line, build, caplog):
    build(*(f"MODEL.PAIS.{x}" if i % 2 == 0 else x for i, x in enumerate(opts)))
    found = [message for message in caplog.messages if "no effect" in message]
    assert len(found) == (line is not None)
    assert line is None or line in found[0]


def test_a_training_image_is_drawn_where_asked_for(build):
    model = build("VIS_PERIOD", 1)
    drawn = []
    model.visualize_training = lambda samples, proposals: drawn.append(len(samples))
    run(model)
    assert drawn == [1]


def test_classes_are_named(files, tmp_path):
    cfg = tiny_config(files, tmp_path)
    assert list(class_names(cfg)) == ["left", "right"]
    cfg.DATASETS.TRAIN = ("nobody knows",)
    assert list(class_names(cfg)) == ["0", "1"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.PAIS.TEST.NETWORK", "both"),
        ("MODEL.PAIS.EMA.START", "best"),
        *(("MODEL.PAIS.VIEWS.SHIFT", value) for value in (-0.1, 1.1, float("nan"))),
        *(("MODEL.PAIS.VIEWS.ROTATE", value) for value in (-1.0, 181.0)),
        ("MODEL.PAIS.VIEWS.SHEAR", 90.0),  # nothing would be left
        ("MODEL.PAIS.VIEWS.ERASE_SIDE", 1.5),
        *(("MODEL.PAIS.VIEWS.ERASE_PATCHES", value) for value in ((1,), (1, 4, 9), (4, 1))),
        *(("MODEL.PAIS.VIEWS.ERASE_PATCHES", value) for value in ((-1, 2), (1.5, 4))),
    ],
)
def test_values_that_would_be_misread_are_refused(key, value, build):
    with pytest.raises(DataError, match=key):
        build(key, value)
