"""Findings on a label file and its images, and what becomes of them: a repair, a report."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pseudolabel.checks import strict_json
from pseudolabel.defects import ERROR, FILE, Defect
from pseudolabel.errors import DataError
from pseudolabel.files import atomic_write, write_json
from pseudolabel.repair import Repair, Step, UnrepairableError, repair_labels
from pseudolabel.validation import LISTS, check_images, check_labels, load_labels


@dataclass
class Findings:
    """What is wrong with a label file.

    Attributes:
        path: the file.
        data: what it holds; None where it cannot be read.
        defects: of the file, its records and its images.
    """

    path: str
    data: Any
    defects: list[Defect] = field(default_factory=list)

    @property
    def errors(self) -> int:
        """Number of errors."""
        return sum(defect.severity == ERROR for defect in self.defects)

    @property
    def warnings(self) -> int:
        """Number of warnings."""
        return len(self.defects) - self.errors

    def counts(self) -> dict[str, int]:
        """Defects by kind, the most frequent first."""
        return dict(Counter(defect.kind for defect in self.defects).most_common())

    def line(self, defect: Defect) -> str:
        """One defect in one line."""
        name = self.path if defect.record == FILE else f"{self.path} ({defect.record})"
        text = f"{name}: {defect.severity} {defect.kind}: {defect.problem}."
        return f"{text} Remedy: {defect.remedy}.".replace("\n", " ")


def examine(path: str | Path, image_root: str | Path | None, pixels: bool = True) -> Findings:
    """Checks a file and, if an image folder is given, the images.

    Args:
        pixels: whether to read the images to their end.
    """
    data, defects = load_labels(path)
    if not any(defect.severity == ERROR for defect in defects):
        defects = defects + check_labels(data)
        if image_root is not None:
            defects += check_images(data, image_root, pixels=pixels)
    return Findings(str(path), data, defects)


def write_repair(findings: Findings, path: str | Path) -> Repair:
    """Writes the repaired file; whole or not at all.

    Raises:
        DataError: the file cannot be repaired.
        OSError: the file cannot be written; what was there before stays.
    """
    try:
        repair = repair_labels(findings.data, findings.defects)
    except UnrepairableError as error:
        first = next(d for d in findings.defects if d.severity == ERROR)
        raise DataError(findings.path, f"{error}; {first.problem}", first.remedy) from error
    if any(defect.kind == "byte_order_mark" for defect in findings.defects):
        repair.steps.insert(0, Step("changed", FILE, "removed the byte order mark"))
    text = strict_json(repair.data)
    with atomic_write(path) as file:
        file.write(text + "\n")
    return repair


def write_report(findings: Findings, repair: Repair | None, path: str | Path) -> None:
    """Writes findings and steps as JSON: each annotation of the input is kept or in a step."""
    lists = findings.data if isinstance(findings.data, dict) else {}
    sizes = {key: len(lists[key]) for key in LISTS if isinstance(lists.get(key), list)}
    report = {
        "file": findings.path,
        "errors": findings.errors,
        "warnings": findings.warnings,
        "records": sizes,
        "counts": findings.counts(),
        "defects": [asdict(defect) for defect in findings.defects],
    }
    if repair is not None:
        steps = [asdict(step) for step in repair.steps]
        report["repair"] = {"counts": repair.counts, "steps": steps}
    write_json(path, report, indent=1)
