"""The default config, YAML inheritance and `configurable`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode, configurable, get_cfg, global_cfg, set_global_cfg
from detectron2.utils.env import NotInLiteError


def _flatten(node: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def test_defaults_are_upstreams(golden_dir: Path) -> None:
    want = json.loads((golden_dir / "config_defaults_in_scope.json").read_text(encoding="utf-8"))
    have = _flatten(get_cfg())
    assert len(want) == 160
    # Through JSON, which knows no tuples.
    assert {key: json.loads(json.dumps(have[key])) for key in want} == want


def test_groups_out_of_scope_are_declared() -> None:
    extra = ("MODEL.ROI_KEYPOINT_HEAD.", "MODEL.PANOPTIC_FPN.", "MODEL.RETINANET.")
    keys = _flatten(get_cfg())
    assert [sum(key.startswith(group) for key in keys) for group in extra] == [9, 5, 15]


def test_get_cfg_is_fresh() -> None:
    cfg = get_cfg()
    cfg.MODEL.RPN.IN_FEATURES.append("p2")
    cfg.SEED = 7
    assert get_cfg().SEED == -1
    assert get_cfg().MODEL.RPN.IN_FEATURES == ["res4"]


def test_base_files_and_round_trip(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("SEED: 3\nSOLVER: {STEPS: [5, 6], MAX_ITER: 9}\n")
    (tmp_path / "sub").mkdir()
    child = tmp_path / "sub" / "child.yaml"
    child.write_text('_BASE_: "../base.yaml"\nSOLVER: {MAX_ITER: 11}\n')
    cfg = get_cfg()
    cfg.merge_from_file(str(child))
    assert (cfg.SEED, cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER) == (3, (5, 6), 11)
    dumped = tmp_path / "dump.yaml"
    dumped.write_text(cfg.dump())
    again = get_cfg()
    again.merge_from_file(str(dumped), allow_unsafe=False)
    # Compared through JSON: YAML knows no tuples, and inner ones come back as lists.
    assert json.dumps(_flatten(again)) == json.dumps(_flatten(cfg))


BAD_FILES = {
    "unknown key": ("SOLVER: {NO_SUCH_KEY: 1}", KeyError, "NO_SUCH_KEY"),
    "wrong type": ("SEED: [1, 2]", ValueError, "SEED"),
    "old format": ("VERSION: 1", NotInLiteError, "VERSION 1"),
    "format of the future": ("VERSION: 99", ValueError, "newer"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(name: str, tmp_path: Path) -> None:
    text, error, hint = BAD_FILES[name]
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(error, match=hint):
        get_cfg().merge_from_file(str(path))


def test_missing_file_and_unsafe_tag(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.yaml"):
        get_cfg().merge_from_file(str(tmp_path / "nothing.yaml"))
    path = tmp_path / "tag.yaml"
    path.write_text('SEED: !!python/object/apply:eval ["1 + 1"]')
    with pytest.raises(Exception, match="could not determine a constructor"):
        get_cfg().merge_from_file(str(path), allow_unsafe=False)


def test_frozen_and_computed_keys() -> None:
    cfg = get_cfg()
    cfg.freeze()
    with pytest.raises(AttributeError):
        cfg.SEED = 1
    cfg.COMPUTED_SCALE = 2
    with pytest.raises(KeyError):
        cfg.COMPUTED_SCALE = 3
    assert cfg.COMPUTED_SCALE == 2


def test_global_cfg() -> None:
    cfg = get_cfg()
    cfg.SEED = 12
    try:
        set_global_cfg(cfg)
        assert global_cfg.SEED == 12
    finally:
        set_global_cfg(CfgNode())


class Plain:
    """`from_config` takes one argument of its own."""

    @configurable
    def __init__(self, one: int, two: int = 2, *, three: int = 3) -> None:
        """Docs."""
        self.values = (one, two, three)

    @classmethod
    def from_config(cls, cfg: CfgNode, three: int = 30) -> dict:
        return {"one": cfg.A, "two": cfg.B, "three": three + 1}


class Child(Plain):
    """A subclass in the undecorated style."""

    @classmethod
    def from_config(cls, cfg: CfgNode, **kwargs: Any) -> dict:
        return {**super().from_config(cfg), "one": kwargs.get("one", 0) + 1000}


class WithSuper(Plain):
    """A subclass in the decorated style, with an argument more."""

    @configurable
    def __init__(self, *, four: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.four = four

    @classmethod
    def from_config(cls, cfg: CfgNode, three: int = 0) -> dict:
        return {**super().from_config(cfg, three), "four": 4}


@configurable(from_config=lambda cfg, one: {"one": one, "two": cfg.B})
def _add(one: int, two: int, three: int = 0) -> tuple[int, int, int]:
    return one, two, three


CFG = CfgNode({"A": 10, "B": 20})
CALLS: dict[str, tuple[Callable[[], tuple], tuple]] = {
    "no config": (lambda: Plain(1, three=5).values, (1, 2, 5)),
    "positional config": (lambda: Plain(CFG).values, (10, 20, 31)),
    "config by keyword": (lambda: Plain(cfg=CFG).values, (10, 20, 31)),
    # `three` is from_config's own argument; it does not override.
    "argument of from_config": (lambda: Plain(CFG, three=7).values, (10, 20, 8)),
    "second positional goes to from_config": (lambda: Plain(CFG, 7).values, (10, 20, 8)),
    "override of the result": (lambda: Plain(CFG, two=9).values, (10, 9, 31)),
    "from_config takes any keyword": (lambda: Child(CFG, one=5).values, (1005, 20, 31)),
    "decorated subclass": (lambda: WithSuper(CFG, three=1).values, (10, 20, 2)),
    "function, no config": (lambda: _add(1, 2), (1, 2, 0)),
    "function, config": (lambda: _add(CFG, one=1, three=3), (1, 20, 3)),
}


@pytest.mark.parametrize("name", CALLS)
def test_configurable(name: str) -> None:
    call, want = CALLS[name]
    assert call() == want


class _NoFromConfig:
    @configurable
    def __init__(self, a: int = 1) -> None: ...


class _NotAClassmethod:
    @configurable
    def __init__(self, a: int = 1) -> None: ...

    def from_config(self, cfg: CfgNode) -> dict:
        return {}


class _WrongName:
    @configurable
    def __init__(self, a: int = 1) -> None: ...

    @classmethod
    def from_config(cls, config: CfgNode) -> dict:
        return {}


BAD_CALLS: dict[str, tuple[Callable[[], Any], type[Exception]]] = {
    # Reported even when no config is used, so that the mistake shows at once.
    "no from_config": (lambda: _NoFromConfig(a=1), AttributeError),
    "not a classmethod": (lambda: _NotAClassmethod(a=1), TypeError),
    "first argument not cfg": (lambda: _WrongName(CFG), TypeError),
    "too many positionals": (lambda: Plain(CFG, 1, 2), TypeError),
    "unknown keyword": (lambda: Plain(CFG, nine=1), TypeError),
    "not on an __init__": (lambda: configurable(_flatten), TypeError),
    "from_config of a function": (lambda: configurable(from_config=3), TypeError),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_configurable_errors(name: str) -> None:
    call, error = BAD_CALLS[name]
    with pytest.raises(error):
        call()


def test_configurable_keeps_names() -> None:
    assert Plain.__init__.__doc__ == "Docs."
    assert Plain.__init__.__annotations__["one"] is int
    assert _add.__name__ == "_add"
    assert _add.from_config(CFG, one=3) == {"one": 3, "two": 20}


def test_missing_names_point_to_upstream() -> None:
    with pytest.raises(ImportError, match=r"LazyConfig.*[Uu]pstream"):
        from detectron2.config import LazyConfig  # noqa: F401
    with pytest.raises(NotImplementedError, match="get_config"):
        __import__("detectron2.model_zoo", fromlist=["get_config"]).get_config("x")
    with pytest.raises(AttributeError):
        __import__("detectron2.config", fromlist=["x"]).no_such_name  # noqa: B018
