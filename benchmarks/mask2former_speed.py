#!/usr/bin/env python3
"""Prints the time of a Mask2Former training step over that of the bare library's, same batch.

    python benchmarks/mask2former_speed.py

Ours goes from a batch of the loader (uint8 images, `Instances` with bitmasks) to gradients; the
library's own model gets the padded, normalised pixels and float masks ready-made. Both have the
same weights and draw the same points, and must come to the same loss. They take turns on one
thread, in CPU time.
"""

import argparse
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from speed import Ratio, compare, show

from masksmith import new_config, register_methods
from masksmith_projects.mask2former.weights import to_library

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "projects/mask2former/configs/sample.yaml"
CLASSES = 6


def read_config(path: Path) -> CfgNode:
    """A config of Mask2Former with a class count, on the CPU."""
    register_methods()
    cfg = new_config()
    cfg.merge_from_file(str(path))
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = CLASSES
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def made_up_batch(images: int, side: int, instances: int) -> list[dict]:
    """Noise with rectangles as instances."""
    generator = torch.Generator().manual_seed(0)
    batch = []
    for _ in range(images):
        masks = torch.zeros(instances, side, side, dtype=torch.bool)
        corners = torch.randint(side // 2, (instances, 2), generator=generator).tolist()
        for mask, (y, x) in zip(masks, corners):
            mask[y : y + side // 4, x : x + side // 3] = True
        truth = Instances((side, side))
        truth.gt_classes = torch.randint(CLASSES, (instances,), generator=generator)
        truth.gt_masks = BitMasks(masks)
        pixels = torch.randint(256, (3, side, side), generator=generator, dtype=torch.uint8)
        batch.append({"image": pixels, "instances": truth})
    return batch


def step_ratio(batch: list[dict], repeats: int) -> Ratio:
    """Our step / the library's.

    Raises:
        AssertionError: their losses differ.
    """
    torch.manual_seed(0)
    ours = build_model(read_config(CONFIG)).train()
    library = to_library(ours).train()
    pixels = torch.stack([(x["image"] - ours.pixel_mean) / ours.pixel_std for x in batch])
    masks = [x["instances"].gt_masks.tensor.float() for x in batch]
    classes = [x["instances"].gt_classes for x in batch]

    def our_step() -> float:
        torch.manual_seed(1)
        ours.zero_grad()
        loss = sum(ours(batch).values())
        loss.backward()
        return loss.item()

    def library_step() -> float:
        torch.manual_seed(1)
        library.zero_grad()
        loss = library(pixel_values=pixels, mask_labels=masks, class_labels=classes).loss
        loss.backward()
        return loss.item()

    assert our_step() == library_step(), "the two must compute the same"
    return compare(our_step, library_step, repeats)


def main(argv: list[str] | None = None) -> None:
    """Prints one line per batch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15, help="timed pairs (%(default)s)")
    repeats = parser.parse_args(argv).repeats
    torch.set_num_threads(1)
    for images, side, instances in ((4, 192, 8), (2, 256, 40)):
        name = f"Mask2Former step, {images} images of {side} px, {instances} instances each"
        show(f"{name}: ours / library", step_ratio(made_up_batch(images, side, instances), repeats))


if __name__ == "__main__":
    main()
