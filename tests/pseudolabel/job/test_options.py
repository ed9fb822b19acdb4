"""Options of the labelling command: which part of a job a task has, and what no output may be."""

import pytest

from pseudolabel.errors import DataError
from pseudolabel.job.options import JobOptions, parse_share


@pytest.mark.parametrize(
    ("text", "environment", "share"),
    [
        ("", {"RANK": "1", "WORLD_SIZE": "2"}, None),  # only on request
        ("0/1", {}, (0, 1)),
        ("7/8", {}, (7, 8)),
        ("env", {"RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
        ("env", {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4"}, (3, 4)),
        (
            "env",
            {
                **{"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_COUNT": "4"},
                "SLURM_ARRAY_TASK_MIN": "1",
            },
            (3, 4),
        ),
        ("8/8", {}, "no share"),
        ("-1/8", {}, "no share"),
        ("1", {}, "no share"),
        ("1/2/3", {}, "no share"),
        ("a/b", {}, "no share"),
        ("env", {"RANK": "x"}, "no share"),
        ("env", {"RANK": "1"}, "no share"),
        ("env", {}, "neither SLURM_ARRAY_TASK_ID nor RANK"),
    ],
)
def test_share_of_a_task(text, environment, share):
    if isinstance(share, str):
        with pytest.raises(DataError, match=share):
            parse_share(text, environment)
    else:
        assert parse_share(text, environment) == share


@pytest.mark.parametrize("name", ["a.json", "a.rejects.jsonl", "a.manifest.json"])
def test_an_output_that_is_a_folder_is_refused_at_once(name, tmp_path):
    options = JobOptions(tmp_path, tmp_path / "a.json")
    options.check()
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=f"{name}: the output is a folder"):
        options.check()


@pytest.mark.parametrize("name", ["a.json", "a.rejects.jsonl", "a.manifest.json", "a.json.job"])
def test_an_output_that_is_a_link_is_refused_at_once(name, tmp_path):
    """It would become a file; parts in a folder on another disk could not be renamed."""
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=f"{name}: is a link"):
        JobOptions(tmp_path, tmp_path / "a.json").check()
