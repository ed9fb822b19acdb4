"""The catalog of model addresses: only upstream Detectron2 has it, and every name here says so."""

from detectron2.utils.env import upstream_only

__getattr__ = upstream_only(__name__)
