"""Two processes compute what one does with both batches, and name the provider once."""

import json
import os
import subprocess
import sys

PROGRAM = """
import json, sys
import torch
from detectron2.config import get_cfg
from detectron2.engine import create_ddp_model, default_argument_parser, default_setup, launch
from detectron2.modeling import build_model
from detectron2.utils import comm


def make_cfg(folder):
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.SEED, cfg.MODEL.DEVICE = folder, 1, "cpu"
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    stages = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = stages
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 5
    return cfg


def make_item(seed):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, 32, 64), generator=generator).float()
    return {"image": image, "sem_seg": torch.randint(0, 5, (32, 64), generator=generator)}


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def main(folder):
    torch.set_num_threads(1)
    cfg, rank = make_cfg(folder), comm.get_rank()
    default_setup(cfg, default_argument_parser().parse_args([]))
    torch.manual_seed(0)  # equal weights; default_setup seeds every rank differently
    model = build_model(cfg)
    parallel = create_ddp_model(model)
    loss = parallel([make_item(rank)])["loss_sem_seg"]
    loss.backward()
    shared = gradients(model)
    losses = comm.all_gather(loss.item())
    if rank == 0:
        model.zero_grad()
        both = model([make_item(0), make_item(1)])["loss_sem_seg"]
        both.backward()
        alone = gradients(model)
        size = max(float(g.abs().max()) for g in alone.values())
        report = {
            "loss_of_two": sum(losses) / 2,
            "losses": losses,
            "loss_of_one": both.item(),
            "names_equal": list(alone) == list(shared),
            "largest_gradient": size,
            "largest_difference": max(float((alone[n] - shared[n]).abs().max()) for n in alone),
        }
        with open(folder + "/report.json", "w") as stream:
            json.dump(report, stream)


if __name__ == "__main__":
    launch(main, 2, dist_url="auto", args=(sys.argv[1],))
"""


def test_two_processes_equal_one_with_both_batches(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    out = tmp_path / "out"
    # Spinning threads of two processes cost more than they give.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    run = subprocess.run(
        [sys.executable, str(program), str(out)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert run.returncode == 0, run.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["losses"][0] != report["losses"][1]
    assert abs(report["loss_of_two"] - report["loss_of_one"]) < 1e-5
    assert report["names_equal"]
    assert report["largest_gradient"] > 1e-3
    assert report["largest_difference"] < 1e-5 * max(report["largest_gradient"], 1)
    # One line says which Detectron2 runs: on the terminal, and in the main process's log only.
    assert run.stdout.count("provider: lite") == 1
    assert (out / "log.txt").read_text().count("provider: lite") == 1
    assert "provider" not in (out / "log.txt.rank1").read_text()
