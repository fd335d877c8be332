"""Verbs. Nothing heavy is imported before a verb needs it."""
