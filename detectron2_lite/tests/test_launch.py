"""Two gloo processes on the CPU: launch, shared sampling, averaged metrics, one writer."""

import json
import subprocess
import sys

PROGRAM = """
import json, sys
import torch
from torch import nn
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data.samplers import InferenceSampler, TrainingSampler
from detectron2.engine import SimpleTrainer, create_ddp_model, launch
from detectron2.utils import comm


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return {"loss": self.w * x}


def main(folder):
    rank = comm.get_rank()
    model = create_ddp_model(Model())
    batches = [torch.tensor(float(rank + 1))] * 2
    trainer = SimpleTrainer(model, batches, torch.optim.SGD(model.parameters(), 0.1))
    trainer.train(0, 2)
    saver = DetectionCheckpointer(model, folder)
    saver.save("model")
    comm.synchronize()
    DetectionCheckpointer(model).load(folder + "/model.pth")
    sampler = iter(TrainingSampler(4))
    report = {
        "world": comm.get_world_size(),
        "local_rank": comm.get_local_rank(),
        "w": model.module.w.item(),
        "losses": trainer.storage.histories()["total_loss"].values() if rank == 0 else None,
        "order": [next(sampler) for _ in range(2)],
        "shard": list(InferenceSampler(5)),
        "saves": saver.save_to_disk,
    }
    with open(f"{folder}/{rank}.json", "w") as stream:
        json.dump(report, stream)


if __name__ == "__main__":
    torch.set_num_threads(1)
    launch(main, 2, dist_url="auto", args=(sys.argv[1],))
"""


def test_two_processes(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    run = subprocess.run(
        [sys.executable, str(program), str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [r["world"] for r in reports] == [2, 2]
    assert [r["local_rank"] for r in reports] == [0, 1]
    # Both ranks step by the mean gradient, 1.5: w = 1, 0.85, 0.7.
    assert all(abs(r["w"] - 0.7) < 1e-6 for r in reports)
    losses = [value for value, _ in reports[0]["losses"]]
    assert all(abs(a - b) < 1e-6 for a, b in zip(losses, [1.5 * 1.0, 1.5 * 0.85]))
    assert sorted(reports[0]["order"] + reports[1]["order"]) == [0, 1, 2, 3]  # one epoch
    assert [r["shard"] for r in reports] == [[0, 1, 2], [3, 4]]
    assert [r["saves"] for r in reports] == [True, False]
