"""Processes: ranks, the rendezvous, launchers, preemption."""
