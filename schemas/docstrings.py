"""I/O: what the texts below the fields of a class say, read from its source when a JSON Schema is written.

pydantic's `use_attribute_docstrings` says the same, and reads the source of every class whenever its module is
imported: that was a quarter of the time in which all types here are made, at each start of every program.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from collections.abc import Mapping


def field_texts(kind: type) -> Mapping[str, str]:
    """Return what is written below the fields of a class and of its bases: field -> text. The last one to name a field
    is heard, also where it says nothing; a class without source says nothing."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        said = _texts(each.__module__).get(each.__qualname__, {})
        for name in inspect.get_annotations(each):
            found.pop(name, None)
            if name in said:
                found[name] = said[name]
    return found


@functools.cache
def _texts(module: str) -> Mapping[str, Mapping[str, str]]:
    """Return the texts of a module's classes: class -> field -> text."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (KeyError, OSError, TypeError):
        return {}
    return {node.name: _of_class(node) for node in tree.body if isinstance(node, ast.ClassDef)}


def _of_class(node: ast.ClassDef) -> Mapping[str, str]:
    found = {}
    for field, below in zip(node.body, node.body[1:], strict=False):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[name] = inspect.cleandoc(text)
    return found
