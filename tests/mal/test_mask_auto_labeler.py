"""The meta-architecture end to end on tiny random networks, its labeler and its monitor."""

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage

import mal.data
import mal.encoder_weights
from mal.encoder_weights import save_encoder_weights
from mal.mask_auto_labeler import MaskAutoLabeler
from pseudolabel.masks import decode_segmentation
from pseudolabel.trainer import Trainer
from tests.tiny import tiny_config, write_coco


@pytest.fixture
def cfg(tmp_path):
    return tiny_config("mal/sample", write_coco(tmp_path), tmp_path / "out")


@pytest.fixture
def model(cfg):
    torch.manual_seed(0)
    return MaskAutoLabeler(cfg)


def batch(count=3, side=32):
    generator = torch.Generator().manual_seed(0)
    box = torch.zeros(side, side, dtype=torch.uint8)
    box[8:24, 6:26] = 1
    views = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    return [
        {"student_view": v, "teacher_view": v, "box_mask": box, "box_area": 100.0 * 10**i}
        for i, v in enumerate(views)
    ]


def test_losses_are_finite_and_reach_the_student_alone(model):
    model.train()
    model.steps.fill_(50)
    with EventStorage():
        losses = model(batch())
    assert set(losses) == {"loss_mil", "loss_crf"}
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    # The class token's own output is not used, so what feeds only it has no gradient.
    grads = [p.grad is not None for p in model.student.parameters()]
    assert np.mean(grads) > 0.9
    assert all(p.grad.isfinite().all() for p in model.student.parameters() if p.grad is not None)
    assert all(p.grad is None for p in model.teacher.parameters())


def test_warm_up_starts_at_zero_and_ends_at_the_weight(model):
    model.train()
    with EventStorage():
        first = model(batch())
        model.steps.fill_(10**6)
        last = model(batch())
    assert first["loss_mil"] == first["loss_crf"] == 0
    assert 0 < last["loss_mil"] <= 4 * 2
    assert 0 < last["loss_crf"] <= 0.5


def test_teacher_starts_as_the_student_and_follows_it(model):
    student, teacher = (net.decoder.key[0].weight for net in (model.student, model.teacher))
    assert torch.equal(student, teacher)
    with torch.no_grad():
        student += 1
    expected = 0.99 * teacher + 0.01 * student
    model.update_teacher()
    assert torch.allclose(teacher, expected)
    assert int(model.steps) == 1


def test_stochastic_depth_is_the_students_alone(cfg):
    """The teacher's mask is a target, and has to be the same whenever it is asked for."""
    torch.manual_seed(0)
    model = MaskAutoLabeler(changed(cfg, ENCODER__DROP_PATH=0.9, ENCODER__DEPTH=4)).train()
    images, areas = torch.randn(6, 3, 32, 32), torch.full((6,), 500.0)
    student, teacher = (
        [network(images, areas) for _ in range(4)] for network in (model.student, model.teacher)
    )
    assert any(not torch.equal(student[0], again) for again in student)
    assert all(torch.equal(teacher[0], again) for again in teacher)


def without_teacher(state, prefix=""):
    return {prefix + k: v for k, v in state.items() if not k.startswith("teacher.")}


@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_of_a_student_alone_start_both_networks(wrapped, cfg, model):
    """In the second case below a wrapper, as where several processes train."""
    with torch.no_grad():
        model.student.decoder.key[0].weight += 1
    torch.manual_seed(1)
    fresh = MaskAutoLabeler(cfg)
    whole = torch.nn.ModuleDict({"module": fresh}) if wrapped else fresh
    state = without_teacher(model.state_dict(), "module." if wrapped else "")
    whole.load_state_dict(state, strict=False)
    fresh.begin_training()
    for own, other in zip(fresh.teacher.parameters(), model.student.parameters(), strict=True):
        assert torch.equal(own, other)


def test_a_teacher_in_the_weights_is_kept(cfg, model):
    with torch.no_grad():
        model.student.decoder.key[0].weight += 1
    torch.manual_seed(1)
    fresh = MaskAutoLabeler(cfg)
    fresh.load_state_dict(model.state_dict())
    fresh.begin_training()
    assert torch.equal(fresh.teacher.decoder.key[0].weight, model.teacher.decoder.key[0].weight)
    assert not torch.equal(fresh.teacher.decoder.key[0].weight, fresh.student.decoder.key[0].weight)


