"""Installs the packages `mal`, `pais`, `pseudolabel`, `masksmith_projects.*` and `masksmith`."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
PROJECTS = find_packages(where="projects")

setup(
    name="masksmith",
    version="0.1.0",
    description="Cheap labels to instance masks: MAL, PAIS and iMAS hardness on Detectron2",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["mal*", "pais*", "pseudolabel*"]),
        "masksmith_projects",
        *(f"masksmith_projects.{name}" for name in PROJECTS),
    ],
    py_modules=["masksmith"],
    package_dir={"masksmith_projects": "projects"},
    # `detectron2` is deliberately absent: upstream is not on PyPI, and either of its two builds
    # (upstream's own, or `detectron2_lite/`) provides the import. See README.
    install_requires=[
        "torch>=2.10",
        "torchvision",
        "timm",
        "fvcore",
        "iopath",
        "pycocotools>=2.0.8",
        "lvis",
        "faster-coco-eval",
        "numpy",
        "scipy",
        "opencv-python",
        "Pillow",
        "tqdm",
        "safetensors",
        "tensorboard",
        "matplotlib",
    ],
    extras_require={
        "hf": ["transformers>=5.23"],
        "fast-eval": ["hotcoco"],
        "ray": ["ray[data]"],
        "dev": ["pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "ruff", "shapely"],
    },
)
