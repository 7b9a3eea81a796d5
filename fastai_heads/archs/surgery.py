"""Taking modules off a network and saying what was taken."""

import copy
from collections.abc import Callable, Collection, Sequence

from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from fastai_heads.archs.records import Removed, describe

__all__ = [
    "blank",
    "drop_parameter",
    "get_path",
    "halves",
    "keep_only",
    "snapshot",
    "taken_off",
    "unwrapped_copy",
    "with_parents",
]

WRAPPERS = (OptimizedModule, nn.DataParallel, DistributedDataParallel, AveragedModel)
"Modules that run another one as it is."


def get_path(
    net: nn.Module,
    path: str,  # dotted, '' for the network itself
) -> nn.Module | nn.Parameter | None:
    "Find the module or parameter at a path, None where there is none."
    found = net
    for name in filter(None, path.split(".")):
        found = getattr(found, name, None)
        if found is None:
            return None
    return found


def unwrapped_copy(
    net: nn.Module,
) -> nn.Module:
    "Copy a network without the wrappers that run another one: compiled, parallel or averaged, wherever they stand."
    net = copy.deepcopy(_inside(net))
    for module in list(net.modules()):
        for name, child in module._modules.items():
            module._modules[name] = _inside(child)
    return net


def _inside(net: nn.Module | None) -> nn.Module | None:
    while isinstance(net, WRAPPERS):
        net = net._orig_mod if isinstance(net, OptimizedModule) else net.module
    return net


def keep_only(
    net: nn.Module,  # changed in place
    paths: Collection[str],  # modules and parameters that stay, with all below them
) -> None:
    "Deletes every module and bare parameter that is neither a kept path, nor below or above one."
    _keep(net, "", frozenset(paths))


def _keep(module: nn.Module, prefix: str, paths: frozenset[str]) -> None:
    for name, child in list(module._modules.items()):
        path = f"{prefix}{name}"
        if path in paths or child is None:
            continue
        if any(p.startswith(f"{path}.") for p in paths):
            _keep(child, f"{path}.", paths)
        else:
            del module._modules[name]
    for name in list(module._parameters):
        if f"{prefix}{name}" not in paths:
            module._parameters[name] = None


def blank(
    net: nn.Module,  # changed in place
    used: Collection[str],  # paths of the modules that run, and of parameters read in another way
    formerly: Collection[str] = (),  # paths of modules that ran in the whole network
) -> None:
    """Puts an `nn.Identity` where a module with parameters does not run, or does not any more, so that code that names
    it still finds it. Other modules without parameters stay: code may ask them for something."""
    live = with_parents(used)
    _blank(net, "", live, frozenset(formerly) - live)


def with_parents(paths: Collection[str]) -> frozenset[str]:
    "List the paths and every path above one of them."
    return frozenset(path.rsplit(".", n)[0] for path in paths for n in range(path.count(".") + 1))


def drop_parameter(net: nn.Module, path: str) -> None:
    "Takes a bare parameter off; a module stays."
    parent, _, name = path.rpartition(".")
    owner = get_path(net, parent)
    if isinstance(owner, nn.Module) and owner._parameters.get(name) is not None:
        owner._parameters[name] = None


def _blank(module: nn.Module, prefix: str, live: frozenset[str], idle: frozenset[str]) -> None:
    for name, child in module._modules.items():
        path = f"{prefix}{name}"
        if child is None or isinstance(child, nn.Identity):
            continue
        if path in live:
            _blank(child, f"{path}.", live, idle)
        elif path in idle or any(True for _ in child.parameters()):
            module._modules[name] = _nothing(child)


def snapshot(
    net: nn.Module,
) -> Callable[[], None]:  # makes the network again what it was
    "Keep what every module is made of, not the numbers in it."
    parts = [(m, dict(vars(m)), {t: dict(vars(m)[t]) for t in ("_modules", "_parameters")}) for m in net.modules()]
    free = [(p, p.requires_grad) for p in net.parameters()]

    def undo() -> None:
        for p, trains in free:
            p.requires_grad_(trains)
        for module, own, tables in parts:
            vars(module).clear()
            vars(module).update(own)
            for name, table in tables.items():
                own[name].clear()
                own[name].update(table)

    return undo


def _nothing(module: nn.Module) -> nn.Module:
    "Make what stands where a module stood: an empty container for one, so that it can still be counted and sliced."
    if isinstance(module, nn.ModuleList):
        return nn.ModuleList()
    return nn.Sequential() if isinstance(module, nn.Sequential) else nn.Identity()


def taken_off(
    before: dict[str, nn.Module | nn.Parameter],  # modules and parameters by path, of the whole network
    net: nn.Module,  # what is left of it
) -> tuple[Removed, ...]:
    "List what of the network is gone. The topmost module stands for all below it, in the network's order."
    kept = {id(o) for o in (*net.modules(), *net.parameters())}
    gone: list[str] = []
    for path, thing in before.items():
        covered = any(path.startswith(f"{g}.") for g in gone[-1:])
        if id(thing) not in kept and not covered and _whole(thing, kept):
            gone.append(path)
    return tuple(describe(path, before[path]) for path in gone)


def _whole(thing: nn.Module | nn.Parameter, kept: set[int]) -> bool:
    "Tell whether nothing below it was kept either."
    if isinstance(thing, nn.Parameter):
        return True
    return not any(id(m) in kept for m in thing.modules())


def halves(
    by_depth: Sequence[Sequence[nn.Parameter]],  # parameters by depth, from the image on
    late: int,  # the depth at which the late group opens
) -> list[list[nn.Parameter]]:  # early, late
    "Two groups of which neither is empty if there are two parameters, each parameter once."
    depths = [(i, list(ps)) for i, ps in enumerate(by_depth) if ps]
    n_early = sum(1 for i, _ in depths if i < late)
    if len(depths) > 1 and n_early in (0, len(depths)):
        n_early = (len(depths) + 1) // 2
    if len(depths) == 1 and len(depths[0][1]) > 1:
        ps = depths[0][1]
        depths, n_early = [(0, ps[: len(ps) // 2]), (1, ps[len(ps) // 2 :])], 1
    return [_unique(depths[:n_early]), _unique(depths[n_early:], depths[:n_early])]


def _unique(depths: Sequence[tuple[int, list[nn.Parameter]]], earlier=()) -> list[nn.Parameter]:
    seen = {id(p) for _, ps in earlier for p in ps}
    out = []
    for _, ps in depths:
        for p in ps:
            if id(p) not in seen:
                seen.add(id(p))
                out.append(p)
    return out
