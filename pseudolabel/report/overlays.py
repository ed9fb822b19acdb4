"""Which records a report draws, and their pictures: image by image, each image read once.

Shape legend: N records.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pseudolabel.errors import DataError
from pseudolabel.files import check_image_size, read_image
from pseudolabel.image_paths import ImageFolder
from pseudolabel.mask_iou import TrueMasks
from pseudolabel.masks import decode_segmentation
from pseudolabel.report.drawing import ORANGE, SKY_BLUE, Panel, window_around
from pseudolabel.report.label_file import LabelFile
from pseudolabel.report.markup import Html, escape, join

SIDE = 240
TINT = 0.2
# All pictures of a page together, and the text of one: what keeps a page below 8 MB.
MOST_PICTURES = 340
MOST_CHARACTERS = 20_000
_QUALITIES = (85, 70, 50, 30)
# Classes with pictures of their own; the most frequent.
CLASSES = 24
_NAMES = 1000


@dataclass
class Gallery:
    """Rows to draw under one heading.

    Attributes:
        title: a class, or all of them.
        count: records that the rows were chosen from.
        worst, random: rows of the label file.
    """

    title: str
    count: int
    worst: list[int]
    random: list[int]


@dataclass
class Selection:
    """What a page draws.

    Attributes:
        galleries: the first is over all classes.
        others: (class, records) of those without pictures.
    """

    galleries: list[Gallery] = field(default_factory=list)
    others: list[tuple[str, int]] = field(default_factory=list)

    def rows(self) -> list[int]:
        """Every row once."""
        return sorted({row for g in self.galleries for row in (*g.worst, *g.random)})


def select(
    labels: LabelFile, ious: np.ndarray | None, worst: int, random: int, seed: int
) -> Selection:
    """Chooses the worst and random records, over all and for each of the most frequent classes.

    The worst are those of lowest true IoU; where there are no human masks, of lowest quality. The
    random ones over all classes are a fair sample; those of a class are drawn from the others of
    that class, so that nothing is shown twice. Crowds are left out.

    Args:
        ious: (N,), NaN where unknown; None without human masks.
        worst, random: pictures for each class; twice as many over all classes.
    """
    badness = labels.quality if ious is None else ious
    rows = np.flatnonzero(~labels.crowd)
    order = rows[np.lexsort((labels.ids[rows], np.nan_to_num(badness[rows], nan=np.inf)))]
    classes, counts = np.unique(labels.categories[rows], return_counts=True)
    ranked = sorted(zip(-counts, classes))
    result, left = Selection(), MOST_PICTURES
    groups = [("All classes", order, 2, (seed, 0))]
    groups += [
        (labels.name(c), order[labels.categories[order] == c], 1, (seed, 1, abs(int(c))))
        for _, c in ranked[:CLASSES]
    ]
    for title, members, times, key in groups:
        wanted = min(times * (worst + random), len(members))
        if wanted > left and result.galleries:
            result.others.append((title, len(members)))
            continue
        first = members[: min(times * worst, left)]
        rest = members if times > 1 else members[len(first) :]
        pick = np.random.default_rng(key).permutation(len(rest))[: min(times * random, left)]
        some = rest[np.sort(pick)][: left - len(first)]
        result.galleries.append(Gallery(title, len(members), first.tolist(), some.tolist()))
        left -= len(first) + len(some)
    result.others += [(labels.name(c), -int(n)) for n, c in ranked[CLASSES:]]
    return result


def draw(
    labels: LabelFile,
    rows: Iterable[int],
    root: str | Path,
    truth: TrueMasks | None,
    *,
    allow_links: bool = False,
) -> dict[int, Html]:
    """The picture of each row, or a box that says why there is none.

    Args:
        rows: of the label file.
        root: folder of the images.
        truth: human masks to draw beside the labels.
        allow_links: whether links below the folder may lead out of it.
    """
    by_image = defaultdict(list)
    for row in rows:
        by_image[int(labels.image_ids[row])].append(row)
    folder = ImageFolder(root, labels.path, allow_links=allow_links)
    pictures = {}
    for key in sorted(by_image):
        pictures.update(_draw_image(labels, key, by_image[key], folder, truth))
    return pictures


def _draw_image(
    labels: LabelFile, key: int, rows: list[int], folder: ImageFolder, truth: TrueMasks | None
) -> Iterator[tuple[int, Html]]:
    entry = labels.images[key]
    try:
        path = folder.path(entry)
        image = read_image(path)
        check_image_size(image, path, entry["height"], entry["width"], f"image {key}")
    except DataError as error:
        for row in rows:
            yield row, _missing(error)
        return
    for row in rows:
        try:
            yield row, _picture(labels, row, image, entry, truth)
        except ValueError as error:
            yield row, _missing(error)


def _missing(error: Exception) -> Html:
    problem = error.problem if isinstance(error, DataError) else str(error)
    return Html(f'<div class="none">Not drawn: {escape(problem)}</div>')


def _picture(
    labels: LabelFile, row: int, image: np.ndarray, entry: dict, truth: TrueMasks | None
) -> Html:
    annotation = labels.annotations[row]
    height, width = entry["height"], entry["width"]
    panel = Panel(image, SIDE, window_around(annotation["bbox"], height, width))
    panel.outline(decode_segmentation(annotation["segmentation"], height, width), ORANGE, TINT)
    true = None if truth is None else truth.annotations.get(annotation["id"], {})
    if true and true.get("segmentation"):
        panel.outline(decode_segmentation(true["segmentation"], height, width), SKY_BLUE)
    panel.frame(annotation["bbox"])
    uri = next(
        (u for u in map(panel.uri, _QUALITIES) if len(u) <= MOST_CHARACTERS),
        None,
    )
    if uri is None:
        raise ValueError("the picture is too large for this page")
    name = labels.name(annotation["category_id"])
    text = escape(f"Mask of annotation {annotation['id']}, {name}")
    return Html(f'<img src="{uri}" width="{panel.size[0]}" height="{panel.size[1]}" alt="{text}">')


def caption(labels: LabelFile, ious: np.ndarray | None, row: int) -> Html:
    """What stands below a picture: id, class, numbers, source, file."""
    annotation = labels.annotations[row]
    facts = []
    if ious is not None and not np.isnan(ious[row]):
        facts.append(f"IoU {ious[row]:.2f}")
    if not np.isnan(labels.quality[row]):
        facts.append(f"quality {labels.quality[row]:.2f}")
    name = labels.name(annotation["category_id"])
    file = labels.images[annotation["image_id"]].get("file_name", "")
    origin = join([labels.sources[row], file], " · ")
    return Html(
        f"<b>{escape(name)}</b> #{escape(annotation['id'])}<br>{escape(' · '.join(facts))}"
        f"<br>{origin}"
    )


def gallery(
    rows: list[int], labels: LabelFile, ious: np.ndarray | None, pictures: dict[int, Html]
) -> Html:
    """Pictures with captions, side by side."""
    figures = (
        Html(
            f"<figure>{pictures[row]}<figcaption>{caption(labels, ious, row)}</figcaption></figure>"
        )
        for row in rows
    )
    return Html(f'<div class="masks">{join(figures)}</div>')


def others_text(others: list[tuple[str, int]]) -> Html:
    """The classes without pictures, as one line."""
    parts = [f"{name} ({count})" for name, count in others[:_NAMES]]
    more = len(others) - _NAMES
    return join([*parts, f"and {more} more"] if more > 0 else parts, ", ")
