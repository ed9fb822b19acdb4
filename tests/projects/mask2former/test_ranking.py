"""From queries to ranked instances, against plain loops."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from masksmith_projects.mask2former import ranking
from masksmith_projects.mask2former.ranking import best_pairs, masks_with_quality, rank

whole = ranking._enlarged


@pytest.mark.parametrize("limit", [1, 4, 100])
def test_best_pairs_of_query_and_class_without_no_object(limit):
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    logits[2, 3] += 20  # surely no object
    probs = logits.softmax(1)
    pairs = sorted(((probs[q, k].item(), q, k) for q in range(5) for k in range(3)), reverse=True)
    best, queries, classes = best_pairs(logits, limit)
    assert_close(best, torch.tensor([p for p, _, _ in pairs[:limit]]))
    found = list(zip(queries.tolist(), classes.tolist()))
    assert found == [(q, k) for _, q, k in pairs[:limit]]


def test_masks_are_cut_from_the_padding_and_scaled_to_the_original():
    logits = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(1))
    masks, quality = masks_with_quality(logits, (32, 32), (20, 28), (40, 56))
    for index in range(2):
        large = F.interpolate(logits[index][None, None], (32, 32), mode="bilinear")
        cut = F.interpolate(large[..., :20, :28], (40, 56), mode="bilinear")[0, 0]
        inside = [torch.sigmoid(v).item() for v in cut.flatten() if v > 0]
        assert torch.equal(masks[index], cut > 0)
        assert quality[index].item() == pytest.approx(sum(inside) / len(inside), rel=1e-5)


@pytest.mark.parametrize("chunk", [1, 2 * 40 * 56, 3 * 40 * 56])  # one, two, three masks a time
def test_chunks_of_queries_change_nothing(chunk, monkeypatch):
    logits = torch.randn(5, 8, 8, generator=torch.Generator().manual_seed(1))
    sizes = ((32, 32), (20, 28), (40, 56))
    masks, quality = masks_with_quality(logits, *sizes)
    enlarged = []
    monkeypatch.setattr(ranking, "CHUNK", chunk)
    monkeypatch.setattr(ranking, "_enlarged", lambda *a: enlarged.append(len(a[0])) or whole(*a))
    parts, part_quality = masks_with_quality(logits, *sizes)
    assert max(enlarged) == max(chunk // (40 * 56), 1)
    assert sum(enlarged) == 5
    assert torch.equal(parts, masks)
    assert_close(part_quality, quality)


def test_same_size_is_not_resampled_and_an_empty_mask_has_no_quality():
    logits = torch.stack([torch.full((8, 8), 3.0), torch.full((8, 8), -3.0)])
    masks, quality = masks_with_quality(logits, (32, 32), (32, 32), (32, 32))
    assert masks.flatten(1).sum(1).tolist() == [1024, 0]
    assert_close(quality, torch.tensor([torch.sigmoid(torch.tensor(3.0)).item(), 0.0]))


def test_rank_is_by_probability_times_quality_without_empty_and_undefined():
    masks = torch.ones(5, 2, 2, dtype=torch.bool)
    masks[3] = False
    probs = torch.tensor([0.9, 0.8, 0.7, 0.99, float("nan")])
    quality = torch.tensor([0.5, 0.9, 0.6, 0.0, 0.9])
    scores, order = rank(probs, quality, masks)
    assert order.tolist() == [1, 0, 2]
    assert_close(scores[order], torch.tensor([0.72, 0.45, 0.42]))


def test_nothing_to_rank():
    scores, order = rank(torch.zeros(0), torch.zeros(0), torch.zeros(0, 3, 3, dtype=torch.bool))
    assert len(scores) == len(order) == 0
