"""Checkpoints in Detectron2's formats."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any
from urllib.parse import parse_qs, urlsplit

import torch
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from fvcore.common.checkpoint import Checkpointer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .c2_model_loading import align_and_update_state_dicts
from .safe_load import load_pickle, load_torch

__all__ = ["DetectionCheckpointer"]

# Buffers of old checkpoints that newer models derive from the config.
_DERIVED = ("pixel_mean", "pixel_std")
_DERIVED_PART = "anchor_generator.cell_anchors"


class DetectionCheckpointer(Checkpointer):
    """fvcore's Checkpointer, extended to model-zoo files.

    Reads ``.pth`` (with or without a "model" entry), zoo ``.pkl`` (names as in the model, or
    suffixes of them with "matching_heuristics", or Caffe2 blobs) and ``.pyth``. The path of a
    ``.pth`` may end in ``?matching_heuristics=True``. Nothing but tensors, arrays and plain
    containers is ever unpickled. Files are written under a temporary name and then moved into
    place.

    Args:
        save_to_disk: None saves on the main process only.
        checkpointables: further objects with ``state_dict``, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ) -> None:
        writes = comm.is_main_process() if save_to_disk is None else save_to_disk
        super().__init__(model, save_dir, save_to_disk=writes, **checkpointables)
        self._heuristics = False
        self._parallel = isinstance(model, DistributedDataParallel)
        self.path_manager = PathManager

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<save_dir>/<name>.pth`` atomically and make it the last checkpoint."""
        if not self.save_dir or not self.save_to_disk:
            return
        if os.path.dirname(name):
            raise ValueError(f"a checkpoint name may not contain a folder: {name}")
        data = {"model": self.model.state_dict()}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(kwargs)
        file_name = f"{name}.pth"
        target = os.path.join(self.save_dir, file_name)
        self.logger.info("Saving checkpoint to %s", target)
        with self._replacing(target, "wb") as stream:
            torch.save(data, stream)
        self.tag_last_checkpoint(file_name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the newest file in ``last_checkpoint``."""
        with self._replacing(os.path.join(self.save_dir, "last_checkpoint"), "w") as stream:
            stream.write(last_filename_basename)

    @contextmanager
    def _replacing(self, target: str, mode: str) -> Iterator[IO]:
        """Open for writing; the target only changes once everything is written."""
        if "://" in target:  # a remote store, which has its own idea of a rename
            with self.path_manager.open(target, mode) as stream:
                yield stream
            return
        with self.path_manager.open(f"{target}.partial", mode) as stream:
            yield stream
        os.replace(f"{target}.partial", target)

    def load(self, path: str, checkpointables: Iterable[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint; returns what was in the file and belongs to nobody.

        Args:
            path: file or URL; "" loads nothing. checkpointables: names to load besides the
                model; None loads all.

        Raises:
            FileNotFoundError: when one of several ranks cannot see the file.
        """
        self._heuristics = False
        parts = urlsplit(path)
        query = parse_qs(parts.query)
        if query:
            flag = query.pop("matching_heuristics", ["False"])
            if query:
                raise ValueError(f"{path}: unknown options {sorted(query)}")
            self._heuristics = flag == ["True"]
            path = parts._replace(query="").geturl()
            if self._heuristics and path.endswith(".pkl"):
                # As upstream does; it says nothing, and the weights would be missing quietly.
                self.logger.warning("%s says itself how to match: the query has no effect", path)
                self._heuristics = False
        self._check_visible(path)
        return super().load(
            path, checkpointables=None if checkpointables is None else list(checkpointables)
        )

    def _check_visible(self, path: str) -> None:
        if not path or not self._parallel:
            return
        # Every rank must load: DDP shares the weights, but never the optimizer's state.
        visible = comm.all_gather(os.path.isfile(self.path_manager.get_local_path(path)))
        if not all(visible):
            missing = [rank for rank, seen in enumerate(visible) if not seen]
            raise FileNotFoundError(f"{path} cannot be read on ranks {missing}")

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            return self._read_zoo_file(filename)
        content = load_torch(filename)
        if filename.endswith(".pyth"):
            if "model_state" not in content:
                raise ValueError(f"{filename}: a .pyth file must have 'model_state'")
            return _to_be_matched(dict(content["model_state"]), "pycls")
        checkpoint = content if "model" in content else {"model": content}
        if not isinstance(checkpoint["model"], dict):
            raise ValueError(f"{filename}: 'model' is not a state dict")
        if self._heuristics:
            checkpoint["matching_heuristics"] = True
        return checkpoint

    def _read_zoo_file(self, path: str) -> dict[str, Any]:
        with self.path_manager.open(path, "rb") as stream:
            content = load_pickle(stream, path)
        if {"model", "__author__"} <= content.keys():
            self.logger.info("Reading a file from '%s'", content["__author__"])
            return content
        blobs = content.get("blobs", content)
        # Caffe2's solver kept its state beside the weights.
        trained = {name: blob for name, blob in blobs.items() if not name.endswith("_momentum")}
        return _to_be_matched(trained, "Caffe2")

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if checkpoint.get("matching_heuristics"):
            checkpoint["model"] = self._matched(checkpoint["model"], checkpoint.get("__author__"))
        incompatible = super()._load_model(checkpoint)
        self._forgive(incompatible.missing_keys, incompatible.unexpected_keys)
        return incompatible

    def _matched(self, weights: dict[str, Any], author: str | None) -> dict[str, torch.Tensor]:
        """Weights under the names that they have in the model."""
        self._convert_ndarray_to_tensor(weights)
        names = self.model.state_dict()
        return align_and_update_state_dicts(names, weights, c2_conversion=author == "Caffe2")

    def _forgive(self, missing: list[str], unexpected: list[str]) -> None:
        """Take those names out of both lists whose tensors the model makes itself."""
        own = {name for name, _ in self.model.named_buffers(recurse=False)}
        missing[:] = [key for key in missing if key not in _DERIVED or key not in own]
        unexpected[:] = [k for k in unexpected if k not in _DERIVED and _DERIVED_PART not in k]


def _to_be_matched(weights: dict[str, Any], author: str) -> dict[str, Any]:
    """A checkpoint whose names are suffixes of the model's, or can be converted to such."""
    return {"__author__": author, "matching_heuristics": True, "model": weights}
