"""What a site file may say, and what becomes of it: lists of words, never shell text."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from slurm.site import Container, Site, load_site

TEMPLATE = Path(__file__).parents[2] / "configs" / "slurm" / "template.yaml"
ODD = ("python", "-c", "import sys; print(sys.argv[1:])", "it's $HOME", "a b")


def test_the_template_is_a_site() -> None:
    assert load_site(TEMPLATE).sbatch == {"partition": "gpu", "account": "my-project"}
    assert load_site(None) == Site()


def test_numbers_are_words(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("sbatch: {mem: 0}\nenvironment: {NCCL_DEBUG: WARN, X: 1}\n")
    site = load_site(tmp_path / "s.yaml")
    assert site.sbatch == {"mem": "0"}
    assert site.environment == {"NCCL_DEBUG": "WARN", "X": "1"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partiton: gpu", r"unknown key 'partiton'"),
        ("container: {runtime: docker, image: x}", r"container.runtime = 'docker': must be one of apptainer, pyxis"),
        ("container: {runtime: pyxis}", r"container.image is required"),
        ("modules: cuda", r"modules = 'cuda': expected a list"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_site(tmp_path / "s.yaml")


def test_without_particulars_a_command_stays_as_it_is() -> None:
    assert Site().wrap(ODD) == ODD
    assert Site().srun_options() == ()


def test_modules_are_loaded_and_arguments_survive(tmp_path: Path) -> None:
    site = Site(modules=("cuda/12.4", "nccl 2; echo injected"))
    command = list(site.wrap(ODD))
    # A login shell's `module` is a shell function; here one that writes down what it is given.
    command[1] = "-c"
    command[2] = f'module() {{ printf "%s\\n" "$@" >{tmp_path}/loaded; }}; ' + command[2]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(["it's $HOME", "a b"])
    assert (tmp_path / "loaded").read_text().splitlines() == ["load", "cuda/12.4", "nccl 2; echo injected"]


def test_containers() -> None:
    apptainer = Site(container=Container("apptainer", "/i.sif", ("/data:/data",)))
    words = apptainer.wrap(ODD, ("/repo",))
    assert words[: -len(ODD)] == ("apptainer", "exec", "--nv", "--bind", "/repo", "--bind", "/data:/data", "/i.sif")
    assert apptainer.srun_options(("/repo",)) == ()
    pyxis = Site(container=Container("pyxis", "repo#image:1", ("/data:/data",)))
    assert pyxis.wrap(ODD) == ODD
    assert pyxis.srun_options(("/repo",)) == ("--container-image=repo#image:1", "--container-mounts=/repo:/repo,/data:/data")
