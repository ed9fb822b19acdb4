"""pytest plugin that lets a Detectron2 build run the tests of an upstream checkout.

Three things stand between a build and those tests; each is supplied in the test process alone:

* `detectron2.model_zoo` needs `pkg_resources`, which setuptools no longer has. A stand-in reads
  the YAML files of the checkout. Both builds get it.
* `detectron2.utils.testing`, where a build lacks it, is loaded from the checkout.
* Test modules import at their top what single tests need. A name that the build does not have
  becomes a placeholder which raises as soon as a test uses it.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest

PACKAGE = "detectron2"


class UnavailableError(NotImplementedError):
    """A test used a name that this build does not provide."""


class Placeholder(type):
    """Metaclass of stand-ins: importable, everything else raises UnavailableError."""

    def _refuse(cls, *_args: object, **_kwargs: object) -> NoReturn:
        raise UnavailableError(f"{cls.__module__}.{cls.__name__} is not in this build")

    __call__ = __iter__ = __len__ = __getitem__ = _refuse

    def __getattr__(cls, name: str) -> NoReturn:
        # Only lookups that an import or a decorator makes by itself may fail softly.
        if name.startswith("__"):
            raise AttributeError(name)
        cls._refuse()


def placeholder(module: str, name: str) -> type:
    """Return the stand-in for `module.name`."""
    return Placeholder(name, (), {"__module__": module})


def top_level_imports(source: str) -> Iterator[tuple[str, str | None]]:
    """Yield (module, name) for the imports outside functions and classes.

    Args:
        source: text of a Python file.

    Yields:
        name is None for `import module`; relative imports are left out.
    """
    pending: list[ast.stmt] = list(ast.parse(source).body)
    while pending:
        node = pending.pop(0)
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((str(node.module), alias.name) for alias in node.names)
        elif isinstance(node, (ast.If, ast.Try, ast.With)):
            for field in ("body", "orelse", "finalbody"):
                pending.extend(getattr(node, field, []))


def _module_or_stand_in(name: str, stubs: set[str]) -> ModuleType:
    """Import a module; one that is not there is made up, empty, and noted in `stubs`.

    Raises:
        ImportError: the module exists, but something that it imports does not.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        # A build may say of a module that it is left out, with an error that is both of these.
        left_out = isinstance(error, NotImplementedError)
        missing = error.name is not None and f"{name}.".startswith(f"{error.name}.")
        if not left_out and not (isinstance(error, ModuleNotFoundError) and missing):
            raise
    made = ModuleType(name, "Stand-in of the conformance run.")
    made.__path__ = []
    sys.modules[name] = made
    parent, _, leaf = name.rpartition(".")
    if parent:
        setattr(_module_or_stand_in(parent, stubs), leaf, made)
    stubs.add(name)
    return made


def supply(imports: Iterable[tuple[str, str | None]]) -> list[str]:
    """Put placeholders where a name is missing.

    Args:
        imports: pairs from `top_level_imports`.

    Returns:
        The full names that were made up, sorted.
    """
    stubs: set[str] = set()
    for module_name, name in imports:
        module = _module_or_stand_in(module_name, stubs)
        if name is None or name == "*":
            continue
        try:
            getattr(module, name)
        except (AttributeError, ImportError):
            try:
                importlib.import_module(f"{module_name}.{name}")
            except ImportError:
                setattr(module, name, placeholder(module_name, name))
                stubs.add(f"{module_name}.{name}")
    return sorted(stubs)


