"""Conversations: their turns, and the best context within a budget of tokens. See README.md."""
