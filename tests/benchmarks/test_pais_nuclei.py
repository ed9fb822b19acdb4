"""The nuclei experiment of PAIS: what it would run, what it keeps, and what it makes of the runs.

Nothing is trained: runs are folders with a config, metrics and predictions made here.
"""

import json
from dataclasses import replace

import numpy as np
import pais_nuclei
import pytest
from pais_arms import ARMS, HARD, START, Arm
from pais_nuclei import Experiment, Run
from pais_runs import AT_END, CURVE, curve, is_finished, read_run, score
from pais_table import METRICS, _draw, clears, pais_record, write_curves
from stages import ROOT, Runner
from tables import measurement_table

from pseudolabel.ap import GroundTruth
from pseudolabel.config_diff import differences
from pseudolabel.errors import DataError
from pseudolabel.files import file_hash, write_json
from pseudolabel.masks import encode_rle
from pseudolabel.paired import spread

NUCLEI, ITERATIONS = 110, 100
OPTS = ["SOLVER.MAX_ITER", str(ITERATIONS)]


def nucleus(number):
    """A square of 3x3 px and its box; they do not touch."""
    top, left = 4 * (number // 20), 4 * (number % 20)
    return {"segmentation": rle(top, left, 3), "bbox": [left, top, 3, 3], "category_id": 1}


def rle(top, left, width):
    mask = np.zeros((24, 80), dtype=bool)
    mask[top : top + 3, left : left + width] = True
    return encode_rle(mask)


def coco(images):
    """One image per number: so many nuclei are in it."""
    annotations = [
        {"image_id": image, "iscrowd": 0, "area": 9, **nucleus(number)}
        for image, count in enumerate(images, 1)
        for number in range(count)
    ]
    return {
        "images": [
            {"id": key, "file_name": f"{key}.png", "height": 24, "width": 80}
            for key in range(1, len(images) + 1)
        ],
        "annotations": [{"id": key, **each} for key, each in enumerate(annotations, 1)],
        "categories": [{"id": 1, "name": "nucleus"}],
    }


def predictions(found):
    """The first nuclei of the image of val, each exactly, with falling scores."""
    return [{"image_id": 1, "score": 0.9 - n / 1000, **nucleus(n)} for n in range(found)]


def expected_ap(found, counted=200):
    """Of such predictions: the precision is 1 up to the recall, 0 beyond it, at 101 recalls."""
    recall = min(found, counted) / NUCLEI
    return 100 * sum(step / 100 <= recall for step in range(101)) / 101


@pytest.fixture(scope="module")
def configs():
    """Read once for all tests."""
    return {}


@pytest.fixture
def toy(tmp_path, configs):
    """An experiment that may be changed."""
    return make_toy(tmp_path, configs)


def make_toy(tmp_path, configs):
    """10 %, three folds, a val of one image with 110 nuclei."""
    for split, images in (("train", [1] * 20), ("val", [NUCLEI])):
        path = tmp_path / f"data/annotations/instances_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, coco(images))
    experiment = Experiment(tmp_path / "data", tmp_path / "out", (10,), opts=OPTS)
    experiment._configs = configs
    return experiment


def run_of(experiment, name, fold=1):
    """The run of that arm at 10 %."""
    return next(run for run in experiment.runs(10, fold) if run.arm.name == name)


def begin(experiment, run, change=lambda keys: None):
    """Writes the config.yaml of a run that somebody began elsewhere, by other names and paths."""
    labelled, unlabelled = experiment.split(run.percent, run.fold)
    cfg = experiment.config(run)
    sets = {"lab": labelled.name, "unl": unlabelled.name, "held": experiment.val.name}
    cfg.DATASETS.REGISTER = [
        {"name": name, "json": f"elsewhere/{file}", "image_root": "images"}
        for name, file in sets.items()
    ]
    cfg.DATASETS.TRAIN, cfg.DATASETS.UNLABELLED = ("lab",), ("unl",)
    cfg.DATASETS.TEST, cfg.TEST.EVAL_PERIOD = ("held",), 10
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    if run.arm.name != START:
        origin = run.arm.evaluates or START
        cfg.MODEL.WEIGHTS = f"elsewhere/{run.percent}_fold{run.fold}/{origin}/model_final.pth"
    change(cfg)
    folder = experiment.folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


def finish(experiment, run, teacher, student, on_the_way=(), statistics=None):
    """A finished run whose networks find so many nuclei at its end."""
    folder = begin(experiment, run)
    (folder / "model_final.pth").touch()
    lines = [{"iteration": 19, "total_loss": 1.0, **(statistics or {})}]
    lines += [{"iteration": step - 1, "teacher/segm/AP": ap} for step, ap in on_the_way]
    last = {"iteration": ITERATIONS}
    for network, found in (("teacher", teacher), ("student", student)):
        path = folder / f"inference/held/{network}/coco_instances_results.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, predictions(found))
        last[f"{network}/segm/AP"] = expected_ap(found, 100)
    if not run.arm.evaluates:
        text = "\n".join(map(json.dumps, [*lines, last]))
        (folder / "metrics.json").write_text(text + "\n")
    return folder


def stages_of(experiment):
    return {stage.name: stage for group in experiment.plan() for stage in group}


def value(command, key):
    return command[command.index(key) + 1]


# The plan.


def test_a_start_comes_before_its_arms_and_folds_follow_each_other(toy):
    toy.folds, toy.jobs = (1, 2), 2
    toy.arms = [ARMS[name] for name in ("supervised", "pais_ranked", "hard", "pais")]
    names = [[stage.name for stage in group] for group in toy.plan()]
    assert names[0][0] == "splits"
    assert names[1:5] == [
        ["10_fold1_start"],
        ["10_fold1_supervised", "10_fold1_hard"],
        ["10_fold1_pais"],
        ["10_fold1_pais_ranked"],  # evaluates the weights of the one before
    ]
    assert [name.replace("fold2", "fold1") for g in names[5:] for name in g] == [
        name for g in names[1:5] for name in g
    ]


def test_arms_begin_with_the_teacher_of_their_start_and_differ_in_their_own_keys(toy):
    toy.arms = list(ARMS.values())
    stages = stages_of(toy)
    start = stages["10_fold2_start"].command
    assert start[1] == "--resume"
    assert value(start, "MODEL.PAIS.ENABLED") == "False"
    assert value(start, "SEED") == "2"
    assert "TEST.EVAL_PERIOD" not in start
    weights = str(toy.folder(run_of(toy, START, 2)) / "model_final.pth")
    for name in ("supervised", "hard", "pais", "pais_weight_2"):
        command = stages[f"10_fold2_{name}"].command
        assert command[1] == "--resume"
        assert value(command, "MODEL.WEIGHTS") == weights
        assert value(command, "MODEL.PAIS.EMA.START") == "teacher"
        assert value(command, "TEST.EVAL_PERIOD") == "50"
        assert value(command, "SEED") == "2"
        assert str(toy.split(10, 2)[0]) in value(command, "DATASETS.REGISTER")
        assert value(command, "DATASETS.UNLABELLED") == "('unlabelled',)"
    evaluation = stages["10_fold2_pais_ranked"].command
    assert evaluation[1] == "--eval-only"
    assert value(evaluation, "MODEL.WEIGHTS").endswith("10_fold2/pais/model_final.pth")


@pytest.mark.parametrize("name", sorted(ARMS.keys() - {"pais"}))
def test_an_arm_differs_from_pais_in_the_keys_that_it_names(toy, name):
    ours, pais = (toy.config(Run(10, 1, ARMS[arm])) for arm in (name, "pais"))
    changed = {key: new for key, (_, new) in differences(pais, ours).items()}
    assert changed == ARMS[name].changes


def test_the_common_start_and_the_supervised_arm_see_no_unlabelled_image(toy):
    for name in (START, "supervised"):
        assert not toy.config(run_of(toy, name)).MODEL.PAIS.ENABLED


def test_which_of_two_values_holds(toy):
    """YAML < every run < start or arms < --opts < what makes the arm."""
    toy.options = {
        "every": {"SOLVER.BASE_LR": 0.1, "SOLVER.WEIGHT_DECAY": 0.2, "SOLVER.GAMMA": 0.3},
        "start": {"SOLVER.WEIGHT_DECAY": 0.4},
        "arms": {"SOLVER.GAMMA": 0.5},
    }
    toy.opts = [*OPTS, "SOLVER.GAMMA", "0.6", "MODEL.PAIS.SCORE_FLOOR", "0.3"]
    found = {}
    for name in (START, "hard", "pais"):
        cfg = toy.config(run_of(toy, name))
        floor = cfg.MODEL.PAIS.SCORE_FLOOR
        found[name] = (cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.GAMMA, floor)
    own = HARD["MODEL.PAIS.SCORE_FLOOR"]
    assert found == {
        START: (0.1, 0.4, 0.6, 0.3),
        "hard": (0.1, 0.2, 0.6, own),
        "pais": (0.1, 0.2, 0.6, 0.3),
    }


def test_the_splits_are_written_where_the_runs_look_for_them(toy):
    Runner(toy.output, [toy.plan()[0][:1]]).run()
    for fold in toy.folds:
        labelled, unlabelled = (json.loads(p.read_text()) for p in toy.split(10, fold))
        assert len(labelled["images"]) == 2
        assert len(unlabelled["images"]) == 18


# What is kept.


def test_finished_runs_are_kept_whoever_made_them(toy):
    finish(toy, run_of(toy, START), 40, 40)
    finish(toy, run_of(toy, "hard"), 50, 50)
    assert not {"10_fold1_start", "10_fold1_hard"} & stages_of(toy).keys()


# What is missing of a finished run -> it goes on, and its folder is not emptied.
STOPPED = {
    # The predictions are those of an evaluation on the way.
    "final evaluation": lambda f: cut_last_line(f / "metrics.json"),
    "weights": lambda f: (f / "model_final.pth").unlink(),
    "student": lambda f: (f / "inference/held/student/coco_instances_results.json").unlink(),
}


def cut_last_line(path):
    """As a kill leaves it: the last line is there in part."""
    path.write_text(path.read_text()[:-30])


@pytest.mark.parametrize("missing", STOPPED)
def test_a_run_that_was_stopped_goes_on_in_its_folder(toy, missing):
    folder = finish(toy, run_of(toy, "hard"), 50, 50, [(50, 40.0)])
    STOPPED[missing](folder)
    stage = stages_of(toy)["10_fold1_hard"]
    stage.keep_or_clear_run()
    assert (folder / "config.yaml").is_file()
    assert folder / "model_final.pth" in stage.outputs


def test_an_evaluation_needs_no_metrics(toy):
    run = Run(10, 1, ARMS["pais_ranked"])
    folder = finish(toy, run, 50, 50)
    assert is_finished(folder, toy.check(run), trained=False)
    assert not is_finished(folder, toy.check(run))


def set_momentum(cfg):
    cfg.MODEL.PAIS.EMA.MOMENTUM = 0.5


def set_seed(cfg):
    cfg.SEED = 7


def set_labels(cfg):
    cfg.DATASETS.REGISTER[0]["json"] = "elsewhere/instances_train.2@10-stratified.json"


def drop_unlabelled(cfg):
    cfg.DATASETS.UNLABELLED = ()


def set_start(cfg):
    cfg.MODEL.WEIGHTS = "elsewhere/10_fold2/start/model_final.pth"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_momentum, r"MODEL\.PAIS\.EMA\.MOMENTUM is 0\.5"),
        (set_seed, "SEED is 7, and 1 is asked for"),
        (set_labels, r"DATASETS\.TRAIN is .*2@10.*not instances_train\.1@10"),
        (drop_unlabelled, r"DATASETS\.UNLABELLED is \[\]"),
        (set_start, "MODEL.WEIGHTS is not 10_fold1/start/model_final.pth"),
    ],
)
def test_a_run_of_something_else_is_refused(toy, change, message):
    run = run_of(toy, "hard")
    begin(toy, run)
    toy.check(run)  # as it should be
    begin(toy, run, change)
    with pytest.raises(DataError, match=message):
        toy.plan()


