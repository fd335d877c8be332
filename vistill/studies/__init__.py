"""Studies: several runs that are compared, the demo, the selftest, replay and the tiny models."""
