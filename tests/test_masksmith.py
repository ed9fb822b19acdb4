"""The one list of methods: nothing that registers itself is missing, and no key is set twice."""

import ast
from importlib import import_module
from pathlib import Path

from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY

from masksmith import CONFIG_KEYS, MODULES, new_config, register_methods
from pseudolabel.config_diff import flat_keys
from pseudolabel.pipeline import PIPELINES

ROOT = Path(__file__).parents[1]
PACKAGES = {"mal": "mal", "pais": "pais", "projects": "masksmith_projects"}
# What a YAML names; what the models are made of is imported by them.
REGISTRIES = {"META_ARCH_REGISTRY", "PIPELINES"}


def registering_modules():
    """Dotted names of the modules with a class that is decorated by one of the registries."""
    for folder, package in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
            marks = [ast.unparse(mark) for node in classes for mark in node.decorator_list]
            if any(mark.partition(".")[0] in REGISTRIES for mark in marks):
                parts = path.relative_to(ROOT / folder).with_suffix("").parts
                yield ".".join((package, *parts))


def test_every_module_that_registers_something_is_listed():
    found = set(registering_modules())
    assert "mal.data" in found
    assert found == set(MODULES)


def test_registering_makes_the_names_known():
    register_methods()
    register_methods()
    for name in ("MaskAutoLabeler", "SemiSupervisedRCNN", "Mask2Former", "GeneralizedRCNN"):
        assert name in META_ARCH_REGISTRY
    for name in ("BoxCropPipeline", "SemiSupervisedPipeline", "Mask2FormerPipeline"):
        assert name in PIPELINES


def test_no_method_changes_a_key_of_another():
    cfg = get_cfg()
    CONFIG_KEYS[0](cfg)  # the shared keys, which change defaults of Detectron2
    before = flat_keys(cfg)
    for add_keys in CONFIG_KEYS[1:]:
        add_keys(cfg)
        after = flat_keys(cfg)
        assert len(after) > len(before), add_keys
        assert {key: after[key] for key in before} == before, add_keys
        before = after
    assert flat_keys(new_config()) == before


def test_all_modules_with_keys_are_asked():
    """Every `add_..._config` of a method's config module."""
    stated = {(keys.__module__, keys.__name__) for keys in CONFIG_KEYS}
    for folder, package in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("config.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            module = import_module(".".join((package, *parts)))
            for name in vars(module):
                if name.startswith("add_") and name.endswith("_config"):
                    assert (module.__name__, name) in stated
