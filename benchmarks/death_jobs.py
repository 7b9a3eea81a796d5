"""The jobs of `benchmarks.deaths`: what each writes, what is there before, and what has to be there afterwards."""

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from random import Random
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; what is forked is alike

import fastai.vision.all  # noqa: F401  `fit_one_cycle` comes with it
import torch
from fastai.callback.core import Callback
from fastai.callback.tracker import SaveModelCallback
from fastai.data.core import DataLoaders
from fastai.learner import load_learner
from fastai.torch_core import set_seed

from fastai_heads.compare.single import compare_to_single
from fastai_heads.data.digits import digit_scenes, digits_block
from fastai_heads.data.tap_cache import TapCache
from fastai_heads.errors import HeadsError
from fastai_heads.export.bundle import load_bundle
from fastai_heads.export.onnx import export_onnx
from fastai_heads.export.predictor import Predictor
from fastai_heads.learner import MultiHeadLearner, multihead_learner

EPOCHS, N, SIDE, OLD, NEW = 3, 40, 32, 1, 2
DATA = Path()
"The scenes, and what uninterrupted jobs end with. `write_data` sets it before a job is forked."

State = list[torch.Tensor]


class Died(Exception):
    "What should not have happened."


def write_data(folder: Path) -> None:
    "Write the scenes that all jobs read."
    global DATA
    DATA = folder
    warnings.simplefilter("ignore")
    digit_scenes(folder / "scenes", n=N, size=SIDE)


def make_dls(path: Path, bs: int = 8, workers: int = 0) -> DataLoaders:
    "Make loaders over the scenes, whose learner writes below a path."
    table = digit_scenes(DATA / "scenes", n=N, size=SIDE)
    block = digits_block(DATA / "scenes", ("digit", "ink"))
    return block.dataloaders(table, bs=bs, num_workers=workers, path=path)


def make_learner(path: Path, seed: int = NEW, workers: int = 0, strategy: Any = None, bs: int = 8) -> MultiHeadLearner:
    "Make a small learner of two heads that says nothing."
    set_seed(seed)
    learn = multihead_learner(make_dls(path, bs, workers), "test_resnet", pretrained=False, strategy=strategy)
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    learn.logger = lambda row: None
    return learn


class SameBatches(Callback):
    "Every epoch's shuffling and dropout from a seed of its own."

    order = 80  # after what skips epochs

    def before_epoch(self) -> None:
        set_seed(self.epoch)
        dl = self.dls.train
        getattr(dl, "dl", dl).rng = Random(self.epoch)  # several ranks share one loader out


def state_of(learn: MultiHeadLearner) -> State:
    "List the tensors of a model and of its optimizer."
    opt = [learn.opt.state[p] for p in learn.model.parameters()] if learn.opt else []
    tensors = [*learn.model.state_dict().values(), *(torch.as_tensor(v) for one in opt for v in one.values())]
    return [t.detach().clone() for t in tensors]


def same(a: State, b: State) -> bool:
    "Tell whether two states are equal to the bit."
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))


def demand(fits: bool, what: str) -> None:
    "End with a fault."
    if not fits:
        raise Died(what)


def demand_nothing_left(folder: Path) -> None:
    "Refuse what a killed process has left beside, once the job has been done again."
    left = [p.name for p in folder.rglob("*") if p.name.endswith((".part", "-old")) or p.name.startswith(".")]
    demand(not [name for name in left if name != ".lock"], f"left behind: {left}")


def grow_old(folder: Path) -> None:
    "Let what killed processes have left be older than an hour."
    for found in folder.glob(".*"):
        os.utime(found, (time.time() - 7200,) * 2)


class Job:
    "Something that writes files."

    timed = True

    def prepare(self, folder: Path) -> str:
        "Write what is there before."
        return ""

    def run(self, folder: Path) -> str:
        "Do what is disturbed."
        raise NotImplementedError

    def keep(self, folder: Path) -> str:
        "Keep what an undisturbed run has ended with."
        return ""

    def check(self, folder: Path) -> str:
        "Look at what is there, go on, and say what was found. Raises `Died`."
        raise NotImplementedError

    @property
    def expected(self) -> Path:
        return DATA / f"{type(self).__name__}.pt"


