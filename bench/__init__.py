"""The benches: speed, memory, size, quality, claims. `pytest bench` here; `optsd bench` where OptSD is installed."""
