"""The experiment on hidden masks: its data, its plan, and its tables from fabricated runs."""

import json

import numpy as np
import pais_pseudo_labels as experiment
import pseudo_label_table as table
import pytest
from PIL import Image
from tables import measurement_table

from pseudolabel.errors import DataError
from pseudolabel.files import read_json, write_json
from pseudolabel.masks import encode_rle
from pseudolabel.splits import draw_stratified, instances_per_image, labelled_count


def coco(rows, images, classes=3):
    """`rows`: (image, category, columns of a mask that starts at the annotation's number, more)."""
    annotations = []
    for key, (image, category, columns, more) in enumerate(rows, start=1):
        mask = np.zeros((8, 40), dtype=bool)
        mask[:, 4 * key : 4 * key + columns] = True
        row = {"id": key, "image_id": image, "category_id": category, "iscrowd": 0}
        row |= {"bbox": [4 * key, 0, columns, 8], "area": 8 * columns}
        annotations.append({**row, "segmentation": encode_rle(mask), **more})
    size = {"height": 8, "width": 40}
    return {
        "images": [{"id": key, "file_name": f"{key}.png", **size} for key in images],
        "categories": [{"id": key, "name": f"c{key}"} for key in range(1, classes + 1)],
        "annotations": annotations,
    }


def test_most_frequent_classes():
    rows = [(1, 1, 2, {}), (1, 3, 2, {}), (1, 3, 2, {}), (2, 2, 2, {}), (2, 4, 2, {})]
    rows += [(2, 5, 2, {"iscrowd": 1})] * 3  # crowds do not count
    data = coco(rows, (1, 2, 3), classes=5)
    assert experiment.most_frequent(data, 2) == [1, 3]
    assert experiment.most_frequent(data, 3) == [1, 2, 3]
    kept = experiment.keep_classes(data, [3, 5])
    assert [c["id"] for c in kept["categories"]] == [3, 5]
    assert [a["category_id"] for a in kept["annotations"]] == [3, 3, 5, 5, 5]
    assert kept["images"] == data["images"]  # also those that show neither


def test_hidden_part():
    whole = coco([(1, 1, 2, {}), (2, 1, 2, {}), (3, 2, 2, {})], (1, 2, 3))
    unlabelled = {**whole, "images": whole["images"][1:], "annotations": []}
    hidden = experiment.hidden_part(whole, unlabelled)
    assert [i["id"] for i in hidden["images"]] == [2, 3]
    assert [a["id"] for a in hidden["annotations"]] == [2, 3]


def test_classes_and_fold_are_what_the_config_says(data_dir):
    """Chosen on train, by a rule: the first fold with 8 labelled instances of every class."""
    train = read_json(data_dir / "coco_dev/annotations/instances_train.json")
    data = experiment.keep_classes(train, experiment.most_frequent(train, experiment.CLASSES))
    assert [c["name"] for c in data["categories"]] == ["person", "car", "bottle"]
    count = labelled_count(len(data["images"]), experiment.PERCENT)
    assert (count, len(data["images"])) == (24, 243)
    enough = {}
    for fold in range(1, experiment.FOLD + 1):
        ids = draw_stratified(data["images"], instances_per_image(data), count, fold)
        own = [a for a in data["annotations"] if a["image_id"] in ids and not a["iscrowd"]]
        present = [sum(a["category_id"] == c["id"] for a in own) for c in data["categories"]]
        enough[fold] = min(present) >= 8
    assert enough == {1: False, 2: False, 3: True}


@pytest.fixture
def job(tmp_path):
    opts = ["SOLVER.MAX_ITER", "250", "SOLVER.CHECKPOINT_PERIOD", "100"]
    return experiment.PseudoLabels(tmp_path / "coco_dev", tmp_path / "out", 5, opts)


def test_plan(job):
    """PAIS starts from the start's weights; each checkpoint is labelled after it."""
    (start,), (pais,) = job.trainings()
    final = str(job.output / "start/model_final.pth")
    assert final in map(str, start.outputs)
    assert pais.command[pais.command.index("MODEL.WEIGHTS") + 1] == final
    assert start.command[-6:-4] == ["MODEL.PAIS.ENABLED", "False"]
    assert pais.command[-6:-4] == ["MODEL.PAIS.EMA.START", "teacher"]
    for stage in (start, pais):
        assert "250" in stage.command
        assert stage.command[-4:-2] == ["SEED", "5"]
    assert start.run_dir != pais.run_dir
    names = {step: weights.name for step, (_, weights) in job.checkpoints().items()}
    files = ["model_final.pth", "model_0000099.pth", "model_0000199.pth", "model_final.pth"]
    assert names == dict(zip((0, 100, 200, 250), files, strict=True))
    stages = [stage for (stage,) in job.labellings()]
    assert [s.outputs[0].stem[-3:] for s in stages] == ["000", "100", "200", "250"]
    assert str(start.run_dir / "config.yaml") in stages[0].command
    assert len({stage.name for stage in stages}) == 4
    # The masks that are hidden are no input of any stage.
    for stage in [start, pais, *stages]:
        assert str(job.hidden) not in map(str, [*stage.command, *stage.inputs])


def write_labels(path, data):
    write_json(path, data)
    write_json(path.with_suffix(".manifest.json"), {"labeler": {"weights_sha256": path.stem}})


