"""`fit_heads` and `fine_tune(cache=True)`: the fit on stored taps is, bit for bit, that with the body in evaluation."""

import multiprocessing
import shutil
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.callback.progress import ProgressCallback
from fastai.callback.tracker import SaveModelCallback
from fastai.callback.training import BnFreeze
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import ColReader, IndexSplitter
from fastai.torch_core import TensorImage, set_seed
from fastai.vision.augment import Flip, Resize
from fastai.vision.data import ImageBlock
from fastcore.basics import noop
from fasttransform import Transform
from PIL import Image
from torch import nn

from fastai_heads.bodies.stored import StoredBody
from fastai_heads.bodies.table import TabularBody
from fastai_heads.data.digits import digits_block
from fastai_heads.data.partial import PartialBlock
from fastai_heads.data.rows import TabularBlock
from fastai_heads.data.tap_cache import TapCache
from fastai_heads.errors import HeadsError
from fastai_heads.heads import ClassificationHead, DetectionHead, RegressionHead, SegmentationHead
from fastai_heads.learner import multihead_learner
from fastai_heads.learner.filling import Filling
from fastai_heads.training.strategies.balance import Balance
from fastai_heads.training.strategies.disjoint import Disjoint
from fastai_heads.trunks import Trunk


class StepLosses(Callback):
    "The loss of every batch, in training and in validation."

    def before_fit(self):
        self.seen = getattr(self, "seen", [])

    def after_loss(self):
        self.seen.append(self.learn.loss.item())


def still(fit):
    "A frozen fit with the body in evaluation."

    def run(learn):
        learn.freeze()
        fit(learn, cbs=BnFreeze())

    return run


def trained(learn, way):
    "Train from one seed, and give every loss."
    losses = StepLosses()
    learn.add_cb(losses)
    set_seed(3)
    way(learn)
    return losses.seen


def check_twins(make, plain, cached):
    "Two learners from one start: one trained with its body in evaluation, one on stored taps. All is equal."
    ours, theirs = make(), make(train_bn=False)
    before = {name: t.clone() for name, t in ours.model[0].state_dict().items()}
    assert trained(theirs, plain) == trained(ours, cached)
    mine, other = ours.model.state_dict(), theirs.model.state_dict()
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    return ours, before


@pytest.fixture
def make(make_learner):
    "Make a learner from a seed: `make('digit', heads=…)()` gives equal ones."

    def by(*targets, **kwargs):
        def one(**more):
            set_seed(1)
            return make_learner(*targets, **kwargs, **more)

        return one

    return by


