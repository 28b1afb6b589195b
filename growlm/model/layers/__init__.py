"""The transformer's layers: attention, feed-forward, mixture of experts, rotary positions."""
