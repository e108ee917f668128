"""Single Gymnasium environments, stepped side by side in worker processes.

Importing this package, and all of it that a worker process needs, does not import torch.
"""
