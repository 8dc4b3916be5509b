"""Package hybridgen; `hybridgen/kernels` is a link to the top-level folder `kernels`."""

from setuptools import find_namespace_packages, setup

setup(
    name="hybridgen",
    version="0.1.0",
    packages=find_namespace_packages(include=["hybridgen", "hybridgen.*"]),
    package_data={"hybridgen.pair": ["**/*"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.11",
        "transformers>=5.17",
        "numpy",
        "safetensors",
        "tokenizers",
    ],
    entry_points={"console_scripts": ["hybridgen = hybridgen.cli:main"]},
)
