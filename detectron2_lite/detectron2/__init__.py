"""Compile-free provider of the Detectron2 API (an independent implementation)."""

__version__ = "0.6+lite"
__provider__ = "lite"
