"""Repair of label files: what follows from the file alone is mended, the rest is dropped by name.

Nothing is guessed. Every record that goes, and every value that changes, is one `Step`.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from pseudolabel.checks import is_integer
from pseudolabel.defects import ERROR, FILE, Defect
from pseudolabel.repair_actions import MENDED, mend
from pseudolabel.validation import LISTS, check_labels
from pseudolabel.validation_records import LVIS_LISTS, SINGULAR, record_name

# A mended record may show another defect, once or twice; after these rounds it is dropped.
MENDING_ROUNDS = 4
# Where an image lies is not for the JSON to say; its record stays.
NOT_OF_THE_RECORD = frozenset({"image_outside_root"})
# A float holds every whole number below this exactly.
EXACT = 2**53
REFERENCES = {"image_id": "images", "category_id": "categories"}


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that a repair did.

    Attributes:
        action: "dropped" (the record is gone), "changed" (a value), or "left" (a warning stays).
        record: as in the input, "annotation 12".
        reason: the defect, and what became of the value.
        place: the list and the position in it, both of the input; None for the file as a whole.
    """

    action: str
    record: str
    reason: str
    place: tuple[str, int] | None = None

    def __str__(self) -> str:
        return f"{self.action} {self.record}: {self.reason}"


@dataclass
class Repair:
    """A repaired label file and its accounts.

    Attributes:
        data: the new JSON.
        steps: what was done, in order.
        counts: for each list of the file, its records in, out and dropped.
    """

    data: dict[str, Any]
    steps: list[Step] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)


class UnrepairableError(ValueError):
    """The file as a whole cannot be mended."""


def repair_labels(data: object, image_defects: Iterable[Defect] = ()) -> Repair:
    """Mends a parsed label file; the input is left alone.

    Args:
        data: what `json` has read.
        image_defects: of `check_images` on the same data; an image with an error is dropped with
            its annotations, but for one that lies behind a link.

    Returns:
        The new data, in which `check_labels` finds no error, and every step.

    Raises:
        UnrepairableError: the data is no JSON object, or lacks one of its lists.
    """
    lists = data if isinstance(data, dict) else {}
    lacking = [key for key in LISTS if not isinstance(lists.get(key), list)]
    if lacking:
        raise UnrepairableError(f"the file cannot be repaired: it has no list {lacking[0]!r}")
    return _Workshop(data).run([d for d in image_defects if d.severity == ERROR])


