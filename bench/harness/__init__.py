"""What measures: cases, clocks, the machine's limits, and the report."""
