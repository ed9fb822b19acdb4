"""Compile-free, independent provider of the documented Detectron2 interface (see README)."""

__version__ = "0.6+lite"
__provider__ = "lite"
