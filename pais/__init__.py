"""PAIS: semi-supervised instance segmentation (arrives with its own issue)."""
