"""Outside judges: other projects' code, on our numbers and our exports, comes to the same figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipeline.dist import World
from pipeline.eval import calibration, logistic
from pipeline.eval.run import main
from pipeline.export import export
from tests.eval.helpers import write_noise
from tests.eval.trained import TINY, write_run
from tests.peers import run_peer

pytestmark = pytest.mark.slow  # needs the peers' environment, which `make test-slow` builds

ALONE = World()


def test_scikit_learn_finds_the_same_probe(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 12, generator=generator, dtype=torch.float64)
    label = (x[:, :4] + 0.7 * torch.randn(300, 4, generator=generator)).argmax(dim=1)
    torch.save({"x": x, "label": label}, tmp_path / "data.pt")
    code = (
        "import json, sys, torch; from sklearn.linear_model import LogisticRegression\n"
        "data = torch.load(sys.argv[1], weights_only=True)\n"
        "model = LogisticRegression(C=2.0, tol=1e-10, max_iter=10_000).fit(data['x'].numpy(), data['label'].numpy())\n"
        "print(json.dumps([model.coef_.T.tolist(), model.intercept_.tolist()]))"
    )
    slope, intercept = json.loads(run_peer(code, str(tmp_path / "data.pt")))
    ours = logistic.fit(x, label, 4, regularisation=2.0)
    torch.testing.assert_close(ours.slope_dC, torch.tensor(slope, dtype=torch.float64), rtol=0, atol=1e-5)
    # A constant added to every intercept changes nothing.
    theirs = torch.tensor(intercept, dtype=torch.float64)
    torch.testing.assert_close(ours.intercept_C - ours.intercept_C.mean(), theirs - theirs.mean(), rtol=0, atol=1e-5)


def test_torchmetrics_measures_the_same_calibration_error(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(500, 7, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 7, (500,), generator=generator)
    torch.save({"p": logits.softmax(dim=1), "label": label}, tmp_path / "data.pt")
    code = (
        "import sys, torch; from torchmetrics.functional.classification import multiclass_calibration_error as error\n"
        "data = torch.load(sys.argv[1], weights_only=True)\n"
        "print(float(error(data['p'], data['label'], num_classes=7, n_bins=15, norm='l1')))"
    )
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    ours = calibration.ece(confidence, (predicted == label).double())
    assert ours == pytest.approx(float(run_peer(code, str(tmp_path / "data.pt"))), abs=1e-6)


def test_clip_benchmark_evaluates_our_export_to_the_same_figures(tmp_path: Path) -> None:
    """Its command, on a set of ours, with the model that open_clip loads from our export."""
    noise = write_noise(tmp_path / "noise", 90)
    cfg, _ = write_run(tmp_path / "runs", {"inline": TINY}, sets=(str(noise),))
    assert main([str(cfg.run_dir)]) == 0
    ours = json.loads((cfg.run_dir / "eval.jsonl").read_text())
    export(cfg.run_dir, tmp_path / "export")
    code = (
        "import sys; from clip_benchmark.cli import main\n"
        "folder, model, task, out = sys.argv[1:]\n"
        "given = {'dataset': 'wds/noise', 'dataset_root': folder, 'split': 'test', 'task': task, 'output': out,\n"
        "         'model': 'local-dir:' + model, 'pretrained': '', 'batch_size': '32', 'num_workers': '0'}\n"
        "words = [word for key, value in given.items() for word in ('--' + key, value)]\n"
        "sys.argv = ['clip_benchmark', 'eval', *words, '--no_amp']\n"
        "main()"
    )
    found = {}
    for task in ("zeroshot_classification", "zeroshot_retrieval"):
        out = tmp_path / f"{task}.json"
        if task == "zeroshot_retrieval":
            (noise / "dataset_type.txt").write_text("retrieval\n")  # which member is read: captions instead of classes
        run_peer(code, str(noise), str(tmp_path / "export"), task, str(out), timeout_seconds=240)
        found[task] = json.loads(out.read_text())["metrics"]
    assert found["zeroshot_classification"]["acc1"] == pytest.approx(ours["zero_shot"]["accuracy@1"], abs=1e-4)
    assert found["zeroshot_classification"]["acc5"] == pytest.approx(ours["zero_shot"]["accuracy@5"], abs=1e-4)
    recall = found["zeroshot_retrieval"]
    assert recall["image_retrieval_recall@5"] == pytest.approx(ours["retrieval"]["text_to_image"]["recall@5"], abs=1e-4)
    assert recall["text_retrieval_recall@5"] == pytest.approx(ours["retrieval"]["image_to_text"]["recall@5"], abs=1e-4)
