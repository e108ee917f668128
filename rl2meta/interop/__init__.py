"""A trial as one Gymnasium episode, and Stable-Baselines3's ``predict`` for any agent."""

from rl2meta.interop.predictor import Predictor
from rl2meta.interop.trial_env import TrialEnv

__all__ = ["Predictor", "TrialEnv"]
