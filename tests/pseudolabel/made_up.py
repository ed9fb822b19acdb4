"""Made-up detections for a data set, and pycocotools' and lvis' own numbers for them."""

import contextlib
import io

import numpy as np

from pseudolabel.ap_backends import numpy_float_alias
from pseudolabel.masks import decode_segmentation, encode_rle

FAST = ("faster_coco_eval", "hotcoco")
BACKENDS = (*FAST, "reference")
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def detect(data, seed=0, missed=0.15, copies=2):
    """Per instance up to `copies` jittered ones; some of another class, some empty; rough scores,
    so that there are ties; in random order."""
    rng = np.random.default_rng(seed)
    sizes = {image["id"]: (image["height"], image["width"]) for image in data["images"]}
    classes = [category["id"] for category in data["categories"]]
    rows = []
    for annotation in data["annotations"]:
        if rng.random() < missed:
            continue
        mask = decode_segmentation(annotation["segmentation"], *sizes[annotation["image_id"]])
        for _ in range(int(rng.integers(1, copies + 1))):
            moved = np.roll(mask, rng.integers(-3, 4, 2), (0, 1))
            if rng.random() < 0.2:
                moved[:, int(rng.integers(mask.shape[1])) :] = False
            x, y, w, h = annotation["bbox"]
            jitter = rng.normal(0, 0.08, 4)
            box = [x + jitter[0] * w, y + jitter[1] * h, *(np.exp(jitter[2:]) * [w, h])]
            other = rng.random() < 0.1
            rows.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": int(rng.choice(classes)) if other else annotation["category_id"],
                    "bbox": [float(v) for v in box],
                    "segmentation": encode_rle(moved),
                    "score": round(float(rng.random()), 2),
                }
            )
    return [rows[i] for i in rng.permutation(len(rows))]


def pycocotools_numbers(data, rows, task, most=100):
    """By the library's public steps. Its summary has AP at 100 only, so AP is taken by hand."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {**data, "annotations": [dict(a) for a in data["annotations"]]}
        truth.createIndex()
        shape = "segmentation" if task == "segm" else "bbox"
        keys = ("image_id", "category_id", "score", shape)
        found = truth.loadRes([{key: row[key] for key in keys} for row in rows])
        run = COCOeval(truth, found, task)
        run.params.maxDets = [1, 10, most]
        run.evaluate()
        run.accumulate()
        run.summarize()
    percent = [100 * v if v > -1 else np.nan for v in run.stats[:6]]
    numbers = dict(zip(NAMES, percent))
    every = run.eval["precision"][:, :, :, 0, 2]
    numbers["AP"] = mean_percent(every)
    for k, category in enumerate(truth.loadCats(run.params.catIds)):
        numbers[f"AP-{category['name']}"] = mean_percent(every[:, :, k])
    return numbers


def mean_percent(precision):
    """-1 marks what does not exist."""
    defined = [value for value in precision.ravel().tolist() if value > -1]
    return 100 * sum(defined) / len(defined) if defined else np.nan


def lvis_numbers(file, rows, task):
    """By the library's public steps, from the file."""
    from lvis import LVIS, LVISEval, LVISResults

    shape = "segmentation" if task == "segm" else "bbox"
    keys = ("image_id", "category_id", "score", shape)
    truth = LVIS(str(file))
    found = LVISResults(truth, [{key: row[key] for key in keys} for row in rows])
    run = LVISEval(truth, found, task)
    with numpy_float_alias():
        run.run()
    names = (*NAMES, "APr", "APc", "APf")
    results = run.get_results()
    numbers = {name: 100 * results[name] if results[name] > -1 else np.nan for name in names}
    for k, category in enumerate(truth.load_cats(run.params.cat_ids)):
        numbers[f"AP-{category['name']}"] = mean_percent(run.eval["precision"][:, :, k, 0])
    return numbers


def square(y, x, side):
    canvas = np.zeros((40, 40), dtype=bool)
    canvas[y : y + side, x : x + side] = True
    return {
        "bbox": [float(x), float(y), float(side), float(side)],
        "segmentation": encode_rle(canvas),
    }


def small_set(**changes):
    """Two images, the second empty; one instance of class 1, none of class 7."""
    annotation = {"id": 1, "image_id": 1, "category_id": 1, **square(2, 3, 10)}
    data = {
        "images": [{"id": 1, "height": 40, "width": 40}, {"id": 2, "height": 40, "width": 40}],
        "annotations": [{**annotation, "area": 100, "iscrowd": 0}],
        "categories": [{"id": 7, "name": "seven"}, {"id": 1, "name": "one"}],
    }
    return {**data, **changes}
