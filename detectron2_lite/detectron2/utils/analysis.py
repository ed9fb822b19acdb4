"""Counts of operations: upstream only; every name in here raises an error that says so."""

from ..utils.env import upstream_only

__getattr__ = upstream_only(__name__)
