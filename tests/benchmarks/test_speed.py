"""The speed benchmark: what it compares, never how fast that is."""

import pytest
import speed


def test_pairs_alternate_and_the_first_does_not_count():
    """A clock that each call moves by a known amount gives a known ratio."""
    now, calls = [0.0], []

    def work(name, seconds):
        def call():
            calls.append(name)
            now[0] += seconds[min(calls.count(name) - 1, len(seconds) - 1)]

        return call

    # Warm-up 50 and 1; then pairs of 4/2, 6/2 and 8/2.
    first, second = work("a", [50.0, 4.0, 6.0, 8.0]), work("b", [1.0, 2.0])
    ratio = speed.compare(first, second, repeats=3, clock=lambda: now[0])
    assert "".join(calls) == "abbaabba"
    assert (ratio.first_ms, ratio.second_ms) == (6000.0, 2000.0)
    assert (ratio.smallest, ratio.median, ratio.largest) == (2.0, 3.0, 4.0)


def test_calls_are_shared_out():
    now = [0.0]

    def work():
        now[0] += 2.0

    ratio = speed.compare(work, work, repeats=1, calls=5, clock=lambda: now[0])
    assert ratio.first_ms == 2000.0


@pytest.mark.parametrize(
    "measure",
    [
        # These raise if the two sides do not compute the same.
        lambda: speed.mean_field_ratio(16, 2, repeats=1, iterations=20),
        lambda: speed.rle_ratio(9, 30, 40, repeats=1, calls=200),
        lambda: speed.mal_step_ratio(repeats=1, batch=2),
    ],
    ids=["mean field", "run-length code", "MAL step"],
)
def test_measurements_run(measure):
    ratio = measure()
    assert ratio.smallest <= ratio.median <= ratio.largest
    assert ratio.first_ms > 0


def test_unequal_results_are_no_benchmark(monkeypatch):
    monkeypatch.setattr(speed, "naive_mean_field", lambda initial, *rest: initial)
    with pytest.raises(AssertionError, match="differ by"):
        speed.mean_field_ratio(16, 2, repeats=1)
