"""How single environments are run: settings that change no result."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class WorkerSettings(BaseModel):
    """Where single environments run, and what happens when one fails; nothing here changes a result."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    processes: Annotated[int, Field(ge=0, le=1024)] | None = Field(
        None,
        description="worker processes; null for one per core, 0 to step environments in the main process, "
        "where a debugger finds them",
    )
    timeout: Annotated[float, Field(gt=0, le=1e6)] = Field(
        60.0, description="seconds that one call of an environment may take before its worker is restarted"
    )
    max_restarts: Annotated[int, Field(ge=0, le=10**6)] = Field(
        20, description="of workers, before a run stops with a checkpoint"
    )
