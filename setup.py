"""Builds the optional native extension; everything else about the package stands in pyproject.toml.

Without a compiler, or without pybind11, the package installs without the extension and trains with dense torch.
"""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).resolve().parent
SOURCES = Path("src") / "fedsparsify" / "sparse"

extensions = []
commands = {}
try:
    from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
except ImportError:
    print("fedsparsify: pybind11 is missing, so the native kernels are not built", file=sys.stderr)
else:
    ParallelCompile("FEDSPARSIFY_BUILD_JOBS", default=2).install()
    extensions.append(
        Pybind11Extension(
            "fedsparsify.sparse._native",
            sorted(str(path.relative_to(HERE)) for path in (HERE / SOURCES).glob("*.cpp")),
            depends=sorted(str(path.relative_to(HERE)) for path in (HERE / SOURCES).glob("*.[hi]*")),
            cxx_std=17,
            # Contraction of a*b+c to one instruction is fixed, rather than left to each compiler's default.
            extra_compile_args=["-O3", "-fno-math-errno", "-ffp-contract=fast"],
            optional=True,
        )
    )
    commands["build_ext"] = build_ext

setup(ext_modules=extensions, cmdclass=commands)
