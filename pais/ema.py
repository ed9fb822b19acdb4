"""The teacher's moving average: short-sighted at first, then ever slower."""


def momentum_at(step: int, limit: float) -> float:
    """m = min(limit, 1 - 1 / (step + 1)): a copy at step 0, the plain mean of what has been since.

    Args:
        step: optimizer steps that have been made.
        limit: largest momentum, in [0, 1].
    """
    return min(limit, 1.0 - 1.0 / (step + 1))