def test_a_run_from_the_weights_of_a_student_begins_with_a_teacher_like_it(cfg, model, tmp_path):
    with torch.no_grad():
        model.student.decoder.key[0].weight += 1
    torch.save({"model": without_teacher(model.state_dict())}, tmp_path / "student.pth")
    cfg = cfg.clone()
    cfg.MODEL.WEIGHTS = str(tmp_path / "student.pth")
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    for network in (trainer.model.student, trainer.model.teacher):
        assert torch.equal(network.decoder.key[0].weight, model.student.decoder.key[0].weight)


def test_pretrained_weights_are_read_once_and_reach_both(cfg, model, tmp_path, monkeypatch):
    save_encoder_weights(model.student.encoder, tmp_path / "net.safetensors")
    read, original = [], mal.encoder_weights.read_weights
    watched = lambda source: read.append(source) or original(source)  # noqa: E731
    monkeypatch.setattr(mal.encoder_weights, "read_weights", watched)
    torch.manual_seed(1)
    other = MaskAutoLabeler(changed(cfg, ENCODER__WEIGHTS=str(tmp_path / "net.safetensors")))
    assert len(read) == 1
    expected = model.student.encoder.vit.blocks[0].attn.qkv.weight.half().float()
    for network in other.networks.values():
        assert torch.equal(network.encoder.vit.blocks[0].attn.qkv.weight, expected)


def test_fills_are_logged_once_a_step_as_the_mean_of_its_batches(model):
    model.train()
    with EventStorage() as storage:
        for seed in (0, 1):  # two batches of one step
            torch.manual_seed(seed)
            with torch.no_grad():
                model.student.decoder.key[-1].bias.normal_()
                model(batch())
        assert not storage.histories()
        fills = [fill.item() for fill in model._fills["predicted mask"]]
        model.update_teacher()
        logged = storage.history("mal/fill of box, predicted mask").values()
        model.update_teacher()  # nothing new to say
    assert [value for value, _ in logged] == [pytest.approx(np.mean(fills))]
    assert len(fills) == 2
    assert model.monitors["predicted mask"].mean == pytest.approx(np.mean(fills))


def test_one_record_per_box_within_its_box(model):
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)
    boxes = np.array([[5, 5, 30, 40], [60, 40, 90, 80], [10, 10, 11, 30], [0, 0, 70, 50]], float)
    out = model.eval()([{"image": image, "boxes": boxes}])[0]
    assert set(out) == {"student", "teacher"}
    for records in out.values():
        assert len(records) == 4
        assert records[2].mask_source == "filled_tiny"  # one pixel wide
        for record, (x0, y0, x1, y1) in zip(records, boxes):
            mask = decode_segmentation(record.segmentation, 50, 70)
            rows, columns = np.nonzero(mask)
            assert mask.sum() == record.area > 0
            assert rows.min() >= y0
            assert rows.max() < y1
            assert columns.min() >= x0
            assert columns.max() < x1
            assert 0 <= record.quality <= 1
    assert model.predict(image, np.zeros((0, 4))) == {"student": [], "teacher": []}


def test_a_box_does_not_change_with_its_neighbours_beyond_the_batch(model):
    """Batches are cut in box order: the first 16 boxes never depend on the ones that follow."""
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)
    boxes = np.array([[i, i, i + 20, i + 15] for i in range(20)], float)
    few, many = (model.eval().predict(image, b)["student"] for b in (boxes[:16], boxes))
    assert few == many[:16]


# No teacher, and nothing asked for that only a teacher can give.
ALONE = {"TEACHER": False, "TEST__NETWORK": "student", "TEST__QUALITY": "expected_iou"}


def changed(cfg, **values):
    """The config with some keys of MODEL.MAL changed; a dot is written as two underscores."""
    cfg = cfg.clone()
    cfg.defrost()
    pairs = [item for key, value in values.items() for item in (key.replace("__", "."), value)]
    cfg.MODEL.MAL.merge_from_list(pairs)
    return cfg


