"""Packaging: ranges here, one known-good set in requirements.lock."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "hiera_video" / "__init__.py").read_text(), re.MULTILINE
)[1]
README = ROOT / "README.md"

setup(
    name="hiera_video",
    version=VERSION,
    description="Hiera for video: pretraining, fine-tuning, testing and labelling",
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["hiera_video", "hiera_video.*"]),
    package_data={"hiera_video": ["labels/*.txt", "labels/README.md", "bundled/*"]},
    python_requires=">=3.10,<3.13",
    install_requires=[
        # Below 2.14 not everything holds: with 2.6, gloo hangs at the end of a run now and then.
        "torch>=2.14",
        "torchvision>=0.29",  # the release that belongs to the installed torch
        "numpy>=1.26",
        "av>=14",  # decodes without any FFmpeg on the machine
        "pytorchvideo==0.1.5",
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.10",
        "pillow>=9",
        "PyYAML>=6",
        "simplejson>=3.17",
        "matplotlib>=3.7",
        "tqdm>=4.60",
    ],
    extras_require={
        # Needs the system's FFmpeg libraries; 0.2 gives other pixels for 10-bit video.
        "torchcodec": ["torchcodec>=0.17"],
        "decord": ["decord>=0.6"],
        "safetensors": ["safetensors>=0.4"],
        "tensorboard": ["tensorboard>=2.12"],
        "videomae": ["transformers>=5.20"],
        "test": [
            "pytest>=7.4",
            "pytest-xdist>=3.5",
            "hypothesis>=6.80",
            "ruff>=0.4",
            "hiera-transformer==0.1.4",
            "timm>=1.0",
            "transformers>=5.20",
        ],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Multimedia :: Video",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
