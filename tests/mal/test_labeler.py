"""The config with which a MAL checkpoint labels."""

import pytest

from mal.labeler import _config_hash, load_config
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


@pytest.mark.parametrize(
    ("opts", "same"),
    [
        (["MODEL.PIXEL_MEAN", "[1.0, 2.0, 3.0]"], False),  # decides masks, is in no checkpoint
        (["MODEL.PIXEL_STD", "[1.0, 2.0, 3.0]"], False),
        (["MODEL.MAL.TEST_MARGIN", "3.0"], False),
        (["MODEL.MAL.TEST.CALIBRATION", "'x.json'"], True),  # counts by its content
        (["SEED", "5"], True),
    ],
)
def test_hash_of_a_config_is_of_all_that_decides_masks(opts, same, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("VERSION: 2")
    hashes = [_config_hash(load_config(str(path), given)) for given in ([], opts)]
    assert (hashes[0] == hashes[1]) == same
