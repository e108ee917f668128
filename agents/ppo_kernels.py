"""The heads of an actor-critic, the loss of ``PPO`` for discrete actions and its gradient, compiled by Numba.

A minibatch has some thousand steps of few actions, for which torch's operations take longer to begin than to
compute. With π by the logits z, the action taken b, share m = mask / Σ mask, and ρA unless it is clipped:

    dL/dz_a = m [−ρA (1[a = b] − π_a) + c_e π_a (log π_a + H) − s_a + π_a Σ s]
    dL/dv = 2 m c_v (v − v_target)

with s_a = π_a Â_a for the advantages of all actions where they are not clipped, or 0. A block of steps passes
from the features to their gradient in the nearest cache. Within it lanes are outputs for the heads, steps for
the loss, and features for the gradients; every sum has a fixed order. Outputs are the logits and then the
value; arrays are flat.
"""

import numpy as np
from numba import njit

from rl2meta.kernels import kept_on_disk
from rl2meta.vectors import (
    LANES,
    add,
    constant,
    eight_from,
    exp,
    exp_and_less,
    filled,
    fma,
    four_from,
    if_at_most,
    if_equal,
    inlined,
    load,
    load_at,
    log,
    mul,
    plus,
    spread_at,
    store,
    store_at,
    sub,
)

BLOCK = 64  # steps
_float = np.float32


@kept_on_disk
def stack(policy, policy_bias, value, value_bias, rows, columns, bias, size):
    """Fill the heads as ``judge`` reads them from the weights [A, size] and [1, size]; what is added is 0."""
    width = len(bias)
    features, actions = len(columns) // width, len(policy_bias)
    rows[:], columns[:], bias[:] = 0, 0, 0
    for output in range(actions + 1):
        last = output == actions
        bias[output] = value_bias[0] if last else policy_bias[output]
        for k in range(size):
            weight = value[k] if last else policy[output * size + k]
            rows[output * features + k] = columns[k * width + output] = weight


@kept_on_disk
def judge(x, heads, columns, bias, known, action, old, immediate, legal, d_x, d_heads, d_bias, sums, numbers):
    """Set the gradient by features, and add those by the heads, and Σ of the loss's parts and metrics.

    ``x`` is [N, F], ``heads`` [outputs, F], ``columns`` [F, wide(outputs)] and the bias [wide(outputs)]; F
    fills vectors. ``known`` are log π_old(b), the advantage, the value's target and the mask, [4, N].
    ``old`` and ``immediate``, [N, A], may be empty, as ``legal`` may. ``numbers`` are ε, c_v, c_e and
    1 / Σ mask, and ``sums`` the surrogate, the value's error, the entropy, the KL and the clipped part.
    """
    judge_all(
        x, heads, columns, bias, known, action, old, immediate, legal, d_x, d_heads, d_bias, sums, numbers
    )


@njit
def judge_all(
    x, heads, columns, bias, known, action, old, immediate, legal, d_x, d_heads, d_bias, sums, numbers
):
    """Do what ``judge`` does, for other kernels."""
    rows, width = len(action), len(bias)
    features, outputs = len(x) // rows, len(d_bias)
    z, both = np.zeros(outputs * BLOCK, _float), np.zeros(2 * outputs * BLOCK, _float)
    mine, parts = np.zeros(5 * BLOCK, _float), np.zeros(5 * BLOCK, _float)
    for first in range(0, rows, BLOCK):
        steps = min(BLOCK, rows - first)
        outputs_of(x, columns, bias, z, first, steps, features, width)
        _take(known, action, mine, first, steps, rows, numbers[3])
        _take_all(old, immediate, legal, both, z, first, steps, outputs - 1)
        for step in range(0, steps, LANES):
            _descend(z, both, mine, parts, step, outputs - 1, len(old) > 0, numbers)
        _give_back(z, heads, d_x, first, steps, features, outputs)
        _add_heads(z, x, d_heads, d_bias, first, steps, features, outputs)
        for step in range(steps):
            for part in range(5):
                sums[part] += parts[part * BLOCK + step]


@njit
def outputs_of(x, columns, bias, z, first, steps, features, width):
    """Set the outputs of a block, [outputs, BLOCK]."""
    found = np.empty(8 * LANES, _float)
    outputs = len(z) // BLOCK
    for column in range(0, outputs, LANES):
        start = load(bias, column)
        for step in range(0, steps, 8):
            these = eight_from(step, steps - 1)
            sums = filled(these, (0,), start)
            for k in range(features):
                vector, at = load(columns, k * width + column), first * features + k
                sums = plus(sums, spread_at(x, at, features, these), (vector,))
            store_at(found, 0, LANES, (0, 1, 2, 3, 4, 5, 6, 7), (0,), sums)
            for output in range(column, min(column + LANES, outputs)):
                for one in range(min(8, steps - step)):
                    z[output * BLOCK + step + one] = found[one * LANES + output - column]


@njit
def _take(known, action, mine, first, steps, rows, scale):
    """Set log π_old(b), the advantage, the target, the share and b of a block, [5, BLOCK]."""
    mine[:] = 0
    for step in range(steps):
        for field in range(4):
            mine[field * BLOCK + step] = known[field * rows + first + step]
        mine[3 * BLOCK + step] *= _float(scale)
        mine[4 * BLOCK + step] = action[first + step]


