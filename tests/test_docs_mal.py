"""What the pages about MAL name is there: files, options of commands, config keys."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.config import get_cfg

from mal.config import add_mal_config
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


@pytest.mark.parametrize("script", ["tools/retention.py", "benchmarks/ablation.py"])
def test_options_of_the_commands_exist(script):
    done = subprocess.run(
        [sys.executable, str(ROOT / script), "--help"], capture_output=True, text=True, check=True
    )
    commands = text_of("docs/mal.md").replace("\\\n", " ").splitlines()
    lines = [line.partition("#")[0] for line in commands if line.startswith(f"python {script}")]
    options = {option for line in lines for option in re.findall(r"--[a-z-]+", line)}
    assert options
    assert not [option for option in options if option not in done.stdout]
