"""Running models: a process of its own, reached by typed messages over a Unix socket."""