@njit
def _take_all(old, immediate, legal, both, z, first, steps, actions):
    """Set log π_old and the immediate advantages of a block, [2, A, BLOCK]; make logits impossible."""
    for step in range(steps):
        row = (first + step) * actions
        for a in range(actions):
            if len(old):
                both[a * BLOCK + step] = old[row + a]
                both[(actions + a) * BLOCK + step] = immediate[row + a]
    forbid(legal, z, first, steps, actions)


@njit
def forbid(legal, z, first, steps, actions):
    """Give illegal actions of a block probability 0; ``legal`` may be empty."""
    if len(legal):
        for step in range(steps):
            for a in range(actions):
                if not legal[(first + step) * actions + a]:
                    z[a * BLOCK + step] = _float(-1e9)


@njit
def log_softmax(z, step, actions):
    """Put log π of LANES steps in place of their logits."""
    top, total = load(z, step), constant(_float(0))
    for a in range(1, actions):
        other = load(z, a * BLOCK + step)
        top = if_at_most(top, other, other, top)
    for a in range(actions):
        total = add(total, whole_exp(sub(load(z, a * BLOCK + step), top)))
    below = log(total)
    for a in range(actions):
        store(z, a * BLOCK + step, sub(sub(load(z, a * BLOCK + step), top), below))


@njit
def _descend(z, both, mine, parts, step, actions, all_actions, numbers):
    """Put the gradient by the outputs of LANES steps in their place; set shares of loss and metrics."""
    zero, one, clip = constant(_float(0)), constant(_float(1)), constant(_float(numbers[0]))
    old, advantage, target = load(mine, step), load(mine, BLOCK + step), load(mine, 2 * BLOCK + step)
    share, taken = load(mine, 3 * BLOCK + step), load(mine, 4 * BLOCK + step)
    log_softmax(z, step, actions)
    entropy = chosen = zero
    for a in range(actions):
        log_pi = load(z, a * BLOCK + step)
        chosen = if_equal(taken, constant(_float(a)), log_pi, chosen)
        entropy = sub(entropy, mul(whole_exp(log_pi), log_pi))
    ratio, moved = exp_and_less(sub(chosen, old))
    gain, steep = _clipped(ratio, one, advantage, clip)
    whole, won = steep, zero
    if all_actions:
        for a in range(actions):
            pi, before = whole_exp(load(z, a * BLOCK + step)), load(both, a * BLOCK + step)
            more, slope = _clipped(pi, whole_exp(before), load(both, (actions + a) * BLOCK + step), clip)
            won, whole = add(won, more), add(whole, slope)
            store(both, a * BLOCK + step, slope)
    cost = constant(_float(numbers[2]))
    for a in range(actions):
        log_pi = load(z, a * BLOCK + step)
        pi, slope = whole_exp(log_pi), if_equal(taken, constant(_float(a)), steep, zero)
        if all_actions:
            slope = add(slope, load(both, a * BLOCK + step))
        push = fma(mul(cost, pi), add(log_pi, entropy), sub(mul(pi, whole), slope))
        store(z, a * BLOCK + step, mul(share, push))
    error = sub(load(z, actions * BLOCK + step), target)
    twice = mul(share, constant(_float(2 * numbers[1])))
    store(z, actions * BLOCK + step, mul(twice, error))
    store(parts, step, mul(share, add(gain, won)))
    store(parts, BLOCK + step, mul(share, mul(error, error)))
    store(parts, 2 * BLOCK + step, mul(share, entropy))
    store(parts, 3 * BLOCK + step, mul(share, sub(moved, sub(chosen, old))))
    far = if_at_most(moved, clip, if_at_most(sub(zero, clip), moved, zero, one), one)
    store(parts, 4 * BLOCK + step, mul(share, far))


@inlined
def whole_exp(x):
    """Return eˣ."""
    e, scale = exp(x)
    return mul(e, scale)


@inlined
def _clipped(new, old, advantage, clip):
    """Return min(xA, clip(x, (1 − ε) x_old, (1 + ε) x_old) A), and its derivative by log x."""
    one = constant(_float(1))
    low, high = mul(sub(one, clip), old), mul(add(one, clip), old)
    bounded = if_at_most(new, low, low, if_at_most(high, new, high, new))
    reached, bounded = mul(new, advantage), mul(bounded, advantage)
    return (
        if_at_most(reached, bounded, reached, bounded),
        if_at_most(reached, bounded, reached, mul(constant(_float(0)), bounded)),  # NaN stays NaN
    )


@njit
def _give_back(z, heads, d_x, first, steps, features, outputs):
    """Set the gradients of a block by its features: those by its outputs times the heads."""
    zero = constant(_float(0))
    for feature in range(0, features, LANES):
        for step in range(0, steps, 8):
            these = eight_from(step, steps - 1)
            sums = filled(these, (0,), zero)
            for output in range(outputs):
                vector, at = load(heads, output * features + feature), output * BLOCK
                sums = plus(sums, spread_at(z, at, 1, these), (vector,))
            store_at(d_x, first * features + feature, features, these, (0,), sums)


@njit
def _add_heads(z, x, d_heads, d_bias, first, steps, features, outputs):
    """Add a block's share of the gradients by the heads and their bias."""
    for feature in range(0, features, LANES):
        for output in range(0, outputs, 4):
            four = four_from(output, outputs - 1)
            sums = load_at(d_heads, feature, features, four, (0,))
            for step in range(steps):
                vector = load(x, (first + step) * features + feature)
                sums = plus(sums, spread_at(z, step, BLOCK, four), (vector,))
            store_at(d_heads, feature, features, four, (0,), sums)
    for step in range(steps):
        for output in range(outputs):
            d_bias[output] += z[output * BLOCK + step]
