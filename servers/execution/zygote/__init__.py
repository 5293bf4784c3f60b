"""The process that has imported the heavy libraries and forks workers; see zygote.proto."""