def samples(count=3, side=32):
    """As `batch`, with two views that differ, a human mask and a class."""
    generator = torch.Generator().manual_seed(1)
    human = torch.zeros(side, side, dtype=torch.uint8)
    human[10:20, 8:22] = 1
    return [
        {
            **sample,
            "teacher_view": torch.randint(
                0, 256, (3, side, side), generator=generator, dtype=torch.uint8
            ),
            "true_mask": human,
            "category": torch.tensor(index % 2),
        }
        for index, sample in enumerate(batch(count, side))
    ]


def losses_of(cfg, seed=0, inputs=None, prepare=None):
    """Losses past the warm-ups, as numbers, of a model that depends on the seed alone."""
    torch.manual_seed(seed)
    model = MaskAutoLabeler(cfg).train()
    model.steps.fill_(10**6)
    with torch.no_grad():
        # Logits on both sides of 0; freshly drawn ones are all but 0.
        model.student.decoder.key[-1].weight *= 30
        if model.teacher is not None:
            model.teacher.load_state_dict(model.student.state_dict())
    if prepare:
        prepare(model)
    with EventStorage():
        found = model(samples() if inputs is None else inputs)
    return {name: loss.item() for name, loss in found.items()}


def forbidden(*args, **kwargs):
    raise AssertionError("this must not run")


@pytest.mark.parametrize(
    ("common", "values"),
    [
        ({}, {"CRF__GUIDANCE": "clean"}),
        ({}, {"CRF__ZETA": 5.0}),
        ({}, {"CRF__OMEGA": 0.01}),
        ({}, {"CRF__ITERATIONS": 0}),
        # So wide that noise has neighbours to hear.
        ({"CRF__ZETA": 0.6}, {"CRF__KERNEL_SIZE": 5}),
        ({"CRF__ZETA": 0.6}, {"CRF__UNARY": 5.0}),
        ({}, ALONE),
    ],
)
def test_keys_of_the_mean_field_change_its_target_alone(common, values, cfg):
    base = losses_of(changed(cfg, **common))
    other = losses_of(changed(cfg, **{**common, **values}))
    assert base.keys() == other.keys()
    assert base["loss_mil"] == other["loss_mil"]
    assert base["loss_crf"] != other["loss_crf"]


def test_clean_guidance_is_the_view_of_the_teacher(cfg):
    swapped = [{**s, "student_view": s["teacher_view"]} for s in samples()]
    alike = {
        losses_of(changed(cfg, CRF__GUIDANCE=g), inputs=swapped)["loss_crf"]
        for g in ("student", "clean")
    }
    assert len(alike) == 1


def test_without_its_weight_neither_mean_field_nor_teacher_runs(cfg, monkeypatch):
    base = losses_of(cfg)
    monkeypatch.setattr(mal.mask_auto_labeler, "mean_field", forbidden)
    monkeypatch.setattr(mal.mask_auto_labeler, "mean_field_kernel", forbidden)

    def no_teacher(model):
        model.teacher.forward = forbidden

    found = losses_of(changed(cfg, CRF_WEIGHT=0.0), prepare=no_teacher)
    assert found == {"loss_mil": base["loss_mil"]}
    with pytest.raises(AssertionError, match="must not run"):
        losses_of(cfg)


def test_without_a_teacher_there_is_no_second_network(cfg, model):
    alone = MaskAutoLabeler(changed(cfg, **ALONE))
    assert list(alone.networks) == ["student"]
    assert {key for key in alone.state_dict() if not key.startswith("student.")} == {"steps"}
    students = sum(p.numel() for p in model.student.parameters())
    assert sum(p.numel() for p in alone.parameters()) == students
    alone.train().update_teacher()
    assert int(alone.steps) == 1
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)
    out = alone.eval()([{"image": image, "boxes": np.array([[5.0, 5, 30, 40]])}])[0]
    assert list(out) == ["student"]


