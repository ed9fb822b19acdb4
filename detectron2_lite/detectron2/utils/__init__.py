"""Helpers shared by every part of the package; import the submodule that you need."""
