"""How single environments run: settings that change no result."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class WorkerSettings(BaseModel):
    """Where single environments run, and what happens when one fails; nothing here changes a result."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    processes: Annotated[int, Field(ge=0, le=1024)] | None = Field(
        None,
        description="number of worker processes; null: one per core; 0: step the environments in the main "
        "process, for example to use a debugger",
    )
    timeout: Annotated[float, Field(gt=0, le=1e6)] = Field(
        60.0, description="seconds that one call of an environment may take before its worker is restarted"
    )
    max_restarts: Annotated[int, Field(ge=0, le=10**6)] = Field(
        20, description="maximum number of worker restarts; after more the run saves a checkpoint and stops"
    )
