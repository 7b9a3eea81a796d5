"""Linear heads that start where a linear probe ends. Source: Kumar et al. 2022, "Fine-tuning can distort features"."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastai_heads.data.targets import Target
from fastai_heads.heads.classification import ClassificationHead
from fastai_heads.heads.multilabel import MultiLabelHead
from fastai_heads.heads.pooled import PooledSpec
from fastai_heads.probe.answers import linear_targets
from fastai_heads.probe.measure import column_groups
from fastai_heads.probe.ridge import Ridge

__all__ = ["start_at_probe"]

_SHARPNESS = (1.0, 2.0, 4.0, 8.0, 16.0)  # logits per unit of the probe's answer, which is 0 or 1 where it is sure


@torch.no_grad()
def start_at_probe(
    head: nn.Module,  # batch norm, dropout, linear layer, perhaps a sigmoid or a unit
    spec: PooledSpec,  # fitted, with `from_probe=True`
    target: Target,
    features: Sequence[Tensor],  # (n, d) for each tap, pooled as the head does
    labels: Tensor,  # (n, …) encoded
) -> None:
    """Set batch norm and linear layer so that in evaluation they give a probe's answer. Classes and tags become logits
    as sharp as their loss on items left out wants."""
    y = linear_targets(spec, labels)
    logits = isinstance(spec, ClassificationHead | MultiLabelHead)
    x = torch.cat(list(features), 1).double()
    weight, bias = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64), torch.zeros(y.shape[1]).double()
    left_out = torch.full_like(y, torch.nan)
    for columns, rows in column_groups(y):
        fitted = Ridge([part[rows] for part in features]).fit(
            y[rows][:, columns], not isinstance(spec, ClassificationHead)
        )
        weight[:, columns], bias[columns] = torch.cat(fitted.weights), fitted.bias
        left_out[rows.nonzero(), torch.tensor(columns)] = fitted.left_out
    if logits:
        sharp = _sharpness(spec, target, left_out, labels)
        weight, bias = weight * sharp, (bias - 0.5) * sharp
    norm, linear = (next(m for m in head.layers if isinstance(m, kind)) for kind in (nn.BatchNorm1d, nn.Linear))
    mean, variance = x.mean(0), x.var(0)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    weight, bias = weight * (variance + norm.eps).sqrt()[:, None], bias + mean @ weight
    linear.weight.copy_(weight.T)
    if linear.bias is not None:
        linear.bias.copy_(bias)
    else:  # fastai's has none after batch norm, whose own bias gives it
        norm.bias.copy_(torch.linalg.lstsq(weight.T, bias[:, None], driver="gelsd").solution[:, 0])


def _sharpness(spec: PooledSpec, target: Target, left_out: Tensor, labels: Tensor) -> float:
    rows = ~left_out.isnan().all(1)
    task, pred = spec.task(target), left_out[rows].nan_to_num().float() - 0.5
    return min(_SHARPNESS, key=lambda sharp: float(task.train_loss(pred * sharp, labels[rows])))
