"""Two processes against one. They are started once, by `torchrun`; what they found is in a folder."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from . import distributed_job as job

ROOT = Path(__file__).parents[3]
MORE = [f"{name}, accumulated and clipped" for name in ("sum", "UPGrad", "UPGrad over taps", "Disjoint, Adam")]
RECORDED = ["sum, recorded", "UPGrad, recorded"]
TRAINED = [*job.SOME, *MORE, *RECORDED, "SGD", "shuffled", "dropped"]
OF_IMAGES = "GradDrop over taps"  # draws for every number of every image


def torchrun(*args: str | Path) -> subprocess.Popen:
    "Two processes on a free port."
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, args)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def said(process: subprocess.Popen) -> str:
    "What it printed; one that hangs is ended, and fails."
    try:
        out = process.communicate(timeout=900)[0]
    except subprocess.TimeoutExpired:
        process.terminate()  # `torchrun` ends those that it has started
        pytest.fail(f"hangs:\n{process.communicate(timeout=60)[0]}")
    assert process.returncode == 0, out
    return out


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> SimpleNamespace:
    "What two ranks found, and one process meanwhile."
    folder = tmp_path_factory.mktemp("ranks")
    process = torchrun(Path(job.__file__), folder)
    try:
        one = {
            "trained": job.trained(folder, 1),
            "several": job.trained_several(folder, 1),
            "foretold": job.foretold(folder, 1),
        }
    finally:
        said(process)
    return SimpleNamespace(one=one, ranks=[torch.load(folder / f"rank {rank}.pt") for rank in range(2)], folder=folder)


def close(found, wanted, atol: float) -> None:
    torch.testing.assert_close(found, wanted, atol=atol, rtol=0, equal_nan=True)


def test_the_batches_lack_labels_on_a_rank_and_on_all(tmp_path):
    dls = job.data(tmp_path, job.WHOLE, job.BS, shuffle=False)
    heads = job.learner(tmp_path, 1).heads
    there = [{name: head.labelled(b[1 + head.target.index]) for name, head in heads.items()} for b in dls.train]
    digit, tags = (
        [[bool(part.any()) for part in batch[name].chunk(2)] for batch in there] for name in ("digit", "tags")
    )
    assert digit == [[True, False], [False, False], [False, False]]
    assert tags == [[True, True], [False, True], [False, False]]
    assert not any(labels.any() for labels in there[2].values())


@pytest.mark.parametrize("name", TRAINED)
def test_parameters_are_equal_on_all_ranks_after_every_step(found, name):
    first, second = (rank["trained"][name]["params"] for rank in found.ranks)
    assert torch.equal(first, second)
    assert len(first) >= job.EPOCHS * 2 and not torch.equal(first[0], first[-1])


@pytest.mark.parametrize("name", [name for name in TRAINED if name != OF_IMAGES])
def test_ranks_joined_equal_one_process(found, name):
    ranks, one = (part["trained"][name] for part in (found.ranks[0], found.one))
    atol = 1e-9 if "CAGrad" in name else 1e-12  # its solver stops at a tolerance
    close(ranks["params"], one["params"], atol)
    assert [list(weights) for weights in ranks["weights"]] == [list(weights) for weights in one["weights"]]
    for ours, theirs in zip(ranks["weights"], one["weights"]):
        close(torch.tensor(list(ours.values())), torch.tensor(list(theirs.values())), 1e-6)


@pytest.mark.parametrize("name", [name for name in TRAINED if name != OF_IMAGES])
def test_the_table_is_that_of_one_process(found, name):
    one = found.one["trained"][name]
    for rank in found.ranks:
        ranks = rank["trained"][name]
        assert ranks["columns"] == one["columns"]
        close(ranks["table"], one["table"], 1e-6)
        close(ranks["losses"], one["losses"], 1e-6)
        for head, losses in ranks["by_head"].items():
            close(losses, one["by_head"][head], 1e-9)


@pytest.mark.parametrize("name", job.SEVERAL)
def test_ranks_joined_equal_one_process_over_several_bodies(found, name):
    one, first, second = (part["several"][name] for part in (found.one, *found.ranks))
    assert torch.equal(first["params"], second["params"]) and not torch.equal(first["params"][0], first["params"][-1])
    close(first["params"], one["params"], 1e-12)
    for rank in (first, second):
        close(rank["preds"], one["preds"], 1e-6)


@pytest.mark.parametrize("name", RECORDED)
def test_the_conflict_that_is_seen_is_that_of_one_process(found, name):
    wanted = found.one["trained"][name]["conflict"]
    assert len(wanted) and wanted.isfinite().any()
    for rank in found.ranks:
        close(rank["trained"][name]["conflict"], wanted, 1e-9)
        close(rank["trained"][name]["params"], rank["trained"][name.partition(",")[0]]["params"], 1e-12)


def test_what_is_drawn_for_every_image_is_another_on_every_rank_and_the_step_is_not(found):
    ranks, one = (part["trained"][OF_IMAGES]["params"] for part in (found.ranks[0], found.one))
    assert not torch.allclose(ranks, one, atol=1e-6)


@pytest.mark.parametrize("name", ["sum", "UPGrad", "FAMO", "frozen", "bf16", "MixUp", "stored"])
def test_statistics_of_batch_norms_are_equal_too(found, name):
    first, second = (rank["alike"][name] for rank in found.ranks)
    assert torch.equal(first, second) and first.isfinite().all()


@pytest.mark.parametrize(
    "what", ["validate", "get_preds", "shuffled", "training", "one", "predict", "tta", "interpretation"]
)
def test_metrics_and_predictions_are_of_all_ranks_in_the_order_of_the_data(found, what):
    for rank in found.ranks:
        close(rank["foretold"][what], found.one["foretold"][what], 1e-4)


def test_ranks_share_stored_taps(found):
    first, second = (rank["alike"]["taps"] for rank in found.ranks)
    assert len(first) == 2 and first == second


def test_what_is_compared_says_something(found):
    one = found.one["foretold"]
    assert len(one["get_preds"][0]) == job.N - job.TRAIN == 9  # odd: the last batch has an item on the first rank only
    assert one["validate"].isfinite().all() and one["validate"][-1] > 0  # mean average precision


def test_batches_that_are_given_are_every_ranks_own(found):
    wanted = [part[: job.BS // 2] for part in found.one["foretold"]["batches"]]
    for rank in found.ranks:
        close(rank["foretold"]["batches"], wanted, 1e-4)


def test_predictions_are_saved_by_the_first_rank(found):
    assert [rank["foretold"]["saved"] for rank in found.ranks] == [["0", "1"], []]
    assert found.one["foretold"]["saved"] == ["0", "1"]


def test_the_first_rank_prints_and_writes(found):
    first, second = (rank["spoken"] for rank in found.ranks)
    assert first["printed"].count("Better model found") == 1 and "digit_f1_score" in first["printed"]
    assert second["printed"] == ""
    lines = first["written"].splitlines()
    assert len(lines) == 3 and lines[0].startswith("epoch,train_loss,valid_loss") and lines[2].startswith("1,")


def test_the_first_rank_warns_of_what_is_so_on_all(found):
    first, second = (rank["warned"] for rank in found.ranks)
    assert first["all learn"] == second["all learn"] == []  # the second rank has no label for `digit`
    (warning,) = first["one does not"]
    assert "'box' had a loss of exactly 0" in warning and second["one does not"] == []


def test_the_best_model_is_loaded_on_all_ranks(found):
    first, second = (rank["spoken"] for rank in found.ranks)
    assert torch.equal(first["params"], second["params"])
    close(first["validate"], second["validate"], 0)
    best = first["table"].view(2, -1)[:, 1].min()  # `valid_loss`
    close(first["validate"][0], best, 1e-6)
    assert first["as before"] and second["as before"]


def test_an_error_leaves_the_learner_as_it_was(found):
    for rank in found.ranks:
        assert "stop" in rank["refused"]["failed"] and rank["refused"]["as before"]


def test_what_cannot_be_is_refused(found):
    for rank in found.ranks:
        assert "find the rate in a run with one process" in rank["refused"]["lr_find"]
        assert "the last of 3 training batches (18 items, `bs=4`) holds one item" in rank["refused"]["one image"]


def test_outside_of_the_context_a_rank_trains_alone(found):
    assert all(rank["alone"] for rank in found.ranks)


def test_what_ranks_tell_each_other(found):
    for rank in found.ranks:
        told = rank["told"]
        assert [t.tolist() for t in told["mean"]] == [[0.5] * 3, [[1.5, 1.5]], [2.5]]
        assert told["mean"][1].dtype == torch.float64
        assert (told["sum"], told["first"]) == (1, [0, 5])
        assert [t.tolist() for t in told["gathered"]] == [[[True]], [[True, False], [True, False]]]
        assert [t.shape for t in told["empty"]] == [(0, 2), (1, 2)]


def test_the_example_trains(tmp_path):
    options = ["--path", tmp_path, "--scenes", "40", "--epochs", "1", "--arch", "test_resnet", "--bs", "8"]
    out = said(torchrun(ROOT / "examples/train_distributed.py", *options, "--strategy", "UPGrad", "--over", "taps"))
    assert out.count("valid_digit_loss") == 1  # one rank prints
    assert (tmp_path / "models" / "digits.pth").exists()
