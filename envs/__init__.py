"""Task families; importing this package registers their Gymnasium ids.

``gym.make("rl2meta/BernoulliBandit-v0", num_arms=5)`` returns one environment over NumPy arrays;
``gym.make_vec(..., num_envs=1000)`` returns the batched environment over tensors.
"""

if __name__ != "rl2meta.envs":
    raise ImportError(
        f"expected 'import rl2meta.envs', got 'import {__name__}': this would make a second copy of every "
        "class, which is not equal to the first"
    )

import gymnasium as _gym

FAMILIES = {
    "rl2meta/BernoulliBandit-v0": "rl2meta.envs.bandits:BernoulliBandits",
    "rl2meta/GaussianBandit-v0": "rl2meta.envs.bandits:GaussianBandits",
    "rl2meta/DependentBandit-v0": "rl2meta.envs.dependent_bandits:DependentBandits",
    "rl2meta/TwoStep-v0": "rl2meta.envs.two_step:TwoStep",
    "rl2meta/TabularMDP-v0": "rl2meta.envs.tabular:TabularMDPs",
    "rl2meta/DarkRoom-v0": "rl2meta.envs.mazes:DarkRooms",
    "rl2meta/KeyToDoor-v0": "rl2meta.envs.mazes:KeyToDoor",
    "rl2meta/MovingBandits-v0": "rl2meta.envs.moving_bandits:MovingBandits",
    "rl2meta/FourRooms-v0": "rl2meta.envs.four_rooms:FourRooms",
    "rl2meta/PointNavigation-v0": "rl2meta.envs.navigation:PointNavigation",
    "rl2meta/Sinusoid-v0": "rl2meta.envs.sinusoids:Sinusoids",
    "rl2meta/Quadratic-v0": "rl2meta.envs.quadratics:Quadratics",
    "rl2meta/FewShot-v0": "rl2meta.envs.few_shot:FewShot",
}

for _id, _family in FAMILIES.items():
    _gym.register(
        _id,
        entry_point="rl2meta.envs.single:make_env",
        vector_entry_point="rl2meta.envs.single:make_vec_env",
        kwargs={"family": _family},
    )
