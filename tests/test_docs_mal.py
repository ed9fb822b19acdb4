"""What the pages about MAL name is there: files, options of commands, config keys."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
from detectron2.config import get_cfg

from mal.config import add_mal_config
from masksmith import new_config
from pseudolabel.config import add_masksmith_config

ROOT = Path(__file__).parents[1]
PAGES = ("docs/mal.md", "docs/faq.md")


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_lead_somewhere(page):
    text = text_of(page)
    links = {(ROOT / page).parent / link for link in re.findall(r"\]\(([^)#:]+)\)", text)}
    named = re.findall(r"\b(?:tools|benchmarks|datasets|configs)/[\w./]+\.(?:py|yaml|md)\b", text)
    paths = links | {ROOT / name for name in named}
    assert len(paths) > 3
    assert not [path for path in paths if not path.exists()]


@pytest.mark.parametrize("page", PAGES)
def test_config_keys_exist(page):
    cfg = get_cfg()
    add_masksmith_config(cfg)
    add_mal_config(cfg)
    names = re.findall(r"\b(?:MODEL|SOLVER|DATASETS)(?:\.[A-Z][A-Z_]*)+\b", text_of(page))
    assert names
    for name in names:
        node = cfg
        for part in name.split("."):
            assert part in node, name
            node = node[part]


def commands_of(page, script):
    """The command lines of a page that run a script, without comments, as lists of arguments."""
    lines = text_of(page).replace("\\\n", " ").splitlines()
    found = [line for line in lines if line.startswith(f"python {script} ")]
    return [shlex.split(line, comments=True)[2:] for line in found]


@pytest.mark.parametrize("script", ["tools/retention.py", "benchmarks/ablation.py"])
def test_the_commands_are_understood(script, monkeypatch):
    """By the parser of the script itself; a wrong option or a missing value ends the process."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    parse_args = runpy.run_path(str(ROOT / script))["parse_args"]
    commands = commands_of("docs/mal.md", script)
    assert commands
    for arguments in commands:
        assert parse_args(arguments).seeds, arguments


def test_numbers_of_the_configs_are_those_of_the_page():
    """Iterations, threshold and the filter of boxes, which the page states in its own words."""
    text = text_of("docs/mal.md")
    dev, paper = new_config(), new_config()
    dev.merge_from_file(str(ROOT / "configs/mal/coco_dev.yaml"))
    paper.merge_from_file(str(ROOT / "configs/mal/coco_vit_base.yaml"))
    assert f"{dev.SOLVER.MAX_ITER} iterations of a ViT-Tiny" in text
    small, *_ = dev.MODEL.MAL.TEST.THRESHOLDS
    assert f"threshold of {small:g},".replace("0.", ".") in text
    assert dev.MODEL.MAL.TEST.CRF_ITERATIONS > 0, "the page says that the mean field runs again"
    assert f"`MODEL.MAL.MIN_AREA` ({paper.MODEL.MAL.MIN_AREA:g} px²)" in text
