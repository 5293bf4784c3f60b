"""What the tensor engines share: declared batching, state, streams, caching and steps."""
