"""Exact Bayes-optimal values."""


def bayes_optimal_bernoulli(num_arms: int, num_pulls: int) -> float | None:
    raise NotImplementedError
