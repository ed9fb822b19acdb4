"""What the speed and memory benchmarks of labelling record: rows from numbers, nothing timed."""

import job_memory
import labelling_speed
from speed import Ratio


def test_rows_of_the_labelling_speed():
    parts = {"decode": 0.5, "crop and resize": 0.25, "network": 9.0, "the rest": 0.75}
    ratio = Ratio(first_ms=90.0, second_ms=105.0, median=0.857, smallest=0.85, largest=0.9)
    results = [labelling_speed.Result("a.yaml", "noise", 2, 10, "estimate", ratio, parts)]
    record = labelling_speed.to_record(results, repeats=5)
    assert record["name"] == "labelling_speed"
    assert record["rows"] == [
        ["a.yaml", "estimate", "10 on 2 images of noise", "0.857", "0.850 to 0.900", "9.00", "1.50"]
    ]
    assert len(record["header"]) == len(record["rows"][0])
    assert "median of 5 pairs" in record["text"]
    assert record["raw"]["rows"][0]["ratio"]["first_ms"] == 90.0


def test_rows_of_the_memory_of_a_job():
    small = dict.fromkeys(job_memory.STAGES, (1.0, 100.0, 4.0))
    large = dict.fromkeys(job_memory.STAGES, (5.0, 110.0, 14.0))
    rows = job_memory.to_rows(small, large, boxes=1000)
    assert rows[0] == ["plan", "100 MB (+4)", "110 MB (+14)", "1.10", "2,000"]
    assert [row[0] for row in rows] == list(job_memory.STAGES)
