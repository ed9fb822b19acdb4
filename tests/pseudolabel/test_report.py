"""The report page: escaped, self-contained, complete, and its account true."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pseudolabel.report import overlays
from pseudolabel.report.build import Options, write_page
from pseudolabel.report.charts import Axis
from pseudolabel.report.drawing import ORANGE, Panel
from pseudolabel.report.label_file import LabelFile
from pseudolabel.report.markup import LONGEST, code, escape
from tests.pseudolabel.report_files import (
    LOADS,
    SCRIPT,
    TRAP_FILE,
    Page,
    edit_json,
    problem_of,
    write_labels,
)


@pytest.fixture
def folder(tmp_path):
    write_labels(tmp_path)
    return tmp_path


def make(folder, **options):
    """(text, parsed page)."""
    values = {"labels": folder / "labels.json", "images": folder, **options}
    write_page(Options(**values), folder / "page.html")
    text = (folder / "page.html").read_text(encoding="utf-8")
    return text, Page(text)


def everything(folder):
    """Options that fill every section, with markup in each input that holds text."""
    metrics = folder / LOADS.replace("/", "") / "metrics.json"
    metrics.parent.mkdir()
    rows = [{"iteration": i, "total_loss": 9 / i, f"loss{SCRIPT}": 1.0} for i in range(1, 60)]
    rows.append({"iteration": 60, f"{SCRIPT}/mIoU": 0.5, "teacher/mIoU": 0.6})
    metrics.write_text("\n".join(map(json.dumps, rows)))
    result = {
        "kind": "boxes_to_masks",
        "name": SCRIPT,
        "arms": {"human": {"segm/AP": 30.0}, "mal": {"segm/AP": 24.0, "segm/AP50": None}},
        "retention": {"percent": 80.0, "note": LOADS},
        "labels": {SCRIPT: {"mIoU": 0.7, "small": None, "medium": 0.7, "large": 0.7, "n": 3}},
        "seed": 0,
        "date": LOADS,
        "command": SCRIPT,
    }
    (folder / "result.json").write_text(json.dumps(result))
    sweep = {"thresholds": [0.3, 0.5, 0.7], "mIoU": [0.6, 0.8, 0.7], "chosen": 0.5}
    sweep["by_size"] = {SCRIPT: {"mIoU": [0.6, 0.8, 0.9], "chosen": 0.3, "instances": 2}}
    (folder / "sweep.json").write_text(json.dumps(sweep))
    return {
        "truth": folder / "human.json",
        "metrics": [metrics],
        "results": [folder / "result.json"],
        "sweep": folder / "sweep.json",
        "command": f"tools/label.py {LOADS}\nsecond {SCRIPT}",
    }


def test_nothing_from_the_data_becomes_markup(folder):
    reject = {"id": 1, "image_id": SCRIPT, "bbox": LOADS, "reason": SCRIPT, "detail": LOADS}
    with open(folder / "labels.rejects.jsonl", "a") as file:
        file.write(json.dumps(reject) + "\n")
    edit_json(folder / "labels.manifest.json", lambda m: m.update({LOADS: {SCRIPT: LOADS}}))
    edit_json(folder / "labels.json", lambda d: d["images"][1].update(status=SCRIPT))
    edit_json(folder / "labels.json", lambda d: d["annotations"][0].update(mask_source=LOADS))
    text, page = make(folder, **everything(folder))
    assert not page.of("script")
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.of("img"))
    assert all(link["href"].startswith("#") for link in page.of("a"))
    known = {"id", "class", "style", "src", "href", "alt", "width", "height", "lang", "charset"}
    known |= {"http-equiv", "content", "name", "scope", "tabindex", "role", "aria-label", "open"}
    known |= {"viewbox", "d", "x", "y", "cx", "cy", "r", "fill", "fill-opacity", "text-anchor"}
    known |= {"transform", "aria-hidden"}
    names = {key for _, attrs in page.tags for key in attrs if not key.startswith("stroke")}
    assert names <= known
    assert not re.search(r"url\(|@import", text)
    # What must not run must be there to read.
    assert page.text.count(SCRIPT) >= 10
    assert page.text.count(LOADS) >= 5
    assert TRAP_FILE in page.text


def test_policy_forbids_scripts_and_loads(folder):
    _, page = make(folder)
    policy = next(m["content"] for m in page.of("meta") if "http-equiv" in m)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert not {"script-src", "font-src", "connect-src", "frame-src"} & rules.keys()


def test_every_section_and_alternative_texts(folder):
    _, page = make(folder, **everything(folder))
    linked = [link["href"][1:] for link in page.of("a")]
    assert linked == [h["id"] for h in page.of("h2")]
    assert len(linked) == 10
    assert all(image["alt"].startswith("Mask of annotation") for image in page.of("img"))
    charts = [svg for svg in page.of("svg") if "aria-hidden" not in svg]
    assert len(charts) == 4 + 3
    assert all(chart["aria-label"] for chart in charts)
    drawn = [attrs[key] for _, attrs in page.tags for key in ("d", "cx", "cy", "y") if key in attrs]
    assert drawn
    assert not any("nan" in value or "inf" in value for value in drawn)
    # Sections without input stay out.
    assert len(make(folder)[1].of("h2")) == 7


def test_the_same_inputs_give_the_same_bytes(folder):
    assert make(folder)[0] == make(folder)[0]


def drop_record(folder):
    edit_json(folder / "labels.json", lambda d: d["annotations"].pop())


def add_reject(folder):
    with open(folder / "labels.rejects.jsonl", "a") as file:
        file.write('{"id": 7, "reason": "lost"}\n')


def other_input(folder):
    edit_json(folder / "labels.manifest.json", lambda m: m.update(annotations_in=80))


def found(images):
    """As a labeler writes that has found its own boxes: the account is of images."""
    job = {"mode": "found", "images": images}
    return lambda folder: edit_json(folder / "labels.manifest.json", lambda m: m.update(job=job))


# What happens to the files; the account on the page; whether it is marked as wrong.
ACCOUNTS = [
    (lambda folder: None, "7 records + 1 rejects = 8 = boxes in", False),
    (drop_record, "6 records + 1 rejects = 7 ≠ 8 boxes in", True),
    (add_reject, "7 records + 2 rejects = 9 ≠ 8 boxes in", True),
    (other_input, "7 records + 1 rejects = 8 ≠ 80 boxes in", True),
    (found(5), "4 images labelled or empty + 1 rejects = 5 = images in", False),
    (found(4), "4 images labelled or empty + 1 rejects = 5 ≠ 4 images in", True),
]


@pytest.mark.parametrize(("change", "account", "wrong"), ACCOUNTS)
def test_accounts(folder, change, account, wrong):
    change(folder)
    text, page = make(folder)
    assert account in page.text
    assert ('class="bad"' in text) == wrong


def test_a_hash_that_differs_is_marked(folder):
    assert "differs from the manifest" not in make(folder)[0]
    edit_json(folder / "labels.json", lambda d: d["annotations"][0].update(quality=0.9))
    text, _ = make(folder)
    assert "differs from the manifest" in text
    assert 'class="bad"' in text


# A file that is missing; the note about it.
MISSING = [
    ("labels.manifest.json", "no manifest"),
    ("labels.rejects.jsonl", "no list of rejects"),
]


@pytest.mark.parametrize(("name", "note"), MISSING)
def test_missing_companions_are_noted(folder, name, note):
    (folder / name).unlink()
    text, page = make(folder)
    assert note in page.text
    assert "there is no account" in page.text
    assert 'class="bad"' in text


def test_rejects_with_reason_and_detail(folder):
    _, page = make(folder)
    assert "box_outside: the first 1 of 1" in page.text
    assert "[500, 500, 4, 4] on a 64x64 image" in page.text


# A file, what is put in it, and what the one line says.
BAD = [
    ("labels.json", "{", "not valid JSON"),
    ("labels.json", '{"images": []}', "has no list"),
    ("labels.manifest.json", "[]", "no JSON object"),
    ("labels.manifest.json", "{}", "annotations_in"),
    ("labels.manifest.json", '{"job": {"mode": "found"}}', "no whole number images"),
    ("labels.rejects.jsonl", "{}\nnull\n", "line 2"),
    ("human.json", '{"images": [], "annotations": [], "categories": []}', "no human mask of any"),
    ("sweep.json", '{"thresholds": [0.1], "mIoU": [], "chosen": 0.1}', "is no sweep"),
    ("sweep.json", '{"thresholds": [0.1], "mIoU": [0.5], "chosen": "x"}', "is no sweep"),
    ("sweep.json", '{"thresholds": [0.1], "mIoU": [0.5], "by_size": []}', "is no sweep"),
    (
        "sweep.json",
        '{"thresholds": [0.1], "mIoU": [0.5], "by_size": {"small": {"mIoU": [0.5]}}}',
        "sweep.json (by_size small): is no sweep",
    ),
    ("sweep.json", '{"thresholds": [0.1], "mIoU": [NaN], "chosen": 0.1}', "is no sweep"),
    ("result.json", '{"kind": "speed"}', "of kind 'speed'"),
    ("result.json", '{"kind": "boxes_to_masks", "arms": 3}', "garbles"),
    ("sweep.json", '{"thresholds": [0.1], "mIoU": [0.5], "chosen": 1e308}', "is no sweep"),
    ("sweep.json", '{"thresholds": [1e308, -1e308], "mIoU": [0, 1], "chosen": 0}', "is no sweep"),
    ("sweep.json", f'{{"thresholds": [0.1], "mIoU": [1{"0" * 400}], "chosen": 0}}', "is no sweep"),
    ("metrics.json", "", "has no curve"),
    ("metrics.json", f'{{"iteration": 1{"0" * 400}, "total_loss": 1}}', "line 1"),
    ("metrics.json", f'{{"iteration": 1, "total_loss": 1{"0" * 400}}}', "has no curve"),
    ("metrics.json", '{"iteration": true, "total_loss": 1}', "line 1"),
    ("metrics.json", '{"iteration": 1}\n[]\n{"iteration": 2}', "line 2"),
]


@pytest.mark.parametrize(("name", "content", "said"), BAD)
def test_bad_input_is_one_line(folder, name, content, said):
    options = everything(folder)
    options["metrics"] = [folder / "metrics.json"]
    (folder / "metrics.json").write_text('{"iteration": 1, "total_loss": 2}')
    (folder / name).write_text(content)
    message = problem_of(lambda: make(folder, **options))
    assert name in message
    assert said in message
    assert "\n" not in message
    assert not (folder / "page.html").exists()


# What a record of the labels may not be, with and without human masks.
BAD_RECORDS = [
    ({"quality": "high"}, "quality is 'high'"),
    ({"quality": []}, "quality is []"),
    ({"quality": 10**400}, "quality is 1000"),
    ({"quality": 87.5}, "quality is 87.5"),  # percent
    ({"agreement": True}, "agreement is True"),
    ({"segmentation": None}, "has no mask"),
]


@pytest.mark.parametrize("truth", [None, "human.json"])
@pytest.mark.parametrize(("change", "said"), BAD_RECORDS)
def test_bad_records_are_named(folder, change, said, truth):
    edit_json(folder / "labels.json", lambda d: d["annotations"][0].update(change))
    message = problem_of(lambda: make(folder, truth=truth and folder / truth))
    assert "labels.json (annotation 10): " + said in message


def test_human_masks_of_another_data_set(folder):
    edit_json(folder / "human.json", lambda d: d["annotations"][0].update(image_id=3))
    message = problem_of(lambda: make(folder, truth=folder / "human.json"))
    assert "annotation 10" in message
    assert "is on image 3, the label is on image 1" in message


def test_a_subset_with_human_masks(folder):
    def keep_two(data):
        for annotation in data["annotations"][2:]:
            del annotation["segmentation"]

    edit_json(folder / "human.json", keep_two)
    _, page = make(folder, truth=folder / "human.json")
    assert re.search(r"records compared\s+2\b", page.text)


# Calibration facts of the manifest; records left out of the reliability, and records compared.
CALIBRATED = [
    ({"image_ids": [1, 3, 99]}, 4, 2),  # 10, 11, 30, 31 of 10, 11, 20, 30, 31, 40
    ({"image_ids": [1, 2], "file_names": [TRAP_FILE, "2.png"]}, 3, 3),
    ({"image_ids": [1, 2], "file_names": ["of another data set.png", "2.png"]}, 1, 5),
    ({"image_ids": [2], "file_names": []}, 1, 5),  # the names do not fit the ids
    ({"image_ids": [1, 2, 3, 4]}, 6, None),  # nothing is left
    ({"image_ids": []}, None, 6),
    ({"image_ids": ["1", None, 1.5]}, None, 6),
    ({"image_ids": 1}, None, 6),
    (None, None, 6),
    ("calibration.json", None, 6),
]


@pytest.mark.parametrize(("facts", "left_out", "compared"), CALIBRATED)
def test_images_of_the_calibration_do_not_count_as_unseen(folder, facts, left_out, compared):
    edit_json(folder / "labels.manifest.json", lambda d: d["labeler"].update(calibration=facts))
    _, page = make(folder, truth=folder / "human.json")
    said = re.search(r"(\d+) records with a human mask lie on images that the quality", page.text)
    assert (said and int(said[1])) == left_out
    found = re.search(r"records compared\s+(\d+)\b", page.text)
    assert (found and int(found[1])) == compared
    assert ("no others have one" in page.text) == (compared is None)


def test_a_sweep_states_the_choice_and_the_best(folder):
    small = {"mIoU": [0.5, 0.7], "chosen": 0.2, "instances": 1200}
    sweep = {"thresholds": [0.4, 0.2], "mIoU": [0.25, 0.5], "chosen": None}
    sweep["by_size"] = {"small": small}
    (folder / "sweep.json").write_text(json.dumps(sweep))
    _, page = make(folder, sweep=folder / "sweep.json")
    assert "All: chosen one for each size; the best mIoU is 0.500, at 0.2." in page.text
    assert "small (1,200 boxes): chosen 0.2; the best mIoU is 0.700, at 0.2." in page.text
    # Rows by threshold, whatever the order of the file.
    assert re.search(r"0\.2\s+0\.500\s+0\.700\s+0\.4\s+0\.250\s+0\.500", page.text)


def test_links_out_of_the_image_folder_are_drawn_where_allowed(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "2.png"
    (folder / "2.png").rename(elsewhere)
    (folder / "2.png").symlink_to(elsewhere)
    _, page = make(folder)
    assert "outside of the image folder" in page.text
    _, page = make(folder, allow_links=True)
    assert "Not drawn" not in page.text


def test_no_record_at_all(folder):
    edit_json(folder / "labels.json", lambda d: d.update(annotations=[]))
    _, page = make(folder)
    assert "0 records + 1 rejects = 1 ≠ 8 boxes in" in page.text


def test_images_are_read_once_and_one_by_one(folder, monkeypatch):
    read = []
    monkeypatch.setattr(
        overlays, "read_image", lambda path: read.append(path) or np.array(Image.open(path))
    )
    make(folder)
    assert len(read) == len(set(read)) == 4


def test_an_image_that_cannot_be_drawn(folder):
    (folder / "2.png").unlink()
    Image.new("RGB", (9, 9)).save(folder / "3.png")
    edit_json(
        folder / "labels.json",
        lambda d: d["annotations"][-2].update(segmentation={"size": [64, 64], "counts": "0"}),
    )
    _, page = make(folder)
    assert "Not drawn: the image does not exist" in page.text
    assert "Not drawn: is 9x9, the JSON says 64x64" in page.text
    assert "Not drawn: run-length code is malformed" in page.text


def test_worst_and_random(folder):
    labels = LabelFile(folder / "labels.json")
    chosen = overlays.select(labels, None, 2, 1, 0)
    every, left, right = chosen.galleries
    ids = [labels.ids[g.worst].tolist() for g in (every, left, right)]
    # Quality rises with the id; 21 was rejected and the crowd 41 is left out.
    assert ids == [[10, 11, 20, 30], [10, 20], [11, 31]]
    assert [g.count for g in (every, left, right)] == [6, 4, 2]
    # A class with nothing else than its worst has none at random.
    assert [len(g.random) for g in (every, left, right)] == [2, 1, 0]
    assert not set(left.random) & set(left.worst)
    again = overlays.select(labels, None, 2, 1, 0)
    assert again == chosen
    ious = np.linspace(1, 0, len(labels.ids))
    assert labels.ids[overlays.select(labels, ious, 1, 0, 0).galleries[0].worst].tolist() == [
        40,
        31,
    ]


def test_bounds_on_pictures(folder, monkeypatch):
    labels = LabelFile(folder / "labels.json")
    monkeypatch.setattr(overlays, "CLASSES", 1)
    chosen = overlays.select(labels, None, 1, 1, 0)
    assert [name for name, _ in chosen.others] == ["right"]
    monkeypatch.setattr(overlays, "CLASSES", 9)
    monkeypatch.setattr(overlays, "MOST_PICTURES", 5)
    chosen = overlays.select(labels, None, 50, 50, 0)
    assert len(chosen.galleries) == 1
    assert len(chosen.galleries[0].worst) + len(chosen.galleries[0].random) == 5
    assert [count for _, count in chosen.others] == [4, 2]


def test_pictures_stay_small_on_noise(folder):
    # Nothing is harder to compress; 340 pictures of this kind stay below 8 MB.
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    noise = np.kron(noise, np.ones((4, 4, 1), dtype=np.uint8)) ^ 90
    labels = LabelFile(folder / "labels.json")
    entry = {"id": 1, "height": 64, "width": 64}
    picture = overlays._picture(labels, 0, noise[::4, ::4], entry, None)
    assert len(picture) < overlays.MOST_CHARACTERS + 300
    assert overlays.MOST_PICTURES * overlays.MOST_CHARACTERS < 7_000_000


def test_an_outline_shows_on_any_ground():
    mask = np.zeros((10, 10), dtype=bool)
    mask[3:7, 3:7] = True
    for ground in (0, 128, 255):
        image = np.full((10, 10, 3), ground, dtype=np.uint8)
        panel = Panel(image, 40).outline(mask, ORANGE)
        assert (panel.pixels[12, 12:28] == ORANGE).all()
        assert (panel.pixels[20, 20] == ground).all()
        assert (panel.pixels[11, 12:28] == ground // 2).all()


def test_a_mask_at_the_border_draws_no_frame_around_the_picture():
    image = np.full((10, 10, 3), 200, dtype=np.uint8)
    mask = np.zeros((10, 10), dtype=bool)
    mask[:, :2] = True
    panel = Panel(image, 10).outline(mask, ORANGE)
    assert (panel.pixels[:, 3:] == 200).all()


@settings(deadline=None)
@given(st.text(max_size=400))
def test_escaped_text_is_no_markup(text):
    escaped = escape(text)
    assert not set("<>\"'") & set(escaped)
    assert not set(escaped) & set("\x00\x1b\u202e\ud800")
    escaped.encode("utf-8")
    assert escape(escaped) == escaped
    assert len(Page(f"<p>{escaped}</p>").text) <= LONGEST + 1


def test_commands_are_not_cut():
    assert "x" * 1000 in code("x" * 1000)


@settings(deadline=None)
@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.booleans())
def test_axes(low, span, log):
    start = abs(low) + 1e-3 if log else low
    axis = Axis("", start, start + span, log)
    ticks = axis.ticks()
    assert ticks == sorted(ticks)
    assert 1 <= len(ticks) <= 14
    slack = 1e-9 * (abs(axis.low) + abs(axis.high)) + 1e-6 * span
    assert all(axis.low - slack <= t <= axis.high + slack for t in ticks)
    places = [axis.place(v) for v in (axis.low - 1, axis.low, axis.high, axis.high + 1)]
    assert all(0 <= place <= 1 for place in places)
    assert places == sorted(places)
