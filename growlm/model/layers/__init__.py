"""The layers of the transformer: attention, feed-forward, mixture of experts."""
