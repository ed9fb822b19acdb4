"""tools/retention.py: what it would train, what it collects, and what it refuses to compare."""

import json

import pytest
import yaml

from pseudolabel.errors import DataError
from pseudolabel.files import file_hash, write_json
from pseudolabel.retention import last_quarter_gain
from tests.tiny import CONFIGS, write_coco
from tests.tools.commands import load_command

command = load_command("retention")
CONFIG = str(CONFIGS / "mask_rcnn/sample.yaml")
ARMS = {"human": "human.json", "mal": "mal_{seed}.json", "ellipse": "ellipse.json"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Human masks and label files of two arms."""
    write_coco(tmp_path).rename(tmp_path / "human.json")
    for name in ("mal_0", "mal_1", "mal_2", "ellipse"):
        (tmp_path / f"{name}.json").write_text((tmp_path / "human.json").read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arguments(*more):
    labels = [f"{arm}={path}" for arm, path in ARMS.items() if arm != "human"]
    fixed = ["--config-file", CONFIG, "--human", "human.json", "--images", ".", "--val"]
    return [
        *fixed,
        "human.json",
        "--labels",
        *labels,
        "--output",
        "runs",
        "--seeds",
        "0",
        "1",
        "2",
        *more,
    ]


def comparison(*more):
    args = command.parse_args(arguments(*more))
    return command.Comparison(**{key: getattr(args, key) for key in command.KEYS})


def finish(arm, seed, ap, history=(), **changes):
    """A finished run as tools/train_net.py leaves it; `changes` are DOTTED__KEY = value."""
    this = comparison()
    stage = this._data((this.output.parent / ARMS[arm].format(seed=seed)).resolve())
    cfg = this.config()
    cfg.merge_from_list([*stage, "SEED", seed])
    config = yaml.safe_load(cfg.dump())
    for key, value in changes.items():
        *path, last = key.split("__")
        node = config
        for name in path:
            node = node[name]
        node[last] = value
    run = this.output / f"rcnn_{arm}_seed{seed}"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "model_final.pth").write_bytes(b"weights")
    numbers = {"segm/AP50": 2 * ap, "segm/AP75": ap / 2, "bbox/AP": 33.0}
    steps = [*history, (699, ap)]
    lines = [{"iteration": s, "segm/AP": value, **numbers} for s, value in steps]
    (run / "metrics.json").write_text("\n".join(json.dumps(line) for line in lines))
    return run


def finish_all(
    human=(40.0, 42.0, 41.0), mal=(39.0, 41.5, 40.0), ellipse=(36.0, 38.0, 37.5), gain=0.1
):
    for arm, values in (("human", human), ("mal", mal), ("ellipse", ellipse)):
        for seed, ap in enumerate(values):
            finish(arm, seed, ap, history=[(524, ap - gain)])


def test_table(folder, capsys):
    finish_all()
    assert command.main(arguments("--collect-only")) == 0
    text = capsys.readouterr().out
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if "|" in line}
    assert "41.0 ± 1.0" in rows["human"]
    # 39 - 40, 41.5 - 42, 40 - 41; 39 - 36, 41.5 - 38, 40 - 37.5; 100 x 39 / 40, ...
    assert "| -0.8 ± 0.3 | +3.0 ± 0.5 | 98.0 ± 0.7 | 3 |" in rows["mal"]
    assert "of the paired difference: mal." in text
    assert "gained +0.1 ± 0.0 AP." in text
    assert "9 runs did not write down the hash" in text
    assert "Not finished" not in text


# AP of human masks, of MAL, of the ellipse; what is said.
SAID = [
    ((20.0, 21.0), (19.0, 20.0), (18.0, 19.0), "under-trained"),
    ((40.0,) * 3, (39.0, 37.0, 38.0), (36.0, 38.0, 37.0), "difference: no arm."),  # +3, -1, +1
    ((40.0,), (39.0,), (36.0,), "one seed"),
    ((40.0,), (39.0,), (36.0,), "Not finished: rcnn_human_seed1, rcnn_mal_seed1"),
    ((), (39.0,), (36.0,), "No run on human masks is finished"),
]


@pytest.mark.parametrize(("human", "mal", "ellipse", "said"), SAID)
def test_what_the_table_does_not_show_is_said(folder, human, mal, ellipse, said):
    finish_all(human, mal, ellipse)
    result = comparison().collect("x")
    assert said in result["text"] + str(result["rows"])


# A key of one run, its value, and the name in the error.
REFUSED = [
    ({"SOLVER__MAX_ITER": 100}, "SOLVER.MAX_ITER is 100, but 700 in the config that is asked for"),
    ({"MODEL__WEIGHTS": "other.pth"}, "MODEL.WEIGHTS"),
    ({"SEED": 5}, "SEED is 5, not the 1"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_runs_of_other_settings_are_refused(folder, capsys, changes, said):
    finish("human", 0, 40.0)
    run = finish("mal", 1, 39.0, **changes)
    assert command.main(arguments("--collect-only")) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {run}/config.yaml: ")
    assert said in error
    assert error.count("\n") == 1


def test_two_seeds_prove_nothing_and_a_gain_is_no_convergence(folder):
    finish_all((40.0, 42.0), (39.0, 41.5), (36.0, 38.0), gain=0.5)
    text = comparison().collect("x")["text"]
    assert "paired difference" not in text
    assert "gained +0.5 ± 0.0 AP: they have not converged." in text


def test_labels_that_changed_after_the_run_are_refused(folder):
    finish("human", 0, 40.0)
    run = finish("mal", 0, 39.0)
    hashes = {"arm_train": file_hash(folder / "mal_0.json")}
    write_json(run / "data_hashes.json", hashes)
    assert "1 runs did not write down" in comparison().collect("x")["text"]
    (folder / "mal_0.json").write_text((folder / "mal_0.json").read_text() + " ")
    for attempt in (lambda: comparison().collect("x"), lambda: comparison().plan()):
        with pytest.raises(DataError, match="the file has changed since"):
            attempt()


def test_runs_of_another_config_than_the_one_asked_for_are_refused(folder):
    finish_all()
    with pytest.raises(DataError, match=r"SOLVER\.MAX_ITER is 700, but 50"):
        comparison("--opts", "SOLVER.MAX_ITER", "50").plan()


@pytest.mark.parametrize("more", [["--seeds", "0", "0"], ["--labels", "a=x.json", "a=y.json"]])
def test_nothing_counts_twice(folder, more, capsys):
    with pytest.raises(SystemExit):
        command.parse_args(arguments(*more))
    assert "twice" in capsys.readouterr().err


def test_other_data_is_refused(folder):
    finish("human", 0, 40.0)
    run = finish("mal", 0, 39.0)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("mal_0.json", "ellipse.json"))
    with pytest.raises(DataError, match=r"trained on .*ellipse\.json, not on .*mal_0\.json"):
        comparison().collect("x")
    (run / "config.yaml").write_text(text.replace("human.json", "easy.json"))
    with pytest.raises(DataError, match="json of val"):
        comparison().collect("x")


def test_a_key_that_an_older_run_lacks_has_its_default(folder):
    finish("human", 0, 40.0)
    run = finish("mal", 0, 39.0)
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["SOLVER"]["ACCUMULATE"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert comparison().collect("x")["seeds"] == [0]


def test_what_is_left_to_train(folder):
    finish("human", 0, 40.0)
    unfinished = finish("mal", 0, 39.0)
    (unfinished / "model_final.pth").unlink()
    (stages,) = zip(*comparison("--opts", "SOLVER.MAX_ITER", "700").plan())
    # Seed by seed, so that pairs are complete early; the finished one is left alone.
    assert [stage.name for stage in stages] == [
        *("rcnn_mal_seed0", "rcnn_ellipse_seed0"),
        *("rcnn_human_seed1", "rcnn_mal_seed1", "rcnn_ellipse_seed1"),
        *("rcnn_human_seed2", "rcnn_mal_seed2", "rcnn_ellipse_seed2"),
    ]
    for stage in stages:
        words = stage.command
        arm, seed = stage.name[5:-6], stage.name[-1]
        assert "--resume" in words
        assert ARMS[arm].format(seed=seed) in words[words.index("DATASETS.REGISTER") + 1]
        assert words[words.index("SEED") + 1] == seed
        assert words[words.index("SOLVER.MAX_ITER") + 1] == "700"
        # The arm that the others are divided by is looked at once before its end.
        assert ("TEST.EVAL_PERIOD" in words) == (arm == "human")
    stages[0].keep_or_clear_run()
    assert (unfinished / "metrics.json").exists(), "a run that was begun goes on"


def test_a_run_begun_on_other_labels_is_not_continued(folder):
    run = finish("mal", 0, 39.0)
    (run / "model_final.pth").unlink()
    text = (run / "config.yaml").read_text().replace("mal_0.json", "ellipse.json")
    (run / "config.yaml").write_text(text)
    with pytest.raises(DataError, match="it was trained on"):
        comparison().plan()


def test_nothing_is_written_without_being_asked(folder):
    finish_all()
    before = sorted(folder.rglob("*"))
    assert command.main(arguments("--collect-only")) == 0
    assert command.main(arguments()) == 0, "all are finished: there is nothing to train"
    assert sorted(folder.rglob("*")) == before


def test_missing_files_are_said(folder, capsys):
    assert command.main(arguments("--collect-only")) == 1
    assert "holds no finished run" in capsys.readouterr().err
    (folder / "mal_1.json").unlink()
    assert command.main(arguments()) == 1
    assert "mal_1.json: the file does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("labels", ["mal", "human=x.json", "=x.json"])
def test_wrong_usage(folder, labels):
    fixed = ["--config-file", CONFIG, "--human", "h", "--images", ".", "--val", "v"]
    with pytest.raises(SystemExit) as stopped:
        command.parse_args([*fixed, "--labels", labels, "--output", "runs"])
    assert stopped.value.code == 2


# [iteration, mask AP] of a run of 400, and what it won after three quarters.
GAINS = [
    ([[299, 30.0], [399, 31.0]], 1.0),
    ([[99, 20.0], [299, 30.0], [399, 31.0]], 1.0),  # the last before counts
    ([[350, 30.0], [399, 31.0]], None),  # too late to tell
    ([[399, 31.0]], None),
    ([], None),
]


@pytest.mark.parametrize(("history", "gain"), GAINS)
def test_last_quarter(history, gain):
    assert last_quarter_gain({"history": history}) == gain
