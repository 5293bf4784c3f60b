"""One job: `python -m llmos.servers.optimizer.job FOLDER`, started by the optimizer server."""
