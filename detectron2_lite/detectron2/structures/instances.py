"""One container for everything that is known of the objects in an image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Instances"]


class Instances:
    """Fields of equal length N, one entry per object, plus the image's size.

    A field is anything with a length that can be indexed: a tensor (N, ...), `Boxes`, masks, a
    list. Fields are set and read as attributes; names that start with an underscore are plain
    attributes. Indexing selects objects in all fields together.
    """

    def __init__(self, image_size: tuple[int, int], **kwargs: Any) -> None:
        """Start with the given fields.

        Args:
            image_size: (height, width) of the image whose coordinates the fields use.
            kwargs: the first fields.
        """
        self._image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in kwargs.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width)."""
        return self._image_size

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            object.__setattr__(self, name, value)
        else:
            self.set(name, value)

    def __getattr__(self, name: str) -> Any:
        # Reached only for what is no real attribute. An object under construction (by pickle
        # or copy) has no fields yet, and looking them up here would recurse.
        fields = self.__dict__.get("_fields", {})
        if name not in fields:
            present = ", ".join(fields) or "none"
            raise AttributeError(f"Instances has no field {name!r}; its fields: {present}")
        return fields[name]

    def set(self, name: str, value: Any) -> None:
        """Add or replace a field.

        Raises:
            AssertionError: its length differs from that of the fields already there.
        """
        length = len(value)
        if self._fields:
            assert length == len(self), f"{name!r} has {length} entries, the others {len(self)}"
        self._fields[name] = value

    def has(self, name: str) -> bool:
        """Whether the field exists."""
        return name in self._fields

    def remove(self, name: str) -> None:
        """Delete a field.

        Raises:
            KeyError: there is none of that name.
        """
        del self._fields[name]

    def get(self, name: str) -> Any:
        """The field of that name.

        Raises:
            KeyError: there is none of that name.
        """
        return self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """Name -> field; the dict itself, changes to it change this object."""
        return self._fields

    def _rebuild(self, values: Iterator[tuple[str, Any]]) -> Instances:
        return Instances(self._image_size, **dict(values))

    def to(self, *args: Any, **kwargs: Any) -> Instances:
        """Call `.to(...)` on every field that has it; the others are shared."""
        return self._rebuild(
            (name, value.to(*args, **kwargs) if hasattr(value, "to") else value)
            for name, value in self._fields.items()
        )

    def __getitem__(self, item: int | slice | Tensor) -> Instances:
        """Select objects by int (keeps length 1), slice, index tensor or (N,) bool tensor."""
        if isinstance(item, int):
            if not -len(self) <= item < len(self):
                raise IndexError(f"Index {item} is out of range for {len(self)} instances")
            item = slice(item, item + 1 or None)
        return self._rebuild((name, value[item]) for name, value in self._fields.items())

    def __len__(self) -> int:
        for value in self._fields.values():
            return len(value)
        raise NotImplementedError("Instances without any field have no length")

    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError("Instances cannot be iterated; index them or use their fields")

    @staticmethod
    def cat(instance_lists: Sequence[Instances]) -> Instances:
        """Concatenate objects of images of the same size.

        Tensors, lists and classes with a `cat` can be joined. A single element comes back
        unchanged.

        Raises:
            AssertionError: the list is empty, or holds something else, or sizes differ.
            ValueError: a field cannot be joined.
        """
        assert len(instance_lists) > 0, "Nothing to concatenate"
        strangers = [other for other in instance_lists if not isinstance(other, Instances)]
        assert not strangers, f"Expected Instances, got {strangers[0]!r}"
        first = instance_lists[0]
        if len(instance_lists) == 1:
            return first
        for other in instance_lists[1:]:
            assert other.image_size == first.image_size, (
                f"Image sizes differ: {other.image_size} and {first.image_size}"
            )
        return first._rebuild(
            (name, _join(name, [x.get(name) for x in instance_lists])) for name in first._fields
        )

    def __repr__(self) -> str:
        height, width = self._image_size
        count = len(self) if self._fields else 0
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        return (
            f"Instances(num_instances={count}, image_height={height}, image_width={width}, "
            f"fields=[{fields}])"
        )


def _join(name: str, values: list[Any]) -> Any:
    kind = type(values[0])
    if isinstance(values[0], Tensor):
        return torch.cat(values)
    if isinstance(values[0], list):
        return [entry for part in values for entry in part]
    if hasattr(kind, "cat"):
        return kind.cat(values)
    raise ValueError(f"Field {name!r} of type {kind.__name__} cannot be concatenated")
