"""The shipped experiments: one complete YAML file each, without inheritance."""
