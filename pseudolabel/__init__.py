"""What the methods share: the pseudo-label file, mask geometry, data pipelines, EMA, hooks."""
