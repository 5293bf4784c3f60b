"""The command line: talks to a running LLM OS over gRPC only."""
