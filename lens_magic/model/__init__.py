"""The model on every rank: loading and sharding it, where its parts are, its head, and the one decode loop."""
