"""From the config to a run's data, network and stages, and to evaluations."""