def test_a_key_that_is_younger_than_a_run_was_at_its_default(toy):
    run = run_of(toy, "pais")
    begin(toy, run, lambda cfg: cfg.MODEL.PAIS.pop("RANK_GAMMA"))
    toy.check(run)
    toy.opts = [*OPTS, "MODEL.PAIS.RANK_GAMMA", "1.0"]
    with pytest.raises(DataError, match=r"RANK_GAMMA is \(absent\), and 1\.0 is asked for"):
        toy.check(run)


def test_keys_of_pseudo_labels_do_not_matter_without_them(toy):
    def lower_floor(cfg):
        cfg.MODEL.PAIS.SCORE_FLOOR = 0.1

    for name in (START, "supervised"):
        begin(toy, run_of(toy, name), lower_floor)
    toy.plan()
    begin(toy, run_of(toy, "pais"), lower_floor)
    with pytest.raises(DataError, match=r"SCORE_FLOOR is 0\.1"):
        toy.plan()


def test_a_run_on_other_content_of_a_file_is_refused(toy):
    run = run_of(toy, "hard")
    folder = begin(toy, run)
    write_json(folder / "data_hashes.json", {"held": file_hash(toy.val)})
    toy.check(run)
    write_json(toy.val, coco([NUCLEI - 1]))
    with pytest.raises(DataError, match=r"instances_val\.json has changed"):
        toy.check(run)


