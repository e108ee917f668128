"""MAML-TRPO on point navigation as one jitted JAX program: vmap over tasks, exact Hessian-vector products.

It computes what ``rl2meta.agents.maml_trpo`` computes with its default settings: a support and a query phase,
one inner step, a linear baseline for each task and phase, ten conjugate gradients and a line search. It needs
JAX (extra ``benchmark``); nothing but the benchmark uses it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from rl2meta.speed.jax_rl2 import Array, Program

INNER_RATE, DISCOUNT, MAX_KL, DAMPING, RIDGE = 0.1, 0.99, 0.01, 1e-5, 1e-5
CONJUGATE_GRADIENTS, TRIES, SHRINK = 10, 15, 0.8
STEP, GOAL_RADIUS = 0.1, 0.01


class Rows(NamedTuple):
    """The steps of a phase of one task: [lanes × T, ...]; the weights sum to 1, and are 0 after the goal."""

    observation: Array
    action: Array
    advantage: Array
    weight: Array


def make_program(
    *,
    tasks: int,
    lanes: int,
    horizon: int,
    hidden_sizes: tuple[int, ...] = (64, 64),
    curvature_fraction: float = 0.1,
) -> Program:
    """Return MAML-TRPO; ``update`` also returns the mean return of an episode after adaptation."""
    sizes = [2, *hidden_sizes, 2]
    some = max(1, round(curvature_fraction * lanes * horizon))
    _, unflatten = ravel_pytree(_initial(jax.random.PRNGKey(0), sizes))

    def begin(seed: int) -> Any:
        key, of_weights = jax.random.split(jax.random.PRNGKey(seed))
        return key, ravel_pytree(_initial(of_weights, sizes))[0]

    def adapt(theta: Array, rows: Rows) -> Any:
        weights = unflatten(theta)
        gradient = jax.grad(inner_loss)(weights, rows)
        return jax.tree.map(lambda w, g: w - INNER_RATE * g, weights, gradient)

    def inner_loss(weights: Any, rows: Rows) -> Array:
        return -(rows.weight * rows.advantage * log_prob(weights, rows.observation, rows.action)).sum()

    def adapted_policy(theta: Array, support: Rows, observation: Array) -> tuple[Array, Array]:
        weights = adapt(theta, support)
        return _mean(weights, observation), weights["log_deviation"]

    def measure(theta: Array, support: Rows, query: Rows, old: Any) -> tuple[Array, Array]:
        """Return the surrogate and the KL of all tasks; ``old`` is the policy at the start."""

        def of_one(support: Rows, query: Rows, old: Any) -> tuple[Array, Array]:
            mean, log_deviation = adapted_policy(theta, support, query.observation)
            ratio = jnp.exp(
                _log_prob(mean, log_deviation, query.action) - _log_prob(old[0], old[1], query.action)
            )
            kl = _kl(old[0], old[1], mean, log_deviation)
            return (query.weight * ratio * query.advantage).sum(), (query.weight * kl).sum()

        surrogate, kl = jax.vmap(of_one)(support, query, old)
        return surrogate.mean(), kl.mean()

    def update(state: Any) -> Any:
        key, theta = state
        key, of_goals, of_support, of_query, of_rows = jax.random.split(key, 5)
        goals = jax.random.uniform(of_goals, (tasks, 2), minval=-0.5, maxval=0.5)
        start = jax.tree.map(lambda w: jnp.broadcast_to(w, (tasks, *w.shape)), unflatten(theta))
        phase = jax.vmap(partial(_phase, lanes=lanes, horizon=horizon))
        support, _ = phase(jax.random.split(of_support, tasks), start, goals)
        after = jax.vmap(adapt, in_axes=(None, 0))(theta, support)
        query, returns = phase(jax.random.split(of_query, tasks), after, goals)
        old = jax.vmap(adapted_policy, in_axes=(None, 0, 0))(theta, support, query.observation)
        before, gradient = jax.value_and_grad(lambda x: measure(x, support, query, old)[0])(theta)
        index = jax.random.permutation(of_rows, lanes * horizon)[:some]
        fewer, asked, known = _take(support, index), _take(query, index), (old[0][:, index], old[1])

        def product(v: Array) -> Array:
            kl = jax.grad(lambda x: measure(x, fewer, asked, known)[1])
            return jax.jvp(kl, (theta,), (v,))[1] + DAMPING * v

        step = _longest_step(product, gradient)
        found = _line_search(lambda x: measure(x, support, query, old), theta, step, before)
        return (key, found), returns.mean()

    return Program(begin, jax.jit(update, donate_argnums=0))


def _phase(key: Array, weights: Any, goal: Array, lanes: int, horizon: int) -> tuple[Rows, Array]:
    """Play ``lanes`` episodes with one task's weights; return its rows and the returns."""

    def act(carry: Any, key: Array) -> Any:
        position, alive = carry
        noise = jax.random.normal(key, (lanes, 2))
        action = _mean(weights, position) + jnp.exp(weights["log_deviation"]) * noise
        there = position + STEP * jnp.clip(action, -1, 1)
        distance = jnp.sqrt(jnp.square(there - goal).sum(axis=1))
        seen = (position, action, -distance * alive, alive)
        return (there, alive * (distance >= GOAL_RADIUS)), seen

    start = (jnp.zeros((lanes, 2)), jnp.ones(lanes))
    _, (observation, action, reward, alive) = jax.lax.scan(act, start, jax.random.split(key, horizon))
    advantage = _advantages(observation, reward, alive, horizon)
    flat = [field.reshape(-1, *field.shape[2:]) for field in (observation, action, advantage, alive)]
    return Rows(flat[0], flat[1], flat[2], flat[3] / flat[3].sum()), reward.sum(axis=0)


