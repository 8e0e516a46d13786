"""Demo: the whole loop on a grocery chain's data or on a simulated shop."""
