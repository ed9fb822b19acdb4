"""The report on a pseudo-label file: one page to look at, and the records worth a human look."""
