"""References: classical algorithms with known behaviour, with the same interface as the trained agents."""
