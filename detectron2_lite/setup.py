"""Compile-free provider of `import detectron2` for Masksmith; never uploaded anywhere."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
INIT = (ROOT / "detectron2" / "__init__.py").read_text(encoding="utf-8")

setup(
    # Upstream's own distribution name: pip then replaces one build by the other, where two
    # names would overwrite each other's files without a word.
    name="detectron2",
    version=re.search(r'__version__ = "(.+)"', INIT).group(1),
    description="A compile-free, independent subset of the Detectron2 API",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.10",
    packages=find_packages(include=["detectron2*"]),
    install_requires=[
        "torch>=2.10",
        "torchvision",
        "numpy",
        "Pillow",
        "fvcore",
        "iopath",
        "pycocotools>=2.0.8",
        "termcolor",
        "tabulate",
    ],
    extras_require={"tensorboard": ["tensorboard"], "visualization": ["matplotlib"]},
)
