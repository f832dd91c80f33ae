"""Loops in machine code, by numba, for data workers: numpy's random numbers, crops, the cutting of views.  Imported where they are asked for."""
