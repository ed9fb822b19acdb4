"""Labelled and unlabelled parts of a COCO JSON, for semi-supervised learning.

The generator is SHA-256. The images are put in the order of the hashes of "fold image-id"; the
first floor(p % of n) are labelled. So a split depends on the ids alone: not on the order of the
file, the platform, or the version of a library. And the smaller percents of a fold lie in its
larger ones.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

from pseudolabel.errors import DataError

FOLDER = "semi_supervised"
"""Beside the JSON that was split: where the parts lie unless told otherwise."""
CITYSCAPES = "instancesonly_filtered_gtFine_train"
"""Name of the parts of Cityscapes, before the fold."""
# Counts of LVIS, which hold for the whole file only.
STATED_COUNTS = ("image_count", "instance_count")

_PERCENT = re.compile(r"\d+(\.\d+)?")
_PART = re.compile(
    r"(?P<stem>.+)\.(?P<fold>\d+)@(?P<percent>\d+(\.\d+)?)"
    r"(?P<stratified>-stratified)?(-unlabeled)?\.json"
)


def read_percent(text: str) -> Decimal:
    """A percentage above 0 and below 100, exactly as it is written.

    Raises:
        ValueError: it is none.
    """
    if not _PERCENT.fullmatch(text) or not 0 < Decimal(text) < 100:
        raise ValueError(f"{text!r} is no percentage above 0 and below 100")
    return Decimal(text)


def split_name(stem: str, fold: int, percent: Decimal, stratified: bool = False) -> str:
    """Name of the labelled part without `.json`, such as "instances_train2017.1@10"."""
    number = format(percent, "f")
    number = number.rstrip("0").rstrip(".") if "." in number else number
    return f"{stem}.{fold}@{number}{'-stratified' * stratified}"


def labelled_count(images: int, percent: Decimal) -> int:
    """floor(percent / 100 * images), in exact arithmetic."""
    return int(images * percent // 100)


def draw(ids: Iterable[int], count: int, fold: int) -> list[int]:
    """`count` of the image ids, uniformly and without replacement.

    Returns:
        Sorted ids.
    """
    return sorted(sorted(ids, key=lambda key: _place(key, fold))[:count])


def draw_stratified(
    images: Sequence[Mapping[str, Any]], instances: Mapping[int, int], count: int, fold: int
) -> list[int]:
    """`count` image ids that spread over the image sizes and the numbers of instances.

    The images are sorted by area, those of one area by their number of instances, and cut into
    `count` runs of equal length up to one; one image of each run is drawn.

    Args:
        images: with id, height and width.
        instances: of each image id; absent for none.

    Returns:
        Sorted ids.
    """

    def key(image: Mapping[str, Any]) -> tuple:
        area = image["height"] * image["width"]
        return area, instances.get(image["id"], 0), _place(image["id"], fold)

    order = [image["id"] for image in sorted(images, key=key)]
    bounds = [len(order) * index // count for index in range(count + 1)] if count else []
    runs = (order[start:end] for start, end in pairwise(bounds))
    return sorted(min(run, key=lambda key: _place(key, fold)) for run in runs)


def _place(image_id: int, fold: int) -> bytes:
    return hashlib.sha256(f"{fold} {image_id}".encode()).digest()


def instances_per_image(data: Mapping[str, Any]) -> Counter:
    """Number of annotations of each image id; crowds do not count."""
    return Counter(a["image_id"] for a in data["annotations"] if not a.get("iscrowd"))


def check_split(data: Mapping[str, Any], source: object, labelled: Collection[int]) -> None:
    """Refuses a split with which nothing could be learnt.

    Args:
        data: the checked JSON.
        source: its path.
        labelled: image ids.

    Raises:
        DataError: no labelled image, no unlabelled one, or no instance in the labelled ones.
    """
    total = len(data["images"])
    if not labelled:
        problem = f"the labelled part would be empty (of {total} images)"
        raise DataError(source, problem, "take a larger percentage")
    if len(labelled) == total:
        problem = f"the unlabelled part would be empty (all {total} images are labelled)"
        raise DataError(source, problem, "leave some images out")
    counts = instances_per_image(data)
    if not any(counts[key] for key in labelled):
        raise DataError(
            source,
            f"the labelled part would have no instance ({len(labelled)} images)",
            "take a larger percentage, another fold, or --stratify",
        )


def parts(
    data: Mapping[str, Any], labelled: Iterable[int], origin: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON of the labelled and that of the unlabelled images.

    Everything stays as it is and in its order, but for counts that the categories state. The
    unlabelled part has an empty list of annotations.

    Args:
        data: the whole JSON; stays as it is.
        labelled: image ids.
        origin: how the split was made; becomes `info.split`.
    """
    chosen = set(labelled)
    info = data.get("info")
    head = {**data, "info": {**(info if isinstance(info, dict) else {}), "split": dict(origin)}}
    head["categories"] = [
        {key: value for key, value in category.items() if key not in STATED_COUNTS}
        for category in data["categories"]
    ]
    kept = [image for image in data["images"] if image["id"] in chosen]
    rest = [image for image in data["images"] if image["id"] not in chosen]
    annotations = [a for a in data["annotations"] if a["image_id"] in chosen]
    return (
        {**head, "images": kept, "annotations": annotations},
        {**head, "images": rest, "annotations": []},
    )


