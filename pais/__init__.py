"""PAIS: semi-supervised instance segmentation with pseudo-labels weighted by their quality."""
