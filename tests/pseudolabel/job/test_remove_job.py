"""The folder of a finished job goes, whatever arrives in it meanwhile."""

import shutil

from pseudolabel.job.run import remove_job


def test_a_file_that_is_made_while_the_folder_is_emptied_goes_too(tmp_path, monkeypatch):
    job, left = tmp_path / "labels.json.job", tmp_path / ".labels.json.job.before"
    for folder in (job, left):
        (folder / "leases").mkdir(parents=True)
    late, real = [], shutil.rmtree

    def remove(path, **options):
        if path not in late:
            late.append(path)
            (path / "leases" / "clock").touch()
            return  # as where a folder is not empty any more
        real(path, **options)

    monkeypatch.setattr(shutil, "rmtree", remove)
    remove_job(job)
    assert len(late) == 2
    assert not list(tmp_path.iterdir())
