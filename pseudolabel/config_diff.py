"""In which keys two configs differ, as values rather than as lines of a log."""

from collections.abc import Mapping
from typing import Any

ABSENT = "(absent)"


def flat_keys(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """DOTTED.NAME -> value of every leaf of a nested mapping, such as a config."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        flat |= flat_keys(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """DOTTED.NAME -> (old value, new value) where they are unequal, in order of the names.

    Tuples and lists with equal items are equal: YAML knows lists alone. A key that one of them
    lacks is `ABSENT` there.
    """
    before, after = flat_keys(old), flat_keys(new)
    pairs = {
        key: (before.get(key, ABSENT), after.get(key, ABSENT))
        for key in sorted(before.keys() | after.keys())
    }
    return {key: pair for key, pair in pairs.items() if _plain(pair[0]) != _plain(pair[1])}


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
