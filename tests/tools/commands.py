"""The scripts of `tools/` as modules, and as processes on a small disk."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# A real limit on file size, in bytes, stands in for a full disk.
SMALL_DISK = (
    "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0})); "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


def load_command(name):
    """`tools/` is no package, so that its scripts cannot be imported by name."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    command = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)
    return command
