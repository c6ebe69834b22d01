"""Which handlers could be ``@shared``: those whose source only reads the event. It is said, and never assumed."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any, Final

from .sharing import MARK

#: What a handler may call of its instance, and what else changes nothing.
_OF_SELF: Final = frozenset({"send", "send_json", "encode_json"})
_PLAIN: Final = frozenset(
    {"bool", "dict", "float", "int", "len", "list", "max", "min", "sorted", "str", "sum", "tuple"}
)
_OF_VALUES: Final = frozenset(
    {"copy", "format", "get", "isoformat", "items", "join", "keys", "lower", "strip", "values"}
)


def candidates(classes: Iterable[type]) -> Iterator[tuple[type, str]]:
    """Handlers of events that could be shared."""
    for cls in classes:
        for name, function in sorted(vars(cls).items()):
            if _is_handler(cls, name, function) and only_reads(function):
                yield cls, name


def consumers(base: type) -> Iterator[type]:
    """All classes of consumers that are not Channels' own."""
    subclasses: list[type] = type.__subclasses__(base)
    for each in subclasses:
        if not each.__module__.startswith("channels."):
            yield each
        yield from consumers(each)


def _is_handler(cls: type, name: str, function: Any) -> bool:
    if name.startswith(("_", "websocket_")) or not inspect.isfunction(function) or getattr(function, MARK, False):
        return False
    # What overrides a method of Channels' is no handler.
    if any(hasattr(parent, name) for parent in cls.__mro__[1:] if parent.__module__.startswith("channels.")):
        return False
    kinds = [each.kind for each in inspect.signature(function).parameters.values()]
    return kinds == [inspect.Parameter.POSITIONAL_OR_KEYWORD] * 2


def only_reads(function: Any) -> bool:
    """Whether a handler sends what it makes of the event alone."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, SyntaxError, TypeError, IndexError):
        return False
    if not isinstance(tree, (ast.FunctionDef, ast.AsyncFunctionDef)) or tree.decorator_list:
        return False
    own = tree.args.args[0].arg
    sends = False
    # Where the instance stands in the source, and what of it may be called.
    known: set[int] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == own:
            if called.attr not in _OF_SELF or any(each.arg in (None, "close") for each in node.keywords):
                return False
            known.add(id(called.value))
            sends = sends or called.attr != "encode_json"
        elif isinstance(called, ast.Attribute):
            is_json = isinstance(called.value, ast.Name) and called.value.id == "json" and called.attr == "dumps"
            if not is_json and called.attr not in _OF_VALUES:
                return False
        elif not (isinstance(called, ast.Name) and called.id in _PLAIN):
            return False
    if not sends:
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == own and id(node) not in known:
            return False
        if isinstance(node, (ast.Global, ast.Nonlocal, ast.Yield, ast.YieldFrom, ast.Raise, ast.Delete)):
            return False
        if isinstance(node, (ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load):
            return False
    return True
