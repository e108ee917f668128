"""What is public: every name here can be had from ``rl2meta`` itself; docs/api.md describes them."""

from rl2meta.envs.checking import check_distribution as check_distribution
from rl2meta.errors import UserError as UserError
from rl2meta.experiments.agent_checks import check_agent as check_agent
from rl2meta.experiments.catalogue import list_agents as list_agents
from rl2meta.experiments.catalogue import list_configs as list_configs
from rl2meta.experiments.catalogue import list_distributions as list_distributions
from rl2meta.experiments.entry import load_run as load_run
from rl2meta.experiments.entry import resume as resume
from rl2meta.experiments.entry import train as train
from rl2meta.experiments.evaluations import Evaluation as Evaluation
from rl2meta.experiments.evaluations import compare as compare
from rl2meta.experiments.evaluations import evaluate as evaluate
from rl2meta.experiments.groups import Group as Group
from rl2meta.experiments.plots import plot as plot
from rl2meta.experiments.run import Run as Run
from rl2meta.experiments.watching import Watch as Watch
from rl2meta.experiments.watching import watch as watch
from rl2meta.experiments.zoo import list_zoo as list_zoo
from rl2meta.interop import Predictor as Predictor
from rl2meta.interop import TrialEnv as TrialEnv
from rl2meta.memory import keep_memory as keep_memory
from rl2meta.rollout import RolloutWorker as RolloutWorker
from rl2meta.tasks import TaskDistribution as TaskDistribution
from rl2meta.tasks import sample_tasks as sample_tasks
from rl2meta.training import AgentKind as AgentKind
from rl2meta.training import Budget as Budget
from rl2meta.training import Learner as Learner
from rl2meta.training import meta_train as meta_train
from rl2meta.trial import Agent as Agent
from rl2meta.trial import Choice as Choice
from rl2meta.trial import Phase as Phase
from rl2meta.trial import TimeStep as TimeStep
from rl2meta.trial import Trajectory as Trajectory
from rl2meta.trial import Trial as Trial

__version__: str
__all__: list[str]