def _initial(key: Array, sizes: list[int]) -> dict[str, Any]:
    keys = jax.random.split(key, len(sizes) - 1)
    layers = []
    for one, inputs, outputs in zip(keys, sizes[:-1], sizes[1:], strict=True):
        small = 0.01 if outputs == sizes[-1] and one is keys[-1] else 1.0
        bound = inputs**-0.5
        w = small * jax.random.uniform(one, (inputs, outputs), minval=-bound, maxval=bound)
        layers.append((w, jnp.zeros(outputs)))
    return {"layers": layers, "log_deviation": jnp.zeros(sizes[-1])}


def _mean(weights: Any, observation: Array) -> Array:
    x = observation
    for w, b in weights["layers"][:-1]:
        x = jnp.tanh(x @ w + b)
    w, b = weights["layers"][-1]
    return x @ w + b


def log_prob(weights: Any, observation: Array, action: Array) -> Array:
    """Return log π(a | o), [rows]."""
    return _log_prob(_mean(weights, observation), weights["log_deviation"], action)


def _log_prob(mean: Array, log_deviation: Array, action: Array) -> Array:
    z = (action - mean) * jnp.exp(-log_deviation)
    return (-0.5 * jnp.square(z) - log_deviation - 0.5 * jnp.log(2 * jnp.pi)).sum(axis=-1)


def _kl(mean: Array, log_deviation: Array, new_mean: Array, new_log_deviation: Array) -> Array:
    """Return KL(old ‖ new) of diagonal Gaussians, [rows]."""
    ratio = jnp.exp(2 * (log_deviation - new_log_deviation))
    apart = jnp.square(mean - new_mean) * jnp.exp(-2 * new_log_deviation)
    return (new_log_deviation - log_deviation + 0.5 * (ratio + apart - 1)).sum(axis=-1)


def _advantages(observation: Array, reward: Array, alive: Array, horizon: int) -> Array:
    """Return standardised G − V, [T, lanes], with V a ridge regression on (o, o², τ, τ², τ³, 1)."""

    def back(later: Array, step: Any) -> Any:
        later = step + DISCOUNT * later
        return later, later

    _, returns = jax.lax.scan(back, jnp.zeros(reward.shape[1]), reward, reverse=True)
    time = jnp.arange(horizon) / horizon
    powers = jnp.stack([time, time**2, time**3, jnp.ones(horizon)], axis=-1)
    powers = jnp.broadcast_to(powers[:, None], (*reward.shape, 4))
    phi = jnp.concatenate([observation, jnp.square(observation), powers], axis=-1)
    phi = phi.reshape(-1, phi.shape[-1])
    counted, target = alive.reshape(-1), returns.reshape(-1)
    n = counted.sum()
    gram = phi.T @ (counted[:, None] * phi) / n + RIDGE * jnp.eye(phi.shape[-1])
    fitted = jnp.linalg.solve(gram, phi.T @ (counted * target) / n)
    advantage = target - phi @ fitted
    mean = (counted * advantage).sum() / n
    deviation = jnp.sqrt((counted * jnp.square(advantage - mean)).sum() / n)
    return ((advantage - mean) / (deviation + 1e-8)).reshape(reward.shape)


def _take(rows: Rows, index: Array) -> Rows:
    part = Rows(*(field[:, index] for field in rows))
    return part._replace(weight=part.weight / jnp.maximum(part.weight.sum(axis=1, keepdims=True), 1e-12))


def _longest_step(product: Callable[[Array], Array], gradient: Array) -> Array:
    """Return √(2δ / sᵀHs) s with s = H⁻¹g by conjugate gradients."""

    def iterate(_: int, carry: Any) -> Any:
        x, residual, direction, square = carry
        image = product(direction)
        length = square / direction.dot(image)
        x, residual = x + length * direction, residual - length * image
        following = residual.dot(residual)
        return x, residual, residual + following / square * direction, following

    begin = (jnp.zeros_like(gradient), gradient, gradient, gradient.dot(gradient))
    direction, residual, _, _ = jax.lax.fori_loop(0, CONJUGATE_GRADIENTS, iterate, begin)
    return jnp.sqrt(2 * MAX_KL / direction.dot(gradient - residual)) * direction


def _line_search(measure: Callable[[Array], Any], start: Array, step: Array, before: Array) -> Array:
    """Return the first of start + step, start + ρ step, ... that gains within the trust region, or start."""

    def going(carry: Any) -> Array:
        number, _, good = carry
        return (number < TRIES) & ~good

    def tried(carry: Any) -> Any:
        number, _, _ = carry
        x = start + SHRINK**number * step
        surrogate, kl = measure(x)
        good = jnp.isfinite(surrogate) & (surrogate > before) & (kl <= MAX_KL)
        return number + 1, jnp.where(good, x, start), good

    return jax.lax.while_loop(going, tried, (0, start, False))[1]
