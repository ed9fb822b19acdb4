"""The weighted criterion: the library's own bit for bit with weights 1, and what weights do."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from masksmith_projects.mask2former.criterion import at_points, build_criterion, dice

CLASSES = 3
QUERIES = 5


def config(**changes):
    from transformers import Mask2FormerConfig

    values = {"num_labels": CLASSES, "train_num_points": 40, "class_weight": 1.7}
    return Mask2FormerConfig(**{**values, **changes})


def predictions(images, seed=0, layers=3):
    """Per layer a dict of logits that gradients are taken of."""
    generator = torch.Generator().manual_seed(seed)

    def logits(*shape):
        return torch.randn(*shape, generator=generator).mul(3).requires_grad_()

    return [
        {
            "masks_queries_logits": logits(images, QUERIES, 8, 10),
            "class_queries_logits": logits(images, QUERIES, CLASSES + 1),
        }
        for _ in range(layers)
    ]


def truth(counts, seed=1):
    generator = torch.Generator().manual_seed(seed)
    masks = [(torch.rand(n, 32, 40, generator=generator) > 0.6).float() for n in counts]
    classes = [torch.randint(CLASSES, (n,), generator=generator) for n in counts]
    return {"mask_labels": masks, "class_labels": classes}


def run(criterion, layers, labels, seed=7, **weights):
    """Losses, and the gradients of their sum at all logits."""
    torch.manual_seed(seed)
    losses = criterion(**layers[-1], **labels, auxiliary_predictions=layers[:-1], **weights)
    leaves = [value for layer in layers for value in layer.values()]
    gradients = torch.autograd.grad(sum(losses.values()), leaves, allow_unused=True)
    return losses, [
        torch.zeros_like(leaf) if g is None else g for g, leaf in zip(gradients, leaves)
    ]


def ones(counts):
    return {
        "instance_weights": [torch.ones(n) for n in counts],
        "image_weights": torch.ones(len(counts)),
    }


@pytest.mark.parametrize("weighted", [True, False], ids=["ones", "none"])
@pytest.mark.parametrize(
    "counts",
    [
        (2, 3),
        (0, 3),  # an empty image
        (0, 0),  # nothing at all
        (1,),
        (QUERIES + 4, 1),  # more instances than queries
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_with_weights_one_it_is_the_library_bit_for_bit(counts, weighted, seed):
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

    labels = truth(counts, seed)
    ours = build_criterion(config())
    theirs = Mask2FormerLoss(config(), ours.weight_dict)
    expected, expected_gradients = run(theirs, predictions(len(counts), seed), labels)
    weights = ones(counts) if weighted else {}
    found, gradients = run(ours, predictions(len(counts), seed), labels, **weights)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    for one, other in zip(gradients, expected_gradients, strict=True):
        assert torch.equal(one, other)


def test_losses_and_gradients_equal_a_naive_twin_for_any_weights(monkeypatch):
    counts = (2, 0, 3)
    labels, layers = truth(counts), predictions(3)
    criterion = build_criterion(config())
    image = torch.tensor([0.5, 2.0, 0.0])
    instance = [torch.tensor([0.3, 1.5]), torch.zeros(0), torch.tensor([1.0, 0.0, 0.7])]
    drawn, matched = [], []
    draw, match = criterion.sample_points_using_uncertainty, criterion.matcher.forward

    def remember(kind, function):
        def call(*args, **kwargs):
            kind.append(function(*args, **kwargs))
            return kind[-1]

        return call

    monkeypatch.setattr(criterion, "sample_points_using_uncertainty", remember(drawn, draw))
    monkeypatch.setattr(criterion.matcher, "forward", remember(matched, match))
    losses, gradients = run(
        criterion, layers, labels, instance_weights=instance, image_weights=image
    )
    twin = {}
    order = [layers[-1], *layers[:-1]]
    for index, (layer, points, matches) in enumerate(zip(order, drawn, matched, strict=True)):
        suffix = "" if index == 0 else f"_{index - 1}"
        twin |= naive(layer, points, matches, labels, instance, image, suffix)
    for name, value in losses.items():
        assert_close(value, twin[name], msg=name)
    leaves = [value for layer in layers for value in layer.values()]
    for one, other in zip(gradients, torch.autograd.grad(sum(twin.values()), leaves)):
        assert_close(one, other)


def naive(layer, points, matches, labels, instance, image, suffix):
    """One pair and one query after the other, by the formulas."""
    mask = soft = entropy = 0.0
    pair, class_weight_sum = 0, 0.0
    for b, (queries, targets) in enumerate(matches):
        weight = {int(q): instance[b][j] * image[b] for q, j in zip(queries, targets)}
        label = {int(q): int(labels["class_labels"][b][j]) for q, j in zip(queries, targets)}
        for q, j in zip(queries, targets):
            at = points[pair : pair + 1]
            x = at_points(layer["masks_queries_logits"][b, q][None, None], at)[0]
            y = at_points(labels["mask_labels"][b][j][None, None], at)[0]
            p = torch.sigmoid(x)
            bce = -(y * F.logsigmoid(x) + (1 - y) * F.logsigmoid(-x)).sum() / len(x)
            mask = mask + weight[int(q)] * bce
            ratio = (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
            soft = soft + weight[int(q)] * (1 - ratio)
            pair += 1
        for q in range(QUERIES):
            target = label.get(q, CLASSES)
            factor = 0.1 if target == CLASSES else 1.0
            log_p = layer["class_queries_logits"][b, q].log_softmax(0)[target]
            entropy = entropy - factor * weight.get(q, image[b]) * log_p
            class_weight_sum += factor
    terms = {"loss_mask": mask / 5, "loss_dice": soft / 5}  # five instances in the batch
    terms["loss_cross_entropy"] = entropy / class_weight_sum
    return {name + suffix: value for name, value in terms.items()}


def test_an_instance_of_weight_zero_leaves_no_gradient():
    """Not in its mask and not in the class of its query, in every layer."""
    layers, labels, counts = predictions(1), truth((1,)), (1,)
    weights = {"instance_weights": [torch.zeros(1)], "image_weights": torch.ones(1)}
    criterion = build_criterion(config())
    losses, gradients = run(criterion, layers, labels, **weights)
    _, full = run(criterion, layers, labels, **ones(counts))
    assert all(losses[name] == 0 for name in losses if "cross" not in name)
    for mask_gradient, class_gradient, before in zip(gradients[::2], gradients[1::2], full[1::2]):
        assert not mask_gradient.any()
        silent = ~class_gradient[0].any(1)
        assert silent.sum() == 1, "the query that was matched, and no other"
        others = ~silent
        # Nothing is normalised by weights: the other queries learn what they learnt before.
        assert torch.equal(class_gradient[0][others], before[0][others])


def test_an_image_of_weight_zero_leaves_no_gradient_and_the_other_its_own():
    counts = (2, 3)
    layers, labels = predictions(2), truth(counts)
    criterion = build_criterion(config())
    weights = {**ones(counts), "image_weights": torch.tensor([0.0, 1.0])}
    _, gradients = run(criterion, layers, labels, **weights)
    _, full = run(criterion, layers, labels, **ones(counts))
    for gradient, before in zip(gradients, full):
        assert not gradient[0].any()
        assert torch.equal(gradient[1], before[1])
        assert before[0].any()


def test_half_the_weight_on_all_images_is_half_the_loss():
    counts = (2, 3)
    layers, labels = predictions(2), truth(counts)
    criterion = build_criterion(config())
    whole, _ = run(criterion, layers, labels, **ones(counts))
    half, _ = run(
        criterion, layers, labels, **{**ones(counts), "image_weights": torch.full((2,), 0.5)}
    )
    for name, value in whole.items():
        assert torch.equal(half[name], value / 2), name


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_masks_that_are_not_float_are_refused(dtype):
    labels = truth((1,))
    labels["mask_labels"] = [mask.to(dtype) for mask in labels["mask_labels"]]
    with pytest.raises(TypeError, match=rf"mask_labels are {dtype}; convert them with \.float"):
        run(build_criterion(config()), predictions(1), labels)


def test_dice_of_a_perfect_an_empty_and_an_opposite_mask():
    sure = torch.tensor([[50.0] * 4, [-50.0] * 4, [-50.0] * 4])
    labels = torch.tensor([[1.0] * 4, [0.0] * 4, [1.0] * 4])
    assert_close(dice(sure, labels), torch.tensor([0.0, 0.0, 1 - 1 / 5]))
