"""Algorithms with proofs, on the same protocol as the agents that learn to learn."""
