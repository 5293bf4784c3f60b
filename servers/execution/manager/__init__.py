"""The manager: which models are loaded, under which names, on whose memory. No grpc in core."""
