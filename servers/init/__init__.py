"""The supervisor: boots, watches, restarts and stops the processes of one LLM OS."""
