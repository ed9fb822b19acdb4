"""Compile-free provider of `import detectron2` for Masksmith; never uploaded anywhere."""

from setuptools import find_packages, setup

setup(
    name="detectron2",
    version="0.6+lite",
    description="A compile-free, independent subset of the Detectron2 API",
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
)