NECK = {"neck": Trunk(lambda channels: nn.Conv2d(channels, 8, 1))}
ON_NECK = {"digit": ClassificationHead(tap="neck"), "ink": RegressionHead(tap="neck")}
JOINED = {"digit": ClassificationHead(tap=("layer2", "features")), "ink": RegressionHead(tap="layer3", pool="avg")}
CASES = {
    "pooled": ("memory", ("digit", "tags", "ink"), {}),
    "vector": ("disk", ("digit",), {"heads": {"digit": ClassificationHead(tap="pre_logits")}}),
    "joined": ("disk", ("digit", "ink"), {"heads": JOINED}),
    "mask": ("disk", ("mask",), {"heads": {"mask": SegmentationHead(decoder="fpn")}}),
    "layout": ("disk", ("digit",), {"arch": "test_vit", "body_kwargs": {"img_size": 32},
                                    "heads": {"digit": ClassificationHead(tap="pre_logits")}}),
    "boxes": ("disk", ("boxes",), {"heads": {"boxes": DetectionHead(channels=64, metrics=())}}),
    "points": ("memory", ("centre", "box"), {}),
    "trunk": ("memory", ("digit", "ink"), {"trunk": NECK, "heads": {**ON_NECK, "ink": RegressionHead()}}),
    "balance": ("memory", ("digit", "ink"), {"trunk": NECK, "heads": ON_NECK, "strategy": "UPGrad"}),
    "over taps": ("memory", ("digit", "ink"), {"strategy": Balance("UPGrad", over="taps"), "trunk": NECK,
                                               "heads": ON_NECK}),
    "UW": ("disk", ("digit", "ink"), {"strategy": "UW"}),
    "disjoint": ("memory", ("digit", "ink"), {"strategy": Disjoint()}),
    "lr_mult": ("memory", ("digit",), {"heads": {"digit": ClassificationHead(lr_mult=3)}}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_fit_with_the_body_in_evaluation(make, case):
    cache, targets, kwargs = CASES[case]
    n = 1 if case == "boxes" else 2
    plain = still(lambda learn, cbs: learn.fit(n, 1e-2, cbs=cbs))
    ours, before = check_twins(make(*targets, **kwargs), plain, lambda learn: learn.fit_heads(n, 1e-2, cache))
    assert all(torch.equal(t, before[name]) for name, t in ours.model[0].state_dict().items())
    assert len(ours.rows) == n and "train_loss" in ours.recorder.metric_names


def test_one_cycle_and_missing_labels(make, make_dls):
    def one(**kwargs):
        set_seed(1)
        return make(dls=make_dls("digit", "ink", missing=0.5))(**kwargs)

    check_twins(
        one,
        still(lambda learn, cbs: learn.fit_one_cycle(2, 1e-2, pct_start=0.5, cbs=cbs)),
        lambda learn: learn.fit_heads(2, 1e-2, pct_start=0.5),
    )


def test_it_goes_on(make):
    "Two fits, another one after a file was loaded, `unfreeze`, and a fit of all: as one history of either learner."

    def history(learn, frozen):
        frozen(learn, 2)
        learn.save("half")
        frozen(learn, 1)
        learn.load("half", with_opt=True)
        frozen(learn, 1)
        learn.unfreeze()
        learn.fit_one_cycle(1, slice(1e-4, 1e-3))

    def plain(learn):
        learn.freeze()
        history(learn, lambda learn, n: learn.fit(n, 1e-2, cbs=BnFreeze()))

    ours, _ = check_twins(make("digit", "ink"), plain, lambda x: history(x, lambda x, n: x.fit_heads(n, 1e-2)))
    assert len(ours.recorder.lrs) == len(ours.dls.train) and len(ours.rows) == 5


def test_training_is_taken_up_at_an_epoch(make):
    check_twins(
        make("digit"),
        still(lambda learn, cbs: learn.fit(3, 1e-2, start_epoch=1, cbs=cbs)),
        lambda learn: learn.fit_heads(3, 1e-2, start_epoch=1),
    )


def test_fine_tune_is_fastais_with_the_body_in_evaluation_while_frozen(make):
    def plain(learn):
        learn.freeze()
        learn.fit_one_cycle(2, slice(2e-3), pct_start=0.99, cbs=BnFreeze())
        learn.unfreeze()
        learn.fit_one_cycle(1, slice(1e-5, 1e-3), pct_start=0.3, div=5.0)

    ours, _ = check_twins(make("digit", "ink"), plain, lambda learn: learn.fine_tune(1, freeze_epochs=2, cache=True))
    assert ours.stored_taps is None and all(p.requires_grad for p in ours.model.parameters())


def test_after_it_the_learner_is_as_before(make):
    learn = make("digit", "ink")()
    loaders, forward = learn.dls.loaders, learn.model[0].forward
    learn.fit_heads(1, 1e-2, reset_opt=True)
    assert learn.dls.loaders is loaders and learn.model[0].forward == forward
    assert learn.opt.frozen_idx == 2 and "forward" not in vars(learn.model[0])
    trains = [p.requires_grad for p in learn.model[0].parameters()]
    learn.freeze()
    assert trains == [p.requires_grad for p in learn.model[0].parameters()]
    assert list(learn.validate()) == pytest.approx(
        [v for v, n in zip(learn.rows[-1], learn.recorder.metric_names) if n == "valid_loss" or n in METRICS], rel=1e-4
    )


METRICS = ("valid_digit_loss", "valid_ink_loss", "digit_accuracy", "ink_mae")


class Predicts(Callback):
    "Predicts images in the middle of a fit."

    def __init__(self, images):
        self.images = images

    def after_epoch(self):
        self.found = self.learn.model.eval()(self.images)


def test_callbacks_save_and_predict(make):
    learn = make("digit")()
    predicts = Predicts(learn.dls.one_batch()[0])
    learn.fit_heads(1, 1e-2, cbs=[SaveModelCallback(fname="best", with_opt=True), predicts])
    assert torch.equal(predicts.found[0], learn.model.eval()(predicts.images)[0])
    assert set(torch.load(learn.path / "models" / "best.pth", weights_only=False)["model"]) == set(
        learn.model.state_dict()
    )
    learn.export("learn.pkl")


def test_workers_read_the_items(make, make_dls):
    def one(train_bn=True):
        dls = make_dls("digit")
        set_seed(1)
        loaders = [dl.new(num_workers=2) for dl in dls.loaders]
        dls.loaders = loaders
        return make(dls=dls)(train_bn=train_bn)

    check_twins(one, still(lambda learn, cbs: learn.fit(1, 1e-2, cbs=cbs)), lambda learn: learn.fit_heads(1, 1e-2))


def test_half_precision_of_the_fit(make):
    plain = still(lambda learn, cbs: learn.to_bf16().fit(2, 1e-2, cbs=cbs))
    check_twins(make("digit", "ink"), plain, lambda learn: learn.to_bf16().fit_heads(2, 1e-2, "disk"))


class Numbers(torch.utils.data.Dataset):
    "A plain `Dataset`, of images that are drawn anew or not."

    def __init__(self, shift=0.0):
        self.shift = shift

    def __len__(self):
        return 16

    def __getitem__(self, i):
        if i >= 16:
            raise IndexError(i)
        image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(i))
        return image + (self.shift * torch.rand(1) if self.shift else 0), i % 3, float(i)


def test_a_plain_dataset(quiet, tmp_path):
    def one(dataset, **kwargs):
        set_seed(1)
        dls = DataLoaders.from_dsets(dataset, Numbers(), bs=4, num_workers=0)
        heads = {"kind": ClassificationHead(n_out=3), "n": RegressionHead(n_out=1)}
        return quiet(multihead_learner(dls, "test_resnet", heads, pretrained=False, path=tmp_path, **kwargs))

    plain = still(lambda learn, cbs: learn.fit(2, 1e-2, cbs=cbs))
    check_twins(partial(one, Numbers()), plain, lambda learn: learn.fit_heads(2, 1e-2))
    with pytest.raises(HeadsError, match=r"`views=1`: .*two draws of one item differ"):
        one(Numbers(1.0)).fit_heads(1)


# several inputs


class Pixels(nn.Module):
    "A network of two layers, with a map and a stride."

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.layer = nn.Sequential(nn.Conv2d(4, 5, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(5, 2)

    def forward(self, x):
        return self.fc(self.layer(self.stem(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    "Write small photographs, with a table of them in which inputs are missing."
    path, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(24):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path / f"{i}.png")
    names = [str(path / f"{i}.png") for i in range(24)]
    return pd.DataFrame({"photo": names, "u": rng.normal(size=24), "kind": list("xyz") * 8, "mood": list("pq") * 12})


def photo_loaders(table, wrap=noop, item_tfms=None, bs=4):
    "Make loaders of a photograph and a row."
    block = DataBlock(
        [wrap(ImageBlock()), wrap(TabularBlock(["kind"], ["u"])), CategoryBlock], n_inp=2,
        getters=[ColReader("photo"), noop, ColReader("mood")], splitter=IndexSplitter(range(8)), item_tfms=item_tfms,
    )  # fmt: skip
    return block.dataloaders(table, bs=bs, num_workers=0)


@pytest.mark.parametrize("gaps", [False, True], ids=["whole", "missing"])
def test_several_inputs(photos, quiet, tmp_path, gaps):
    table = photos.copy()
    if gaps:
        table.loc[[1, 9, 14, 15], "photo"] = None
        table.loc[[2, 10], ["kind", "u"]] = None

    def one(**kwargs):
        set_seed(1)
        dls = photo_loaders(table, PartialBlock if gaps else noop)
        set_seed(1)
        return photo_learner(dls, quiet, tmp_path, **kwargs)

    plain = still(lambda learn, cbs: learn.fit(3, 1e-2, cbs=cbs))
    ours, before = check_twins(one, plain, lambda learn: learn.fit_heads(3, 1e-2, "disk"))
    moved = {name.split(".")[1] for name, t in ours.model[0].state_dict().items() if not torch.equal(t, before[name])}
    assert moved == ({"body_row", "tap_photo_features", "tap_row_features"} if gaps else {"body_row"})
    keys = set(ours.stored_taps.sets)
    ours.fit_heads(1, 1e-2, "disk")  # the row's body has moved, and the photograph's taps are the same
    assert set(ours.stored_taps.sets) == keys


def test_a_body_that_is_not_frozen_is_refused(photos, quiet):
    learn = quiet(multihead_learner(photo_loaders(photos), {"photo": Pixels(), "row": TabularBody([6])}))
    with pytest.raises(HeadsError, match=r"`fit_heads`: no tap in use .*none of these is pretrained"):
        learn.fit_heads(1)


# augmentation


@pytest.fixture
def augmented(make, make_dls):
    "A learner whose training images are flipped at random."
    return lambda: make(dls=make_dls("digit", batch_tfms=[Flip()]))()


def test_augmentation_wants_views(augmented, make):
    learn = augmented()
    before = {name: t.clone() for name, t in learn.model.state_dict().items()}
    for fit in (learn.fit_heads, partial(learn.fine_tune, cache=True)):
        with pytest.raises(HeadsError, match=r"`views=1`: .*augmented \(Flip\).*`views=4`") as error:
            fit(1)
        assert error.value.parameter == "views"
    assert learn.opt is None and all(torch.equal(t, before[name]) for name, t in learn.model.state_dict().items())
    with pytest.raises(HeadsError, match="`views=2`: nothing of the training items is random"):
        make("digit")().fit_heads(1, views=2)


def test_views_are_draws_of_the_taps(augmented):
    learn = augmented()
    learn.fit_heads(2, 1e-2, views=4)
    train, valid = learn.stored_taps.sets.values()
    (taps,), n = train.taps.values(), len(learn.dls.train_ds)
    assert (train.views, len(taps), valid.views) == (4, 4 * n, 1)
    draws = taps[np.arange(4 * n)].view(4, n, -1)
    images = torch.stack([learn.dls.train.do_item(i)[0] for i in range(n)])
    images = learn.dls.valid.after_batch((images,))[0]
    learn.model.eval()
    ways = [learn.model[1]["digit"].pool(learn.model[0](x)["features"]) for x in (images, images.flip(3))]
    plain, flipped = ((draws - way).abs().amax(2) < 1e-4 for way in ways)
    assert (plain | flipped).all()
    assert 0.3 < plain.float().mean() < 0.7


class Sees(Callback):
    "Keeps what stands in place of the inputs in training."

    def before_fit(self):
        self.epochs = []

    def before_train(self):
        self.epochs.append(set())

    def before_batch(self):
        if self.training:
            (taps,) = self.xb[0].values()
            self.epochs[-1] |= {tuple(row[:8].tolist()) for row in taps}


def test_an_epoch_takes_one_view_of_each_item(augmented):
    learn, sees = augmented(), Sees()
    learn.fit_heads(8, 1e-2, views=4, cbs=sees)
    (stored,) = next(iter(learn.stored_taps.sets.values())).taps.values()
    rows = {tuple(row[:8].tolist()) for row in stored[np.arange(len(stored))]}
    assert all(epoch <= rows and len(epoch) == len(learn.dls.train_ds) for epoch in sees.epochs)
    assert len(set(map(frozenset, sees.epochs))) == 8


def noise(folder, size):
    "Write pictures of noise, and give their names."
    for i in range(24):
        Image.effect_noise(size(i), 90).convert("RGB").save(folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(24)]


def photo_learner(dls, quiet, path, **kwargs):
    "Make a learner whose photograph's body is frozen."
    learn = quiet(multihead_learner(dls, {"photo": Pixels(), "row": TabularBody([6])}, path=path, **kwargs))
    learn.model[0]["photo"].weights = "trained"  # `freeze` holds it
    return learn


def test_a_resize_that_crops_is_random(photos, quiet, tmp_path):
    table = photos.assign(photo=noise(tmp_path, lambda i: (24, 16)))
    crop, squish = (
        photo_learner(photo_loaders(table, item_tfms=Resize(16, method=method)), quiet, tmp_path)
        for method in ("crop", "squish")
    )
    with pytest.raises(HeadsError, match=r"two draws of one item differ.*`Resize\(size, method='squish'\)`"):
        crop.fit_heads(1)
    crop.fit_heads(1, views=2)
    squish.fit_heads(1)


# what is stored


class Double(Transform):
    "Multiplies images."

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def encodes(self, x: TensorImage):
        return x * self.factor


def stored_now(learn, cache):
    "Fit, and count what was stored for it."
    before = set(TapCache(cache).entries())
    learn.fit_heads(1, 1e-2, cache)
    return len(set(TapCache(cache).entries()) - before)


def test_stored_taps_are_used_again_and_never_stale(tmp_path, scenes, table, quiet):
    files = shutil.copytree(scenes, tmp_path / "scenes")

    def learner(seed=1, **kwargs):
        dls = digits_block(files, ("digit",), **kwargs).dataloaders(table, bs=8, num_workers=0, path=tmp_path)
        set_seed(seed)
        return quiet(multihead_learner(dls, "test_resnet", pretrained=False))

    cache = tmp_path / "taps"
    assert [stored_now(learner(), cache) for _ in range(2)] == [2, 0]
    assert stored_now(learner(seed=2), cache) == 2  # other weights
    assert [stored_now(learner(batch_tfms=[Double(f)]), cache) for f in (2, 2, 3)] == [2, 0, 2]
    image = files / table["image"][0]
    Image.open(image).rotate(90).save(image)  # of one split
    assert stored_now(learner(), cache) == 1
    table.loc[0, "digit"] = "9" if table["digit"][0] != "9" else "8"
    assert stored_now(learner(), cache) == 1


def fit_and_say(make, folder, queue):
    "Fit in a process of its own."
    learn, store, filled = make("digit")(), Filling._fill, []
    Filling._fill = lambda *args: filled.append(1) or store(*args)
    learn.fit_heads(1, 1e-2, folder)
    queue.put((sorted(learn.stored_taps.sets), len(filled)))


def test_several_processes_share_a_folder(make, tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    runs = [context.Process(target=fit_and_say, args=(make, tmp_path / "taps", queue)) for _ in range(2)]
    for run in runs:
        run.start()
    said = [queue.get(timeout=60) for _ in runs]
    for run in runs:
        run.join()
    assert said[0][0] == said[1][0] and sum(filled for _, filled in said) == 2  # each set once
    assert len(TapCache(tmp_path / "taps").entries()) == 2


def test_what_is_broken_off_is_not_read(make, tmp_path, monkeypatch):
    learn, cache = make("digit")(), TapCache(tmp_path / "taps", memory=0)
    before = {name: t.clone() for name, t in learn.model.state_dict().items()}
    store, runs = StoredBody.store, []

    def breaks(body, *inputs):
        runs.append(list(cache.folder.rglob("*.part")) if cache.folder.exists() else [])
        if len(runs) == 3:
            raise KeyboardInterrupt
        return store(body, *inputs)

    monkeypatch.setattr(StoredBody, "store", breaks)
    with pytest.raises(KeyboardInterrupt):
        learn.fit_heads(1, 1e-2, cache)
    assert runs[-1] and not cache.entries() and learn.opt is None and learn.model.training
    assert all(torch.equal(t, before[name]) for name, t in learn.model.state_dict().items())
    learn.fit_heads(1, 1e-2, cache)
    assert len(cache.entries()) == 2


def test_half_precision_says_how_far_it_is_off(make):
    learn, whole = make("digit")(), make("digit")()
    learn.fit_heads(1, 1e-2, dtype=torch.float16)
    whole.fit_heads(1, 1e-2)
    off = 0.0
    for one, other in zip(learn.stored_taps.sets.values(), whole.stored_taps.sets.values()):
        (half,), (full,), rows = one.taps.values(), other.taps.values(), np.arange(len(one.targets[0]))
        assert half.nbytes * 2 == full.nbytes
        off = max(off, (half[rows] - full[rows]).abs().max().item())
    assert 0 < off == learn.stored_taps.error
    assert f"torch.float16: off by {off:.2g} at most" in str(learn.stored_taps)


def test_the_place_and_the_size_are_said(make, capsys, tmp_path):
    learn = make("digit")()
    learn.add_cb(ProgressCallback())
    with learn.no_logging():
        learn.fit_heads(1, cache=tmp_path / "taps")
    assert f"in TapCache, {tmp_path / 'taps'}: 2 sets of taps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"n_epoch": "3"}, "`n_epoch` of `fit_heads` is a whole number.*Pass `n_epoch=3`"),
        ({"lr": "fast"}, "`lr` of `fit_heads` is a rate"),
        ({"views": 0}, "`views` of `fit_heads` is a whole number of at least 1"),
        ({"pct_start": 3}, "`pct_start` of `fit_heads` is a share"),
        ({"cache": "memroy"}, "`cache` is 'auto'.*found 'memroy'. Did you mean 'memory'"),
        ({"cache": False}, "`cache` is 'auto'.*found False"),
        ({"cache": 3}, "`cache` is 'auto'.*found 3"),
        ({"dtype": torch.int8}, "`dtype` of stored taps is `torch.float16`"),
        ({"cbs": MixUp()}, "`cbs`: MixUp mixes images"),
        ({"cache": TapCache("taps", memory=0, limit=1e-6)}, "`cache`: the taps take .* may take .*`TapCache"),
    ],
    ids=str,
)
def test_bad_use_is_refused(make, kwargs, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn = make("digit")()
    loaders = learn.dls.loaders
    with pytest.raises(HeadsError, match=said):
        learn.fit_heads(**{"n_epoch": 1, **kwargs})
    assert learn.opt is None and learn.dls.loaders is loaders and "forward" not in vars(learn.model[0])


def test_other_bad_uses_are_refused(make):
    learn = make("digit")()
    with pytest.raises(HeadsError, match="`views` and `dtype` of `fine_tune` are for stored taps"):
        learn.fine_tune(1, views=4)
    empty = make("digit")()
    empty.dls.loaders = [dl.new(dl.dataset.new_empty()) for dl in empty.dls.loaders]
    with pytest.raises(HeadsError, match=r"`fit_heads`: .* found \w*Datasets of 0 items, bs=8"):
        empty.fit_heads(1)
    learn.model = nn.DataParallel(learn.model)
    with pytest.raises(HeadsError, match="`fit_heads`: the model is wrapped in DataParallel"):
        learn.fit_heads(1)
