"""The defects that validation can name: their kinds, severities and remedies."""

from dataclasses import dataclass

from pseudolabel.errors import DataError

ERROR, WARNING = "error", "warning"
FILE = "the file"

# An error makes a reader fail or err; a warning is legal but seldom meant.
_ERRORS = {
    "file_unreadable": "check the path and the rights",
    "json_malformed": "write the file again; it may be cut off",
    "duplicate_key": "remove one of the two; readers differ in which they take",
    "not_an_object": "give an instances file with images and annotations",
    "missing_list": "give a COCO or LVIS instances file",
    "not_a_record": "remove it; each entry of the list is a JSON object",
    "missing_key": "add it, or drop the record",
    "string_id": "write ids and references as whole numbers, without quotes",
    "id_malformed": "give it a whole number as id",
    "duplicate_image_id": "give each image an id of its own",
    "duplicate_annotation_id": "give each annotation an id of its own",
    "duplicate_category_id": "give each category an id of its own",
    "unknown_image": "add the image, or drop the record",
    "unknown_category": "add the category, or drop the record",
    "unknown_listed_category": "remove the ids from the list, or add the categories",
    "category_name": "give the category a name",
    "not_finite": "replace NaN and infinity; JSON has no number for them",
    "image_size_malformed": "write height and width as whole numbers of pixels",
    "image_size_huge": "correct height and width, or cut the image into tiles",
    "file_name_malformed": "write the name of the image file as text",
    "file_name_unsafe": "write it relative to the image folder, without '..'",
    "box_missing": "add it, or drop the record",
    "box_malformed": "write x, y, width, height as four numbers in pixels",
    "box_not_finite": "replace it by finite numbers, or drop the annotation",
    "box_negative": "write x, y, width, height; this may be a box of two corners",
    "box_zero": "draw the box again, or drop the annotation",
    "box_outside": "move the box into the image, or drop the annotation",
    "box_huge": "check the unit and the order x, y, width, height",
    "segmentation_malformed": "write polygons as a list of lists, or a run-length dict",
    "polygon_short": "drop the ring, or give it three points at least",
    "polygon_odd": "complete the last point of the ring",
    "polygon_malformed": "write the points as finite numbers x1, y1, x2, y2, ...",
    "polygon_far": "check the unit of the points; they are pixels",
    "rle_malformed": "encode the mask again",
    "rle_counts": "encode the mask again; its runs add up to another size",
    "rle_size": "encode the mask at the size of its image",
    "rle_huge": "encode the mask at the size of its image",
    "iscrowd": "write 0 or 1",
    "area_malformed": "write the area in square pixels, 0 or more",
    "weight_malformed": "correct it, or drop the key, which is a weight of 1",
    "image_missing": "restore the file, or correct the image folder",
    "image_outside_root": "put the image into the folder, or allow links: --allow-links here, "
    "allow_links: true in DATASETS.REGISTER",
    "image_empty": "fetch the file again",
    "image_unreadable": "replace the file or drop its record",
    "image_truncated": "fetch the file again",
    "image_deep": "convert it to 8 bit",
    "image_too_large": "cut the image into tiles",
    "image_one_pixel": "fetch the file again; it may stand in for a failed download",
    "image_rotated": "turn the pixels upright and remove the EXIF tag, or correct the JSON",
    "image_size_differs": "correct the JSON or the image; boxes refer to the JSON's size",
}
_WARNINGS = {
    "byte_order_mark": "write the file as UTF-8 without a byte order mark",
    "annotation_id_zero": "start the ids at 1; pycocotools takes id 0 for 'no match'",
    "score_range": "write a number in [0, 1], or remove the key",
    "iscrowd_null": "write 0 or 1; all readers here take null as 0",
    "rle_float": "write size and runs as whole numbers; pycocotools refuses others",
    "area_missing": "add it; COCO's evaluation reads it",
    "duplicate_category_name": "rename one; tables by class cannot tell them apart",
    "duplicate_file_name": "join the records of the file, or correct the name",
    "box_partly_outside": "clip the box to the image",
    "segmentation_empty": "remove the key where there is no mask",
    "area_differs": "take the area of the mask",
    "box_differs": "check that box and mask belong together",
    "image_rotated_as_stated": "turn the pixels upright; some readers ignore the EXIF tag",
    "image_cmyk": "convert it to RGB; readers differ in its colours",
}
KINDS = {kind: (ERROR, remedy) for kind, remedy in _ERRORS.items()} | {
    kind: (WARNING, remedy) for kind, remedy in _WARNINGS.items()
}


@dataclass(frozen=True, slots=True)
class Defect:
    """One thing that is wrong with a file of labels.

    Attributes:
        kind: a key of `KINDS`, for programs.
        record: what it concerns, "annotation 12" or "the file".
        problem: what is wrong, for people.
        remedy: what to do about it.
        severity: "error" or "warning".
        place: the list of the JSON and the position in it; None for the file as a whole.
        key: the key of the record in question, "" for the record as a whole.
    """

    kind: str
    record: str
    problem: str
    remedy: str
    severity: str
    place: tuple[str, int] | None = None
    key: str = ""

    def as_error(self, file: object, more: int = 0) -> DataError:
        """The defect as an exception; `more` is the number of further errors in the file."""
        remedy = self.remedy
        if more:
            remedy += f" ({more} more errors: tools/validate.py lists and repairs them)"
        return DataError(file, self.problem, remedy, None if self.record == FILE else self.record)


def make_defect(
    kind: str,
    record: str,
    problem: str,
    place: tuple[str, int] | None = None,
    key: str = "",
) -> Defect:
    """A defect with the severity and the remedy of its kind."""
    severity, remedy = KINDS[kind]
    return Defect(kind, record, problem, remedy, severity, place, key)
