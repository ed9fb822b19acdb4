"""Tracking: only upstream Detectron2 has it; importing this, or anything below, says so."""

from ..utils.env import not_in_lite

not_in_lite(__name__)
