"""Rollouts that are captured once as a CUDA graph and then replayed, without launch overhead on the GPU."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch

from rl2meta.errors import UserError
from rl2meta.randomness import derive
from rl2meta.rollout import Stage
from rl2meta.tasks import TaskDistribution, Tasks, TensorTasks
from rl2meta.trial import Agent, Carry, Plan, Trial

_WARM_UPS = 3


class CUDAGraph:
    """A rollout that is captured once on the device, and replayed in the same memory.

    Args:
        play: the rollout; it launches kernels and never reads a value back from the device.
        generators: all its random generators; every replay uses their present seeds.
    """

    def __init__(self, play: Callable[[], Trial], generators: list[torch.Generator]) -> None:
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(generators[0].device):  # the CUDA streams of this device
            for each in generators:
                self._graph.register_generator_state(each)
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UPS):
                    play()
            torch.cuda.current_stream().wait_stream(aside)
            with torch.cuda.graph(self._graph):
                self._trial = play()

    def replay(self) -> Trial:
        """Replay the rollout; it overwrites the trial of an earlier replay."""
        self._graph.replay()
        return self._trial


@runtime_checkable
class Seeded(Protocol):
    """Environments whose random stream can be seeded without a reset."""

    def seed(self, seed: int) -> torch.Generator:
        """Seed the generator of all the environments' draws, and return it."""
        ...


class GraphWorker:
    """A worker that captures a whole trial as a graph at the first call and then replays it; see ``Worker``.

    Tasks and seeds may differ between calls. If the agent, the number of tasks or the number of episodes
    changes, it captures again. Every trial uses the same memory, so a trial is valid only until the next one.
    The agent's weights must be changed in place, as optimisers do. The agent must not adapt between phases,
    because adapting may read values back from the device.

    Args:
        distribution: a built-in family with environments on the device.
        device: a GPU.
        graph: captures and replays.
    """

    def __init__(
        self,
        distribution: TaskDistribution,
        device: torch.device | str,
        graph: Callable[[Callable[[], Trial], list[torch.Generator]], Any] = CUDAGraph,
    ) -> None:
        self.distribution, self.device = distribution, torch.device(device)
        self._stage = Stage(distribution, self.device)
        self._capture = graph
        self._captured: tuple[Any, ...] = ()
        self._source = torch.Generator(self.device)
        self._tasks: TensorTasks
        self._graph: Any

    @torch.no_grad()
    def run(self, agent: Agent[Carry], tasks: Tasks, num_episodes: int, seed: int) -> Trial:
        """Run one trial of ``num_episodes`` episodes on every task; see ``Worker``.

        Raises:
            UserError: if the agent or the tasks' environments cannot be captured.
        """
        if not isinstance(tasks, TensorTasks):
            raise UserError(
                f"cuda_graphs: expected a built-in family, whose tasks are tensors, got {self.distribution}; "
                "set cuda_graphs=false"
            )
        plan = agent.phase.plan(num_episodes)
        if plan.phases > 1:
            raise UserError(
                f"cuda_graphs: expected an agent that lives through a trial in one phase, got {plan.phases} "
                "phases, between which it adapts; set cuda_graphs=false"
            )
        wanted = (agent, len(tasks), plan)
        if not self._captured or self._captured[0] is not agent or self._captured[1:] != wanted[1:]:
            self._tasks = TensorTasks(
                {name: value.to(self.device, copy=True) for name, value in tasks.parameters.items()}
            )
            self._captured = ()  # in case the capture fails
            self._graph = self._new_graph(agent, plan)
            self._captured = wanted
        for name, value in self._tasks.parameters.items():
            value.copy_(tasks.parameters[name])
        self._seed(agent, seed)
        trial: Trial = self._graph.replay()
        return Trial(tasks, trial.phases)

    def close(self) -> None:
        """Close the environments and discard the captured graph."""
        self._stage.close()
        self._captured, self._graph = (), None

    def _new_graph(self, agent: Agent[Carry], plan: Plan) -> Any:
        generators = self._seed(agent, 0)
        try:
            return self._capture(lambda: self._live(agent, plan), generators)
        except RuntimeError as error:  # such as an operation that reads a value back from the device
            cause = error.__context__ or error  # the end of a failed capture raises a second error
            if "out of memory" in f"{cause} {error}":
                raise torch.OutOfMemoryError(str(cause)) from error
            raise UserError(
                f"cuda_graphs: expected rollouts that can be captured, got {cause}; set cuda_graphs=false"
            ) from error

    def _live(self, agent: Agent[Carry], plan: Plan) -> Trial:
        """Run the trial to capture: all data are on the device, and the random streams just continue."""
        lanes = agent.phase.lanes_per_task
        played = self._tasks[torch.arange(len(self._tasks), device=self.device).repeat_interleave(lanes)]
        return Trial(self._tasks, self._stage.live(agent, played, plan, self._source, None))

    def _seed(self, agent: Agent[Carry], seed: int) -> list[torch.Generator]:
        """Seed all random streams, and return their generators."""
        envs = self._stage.envs(len(self._tasks) * agent.phase.lanes_per_task)
        if not isinstance(envs, Seeded):
            raise UserError(
                "cuda_graphs: expected environments whose randomness can be seeded without a reset, got "
                f"{type(envs).__name__}; set cuda_graphs=false"
            )
        self._source.manual_seed(derive(seed, "agent"))
        return [self._source, envs.seed(derive(seed, "envs"))]
