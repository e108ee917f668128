"""Experiments: from a config to a trained agent and its evaluation, without the command line."""
