"""The config with which a MAL checkpoint labels."""

import pytest

from mal.labeler import load_config
from pseudolabel.errors import DataError


@pytest.mark.parametrize(
    "text",
    [
        "MODEL: {OTHER_METHOD: {WIDTH: 3}, MAL: {MAP_SIZE: 64}}",  # a section of its own
        "INPUT: {OTHER_METHOD: {WIDTH: 3}}\nMODEL: {MAL: {MAP_SIZE: 64}}",  # in a shared section
        "OTHER_METHOD: 3\nMODEL: {MAL: {MAP_SIZE: 64}}",
    ],
)
def test_keys_of_other_methods_do_not_matter(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    cfg = load_config(str(tmp_path / "config.yaml"), [])
    assert cfg.MODEL.MAL.MAP_SIZE == 64


@pytest.mark.parametrize(
    ("text", "opts", "message"),
    [
        ("MODEL: {MAL: {MAP_SIDE: 64}}", [], "MODEL.MAL.MAP_SIDE"),
        ("MODEL: {MAL: {DECODER: {NAMES: query}}}", [], "MODEL.MAL.DECODER.NAMES"),
        ("MODEL: {MAL: {MAP_SIZE: large}}", [], "MODEL.MAL.MAP_SIZE"),
        ("MODEL: 3", [], "cannot be used as a config of MAL"),
        ("VERSION: 2", ["MODEL.MALL.MAP_SIZE", "64"], "MODEL.MALL.MAP_SIZE"),
        ("VERSION: 2", ["INPUT.NEW", "64"], "INPUT.NEW"),
    ],
)
def test_mistaken_keys_and_values_are_refused(tmp_path, text, opts, message):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        load_config(str(tmp_path / "config.yaml"), opts)
