"""``unisphere weights``: files of other names become timm's, and two towers start in one cone."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from pipeline import config
from pipeline.errors import ConfigError
from pipeline.models import clip
from pipeline.weights import main
from tests.runs import run_tree, write_shards


def test_a_port_of_a_network_gets_timms_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    state = timm.create_model("resnet10t").state_dict()
    ported = {f"net._{number}": tensor for number, tensor in enumerate(state.values()) if tensor.ndim}
    torch.save(ported, tmp_path / "port.pth")
    assert main(["rename", "resnet10t", str(tmp_path / "port.pth"), str(tmp_path / "out.safetensors")]) == 0
    found = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items() if tensor.ndim)
    assert f"{len(found)} tensors of resnet10t written" in capsys.readouterr().out

    torch.save(dict(reversed(ported.items())), tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=r"shapes differ:\n  net._\d+ \(1000,\) for conv1.0.weight \(24, 3, 3, 3\)"):
        main(["rename", "resnet10t", str(tmp_path / "other.pth"), str(tmp_path / "out.safetensors")])
    with pytest.raises(ConfigError, match="timm knows no model 'resnet10x'"):
        main(["rename", "resnet10x", str(tmp_path / "port.pth"), str(tmp_path / "out.safetensors")])
    with pytest.raises(ConfigError, match=r"out.pt: weights are written as .safetensors"):
        main(["rename", "resnet10t", str(tmp_path / "port.pth"), str(tmp_path / "out.pt")])


def test_two_towers_are_aligned_on_training_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(tmp_path / "shards")
    tree = run_tree(tmp_path, model__second_tower="image")
    cfg = config.from_tree(tree)
    (tmp_path / "run.yaml").write_text(config.dump(cfg))
    out = tmp_path / "start.safetensors"
    assert main(["align", str(tmp_path / "run.yaml"), str(out), "--images", "64"]) == 0
    assert "distance of the towers' mean embeddings: " in capsys.readouterr().out
    started = config.from_tree(run_tree(tmp_path, model__second_tower="image", model__init_weights=str(out)))
    torch.manual_seed(cfg.seed)
    plain, aligned = (
        clip.build(cfg.model, cfg.objective).state_dict(),
        clip.build(started.model, started.objective).state_dict(),
    )
    assert [name for name in plain if not torch.equal(plain[name], aligned[name])] == ["text.proj"]
    with pytest.raises(ConfigError, match="--images 0: must be at least 1"):
        main(["align", str(tmp_path / "run.yaml"), str(out), "--images", "0"])
