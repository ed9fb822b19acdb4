"""From a label file to the finished page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pseudolabel.errors import DataError
from pseudolabel.files import atomic_write
from pseudolabel.mask_iou import TrueMasks
from pseudolabel.report import overlays, sections
from pseudolabel.report.experiment import results_section
from pseudolabel.report.label_file import LabelFile, true_ious
from pseudolabel.report.markup import Html, details, join, page, paragraph
from pseudolabel.report.thresholds import thresholds
from pseudolabel.report.training import training_section


@dataclass
class Options:
    """What goes into a page.

    Args:
        labels: pseudo-label file; its manifest and rejects are looked for beside it.
        images: folder of the images.
        truth: COCO or LVIS JSON with human masks of all or some records.
        metrics: `metrics.json` of training runs.
        results: recorded experiments, `docs/results/*.json`.
        sweep: JSON with `thresholds`, `mIoU`, `chosen` and optionally `by_size`, of the threshold
            on probabilities, as `mal.sweep` makes it.
        command: shown on the page as what made the labels.
        worst, random: pictures for each class.
        seed: of the random pictures.
        allow_links: whether links in the image folder may lead out of it.
    """

    labels: str | Path
    images: str | Path
    truth: str | Path | None = None
    metrics: Sequence[str | Path] = ()
    results: Sequence[str | Path] = ()
    sweep: str | Path | None = None
    command: str | None = None
    worst: int = 6
    random: int = 6
    seed: int = 0
    allow_links: bool = False


def write_page(options: Options, output: str | Path) -> LabelFile:
    """Writes the page, whole or not at all: one file, no script, nothing to load.

    The same inputs give the same bytes. At most one image is in memory at a time.

    Returns:
        The label file, as it was read.

    Raises:
        DataError: a file is missing or malformed.
        OSError: the page cannot be written.
    """
    if not Path(options.images).is_dir():
        raise DataError(options.images, "there is no such folder", "give the folder of the images")
    labels = LabelFile(options.labels, masks=options.truth is not None)
    report, truth = sections.Report(labels), None
    if options.truth is not None:
        report.ious, truth = true_ious(labels, options.truth)
        report.truth_name = Path(options.truth).name
    parts = [
        ("Accounts", sections.accounts(report)),
        ("Rejects", sections.rejects(report)),
        ("Quality", sections.quality(report)),
        ("Masks to look at", _pictures(report, truth, options)),
        ("Sizes", sections.sizes(report)),
        ("Classes", sections.classes(report)),
        ("Thresholds", thresholds(report, options.sweep)),
        ("Detectors trained on the labels", results_section(options.results)),
        ("Training", training_section(options.metrics)),
        ("How it was made", sections.provenance(report, options.command)),
    ]
    text = page(f"Pseudo-labels: {labels.path.name}", sections.lead(report), parts)
    with atomic_write(output) as file:
        file.write(text)
    return labels


def _pictures(report: sections.Report, truth: TrueMasks | None, options: Options) -> Html:
    labels = report.labels
    chosen = overlays.select(labels, report.ious, options.worst, options.random, options.seed)
    pictures = overlays.draw(
        labels, chosen.rows(), options.images, truth, allow_links=options.allow_links
    )
    measure = "quality" if report.ious is None else "true IoU"
    parts = [_legend(truth is not None)]
    for group in chosen.galleries:
        others = "" if group is chosen.galleries[0] else ", of the others"
        pair = [
            (f"lowest {measure}", group.worst),
            (f"at random{others} (seed {options.seed})", group.random),
        ]
        shown = [
            Html(f"<h3>{join([f'{group.title}: {len(rows)} {kind}'])}</h3>")
            + overlays.gallery(rows, labels, report.ious, pictures)
            for kind, rows in pair
            if rows
        ]
        parts += (
            [Html(block) for block in shown]
            if group is chosen.galleries[0]
            else [details(f"{group.title}: {group.count:,} records", *map(Html, shown))]
        )
    if chosen.others:
        parts.append(
            paragraph(
                "Without pictures here: ", overlays.others_text(chosen.others), ".", kind="note"
            )
        )
    return join(parts)


def _legend(truth: bool) -> Html:
    human = (
        ' <span class="key" style="background:#56b4e9"></span> outline of the human mask,'
        if truth
        else ""
    )
    return Html(
        '<p><span class="key" style="background:#e69f00"></span> the mask,'
        f"{human} black and white dashes: the box. Below each picture stand class, annotation id, "
        "numbers and image file.</p>"
    )
