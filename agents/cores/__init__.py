"""Cores: networks that read a trial step by step, one file each."""
