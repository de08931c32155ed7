"""The import law: layers, no cycles, reserved libraries, torch-free rooms. Each guard is also shown a violation."""

from __future__ import annotations

from pipeline.cli import COMMANDS
from tests.architecture import guards
from tests.architecture.guards import planted

PROJECT = guards.project()


def test_the_whole_project_was_found() -> None:
    assert len(PROJECT) >= 40
    expected = {
        "pipeline",
        "pipeline.config",
        "pipeline.engine.ds_config",
        "pipeline.train",
        "slurm.launch",
        "data_prep.build",
    }
    assert expected <= set(PROJECT)
    assert sum(len(guards.imports(source, PROJECT)) for source in PROJECT.values()) >= 200


def test_imports_go_down_the_layers() -> None:
    assert guards.layer_violations(PROJECT) == []


def test_an_import_that_goes_up_is_found() -> None:
    sources = planted(pipeline__dist="def f():\n    from pipeline import train\n", pipeline__train="")
    assert guards.layer_violations(sources) == [
        "pipeline/dist.py:2: pipeline.dist (1 ground) imports pipeline.train (4 entry points: train)"
    ]


def test_an_import_into_another_room_of_the_same_layer_is_found() -> None:
    sources = planted(pipeline__data__loader="from pipeline.models.clip import build", pipeline__models__clip="")
    (line,) = guards.layer_violations(sources)
    assert "pipeline/data/loader.py:1" in line
    assert (
        guards.layer_violations(planted(pipeline__data__loader="import pipeline.data.augment", pipeline__data__augment=""))
        == []
    )


def test_a_forbidden_pair_is_found_with_its_reason() -> None:
    sources = planted(pipeline__losses__terms="from pipeline.dist import World", pipeline__dist="")
    (line,) = guards.layer_violations(sources)
    assert line.endswith("pipeline.losses must not import pipeline.dist: the world is an argument of a loss")


def test_a_file_without_a_layer_is_found() -> None:
    assert guards.layer_violations(planted(pipeline__newcomer="")) == [
        "pipeline/newcomer.py: no tier names it; add it to TIERS"
    ]


def test_relative_imports_are_followed() -> None:
    sources = planted(
        pipeline__data__plan="from ..models import clip\nfrom . import loader",
        pipeline__models__clip="",
        pipeline__data__loader="",
    )
    assert [line.split(" imports ")[1] for line in guards.layer_violations(sources)] == [
        "pipeline.models.clip (2 parts)",
        "pipeline.data.loader (2 parts)",
    ]


def test_there_are_no_import_cycles() -> None:
    assert guards.cycles(PROJECT) == []


def test_a_cycle_is_found_even_through_a_lazy_import() -> None:
    sources = planted(slurm__a="import slurm.b", slurm__b="def f():\n    from slurm import c", slurm__c="import slurm.a")
    assert guards.cycles(sources) == ["slurm.a -> slurm.b -> slurm.c -> slurm.a"]


def test_reserved_libraries_stay_in_their_rooms() -> None:
    assert guards.scope_violations(PROJECT) == []


def test_a_library_outside_its_room_is_found_however_it_is_named() -> None:
    sources = planted(
        pipeline__a="import deepspeed.comm",
        pipeline__b="from torch import distributed as d",
        pipeline__c="import torch\n\n\ndef f():\n    return torch.distributed.get_rank()",
        pipeline__engine__d="import deepspeed, torch.distributed",
        pipeline__e="from torch.distributed import barrier",
    )
    assert guards.scope_violations(sources) == [
        "pipeline/a.py:1: deepspeed belongs to pipeline.engine only",
        "pipeline/b.py:1: torch.distributed belongs to pipeline.dist, pipeline.losses.gather, pipeline.engine only",
        "pipeline/c.py:5: torch.distributed belongs to pipeline.dist, pipeline.losses.gather, pipeline.engine only",
        "pipeline/e.py:1: torch.distributed belongs to pipeline.dist, pipeline.losses.gather, pipeline.engine only",
    ]


def test_torch_free_rooms_do_not_reach_torch() -> None:
    assert sum(any(guards.within(module, name) for name in guards.TORCH_FREE) for module in PROJECT) >= 20
    assert guards.torch_free_violations(PROJECT) == []


def test_a_way_to_torch_is_found_through_other_modules_and_lazy_imports() -> None:
    sources = planted(slurm__x="def f():\n    import pipeline.dist", pipeline__dist="import torch")
    assert guards.torch_free_violations(sources) == ["slurm.x -> pipeline.dist -> torch"]
    only_typing = planted(slurm__x="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch")
    assert guards.torch_free_violations(only_typing) == []


def test_importing_an_entry_point_does_not_load_torch() -> None:
    modules = [command.module for command in COMMANDS.values()]
    assert set(modules) <= set(PROJECT)
    assert guards.eager_torch_violations(PROJECT, modules) == []


def test_an_eager_torch_import_is_found_in_a_package_on_the_way() -> None:
    sources = planted(pipeline__eval="import torch", pipeline__eval__run="def f():\n    import deepspeed")
    assert guards.eager_torch_violations(sources, ["pipeline.eval.run"]) == ["pipeline.eval.run -> pipeline.eval -> torch"]