def test_without_a_teacher_the_student_stands_for_it(cfg):
    """Equal weights and equal views: the average of two equal masks."""
    alike = [{**s, "teacher_view": s["student_view"]} for s in samples()]
    alone = losses_of(changed(cfg, **ALONE), inputs=alike)
    assert alone == pytest.approx(losses_of(cfg, inputs=alike), rel=1e-6)


def test_human_masks_replace_both_losses_and_the_teacher_only_follows(cfg, monkeypatch):
    monkeypatch.setattr(mal.mask_auto_labeler, "mean_field", forbidden)
    monkeypatch.setattr(mal.mask_auto_labeler, "mil_loss", forbidden)

    def no_teacher(model):
        model.teacher.forward = forbidden

    found = losses_of(changed(cfg, SUPERVISION="mask"), prepare=no_teacher)
    torch.manual_seed(0)
    model = MaskAutoLabeler(cfg).train()
    model.student.decoder.key[-1].weight.data *= 30
    inputs = samples()
    views = model.normalize(torch.stack([s["student_view"] for s in inputs]))
    areas = torch.tensor([s["box_area"] for s in inputs])
    logits = model.student(views, areas).detach()
    # The outline lies on even pixels, so that the map of half the side has no fraction.
    target = torch.stack([s["true_mask"][::2, ::2] for s in inputs]).float()
    p = logits.sigmoid()
    entropy = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    overlap = (p * target).sum((1, 2))
    masses = (p**2).sum((1, 2)) + (target**2).sum((1, 2)) + 0.002
    expected = {"loss_dice": (1 - 2 * overlap / masses).mean(), "loss_bce": entropy}
    assert found == pytest.approx({k: v.item() for k, v in expected.items()}, rel=1e-4)
    before = model.teacher.decoder.key[0].weight.clone()
    with torch.no_grad():
        model.student.decoder.key[0].weight += 1
    model.update_teacher()
    assert not torch.equal(before, model.teacher.decoder.key[0].weight)


@pytest.mark.parametrize("supervision", ["box", "mask"])
def test_losses_keep_full_precision_under_autocast(supervision, cfg):
    torch.manual_seed(0)
    model = MaskAutoLabeler(changed(cfg, SUPERVISION=supervision)).train()
    model.steps.fill_(10**6)
    seen = {}
    linear = model.student.decoder.key[0]
    linear.register_forward_hook(lambda module, given, out: seen.update(dtype=out.dtype))
    with EventStorage(), torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(samples())
    assert seen == {"dtype": torch.bfloat16}
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    grads = [p.grad for p in model.student.parameters() if p.grad is not None]
    assert grads
    assert all(grad.isfinite().all() for grad in grads)


def test_target_under_autocast_is_that_of_full_precision(cfg, monkeypatch):
    """The mean field and what leads to it see float32 alone, whatever runs the networks."""
    seen = []
    original = mal.mask_auto_labeler.mean_field

    def watched(start, box, kernel, **options):
        seen.append({start.dtype, box.dtype, kernel.dtype})
        return original(start, box, kernel, **options)

    monkeypatch.setattr(mal.mask_auto_labeler, "mean_field", watched)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses_of(cfg)
    assert seen == [{torch.float32}]


def test_classes_reach_a_class_aware_decoder(cfg):
    aware = changed(cfg, DECODER__NUM_CLASSES=2)
    swapped = [{**s, "category": 1 - s["category"]} for s in samples()]

    def losses(inputs):
        torch.manual_seed(0)
        model = MaskAutoLabeler(aware).train()
        model.steps.fill_(10**6)
        with EventStorage():
            return {name: loss.item() for name, loss in model(inputs).items()}

    assert losses(samples()) != losses(swapped)
    model = MaskAutoLabeler(aware).eval()
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)
    boxes = np.array([[5, 5, 30, 40], [20, 10, 60, 45]], float)
    with pytest.raises(ValueError, match="class"):
        model.predict(image, boxes)
    with torch.no_grad():
        model.student.decoder.key[-1].weight *= 1000
    both = [
        model([{"image": image, "boxes": boxes, "classes": np.array(c)}])[0]
        for c in ([0, 1], [1, 1])
    ]
    assert both[0]["student"][1] == both[1]["student"][1]
    assert both[0]["student"][0] != both[1]["student"][0]
