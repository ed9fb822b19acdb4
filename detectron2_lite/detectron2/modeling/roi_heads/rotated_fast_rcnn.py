"""Rotated boxes: only upstream Detectron2 has it; every name in here raises an error that says so."""

from detectron2.utils.env import upstream_only

__getattr__ = upstream_only(__name__)
