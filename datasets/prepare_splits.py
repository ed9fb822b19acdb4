"""Split the training set of a semi-supervised experiment into a labelled and an unlabelled part.

    python datasets/prepare_splits.py instances_train2017.json --percent 1 2 5 10 --fold 1 2 3 4 5
    python datasets/prepare_splits.py CITYSCAPES --percent 5 10 20 30 --fold 1
    python datasets/prepare_splits.py instances_train.json --ids my_images.txt

The source is any COCO JSON, or the folder of Cityscapes (`leftImg8bit` and `gtFine`), whose train
split is converted first; its JSON with `--name instancesonly_filtered_gtFine_train` gives the same.
Of n images, floor(p % of n) are labelled. For each fold and percentage three files are written to
`--output` (by default the folder `semi_supervised` beside the JSON):

- `{stem}.{fold}@{percent}.json`, the labelled images with their annotations;
- `{stem}.{fold}@{percent}-unlabeled.json`, the other images, with no annotation;
- `{stem}.{fold}@{percent}.txt`, the ids of the labelled images, a list as `--ids` takes it.

The fold is the seed. The images are ordered by SHA-256 of "fold image-id", so the same command
gives the same parts on every machine; see `pseudolabel.splits`. `--stratify` spreads the labelled
images over image sizes and numbers of instances, which a few images need; names then have
`-stratified` after the percentage. `--ids` takes lists of your own; the names are then
`{stem}.{list}.json`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from convert_cityscapes import convert

from pseudolabel.errors import DataError
from pseudolabel.files import (
    atomic_write,
    failure_line,
    file_hash,
    read_json,
    refuse_overwrite,
    write_json,
)
from pseudolabel.rejected import without_rejected
from pseudolabel.splits import (
    CITYSCAPES,
    FOLDER,
    check_split,
    class_table,
    draw,
    draw_stratified,
    instances_per_image,
    labelled_count,
    parts,
    read_ids,
    read_percent,
    split_name,
)
from pseudolabel.validation import LEFT_OUT_LATER, iterate_defects, refuse_first

PERCENTS = {False: "1 2 5 10", True: "5 10 20 30"}
"""Of COCO and, True, of Cityscapes."""


class Split(NamedTuple):
    """One division of the images.

    Attributes:
        name: of the labelled file, without `.json`.
        title: of the column in the table.
        labelled: sorted image ids.
        origin: how it was made.
    """

    name: str
    title: str
    labelled: list[int]
    origin: dict[str, Any]


def read_source(source: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON to split, checked, without images of status "rejected"; and what it was made from.

    Raises:
        DataError: it cannot be read or is not sound.
    """
    if source.is_dir():
        return convert(source, "train").data, {"source": "gtFine/train"}
    data, _ = without_rejected(read_json(source))
    refuse_first(source, iterate_defects(data, masks=False, plausibility=False), LEFT_OUT_LATER)
    return data, {"source": source.name, "source_sha256": file_hash(source)}


def drawn_splits(
    data: Mapping[str, Any], stem: str, folds: list[int], percents: list[Decimal], stratify: bool
) -> Iterator[Split]:
    """A split for every fold and percentage."""
    images = data["images"]
    instances = instances_per_image(data)
    for fold in folds:
        for percent in percents:
            count = labelled_count(len(images), percent)
            if stratify:
                ids = draw_stratified(images, instances, count, fold)
            else:
                ids = draw((image["id"] for image in images), count, fold)
            name = split_name(stem, fold, percent, stratify)
            origin = {"fold": fold, "percent": str(percent), "stratified": stratify}
            yield Split(name, name.removeprefix(f"{stem}."), ids, origin)


def listed_splits(data: Mapping[str, Any], stem: str, lists: list[Path]) -> Iterator[Split]:
    """A split for every list of ids."""
    known = {image["id"] for image in data["images"]}
    for path in lists:
        if sum(other.stem == path.stem for other in lists) > 1:
            problem = f"two lists are called {path.stem!r}, and so would their parts"
            raise DataError(path, problem, "rename one of them")
        origin = {"ids": path.name}
        yield Split(f"{stem}.{path.stem}", path.stem, read_ids(path, known), origin)


def write_split(
    folder: Path, data: Mapping[str, Any], split: Split, made_from: Mapping[str, Any]
) -> None:
    """Writes the three files of a split, each whole or not at all."""
    labelled, unlabelled = parts(data, split.labelled, {**made_from, **split.origin})
    # The labelled file comes last: where it stands, the others do.
    write_json(folder / f"{split.name}-unlabeled.json", unlabelled)
    with atomic_write(folder / f"{split.name}.txt") as file:
        file.writelines(f"{key}\n" for key in split.labelled)
    write_json(folder / f"{split.name}.json", labelled)


def run(options: argparse.Namespace) -> None:
    """Draws all splits, checks them, and only then writes.

    Raises:
        DataError: the source is not sound, or a part would be empty.
    """
    source: Path = options.source
    is_folder = source.is_dir()
    data, made_from = read_source(source)
    stem = options.name or (CITYSCAPES if is_folder else source.stem)
    if options.ids:
        splits = list(listed_splits(data, stem, options.ids))
    else:
        percents = options.percent or [Decimal(text) for text in PERCENTS[is_folder].split()]
        folds = options.fold or [1]
        splits = list(drawn_splits(data, stem, folds, percents, options.stratify))
    for split in splits:
        check_split(data, f"{source}, {split.title}", split.labelled)
    folder = options.output or (source / "annotations" if is_folder else source.parent) / FOLDER
    refuse_overwrite(source, *(folder / f"{split.name}.json" for split in splits))
    for split in splits:
        write_split(folder, data, split, made_from)
    print(class_table(data, {split.title: split.labelled for split in splits}))
    for split in splits:
        unlabelled = len(data["images"]) - len(split.labelled)
        path = folder / f"{split.name}.json"
        print(f"{path}: {len(split.labelled)} labelled, {unlabelled} unlabelled")


def percentage(text: str) -> Decimal:
    """An option's value.

    Raises:
        argparse.ArgumentTypeError: it is no percentage.
    """
    try:
        return read_percent(text)
    except ValueError as error:
        hint = "; for 100 % take the whole file and another one of unlabelled images"
        raise argparse.ArgumentTypeError(f"{error}{hint}") from error


def whole_number(text: str) -> int:
    """An option's value: digits alone, since it becomes part of a file name.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number >= 0")
    return int(text)


def stem_name(text: str) -> str:
    """An option's value: the beginning of a file name.

    Raises:
        argparse.ArgumentTypeError: it is none, or a path.
    """
    if not text or Path(text).name != text or "\\" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no file name")
    return text


def main(argv: list[str] | None = None) -> int:
    """Writes the splits. Returns 0; 1 with one clear error line, and nothing written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="a COCO JSON, or the folder of Cityscapes")
    parser.add_argument("--output", type=Path, help="folder of the parts")
    parser.add_argument("--name", type=stem_name, help="{stem} of the parts; the JSON's if absent")
    parser.add_argument("--percent", type=percentage, nargs="+", help="1 2 5 10 where absent")
    parser.add_argument("--fold", type=whole_number, nargs="+", help="seeds; 1 where absent")
    parser.add_argument("--stratify", action="store_true", help="by image size and instances")
    parser.add_argument("--ids", type=Path, nargs="+", help="lists of labelled images, instead")
    options = parser.parse_args(argv)
    if options.ids and (options.percent or options.fold or options.stratify):
        parser.error("--ids says which images are labelled; leave out the options of a draw")
    try:
        run(options)
    except (DataError, OSError) as error:
        print(failure_line(error, options.source), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