def fabricate(job, score):
    """A hidden truth of two instances; the teacher finds one of them better and better, the last
    time with the given score, and always something else."""
    truth = [(7, 1, 4, {}), (8, 2, 4, {})]
    write_json(job.hidden, coco(truth, (7, 8, 9)))
    write_json(job.labelled, coco([(1, 1, 4, {})], (1,)))
    for columns, step in enumerate(job.checkpoints(), start=1):
        own = {"score": score if step else 0.1, "quality": columns / 4}
        other = {"score": 0.3, "quality": 0.1}
        labels = [(7, 1, columns, own), (9, 3, 4, other), (8, 3, 4, {**other, "score": 0.2})]
        write_labels(job.labels(step), coco(labels, (7, 8, 9)))
    for name, ap in (("start", 3.0), ("pais", 4.5)):
        folder = job.run_of(name)[0]
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps({"iteration": 249, "segm/AP": ap}))


def test_table_over_time(job, tmp_path):
    fabricate(job, 0.9)
    result = table.progress_result(job, experiment.CONFIG, {"pais": 60.0}, tmp_path)
    assert result["rows"] == [
        ["0 (supervised start)", "0", "0.00", "0", "–", "0.000", "–", "–"],
        ["100", "1", "0.33", "1", "1.000", "0.500", "0.500", "–"],
        ["200", "1", "0.33", "1", "1.000", "0.500", "0.750", "–"],
        ["250", "1", "0.33", "1", "1.000", "0.500", "1.000", "–"],
    ]
    assert {len(row) for row in result["rows"]} == {len(result["header"])}
    text = measurement_table(result)
    assert "3 images" in text
    assert "c1 1 kept, precision 1.000, recall 1.000 of 1" in text
    assert "Mask AP of the teacher on val: start 3.0, pais 4.5." in text
    json.dumps(result, allow_nan=False)
    for name in ("pais_pseudo_labels", "pais_pseudo_labels_last"):
        assert f"pictures/{name}.png" in text
        assert Image.open(tmp_path / f"{name}.png").size[0] > 800
    assert result["raw"]["labelled_by"][250] == {"weights_sha256": "teacher_00250"}


def test_table_where_nothing_passes(job, tmp_path):
    """The histogram of the scores says how far they are from the floor."""
    fabricate(job, 0.44)
    result = table.progress_result(job, experiment.CONFIG, {}, tmp_path)
    assert {row[1] for row in result["rows"]} == {"0"}
    assert "nothing passes the floor: no score exceeds 0.45" in result["note"]
    assert sum(result["raw"]["steps"][250]["scores"]) == 3


def write_run(folder, unlabelled):
    """What a training leaves: its config and weights."""
    folder.mkdir(parents=True)
    entry = {"name": "u", "json": str(unlabelled), "image_root": "images"}
    write_json(folder / "config.yaml", {"DATASETS": {"REGISTER": [entry], "UNLABELLED": ["u"]}})
    (folder / "model_final.pth").write_bytes(b"")


@pytest.fixture
def nuclei(tmp_path):
    """Two folds of 10 % and one of 5 %, with fabricated labels."""
    for name in ("10_fold0", "10_fold1", "10_fold2", "5_fold1"):  # fold 0 is not asked for
        write_run(tmp_path / "runs" / name / "pais", tmp_path / "unlabelled.json")
    job = experiment.NucleiCalibration(tmp_path, tmp_path / "runs", tmp_path / "out", [1, 2])
    write_json(job.truth, coco([(1, 1, 4, {}), (1, 1, 4, {}), (2, 1, 4, {})], (1, 2), classes=1))
    for name in job.runs:
        labels, hidden = job.files(name)
        write_json(hidden, read_json(job.truth))
        found = [(1, 1, c, {"score": s, "quality": q}) for c, s, q in ((4, 0.9, 1), (2, 0.8, 0.5))]
        found.append((2, 1, 1, {"score": 0.95, "quality": 0.25}))
        write_labels(labels, coco(found, (1, 2), classes=1))
    return job


def test_table_of_calibration(nuclei, tmp_path):
    result = table.calibration_result(nuclei, {}, tmp_path)
    titles = ["10 %, fold 1", "10 %, fold 2", "5 %, fold 1", "10 %, 2 together", "5 %, 1 together"]
    assert [row[0] for row in result["rows"]] == titles
    assert [row[1] for row in result["rows"]] == ["3", "3", "3", "6", "3"]
    # Quality is the IoU; the worst has the highest score.
    assert result["rows"][0][2:4] == ["1.000", "-0.500"]
    assert result["rows"][0][6:] == ["0.000", "0.583", "0.583"]
    assert {len(row) for row in result["rows"]} == {len(result["header"])}
    json.dumps(result, allow_nan=False)
    assert (tmp_path / "pais_calibration.png").stat().st_size > 5000
    measurement_table(result)


def test_a_run_names_its_unlabelled_images(nuclei):
    config = nuclei.runs["5_fold1"] / "config.yaml"
    assert experiment.registered_json(config, "UNLABELLED") == "unlabelled.json"
    with pytest.raises(DataError, match=r"registers no data set of DATASETS\.TEST"):
        experiment.registered_json(config, "TEST")


def test_a_folder_without_runs(tmp_path):
    with pytest.raises(DataError, match="holds no finished run"):
        experiment.NucleiCalibration(tmp_path, tmp_path, tmp_path, [1])


def test_the_command_passes_its_folds_on(nuclei, tmp_path, monkeypatch, capsys):
    (tmp_path / "coco_dev").mkdir()
    monkeypatch.setenv("MASKSMITH_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    given = ["--nuclei", str(tmp_path / "runs"), "--output", str(tmp_path / "new")]
    assert experiment.main([*given, "--folds", "7"]) == 1
    assert "holds no finished run" in capsys.readouterr().err
