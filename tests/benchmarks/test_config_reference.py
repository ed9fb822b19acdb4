"""The committed page is what the sources say, and no key is without a word."""

import config_reference
import pytest
from detectron2.config import get_cfg

from masksmith import new_config
from pseudolabel.config_diff import flat_keys

SOURCE = '''
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


def _more(node):
    """What more
    there is.

    Not this.
    """
    # What a node is about.
    node.G = Node()
    node.G.H = 6
    node.G.I = 7  # or 8
'''


# Some of the keys that must be on each page.
KEYS = {
    "config_mal.md": "MODEL.MAL.CRF.ZETA MODEL.MAL.TEST.NETWORK SOLVER.LR_PER_SAMPLE SEED",
    "config_pais.md": "DATASETS.UNLABELLED MODEL.PAIS.EMA.START MODEL.PAIS.VIEWS.ERASE_SIDE",
    "config_mask2former.md": "INPUT.LSJ.SIZE MODEL.MASK_FORMER.SWIN.DEPTHS "
    "MODEL.MASK_FORMER.RESNET.BLOCK",
}
each_page = pytest.mark.parametrize("page", config_reference.PAGES, ids=lambda page: page.file)


def rows_of(page):
    return [x for x in config_reference.markdown(page).splitlines() if x.startswith("| `")]


@each_page
def test_the_committed_page_is_up_to_date(page):
    remedy = f"run python benchmarks/config_reference.py and commit docs/{page.file}"
    assert page.path.read_text(encoding="utf-8") == config_reference.markdown(page), remedy


@each_page
def test_every_key_is_on_its_page_with_a_text(page):
    rows = rows_of(page)
    assert not [row for row in rows if row.endswith("|  |")]
    for key in KEYS[page.file].split():
        assert sum(row.startswith(f"| `{key}` |") for row in rows) == 1
    names = [row.split("`")[1] for row in rows]
    assert len(names) == len(set(names))


def test_every_key_of_the_project_is_on_one_page():
    added = flat_keys(new_config()).keys() - flat_keys(get_cfg()).keys()
    # Detectron2's own keys, whose default the project sets anew, are on a page as well.
    names = [row.split("`")[1] for page in config_reference.PAGES for row in rows_of(page)]
    assert added <= set(names)
    assert len(names) == len(set(names))


def test_comments_belong_to_the_keys_below_them():
    defaults = {"X.B": 1, "X.C": (2, "x|y"), "X.D": 3, "X.E": 4, "X.G.H": 6, "X.G.I": 7}
    section = config_reference.section("T", SOURCE, {"node": "X"}, defaults)
    head = ["| key | default | |", "| --- | --- | --- |"]
    assert section.splitlines() == [
        "## T",
        "",
        *head,
        "| `X.B` | `1` | What B is, in two lines. |",
        "| `X.C` | `(2, 'x\\|y')` | as above |",
        "| `X.D` | `3` | beside |",  # a gap ends what a comment says
        "| `X.E` | `4` | Own text. |",
        "",
        "What more there is.",
        "",
        *head,
        "| `X.G.H` | `6` | What a node is about. |",
        "| `X.G.I` | `7` | as above; or 8 |",
    ]