# The numbers.


def reference(truth, rows, most):
    """AP and AP75 of masks by pycocotools, from its precision: `summarize` knows 100 alone."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    known = COCO()
    known.dataset = truth
    known.createIndex()
    run = COCOeval(known, known.loadRes([dict(row) for row in rows]), "segm")
    run.params.maxDets = [1, 10, most]
    run.evaluate()
    run.accumulate()
    precision = run.eval["precision"][..., 0, -1]
    return 100 * precision.mean(), 100 * precision[5].mean()


@pytest.mark.parametrize("found", [30, 105, NUCLEI])
def test_ap_at_100_and_at_200_detections(found):
    truth, rows = coco([NUCLEI]), predictions(found)
    # Of each third mask a column is missed: an IoU of .67.
    for row in rows[::3]:
        left, top = row["bbox"][:2]
        row["segmentation"] = rle(top, left, 2)
    numbers = score(GroundTruth(truth, "val"), rows)
    at_100, at_200 = reference(truth, rows, 100), reference(truth, rows, 200)
    assert (numbers["mask AP"], numbers["AP75"]) == pytest.approx(at_100)
    assert (numbers["mask AP @200"], numbers["AP75 @200"]) == pytest.approx(at_200)
    assert numbers["AP75"] < numbers["mask AP"]
    assert numbers["box AP"] == pytest.approx(expected_ap(found, 100))
    assert numbers.keys() == AT_END.keys()


def test_of_a_curve_the_steps_made_count():
    lines = [
        {"iteration": 49, "teacher/segm/AP": 1.0, "student/segm/AP": 9.0},
        {"iteration": 60, "total_loss": 0.1},
        {"iteration": 99, "teacher/segm/AP": 2.0},
        {"iteration": 99, "teacher/segm/AP": 3.0},  # again, after it was resumed
        {"iteration": 150, "teacher/segm/AP": 4.0},  # at the end there is no further step
    ]
    assert curve(lines, "teacher", 150) == [[50, 1.0], [100, 3.0], [150, 4.0]]
    assert curve(lines, "student", 150) == [[50, 9.0]]


def test_predictions_of_another_evaluation_are_refused(toy):
    run = run_of(toy, "hard")
    folder = finish(toy, run, 50, 50)
    write_json(folder / "inference/held/student/coco_instances_results.json", predictions(49))
    with pytest.raises(DataError, match=r"student.*gives mask AP 44\.\d+, metrics.json 45\."):
        read_run(folder, toy.check(run), GroundTruth.read(toy.val))


def test_statistics_of_the_pseudo_labels_are_means_over_a_run(toy):
    key = "pseudo-labels/kept per image"
    run = run_of(toy, "hard")
    folder = finish(toy, run, 50, 50, statistics={key: 3.0})
    with (folder / "metrics.json").open("a") as file:
        file.write(json.dumps({"iteration": 39, key: 5.0}) + "\n")
    found = read_run(folder, toy.check(run), GroundTruth.read(toy.val))
    assert found.statistics == {key: 4.0}


# Nuclei found per fold; those beyond 100 count at 200 detections alone.
FOUND = {
    START: (40, 50, 60),
    "supervised": (50, 61, 70),
    "hard": (60, 70, 83),
    "pais": (63, 101, 84),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, configs):
    """Three folds; a student finds two nuclei fewer than its teacher, the evaluation one more."""
    toy = make_toy(tmp_path_factory.mktemp("finished"), configs)
    toy.arms = [ARMS[name] for name in ("supervised", "hard", "pais", "pais_ranked")]
    for index, fold in enumerate(toy.folds):
        for name, counts in FOUND.items():
            way = [] if name == START else [(25, 10.0 + index), (50, 20.0)]
            finish(toy, run_of(toy, name, fold), counts[index], counts[index] - 2, way)
        ranked = FOUND["pais"][index] + 1
        finish(toy, run_of(toy, "pais_ranked", fold), ranked, ranked)
    return toy


@pytest.fixture(scope="module")
def result(finished):
    return pais_record(finished, "toy", {"splits": 1.0})


def test_the_table_pairs_folds(result):
    rows = {tuple(row[:3]): row[3:] for row in result["rows"]}
    assert all(len(row) == len(result["header"]) for row in result["rows"])
    ap = {name: [expected_ap(n, 100) for n in counts] for name, counts in FOUND.items()}
    at = METRICS.index
    for name, values in ap.items():
        shown = spread(values).show(1)
        assert rows["10 %", name, "teacher"][at("mask AP")] == shown
        assert rows["10 %", name, "teacher"][-1] == "3"
    assert rows["10 %", "pais", "student"][at("mask AP")] != spread(ap["pais"]).show(1)
    at_200 = spread([expected_ap(n) for n in FOUND["pais"]]).show(1)
    assert rows["10 %", "pais", "teacher"][at("mask AP @200")] == at_200
    # The start has one evaluation, which is no curve; nor has an evaluation of weights.
    assert rows["10 %", START, "teacher"][at(CURVE)] == "–"
    means = [(10 + f + 20 + ap["pais"][f]) / 3 for f in range(3)]
    assert rows["10 %", "pais", "teacher"][at(CURVE)] == spread(means).show(1)
    gains = result["raw"]["differences"]
    expected = spread([a - b for a, b in zip(ap["pais"], ap["hard"])])
    found = gains["10 teacher pais - hard"]["mask AP"]
    assert (found["mean"], found["std"]) == pytest.approx((expected.mean, expected.std))
    assert {key.split(" ", 2)[2] for key in gains} == {
        *("pais - hard", "hard - supervised", "pais - supervised", "supervised - start"),
        *("pais_ranked - pais", "pais_ranked - hard"),
    }


def test_what_clears_two_deviations_is_said(result):
    """hard - supervised is +10, +9, +13; pais - hard is +3, +30 (+31 at 200 detections), +1."""
    gains = result["raw"]["differences"]
    assert gains["10 teacher hard - supervised"]["mask AP"]["clears"]
    assert not gains["10 teacher pais - hard"]["mask AP"]["clears"]
    page = measurement_table(result)
    assert "Of the headline these are: 10 %: hard > supervised" in page
    line = next(row for row in page.splitlines() if "| hard - supervised | teacher |" in row)
    assert line.count("**") >= 2
    line = next(row for row in page.splitlines() if "| pais - hard | teacher |" in row)
    assert not line.split("|")[4].strip().startswith("**")
    assert "1 of 1 images of val have more than 100 nuclei" in page
    assert "`hard`: DALOSS False, SCORE_FLOOR" in page
    assert "`pais_ranked`: RANK_GAMMA 1.0, the weights of `pais`" in page


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 1.1, 1.2], True),
        ([1.0, 3.0, 5.0], False),  # 3 ± 2
        ([-1.0, -1.1, -1.2], False),  # clearly worse
        ([1.0, 1.1], False),  # two folds
        ([], False),
    ],
)
def test_two_deviations(values, expected):
    assert clears(spread(values)) is expected


def test_what_is_not_there_is_named_and_pairs_are_left(finished):
    folder = finished.folder(run_of(finished, "pais", 2))
    hidden = folder.rename(folder.with_name("away"))
    result = pais_record(finished, "toy", {})
    hidden.rename(folder)
    assert result["raw"]["missing"] == ["10_fold2/pais"]
    assert "Not finished: 10_fold2/pais." in result["text"]
    assert result["raw"]["differences"]["10 teacher pais - hard"]["mask AP"]["n"] == 2


def test_the_record_is_json_without_paths(finished, result, tmp_path):
    write_json(tmp_path / "result.json", result)
    text = (tmp_path / "result.json").read_text()
    assert str(finished.output.parent) not in text
    assert str(ROOT) not in text
    assert result["seeds"] == [1, 2, 3]
    assert result["configs"]["10"]["file"] == "configs/pais/nuclei_10.yaml"
    assert result["data"]["val"]["instances"] == NUCLEI


def test_without_an_arm_there_is_no_table(toy):
    finish(toy, run_of(toy, START), 40, 40)
    with pytest.raises(DataError, match=r"no finished arm.*--collect-only"):
        pais_record(toy, "toy", {})


# The picture.


def test_lines_begin_with_the_start(result):
    from matplotlib.figure import Figure

    runs = result["raw"]["runs"]
    own = {name.partition("_")[2]: run for name, run in runs.items()}
    panel = Figure().subplots()
    _draw(panel, own, ["supervised", "hard", "pais", "pais_ranked"])
    lines = {line.get_label(): line for line in panel.get_lines()}
    assert {name for name in lines if name[0] != "_"} == {"supervised", "hard", "pais"}
    assert len(panel.get_lines()) == 3 * (3 + 1)  # folds, and their mean
    begin = np.mean([expected_ap(n) for n in FOUND[START]])
    for name in ("supervised", "hard", "pais"):
        end = np.mean([expected_ap(n, 100) for n in FOUND[name]])
        assert list(lines[name].get_xdata()) == [0, 25, 50, ITERATIONS]
        assert lines[name].get_ydata() == pytest.approx([begin, 11.0, 20.0, end])
    assert len({(line.get_color(), line.get_linestyle()) for line in lines.values()}) >= 3


def test_a_picture_is_written(result, tmp_path):
    paths = [tmp_path / "new" / f"{n}.png" for n in "ab"]
    for path in paths:
        write_curves(result, path)
    assert paths[0].read_bytes()[:4] == b"\x89PNG"
    assert paths[0].read_bytes() == paths[1].read_bytes()


# The command.


def test_the_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MASKSMITH_DATA", str(tmp_path))
    assert pais_nuclei.main([]) == 1
    assert "export MASKSMITH_DATA" in capsys.readouterr().err
    folder = tmp_path / "dsb2018_dev/annotations"
    folder.mkdir(parents=True)
    write_json(folder / "instances_val.json", coco([1]))
    output = ["--output", str(tmp_path / "out")]
    assert pais_nuclei.main(["--collect-only", *output]) == 1
    assert "no finished arm" in capsys.readouterr().err
    assert pais_nuclei.main(["--collect-only", *output, "--opts", "SEED"]) == 1
    assert "KEY VALUE" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        pais_nuclei.parse_args(["--arms", "nothing"])


def test_the_protocol():
    """Fixed before the runs: 5 and 10 %, three folds, three arms, a common start."""
    args = pais_nuclei.parse_args([])
    assert (args.percents, args.folds) == ([5, 10], [1, 2, 3])
    assert args.arms == ["supervised", "hard", "pais"]
    assert pais_nuclei.OPTIONS["arms"]["MODEL.PAIS.EMA.START"] == "teacher"
    assert Run(5, 3, Arm("pais")).name == "5_fold3/pais"
    assert replace(ARMS["pais"]) == Arm("pais"), "the config as it is"