class Fit(Job):
    "A fit that saves every epoch, with the optimizer."

    def train(self, learn: MultiHeadLearner, start: int = 0, cbs: tuple[Callback, ...] = ()) -> State:
        saving = SaveModelCallback(every_epoch=True, with_opt=True)
        learn.fit_one_cycle(EPOCHS, 3e-3, start_epoch=start, cbs=[SameBatches(), saving, *cbs])
        return state_of(learn)

    def run(self, folder: Path) -> str:
        torch.save(self.train(make_learner(folder)), folder / "end.pt")
        return ""

    def keep(self, folder: Path) -> str:
        (folder / "end.pt").rename(self.expected)
        return ""

    def check(self, folder: Path) -> str:
        files = sorted((folder / "models").glob("model_*.pth"))
        for file in files:
            make_learner(folder).load(file, with_opt=True)  # each is whole
        learn = make_learner(folder)
        if files:
            learn.load(files[-1], with_opt=True)
        end = self.train(learn, len(files)) if len(files) < EPOCHS else state_of(learn)
        demand(same(end, torch.load(self.expected)), f"goes on after {len(files)} epochs to another end")
        demand_nothing_left(folder)
        return f"{len(files)} epochs whole; goes on to the same bits"


class Write(Job):
    "A file or folder of weights that is written over an older one."

    def write(self, learn: MultiHeadLearner, folder: Path) -> None:
        raise NotImplementedError

    def read(self, folder: Path) -> State:
        raise NotImplementedError

    def prepare(self, folder: Path) -> str:
        self.write(self.learner(folder, OLD), folder)
        torch.save(self.read(folder), DATA / "old.pt")
        return ""

    def learner(self, folder: Path, seed: int) -> MultiHeadLearner:
        learn = make_learner(folder, seed)
        learn.fit(1)
        return learn

    def run(self, folder: Path) -> str:
        self.write(self.learner(folder, NEW), folder)
        return ""

    def check(self, folder: Path) -> str:
        found = self.read(folder)
        old = same(found, torch.load(DATA / "old.pt"))
        grow_old(folder)
        self.write(self.learner(folder, NEW), folder)
        demand(old or same(found, self.read(folder)), "is neither the old one nor the new one")
        demand_nothing_left(folder)
        return f"the {'old' if old else 'new'} one, whole"


class Save(Write):
    "`learn.save`."

    def write(self, learn: MultiHeadLearner, folder: Path) -> None:
        learn.save(folder / "weights")

    def read(self, folder: Path) -> State:
        return state_of(make_learner(folder, 0).load(folder / "weights", with_opt=True))


class Export(Write):
    "`learn.export`."

    def write(self, learn: MultiHeadLearner, folder: Path) -> None:
        learn.export("learner.pkl")

    def read(self, folder: Path) -> State:
        return list(load_learner(folder / "learner.pkl").model.state_dict().values())

    def learner(self, folder: Path, seed: int) -> MultiHeadLearner:
        learn = super().learner(folder, seed)
        learn.logger = print  # a function of a job is of no other process
        return learn


class Bundle(Write):
    "`learn.save_bundle`."

    def write(self, learn: MultiHeadLearner, folder: Path) -> None:
        learn.save_bundle(folder / "bundle", overwrite=True)

    def read(self, folder: Path) -> State:
        network = load_bundle(folder / "bundle").network.graph(("digit", "ink")).network
        return list(network.state_dict().values())


class Onnx(Write):
    "`export_onnx`."

    def write(self, learn: MultiHeadLearner, folder: Path) -> None:
        export_onnx(folder / "all.onnx", learn, overwrite=True)

    def read(self, folder: Path) -> State:
        answer = Predictor.from_onnx(folder / "all.onnx")(str(DATA / "scenes" / "images" / "00000.png"))
        return [torch.tensor([answer.digit.probability, answer.ink])]


class Taps(Job):
    "`fit_heads` that fills a cache of files."

    def train(self, folder: Path) -> State:
        learn = make_learner(folder)
        learn.freeze()
        learn.fit_heads(2, 3e-3, cache=TapCache(folder / "taps", memory=0), cbs=SameBatches())
        return state_of(learn)

    def run(self, folder: Path) -> str:
        torch.save(self.train(folder), folder / "end.pt")
        return ""

    def keep(self, folder: Path) -> str:
        (folder / "end.pt").rename(self.expected)
        return ""

    def check(self, folder: Path) -> str:
        there = [p.name for p in TapCache(folder / "taps").entries() if p.suffix != ".part"]
        demand(same(self.train(folder), torch.load(self.expected)), "trains on to another end")
        demand_nothing_left(folder)
        return f"{len(there)} sets of taps whole; trains to the same bits"


