"""Agents and their learners, one file for each."""

if __name__ != "rl2meta.agents":
    raise ImportError(
        f"expected 'import rl2meta.agents', got 'import {__name__}': a second copy of every class would not "
        "be equal to the first"
    )
