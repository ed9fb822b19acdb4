"""The table of an ablation: per row the mask IoU over seeds, and the difference to the base."""

import json
from typing import Any

from results import config_facts, data_facts, measurement
from stages import ROOT

from pseudolabel.errors import DataError
from pseudolabel.files import expand_path, read_json
from pseudolabel.masks import SIZE_BINS
from pseudolabel.paired import paired_difference, spread
from pseudolabel.retention import last_quarter_gain

NETWORKS = ("teacher", "student")
DIGITS = 4
HEADER = [
    *("row", "differs from the base in", "mIoU (teacher)", "difference, paired by seed"),
    *("S < 32²", "M < 96²", "L ≥ 96²", "mIoU (student)", "seeds"),
]
Table = dict[str, dict[int, float]]


def ablation_record(ablation: Any, name: str, seconds: dict[str, float]) -> dict[str, Any]:
    """What the runs of an ablation measured, as a JSON-able record.

    Args:
        ablation: `ablation.Ablation`; runs that are not there are left out and counted.
        name: of the result and of its section.
        seconds: wall seconds of each stage.

    Raises:
        DataError: no run of the base is there.
    """
    tables = {row.name: _scores(ablation, row) for row in ablation.rows}
    base = tables["base"]["teacher mIoU"]
    if not base:
        remedy = "run it without --collect-only"
        raise DataError(ablation.output, "holds no finished run of the base", remedy)
    rows = [_cells(row, tables[row.name], base) for row in ablation.rows]
    gains = {
        row.name: _last_quarter_gains(ablation, row) for row in ablation.rows if row.needs_masks
    }
    result = measurement(
        name,
        _text(ablation, gains),
        HEADER,
        rows,
        {
            "scores": tables,
            "differences": {
                name: paired_difference(table["teacher mIoU"], base).json()
                for name, table in tables.items()
            },
            "changes": {row.name: row.changes for row in ablation.rows},
            "last_quarter_gain": gains,
            "seconds": seconds,
            "overrides": ablation.opts,
        },
    )
    return result | {
        "seeds": ablation.seeds,
        "data": {
            s: data_facts(ROOT / expand_path(ablation.data(s)["json"])) for s in ("train", "test")
        },
        "configs": {row.name: config_facts(row.config) for row in ablation.rows},
    }


def _scores(ablation: Any, row: Any) -> Table:
    """ "NETWORK KEY" -> seed -> mask IoU, of the runs that are there."""
    table: Table = {f"{n} {key}": {} for n in NETWORKS for key in ("mIoU", *SIZE_BINS)}
    for seed in ablation.seeds:
        path = ablation.scores(row, seed)
        if not path.exists():
            continue
        for network, numbers in read_json(path).items():
            for key in ("mIoU", *SIZE_BINS):
                if numbers[key] is not None:
                    table[f"{network} {key}"][seed] = numbers[key]
    return table


def _cells(row: Any, table: Table, base: dict[int, float]) -> list[str]:
    ours = table["teacher mIoU"]
    gain = "" if row.name == "base" else paired_difference(ours, base).show(DIGITS, sign=True)
    changed = ", ".join(
        f"{key.removeprefix('MODEL.MAL.')} {_value(v)}" for key, v in row.changes.items()
    )
    return [
        *(row.name, changed, _show(ours), gain),
        *(_show(table[f"teacher {size}"]) for size in SIZE_BINS),
        *(_show(table["student mIoU"]), str(len(ours))),
    ]


def _show(values: dict[int, float]) -> str:
    return spread(list(values.values())).show(DIGITS)


def _value(value: Any) -> str:
    return "(none)" if value == "" else f"`{value}`"


def _text(ablation: Any, gains: dict[str, dict[int, float]]) -> str:
    n = len(ablation.seeds)
    spread_of = "one seed" if n == 1 else f"mean ± standard deviation of up to {n} seeds"
    text = (
        f"MAL on {ablation.name} val: IoU with human masks from the true boxes, mean over "
        f"instances; {spread_of}. A row differs from the base in the keys that it names; those of "
        "MODEL.MAL.TEST use the base's weights. Sizes are by box area in px²; a row of one seed "
        "(last column) proves no difference."
    )
    if ablation.opts:
        pairs = zip(ablation.opts[::2], ablation.opts[1::2])
        text += " Every run has " + ", ".join(f"{k} {v}" for k, v in pairs) + "."
    for name, values in gains.items():
        if values:
            shown = spread(list(values.values())).show(DIGITS, sign=True)
            text += f" In the last quarter of its schedule the row `{name}` gained {shown}."
    return text


def _last_quarter_gains(ablation: Any, row: Any) -> dict[int, float]:
    """Seed -> IoU that the teacher still won after the last evaluation before three quarters."""
    gains = {}
    for seed in ablation.seeds:
        path = ablation.run_dir(row, seed) / "metrics.json"
        if not path.exists():
            continue
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        seen = {x["iteration"]: x["teacher/mIoU"] for x in lines if "teacher/mIoU" in x}
        gain = last_quarter_gain({"history": sorted(seen.items())})
        if gain is not None:
            gains[seed] = gain
    return gains
