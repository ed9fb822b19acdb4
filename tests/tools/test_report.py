"""tools/report.py: lines, exit status, faults; and the page as a real browser shows it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mal.data  # noqa: F401  (registers its pipeline)
from mal.mask_auto_labeler import MaskAutoLabeler
from pseudolabel.report import drawing
from tests.pseudolabel.report_files import SCRIPT, Page, edit_json, write_labels
from tests.tiny import tiny_config
from tests.tools.commands import ROOT, SMALL_DISK, load_command

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--window-size=500,3000"),
)


command = load_command("report")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_labels(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return command.main(["labels.json", "--images", ".", "--output", "page.html", *arguments])


def test_page_and_queue(folder, capsys):
    options = ["--truth", "human.json", "--queue", "2", "--queue-output", "q/queue.json"]
    assert run(*options) == 0
    out = capsys.readouterr()
    assert out.out.splitlines() == [
        "wrote page.html: 7 records",
        "wrote q/queue.json: 2 records to look at",
    ]
    assert out.err == ""
    assert "mean IoU with human masks" in Page((folder / "page.html").read_text()).text
    assert len(json.loads((folder / "q/queue.json").read_text())["annotations"]) == 2
    assert len((folder / "q/queue.csv").read_text().splitlines()) == 3


def test_a_sweep_is_made_shown_and_kept(folder, capsys):
    model = ["--config-file", "config.yaml", "--weights", "model.pth"]
    cfg = tiny_config("mal/sample", folder / "human.json", folder)
    (folder / "config.yaml").write_text(cfg.dump())
    torch.manual_seed(0)
    torch.save({"model": MaskAutoLabeler(cfg).state_dict()}, folder / "model.pth")
    options = ["--truth", "human.json", "--sweep", "sweep.json", "--sweep-images", "2"]
    assert run(*options, *model) == 0
    assert capsys.readouterr().out.splitlines()[0] == "wrote sweep.json: 4 boxes of 2 images"
    made, page = (folder / "sweep.json").read_text(), (folder / "page.html").read_text()
    assert "All (4 boxes): chosen 0.5; the best mIoU is" in Page(page).text
    # Without the model the file is read.
    assert run(*options) == 0
    assert (folder / "sweep.json").read_text() == made
    assert (folder / "page.html").read_text() == page
    assert run(*options, *model[:2], "--weights", "none.pth") == 1
    assert "none.pth" in capsys.readouterr().err
    assert (folder / "sweep.json").read_text() == made


def test_links_are_followed_where_allowed(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "2.png"
    (folder / "2.png").rename(elsewhere)
    (folder / "2.png").symlink_to(elsewhere)
    assert run() == 0
    assert "Not drawn" in (folder / "page.html").read_text()
    assert run("--allow-links") == 0
    assert "Not drawn" not in (folder / "page.html").read_text()


def test_accounts_that_do_not_fit_are_said(folder, capsys):
    edit_json(folder / "labels.json", lambda d: d["annotations"].pop())
    assert run() == 0
    assert "does not add up" in capsys.readouterr().err


# Options, and what stderr says: wrong usage, exit status 2.
USAGE = [
    (["--worst", "-1"], "--worst"),
    (["--queue", "3"], "go together"),
    (["--queue-output", "q.json"], "go together"),
    (["--queue", "0", "--queue-output", "q.json"], "at least 1"),
    (["--queue", "1", "--queue-output", "q.csv"], ".json file"),
    (["--queue", "1", "--queue-output", "labels.json"], "replace the input"),
    (["--output", "labels.manifest.json"], "replace the input"),
    (["--truth", "human.json", "--output", "human.json"], "replace the input"),
    (["--output", "."], "is a folder"),
    (["--weights", "x.pth", "--truth", "human.json"], "--config-file"),
    (["--weights", "x", "--config-file", "y", "--sweep", "s.json"], "--truth"),
    (["--sweep-images", "-1"], "--sweep-images"),
    (
        ["--weights=x", "--config-file=y", "--truth=human.json", "--sweep=human.json"],
        "replace the input",
    ),
    (["--output", "q.csv", "--queue", "1", "--queue-output", "q.json"], "the same file"),
]


@pytest.mark.parametrize(("options", "said"), USAGE)
def test_wrong_usage(folder, capsys, options, said):
    before = (folder / "labels.json").read_bytes()
    with pytest.raises(SystemExit) as stopped:
        run(*options)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
    assert (folder / "labels.json").read_bytes() == before


# Options, and the error line: bad input, exit status 1.
ERRORS = [
    (["--images", "nowhere"], "nowhere: there is no such folder"),
    (["--truth", "none.json"], "none.json: the file does not exist"),
    (["--metrics", "none.json"], "none.json: cannot be read"),
]


@pytest.mark.parametrize(("options", "said"), ERRORS)
def test_bad_input_is_one_line(folder, capsys, options, said):
    assert run(*options) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert not (folder / "page.html").exists()


def test_path_outside_of_the_images_is_refused(folder, capsys):
    edit_json(folder / "labels.json", lambda d: d["images"][0].update(file_name="../secret.png"))
    assert run() == 1
    err = capsys.readouterr().err
    assert "../secret.png" in err
    assert err.count("\n") == 1


def test_full_disk_keeps_the_previous_page(folder):
    assert run("--worst", "1", "--random", "0") == 0
    before = (folder / "page.html").read_bytes()
    tool = str(ROOT / "tools/report.py")
    arguments = [tool, "labels.json", "--images", ".", "--output", "page.html"]
    done = subprocess.run(
        [sys.executable, "-c", SMALL_DISK.format(2000), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: page.html: ")
    assert done.stderr.count("\n") == 1
    assert (folder / "page.html").read_bytes() == before
    assert not list(folder.glob(".page*"))


@pytest.fixture
def browse(tmp_path):
    """Opens a page in headless Chromium; returns (document, network log, screenshot)."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")

    def browse(page: Path, name: str):
        log, shot = tmp_path / f"{name}.log", tmp_path / f"{name}.png"
        arguments = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / name}"]
        arguments += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--log-net-log={log}"]
        arguments += ["--dump-dom", f"--screenshot={shot}", page.as_uri()]
        done = subprocess.run(arguments, capture_output=True, timeout=120, check=True)
        return done.stdout.decode(), log.read_text(), shot

    return browse


def test_in_chromium_nothing_runs_and_nothing_is_loaded(folder, browse):
    command = f"{SCRIPT}<img src=http://trap.invalid/b>"
    assert run("--truth", "human.json", "--command", command) == 0
    document, log, shot = browse(folder / "page.html", "page")
    assert "<title>Pseudo-labels: labels.json</title>" in document
    assert "<h2" in document
    assert "trap.invalid" not in log
    # Masks are on the screen, in their colour (JPEG and scaling move it a little).
    pixels = np.array(Image.open(shot).convert("RGB")).astype(int)
    assert (abs(pixels - drawing.ORANGE).max(axis=-1) < 30).sum() > 500


def test_in_chromium_the_same_traps_work_as_markup(folder, browse):
    """The control: the browser would have run and loaded them, and this test would have seen it."""
    (folder / "bad.html").write_text(f"<title>t</title>{SCRIPT}<img src=http://trap.invalid/b>")
    document, log, _ = browse(folder / "bad.html", "bad")
    assert "<title>ran</title>" in document
    assert "trap.invalid" in log
