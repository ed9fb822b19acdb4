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
from pseudolabel.validation import LISTS, UNREAD, check_images, check_labels, load_labels


@dataclass
class Findings:
    """What is wrong with a label file.

    Attributes:
        path: the file.
        data: what it holds; None where it cannot be read.
        defects: of the file, its records and its images.
        image_defects: those of the image files among them.
    """

    path: str
    data: Any
    defects: list[Defect] = field(default_factory=list)
    image_defects: list[Defect] = field(default_factory=list)

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


def examine(
    path: str | Path,
    image_root: str | Path | None,
    pixels: bool = True,
    allow_links: bool = False,
) -> Findings:
    """Checks a file and, if an image folder is given, the images.

    Args:
        pixels: whether to read the images to their end.
        allow_links: whether links below the image folder may lead out of it.
    """
    data, defects = load_labels(path)
    if any(defect.kind in UNREAD for defect in defects):
        return Findings(str(path), None, defects)
    of_images = []
    if image_root is not None:
        of_images = check_images(data, image_root, pixels=pixels, allow_links=allow_links)
    return Findings(str(path), data, defects + check_labels(data) + of_images, of_images)


def write_repair(findings: Findings, path: str | Path) -> Repair:
    """Writes the repaired file; whole or not at all.

    Raises:
        DataError: the file cannot be repaired, or nothing would be left of one of its lists.
        OSError: the file cannot be written; what was there before stays.
    """
    for defect in findings.defects:
        if defect.kind == "duplicate_key":
            problem = f"the file cannot be repaired: {defect.problem}"
            raise DataError(findings.path, problem, defect.remedy)
    try:
        repair = repair_labels(findings.data, findings.image_defects)
    except UnrepairableError as error:
        first = next(d for d in findings.defects if d.severity == ERROR)
        raise DataError(findings.path, f"{error}; {first.problem}", first.remedy) from error
    _refuse_emptied(findings.path, repair)
    if any(defect.kind == "byte_order_mark" for defect in findings.defects):
        repair.steps.insert(0, Step("changed", FILE, "removed the byte order mark"))
    text = strict_json(repair.data)
    with atomic_write(path) as file:
        file.write(text + "\n")
    return repair


def _refuse_emptied(path: str, repair: Repair) -> None:
    """A file that has lost all of its records has a fault of another kind: a wrong folder, say."""
    for kind, count in repair.counts.items():
        if count["in"] and not count["out"]:
            first = next(s for s in repair.steps if s.action == "dropped" and s.place[0] == kind)
            raise DataError(
                path,
                f"not repaired, since none of its {count['in']} {kind} would be left; "
                f"{first.record}: {first.reason}",
                "look for a cause that all of them share, such as a wrong image folder",
            )


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
