"""What people see of a run: how far curves move although attention does not."""
