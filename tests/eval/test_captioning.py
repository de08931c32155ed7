"""Captions: written greedily by a tiny CoCa that learned a handful of pictures, the same however the work is cut up."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.config import EvalConfig, ModelConfig, ObjectiveConfig
from pipeline.data.augment import normalise
from pipeline.data.evalset import EvalSet
from pipeline.data.tokenizer import build as build_tokenizer
from pipeline.dist import World
from pipeline.errors import ConfigError, DataError
from pipeline.eval.captioning import Caption, can_write, generate, read, require_scores, words, write
from pipeline.eval.embed import Subject
from pipeline.eval.evaluate import evaluate
from pipeline.features import Inputs
from pipeline.models import clip
from tests.distributed import run_ranks
from tests.eval.helpers import NO_MEAN, NO_STD, SIZE, angle_subject, png, rough_subject, write_levels, write_set
from tests.peers import run_peer

CPU = torch.device("cpu")
ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": SIZE,
        "patch_size": 8,
        "width": 32,
        "layers": 1,
        "head_width": 16,
        "attentional_pool": True,
        "attn_pooler_queries": 4,
        "attn_pooler_heads": 2,
        "output_tokens": True,
    },
    "text_cfg": {
        "context_length": 12,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 1,
        "embed_cls": True,
        "output_tokens": True,
    },
    "multimodal_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1, "attn_pooler_heads": 2},
}
LEARNED = {
    (220, 30, 30): "a dark red square",
    (30, 200, 40): "a square of green",
    (20, 40, 230): "one very blue square on paper",
}


def subject() -> Subject:
    torch.manual_seed(0)
    model = clip.build(ModelConfig(inline=ARCHITECTURE), ObjectiveConfig()).eval()
    return Subject(model, build_tokenizer(ARCHITECTURE), NO_MEAN, NO_STD, {"run": "coca", "step": 1})


def squares(folder: Path, count: int = 70) -> Path:
    """Images of three colours by turns, each with its caption and a shorter one."""
    samples = [
        {
            "png": png(np.full((SIZE, SIZE, 3), colour)),
            "json": json.dumps({"captions": [LEARNED[colour], "a square"]}).encode(),
        }
        for colour in (list(LEARNED) * count)[:count]
    ]
    return write_set(folder, samples)


def trained(steps: int = 60) -> Subject:
    """A few steps on the caption loss, enough to know the three pictures by heart."""
    found = subject()
    colours = torch.tensor(list(LEARNED), dtype=torch.uint8)
    pixels = normalise(colours[:, :, None, None].expand(3, 3, SIZE, SIZE), NO_MEAN, NO_STD)
    tokens = found.tokenizer(list(LEARNED.values()))
    inputs = Inputs(pixels[None], tokens, torch.arange(3), torch.zeros(1, 3, 0))
    model: Any = found.model
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        extras = model(*inputs).extras
        loss = F.cross_entropy(extras["caption_logits"].flatten(0, 1), extras["caption_labels"].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found


def test_what_was_learned_is_written(tmp_path: Path) -> None:
    found = write(trained(), EvalSet.open(squares(tmp_path / "squares", 6)), World(), CPU)
    assert [caption.text for caption in found] == list(LEARNED.values()) * 2
    assert found[4] == Caption("000004", "a square of green", ("a square of green", "a square"))


def written_on_ranks(world: World, folder: Path) -> list[Caption]:
    return write(subject(), EvalSet.open(folder), world, CPU)


def test_the_same_is_written_on_any_number_of_ranks(tmp_path: Path) -> None:
    folder = squares(tmp_path / "squares")
    alone = written_on_ranks(World(), folder)
    assert len(alone) == 70
    assert run_ranks(written_on_ranks, 2, folder) == [alone] * 2


def test_a_caption_has_a_start_an_end_and_at_most_the_context() -> None:
    untrained = subject()
    tokens = generate(untrained, torch.rand(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)))
    assert tokens.shape[0] == 5 and 5 <= tokens.shape[1] <= 12
    start, end = untrained.tokenizer([""])[0, :2].tolist()
    assert tokens[:, 0].tolist() == [start] * 5
    assert ((tokens == end).sum(dim=1) == 1).all()
    after = (tokens == end).cumsum(dim=1) - (tokens == end).int()
    assert (tokens[after > 0] == 0).all(), "padding behind the end"


def test_ids_become_texts() -> None:
    tokens = build_tokenizer(ARCHITECTURE)(["a red square", "Two, or three!"])
    assert read(tokens) == ["a red square", "two , or three !"]


def test_words_are_what_scores_see() -> None:
    assert words("A well-known cat's hat, isn't it?") == "a well-known cat 's hat is n't it"
    assert words("  ") == ""


def test_only_some_models_write() -> None:
    assert can_write(subject().model)
    assert not can_write(angle_subject().model) and not can_write(rough_subject().model)


def test_an_image_without_captions_cannot_be_scored(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "bare", [{"png": png(np.zeros((SIZE, SIZE, 3))), "cls": b"0"}], ["x"], shards=1)
    with pytest.raises(DataError, match="sample 000000 has no caption to compare a written one with"):
        write(subject(), EvalSet.open(folder), World(), CPU)


def test_without_the_library_it_is_said_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    with pytest.raises(ConfigError, match=r"pip install 'unisphere\[captioning\]'"):
        require_scores()
    folder = write_levels(tmp_path / "levels", range(3))
    asked = EvalConfig(captioned=3)
    with pytest.raises(ConfigError, match="--captioned"):
        evaluate(subject(), [folder], World(), CPU, batch_size=8, asked=asked, progress=False)
    (result,) = evaluate(angle_subject(), [folder], World(), CPU, batch_size=8, asked=asked, progress=False)
    assert "this model writes none" in caplog.text
    assert "captioning" not in result and "options" not in result


@pytest.mark.slow
def test_open_clip_generates_the_same_tokens(tmp_path: Path) -> None:
    """Its own ``generate``, on an untrained and on a trained model. A name that it imports for beam search, which is not used,
    is gone from today's transformers and stands empty here."""
    pixels = torch.rand(6, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    for name, found in (("untrained", subject()), ("trained", trained())):
        model: Any = found.model
        path = tmp_path / f"{name}.pt"
        state = {key: value for key, value in model.state_dict().items() if not key.startswith(("logit_scale", "scalars"))}
        torch.save({"state": state, "pixels": pixels}, path)
        code = (
            "import json, sys, torch, transformers.generation as generation\n"
            "generation.BeamSearchScorer = None\n"
            "import open_clip\n"
            "data = torch.load(sys.argv[1], weights_only=True)\n"
            "model = open_clip.CoCa(**json.loads(sys.argv[2])).eval()\n"
            "missing, unexpected = model.load_state_dict(data['state'], strict=False)\n"
            "assert missing == ['logit_scale'] and not unexpected, (missing, unexpected)\n"
            "with torch.no_grad():\n"
            "    tokens = model.generate(data['pixels'], generation_type='top_k', top_k=1, seq_len=12, max_seq_len=12)\n"
            "print(json.dumps(tokens.tolist()))"
        )
        theirs = json.loads(run_peer(code, str(path), json.dumps(ARCHITECTURE)).splitlines()[-1])
        with torch.no_grad():
            assert generate(found, pixels).tolist() == theirs


@pytest.mark.slow
def test_the_words_are_those_of_the_java_tokenizer() -> None:
    """But for brackets, which it turns into the words -lrb- and -rrb- and keeps."""
    captions = [
        "A well-known cat's hat, isn't it?",
        "Two dogs, one brown and one white, playing; they're happy.",
        "the man won't eat his mother's apple - it's red!",
        "A sign that says: STOP...",
        "an emoji of kissing face with closed eyes",
    ]
    code = (
        "import json, sys; from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer\n"
        "given = {i: [{'caption': text}] for i, text in enumerate(json.loads(sys.argv[1]))}\n"
        "print(json.dumps([found for (found,) in PTBTokenizer().tokenize(given).values()]))"
    )
    theirs = json.loads(run_peer(code, json.dumps(captions)).splitlines()[-1])
    assert [words(caption) for caption in captions] == theirs


@pytest.mark.slow
def test_scores_are_those_worked_out_by_hand() -> None:
    """BLEU-1 and 2 of two captions: 5 of 7 words and 2 of 5 word pairs occur in the references, and no caption is too short.

    CIDEr where every caption is its own only reference is 10 for texts of four words or more: all cosines are 1.
    """
    code = (
        "import json, sys; from pipeline.eval.captioning import Caption, measure\n"
        "found = [measure([Caption(*item) for item in given]) for given in json.loads(sys.argv[1])]\n"
        "print(json.dumps(found))"
    )
    worked = [("a", "a red cat sat", ("a red dog sat",)), ("b", "two big birds", ("two birds", "two small ones"))]
    same = [("a", "a red cat sat down", ("a red cat sat down",)), ("b", "two birds fly high", ("two birds fly high",))]
    found, perfect = json.loads(run_peer(code, json.dumps([worked, same])).splitlines()[-1])
    # a red _ sat, two _ birds: 5 of 7; (a red), nothing else: 1 of 5.
    assert found["bleu"][:2] == pytest.approx([5 / 7, (5 / 7 * 1 / 5) ** 0.5], abs=1e-5)
    assert (found["n"], found["mean_words"]) == (2, 3.5)
    assert found["examples"][0] == ["a", "a red cat sat", "a red dog sat"]
    assert perfect["bleu"] == pytest.approx([1, 1, 1, 1], abs=1e-6)
    assert (perfect["cider"], perfect["interval"]) == (pytest.approx(10), pytest.approx([10, 10]))


@pytest.mark.slow
def test_the_command_writes_scores_down(tmp_path: Path) -> None:
    """The whole path, in an environment that has the library: a run with a captioning model, evaluated with --captioned."""
    from tests.eval.trained import write_run

    folder = squares(tmp_path / "squares", 12)
    cfg, _ = write_run(tmp_path / "runs", {"inline": ARCHITECTURE}, sets=(str(folder),))
    code = "import sys; from pipeline.eval.run import main; sys.exit(main(sys.argv[1:]))"
    printed = run_peer(code, str(cfg.run_dir), "--captioned", "9")
    result = json.loads((cfg.run_dir / "eval.jsonl").read_text())
    assert result["options"] == {"captioned": 9}
    assert result["captioning"]["n"] == 9
    assert "captions: BLEU-4" in printed
    assert "retrieval" in result
