"""The files of a review: the rejects of the labels, and what stands beside the merged ones."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pseudolabel.checks import is_integer
from pseudolabel.errors import DataError
from pseudolabel.export.source import refuse_existing
from pseudolabel.files import atomic_write, read_json
from pseudolabel.store import output_paths

if TYPE_CHECKING:
    from pseudolabel.review import Review


class Rejected(NamedTuple):
    """Ids in a list of rejects. An image whose boxes a labeler was to find has no annotations."""

    annotations: frozenset[int] = frozenset()
    images: frozenset[int] = frozenset()


def read_rejected(labels: Path) -> Rejected:
    """What the rejects beside the labels name; nothing where there are none.

    Raises:
        DataError: the list cannot be read, or holds something else than ids.
    """
    path = output_paths(labels)[1]
    if not path.exists():
        return Rejected()
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        pairs = [(row["id"], row["image_id"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(path, f"cannot be read ({error!r:.80})", "restore the file") from error
    annotations = [key for key, _ in pairs if key is not None]
    images = [key for _, key in pairs]
    if not all(map(is_integer, [*annotations, *images])):
        raise DataError(path, "has ids that are no whole numbers", "restore the file")
    return Rejected(frozenset(annotations), frozenset(images))


def diff_path(output: str | Path) -> Path:
    """Where the diff of a merged file stands."""
    return Path(output).with_suffix(".review.json")


def review_paths(output: str | Path) -> tuple[Path, ...]:
    """All that a review writes: merged labels, their rejects and manifest, and the diff."""
    return (*output_paths(output), diff_path(output))


def write_review(
    review: Review, output: str | Path, labels: str | Path, corrected: str | Path
) -> Path:
    """Writes the merged labels with all that belongs to them: all or, on a full disk, none.

    The rejects of the labels are copied and their manifest is carried on, where there are any, so
    that the merged file can be reported on and reviewed again as the labels could.

    Returns:
        The path of the diff, `<output>.review.json`.

    Raises:
        DataError: one of the files exists, or the manifest of the labels is no JSON object.
        OSError: they cannot be written.
    """
    merged, rejects, manifest, diff = review_paths(output)
    for path in (merged, rejects, manifest, diff):
        refuse_existing(path)
    details = review.as_json(labels, corrected)
    texts = {diff: json.dumps(details, indent=1, allow_nan=False)}
    texts[merged] = json.dumps(review.data, allow_nan=False) + "\n"
    _, old_rejects, old_manifest = output_paths(labels)
    if old_rejects.exists():
        texts[rejects] = old_rejects.read_text(encoding="utf-8")
    if old_manifest.exists():
        facts = read_json(old_manifest)
        hashes = [_hash(texts.get(path)) for path in (merged, rejects)]
        carried = _carried_on(facts, review, Path(output).name, hashes, details)
        texts[manifest] = json.dumps(carried, indent=1, allow_nan=False) + "\n"
    with ExitStack() as stack:
        # The last that is opened is the first in its place; a full disk shows before that.
        for path in (p for p in (diff, manifest, merged, rejects) if p in texts):
            file = stack.enter_context(atomic_write(path))
            file.write(texts[path])
            file.flush()
    return diff


def _hash(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()


def _carried_on(
    facts: dict[str, Any], review: Review, name: str, hashes: list, details: dict[str, Any]
) -> dict[str, Any]:
    """The manifest of the labels as that of the merged file: same input, labeler and rejects.

    What a person has deleted did not go in, and what was added did.
    """
    counts = review.counts()
    kept = {key: value for key, value in facts.items() if key not in ("counts", "seconds")}
    kept.update(output=name, output_sha256=hashes[0], rejects_sha256=hashes[1])
    if is_integer(facts.get("annotations_in")):
        kept["annotations_in"] = facts["annotations_in"] + counts["added"] - counts["deleted"]
    known = {key: value for key, value in details.items() if key != "changes"}
    earlier = facts.get("review")
    return {**kept, "review": {**known, "earlier": earlier} if earlier else known}
