"""Detection of shifts and faults by the runtime monitor."""
