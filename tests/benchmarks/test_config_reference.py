"""The committed page is what the sources say, and no key is without a word."""

import config_reference

SOURCE = """
def add(cfg):
    node = cfg.A = Node()
    # What B is,
    # in two lines.
    node.B = 1
    node.C = (2, "x|y")

    node.D = 3  # beside
    # A note that no key follows.

    # Own text.
    node.E = 4
    other.F = 5
"""


def test_the_committed_page_is_up_to_date():
    remedy = "run python benchmarks/config_reference.py and commit docs/config_mal.md"
    assert config_reference.PAGE.read_text(encoding="utf-8") == config_reference.page(), remedy


def test_every_key_of_the_configs_is_on_the_page_with_a_text():
    text = config_reference.page()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert not [row for row in rows if row.endswith("|  |")]
    for key in ("MODEL.MAL.CRF.ZETA", "MODEL.MAL.TEST.NETWORK", "SOLVER.LR_PER_SAMPLE", "SEED"):
        assert sum(row.startswith(f"| `{key}` |") for row in rows) == 1
    names = [row.split("`")[1] for row in rows]
    assert len(names) == len(set(names))


def test_comments_belong_to_the_keys_below_them():
    defaults = {"X.B": 1, "X.C": (2, "x|y"), "X.D": 3, "X.E": 4}
    section = config_reference.section("T", SOURCE, {"node": "X"}, defaults)
    assert section.splitlines()[4:] == [
        "| `X.B` | `1` | What B is, in two lines. |",
        "| `X.C` | `(2, 'x\\|y')` | as above |",
        "| `X.D` | `3` |  |",  # a gap ends what a comment says
        "| `X.E` | `4` | Own text. |",
    ]
