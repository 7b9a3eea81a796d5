"""Which body a tap belongs to, where there are several."""

from collections.abc import Iterable, Mapping, Sequence

from fastai_heads.archs.records import FEATURES, INPUT, Level, TapPoint
from fastai_heads.errors import HeadsError, did_you_mean

__all__ = ["has_maps", "split_taps", "tap_owner"]


def has_maps(
    points: Iterable[TapPoint],  # of one body
) -> bool:
    "Tell whether a body has maps beside its input."
    return any(p.stride is not None and p.name != INPUT for p in points)


def tap_owner(
    tap: str | int,  # `photo.layer3`, `photo.8`, or a name or stride that one body alone has
    points: Mapping[str, Sequence[TapPoint]],  # of every body
) -> tuple[str, str | int]:  # the body's name, and the tap within it
    "Find which body a tap belongs to. Raises `HeadsError` where none or several have it."
    name, _, inner = tap.partition(".") if isinstance(tap, str) else ("", "", tap)
    if name in points and inner:
        return name, int(inner) if inner.isdigit() else inner
    if isinstance(tap, str):
        owners = [n for n, found in points.items() if any(p.name == tap for p in found)]
    else:
        owners = [n for n, found in points.items() if has_maps(found)]
    if len(owners) == 1:
        return owners[0], tap
    if owners:
        said = " or ".join(repr(f"{name}.{tap}") for name in owners)
        raise HeadsError(f"`tap={tap!r}`: several bodies have it. Say {said}.", tap=tap)
    names = [f"{n}.{p.name}" for n, found in points.items() for p in found]
    message = f"`tap={tap!r}`, which no body has.{did_you_mean(tap, names)} Taps: {', '.join(names)}."
    raise HeadsError(message, tap=tap)


def split_taps(
    taps: Iterable[str | int | Level],  # as heads and trunks say them
    points: Mapping[str, Sequence[TapPoint]],  # of every body
) -> dict[str, list[str | int | Level]]:  # body → its taps, as its own arch names them
    "Share taps out among bodies. `features` is that of every body."
    found: dict[str, list[str | int | Level]] = {name: [] for name in points}
    for tap in taps:
        if tap == FEATURES:
            for name, known in points.items():
                found[name] += [tap] if any(p.name == tap for p in known) else []
            continue
        name, inner = tap_owner(tap.stride if isinstance(tap, Level) else tap, points)
        found[name].append(tap if isinstance(tap, Level) else inner)
    return found
