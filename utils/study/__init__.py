"""The paper's tables: their rows, the runs that a row needs, what these came to, and how a table is drawn."""
