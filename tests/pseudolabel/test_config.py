"""Shared config keys: what changed between two runs, and old files that stay readable."""

from detectron2.config import get_cfg

from pseudolabel.config import add_masksmith_config, config_changes


def config(*opts):
    cfg = get_cfg()
    add_masksmith_config(cfg)
    cfg.merge_from_list(list(opts))
    return cfg


def test_changes_are_listed_by_dotted_name_with_both_values():
    old = config()
    new = config("SOLVER.BASE_LR", 0.5, "DATASETS.TRAIN", ("other",), "SEED", 7)
    new.MODEL.EXTRA = 1
    assert config_changes(old.dump(), new.dump()) == [
        "DATASETS.TRAIN: [] -> ['other']",
        "MODEL.EXTRA: (absent) -> 1",
        "SEED: 0 -> 7",
        f"SOLVER.BASE_LR: {old.SOLVER.BASE_LR} -> 0.5",
    ]


def test_a_config_equals_its_own_dump():
    one = {"name": "a", "json": "a.json", "image_root": "."}
    cfg = config("DATASETS.REGISTER", [one], "DATASETS.TRAIN", ("a",))
    assert config_changes(cfg.dump(), cfg.dump()) == []