class _Workshop:
    """The records under repair, each beside its position in the input."""

    def __init__(self, data: dict[str, Any]):
        self.given = data
        self.head = {key: value for key, value in data.items() if key not in LISTS}
        self.rows: dict[str, list] = {kind: list(enumerate(data[kind])) for kind in LISTS}
        self.steps: list[Step] = []
        self.gone: dict[str, set] = {kind: set() for kind in LISTS}
        self.last_id = 0

    def run(self, image_defects: list[Defect]) -> Repair:
        """Repairs, until no error is left."""
        for defect in image_defects:
            if defect.kind in NOT_OF_THE_RECORD:
                self._note("left", defect.place, defect.problem)
        self._round([d for d in image_defects if d.kind not in NOT_OF_THE_RECORD], mending=False)
        self._convert_numbers()
        self.last_id = max({0, *self._ids("annotations"), *_integer_ids(self.given["annotations"])})
        rounds = 0
        while True:
            mending = rounds < MENDING_ROUNDS
            found = check_labels(self.data())
            work = [d for d in found if d.severity == ERROR or (mending and d.kind in MENDED)]
            if not work:
                break
            self._round(work, mending)
            rounds += 1
        for defect in found:
            self._note("left", self._origin(defect.place), defect.problem)
        return Repair(self.data(), self.steps, self._counts())

    def data(self) -> dict[str, Any]:
        """The JSON as it stands, its keys in the order of the input."""
        now = {kind: [entry for _, entry in rows] for kind, rows in self.rows.items()}
        now |= self.head
        return {key: now[key] for key in self.given if key in now}

    def _counts(self) -> dict[str, dict[str, int]]:
        dropped = Counter(s.place[0] for s in self.steps if s.action == "dropped" and s.place)
        return {
            kind: {"in": len(self.given[kind]), "out": len(rows), "dropped": dropped[kind]}
            for kind, rows in self.rows.items()
        }

    def _origin(self, place: tuple[str, int] | None) -> tuple[str, int] | None:
        return None if place is None else (place[0], self.rows[place[0]][place[1]][0])

    def _note(self, action: str, origin: tuple[str, int] | None, reason: str) -> None:
        name = FILE
        if origin is not None:
            kind, position = origin
            name = record_name(kind, self.given[kind][position], position)
        self.steps.append(Step(action, name, reason, origin))

    def _ids(self, kind: str) -> set[int]:
        return _integer_ids(entry for _, entry in self.rows[kind])

    def _fresh_id(self) -> int:
        self.last_id += 1
        return self.last_id

    def _round(self, defects: list[Defect], mending: bool) -> None:
        by_place: dict[tuple[str, int], list[Defect]] = defaultdict(list)
        for defect in defects:
            if defect.place is None:
                self.head.pop(defect.key)
                self._note("changed", None, f"{defect.problem}; removed the key")
            else:
                by_place[defect.place].append(defect)
        doomed = self._doubles([d for d in defects if d.kind.startswith("duplicate_")])
        sizes = {e["id"]: _size(e) for _, e in self.rows["images"] if _has_integer_id(e)}
        around = {"categories": self._ids("categories"), "fresh_id": self._fresh_id}
        for place, wrong in by_place.items():
            if place not in doomed:
                entry = self.rows[place[0]][place[1]][1]
                key = entry.get("image_id") if isinstance(entry, dict) else None
                size = sizes.get(key) if is_integer(key) else None
                self._treat(place, wrong, {**around, "size": size}, mending)
        for place, reason in doomed.items():
            self._drop(place, reason)
        for kind, rows in self.rows.items():
            self.rows[kind] = [row for row in rows if row is not None]

    def _treat(
        self, place: tuple[str, int], wrong: list[Defect], around: dict, mending: bool
    ) -> None:
        """Mends a record, or drops it where one of its defects cannot be mended."""
        position, before = self.rows[place[0]][place[1]]
        entry, changes = before, []
        for defect in wrong:
            if defect.key and changes and entry.get(defect.key) is not before.get(defect.key):
                # Judged anew in the next round.
                continue
            outcome = mend(entry, defect, around) if mending else None
            if outcome is None:
                self._drop(place, self._why(defect, entry))
                return
            entry, change = outcome
            changes.append(change)
        self.rows[place[0]][place[1]] = (position, entry)
        for change in changes:
            self._note("changed", (place[0], position), change)

    def _why(self, defect: Defect, entry: Any) -> str:
        for key, kind in REFERENCES.items():
            if defect.key == key and defect.kind.startswith("unknown_"):
                value = entry.get(key)
                if is_integer(value) and value in self.gone[kind]:
                    return f"its {SINGULAR[kind]} {value} was dropped"
        return defect.problem

    def _drop(self, place: tuple[str, int], reason: str) -> None:
        kind, index = place
        position, entry = self.rows[kind][index]
        if _has_integer_id(entry):
            self.gone[kind].add(entry["id"])
        self._note("dropped", (kind, position), reason)
        self.rows[kind][index] = None

    def _doubles(self, defects: list[Defect]) -> dict[tuple[str, int], str]:
        """Records to drop for their id: exact copies, and images or categories that contradict."""
        doomed = {}
        for kind in {d.place[0] for d in defects if d.key == "id"}:
            groups = defaultdict(list)
            for index, (_, entry) in enumerate(self.rows[kind]):
                if _has_integer_id(entry):
                    groups[entry["id"]].append(index)
            for key, indices in groups.items():
                entries = [self.rows[kind][index][1] for index in indices]
                apart = [i for i, entry in zip(indices, entries) if entry != entries[0]]
                for index in set(indices[1:]) - set(apart):
                    doomed[kind, index] = f"an exact copy of another {SINGULAR[kind]} {key}"
                if apart and kind != "annotations":
                    why = f"id {key} occurs twice, for different records"
                    doomed.update({(kind, index): why for index in indices})
        return doomed

    def _convert_numbers(self) -> None:
        """Whole numbers in quotes or with a decimal point become whole numbers: ids, if none is
        taken, what refers to them, and sizes."""
        for kind in LISTS:
            taken = self._ids(kind)
            self._convert(kind, ("id",), lambda number, taken=taken: number not in taken)
        known = {kind: self._ids(kind) - self._ambiguous(kind) for kind in REFERENCES.values()}
        for key, kind in REFERENCES.items():
            self._convert("annotations", (key,), known[kind].__contains__)
        self._convert("images", ("height", "width"), lambda number: True)
        for index, (position, entry) in enumerate(self.rows["images"]):
            for key in LVIS_LISTS if isinstance(entry, dict) else ():
                listed = entry.get(key)
                if not isinstance(listed, list):
                    continue
                numbers = [_number_of(i) for i in listed]
                good = sum(number in known["categories"] for number in numbers)
                if good:
                    pairs = zip(listed, numbers)
                    new = [n if n in known["categories"] else given for given, n in pairs]
                    entry = {**entry, key: new}
                    self.rows["images"][index] = (position, entry)
                    self._note("changed", ("images", position), f"{key}: {good} to whole numbers")

    def _convert(self, kind: str, keys: tuple[str, ...], fits: Callable[[int], bool]) -> None:
        for index, (position, entry) in enumerate(self.rows[kind]):
            for key in keys if isinstance(entry, dict) else ():
                number = _number_of(entry.get(key))
                if number is not None and fits(number):
                    self._note("changed", (kind, position), f"{key} {entry[key]!r} -> {number}")
                    entry = {**entry, key: number}
                    self.rows[kind][index] = (position, entry)

    def _ambiguous(self, kind: str) -> set[int]:
        """Numbers that one record has as id and another one, written otherwise, as well."""
        entries = (entry for _, entry in self.rows[kind] if isinstance(entry, dict))
        return {_number_of(entry.get("id")) for entry in entries} - {None}


def _number_of(value: object) -> int | None:
    """12 for "12" and 12.0; None for whole numbers and for all that is none surely."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < EXACT else None
    if not isinstance(value, str) or not value.isascii() or not value.isdecimal():
        return None
    # Longer ones may take long to read.
    return int(value) if len(value) <= 18 and str(int(value)) == value else None


def _has_integer_id(entry: object) -> bool:
    return isinstance(entry, dict) and is_integer(entry.get("id"))


def _integer_ids(entries: Iterable) -> set[int]:
    return {entry["id"] for entry in entries if _has_integer_id(entry)}


def _size(image: dict) -> tuple[int, int] | None:
    sides = (image.get("height"), image.get("width"))
    return sides if all(is_integer(n) and n > 0 for n in sides) else None
