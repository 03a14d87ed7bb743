"""What the README shows is what happens."""

import re
from pathlib import Path

import pytest

from train_like.cli import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_first_code_block_runs(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    block = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert block is not None
    (checkpoint,) = re.findall(r'checkpoint="(.*?)"', block[1])
    (tmp_path / checkpoint).parent.mkdir(parents=True)
    (tmp_path / checkpoint).symlink_to(small_checkpoint)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(block[1], "README.md", "exec"), names)
    answer = names["answer"]
    assert answer.maps.shape == (2, 224, 224)  # type: ignore[attr-defined]
    difference, residual = answer.difference.abs(), answer.residual.abs()  # type: ignore[attr-defined]
    assert answer.is_converged  # type: ignore[attr-defined]
    assert (residual <= 0.011 * difference.clamp(min=0.1)).all()
    assert "True" in capsys.readouterr().out


def test_the_words_before_the_first_code_block_are_few() -> None:
    assert len(README.split("```")[0].split()) < 100


def test_every_file_that_is_linked_or_named_exists() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for config in re.findall(r"configs/[\w/]+\.yaml", README + (ROOT / "Makefile").read_text()):
        assert (ROOT / config).exists(), config


@pytest.mark.parametrize("command", sorted(set(re.findall(r"python -m train_like (\w+)", README))))
def test_every_command_is_known(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "usage" in capsys.readouterr().out
