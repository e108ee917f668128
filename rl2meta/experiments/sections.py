"""The sections of a config beside its tasks and its agent: where to run, how long, how to evaluate."""

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from rl2meta.devices import Precision
from rl2meta.kernels import Kernels
from rl2meta.training import Budget
from rl2meta.workers.settings import WorkerSettings

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TrainingConfig(_Section):
    """How long to train, on how many tasks at a time, and how often to save."""

    updates: Count = Field(description="number of updates of the learner in the whole run")
    trials_per_update: Count = Field(description="number of tasks drawn for each update, one trial each")
    episodes_per_trial: Count = Field(description="number of episodes in a trial; for bandits: of pulls")
    checkpoint_every: Count = Field(
        100, description="number of updates between checkpoints; the last update is always saved"
    )
    keep_checkpoints: Count = Field(
        3, description="number of newest checkpoints to keep; older ones are removed"
    )
    evaluate_every: Count | None = Field(
        None,
        description="number of updates between evaluations on held-out tasks during training; the agent of "
        "the last update is always judged; null: never",
    )
    evaluation_tasks: Annotated[int, Field(ge=2, le=10**7)] = Field(
        300, description="number of held-out tasks of these evaluations"
    )
    shards: Count = Field(
        1,
        description="number of equal parts of the batch of an update, each with its own random streams; "
        "several processes share them, and a run's numbers depend on the shards, not on the processes",
    )

    @field_validator("shards")
    @classmethod
    def _equal_parts(cls, shards: int, info: ValidationInfo) -> int:
        trials = info.data.get("trials_per_update")
        if trials is not None and trials % shards:
            raise ValueError(f"a divisor of training.trials_per_update={trials}")
        return shards

    def budget(self) -> Budget:
        """Return the part that ``meta_train`` needs."""
        return Budget(self.updates, self.trials_per_update, self.episodes_per_trial)


class EvaluationConfig(_Section):
    """The defaults of ``rl2meta evaluate``; its options replace them."""

    tasks: Annotated[int, Field(ge=2, le=10**7)] = 10_000
    seed: Seed = 0
    against: Annotated[list[str], Field(strict=False)] = Field(default_factory=lambda: ["all"])
    episodes_per_trial: Count | None = Field(
        None, description="number of episodes in a trial; null: as in training"
    )


class RunSettings(_Section):
    """The settings of an experiment beside its tasks and its agent."""

    seed: Seed = 0
    device: str = "auto"
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="number of CPU threads of torch; null: one per core"
    )
    precision: Precision = Field(
        "float32",
        description="precision of matrix products on a GPU; with tf32 the GPU may round factors to 10 bits",
    )
    kernels: Kernels | None = Field(
        None,
        description="what an LSTM, or the policy of MAML-TRPO, computes with on a CPU: torch, or kernels "
        "that Numba compiles, which round differently; null: compiled, where Numba is there, for a long "
        "training",
    )
    cuda_graphs: bool = Field(
        False,
        description="on a GPU, record the rollouts of training once as CUDA graphs and replay them, which "
        "saves the time to launch each kernel",
    )
    reveal_task: bool = Field(
        False, description="put the task's parameters into the observation, for an oracle"
    )
    training: TrainingConfig
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    workers: WorkerSettings = Field(
        default_factory=WorkerSettings,
        description="worker processes of plugged-in environments; batched families do not use them",
    )

    @field_validator("device")
    @classmethod
    def _named_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise ValueError("auto, cpu, cuda or cuda:N")
        return device
