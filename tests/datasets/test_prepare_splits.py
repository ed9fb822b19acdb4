"""The command that splits: files of a COCO JSON and of Cityscapes, whole or not at all."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "datasets" / "prepare_splits.py"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPT.parent))  # as it is where the command runs
    try:
        spec = importlib.util.spec_from_file_location("prepare_splits", SCRIPT)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(SCRIPT.parent))


def write_source(folder: Path, images: int = 40) -> Path:
    data = {
        "images": [
            {"id": 3 * i, "file_name": f"{i}.png", "height": 4 + i % 2, "width": 5}
            for i in range(1, images + 1)
        ],
        "annotations": [
            {"id": 10 * i + k, "image_id": 3 * i, "category_id": 8, "bbox": [0, 0, 2, 2]}
            for i in range(1, images + 1)
            for k in range(1 + i % 4)
        ],
        "categories": [{"id": 8, "name": "thing"}],
    }
    path = folder / "instances_train.json"
    path.write_text(json.dumps(data))
    return path


def read(path):
    return json.loads(path.read_text())


def run(script, *arguments):
    return script.main([str(argument) for argument in arguments])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_of_every_fold_and_percentage(script, tmp_path, capsys):
    source = write_source(tmp_path)
    assert run(script, source, "--percent", 5, "12.5", "--fold", 1, 2) == 0
    folder = tmp_path / "semi_supervised"
    stems = [f"instances_train.{fold}@{percent}" for fold in (1, 2) for percent in ("5", "12.5")]
    endings = (".json", "-unlabeled.json", ".txt")
    assert sorted(contents(folder)) == sorted(stem + end for stem in stems for end in endings)
    for stem, count in zip(stems, (2, 5, 2, 5)):
        labelled, unlabelled = (
            read(folder / f"{stem}.json"),
            read(folder / f"{stem}-unlabeled.json"),
        )
        ids = [image["id"] for image in labelled["images"]]
        assert (folder / f"{stem}.txt").read_text() == "".join(f"{key}\n" for key in ids)
        rest = [image["id"] for image in unlabelled["images"]]
        assert len(ids) == count
        assert sorted(ids + rest) == [image["id"] for image in read(source)["images"]]
        assert {a["image_id"] for a in labelled["annotations"]} <= set(ids)
        assert labelled["info"]["split"]["source"] == "instances_train.json"
    # The parts of a fold are nested, the folds differ.
    drawn = {s: set((folder / f"{s}.txt").read_text().split()) for s in stems}
    assert drawn[stems[0]] < drawn[stems[1]]
    assert drawn[stems[1]] != drawn[stems[3]]
    assert "thing" in capsys.readouterr().out


def test_the_same_command_gives_the_same_bytes_whatever_the_order_of_the_images(script, tmp_path):
    source = write_source(tmp_path)
    assert run(script, source, "--percent", 10, "--output", tmp_path / "one") == 0
    assert run(script, source, "--percent", 10, "--output", tmp_path / "two") == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    data = read(source)
    data["images"].reverse()
    source.write_text(json.dumps(data))
    assert run(script, source, "--percent", 10, "--output", tmp_path / "two") == 0
    name = "instances_train.1@10.txt"
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_lists_of_ones_own(script, tmp_path):
    source = write_source(tmp_path)
    mine = tmp_path / "mine.txt"
    mine.write_text("9\n6\n")
    assert run(script, source, "--ids", mine, "--output", tmp_path) == 0
    labelled = read(tmp_path / "instances_train.mine.json")
    assert [image["id"] for image in labelled["images"]] == [6, 9]
    assert len(read(tmp_path / "instances_train.mine-unlabeled.json")["images"]) == 38
    # What a draw has written is such a list.
    assert run(script, source, "--percent", 10, "--output", tmp_path) == 0
    drawn = tmp_path / "instances_train.1@10.txt"
    assert run(script, source, "--ids", drawn, "--output", tmp_path) == 0
    again = read(tmp_path / "instances_train.instances_train.1@10.json")
    assert again["images"] == read(tmp_path / "instances_train.1@10.json")["images"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--percent", "2"], r"1@2: the labelled part would be empty \(of 40 images\). Remedy: "),
        # nothing is written where one of several would be empty
        (["--percent", "10", "2"], "1@2: the labelled part would be empty"),
        (["--ids", "no.txt"], r"no\.txt: cannot be read"),
        (["--ids", "a/x.txt", "b/x.txt"], "two lists are called 'x'"),
    ],
)
def test_a_refused_command_writes_nothing(script, arguments, problem, tmp_path, capsys):
    source = write_source(tmp_path)
    assert run(script, source, *arguments, "--output", tmp_path / "out") == 1
    captured = capsys.readouterr()
    assert re.search(problem, captured.err), captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_source_is_never_replaced(script, tmp_path, capsys):
    source = write_source(tmp_path).rename(tmp_path / "a.mine.json")
    before = source.read_bytes()
    (tmp_path / "mine.txt").write_text("3\n")
    arguments = ["--name", "a", "--ids", tmp_path / "mine.txt", "--output", tmp_path]
    assert run(script, source, *arguments) == 1
    assert "the output would replace the input" in capsys.readouterr().err
    assert source.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda d: d.pop("annotations"), "has no list 'annotations'"),
        (lambda d: d["annotations"][0].update(image_id=77), "unknown image_id 77"),
        (lambda d: d["images"][1].update(id=3), "id 3 occurs twice"),
    ],
)
def test_a_damaged_source_is_refused(script, damage, problem, tmp_path, capsys):
    source = write_source(tmp_path)
    data = read(source)
    damage(data)
    source.write_text(json.dumps(data))
    assert run(script, source, "--percent", 10) == 1
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--percent", "100"],
        ["--percent", "x"],
        ["--fold", "-1"],
        ["--name", "../x"],
        ["--ids", "a.txt", "--percent", "10"],
        ["--ids", "a.txt", "--fold", "1"],
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(script, arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(script, "absent.json", *arguments)
    assert "error: " in capsys.readouterr().err


def test_rejected_images_belong_to_no_part(script, tmp_path):
    source = write_source(tmp_path)
    data = read(source)
    for image in data["images"][:20]:
        image["status"] = "rejected"
    source.write_text(json.dumps(data))
    assert run(script, source, "--percent", 10, "--output", tmp_path) == 0
    assert len(read(tmp_path / "instances_train.1@10.json")["images"]) == 2
    assert len(read(tmp_path / "instances_train.1@10-unlabeled.json")["images"]) == 18


def test_cityscapes_is_split_from_its_folder(script, data_dir, tmp_path):
    root = data_dir / "cityscapes_like"
    images = len(list(root.glob("leftImg8bit/train/*/*.png")))
    assert run(script, root, "--percent", 50, "--fold", 2, "--output", tmp_path) == 0
    stem = "instancesonly_filtered_gtFine_train.2@50"
    labelled, unlabelled = (
        read(tmp_path / f"{stem}.json"),
        read(tmp_path / f"{stem}-unlabeled.json"),
    )
    assert len(labelled["images"]) == images // 2
    assert len(unlabelled["images"]) == images - images // 2
    assert len(labelled["categories"]) == len(unlabelled["categories"]) == 8
    # The JSON of the converter gives the same parts.
    whole = tmp_path / "instances_train.json"
    whole.write_text(json.dumps(script.convert(root, "train").data))
    arguments = ["--percent", 50, "--fold", 2, "--name", stem.partition(".")[0]]
    assert run(script, whole, *arguments, "--output", tmp_path / "again") == 0
    again = read(tmp_path / "again" / f"{stem}.json")
    assert {**again, "info": 0} == {**labelled, "info": 0}


@pytest.mark.parametrize(("percent", "count"), [(5, 3), (10, 7)])
def test_stratified_nuclei_spread_over_sizes_and_densities(
    script, percent, count, data_dir, tmp_path
):
    source = data_dir / "dsb2018_dev" / "annotations" / "instances_train.json"
    arguments = ["--percent", percent, "--fold", 1, 2, 3, "--stratify", "--output", tmp_path]
    assert run(script, source, *arguments) == 0
    areas = sorted(image["height"] * image["width"] for image in read(source)["images"])
    drawn = []
    for fold in (1, 2, 3):
        images = read(tmp_path / f"instances_train.{fold}@{percent}-stratified.json")["images"]
        chosen = sorted(image["height"] * image["width"] for image in images)
        drawn.append({image["id"] for image in images})
        # One image of each run of the images sorted by area.
        for index, area in enumerate(chosen):
            start, end = (len(areas) * k // count for k in (index, index + 1))
            assert areas[start] <= area <= areas[end - 1]
    assert [len(ids) for ids in drawn] == [count] * 3
    assert len(set.union(*drawn)) > count
