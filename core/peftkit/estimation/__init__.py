"""The memory of a run, estimated before it starts: part by part, and the memory plan that fits."""
