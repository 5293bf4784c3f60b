"""The execution server: a manager, a zygote, and one worker process per loaded model."""
