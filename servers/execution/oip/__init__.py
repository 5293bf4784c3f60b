"""The Open Inference Protocol: the worker's part (tensors) and the manager's (repository)."""
