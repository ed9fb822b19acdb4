"""How much of its box a mask fills, and when that is a warning."""

import logging

import pytest
import torch

from mal.fill_monitor import FillMonitor, box_fill


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (0.97, "collapsing to the filled box"),
        (0.03, "collapsing to nothing"),
        (0.70, None),  # healthy
        (0.90, None),  # the limit itself
    ],
)
def test_monitor_warns_of_a_collapse(fill, message, caplog):
    monitor = FillMonitor("predicted mask", patience=20)
    for _ in range(60):
        monitor.update(fill)
    texts = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    if message is None:
        assert texts == []
    else:
        assert len(texts) == 3  # once per patience, not once per step
        assert all(message in text for text in texts)
        # BASE_LR says nothing where the other one is set.
        assert all("SOLVER.LR_PER_SAMPLE" in text and "SOLVER.BASE_LR" in text for text in texts)


def test_box_fill_counts_inside_the_box_only():
    box = torch.zeros(1, 4, 4)
    box[:, :2] = 1
    mask = torch.zeros(1, 4, 4)
    mask[:, :, :2] = 1  # half of the box, and as much outside
    assert box_fill(mask, box).tolist() == [0.5]