def read_ids(path: str | Path, known: Collection[int]) -> list[int]:
    """Image ids of a text file, one a line; `#` begins a comment.

    Args:
        known: the ids of the JSON.

    Returns:
        Sorted ids.

    Raises:
        DataError: unreadable, empty, no whole number, an id twice, or one that the JSON lacks.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(path, f"cannot be read ({error})", "check the path") from error
    seen: set[int] = set()
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        where = f"line {number}"
        if not re.fullmatch(r"-?\d+", text):
            raise DataError(
                path, f"{text!r} is no image id", "write one whole number a line", where
            )
        key = int(text)
        if key in seen:
            raise DataError(path, f"image {key} occurs twice", "remove one of the lines", where)
        if key not in known:
            raise DataError(path, f"the JSON has no image {key}", "remove the line", where)
        seen.add(key)
    if not seen:
        raise DataError(path, "lists no image", "write one image id a line")
    return sorted(seen)


def class_table(data: Mapping[str, Any], splits: Mapping[str, Collection[int]]) -> str:
    """Instances per class, crowds apart, in the whole file and in the labelled parts, as text.

    Args:
        data: the checked JSON.
        splits: labelled image ids by the title of their column.
    """
    columns = {"all": {image["id"] for image in data["images"]}}
    columns |= {title: set(ids) for title, ids in splits.items()}
    objects = [a for a in data["annotations"] if not a.get("iscrowd")]
    filled = {a["image_id"] for a in objects}
    counts = {
        title: Counter(a["category_id"] for a in objects if a["image_id"] in ids)
        for title, ids in columns.items()
    }
    rows = [
        ["instances of", *columns],
        *(
            [str(category["name"]), *(str(count[category["id"]]) for count in counts.values())]
            for category in sorted(data["categories"], key=lambda category: category["id"])
        ),
        ["all classes", *(str(count.total()) for count in counts.values())],
        ["images", *(str(len(ids)) for ids in columns.values())],
        ["images without instance", *(str(len(ids - filled)) for ids in columns.values())],
    ]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def command_for(json_file: str | Path) -> str | None:
    """The command that makes a missing file, by its name.

    Args:
        json_file: where it is looked for.

    Returns:
        None for a name that is none of a part with a fold and a percentage.
    """
    path = Path(json_file)
    match = _PART.fullmatch(path.name)
    if match is None:
        return None
    folders = (path.parent.parent, path.parent)
    names = (folder / f"{match['stem']}.json" for folder in folders)
    default = folders[0] if path.parent.name == FOLDER else Path("FOLDER")
    source = next((name for name in names if name.is_file()), default / f"{match['stem']}.json")
    if match["stem"] == CITYSCAPES and not source.is_file():
        source = path.parents[2] if len(path.parents) > 2 else Path("CITYSCAPES")
    stratify = " --stratify" if match["stratified"] else ""
    return (
        f"python datasets/prepare_splits.py {source} --percent {match['percent']} "
        f"--fold {match['fold']}{stratify} --output {path.parent}"
    )
