"""The papers' tables: the runs of each table in order, and their results next to the paper's."""
