"""Labelers by name: those of this project, and those of any module that can be imported."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import pseudolabel.yardsticks  # noqa: F401  (registers filled_box, ellipse, grabcut)
from pseudolabel.errors import DataError
from pseudolabel.labeler import LABELERS, Labeler

PATH_REMEDY = "correct the name; a module outside of this project has to be on PYTHONPATH"


def load_labeler(name: str, options: Mapping[str, Any], homes: Mapping[str, str]) -> Labeler:
    """Builds a labeler.

    Args:
        name: a registered one, or "package.module:factory".
        options: keywords for the factory; empty values are left out.
        homes: the module that registers a name; one that takes seconds to import, say.

    Raises:
        DataError: there is none of that name, its factory does not take the options, or what it
            builds is no labeler.
    """
    where = f"--labeler {name}"
    factory = _factory(name, where, homes)
    given = {key: value for key, value in options.items() if value}
    taken = inspect.signature(factory).parameters
    strange = [str(value) for key, value in given.items() if key not in taken]
    if strange:
        raise DataError(where, f"has no options, got {', '.join(strange)}", "leave them out")
    try:
        inspect.signature(factory).bind(**given)
    except TypeError as error:
        raise DataError(where, f"cannot be built ({error})", "give its options") from error
    labeler = factory(**given)
    if not isinstance(labeler, Labeler):
        problem = "built something without `name`, `label` and `describe`"
        raise DataError(where, problem, "see docs/labelling.md for what a labeler is")
    return labeler


def _factory(name: str, where: str, homes: Mapping[str, str]) -> Callable[..., Any]:
    module, colon, attribute = name.partition(":")
    if colon:
        factory: Any = _module(module, where)
        for part in attribute.split("."):
            factory = getattr(factory, part, None)
        if not callable(factory):
            raise DataError(where, f"{module} has no factory {attribute!r}", PATH_REMEDY)
        return factory
    if name in homes:
        _module(homes[name], where)
    if name not in LABELERS:
        raise DataError("--labeler", f"unknown name {name!r}", "see --help")
    return LABELERS.get(name)


def _module(name: str, where: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, ValueError) as error:
        problem = f"module {name!r} cannot be imported ({error})"
        raise DataError(where, problem, PATH_REMEDY) from error
