"""RL² by PPO as one jitted JAX program: what a person with speed in mind writes today.

New tasks, rollout, returns, advantages and all epochs of an update are one function, which XLA compiles once.
It computes what ``rl2meta.agents.ppo`` computes with the same settings: the same inputs, network, loss,
clipping and Adam. It needs JAX and Optax (extra ``benchmark``); nothing but the benchmark uses it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Array = Any  # jax.Array; the module is checked where JAX is not installed
TRACE, CLIP, VALUE_WEIGHT, ENTROPY_WEIGHT, LONGEST_GRADIENT, RATE = 0.95, 0.2, 0.05, 0.05, 0.5, 1e-2


class Law(NamedTuple):
    """A law of tasks, as functions of whole batches.

    Attributes:
        inputs: length of an encoded observation.
        actions: number of actions.
        horizon: steps in an episode.
        sample: (key, number) -> tasks, a tuple of arrays [B, ...].
        begin: (number) -> the states in which an episode begins, [B].
        observe: (states) -> encoded observations, [B, inputs].
        step: (key, tasks, states, actions) -> states, rewards, regrets, [B] each.
    """

    inputs: int
    actions: int
    horizon: int
    sample: Callable[..., Any]
    begin: Callable[..., Any]
    observe: Callable[..., Any]
    step: Callable[..., Any]


def bandits(num_arms: int) -> Law:
    """Return Bernoulli bandits with p ~ U[0, 1]; an episode is one pull, and the observation is 0."""

    def sample(key: Array, number: int) -> Any:
        return (jax.random.uniform(key, (number, num_arms)),)

    def step(key: Array, tasks: Any, states: Array, actions: Array) -> Any:
        (means,) = tasks
        mean = jnp.take_along_axis(means, actions[:, None], axis=1)[:, 0]
        reward = (jax.random.uniform(key, mean.shape) < mean).astype(jnp.float32)
        return states, reward, means.max(axis=1) - mean

    def nothing(states: Array) -> Array:
        return jnp.zeros((*states.shape, 1))

    return Law(1, num_arms, 1, sample, lambda number: jnp.zeros(number, jnp.int32), nothing, step)


def mdps(num_states: int, num_actions: int, horizon: int) -> Law:
    """Return random tabular MDPs (Duan et al. 2016); a state is a node t·S + s, as in ``envs/tabular.py``."""

    def sample(key: Array, number: int) -> Any:
        of_means, of_transitions = jax.random.split(key)
        shape = (number, num_states, num_actions)
        means = 1.0 + jax.random.normal(of_means, shape)
        weights = jax.random.exponential(of_transitions, (*shape, num_states))
        transitions = weights / weights.sum(axis=-1, keepdims=True)
        return means, jnp.cumsum(transitions, axis=-1), regrets_of(means, transitions, horizon)

    def step(key: Array, tasks: Any, states: Array, actions: Array) -> Any:
        means, cumulative, regrets = tasks
        here, row = states % num_states, jnp.arange(len(states))
        of_noise, of_chance = jax.random.split(key)
        reward = means[row, here, actions] + jax.random.normal(of_noise, states.shape)
        chance = jax.random.uniform(of_chance, (len(states), 1))
        there = jnp.minimum((cumulative[row, here, actions] <= chance).sum(axis=1), num_states - 1)
        regret = regrets[row, states // num_states, here, actions]
        return states - here + num_states + there, reward, regret

    def one_hot(states: Array) -> Array:
        return jax.nn.one_hot(states % num_states, num_states)

    def begin(number: int) -> Array:
        return jnp.zeros(number, jnp.int32)

    return Law(num_states, num_actions, horizon, sample, begin, one_hot, step)


def regrets_of(means: Array, transitions: Array, horizon: int) -> Array:
    """Return V*_t(s) − Q*_t(s, a), [B, H, S, A], by backward induction."""

    def back(value: Array, _: None) -> Any:
        action_values = means + jnp.einsum("bsat,bt->bsa", transitions, value)
        best = action_values.max(axis=-1)
        return best, best[..., None] - action_values

    _, found = jax.lax.scan(back, jnp.zeros(means.shape[:2]), None, length=horizon)
    return jnp.moveaxis(found[::-1], 0, 1)


class Batch(NamedTuple):
    """What a rollout records, [T, B, ...], and then what the loss needs of it."""

    inputs: Array
    action: Array
    log_prob: Array
    value: Array
    reward: Array
    signal: Array


class Units(NamedTuple):
    """The unit of the value, and the mean and the standard deviation of rewards; measured once."""

    value: Array
    centre: Array
    spread: Array


class Program(NamedTuple):
    """The compiled agent.

    Attributes:
        begin: (seed) -> the state of the training.
        update: (state) -> the next state, and the mean return of the trials it played.
    """

    begin: Callable[[int], Any]
    update: Callable[[Any], Any]


def make_program(
    law: Law,
    *,
    hidden_size: int,
    trials: int,
    episodes: int,
    epochs: int,
    minibatches: int,
    rate: float = RATE,
) -> Program:
    """Return RL² with an LSTM on a law; the settings are those of ``RL2Config``."""
    steps = episodes * law.horizon
    optimiser = optax.chain(optax.clip_by_global_norm(LONGEST_GRADIENT), optax.adam(rate))
    left = jnp.arange(steps, 0, -1, dtype=jnp.float32)[:, None]  # steps that follow, this one included

    def begin(seed: int) -> Any:
        key, of_weights = jax.random.split(jax.random.PRNGKey(seed))
        weights = _initial(of_weights, law.inputs + law.actions + 2, law.actions, hidden_size)
        return key, weights, optimiser.init(weights), Units(*jnp.zeros(3))

    def roll_out(key: Array, weights: Any, tasks: Any, units: Units) -> Batch:
        start = law.begin(trials)
        zeros = jnp.zeros((trials, hidden_size))
        carry = (zeros, zeros, start, jnp.zeros((trials, law.actions)), jnp.zeros(trials))

        def act(carry: Any, now: Any) -> Any:
            h, c, state, last_action, last_reward = carry
            number, key = now
            first = number % law.horizon == 0
            state = jnp.where(first, start, state)
            seen_reward = (last_reward - units.centre) / jnp.where(units.spread > 0, units.spread, 1.0)
            flags = jnp.stack([seen_reward, jnp.full(trials, first, jnp.float32)], axis=1)
            x = jnp.concatenate([law.observe(state), last_action, flags], axis=1)
            h, c = _cell(weights, x @ weights["wx"] + weights["b"], h, c)
            log_probs, value = _heads(weights, h)
            of_action, of_step = jax.random.split(key)
            action = jax.random.categorical(of_action, log_probs)
            state, reward, regret = law.step(of_step, tasks, state, action)
            log_prob = jnp.take_along_axis(log_probs, action[:, None], axis=1)[:, 0]
            seen = Batch(x, action, log_prob, value * units.value, reward, -regret)
            return (h, c, state, jax.nn.one_hot(action, law.actions), reward), seen

        keys = jax.random.split(key, steps)
        seen: Batch = jax.lax.scan(act, carry, (jnp.arange(steps), keys))[1]
        return seen

    def judged(batch: Batch, scale: Array) -> tuple[Array, Array, Array]:
        """Return standardised advantages and value targets, [T, B], and the unit of the value."""
        value = batch.value * left
        following = jnp.concatenate([value[1:], jnp.zeros_like(value[:1])])

        def back(advantage: Array, step: Any) -> Any:
            advantage = step + TRACE * advantage
            return advantage, advantage

        errors = batch.signal + following - value
        _, advantage = jax.lax.scan(back, jnp.zeros(trials), errors, reverse=True)
        per_step = (advantage + value) / left
        scale = jnp.where(scale == 0, jnp.abs(per_step).mean(), scale)
        target = per_step / jnp.maximum(scale, 1e-8)
        return (advantage - advantage.mean()) / (advantage.std() + 1e-8), target, scale

    def loss(weights: Any, batch: Batch, advantage: Array, target: Array) -> Array:
        zeros = jnp.zeros((batch.inputs.shape[1], hidden_size))
        projected = batch.inputs @ weights["wx"] + weights["b"]  # of all steps at once

        def step(carry: Any, x: Array) -> Any:
            h, c = _cell(weights, x, *carry)
            return (h, c), h

        _, hidden = jax.lax.scan(step, (zeros, zeros), projected)
        log_probs, value = _heads(weights, hidden)
        log_prob = jnp.take_along_axis(log_probs, batch.action[..., None], axis=-1)[..., 0]
        ratio = jnp.exp(log_prob - batch.log_prob)
        clipped = jnp.clip(ratio, 1 - CLIP, 1 + CLIP)
        gain = jnp.minimum(ratio * advantage, clipped * advantage).mean()
        entropy = -(jnp.exp(log_probs) * log_probs).sum(axis=-1).mean()
        return -gain + VALUE_WEIGHT * jnp.square(value - target).mean() - ENTROPY_WEIGHT * entropy

    def learn(carry: Any, index: Array, batch: Batch, advantage: Array, target: Array) -> Any:
        weights, moments = carry
        part = Batch(*(field[:, index] for field in batch))
        gradient = jax.grad(loss)(weights, part, advantage[:, index], target[:, index])
        change, moments = optimiser.update(gradient, moments, weights)
        return (optax.apply_updates(weights, change), moments), None

    def update(state: Any) -> Any:
        key, weights, moments, units = state
        key, of_tasks, of_rollout, of_order = jax.random.split(key, 4)
        batch = roll_out(of_rollout, weights, law.sample(of_tasks, trials), units)
        advantage, target, scale = judged(batch, units.value)
        orders = jax.vmap(lambda one: jax.random.permutation(one, trials))(jax.random.split(of_order, epochs))
        parts = orders.reshape(epochs * minibatches, trials // minibatches)
        (weights, moments), _ = jax.lax.scan(
            lambda carry, index: learn(carry, index, batch, advantage, target), (weights, moments), parts
        )
        new = units.spread == 0  # they are measured once, by the first trials
        centre = jnp.where(new, batch.reward.mean(), units.centre)
        spread = jnp.where(new, batch.reward.std(), units.spread)
        return (key, weights, moments, Units(scale, centre, spread)), batch.reward.sum(axis=0).mean()

    return Program(begin, jax.jit(update, donate_argnums=0))


def _initial(key: Array, inputs: int, actions: int, hidden_size: int) -> dict[str, Array]:
    bound = hidden_size**-0.5
    keys = jax.random.split(key, 3)

    def uniform(one: Array, *shape: int) -> Array:
        return jax.random.uniform(one, shape, minval=-bound, maxval=bound)

    policy = jax.nn.initializers.orthogonal()(keys[2], (hidden_size, actions))
    return {
        "wx": uniform(keys[0], inputs, 4 * hidden_size),
        "wh": uniform(keys[1], hidden_size, 4 * hidden_size),
        "b": jnp.zeros(4 * hidden_size).at[hidden_size : 2 * hidden_size].set(1.0),  # gates that forget
        "head": jnp.concatenate([policy, jnp.zeros((hidden_size, 1))], axis=1),
        "head_b": jnp.zeros(actions + 1),
    }


def _cell(weights: Any, projected: Array, h: Array, c: Array) -> tuple[Array, Array]:
    i, f, g, o = jnp.split(projected + h @ weights["wh"], 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _heads(weights: Any, h: Array) -> tuple[Array, Array]:
    """Return log π [..., A] and the value per step [...]; one product for both."""
    out = h @ weights["head"] + weights["head_b"]
    return jax.nn.log_softmax(out[..., :-1]), out[..., -1]
