"""Everything is in setup.cfg but this: the guest's helper is C, and is compiled while the package is built."""

import shutil
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.dist import Distribution

FLAGS = ["-static", "-Os", "-s", "-Wall", "-Wextra", "-std=gnu11"]


class BuildWithHelper(build_py):
    """Compile vmbatch/guest/runjob with musl where it is there (small, and runs on old kernels), else with cc."""

    def run(self) -> None:
        super().run()
        source = Path("vmbatch/guest")
        target = Path(self.build_lib) / source / "runjob"
        compiler = next((c for c in ("musl-gcc", "cc", "gcc") if shutil.which(c)), None)
        if compiler is None:
            raise SystemExit("vmbatch needs a C compiler to build its guest helper: apt-get install musl-tools")
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([compiler, *FLAGS, source / "runjob.c", source / "collect.c", "-o", target], check=True)


class BinaryDistribution(Distribution):
    """The helper is machine code, so a wheel fits one machine type only."""

    def has_ext_modules(self) -> bool:
        return True


setup(cmdclass={"build_py": BuildWithHelper}, distclass=BinaryDistribution)
