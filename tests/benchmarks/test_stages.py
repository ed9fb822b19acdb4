"""The stage runner: real subprocesses, skipped when nothing changed, errors that name the log."""

import json

import pytest
from stages import Runner, Stage, StageError


def writer(folder, name="a", text="x", inputs=()):
    output = folder / f"{name}.txt"
    code = f"open({str(output)!r}, 'a').write({text!r})"
    return Stage(name, ["-c", code], list(inputs), [output])


def test_a_stage_runs_once(tmp_path):
    for _ in range(2):
        seconds = Runner(tmp_path, [[writer(tmp_path)]]).run()
    assert (tmp_path / "a.txt").read_text() == "x"
    assert seconds.keys() == {"a"}  # the duration of the run that counts is kept


@pytest.mark.parametrize("change", ["input", "command", "output"])
def test_a_stage_runs_again_when_something_changed(change, tmp_path):
    source = tmp_path / "in.txt"
    source.write_text("1")
    Runner(tmp_path, [[writer(tmp_path, inputs=[source])]]).run()
    if change == "input":
        source.write_text("2")
    if change == "output":
        (tmp_path / "a.txt").unlink()
    text = "y" if change == "command" else "x"
    Runner(tmp_path, [[writer(tmp_path, text=text, inputs=[source])]]).run()
    expected = {"input": "xx", "command": "xy", "output": "x"}[change]
    assert (tmp_path / "a.txt").read_text() == expected


def test_stages_of_a_group_run_side_by_side_and_groups_in_order(tmp_path):
    first = [writer(tmp_path, "a"), writer(tmp_path, "b")]
    second = writer(tmp_path, "c", inputs=[tmp_path / "a.txt", tmp_path / "b.txt"])
    assert Runner(tmp_path, [first, [second]]).run().keys() == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; print('the reason'); sys.exit(3)", r"exit code 3.*bad\.log.*the reason"),
        ("pass", "did not write"),  # ends well, but without its output
    ],
)
def test_a_failed_stage_names_its_log_and_is_not_counted_as_done(code, message, tmp_path):
    stage = Stage("bad", ["-c", code], outputs=[tmp_path / "never.txt"])
    with pytest.raises(StageError, match=rf"(?s)stage bad failed.*{message}"):
        Runner(tmp_path, [[stage]]).run()
    assert not (tmp_path / "receipts" / "bad.json").exists()


def test_progress_is_read_from_the_metrics_of_a_run(tmp_path):
    stage = Stage("train", [], run_dir=tmp_path, max_iter=200)
    assert stage.progress() == 0
    lines = [{"iteration": 19}, {"iteration": 49, "total_loss": 1.0}]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert stage.progress() == pytest.approx(49 / 200)


def test_a_run_is_resumed_on_the_same_inputs_and_begun_anew_on_others(tmp_path):
    labels, run_dir = tmp_path / "labels.json", tmp_path / "run"
    labels.write_text("1")
    stage = Stage("train", ["-c", "pass"], [labels], run_dir=run_dir)
    stage.keep_or_clear_run()
    (run_dir / "checkpoint").touch()
    stage.keep_or_clear_run()
    assert (run_dir / "checkpoint").exists()
    labels.write_text("2")
    stage.keep_or_clear_run()
    assert not (run_dir / "checkpoint").exists()
