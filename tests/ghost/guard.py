"""Compile and load `guard.cpp`. Import before torch is imported for the first time in a process."""

import ctypes
import hashlib
import importlib.util
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("guard.cpp")


def load() -> None:
    """Register the simulated device in this process; raises `FileNotFoundError` where there is no C++ compiler."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch = Path(spec.origin).parent
    if (torch / "lib" / "libtorch_cuda.so").exists():  # a build for real cards
        return
    for name in ("libgomp.so.1", "libc10.so", "libtorch_cpu.so"):
        if (torch / "lib" / name).exists():
            ctypes.CDLL(str(torch / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(_compiled(torch)), mode=ctypes.RTLD_GLOBAL)


def _compiled(torch: Path) -> Path:
    """The shared library, compiled anew where the source or torch's version file changed."""
    compiler = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
    if compiler is None:
        raise FileNotFoundError("no C++ compiler (g++, c++ or clang++)")
    digest = hashlib.sha256(SOURCE.read_bytes() + (torch / "version.py").read_bytes()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"mil-simulated-card-{digest}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "guard.so"
            command = [compiler, "-O1", "-fPIC", "-shared", "-std=c++20", f"-I{torch / 'include'}", str(SOURCE)]
            subprocess.run([*command, "-o", made, f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu"], check=True)
            shutil.copy(made, library.with_suffix(f".{made.stat().st_ino}"))
            library.with_suffix(f".{made.stat().st_ino}").replace(library)
    return library
