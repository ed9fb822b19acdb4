"""End to end at 64 px: odd input, equality with the library, resume, processes, checkpoints."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.structures import BitMasks, PolygonMasks
from detectron2.utils.events import EventStorage
from torch.nn.parallel import DistributedDataParallel

from masksmith_projects.mask2former.targets import float_masks
from masksmith_projects.mask2former.weights import to_library
from pseudolabel.errors import DataError
from pseudolabel.loader import seed_everything
from pseudolabel.masks import encode_rle
from pseudolabel.trainer import Trainer
from tests.projects.mask2former.tiny_model import PREFIX, sample, tiny_model, tiny_run
from tests.tiny import write_coco

PIXEL = [(7, 9, 8, 10)]


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "boxes",
    [
        [(), ()],  # nothing in the batch
        [(), ((4, 6, 30, 40),)],  # half-empty
        [PIXEL, PIXEL],
        [((0, 0, 20, 20),) * 9, ()],  # more instances than queries
    ],
    ids=["empty", "half_empty", "one_pixel", "crowded"],
)
def test_odd_batches_train_and_give_gradients(boxes):
    model = tiny_model().train()
    losses = model([sample(boxes=b, seed=i) for i, b in enumerate(boxes)])
    assert len(losses) == 9  # 3 terms, 3 predictions
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    found = gradients(model)
    assert all(torch.isfinite(g).all() for g in found.values())
    assert found["class_predictor.weight"].abs().sum() > 0


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_losses_and_every_gradient_are_the_library_s_bit_for_bit(backbone):
    batch = [sample(), sample(boxes=PIXEL, seed=1)]
    model = tiny_model(backbone=backbone).train()
    torch.manual_seed(5)
    total = sum(model(batch).values())
    total.backward()
    found = gradients(model)
    whole = to_library(tiny_model(backbone=backbone)).train()
    pixels = torch.zeros(2, 3, 64, 64)
    masks = []
    for index, one in enumerate(batch):
        pixels[index, :, :48, :60] = (one["image"] - model.pixel_mean) / model.pixel_std
        masks.append(torch.zeros(len(one["instances"]), 64, 64))
        masks[-1][:, :48, :60] = one["instances"].gt_masks.tensor
    # The library's own criterion, not ours that would be carried over.
    assert type(whole.criterion).__name__ == "Mask2FormerLoss"
    torch.manual_seed(5)
    labels = [one["instances"].gt_classes for one in batch]
    expected = whole(pixel_values=pixels, mask_labels=masks, class_labels=labels).loss
    assert torch.equal(total, expected.squeeze())
    expected.backward()
    others = gradients(whole)
    assert found.keys() <= others.keys()
    assert all(torch.equal(grad, others[name]) for name, grad in found.items())
    left_out = others.keys() - found.keys()
    assert all(not others[name].any() for name in left_out)


def test_weights_of_image_and_annotation_reach_loss_and_gradient():
    model = tiny_model().train()
    weighted = [sample(weight=0.0), sample(seed=1)]
    weighted[1]["instances"].gt_weights = torch.zeros(2)
    losses = model(weighted)
    assert all(value == 0 for name, value in losses.items() if "cross" not in name)
    assert losses["loss_cross_entropy"] > 0, "queries without an object"
    parameters = [p for p in model.parameters() if p.requires_grad]
    masks = sum(value for name, value in losses.items() if "cross" not in name)
    silent = torch.autograd.grad(masks, parameters, retain_graph=True, allow_unused=True)
    assert not any(g.any() for g in silent if g is not None)
    parts = torch.autograd.grad(sum(losses.values()), parameters, allow_unused=True)
    assert any(g.any() for g in parts if g is not None)
    nothing = sum(model([sample(weight=0.0), sample(seed=1, weight=0)]).values())
    assert nothing == 0
    parts = torch.autograd.grad(nothing, parameters, allow_unused=True)
    assert not any(g.any() for g in parts if g is not None)
    with pytest.raises(
        DataError, match=r"image 3\): the weight of the image is negative or not finite: -1"
    ):
        model([sample(weight=-1.0, seed=3)])
    weighted[1]["instances"].gt_weights = torch.tensor([1.0, float("nan")])
    with pytest.raises(DataError, match="weight of an annotation is negative or not finite"):
        model(weighted)


def changed(**fields):
    """A sample whose `instances` have other fields; None takes one away."""
    one = sample(seed=3)
    for name, value in fields.items():
        if value is None:
            one["instances"].remove(name)
        else:
            one["instances"].set(name, value)
    return one


@pytest.mark.parametrize(
    ("one", "message"),
    [
        # Class 3 of 3 would be trained as "no object", with a mask.
        (changed(gt_classes=torch.tensor([0, 3])), r"has classes \[0, 3\], the model 0 to 2"),
        (changed(gt_classes=torch.tensor([-1, 0])), r"has classes \[-1, 0\]"),
        (changed(gt_masks=None), "has no gt_masks"),
        (changed(gt_masks=None, gt_classes=None), "has no gt_classes and gt_masks"),
        ({"image": sample()["image"], "image_id": 3}, "has no instances"),
        (sample(weight=None, seed=3), "has the weight None"),
    ],
    ids=["no_object", "negative", "no_masks", "no_fields", "no_instances", "no_weight"],
)
def test_ground_truth_that_cannot_be_trained_on(one, message):
    with pytest.raises(DataError, match=rf"image 3\): {message}.*Remedy: "):
        tiny_model().train()([sample(), one])


def test_rle_ground_truth_trains_as_bits_do():
    losses = []
    for masks in (None, [encode_rle(m.numpy()) for m in sample()["instances"].gt_masks.tensor]):
        model = tiny_model().train()
        torch.manual_seed(2)
        losses.append(model([changed(gt_masks=masks) if masks else sample(seed=3)]))
    for name, value in losses[0].items():
        assert torch.equal(losses[1][name], value), name


def test_without_deep_supervision_only_the_last_prediction_is_trained():
    losses = tiny_model([PREFIX + "DEEP_SUPERVISION", False]).train()([sample()])
    assert sorted(losses) == ["loss_cross_entropy", "loss_dice", "loss_mask"]


def test_instances_that_are_left_out_are_logged_by_reason():
    model = tiny_model().train()
    with EventStorage() as storage:
        model([sample(lost_instances=2, crowds=5), sample(lost_instances=1, empty_instances=4)])
    latest = storage.latest()
    assert latest["mask2former/instances outside of the crop"][0] == 3
    assert latest["mask2former/instances with an empty mask"][0] == 4
    assert latest["mask2former/crowds"][0] == 5
    # A loop that writes no metrics.
    assert model([sample(lost_instances=2)])


def test_masks_as_bits_tensor_or_rle_are_the_same():
    bits = sample()["instances"].gt_masks
    codes = [encode_rle(mask.numpy()) for mask in bits.tensor]
    expected = torch.zeros(2, 64, 64)
    expected[:, :48, :60] = bits.tensor
    for masks in (bits, bits.tensor, codes):
        found = float_masks(masks, (48, 60), (64, 64))
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)
    assert float_masks([], (48, 60), (64, 64)).shape == (0, 64, 64)
    with pytest.raises(DataError, match=r"INPUT\.MASK_FORMAT.*polygons"):
        float_masks(PolygonMasks([[[0, 0, 4, 0, 4, 4]]]), (48, 60), (64, 64))
    with pytest.raises(DataError, match=r"are of \(48, 60\) pixels, their image of \(60, 48\)"):
        float_masks(bits, (60, 48), (64, 64))


def test_inference_gives_ranked_instances_in_the_original_size():
    model = tiny_model().eval()
    (output,) = model([{"image": sample()["image"], "height": 96, "width": 120}])
    instances = output["instances"]
    assert instances.image_size == (96, 120)
    assert 0 < len(instances) <= 18  # queries times classes
    assert instances.pred_masks.shape[1:] == (96, 120)
    assert instances.pred_masks.dtype == torch.bool
    assert instances.scores.tolist() == sorted(instances.scores.tolist(), reverse=True)
    assert ((instances.scores > 0) & (instances.scores <= 1)).all()
    assert set(instances.pred_classes.tolist()) <= {0, 1, 2}
    boxes = BitMasks(instances.pred_masks).get_bounding_boxes().tensor
    assert torch.equal(instances.pred_boxes.tensor, boxes)


def test_padding_by_a_larger_neighbour_keeps_the_sizes():
    model = tiny_model().eval()
    outputs = model([{"image": sample()["image"]}, {"image": sample(90, 70)["image"]}])
    assert [o["instances"].image_size for o in outputs] == [(48, 60), (90, 70)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_input_that_is_not_finite(value):
    bad = sample()
    bad["image"][:] = value
    model = tiny_model()
    assert not torch.isfinite(sum(model.train()([bad]).values())), "the trainer stops at this"
    (output,) = model.eval()([bad])
    assert torch.isfinite(output["instances"].scores).all()


def test_checkpoint_round_trip(tmp_path):
    model, other = tiny_model(), tiny_model(seed=1)
    DetectionCheckpointer(model, str(tmp_path)).save("saved")
    DetectionCheckpointer(other).load(str(tmp_path / "saved.pth"))
    for name, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    saved = torch.load(tmp_path / "saved.pth", weights_only=True)["model"]
    to_library(model).load_state_dict(saved)


def train(cfg, resume=False, stop=None):
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    seed_everything(cfg.SEED)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    if stop is not None:
        trainer.max_iter = stop
    trainer.train()
    return trainer


def test_twenty_steps_equal_ten_and_ten_resumed(tmp_path):
    json_file = write_coco(tmp_path)
    opts = ["DATASETS.TEST", "()", "SOLVER.IMS_PER_BATCH", 1, PREFIX + "DEC_LAYERS", 2]
    # As in the published recipe; all steps are clipped.
    opts += ["SOLVER.BACKBONE_MULTIPLIER", 0.1, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model"]
    opts += ["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.01]
    whole = train(tiny_run(json_file, tmp_path / "whole", opts))
    cfg = tiny_run(json_file, tmp_path / "parts", opts)
    train(cfg, stop=10)
    parts = train(cfg, resume=True)
    assert parts.start_iter == 10
    expected = whole.model.state_dict()
    for name, value in parts.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_training_ends_with_an_evaluation(tmp_path):
    train(tiny_run(write_coco(tmp_path), tmp_path / "out", ["SOLVER.MAX_ITER", 2]))
    lines = (tmp_path / "out" / "metrics.json").read_text().splitlines()
    last = {key: value for line in lines for key, value in json.loads(line).items()}
    assert 0 <= last["segm/AP"] <= 100
    assert last["mask2former/instances outside of the crop"] == 0
    assert last["mask2former/instances with an empty mask"] == 0
    assert last["mask2former/crowds"] == 0


def test_a_loss_that_is_not_finite_stops_the_run_with_a_dump(tmp_path):
    cfg = tiny_run(write_coco(tmp_path), tmp_path / "out")
    Path(cfg.OUTPUT_DIR).mkdir()
    trainer = Trainer(cfg)
    with torch.no_grad():
        trainer.model.class_predictor.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"nan_dump_rank0_iter0\.pth.*Remedy"):
        trainer.train()


def fixed_points(*shape, device=None):
    """In the place of `torch.rand`: the same points for every mask."""
    *_, points, _ = shape
    drawn = torch.quasirandom.SobolEngine(2).draw(points)
    return drawn.expand(shape).clone()


def one_of_two(rank, folder, batch):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = DistributedDataParallel(tiny_model().train())
    for _ in range(2):  # the second forward fails if a parameter was left without a gradient
        model.zero_grad()
        losses = model([batch[rank]])
        sum(losses.values()).backward()
    torch.save(gradients(model.module), f"{folder}/{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "boxes",
    [
        (((4, 6, 30, 40), (20, 10, 50, 30)), ((2, 2, 9, 40), *PIXEL)),
        (((4, 6, 30, 40),), ((2, 2, 9, 40), (20, 10, 50, 30), *PIXEL)),
        ((), ((2, 2, 9, 40), *PIXEL)),
    ],
    ids=["equal", "unequal", "one_empty"],
)
def test_two_processes_equal_one_with_the_double_batch(boxes, tmp_path, monkeypatch):
    """In their mask losses. Their class losses are, as the library's, each its own mean, and the
    gradient is the mean of the two; it is the double batch's where their counts are equal."""
    batch = [sample(boxes=one, seed=index) for index, one in enumerate(boxes)]
    monkeypatch.setattr(torch, "rand", fixed_points)
    mp.start_processes(one_of_two, (str(tmp_path), batch), nprocs=2, start_method="fork")
    model = tiny_model().train()
    whole = model(batch)
    apart = [model([one]) for one in batch]
    classes = sum(v for part in apart for name, v in part.items() if "cross" in name) / 2
    together = sum(v for name, v in whole.items() if "cross" in name)
    if len(boxes[0]) == len(boxes[1]):
        assert torch.isclose(classes, together, rtol=1e-4)
    (sum(v for name, v in whole.items() if "cross" not in name) + classes).backward()
    found = [torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2)]
    for name, expected in gradients(model).items():
        assert torch.equal(found[0][name], found[1][name]), name
        scale = expected.abs().max().clamp(min=1e-4)
        assert (found[0][name] - expected).abs().max() <= 1e-3 * scale, name
