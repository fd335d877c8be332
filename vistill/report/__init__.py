"""One self-contained HTML page from run folders. Reads `runs/` only; no torch, no script, no network."""
