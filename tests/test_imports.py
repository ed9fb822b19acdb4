"""Who may import what: the seam to detectron2 is thin, and heavy libraries load on demand."""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("mal", "pais", "pseudolabel", "projects", "tools", "benchmarks")

# All that the project uses of Detectron2; both of its builds must provide it.
DETECTRON2 = {
    "detectron2": {""},
    "detectron2.checkpoint": {"DetectionCheckpointer"},
    "detectron2.config": {"CfgNode", "configurable", "get_cfg"},
    "detectron2.data": {
        "DatasetCatalog",
        "DatasetMapper",
        "MetadataCatalog",
        "build_detection_test_loader",
        "detection_utils",
        "get_detection_dataset_dicts",
        "transforms",
    },
    "detectron2.data.datasets": {"register_coco_instances"},
    "detectron2.data.samplers": {"InferenceSampler"},
    "detectron2.data.transforms": {"ResizeShortestEdge"},
    "detectron2.engine": {
        "DefaultTrainer",
        "HookBase",
        "SimpleTrainer",
        "default_argument_parser",
        "default_setup",
        "defaults",
        "launch",
    },
    "detectron2.evaluation": {
        "DatasetEvaluator",
        "inference_on_dataset",
        "print_csv_format",
        "verify_results",
    },
    "detectron2.layers": {"ShapeSpec"},
    "detectron2.modeling": {
        "GeneralizedRCNN",
        "META_ARCH_REGISTRY",
        "build_backbone",
        "build_model",
        "detector_postprocess",
    },
    "detectron2.modeling.roi_heads": {
        "FastRCNNOutputLayers",
        "MaskRCNNConvUpsampleHead",
        "ROI_HEADS_REGISTRY",
        "ROI_MASK_HEAD_REGISTRY",
        "StandardROIHeads",
    },
    "detectron2.modeling.roi_heads.mask_head": {"mask_rcnn_inference", "mask_rcnn_loss"},
    "detectron2.solver": {"build_optimizer"},
    "detectron2.solver.build": {"maybe_add_gradient_clipping"},
    "detectron2.structures": {
        "BitMasks",
        "BoxMode",
        "Boxes",
        "ImageList",
        "Instances",
        "PolygonMasks",
    },
    "detectron2.utils": {"comm"},
    "detectron2.utils.events": {"EventStorage", "get_event_storage", "has_event_storage"},
    "detectron2.utils.logger": {"setup_logger"},
}

PLAIN = {
    "mal": "crops decoder decoder_fully_connected decoder_fully_convolutional decoder_product "
    "decoder_query dice encoder encoder_layouts encoder_pyramid encoder_weights fill_monitor "
    "label_refinement mask_supervision mean_field mil pasted_blobs predictor resampling views",
    "pseudolabel": "ap ap_backends checkpoints checks conversion defects ema errors "
    "export.coco export.outlines export.source export.voc export.yolo files "
    "job.buckets job.categories job.dry_run job.durable job.found job.identity job.inputs "
    "job.json_stream job.labelers job.lease job.merge job.stopping "
    "job.options job.plan job.processes job.ray_adapter job.receipt job.run job.shard job.worker "
    "hidden_truth hidden_truth_plot "
    "calibration config_diff quality image_cache image_paths label_job labeler loader mapper "
    "mask_iou masks paired progress rejected "
    "repair repair_actions report.build report.charts report.drawing report.experiment "
    "report.label_file report.markup report.overlays report.queue report.sections "
    "report.statistics report.thresholds report.training retention retention_table review "
    "review_files splits store validation validation_images validation_masks validation_records "
    "validation_report weights yardsticks",
    "pais": "daloss drawing ema loader",
    "projects.mask2former": "criterion ranking targets weights",
}
PLAIN_MODULES = [f"{package}.{name}" for package, names in PLAIN.items() for name in names.split()]

# Slow to import, or not needed by everybody.
ON_DEMAND = {"cv2", "lvis", "matplotlib", "ray", "tensorboard", "timm", "transformers"}


def sources(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(tree, top_level_only=False):
    """(module, name) of every import; name is "" for `import module`."""
    nodes = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((module, alias.name) for alias in node.names)
        functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
        if not (top_level_only and isinstance(node, functions)):
            nodes.extend(ast.iter_child_nodes(node))


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def root_of(module):
    return module.split(".")[0]


def test_sources_are_found():
    assert all(sources(package) for package in PACKAGES)


def test_every_name_taken_from_detectron2_is_listed_and_every_listed_name_is_taken():
    found = defaultdict(set)
    for path in sources(*PACKAGES):
        for module, name in imports(parse(path)):
            if root_of(module) == "detectron2":
                found[module].add(name)
    assert dict(found) == DETECTRON2


@pytest.mark.parametrize("module", PLAIN_MODULES)
def test_plain_modules_do_not_import_detectron2(module):
    path = ROOT / f"{module.replace('.', '/')}.py"
    assert not [m for m, _ in imports(parse(path)) if root_of(m) == "detectron2"]


def test_plain_modules_load_where_detectron2_is_not_installed():
    """Also through what they import in turn."""
    program = "import sys, importlib; sys.modules['detectron2'] = None\n"
    program += f"for name in {PLAIN_MODULES}: importlib.import_module(name)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        # What all share knows no method, and no method the list of them.
        ("pseudolabel", {"mal", "pais", "masksmith_projects", "masksmith"}),
        # Methods meet in the label file only.
        ("mal", {"pais", "masksmith_projects", "masksmith"}),
        ("pais", {"mal", "masksmith_projects", "masksmith"}),
        ("projects", {"mal", "masksmith"}),
    ],
)
def test_packages_do_not_reach_into_each_other(folder, forbidden):
    taken = {
        (path.name, module)
        for path in sources(folder)
        for module, _ in imports(parse(path))
        if root_of(module) in forbidden
    }
    assert not taken


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_libraries_are_imported_where_they_are_used(path):
    taken = {root_of(module) for module, _ in imports(parse(path), top_level_only=True)}
    assert not taken & ON_DEMAND


def test_the_parser_sees_what_the_rules_are_about():
    tree = ast.parse("try:\n  import cv2.x\nexcept E: pass\ndef f():\n  from timm import y")
    assert set(imports(tree)) == {("cv2.x", ""), ("timm", "y")}
    assert set(imports(tree, top_level_only=True)) == {("cv2.x", "")}
