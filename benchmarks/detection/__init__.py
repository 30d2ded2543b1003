"""Detection of shifts and faults by the monitor."""
