"""Single Gymnasium environments, stepped side by side in worker processes.

Neither this package nor any module that a worker process needs imports torch.
"""
