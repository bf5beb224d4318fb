"""How things are measured: time, memory, size, stages, the machine, and the seeds that make runs repeatable."""
