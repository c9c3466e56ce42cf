"""Several processes: who takes which part, how they meet and agree, and what happens when one is lost."""