def model_zoo(configs: Path) -> ModuleType:
    """Build a `detectron2.model_zoo` that reads the YAML files below `configs`; no weights."""
    zoo = ModuleType(f"{PACKAGE}.model_zoo", "Stand-in of the conformance run.")

    def get_config_file(config_path: str) -> str:
        found = configs / config_path
        if not found.is_file():
            raise RuntimeError(f"{config_path} not available in Model Zoo!")
        return str(found)

    def get_config(config_path: str, trained: bool = False) -> Any:
        if trained or not config_path.endswith(".yaml"):
            raise UnavailableError("the stand-in zoo has untrained YAML models only")
        cfg = importlib.import_module(f"{PACKAGE}.config").get_cfg()
        cfg.merge_from_file(get_config_file(config_path))
        return cfg

    def get(config_path: str, trained: bool = False, device: str | None = None) -> Any:
        cfg = get_config(config_path, trained)
        if device is not None:
            cfg.MODEL.DEVICE = device
        return importlib.import_module(f"{PACKAGE}.modeling").build_model(cfg)

    zoo.get_config_file, zoo.get_config, zoo.get = get_config_file, get_config, get
    return zoo


def load_testing_helpers(checkout: Path) -> list[str]:
    """Make `detectron2.utils.testing` importable; its own imports get placeholders as needed.

    Returns:
        The names that were made up for it.
    """
    name = f"{PACKAGE}.utils.testing"
    if importlib.util.find_spec(name) is not None:
        return []
    path = checkout / PACKAGE / "utils" / "testing.py"
    stubs = supply(top_level_imports(path.read_text(encoding="utf-8")))
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    importlib.import_module(f"{PACKAGE}.utils").testing = module
    return stubs


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    """One line on why a test failed: the error's own words, never the text of the test.

    pytest writes the failing line of the test into an AssertionError; for those only the place
    is told.
    """
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is None:
        lines = [line for line in str(report.longrepr).splitlines() if line.startswith("E ")]
        return lines[-1][1:].strip()[:200] if lines else "could not be collected"
    first = crash.message.splitlines()[0] if crash.message else "error"
    if first.split(":")[0] in ("AssertionError", "Failed") or first.startswith("assert"):
        parts = Path(crash.path).parts
        shown = "/".join(parts[parts.index("tests") :] if "tests" in parts else parts[-2:])
        return f"AssertionError at {shown}:{crash.lineno}"
    return first[:200]


class Recorder:
    """Keeps the wanted tests, collects their outcomes and writes them as JSON at the end."""

    def __init__(self, output: Path, facts: dict[str, Any], wanted: Iterable[str]) -> None:
        self.output = output
        self.facts = facts
        self.wanted = frozenset(wanted)
        self.outcomes: dict[str, dict[str, str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid in self.wanted]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.outcomes[report.nodeid] = {"outcome": "failed", "reason": reason_of(report)}
        elif report.skipped:
            self.outcomes[report.nodeid] = {"outcome": "skipped", "reason": "skipped"}
        elif report.when == "call":
            self.outcomes.setdefault(report.nodeid, {"outcome": "passed", "reason": ""})

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.outcomes[report.nodeid] = {"outcome": "failed", "reason": reason_of(report)}

    def pytest_sessionfinish(self) -> None:
        self.output.write_text(json.dumps({**self.facts, "outcomes": self.outcomes}))


def pytest_configure(config: pytest.Config) -> None:
    checkout = Path(os.environ["CONFORMANCE_CHECKOUT"]).resolve()
    build = importlib.import_module(PACKAGE)
    where = Path(build.__file__).resolve()
    if checkout in where.parents:
        raise pytest.UsageError(f"detectron2 comes from the checkout itself ({where})")
    zoo = model_zoo(checkout / "configs")
    sys.modules[zoo.__name__] = zoo
    build.model_zoo = zoo
    stubs = set(load_testing_helpers(checkout))
    wanted = json.loads(os.environ["CONFORMANCE_TESTS"])
    for file in sorted({node_id.split("::")[0] for node_id in wanted}):
        source = (checkout / file).read_text(encoding="utf-8")
        stubs.update(supply(top_level_imports(source)))
    facts = {
        "provider": getattr(build, "__provider__", "upstream"),
        "version": build.__version__,
        "stubs": sorted(stubs),
    }
    recorder = Recorder(Path(os.environ["CONFORMANCE_OUTPUT"]), facts, wanted)
    config.pluginmanager.register(recorder, "conformance-recorder")
