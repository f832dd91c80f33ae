"""What a run would need, before it is started: memory, time, a few measured steps."""
