"""Several processes: their places, how they meet and agree, and what happens if one is lost."""
