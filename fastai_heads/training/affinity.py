"""Which head pays for which, and which heads had better have a network of their own."""

from collections.abc import Iterator, Sequence

import numpy as np

__all__ = ["EXHAUSTIVE", "group_heads"]

EXHAUSTIVE = 8
"Most heads of which every grouping is tried (4,140 for eight)."
Groups = list[list[int]]


def group_heads(
    affinity: np.ndarray,  # (K, K) how much a step for the row's head lowers the loss of the column's; NaN: not seen
    at_most: int | None = None,  # groups, that is networks; None: as many as there are heads
) -> Groups:  # of places of heads, in order
    """Group heads so that the sum over the heads of what they gain is largest. A head gains, of those that share its
    network, the mean affinity; one that is alone gains 0. Fifty et al. 2021, section 4.2, choose by the same sum.

    Every grouping is tried for up to `EXHAUSTIVE` heads. With more, the two groups whose union adds most are joined, as
    long as that adds, or as there are too many."""
    n = len(affinity)
    most, known = at_most or n, np.nan_to_num(affinity)
    if n <= EXHAUSTIVE:
        fitting = (groups for groups in _partitions(list(range(n))) if len(groups) <= most)
        return sorted(max(fitting, key=lambda groups: (_gain(known, groups), -len(groups))))
    return sorted(_join(known, most))


def _gain(affinity: np.ndarray, groups: Groups) -> float:
    return round(sum(_gain_of(affinity, group) for group in groups), 12)  # equal sums in another order are equal


def _gain_of(affinity: np.ndarray, group: Sequence[int]) -> float:
    if len(group) == 1:
        return 0.0
    inside = affinity[np.ix_(group, group)]
    return float((inside.sum(0) - np.diagonal(inside)).sum() / (len(group) - 1))


def _partitions(places: list[int]) -> Iterator[Groups]:
    "List every way to put places into groups."
    if not places:
        yield []
        return
    first, rest = places[0], places[1:]
    for groups in _partitions(rest):
        yield [[first], *groups]
        for i, group in enumerate(groups):
            yield [*groups[:i], [first, *group], *groups[i + 1 :]]


def _join(affinity: np.ndarray, most: int) -> Groups:
    "Join groups two by two."
    groups = [[place] for place in range(len(affinity))]
    while len(groups) > 1:
        pairs = [(a, b) for i, a in enumerate(groups) for b in groups[i + 1 :]]
        gains = [_gain_of(affinity, a + b) - _gain_of(affinity, a) - _gain_of(affinity, b) for a, b in pairs]
        best = int(np.argmax(gains))
        if gains[best] <= 0 and len(groups) <= most:
            break
        a, b = pairs[best]
        groups = [group for group in groups if group not in (a, b)] + [sorted(a + b)]
    return groups
