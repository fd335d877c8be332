"""One self-contained HTML page from run folders: no torch, no script, no network."""
