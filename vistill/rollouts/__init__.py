"""Responses out: engines that write K rollouts per prompt, and the keyed sampling noise."""
