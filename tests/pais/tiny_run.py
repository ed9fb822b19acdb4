"""Tiny runs of PAIS on drawn images: a config of `configs/pais`, shrunk, and its samples."""

import json
import uuid

import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.utils import comm
from torch import nn

import pais.pipeline
import pais.semi_supervised_rcnn  # noqa: F401  (these register pipeline and model)
from pais.config import add_pais_config
from pseudolabel.config import add_masksmith_config
from pseudolabel.ema import unwrap
from pseudolabel.loader import seed_everything
from pseudolabel.registration import register_datasets
from pseudolabel.trainer import Trainer
from tests.tiny import CONFIGS, write_coco

CLASSES = ["left", "right"]


def write_split(folder, images=6, labelled=2):
    """A COCO folder whose first images are labelled: (labelled, unlabelled, whole) JSON files."""
    whole = write_coco(folder, images)
    data = json.loads(whole.read_text())
    paths = [folder / "labelled.json", folder / "unlabelled.json"]
    for path, part in zip(paths, (data["images"][:labelled], data["images"][labelled:])):
        ids = {image["id"] for image in part}
        kept = [a for a in data["annotations"] if a["image_id"] in ids]
        known = {"annotations": kept if path.stem == "labelled" else []}
        path.write_text(json.dumps({**data, "images": part, **known}))
    return *paths, whole


def tiny_config(files, output, *opts, method="pais/sample"):
    """`files` are those of `write_split`; `opts` are KEY VALUE."""
    cfg = get_cfg()
    add_masksmith_config(cfg)
    add_pais_config(cfg)
    cfg.merge_from_file(str(CONFIGS / f"{method}.yaml"))
    names = [f"pais_{uuid.uuid4().hex}" for _ in files]
    cfg.DATASETS.REGISTER = [
        {"name": name, "json": str(path), "image_root": str(path.parent)}
        for name, path in zip(names, files)
    ]
    cfg.DATASETS.TRAIN, cfg.DATASETS.UNLABELLED, cfg.DATASETS.TEST = ((name,) for name in names)
    cfg.OUTPUT_DIR, cfg.MODEL.DEVICE = str(output), "cpu"
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.CHECKPOINT_PERIOD = 20, 4, 10
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 64
    model = cfg.MODEL
    model.FPN.OUT_CHANNELS = 32
    model.RPN.PRE_NMS_TOPK_TRAIN = model.RPN.PRE_NMS_TOPK_TEST = 50
    model.RPN.POST_NMS_TOPK_TRAIN = model.RPN.POST_NMS_TOPK_TEST = 20
    model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    model.ROI_BOX_HEAD.FC_DIM = 32
    model.ROI_BOX_HEAD.CONV_DIM = model.ROI_MASK_HEAD.CONV_DIM = 32
    model.PAIS.MASK_IOU.FC_DIM, model.PAIS.BURN_IN_ITERS = 16, 0
    cfg.merge_from_list(list(opts))
    register_datasets(cfg)
    return cfg


class TinyPyramid(Backbone):
    """Three maps of a convolution each; a ResNet would take seconds on a busy machine."""

    CHANNELS = 16
    STRIDES = (4, 8, 16)

    def __init__(self):
        super().__init__()
        sides = [(3, 4), (self.CHANNELS, 2), (self.CHANNELS, 2)]
        self.stages = nn.ModuleList(nn.Conv2d(n, self.CHANNELS, s, s) for n, s in sides)

    @property
    def size_divisibility(self):
        return max(self.STRIDES)

    def forward(self, x):
        maps = {}
        for level, stage in enumerate(self.stages, start=2):
            x = maps[f"p{level}"] = stage(x).relu()
        return maps

    def output_shape(self):
        levels = enumerate(self.STRIDES, start=2)
        return {f"p{n}": ShapeSpec(channels=self.CHANNELS, stride=stride) for n, stride in levels}


@BACKBONE_REGISTRY.register()
def tiny_pyramid(cfg, input_shape):
    return TinyPyramid()


# Options of a network that is computed in an instant.
PYRAMID = [
    *("MODEL.BACKBONE.NAME", "tiny_pyramid", "MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4"]),
    *("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3"]),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[16], [24], [32]]),
    *("MODEL.ROI_BOX_HEAD.NORM", "", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 4),
    *("MODEL.ROI_MASK_HEAD.NORM", "", "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 7),
    *("MODEL.ROI_BOX_HEAD.CONV_DIM", 8, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
    *("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 1),
    *("MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO", 1),
]


def train_in_this_process(args):
    """One of several processes; all of them must end with the same networks."""
    torch.set_num_threads(1)
    cfg = tiny_config(args.files, args.output, *PYRAMID, *args.opts)
    seed_everything(cfg.SEED)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    state = unwrap(trainer.model).state_dict()
    sums = comm.all_gather({name: value.double().sum().item() for name, value in state.items()})
    assert all(each == sums[0] for each in sums)
    seen = comm.all_gather([s["image_id"] for s in trainer._trainer.data_loader.last_samples])
    assert len(seen) == 2
    assert not set(seen[0]) & set(seen[1])
