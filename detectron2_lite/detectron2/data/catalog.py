"""Global registries: how to load a dataset by name, and what is known about it."""

from __future__ import annotations

import types
from collections import UserDict
from collections.abc import Callable
from typing import Any

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog"]


class _DatasetCatalog(UserDict):
    """Dataset name -> function without arguments that returns a list of dicts."""

    def register(self, name: str, func: Callable[[], list[dict]]) -> None:
        """Register a loader. It is called at every :meth:`get`, and must give the same each time.

        Raises:
            AssertionError: when ``func`` is not callable, or the name is taken.
        """
        assert callable(func), f"dataset {name}: register a function, not {type(func).__name__}"
        assert name not in self, f"Dataset '{name}' is already registered"
        self[name] = func

    def get(self, name: str) -> list[dict]:
        """Load a dataset.

        Raises:
            KeyError: for an unknown name; lists the known ones.
        """
        if name not in self:
            raise KeyError(f"Dataset '{name}' is not registered; available: {', '.join(self)}")
        return self[name]()

    def list(self) -> list[str]:
        """All names."""
        return list(self.data)

    def remove(self, name: str) -> None:
        """Forget a dataset (its metadata stays)."""
        self.pop(name)

    def __repr__(self) -> str:
        return f"DatasetCatalog(registered datasets: {', '.join(self)})"


class Metadata(types.SimpleNamespace):
    """Attributes of a dataset, e.g. ``thing_classes``; each can be given one value only.

    Raises:
        AttributeError: on reading what is not set; lists what is.
        AssertionError: on setting an attribute to a second, different value.
    """

    name: str = "N/A"

    def __getattr__(self, key: str) -> Any:
        # Only reached when the attribute does not exist.
        known = sorted(self.__dict__)
        raise AttributeError(
            f"dataset '{self.name}' has no metadata '{key}'"
            + (f"; there is {known}" if known else "")
        )

    def __setattr__(self, key: str, value: Any) -> None:
        if key in self.__dict__ and self.__dict__[key] != value:
            raise AssertionError(
                f"metadata '{key}' of dataset '{self.name}' is {self.__dict__[key]!r} and cannot "
                f"become {value!r}: register the other dataset under another name"
            )
        super().__setattr__(key, value)

    def as_dict(self) -> dict[str, Any]:
        """A shallow copy of all attributes."""
        return dict(self.__dict__)

    def set(self, **kwargs: Any) -> Metadata:
        """Set several attributes; returns self."""
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """The attribute, or the default."""
        return self.__dict__.get(key, default)


class _MetadataCatalog(UserDict):
    """Dataset name -> :class:`Metadata`, made on first access."""

    def get(self, name: str) -> Metadata:
        """The one Metadata object of that name."""
        if not name:
            raise ValueError("metadata needs a dataset name")
        if name not in self:
            self[name] = Metadata(name=name)
        return self[name]

    def list(self) -> list[str]:
        """All names."""
        return list(self.data)

    def remove(self, name: str) -> None:
        """Forget the metadata of a dataset."""
        self.pop(name)

    def __repr__(self) -> str:
        return f"MetadataCatalog(registered metadata: {', '.join(self)})"


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
