"""Printing and checking of results."""

from __future__ import annotations

import logging
import pprint
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode

__all__ = ["flatten_results_dict", "print_csv_format", "verify_results"]

logger = logging.getLogger(__name__)


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Log ``{task: {metric: number}}`` as lines that are easy to paste into a spreadsheet.

    Per-category metrics (with a "-" in their name) are left out.
    """
    for task, metrics in results.items():
        if not isinstance(metrics, Mapping):
            logger.info("copypaste: %s=%s", task, metrics)
            continue
        shown = {name: value for name, value in metrics.items() if "-" not in name}
        logger.info("copypaste: Task: %s", task)
        logger.info("copypaste: %s", ",".join(shown))
        logger.info("copypaste: %s", ",".join(f"{value:.4f}" for value in shown.values()))


def verify_results(cfg: CfgNode, results: Mapping[str, Any]) -> bool:
    """Compare with TEST.EXPECTED_RESULTS: [task, metric, expected value, tolerance] each.

    Returns:
        True if nothing differs (or nothing is expected).

    Raises:
        SystemExit: with status 1 when a value is missing, not finite, or off by the tolerance
            or more.
    """
    expected = cfg.TEST.EXPECTED_RESULTS
    wrong = []
    for task, metric, value, tolerance in expected:
        actual = results.get(task, {}).get(metric)
        # Written so that NaN fails too.
        if actual is None or not abs(actual - value) < tolerance:
            wrong.append(f"{task}/{metric}: got {actual}, expected {value} +- {tolerance}")
    if wrong:
        logger.error("Results differ from TEST.EXPECTED_RESULTS:\n%s", "\n".join(wrong))
        logger.error("All results:\n%s", pprint.pformat(results))
        raise SystemExit(1)
    if expected:
        logger.info("All results are as expected")
    return True


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """``{"bbox": {"AP": 1}}`` to ``{"bbox/AP": 1}``, at any depth."""
    flat: dict[str, Any] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{k}": v for k, v in flatten_results_dict(value).items()})
        else:
            flat[key] = value
    return flat