class Compare(Job):
    "`compare_to_single`, which keeps finished runs."

    def run(self, folder: Path) -> str:
        def learner(strategy: Any) -> MultiHeadLearner:
            return make_learner(folder, strategy=strategy)

        with redirect_stdout(None):
            table = compare_to_single(learner, 1, [0], {"sum": None}, folder=folder / "runs")
        return table.drop(columns="cost").to_csv()

    def keep(self, folder: Path) -> str:
        self.expected.write_text(self.run(folder))
        return ""

    def check(self, folder: Path) -> str:
        runs = folder / "runs" / "runs.csv"
        n = len(runs.read_text().splitlines()) - 1 if runs.exists() else 0
        demand(self.run(folder) == self.expected.read_text(), "goes on to another table")
        demand_nothing_left(folder)
        return f"{n} of 3 runs whole; goes on to the same table"


class Table(Job):
    "`predict_folder` into a CSV file that is there."

    def prepare(self, folder: Path) -> str:
        (folder / "table.csv").write_text("old\n")
        return ""

    def run(self, folder: Path) -> str:
        with redirect_stdout(None):
            make_learner(folder).predict_folder(DATA / "scenes" / "images", folder / "table.csv")
        return ""

    def check(self, folder: Path) -> str:
        text = (folder / "table.csv").read_text()
        self.run(folder)
        new = (folder / "table.csv").read_text()
        demand(text in ("old\n", new), "is neither the old one nor the new one")
        demand_nothing_left(folder)
        return f"the {'old' if text == 'old' + chr(10) else 'new'} one, whole"


class Scenes(Job):
    "`digit_scenes`."

    def run(self, folder: Path) -> str:
        return digit_scenes(folder / "scenes", n=N, size=SIDE).to_csv()

    def check(self, folder: Path) -> str:
        there = (folder / "scenes").exists()
        grow_old(folder)
        demand(self.run(folder) == digit_scenes(DATA / "scenes", n=N, size=SIDE).to_csv(), "are other scenes")
        demand_nothing_left(folder)
        return "whole" if there else "not there; written the next time"


class Gone(Job):
    "A data file that disappears: the error names it, and what was saved goes on once it is back."

    timed = False

    def __init__(self, call: Callable[[MultiHeadLearner, Path], Any], workers: int = 0):
        self.call, self.workers = call, workers

    def run(self, folder: Path) -> str:
        learn = make_learner(folder, workers=self.workers)
        file = DATA / "scenes" / "images" / ("00035.png" if "get_preds" in self.call.__name__ else "00007.png")
        aside = file.rename(DATA / "gone.png")
        try:
            self.call(learn, folder)
        except (OSError, HeadsError) as error:
            demand(str(file) in str(error), f"the error does not name the file: {error}")
            return type(error).__name__
        finally:
            aside.rename(file)
        raise Died("nothing was raised")

    def check(self, folder: Path) -> str:
        learn = make_learner(folder, workers=self.workers)
        self.call(learn, folder)
        demand_nothing_left(folder)
        return "done, once the file is back"


def kill_workers() -> None:
    "Kill the processes that this one has started to read items."
    for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)


class KillsWorkers(Callback):
    "Kills the loader's workers in the second epoch, or in the first batch of predictions."

    def __init__(self, predicts: bool = False):
        self.predicts = predicts

    def after_batch(self) -> None:
        if self.predicts or (self.training and self.epoch == 1):
            kill_workers()


class Worker(Job):
    "A process that reads items is killed: an error and no hang, and the learner goes on with other loaders."

    timed = False

    def __init__(self, predicts: bool):
        self.predicts = predicts

    def run(self, folder: Path) -> str:
        learn = make_learner(folder, workers=1, bs=2)
        try:
            if self.predicts:
                learn.get_preds(ds_idx=0, cbs=KillsWorkers(predicts=True))
            else:
                Fit().train(learn, cbs=(KillsWorkers(),))
        except (RuntimeError, ConnectionError) as error:  # torch's, whichever it notices first
            named = isinstance(error, ConnectionError) or "worker" in str(error).lower()
            demand(named, f"another error: {error}")
            learn.dls = make_dls(folder)
            learn.fit(1)
            return type(error).__name__
        raise Died("nothing was raised")

    def check(self, folder: Path) -> str:
        files = sorted((folder / "models").glob("model_*.pth"))
        demand(self.predicts or len(files) == 1, f"{len(files)} files")
        for file in files:
            make_learner(folder).load(file, with_opt=True)
        demand_nothing_left(folder)
        return f"{len(files)} epochs whole; the learner trains on"


