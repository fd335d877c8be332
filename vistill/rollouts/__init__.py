"""Engines that generate K rollouts per prompt, and their keyed sampling noise."""
