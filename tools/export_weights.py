#!/usr/bin/env python3
"""Writes the encoder of a checkpoint as a small file for MODEL.MAL.ENCODER.WEIGHTS.

    tools/export_weights.py --config-file output/pretext/config.yaml \\
        --weights output/pretext/model_final.pth --output configs/mal/weights/x.safetensors
"""

import argparse
import sys
from pathlib import Path

from mal.encoder_weights import save_encoder_weights
from mal.labeler import load_config
from mal.network import build_network
from pseudolabel.checkpoints import load_strictly
from pseudolabel.errors import DataError


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("config-file", "weights", "output"):
        parser.add_argument(f"--{name}", required=True)
    args = parser.parse_args()
    try:
        network = build_network(load_config(args.config_file, []))
        load_strictly(network, args.weights, prefix="student.")
        save_encoder_weights(network.encoder, args.output)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.output}: {Path(args.output).stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
