"""One trained model in the eyes of others: the figures of our evaluation beside those of outside judges.

    make smoke && make peers
    python benchmarks/judges.py runs/emoji-smoke                     # the sets of the run's configuration
    python benchmarks/judges.py runs/emoji-smoke --sets runs/emoji-shards/eval-style

The run is exported as for open_clip, and everything but the export is the judges' own: how images are read and shown to the
model, the model itself, features, classifier, scores. Prints a row for each figure: ours, theirs, the difference.

    CLIP_benchmark   its command, classification and retrieval
    open_clip        its model, transforms and tokenizer; its zero-shot classifier and training-time retrieval metrics
    scikit-learn     balanced accuracy; a logistic regression on our features, trained on every second sample of the set
    torchmetrics     calibration error of open_clip's answers
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from pipeline.data.evalset import EvalSet
from pipeline.dist import World
from pipeline.eval import logistic
from pipeline.eval.embed import embed_set
from pipeline.eval.evaluate import evaluate
from pipeline.eval.target import load
from pipeline.export import export
from tests.peers import peer_command, run_peer

ROOT = Path(__file__).parent.parent
REGULARISATION = 10.0
Rows = list[tuple[str, str, float, float]]

JUDGE = """
import io, json, sys, numpy as np, open_clip, torch, webdataset as wds
from open_clip_train.train import get_clip_metrics
from open_clip_train.zero_shot import accuracy
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from torchmetrics.functional.classification import multiclass_calibration_error
export, folder, data = sys.argv[1:]
model, _, preprocess = open_clip.create_model_and_transforms('local-dir:' + export)
tokenizer = open_clip.get_tokenizer('local-dir:' + export)
count = int(open(folder + '/test/nshards.txt').read())
samples = list(wds.WebDataset([f'{folder}/test/{i}.tar' for i in range(count)], shardshuffle=False))
image_of = lambda s: next(s[e] for e in ('webp', 'png', 'jpg', 'jpeg') if e in s)
captions = [json.loads(s['json'])['captions'][0] if 'json' in s else s['txt'].decode().split(chr(10))[0] for s in samples]
found, scale = {}, model.logit_scale.exp().detach().reshape(())
with torch.no_grad():
    pixels = [preprocess(Image.open(io.BytesIO(image_of(s))).convert('RGB')) for s in samples]
    parts = [torch.stack(pixels[i:i + 256]) for i in range(0, len(pixels), 256)]
    image = torch.cat([model.eval().encode_image(part, normalize=True) for part in parts])
    text = torch.cat([model.encode_text(tokenizer(captions[i:i + 256]), normalize=True) for i in range(0, len(captions), 256)])
    metrics = get_clip_metrics(image, text, scale)
    found['open_clip'] = {key: float(metrics[key]) for key in metrics if '_R@' in key}
    if 'cls' in samples[0]:
        label = torch.tensor([int(s['cls']) for s in samples])
        names = [line.strip() for line in open(folder + '/classnames.txt')]
        lines = [line.strip() for line in open(folder + '/zeroshot_classification_templates.txt')]
        templates = [lambda c, line=line: line.replace('{c}', c) for line in lines]
        logits = scale * image @ open_clip.build_zero_shot_classifier(model, tokenizer, names, templates, 32, 'cpu')
        top = accuracy(logits, label, topk=(1, 5))
        found['open_clip'] |= {'top-1': top[0] / len(label), 'top-5': top[1] / len(label)}
        found['torchmetrics'] = {'ece': float(multiclass_calibration_error(logits.softmax(1), label, len(names), 15, 'l1'))}
        found['sklearn'] = {'balanced': float(balanced_accuracy_score(label, logits.argmax(1)))}
        given = torch.load(data, weights_only=True)
        x, train = given['image'].double().numpy(), np.arange(len(label)) % 2 == 0
        probe = LogisticRegression(C=given['C'], tol=1e-9, max_iter=20000).fit(x[train], label[train])
        found['sklearn']['probe'] = float((probe.predict(x[~train]) == label[~train].numpy()).mean())
    ours = torch.load(data, weights_only=True)
    found['open_clip']['features'] = float(max((image - ours['image']).abs().max(), (text - ours['text']).abs().max()))
print(json.dumps(found))
"""


def main() -> None:
    """Evaluate, ask the judges, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--sets", nargs="+", help="local folders; default: those of the run's configuration")
    args = parser.parse_args()
    device = torch.device("cpu")
    target = load(args.run, device)
    for folder in args.sets or target.asked.sets:
        (ours,) = evaluate(target.subject, [folder], World(), device, batch_size=256, progress=False)
        if "error" in ours:
            sys.exit(f"{folder}: {ours['error']}")
        data = embed_set(target.subject, EvalSet.open(folder), World(), device, 256, progress=False)
        first = {owner: j for j, owner in reversed(list(enumerate(data.owner_M.tolist())))}
        text = data.text_Md[[first[i] for i in range(len(data.keys))]]
        with tempfile.TemporaryDirectory() as work:
            exported, features = Path(work) / "export", Path(work) / "features.pt"
            export(args.run, exported)
            torch.save({"image": data.image_Nd, "text": text, "C": REGULARISATION}, features)
            judged = json.loads(
                run_peer(JUDGE, str(exported), str(folder), str(features), timeout_seconds=900).splitlines()[-1]
            )
            rows = [*clip_benchmark(ours, exported, Path(folder).resolve(), Path(work)), *others(ours, judged)]
            if "sklearn" in judged:
                rows.append(
                    (
                        "probe on every second sample",
                        "scikit-learn",
                        probe(data.image_Nd, data.label_N),
                        judged["sklearn"]["probe"],
                    )
                )
        print(f"\n{args.run} on {folder}, {ours['samples']:,} images\n")
        print("| figure | judge | ours | theirs | difference |\n|---|---|---|---|---|")
        for name, judge, mine, other in rows:
            print(f"| {name} | {judge} | {mine:.6f} | {other:.6f} | {abs(mine - other):.1e} |")
        print(f"\nlargest difference of a feature between ours and open_clip's: {judged['open_clip']['features']:.1e}")