class Ranks(Fit):
    "Two processes, one of which is killed."

    timed = False

    def run(self, folder: Path) -> str:
        return ""

    def check(self, folder: Path) -> str:
        files = sorted((folder / "models").glob("model_*.pth"))
        for file in files:
            make_learner(folder).load(file, with_opt=True)
        whole = DATA / "ranks"
        if not (whole / "end.pt").exists():
            whole.mkdir(exist_ok=True)
            demand(torchrun(whole, "never") == 0, "two ranks do not end")
        demand(torchrun(folder, "never", len(files)) == 0, "two ranks do not go on")
        demand(same(torch.load(folder / "end.pt"), torch.load(whole / "end.pt")), "go on to another end")
        demand_nothing_left(folder)
        return f"{len(files)} epochs whole; two ranks go on to the same bits"


RANKS = [(1, "in a step"), (0, "in a step"), (0, "half way of saving")]


def torchrun(folder: Path, die: str, start: int = 0) -> int:
    "Train in two processes, from the last file of `start` epochs; 124 where they hang."
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "benchmarks.death_jobs", str(DATA), str(folder), die, str(start)]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, env=os.environ | {"PYTHONWARNINGS": "ignore"}, **quiet)
    try:
        said = process.communicate(timeout=150)[0]
    except subprocess.TimeoutExpired:
        process.terminate()
        process.communicate()
        return 124
    demand(die != "never" or process.returncode == 0, said[-1500:])
    return process.returncode


def launch_ranks(rank: int, when: str) -> Callable[[Job, Path, float], str]:
    "Kill one of two ranks: the other one ends, too."

    def happen(_job: Job, folder: Path, _seconds: float) -> str:
        code = torchrun(folder, f"{rank} {when}")
        demand(code not in (0, 124), "hangs" if code else "was not killed")
        return "both ended"

    return happen


class KillsRank(Callback):
    "Kills this process in the second epoch."

    def after_backward(self) -> None:
        if self.epoch == 1 and self.iter == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def train_rank(folder: Path, die: str, start: int) -> None:
    "Train as one of two ranks."
    learn, rank = make_learner(folder), int(os.environ["RANK"])
    if start:
        learn.load(folder / "models" / f"model_{start - 1}", with_opt=True)
    cbs: tuple[Callback, ...] = ()
    if die == f"{rank} in a step":
        cbs = (KillsRank(),)
    elif die == f"{rank} half way of saving":
        from benchmarks.deaths import kill_at

        kill_at(torch, "save", 2, "half")
    with learn.distrib_ctx(cpu=True):
        end = Fit().train(learn, start, cbs)
    if rank == 0:
        torch.save(end, folder / "end.pt")


def fit(learn: MultiHeadLearner, folder: Path) -> None:
    "Fit."
    learn.fit(1)


def get_preds(learn: MultiHeadLearner, folder: Path) -> None:
    "Predict."
    learn.get_preds()


def fill_taps(learn: MultiHeadLearner, folder: Path) -> None:
    "Fill the cache of taps, in files."
    learn.freeze()
    learn.fit_heads(1, 3e-3, cache=TapCache(folder / "taps", memory=0))


JOBS: dict[str, Job] = {
    "fit": Fit(), "save": Save(), "export": Export(), "save_bundle": Bundle(), "export_onnx": Onnx(), "taps": Taps(),
    "compare_to_single": Compare(), "predict_folder": Table(), "digit_scenes": Scenes(), "file, fit": Gone(fit),
    "file, get_preds": Gone(get_preds), "file, taps": Gone(fill_taps), "file, in a worker": Gone(fit, workers=1),
    "worker, fit": Worker(False), "worker, get_preds": Worker(True), "two ranks": Ranks(),
}  # fmt: skip

if __name__ == "__main__":
    DATA = Path(sys.argv[1])
    warnings.simplefilter("ignore")
    train_rank(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
