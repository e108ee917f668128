"""Rooms with a row of switches, one of which lights the lamp."""

import gymnasium as gym

gym.register("Lamp-v0", "lamps.envs:Lamp", max_episode_steps=6)
