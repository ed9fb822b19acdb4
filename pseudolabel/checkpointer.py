"""Checkpoints that run no code and survive a kill and a full disk, with either build of
Detectron2."""

import pickle
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer

from pseudolabel.checkpoints import check_pickle
from pseudolabel.errors import DataError
from pseudolabel.files import atomic_write


class SafeCheckpointer(DetectionCheckpointer):
    """Detectron2's, in every format it reads, none of which may run code."""

    def _load_file(self, filename: str) -> dict:
        if ".pkl" in Path(filename).name:
            path = filename.partition("?")[0]
            try:
                check_pickle(path)
            except (pickle.UnpicklingError, OSError) as error:
                remedy = "take weights from a source that you trust, as .pth or .pkl of arrays"
                raise DataError(path, f"cannot be loaded ({error})", remedy) from error
        return super()._load_file(filename)


class AtomicCheckpointer(SafeCheckpointer):
    """Detectron2's, except that a file is either the whole old one or the whole new one.

    A checkpoint and the pointer to it (`last_checkpoint`) are written beside their place, synced
    and renamed into it, in this order, so that the pointer never leads to an unfinished file.
    """

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes `<save_dir>/<name>.pth` and makes it the last checkpoint; on rank 0 alone.

        Args:
            name: without folder and suffix.
            kwargs: further entries of the file.

        Raises:
            DataError: the disk is full or cannot be written to; what was there is intact.
        """
        if not (self.save_dir and self.save_to_disk):
            return
        target = Path(self.save_dir, f"{name}.pth")
        # A killed writer leaves its part behind, as large as a checkpoint.
        for remnant in target.parent.glob(".*.pth.*.tmp"):
            remnant.unlink(missing_ok=True)
        self.logger.info("Writing checkpoint %s", target)
        parts = {"model": self.model, **self.checkpointables}
        content = {key: part.state_dict() for key, part in parts.items()} | kwargs
        try:
            with atomic_write(target, "wb") as file:
                torch.save(content, file)
            self.tag_last_checkpoint(target.name)
        # torch reports a write that failed in its own words.
        except (OSError, RuntimeError) as error:
            raise DataError(
                target,
                f"the checkpoint could not be written ({_cause(error)})",
                "check disk space and rights; the checkpoint before is whole, --resume goes on "
                "from it",
            ) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Names the file from which a resumed run goes on."""
        with atomic_write(Path(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename)


def _cause(error: BaseException) -> str:
    """What the system said: of an error of writing that torch's own hides, the innermost."""
    while error.__context__ is not None:
        error = error.__context__
    return (error.strerror if isinstance(error, OSError) else None) or str(error).split("\n")[0]
