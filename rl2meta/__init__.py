"""rl2meta: agents that learn to learn, trained and judged on tasks they have never seen.

Importing this package imports nothing heavy; the parts are modules of their own, such as
``rl2meta.rollout`` or ``rl2meta.envs`` (which also registers the Gymnasium ids).
"""

__version__ = "0.1.0"
