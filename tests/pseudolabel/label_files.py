"""A sound label file, the ways to damage it, and the name that each damage has to get."""

import numpy as np
from hypothesis import strategies as st

from pseudolabel.defects import FILE
from pseudolabel.masks import encode_rle

HEIGHT, WIDTH = 30, 40
NAN, INFINITY = float("nan"), float("inf")
SQUARE = [5.0, 5.0, 15.0, 5.0, 15.0, 15.0, 5.0, 15.0]


def runs(*counts, size=(HEIGHT, WIDTH)):
    return {"size": list(size), "counts": counts[0] if len(counts) == 1 else list(counts)}


def sound():
    """A file without any defect: polygon, compressed code, list of runs, box alone; a crowd."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[2:12, 3:23] = True
    common = {"image_id": 5, "category_id": 3, "iscrowd": 0}
    column = runs(0, HEIGHT, HEIGHT * (WIDTH - 1))
    return {
        "info": {"year": 2026},
        "images": [
            {"id": 5, "file_name": "5.png", "height": HEIGHT, "width": WIDTH, "hardness": 0.25},
            {"id": 6, "file_name": "6.png", "height": HEIGHT, "width": WIDTH},
        ],
        "categories": [{"id": 3, "name": "nut"}, {"id": 9, "name": "bolt"}],
        "annotations": [
            {"id": 12, **common, "bbox": [5, 5, 10, 10], "area": 100, "segmentation": [SQUARE]},
            {"id": 13, **common, "bbox": [3, 2, 20, 10], "area": 200.0, "score": 1}
            | {"segmentation": encode_rle(mask)},
            {"id": 14, **common, "iscrowd": 1, "bbox": [0, 0, 1, 30], "area": 30}
            | {"segmentation": column},
            {"id": 15, **common, "bbox": [30, 20, 10, 10], "area": 100},
        ],
    }


def change(kind, position=0, **values):
    """Sets keys of a record; `...` removes one."""

    def apply(data):
        data[kind][position].update(values)
        for key in [key for key, value in values.items() if value is ...]:
            del data[kind][position][key]

    return apply


def annotation(**values):
    return change("annotations", 0, **values)


def image(**values):
    return change("images", 0, **values)


def category(**values):
    return change("categories", 0, **values)


def repeat(kind):
    return lambda data: data[kind].append(dict(data[kind][0]))


def rename(name):
    return lambda data: data["images"][1].update(file_name=name)


A, AT = "annotation 12", "annotation at position 0"
I, IT = "image 5", "image at position 0"  # noqa: E741
C = "category 3"

TABLE = [
    # The file as a whole.
    ("missing_list", FILE, lambda data: data.pop("annotations")),
    ("missing_list", FILE, lambda data: data.update(images={})),
    ("not_finite", FILE, lambda data: data.update(info={"year": NAN})),
    # Records and their ids.
    ("not_a_record", AT, lambda data: data["annotations"].__setitem__(0, [1, 2])),
    ("not_a_record", IT, lambda data: data["images"].insert(0, None)),
    ("duplicate_annotation_id", A, repeat("annotations")),
    ("duplicate_image_id", I, repeat("images")),
    ("duplicate_category_id", C, repeat("categories")),
    ("string_id", AT, annotation(id="12")),
    ("string_id", IT, image(id="5")),
    ("string_id", "category at position 0", category(id="3")),
    ("string_id", A, annotation(image_id="5")),
    ("id_malformed", AT, annotation(id=12.0)),
    ("id_malformed", AT, annotation(id=True)),  # would equal 1
    ("annotation_id_zero", "annotation 0", annotation(id=0)),
    ("unknown_image", A, annotation(image_id=77)),
    ("unknown_image", A, annotation(image_id=[5])),  # cannot even be looked up
    ("unknown_category", A, annotation(category_id=77)),
    # Missing keys, at each level.
    ("missing_key", AT, annotation(id=...)),
    ("missing_key", A, annotation(image_id=...)),
    ("missing_key", A, annotation(category_id=None)),
    ("box_missing", A, annotation(bbox=...)),
    ("area_missing", A, annotation(area=...)),
    ("missing_key", IT, image(id=None)),
    ("missing_key", I, image(height=...)),
    ("missing_key", I, image(width=...)),
    ("missing_key", I, image(file_name=...)),
    ("missing_key", I, image(file_name=..., coco_url="http://x.org/")),  # names no file either
    ("missing_key", I, image(file_name=..., coco_url="http://[")),  # is no address
    ("missing_key", "category at position 0", category(id=...)),
    ("category_name", C, category(name=...)),
    ("category_name", C, category(name=" ")),  # empty
    (
        "duplicate_category_name",
        "category 9",
        lambda data: data["categories"][1].update(name="nut"),
    ),
    # Images, as the JSON states them.
    ("image_size_malformed", I, image(height=0)),
    ("image_size_malformed", I, image(width=40.5)),
    ("image_size_malformed", I, image(width="40")),
    ("image_size_huge", I, image(height=10**6, width=10**6)),
    ("file_name_malformed", I, image(file_name=5)),
    ("file_name_unsafe", I, image(file_name="/etc/passwd")),
    ("file_name_unsafe", I, image(file_name="a/../../5.png")),
    ("file_name_unsafe", I, image(file_name="c:\\5.png")),
    ("file_name_unsafe", I, image(file_name="5\0.png")),  # the system would refuse it
    ("duplicate_file_name", "image 6", rename("5.png")),
    ("score_range", I, image(hardness=1.5)),
    ("not_finite", I, image(hardness=NAN)),
    ("weight_malformed", I, image(weight=-0.5)),
    ("weight_malformed", I, image(weight=INFINITY)),
    # LVIS: categories that an image is said to lack, or not to show in full.
    ("unknown_listed_category", I, image(neg_category_ids=[9, 77])),
    ("unknown_listed_category", I, image(not_exhaustive_category_ids="3")),
    # Boxes.
    ("box_malformed", A, annotation(bbox=[1, 2, 3])),
    ("box_malformed", A, annotation(bbox=["1", 2, 3, 4])),
    ("box_not_finite", A, annotation(bbox=[NAN, 2, 3, 4])),
    ("box_not_finite", A, annotation(bbox=[1, 2, 10**400, 4])),
    ("box_negative", A, annotation(bbox=[20, 5, -10, 10])),
    ("box_zero", A, annotation(bbox=[5, 5, 0, 10])),
    ("box_huge", A, annotation(bbox=[5, 5, 1000, 10])),
    ("box_huge", A, annotation(bbox=[5, 5, 10, 57])),  # by more than the height, not the width
    ("box_huge", A, annotation(bbox=[5, -31, 10, 40])),  # upwards
    ("box_partly_outside", A, annotation(bbox=[5, -30, 10, 40])),  # by the height exactly
    ("box_partly_outside", A, annotation(bbox=[-35, 5, 40, 10])),  # by more than the height
    ("box_outside", A, annotation(bbox=[41, 5, 10, 10])),
    ("box_outside", A, annotation(bbox=[-10, 5, 10, 10])),  # touches the border
    ("box_partly_outside", A, annotation(bbox=[5, 5, 37, 10], segmentation=..., area=370)),
    ("box_differs", A, annotation(bbox=[15, 15, 10, 10])),
    # Masks.
    ("segmentation_malformed", A, annotation(segmentation="5 5 15 5")),
    ("segmentation_empty", A, annotation(segmentation=[])),
    ("polygon_short", A, annotation(segmentation=[SQUARE, [5, 5, 15, 15]])),
    ("polygon_odd", A, annotation(segmentation=[SQUARE[:-1]])),
    ("polygon_malformed", A, annotation(segmentation=[[*SQUARE[:-1], NAN]])),
    ("polygon_malformed", A, annotation(segmentation=[[str(n) for n in SQUARE]])),
    ("polygon_malformed", A, annotation(segmentation=SQUARE)),  # not in a list of its own
    ("polygon_malformed", A, annotation(segmentation=[[[5, 5], [15, 5], [15, 15]]])),
    ("polygon_malformed", A, annotation(segmentation=[[10**400] * 6])),
    ("polygon_far", A, annotation(segmentation=[[5, 5, 1e9, 5, 1e9, 1e9]])),  # a bomb
    ("rle_malformed", A, annotation(segmentation={"counts": "0"})),
    ("rle_malformed", A, annotation(segmentation=runs("Ph3é"))),
    ("rle_malformed", A, annotation(segmentation=runs("\x7f"))),  # no digit
    ("rle_malformed", A, annotation(segmentation=runs("o"))),  # breaks off
    ("rle_malformed", A, annotation(segmentation=runs("o" * 10_000 + "0"))),  # a giant number
    ("rle_malformed", A, annotation(segmentation=runs(-1, 1201))),
    ("rle_malformed", A, annotation(segmentation=runs(600, "600"))),
    ("rle_malformed", A, annotation(segmentation={"size": "ab", "counts": [1]})),
    ("rle_malformed", A, annotation(segmentation=runs(0.5, 1199.5))),
    ("rle_malformed", A, annotation(segmentation=runs(True, 1199))),
    ("rle_malformed", A, annotation(segmentation=runs(0, 1200, size=(30.5, WIDTH)))),
    ("rle_float", A, annotation(segmentation=runs(0, 1200.0), bbox=[0, 0, 40, 30], area=1200)),
    ("rle_float", A, annotation(segmentation=runs(0, 1200, size=(30.0, WIDTH)))),
    ("rle_counts", A, annotation(segmentation=runs(0, 1199))),
    ("rle_counts", A, annotation(segmentation=runs(0, 10**12))),
    ("rle_counts", A, annotation(segmentation=runs("3"))),
    ("rle_size", A, annotation(segmentation=runs(0, 1200, size=(WIDTH, HEIGHT)))),  # turned
    ("rle_huge", A, annotation(segmentation=runs(0, 10**12, size=(10**6, 10**6)))),  # a bomb
    ("iscrowd", A, annotation(iscrowd=2)),
    ("iscrowd", A, annotation(iscrowd=True)),
    ("iscrowd", A, annotation(iscrowd="0")),
    ("iscrowd_null", A, annotation(iscrowd=None)),
    ("area_malformed", A, annotation(area=-1)),
    ("area_malformed", A, annotation(area="100")),
    ("area_differs", A, annotation(area=400)),
    ("weight_malformed", A, annotation(weight=-1)),
    ("weight_malformed", A, annotation(weight=NAN)),
    ("weight_malformed", A, annotation(weight="0.5")),
    ("weight_malformed", A, annotation(weight=None)),  # absent is 1, null is not
    ("weight_malformed", A, annotation(weight=True)),
    ("weight_malformed", A, annotation(weight=[0.5])),
    ("weight_malformed", A, annotation(weight=10**400)),  # beyond a float
    ("not_finite", A, annotation(area=NAN)),
    ("not_finite", A, annotation(extra={"deep": [INFINITY]})),
    ("score_range", A, annotation(score=-0.1)),
    ("score_range", A, annotation(quality=1.01)),
    ("score_range", A, annotation(score=87.5)),  # percent
    ("score_range", A, annotation(score=10**400)),
    ("score_range", A, annotation(quality="good")),
    ("not_finite", A, annotation(score=NAN)),
    ("not_finite", A, annotation(quality=INFINITY)),
    ("not_finite", A, annotation(score=[NAN])),
]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


def random_damage(draw):
    """A sound file with up to four values replaced by anything."""
    data = sound()
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["images", "annotations", "categories"]))
        entry = data[kind][draw(st.integers(0, len(data[kind]) - 1))]
        entry[draw(st.sampled_from(sorted(entry)))] = draw(json_values | st.integers(0, 15))
    return data


damaged = st.composite(random_damage)()
