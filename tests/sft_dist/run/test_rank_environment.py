"""The environment that `accelerate launch` and torchrun give their ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from sft_dist.recipe.errors import UserError
from sft_dist.run.rank_environment import remove_torchrun_folder, require_all_ranks

SIMPLE = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"}  # Accelerate's launcher of one process
ARGV = ["python", "/bin/accelerate", "launch", "--num_processes", "2", "-m", "sft_dist.train", "my recipe.yaml"]


def test_one_rank_where_several_were_requested_is_refused_with_the_command_that_starts_them() -> None:
    with pytest.raises(UserError) as error:
        require_all_ranks(SIMPLE, {}, ARGV)
    command = "accelerate launch --multi_gpu --num_processes 2 -m sft_dist.train 'my recipe.yaml'"
    assert str(error.value).endswith(f": {command}")
    with pytest.raises(UserError, match="ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2"):
        require_all_ranks(SIMPLE, {}, ["python", "-m", "accelerate.commands.launch", "--cpu", *ARGV[3:]])


@pytest.mark.parametrize(
    ("env", "launcher"),
    [
        ({**SIMPLE, "RANK": "0"}, {}),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, {}),  # one process was requested
        (SIMPLE, {"MASTER_PORT": "29500"}),  # the port was the user's
        ({"MASTER_PORT": "29500"}, {}),  # plain python
    ],
)
def test_whoever_started_all_that_was_requested_is_not_refused(env: dict[str, str], launcher: dict[str, str]) -> None:
    require_all_ranks(env, launcher, ARGV)


@pytest.mark.parametrize("base", ["torchelastic_x1", "users-own"])
def test_the_last_rank_removes_the_folder_that_torchrun_made(tmp_path: Path, base: str) -> None:
    files = [tmp_path / base / "none_y2/attempt_0" / rank / "error.json" for rank in "01"]
    for file in files:
        file.parent.mkdir(parents=True)
    remove_torchrun_folder({"TORCHELASTIC_ERROR_FILE": str(files[0])})
    assert files[1].parent.is_dir()
    assert not files[0].parent.exists()
    remove_torchrun_folder({"TORCHELASTIC_ERROR_FILE": str(files[1])})
    assert [path.name for path in tmp_path.iterdir()] == ([] if base.startswith("torch") else [base])
    remove_torchrun_folder({})