def clip_benchmark(ours: dict[str, Any], exported: Path, folder: Path, work: Path) -> Rows:
    """Its command, once for each task that the set has."""
    rows: Rows = []
    tasks = {
        "classification": {"acc1": "accuracy@1", "acc5": "accuracy@5", "mean_per_class_recall": "mean_per_class@1"},
        "retrieval": {f"{side}_retrieval_recall@{k}": (way, k) for side, way in WAYS.items() for k in (1, 5, 10)},
    }
    for task, names in tasks.items():
        if task == "classification" and "zero_shot" not in ours:
            continue
        there = work / task
        there.mkdir()
        for path in folder.iterdir():
            (there / path.name).symlink_to(path)
        (there / "dataset_type.txt").unlink(missing_ok=True)
        (there / "dataset_type.txt").write_text(f"{task}\n")
        if task == "retrieval":
            written = with_texts(folder / "test", work / "texts")
            (there / "test").unlink()
            (there / "test").symlink_to(written)
        given = {"dataset": f"wds/{task}", "dataset_root": there, "task": f"zeroshot_{task}", "model": f"local-dir:{exported}"}
        given |= {"pretrained": "", "num_workers": "0", "output": work / f"{task}.json"}
        words = [str(word) for key, value in given.items() for word in (f"--{key}", value)]
        command = [peer_command("clip_benchmark"), "eval", *words, "--no_amp", "--recall_k", "1", "5", "10"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
        if done.returncode:
            sys.exit(done.stderr)
        found = json.loads((work / f"{task}.json").read_text())["metrics"]
        for theirs, name in names.items():
            if isinstance(name, tuple):
                rows.append(
                    (
                        f"{name[0].replace('_', ' ')} R@{name[1]}",
                        "CLIP_benchmark",
                        ours["retrieval"][name[0]][f"recall@{name[1]}"],
                        found[theirs],
                    )
                )
            else:
                rows.append((f"zero-shot {name}", "CLIP_benchmark", ours["zero_shot"][name], found[theirs]))
    return rows


WAYS = {"image": "text_to_image", "text": "image_to_text"}


def others(ours: dict[str, Any], judged: dict[str, Any]) -> Rows:
    """open_clip's functions, torchmetrics, and scikit-learn's balanced accuracy."""
    rows: Rows = []
    if "zero_shot" in ours:
        zero = ours["zero_shot"]
        rows += [
            (f"zero-shot accuracy@{k}", "open_clip", zero[f"accuracy@{k}"], judged["open_clip"][f"top-{k}"]) for k in (1, 5)
        ]
        rows.append(("zero-shot mean_per_class@1", "scikit-learn", zero["mean_per_class@1"], judged["sklearn"]["balanced"]))
        rows.append(("calibration error", "torchmetrics", ours["calibration"]["ece"], judged["torchmetrics"]["ece"]))
    for way in ("text_to_image", "image_to_text"):
        for k in (1, 5, 10):
            rows.append(
                (
                    f"{way.replace('_', ' ')} R@{k}",
                    "open_clip",
                    ours["retrieval"][way][f"recall@{k}"],
                    judged["open_clip"][f"{way}_R@{k}"],
                )
            )
    return rows


def probe(image_Nd: torch.Tensor, label_N: torch.Tensor) -> float:
    """Accuracy of our logistic regression on every second sample, fitted on the others."""
    train_N = torch.arange(len(label_N)) % 2 == 0
    weights = logistic.fit(image_Nd[train_N], label_N[train_N], int(label_N.max()) + 1, REGULARISATION)
    return float((logistic.predict(weights, image_Nd[~train_N]) == label_N[~train_N]).double().mean())


def with_texts(test: Path, out: Path) -> Path:
    """The shards with captions as text members, which is where CLIP_benchmark looks for them."""
    from pipeline.data import tar
    from pipeline.data.samples import ShardSet

    out.mkdir()
    shards = sorted(test.glob("*.tar"), key=lambda path: int(path.stem))
    (out / "nshards.txt").write_text(f"{len(shards)}\n")
    for path in shards:
        found = ShardSet.open(str(path))
        with (out / path.name).open("wb") as file:
            for i in range(len(found)):
                members, sample = found.members(i), found.read(i)
                members = {**members, "txt": "\n".join(sample.captions).encode()}
                for extension, data in members.items():
                    file.write(tar.member_bytes(f"{sample.key}.{extension}", data))
            file.write(tar.END_OF_ARCHIVE)
    return out


if __name__ == "__main__":
    main()
