"""Refined boundaries: what changes nothing at the start, and which points are predicted again."""

from types import SimpleNamespace

import pytest
import torch

from fastai_heads.data.targets import Target
from fastai_heads.heads.mask_refine import BoundaryRefine, PointRefine, _steps, resize_logits
from fastai_heads.heads.segmentation import SegmentationHead
from fastai_heads.heads.spec import TapShape
from fastai_heads.tasks.mask_metrics import BoundaryF1, MaskIoU

TAPS = tuple(TapShape(f"t{s}", c, s) for s, c in ((1, 3), (2, 4), (4, 6), (8, 8), (16, 10), (32, 12)))


def test_refinement_starts_as_what_changes_nothing():
    x, image, fine = torch.randn(2, 3, 8, 9), torch.randn(2, 3, 32, 36), torch.randn(2, 5, 16, 18)
    assert torch.equal(BoundaryRefine(3)(x), x)
    assert torch.equal(PointRefine(3, 3, 5)(x, image, [fine], (32, 36)), resize_logits(x, (32, 36)))


def test_refinement_sharpens_boundaries():
    "Masks that the decoder makes too thin: the overlap gains a little of it, the boundaries nearly all."
    yy, xx = torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")
    centres = torch.rand(24, 2, 1, 1) * 24 + 12
    truth = (((yy - centres[:, 0]) ** 2 + (xx - centres[:, 1]) ** 2) < 81).long()
    ink = torch.nn.functional.avg_pool2d(truth[:, None].float(), 4)
    ink = torch.nn.functional.interpolate(ink, scale_factor=4, mode="bilinear") - 0.8
    logits = torch.cat([-ink, ink], 1) * 8
    refine, loss = BoundaryRefine(2), torch.nn.CrossEntropyLoss()
    opt = torch.optim.Adam(refine.parameters(), 1e-2)

    def measured(metric, maps):
        metric.reset()
        metric.accumulate(SimpleNamespace(pred=maps, y=truth[16:]))
        return metric.value

    before = [measured(m, refine(logits[16:]).detach()) for m in (MaskIoU(), BoundaryF1(tolerance=0))]
    for _ in range(60):
        opt.zero_grad()
        loss(refine(logits[:16]), truth[:16]).backward()
        opt.step()
    after = [measured(m, refine(logits[16:]).detach()) for m in (MaskIoU(), BoundaryF1(tolerance=0))]
    assert before[0] > 0.7 and before[1] < 0.3
    assert after[0] > before[0] and after[1] > 0.6


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ((24, 24), (96, 96), [(48, 48), (96, 96)]),
        ((96, 96), (96, 96), [(96, 96)]),
        ((16, 20), (63, 80), [(32, 40), (63, 80)]),
        ((12, 100), (96, 100), [(96, 100)]),
        ((3, 3), (5, 5), [(5, 5)]),
    ],
)
def test_a_mask_grows_in_steps_of_two(start, end, expected):
    assert _steps(start, end) == expected


