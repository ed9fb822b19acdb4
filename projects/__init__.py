"""Models and methods built on top, one sub-package each."""
