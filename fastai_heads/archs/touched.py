"""Which parts of a network its own code touches: what is called, and what is taken out of a module in any other way."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import nn

__all__ = ["Touched", "touched"]

TENSORS, MODULES = ("_parameters", "_buffers"), "_modules"
"Where a module keeps what it is made of."


@dataclass
class Touched:
    "What code did with a network. A path is a module's, or that of a parameter or a buffer."

    used: set[str] = field(default_factory=set)  # modules that were called, tensors that were read
    asked: set[str] = field(default_factory=set)  # modules that code took out of the one above, whatever it did then


class _Told(dict):
    "A module's table that tells the name of whatever is taken out of it. Code that asks a module for a part does that."

    def __init__(self, table: dict, tell: Callable[[str], None]):
        super().__init__(table)
        self.tell = tell

    def __getitem__(self, name: str) -> object:
        self.tell(name)
        return super().__getitem__(name)


@contextmanager
def touched(net: nn.Module) -> Iterator[Touched]:
    """Collect what is touched inside: modules that are called, and modules, parameters and buffers that code asks for.
    A module may be used by a method of its own, or by an attribute, and its `forward` never run."""
    seen = Touched()
    handles, tables = [], []
    named: dict[nn.Module, list[str]] = {}
    for path, module in net.named_modules(remove_duplicate=False):
        named.setdefault(module, []).append(path)
    for module, at in named.items():
        inside = [f"{path}." if path else "" for path in at]
        handles.append(module.register_forward_pre_hook(lambda *_, at=at: seen.used.update(filter(None, at))))
        for name, paths in (*((name, seen.used) for name in TENSORS), (MODULES, seen.asked)):
            table = vars(module).get(name)
            if table is not None:
                tables.append((module, name, table))
                vars(module)[name] = _Told(table, _teller(paths, inside))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
        for module, name, table in tables:
            now = dict(vars(module)[name].items())
            table.clear()
            table.update(now)  # buffers may have been set
            vars(module)[name] = table


def _teller(paths: set[str], prefixes: list[str]) -> Callable[[str], None]:
    return lambda name: paths.update(f"{prefix}{name}" for prefix in prefixes)
