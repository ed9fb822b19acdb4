"""The library's network as the config describes it, on its own or on a Detectron2 backbone."""

import logging
from types import SimpleNamespace
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from torch import Tensor, nn

from masksmith_projects.mask2former.config import check_config
from masksmith_projects.mask2former.weights import load_backbone, load_whole
from pseudolabel.errors import DataError

logger = logging.getLogger(__name__)

STRIDES = (4, 8, 16, 32)
STAGES = ["stage1", "stage2", "stage3", "stage4"]


class Detectron2Encoder(nn.Module):
    """A Detectron2 backbone in the place of the library's.

    Args:
        backbone: image batch (B, 3, H, W) -> {name: feature map}.
        names: of its four maps, from stride 4 to 32.
    """

    def __init__(self, backbone: nn.Module, names: tuple[str, ...]):
        super().__init__()
        self.backbone, self.names = backbone, tuple(names)

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        """`feature_maps`: four tensors (B, C_i, H / s_i, W / s_i)."""
        maps = self.backbone(pixel_values)
        return SimpleNamespace(feature_maps=tuple(maps[name] for name in self.names))


def build_network(cfg: CfgNode) -> nn.Module:
    """`Mask2FormerForUniversalSegmentation` with the weights that the config names for its start.

    They are left where they are if `MODEL.WEIGHTS` names a checkpoint, which replaces them all.

    Raises:
        DataError: a key that the library cannot do, weights that do not fit, or no library.
    """
    check_config(cfg)
    try:
        from transformers import Mask2FormerForUniversalSegmentation
    except ImportError as error:
        raise DataError(
            "MODEL.META_ARCHITECTURE",
            f"Mask2Former needs the transformers library ({error})",
            "pip install 'masksmith[hf]'",
        ) from error
    options = cfg.MODEL.MASK_FORMER
    if options.BACKBONE == "detectron2":
        return _on_detectron2_backbone(cfg)
    network = Mask2FormerForUniversalSegmentation(library_config(cfg, _backbone_config(options)))
    encoder = network.model.pixel_level_module.encoder
    start = options.PRETRAINED or options.BACKBONE_WEIGHTS
    if start and cfg.MODEL.WEIGHTS:
        # An evaluation needs neither their folder nor the internet.
        logger.warning("%s is not loaded, since MODEL.WEIGHTS takes its place", start)
    elif options.PRETRAINED:
        load_whole(network, start)
    elif options.BACKBONE_WEIGHTS:
        load_backbone(encoder, start)
    if options.BACKBONE == "swin":
        # Behind the last feature map, so that no gradient ever reaches it, which several
        # processes would wait for.
        encoder.swin.layernorm.requires_grad_(False)
    return network


def library_config(cfg: CfgNode, backbone: Any) -> Any:
    """`transformers.Mask2FormerConfig` with the keys of `MODEL.MASK_FORMER`."""
    from transformers import Mask2FormerConfig

    options = cfg.MODEL.MASK_FORMER
    return Mask2FormerConfig(
        backbone_config=backbone,
        num_labels=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        feature_size=options.CONVS_DIM,
        mask_feature_size=options.MASK_DIM,
        encoder_layers=options.TRANSFORMER_ENC_LAYERS,
        encoder_feedforward_dim=options.ENC_DIM_FEEDFORWARD,
        hidden_dim=options.HIDDEN_DIM,
        num_queries=options.NUM_OBJECT_QUERIES,
        decoder_layers=options.DEC_LAYERS,
        num_attention_heads=options.NHEADS,
        dim_feedforward=options.DIM_FEEDFORWARD,
        pre_norm=options.PRE_NORM,
        enforce_input_projection=options.ENFORCE_INPUT_PROJ,
        class_weight=options.CLASS_WEIGHT,
        mask_weight=options.MASK_WEIGHT,
        dice_weight=options.DICE_WEIGHT,
        no_object_weight=options.NO_OBJECT_WEIGHT,
        train_num_points=options.TRAIN_NUM_POINTS,
        oversample_ratio=options.OVERSAMPLE_RATIO,
        importance_sample_ratio=options.IMPORTANCE_SAMPLE_RATIO,
        # Off, the library's own forward crashes; whether the losses use them is decided here.
        use_auxiliary_loss=True,
    )


def _backbone_config(options: CfgNode) -> Any:
    from transformers import ResNetConfig, SwinConfig

    if options.BACKBONE == "swin":
        return SwinConfig(
            embed_dim=options.SWIN.EMBED_DIM,
            depths=list(options.SWIN.DEPTHS),
            num_heads=list(options.SWIN.NUM_HEADS),
            window_size=options.SWIN.WINDOW_SIZE,
            drop_path_rate=options.SWIN.DROP_PATH_RATE,
            out_features=STAGES,
        )
    return ResNetConfig(
        embedding_size=options.RESNET.STEM_DIM,
        hidden_sizes=list(options.RESNET.WIDTHS),
        depths=list(options.RESNET.DEPTHS),
        layer_type=options.RESNET.BLOCK,
        out_features=STAGES,
    )


def _on_detectron2_backbone(cfg: CfgNode) -> nn.Module:
    from transformers import Mask2FormerForUniversalSegmentation, ResNetConfig

    options = cfg.MODEL.MASK_FORMER
    for key in ("PRETRAINED", "BACKBONE_WEIGHTS"):
        if options[key]:
            raise DataError(
                f"MODEL.MASK_FORMER.{key}",
                "is for the library's backbones, but BACKBONE is 'detectron2'",
                "give Detectron2's weights in MODEL.WEIGHTS, or choose BACKBONE 'swin' or 'resnet'",
            )
    backbone = build_backbone(cfg)
    shapes = backbone.output_shape()
    names = tuple(options.IN_FEATURES)
    found = {name: shape.stride for name, shape in shapes.items()}
    if tuple(found.get(name) for name in names) != STRIDES:
        raise DataError(
            "MODEL.MASK_FORMER.IN_FEATURES",
            f"{names} must be maps of stride {STRIDES}; the backbone has (name: stride) {found}",
            "name four of them, or let MODEL.RESNETS.OUT_FEATURES give them",
        )
    # A stand-in of one layer per stage tells the library the channels; then it is replaced.
    channels = [shapes[name].channels for name in names]
    stand_in = ResNetConfig(
        embedding_size=8,
        hidden_sizes=channels,
        depths=[1] * 4,
        layer_type="bottleneck",
        out_features=STAGES,
    )
    network = Mask2FormerForUniversalSegmentation(library_config(cfg, stand_in))
    network.model.pixel_level_module.encoder = Detectron2Encoder(backbone, names)
    return network
