import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl2meta.randomness import derive, generator

PATHS = st.lists(st.one_of(st.integers(0, 2**32 - 1), st.text(max_size=8)), max_size=4)


@given(st.integers(0, 2**63 - 1), PATHS)
def test_a_stream_is_a_function_of_seed_and_path(seed: int, path: list[int | str]) -> None:
    assert derive(seed, *path) == derive(seed, *path)
    assert 0 <= derive(seed, *path) < 2**63


def test_no_two_of_many_streams_are_the_same() -> None:
    paths = [("train", u, part) for u in range(500) for part in ("tasks", "rollout", "learner")]
    assert len({derive(seed, *path) for seed in range(4) for path in paths}) == 4 * len(paths)


def test_a_number_is_not_the_name_of_the_same_bytes() -> None:
    assert derive(0, 7) != derive(0, "7")


def test_neighbouring_seeds_share_no_draws() -> None:
    draws = [torch.rand(1000, generator=generator(seed, "envs")) for seed in range(3)]
    assert len(torch.cat(draws).unique()) > 2990  # 24-bit floats collide now and then


def test_streams_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    torch.rand(3, generator=generator(1, "x"))
    assert torch.equal(before, torch.get_rng_state())


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a seed >= 0, got -1"):
        derive(-1)
