"""What an experiment says of itself beside its tasks and its agent: where it runs, how long, how judged."""

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from rl2meta.devices import Precision
from rl2meta.training import Budget
from rl2meta.workers.settings import WorkerSettings

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TrainingConfig(_Section):
    """How long and how wide to train, and how often to save."""

    updates: Count = Field(description="updates of the learner in the whole run")
    trials_per_update: Count = Field(description="tasks drawn for each update, one trial each")
    episodes_per_trial: Count = Field(description="episodes in a trial; for bandits, pulls")
    checkpoint_every: Count = Field(100, description="updates between checkpoints; the last is always saved")
    keep_checkpoints: Count = Field(3, description="older ones are removed")

    def budget(self) -> Budget:
        """Return what ``meta_train`` needs of it."""
        return Budget(self.updates, self.trials_per_update, self.episodes_per_trial)


class EvaluationConfig(_Section):
    """What ``rl2meta evaluate`` does unless its options say otherwise."""

    tasks: Annotated[int, Field(ge=2, le=10**7)] = 10_000
    seed: Seed = 0
    against: Annotated[list[str], Field(strict=False)] = Field(default_factory=lambda: ["all"])
    episodes_per_trial: Count | None = Field(None, description="episodes in a trial; null for as in training")


class RunSettings(_Section):
    """What an experiment says beside its tasks and its agent."""

    seed: Seed = 0
    device: str = "auto"
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="CPU threads of torch; null for one per core"
    )
    precision: Precision = Field(
        "float32", description="of products on a GPU; tf32 lets its matrix units round factors to 10 bits"
    )
    cuda_graphs: bool = Field(
        False, description="record training's rollouts once and replay them, on a GPU, without its launches"
    )
    reveal_task: bool = Field(False, description="put the task's parameters into the observation: an oracle")
    training: TrainingConfig
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    workers: WorkerSettings = Field(
        default_factory=WorkerSettings, description="of plugged-in environments; of no use to batched ones"
    )

    @field_validator("device")
    @classmethod
    def _named_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise ValueError("auto, cpu, cuda or cuda:N")
        return device
