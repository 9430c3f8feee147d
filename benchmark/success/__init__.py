"""Parts of benchmark/closed_loop.py: what tables of docs/results.md compare and how they look."""
