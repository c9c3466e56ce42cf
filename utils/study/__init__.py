"""The paper's tables: their rows, the runs that a row needs, their results, and how a table is drawn."""
