"""Environments whose steps tell something wrong of rewards, ends and regret."""

from typing import Any

import numpy as np
from faulty_lamps import Lamp


class InfiniteReward(Lamp):
    def paid(self, action: Any) -> Any:
        return float("inf") if self.late else 0.0


class NaNReward(Lamp):
    def paid(self, action: Any) -> Any:
        return float("nan") if self.late else 0.0


class RewardInAnArray(Lamp):
    def paid(self, action: Any) -> Any:
        return np.ones(1)


class RewardNone(Lamp):
    def paid(self, action: Any) -> Any:
        return None


class RewardString(Lamp):
    def paid(self, action: Any) -> Any:
        return "1.0"


class TerminatedInt(Lamp):
    def step(self, action: Any) -> Any:
        seen, paid, _, _, info = super().step(action)
        return seen, paid, 0, False, info


class TruncatedArray(Lamp):
    def step(self, action: Any) -> Any:
        seen, paid, over, _, info = super().step(action)
        return seen, paid, over, np.array([False]), info


class FourValues(Lamp):
    def step(self, action: Any) -> Any:
        seen, paid, over, _, info = super().step(action)
        return seen, paid, over, info


class InfoNone(Lamp):
    def step(self, action: Any) -> Any:
        return *super().step(action)[:4], None


class RegretNegative(Lamp):
    def step(self, action: Any) -> Any:
        return *super().step(action)[:4], {"regret": -0.5 if self.late else 0.5}


class RegretNaN(RegretNegative):
    def step(self, action: Any) -> Any:
        return *super().step(action)[:4], {"regret": float("nan") if self.late else 0.5}


class RegretAtTimes(Lamp):
    def step(self, action: Any) -> Any:
        return *super().step(action)[:4], {} if self.late else {"regret": 0.5}


class RegretLater(Lamp):
    def step(self, action: Any) -> Any:
        return *super().step(action)[:4], {"regret": 0.5} if self.late else {}
