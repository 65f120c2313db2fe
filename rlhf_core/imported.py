"""What settings name by import path, `module:name`: found, or said what is wrong with the name."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sysconfig
import traceback
from typing import Any

from data_processing.errors import ConfigError

# Whatever a user's module raises, also what is no `Exception` though it asks for no end of this process.
RAISED = (Exception, SystemExit, GeneratorExit, asyncio.CancelledError)


def imported(path: str, setting: str, example: str) -> Any:
    """The object at `module:name`, None where the module has no such name; `ConfigError` says which part of the path is wrong."""
    module_name, separator, name = path.partition(":")
    if not separator or not module_name or not name:
        raise ConfigError(f"{setting}='{path}' must be module:name, for example {example}")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"{setting}='{path}': module '{module_name}' does not import: {error}; it must be on PYTHONPATH"
        ) from error
    except RAISED as error:
        raise ConfigError(
            f"{setting}='{path}': importing '{module_name}' raised {type(error).__name__}: {error}{last_user_line(error)}"
        ) from error
    return getattr(module, name, None)


def awaited(value: Any) -> Any:
    """What a user's function returned, or what that comes to where it is awaitable."""
    return asyncio.run(_awaited(value)) if inspect.isawaitable(value) else value


async def _awaited(value: Any) -> Any:
    return await value


def last_user_line(error: BaseException, *ours: str) -> str:
    """Where it happened: the innermost line that belongs to no library and to no file in the folders `ours`."""
    libraries = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    frames = traceback.extract_tb(error.__traceback__)[1:]
    own = [frame for frame in frames if not frame.filename.startswith((*libraries, "<", *ours))] or frames
    return f" (line {own[-1].lineno} of {own[-1].filename}: {own[-1].line})" if own else ""
