"""Ray as the scheduler of a job, for those who have it: the shards of a plan as a Ray data set."""

from pathlib import Path
from typing import Any

from pseudolabel.job.plan import load_plan
from pseudolabel.job.processes import BuildLabeler
from pseudolabel.job.shard import label_shard
from pseudolabel.job.worker import limit_threads


class ShardLabeler:
    """One Ray actor: builds its labeler once and labels the shards that it is sent."""

    def __init__(self, job: str, images: str, build: BuildLabeler):
        self.job, self.images, self.labeler = Path(job), images, build()
        self.rows = {row.shard: row for row in load_plan(self.job).rows}
        limit_threads()

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Labels one shard; one that Ray sends a second time is not labelled twice."""
        receipt = label_shard(self.rows[item["shard"]], self.labeler, self.job, self.images)
        return {"shard": receipt.shard, "annotations_in": receipt.annotations_in}


def label_with_ray(
    job: Path, images: Path, build: BuildLabeler, workers: int, **resources: Any
) -> int:
    """Labels all shards of a planned job; `resources` go to `map` (`num_gpus=1`). Returns boxes.

    The folders must be shared by all nodes; merge with `run.merge_once` afterwards.
    """
    import ray.data

    shards = [{"shard": row.shard} for row in load_plan(job).claiming_order()]
    data = ray.data.from_items(shards, override_num_blocks=len(shards)).map(
        ShardLabeler, fn_constructor_args=(str(job), str(images), build), concurrency=workers,
        **resources,
    )  # fmt: skip
    return sum(item["annotations_in"] for item in data.take_all())
