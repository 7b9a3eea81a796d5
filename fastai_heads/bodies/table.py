"""The body of a row of a table: fastai's `TabularModel` up to its last hidden vector."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from fastai.layers import Embedding, LinBnDrop
from torch import Tensor, nn

from fastai_heads.archs.records import FEATURES, Level, TapPoint, describe
from fastai_heads.bodies.contract import Body, BodySpec, Found, split_in_two
from fastai_heads.data.inputs import Input, RowInput
from fastai_heads.errors import HeadsError, did_you_mean
from fastai_heads.values import check_value, is_number, is_whole

__all__ = ["RowBody", "TabularBody"]

EMBEDDINGS = "embeddings"


@dataclass(frozen=True)
class TabularBody(BodySpec):
    """The body of a row: `multihead_learner(dls, TabularBody(layers=[200, 100]))`. Its words are fastai's
    `tabular_learner`'s and `tabular_config`'s.

    Taps: `embeddings`, the embedded categories beside the numbers; `layer1` and so on; `features`, the last of them."""

    # fastai's `tabular_learner`'s: its last linear layer, as torch starts it
    head: ClassVar[Mapping[str, Any]] = {"lin_ftrs": (), "first_bn": False, "ps": 0.0, "init": None}

    layers: Sequence[int] = (200, 100)  # widths of the hidden layers; `features` is the last
    emb_szs: Mapping[str, int] | None = None  # column → size of its embedding; fastai's rule for the others
    embed_p: float = 0.0  # dropout of the embeddings
    ps: float | Sequence[float] | None = None  # dropout of the hidden layers, one for all or one each
    use_bn: bool = True  # batch norm in the hidden layers
    bn_cont: bool = True  # batch norm of the numbers
    act_cls: nn.Module | None = None  # activation; `nn.ReLU(inplace=True)` by default
    lin_first: bool = True  # linear layer, activation, batch norm, dropout; False: the linear layer last

    def __post_init__(self) -> None:
        listed = isinstance(self.layers, Sequence) and not isinstance(self.layers, str)
        self._check("layers", listed and all(map(is_whole, self.layers)), "a list of widths, such as [200, 100]")
        each = isinstance(self.ps, Sequence) and len(self.ps) == len(self.layers) and all(map(_is_share, self.ps))
        fits = self.ps is None or _is_share(self.ps) or each
        self._check("ps", fits, f"one dropout in [0, 1), or one for each of the {len(self.layers)} layers")
        self._check("embed_p", _is_share(self.embed_p), "a dropout in [0, 1)")
        sizes = isinstance(self.emb_szs, Mapping) and all(map(is_whole, self.emb_szs.values()))
        self._check("emb_szs", self.emb_szs is None or sizes, "a dict of column to the size of its embedding")
        for field in ("use_bn", "bn_cont", "lin_first"):
            self._check(field, isinstance(getattr(self, field), bool), "True or False")
        act = self.act_cls is None or isinstance(self.act_cls, nn.Module)
        self._check("act_cls", act, "an activation, such as `nn.ReLU()`")

    def _check(self, field: str, fits: bool, expected: str) -> None:
        check_value(field, "TabularBody", getattr(self, field), fits, expected)

    def find(
        self,
        source: Input,  # described
    ) -> Found:
        "Tell which taps there are for the row, and how the body is built. Refuses what is no row of a table."
        if not isinstance(source, RowInput):
            raise HeadsError(f"`arch`: TabularBody reads a row of a table, and input {source.name!r} is {source.a}.")
        for column in self.emb_szs or {}:
            if column not in source.cat_names:
                raise HeadsError(
                    f"`emb_szs` names {column!r}, which is no column of categories."
                    f"{did_you_mean(column, source.cat_names)} There is {', '.join(source.cat_names) or 'none'}."
                )
        return Found(_points(self, source), lambda taps: RowBody(self, source, taps))

    def sizes(
        self,
        source: RowInput,  # the row
    ) -> list[tuple[int, int]]:
        "List (codes, size of the embedding) of every column of categories."
        from fastai.tabular.model import emb_sz_rule  # here: fastai's own code sees what has been imported

        given = self.emb_szs or {}
        return [(n, given.get(c, int(emb_sz_rule(n)))) for c, n in zip(source.cat_names, source.sizes)]


def _points(spec: TabularBody, source: RowInput) -> tuple[TapPoint, ...]:
    "List every tap, from the row on."
    n_emb = sum(size for _, size in spec.sizes(source))
    width = n_emb + len(source.cont_names)
    params = sum(n * size for n, size in spec.sizes(source)) + 2 * len(source.cont_names) * spec.bn_cont
    points = [TapPoint(EMBEDDINGS, "embeds", width, None, params)]
    for i, n_out in enumerate(spec.layers):
        params += width * n_out + (2 * (n_out if spec.lin_first else width) if spec.use_bn else n_out)
        points.append(TapPoint(f"layer{i + 1}", f"layers.{i}", n_out, None, params))
        width = n_out
    return (*points, TapPoint(FEATURES, points[-1].module, width, None, params))


class RowBody(Body):
    """fastai's `TabularModel` without its last linear layer.

    Its parameters have the same names and are drawn in the same order: it starts, with a linear head, as that does."""

    def __init__(
        self,
        spec: TabularBody,  # what the user asked for
        source: RowInput,  # the row
        taps: Iterable[str | int | Level],  # names
    ):
        super().__init__()
        self.arch, self.spec, self.source = "TabularBody", spec, source
        self.points = _points(spec, source)
        sizes, n_cont, n_layers = spec.sizes(source), len(source.cont_names), len(spec.layers)
        self.embeds = nn.ModuleList([Embedding(*size) for size in sizes])
        self.emb_drop = nn.Dropout(spec.embed_p)
        self.bn_cont = nn.BatchNorm1d(n_cont) if spec.bn_cont and n_cont else None
        ps = [spec.ps or 0.0] * n_layers if isinstance(spec.ps, float | int | None) else list(spec.ps)
        widths, act = [self.point(EMBEDDINGS).channels, *spec.layers], spec.act_cls or nn.ReLU(inplace=True)
        layers = [
            LinBnDrop(widths[i], widths[i + 1], bn=spec.use_bn, p=ps[i], act=act, lin_first=spec.lin_first)
            for i in range(n_layers)
        ]
        self.use_taps(taps)
        kept = max(self._depth(tap) for tap in self.taps)
        self.layers = nn.Sequential(*layers[:kept])
        self.removed = tuple(describe(f"layers.{i}", layers[i]) for i in range(kept, n_layers))

    def _depth(self, tap: str) -> int:
        "Count the hidden layers that a tap needs."
        names = [p.name for p in self.points]
        return min(names.index(tap), len(names) - 2)

    def forward(self, *row: Any) -> dict[str, Tensor]:
        "Give the vectors (B, C) at the taps. `row` is a `Row`, or its codes (B, n_cat) and numbers (B, n_cont)."
        cats, conts = self._parts(row)
        parts = [embed(cats[:, i]) for i, embed in enumerate(self.embeds)]
        parts = [self.emb_drop(torch.cat(parts, 1))] if parts else []
        if len(self.source.cont_names):
            parts.append(conts if self.bn_cont is None else self.bn_cont(conts))
        x = torch.cat(parts, 1)
        found = {EMBEDDINGS: x}
        for i, layer in enumerate(self.layers):
            x = found[f"layer{i + 1}"] = layer(x)
        return self.through_taps(found | {FEATURES: x})

    def _parts(self, row: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        "Take the codes and the numbers out of the elements of a batch."
        cats, conts = row[0] if len(row) == 1 else row
        return cats, conts

    def absent(self, *row: Any) -> Tensor:
        "Tell (B,) which rows are missing: codes of -1, numbers of NaN."
        cats, conts = self._parts(row)
        return (cats < 0).any(1) | conts.isnan().any(1)

    def blank(self, *row: Any) -> tuple[Tensor, ...]:
        "Make a row of the first codes and of zeros."
        cats, conts = self._parts(row)
        return torch.zeros_like(cats[:1]), torch.zeros_like(conts[:1])

    def check_inputs(
        self,
        inputs: tuple[Any, ...],  # of a batch, as they reach `forward`
    ) -> None:
        "Refuse what is no row of these columns."
        rows = inputs[0] if len(inputs) == 1 and isinstance(inputs[0], tuple | list) else inputs
        name, source = f"input {self.source.name!r}", self.source
        if len(rows) != 2 or not all(isinstance(t, Tensor) and t.ndim == 2 for t in rows):
            raise HeadsError(f"{name}: TabularBody takes a row of a table (codes and numbers), found {_shapes(rows)}.")
        cats, conts = self._parts(inputs)
        if cats.is_floating_point() or not conts.is_floating_point():
            raise HeadsError(f"{name}: codes are integers and numbers floats, found {cats.dtype} and {conts.dtype}.")
        for what, part, columns in (("categories", cats, source.cat_names), ("numbers", conts, source.cont_names)):
            if part.shape[1] != len(columns):
                raise HeadsError(
                    f"{name}: this body reads {len(columns)} columns of {what} ({', '.join(columns)}), "
                    f"found {part.shape[1]}."
                )
        for i, (column, size) in enumerate(zip(source.cat_names, source.sizes)):
            if len(cats) and int(cats[:, i].max()) >= size:
                raise HeadsError(f"{name}: column {column!r} has codes below {size}, found {int(cats[:, i].max())}.")

    def groups(self) -> list[list[nn.Parameter]]:
        "List the parameters in two groups: embeddings and what stands at the numbers, then the hidden layers."
        early = [m for m in (*self.embeds, self.bn_cont) if m is not None]
        return split_in_two([*early, *self.layers], len(early) or None)


def _is_share(value: object) -> bool:
    return is_number(value, least=0, below=1)


def _shapes(rows: Sequence[Any]) -> str:
    return ", ".join(str(tuple(t.shape)) if isinstance(t, Tensor) else type(t).__name__ for t in rows)
