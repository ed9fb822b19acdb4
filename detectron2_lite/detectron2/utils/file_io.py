"""`PathManager`: one object that opens local paths, URLs and `detectron2://` names."""

from __future__ import annotations

from typing import Any

from iopath.common.file_io import HTTPURLHandler, OneDrivePathHandler, PathHandler
from iopath.common.file_io import PathManager as _IopathManager

__all__ = ["PathHandler", "PathManager"]

MODEL_SERVER = "https://dl.fbaipublicfiles.com/detectron2/"


class Detectron2Handler(PathHandler):
    """Resolves `detectron2://<path>` to the file of that name on the model server."""

    PREFIX = "detectron2://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _url(self, path: str) -> str:
        return MODEL_SERVER + path.removeprefix(self.PREFIX)

    def _get_local_path(self, path: str, **kwargs: Any) -> str:
        return PathManager.get_local_path(self._url(path), **kwargs)

    def _open(self, path: str, mode: str = "r", **kwargs: Any) -> Any:
        return PathManager.open(self._url(path), mode, **kwargs)


def _path_manager() -> _IopathManager:
    manager = _IopathManager()
    for handler in (HTTPURLHandler(), OneDrivePathHandler(), Detectron2Handler()):
        manager.register_handler(handler)
    return manager


PathManager = _path_manager()