def changed(refine: PointRefine, logits: torch.Tensor, image: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
    "Tell which pixels are predicted again: the last layer's bias moves them by one."
    torch.nn.init.ones_(refine.last.bias)
    size = tuple(image.shape[-2:])
    return (refine(logits, image, [fine], size) - resize_logits(logits, size))[:, 0] == 1


def test_the_most_uncertain_points_are_predicted_again_and_no_others():
    logits, image, fine = torch.randn(2, 3, 16, 16) * 4, torch.randn(2, 3, 16, 16), torch.randn(2, 5, 8, 8)
    found = changed(PointRefine(3, 3, 5).eval(), logits.round(), image, fine)
    best = logits.round().topk(2, 1).values
    gaps = best[:, 0] - best[:, 1]
    assert found.flatten(1).sum(1).tolist() == [32, 32], "an eighth of 256"
    for gap, there in zip(gaps, found):
        assert gap[there].max() <= gap[~there].min()


def test_in_training_points_are_drawn_three_quarters_of_them_where_it_is_uncertain():
    torch.manual_seed(0)
    logits, image, fine = torch.randn(2, 2, 32, 32) * 4, torch.randn(2, 3, 32, 32), torch.randn(2, 5, 16, 16)
    logits = logits.round()
    found = changed(PointRefine(2, 3, 5), logits, image, fine)
    assert found.flatten(1).sum(1).tolist() == [128, 128]
    gap = (logits[:, 0] - logits[:, 1]).abs()
    assert gap[found].mean() < 0.5 * gap.mean() and gap[found].max() > gap.median()


def test_of_several_labels_a_point_is_uncertain_where_one_of_them_is():
    logits = torch.full((1, 3, 8, 8), 9.0)
    logits[0, 2, 3, 4:6] = 0.1
    image, fine = torch.randn(1, 3, 8, 8), torch.randn(1, 5, 4, 4)
    assert changed(PointRefine(3, 3, 5, exclusive=False).eval(), logits, image, fine)[0, 3, 4:6].all()


def test_a_point_reads_the_map_and_the_image_where_it_is():
    "The first layer passes on one channel of the map and of the image, whose values are their own places."
    refine = PointRefine(1, 1, 1, width=2, n_detail=1).eval()
    refine.detail = torch.nn.Identity()
    for layer in (*refine.layers, refine.last):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    refine.layers[0].weight.data[0, 0] = refine.layers[0].weight.data[1, 1] = 1
    refine.layers[1].weight.data[0, 0] = refine.layers[1].weight.data[1, 1] = 1
    refine.last.weight.data[0, 0], refine.last.weight.data[0, 1] = 1000, 1
    image = torch.arange(8.0).view(1, 1, 1, 8).expand(1, 1, 8, 8)
    fine = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    found = refine(torch.zeros(1, 1, 8, 8), image, [fine], (8, 8))[0, 0]
    points = found != 0
    assert points.any()
    column = torch.arange(8.0).expand(8, 8)
    between = ((column + 0.5) / 2 - 0.5).clamp(0, 3)  # of the map's cells, whose centres lie two pixels apart
    torch.testing.assert_close(found[points], (1000 * column + between)[points])


@pytest.mark.parametrize("decoder", ["unet", "fpn", "dynamic_unet", "pspnet", "dpt"])
@pytest.mark.parametrize("mode", ["multiclass", "binary"])
def test_points_are_refined_behind_every_decoder_at_any_size(decoder, mode):
    target = Target("mask", 0, "mask", 2, ("paper", "ink"))
    spec = SegmentationHead(decoder=decoder, refine="points", mode=mode, prior=False).fit(target, lambda: None)
    taps = (TAPS[0], *TAPS[2:]) if decoder == "dpt" else TAPS
    head = spec.build(taps)
    maps = [torch.randn(2, t.channels, -(-63 // t.stride), -(-50 // t.stride)) for t in taps]
    for mode_ in (True, False):
        out = head.train(mode_)(*maps)
        assert out.shape == (2, spec.n_out, 63, 50)
    out.square().mean().backward()
    assert not [n for n, p in head.named_parameters() if p.grad is None]


def test_points_sharpen_boundaries():
    "Masks of four pixels a cell: only the points can find the boundary again, which the image shows."
    torch.manual_seed(0)
    yy, xx = torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")
    centres = torch.rand(24, 2, 1, 1) * 24 + 12
    truth = (((yy - centres[:, 0]) ** 2 + (xx - centres[:, 1]) ** 2) < 81).long()
    image = truth[:, None] + torch.randn(24, 3, 48, 48) * 0.1
    ink = torch.nn.functional.avg_pool2d(truth[:, None].float(), 8) - 0.7
    logits, fine = torch.cat([-ink, ink], 1) * 8, torch.nn.functional.avg_pool2d(image, 2)
    refine, loss = PointRefine(2, 3, 3), torch.nn.CrossEntropyLoss()
    opt = torch.optim.Adam(refine.parameters(), 1e-2)

    def measured():
        refine.eval()
        metric = BoundaryF1(tolerance=0)
        with torch.no_grad():
            metric.accumulate(
                SimpleNamespace(pred=refine(logits[16:], image[16:], [fine[16:]], (48, 48)), y=truth[16:])
            )
        refine.train()
        return metric.value

    before = measured()
    for _ in range(60):
        opt.zero_grad()
        loss(refine(logits[:16], image[:16], [fine[:16]], (48, 48)), truth[:16]).backward()
        opt.step()
    assert before < 0.3 and measured() > 0.8
